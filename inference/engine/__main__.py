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

    serve = commands.add_parser("serve", help="serve a prepared base and its adapters")
    serve.add_argument("--model", type=Path, required=True, help="a prepared base folder")
    serve.add_argument("--served-name", help="the base's model name; default: its folder's name")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8101, help="0 takes a free one and prints it")
    serve.add_argument("--api-key-file", type=Path, help="else ENGINE_API_KEY holds the key")
    serve.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    serve.add_argument("--rows", type=int, default=16, help="texts written together")
    serve.add_argument("--queue", type=int, default=64, help="texts that may wait before a 429")
    serve.add_argument("--context", type=int, help="longest text in tokens")
    serve.add_argument("--prefill-chunk", type=int, default=256, help="prompt tokens a step")
    serve.add_argument("--max-adapters", type=int, default=32)
    serve.add_argument("--threads", type=int, help="CPU threads")
    serve.add_argument("--drain-seconds", type=int, default=5, help="grace after SIGTERM")
    serve.set_defaults(run=_serve)
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


def _serve(options: argparse.Namespace) -> int:
    for name in ("rows", "queue", "prefill_chunk", "max_adapters"):
        if getattr(options, name) < 1:
            raise Refusal(f"--{name.replace('_', '-')} must be at least 1.")
    values = {name: value for name, value in vars(options).items() if name != "run"}
    values["api_key"] = _api_key(values.pop("api_key_file"))
    values["served_name"] = options.served_name or options.model.resolve().name

    from inference.engine.serve import ServeOptions, serve

    serve(ServeOptions(**values))
    return 0


def _api_key(file: Path | None) -> str:
    try:
        key = file.read_text() if file else os.environ.get("ENGINE_API_KEY", "")
    except OSError as error:
        raise Refusal(f"The key file {file} cannot be read: {error.strerror}.") from error
    if not key.strip():
        raise Refusal("Give a key: --api-key-file FILE, or ENGINE_API_KEY in the environment.")
    return key.strip()


if __name__ == "__main__":
    sys.exit(main())
