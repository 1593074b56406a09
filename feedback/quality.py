"""How annotators judge, in numbers a lead can act on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from django.core.cache import cache
from django.db import connection
from django.db.models import Count, Max, Q
from django.db.models.functions import MD5

from feedback import adjudication, agreement, extras, gold, pauses, scales
from feedback.agreement import Judged, Share, Verdict, share, wilson
from feedback.extras import Scale
from feedback.models import (
    Campaign,
    Decision,
    Item,
    ItemRole,
    Judgement,
    JudgementQuerySet,
    Pause,
    Response,
    text_digest,
)
from feedback.scales import Graded, Known, Rated, ScaleAgreement

__all__ = [
    "Share",
    "annotators",
    "examine",
    "judged_in",
    "judged_row",
    "kept",
    "report",
    "share",
    "state_of",
    "wilson",
]

# Statistics read the newest judgements up to this many compared pairs: about two seconds' work
# once, then kept until a judgement comes.
MOST_VERDICTS = 50_000
MOST_REPEATS = 20_000
CACHE_SECONDS = 24 * 3600
MOST_NAMED = 20
# Two people who agree this much more than their competence explains answer alike for a reason.
ALIKE_BEYOND, ALIKE_ITEMS = 0.2, 8

Result = TypeVar("Result")

# Unique bests only: a tie at the top has no best that could stand leftmost.
_ANNOTATORS = """
SELECT person.username,
       count(*),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY judgement.seconds),
       count(*) FILTER (WHERE jsonb_array_length(judgement.ranking -> 0) = 1),
       count(*) FILTER (WHERE jsonb_array_length(judgement.ranking -> 0) = 1
                          AND (judgement.ranking -> 0 ->> 0)::bigint = judgement.shown[1]),
       max(judgement.created_at)
  FROM feedback_judgement AS judgement
  JOIN accounts_user AS person ON person.id = judgement.annotator_id
 WHERE judgement.campaign_id = %s AND judgement.retracted_at IS NULL
 GROUP BY person.username
 ORDER BY count(*) DESC, person.username
"""


@dataclass(frozen=True, kw_only=True)
class AnnotatorRow:
    """One annotator's standing judgements in a campaign."""

    username: str
    judgements: int
    median_seconds: float | None
    left_lean: Share | None
    latest: object


def annotators(campaign: Campaign) -> list[AnnotatorRow]:
    """Return what each annotator did in the campaign, busiest first; one query.

    ``left_lean`` is the share of judgements whose one best response stood leftmost; without a
    lean it is 1 / K, because the order is shuffled.
    """
    with connection.cursor() as cursor:
        cursor.execute(_ANNOTATORS, [campaign.pk])
        return [
            AnnotatorRow(
                username=username,
                judgements=judgements,
                median_seconds=seconds,
                left_lean=share(leftmost, with_best),
                latest=latest,
            )
            for username, judgements, seconds, with_best, leftmost, latest in cursor.fetchall()
        ]


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One annotator in the report; ``flags`` are words for people."""

    username: str
    judgements: int
    median_seconds: float | None
    left_lean: Share | None
    kept_order: Share | None
    rest: Share | None
    consistency: Share | None
    gold: Share | None
    competence: float | None
    weight: float | None
    trust: str
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """How far two annotators agree on the items that both judged."""

    one: str
    other: str
    agreement: Share


@dataclass(frozen=True, kw_only=True)
class Disputed:
    """An item on which annotators disagree."""

    item: int
    agreement: float
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How well a campaign is judged; ``used`` of its ``judgements`` were read."""

    judgements: int
    used: int
    alpha_nominal: float | None
    alpha_ordinal: float | None
    false_alarm: float
    rows: list[QualityRow]
    pairs: list[PairRow]
    disputed: list[Disputed]
    scales: list[ScaleAgreement] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class State:
    """What statistics of judgements depend on, and so the key to keep them under.

    The time of the last judgement tells apart campaigns that got the same id in a database that
    was made anew. ``what`` in a key names the campaign or project, and which statistic.
    """

    standing: int
    retracted: int
    last: float

    def key(self, *what: object) -> str:
        parts = (*what, self.standing, self.retracted, self.last)
        return "quality:" + ":".join(map(str, parts))


