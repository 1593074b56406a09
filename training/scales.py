"""The scales that campaigns rate answers on, as far as a snapshot is concerned."""

from __future__ import annotations

from collections.abc import Iterable

from accounts.errors import ProductError
from feedback.extras import Scale, stored
from feedback.models import Campaign
from training.options import Kind, Options


def scales_of(campaigns: Iterable[Campaign]) -> dict[str, Scale]:
    """Return the scales of campaigns by name; one asked with other levels elsewhere is refused.

    A 4 of 5 and a 4 of 7 are not the same, so they share no column.
    """
    found: dict[str, tuple[Scale, str]] = {}
    for campaign in campaigns:
        for scale in stored(campaign.extras).ratings:
            known, where = found.setdefault(scale.key, (scale, campaign.name))
            if known.levels != scale.levels:
                raise ProductError(
                    f"“{scale.key}” has {known.levels} levels in {where} and {scale.levels} in "
                    f"{campaign.name}. Take a snapshot of each campaign."
                )
    return {name: scale for name, (scale, _) in sorted(found.items())}


def names_of(campaigns: Iterable[Campaign]) -> list[str]:
    """Return the names of all scales that campaigns ask for, in order."""
    return sorted({scale.key for each in campaigns for scale in stored(each.extras).ratings})


def check_scales(kind: str, options: Options, campaigns: Iterable[Campaign]) -> None:
    """Raise ProductError where a snapshot asks for scales that its campaigns do not have."""
    campaigns = list(campaigns)
    names = names_of(campaigns)
    if kind == Kind.RATINGS:
        if not names:
            raise ProductError("None of these campaigns asks for ratings, so there are none.")
        if options.min_agreement:
            raise ProductError(
                "Ratings are averaged, not voted on: leave the least agreement at 0."
            )
        scales_of(campaigns)
    if kind == Kind.PREFERENCE and (unknown := sorted(set(options.attributes) - set(names))):
        there = f"There are {', '.join(names)}." if names else "They ask for no ratings."
        raise ProductError(f"These campaigns have no scale “{unknown[0]}”. {there}")
