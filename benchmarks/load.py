"""The bulk load: its speed, its memory, and what it reaches from Oracle's wire protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import MySQLdb.cursors

from benchmarks.ground import ALL, COLUMNS, LANES, Address, Bench, Ground, Migration, check_count, rows_text
from benchmarks.lanes import run_lanes
from benchmarks.results import REPEATS, Result, per_second, result
from billing.database import Database, connect
from tests.servers import mysql

TYPED_BATCH = 5_000
MEMORY_FACTOR = 10
MEMORY_LIMIT = 200.0
"""Megabytes that a lane may take, whatever the table."""


def load(ground: Ground) -> Iterator[Result]:
    """All lanes, with tokens and ledger, against INSERT … SELECT in as many ranges and against typed executemany."""
    bench = ground.bench()
    limit, typed = [], []
    for _ in range(REPEATS):
        with bench.migration() as migration:
            with _reference(migration.target):
                fastest = per_second(bench.invoices, _insert_select, migration, bench.last_id)
            rate = bench.invoices / run_lanes(migration, LANES).seconds
            check_count(migration.target, bench.invoices)
            limit.append((rate, fastest))
            with _reference(migration.target):
                typed.append((rate, per_second(bench.invoices, _executemany, migration)))
    name = f"{bench.label}, {LANES} lanes"
    yield result("load", f"{name} / INSERT … SELECT, {LANES} ranges", "rows/s", limit, goal=0.75)
    yield result("load", f"{name} / typed executemany", "rows/s", typed, goal=3.5)


def memory(ground: Ground) -> Iterator[Result]:
    """The largest lane's peak, for a table and one ten times as long."""
    small = _peaks(ground.bench())
    with ground.one_bench(ground.rows * MEMORY_FACTOR) as bench:
        large = _peaks(bench)
        name = f"{bench.label}, peak of a lane"
    yield result("memory", f"{name} / {rows_text(ground.rows)}", "MB", list(zip(large, small, strict=True)), goal=1.1)
    limit = [(peak, MEMORY_LIMIT) for peak in large]
    yield result("memory", f"{name} / limit", "MB", limit, goal=1.0)


def _peaks(bench: Bench) -> Sequence[float]:
    peaks = []
    for _ in range(REPEATS):
        with bench.migration() as migration:
            peaks.append(run_lanes(migration, LANES).megabytes)
            check_count(migration.target, bench.invoices)
    return peaks


@contextmanager
def _reference(target: Address) -> Iterator[None]:
    """An empty table ``reference`` beside the target's invoices, with the same indexes and keys (and no triggers, as
    the target has none while it is loaded)."""
    with closing(connect(target.copier)) as db:
        db.execute("CREATE TABLE reference LIKE invoice")
        db.execute("ALTER TABLE reference ADD FOREIGN KEY (customer_id) REFERENCES customer (id)")
        try:
            yield
        finally:
            db.execute("DROP TABLE reference")


def _loading(db: Database) -> Database:
    """As the loader's session is."""
    db.execute("SET SESSION foreign_key_checks = 0, transaction_isolation = 'READ-COMMITTED'")
    return db


def _insert_select(migration: Migration, last_id: int) -> None:
    statement = (
        f"INSERT INTO reference ({ALL}) SELECT {ALL} FROM {migration.source.name}.invoice WHERE id > ? AND id <= ?"
    )
    bounds = [last_id * part // LANES for part in range(LANES + 1)]
    with ExitStack() as kept, ThreadPoolExecutor(LANES) as pool:
        sessions = [_loading(kept.enter_context(closing(connect(migration.target.admin)))) for _ in range(LANES)]
        list(pool.map(lambda db, *part: db.execute(statement, part), sessions, bounds, bounds[1:]))


def _executemany(migration: Migration) -> None:
    """What one would write by hand: the driver's own types, read in batches and written in one transaction."""
    with (
        closing(mysql.connect(migration.source.copier)) as source,
        closing(mysql.connect(migration.target.copier)) as target,
        source.cursor(MySQLdb.cursors.SSCursor) as read,
        target.cursor() as write,
    ):
        write.execute("SET SESSION foreign_key_checks = 0")
        read.execute(f"SELECT {ALL} FROM invoice")
        statement = f"INSERT INTO reference ({ALL}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
        while rows := read.fetchmany(TYPED_BATCH):
            write.executemany(statement, rows)
        target.commit()
