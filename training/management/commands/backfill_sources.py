from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from training import lineage


class Command(BaseCommand):
    """Count who gave what to snapshots that were built before that was counted."""

    help = "Count each annotator's part in snapshots that have no counts; harmless to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        counted, unreadable = lineage.backfill_sources()
        self.stdout.write(f"Counted {len(counted)} snapshots.")
        for snapshot_id, why in unreadable.items():
            self.stderr.write(f"Snapshot {snapshot_id} cannot be read: {why}")
