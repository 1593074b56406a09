"""Prompts, campaigns, items with responses, slots, judgements, feedback on completions."""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from datetime import timedelta
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce, Now
from django.utils import timezone

from accounts.models import Event, Project, User, WebhookMessage
from feedback.documents import detach
from feedback.models_drafts import Draft, DraftRequest  # noqa: F401  Django finds them here
from inference.models import Completion

MAX_COMMENT = 10_000
MAX_CORRECTION = 50_000
MAX_RESPONSES = 9
UNDO_WINDOW = timedelta(minutes=10)
EMPTY = models.Value({}, models.JSONField())
NONE = models.Value([], models.JSONField())
# One in so many tasks; below two, gold and repeats would stand next to each other.
LEAST_EVERY = 4
# Of the hand-outs of a campaign with the informative order, so many in a hundred are drawn by lot.
LEAST_CONTROL, MOST_CONTROL = 5, 50


# Made once: json.dumps would make one for every call.
canonical_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def text_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in its canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def random_id() -> int:
    """Return an id that says nothing of when its row was made; JavaScript holds it exactly."""
    return secrets.randbits(52)


class PromptQuerySet(models.QuerySet["Prompt"]):
    def saying(self, text: str) -> PromptQuerySet:
        """Return the prompts that hold a text anywhere in their conversation."""
        # The search goes over the stored JSON, so what is looked for is written as JSON writes it.
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        rows = self.annotate(written=Cast("messages", models.TextField()))
        return rows.filter(written__icontains=written)


