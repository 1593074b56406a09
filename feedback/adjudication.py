"""Leads decide what annotators dispute; the judgements stay, the decision is a row of its own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from django.db import transaction

from accounts.errors import Conflict, ProductError
from accounts.models import User
from accounts.services import audit
from feedback import gold
from feedback.models import Campaign, Decision, Item, ItemRole, Response
from feedback.scales import Known


@transaction.atomic
def decide(*, item: Item, answer: Mapping[str, Any], why: str, by: User) -> Decision:
    """Keep a lead's answer to a normal item; a later one takes its place, both stay."""
    if item.role != ItemRole.NORMAL:
        raise Conflict("Only normal items are decided; a gold item has its answer already.")
    if not why.strip():
        raise ProductError("Say why; whoever reads the data later will ask.")
    campaign = item.campaign
    clean = gold.check_answer(campaign, answer, item.responses.count())
    decision = Decision.objects.create(item=item, answer=clean, why=why.strip()[:1000], by=by)
    audit(
        project=campaign.project,
        by=by,
        action="item.decide",
        target=f"item {item.pk} of {campaign.name}",
        answer=clean,
        why=decision.why,
    )
    return decision


def decided_answers(campaign: Campaign) -> dict[int, dict[str, Any]]:
    """Return the standing decision on each decided item, by item; one query."""
    rows = Decision.objects.filter(item__campaign=campaign).order_by("id")
    return dict(rows.values_list("item_id", "answer"))


def decided_truths(campaign: Campaign) -> dict[Hashable, int]:
    """Return what the standing decisions say, unit by unit; two queries, one without any."""
    return gold.truths(decided_answers(campaign))


def decided_levels(campaign: Campaign) -> dict[tuple[Hashable, str], Known]:
    """Return the levels that the standing decisions name, by response and scale; two queries."""
    if campaign.kind != Campaign.Kind.RATING:
        return {}
    return gold.levels_in(campaign, decided_answers(campaign))


def decided_responses(campaigns: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the standing decisions by item, responses named by their ids; two queries.

    ``{"ranking": [[7], [6, 8]]}``, best first, ``{"thumb": 1}``, or
    ``{"ratings": {7: {"tone": 4}}}``.
    """
    rows = Decision.objects.filter(item__campaign__in=campaigns).order_by("id")
    answers: dict[int, dict[str, Any]] = dict(rows.values_list("item_id", "answer"))
    found = Response.objects.filter(item__in=answers).values_list("item", "position", "id")
    places: dict[int, dict[int, int]] = {}
    for item, position, response in found:
        places.setdefault(item, {})[position] = response
    return {item: _by_response(answer, places.get(item, {})) for item, answer in answers.items()}


def _by_response(answer: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    if "ranking" in answer:
        return {"ranking": [[places[one] for one in group] for group in answer["ranking"]]}
    if "ratings" in answer:
        return {"ratings": {places[int(one)]: levels for one, levels in answer["ratings"].items()}}
    return {"thumb": answer["thumb"]}
