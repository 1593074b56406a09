"""Small truths about operating-system processes: who runs, who holds a port, who dies with whom.

No Django in here: the supervisor asks before anything is set up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(death_signal: int) -> Callable[[], None] | None:
    """Return a ``preexec_fn`` that has the kernel send ``death_signal`` when the parent is gone.

    Linux only (None elsewhere). It is the parent's *thread* that counts: start such a child from
    the main thread.
    """
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def ask_the_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask_the_kernel


def find_process(pid: int, *words: str) -> psutil.Process | None:
    """Return the live process ``pid`` if its command line holds all ``words``."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        line = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return process if all(word in line for word in words) else None


def read_pid(path: Path) -> int | None:
    """Return the process id in the first line of a pid file, None where there is none."""
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Return live processes whose environment has ``name`` starting with ``value``.

    An environment is inherited, whatever sessions and groups the descendants make for
    themselves, so this finds those that process groups lose.
    """
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name, "").startswith(value):
                found.append(process)
    return found


def end_processes(processes: Iterable[psutil.Process], first: int, grace: float) -> None:
    """Send ``first`` to all, wait ``grace`` seconds at most, then kill what is left."""
    left = list(processes)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.send_signal(first)
    _, left = psutil.wait_procs(left, timeout=grace)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(left, timeout=5)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def port_holder(port: int) -> str:
    """Return " by NAME (pid N)" for the process that listens on the port, "" where unknown."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN
            if listening and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def wait_until(true: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Poll until the condition holds; False when ``seconds`` went by without it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(pause)
    return true()
