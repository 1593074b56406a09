"""Command line of the engine: `python -m inference.engine prepare|serve`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from inference.engine.errors import Refusal


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 done, 2 refused with the reason on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except Refusal as refusal:
        print(f"engine: {refusal.message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inference.engine", description=__doc__)
    commands = parser.add_subparsers(required=True)

    prepare = commands.add_parser("prepare", help="convert a base model to a folder, once")
    prepare.add_argument("source", help="package:NAME, a .gguf file, a model folder, a Hub id")
    prepare.add_argument("dest", type=Path, help="folder to write; an existing one is kept")
    prepare.add_argument("--licence", help="record this licence instead of the one found")
    prepare.set_defaults(run=_prepare)
    return parser


def _prepare(options: argparse.Namespace) -> int:
    from inference.engine.base import prepare

    print(f"Preparing {options.source} in {options.dest} …", file=sys.stderr)
    record = prepare(options.source, options.dest, licence=options.licence)
    print(
        f"{record.name}: {record.parameters / 1e6:.0f} million parameters, "
        f"{record.size_bytes / 1e6:.0f} MB, licence {record.licence}, {record.digest[:16]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
