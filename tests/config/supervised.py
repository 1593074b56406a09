"""Run a supervisor over dummies: `python supervised.py FOLDER ROLE …`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from config import supervisor

DUMMIES = Path(__file__).with_name("dummies.py")


def main(folder: Path, roles: list[str]) -> int:
    def ready(role: str) -> bool:
        return role != "fails" and (folder / f"{role}.pid").exists()

    tiers = [
        [
            supervisor.Program(
                role,
                [sys.executable, str(DUMMIES), role, str(folder)],
                probe=lambda role=role: ready(role),
                stops=((signal.SIGTERM, 1.0),),
            )
        ]
        for role in roles
    ]
    return supervisor.supervise(folder, tiers, announcement="all are ready")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
