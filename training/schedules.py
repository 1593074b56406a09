"""Rounds that begin by themselves: export, train, compare with production, propose.

Beat calls ``tick`` every few seconds. What is due is computed from the schedule alone and claimed
by inserting a row that is unique for (schedule, due), so two schedulers, a clock that is set back
or a change to winter time never begin a round twice. A round moves on one step at a time under a
row lock; the step and the new state are one transaction, so a restart finds it where it was.
A round never promotes: it leaves a proposal for an admin.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import DAILY, MONTHLY, WEEKLY, rrule
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict, ProductError
from accounts.models import User
from accounts.services import audit
from feedback.models import Campaign, Judgement
from inference.models import Version
from inference.services import promote
from training import evaluation, gate, runs, snapshots
from training.models import Evaluation, Run, Schedule, ScheduledRound, Snapshot
from training.options import Options, refuse_method
from training.scales import check_scales

State = ScheduledRound.State


def check_schedule(schedule: Schedule, campaigns: Sequence[Campaign]) -> None:
    """Raise ProductError where a schedule could not run on these campaigns."""
    from training.engine.arguments import ArgumentError, check_arguments

    try:
        ZoneInfo(schedule.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ProductError(
            f"“{schedule.zone}” is no time zone. Write it as Europe/Berlin or UTC."
        ) from error
    if schedule.cadence == Schedule.Cadence.JUDGEMENTS and not schedule.after_judgements:
        raise ProductError("Say after how many new judgements a round begins.")
    if schedule.method == "reward":
        raise ProductError("A reward model cannot serve. Choose a method whose versions can.")
    refuse_method(schedule.kind, schedule.method)
    check_scales(schedule.kind, Options.read(schedule.options), campaigns)
    if schedule.rule not in settings.EVALUATION_RULES:
        raise ProductError(f"Choose a rule of this site: {', '.join(settings.EVALUATION_RULES)}.")
    try:
        check_arguments(schedule.method, schedule.arguments)
    except ArgumentError as error:
        raise ProductError(str(error)) from error


@transaction.atomic
def save_schedule(
    *, schedule: Schedule, campaigns: Sequence[Campaign], by: User | None
) -> Schedule:
    """Store a new or changed schedule; it counts from now."""
    check_schedule(schedule, campaigns)
    if not campaigns:
        raise ProductError("Choose at least one campaign to take snapshots of.")
    if any(campaign.project_id != schedule.project_id for campaign in campaigns):
        raise ProductError("A campaign belongs to another project.")
    schedule.since = timezone.now()
    if schedule.pk is None:
        schedule.created_by = by
    schedule.full_clean()
    schedule.save()
    schedule.campaigns.set(campaigns)
    Schedule.objects.filter(pk=schedule.pk).update(counted_from=judged(schedule))
    audit(project=schedule.project, by=by, action="schedule.save", target=schedule.name)
    return schedule


def latest_due(schedule: Schedule, now: datetime) -> datetime | None:
    """Return the last instant that a schedule of the calendar was due, None if not yet, in UTC.

    Its local time is the first of two where the clock goes back, and as much later as the clock
    jumps where it does not exist.
    """
    zone = ZoneInfo(schedule.zone)
    began = schedule.since.astimezone(zone).replace(tzinfo=None)
    local = now.astimezone(zone).replace(tzinfo=None)
    rules: dict[str, tuple[int, dict[str, Any]]] = {
        Schedule.Cadence.DAY: (DAILY, {}),
        Schedule.Cadence.WEEK: (WEEKLY, {"byweekday": schedule.weekday}),
        Schedule.Cadence.MONTH: (MONTHLY, {"bymonthday": 1}),
        Schedule.Cadence.QUARTER: (MONTHLY, {"bymonthday": 1, "bymonth": (1, 4, 7, 10)}),
    }
    frequency, extra = rules[schedule.cadence]
    rule = rrule(
        frequency,
        dtstart=began.replace(hour=0, minute=0, second=0, microsecond=0),
        byhour=schedule.at.hour,
        byminute=schedule.at.minute,
        bysecond=0,
        **extra,
    )
    # Where the clock went back, the next by the clock on the wall may have been already.
    found = rule.after(local)
    while found is not None:
        due: datetime = found.replace(tzinfo=zone).astimezone(UTC)
        if due <= now:
            return due if due > schedule.since else None
        found = rule.before(found)
    return None


def judged(schedule: Schedule) -> int:
    """Return how many judgements its campaigns ever got; what is retracted counts on."""
    return Judgement.objects.filter(campaign__in=schedule.campaigns.all()).count()


def due_now(schedule: Schedule, now: datetime) -> str | None:
    """Return the name of what is due, the same whoever asks; None when nothing is."""
    if schedule.cadence != Schedule.Cadence.JUDGEMENTS:
        due = latest_due(schedule, now)
        return None if due is None else due.isoformat()
    assert schedule.after_judgements is not None
    times = (judged(schedule) - schedule.counted_from) // schedule.after_judgements
    if times < 1:
        return None
    return f"judgement {schedule.counted_from + times * schedule.after_judgements}"


def tick(now: datetime | None = None) -> int:
    """Begin what is due and move every live round on; return how many rounds began."""
    now = now or timezone.now()
    began = 0
    for schedule in Schedule.objects.filter(active=True):
        due = due_now(schedule, now)
        if due is not None and begin_round(schedule=schedule, due=due) is not None:
            began += 1
    for pk in ScheduledRound.objects.filter(state__in=ScheduledRound.LIVE).values_list(
        "pk", flat=True
    ):
        advance(pk)
    return began


def run_now(*, schedule: Schedule, by: User | None) -> ScheduledRound:
    """Begin a round at once; a double click begins one."""
    made = begin_round(schedule=schedule, due=f"by hand {timezone.now():%Y-%m-%d %H:%M}")
    if made is None:
        raise Conflict("A round was begun by hand a moment ago.")
    audit(project=schedule.project, by=by, action="schedule.run", target=schedule.name)
    return made


@transaction.atomic
def begin_round(*, schedule: Schedule, due: str) -> ScheduledRound | None:
    """Claim what is due and queue its snapshot; None when it was claimed before."""
    # One at a time: two that are due by different names would not see each other.
    Schedule.objects.select_for_update().get(pk=schedule.pk)
    found, created = ScheduledRound.objects.get_or_create(schedule=schedule, due=due)
    if not created:
        return None
    others = schedule.rounds.filter(state__in=ScheduledRound.LIVE).exclude(pk=found.pk)
    if others.exists():
        return _end(found, State.SKIPPED, "The round before it had not ended.")
    try:
        with transaction.atomic():
            found.snapshot = snapshots.create_snapshot(
                project=schedule.project,
                campaigns=list(schedule.campaigns.all()),
                by=schedule.created_by,
                heldout_fraction=schedule.heldout_fraction,
                kind=schedule.kind,
                options=schedule.options,
            )
            found.save(update_fields=["snapshot"])
    except ProductError as error:
        return _end(found, State.FAILED, error.message)
    return found


def _end(row: ScheduledRound, state: State, reason: str) -> ScheduledRound:
    row.state, row.reason = state, reason[:500]
    row.save(update_fields=["state", "reason"])
    return row


@transaction.atomic
def advance(round_id: int) -> None:
    """Do a round's next step if what it waits for is there; harmless at any time."""
    rows = ScheduledRound.objects.select_for_update(skip_locked=True, of=("self",))
    row = (
        rows.select_related("schedule__project", "snapshot", "run__version", "evaluation")
        .filter(pk=round_id, state__in=ScheduledRound.LIVE)
        .first()
    )
    if row is None:
        return
    steps = {State.EXPORTING: _train, State.TRAINING: _evaluate, State.EVALUATING: _propose}
    try:
        with transaction.atomic():
            steps[State(row.state)](row)
    except ProductError as error:
        _end(row, State.FAILED, error.message)


