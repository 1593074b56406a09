"""Judgements per second of the whole web set-up, over real HTTP on this machine.

    python -m benchmarks.collection [--json path] [--quick]

Starts a Postgres and a Valkey of its own in a temporary folder, the web process with the very
command of the supervisor, and the annotators in a separate process without think time. Each turn
is one request that submits and brings the next task; every tenth turn is two requests, which gives
``next_ms``. Items are about 2 kB. A row ends after ``SECONDS``; when a campaign is used up, the
annotators move on to a fresh one of the same size.

CPU time is that of the web and database processes, from /proc. The load average tells how busy
neighbours made the machine: figures taken beside other work are lower bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from accounts.processes import die_with_parent, port_is_free, wait_until
from config import services
from config.supervisor import Program, laurel

ROOT = Path(__file__).resolve().parent.parent
SECONDS, QUICK_SECONDS = 12.0, 4.0
ITEMS, MANY_ITEMS = 2_000, 1_000_000
ANNOTATORS = (1, 8, 32, 128)
APART = 10
# So many judgements a second would be needed to run out of campaigns.
FASTEST = 2_500

# One statement makes prompts, items, responses and slots; foreign keys hold by construction.
_FILL = """
WITH campaign AS (
  INSERT INTO feedback_campaign (project_id, name, kind, instructions, state, reason,
      judgements_per_item, responses_per_item, sources, seed, generated, to_generate,
      touched_at, created_at)
  VALUES (%(project)s, %(name)s, 'pairwise', '', 'open', '', %(overlap)s, 2, '[]', 0,
      %(items)s, %(items)s, now(), now()) RETURNING id
), prompt AS (
  INSERT INTO feedback_prompt (project_id, messages, digest, tags, created_at)
  SELECT %(project)s, jsonb_build_array(jsonb_build_object('role', 'user', 'content',
             'Question ' || n || ': ' || repeat('why is it so? ', 35))),
         md5(%(name)s || n) || md5(n || %(name)s), '{}', now()
    FROM generate_series(1, %(items)s) AS n RETURNING id
), item AS (
  INSERT INTO feedback_item (campaign_id, prompt_id, created_at)
  SELECT campaign.id, prompt.id, now() FROM campaign, prompt RETURNING id, campaign_id
), response AS (
  INSERT INTO feedback_response (item_id, position, text, source)
  SELECT item.id, position, 'Response ' || item.id || ': ' || repeat('because of this, ', 43), ''
    FROM item, generate_series(0, 1) AS position
)
INSERT INTO feedback_slot (campaign_id, item_id, index, shuffle, "order", state, token)
SELECT item.campaign_id, item.id, index, (random() * 4294967295 - 2147483648)::int,
       CASE index %% 2 WHEN 0 THEN '{0,1}'::smallint[] ELSE '{1,0}' END, 'open', 0
  FROM item, generate_series(0, %(overlap)s - 1) AS index
RETURNING campaign_id
"""


def main() -> None:
    """Measure every row, print the table, and write the file when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collection", description=__doc__)
    parser.add_argument("--json", type=Path, help="write {'runs': [...]} there")
    parser.add_argument("--quick", action="store_true", help="two short rows, to see that it runs")
    options = parser.parse_args()
    rows = [(n, ITEMS, overlap) for overlap in (1, 3) for n in ANNOTATORS]
    rows.append((32, MANY_ITEMS, 1))
    if options.quick:
        rows = [(8, ITEMS, 1), (32, ITEMS, 3)]
    for name in ("DATABASE_URL", "REDIS_URL", "DATABASE_URL_FILE", "REDIS_URL_FILE"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="laurel-bench-") as folder:
        os.chmod(folder, 0o755)  # under root, Postgres runs as another user
        var = Path(folder)
        try:
            runs = measure(var, rows, QUICK_SECONDS if options.quick else SECONDS)
        finally:
            services.remove(var)
    if options.json:
        options.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def measure(var: Path, rows: list[tuple[int, int, int]], seconds: float) -> list[dict[str, Any]]:
    """Run the rows (annotators, items, overlap) one after the other in one set-up."""
    port = next(port for port in range(8170, 8270) if port_is_free(port))
    os.environ.update(LAUREL_VAR=str(var), ENGINE_URL="http://127.0.0.1:9", LOG_LEVEL="WARNING")
    os.environ.update({key.upper(): url for key, url in services.start(var, owned=True).items()})
    tiers, steps, environment = laurel(var, port, port)
    for step in steps:
        subprocess.run(step.command, env=dict(environment()), cwd=ROOT, check=True)
    tokens, project = make_annotators(max(n for n, _, _ in rows))
    runs = []
    print(HEAD)
    for annotators, items, overlap in rows:
        campaigns = fill(project, items=items, overlap=overlap, seconds=seconds)
        # A server of its own for each row: none is helped or hurt by the row before.
        with web_server(tiers, environment(), port) as server:
            run = measure_row(server, port, tokens[:annotators], campaigns, seconds, var)
        runs.append({"annotators": annotators, "items": items, "overlap": overlap, **run})
        print(line(runs[-1]), flush=True)
    return runs


def make_annotators(count: int) -> tuple[list[str], int]:
    """Return the annotators' token texts and their project's id."""
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    django.setup()
    from accounts.models import Role, Scope, User
    from accounts.services import create_project, create_token, set_member

    users = User.objects.bulk_create(User(username=f"annotator-{n}") for n in range(count))
    project = create_project(name="Bench", by=users[0])
    texts = []
    for user in users:
        if user != users[0]:
            set_member(project=project, user=user, role=Role.ANNOTATOR)
        scopes = [Scope.JUDGE]
        _, text = create_token(project=project, user=user, name="b", scopes=scopes, days=1)
        texts.append(text)
    return texts, project.pk


