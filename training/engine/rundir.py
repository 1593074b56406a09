"""The run directory: run.json in, everything else out. No torch in here."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.engine.arguments import ArgumentError, Arguments, parse_arguments
from training.engine.errors import RunError


@dataclass(frozen=True)
class Artifact:
    """A folder and the digest that names its content."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Run:
    """What run.json asks for, and where the run's files lie."""

    directory: Path
    method: str
    base: Artifact
    parent: Artifact | None
    snapshot: Artifact
    seed: int
    arguments: Arguments
    continues: str = ""  # what the earlier run was asked for that left it checkpoints

    @property
    def asked(self) -> str:
        """Return a digest of all that decides the result; folders may move."""
        parent = self.parent.digest if self.parent else ""
        digests = [self.base.digest, parent, self.snapshot.digest]
        asked = [self.method, *digests, self.seed, dataclasses.asdict(self.arguments)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def adapter(self) -> Path:
        return self.directory / "adapter"

    @property
    def model(self) -> Path:
        """Where full-weights tuning saves the whole model."""
        return self.directory / "model"

    @property
    def full(self) -> bool:
        return self.arguments.tuning == "full"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def probe(self) -> Path:
        return self.directory / "probe.safetensors"

    @property
    def report(self) -> Path:
        return self.directory / "report.json"


def read_run(directory: Path) -> Run:
    """Read and check run.json; RunError says what is wrong with it."""
    path = directory / "run.json"
    try:
        given = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: give the directory of a run.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    try:
        run = Run(
            directory=directory,
            method=given["method"],
            base=_artifact(given["base"]),
            parent=_artifact(given["parent"]) if given.get("parent") else None,
            snapshot=_artifact(given["snapshot"]),
            seed=int(given.get("seed", 0)),
            arguments=parse_arguments(given["method"], given.get("arguments", {})),
            continues=str(given.get("continues", "")),
        )
    except KeyError as error:
        raise RunError(f"{path} lacks {error}.") from error
    except ArgumentError as error:
        raise RunError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise RunError(f"{path} is not as it should be: {error}.") from error
    folders = (("base", run.base), ("parent adapter", run.parent), ("snapshot", run.snapshot))
    for what, artifact in folders:
        if artifact is not None and not artifact.path.is_dir():
            raise RunError(f"The {what} {artifact.path} does not exist: prepare or restore it.")
    return run


def _artifact(given: dict[str, Any]) -> Artifact:
    return Artifact(Path(given["path"]), str(given.get("digest", "")))


def var_folder() -> Path:
    """Return the folder of all data, as the rest of the platform sees it."""
    return Path(os.environ.get("LAUREL_VAR") or Path(__file__).parents[2] / "var")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; RunError when another one works in it."""
    with (directory / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"Another process trains in {directory}: wait for it, or stop it first."
            ) from error
        yield
