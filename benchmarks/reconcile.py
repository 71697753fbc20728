"""Reconciliation: a pass over equal tables, one over planted differences, and whether it ever misses one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from decimal import Decimal

from benchmarks import peers
from benchmarks.ground import ALL, COLUMNS, STEP, Bench, Ground, Migration
from benchmarks.results import REPEATS, Result, not_available, result, seconds
from billing.database import Database, connect
from fishladder import tasks
from fishladder.cells import key_text

FOUND_ROWS = 100_000
FOUND_RUNS = 100
KINDS = {"missing": 30, "extra": 30, "updated": 20, "swapped": 20}
"""Keys planted of each kind, 100 in all. Swaps go in pairs: two rows have each other's amount, the sum stays."""

Planted = Mapping[int, str]
"""What reconciliation has to call each planted key: ``missing``, ``extra`` or ``differs``."""


def reconcile(ground: Ground) -> Iterator[Result]:
    """Seconds of a pass, against SUM(CRC32) on both servers at once, reladiff, and a pass over 100 differences."""
    bench = ground.bench()
    migration = bench.loaded
    equal, planted, missed, rival = [], [], [], []
    reason = "" if ground.peers else "run with PEERS=1"
    with peers.ready(ground.server) if ground.peers else nullcontext(), migration.desk() as desk:
        for number in range(REPEATS):
            checksums = seconds(_checksums, migration)
            took = seconds(_pass, desk, {})
            equal.append((took, checksums))
            if not reason:
                try:
                    said = peers.run(peers.RELADIFF, migration.source, migration.target, ground.folder)
                    rival.append((took, said["seconds"]))
                except peers.PeerError as error:
                    reason = str(error)
            keys = plant(bench, migration, random.Random(number))
            longer = seconds(_pass, desk, keys)
            planted.append((longer, took))
            missed.append((len(unnoticed(desk, keys)), len(keys)))
            migration.settle(desk)
    name = bench.label
    yield result("reconcile", f"{name}, equal / SUM(CRC32) on both", "s", equal, goal=1.0)
    if reason:
        yield not_available("reconcile", f"{name}, equal / reladiff", reason, goal=0.2)
    else:
        yield result("reconcile", f"{name}, equal / reladiff", "s", rival, goal=0.2)
    yield result("reconcile", f"{name}, 100 differences / equal", "s", planted, goal=1.3)
    yield result("reconcile", f"{name}, differences not found / planted", "keys", missed, goal=0.0)


def found(ground: Ground) -> Iterator[Result]:
    """A hundred times a hundred differences elsewhere: runs that did not find exactly these."""
    bench = ground.bench(FOUND_ROWS)
    migration = bench.loaded
    wrong = 0
    with migration.desk() as desk:
        for number in range(FOUND_RUNS):
            keys = plant(bench, migration, random.Random(f"found {number}"))
            tasks.reconcile_table(desk, "invoice")
            wrong += bool(unnoticed(desk, keys))
            migration.settle(desk)
    name = f"{bench.label}, runs that found other than the 100 planted / all"
    yield result("found", name, "runs", [(wrong, FOUND_RUNS)], goal=0.0)


def plant(bench: Bench, migration: Migration, rng: random.Random) -> Planted:
    """Spoil 100 rows of the target behind everybody's back."""
    keys = [STEP * at for at in rng.sample(range(1, bench.invoices + 1), sum(KINDS.values()))]
    parts = {}
    for kind, size in KINDS.items():
        parts[kind], keys = keys[:size], keys[size:]
    extra = [key - 1 for key in parts["extra"]]  # which no seeded row has
    with closing(connect(migration.target.copier)) as db, db.transaction():
        db.execute(f"DELETE FROM invoice WHERE id IN ({_marks(parts['missing'])})", parts["missing"])
        others = ", ".join(COLUMNS[1:])
        for key in extra:
            db.execute(f"INSERT INTO invoice ({ALL}) SELECT id - 1, {others} FROM invoice WHERE id = ?", [key + 1])
        for key in parts["updated"]:
            db.execute("UPDATE invoice SET updated_at = updated_at + INTERVAL 1 MICROSECOND WHERE id = ?", [key])
        swapped = _swap(db, parts["swapped"])
    return (
        dict.fromkeys(parts["missing"], "missing")
        | dict.fromkeys(extra, "extra")
        | dict.fromkeys([*parts["updated"], *swapped], "differs")
    )


def _swap(db: Database, keys: Sequence[int]) -> list[int]:
    swapped = []
    for one, other in zip(keys[::2], keys[1::2], strict=True):
        amounts: dict[int, Decimal] = dict(db.rows("SELECT id, net FROM invoice WHERE id IN (?, ?)", [one, other]))
        if amounts[one] != amounts[other]:
            db.execute("UPDATE invoice SET net = ? WHERE id = ?", [amounts[other], one])
            db.execute("UPDATE invoice SET net = ? WHERE id = ?", [amounts[one], other])
            swapped += [one, other]
    return swapped


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _pass(desk: tasks.Desk, planted: Planted) -> None:
    """Raises RuntimeError if it finds more than was planted: what is measured would be something else."""
    outcome = tasks.reconcile_table(desk, "invoice")
    if outcome.missing + outcome.extra + outcome.differs > len(planted):
        raise RuntimeError(f"{len(planted)} differences were planted, and others are there: {outcome}")


def unnoticed(desk: tasks.Desk, planted: Planted) -> set[tuple[bytes, str]]:
    """What was planted and is not an open mismatch, or the other way round."""
    noticed = {(line.key, line.kind) for line in desk.ledger.open_mismatches("invoice", limit=2 * len(planted))}
    wanted = {(key_text([str(key).encode()]), kind) for key, kind in planted.items()}
    return wanted ^ noticed


def _checksums(migration: Migration) -> None:
    """What many use to compare two tables, on both servers at once. It is not sound: it misses swaps."""
    statement = f"SELECT COUNT(*), SUM(CRC32(CONCAT_WS('#', {ALL}))) FROM invoice"
    with ExitStack() as kept, ThreadPoolExecutor(2) as pool:
        urls = (migration.source.copier, migration.target.copier)
        sessions = [kept.enter_context(closing(connect(url))) for url in urls]
        list(pool.map(lambda db: db.rows(statement), sessions))
