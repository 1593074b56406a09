"""A pytest plugin: the real Postgres and Valkey, started before Django reads its settings.

Each run has data of its own under $LAUREL_VAR/test, so several runs, and several clones, never
meet; it goes with the run, and whatever a killed run left behind goes with the next. With
DATABASE_URL or REDIS_URL set, that server is used instead. Under pytest-xdist every worker starts
servers of its own: nothing that a test does to a queue or a database is seen by the other worker.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounts.processes import find_process
from config import services

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
running: list[Path] = []

# Before any test module loads torch: two cores, and no hub to reach.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    """Start the servers ahead of pytest-django, which imports the settings in this same hook."""
    options = early_config.known_args_namespace
    shared_out = options.numprocesses and "PYTEST_XDIST_WORKER" not in os.environ
    if not options.help and not shared_out:
        var = services.var_dir() / "test" / f"run-{os.getpid()}"
        _sweep(var.parent)
        try:
            urls = services.start(var, durable=False, owned=True)
        except services.ServiceError as error:
            shutil.rmtree(var, ignore_errors=True)
            raise pytest.UsageError(str(error)) from None
        running.append(var)
        os.environ["LAUREL_VAR"] = str(var)
        os.environ.update({key.upper(): url for key, url in urls.items()})
    yield


def pytest_unconfigure() -> None:
    while running:
        _end(running.pop())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here, and say why."""
    chromium = any(shutil.which(name) for name in CHROMIUM_NAMES)
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run it with pytest --slow"))
        if item.get_closest_marker("browser") and not chromium:
            item.add_marker(
                pytest.mark.skip(reason="no Chromium on this machine: apt-get install chromium")
            )
        if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def _sweep(folder: Path) -> None:
    """Remove what runs left that were killed: their servers died with them (Linux) or end here."""
    for left in folder.glob("run-*"):
        with contextlib.suppress(ValueError):
            if find_process(int(left.name.removeprefix("run-")), "py") is None:
                _end(left)


def _end(var: Path) -> None:
    services.remove(var)
    shutil.rmtree(var, ignore_errors=True)
