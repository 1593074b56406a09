"""Run all of Laurel from one command, and put right what dies: `python -m config.supervisor`.

Order of a start: Postgres and Valkey, migrations and the base model side by side, then web, engine,
worker, trainer and beat. A program that ends is started again after a growing pause. A stop
(Ctrl-C, SIGTERM, SIGHUP) takes them down in the opposite order.

No orphans, however this process ends. Every child carries a mark in its environment, which its
own children inherit whatever sessions they open; what a dead program leaves behind is found by
that mark before the program starts again. Should this process itself be killed, the kernel ends
its children, and a watchdog, which reads the far end of a pipe, ends whatever else is marked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import re
import secrets
import signal
import sys
import time
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accounts.processes import (
    die_with_parent,
    end_processes,
    port_holder,
    port_is_free,
    processes_with,
)
from config import services
from config.environment import BadSetting, env_base, env_bool, env_int, env_secret
from config.services import Server, ServiceError

MARK = "LAUREL_PROCESS"
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# A program that ran this long had started well: its next end begins with a short pause again.
HEALTHY_SECONDS = 30.0
START_SECONDS = 300.0
# So many ends before the first readiness mean that it never will be ready.
START_ATTEMPTS = 4
LOG_BYTES = 10 * 2**20
LOG_FILES = 3
READ_BYTES = 2**16
# A progress bar's carriage return ends a line, too.
LINE_ENDS = re.compile(rb"[\r\n]+")
COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92)

Stops = tuple[tuple[int, float], ...]


@dataclass
class Program:
    """One kept program: what to run, how to see that it serves, how to stop it.

    ``stops`` lists signals with the seconds each is given; what is left after them is killed.
    A ``server`` brings a command of its own.
    """

    name: str
    command: Sequence[str] = ()
    probe: Callable[[], bool] | None = None
    stops: Stops = ((signal.SIGTERM, 10.0),)
    server: Server | None = None

    # Seen while it runs
    process: Process | None = field(default=None, init=False)
    state: str = field(default="waiting", init=False)
    restarts: int = field(default=0, init=False)
    adopted: bool = field(default=False, init=False)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=20), init=False)


@dataclass(frozen=True)
class Step:
    """One command that must succeed before the programs start."""

    name: str
    command: Sequence[str]


class Supervisor:
    """Keep the programs running until told to stop.

    ``tiers`` are started in order and stopped in the opposite one; the steps run before the last
    tier. ``environment`` is asked for at every start, since addresses may have changed.
    """

    def __init__(
        self,
        var: Path,
        tiers: Sequence[Sequence[Program]],
        *,
        steps: Sequence[Step] = (),
        environment: Callable[[], Mapping[str, str]] = lambda: os.environ,
        announcement: str = "",
        url: str = "",
        quiet: bool = False,
    ) -> None:
        self.var = var
        self.tiers = tiers
        self.steps = steps
        self.environment = environment
        self.announcement = announcement
        self.url = url
        self.console = Console(var / "logs", quiet=quiet)
        self.token = secrets.token_hex(8)
        self.ready = False
        self.stopping = asyncio.Event()
        self.hurry = False
        self.keepers: dict[str, asyncio.Task[None]] = {}

    @property
    def programs(self) -> list[Program]:
        return [program for tier in self.tiers for program in tier]

    async def run(self) -> int:
        """Start everything, keep it, stop it; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ask_to_stop)
        code = 0
        try:
            starting = asyncio.create_task(self._start())
            await _first(starting, self.stopping.wait())
            if starting.done():
                starting.result()
                await self.stopping.wait()
            else:
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError, ServiceError):
                    await starting
        except ServiceError as error:
            self.console.say(str(error), error=True)
            code = 1
        finally:
            self.stopping.set()
            await self._stop()
        return code

    async def _start(self) -> None:
        *below, last = self.tiers
        for tier in below:
            await self._start_tier(tier)
        await asyncio.gather(*(self._run_step(step) for step in self.steps))
        await self._start_tier(last)
        self.ready = True
        self._note()
        if self.announcement:
            self.console.say(self.announcement)

    async def _start_tier(self, tier: Sequence[Program]) -> None:
        for program in tier:
            self.keepers[program.name] = asyncio.create_task(self._keep(program))
        await asyncio.gather(*(self._wait_ready(program) for program in tier if program.probe))
        for program in tier:
            if program.server:
                await asyncio.to_thread(program.server.finish)
                services.note_urls(
                    self.var, **{program.server.variable.lower(): program.server.url()}
                )

    async def _wait_ready(self, program: Program) -> None:
        deadline = time.monotonic() + START_SECONDS
        while program.state != "ready":
            said = program.last_lines[-1].strip() if program.last_lines else "it said nothing"
            see = f"See {self.console.folder}/{program.name}.log."
            keeper = self.keepers[program.name]
            if keeper.done():
                keeper.result()  # raises what ended it
            if program.restarts >= START_ATTEMPTS:
                raise ServiceError(f"{program.name} does not start: {said}. {see}")
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{program.name} is not ready after {START_SECONDS:.0f} s. {see}"
                )
            await asyncio.sleep(0.05)

    async def _run_step(self, step: Step) -> None:
        """Run one command to its end; raise ServiceError with its last line when it fails."""
        lines: deque[str] = deque(maxlen=5)
        process = await self._spawn(step.name, step.command)
        try:
            await self._pump(step.name, process, lines)
            code = await _exit_code(process)
        finally:
            await asyncio.to_thread(self._sweep, step.name, signal.SIGTERM, 5.0)
        if code:
            said = lines[-1].strip() if lines else f"exit code {code}"
            raise ServiceError(f"{step.name} failed: {said}")

    async def _keep(self, program: Program) -> None:
        """Run the program again and again, with a growing pause between quick ends."""
        pause = FIRST_PAUSE
        while not self.stopping.is_set():
            if program.server:
                await self._adopt(program, program.server)
                if self.stopping.is_set():
                    return
            begun = time.monotonic()
            try:
                ending = await self._run_once(program)
            except (OSError, ServiceError) as error:
                ending = str(error)
                if not self.ready:
                    raise ServiceError(f"{program.name} cannot start: {ending}") from error
            if self.stopping.is_set():
                return
            await asyncio.to_thread(self._sweep, program.name, signal.SIGKILL, 5.0)
            if time.monotonic() - begun > HEALTHY_SECONDS:
                pause = FIRST_PAUSE
            program.restarts += 1
            self.console.say(
                f"{program.name} ended ({ending}); it starts again in {pause:g} s", error=True
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_once(self, program: Program) -> str:
        """Run the program to its end; return how it ended in words."""
        command = program.command
        if program.server:
            # After a crash this puts the stale pid file away.
            await asyncio.to_thread(program.server.prepare)
            command = program.server.command()
        program.process = await self._spawn(program.name, command, program.server)
        program.state = "running"
        self._note()
        probing = asyncio.create_task(self._probe(program))
        try:
            await self._pump(program.name, program.process, program.last_lines)
            code = await _exit_code(program.process)
        finally:
            probing.cancel()
        program.state = "ended"
        self._note()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def _probe(self, program: Program) -> None:
        if program.probe:
            while not await asyncio.to_thread(program.probe):
                await asyncio.sleep(0.1)
            program.state = "ready"
            self._note()

    async def _adopt(self, program: Program, server: Server) -> None:
        """Use a server that another command started, until it ends; we leave it running."""
        while (pid := await asyncio.to_thread(server.pid)) and not self.stopping.is_set():
            if not program.adopted:
                self.console.say(f"{program.name} runs already (pid {pid}); it is used as it is")
                program.adopted, program.state = True, "ready"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), 1.0)
        program.adopted = program.adopted and self.stopping.is_set()

    async def _spawn(
        self, name: str, command: Sequence[str], server: Server | None = None
    ) -> Process:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C comes to us alone; we stop them in order
            preexec_fn=die_with_parent(server.stop_signal if server else signal.SIGTERM),
            env={**self.environment(), MARK: f"{self.token}:{name}:"},
            cwd="/" if server else services.REPOSITORY,
            **services.identity(server.user if server else None),
        )

    async def _pump(self, name: str, process: Process, last: deque[str]) -> None:
        """Copy the output to the log and the console until the process closes it."""
        assert process.stdout is not None
        ended = asyncio.create_task(_exit_code(process))
        rest = b""
        while True:
            reading = asyncio.create_task(process.stdout.read(READ_BYTES))
            await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                # It has ended, and a descendant holds its output open: take what is there.
                await asyncio.wait({reading}, timeout=0.2)
            chunk = reading.result() if reading.done() else b""
            *lines, rest = LINE_ENDS.split(rest + chunk)
            if not chunk or len(rest) > READ_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if text := line.decode(errors="replace").rstrip():
                    last.append(text)
                    self.console.write(name, text)
            if not chunk:
                reading.cancel()
                await ended
                return

    def _ask_to_stop(self) -> None:
        self.hurry = self.stopping.is_set()
        if not self.stopping.is_set():
            self.console.say("stopping …")
        self.stopping.set()

    async def _stop(self) -> None:
        for tier in reversed(self.tiers):
            await asyncio.gather(*(self._stop_program(program) for program in tier))
        for keeper in self.keepers.values():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(keeper, 5)
        await asyncio.to_thread(end_processes, self._marked(""), signal.SIGKILL, 1.0)
        self.console.say("stopped")

    async def _stop_program(self, program: Program) -> None:
        process = program.process
        if process and not program.adopted:
            for number, seconds in program.stops:
                if process.returncode is not None or self.hurry:
                    break
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
                await _first(_exit_code(process), self._hurried(), timeout=seconds)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await _exit_code(process)
        await asyncio.to_thread(self._sweep, program.name, signal.SIGTERM, 3.0)
        if program.server and not program.adopted:
            services.note_urls(self.var, **{program.server.variable.lower(): None})

    async def _hurried(self) -> None:
        while not self.hurry:
            await asyncio.sleep(0.1)

    def _marked(self, name: str) -> list[Any]:
        return processes_with(MARK, f"{self.token}:{name}:" if name else f"{self.token}:")

    def _sweep(self, name: str, number: int, grace: float) -> None:
        """End what a program's process left behind, in whatever session it hides."""
        end_processes(self._marked(name), number, grace)

    def _note(self) -> None:
        """Write supervisor.json: who runs, since when it heals, where to find it."""
        state = {
            "pid": os.getpid(),
            "url": self.url,
            "ready": self.ready,
            "programs": {
                program.name: {
                    "pid": program.process.pid if program.process else None,
                    "state": program.state,
                    "restarts": program.restarts,
                }
                for program in self.programs
            },
        }
        draft = self.var / ".supervisor.json"
        with contextlib.suppress(OSError):  # a full disk must not end what runs
            draft.write_text(json.dumps(state, indent=1) + "\n")
            draft.replace(self.var / "supervisor.json")


