"""Snapshots of judgements, training runs with their metrics, and evaluations."""

from __future__ import annotations

import uuid
from datetime import time
from pathlib import Path

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.models import Project, User
from feedback.models import Campaign, Judgement, Prompt
from inference.models import BaseModel, Version
from training.engine.estimate import Hardware
from training.options import METHODS_FOR, Kind
from training.symptoms import symptoms


class SnapshotQuerySet(models.QuerySet["Snapshot"]):
    def usable(self) -> SnapshotQuerySet:
        """Return those to train and measure on: ready, and none of their judgements retracted."""
        return self.filter(state=Snapshot.State.READY, stale_at__isnull=True)

    def learnable(self) -> SnapshotQuerySet:
        """Return those whose rows some method learns from."""
        return self.filter(kind__in=[kind for kind, methods in METHODS_FOR.items() if methods])


class Leased(models.Model):
    """What one worker makes at a time; ``training.leases`` moves these fields."""

    # Who has it now: a fresh id for each attempt, so a worker that lost it notices.
    lease = models.UUIDField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0, db_default=0)

    class Meta:
        abstract = True


class Snapshot(Leased):
    """An immutable, hashed set of preference pairs; the files never change once it is ready."""

    class State(models.TextChoices):
        QUEUED = "queued", "queued"
        BUILDING = "building", "building"
        READY = "ready", "ready"
        FAILED = "failed", "failed"
        ERASED = "erased", "erased"

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="snapshots")
    campaigns = models.ManyToManyField(Campaign, related_name="snapshots")
    kind = models.CharField(
        max_length=10, choices=Kind.choices, default=Kind.PREFERENCE, db_default=Kind.PREFERENCE
    )
    # As training.options.Options reads them.
    options = models.JSONField(default=dict, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    reason = models.CharField(max_length=500, blank=True)
    heldout_fraction = models.FloatField(
        default=0.2, validators=[MinValueValidator(0.0), MaxValueValidator(0.9)]
    )
    digest = models.CharField(max_length=64, blank=True)
    path = models.CharField(max_length=500, blank=True)
    manifest = models.JSONField(default=dict, blank=True)
    # Since when it holds something that was retracted; its files stay as they were.
    stale_at = models.DateTimeField(null=True, blank=True)
    replaces = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="replaced_by"
    )
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SnapshotQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(state="ready") | (~Q(digest="") & ~Q(path="")),
                name="a_ready_snapshot_has_its_files",
            )
        ]

    def __str__(self) -> str:
        return f"snapshot {self.pk} ({self.digest[:12] or self.state})"

    @property
    def label(self) -> str:
        return f"Snapshot {self.pk}"

    @property
    def standing(self) -> str:
        """Return the state as a person asks for it: a ready one may have gone stale since."""
        if self.state == self.State.READY and self.stale_at is not None:
            return "stale"
        return str(self.state)

    @property
    def folder(self) -> Path:
        """Return where the files are, or in front of a bucket the copies that were read of them.

        Ask ``training.storage`` for them, which verifies what is there.
        """
        in_bucket = "snapshots" in settings.STORAGES
        return Path(settings.COPIES_DIR if in_bucket else settings.ARTIFACTS_DIR) / self.path


class SnapshotSource(models.Model):
    """How many of an annotator's judgements in a campaign gave rows of a snapshot."""

    snapshot = models.ForeignKey(Snapshot, on_delete=models.CASCADE, related_name="sources")
    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="+")
    annotator = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    judgements = models.PositiveIntegerField()

    class Meta:
        ordering = ["snapshot", "campaign", "-judgements"]
        constraints = [
            models.UniqueConstraint(
                fields=["snapshot", "campaign", "annotator"], name="snapshot_source_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.judgements} by {self.annotator_id} in snapshot {self.snapshot_id}"


class Round(models.Model):
    """Several runs on one snapshot, to be ranked; its state follows from theirs."""

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="rounds")
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="rounds")
    start_version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="rounds_from")
    name = models.CharField(max_length=120, blank=True)
    seed = models.PositiveIntegerField(default=0)
    # Above 0 it halves: so many steps for each run, then the better half goes on with twice those.
    first_steps = models.PositiveIntegerField(default=0)
    cancelled = models.BooleanField(default=False)
    complete = models.BooleanField(default=False)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name or f"round {self.pk}"

    @property
    def last_rung(self) -> int:
        return self.runs.aggregate(last=models.Max("rung"))["last"] or 0

    @property
    def state(self) -> str:
        """Return the round's state as its runs make it."""
        states = {run.state for run in self.runs.all()}
        if states & set(Run.LIVE):
            return "running"
        if self.cancelled:
            return "cancelled"
        if self.first_steps and not self.complete:
            return "running"  # the next rung is about to begin
        return "done" if Run.State.SUCCEEDED in states else "failed"


