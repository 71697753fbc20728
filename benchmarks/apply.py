"""What follows the source: the applier, how far it is behind, and what the triggers cost the source."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from benchmarks.ground import COLUMNS, STEP, Ground, Migration, database, seed
from benchmarks.results import REPEATS, Result, not_available, per_second, result
from billing.database import Database, connect
from fishladder import tasks

CHANGES = 20_000
ROW_BY_ROW = 500
DEADLINE = 600.0
GOALS = {1: 20.0, 2: 35.0}
"""By the number of shards at a time."""

RATE = 500
"""Changes a second while the lag is measured."""
TOGETHER = 10
"""Changes in a transaction: single ones, flushed to disk each, would need many customers at once to be as many."""
RING = 5_000
"""Rows that are changed in turn."""
LAG_SECONDS = 20
PATIENCE = 30.0
"""Seconds that the applier gets after the last change."""
LOOK = 0.01
"""Seconds between two looks at the target; the lag is known to so much."""
PACE = 0.95
"""The part of the rate that the source has to reach, or the lag says nothing."""

SMALL_ROWS = 100_000
TRANSACTIONS = 250
MANY = 5_000


def apply(ground: Ground) -> Iterator[Result]:
    """The applier on a journal of updates with one and two shards at a time, against row by row."""
    bench = ground.bench()
    migration, changes = bench.loaded, min(CHANGES, bench.invoices)
    with closing(connect(migration.source.application)) as customer:
        for workers, goal in GOALS.items():
            rounds = []
            with migration.desk(lanes=workers) as desk:
                for number in range(REPEATS):
                    _update_many(customer, ROW_BY_ROW, f"row by row {workers} {number}")
                    slow = per_second(ROW_BY_ROW, _row_by_row, migration)
                    migration.settle(desk)
                    _update_many(customer, changes, f"round {workers} {number}")
                    rate = per_second(changes, tasks.replicate, desk, seconds=DEADLINE, until_idle=True)
                    rounds.append((rate, slow))
            name = f"{bench.label}, {workers} shard{'s' if workers > 1 else ''} at a time / row by row"
            yield result("apply", name, "changes/s", rounds, goal=goal)


def _row_by_row(migration: Migration) -> None:
    """Read a row, write it, commit: with the same indexes, keys, triggers and flushes."""
    assigned = ", ".join(f"{column} = ?" for column in COLUMNS[1:])
    with closing(connect(migration.source.copier)) as source, closing(connect(migration.target.copier)) as target:
        for key in range(STEP, ROW_BY_ROW * STEP + 1, STEP):
            (row,) = source.rows(f"SELECT {', '.join(COLUMNS[1:])} FROM invoice WHERE id = ?", [key])
            target.execute(f"UPDATE invoice SET {assigned} WHERE id = ?", [*row, key])


def _update_many(db: Database, rows: int, note: str) -> None:
    db.execute("UPDATE invoice SET note = ? WHERE id <= ?", [note, rows * STEP])


@dataclass(slots=True)
class Traffic:
    """Changes made at a steady rate, numbered from 1 on; ``made`` holds when each was committed."""

    url: str
    ring: int
    first: int
    made: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def run(self) -> None:
        """Change ``TOGETHER`` rows of the ring at a time, each its note to the number of the change."""
        with closing(connect(self.url)) as db:
            began = time.perf_counter()
            for number in range(self.first, self.first + RATE * LAG_SECONDS, TOGETHER):
                # A schedule is kept by waiting: this is the rate that is asked for, not a guess at who is done.
                time.sleep(max(0.0, began + (number - self.first) / RATE - time.perf_counter()))
                changes = range(number, number + TOGETHER)
                with db.transaction():
                    for change in changes:
                        db.execute("UPDATE invoice SET note = ? WHERE id = ?", [change, self.key(change)])
                self.made.update(dict.fromkeys(changes, time.perf_counter()))
            self.seconds = time.perf_counter() - began

    def key(self, change: int) -> int:
        return (1 + change % self.ring) * STEP


def lag(ground: Ground) -> Iterator[Result]:
    """From the commit in the source until the target shows it, while one run of the applier goes on."""
    bench = ground.bench(SMALL_ROWS)
    migration, ring = bench.loaded, min(RING, bench.invoices)
    case = f"mysql→mysql, p99 at {RATE} changes/s within a run / 1 s"
    applier = multiprocessing.get_context("spawn").Process(
        target=_apply_for, args=(migration, (REPEATS + 2) * (LAG_SECONDS + PATIENCE))
    )
    applier.start()
    try:
        rounds, reached = [], []
        for number in range(REPEATS + 1):
            traffic = Traffic(url=migration.source.application, ring=ring, first=1 + number * RATE * LAG_SECONDS)
            lags = _lags(migration, traffic)
            if not applier.is_alive():
                raise RuntimeError("the applier failed; its error stands above")
            if number > 0:  # the first is for the applier to begin
                rounds.append((sorted(lags)[int(len(lags) * 0.99)], 1.0))
                reached.append(len(lags) / traffic.seconds)
    finally:
        applier.terminate()
        applier.join()
    with migration.desk() as desk:
        migration.settle(desk)
    if min(reached) < PACE * RATE:
        yield not_available("lag", case, f"the source itself made only {min(reached):.0f} changes/s", goal=1.0)
    else:
        yield result("lag", case, "s", rounds, goal=1.0)


def _apply_for(migration: Migration, seconds: float) -> None:
    with migration.desk() as desk:
        tasks.replicate(desk, seconds=seconds)


def _lags(migration: Migration, traffic: Traffic) -> list[float]:
    """Seconds per change; what is not seen in time counts as long as it was looked for."""
    writer = threading.Thread(target=traffic.run)
    writer.start()
    seen: dict[int, float] = {}
    end = time.perf_counter() + LAG_SECONDS + PATIENCE
    with closing(connect(migration.target.copier)) as db:
        while (now := time.perf_counter()) < end:
            writing = writer.is_alive()
            waiting = {change: traffic.key(change) for change in traffic.made.copy() if change not in seen}
            if not waiting and not writing:
                break
            shown = _notes(db, sorted(set(waiting.values())))
            now = time.perf_counter()
            seen |= {change: now for change, key in waiting.items() if shown.get(key, 0) >= change}
            time.sleep(LOOK)
    writer.join()
    return [seen.get(change, now) - at for change, at in traffic.made.items()]


def _notes(db: Database, keys: list[int]) -> dict[int, int]:
    """The number of the change that each of these rows has in the target."""
    if not keys:
        return {}
    rows = db.rows(f"SELECT id, note FROM invoice WHERE id IN ({', '.join('?' * len(keys))})", keys)
    return {key: int(note) for key, note in rows if note and note.isdecimal()}


def triggers(ground: Ground) -> Iterator[Result]:
    """The source's own transactions with fishladder's triggers, against the same without them."""
    size = min(SMALL_ROWS, ground.rows)
    rows = min(MANY, size)
    single, many = [], []
    # A source of its own: its journal is emptied without anybody applying it.
    with ground.one_bench(size) as bench, database(ground.server) as plain, bench.migration() as migration:
        seed(plain.admin, bench.invoices)
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
    yield result("triggers", "mysql, one row in a transaction / without", "transactions/s", single, goal=0.75)
    yield result("triggers", f"mysql, {rows} rows in a statement / without", "rows/s", many)


def _grow_logs(url: str) -> None:
    """Let the database's log reach its size: a flush that makes a file longer costs more than one that does not."""
    with closing(connect(url)) as db:
        db.execute("CREATE TABLE ballast AS SELECT * FROM invoice")
        db.execute("DROP TABLE ballast")


def _alternately(without: Database, journaled: Database, note: str) -> tuple[float, float]:
    """Transactions a second with and without triggers, in turns: what a flush to disk costs changes by the second."""
    seconds = [0.0, 0.0]
    turns = list(enumerate((journaled, without)))
    for key in range(STEP, TRANSACTIONS * STEP + 1, STEP):
        turns.reverse()
        for at, db in turns:
            began = time.perf_counter()
            db.execute("UPDATE invoice SET note = ? WHERE id = ?", [note, key])
            seconds[at] += time.perf_counter() - began
    return TRANSACTIONS / seconds[0], TRANSACTIONS / seconds[1]
