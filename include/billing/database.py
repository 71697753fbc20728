"""One connection to a billing database on SQLite or MySQL, with the few differences between the two."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

import MySQLdb

Row: TypeAlias = tuple[Any, ...]
DatabaseError = (sqlite3.Error, MySQLdb.Error)


class Database(Protocol):
    """A connection. Statements use `?`; a statement outside `transaction()` commits by itself."""

    #: What a SELECT ends with to lock the rows it reads until the transaction is over.
    for_update: str

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement; returns the number of rows it changed."""

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        """Run one INSERT; returns the id that the database generated."""

    def insert_many(self, sql: str, rows: Sequence[Row]) -> None: ...

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]: ...

    def script(self, sql: str) -> None:
        """Run statements that end in `;` (and hold no other one)."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Inside an open transaction of this object it joins that one."""
        yield

    def must_retry(self, error: Exception) -> bool:
        """True if a lock was in the way: everything was rolled back and may be repeated."""

    def is_lost(self, error: Exception) -> bool:
        """True if the connection broke: what was being done may or may not have happened."""

    def close(self) -> None: ...


class SqliteDatabase:
    for_update = ""  # BEGIN IMMEDIATE makes this the only writer

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("PRAGMA foreign_keys=ON")

    @classmethod
    def open(cls, path: str) -> SqliteDatabase:
        connection = sqlite3.connect(path, isolation_level=None, timeout=60)
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA journal_mode=WAL")
        return cls(connection)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        generated = self._connection.execute(sql, parameters).lastrowid
        assert generated is not None
        return generated

    def insert_many(self, sql: str, rows: Sequence[Row]) -> None:
        self._connection.executemany(sql, rows)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def script(self, sql: str) -> None:
        self._connection.executescript(sql)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def must_retry(self, error: Exception) -> bool:
        # The low byte is the primary code; SQLITE_BUSY_SNAPSHOT and the like are in the others.
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_lost(self, error: Exception) -> bool:
        return False

    def close(self) -> None:
        self._connection.close()


class MysqlDatabase:
    for_update = " FOR UPDATE"

    def __init__(self, connection: MySQLdb.Connection) -> None:
        self._connection = connection
        self._open = False

    @classmethod
    def open(cls, *, host: str, port: int, user: str, password: str, database: str) -> MysqlDatabase:
        return cls(
            MySQLdb.connect(
                host=host,
                port=port,
                user=user,
                password=password,
                database=database,
                charset="utf8mb4",
                autocommit=True,
            )
        )

    def _run(self, sql: str, parameters: Sequence[Any]) -> MySQLdb.cursors.Cursor:
        cursor = self._connection.cursor()
        # Without parameters the driver leaves the text alone; with them, `%` is its own.
        cursor.execute(*((_percent(sql), tuple(parameters)) if parameters else (sql,)))
        return cursor

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._run(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        return self._run(sql, parameters).lastrowid

    def insert_many(self, sql: str, rows: Sequence[Row]) -> None:
        self._connection.cursor().executemany(_percent(sql), rows)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return list(self._run(sql, parameters).fetchall())

    def script(self, sql: str) -> None:
        without_comments = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
        if "MariaDB" in self._connection.get_server_info():
            without_comments = without_comments.replace("utf8mb4_0900_bin", "utf8mb4_nopad_bin")
        for statement in without_comments.split(";"):
            if statement.strip():
                self._run(statement, ())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._open:
            yield
            return
        self._run("START TRANSACTION", ())
        self._open = True
        try:
            yield
            self._connection.commit()
        except BaseException as error:
            if not (isinstance(error, MySQLdb.Error) and self.is_lost(error)):
                # A lock wait timeout (1205) rolls back only its statement.
                self._connection.rollback()
            raise
        finally:
            self._open = False

    def must_retry(self, error: Exception) -> bool:
        return isinstance(error, MySQLdb.OperationalError) and error.args[0] in (1205, 1213)

    def is_lost(self, error: Exception) -> bool:
        return isinstance(error, MySQLdb.Error) and bool(error.args) and error.args[0] in (0, 2006, 2013, 2055)

    def close(self) -> None:
        self._connection.close()


def connect(url: str) -> Database:
    """Connect to `sqlite:////absolute/path.db` or `mysql://user:password@host:port/database`."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return SqliteDatabase.open(unquote(parts.path[1:]))
    if parts.scheme == "mysql":
        return MysqlDatabase.open(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=unquote(parts.path[1:]),
        )
    raise ValueError(
        f"unknown kind of database {parts.scheme!r}: write sqlite:////path.db or mysql://user:password@host:port/name"
    )


def _percent(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")