class Prompt(models.Model):
    """A conversation that ends with the user's turn; the same conversation is kept once."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    # As the model reads it; what ``documents`` became stands in the first turn.
    messages = models.JSONField()
    documents = models.JSONField(default=list, blank=True, db_default=NONE)
    digest = models.CharField(max_length=64)
    tags = ArrayField(models.CharField(max_length=60), default=list, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    # Nobody judges a withdrawn prompt any more; an erased one has lost its texts, too.
    withdrawn_at = models.DateTimeField(null=True, blank=True)
    erased_at = models.DateTimeField(null=True, blank=True)

    objects = PromptQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["project", "digest"], name="prompt_once_per_project"),
            models.CheckConstraint(
                condition=Q(erased_at=None) | Q(documents=[]),
                name="an_erased_prompt_has_no_documents",
            ),
        ]

    def __str__(self) -> str:
        return self.last_turn[:80]

    @property
    def last_turn(self) -> str:
        return str(self.messages[-1]["content"]) if self.messages else ""

    @property
    def turns(self) -> list[dict[str, str]]:
        """Return the conversation without what its documents became."""
        return detach(self.messages, self.documents)


class CampaignQuerySet(models.QuerySet["Campaign"]):
    def with_progress(self) -> CampaignQuerySet:
        """Add ``slot_count``, ``filled_count`` and ``item_count``; one query.

        Counted apart: joined, the slots would be multiplied by the items.
        """

        def count(rows: models.QuerySet[Any]) -> Coalesce:
            of_campaign = rows.filter(campaign=OuterRef("pk")).order_by().values("campaign")
            return Coalesce(Subquery(of_campaign.annotate(n=Count("pk")).values("n")), 0)

        return self.annotate(
            slot_count=count(Slot.objects.filter(role=ItemRole.NORMAL)),
            filled_count=count(Slot.objects.filter(role=ItemRole.NORMAL, state=Slot.State.FILLED)),
            item_count=count(Item.objects.filter(role=ItemRole.NORMAL)),
        )

    def complete_and_untold(self) -> CampaignQuerySet:
        """Return the campaigns with every slot filled since a webhook last heard of that.

        They stay locked until commit, so that two workers do not both tell.
        """
        slots = Slot.objects.filter(campaign=OuterRef("pk"), role=ItemRole.NORMAL)
        latest = Judgement.objects.filter(campaign=OuterRef(OuterRef("pk"))).order_by("-id")
        told = WebhookMessage.objects.annotate(
            campaign=Cast(KT("data__campaign"), models.BigIntegerField())
        ).filter(
            event=Event.CAMPAIGN_COMPLETED,
            campaign=OuterRef("pk"),
            created_at__gte=Subquery(latest.values("created_at")[:1]),
        )
        complete = Exists(slots) & ~Exists(slots.exclude(state=Slot.State.FILLED))
        return self.filter(complete, ~Exists(told)).select_for_update(skip_locked=True)


class ItemRole(models.TextChoices):
    """Why an item is judged; only what is normal becomes preference data."""

    NORMAL = "normal", "normal"
    # Its answer is known; every annotator meets it.
    GOLD = "gold", "gold"
    # A copy of an item that an annotator judged before, its sides swapped.
    REPEAT = "repeat", "repeat"
    # Judged by everybody in a calibration session.
    CALIBRATION = "calibration", "calibration"


class Campaign(models.Model):
    """A set of items judged in one way, N times each."""

    class Kind(models.TextChoices):
        RANKING = "ranking", "rank all responses"
        PAIRWISE = "pairwise", "compare two responses"
        THUMBS = "thumbs", "thumb up or down for one response"
        RATING = "rating", "rate each response on scales"

    class Trust(models.TextChoices):
        """What follows when the sequential test raises the alarm over an annotator."""

        OFF = "off", "not tested"
        FLAG = "flag", "named on the quality page"
        PAUSE = "pause", "paused until a lead looks"

    class Order(models.TextChoices):
        """Which open slot goes out next, priorities and named people aside."""

        LEAST_JUDGED = "least_judged", "least judged first"
        RANDOM = "random", "random"
        INFORMATIVE = "informative", "most informative first"

    class State(models.TextChoices):
        GENERATING = "generating", "generating responses"
        OPEN = "open", "open"
        PAUSED = "paused", "paused"
        CLOSED = "closed", "closed"
        FAILED = "failed", "failed"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="campaigns")
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.RANKING)
    # What is asked beside the kind, as feedback.extras reads it.
    extras = models.JSONField(default=dict, blank=True, db_default=EMPTY)
    instructions = models.TextField(blank=True, max_length=20_000)
    state = models.CharField(max_length=10, choices=State.choices, default=State.GENERATING)
    reason = models.CharField(max_length=500, blank=True)
    judgements_per_item = models.PositiveSmallIntegerField(
        default=3, validators=[MinValueValidator(1), MaxValueValidator(50)]
    )
    responses_per_item = models.PositiveSmallIntegerField(
        default=4, validators=[MinValueValidator(1), MaxValueValidator(MAX_RESPONSES)]
    )
    # [{"version": id, "temperature": 1.0, "top_p": 1.0, "max_tokens": 128}, …] used in turn
    sources = models.JSONField(default=list, blank=True)
    seed = models.PositiveIntegerField(default=0)
    generated = models.PositiveIntegerField(default=0)
    to_generate = models.PositiveIntegerField(default=0)
    # One in so many tasks is gold; one in so many a repeat of an own item, ``repeat_after`` tasks
    # later or more. 0 is never.
    gold_every = models.PositiveSmallIntegerField(
        default=0, db_default=0, validators=[MaxValueValidator(1000)]
    )
    repeat_every = models.PositiveSmallIntegerField(
        default=0, db_default=0, validators=[MaxValueValidator(1000)]
    )
    repeat_after = models.PositiveSmallIntegerField(
        default=20, db_default=20, validators=[MaxValueValidator(1000)]
    )
    trust = models.CharField(
        max_length=5, choices=Trust.choices, default=Trust.FLAG, db_default=Trust.FLAG
    )
    # The newest judgement that the trust test has seen.
    tested_to = models.BigIntegerField(default=0, db_default=0)
    queue_order = models.CharField(
        max_length=12,
        choices=Order.choices,
        default=Order.LEAST_JUDGED,
        db_default=Order.LEAST_JUDGED,
    )
    # What of the informative order's hand-outs goes by lot, so that its effect can be measured.
    control_percent = models.PositiveSmallIntegerField(
        default=20,
        db_default=20,
        validators=[MinValueValidator(LEAST_CONTROL), MaxValueValidator(MOST_CONTROL)],
    )
    # The newest judgement that the informative order rests on.
    ranked_to = models.BigIntegerField(default=0, db_default=0)
    # Moves with every generated item; a generation that stands still is started again.
    touched_at = models.DateTimeField(default=timezone.now)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = CampaignQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(kind="pairwise") | Q(responses_per_item=2), name="pairwise_has_two"
            ),
            models.CheckConstraint(
                condition=~Q(kind="thumbs") | Q(responses_per_item=1), name="thumbs_has_one"
            ),
            models.CheckConstraint(
                condition=~Q(kind="ranking") | Q(responses_per_item__gte=2),
                name="ranking_has_two_or_more",
            ),
            models.CheckConstraint(
                condition=~Q(kind="rating") | Q(extras__ratings__0__isnull=False),
                name="rating_has_a_scale",
            ),
            models.CheckConstraint(
                condition=Q(gold_every=0) | Q(gold_every__gte=LEAST_EVERY),
                name="gold_at_most_one_in_four",
            ),
            models.CheckConstraint(
                condition=Q(repeat_every=0) | Q(repeat_every__gte=LEAST_EVERY),
                name="repeats_at_most_one_in_four",
            ),
            models.CheckConstraint(
                condition=~Q(queue_order="informative") | Q(kind__in=["ranking", "pairwise"]),
                name="the_informative_order_compares",
            ),
            models.CheckConstraint(
                condition=Q(control_percent__range=(LEAST_CONTROL, MOST_CONTROL)),
                name="the_control_arm_stays",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Item(models.Model):
    """One prompt with the responses that are judged together."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="items")
    prompt = models.ForeignKey(Prompt, on_delete=models.PROTECT, related_name="items")
    role = models.CharField(
        max_length=11,
        choices=ItemRole.choices,
        default=ItemRole.NORMAL,
        db_default=ItemRole.NORMAL,
    )
    # The known answer to a gold item, its responses named by position: {"ranking": [[1], [0]]} or
    # {"thumb": 1}. Responses in one group are not told apart.
    gold_answer = models.JSONField(null=True, blank=True)
    calibration = models.ForeignKey(
        "CalibrationSession",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="items",
        db_index=False,
    )
    # The normal item of which this is a copy.
    repeat_of = models.ForeignKey(
        "self",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="copies",
        db_index=False,
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["campaign", "prompt"],
                condition=Q(role="normal"),
                name="prompt_once_per_campaign",
            ),
            models.UniqueConstraint(
                fields=["repeat_of", "role"],
                condition=Q(repeat_of__isnull=False),
                name="one_copy_of_an_item_for_each_role",
            ),
            models.CheckConstraint(
                condition=Q(role="gold", gold_answer__isnull=False)
                | ~Q(role="gold") & Q(gold_answer__isnull=True),
                name="gold_has_its_answer",
            ),
            models.CheckConstraint(
                condition=Q(role="calibration", calibration__isnull=False)
                | ~Q(role="calibration") & Q(calibration__isnull=True),
                name="a_calibration_item_has_its_session",
            ),
            models.CheckConstraint(
                condition=~Q(role="repeat") | Q(repeat_of__isnull=False),
                name="a_repeat_repeats_an_item",
            ),
        ]
        indexes = [
            models.Index(
                fields=["calibration"],
                condition=Q(calibration__isnull=False),
                name="item_of_calibration",
            ),
            # Few rows beside a million normal ones.
            models.Index(
                fields=["campaign", "role"], condition=~Q(role="normal"), name="item_special"
            ),
        ]

    def __str__(self) -> str:
        return f"item {self.pk}"


