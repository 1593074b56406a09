"""A reward model on human comparisons: does it find what people preferred, on 300 it never saw?

`python -m benchmarks.reward --data hh_harmless.jsonl.gz --json PATH`. The file is read as an import
reads it, 300 comparisons are held out by the digest of their prompt, and one run directory trains
a LoRA and a score head on the rest. Succeeds when the 95 % interval of the accuracy excludes 1/2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HELDOUT = 300
ARGUMENTS = {
    "learning_rate": 3e-4,
    "epochs": 1,
    "batch_size": 8,
    # The end of the talk and the beginning of the answer: what the judgement is about.
    "max_length": 128,
    "max_prompt_length": 64,
}
DATA = Path(__file__).parents[2] / "shared" / "data" / "hh_harmless.jsonl.gz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.reward", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--max-steps", type=int, default=0, help="fewer steps; 0 takes all rows")
    options = parser.parse_args()
    from benchmarks.training import default_base

    base = options.base or default_base()
    if not (base / "config.json").exists():
        parser.error(f"{base} is not a base; prepare one or give --base")
    if not options.data.exists():
        parser.error(f"{options.data} does not exist; give --data")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            options.data,
            base,
            Path(folder),
            {**ARGUMENTS, "max_steps": options.max_steps},
        )
    print(json.dumps(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["low"] > 0.5 else 1


def measure(data: Path, base: Path, folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train in `folder` and return accuracy, interval, seconds and counts."""
    counts = write_rows(data, folder / "snapshot")
    directory = folder / "run"
    directory.mkdir()
    description = {
        "method": "reward",
        "base": {"path": str(base), "digest": ""},
        "snapshot": {"path": str(folder / "snapshot"), "digest": ""},
        "seed": 7,
        "arguments": arguments,
    }
    (directory / "run.json").write_text(json.dumps(description))
    started = time.monotonic()
    command = [sys.executable, "-m", "training.engine", str(directory)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    report = json.loads((directory / "report.json").read_text())
    after = report["evaluation"]["after"]
    shutil.rmtree(directory)
    return {
        "accuracy": after["reward_accuracy"],
        "low": after["reward_accuracy_low"],
        "high": after["reward_accuracy_high"],
        "before": report["evaluation"]["before"]["reward_accuracy"],
        "seconds": round(time.monotonic() - started, 1),
        "steps": report["steps"],
        "tokens_per_second": report["throughput"]["tokens_per_second"],
        **counts,
    }


def write_rows(data: Path, folder: Path) -> dict[str, int]:
    """Write what an import makes of the file as a snapshot's two parts; return their sizes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from feedback.importing import understand

    with data.open("rb") as file:
        entries = understand(file, data.name).entries
    by_prompt = sorted(
        entries, key=lambda entry: hashlib.sha256(entry.prompt_digest.encode()).digest()
    )
    folder.mkdir(parents=True)
    parts = {"heldout": by_prompt[:HELDOUT], "train": by_prompt[HELDOUT:]}
    for name, part in parts.items():
        rows = [
            {
                "prompt": entry.prompt,
                "chosen": [{"role": "assistant", "content": entry.texts[0]}],
                "rejected": [{"role": "assistant", "content": entry.texts[1]}],
                "prompt_id": entry.prompt_digest,
                "margin": 1.0,
                "weight": 1.0,
            }
            for entry in part
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return {name: len(part) for name, part in parts.items()}


if __name__ == "__main__":
    sys.exit(main())
