"""Small programs for the supervisor's tests, each a role of a real one.

    python dummies.py ROLE FOLDER

They write their process ids to FOLDER/NAME.pid, so that a test can look for what is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def note(folder: Path, name: str) -> None:
    draft = folder / f".{name}.{os.getpid()}"
    draft.write_text(str(os.getpid()))
    draft.replace(folder / f"{name}.pid")


def main(role: str, folder: Path) -> None:
    note(folder, role)
    print(f"{role} speaks", flush=True)
    if role == "fails":
        print("the reason stands here", flush=True)
        sys.exit(3)
    if role == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if role == "parent":
        # Like the trainer's child: a session of its own, its output elsewhere or inherited.
        subprocess.Popen([sys.executable, __file__, "child", str(folder)], start_new_session=True)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
