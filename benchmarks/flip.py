"""What a flip costs: the window in which writes queue, the queue's way out, reads meanwhile, a call of the router."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks.ground import Address, Ground, database, rows_text
from benchmarks.results import REPEATS, Result, not_available, per_second, result
from billing import schema, service
from billing.database import connect
from billing.operations import operations
from billing.seed import seed
from fishladder import tasks
from fishladder.ledger import open_ledger, upgrade
from fishladder.serving import Router
from fishladder.spec import load
from fishladder.stores import connect_url, open_application, open_store
from fishladder.verdict import caught_up
from tests.approving import approve

FILE = Path(__file__).parents[1] / "include" / "migrations" / "billing.yaml"
ROWS_PER_CUSTOMER = 10
SMALL = 10_000
FLIPS = 30
RUNS = 5
"""Of reads, interleaved: every fifth move belongs to one."""
RATE = 200
"""Writes a second on the cohort that moves."""
READ_RATE = 50
"""Reads a second of it, by a process of their own: a write that waits at the fence holds none of them up."""
PACE = 0.95
"""The part of a rate that customers have to reach."""
WINDOW = 2.0
"""Seconds from fence to switch that 29 of 30 flips may take."""
REPLAYED = 5.0
"""Seconds in which 99 of 100 queued writes are to be in the owner."""
BEFORE_SECONDS = 2.0
"""How long reads are timed before each move, while nothing compares or moves."""
REST_SECONDS = 0.5
"""What a move has held up is answered in this time, and counts for nothing that comes later."""
NICE = int(os.environ.get("NICE") or "10")
"""The priority of what copies and cuts over, below the customers' and the server's: in use, Airflow's workers have
machines of their own, and here they would take the processors that answer customers. On a machine that is busy with
other things they get nowhere by it.
"""
START_SECONDS = 120.0
CALLS = 300
PARTS = (0, 10, 50, 90, 99, 100)
COHORT = "NZ"

Span: TypeAlias = tuple[float, float]
"""From when to when, by the clock that all processes share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """A billing migration from MySQL to MySQL. It can be pickled, so that customers can be a process."""

    source: Address
    target: Address
    ledger: str

    @contextmanager
    def desk(self) -> Iterator[tasks.Desk]:
        kinds = {"BILLING_SOURCE_KIND": "mysql", "BILLING_TARGET_KIND": "mysql"}
        spec = load(FILE, {**os.environ, **kinds})
        copier = {spec.source.connection: self.source.copier, spec.target.connection: self.target.copier}
        customer = {spec.application.source: self.source, spec.application.target: self.target}
        with open_ledger(self.ledger, migration=spec.migration) as ledger:
            yield tasks.Desk(
                spec=spec,
                ledger=ledger,
                open=lambda name: open_store(*connect_url(copier[name])),
                serve=lambda name: open_application(*connect_url(customer[name].application)),
            )

    @contextmanager
    def router(self) -> Iterator[Router]:
        source, target = (open_application(*connect_url(side.application)) for side in (self.source, self.target))
        with open_ledger(self.ledger, migration="billing") as ledger:
            router = Router(ledger, operations, source=source, target=target)
            with closing(router):
                yield router

    def customers(self) -> list[int]:
        """Those who live in the cohort that moves and have something to be charged for."""
        sql = (
            "SELECT DISTINCT s.customer_id FROM subscription s JOIN fishladder_home h"
            " ON h.root_key = CAST(s.customer_id AS CHAR) WHERE h.cohort = ? AND s.active = 1"
        )
        with closing(connect(self.source.admin)) as db:
            return sorted(int(customer) for (customer,) in db.rows(sql, [COHORT]))


