"""Play one full round of Laurel from outside, over its real interfaces, and report on it.

    python -m config.demo [--once] [--preference module:function] [--method dpo|orpo]

Starts every process (or uses those that run), lets simulated annotators judge, trains, promotes,
evaluates, rolls back and promotes again while requests keep flowing. No Django in here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from accounts.processes import die_with_parent
from config import services, supervisor
from config.demo.prompts import PROMPTS
from feedback.simulation import Annotator

ROOT = Path(__file__).resolve().parents[3]
DEFAULT_PREFERENCE = "training.rules:concise"
SEED = 7
RESPONSES = 4
ANNOTATORS = 3
MAX_TOKENS = 64
TEMPERATURE = 0.9
# The side of a prompt follows from its own digest; this share holds out 16 of the 48.
HELDOUT = 0.3535
SAMPLES = 4
NOISE = 0.3
ARGUMENTS = {
    "epochs": 3,
    "batch_size": 2,
    "lora_r": 16,
    "lora_alpha": 32,
    "max_length": 256,
    "max_prompt_length": 128,
}
# ORPO learns the chosen text as well, so its preference term wants more weight than DPO's beta.
METHODS = {
    "dpo": {"learning_rate": 2e-4, "beta": 0.1},
    "orpo": {"learning_rate": 5e-4, "beta": 5.0},
}
DEFAULT_METHOD = "dpo"
TARGETS = {
    "dpo": {"reward_accuracy_after": 0.75, "win_rate_low": 0.65},
    "orpo": {"reward_accuracy_after": 0.5, "win_rate_low": 0.5},
}
ROLLBACK_MS = 1000.0


class DemoFailed(Exception):
    """A part of the round did not do what it should; the message says which and how."""


def say(text: str) -> None:
    print(text, flush=True)


class Progress:
    """Print a moving line on a terminal, and now and then a whole line elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.shown, self.at = title, total, -1, 0.0
        self.lock = threading.Lock()

    def show(self, done: int, note: str = "") -> None:
        """Say how far it is; ``note`` is added at the end."""
        with self.lock:
            now = time.monotonic()
            finished = done >= self.total > 0
            if done == self.shown or (not finished and now - self.at < self._pause()):
                return
            self.shown, self.at = done, now
            text = f"  {self.title}: {done} of {self.total}{'  ' + note if note else ''}"
            if sys.stdout.isatty():
                print(f"\r\x1b[K{text}", end="\n" if finished else "", flush=True)
            else:
                print(text, flush=True)

    def _pause(self) -> float:
        return 0.2 if sys.stdout.isatty() else 10.0


