"""Which open slots would tell the leaderboard most: worked out beside the judging, never in it.

A slot's ``gain`` says how much a judgement there is expected to tell of the versions' strengths,
given all judgements so far (feedback.ratings.expected_gains). It is part of the index that a claim
walks, so that a claim costs what it always does. A share of the hand-outs stays drawn by lot:
``arms`` says what the order is worth against it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

from django.db import connection
from django.db.models import Count, F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce

from feedback import leaderboards, quality
from feedback.agreement import Judged
from feedback.models import (
    Arm,
    Campaign,
    Item,
    ItemRole,
    Judgement,
    JudgementQuerySet,
    Response,
    Slot,
)

# So many open slots, evenly drawn, are compared in one go; so many of them go out by what they
# tell before it is worked out anew, and any further ones as the least judged do.
CANDIDATES, FRONT = 5_000, 1_000
# What the most telling slot has as its gain.
MOST_GAIN = 1_000
# The fit rests on the newest judgements up to this many compared pairs.
MOST_COMPARISONS = 30_000
# Slots are written so many at a time. A claim passes over those being written, so it must never
# be all of them.
BATCH = 200

_WRITE = """
WITH free AS (
  SELECT slot.id, told.gain
    FROM unnest(%s::bigint[], %s::smallint[]) AS told (id, gain)
    JOIN feedback_slot AS slot ON slot.id = told.id
   WHERE slot.state = 'open'
     FOR NO KEY UPDATE OF slot SKIP LOCKED
)
UPDATE feedback_slot AS slot SET gain = free.gain FROM free WHERE slot.id = free.id
"""


def rank_campaigns() -> int:
    """Rank the slots of every campaign in the informative order that has new judgements.

    Return how many campaigns there were.
    """
    newest = Judgement.objects.filter(campaign=OuterRef("pk")).order_by("-id").values("id")[:1]
    waiting = (
        Campaign.objects.filter(state=Campaign.State.OPEN, queue_order=Campaign.Order.INFORMATIVE)
        .annotate(newest=Coalesce(Subquery(newest), 0))
        .filter(newest__gt=F("ranked_to"))
    )
    ranked = 0
    for campaign_id, seen in list(waiting.values_list("pk", "newest")):
        claimed = Campaign.objects.filter(pk=campaign_id, ranked_to__lt=seen)
        if claimed.update(ranked_to=seen):
            rank(campaign_id=campaign_id)
            ranked += 1
    return ranked


def rank(*, campaign_id: int) -> int:
    """Write what the campaign's open slots would tell, 0 where its order does not ask for it.

    Return how many slots changed.
    """
    campaign = Campaign.objects.get(pk=campaign_id)
    informative = campaign.queue_order == Campaign.Order.INFORMATIVE
    gains = _gains(campaign) if informative else {}
    before = dict(_open(campaign).filter(gain__gt=0).values_list("id", "gain"))
    changed = {slot: gains.get(slot, 0) for slot in before.keys() | gains.keys()}
    changed = {slot: gain for slot, gain in changed.items() if gain != before.get(slot, 0)}
    slots = sorted(changed)
    size = max(1, min(BATCH, len(slots) // 4))
    with connection.cursor() as cursor:
        for start in range(0, len(slots), size):
            batch = slots[start : start + size]
            cursor.execute(_WRITE, [batch, [changed[slot] for slot in batch]])
    return len(slots)


def _open(campaign: Campaign) -> QuerySet[Slot]:
    return Slot.objects.filter(campaign=campaign, state=Slot.State.OPEN, reserved_for=None)


def _gains(campaign: Campaign) -> dict[int, int]:
    """Return the front of the queue: gains above 0 by slot; four queries."""
    from feedback import ratings

    judged = _ranked(campaign, Judgement.objects.filter(campaign=campaign))
    comparisons = leaderboards.comparisons(judged)
    candidates = _candidates(campaign)
    lineups = _lineups({item for _, item in candidates})
    if not comparisons or not candidates:
        return {}
    players = {player for lineup in lineups.values() for player in lineup}
    fit = ratings.fit(comparisons, players=players)
    by_lineup: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for slot, item in candidates:
        by_lineup[lineups.get(item, ())].append(slot)
    told: dict[int, float] = {}
    for lineup, slots in by_lineup.items():
        gains = ratings.expected_gains(fit, lineup, times=min(len(slots), FRONT))
        told |= dict(zip(slots, gains, strict=False))
    front = sorted(told.items(), key=lambda one: (-one[1], one[0]))[:FRONT]
    most = front[0][1]
    if most <= 0:
        return {}
    return {slot: round(MOST_GAIN * gain / most) for slot, gain in front}


def _candidates(campaign: Campaign) -> list[tuple[int, int]]:
    """Return (slot, item) of open slots in the order in which the least judged go out.

    Drawn evenly by starting somewhere among the shuffled ones; a higher priority goes before.
    """
    start = random.randrange(-(2**31), 2**31)
    rows = (
        _open(campaign)
        .order_by("-priority", "shuffle")
        .values_list("id", "item_id", "index", "shuffle")
    )
    found = list(rows.filter(shuffle__gte=start)[:CANDIDATES])
    found += rows.filter(shuffle__lt=start)[: CANDIDATES - len(found)]
    return [(slot, item) for slot, item, _, _ in sorted(found, key=lambda row: row[2:])]


def _lineups(items: set[int]) -> dict[int, tuple[str, ...]]:
    """Return who wrote an item's responses, by item; a response by nobody known is left out."""
    rows = Response.objects.filter(item__in=items).values_list(
        "item", "completion__version__number", "source"
    )
    found: dict[int, list[str]] = defaultdict(list)
    for item, number, source in rows:
        if player := leaderboards.player(number, source):
            found[item].append(player)
    return {item: tuple(sorted(players)) for item, players in found.items()}


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Standing judgements by the informative order and by lot, and what one of the former is worth.

    ``worth`` is how many judgements of the campaign's items by lot would tell as much of how far
    each version is from the next as one by the order does, at the strengths known today; None where
    too little is known.
    """

    ordered: int
    control: int
    worth: float | None

    @property
    def judgements(self) -> int:
        return self.ordered + self.control


def arms(campaign: Campaign) -> Arms:
    """Return what the informative order and its control brought.

    Computed anew only when a judgement comes.
    """
    rows = Judgement.objects.filter(campaign=campaign)
    key = quality.state_of(rows).key("arms", campaign.pk)
    return quality.kept(key, lambda: _arms(campaign))


def _arms(campaign: Campaign) -> Arms:
    rows = Judgement.objects.standing().filter(campaign=campaign)
    counts = dict(rows.order_by().values_list("slot__arm").annotate(Count("id")))
    return Arms(
        ordered=counts.get(Arm.ORDERED, 0),
        control=counts.get(Arm.CONTROL, 0),
        worth=_worth(campaign) if counts.get(Arm.ORDERED) else None,
    )


def _worth(campaign: Campaign) -> float | None:
    """Compare by what is to be expected of the lot: the control arm itself is small at first."""
    from feedback import ratings

    rows = Judgement.objects.filter(campaign=campaign)
    comparisons = leaderboards.comparisons(_ranked(campaign, rows))
    if not comparisons:
        return None
    known = ratings.fit(comparisons)
    judged = _ranked(campaign, rows.filter(slot__arm=Arm.ORDERED))
    unsure = ratings.neighbour_variance(known, leaderboards.comparisons(judged))
    items = Item.objects.filter(campaign=campaign, role=ItemRole.NORMAL)
    step = max(1, items.count() // CANDIDATES)
    # Ids run on within a campaign, so one in so many items is an even draw of them.
    drawn = items.annotate(part=F("id") % step).filter(part=0).values_list("id", flat=True)
    lineups = [
        lineup for lineup in _lineups(set(drawn)).values() if known.place.keys() >= {*lineup}
    ]
    by_lot = ratings.neighbour_variance(
        known,
        [
            ratings.Comparison(one, other, 0)
            for lineup in lineups
            for one, other in combinations(lineup, 2)
            if one != other
        ],
    )
    if unsure is None or by_lot is None:
        return None
    return (by_lot * len(lineups)) / (unsure * len(judged))


def _ranked(campaign: Campaign, rows: JudgementQuerySet) -> list[Judged]:
    alone = Campaign.objects.filter(pk=campaign.pk)
    return leaderboards.ranked(alone, rows, most=MOST_COMPARISONS)
