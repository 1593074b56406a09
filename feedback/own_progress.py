"""What people have judged themselves: facts for them alone, no targets and nothing to lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta

from django.db import connection
from django.db.models import Count, Q, QuerySet
from django.utils import timezone

from accounts.models import Project, User
from feedback.models import Campaign, Judgement, Skip

# How far back the picture goes, and medians, which then tell of how one works now.
RECENT = timedelta(days=30)
SATURDAY = 5

# One row for each campaign, and one with no campaign for all of them together.
_MEDIANS = """
SELECT campaign_id, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds)
  FROM feedback_judgement
 WHERE annotator_id = %(me)s AND campaign_id = ANY(%(campaigns)s) AND retracted_at IS NULL
   AND seconds IS NOT NULL AND created_at >= %(since)s
 GROUP BY GROUPING SETS ((campaign_id), ())
"""


@dataclass(frozen=True, kw_only=True)
class OwnCampaign:
    """One's own work in one campaign; ``median_seconds`` is of the last 30 days."""

    campaign: int
    name: str
    project: str
    judged: int
    today: int
    this_week: int
    median_seconds: float | None
    undone: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class OwnDay:
    """How many judgements one gave on a day."""

    day: date
    judged: int


@dataclass(frozen=True, kw_only=True)
class OwnProgress:
    """One's own work in all the campaigns in question; weeks begin on Monday."""

    judged: int
    today: int
    this_week: int
    days_in_a_row: int
    median_seconds: float | None
    undone: int
    skipped: int
    recent: list[OwnDay]
    campaigns: list[OwnCampaign]


def own_progress(*, annotator: User, projects: QuerySet[Project]) -> OwnProgress:
    """Return what the annotator has judged in the projects, newest campaign first; four queries.

    Days are UTC's. Campaigns in which they did nothing are left out.
    """
    today = timezone.now().date()
    monday = today - timedelta(days=today.weekday())
    campaigns = {
        pk: (name, slug)
        for pk, name, slug in Campaign.objects.filter(project__in=projects).values_list(
            "pk", "name", "project__slug"
        )
    }
    rows = (
        Judgement.objects.filter(annotator=annotator, campaign__in=list(campaigns))
        .order_by()
        .values_list("campaign", "created_at__date")
        .annotate(
            judged=Count("id", filter=Q(retracted_at__isnull=True)),
            undone=Count("id", filter=Q(retracted_by=annotator)),
        )
    )
    judged, undone, days = Counter[int](), Counter[int](), Counter[date]()
    on_day, in_week = Counter[int](), Counter[int]()
    for campaign, day, count, taken_back in rows:
        judged[campaign] += count
        undone[campaign] += taken_back
        days[day] += count
        on_day[campaign] += count * (day == today)
        in_week[campaign] += count * (day >= monday)
    skipped = Counter(
        dict(
            Skip.objects.filter(annotator=annotator, item__campaign__in=list(campaigns))
            .values_list("item__campaign")
            .annotate(n=Count("id"))
            .order_by()
        )
    )
    since = today - RECENT
    medians = _medians(annotator, campaigns, since=since)
    return OwnProgress(
        judged=judged.total(),
        today=on_day.total(),
        this_week=in_week.total(),
        days_in_a_row=days_in_a_row({day for day, count in days.items() if count}, today=today),
        median_seconds=medians.get(None),
        undone=undone.total(),
        skipped=skipped.total(),
        recent=[
            OwnDay(day=day, judged=count)
            for day, count in sorted(days.items())
            if day > since and count
        ],
        campaigns=[
            OwnCampaign(
                campaign=pk,
                name=name,
                project=slug,
                judged=judged[pk],
                today=on_day[pk],
                this_week=in_week[pk],
                median_seconds=medians.get(pk),
                undone=undone[pk],
                skipped=skipped[pk],
            )
            for pk, (name, slug) in campaigns.items()
            if pk in judged or skipped[pk]
        ],
    )


def days_in_a_row(days: Collection[date], *, today: date) -> int:
    """Return on how many of ``days`` in a row there was work, up to now.

    Today may still come, and a Saturday or Sunday off breaks nothing; one worked on counts.
    """
    count, day = 0, today
    while day in days or day == today or day.weekday() >= SATURDAY:
        count += day in days
        day -= timedelta(days=1)
    return count


def _medians(
    annotator: User, campaigns: Collection[int], *, since: date
) -> dict[int | None, float | None]:
    """Return the median seconds by campaign, and of all under None; one query."""
    with connection.cursor() as cursor:
        cursor.execute(_MEDIANS, {"me": annotator.pk, "campaigns": list(campaigns), "since": since})
        return dict(cursor.fetchall())