@contextmanager
def billing(ground: Ground, rows: int) -> Iterator[Billing]:
    """Loaded, and at rest."""
    with ExitStack() as kept:
        source, target = (kept.enter_context(database(ground.server)) for _ in range(2))
        ledger = f"sqlite:///{ground.folder}/ledger-flip-{rows}.db"
        made = Billing(source=source, target=target, ledger=ledger)
        upgrade(ledger)
        schema.create(source.admin)
        seed(source.admin, customers=rows // ROWS_PER_CUSTOMER, seed=7)
        with made.desk() as desk:
            tasks.prepare(desk, actor="benchmark")
            for table in tasks.cut(desk):
                tasks.load_table(desk, table, "1")
                tasks.close_table(desk, table)
            tasks.replicate(desk, seconds=600, until_idle=True)
        yield made


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What a process of customers saw: when each call was due, and how many seconds later it was answered."""

    answered: list[tuple[float, float]]
    failed: int
    rate: float

    def p99_of_runs(self, spans: Sequence[Span]) -> list[float]:
        """Of each run, in seconds, of the calls that were due in its spans."""
        return [
            _p99([seconds for due, seconds in self.answered if any(begin <= due < end for begin, end in some)])
            for some in (spans[run::RUNS] for run in range(RUNS))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """``windows``: seconds from fence to switch; the others: when what was done in each move."""

    windows: list[float]
    before: list[Span]
    verifying: list[Span]
    during: list[Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """``queued``: seconds in the queue of each write that was there."""

    turns: Turns
    queued: list[float]
    writes: Calls
    reads: Calls


def flip(ground: Ground) -> Iterator[Result]:
    """Flips and rollbacks in turn, at 200 writes a second on the cohort, small and large."""
    medians = {}
    for rows in dict.fromkeys((min(SMALL, ground.rows), ground.rows)):
        with billing(ground, rows) as made:
            moves = _moves(made)
            windows = moves.turns.windows
        name = f"mysql→mysql, {rows_text(rows)}"
        _tell_distributions(name, moves)
        medians[rows] = median(windows)
        late = sum(window > WINDOW for window in windows)
        case = f"{name}, fence to switch, median / {WINDOW:g} s"
        yield result("flip", case, "s", [(medians[rows], WINDOW)], goal=1.0)
        case = f"{name}, longer than {WINDOW:g} s / flips"
        yield result("flip", case, "flips", [(late, len(windows))], goal=1 / 30)
        case = f"p99 until replayed / {REPLAYED:g} s"
        if moves.queued:
            case = f"{name}, {len(moves.queued)} writes queued, {case}"
            yield result("flip", case, "s", [(_p99(moves.queued), REPLAYED)], goal=1.0)
        else:
            yield not_available("flip", f"{name}, {case}", "no write was queued", goal=1.0)
        yield from _reads_meanwhile(name, moves)
        reads, writes = moves.reads, moves.writes
        failed = (float(reads.failed + writes.failed), float(len(reads.answered) + len(writes.answered)))
        yield result("flip", f"{name}, failed calls / all", "calls", [failed], goal=0.0)
        yield result("flip", f"{name}, writes a second / asked for", "writes/s", [(writes.rate, RATE)], goal=PACE)
    if len(medians) > 1:
        small, large = medians.values()
        yield result("flip", "mysql→mysql, fence to switch, large / small", "s", [(large, small)], goal=1.2)


def _tell_distributions(name: str, moves: Moves) -> None:
    """Beside the results, which are medians and percentiles of these."""
    during = [seconds for due, seconds in moves.reads.answered if any(a <= due < b for a, b in moves.turns.during)]
    for what, found in (
        ("from fence to switch", moves.turns.windows),
        ("in the queue", moves.queued),
        ("of all reads", [seconds for _, seconds in moves.reads.answered]),
        ("of reads during a flip", during),
        ("of all writes", [seconds for _, seconds in moves.writes.answered]),
    ):
        parts = [f"{part} {sorted(found)[int((len(found) - 1) * part / 100)]:.3f}" for part in PARTS if found]
        print(f"{name}: seconds {what} ({len(found)}), percentiles: {', '.join(parts)}", file=sys.stderr)


def _reads_meanwhile(name: str, moves: Moves) -> Iterator[Result]:
    """The pass before a flip is no part of it: what it costs is told beside, without a goal."""
    before = moves.reads.p99_of_runs(moves.turns.before)
    for what, spans, goal in (("the pass before it", moves.turns.verifying, None), ("a flip", moves.turns.during, 1.5)):
        case = f"{name}, reads, p99 during {what} / before"
        if moves.reads.rate < PACE * READ_RATE:
            yield not_available("flip", case, f"there were only {moves.reads.rate:.0f} reads/s", goal=goal)
        else:
            rounds = list(zip(moves.reads.p99_of_runs(spans), before, strict=True))
            yield result("flip", case, "s", rounds, goal=goal)


def _moves(made: Billing) -> Moves:
    spawn = multiprocessing.get_context("spawn")
    applier = spawn.Process(target=_apply, args=(made,))
    pipes, processes = [], [applier]
    for rate, call in ((RATE, _write), (READ_RATE, _read)):
        ours, theirs = spawn.Pipe()
        pipes.append(ours)
        processes.append(spawn.Process(target=_customers, args=(made, theirs, rate, call)))
    for process in processes:
        process.start()
    try:
        for pipe in pipes:
            pipe.recv()  # it is ready
        with ProcessPoolExecutor(1, mp_context=spawn) as mover:
            turns = mover.submit(_turns, made).result()
        for pipe in pipes:
            pipe.send("end")
        writes, reads = (pipe.recv() for pipe in pipes)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    with closing(connect(made.ledger)) as db:
        lines = db.rows(
            "SELECT (julianday(finished_at) - julianday(at)) * 86400 FROM ledger_queue WHERE state = 'done'"
        )
    return Moves(turns=turns, queued=[float(seconds) for (seconds,) in lines], writes=writes, reads=reads)


def _turns(made: Billing) -> Turns:
    """Flip and roll back in turn, once the applier has caught up."""
    os.nice(NICE)
    turns = Turns(windows=[], before=[], verifying=[], during=[])
    with made.desk() as desk:
        end = time.monotonic() + START_SECONDS
        while not caught_up(desk.ledger, desk.clock.now(), timedelta(seconds=1)):
            if time.monotonic() > end:
                raise RuntimeError(f"the applier has not caught up within {START_SECONDS:g} s")
            time.sleep(0.1)
        for kind, _ in zip(itertools.cycle(("flip", "rollback")), range(FLIPS), strict=False):
            time.sleep(REST_SECONDS)
            with _span(turns.before):
                time.sleep(BEFORE_SECONDS)  # customers and the applier alone
            with _span(turns.verifying):
                (asked,) = tasks.ask(desk, kind, [COHORT], actor="benchmark", reason="")  # type: ignore[arg-type]
                approve(desk, asked)
                tasks.verify_cohort(desk, asked.id)
            with _span(turns.during):
                ended = tasks.cut_over(desk, asked.id)
            if ended.outcome != "done" or ended.fenced_at is None or ended.switched_at is None:
                raise RuntimeError(f"{kind}: {ended.outcome}: {ended.error}")
            turns.windows.append((ended.switched_at - ended.fenced_at).total_seconds())
    return turns


@contextmanager
def _span(spans: list[Span]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spans.append((began, time.perf_counter()))


def _apply(made: Billing) -> None:
    os.nice(NICE)
    with made.desk() as desk:
        tasks.replicate(desk, seconds=3600)


def _customers(made: Billing, pipe: Connection, rate: float, call: Callable[[Router, int, int], object]) -> None:
    """Calls at the rate, each for a customer by chance, until told to end. What is late waits from when it was due."""
    rng, customers = random.Random(1), made.customers()
    answered, failed = list[tuple[float, float]](), 0
    with made.router() as router:
        pipe.send("ready")
        began = time.perf_counter()
        for number in itertools.count(1):
            due = began + number / rate
            if pipe.poll(max(0.0, due - time.perf_counter())):
                break
            try:
                call(router, rng.choice(customers), number)
            except Exception as error:  # noqa: BLE001 - whatever it is, a customer saw it
                print(f"a call failed: {type(error).__name__}: {error}", flush=True)
                failed += 1
            answered.append((due, time.perf_counter() - due))
        reached = len(answered) / (time.perf_counter() - began)
    pipe.send(Calls(answered=answered, failed=failed, rate=reached))


def _write(router: Router, customer: int, number: int) -> None:
    payload = {"customer_id": customer, "country": COHORT, "at": "2026-01-01T00:00:00"}
    router.write("move_country", payload, key=f"move-{number}", entity=customer)


def _read(router: Router, customer: int, _: int) -> None:
    router.read("account", {"customer_id": customer}, entity=customer)


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


def router(ground: Ground) -> Iterator[Result]:
    """A charge through the router, against the same charge without it; and replay against the router."""
    with billing(ground, min(SMALL, ground.rows)) as made, made.router() as calls:
        customers = made.customers()
        batches = itertools.count()
        pairs, replays = [], []
        with closing(connect(made.source.application)) as db:
            for _ in range(REPEATS):
                some = list(itertools.islice(itertools.cycle(customers), CALLS))
                bare = per_second(CALLS, _bare, db, some, next(batches))
                routed = per_second(CALLS, _routed, calls, some, next(batches))
                pairs.append((1 / routed, 1 / bare))
                replays.append((_replayed(made, some, next(batches)), bare))
    yield result("router", "mysql, a charge through the router / without it", "s", pairs, goal=1.3)
    yield result("router", "mysql, queued charges replayed / done directly", "writes/s", replays, goal=0.5)


def _payload(customer: int, number: int, batch: int) -> dict[str, Any]:
    # Customers come round again, and each is charged once for a month.
    year, part = divmod(batch * CALLS + number, 12)
    period, key = f"{3000 + year}-{part + 1:02}", f"bench-{batch}-{number}"
    return {"customer_id": customer, "period": period, "key": key, "at": "2026-01-01T00:00:00"}


def _bare(db: Any, customers: list[int], batch: int) -> None:
    for number, customer in enumerate(customers):
        payload = _payload(customer, number, batch)
        service.charge(db, **payload | {"at": datetime.fromisoformat(payload["at"])})


def _routed(calls: Router, customers: list[int], batch: int) -> None:
    for number, customer in enumerate(customers):
        payload = _payload(customer, number, batch)
        calls.write("charge", payload, key=payload["key"], entity=customer)


def _replayed(made: Billing, customers: list[int], batch: int) -> float:
    """Charges that were queued during a flip that is aborted, replayed a second."""
    with made.desk() as desk, made.router() as calls:
        (asked,) = tasks.ask(desk, "flip", [COHORT], actor="benchmark", reason="")
        tasks.replicate(desk, seconds=600, until_idle=True)
        approve(desk, asked)
        tasks.verify_cohort(desk, asked.id)
        with desk.cutover() as cutover:
            while cutover.advance(asked.id).step != "drain":
                pass
            _routed(calls, customers, batch)
            desk.ledger.abort(desk.ledger.attempt(asked.id), "a benchmark")
            while cutover.advance(asked.id).step != "replay":
                pass
            rate = per_second(len(customers), cutover.run, asked.id)
    if desk.ledger.count_queue(COHORT).get("pending"):
        raise RuntimeError("the queue was not emptied")
    return rate
