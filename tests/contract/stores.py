"""The stores that the contract suite runs on: a class each, and one line in ``STORES`` to join."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from billing.database import Database, connect
from fishladder.stores import connect_url, open_store
from fishladder.stores.base import ForeignKey, Store, TableInfo
from tests.conftest import not_tested
from tests.servers import Unavailable, mysql, oracle

PATIENCE = 30.0
"""Seconds after which a test that waits for something has failed."""


@dataclass(kw_only=True)
class Place:
    """One empty database, as those see it who administer it, copy into it, and use it.

    ``lacks`` names what a kind of store has not, each with the reason.
    """

    kind: ClassVar[str]
    lacks: ClassVar[Mapping[str, str]] = {}
    admin: str
    copier: str
    application: str
    opened: list[Any] = field(default_factory=list)

    def needs(self, *capabilities: str) -> None:
        """Leave out the test where something that it is about is lacking."""
        for capability in capabilities:
            assert any(capability in kind.lacks for kind in KINDS) or capability in EMULATOR_LACKS, capability
            if capability in self.lacks:
                pytest.skip(f"{self.kind} lacks {capability}: {self.lacks[capability]}")

    def open(self) -> Any:
        """A new instance of the store, as the copier."""
        store: Store = open_store(*connect_url(self.copier))
        self.opened.append(store)
        return store

    def create_tables(self, store: Any, infos: Sequence[TableInfo]) -> None:
        """Also such as refer to each other."""
        for info in infos:
            store.create_table(info)

    def administrator(self) -> Database:
        return self._connect(self.admin)

    def user(self) -> Database:
        """A new connection of the application."""
        return self._connect(self.application)

    def as_user(self, work: Callable[[Database], Any]) -> Any:
        """Work on a connection that belongs to the calling thread."""
        with closing(connect(self.application)) as db:
            return work(db)

    def _connect(self, url: str) -> Database:
        self.opened.append(connect(url))
        return self.opened[-1]

    def close(self) -> None:
        for one in self.opened:
            one.close()

    def wait_for_waiter(self) -> None:
        """Until some transaction waits for a lock that another holds."""
        raise NotImplementedError


class SqlitePlace(Place):
    kind = "sqlite"
    lacks: ClassVar[Mapping[str, str]] = {
        "accounts": "a file knows no accounts: the copier is known by its mark",
        "collations": "no column folds case unless it is declared to",
        "connection": "a file has no connection that could be lost",
        "disabled triggers": "a trigger of SQLite is there or it is not",
        "negative zero": "SQLite keeps -0.0 as 0",
        "row locks": "its single writer is the only lock, and nobody can see who waits for it",
        "tables without transactions": "every table of SQLite has them",
        "snapshots": "a writing transaction begins as the only one, so that it never sees an older state",
        "truncate": "SQLite has no TRUNCATE: a DELETE of all rows fires the triggers",
    }

    def wait_for_waiter(self) -> None:
        threading.Event().wait(0.2)  # nobody can see who waits for the file; too short only weakens the test


class MySqlPlace(Place):
    kind = "mysql"
    lacks: ClassVar[Mapping[str, str]] = {"disabled triggers": "a trigger of MySQL is there or it is not"}

    def wait_for_waiter(self) -> None:
        admin, end = self.administrator(), time.monotonic() + PATIENCE
        while not self.has_waiter(admin):
            assert time.monotonic() < end, "nobody waits for a lock"
            threading.Event().wait(0.005)

    def has_waiter(self, admin: Database) -> bool:
        (number,) = admin.rows(
            "SELECT count(*) FROM performance_schema.data_lock_waits w JOIN performance_schema.data_locks l"
            " ON l.engine_lock_id = w.requesting_engine_lock_id WHERE l.object_schema = DATABASE()"
        )
        return number != (0,)

    def running(self, like: str) -> list[int]:
        """The other sessions that run such a statement."""
        # information_schema.processlist cannot be read while anybody runs a statement with bytes in it (error 3854).
        sql = (
            "SELECT processlist_id FROM performance_schema.threads WHERE processlist_db = DATABASE()"
            f" AND processlist_info LIKE '{like}' AND processlist_id <> CONNECTION_ID()"
        )
        return [session for (session,) in self.administrator().rows(sql)]


class MariaDbPlace(MySqlPlace):
    lacks: ClassVar[Mapping[str, str]] = {
        **MySqlPlace.lacks,
        "JSON": "its JSON is text, of which nothing is changed",
        "negative zero": "MariaDB keeps -0.0 as 0",
    }

    def has_waiter(self, admin: Database) -> bool:
        # The views in information_schema give old answers to whoever asks often.
        ((_, _, status),) = admin.rows("SHOW ENGINE INNODB STATUS")
        ((schema,),) = admin.rows("SELECT DATABASE()")
        return re.search(rf"LOCK TO BE GRANTED:\n[^\n]* table `{schema}`", status) is not None

    def running(self, like: str) -> list[int]:
        # Its performance_schema is off unless asked for.
        sql = (
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
            f" AND info LIKE '{like}' AND id <> CONNECTION_ID()"
        )
        return [session for (session,) in self.administrator().rows(sql)]


EMULATOR_LACKS = {
    "estimates": "the wire emulator takes no statistics: not verified on Oracle",
    "blanks at an end": "the wire emulator drops those that do not fit: not verified on Oracle",
    "NUL": "PostgreSQL, behind the wire emulator, has no NUL in a text: not verified on Oracle",
    "deferred constraints": "the wire emulator's sessions cannot ask for them at once: not verified on Oracle",
    "partitions": "the wire emulator has none: not verified on Oracle",
    "snapshots": "the wire emulator has no autonomous transactions: not verified on Oracle",
}


class OraclePlace(Place):
    """An Oracle, or the Oracle wire emulator, which is none."""

    kind = "oracle"
    lacks: ClassVar[Mapping[str, str]] = {
        # Of Oracle itself.
        "collations": "columns compare byte for byte, unless a session asks for something else",
        "negative zero": "Oracle keeps -0.0 as 0",
        "dates without a time": "a DATE of Oracle has a time of day: the core's check finds what is no date",
        "empty texts": "'' is NULL",
        "EXPLAIN": "the test reads plans of MySQL and SQLite",
        "64-bit integers": "a NUMBER has decimal digits",
        "NOT NULL texts": "a text that may be '' elsewhere may be NULL here",
        "quotes in names": "no name of Oracle's dictionary holds one",
        "ON UPDATE CASCADE": "Oracle has none",
        "REPLACE": "Oracle has no REPLACE",
        "tables without transactions": "every table of Oracle has them",
        "sessions to be ended": "the test ends one of MySQL",
        "types of MySQL": "a test of MySQL's types",
        "unchecked foreign keys": "a session cannot leave foreign keys unchecked: there are no orphans",
        # Of fishladder.
        "rows in a circle": "rows are written one by one, and each is checked at once (docs/oracle.md)",
        **({} if oracle.is_real() else EMULATOR_LACKS),
    }

    def create_tables(self, store: Any, infos: Sequence[TableInfo]) -> None:
        """A foreign key needs its parent: what closes a circle is added when all are there."""
        later: list[tuple[str, ForeignKey]] = []
        for number, info in enumerate(infos):
            absent = {other.name for other in infos[number + 1 :]}
            store.create_table(
                replace(info, foreign_keys=tuple(key for key in info.foreign_keys if key.parent not in absent))
            )
            later += [(info.name, key) for key in info.foreign_keys if key.parent in absent]
        for number, (name, key) in enumerate(later):
            rule = f" ON DELETE {key.on_delete}" if key.on_delete != "NO ACTION" else ""
            self.administrator().execute(
                f"ALTER TABLE {name} ADD CONSTRAINT later_{number} FOREIGN KEY ({', '.join(key.columns)})"
                f" REFERENCES {key.parent} ({', '.join(key.parent_columns)}){rule}"
            )

    def wait_for_waiter(self) -> None:
        admin, end = self.administrator(), time.monotonic() + PATIENCE
        while admin.rows("SELECT count(*) FROM v$session WHERE blocking_session IS NOT NULL") == [(0,)]:
            assert time.monotonic() < end, "nobody waits for a lock"
            threading.Event().wait(0.005)


KINDS = (SqlitePlace, MySqlPlace, MariaDbPlace, OraclePlace)
Opener = Callable[[pytest.FixtureRequest, Path], AbstractContextManager[Place]]


@contextmanager
def sqlite(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    folder.mkdir(exist_ok=True)
    url = f"sqlite:///{folder}/store.db"
    yield SqlitePlace(admin=url, copier=url, application=url)


@contextmanager
def mysql_server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    with mysql.database(request.getfixturevalue("mysql_server")) as database:
        yield MySqlPlace(admin=database.admin, copier=database.copier, application=database.application)


@contextmanager
def mariadb_server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    try:
        server = mysql.mariadb_dsn()
    except Unavailable as reason:
        not_tested(request.config, "MariaDB", reason)
    with mysql.database(server) as database:
        yield MariaDbPlace(admin=database.admin, copier=database.copier, application=database.application)


@contextmanager
def oracle_server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    with oracle.database(request.getfixturevalue("oracle_server")) as database:
        yield OraclePlace(admin=database.admin, copier=database.copier, application=database.application)


STORES: dict[str, Opener] = {
    "sqlite": sqlite,
    "mysql": mysql_server,
    "mariadb": mariadb_server,
    "oracle": oracle_server,
}