class Response(models.Model):
    """A text to be judged; who wrote it stays hidden from annotators."""

    # Drawn, not counted: the copies in gold items and repeats must not stand out by their ids.
    id = models.BigAutoField(primary_key=True, default=random_id)
    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="responses")
    position = models.PositiveSmallIntegerField()
    text = models.TextField()
    completion = models.OneToOneField(
        Completion, on_delete=models.PROTECT, null=True, blank=True, related_name="response"
    )
    source = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["item", "position"]
        constraints = [
            models.UniqueConstraint(fields=["item", "position"], name="response_position_once")
        ]

    def __str__(self) -> str:
        return f"response {self.position} of item {self.item_id}"


class Arm(models.TextChoices):
    """How a slot of a campaign with the informative order came to be handed out."""

    ORDERED = "ordered", "by the order"
    CONTROL = "control", "by lot"


class Slot(models.Model):
    """One of the N places for a judgement on an item.

    ``token`` is the fencing token: each claim raises it, and only its bearer can fill the slot.
    ``holder`` stays after filling, so the unique constraint keeps one person from two slots of an
    item. A slot may be reserved for one annotator, as those of gold items and repeats always are;
    nobody else gets it.
    """

    class State(models.TextChoices):
        OPEN = "open", "open"
        LEASED = "leased", "leased"
        FILLED = "filled", "filled"

    # Drawn, not counted: gold and repeats get theirs while people judge, and nobody may see it.
    id = models.BigAutoField(primary_key=True, default=random_id)
    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="slots")
    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="slots")
    # As its item's: claims and counts need not look there.
    role = models.CharField(
        max_length=11,
        choices=ItemRole.choices,
        default=ItemRole.NORMAL,
        db_default=ItemRole.NORMAL,
    )
    reserved_for = models.ForeignKey(
        User, on_delete=models.PROTECT, null=True, blank=True, related_name="+", db_index=False
    )
    index = models.PositiveSmallIntegerField()
    # As set for its item: the higher goes out first.
    priority = models.SmallIntegerField(default=0, db_default=0)
    # How much a judgement here would tell the leaderboard, in thousandths of the most that one
    # could; 0 where nobody knows. ``feedback.informative`` keeps it.
    gain = models.PositiveSmallIntegerField(default=0, db_default=0)
    # Of one priority and gain, slots go out by (index, shuffle): every item once before any twice.
    shuffle = models.IntegerField()
    # By what it was last handed out; empty where not by the informative order or its control.
    arm = models.CharField(max_length=7, choices=Arm.choices, blank=True, default="", db_default="")
    # Positions of the item's responses from left to right, as this slot shows them.
    order = ArrayField(models.PositiveSmallIntegerField())
    state = models.CharField(max_length=6, choices=State.choices, default=State.OPEN)
    holder = models.ForeignKey(
        User, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    token = models.PositiveIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    leased_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["item", "index"],
                condition=Q(reserved_for__isnull=True),
                name="slot_index_once",
            ),
            models.UniqueConstraint(
                fields=["item", "reserved_for"],
                condition=Q(reserved_for__isnull=False),
                name="one_reserved_slot_of_an_item_per_annotator",
            ),
            models.CheckConstraint(
                condition=Q(role="normal") | Q(reserved_for__isnull=False),
                name="special_slots_are_reserved",
            ),
            models.CheckConstraint(
                condition=Q(reserved_for__isnull=True)
                | Q(holder__isnull=True)
                | Q(holder=F("reserved_for")),
                name="a_reserved_slot_is_held_by_whom_it_is_for",
            ),
            models.UniqueConstraint(
                fields=["item", "holder"],
                condition=Q(holder__isnull=False),
                name="one_slot_of_an_item_per_annotator",
            ),
            models.UniqueConstraint(
                fields=["campaign", "holder"],
                condition=Q(state="leased"),
                name="one_lease_per_annotator_and_campaign",
            ),
            models.CheckConstraint(
                condition=Q(state="open", holder__isnull=True, lease_expires_at__isnull=True)
                | Q(state="leased", holder__isnull=False, lease_expires_at__isnull=False)
                | Q(state="filled", holder__isnull=False, lease_expires_at__isnull=True),
                name="slot_state_matches_its_lease",
            ),
        ]
        indexes = [
            # What a claim walks: only open slots, in the order of hand-out, or by lot.
            models.Index(
                fields=["campaign", "-priority", "-gain", "index", "shuffle"],
                condition=Q(state="open", reserved_for__isnull=True),
                name="slot_open",
            ),
            models.Index(
                fields=["campaign", "-priority", "shuffle"],
                condition=Q(state="open", reserved_for__isnull=True),
                name="slot_by_lot",
            ),
            models.Index(
                fields=["campaign", "reserved_for", "shuffle"],
                condition=Q(state="open", reserved_for__isnull=False),
                name="slot_reserved",
            ),
            models.Index(
                fields=["campaign", "role"], condition=~Q(role="normal"), name="slot_special"
            ),
            models.Index(
                fields=["campaign", "lease_expires_at"],
                condition=Q(state="leased"),
                name="slot_leased",
            ),
        ]

    def __str__(self) -> str:
        return f"slot {self.index} of item {self.item_id} ({self.state})"


