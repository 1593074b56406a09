"""Who judges what, and what first, where a lead decides it."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import IntegrityError, transaction

from accounts.errors import Conflict, ProductError
from accounts.models import Membership, User
from accounts.services import audit
from feedback.models import LEAST_CONTROL, MOST_CONTROL, Campaign, Item, ItemRole, Slot

MOST_PRIORITY = 1000
# Each order in a line, for who chooses one.
ORDER_MEANING = {
    Campaign.Order.LEAST_JUDGED: "Every prompt once before any twice; among equals by lot.",
    Campaign.Order.RANDOM: "Whatever is still to be judged, by lot.",
    Campaign.Order.INFORMATIVE: (
        "What the leaderboard can foretell least; a share stays by lot, to measure the difference."
    ),
}
COMPARING = (Campaign.Kind.RANKING, Campaign.Kind.PAIRWISE)


def check_order(*, kind: str, order: str) -> Campaign.Order:
    """Return the order if a campaign of this kind can have it, or raise ProductError."""
    if order not in Campaign.Order.values:
        raise ProductError(f"An order is one of {', '.join(Campaign.Order.values)}.")
    if order == Campaign.Order.INFORMATIVE and kind not in COMPARING:
        raise ProductError(
            "The most informative order goes by the leaderboard, which takes comparisons and "
            "rankings. Choose another order."
        )
    return Campaign.Order(order)


@transaction.atomic
def set_order(*, campaign: Campaign, order: str, control_percent: int, by: User) -> None:
    """Change the order of a campaign's hand-outs, from the next one on.

    ``control_percent`` of those in the informative order stay drawn by lot.
    """
    from feedback.tasks import rank_campaign

    clean = check_order(kind=campaign.kind, order=order)
    if not LEAST_CONTROL <= control_percent <= MOST_CONTROL:
        raise ProductError(
            f"The share by lot lies between {LEAST_CONTROL} and {MOST_CONTROL} percent."
        )
    Campaign.objects.filter(pk=campaign.pk).update(
        queue_order=clean, control_percent=control_percent
    )
    audit(
        project=campaign.project,
        by=by,
        action="campaign.order",
        target=campaign.name,
        order=clean,
        control_percent=control_percent,
    )
    rank_campaign.delay_on_commit(campaign.pk)


@transaction.atomic
def prioritise(*, item: Item, priority: int, by: User) -> None:
    """Let an item go out before all of a lower priority; 0 is the usual one."""
    if abs(priority) > MOST_PRIORITY:
        raise ProductError(f"A priority lies between -{MOST_PRIORITY} and {MOST_PRIORITY}.")
    if item.role != ItemRole.NORMAL:
        raise Conflict("Only normal items have a priority.")
    Slot.objects.filter(item=item).update(priority=priority)
    _audit(item, by, "item.prioritise", priority=priority)


@transaction.atomic
def assign(*, item: Item, annotators: Sequence[User], by: User) -> None:
    """Keep an item's open slots for these people, one each, before their other tasks.

    As many as judgements are still to come, so that nobody else gets it. Whoever skips it gives
    their slot to anybody.
    """
    if item.role != ItemRole.NORMAL:
        raise Conflict("Only normal items are assigned.")
    known = Membership.objects.filter(project=item.campaign.project_id, user__in=annotators)
    if known.count() != len(annotators) or len(set(annotators)) != len(annotators):
        raise ProductError("Name members of the project, each of them once.")
    slots = list(
        Slot.objects.select_for_update()
        .filter(item=item, state=Slot.State.OPEN, reserved_for=None)
        .order_by("index")
    )
    if len(slots) != len(annotators):
        raise Conflict(
            f"{len(slots)} judgements of this item are free; name as many people, not "
            f"{len(annotators)}."
        )
    held = Slot.objects.filter(item=item, holder__in=annotators)
    if held.exists() or item.skips.filter(annotator__in=annotators).exists():
        raise Conflict("Somebody named has this item, has judged it, or has skipped it.")
    try:
        with transaction.atomic():
            for slot, annotator in zip(slots, annotators, strict=True):
                Slot.objects.filter(pk=slot.pk).update(reserved_for=annotator)
    except IntegrityError:
        raise Conflict("Somebody named has a slot of this item already.") from None
    _audit(item, by, "item.assign", annotators=[user.username for user in annotators])


@transaction.atomic
def release(*, item: Item, by: User) -> None:
    """Let anybody have the slots of an item that named people have not taken up yet."""
    if item.role != ItemRole.NORMAL:
        raise Conflict("Only normal items are assigned.")
    open_slots = Slot.objects.filter(item=item, state=Slot.State.OPEN)
    if open_slots.exclude(reserved_for=None).update(reserved_for=None):
        _audit(item, by, "item.release")


def _audit(item: Item, by: User, action: str, **details: object) -> None:
    target = f"item {item.pk} of {item.campaign.name}"
    audit(project=item.campaign.project, by=by, action=action, target=target, **details)
