"""The ground that everything stands on: make's targets, pinned packages, the compose file, the tests' own servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from MySQLdb import OperationalError
from redis import AuthenticationError, Redis

from tests.conftest import not_tested
from tests.servers import STORES, Unavailable, mysql, oracle, redis
from tests.servers.__main__ import SERVERS, STARTS
from tests.servers.private import PrivateServer

ROOT = Path(__file__).resolve().parents[2]


def _pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pinned = [line.split("#")[0].split("==") for line in lines if line.strip() and not line.strip().startswith("#")]
    return {pin[0].partition("[")[0].strip().lower(): pin[1].strip() for pin in pinned}


def test_bare_make_lists_every_target() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE)) - {"help"}
    assert set(re.findall(r"^ +make (\S+) +\S", shown, re.MULTILINE)) == targets
    assert targets >= {"demo", "test", "check", "stores", "stores-stop", "bench", "simulate", "clean"}


def test_constraints_pin_what_is_required() -> None:
    required, constrained = _pins("requirements.txt"), _pins("constraints.txt")
    assert required.items() <= constrained.items(), "make constraints"


def test_constraints_name_no_place() -> None:
    assert not re.search(r"://|--index|--find-links|^# ", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_compose_runs_the_real_databases(compose: dict[str, Any]) -> None:
    images = {service["image"].rsplit(":", 1)[0] for service in compose["services"].values()}
    assert images == {"fishladder-airflow", "postgres", "redis", "gvenzl/oracle-free", "mysql", "cassandra"}


def test_compose_installs_the_versions_that_are_tested(compose: dict[str, Any]) -> None:
    dockerfile = compose["x-airflow"]["build"]["dockerfile_inline"]
    pins = dict(re.findall(r"(apache-airflow[a-z-]*)==(\S+)", dockerfile))
    assert pins.items() <= _pins("requirements.txt").items()
    assert "apache-airflow-providers-celery" in pins  # of its executor
    assert f"apache/airflow:{pins['apache-airflow']}-" in dockerfile


def test_compose_opens_ports_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_waits_only_for_services_that_can_become_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    waits = {
        other
        for service in services.values()
        for other, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }
    assert waits <= {name for name, service in services.items() if "healthcheck" in service}


def test_a_dsn_in_the_environment_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSQL_DSN", "mysql://somebody:secret@db.example:3307/")
    assert mysql.dsn() == "mysql://somebody:secret@db.example:3307/"


@pytest.mark.mysql
def test_accounts_of_a_test_database(mysql_database: mysql.Database) -> None:
    _execute(mysql_database.copier, "SET foreign_key_checks = 0")
    _execute(mysql_database.copier, "CREATE TABLE plan (id INT PRIMARY KEY)")
    _execute(mysql_database.copier, "CREATE TRIGGER t BEFORE INSERT ON plan FOR EACH ROW SET NEW.id = NEW.id")
    _execute(mysql_database.application, "INSERT INTO plan VALUES (1)")
    with pytest.raises(OperationalError, match="denied"):
        _execute(mysql_database.application, "DROP TABLE plan")


@pytest.mark.mysql
def test_server_is_as_strict_as_one_in_production(mysql_server: str) -> None:
    [(modes, isolation)] = _execute(mysql_server, "SELECT @@sql_mode, @@transaction_isolation")
    assert "STRICT_TRANS_TABLES" in modes
    assert isolation == "REPEATABLE-READ"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to all, unlike pytest's own: root has PostgreSQL run as nobody."""
    with TemporaryDirectory(prefix="fishladder-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("kind", "store", "connect", "keep", "look"),
    [
        pytest.param(
            *(mysql.MysqlServer, "MySQL", mysql.connect, "CREATE DATABASE kept", "SHOW DATABASES LIKE 'kept'"),
            marks=pytest.mark.mysql,
            id="mysql",
        ),
        pytest.param(
            *(mysql.MariadbServer, "MariaDB", mysql.connect, "CREATE DATABASE kept", "SHOW DATABASES LIKE 'kept'"),
            id="mariadb",
        ),
        pytest.param(
            *(oracle.OracleEmulator, "Oracle wire emulator", oracle.connect),
            *("CREATE TABLE kept (id NUMBER(5))", "SELECT 'kept', COUNT(*) FROM kept"),
            id="oracle",
        ),
    ],
)
def test_start_is_idempotent_survives_a_kill_and_stop_leaves_nothing(
    pytestconfig: pytest.Config,
    folder: Path,
    kind: type[PrivateServer],
    store: str,
    connect: Callable[[str], Any],
    keep: str,
    look: str,
) -> None:
    if os.environ.get(kind.variable):
        pytest.skip("the server of this run is not one that tests.servers started")
    server = kind(home=folder / "server")
    try:
        try:
            dsn = server.start()
        except Unavailable as reason:
            not_tested(pytestconfig, store, reason)
        pid = server.pid()
        assert pid is not None
        assert server.start() == dsn
        assert server.pid() == pid
        _execute(dsn, keep, connect)
        kept = _execute(dsn, look, connect)
        assert kept[0][0] == "kept"

        os.kill(pid, signal.SIGKILL)
        _wait_until(lambda: server.running() is None)
        assert server.start() == dsn
        assert server.pid() != pid
        assert _execute(dsn, look, connect) == kept
    finally:
        server.stop()
    assert server.running() is None
    assert not server.home.exists()
    assert _processes(server.home) == []