def fill(project: int, *, items: int, overlap: int, seconds: float) -> list[int]:
    """Make enough campaigns of this size for the row; return their ids."""
    from django.db import connection

    campaigns = []
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("SET session_replication_role = replica")
        for number in range(max(1, round(FASTEST * seconds / (items * overlap)))):
            name = f"{items} × {overlap}, {number}, {time.monotonic_ns()}"
            values = {"project": project, "name": name, "items": items, "overlap": overlap}
            cursor.execute(_FILL, values)
            (campaign,) = cursor.fetchone() or (0,)
            campaigns.append(int(campaign))
        cursor.execute("SET session_replication_role = origin")
        cursor.execute("SET synchronous_commit = on")
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")
    connection.close()
    return campaigns


@contextlib.contextmanager
def web_server(
    tiers: list[list[Program]], environment: Any, port: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the web process exactly as the supervisor does, until the end of the block."""
    web = next(program for tier in tiers for program in tier if program.name == "web")
    process = subprocess.Popen(
        web.command,
        env=dict(environment),
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    try:
        assert web.probe is not None
        if not wait_until(web.probe, 60):
            raise SystemExit(f"The web process does not answer on port {port}.")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measure_row(
    server: subprocess.Popen[bytes],
    port: int,
    tokens: list[str],
    campaigns: list[int],
    seconds: float,
    var: Path,
) -> dict[str, Any]:
    """Let the annotators work; return their figures and what the database says of the work."""
    warm_up = {"port": port, "tokens": tokens, "campaigns": campaigns, "apart": APART}
    annotate({**warm_up, "seconds": 1.0})
    before = judged(campaigns)
    database = services.Postgres(var).pid()
    cpu = cpu_seconds(server.pid) + cpu_seconds(database)
    seen = annotate({**warm_up, "seconds": seconds})
    cpu = cpu_seconds(server.pid) + cpu_seconds(database) - cpu
    stored = judged(campaigns) - before
    # A request at the deadline that nobody read the answer of cannot be: each is waited for.
    lost = len(set(seen["acknowledged"]) - stored)
    for reason, times in seen["errors"].items():
        print(f"  {times} × {reason}", file=sys.stderr)
    return {
        "judgements_per_second": round(len(seen["acknowledged"]) / seen["seconds"], 1),
        "next_ms": percentiles(seen["next_ms"]),
        "submit_ms": percentiles(seen["submit_ms"]),
        "errors": sum(seen["errors"].values()),
        "double_handouts": seen["double_handouts"],
        "over_filled": over_filled(campaigns),
        "lost": lost,
        "cpu_ms_per_judgement": round(1000 * cpu / max(1, len(seen["acknowledged"])), 2),
        "judgements": len(seen["acknowledged"]),
        "client_cpu_ms_per_judgement": round(
            1000 * seen["cpu"] / max(1, len(seen["acknowledged"])), 2
        ),
        "load_average": round(os.getloadavg()[0], 1),
    }


def annotate(orders: dict[str, Any]) -> dict[str, Any]:
    """Run the client process; return what it saw and its CPU seconds."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.collection_client"],
        input=json.dumps(orders).encode(),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    after = os.times()
    seen: dict[str, Any] = json.loads(done.stdout)
    used = after.children_user - before.children_user
    seen["cpu"] = used + after.children_system - before.children_system
    return seen


def judged(campaigns: list[int]) -> set[str]:
    """Return the client ids of every judgement there is."""
    from django.db import connection

    from feedback.models import Judgement

    stored = Judgement.objects.filter(campaign__in=campaigns).values_list("client_id", flat=True)
    found = {str(client_id) for client_id in stored}
    connection.close()
    return found


def over_filled(campaigns: list[int]) -> int:
    """Return how many items have more standing judgements than their campaign wants."""
    from django.db import connection
    from django.db.models import Count, F

    from feedback.models import Judgement

    counts = Judgement.objects.standing().filter(campaign__in=campaigns).order_by()
    counts = counts.values("item").annotate(n=Count("pk"))
    found = counts.filter(n__gt=F("campaign__judgements_per_item")).count()
    connection.close()
    return found


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time of a process, its descendants, and those it has outlived."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    if not milliseconds:
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    values = np.percentile(milliseconds, [50, 95, 99])
    return {name: round(float(v), 1) for name, v in zip(("p50", "p95", "p99"), values, strict=True)}


HEAD = (
    f"{'annotators':>10} {'items':>9} {'overlap':>7} {'judged/s':>8} {'next p50/p95/p99 ms':>21} "
    f"{'submit p50/p95/p99 ms':>21} {'CPU ms':>6} {'errors':>6} {'doubled':>7} {'over':>4} "
    f"{'lost':>4} {'load':>5}"
)


def line(run: dict[str, Any]) -> str:
    """Return a run as a line of the table."""
    following, submit = ("/".join(f"{v:g}" for v in run[key].values()) for key in TIMES)
    return (
        f"{run['annotators']:>10} {run['items']:>9,} {run['overlap']:>7} "
        f"{run['judgements_per_second']:>8} {following:>21} {submit:>21} "
        f"{run['cpu_ms_per_judgement']:>6} {run['errors']:>6} {run['double_handouts']:>7} "
        f"{run['over_filled']:>4} {run['lost']:>4} {run['load_average']:>5}"
    )


TIMES = ("next_ms", "submit_ms")

if __name__ == "__main__":
    main()
