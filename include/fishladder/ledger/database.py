"""Connections, transactions and errors of the ledger's database: the only file that knows which one it is.

SQLite: WAL, one writer at a time (BEGIN IMMEDIATE waits for its turn; a reader that turned into a writer would fail at
once). MySQL, MariaDB and PostgreSQL: READ COMMITTED and row locks.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import unquote

from sqlalchemy import Connection, Engine, Table, create_engine, event, select, text
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fishladder.errors import (
    AmbiguousError,
    FatalError,
    FishladderError,
    InputError,
    LedgerError,
    TransientError,
)
from fishladder.silence import end_soon

UPGRADE = "python -m fishladder ledger upgrade"
SLICE = 1000
"""Keys or ids in one statement; SQLite takes 32,766 parameters, PostgreSQL 65,535."""

FEW = 1_000
"""So many rows are read faster than 2,000 keys are looked for."""

_DRIVERS = {"sqlite": "sqlite+pysqlite", "mysql": "mysql+mysqldb", "postgresql": "postgresql+psycopg"}
_BUSY_SECONDS = 60
_CONNECT_SECONDS = 10
_IDLE_SECONDS = 60
"""How long the server waits for the next word of a session, which may hold locks: its process may stand still."""
_LOCK_SECONDS = 20
"""How long a session waits for a lock; a caller that may wait longer asks again."""
_OLD_SECONDS = 60
"""How long a connection is used: after a failover it may lead to a former primary, of which only writes can tell."""
_WAL_TRIES = 100
_WRITING = "fishladder_writing"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One open transaction on behalf of one migration. ``now``: the one moment that it happens at."""

    connection: Connection
    migration: str
    now: datetime


def open_engine(url: str) -> Engine:
    """An engine for ``sqlite:////path``, ``mysql://…`` or ``postgresql://…``; connects later. Raises InputError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # A bare @ or / in a password makes its end a part of the database's name.
    if parsed is None or "\0" in unquote(url) or (parsed.host and "@" in (parsed.database or "")):
        # Without SQLAlchemy's own words, in which a password may be taken for a port.
        raise InputError(
            "the ledger's address is no URL; write for example sqlite:////var/lib/ledger.db or"
            " postgresql://user:password@host:5432/ledger, and percent-encode what is special in user and password"
            " (% is %25, : is %3A, @ is %40, / is %2F, # is %23)"
        )
    backend = parsed.get_backend_name()
    if backend not in _DRIVERS:
        raise InputError(f"the ledger cannot live in {backend!r}; its address starts with {', '.join(_DRIVERS)}")
    if parsed.drivername not in (backend, _DRIVERS[backend]):
        # Errors are told apart by the numbers of these drivers.
        raise InputError(f"the ledger is not reached by {parsed.drivername!r}; begin its address with {backend}://")
    if backend == "sqlite" and "?" in url:
        raise InputError("a sqlite ledger's address is a path alone, without a ?; move the file to one without")
    parsed = parsed.set(drivername=_DRIVERS[backend])
    return _open_sqlite(parsed) if backend == "sqlite" else _open_server(parsed)


def _open_sqlite(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise InputError("a ledger in memory forgets; write sqlite:////path/of/a/file.db")
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS})

    # SQLAlchemy's recipe: take BEGIN away from the driver, which would begin late and deferred.
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writing = connection.get_execution_options().get(_WRITING, True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _open_server(url: URL) -> Engine:
    arguments: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS}
    if url.get_backend_name() == "mysql":
        # A server that is not strict would cut a long text and say nothing.
        settings = (
            f"sql_mode = 'TRADITIONAL', wait_timeout = {_IDLE_SECONDS}, innodb_lock_wait_timeout = {_LOCK_SECONDS}"
        )
        arguments |= {"charset": "utf8mb4", "init_command": f"SET SESSION {settings}"}
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_recycle=_OLD_SECONDS,
        isolation_level="READ COMMITTED",
        connect_args=arguments,
    )

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy's own, which asks the server something
    def connected(connection: Any, _record: object) -> None:
        end_soon(connection.fileno())
        if url.get_backend_name() == "postgresql":  # not as options of the connection: a pooler may refuse those
            connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
            connection.execute(f"SET lock_timeout = '{_LOCK_SECONDS}s'")
            connection.commit()

    @event.listens_for(engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        if _is_read_only(context.original_exception):  # another server is the primary now: none of these leads to it
            context.is_disconnect = True

    return engine


@contextmanager
def transaction(engine: Engine, *, writing: bool, snapshot: bool = False) -> Iterator[Connection]:
    """One transaction, with every database error translated. ``snapshot``: all reads see one moment."""
    options: dict[str, Any] = {_WRITING: writing}
    if snapshot and engine.dialect.name != "sqlite":  # which always does
        options["isolation_level"] = "REPEATABLE READ"
    committing = False
    try:
        with engine.connect() as connection:
            connection.execution_options(**options)
            with connection.begin() as begun:
                yield connection
                committing = True
                begun.commit()
    except DBAPIError as error:
        raise _translated(error, _where(engine), committing=committing) from error
    except PoolTimeout as error:
        raise TransientError("the ledger: all connections of this process are in use; repeat") from error


@contextmanager
def upgrading(engine: Engine) -> Iterator[Connection]:
    """One transaction in which nobody else can upgrade this ledger. Raises TransientError after a minute's wait."""
    if engine.dialect.name == "sqlite":
        _use_wal(engine)
    with transaction(engine, writing=True) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('fishladder ledger'))"))
        if engine.dialect.name == "mysql":
            # DDL commits, so a row's lock would not last; this one does, until the connection is closed.
            # Its name is the whole server's, and at most 64 characters long.
            name = "fishladder ledger " + hashlib.sha256(str(engine.url.database).encode()).hexdigest()[:16]
            if connection.scalar(text("SELECT GET_LOCK(:name, :wait)"), {"name": name, "wait": _BUSY_SECONDS}) != 1:
                raise TransientError("somebody else is upgrading the ledger: repeat")
        yield connection