def report(campaign: Campaign) -> Report:
    """Return the campaign's quality, computed anew only when a judgement or a decision comes."""
    state = state_of(Judgement.objects.filter(campaign=campaign))
    key = state.key("report-weighing-raters", campaign.pk, _rulings(campaign))
    return kept(key, lambda: _report(campaign, state))


def _rulings(campaign: Campaign) -> str:
    """Return a digest of what leads have said that the report depends on."""
    answers = campaign.items.filter(role=ItemRole.GOLD).values_list("id", "gold_answer")
    decided = Decision.objects.filter(item__campaign=campaign).aggregate(newest=Max("id"))
    ended = Pause.objects.filter(campaign=campaign).exclude(ended_at=None).count()
    return text_digest([list(answers), decided["newest"], ended])[:16]


def kept(key: str, make: Callable[[], Result]) -> Result:
    """Return what the cache has under the key, or make and keep it for a day."""
    found: Result | None = cache.get(key)
    if found is None:
        found = make()
        cache.set(key, found, CACHE_SECONDS)
    return found


def state_of(judgements: JudgementQuerySet) -> State:
    """Return what tells apart one set of judgements from the same set later; one query."""
    found = judgements.aggregate(
        standing=Count("id", filter=Q(retracted_at__isnull=True)),
        last=Max("created_at"),
        retracted=Count("id", filter=Q(retracted_at__isnull=False)),
    )
    last = found["last"]
    return State(
        standing=found["standing"],
        retracted=found["retracted"],
        last=last.timestamp() if last else 0.0,
    )


