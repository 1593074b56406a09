"""The house rules that nobody should have to remember."""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import config

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = {"accounts", "benchmarks", "config", "feedback", "inference", "tests", "training"}
FOLDERS = ("platform", "feedback", "inference", "training", "tests", "benchmarks")
HEAVY = ("accelerate", "bitsandbytes", "datasets", "peft", "torch", "transformers", "trl")


def test_it_keeps_python_files_out_of_the_source_root() -> None:
    # platform/__init__.py would shadow Python's platform; platform/celery.py would shadow Celery.
    assert list((REPOSITORY / "platform").glob("*.py")) == []


def test_it_leaves_python_its_own_platform_module() -> None:
    assert platform.__file__ is not None
    assert Path(platform.__file__).parent == Path(sysconfig.get_path("stdlib"))
    assert platform.system()


def test_it_imports_our_own_config() -> None:
    assert config.__file__ is not None
    assert Path(config.__file__) == REPOSITORY / "platform" / "config" / "__init__.py"


def loaded_by(program: str) -> set[str]:
    """Return the top-level modules that a fresh process has after running the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_the_web_process_never_imports_torch() -> None:
    # Views, forms and tasks are all reached from here; checks walk every URL.
    loaded = loaded_by(
        "import config.asgi, config.celery\n"
        "from django.core.checks import run_checks\n"
        "from django.urls import get_resolver\n"
        "get_resolver().url_patterns; run_checks()\n"
        "config.celery.app.loader.import_default_modules()"
    )
    assert "django" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_engines_never_import_django() -> None:
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for engine in ("training/engine", "inference/engine")
        for path in sorted((REPOSITORY / engine).glob("*.py"))
    ]
    assert modules
    loaded = loaded_by("\n".join(f"import {module}" for module in modules))
    assert "torch" in loaded
    assert loaded.isdisjoint({"accounts", "celery", "config", "django", "feedback"})


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> set[str]:
    """Return the names in requirements.in."""
    lines = (REPOSITORY / "requirements.in").read_text().splitlines()
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return {normal(match.group()) for match in found if match}


def extras() -> set[str]:
    """Return the names of what pyproject.toml offers besides; it need not be installed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    offered = project["optional-dependencies"].values()
    return {normal(re.split(r"[<=>~!]", line)[0]) for some in offered for line in some}


def locked() -> dict[str, str]:
    """Return the exact versions of both lock files."""
    versions = {}
    for name in ("requirements.lock", "requirements-nodeps.lock"):
        for line in (REPOSITORY / name).read_text().splitlines():
            if not line.startswith("#"):
                package, version = line.split("==")
                versions[normal(package)] = version
    return versions


def imports() -> Iterator[tuple[Path, str]]:
    """Yield each of our files with the top-level modules that it imports."""
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    yield path, node.module.partition(".")[0]


def test_it_asks_for_every_library_that_it_imports() -> None:
    distributions = importlib.metadata.packages_distributions()
    missing = {
        (str(path.relative_to(REPOSITORY)), module)
        for path, module in imports()
        if module not in OURS | sys.stdlib_module_names
        and not {normal(name) for name in distributions.get(module, [])} & wanted()
        and normal(module) not in extras()
    }
    assert missing == set(), "name them in requirements.in, then run `make lock`"


def test_the_lock_is_exact_and_names_no_index() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert wanted() <= set(locked())
    assert locked()["torch"] == "2.13.0"  # no +cpu: the index decides which build that is
    assert not re.search(r"://|--|^nvidia-|^triton", text, re.MULTILINE)


def test_it_runs_with_what_the_lock_says() -> None:
    installed = {
        name: importlib.metadata.version(name).partition("+")[0]
        for name in locked()
        if name != "laurel"
    }
    assert installed == locked()