def _use_wal(engine: Engine) -> None:
    """Switch the file to WAL, for good. Two that do it at once do not wait: one of them fails, and tries again."""
    for _ in range(_WAL_TRIES):
        with transaction(engine, writing=True):
            pass  # a turn at the file, which is what the switch does not wait for
        with closing(engine.raw_connection()) as connection:
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                continue
            return
    raise TransientError(f"the ledger's file is in use, in a mode other than WAL: {engine.url.database}")


# Codes after which the server has rolled back, or has never begun.
_MYSQL_TRANSIENT = {
    1020,  # a row changed since it was read (MariaDB)
    1040,  # too many connections
    1203,  # too many connections of this user
    1205,  # lock wait timeout
    1213,  # deadlock
    2002,  # no connection
    2003,  # no connection
    2005,  # nobody knows the host's name
}
# Codes after which nobody knows whether a commit was done.
_MYSQL_LOST = {
    1053,  # the server is shutting down
    1317,  # interrupted
    1927,  # connection killed (MariaDB)
    2006,  # connection lost
    2013,  # connection lost
    2055,  # connection lost
    4031,  # disconnected for being idle
}
_MYSQL_READ_ONLY = {1290, 1836}
_MYSQL_NO_TABLE = {1146}
_POSTGRES_TRANSIENT = {"40001", "40P01", "53300", "55P03"}
_POSTGRES_LOST = {"25P03", "40003", "57014", "57P01", "57P02", "57P03"}
_POSTGRES_READ_ONLY = "25006"
_POSTGRES_NO_TABLE = {"42P01"}
_POSTGRES_LATER = ("the database system is ", "too many clients", "connection slots")
"""What it says when it lets nobody in for now: it is starting up, shutting down, in recovery mode, or full."""


