"""Fill a fresh database with what a run needs: `python kill_fill.py FOLDER`; prints JSON."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import django


def main(folder: Path) -> dict[str, object]:
    from accounts.models import Scope, User
    from accounts.services import create_project, create_token
    from feedback.importing import import_file
    from inference.artifacts import folder_digest
    from inference.models import BaseModel
    from inference.services import adopt_base
    from tests.inference.engine import tiny
    from training.models import Snapshot
    from training.snapshots import create_snapshot

    admin = User.objects.create_user("olga")
    project = create_project(name="Kills", by=admin)
    _, token = create_token(project=project, user=admin, name="test", scopes=list(Scope), days=1)
    base_folder = tiny.build_model(folder / "tiny")
    base = BaseModel.objects.create(
        name="tiny",
        source="made for this test",
        path=str(base_folder),
        digest=folder_digest(base_folder),
        licence="Apache-2.0",
        size_bytes=1,
        parameters=1,
    )
    rows = [
        {"prompt": f"Why {n}?", "chosen": f"Because {n}.", "rejected": f"No, and {n} times no."}
        for n in range(60)
    ]
    file = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())
    _, campaign = import_file(project=project, by=admin, file=file, filename="rows.jsonl")
    assert campaign is not None
    snapshot = create_snapshot(project=project, campaigns=[campaign], by=admin)
    deadline = time.monotonic() + 60
    while snapshot.state != Snapshot.State.READY:  # the worker builds it
        assert time.monotonic() < deadline, snapshot.reason
        time.sleep(0.1)
        snapshot.refresh_from_db()
    version = adopt_base(project=project, base=base)
    return {"token": token, "snapshot": snapshot.pk, "version": version.pk}


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    print(json.dumps(main(Path(sys.argv[1]))))
