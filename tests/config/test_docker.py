"""The container files, as far as they can be read without a daemon."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).resolve().parents[2] / "docker"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"])


def test_it_runs_every_process(services: dict[str, Any]) -> None:
    assert set(services) == {
        "postgres",
        "redis",
        "setup",
        "web",
        "engine",
        "worker",
        "trainer",
        "beat",
    }


def test_its_commands_name_modules_that_exist(services: dict[str, Any]) -> None:
    named = set()
    for service in services.values():
        command = service.get("command", [])
        if "-m" in command:
            named.add(command[command.index("-m") + 1])
    assert named == {"celery", "inference.engine"}
    assert all(importlib.util.find_spec(name) for name in named)


def test_it_waits_for_the_setup(services: dict[str, Any]) -> None:
    for name in ("web", "engine", "worker", "trainer", "beat"):
        waits = services[name]["depends_on"]["setup"]["condition"]
        assert waits == "service_completed_successfully"


def test_the_host_port_is_a_variable_and_nothing_else_is_published(
    services: dict[str, Any],
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"web": ["${WEB_PORT:-8100}:8100"]}


def test_the_weights_are_in_a_volume_and_not_in_the_image(services: dict[str, Any]) -> None:
    for name in ("Dockerfile", "Dockerfile.gpu"):
        instructions = re.sub(r"^#.*$", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
        assert "nodeps" not in instructions
        assert "prepare" not in instructions
        assert "LAUREL_VAR=/data" in instructions
    assert "var" in (DOCKER.parent / ".dockerignore").read_text().splitlines()
    assert all("data:/data" in services[name]["volumes"] for name in ("engine", "trainer", "web"))


def test_the_gpu_file_only_adds_to_known_services(services: dict[str, Any]) -> None:
    added = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert set(added) <= set(services)
    for name in ("engine", "trainer"):
        device = added[name]["deploy"]["resources"]["reservations"]["devices"][0]
        assert device["capabilities"] == ["gpu"]
