"""The embedded servers: real Postgres, real Valkey, in folders of the test's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from accounts.processes import wait_until
from config import services


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder whose servers are ours to run and are gone afterwards."""
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.delenv("REDIS_URL")
    # pytest's folders are closed to others, and under root Postgres runs as another user.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o711)
    folder = tmp_path / "var"
    monkeypatch.setenv("LAUREL_VAR", str(folder))
    yield folder
    services.stop(folder)


def start(var: Path, *, durable: bool = False) -> dict[str, str]:
    return services.start(var, durable=durable, owned=True)


def test_it_starts_both_and_a_second_start_reuses_them(var: Path) -> None:
    urls = start(var)
    pids = [services.Postgres(var).pid(), services.Valkey(var).pid()]

    assert start(var) == urls
    assert [services.Postgres(var).pid(), services.Valkey(var).pid()] == pids
    assert all(pids)
    assert json.loads((var / "services.json").read_text()) == urls
    assert (services.database_url(), services.redis_url()) == tuple(urls.values())


def test_it_keeps_the_data_over_a_restart(var: Path) -> None:
    urls = start(var)
    with psycopg.connect(urls["database_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    assert services.stop(var) == ["valkey", "postgres"]
    assert services.database_url() == services.NOT_RUNNING_DATABASE

    with psycopg.connect(start(var)["database_url"]) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_it_loses_nothing_when_both_are_killed(var: Path) -> None:
    urls = start(var, durable=True)
    with psycopg.connect(urls["database_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    redis.Redis.from_url(urls["redis_url"]).lpush("queue", "a task")
    for server in (services.Postgres(var), services.Valkey(var)):
        pid = server.pid()
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda server=server: server.pid() is None, 5)

    urls = start(var, durable=True)

    with psycopg.connect(urls["database_url"]) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
    assert redis.Redis.from_url(urls["redis_url"]).lrange("queue", 0, -1) == [b"a task"]


def test_it_puts_stale_pid_files_away(var: Path) -> None:
    start(var)
    services.stop(var)
    # This very process: alive, ours, and no server. Postgres alone would refuse to start.
    pid = var / "postgres" / "postmaster.pid"
    pid.write_text(f"{os.getpid()}\n{var / 'postgres'}\n1\n5432\n\n\n\n")
    os.chown(pid, (var / "postgres").stat().st_uid, -1)
    (var / "valkey" / "valkey.pid").write_text(f"{os.getpid()}\n")

    start(var)

    assert services.Postgres(var).pid() != os.getpid()
    assert services.Valkey(var).ready()


def test_it_takes_another_port_when_its_own_is_taken(var: Path) -> None:
    first = start(var)["redis_url"]
    port = services.Valkey(var).port()
    services.stop(var)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen()
        second = start(var)["redis_url"]
    assert second != first
    assert redis.Redis.from_url(second).ping()


def test_it_closes_both_to_strangers(var: Path) -> None:
    start(var)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=services.Valkey(var).port()).ping()
    assert (var / "services.json").stat().st_mode & 0o777 == 0o600
    assert services.Postgres(var).socket_folder.stat().st_mode & 0o777 == 0o700
    pid = services.Postgres(var).pid()
    listening = [one for one in psutil.Process(pid).net_connections("tcp") if one.raddr == ()]
    assert listening == []


def test_it_serves_a_path_that_is_too_long_for_a_socket(var: Path) -> None:
    deep = var.parent / ("a-long-name-" * 12)
    try:
        with psycopg.connect(start(deep)["database_url"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        folder = services.Postgres(deep).socket_folder
        assert folder.parent == Path("/tmp")
    finally:
        services.remove(deep)
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_it_serves_a_folder_that_others_cannot_enter(var: Path) -> None:
    var.parent.chmod(0o700)
    postgres = services.Postgres
    try:
        with psycopg.connect(start(var)["database_url"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert services.SHARED_STATE in postgres(var).data.parents
        assert var.parent.stat().st_mode & 0o777 == 0o700
    finally:
        services.remove(var)
    assert not postgres(var).data.parent.exists()


def test_it_refuses_a_full_disk_in_one_sentence(var: Path) -> None:
    with pytest.raises(services.ServiceError, match=r"The disk of .* is full .* make room"):
        services.check_folder(var, needed=2**80)


def test_it_refuses_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(services.ServiceError, match="set LAUREL_VAR to a folder"):
        services.check_folder(Path("/dev/null/var"))


def test_it_says_what_a_failing_server_said(var: Path) -> None:
    start(var)
    services.stop(var)
    (var / "postgres" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(services.ServiceError, match="no_such_setting"):
        start(var)


def test_a_connection_without_servers_says_what_to_do(
    var: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(psycopg.OperationalError, match="start-it-with-make-up"):
        psycopg.connect(services.database_url())
    with pytest.raises(redis.ConnectionError, match="start-it-with-make-up"):
        redis.Redis.from_url(services.redis_url()).ping()


def test_a_url_may_come_from_a_file(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = var.parent / "url"
    secret.write_text("postgresql://elsewhere/laurel\n")
    monkeypatch.setenv("DATABASE_URL_FILE", str(secret))
    assert services.database_url() == "postgresql://elsewhere/laurel"
    secret.unlink()
    with pytest.raises(SystemExit, match="DATABASE_URL_FILE names"):
        services.database_url()


def test_a_sites_own_url_starts_nothing(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/laurel")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    assert start(var) == {}
    assert services.database_url() == "postgresql://elsewhere/laurel"
    assert not (var / "postgres").exists()