class Laurel:
    """The product as a program sees it: REST with a token."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=120
        )

    def get(self, path: str) -> Any:
        """Fetch, again and again while the web process restarts."""
        return self._send("GET", path, None, retry=httpx.TransportError)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send once; only a connection that never opened is tried again."""
        return self._send("POST", path, body, retry=httpx.ConnectError)

    def _send(self, method: str, path: str, body: Any, *, retry: type[httpx.TransportError]) -> Any:
        deadline = time.monotonic() + 90
        while True:
            try:
                response = self.http.request(method, path, json=body)
                break
            except retry:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        if response.is_error:
            raise DemoFailed(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return response.json() if response.content else None

    def all(self, path: str) -> list[dict[str, Any]]:
        """Fetch every page of a list."""
        rows: list[dict[str, Any]] = []
        following: str | None = path
        while following:
            page = self.get(following)
            rows += page["results"]
            following = page["next"]
        return rows

    def wait(
        self,
        path: str,
        *,
        busy: set[str],
        on_look: Callable[[dict[str, Any]], None] = lambda row: None,
        seconds: float = 1800,
    ) -> dict[str, Any]:
        """Look at an object until its state is not among ``busy``; return it."""
        deadline = time.monotonic() + seconds
        while True:
            row: dict[str, Any] = self.get(path)
            on_look(row)
            if row["state"] not in busy:
                return row
            if time.monotonic() > deadline:
                raise DemoFailed(f"{path} is still “{row['state']}” after {seconds:.0f} s.")
            time.sleep(0.5)


def main() -> int:
    """Play the round; return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop everything when done")
    parser.add_argument("--preference", default=DEFAULT_PREFERENCE, metavar="module:function")
    parser.add_argument("--method", default=DEFAULT_METHOD, choices=METHODS)
    options = parser.parse_args()
    preference = load_preference(options.preference)
    url = f"http://127.0.0.1:{os.environ.get('WEB_PORT', '8100')}"
    with everything_running(url, options.preference):
        try:
            report = play(url, preference, options.preference, options.method)
        except (DemoFailed, httpx.HTTPError, openai.OpenAIError) as error:
            say(f"\nThe demo failed: {error}")
            return 1
        target = services.var_dir() / "demo" / "report.json"
        target.write_text(json.dumps(report, indent=1) + "\n")
        failures = find_failures(report, options.preference)
        print_summary(report, url, target, failures)
        if failures:
            return 1
        if not options.once:
            say("\nLaurel keeps serving. Press Ctrl-C to stop it.")
            wait_for_signal()
    return 0


def load_preference(name: str) -> Callable[[str, str], float]:
    """Return the hidden preference: (prompt, response) to a number."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[str, str], float] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SystemExit(f"--preference {name}: {error}. Name it as module:function.") from None
    return found


@contextmanager
def everything_running(url: str, preference: str) -> Any:
    """Run all processes for the length of the block, unless they run already."""
    if (running := supervisor.running()) and running["ready"]:
        say(f"Laurel runs already at {url}; the demo uses it.")
        yield
        return
    say("Starting Postgres, Valkey, the web, the model server, the worker, the trainer, beat …")
    rules = {DEFAULT_PREFERENCE, preference}
    environment = os.environ | {"EVALUATION_RULES": ",".join(sorted(rules))}
    processes = subprocess.Popen(
        [sys.executable, "-m", "config.supervisor", "--quiet"],
        cwd=ROOT,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches us first; we stop it in order
        preexec_fn=die_with_parent(signal.SIGTERM),
    )
    try:
        deadline = time.monotonic() + 600
        while not ((running := supervisor.running()) and running["ready"]):
            if processes.poll() is not None:
                raise SystemExit(f"The processes did not start (exit {processes.returncode}).")
            if time.monotonic() > deadline:
                raise SystemExit("The processes were not ready within ten minutes.")
            time.sleep(0.5)
        yield
    finally:
        if processes.poll() is None:
            processes.send_signal(signal.SIGTERM)
            try:
                processes.wait(60)
            except subprocess.TimeoutExpired:
                processes.kill()


def wait_for_signal() -> None:
    """Return when Ctrl-C or SIGTERM comes."""
    came = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: came.set())
    came.wait()


def play(
    url: str, preference: Callable[[str, str], float], rule: str, method: str = DEFAULT_METHOD
) -> dict[str, Any]:
    """Play the whole round and return the report."""
    clock = Clock()
    logins = services.var_dir() / "demo" / "logins.json"
    subprocess.run([sys.executable, "manage.py", "demo_setup", str(logins)], cwd=ROOT, check=True)
    facts = json.loads(logins.read_text())
    admin = Laurel(url, facts["tokens"]["admin"])
    clock.lap("setup")

    prompts = admin.post("/api/prompts/", {"prompts": PROMPTS, "tags": ["demo"]})
    campaign = admin.post(
        "/api/campaigns/",
        {
            "name": "Everyday questions",
            "kind": "ranking",
            "prompts": [prompt["id"] for prompt in prompts],
            "sources": [
                {
                    "version": facts["base_version"],
                    "temperature": TEMPERATURE,
                    "max_tokens": MAX_TOKENS,
                }
            ],
            "judgements_per_item": ANNOTATORS,
            "responses_per_item": RESPONSES,
            "instructions": "Prefer the answer that helps most in the fewest words.",
            "seed": SEED,
        },
    )
    generating = Progress("prompts answered by the base", len(prompts))
    path = f"/api/campaigns/{campaign['id']}/"
    campaign = admin.wait(
        path, busy={"generating"}, on_look=lambda row: generating.show(row["generated"])
    )
    if campaign["state"] != "open":
        raise DemoFailed(f"The campaign is {campaign['state']}: {campaign['reason']}")
    clock.lap("generate")

    judgements = judge(url, facts, campaign, preference, admin)
    clock.lap("judge")

    snapshot = admin.post(
        "/api/snapshots/", {"campaigns": [campaign["id"]], "heldout_fraction": HELDOUT}
    )
    snapshot = admin.wait(f"/api/snapshots/{snapshot['id']}/", busy={"queued", "building"})
    if snapshot["state"] != "ready":
        raise DemoFailed(f"The snapshot failed: {snapshot['reason']}")
    run = train(admin, snapshot, method)
    clock.lap("train")

    promote_ms = timed(
        lambda: admin.post(f"/api/versions/{run['version']}/promote", {"why": "first training"})
    )
    evaluation = evaluate(admin, run, facts, snapshot, rule)
    clock.lap("evaluate")
    moves = move_under_traffic(url, facts, admin, run)
    rows = snapshot["manifest"]["rows"]
    measured = run["report"]["evaluation"]
    return {
        "project": facts["project"],
        "judgements": judgements,
        "snapshot": {
            "digest": snapshot["digest"],
            "pairs": rows["train"] + rows["heldout"],
            "heldout_pairs": rows["heldout"],
        },
        "run": {
            "method": run["method"],
            "steps": run["step"],
            "seconds": run["report"]["seconds"],
            "state": run["state"],
        },
        "reward_accuracy": {
            "before": measured["before"]["reward_accuracy"],
            "after": measured["after"]["reward_accuracy"],
        },
        "win_rate": evaluation["result"]["win_rate"],
        "mean_tokens": evaluation["result"]["mean_tokens"],
        "promote_ms": promote_ms,
        **moves,
        "seconds": clock.seconds(),
        "logins": {"password": facts["password"], "people": facts["people"]},
    }


