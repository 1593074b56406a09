"""Find single judgements of a campaign, and read one whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import BigIntegerField, F, Q, TextField
from django.db.models.fields.json import KT
from django.db.models.functions import Cast

from accounts.templatetags.laurel import letter
from feedback import extras, letters
from feedback.changes import Change, changes
from feedback.models import Campaign, ItemRole, Judgement, JudgementQuerySet, Prompt, Response

# What the list offers beside all judgements, and what each choice means.
KINDS: dict[str, tuple[str, Q]] = {
    "correction": ("with a correction", ~Q(correction="")),
    "comment": ("with a comment", ~Q(comment="")),
    "probe": ("gold and repeats", Q(slot__role__in=[ItemRole.GOLD, ItemRole.REPEAT])),
    "retracted": ("taken back", Q(retracted_at__isnull=False)),
}


def sayings(campaign: Campaign) -> dict[str, tuple[str, Q]]:
    """Return what a judgement of this campaign can say, by key, with a label and how to find it.

    The conditions go with ``search``, which adds the columns that they name.
    """
    found: dict[str, tuple[str, Q]] = {}
    sure = Q(ranking__0__1__isnull=True, ranking__isnull=False)
    if campaign.kind == Campaign.Kind.THUMBS:
        found |= {"good": ("good", Q(thumb=1)), "bad": ("bad", Q(thumb=-1))}
    elif campaign.kind == Campaign.Kind.PAIRWISE:
        found |= {
            "left": ("the left one is better", sure & Q(best=F("shown__0"))),
            "right": ("the right one is better", sure & Q(best=F("shown__1"))),
            "tie": ("a tie", Q(ranking__0__1__isnull=False, both_bad=False)),
            "both_bad": ("both bad", Q(both_bad=True)),
        }
        found |= {
            f"strength-{value}": (f"{label} better", Q(strength=value))
            for value, label in letters.STRENGTHS.items()
        }
    elif campaign.kind == Campaign.Kind.RANKING:
        last = f"ranking__{campaign.responses_per_item - 1}__isnull"
        found |= {
            "left": ("the leftmost is best", sure & Q(best=F("shown__0"))),
            "tie": ("with a tie", Q(**{last: True})),
        }
    asked = extras.stored(campaign.extras)
    for label in asked.safety:
        # As PostgreSQL writes an object's values; a key holds no quote.
        held = Q(labels__contains=f': "{label.key}"')
        found[f"safety-{label.key}"] = (f"a response is {label.label.lower()}", held)
    for reason in asked.reasons:
        found[f"reason-{reason.key}"] = (
            f"reason: {reason.label}",
            Q(reasons__contains=[reason.key]),
        )
    return found


def search(
    rows: JudgementQuerySet,
    *,
    campaign: Campaign | None = None,
    kind: str = "",
    says: str = "",
    annotator: str = "",
    prompt: str = "",
) -> JudgementQuerySet:
    """Return the judgements that fit all that is asked.

    ``kind`` is a key of KINDS, ``says`` one of the campaign's ``sayings``; one that is not there
    finds nothing. ``prompt`` is looked for in the conversation.
    """
    nothing = ("", Q(pk__in=[]))
    if campaign:
        rows = rows.filter(campaign=campaign)
    if kind:
        rows = rows.filter(KINDS.get(kind, nothing)[1])
    if says:
        rows = rows.annotate(
            best=Cast(KT("ranking__0__0"), BigIntegerField()), labels=Cast("safety", TextField())
        ).filter((sayings(campaign) if campaign else {}).get(says, nothing)[1])
    if annotator:
        rows = rows.filter(annotator__username=annotator)
    if prompt:
        prompts = Prompt.objects.saying(prompt)
        if campaign:
            prompts = prompts.filter(project=campaign.project_id)
        rows = rows.filter(item__prompt__in=prompts)
    return rows


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One response as the annotator saw it, and what they said of it alone."""

    id: int
    letter: str
    text: str
    written_by: str
    # From 1; 0 where nothing was ranked.
    rank: int
    levels: list[tuple[extras.Scale, int | None]]
    safety: str


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A judgement with all that it is about."""

    judgement: Judgement
    shown: list[Shown]
    says: str
    strength: str
    reasons: list[str]
    # The letter of the response that the correction is of, and what it changes there.
    corrected: str
    changes: list[Change]
    # The known answer to a gold item, by the letters of this page.
    known: str
    # What the same annotator said when the item of this repeat came first.
    first: Judgement | None


def whole(judgement: Judgement) -> Whole:
    """Return a judgement with its responses in the order shown; two queries, three for a repeat."""
    asked = extras.stored(judgement.campaign.extras)
    responses = Response.objects.filter(pk__in=judgement.shown).select_related(
        "completion__version"
    )
    found = {one.pk: one for one in responses}
    rank = {
        one: place for place, group in enumerate(judgement.ranking or (), start=1) for one in group
    }
    named = {one: letter(index) for index, one in enumerate(judgement.shown)}
    by_position = {found[one].position: name for one, name in named.items()}
    safety = {label.key: label.label for label in asked.safety}
    reasons = {reason.key: reason.label for reason in asked.reasons}
    item = judgement.item
    return Whole(
        judgement=judgement,
        shown=[
            Shown(
                id=one,
                letter=name,
                text=found[one].text,
                written_by=_writer(found[one]),
                rank=rank.get(one, 0),
                levels=_levels(asked.ratings, judgement.ratings.get(str(one), {})),
                safety=safety.get(label := judgement.safety.get(str(one), ""), label),
            )
            for one, name in named.items()
        ],
        says=letters.said(judgement, named),
        strength=letters.STRENGTHS.get(judgement.strength or 0, ""),
        reasons=[reasons.get(key, key) for key in judgement.reasons],
        corrected=named.get(judgement.corrected_id or 0, ""),
        changes=changes(found[judgement.corrected_id].text, judgement.correction)
        if judgement.corrected_id
        else [],
        known=letters.answer_in_letters(item.gold_answer, by_position, scales=asked.ratings)
        if item.gold_answer
        else "",
        first=_first(judgement),
    )


def _writer(response: Response) -> str:
    return response.completion.version.name if response.completion else response.source


def _levels(
    scales: Sequence[extras.Scale], given: dict[str, Any]
) -> list[tuple[extras.Scale, int | None]]:
    return [(scale, given.get(scale.key)) for scale in scales] if given else []


def _first(judgement: Judgement) -> Judgement | None:
    if judgement.item.role != ItemRole.REPEAT:
        return None
    earlier = Judgement.objects.standing().filter(
        item=judgement.item.repeat_of_id, annotator=judgement.annotator_id
    )
    return earlier.first()