class RunQuerySet(models.QuerySet["Run"]):
    def live(self) -> RunQuerySet:
        """Return the runs that are neither done nor given up."""
        return self.filter(state__in=Run.LIVE)

    def waiting(self) -> RunQuerySet:
        """Return the runs that a trainer may take."""
        return self.filter(state__in=Run.WAITING, cancel_requested=False)


class Run(Leased):
    """One training of one adapter; its directory can be rerun by hand without Django."""

    class State(models.TextChoices):
        QUEUED = "queued", "queued"
        RUNNING = "running", "running"
        INTERRUPTED = "interrupted", "interrupted"
        PAUSED = "paused", "paused"
        SUCCEEDED = "succeeded", "succeeded"
        FAILED = "failed", "failed"
        CANCELLED = "cancelled", "cancelled"

    WAITING = (State.QUEUED, State.INTERRUPTED)
    LIVE = (State.QUEUED, State.RUNNING, State.INTERRUPTED, State.PAUSED)

    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="runs")
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="runs")
    start_version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="runs_from")
    method = models.CharField(max_length=20)
    arguments = models.JSONField(default=dict, blank=True)
    seed = models.PositiveIntegerField(default=0)
    round = models.ForeignKey(
        Round, on_delete=models.SET_NULL, null=True, blank=True, related_name="runs"
    )
    rung = models.PositiveSmallIntegerField(default=0)
    # The run of the rung before, from whose checkpoints this one goes on.
    continues = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="continued_by"
    )
    # Of the runs that wait, the highest goes first; among equals the oldest.
    priority = models.SmallIntegerField(
        default=0, validators=[MinValueValidator(-100), MaxValueValidator(100)]
    )
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    phase = models.CharField(max_length=20, blank=True)
    reason = models.CharField(max_length=1000, blank=True)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    cancel_requested = models.BooleanField(default=False)
    pause_requested = models.BooleanField(default=False)
    report = models.JSONField(default=dict, blank=True)
    # What preflight foretold; it stands beside the outcome.
    prediction = models.JSONField(default=dict, blank=True)
    # The same training on the same data gives the same bytes, so runs may share a version.
    version = models.ForeignKey(
        Version, on_delete=models.PROTECT, null=True, blank=True, related_name="runs"
    )
    # The run that this one does over without what was retracted.
    replaces = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="replaced_by"
    )
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(state="succeeded") | Q(version__isnull=False),
                name="a_succeeded_run_has_its_version",
            ),
            models.CheckConstraint(
                condition=Q(state="running", lease__isnull=False) | ~Q(state="running"),
                name="a_running_run_has_a_lease",
            ),
        ]
        indexes = [models.Index(fields=["state", "heartbeat_at"], name="run_by_heartbeat")]

    def __str__(self) -> str:
        return f"run {self.pk} ({self.method}, {self.state})"

    @property
    def directory(self) -> Path:
        return Path(settings.RUNS_DIR) / str(self.key)

    @property
    def is_live(self) -> bool:
        return self.state in self.LIVE

    @property
    def seconds(self) -> float | None:
        """Return how long it took since it was last taken up, once it has ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()

    def warnings(self) -> list[str]:
        """Return plain warnings from what the run has logged so far, gravest first; one query."""
        metrics = list(self.metrics.order_by("step").values_list("step", "values"))
        return symptoms(metrics, report=self.report, lengths=self.prediction.get("lengths"))


class RunMetric(models.Model):
    """What a run reported for one step, under the metric names that TRL logs."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="metrics")
    step = models.PositiveIntegerField()
    values = models.JSONField()

    class Meta:
        ordering = ["run", "step"]
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="metrics_once_a_step")]

    def __str__(self) -> str:
        return f"step {self.step} of run {self.run_id}"


