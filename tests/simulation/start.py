"""What a world begins with. It depends on the kind of the world alone, so it is made once and then copied."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fishladder import install, load
from fishladder.ledger import open_ledger, upgrade
from fishladder.plan import Plan, resolve
from fishladder.spec import Migration, loads
from fishladder.stores.sqlite import SqliteStore
from tests.simulation.world import Clock, Seam

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
SPEC = """
migration: simulated
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
CREATE TABLE price (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL, after INTEGER);
CREATE TABLE customer (id INTEGER PRIMARY KEY, country TEXT, email TEXT UNIQUE, balance INTEGER NOT NULL);
CREATE TABLE item (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    amount INTEGER NOT NULL);
CREATE TABLE line (item_id INTEGER NOT NULL REFERENCES item (id) ON DELETE CASCADE, no INTEGER NOT NULL,
    amount INTEGER NOT NULL, PRIMARY KEY (item_id, no));
"""
TARGET_SCHEMA = """
CREATE TABLE price (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL, after INTEGER REFERENCES price (id));
"""
"""Only the target demands that the price before is there."""
STRICT = """
CREATE TABLE tolerant (yes INTEGER);
CREATE TRIGGER price_insert BEFORE INSERT ON price WHEN NEW.cents >= 500 AND NOT EXISTS (SELECT 1 FROM tolerant)
    BEGIN SELECT RAISE(ABORT, 'too dear'); END;
CREATE TRIGGER price_update BEFORE UPDATE ON price WHEN NEW.cents >= 500 AND NOT EXISTS (SELECT 1 FROM tolerant)
    BEGIN SELECT RAISE(ABORT, 'too dear'); END;
CREATE TRIGGER item_insert BEFORE INSERT ON item WHEN NEW.amount % 4 = 3 AND NOT EXISTS (SELECT 1 FROM tolerant)
    BEGIN SELECT RAISE(ABORT, 'an odd amount'); END;
CREATE TRIGGER item_update BEFORE UPDATE ON item WHEN NEW.amount % 4 = 3 AND NOT EXISTS (SELECT 1 FROM tolerant)
    BEGIN SELECT RAISE(ABORT, 'an odd amount'); END;
"""
"""A target that refuses some rows, until somebody mends it."""
CUSTOMERS = 7
SLEEPERS = (91, 92)
"""Customers, and prices, that the application never touches: who damages them has to be found out by a pass."""
CHUNK_ROWS = 4


class Lasting(sqlite3.Connection):
    """Who closes it leaves it to the next: a new connection has to parse the schema first, triggers and all."""

    idle: list[Lasting]
    last: sqlite3.Cursor | None = None

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.last = super().execute(*arguments)
        return self.last

    def close(self) -> None:
        if self.last is not None:
            self.last.close()  # a query that was not read to its end would keep its snapshot
        self.rollback()
        self.idle.append(self)

    def end(self) -> None:
        if self.last is not None:
            self.last.close()  # whoever was killed in a query has left it open, and the file with it
        super().close()


class SimulatedStore(SqliteStore):
    lock_wait = 0.0  # nobody really waits: the scheduler lets somebody else go on
    chunk_rows = CHUNK_ROWS

    def __init__(self, connect: Callable[[], sqlite3.Connection], idle: list[Lasting], clock: Clock) -> None:
        super().__init__(connect)
        self._idle, self._clock = idle, clock

    def _open(self) -> sqlite3.Connection:
        return self._idle.pop() if self._idle else super()._open()

    def connection(self) -> sqlite3.Connection:
        fresh = self._connection is None
        connection = super().connection()
        if fresh:
            connection.execute("PRAGMA synchronous = OFF")  # the machine itself never fails here
            connection.create_function("strftime", -1, lambda *_: f"{self._clock.now():%F %T.%f}"[:23])
        return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The files of source, target and ledger in ``folder``, and what the migration file says of them."""

    folder: Path
    spec: Migration
    plan: Plan


@cache
def place() -> Path:
    """This process's own folder, for as long as it lives."""
    folder = tempfile.TemporaryDirectory(prefix="fishladder-sim-", dir=FAST)
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def start_of(begins: str, *, strict: bool, orphan: bool) -> Start:
    """The start of worlds of this kind. Forget it (``start_of.cache_clear``) when the code is another one."""
    folder = place() / f"{begins}-{strict}-{orphan}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    clock = Clock(Seam(0))
    spec: Migration = loads(SPEC, name="simulated.yaml", environment={})
    _populate(folder, strict=strict, orphan=orphan)
    source, target = (SimulatedStore(_connecting(folder / f"{name}.db"), [], clock) for name in ("source", "target"))
    url = f"sqlite:///{folder / 'ledger.db'}"
    upgrade(url)
    with open_ledger(url, migration="simulated", clock=clock.now) as ledger, closing(source), closing(target):
        install.create_target_tables(spec, source, target)
        if strict:
            with closing(sqlite3.connect(folder / "target.db")) as refusing:
                refusing.executescript(STRICT)
        plan = resolve(spec, source.describe(), target.describe())
        if begins != "bare":
            install.install(spec, plan, source, target, ledger, actor="simulation")
        if begins == "loaded":
            load.cut(plan, source, ledger, 1_000)
            for table in plan.tables:
                load.load_lane(table, source, target, ledger, lane="1")
                load.close_load(plan, table, target, ledger)
    return Start(folder=folder, spec=spec, plan=plan)


def _connecting(file: Path) -> Callable[[], sqlite3.Connection]:
    return lambda: sqlite3.connect(file, timeout=0)


def _populate(folder: Path, *, strict: bool, orphan: bool) -> None:
    with closing(sqlite3.connect(folder / "target.db")) as target:
        target.executescript(TARGET_SCHEMA)
    with closing(sqlite3.connect(folder / "source.db")) as source:
        source.executescript(SCHEMA)
        for number in (*range(1, CUSTOMERS + 1), *SLEEPERS):
            country = (None, "NZ", "AU", "IE")[number % 4]
            source.execute("INSERT INTO customer VALUES (?, ?, ?, 0)", [number, country, f"c{number}"])
            for item in range(2):
                source.execute("INSERT INTO item VALUES (?, ?, ?)", [number * 10 + item, number, item])
                source.execute("INSERT INTO line VALUES (?, 1, 5)", [number * 10 + item])
        source.executemany("INSERT INTO price VALUES (?, 100, NULL)", [(1,), (2,), (3,)])
        before = [999, 1] if orphan else [None, 1]
        source.executemany("INSERT INTO price VALUES (?, 100, ?)", zip(SLEEPERS, before, strict=True))
        if strict:  # refused from the beginning, and by every loading
            source.execute("UPDATE price SET cents = 600 WHERE id = ?", [SLEEPERS[1]])
        source.commit()
