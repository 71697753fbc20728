"""What is measured. Each case runs its reference right before itself, so that both meet the same machine."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.synchronize import Barrier

from benchmarks.ground import COLUMNS, Bench, Migration, Reference, seed
from benchmarks.results import REPEATS, Result, per_second, result
from billing.database import Database, connect
from fishladder import tasks
from fishladder.stores import connect_url, open_store

START_SECONDS = 60.0
CHANGES = 5_000
ROW_BY_ROW = 500
TRANSACTIONS = 250
DEADLINE = 600.0


def load(bench: Bench, lanes: int, *, typed: bool = False) -> Iterator[Result]:
    """Bulk load of the invoices, each lane a process, against INSERT … SELECT and (``typed``) executemany."""
    rounds: list[tuple[float, float]] = []
    typed_rounds: list[tuple[float, float]] = []
    for _ in range(REPEATS):
        with bench.migration() as migration:
            with bench.ground.reference(migration.source, migration.target) as found:
                statement = f"INSERT INTO {found.copy} ({COLUMNS}) SELECT {COLUMNS} FROM {found.origin}"
                limit = per_second(bench.invoices, found.db.execute, statement)
            rate = bench.invoices / _lanes(migration, lanes)
            rounds.append((rate, limit))
            if typed:
                with bench.ground.reference(migration.source, migration.target) as found:
                    typed_rounds.append((rate, per_second(bench.invoices, _executemany, found)))
    name = f"{bench.ground.label}→{bench.ground.label}, {lanes} lane{'s' if lanes > 1 else ''}"
    yield result("load", f"{name} / INSERT … SELECT", "rows/s", rounds)
    if typed:
        yield result("load", f"{name} / typed executemany", "rows/s", typed_rounds)


def _lanes(migration: Migration, lanes: int) -> float:
    """Seconds until all lanes have ended. They are processes, as in Airflow, that start when all have been imported."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(lanes + 1)
    processes = [context.Process(target=_lane, args=(migration, str(no), start)) for no in range(1, lanes + 1)]
    for process in processes:
        process.start()
    start.wait(START_SECONDS)
    began = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise RuntimeError("a lane failed; its error stands above")
    return seconds


def _lane(migration: Migration, lane: str, start: Barrier) -> None:
    with migration.desk() as desk:
        start.wait(START_SECONDS)
        tasks.load_table(desk, "invoice", lane)


def _executemany(found: Reference) -> None:
    marks = ", ".join("?" * len(COLUMNS.split(",")))
    with found.db.transaction():
        rows = found.db.rows(f"SELECT {COLUMNS} FROM {found.origin}")
        found.db.insert_many(f"INSERT INTO {found.copy} ({COLUMNS}) VALUES ({marks})", rows)


def apply_and_reconcile(bench: Bench) -> Iterator[Result]:
    """The applier on a journal of updates, and a pass over equal tables."""
    changes = min(CHANGES, bench.invoices)
    with bench.migration() as migration, migration.desk() as desk:
        migration.finish_load()
        tasks.replicate(desk, seconds=DEADLINE, until_idle=True)
        rounds = []
        with bench.ground.reference(migration.source, migration.target) as found:
            for number in range(REPEATS):
                limit = per_second(ROW_BY_ROW, _row_by_row, found)
                with closing(connect(migration.source.application)) as customer:
                    _update_many(customer, changes, f"round {number}")
                rate = per_second(changes, tasks.replicate, desk, seconds=DEADLINE, until_idle=True)
                rounds.append((rate, limit))
        yield result("apply", f"{bench.ground.label}→{bench.ground.label} / row by row", "changes/s", rounds)

        rounds = []
        for _ in range(REPEATS):
            limit = per_second(bench.invoices, _select_both, migration)
            rounds.append((per_second(bench.invoices, _clean_pass, desk), limit))
        yield result("reconcile", f"{bench.ground.label}, {bench.ground.label}, equal / SELECT both", "rows/s", rounds)


def _row_by_row(found: Reference) -> None:
    marks = ", ".join("?" * len(COLUMNS.split(",")))
    for key in range(1, ROW_BY_ROW + 1):
        (row,) = found.db.rows(f"SELECT {COLUMNS} FROM {found.origin} WHERE id = ?", [key])
        found.db.execute(f"REPLACE INTO {found.copy} ({COLUMNS}) VALUES ({marks})", row)


def _select_both(migration: Migration) -> None:
    for url in (migration.source.copier, migration.target.copier):
        with closing(open_store(*connect_url(url))) as store, store.read() as reader:
            reader.run(f"SELECT {COLUMNS} FROM invoice", [])  # type: ignore[attr-defined]


def _clean_pass(desk: tasks.Desk) -> None:
    found = tasks.reconcile_table(desk, "invoice")
    if found.missing or found.extra or found.differs:
        raise RuntimeError(f"the copies must be equal here, and are not: {found}")


def triggers(bench: Bench) -> Iterator[Result]:
    """The source's own transactions with fishladder's triggers, against the same without them."""
    rows = min(CHANGES, bench.invoices)
    with bench.ground.database() as plain, bench.migration() as migration:
        seed(bench.ground.kind, plain.copier, bench.invoices)
        single, many = [], []
        with (
            closing(connect(plain.application)) as without,
            closing(connect(migration.source.application)) as journaled,
            closing(connect(migration.source.copier)) as copier,
        ):
            for address in (plain, migration.source):
                _grow_logs(address.copier)
            for number in range(REPEATS):
                single.append(_alternately(without, journaled, f"single {number}"))
                before = per_second(rows, _update_many, without, rows, f"many {number}")
                many.append((per_second(rows, _update_many, journaled, rows, f"many {number}"), before))
                copier.execute("DELETE FROM fishladder_journal")
    name = f"{bench.ground.label} source"
    yield result("triggers", f"{name}, one row in a transaction / without", "transactions/s", single)
    yield result("triggers", f"{name}, {rows} rows in a statement / without", "rows/s", many)


def _grow_logs(url: str) -> None:
    """Let the database's log reach its size: a flush that makes a file longer costs more than one that does not."""
    with closing(connect(url)) as db:
        db.execute("CREATE TABLE ballast AS SELECT * FROM invoice")
        db.execute("DROP TABLE ballast")


def _alternately(without: Database, journaled: Database, note: str) -> tuple[float, float]:
    """Transactions a second with and without triggers, in turns: what a flush to disk costs changes by the second."""
    seconds = [0.0, 0.0]
    turns = list(enumerate((journaled, without)))
    for key in range(1, TRANSACTIONS + 1):
        turns.reverse()
        for at, db in turns:
            began = time.perf_counter()
            db.execute("UPDATE invoice SET note = ? WHERE id = ?", [note, key])
            seconds[at] += time.perf_counter() - began
    return TRANSACTIONS / seconds[0], TRANSACTIONS / seconds[1]


def _update_many(db: Database, rows: int, note: str) -> None:
    db.execute("UPDATE invoice SET note = ? WHERE id <= ?", [note, rows])
