"""What a model drafted, and what a person decided of it; none of it counts until approved."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Count, Q
from django.utils import timezone

from accounts.models import Project, User
from inference.models import Completion, Version

MOST_DRAFTS = 200
MOST_SHOTS = 8
MAX_GUIDANCE = 2_000


class DraftRequestQuerySet(models.QuerySet["DraftRequest"]):
    def with_counts(self) -> DraftRequestQuerySet:
        """Add ``written`` and how many of them are ``pending``, ``approved`` or ``unfit``."""
        states = ("pending", "approved", "unfit")
        return self.annotate(
            written=Count("drafts"),
            **{state: Count("drafts", filter=Q(drafts__state=state)) for state in states},
        )


class DraftRequest(models.Model):
    """One order to a version: so many drafts, written in one way."""

    class Kind(models.TextChoices):
        PROMPT = "prompt", "new prompts"
        RESPONSE = "response", "answers to prompts"

    class State(models.TextChoices):
        GENERATING = "generating", "being written"
        READY = "ready", "ready"
        FAILED = "failed", "failed"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="draft_requests")
    # The same order sent twice is one order.
    client_id = models.UUIDField(default=uuid.uuid4)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="+")
    sampling = models.JSONField()
    seed = models.PositiveIntegerField(default=0)
    guidance = models.TextField(blank=True, max_length=MAX_GUIDANCE)
    # Ids of prompts: examples to learn from, of which ``shots`` are shown at a time, or what is to
    # be answered, each once.
    prompts = ArrayField(models.BigIntegerField())
    shots = models.PositiveSmallIntegerField(
        default=3, validators=[MinValueValidator(1), MaxValueValidator(MOST_SHOTS)]
    )
    wanted = models.PositiveSmallIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(MOST_DRAFTS)]
    )
    # Of the prompts that come of it.
    tags = ArrayField(models.CharField(max_length=60), default=list, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.GENERATING)
    reason = models.CharField(max_length=500, blank=True)
    # Moves with every draft; a request that stands still is taken up again.
    touched_at = models.DateTimeField(default=timezone.now)
    by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    objects = DraftRequestQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "client_id"], name="draft_request_once_per_client_id"
            ),
            models.CheckConstraint(
                condition=Q(wanted__range=(1, MOST_DRAFTS)), name="one_draft_or_more"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.wanted} {self.get_kind_display()} by {self.version}"


class DraftQuerySet(models.QuerySet["Draft"]):
    def of(self, project: Project) -> DraftQuerySet:
        """Return the project's drafts."""
        return self.filter(request__project=project)

    def pending(self) -> DraftQuerySet:
        """Return the drafts that wait for a person, in the order in which they are reviewed."""
        return self.filter(state=Draft.State.PENDING).order_by("id")

    def unplaced(self) -> DraftQuerySet:
        """Return the approved answers that no campaign has yet, oldest first."""
        approved = self.filter(state=Draft.State.APPROVED, request__kind=DraftRequest.Kind.RESPONSE)
        return approved.filter(response=None, prompt__withdrawn_at=None).order_by("id")


class Draft(models.Model):
    """One prompt or answer that a version proposed, and what became of it."""

    class State(models.TextChoices):
        PENDING = "pending", "pending"
        APPROVED = "approved", "approved"
        REJECTED = "rejected", "rejected"
        # Set aside by the machine, with its reason: not of the shape, empty, or there already.
        UNFIT = "unfit", "unfit"

    request = models.ForeignKey(DraftRequest, on_delete=models.CASCADE, related_name="drafts")
    # Its place in the request, from 0; seed and examples follow from it.
    number = models.PositiveSmallIntegerField()
    # What the version wrote, letter by letter; none where the engine refused.
    completion = models.OneToOneField(
        Completion, on_delete=models.PROTECT, null=True, blank=True, related_name="draft"
    )
    # What it answers; none for a new prompt.
    prompt = models.ForeignKey(
        "feedback.Prompt", on_delete=models.PROTECT, null=True, blank=True, related_name="drafts"
    )
    # Ids of the prompts that were shown as examples.
    examples = ArrayField(models.BigIntegerField(), default=list, blank=True)
    # Messages of a prompt, or the text of an answer; null where nothing fit could be read.
    proposed = models.JSONField(null=True, blank=True)
    digest = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=8, choices=State.choices, default=State.PENDING)
    # Why the machine set it aside, or a person rejected it.
    reason = models.CharField(max_length=500, blank=True)
    # As it was approved, which is as proposed unless ``edited``.
    approved_as = models.JSONField(null=True, blank=True)
    edited = models.BooleanField(default=False)
    decided_by = models.ForeignKey(
        User, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)
    made_prompt = models.OneToOneField(
        "feedback.Prompt", on_delete=models.PROTECT, null=True, blank=True, related_name="draft"
    )
    response = models.OneToOneField(
        "feedback.Response", on_delete=models.SET_NULL, null=True, blank=True, related_name="draft"
    )
    # The campaign that it was approved into; whoever takes the approval back takes it out again.
    placed_in = models.ForeignKey(
        "feedback.Campaign", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    at = models.DateTimeField(auto_now_add=True)

    objects = DraftQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["request", "number"], name="draft_number_once"),
            models.CheckConstraint(
                condition=Q(
                    state__in=["approved", "rejected"],
                    decided_by__isnull=False,
                    decided_at__isnull=False,
                )
                | Q(
                    state__in=["pending", "unfit"],
                    decided_by__isnull=True,
                    decided_at__isnull=True,
                ),
                name="a_person_decides_a_draft",
            ),
            models.CheckConstraint(
                condition=Q(state="approved")
                | Q(
                    approved_as__isnull=True,
                    made_prompt__isnull=True,
                    response__isnull=True,
                    placed_in__isnull=True,
                    edited=False,
                ),
                name="only_an_approved_draft_counts",
            ),
            models.CheckConstraint(
                condition=~Q(state="pending") | Q(proposed__isnull=False),
                name="a_pending_draft_says_something",
            ),
            models.CheckConstraint(
                condition=~Q(state="unfit") | ~Q(reason=""), name="an_unfit_draft_has_its_reason"
            ),
        ]
        indexes = [models.Index(fields=["request", "state"], name="draft_by_state")]

    def __str__(self) -> str:
        return f"draft {self.pk} ({self.state})"

    @property
    def text(self) -> Any:
        """Return what it says now: as approved, else as proposed."""
        return self.proposed if self.approved_as is None else self.approved_as

    @property
    def turns(self) -> list[dict[str, str]]:
        """Return what it says as turns of a conversation."""
        if isinstance(self.text, list):
            return self.text
        return [{"role": "assistant", "content": self.text}] if self.text else []

    @property
    def last_turn(self) -> str:
        return self.turns[-1]["content"] if self.turns else self.raw

    @property
    def raw(self) -> str:
        """Return what the version wrote, letter by letter."""
        return self.completion.text if self.completion else ""
