"""How annotators judge, in numbers a lead can act on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from django.db import connection

from feedback.models import Campaign

Z_95 = 1.959963984540054

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
class Share:
    """A share of ``n`` cases with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class AnnotatorRow:
    """One annotator's standing judgements in a campaign."""

    username: str
    judgements: int
    median_seconds: float | None
    left_lean: Share | None
    latest: object


def share(hits: int, n: int) -> Share | None:
    """Return hits / n with Wilson's score interval (Wilson 1927); None when n is 0."""
    if n == 0:
        return None
    low, high = wilson(hits / n, n)
    return Share(value=hits / n, low=low, high=high, n=n)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a share of ``n`` cases; n may be an effective size."""
    z2 = Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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