def test_an_oracle_that_comes_back_on_another_port_lets_the_accounts_in(
    pytestconfig: pytest.Config, folder: Path
) -> None:
    if os.environ.get(oracle.OracleEmulator.variable):
        pytest.skip("the server of this run is not one that tests.servers started")
    server = oracle.OracleEmulator(home=folder / "server")
    try:
        try:
            before = server.start()
        except Unavailable as reason:
            not_tested(pytestconfig, "Oracle wire emulator", reason)
        with oracle.database(before):
            pass
        pid = server.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        _wait_until(lambda: server.running() is None)
        with socket.create_server(("127.0.0.1", urlsplit(before).port or 0)):
            after = server.start()
        assert after != before
        with oracle.database(after) as database:
            for url in (database.copier, database.application):
                assert _execute(url, "SELECT 1 FROM dual", oracle.connect) == [(1,)]
    finally:
        server.stop()


@pytest.mark.mysql
@pytest.mark.usefixtures("mysql_server")  # has downloaded the packages, or says why there are none
def test_a_failed_start_shows_the_servers_own_log(tmp_path: Path) -> None:
    if not (STORES / "cache" / "mysql" / "complete").exists():
        pytest.skip("the server of this run is not one that tests.servers started")
    server = mysql.MysqlServer(home=tmp_path / "server")
    server.options = ("--no-such-option",)
    with pytest.raises(Unavailable, match="no-such-option"):
        server.start()
    server.stop()
    assert not server.home.exists()


@pytest.mark.timeout(600)  # four servers, one after the other
def test_the_command_line_starts_all_servers_once_and_stops_them(pytestconfig: pytest.Config, folder: Path) -> None:
    """As ``make stores`` and ``make stores-stop`` do; in a copy, or it would stop the servers of this run."""
    shutil.copytree(ROOT / "tests" / "servers", folder / "tests" / "servers")
    (folder / "tests" / "__init__.py").touch()
    (STORES / "cache").mkdir(parents=True, exist_ok=True)
    (folder / ".stores").mkdir()
    (folder / ".stores" / "cache").symlink_to(STORES / "cache")
    given = {kind.variable for kind in SERVERS.values()}
    environment = {name: value for name, value in os.environ.items() if name not in given}

    def servers(command: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "tests.servers", command]
        return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    try:
        first = servers("start")
        if first.returncode != 0:
            not_tested(pytestconfig, "python -m tests.servers start", first.stderr)
        assert [line.partition("=")[0] for line in first.stdout.splitlines()] == [
            SERVERS[name].variable for name in STARTS
        ]
        running = _processes(folder)
        assert running
        second = servers("start")
        assert (second.returncode, second.stdout) == (0, first.stdout)
        assert second.stderr.count("runs already") == len(given)
        assert _processes(folder) == running
    finally:
        stopped = servers("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert _processes(folder) == []
    assert [path.name for path in (folder / ".stores").iterdir()] == ["cache"]
    assert servers("stop").returncode == 0


def test_redis_is_found_again_asks_for_its_password_and_leaves_nothing(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    server = redis.RedisServer(home=tmp_path / "server")
    try:
        dsn = server.start()
    except Unavailable as reason:
        not_tested(pytestconfig, "Redis", reason)
    try:
        assert server.running() == server.start() == dsn
        with Redis.from_url(dsn) as known, Redis.from_url(re.sub("//.*@", "//", dsn)) as stranger:
            known.set("left", "behind")
            with pytest.raises(AuthenticationError):
                stranger.get("left")
            redis.empty(dsn)
            assert known.get("left") is None
    finally:
        server.stop()
    assert server.running() is None and not server.home.exists()


def _execute(url: str, statement: str, connect: Callable[[str], Any] = mysql.connect) -> list[tuple[Any, ...]]:
    with closing(connect(url)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def _processes(folder: Path) -> list[int]:
    """Those that were started with a path in the folder and live."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if f"{folder}/".encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return sorted(found)


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