class Console:
    """Write each program's lines to its rotated log and, under its name, to the terminal."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self.folder = folder
        self.quiet = quiet
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.logs: dict[str, logging.Handler] = {}
        logging.raiseExceptions = False  # a full disk loses log lines, not programs
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, text: str, *, error: bool = False) -> None:
        """Print a line of our own; ``quiet`` does not silence these."""
        self._log("laurel", text)
        self._print("laurel", text, 31 if error else 1)

    def write(self, name: str, text: str) -> None:
        self._log(name, text)
        if not self.quiet:
            self._print(name, text, COLOURS[list(self.logs).index(name) % len(COLOURS)])

    def _log(self, name: str, text: str) -> None:
        if name not in self.logs:
            self.logs[name] = logging.handlers.RotatingFileHandler(
                self.folder / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True
            )
        self.logs[name].handle(logging.makeLogRecord({"msg": text}))

    def _print(self, name: str, text: str, colour: int) -> None:
        for line in text.splitlines():
            prefix = f"{name:<9}|"
            if self.colour:
                prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(prefix, line, flush=True)


def running(var: Path | None = None) -> dict[str, Any] | None:
    """Return supervisor.json's content if a supervisor runs for this folder."""
    var = var or services.var_dir()
    try:
        with (var / "supervisor.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pass
    except OSError:
        return None
    try:
        state: dict[str, Any] = json.loads((var / "supervisor.json").read_text())
    except (OSError, ValueError):
        return {"pid": None, "url": "", "ready": False, "programs": {}}
    return state


@contextlib.contextmanager
def only_one(var: Path) -> Iterator[None]:
    """Hold the folder for one supervisor; the lock goes with the process, however it ends."""
    with (var / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running(var) or {}
            raise ServiceError(
                f"Laurel runs already for {var} (pid {other.get('pid')}, {other.get('url')}): "
                "stop it first, or set LAUREL_VAR, WEB_PORT and ENGINE_PORT for a second one."
            ) from None
        # One that was killed could not take its own away.
        (var / "supervisor.json").unlink(missing_ok=True)
        yield
        (var / "supervisor.json").unlink(missing_ok=True)


@contextlib.contextmanager
def watchdog(token: str) -> Iterator[None]:
    """Fork a process that ends everything marked once this one is gone, even by kill -9.

    Must come before any thread. It notices by the end of a pipe that only we hold open.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(writing)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):  # or a reader of our output would wait for it
                os.dup2(nowhere, standard)
            os.read(reading, 1)
            end_processes(processes_with(MARK, token), signal.SIGTERM, 8.0)
        finally:
            os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


def laurel(
    var: Path, web_port: int, engine_port: int
) -> tuple[list[list[Program]], list[Step], Callable[[], Mapping[str, str]]]:
    """Return Laurel's tiers, its steps and the environment that they run in."""
    own_engine = not os.environ.get("ENGINE_URL")
    web_address = f"http://127.0.0.1:{web_port}/health"
    engine_address = f"http://127.0.0.1:{engine_port}"
    level = os.environ.get("LOG_LEVEL", "INFO")
    servers = services.embedded_servers(var)

    def celery(*words: str, **flags: object) -> list[str]:
        return module("celery", "--app=config.celery:app", *words, loglevel=level, **flags)

    def worker(name: str, queue: str, processes: int) -> Program:
        return Program(
            name,
            celery(
                "worker",
                queues=queue,
                hostname=f"{name}@%h",
                concurrency=env_int(f"{name.upper()}_CONCURRENCY", processes),
                without_gossip=True,
                without_mingle=True,
            ),
            # The first signal finishes the task in hand, the second gives it back to the queue.
            stops=((signal.SIGTERM, 5.0), (signal.SIGQUIT, 5.0)),
        )

    web = Program(
        "web",
        module(
            "uvicorn",
            "config.asgi:application",
            host=os.environ.get("WEB_HOST", "127.0.0.1"),
            port=web_port,
            workers=env_int("WEB_WORKERS", 2),
            # A worker that waits long for its turn on a busy machine is not a dead one.
            timeout_worker_healthcheck=60,
            lifespan="off",
            no_access_log=True,
            no_server_header=True,
            timeout_graceful_shutdown=5,
            log_level=level.lower(),
        ),
        probe=lambda: answers(web_address),
        stops=((signal.SIGTERM, 8.0),),
    )
    above = [
        web,
        worker("worker", "default", 4),
        worker("trainer", "train", 1),
        Program("beat", celery("beat", pidfile="")),
    ]
    steps = [Step("migrate", [sys.executable, "manage.py", "migrate", "--no-input", "-v", "0"])]
    if own_engine:
        source, name = env_base()
        base = str(var / "bases" / name)
        steps.append(Step("base", module("inference.engine", "prepare", source, base)))
        serve = module(
            "inference.engine",
            "serve",
            model=base,
            served_name=name,
            host="127.0.0.1",
            port=engine_port,
            api_key_file=_engine_key(var),
        )
        above.insert(1, Program("engine", serve, probe=lambda: answers(f"{engine_address}/health")))

    def environment() -> Mapping[str, str]:
        ours = {
            "LAUREL_VAR": str(var),
            "WEB_PORT": str(web_port),
            "ENGINE_PORT": str(engine_port),
            "ENGINE_URL": os.environ.get("ENGINE_URL") or engine_address,
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_MININTERVAL": "2",  # a line of progress now and then, not a film
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        }
        for server in servers:
            with contextlib.suppress(OSError):  # before its first preparation it has no address
                ours[server.variable] = server.url()
        return {**os.environ, **ours}

    below = [
        Program(server.name, probe=server.ready, stops=((server.stop_signal, 20.0),), server=server)
        for server in servers
    ]
    return [*([program] for program in below), above], steps, environment


def module(name: str, *words: str, **flags: object) -> list[str]:
    """Return the command for `python -m name words --flag value`; True stands for a bare flag."""
    options = [
        f"--{flag.replace('_', '-')}" + ("" if value is True else f"={value}")
        for flag, value in flags.items()
    ]
    return [sys.executable, "-m", name, *words, *options]


def _engine_key(var: Path) -> Path:
    """Return the file that holds the engine's key, made on first use."""
    if given := os.environ.get("ENGINE_API_KEY_FILE"):
        return Path(given)
    kept = var / "engine_key"
    key = env_secret("ENGINE_API_KEY", kept)
    if not kept.exists() or kept.read_text().strip() != key:
        with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(key)
    return kept


def answers(url: str) -> bool:
    """Return whether an HTTP server answers there without an error of its own."""
    request = urllib.request.Request(url, method="GET")
    try:
        with _direct.open(request, timeout=5) as response:
            return bool(response.status < 500)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A log-in page elsewhere proves as much as the page itself."""


# A proxy set for the outside world has no part in asking our own machine.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def check_ports(ports: Mapping[str, int]) -> None:
    """Raise ServiceError for the first port that is taken, naming its holder and its variable."""
    for variable, port in ports.items():
        if not port_is_free(port):
            raise ServiceError(
                f"Port {port} is in use{port_holder(port)}: stop that program, or choose another "
                f"port, for example {variable}={port + 10}."
            )


async def _first(*waiting: Any, timeout: float | None = None) -> None:
    """Wait for the first of several; the others that we made are let go."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task, one in zip(tasks, waiting, strict=True):
        if task is not one and not task.done():
            task.cancel()


async def _exit_code(process: Process) -> int:
    """Wait for the process alone; Process.wait also waits for whoever holds its output open."""
    while process.returncode is None:
        await asyncio.sleep(0.05)
    return process.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run Laurel until Ctrl-C; 1 when it cannot start, with the reason in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m config.supervisor")
    parser.add_argument(
        "--quiet", action="store_true", help="keep the programs' output in the logs only"
    )
    quiet = parser.parse_args(arguments).quiet or env_bool("QUIET", False)
    try:
        var = services.var_dir()
        web_port, engine_port = env_int("WEB_PORT", 8100), env_int("ENGINE_PORT", 8101)
        services.check_folder(var)
        with only_one(var):
            ports = {"WEB_PORT": web_port}
            if not os.environ.get("ENGINE_URL"):
                ports["ENGINE_PORT"] = engine_port
            check_ports(ports)
            tiers, steps, environment = laurel(var, web_port, engine_port)
            url = f"http://localhost:{web_port}/"
            return supervise(
                var,
                tiers,
                steps=steps,
                environment=environment,
                announcement=f"Laurel is ready: {url} (stop with Ctrl-C; logs in {var / 'logs'})",
                url=url,
                quiet=quiet,
            )
    except (ServiceError, BadSetting) as error:
        print(error, file=sys.stderr)
        return 1


def supervise(var: Path, tiers: Sequence[Sequence[Program]], **options: Any) -> int:
    """Run a supervisor under its watchdog; return the exit code."""
    supervisor = Supervisor(var, tiers, **options)
    with watchdog(supervisor.token):
        return asyncio.run(supervisor.run())


if __name__ == "__main__":
    sys.exit(main())
