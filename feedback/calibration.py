"""Calibration: everybody judges the same items, then talks about where they differ."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction

from accounts.errors import Conflict, ProductError
from accounts.models import Membership, User
from accounts.services import audit
from feedback import agreement
from feedback.agreement import Share
from feedback.assignment import orders
from feedback.models import (
    CalibrationNote,
    CalibrationSession,
    Campaign,
    Item,
    ItemRole,
    Judgement,
    Slot,
)
from feedback.probes import copy_item

MOST_ITEMS = 50


@transaction.atomic
def start(
    *, campaign: Campaign, name: str, items: Sequence[Item], members: Sequence[User], by: User
) -> CalibrationSession:
    """Return a session in which every member judges a copy of each item, before other tasks.

    Sides are balanced over the members of an item. The originals keep their slots.
    """
    if not items or len(items) > MOST_ITEMS:
        raise ProductError(f"A session has 1 to {MOST_ITEMS} items.")
    if len(members) < 2:
        raise ProductError("Choose at least two people; one alone agrees with nobody.")
    known = Membership.objects.filter(project=campaign.project_id, user__in=members).count()
    if known != len(members):
        raise ProductError("Somebody chosen is not a member of the project.")
    if any(item.campaign_id != campaign.pk or item.role != ItemRole.NORMAL for item in items):
        raise ProductError("Choose normal items of this campaign.")
    if Item.objects.filter(repeat_of__in=items, role=ItemRole.CALIBRATION).exists():
        raise Conflict("One of these items was in a session before. Choose others.")
    session = CalibrationSession.objects.create(campaign=campaign, name=name.strip()[:120], by=by)
    dealer = random.Random(f"{campaign.seed}:calibration:{session.pk}")
    for item in items:
        copy = copy_item(item, role=ItemRole.CALIBRATION, calibration=session)
        places = orders(
            item_id=copy.pk,
            seed=campaign.seed,
            responses=copy.responses.count(),
            slots=len(members),
        )
        Slot.objects.bulk_create(
            Slot(
                campaign=campaign,
                item=copy,
                role=ItemRole.CALIBRATION,
                reserved_for=member,
                index=index,
                shuffle=dealer.randrange(2**31),
                order=order,
            )
            for index, (member, order) in enumerate(
                zip(dealer.sample(list(members), len(members)), places, strict=True)
            )
        )
    audit(
        project=campaign.project,
        by=by,
        action="calibration.start",
        target=f"{session.name} of {campaign.name}",
        items=len(items),
        members=len(members),
    )
    session.refresh_from_db()
    return session


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """One item of a session: who has judged it, and how far they agree (None: too few)."""

    item: Item
    judged: int
    asked: int
    agreement: float | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A session so far: most disputed items first, pairs of people who agree least first."""

    alpha: float | None
    judged: int
    asked: int
    items: list[ItemResult]
    pairs: list[tuple[str, str, Share]]


def result(session: CalibrationSession) -> Result:
    """Return how far people agree in a session; four queries."""
    from feedback.quality import judged_row

    items = list(session.items.select_related("prompt").order_by("id"))
    slots = list(Slot.objects.filter(item__in=items).values_list("item_id", "state"))
    rows = Judgement.objects.standing().filter(item__in=items).order_by("id")
    judged = [
        judged_row(*row)
        for row in rows.values_list(
            "item_id", "annotator__username", "shown", "ranking", "thumb", "seconds"
        )
    ]
    found = agreement.verdicts(judged)
    by_item = agreement.agreement_by_item(found)
    filled = [item for item, state in slots if state == Slot.State.FILLED]
    asked = [item for item, _ in slots]
    results = [
        ItemResult(
            item=item,
            judged=filled.count(item.pk),
            asked=asked.count(item.pk),
            agreement=by_item.get(item.pk),
        )
        for item in items
    ]
    return Result(
        alpha=agreement.alpha(found, mirrored=any(one.ranking is not None for one in judged)),
        judged=len(filled),
        asked=len(asked),
        items=sorted(results, key=lambda one: (one.agreement is None, one.agreement, one.item.pk)),
        pairs=sorted(
            ((*both, shared) for both, shared in agreement.agreement_between(found).items()),
            key=lambda pair: pair[2].value,
        ),
    )


def note(*, session: CalibrationSession, text: str, by: User, item: int | None = None) -> None:
    """Keep a line of the discussion, of the session or of one of its items."""
    text = text.replace("\x00", "").strip()
    if not text:
        raise ProductError("Write down what was said.")
    if item is not None and not session.items.filter(pk=item).exists():
        raise ProductError("This item is not in the session.")
    CalibrationNote.objects.create(session=session, item_id=item, text=text[:5000], by=by)