class RunNote(models.Model):
    """A sentence from a run for its reader: a fallback taken, a phase begun, an interruption."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="notes")
    message = models.CharField(max_length=1000)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.message


class Machine(models.Model):
    """What a trainer works on, as it reported itself; preflight plans for the latest."""

    name = models.CharField(max_length=200, unique=True)
    hardware = models.CharField(max_length=200)
    device = models.CharField(max_length=10)
    memory_mb = models.FloatField()
    disk_mb = models.FloatField()
    gflops = models.FloatField()
    bf16 = models.BooleanField(default=False)
    seen_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.name} ({self.hardware})"

    def as_hardware(self) -> Hardware:
        """Return it as the estimate takes it."""
        return Hardware(
            name=self.hardware,
            device="cuda" if self.device == "cuda" else "cpu",
            memory_mb=self.memory_mb,
            disk_mb=self.disk_mb,
            gflops=self.gflops,
            bf16=self.bf16,
        )


class Throughput(models.Model):
    """What runs of one kind took on one machine; corrects the next prediction."""

    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="throughputs")
    base = models.ForeignKey(BaseModel, on_delete=models.CASCADE, related_name="throughputs")
    method = models.CharField(max_length=20)
    engine = models.CharField(max_length=20)
    tuning = models.CharField(max_length=20)
    precision = models.CharField(max_length=10)
    gradient_checkpointing = models.BooleanField(default=False)
    tokens_per_second = models.FloatField()
    overhead_seconds = models.FloatField()
    memory_factor = models.FloatField()
    runs = models.PositiveIntegerField(default=1)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["machine", "base", "method"]
        constraints = [
            models.UniqueConstraint(
                fields=[
                    "machine",
                    "base",
                    "method",
                    "engine",
                    "tuning",
                    "precision",
                    "gradient_checkpointing",
                ],
                name="throughput_once_a_kind",
            )
        ]

    def __str__(self) -> str:
        return f"{self.method} on {self.machine}: {self.tokens_per_second:.0f} tokens/s"


class Evaluation(Leased):
    """A challenger against a champion on held-out prompts."""

    class State(models.TextChoices):
        QUEUED = "queued", "queued"
        RUNNING = "running", "running"
        DONE = "done", "done"
        FAILED = "failed", "failed"

    class Judge(models.TextChoices):
        RULE = "rule", "a rule"
        REWARD = "reward", "a reward model"
        PEOPLE = "people", "people, blind"

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="evaluations")
    challenger = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="evaluations")
    champion = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="defences")
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="evaluations")
    judge = models.CharField(max_length=10, choices=Judge.choices, default=Judge.RULE)
    rule = models.CharField(max_length=200, blank=True)
    reward_version = models.ForeignKey(
        Version, on_delete=models.PROTECT, null=True, blank=True, related_name="judged"
    )
    campaign = models.OneToOneField(
        Campaign, on_delete=models.PROTECT, null=True, blank=True, related_name="evaluation"
    )
    samples = models.PositiveSmallIntegerField(default=4)
    seed = models.PositiveIntegerField(default=0)
    sampling = models.JSONField(default=dict, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    reason = models.CharField(max_length=500, blank=True)
    compared = models.PositiveIntegerField(default=0)
    result = models.JSONField(default=dict, blank=True)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(judge="reward") | Q(reward_version__isnull=False),
                name="a_reward_judge_is_named",
            ),
            models.CheckConstraint(
                condition=~Q(judge="rule") | ~Q(rule=""), name="a_rule_judge_is_named"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.challenger} against {self.champion}"


class Retraction(models.Model):
    """One taking back of a judgement, an annotator's work or a prompt, and what it touched."""

    class Kind(models.TextChoices):
        JUDGEMENT = "judgement", "a judgement"
        ANNOTATOR = "annotator", "an annotator's judgements"
        PROMPT = "prompt", "a prompt"

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="retractions")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    judgement = models.ForeignKey(
        Judgement, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    annotator = models.ForeignKey(
        User, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    prompt = models.ForeignKey(
        Prompt, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    # Where an annotator's judgements are taken back; everywhere in the project if empty.
    campaign = models.ForeignKey(
        Campaign, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    why = models.CharField(max_length=300)
    erase = models.BooleanField(default=False)
    # How many standing judgements it took back.
    judgements = models.PositiveIntegerField()
    snapshots = models.ManyToManyField(Snapshot, related_name="retractions")
    runs = models.ManyToManyField(Run, related_name="retractions")
    versions = models.ManyToManyField(Version, related_name="retractions")
    # The names that served an affected version at that time.
    aliases = models.JSONField(default=list, blank=True)
    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    rebuild_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    rebuild_at = models.DateTimeField(null=True, blank=True)
    rebuilt_at = models.DateTimeField(null=True, blank=True)
    rebuild_note = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(kind="judgement", judgement__isnull=False)
                | Q(kind="annotator", annotator__isnull=False)
                | Q(kind="prompt", prompt__isnull=False),
                name="a_retraction_names_its_subject",
            )
        ]

    def __str__(self) -> str:
        return f"retraction {self.pk} of {self.get_kind_display()}"

    @property
    def subject(self) -> str:
        """Return what was taken back, for people."""
        if self.annotator is not None:
            place = f" in {self.campaign.name}" if self.campaign is not None else ""
            return f"all judgements of {self.annotator.username}{place}"
        if self.prompt is not None:
            return f"prompt {self.prompt_id}"
        assert self.judgement is not None
        return f"judgement {self.judgement.client_id}"

    @property
    def rebuild_state(self) -> str:
        if self.rebuild_at is None:
            return "not rebuilt"
        return "running" if self.rebuilt_at is None else "done"


class Schedule(models.Model):
    """When a round of export, training and comparison begins by itself, and what it does."""

    class Cadence(models.TextChoices):
        DAY = "day", "every day"
        WEEK = "week", "every week"
        MONTH = "month", "the first of each month"
        QUARTER = "quarter", "the first of each quarter"
        JUDGEMENTS = "judgements", "after so many new judgements"

    class Weekday(models.IntegerChoices):
        MONDAY = 0, "Monday"
        TUESDAY = 1, "Tuesday"
        WEDNESDAY = 2, "Wednesday"
        THURSDAY = 3, "Thursday"
        FRIDAY = 4, "Friday"
        SATURDAY = 5, "Saturday"
        SUNDAY = 6, "Sunday"

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="schedules")
    name = models.CharField(max_length=120)
    cadence = models.CharField(max_length=10, choices=Cadence.choices, default=Cadence.WEEK)
    weekday = models.PositiveSmallIntegerField(choices=Weekday.choices, default=Weekday.MONDAY)
    at = models.TimeField(default=time(3, 0))
    zone = models.CharField(max_length=60, default="UTC")
    after_judgements = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )
    # Judgements that were there when it was made or resumed: new ones are counted from here.
    counted_from = models.PositiveIntegerField(default=0, editable=False)
    campaigns = models.ManyToManyField(Campaign, related_name="schedules")
    heldout_fraction = models.FloatField(
        default=0.2, validators=[MinValueValidator(0.05), MaxValueValidator(0.9)]
    )
    # What its snapshots are of; the options as training.options.Options reads them.
    kind = models.CharField(
        max_length=10, choices=Kind.choices, default=Kind.PREFERENCE, db_default=Kind.PREFERENCE
    )
    options = models.JSONField(
        default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    method = models.CharField(max_length=20, default="dpo")
    arguments = models.JSONField(default=dict, blank=True)
    from_production = models.BooleanField(default=False)
    seed = models.PositiveIntegerField(default=0)
    rule = models.CharField(max_length=200)
    samples = models.PositiveSmallIntegerField(
        default=4, validators=[MinValueValidator(1), MaxValueValidator(64)]
    )
    active = models.BooleanField(default=True)
    # What was due before is not made up for.
    since = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["name", "id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(cadence="judgements") | Q(after_judgements__isnull=False),
                name="a_count_schedule_has_its_count",
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def rhythm(self) -> str:
        """Return when it begins, as people say it."""
        clock = f"{self.at:%H:%M} {self.zone}"
        if self.cadence == self.Cadence.JUDGEMENTS:
            return f"after {self.after_judgements:,} new judgements"
        if self.cadence == self.Cadence.WEEK:
            return f"every {self.Weekday(self.weekday).label} at {clock}"
        return f"{self.Cadence(self.cadence).label} at {clock}"


class ScheduledRound(models.Model):
    """One round of a schedule, claimed by inserting it; each step is done once."""

    class State(models.TextChoices):
        EXPORTING = "exporting", "exporting"
        TRAINING = "training", "training"
        EVALUATING = "evaluating", "evaluating"
        PROPOSED = "proposed", "proposed"
        PROMOTED = "promoted", "promoted"
        DECLINED = "declined", "declined"
        KEPT = "kept", "production kept"
        SKIPPED = "skipped", "skipped"
        FAILED = "failed", "failed"

    LIVE = (State.EXPORTING, State.TRAINING, State.EVALUATING)

    schedule = models.ForeignKey(Schedule, on_delete=models.CASCADE, related_name="rounds")
    # The instant (or count) that it is for: nothing runs twice, whoever asks.
    due = models.CharField(max_length=60)
    state = models.CharField(max_length=10, choices=State.choices, default=State.EXPORTING)
    reason = models.CharField(max_length=500, blank=True)
    snapshot = models.OneToOneField(
        Snapshot, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    run = models.OneToOneField(
        Run, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    evaluation = models.OneToOneField(
        Evaluation, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    decided_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["schedule", "due"], name="round_once_for_each_due")
        ]

    def __str__(self) -> str:
        return f"round {self.due} of {self.schedule}"
