"""How much an annotator has done and may still do; bounded work however large the campaign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection
from django.db.models import Count, Q
from django.utils import timezone

from accounts.models import User
from feedback.models import Judgement

# Beyond this many the page says "and more": nobody plans past it, and counting stays cheap.
MOST_COUNTED = 500

# What `assignment.claim` could hand to this annotator: the task in hand, and open slots and leases
# that ran out, of items that they neither hold, nor judged, nor skipped.
_FREE = """
SELECT slot.item_id FROM feedback_slot AS slot
 WHERE slot.campaign_id = campaign.id AND {free}
   AND NOT EXISTS (SELECT 1 FROM feedback_slot AS mine
                    WHERE mine.item_id = slot.item_id AND mine.holder_id = %(me)s)
   AND NOT EXISTS (SELECT 1 FROM feedback_skip AS skip
                    WHERE skip.item_id = slot.item_id AND skip.annotator_id = %(me)s)
 LIMIT %(most)s
"""
_OPEN = "slot.state = 'open' AND slot.reserved_for_id IS NULL"
_RESERVED = "slot.state = 'open' AND slot.reserved_for_id = %(me)s"
_EXPIRED = """
    slot.state = 'leased' AND slot.lease_expires_at < now() AND slot.reserved_for_id IS NULL
"""
_LEFT = f"""
SELECT campaign.id,
       (SELECT count(DISTINCT free.item_id)
          FROM (({_FREE.format(free=_OPEN)}) UNION ALL
                ({_FREE.format(free=_RESERVED)}) UNION ALL
                ({_FREE.format(free=_EXPIRED)})
                UNION ALL
                (SELECT held.item_id FROM feedback_slot AS held
                  WHERE held.campaign_id = campaign.id AND held.holder_id = %(me)s
                    AND held.state = 'leased')
               ) AS free)
  FROM unnest(%(campaigns)s::bigint[]) AS campaign(id)
"""


@dataclass(frozen=True)
class Progress:
    """One annotator's standing in one campaign."""

    judged: int
    judged_today: int
    left: int

    @property
    def more_left(self) -> bool:
        """Say whether ``left`` is only as far as was counted."""
        return self.left >= MOST_COUNTED


def progress(*, annotator: User, campaigns: Sequence[int]) -> dict[int, Progress]:
    """Return the annotator's progress by campaign id; two queries."""
    if not campaigns:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            _LEFT, {"me": annotator.pk, "campaigns": list(campaigns), "most": MOST_COUNTED}
        )
        left = {int(campaign): min(int(count), MOST_COUNTED) for campaign, count in cursor}
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    rows = (
        Judgement.objects.standing()
        .filter(annotator=annotator, campaign__in=campaigns)
        .values_list("campaign")
        .annotate(judged=Count("id"), judged_today=Count("id", filter=Q(created_at__gte=today)))
        .order_by()
    )
    done = {campaign: (judged, judged_today) for campaign, judged, judged_today in rows}
    return {
        campaign: Progress(*done.get(campaign, (0, 0)), left=left.get(campaign, 0))
        for campaign in campaigns
    }
