"""python -m training.engine RUN_DIR, or: python -m training.engine prove RUN_DIR.

Exit codes: 0 done, 1 crashed, 2 bad input, 3 cancelled, 4 not proved.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
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
    Cancelled,
    RunError,
    is_out_of_memory,
)
from training.engine.events import EventLog
from training.engine.rundir import only_one, read_run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="training.engine", description=__doc__)
    parser.add_argument("words", nargs="+", metavar="[prove] RUN_DIR")
    words = parser.parse_args(arguments).words
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "WARNING"), stream=sys.stderr)
    if len(words) == 2 and words[0] == "prove":
        return prove_command(Path(words[1]).absolute())
    if len(words) != 1:
        parser.error("give one run directory")
    return train_command(Path(words[0]).absolute())


def train_command(directory: Path) -> int:
    if not directory.is_dir():
        print(f"{directory} is not a directory: give the directory of a run.", file=sys.stderr)
        return 2
    events = EventLog(directory / "events.jsonl")
    try:
        with only_one(directory):
            run = read_run(directory)
            from training.engine.train import Stop, train

            train(run, events, Stop())
    except Cancelled:
        events.note("Cancelled.")
        return CANCELLED
    except RunError as error:
        return _failed(events, error.reason, error.code)
    except Exception as error:
        traceback.print_exc()
        return _failed(events, plain_reason(error), CRASHED)
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