class Clock:
    """Measure the parts of the round."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.monotonic()
        self.laps[name] = round(now - self.last, 1)
        self.last = now

    def seconds(self) -> dict[str, float]:
        """Return the parts and their total, up to now."""
        return {**self.laps, "total": round(time.monotonic() - self.started, 1)}


def judge(
    url: str,
    facts: dict[str, Any],
    campaign: dict[str, Any],
    preference: Callable[[str, str], float],
    admin: Laurel,
) -> dict[str, int]:
    """Let the annotators judge at once; compare what was acknowledged with what is stored."""
    judging = Progress("judgements", campaign["slots"])
    count = [0]

    def on_judged() -> None:
        with judging.lock:
            count[0] += 1
        judging.show(count[0])

    annotators = [
        Annotator(
            name=name,
            http=Laurel(url, facts["tokens"][name]).http,
            campaign=campaign["id"],
            preference=preference,
            noise=NOISE,
            seed=SEED,
        )
        for name in facts["people"]
        if name.startswith("annotator")
    ]
    with ThreadPoolExecutor(len(annotators)) as threads:
        for job in [threads.submit(annotator.work, on_judged) for annotator in annotators]:
            job.result()
    acknowledged = [key for annotator in annotators for key in annotator.acknowledged]
    stored = admin.all(f"/api/judgements/?campaign={campaign['id']}&limit=500")
    standing = [row for row in stored if row["retracted_at"] is None]
    keys = {row["client_id"] for row in standing}
    places = {(row["item"], row["annotator"]) for row in standing}
    return {
        "acknowledged": len(acknowledged),
        "stored": len(standing),
        "lost": len(set(acknowledged) - keys),
        "duplicated": len(standing) - len(places),
    }


def train(admin: Laurel, snapshot: dict[str, Any], method: str) -> dict[str, Any]:
    """Start a run and follow it to its end."""
    arguments = ARGUMENTS | METHODS[method]
    run = admin.post(
        "/api/runs/",
        {"snapshot": snapshot["id"], "method": method, "arguments": arguments, "seed": SEED},
    )
    training = Progress("training steps", 0)

    def show(row: dict[str, Any]) -> None:
        training.total = row["total_steps"]
        training.show(row["step"], row["phase"])

    run = admin.wait(
        f"/api/runs/{run['id']}/", busy={"queued", "running", "interrupted"}, on_look=show
    )
    if run["state"] != "succeeded":
        raise DemoFailed(f"The run {run['state']}: {run['reason']}")
    return dict(run)


def evaluate(
    admin: Laurel, run: dict[str, Any], facts: dict[str, Any], snapshot: dict[str, Any], rule: str
) -> dict[str, Any]:
    """Compare the new version with the base on the held-out prompts."""
    evaluation = admin.post(
        "/api/evaluations/",
        {
            "challenger": run["version"],
            "champion": facts["base_version"],
            "snapshot": snapshot["id"],
            "rule": rule,
            "samples": SAMPLES,
            "seed": SEED,
        },
    )
    total = snapshot["manifest"]["prompts"]["heldout"] * SAMPLES
    comparing = Progress("comparisons on held-out prompts", total)
    evaluation = admin.wait(
        f"/api/evaluations/{evaluation['id']}/",
        busy={"queued", "running"},
        on_look=lambda row: comparing.show(row["compared"]),
    )
    if evaluation["state"] != "done":
        raise DemoFailed(f"The evaluation failed: {evaluation['reason']}")
    return dict(evaluation)


def move_under_traffic(
    url: str, facts: dict[str, Any], admin: Laurel, run: dict[str, Any]
) -> dict[str, Any]:
    """Roll back and promote again while the stock openai client keeps asking production."""
    stop = threading.Event()
    served: list[str] = []
    failed: list[str] = []

    def ask() -> None:
        client = openai.OpenAI(
            base_url=f"{url}/v1", api_key=facts["tokens"]["admin"], max_retries=0, timeout=60
        )
        while not stop.is_set():
            try:
                answer = client.chat.completions.create(
                    model="production",
                    messages=[{"role": "user", "content": "Say hello."}],
                    max_tokens=8,
                )
                served.append(answer.model)
            except openai.OpenAIError as error:
                failed.append(repr(error))

    with ThreadPoolExecutor(2) as threads:
        askers = [threads.submit(ask) for _ in range(2)]
        try:
            wait_until(lambda: len(served) >= 4)
            rollback_ms = timed(lambda: admin.post("/api/rollback", {"why": "a rehearsal"}))
            before = len(served)
            wait_until(lambda: len(served) >= before + 4)
            again_ms = timed(
                lambda: admin.post(f"/api/versions/{run['version']}/promote", {"why": "and back"})
            )
            before = len(served)
            wait_until(lambda: len(served) >= before + 4)
        finally:
            stop.set()
        for asker in askers:
            asker.result()
    for problem in failed[:3]:
        say(f"  a request failed: {problem}")
    return {
        "rollback_ms": rollback_ms,
        "promote_again_ms": again_ms,
        "requests_during_moves": len(served) + len(failed),
        "versions_served": sorted(set(served)),
        "failed_requests": len(failed),
    }


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for the condition or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed("The deployed model did not answer in time.")
        time.sleep(0.05)


def timed(action: Callable[[], Any]) -> float:
    """Return how many milliseconds the action takes."""
    started = time.monotonic()
    action()
    return round((time.monotonic() - started) * 1000, 1)


def find_failures(report: dict[str, Any], preference: str) -> list[str]:
    """Return a sentence for each target that was missed; the measures of quality hold for ours."""
    failures = []
    judgements = report["judgements"]
    for name in ("lost", "duplicated"):
        if judgements[name]:
            failures.append(f"{judgements[name]} judgements were {name}.")
    if judgements["acknowledged"] != judgements["stored"]:
        failures.append("Not as many judgements are stored as were acknowledged.")
    if report["failed_requests"]:
        failures.append(f"{report['failed_requests']} requests failed during the moves.")
    if report["rollback_ms"] > ROLLBACK_MS:
        failures.append(f"The roll-back took {report['rollback_ms']} ms.")
    if preference == DEFAULT_PREFERENCE:
        accuracy, low = report["reward_accuracy"]["after"], report["win_rate"]["low"]
        targets = TARGETS[report["run"]["method"]]
        if not accuracy >= targets["reward_accuracy_after"] or math.isnan(accuracy):
            failures.append(f"Reward accuracy on held-out pairs is only {accuracy:.3f}.")
        if not low >= targets["win_rate_low"]:
            failures.append(f"The win rate's lower bound is only {low:.3f}.")
    return failures


def print_summary(report: dict[str, Any], url: str, target: Path, failures: list[str]) -> None:
    """Print what happened as a short table, then where to look and how to log in."""
    judgements, win, run = report["judgements"], report["win_rate"], report["run"]
    accuracy, seconds = report["reward_accuracy"], report["seconds"]
    rows = [
        (
            "Judgements",
            f"{judgements['stored']} stored of {judgements['acknowledged']} acknowledged, "
            f"{judgements['lost']} lost, {judgements['duplicated']} doubled",
        ),
        (
            "Snapshot",
            f"{report['snapshot']['pairs']} pairs, {report['snapshot']['heldout_pairs']} held out,"
            f" {report['snapshot']['digest'][:12]}",
        ),
        ("Run", f"{run['method']}, {run['steps']} steps in {run['seconds']:.0f} s, {run['state']}"),
        (
            "Reward accuracy",
            f"{accuracy['before']:.2f} → {accuracy['after']:.2f} on held-out pairs",
        ),
        (
            "Win rate",
            f"{win['value']:.2f} ({win['low']:.2f}–{win['high']:.2f}, n={win['n']}) over the base",
        ),
        (
            "Moves",
            f"promoted in {report['promote_ms']:.0f} ms, rolled back in "
            f"{report['rollback_ms']:.0f} ms, {report['failed_requests']} of "
            f"{report['requests_during_moves']} requests failed",
        ),
        ("Seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())),
        ("Pages", f"{url}/p/{report['project']}/"),
        ("REST", f"{url}/api/docs/ and {url}/v1"),
        (
            "Log-ins",
            f"{', '.join(report['logins']['people'].values())} "
            f"with password {report['logins']['password']}",
        ),
        ("Report", str(target)),
    ]
    say("")
    for title, text in rows:
        say(f"  {title:<16} {text}")
    for failure in failures:
        say(f"  MISSED           {failure}")


if __name__ == "__main__":
    sys.exit(main())
