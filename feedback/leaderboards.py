"""Which version people prefer, in one campaign or in all of a project's together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from django.db.models import Min, QuerySet
from django.db.models.functions import Length

from accounts.models import Project
from feedback import quality
from feedback.agreement import Judged
from feedback.models import Campaign, ItemRole, Judgement, JudgementQuerySet, Response
from inference.models import Version

if TYPE_CHECKING:
    from feedback.ratings import Comparison, Leaderboard

# Read are the newest judgements up to this many compared pairs: about two seconds' work once, then
# kept until a judgement comes.
MOST_COMPARISONS = 100_000
RESAMPLES, RESAMPLE_SECONDS = 200, 2.0


def of_campaign(campaign: Campaign, *, side: bool = False, length: bool = False) -> Leaderboard:
    """Return the versions ordered by the campaign's rankings, kept until a judgement changes.

    ``side`` and ``length`` take out what standing on the left and being longer are worth.
    """
    one = Campaign.objects.filter(pk=campaign.pk)
    return _leaderboard(one, "campaign", campaign.pk, side=side, length=length)


def of_project(project: Project, *, side: bool = False, length: bool = False) -> Leaderboard:
    """Return the versions ordered by the rankings of all the project's campaigns together.

    Players of the same name are the same: a version meets in one campaign whom it never met in
    another. A prompt judged in several campaigns is one cluster. Kept as a campaign's is.
    """
    return _leaderboard(project.campaigns.all(), "project", project.pk, side=side, length=length)


def _leaderboard(
    campaigns: QuerySet[Campaign], *whose: object, side: bool, length: bool
) -> Leaderboard:
    from feedback import ratings

    rows = Judgement.objects.filter(campaign__in=campaigns.order_by().values("pk"))
    return quality.kept(
        quality.state_of(rows).key("leaderboard", *whose, side, length),
        lambda: ratings.rate(
            comparisons(ranked(campaigns, rows, most=MOST_COMPARISONS)),
            side=side,
            length=length,
            resamples=RESAMPLES,
            seconds=RESAMPLE_SECONDS,
        ),
    )


def ranked(campaigns: QuerySet[Campaign], rows: JudgementQuerySet, *, most: int) -> list[Judged]:
    """Return the newest standing rankings of normal items, of ``most`` pairs; two queries.

    The fewest responses that a campaign compares say how many rows there can be at most.
    """
    compared = campaigns.filter(responses_per_item__gte=2)
    fewest = compared.aggregate(fewest=Min("responses_per_item"))["fewest"] or 2
    newest = (
        rows.standing()
        .filter(ranking__isnull=False, item__role=ItemRole.NORMAL)
        .order_by("-id")
        .values_list("item_id", "annotator__username", "shown", "ranking", "thumb", "seconds")
    )[: most // math.comb(fewest, 2)]
    return _up_to(most, (quality.judged_row(*row) for row in newest))


def _up_to(most: int, newest: Iterable[Judged]) -> list[Judged]:
    found, pairs = [], 0
    for one in newest:
        pairs += math.comb(len(one.shown), 2)
        if pairs > most:
            break
        found.append(one)
    return found[::-1]


def player(number: int | None, source: str) -> str:
    """Return who competes: the version that wrote a response, or what an imported one names."""
    return source if number is None else Version(number=number).name


def comparisons(judged: Sequence[Judged]) -> list[Comparison]:
    """Return every compared pair of responses by different players; one query."""
    from feedback.ratings import Comparison

    rows = Response.objects.filter(item__in={one.item for one in judged}).values_list(
        "id", "completion__version__number", "source", Length("text"), "item__prompt_id"
    )
    about = {
        key: (player(number, source), size, prompt) for key, number, source, size, prompt in rows
    }
    found = []
    for one in judged:
        assert one.ranking is not None
        place = {response: rank for rank, group in enumerate(one.ranking) for response in group}
        for left, right in combinations(one.shown, 2):
            (first, size, prompt), (second, other_size, _) = about[left], about[right]
            if not first or not second or first == second:
                continue
            lead = place[right] - place[left]
            found.append(
                Comparison(
                    first,
                    second,
                    (lead > 0) - (lead < 0),
                    side=1,
                    length=math.log(max(size, 1) / max(other_size, 1)),
                    cluster=prompt,
                )
            )
    return found