def _train(row: ScheduledRound) -> None:
    snapshot, schedule = row.snapshot, row.schedule
    assert snapshot is not None
    if snapshot.state in (Snapshot.State.QUEUED, Snapshot.State.BUILDING):
        return
    if snapshot.state != Snapshot.State.READY:
        raise ProductError(f"Snapshot {snapshot.pk} could not be built. {snapshot.reason}")
    versions = Version.objects.filter(project=schedule.project)
    production = versions.in_production().first()
    start = production if schedule.from_production else versions.filter(number=0).first()
    if start is None:
        raise ProductError("The project has no version to start from. Adopt a base model first.")
    row.run = runs.start_run(
        snapshot=snapshot,
        start_version=start,
        method=schedule.method,
        arguments=schedule.arguments,
        seed=schedule.seed,
        by=schedule.created_by,
    )
    row.state = State.TRAINING
    row.save(update_fields=["run", "state"])


def _evaluate(row: ScheduledRound) -> None:
    run, schedule = row.run, row.schedule
    assert run is not None
    assert row.snapshot is not None
    if run.version is None:
        if run.state in (Run.State.FAILED, Run.State.CANCELLED):
            raise ProductError(f"Run {run.pk} gave no version. {run.reason}")
        return
    champion = Version.objects.filter(project=schedule.project).in_production().first()
    if champion is None or champion.pk == run.version_id:
        _end(row, State.KEPT, f"{run.version.name} is what serves already.")
        return
    row.evaluation = evaluation.start_evaluation(
        challenger=run.version,
        champion=champion,
        snapshot=row.snapshot,
        rule=schedule.rule,
        samples=schedule.samples,
        seed=schedule.seed,
        by=schedule.created_by,
    )
    row.state = State.EVALUATING
    row.save(update_fields=["evaluation", "state"])


