"""What a database's errors become: the databases themselves make them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from fishladder.errors import AmbiguousError, FatalError, LedgerError, TransientError
from fishladder.ledger import Ledger, database, open_engine, open_ledger

# A statement waits for a lock 60 s, 20 s and 20 s: too long for a test.
IMPATIENT = {
    "sqlite": "PRAGMA busy_timeout = 50",
    "mysql": "SET SESSION innodb_lock_wait_timeout = 1",
    "postgresql": "SET lock_timeout = '50ms'",
}
NUMBER = {"mysql": "SELECT CONNECTION_ID()", "postgresql": "SELECT pg_backend_pid()"}
KILL = {"mysql": "KILL {}", "postgresql": "SELECT pg_terminate_backend({})"}
ALIVE = {
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE id = {}",
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE pid = {}",
}


@pytest.fixture
def server(ledger: Ledger) -> Ledger:
    """A ledger that has connections which can be lost."""
    if ledger.engine.dialect.name == "sqlite":
        pytest.skip("a file has no connection that could be lost")
    return ledger


@contextmanager
def holding(ledger: Ledger, statement: str) -> Iterator[Connection]:
    """Somebody else's open transaction."""
    engine = open_engine(ledger.engine.url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        connection.execute(text(statement))
        yield connection
        connection.rollback()
    engine.dispose()


def kill(ledger: Ledger, number: int) -> None:
    """Have the server end that connection, and see that it has."""
    engine = open_engine(ledger.engine.url.render_as_string(hide_password=False))
    name = engine.dialect.name
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(KILL[name].format(number))
        while connection.exec_driver_sql(ALIVE[name].format(number)).scalar():
            pass
    engine.dispose()


def test_locked_means_repeat(ledger: Ledger) -> None:
    ledger.ensure_routes(["NZ"], "ada")
    ledger.close()

    @event.listens_for(ledger.engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(IMPATIENT[ledger.engine.dialect.name])
        cursor.close()
        connection.commit()

    with holding(ledger, "UPDATE ledger_audit_head SET sequence = sequence + 0"):
        with pytest.raises(TransientError, match="repeat"):
            ledger.ensure_routes(["AU"], "ada")
        assert list(ledger.routes()) == ["NZ"], "who only reads does not wait"
    ledger.ensure_routes(["AU"], "ada")
    assert list(ledger.routes()) == ["AU", "NZ"]


def test_a_deadlock_means_repeat(server: Ledger) -> None:
    server.ensure_routes(["NZ"], "ada")
    server.cut("invoice", server.start_table("invoice"), [(None, None)])
    chunk = server.claim("invoice", 1, "a", timedelta(0))
    assert chunk is not None
    server.finish_chunk("invoice", 1, chunk.token, 1)
    table = server.engine.dialect.identifier_preparer.quote_identifier("ledger_table")
    has_locked_the_table = threading.Event()

    @event.listens_for(server.engine, "before_cursor_execute")
    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "ledger_audit_head" in statement:
            has_locked_the_table.set()

    with ThreadPoolExecutor(1) as pool, holding(server, "SELECT * FROM ledger_audit_head FOR UPDATE") as other:
        # Let the ledger be the victim: MySQL takes whoever has changed less, PostgreSQL whoever looks first.
        if server.engine.dialect.name == "postgresql":
            other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        for number in range(100):
            other.execute(text(f"INSERT INTO ledger_counter VALUES ('other', 'x', 'n{number}', 1)"))
        closing = pool.submit(server.close_table, "invoice", 1)
        assert has_locked_the_table.wait(60)
        other.execute(text(f"SELECT * FROM {table} FOR UPDATE"))
        with pytest.raises(TransientError, match=r"(?i)deadlock.*repeat"):
            closing.result()
    assert server.table_state("invoice").phase == "loading"
    server.close_table("invoice", 1)


def test_whoever_stands_still_in_a_transaction_is_ended(server: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router's machine may be gone, or frozen, with a cohort's route locked."""
    server.ensure_routes(["NZ"], "ada")
    monkeypatch.setattr(database, "_IDLE_SECONDS", 1)
    url = server.engine.url.render_as_string(hide_password=False)
    with ExitStack() as standing:
        connection = standing.enter_context(database.transaction(open_engine(url), writing=True))
        connection.execute(text("SELECT * FROM ledger_route FOR UPDATE"))
        assert server.enqueue("NZ", b"1:1", "charge", "a", "digest", "{}") == server.route("NZ")
        with pytest.raises(AmbiguousError, match=r"lost while committing.*read again"):
            standing.close()


def test_nobody_waits_for_a_lock_for_ever(server: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ensure_routes(["NZ"], "ada")
    monkeypatch.setattr(database, "_LOCK_SECONDS", 1)
    url = server.engine.url.render_as_string(hide_password=False)
    with (
        holding(server, "SELECT * FROM ledger_route FOR UPDATE"),
        open_ledger(url, migration="billing") as other,
        pytest.raises(TransientError, match="repeat"),
    ):
        other.enqueue("NZ", b"1:1", "charge", "a", "digest", "{}")


def test_a_connection_lost_before_the_commit_means_repeat(server: Ledger) -> None:
    lose_it_at(server, "begin")
    with pytest.raises(TransientError, match=r"before committing.*repeat"):
        server.start_table("invoice")
    assert server.table_state("invoice").phase == "new"
    assert server.start_table("invoice") == 1


def test_a_connection_lost_in_the_commit_means_read_again(server: Ledger) -> None:
    lose_it_at(server, "commit")
    with pytest.raises(AmbiguousError, match=r"while committing.*read again"):
        server.start_table("invoice")
    assert server.start_table("invoice") == 1


def lose_it_at(ledger: Ledger, moment: str) -> None:
    def lose(connection: Connection) -> None:
        kill(ledger, connection.exec_driver_sql(NUMBER[ledger.engine.dialect.name]).scalar_one())

    event.listen(ledger.engine, moment, lose, once=True)


def test_an_idle_connection_that_was_lost_is_replaced(server: Ledger) -> None:
    with server.engine.connect() as connection:
        number = connection.exec_driver_sql(NUMBER[server.engine.dialect.name]).scalar_one()
    kill(server, number)
    assert server.routes() == {}


READ_ONLY = {
    "mysql": "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'running with the --read-only option'",
    "postgresql": "DO $$BEGIN RAISE read_only_sql_transaction; END$$",
}


def test_a_server_that_is_no_primary_any_more_is_left(server: Ledger) -> None:
    """After a failover the address leads to another one; connections that are there already do not."""
    server.routes()
    former = set[Any]()

    @event.listens_for(server.engine, "checkout")
    def checked_out(connection: Any, *_: object) -> None:
        former.add(connection) if not former else None

    @event.listens_for(server.engine, "before_cursor_execute", retval=True)
    def executed(connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        writes = connection.connection.dbapi_connection in former and statement.startswith("INSERT")
        return (READ_ONLY[server.engine.dialect.name], ()) if writes else (statement, parameters)

    with pytest.raises(TransientError, match=r"(?i)cannot be written.*read.only.*repeat; see that it is the primary"):
        server.ensure_routes(["NZ"], "ada")
    server.ensure_routes(["NZ"], "ada")
    assert list(server.routes()) == ["NZ"]


def test_nobody_answers_means_repeat(server: Ledger) -> None:
    for host in ("127.0.0.1", "nowhere.invalid"):
        away = server.engine.url.set(host=host, port=1, query={})
        with open_ledger(away.render_as_string(hide_password=False), migration="billing") as ledger:
            for call in (ledger.check_version, ledger.routes, partial(ledger.standing, "NZ", b"1")):
                with pytest.raises(TransientError, match=r"away.*repeat"):
                    call()


def test_a_look_whose_connection_is_lost_means_repeat(server: Ledger) -> None:
    server.ensure_routes(["NZ"], "ada")

    @event.listens_for(server.engine, "checkout", once=True)
    def checked_out(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(NUMBER[server.engine.dialect.name])
        kill(server, cursor.fetchone()[0])
        cursor.close()

    with pytest.raises(TransientError, match=r"lost.*repeat"):
        server.standing("NZ", b"1")
    assert server.standing("NZ", b"1") == (server.route("NZ"), [])


def test_a_stranger_is_refused(server: Ledger) -> None:
    stranger = server.engine.url.set(username="nobody", password="wrong")
    with (
        open_ledger(stranger.render_as_string(hide_password=False), migration="billing") as ledger,
    ):
        for call in (ledger.routes, lambda: ledger.standing("NZ", b"1")):
            with pytest.raises(FatalError, match="refused") as raised:
                call()
            assert not isinstance(raised.value, LedgerError)


@pytest.mark.parametrize("path", ["ledger.db", "missing/ledger.db"])
def test_what_is_no_database_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database, but long enough to be taken for one" * 100)
    with (
        open_ledger(f"sqlite:///{tmp_path / path}", migration="billing") as ledger,
        pytest.raises(FatalError, match="refused"),
    ):
        ledger.routes()


@contextmanager
def saying(words: str) -> Iterator[str]:
    """The URL of what speaks PostgreSQL's protocol, and lets nobody in: as a server of which a process has crashed."""
    fields = b"SFATAL\0VFATAL\0C57P03\0M" + words.encode() + b"\0\0"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    visitor, _ = listening.accept()
                except OSError:
                    return
                with visitor:
                    if visitor.recv(8) == struct.pack("!II", 8, 80877103):  # does it speak TLS?
                        visitor.sendall(b"N")
                        visitor.recv(1000)
                    visitor.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"postgresql://me:secret@127.0.0.1:{listening.getsockname()[1]}/ledger"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "words",
    [
        "the database system is starting up",
        "the database system is not yet accepting connections",
        "the database system is in recovery mode",
        "sorry, too many clients already",
        "remaining connection slots are reserved for non-replication superuser connections",
    ],
)
def test_a_server_that_lets_nobody_in_for_now_means_repeat(words: str) -> None:
    pytest.importorskip("psycopg")
    with saying(words) as url, pytest.raises(TransientError, match=words):
        open_ledger(url, migration="billing").routes()


def test_a_server_that_lets_this_account_never_in_is_no_reason_to_repeat() -> None:
    pytest.importorskip("psycopg")
    with saying('role "me" does not exist') as url, pytest.raises(FatalError, match="does not exist"):
        open_ledger(url, migration="billing").routes()
