"""Rounds: one action trains several methods and settings on one snapshot and ranks the outcomes.

A round has no state of its own: it follows from its runs, so a restart loses nothing. With
sequential halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) every run gets a small budget of
steps, the better half goes on from its checkpoints with twice as many, until one is left.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from accounts.errors import Conflict, ProductError
from accounts.models import User
from accounts.services import audit
from feedback.quality import Share
from inference.models import Version
from training import runs
from training.engine.arguments import METHODS, argument_schema
from training.models import Round, Run, Snapshot

MAX_RUNS = 32
PREFERENCE_METHODS = ("reward", "dpo", "orpo")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a round to be: a method and its arguments."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line of a round's table; what a run has not reached yet is None."""

    run: Run
    rank: int | None
    accuracy: Share | None
    seconds: float | None
    peak_memory_mb: float | None
    saved_bytes: int | None
    trainable_share: float | None
    win_rate: dict[str, Any] | None
    differs: dict[str, Any]
    hardware: str


def expand(
    methods: Sequence[str],
    *,
    arguments: dict[str, Any] | None = None,
    grid: dict[str, list[Any]] | None = None,
) -> list[Entry]:
    """Return every method with every combination of the grid's values.

    A value for an argument that a method does not have leaves that method as it is.
    """
    arguments, grid = arguments or {}, grid or {}
    if not methods:
        raise ProductError("Choose at least one method.")
    if empty := [name for name, values in grid.items() if not values]:
        raise ProductError(f"The grid has no value for {empty[0]}: list what to try, or drop it.")
    for method in methods:
        if method not in METHODS:
            raise ProductError(f"There is no method {method}: choose among {', '.join(METHODS)}.")
    _refuse_unknown({*arguments, *grid}, methods)
    entries: list[Entry] = []
    for method in methods:
        mine, fixed = _of(method, grid), _of(method, arguments)
        for values in itertools.product(*mine.values()):
            chosen = dict(zip(mine, values, strict=True))
            entries.append(Entry(method=method, arguments=fixed | chosen))
    return entries


def _names(method: str) -> set[str]:
    return {row["name"] for row in argument_schema(method)}


