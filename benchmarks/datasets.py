"""Pairs per second from judgements to a snapshot, memory and bytes, at growing sizes.

    python -m benchmarks.datasets [--json path] [--quick]

Starts a Postgres of its own in a temporary folder and fills it by SQL with R rankings of four
responses, three rankings to a prompt; a prompt has about 200 characters, a response about 400. Each
size is built twice, each time by a process of its own, whose peak memory is told: the digests must
be equal. ``seconds`` and what follows from it are the faster build's. The last row imports
dialogues as in HH. The load average tells how busy neighbours made the machine;
``cpu_seconds`` is this process's own work, without Postgres and without waiting for a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import services

ROOT = Path(__file__).resolve().parent.parent
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (3_000,)
PER_PROMPT = 3
IMPORTED, QUICK_IMPORTED = 20_000, 2_000

# Foreign keys hold by construction; they are not checked row by row (session_replication_role).
_FILL = """
SET session_replication_role = replica;
INSERT INTO feedback_prompt (project_id, messages, digest, tags, created_at)
SELECT %(project)s, jsonb_build_array(jsonb_build_object('role', 'user', 'content', text)),
       encode(sha256(convert_to('[{"content":"' || text || '","role":"user"}]', 'UTF8')), 'hex'),
       '{}', now()
  FROM (SELECT 'Question ' || n || ' of %(campaign)s: ' || repeat('why is that so, ', 12) AS text
          FROM generate_series(1, %(prompts)s) AS n) AS made;
INSERT INTO feedback_item (campaign_id, prompt_id, created_at)
SELECT %(campaign)s, id, now() FROM feedback_prompt
 WHERE project_id = %(project)s ORDER BY id DESC LIMIT %(prompts)s;
INSERT INTO feedback_response (item_id, position, text, source)
SELECT item.id, position, 'Answer ' || position || ' to ' || item.id || ': '
                          || repeat('because it is as it is, ', 16), ''
  FROM feedback_item AS item, generate_series(0, 3) AS position
 WHERE item.campaign_id = %(campaign)s;
INSERT INTO feedback_slot (campaign_id, item_id, index, shuffle, "order", state, holder_id, token)
SELECT %(campaign)s, item.id, index, 0, '{0,1,2,3}', 'filled', %(first_user)s + index, 1
  FROM feedback_item AS item, generate_series(0, %(overlap)s - 1) AS index
 WHERE item.campaign_id = %(campaign)s;
ANALYZE;
WITH response AS (
  SELECT item_id, array_agg(response.id ORDER BY position) AS ids
    FROM feedback_response AS response JOIN feedback_item AS item ON item.id = item_id
   WHERE campaign_id = %(campaign)s GROUP BY item_id
)
INSERT INTO feedback_judgement (client_id, slot_id, item_id, campaign_id, annotator_id, ranking,
       both_bad, comment, shown, created_at, retracted_why)
SELECT md5('judgement ' || slot.id)::uuid, slot.id, slot.item_id, %(campaign)s, slot.holder_id,
       jsonb_build_array(jsonb_build_array(ids[1 + (slot.id) %% 4]),
                         jsonb_build_array(ids[1 + (slot.id + 1) %% 4]),
                         jsonb_build_array(ids[1 + (slot.id + 3) %% 4]),
                         jsonb_build_array(ids[1 + (slot.id + 2) %% 4])),
       false, '', ids, now(), ''
  FROM feedback_slot AS slot JOIN response ON response.item_id = slot.item_id
 WHERE slot.campaign_id = %(campaign)s;
