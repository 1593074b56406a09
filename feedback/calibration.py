"""Calibration: everybody judges the same items, then talks about where they differ."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import QuerySet

from accounts.errors import Conflict, ProductError
from accounts.models import Membership, User
from accounts.services import audit
from feedback import agreement, extras, scales
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
from feedback.scales import Rated

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
    Campaign.objects.select_for_update().get(pk=campaign.pk)  # or two would choose the same items
    if Item.objects.filter(repeat_of__in=items, role=ItemRole.CALIBRATION).exists():
        raise Conflict("One of these items was in a session before. Choose others.")
    session = CalibrationSession.objects.create(campaign=campaign, name=name.strip()[:120], by=by)
    dealer = _dealer(session)
    for item in items:
        copy = copy_item(item, role=ItemRole.CALIBRATION, calibration=session)
        people = dealer.sample(list(members), len(members))
        _deal(copy, campaign=campaign, people=people, first=0, dealer=dealer)
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


def _dealer(session: CalibrationSession, *more: object) -> random.Random:
    return random.Random(
        ":".join(map(str, (session.campaign.seed, "calibration", session.pk, *more)))
    )


def _deal(
    item: Item, *, campaign: Campaign, people: Sequence[User], first: int, dealer: random.Random
) -> None:
    """Give each of the people a slot of the item, the first of them the slot number ``first``."""
    places = orders(
        item_id=item.pk,
        seed=campaign.seed,
        responses=item.responses.count(),
        slots=first + len(people),
    )
    Slot.objects.bulk_create(
        Slot(
            campaign=campaign,
            item=item,
            role=ItemRole.CALIBRATION,
            reserved_for=member,
            index=first + number,
            shuffle=dealer.randrange(2**31),
            order=places[first + number],
        )
        for number, member in enumerate(people)
    )


@transaction.atomic
def add_members(*, session: CalibrationSession, members: Sequence[User], by: User) -> list[User]:
    """Give whoever came later the session's items, too; return those who had not got them yet.

    Sides stay balanced: the newcomers take the places that follow.
    """
    campaign = session.campaign
    CalibrationSession.objects.select_for_update().get(pk=session.pk)
    known = Membership.objects.filter(project=campaign.project_id, user__in=members).count()
    if not members or known != len(members):
        raise ProductError("Name members of the project.")
    slots = Slot.objects.filter(item__calibration=session)
    asked = set(slots.values_list("reserved_for", flat=True))
    new = [member for member in members if member.pk not in asked]
    if not new:
        raise Conflict("Everybody named is in this session already.")
    dealer = _dealer(session, len(asked))
    for item in session.items.order_by("id"):
        people = dealer.sample(new, len(new))
        _deal(item, campaign=campaign, people=people, first=len(asked), dealer=dealer)
    audit(
        project=campaign.project,
        by=by,
        action="calibration.join",
        target=f"{session.name} of {campaign.name}",
        members=[member.username for member in new],
    )
    return new


def not_asked(session: CalibrationSession) -> QuerySet[User]:
    """Return the project's members who have none of the session's items, by name."""
    asked = Slot.objects.filter(item__calibration=session).values("reserved_for")
    members = User.objects.filter(memberships__project=session.campaign.project_id)
    return members.exclude(pk__in=asked).order_by("username")


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
    rows = list(
        Judgement.objects.standing()
        .filter(item__in=items)
        .order_by("id")
        .values_list(
            "item_id", "annotator__username", "shown", "ranking", "thumb", "seconds", "ratings"
        )
    )
    judged = [judged_row(*row[:6]) for row in rows]
    found = agreement.verdicts(judged)
    alpha = agreement.alpha(found, mirrored=any(one.ranking is not None for one in judged))
    if session.campaign.kind == Campaign.Kind.RATING:
        rated = [Rated(row[0], row[1], row[6]) for row in rows]
        likert = extras.stored(session.campaign.extras).ratings
        levels = {scale.key: scale.levels for scale in likert}
        found = scales.as_verdicts(rated, levels)
        alpha = scales.mean_alpha(rated, levels)
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
        alpha=alpha,
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
