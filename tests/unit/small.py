"""A small migration on two SQLite files, for tests of one step at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishladder import apply, install, load
from fishladder.apply import Ends
from fishladder.clock import SystemClock
from fishladder.ledger import Ledger, open_ledger
from fishladder.plan import Plan, resolve
from fishladder.spec import Migration, loads
from fishladder.stores.sqlite import SqliteStore, connect
from tests import ledgers

SPEC = """
migration: small
strategy: replicate
source: {kind: sqlite, connection: source}
target: {kind: sqlite, connection: target}
application: {source: source_app, target: target_app}
cohort: {label: country, root: customer, column: country, waves: [[NZ], ["*"]]}
tables:
  price: shared
  customer: root
  item: {entity: customer_id}
  line: {via: item}
"""
SCHEMA = """
CREATE TABLE price (id INTEGER PRIMARY KEY, amount DECIMAL_TEXT(10,4) NOT NULL);
CREATE TABLE customer (id INTEGER PRIMARY KEY, country VARCHAR(2), email VARCHAR(40) UNIQUE);
CREATE TABLE item (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    amount INTEGER NOT NULL);
CREATE TABLE line (item_id INTEGER NOT NULL REFERENCES item (id) ON DELETE CASCADE, no INTEGER NOT NULL,
    text VARCHAR(20), PRIMARY KEY (item_id, no));
INSERT INTO price VALUES (1, '1.50'), (2, '2.25');
INSERT INTO customer VALUES (1, 'NZ', 'a'), (2, 'AU', 'b'), (3, NULL, 'c');
INSERT INTO item VALUES (10, 1, 5), (20, 2, 6), (30, 3, 7);
INSERT INTO line VALUES (10, 1, 'x'), (10, 2, NULL), (20, 1, '');
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    folder: Path
    spec: Migration
    plan: Plan
    source: SqliteStore
    target: SqliteStore
    ledger: Ledger

    @property
    def ends(self) -> Ends:
        return Ends(owner="source", origin=self.source, destination=self.target)

    def another(self, name: str) -> SqliteStore:
        """Another connection to one of the stores."""
        path = str(self.folder / f"{name}.db")
        return SqliteStore(lambda: connect(path))

    def url(self, name: str) -> str:
        return f"sqlite:///{self.folder / name}.db"

    def application(self, *statements: str, store: str = "source") -> None:
        """One transaction of the application."""
        with closing(sqlite3.connect(self.folder / f"{store}.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute("COMMIT")

    def damage(self, *statements: str) -> None:
        """Change the target behind everybody's back."""
        mark, unmark = "INSERT INTO fishladder_copying VALUES (1)", "DELETE FROM fishladder_copying"
        self.application(mark, *statements, unmark, store="target")

    def rows(self, store: str, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / f"{store}.db")) as connection:
            return connection.execute(query).fetchall()

    def load(self, chunk_rows: int = 2) -> None:
        self.load_tables(*(table.name for table in self.plan.tables), chunk_rows=chunk_rows)

    def load_tables(self, *names: str, chunk_rows: int = 2) -> None:
        load.cut(self.plan, self.source, self.ledger, chunk_rows)
        for name in names:
            load.load_lane(self.plan.table(name), self.source, self.target, self.ledger, lane="1")
        for name in names:
            load.close_load(self.plan, self.plan.table(name), self.target, self.ledger)

    def follow(self) -> apply.Followed:
        return apply.follow(self.plan, [self.ends], self.ledger, SystemClock(), seconds=20, until_idle=True)


def make(folder: Path, *, schema: str = SCHEMA, spec: str = SPEC, target: str | None = None) -> Small:
    """Two databases and a ledger, everything installed, nothing loaded."""
    for name, script in (("source", schema), ("target", target or "")):
        with closing(sqlite3.connect(folder / f"{name}.db")) as connection:
            connection.executescript(script)
    ledgers.create(f"sqlite:///{folder / 'ledger.db'}")
    if target is None:
        source, goal = _stores(folder)
        install.create_target_tables(loads(spec, name="small.yaml", environment={}), source, goal)
        source.close()
        goal.close()
    made = reopen(folder, spec=spec)
    install.install(made.spec, made.plan, made.source, made.target, made.ledger, actor="test")
    return made


def reopen(folder: Path, *, spec: str = SPEC) -> Small:
    """What ``make`` left in a folder, or a copy of it."""
    source, target = _stores(folder)
    found = loads(spec, name="small.yaml", environment={})
    plan = resolve(found, source.describe(), target.describe())
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}", migration="small")
    return Small(folder=folder, spec=found, plan=plan, source=source, target=target, ledger=ledger)


def _stores(folder: Path) -> tuple[SqliteStore, SqliteStore]:
    source, target = (str(folder / f"{name}.db") for name in ("source", "target"))
    return SqliteStore(lambda: connect(source)), SqliteStore(lambda: connect(target))


def close(small: Iterable[Small]) -> None:
    for one in small:
        one.source.close()
        one.target.close()
        one.ledger.close()
