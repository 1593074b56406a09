"""Gold items and hidden repeats: tasks that tell how well somebody judges.

They look like any other task. Nothing is dealt ahead: when chance says that it is time, the
annotator gets a slot of their own, leased to them at once, and their next claim finds it in hand.
So normal slots are never used up, and two tabs cannot get two: one lease per annotator and
campaign. After gold or a repeat always comes a normal task.
"""

from __future__ import annotations

import random
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from accounts.models import User
from accounts.statements import one_row
from feedback.leases import BARRED, lease_end
from feedback.models import CalibrationSession, Campaign, Item, ItemRole, Response, Slot, random_id

# A repeat is drawn from so many judgements.
REPEAT_AMONG = 500

# The annotator has nothing in hand, and neither judged nor skipped a probe as the last thing.
_MAY = f"""
 NOT EXISTS ({BARRED})
 AND NOT EXISTS (SELECT 1 FROM feedback_slot
              WHERE campaign_id = %(campaign)s AND holder_id = %(me)s AND state = 'leased')
 AND NOT EXISTS (
   SELECT 1
     FROM (SELECT slot_id, created_at FROM feedback_judgement
            WHERE campaign_id = %(campaign)s AND annotator_id = %(me)s
            ORDER BY id DESC LIMIT 1) AS last
     JOIN feedback_slot AS slot ON slot.id = last.slot_id
    WHERE slot.role <> 'normal' OR EXISTS (
      SELECT 1 FROM feedback_slot AS skipped
        JOIN feedback_skip AS skip ON skip.item_id = skipped.item_id
       WHERE skipped.campaign_id = %(campaign)s AND skipped.role <> 'normal'
         AND skipped.reserved_for_id = %(me)s AND skip.annotator_id = %(me)s
         AND skip.created_at > last.created_at))
"""
# Never an item of which they know the original, in whichever role.
_PLANT_GOLD = f"""
INSERT INTO feedback_slot (id, campaign_id, item_id, role, reserved_for_id, "index", shuffle,
                           "order", state, holder_id, token, leased_at, lease_expires_at)
SELECT %(id)s, %(campaign)s, item.id, item.role, %(me)s, 0, 0,
       ARRAY(SELECT position FROM feedback_response WHERE item_id = item.id ORDER BY random()),
       'leased', %(me)s, 1, now(), now() + make_interval(secs => %(lease)s)
  FROM feedback_item AS item
 WHERE item.campaign_id = %(campaign)s AND item.role = 'gold' AND {_MAY}
   AND EXISTS (SELECT 1 FROM feedback_prompt
                WHERE id = item.prompt_id AND withdrawn_at IS NULL)
   AND NOT EXISTS (
     SELECT 1 FROM feedback_slot AS mine
      WHERE mine.item_id IN (item.id, item.repeat_of_id)
        AND %(me)s IN (mine.holder_id, mine.reserved_for_id))
   AND NOT EXISTS (
     SELECT 1 FROM feedback_skip AS skip
      WHERE skip.item_id IN (item.id, item.repeat_of_id) AND skip.annotator_id = %(me)s)
 ORDER BY random()
 LIMIT 1
RETURNING id
"""
# One of the judgements long enough ago, the order it was shown in, and its copy if there is one.
_FIND_REPEAT = f"""
SELECT old.item_id, slot."order", copy.id
  FROM (SELECT item_id, slot_id FROM feedback_judgement
         WHERE campaign_id = %(campaign)s AND annotator_id = %(me)s AND retracted_at IS NULL
         ORDER BY id DESC OFFSET %(after)s LIMIT {REPEAT_AMONG}) AS old
  JOIN feedback_slot AS slot ON slot.id = old.slot_id AND slot.role = 'normal'
  LEFT JOIN feedback_item AS copy ON copy.repeat_of_id = old.item_id AND copy.role = 'repeat'
 WHERE {_MAY}
   AND NOT EXISTS (
     SELECT 1 FROM feedback_slot AS mine
      WHERE mine.item_id = copy.id AND mine.reserved_for_id = %(me)s)
 ORDER BY random()
 LIMIT 1
"""


def plant_by_chance(*, campaign: Campaign, annotator: User) -> None:
    """Lease a gold item or a repeat to the annotator where it is time for one; usually nothing.

    The chances are such that, with a normal task after each, one in ``gold_every`` tasks is gold
    and one in ``repeat_every`` a repeat. No query unless chance says so.
    """
    gold = 1 / campaign.gold_every if campaign.gold_every else 0.0
    repeat = 1 / campaign.repeat_every if campaign.repeat_every else 0.0
    if not gold and not repeat:
        return
    # A share f of all tasks is f / (1 - f) of those that a normal task goes before.
    drawn = random.random() * (1 - gold - repeat)
    if drawn < gold:
        plant_gold(campaign=campaign, annotator=annotator)
    elif drawn < gold + repeat:
        plant_repeat(campaign=campaign, annotator=annotator)


def plant_gold(*, campaign: Campaign, annotator: User) -> bool:
    """Lease a gold item that the annotator does not know; say whether there was one."""
    values = {
        "id": random_id(),
        "campaign": campaign.pk,
        "me": annotator.pk,
        "lease": settings.LEASE_SECONDS,
    }
    try:
        return one_row(_PLANT_GOLD, values) is not None
    except IntegrityError:
        return False  # another tab took a task in this moment


def plant_repeat(*, campaign: Campaign, annotator: User) -> bool:
    """Lease a copy of an own earlier item, its sides swapped; say whether there was one."""
    values = {"campaign": campaign.pk, "me": annotator.pk, "after": campaign.repeat_after}
    found = one_row(_FIND_REPEAT, values)
    if found is None:
        return False
    original, order, copy = found
    try:
        with transaction.atomic():
            if copy is None:
                copy = copy_item(Item.objects.get(pk=original), role=ItemRole.REPEAT).pk
            Slot.objects.create(
                campaign=campaign,
                item_id=copy,
                role=ItemRole.REPEAT,
                reserved_for=annotator,
                index=0,
                shuffle=0,
                order=order[::-1],
                state=Slot.State.LEASED,
                holder=annotator,
                token=1,
                leased_at=Now(),
                lease_expires_at=lease_end(),
            )
    except IntegrityError:
        return False  # another tab took a task, or somebody else copied the item, in this moment
    return True


def copy_item(
    item: Item,
    *,
    role: ItemRole,
    gold_answer: dict[str, Any] | None = None,
    calibration: CalibrationSession | None = None,
) -> Item:
    """Return a new item of another role with the same prompt and the same texts."""
    copy = Item.objects.create(
        campaign_id=item.campaign_id,
        prompt_id=item.prompt_id,
        role=role,
        repeat_of=item,
        gold_answer=gold_answer,
        calibration=calibration,
    )
    Response.objects.bulk_create(
        Response(item=copy, position=response.position, text=response.text, source=response.source)
        for response in item.responses.order_by("position")
    )
    return copy
