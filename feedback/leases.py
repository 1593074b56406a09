"""Who gets a task, and until when: SQL that both kinds of hand-out share.

A person's lease, which runs out by itself; work that a worker holds is ``training.leases``.
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

# A row where this annotator may take nothing in this campaign: they are paused, or have not
# confirmed the newest code book.
BARRED = """
SELECT 1 FROM feedback_pause
 WHERE campaign_id = %(campaign)s AND annotator_id = %(me)s AND ended_at IS NULL
UNION ALL
SELECT 1
  FROM (SELECT id, to_confirm FROM feedback_codebook
         WHERE campaign_id = %(campaign)s ORDER BY number DESC LIMIT 1) AS book
 WHERE book.to_confirm AND NOT EXISTS (
   SELECT 1 FROM feedback_codebookconfirmation
    WHERE code_book_id = book.id AND annotator_id = %(me)s)
"""


def lease_end() -> Combinable:
    """Return when a lease that is given now runs out, by the database's clock."""
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)
