"""How a campaign goes on: its judgements by day and annotator, the share done, agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import accumulate, pairwise

from django.db.models import Count, F, Max, Min, Q, QuerySet
from django.db.models.functions import Trunc

from feedback import agreement, quality
from feedback.agreement import Judged
from feedback.models import Campaign, ItemRole, Judgement, JudgementQuerySet, Slot

# A picture shows about so many bars: days, then weeks, then months.
MOST_BARS = 62
# Agreement is read from whole items, evenly drawn, with about this many judged pairs in all.
MOST_PAIRS = 12_000
MOST_POINTS, FEWEST_ITEMS = 6, 10


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A day, a week from Monday, or a month; ``end`` is the first day after it.

    ``share_done`` is the share of the campaign's slots filled by its end.
    """

    start: date
    end: date
    judgements: int
    share_done: float


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What one annotator did in the campaign."""

    username: str
    judgements: int
    median_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """Krippendorff's nominal alpha over items whose last judgement came by ``until``.

    None where chance cannot be told from agreement.
    """

    until: datetime
    alpha: float | None
    items: int


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A campaign's course so far; ``unit`` is the length of its stretches: day, week or month.

    Judgements count gold, repeats and calibration; ``filled`` and ``slots`` do not.
    """

    judgements: int
    filled: int
    slots: int
    unit: str
    stretches: list[Stretch]
    annotators: list[Worked]
    agreement: list[Agreed]


def dashboard(campaign: Campaign) -> Dashboard:
    """Return the campaign's dashboard, computed anew only when a judgement or slot comes.

    Two queries where it is kept. Else six: PostgreSQL counts, and what is read of it does not grow
    with the campaign.
    """
    slots = Slot.objects.filter(campaign=campaign, role=ItemRole.NORMAL).count()
    state = quality.state_of(Judgement.objects.filter(campaign=campaign))
    return quality.kept(
        state.key("dashboard", campaign.pk, slots),
        lambda: _dashboard(campaign, judgements=state.standing, slots=slots),
    )


def _dashboard(campaign: Campaign, *, judgements: int, slots: int) -> Dashboard:
    rows = Judgement.objects.standing().filter(campaign=campaign)
    unit = _unit(rows)
    found = list(
        rows.annotate(start=Trunc("created_at", unit))
        .values_list("start")
        .annotate(all=Count("id"), normal=Count("id", filter=Q(slot__role=ItemRole.NORMAL)))
        .order_by("start")
    )
    filled = list(accumulate(normal for _, _, normal in found))
    return Dashboard(
        judgements=judgements,
        filled=filled[-1] if filled else 0,
        slots=slots,
        unit=unit,
        stretches=[
            Stretch(
                start=start.date(),
                end=_end(start.date(), unit),
                judgements=count,
                share_done=done / slots if slots else 0.0,
            )
            for (start, count, _), done in zip(found, filled, strict=True)
        ],
        annotators=[
            Worked(
                username=row.username,
                judgements=row.judgements,
                median_seconds=row.median_seconds,
            )
            for row in quality.annotators(campaign)
        ],
        agreement=_agreement(campaign, rows, judgements),
    )


def _unit(rows: QuerySet[Judgement]) -> str:
    found = rows.aggregate(first=Min("created_at"), last=Max("created_at"))
    days = (found["last"] - found["first"]).days + 1 if found["first"] else 0
    return "day" if days <= MOST_BARS else "week" if days <= 7 * MOST_BARS else "month"


def _end(start: date, unit: str) -> date:
    if unit == "month":
        return (start + timedelta(days=31)).replace(day=1)
    return start + timedelta(days=7 if unit == "week" else 1)


def _agreement(campaign: Campaign, rows: JudgementQuerySet, judgements: int) -> list[Agreed]:
    """Return alpha over equal parts of the items, in the order in which they were finished."""
    pairs = judgements * max(1, math.comb(campaign.responses_per_item, 2))
    step = max(1, math.ceil(pairs / MOST_PAIRS))
    # Ids run on within a campaign, so one in so many items is an even draw of them.
    drawn = rows.annotate(part=F("item_id") % step).filter(part=0).order_by("id")
    by_item: dict[int, list[Judged]] = {}
    finished: dict[int, datetime] = {}
    for item, username, shown, ranking, thumb, seconds, at in drawn.values_list(
        "item_id", "annotator__username", "shown", "ranking", "thumb", "seconds", "created_at"
    ):
        judged = quality.judged_row(item, username, shown, ranking, thumb, seconds)
        by_item.setdefault(judged.item, []).append(judged)
        finished[judged.item] = at
    items = sorted((one for one in by_item if len(by_item[one]) > 1), key=finished.__getitem__)
    count = max(1, min(MOST_POINTS, len(items) // FEWEST_ITEMS))
    cuts = [len(items) * part // count for part in range(count + 1)]
    found = []
    for start, end in pairwise(cuts):
        if start == end:
            continue
        part = [judged for item in items[start:end] for judged in by_item[item]]
        ranked = any(one.ranking is not None for one in part)
        found.append(
            Agreed(
                until=finished[items[end - 1]],
                alpha=agreement.alpha(agreement.verdicts(part), mirrored=ranked),
                items=end - start,
            )
        )
    return found