SET session_replication_role = origin;
"""


def main() -> None:
    """Measure every size, print the table, and write the file when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datasets", description=__doc__)
    parser.add_argument("--json", type=Path, help="write {'runs': [...]} there")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--sizes", type=int, nargs="+", help="other numbers of rankings")
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build is not None:
        print(json.dumps(build(options.build)))
        return
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    runs: list[dict[str, Any]] = []
    with own_database():
        for rankings in sizes:
            report(measure(rankings), runs)
        report(measure_import(QUICK_IMPORTED if options.quick else IMPORTED), runs)
    if options.json:
        options.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def report(row: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    row["load_average"] = round(os.getloadavg()[0], 1)
    runs.append(row)
    print("  ".join(f"{name} {value:,}" if isinstance(value, int | float) else f"{name} {value}"
                    for name, value in row.items()), flush=True)  # fmt: skip


@contextlib.contextmanager
def own_database() -> Iterator[None]:
    """Run a fresh server in a temporary folder and set Django up on it."""
    var = Path(tempfile.mkdtemp(prefix="laurel-datasets-"))
    os.environ["LAUREL_VAR"] = str(var)
    try:
        urls = services.start(var, durable=False, owned=True)
        os.environ.update({name.upper(): url for name, url in urls.items()})
        setup_django()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield
    finally:
        services.remove(var)
        shutil.rmtree(var, ignore_errors=True)


def setup_django() -> None:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()


def measure(rankings: int) -> dict[str, Any]:
    """Fill a campaign, build its snapshot twice, compare."""
    from django.db import connection

    from accounts.models import User
    from accounts.services import create_project
    from feedback.models import Campaign
    from training.models import Snapshot

    users = [User.objects.create(username=f"u{rankings}-{n}") for n in range(PER_PROMPT)]
    project = create_project(name=f"Benchmark {rankings}", by=users[0])
    prompts = -(-rankings // PER_PROMPT)
    campaign = Campaign.objects.create(
        project=project, name="Benchmark", state=Campaign.State.CLOSED, to_generate=prompts
    )
    begin = time.perf_counter()
    with connection.cursor() as cursor:
        values = {
            "project": project.pk,
            "campaign": campaign.pk,
            "prompts": prompts,
            "overlap": PER_PROMPT,
            "first_user": users[0].pk,
        }
        for statement in _FILL.split(";\n"):
            if statement.strip():
                cursor.execute(statement, values if "%(" in statement else None)
        cursor.execute("VACUUM ANALYZE")
    filled = time.perf_counter() - begin
    builds = []
    for _ in range(2):
        snapshot = Snapshot.objects.create(project=project)
        snapshot.campaigns.set([campaign])
        command = [sys.executable, "-m", "benchmarks.datasets", "--build", str(snapshot.pk)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        builds.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = builds
    if first["digest"] != second["digest"]:
        raise SystemExit(f"Two builds of {rankings} rankings differ: {first} {second}")
    best = min(builds, key=lambda one: float(one["seconds"]))
    return {
        "rankings": first["judgements"],
        "rows_per_second": round(best["judgements"] / best["seconds"]),
        "pairs_per_second": round(best["pairs"] / best["seconds"]),
        "seconds": round(best["seconds"], 2),
        "peak_rss_mb": max(one["peak_rss_mb"] for one in builds),
        "bytes": best["bytes"],
        "digest": first["digest"],
        "digest_again": second["digest"],
        "pairs": best["pairs"],
        "cpu_seconds": round(best["cpu_seconds"], 2),
        "fill_seconds": round(filled, 1),
    }


def build(snapshot_id: int) -> dict[str, Any]:
    """Build one snapshot in this process, whose peak memory is then its own."""
    setup_django()
    from training.snapshots import build_snapshot

    begin, used = time.perf_counter(), time.process_time()
    snapshot = build_snapshot(snapshot_id=snapshot_id)
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - used,
        "judgements": snapshot.manifest["ledger"]["judgements"],
        "pairs": snapshot.manifest["ledger"]["pairs"],
        "digest": snapshot.digest,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "bytes": sum(file.stat().st_size for file in snapshot.folder.iterdir()),
    }


def measure_import(rows: int) -> dict[str, Any]:
    """Import dialogues as in HH, each about 1 kB."""
    from accounts.models import Project
    from feedback.importing import import_file

    project = Project.objects.order_by("-pk")[0]
    body = "so it is and so it was, " * 10
    lines = (
        json.dumps(
            {
                side: f"\n\nHuman: Why {n}? {body}\n\nAssistant: {side} because {body}"
                for side in ("chosen", "rejected")
            }
        )
        for n in range(rows)
    )
    file = io.BytesIO("\n".join(lines).encode())
    begin, used = time.perf_counter(), time.process_time()
    report, _ = import_file(project=project, by=None, file=file, filename="hh.jsonl")
    seconds = time.perf_counter() - begin
    return {
        "imported": report.added,
        "rows_per_second": round(report.added / seconds),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
    }


if __name__ == "__main__":
    main()