def _where(engine: Engine) -> str:
    """The ledger's address as it can stand in a message."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def _translated(error: DBAPIError, where: str, *, committing: bool) -> FishladderError:
    """The one place where a driver's error becomes ours."""
    cause = error.orig
    reason = (str(cause).splitlines() or ["no reason given"])[0]
    transient, lost, missing = _meaning(cause)
    if _is_read_only(cause) and not committing:
        return TransientError(f"the ledger in {where} cannot be written ({reason}): repeat; see that it is the primary")
    if lost or error.connection_invalidated:
        if committing:
            return AmbiguousError(f"the ledger's connection was lost while committing ({reason}): read again")
        return TransientError(f"the ledger's connection was lost before committing ({reason}): repeat")
    if committing and _is_disk_error(cause):
        return AmbiguousError(f"the ledger's file failed while committing ({reason}): read again")
    if missing:
        return LedgerError(f"the ledger has no such table ({reason}); run `{UPGRADE}`")
    if transient:
        return TransientError(f"the ledger in {where} is busy or away ({reason}): repeat")
    return FatalError(f"the ledger's database refused: {reason}; see that {where} is its address, and admits you")


def _is_read_only(cause: Any) -> bool:
    code = cause.args[0] if cause.args else None
    return code in _MYSQL_READ_ONLY or getattr(cause, "sqlstate", None) == _POSTGRES_READ_ONLY


def _is_disk_error(cause: Any) -> bool:
    return getattr(cause, "sqlite_errorname", "").startswith("SQLITE_IOERR")


def _meaning(cause: Any) -> tuple[bool, bool, bool]:
    """(transient, connection lost, a table is missing)"""
    if name := getattr(cause, "sqlite_errorname", None):
        transient = name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))
        return transient, False, str(cause).startswith("no such table")
    if hasattr(cause, "sqlstate"):
        state: str | None = cause.sqlstate
        if state is None:  # libpq did not get as far as a session: the server answers FATAL, or there was no answer
            refused = "FATAL" in str(cause)
            starting = any(words in str(cause) for words in _POSTGRES_LATER)
            return starting or not refused, False, False
        lost = state in _POSTGRES_LOST or state.startswith("08")
        return state in _POSTGRES_TRANSIENT, lost, state in _POSTGRES_NO_TABLE
    code = cause.args[0] if cause is not None and cause.args else None
    return code in _MYSQL_TRANSIENT, code in _MYSQL_LOST, code in _MYSQL_NO_TABLE


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    replace: Iterable[str] = (),
    add: Iterable[str] = (),
) -> None:
    """Insert the rows; where one is there already (by any unique key), replace these columns and add to those.

    Without ``replace`` and ``add`` what is there stays as it is.
    """
    if not rows:
        return
    statement: Any
    if connection.dialect.name == "mysql":
        statement = mysql.insert(table)
        changes = {name: statement.inserted[name] for name in replace}
        changes |= {name: table.c[name] + statement.inserted[name] for name in add}
        key = next(iter(table.primary_key))
        # Not INSERT IGNORE, which would ignore every other error too.
        statement = statement.on_duplicate_key_update(changes or {key.name: key})
    else:
        statement = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)
        changes = {name: statement.excluded[name] for name in replace}
        changes |= {name: table.c[name] + statement.excluded[name] for name in add}
        if changes:
            statement = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)
        else:
            statement = statement.on_conflict_do_nothing()
    connection.execute(statement, list(rows))


def may_be_open(tx: Transaction, table: Table, name: str) -> bool:
    """Whether to look for open rows of the migrated table ``name`` by key: mostly there are few or none at all."""
    columns = table.c
    query = select(columns.state).where(columns.migration == tx.migration, columns.table == name).limit(FEW)
    states = tx.connection.scalars(query).all()
    return len(states) == FEW or "open" in states


def slices(items: Iterable[T]) -> Iterator[list[T]]:
    """The items without duplicates, in pieces that one statement can name."""
    unique = list(dict.fromkeys(items))
    for start in range(0, len(unique), SLICE):
        yield unique[start : start + SLICE]