class SkipReason(models.TextChoices):
    UNCLEAR = "unclear", "The prompt is unclear"
    KNOWLEDGE = "knowledge", "I do not know the subject"
    HARMFUL = "harmful", "It upsets me"
    BROKEN = "broken", "Something is broken"
    OTHER = "other", "Another reason"


class Skip(models.Model):
    """One person's refusal of one item: the item does not come back to them."""

    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="skips")
    annotator = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    reason = models.CharField(max_length=10, choices=SkipReason.choices)
    note = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["item", "annotator"], name="skip_once"),
        ]

    def __str__(self) -> str:
        return f"{self.annotator} skipped item {self.item_id}"


class JudgementQuerySet(models.QuerySet["Judgement"]):
    def standing(self) -> JudgementQuerySet:
        """Return the judgements that nobody took back."""
        return self.filter(retracted_at__isnull=True)


class Judgement(models.Model):
    """What one annotator thought of one item, as it was submitted; never edited."""

    client_id = models.UUIDField(unique=True)
    slot = models.ForeignKey(Slot, on_delete=models.PROTECT, related_name="judgements")
    item = models.ForeignKey(Item, on_delete=models.PROTECT, related_name="judgements")
    campaign = models.ForeignKey(Campaign, on_delete=models.PROTECT, related_name="judgements")
    annotator = models.ForeignKey(User, on_delete=models.PROTECT, related_name="judgements")
    # Groups of response ids from best to worst; a group of several is a tie.
    ranking = models.JSONField(null=True, blank=True)
    thumb = models.SmallIntegerField(null=True, blank=True)
    # How much better the first is: 3 significantly, 2 clearly, 1 slightly.
    strength = models.PositiveSmallIntegerField(null=True, blank=True)
    both_bad = models.BooleanField(default=False)
    comment = models.TextField(blank=True, max_length=MAX_COMMENT)
    # {"response id": {"scale": level from 1}} and {"response id": "label"}, as the campaign asked.
    ratings = models.JSONField(default=dict, blank=True, db_default=EMPTY)
    safety = models.JSONField(default=dict, blank=True, db_default=EMPTY)
    reasons = ArrayField(models.CharField(max_length=40), default=list, blank=True, db_default=[])
    # What the annotator would have liked ``corrected`` to say.
    correction = models.TextField(blank=True, max_length=MAX_CORRECTION, db_default="")
    corrected = models.ForeignKey(
        Response, on_delete=models.PROTECT, null=True, blank=True, related_name="+", db_index=False
    )
    # Response ids from left to right, as they were shown.
    shown = ArrayField(models.BigIntegerField())
    seconds = models.FloatField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())
    retracted_at = models.DateTimeField(null=True, blank=True)
    retracted_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    retracted_why = models.CharField(max_length=300, blank=True)
    # When its texts were removed; what was chosen stays, as counts are made of it.
    erased_at = models.DateTimeField(null=True, blank=True)

    objects = JudgementQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["slot"], condition=Q(retracted_at__isnull=True), name="slot_filled_once"
            ),
            models.UniqueConstraint(
                fields=["item", "annotator"],
                condition=Q(retracted_at__isnull=True),
                name="one_standing_judgement_per_annotator_and_item",
            ),
            models.CheckConstraint(
                condition=(Q(ranking__isnull=False) ^ Q(thumb__isnull=False))
                | (Q(ranking__isnull=True, thumb__isnull=True) & ~Q(ratings={})),
                name="a_ranking_a_thumb_or_ratings",
            ),
            models.CheckConstraint(
                condition=Q(corrected__isnull=True, correction="")
                | (Q(corrected__isnull=False) & ~Q(correction="")),
                name="a_correction_is_of_a_response",
            ),
            models.CheckConstraint(
                condition=Q(thumb__isnull=True) | Q(thumb__in=[-1, 1]), name="thumb_up_or_down"
            ),
            models.CheckConstraint(
                condition=Q(strength__isnull=True) | Q(strength__range=(1, 3)),
                name="strength_1_to_3",
            ),
        ]
        indexes = [
            models.Index(fields=["campaign", "annotator", "-id"], name="judgement_by_annotator"),
            models.Index(fields=["annotator", "-created_at"], name="judgement_by_day"),
        ]

    def __str__(self) -> str:
        return f"judgement {self.pk}"


