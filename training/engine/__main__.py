"""python -m training.engine RUN_DIR, or: prove RUN_DIR, or: perplexity RUN_DIR [TEXT_FILE].

Exit codes: 0 done, 1 crashed, 2 bad input, 3 cancelled, 4 not proved, 5 paused.
With several processes: accelerate launch --num_processes N -m training.engine RUN_DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import traceback
from pathlib import Path

# Before torch comes in: no network, and no spinning threads on a machine that others use too.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from training.engine.errors import (
    CANCELLED,
    CRASHED,
    NOT_PROVED,
    PAUSED,
    Cancelled,
    Paused,
    RunError,
    is_out_of_memory,
)
from training.engine.events import EventLog
from training.engine.rundir import only_one, read_run
from training.engine.trackers import open_trackers


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="training.engine", description=__doc__)
    parser.add_argument("words", nargs="+", metavar="[prove|perplexity] RUN_DIR")
    words = parser.parse_args(arguments).words
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "WARNING"), stream=sys.stderr)
    if len(words) == 2 and words[0] == "prove":
        return prove_command(Path(words[1]).absolute())
    if len(words) in (2, 3) and words[0] == "perplexity":
        return perplexity_command(Path(words[1]).absolute(), *map(Path, words[2:]))
    if len(words) != 1:
        parser.error("give one run directory")
    return train_command(Path(words[0]).absolute())


def train_command(directory: Path) -> int:
    if not directory.is_dir():
        print(f"{directory} is not a directory: give the directory of a run.", file=sys.stderr)
        return 2
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one writes
    events = EventLog(directory / "events.jsonl" if first else Path(os.devnull))
    try:
        with only_one(directory) if first else contextlib.nullcontext():
            run = read_run(directory)
            from training.engine.stopping import Stop
            from training.engine.team import Team
            from training.engine.train import train

            team = Team()
            events.trackers = open_trackers(run) if first else []
            train(run, events, Stop(directory, team), team)
    except Cancelled:
        events.note("Cancelled.")
        events.state("cancelled")
        return CANCELLED
    except Paused:
        events.state("paused")
        return PAUSED
    except RunError as error:
        return _failed(events, error.reason, error.code)
    except Exception as error:
        traceback.print_exc()
        return _failed(events, plain_reason(error), CRASHED)
    finally:
        with contextlib.suppress(OSError, ValueError):
            events.close()
    return 0


def prove_command(directory: Path) -> int:
    try:
        run = read_run(directory)
        from training.engine.prove import prove

        proof = prove(run)
    except RunError as error:
        print(error.reason, file=sys.stderr)
        return error.code
    print(proof)
    return 0 if proof["passed"] else NOT_PROVED


def perplexity_command(directory: Path, text: Path | None = None) -> int:
    """Print what the base and the trained model make of a general text, as JSON."""
    try:
        run = read_run(directory)
        from training.engine.perplexity import measure_perplexity

        print(json.dumps(measure_perplexity(run, text)))
    except RunError as error:
        print(error.reason, file=sys.stderr)
        return error.code
    return 0


def _failed(events: EventLog, reason: str, code: int) -> int:
    print(reason, file=sys.stderr)
    with contextlib.suppress(OSError):  # a full disk: the exit code and stderr have to do
        events.write("error", reason=reason)
    return code


def plain_reason(error: Exception) -> str:
    """Say in a sentence what a failure means and what to change."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in text:
        return "The disk is full: free some space, then start the run again to resume it."
    if is_out_of_memory(error):
        return (
            "Memory ran out: lower token_budget, max_length or batch_size, turn "
            "gradient_checkpointing on, or choose tuning qlora4; then start the run again."
        )
    return f"The training failed with {type(error).__name__}: {text}. See output.log."


if __name__ == "__main__":
    sys.exit(main())