def _judged(campaign: Campaign, *, pairs: int) -> list[Judged]:
    """Return the newest standing judgements of so many pairs, in the order they came; one query."""
    k = campaign.responses_per_item
    return judged_in(campaign, most=pairs // max(1, k * (k - 1) // 2))


def judged_in(campaign: Campaign, *, most: int) -> list[Judged]:
    """Return the newest standing judgements, in the order they came; one query."""
    rows = (
        Judgement.objects.standing()
        .filter(campaign=campaign)
        .order_by("-id")
        .values_list("item_id", "annotator__username", "shown", "ranking", "thumb", "seconds")
    )
    return [judged_row(*row) for row in reversed(rows[:most])]


def judged_row(
    item: int,
    username: str,
    shown: Sequence[int],
    ranking: Sequence[Sequence[int]] | None,
    thumb: int | None,
    seconds: float | None,
) -> Judged:
    groups = None if ranking is None else tuple(tuple(group) for group in ranking)
    return Judged(item, username, tuple(shown), ranking=groups, thumb=thumb, seconds=seconds)


def _rated(campaign: Campaign, asked: Sequence[Scale]) -> list[Rated]:
    """Return the levels of the newest standing judgements; one query, none without scales."""
    if not asked:
        return []
    rows = Judgement.objects.standing().filter(campaign=campaign).exclude(ratings={})
    most = MOST_VERDICTS // (len(asked) * campaign.responses_per_item)
    found = rows.order_by("-id").values_list("item_id", "annotator__username", "ratings")
    return [Rated(*row) for row in reversed(found[:most])]


def _report(campaign: Campaign, state: State) -> Report:
    asked = extras.stored(campaign.extras).ratings
    found = examine(
        _judged(campaign, pairs=MOST_VERDICTS),
        judgements=state.standing,
        again=repeats(campaign),
        hidden=hidden_repeats(campaign),
        known=gold.known_truths(campaign),
        decided=adjudication.decided_truths(campaign),
        forgiven=pauses.forgiven(campaign),
        graded=gold.graded(campaign),
        levels=adjudication.decided_levels(campaign) | gold.known_levels(campaign),
        rated=_rated(campaign, asked),
        asked=asked,
    )
    items = Item.objects.select_related("prompt").in_bulk([one.item for one in found.disputed])
    named = [
        replace(one, prompt=items[one.item].prompt.last_turn[:300])
        for one in found.disputed
        if one.item in items
    ]
    return replace(found, disputed=named)


def examine(
    judged: Sequence[Judged],
    *,
    judgements: int | None = None,
    again: Mapping[tuple[str, int], float] | None = None,
    hidden: Collection[int] = (),
    known: Mapping[Hashable, int] | None = None,
    decided: Mapping[Hashable, int] | None = None,
    forgiven: Collection[tuple[str, int]] = (),
    graded: Sequence[Graded] = (),
    levels: Mapping[tuple[Hashable, str], Known] | None = None,
    rated: Sequence[Rated] = (),
    asked: Sequence[Scale] = (),
) -> Report:
    """Return the report on judgements in the order they came; no database.

    ``known``, ``decided``, ``forgiven`` and ``graded`` are as in ``trust.assess``, and so is
    ``again``, of which the test sees only the ``hidden`` items. Where nothing is compared, people
    agree or not by what they ``rated`` on the scales ``asked``; leads know some ``levels``.
    """
    from feedback import raters, trust

    verdicts = agreement.verdicts(judged)
    ranked = any(one.ranking is not None for one in judged)
    again = again or {}
    assessed = trust.assess(
        judged,
        known=known,
        decided=decided,
        forgiven=forgiven,
        graded=graded,
        # On scales, those who guess agree with themselves by more than half.
        again={key: alike for key, alike in again.items() if verdicts and key[1] in hidden},
    )
    consistency = agreement.self_consistency(again)
    standings = {one.annotator: one for one in assessed}
    on_gold = agreement.agreement_with_truth(verdicts, known or {}) | scales.right_on_gold(graded)
    sizes = {scale.key: scale.levels for scale in asked}
    compared = verdicts or scales.as_verdicts(rated, sizes)
    # The trust test goes without this: an agreed level is no known one.
    knowing = {} if verdicts else raters.competence(rated, sizes, levels)
    between = agreement.agreement_between(compared)
    rest = agreement.agreement_with_rest(compared)
    leans, kept = agreement.left_lean(judged), agreement.kept_order(judged)
    medians = agreement.median_seconds(judged)
    pace = agreement.speed_outliers(medians)
    alike = _alike(between, {name: one.right for name, one in standings.items()})
    counts = Counter(one.annotator for one in judged)
    monotonous = scales.unvaried(rated) if not verdicts else set()
    rows = []
    for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        standing = standings[name]
        flags = list(standing.flags)
        if name in pace:
            quicker = "quicker" if pace[name] == "fast" else "slower"
            flags.append(f"far {quicker} than the others")
        if name in monotonous:
            flags.append("same levels throughout")
        flags += [f"answers like {other}" for other in alike.get(name, [])]
        rows.append(
            QualityRow(
                username=name,
                judgements=count,
                median_seconds=medians.get(name),
                left_lean=leans.get(name),
                kept_order=kept.get(name),
                rest=rest.get(name),
                consistency=consistency.get(name),
                gold=on_gold.get(name),
                competence=knowing.get(name, standing.right if name in rest else None),
                weight=knowing.get(name, standing.weight if name in rest else None),
                trust=standing.state,
                flags=tuple(flags),
            )
        )
    return Report(
        judgements=len(judged) if judgements is None else judgements,
        used=len(judged),
        alpha_nominal=agreement.alpha(verdicts, mirrored=ranked),
        alpha_ordinal=agreement.alpha(verdicts, level="ordinal", mirrored=ranked),
        false_alarm=trust.FALSE_ALARM,
        rows=rows,
        pairs=[
            PairRow(one=one, other=other, agreement=found)
            for (one, other), found in sorted(between.items(), key=lambda each: each[1].value)
        ],
        disputed=[
            Disputed(item=item, agreement=value)
            for item, value in agreement.agreement_by_item(compared).items()
            if value < 1
        ][:MOST_NAMED],
        scales=[
            scales.on_scale(rated, key=scale.key, label=scale.label, levels=scale.levels)
            for scale in asked
        ],
    )


def _alike(
    between: Mapping[tuple[str, str], Share], right: Mapping[str, float | None]
) -> dict[str, list[str]]:
    """Return who answers like whom: more than two who err apart from each other ever would.

    Two of competence a and b who err independently agree in a b + (1 - a)(1 - b) of the cases.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for (one, other), shared in between.items():
        a, b = right.get(one), right.get(other)
        if a is None or b is None or shared.n < ALIKE_ITEMS:
            continue
        if shared.low > a * b + (1 - a) * (1 - b) + ALIKE_BEYOND:
            found[one].append(other)
            found[other].append(one)
    return found


def repeats(campaign: Campaign) -> dict[tuple[str, int], float]:
    """Return annotators' likeness with themselves on each item whose texts came back to them.

    A repeat is an item of the same prompt, here or in another campaign, where they say something of
    the same texts; the sides it shows them on are its own. Levels are compared within the campaign,
    for another one's scale of that name may be another. Two queries, one where there are none.
    """
    prompts = Item.objects.filter(campaign=campaign).values("prompt")
    again = (
        Item.objects.filter(prompt__in=prompts, campaign__project=campaign.project_id)
        .values("prompt")
        .annotate(n=Count("id"))
        .filter(n__gt=1)
        .values("prompt")
    )
    rating = campaign.kind == Campaign.Kind.RATING
    rows = list(
        Judgement.objects.standing()
        .filter(
            Q(campaign=campaign) if rating else Q(ranking__isnull=False) | Q(thumb__isnull=False),
            item__prompt__in=again,
            campaign__project=campaign.project_id,
            annotator__in=Judgement.objects.filter(campaign=campaign).values("annotator"),
        )
        .order_by("-id")
        .values_list(
            "item__prompt_id",
            "ratings",
            "item_id",
            "annotator__username",
            "shown",
            "ranking",
            "thumb",
            "seconds",
        )[:MOST_REPEATS]
    )
    if not rows:
        return {}
    items = {row[2] for row in rows}
    texts = dict(Response.objects.filter(item__in=items).values_list("id", MD5("text")))
    levels = {scale.key: scale.levels for scale in extras.stored(campaign.extras).ratings}
    verdicts = []
    for prompt, ratings, *row in reversed(rows):
        judged = judged_row(*row)
        if rating:
            found = scales.as_verdicts([Rated(judged.item, judged.annotator, ratings)], levels)
        else:
            found = agreement.verdicts([judged])
        verdicts += [named for one in found if (named := _by_text(one, judged, prompt, texts))]
    return agreement.repeats(verdicts)


def hidden_repeats(campaign: Campaign) -> set[int]:
    """Return the items that repeat others unasked; one query.

    What comes back in another campaign may be asked under another code book, so it tells how
    constant somebody is, but is no evidence against them.
    """
    rows = Item.objects.filter(campaign=campaign, role=ItemRole.REPEAT)
    return set(rows.values_list("id", flat=True))


def _by_text(one: Verdict, judged: Judged, prompt: int, texts: Mapping[int, str]) -> Verdict | None:
    """Return a verdict on texts, one unit in whichever item they stand; None for equal ones."""
    unit: Any = one.unit
    if judged.thumb is not None:
        return replace(one, unit=(prompt, texts[judged.shown[0]]))
    if judged.ranking is None:
        response, key = unit
        return replace(one, unit=(prompt, texts[int(response)], key))
    first, second = (texts[response] for response in unit)
    if first == second:
        return None
    value = one.value if first < second else -one.value
    return replace(one, unit=(prompt, *sorted((first, second))), value=value)