class PauseQuerySet(models.QuerySet["Pause"]):
    def standing(self) -> PauseQuerySet:
        """Return the pauses that nobody has ended."""
        return self.filter(ended_at__isnull=True)


class Pause(models.Model):
    """One annotator's time out in one campaign: by the trust test, or by a lead."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="pauses")
    annotator = models.ForeignKey(User, on_delete=models.CASCADE, related_name="pauses")
    why = models.CharField(max_length=500)
    # What the test had seen when it decided; empty where a lead did.
    figures = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(db_default=Now())
    started_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    ended_why = models.CharField(max_length=500, blank=True)

    objects = PauseQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["campaign", "annotator"],
                condition=Q(ended_at__isnull=True),
                name="one_standing_pause_per_annotator",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True) | ~Q(ended_why=""),
                name="a_pause_ends_for_a_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.annotator} paused in {self.campaign_id}"


class CodeBook(models.Model):
    """One version of what a campaign's annotators go by; never edited, only followed by another.

    ``Campaign.instructions`` is the newest one's text.
    """

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="code_books")
    number = models.PositiveIntegerField()
    text = models.TextField(max_length=20_000)
    changed = models.CharField(max_length=300, blank=True)
    # Whether annotators confirm it before their next task.
    to_confirm = models.BooleanField(default=True)
    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["campaign", "number"], name="code_book_number_once"),
        ]

    def __str__(self) -> str:
        return f"code book {self.number} of {self.campaign_id}"


class CodeBookConfirmation(models.Model):
    """One annotator's word that they have read one version."""

    code_book = models.ForeignKey(CodeBook, on_delete=models.CASCADE, related_name="confirmations")
    annotator = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["code_book", "annotator"], name="confirmed_once"),
        ]

    def __str__(self) -> str:
        return f"{self.annotator} confirmed {self.code_book_id}"