def _propose(row: ScheduledRound) -> None:
    found = row.evaluation
    assert found is not None
    if found.state == Evaluation.State.FAILED:
        raise ProductError(f"Evaluation {found.pk} failed. {found.reason}")
    if found.state != Evaluation.State.DONE:
        return
    said = gate.standing(version=found.challenger, champion=found.champion)
    _end(row, State.PROPOSED if said.proposed else State.KEPT, said.sentence)


@transaction.atomic
def decide(*, row: ScheduledRound, accept: bool, by: User | None, why: str = "") -> None:
    """Promote what a round proposes, or decline it; Conflict when somebody decided before."""
    locked = ScheduledRound.objects.select_for_update(of=("self",)).select_related(
        "schedule__project", "run__version"
    )
    found = locked.get(pk=row.pk)
    if found.state != State.PROPOSED:
        raise Conflict("There is no open proposal here any more. Look again.")
    assert found.run is not None
    assert found.run.version is not None
    found.state = State.PROMOTED if accept else State.DECLINED
    found.decided_by = by
    found.save(update_fields=["state", "decided_by"])
    project, version = found.schedule.project, found.run.version
    audit(
        project=project,
        by=by,
        action="proposal.accept" if accept else "proposal.decline",
        target=version.name,
        why=why,
    )
    if accept:
        promote(project=project, version=version, by=by, why=why or found.reason[:400])


def set_active(*, schedule: Schedule, active: bool, by: User | None) -> None:
    """Pause or resume a schedule; what was due meanwhile is not made up for."""
    Schedule.objects.filter(pk=schedule.pk).update(
        active=active, since=timezone.now(), counted_from=judged(schedule)
    )
    audit(
        project=schedule.project,
        by=by,
        action="schedule.resume" if active else "schedule.pause",
        target=schedule.name,
    )
