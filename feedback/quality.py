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
from feedback.scales import Rated, ScaleAgreement

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
    key = state.key("report-with-scales", campaign.pk, _rulings(campaign))
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
        consistency=_consistency(campaign),
        known=gold.known_truths(campaign),
        decided=adjudication.decided_truths(campaign),
        forgiven=pauses.forgiven(campaign),
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
    consistency: Mapping[str, Share] | None = None,
    known: Mapping[Hashable, int] | None = None,
    decided: Mapping[Hashable, int] | None = None,
    forgiven: Collection[tuple[str, int]] = (),
    rated: Sequence[Rated] = (),
    asked: Sequence[Scale] = (),
) -> Report:
    """Return the report on judgements in the order they came; no database.

    ``known``, ``decided`` and ``forgiven`` are as in ``trust.assess``. Where nothing is compared,
    people agree or not by what they ``rated`` on the scales ``asked``.
    """
    from feedback import trust

    verdicts = agreement.verdicts(judged)
    ranked = any(one.ranking is not None for one in judged)
    assessed = trust.assess(judged, known=known, decided=decided, forgiven=forgiven)
    standings = {one.annotator: one for one in assessed}
    on_gold = agreement.agreement_with_truth(verdicts, known or {})
    # Levels tell how far people agree, but not who is right: the trust test goes without them.
    graded = verdicts or scales.as_verdicts(rated, {scale.key: scale.levels for scale in asked})
    between = agreement.agreement_between(graded)
    rest = agreement.agreement_with_rest(graded)
    leans, kept = agreement.left_lean(judged), agreement.kept_order(judged)
    medians = agreement.median_seconds(judged)
    pace = agreement.speed_outliers(medians)
    alike = _alike(between, {name: one.right for name, one in standings.items()})
    counts = Counter(one.annotator for one in judged)
    rows = []
    for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        standing = standings[name]
        flags = list(standing.flags)
        if name in pace:
            quicker = "quicker" if pace[name] == "fast" else "slower"
            flags.append(f"far {quicker} than the others")
        flags += [f"answers like {other}" for other in alike.get(name, [])]
        rows.append(
            QualityRow(
                username=name,
                judgements=count,
                median_seconds=medians.get(name),
                left_lean=leans.get(name),
                kept_order=kept.get(name),
                rest=rest.get(name),
                consistency=(consistency or {}).get(name),
                gold=on_gold.get(name),
                competence=standing.right if name in rest and verdicts else None,
                weight=standing.weight if name in rest and verdicts else None,
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
            for item, value in agreement.agreement_by_item(graded).items()
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


def _consistency(campaign: Campaign) -> dict[str, Share]:
    """Return each annotator's likeness with themselves where the same texts came back to them.

    A repeat is an item of the same prompt, here or in another campaign, whose two texts are the
    same; the sides it shows them on are its own. Two queries, one where there are none.
    """
    prompts = Item.objects.filter(campaign=campaign).values("prompt")
    again = (
        Item.objects.filter(prompt__in=prompts, campaign__project=campaign.project_id)
        .values("prompt")
        .annotate(n=Count("id"))
        .filter(n__gt=1)
        .values("prompt")
    )
    rows = list(
        Judgement.objects.standing()
        .filter(
            item__prompt__in=again,
            campaign__project=campaign.project_id,
            ranking__isnull=False,
            annotator__in=Judgement.objects.filter(campaign=campaign).values("annotator"),
        )
        .order_by("-id")
        .values_list(
            "item__prompt_id",
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
    texts = dict(
        Response.objects.filter(item__in={row[1] for row in rows}).values_list("id", MD5("text"))
    )
    verdicts = []
    for prompt, *row in reversed(rows):
        for one in agreement.verdicts([judged_row(*row)]):
            pair: Any = one.unit
            first, second = (texts[response] for response in pair)
            if first == second:
                continue
            # Named by text, the pair is the same unit in whichever item it stands.
            value = one.value if first < second else -one.value
            unit = (prompt, *sorted((first, second)))
            verdicts.append(Verdict(one.item, unit, one.annotator, value))
    return agreement.self_consistency(verdicts)