def _of(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that a method has."""
    known = _names(method)
    return {name: value for name, value in given.items() if name in known}


def _refuse_unknown(given: set[str], methods: Sequence[str]) -> None:
    """Raise ProductError for a name that none of the methods has: it would change nothing."""
    known = set().union(*map(_names, methods))
    for name in sorted(given - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ProductError(f"None of these methods has an argument {name}.{hint}")


def suite(arguments: dict[str, Any] | None = None) -> list[Entry]:
    """Return the suite: the ways to tune a domain set side by side, as far as they exist here.

    ``arguments`` are shared by all, such as ``epochs``; what a way is about stands over them.
    """
    arguments = arguments or {}
    tuning = next(row for row in argument_schema("sft") if row["name"] == "tuning")
    ways = [
        Entry(method="sft", arguments={"tuning": way}) for way in tuning["choices"] if way != "full"
    ]
    if "full" in tuning["choices"]:
        # Whole weights bear about a tenth of a LoRA's rate.
        ways.append(Entry(method="sft", arguments={"tuning": "full", "learning_rate": 2e-5}))
    ways += [Entry(method="dpo", arguments={}), Entry(method="orpo", arguments={})]
    _refuse_unknown(set(arguments), [entry.method for entry in ways])
    return [
        Entry(method=entry.method, arguments=_of(entry.method, arguments) | entry.arguments)
        for entry in ways
    ]


@transaction.atomic
def start_round(
    *,
    snapshot: Snapshot,
    start_version: Version,
    entries: Sequence[Entry],
    by: User | None,
    name: str = "",
    seed: int = 0,
    first_steps: int = 0,
) -> Round:
    """Queue all entries, or none when one of them is refused.

    ``first_steps`` above 0 halves: that many steps for each, then the better half goes on.
    """
    if not entries:
        raise ProductError("Choose at least one method.")
    if len(entries) > MAX_RUNS:
        raise ProductError(f"These are {len(entries)} runs; {MAX_RUNS} are the most in a round.")
    if first_steps and len(entries) < 2:
        raise ProductError("Halving needs at least two runs to choose from.")
    made = Round(
        project=snapshot.project,
        snapshot=snapshot,
        start_version=start_version,
        name=name,
        seed=seed,
        first_steps=first_steps,
        created_by=by,
    )
    made.full_clean()
    made.save()
    for entry in entries:
        limit = {"max_steps": first_steps} if first_steps else {}
        try:
            run = runs.start_run(
                snapshot=snapshot,
                start_version=start_version,
                method=entry.method,
                arguments=entry.arguments | limit,
                seed=seed,
                by=by,
            )
        except ProductError as error:
            raise ProductError(f"{entry.method}: {error.message}", **error.extra) from error
        Run.objects.filter(pk=run.pk).update(round=made)
    audit(project=made.project, by=by, action="round.start", target=f"round {made.pk}")
    return made


def cancel_round(*, round: Round, by: User | None) -> None:
    """Cancel every run of a round that has not ended; no further ones begin."""
    first = Round.objects.filter(pk=round.pk, cancelled=False).update(cancelled=True)
    # Only now: until then a next rung could begin.
    live = list(round.runs.live())
    if not first or not (live or round.first_steps):
        raise Conflict("This round has already ended.")
    for run in live:
        try:
            runs.cancel_run(run=run, by=by)
        except Conflict:
            continue  # it ended meanwhile
    audit(project=round.project, by=by, action="round.cancel", target=f"round {round.pk}")


def advance_rounds() -> int:
    """Begin the next rung of every halving whose last one has ended; return how many began."""
    waiting = Round.objects.filter(first_steps__gt=0, cancelled=False, complete=False)
    return sum(_advance(pk) for pk in waiting.values_list("pk", flat=True))


@transaction.atomic
def _advance(round_id: int) -> bool:
    round = Round.objects.select_for_update().get(pk=round_id)
    last = round.last_rung
    rung = list(round.runs.filter(rung=last).select_related("snapshot", "start_version__base"))
    if round.cancelled or round.complete or any(run.is_live for run in rung):
        return False
    ranked = [row.run for row in outcomes(round) if row.run.rung == last and row.rank]
    kept = ranked[: -(-len(rung) // 2)]
    if len(rung) <= 1 or not kept:
        Round.objects.filter(pk=round.pk).update(complete=True)
        return False
    for run in kept:
        steps = round.first_steps * 2 ** (last + 1)
        follower = runs.start_run(
            snapshot=run.snapshot,
            start_version=run.start_version,
            method=run.method,
            arguments=run.arguments | {"max_steps": steps},
            seed=run.seed,
            by=round.created_by,
        )
        Run.objects.filter(pk=follower.pk).update(round=round, rung=last + 1, continues=run)
    return True


def outcomes(round: Round) -> list[Outcome]:
    """Return the round's runs, those of the last rung first, the best of each first."""
    found = round.runs.select_related("version", "start_version__base", "continues")
    rows = list(found.prefetch_related("version__evaluations"))
    common = _common(rows)
    lines = [(run, _accuracy(run)) for run in rows]
    lines.sort(key=lambda line: (-line[0].rung, -(line[1].value if line[1] else -1), line[0].pk))
    return [
        Outcome(
            run=run,
            rank=place if accuracy else None,
            accuracy=accuracy,
            seconds=run.report.get("seconds"),
            peak_memory_mb=run.report.get("peak_memory_mb"),
            saved_bytes=_saved_bytes(run),
            trainable_share=run.report.get("trainable_share"),
            win_rate=_win_rate(run),
            differs={name: value for name, value in run.arguments.items() if name not in common},
            hardware=run.report.get("hardware", ""),
        )
        for place, (run, accuracy) in enumerate(lines, 1)
    ]


def _common(rows: Sequence[Run]) -> dict[str, Any]:
    """Return the arguments that are the same wherever a run of the round has them."""
    seen: dict[str, list[Any]] = {}
    for run in rows:
        for name, value in run.arguments.items():
            seen.setdefault(name, []).append(value)
    return {
        name: values[0] for name, values in seen.items() if values.count(values[0]) == len(values)
    }


def _accuracy(run: Run) -> Share | None:
    evaluation = run.report.get("evaluation") or {}
    after = evaluation.get("after")
    if run.state != Run.State.SUCCEEDED or not after:
        return None
    value = after["reward_accuracy"]
    low, high = (after.get(f"reward_accuracy_{end}", value) for end in ("low", "high"))
    return Share(value=value, low=low, high=high, n=evaluation.get("pairs", 0))


def _saved_bytes(run: Run) -> int | None:
    if run.version is None:
        return None
    try:
        return sum(path.stat().st_size for path in run.version.folder.glob("*.safetensors"))
    except OSError:
        return None


def _win_rate(run: Run) -> dict[str, Any] | None:
    if run.version is None:
        return None
    done = (one.result.get("win_rate") for one in run.version.evaluations.all())
    return next((rate for rate in done if rate), None)