class CalibrationSession(models.Model):
    """A set of items that everybody judges, to find out where people read things differently."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="calibrations")
    name = models.CharField(max_length=120)
    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name


class CalibrationNote(models.Model):
    """What was said in the discussion of a session, or of one of its items; kept as written."""

    session = models.ForeignKey(CalibrationSession, on_delete=models.CASCADE, related_name="notes")
    item = models.ForeignKey(Item, on_delete=models.CASCADE, null=True, blank=True)
    text = models.TextField(max_length=5000)
    by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["id"]
        constraints = [models.CheckConstraint(condition=~Q(text=""), name="a_note_says_something")]

    def __str__(self) -> str:
        return self.text[:80]


class Decision(models.Model):
    """What a lead decided about an item that annotators dispute; the newest one stands.

    The judgements stay as they are. A decision is never edited, only followed by another.
    """

    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="decisions")
    # By position, as ``Item.gold_answer``.
    answer = models.JSONField()
    why = models.CharField(max_length=1000)
    by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=~Q(why=""), name="a_decision_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"decision {self.pk} on item {self.item_id}"


class CompletionFeedback(models.Model):
    """What somebody said of an answer in use: a thumb, a comment, what they would have liked."""

    completion = models.ForeignKey(Completion, on_delete=models.CASCADE, related_name="feedback")
    client_id = models.UUIDField(default=uuid.uuid4)
    user = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    thumb = models.SmallIntegerField(null=True, blank=True)
    comment = models.TextField(blank=True, max_length=MAX_COMMENT)
    correction = models.TextField(blank=True, max_length=MAX_CORRECTION)
    complaint = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    erased_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["completion", "client_id"], name="feedback_once_per_client_id"
            ),
            models.CheckConstraint(
                condition=Q(thumb__isnull=True) | Q(thumb__in=[-1, 1]),
                name="feedback_thumb_up_or_down",
            ),
            models.CheckConstraint(
                condition=Q(thumb__isnull=False)
                | ~Q(comment="")
                | ~Q(correction="")
                | Q(complaint=True)
                | Q(erased_at__isnull=False),
                name="feedback_says_something",
            ),
        ]
        indexes = [models.Index(F("created_at").desc(), name="feedback_by_time")]

    def __str__(self) -> str:
        return f"feedback {self.pk} on {self.completion_id}"


class FileImport(models.Model):
    """A file too large to be added within a request: a worker adds all of it, or nothing."""

    class State(models.TextChoices):
        QUEUED = "queued", "queued"
        RUNNING = "running", "running"
        DONE = "done", "done"
        FAILED = "failed", "failed"

    LIVE = (State.QUEUED, State.RUNNING)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="file_imports")
    # What was uploaded, by its SHA-256; gone once the import has ended.
    upload = models.CharField(max_length=64)
    filename = models.CharField(max_length=200)
    name = models.CharField(max_length=120, blank=True)
    mapping = models.JSONField(default=dict, blank=True)
    skip_errors = models.BooleanField(default=False)
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    attempts = models.PositiveSmallIntegerField(default=0)
    # When it was last given to a worker.
    rung_at = models.DateTimeField(default=timezone.now)
    report = models.JSONField(default=dict, blank=True)
    reason = models.TextField(blank=True)
    campaign = models.ForeignKey(
        Campaign, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(state="failed") | ~Q(reason=""), name="a_failed_import_has_a_reason"
            ),
        ]

    def __str__(self) -> str:
        return f"import {self.pk} of {self.filename}"

    @property
    def live(self) -> bool:
        return self.state in self.LIVE
