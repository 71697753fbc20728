"""What a flip costs: the window in which writes queue, the queue's way out, reads meanwhile, a call of the router."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.ground import Address, Ground, database, rows_text
from benchmarks.results import REPEATS, Result, per_second, result
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
WINDOW = 2.0
"""Seconds from fence to switch that 29 of 30 flips may take."""
REPLAYED = 5.0
"""Seconds in which 99 of 100 queued writes are to be in the owner."""
BEFORE_SECONDS = 2.0
"""How long reads are timed before each move, while nothing compares or moves."""
START_SECONDS = 120.0
CALLS = 300
COHORT = "NZ"


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


def flip(ground: Ground) -> Iterator[Result]:
    """Flips and rollbacks in turn, at 200 writes a second on the cohort, small and large."""
    medians = {}
    for rows in dict.fromkeys((min(SMALL, ground.rows), ground.rows)):
        with billing(ground, rows) as made:
            windows, queued, reads, failed, reached = _moves(made)
        name = f"mysql→mysql, {rows_text(rows)}"
        medians[rows] = median(windows)
        late = sum(window > WINDOW for window in windows)
        case = f"{name}, fence to switch, median / {WINDOW:g} s"
        yield result("flip", case, "s", [(medians[rows], WINDOW)], goal=1.0)
        yield result("flip", f"{name}, longer than {WINDOW:g} s / flips", "flips", [(late, len(windows))], goal=1 / 30)
        if queued:
            slow = quantiles(queued, n=100)[98] if len(queued) > 1 else queued[0]
            case = f"{name}, {len(queued)} writes queued, p99 until replayed / {REPLAYED:g} s"
            yield result("flip", case, "s", [(slow, REPLAYED)], goal=1.0)
        yield result("flip", f"{name}, reads, p99 during a flip / before", "s", reads, goal=1.5)
        yield result("flip", f"{name}, failed calls / all", "calls", [failed], goal=0.0)
        yield result("flip", f"{name}, writes a second / asked for", "writes/s", [(reached, RATE)], goal=0.95)
    if len(medians) > 1:
        small, large = medians.values()
        yield result("flip", "mysql→mysql, fence to switch, large / small", "s", [(large, small)], goal=1.2)


def _moves(made: Billing) -> tuple[list[float], list[float], list[tuple[float, float]], tuple[float, float], float]:
    """Windows, seconds in the queue, (read p99 during a flip, before) of rounds, failed calls of how many, writes/s."""
    windows: list[float] = []
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    applier = spawn.Process(target=_apply, args=(made,))
    crowd = spawn.Process(target=_crowd, args=(made, theirs))
    applier.start()
    crowd.start()
    try:
        ours.recv()  # it is ready
        with made.desk() as desk:
            end = time.monotonic() + START_SECONDS
            while not caught_up(desk.ledger, desk.clock.now(), timedelta(seconds=1)):
                if time.monotonic() > end:
                    raise RuntimeError(f"the applier has not caught up within {START_SECONDS:g} s")
                time.sleep(0.1)
            for kind, _ in zip(itertools.cycle(("flip", "rollback")), range(FLIPS), strict=False):
                ours.send("before")
                time.sleep(BEFORE_SECONDS)  # customers and the applier alone
                ours.send("between")
                (asked,) = tasks.ask(desk, kind, [COHORT], actor="benchmark", reason="")  # type: ignore[arg-type]
                approve(desk, asked)
                tasks.verify_cohort(desk, asked.id)
                ours.send("during")
                ended = tasks.cut_over(desk, asked.id)
                if ended.outcome != "done" or ended.fenced_at is None or ended.switched_at is None:
                    raise RuntimeError(f"{kind}: {ended.outcome}: {ended.error}")
                windows.append((ended.switched_at - ended.fenced_at).total_seconds())
        ours.send("end")
        reads, failed, calls, reached = ours.recv()
    finally:
        applier.terminate()
        applier.join()
        crowd.terminate()
        crowd.join()
    with closing(connect(made.ledger)) as db:
        lines = db.rows(
            "SELECT (julianday(finished_at) - julianday(at)) * 86400 FROM ledger_queue WHERE state = 'done'"
        )
    return windows, [float(seconds) for (seconds,) in lines], reads, (float(failed), float(calls)), reached


def _apply(made: Billing) -> None:
    with made.desk() as desk:
        tasks.replicate(desk, seconds=3600)


def _crowd(made: Billing, pipe: Connection) -> None:
    """Writes at the rate, each on a customer of its own, and a read after each tenth; until told to end."""
    rng, phase, reads = random.Random(1), "between", dict[str, list[list[float]]](before=[], during=[], between=[[]])
    customers, failed, calls = made.customers(), 0, 0
    with made.router() as router:
        pipe.send("ready")
        began, number = time.perf_counter(), 0
        while phase != "end":
            while pipe.poll():
                phase = pipe.recv()
                if phase != "end":
                    reads[phase].append([])
            number += 1
            time.sleep(max(0.0, began + number / RATE - time.perf_counter()))  # a schedule, kept by waiting
            customer, calls = rng.choice(customers), calls + 1
            payload = {"customer_id": customer, "country": COHORT, "at": "2026-01-01T00:00:00"}
            try:
                router.write("move_country", payload, key=f"move-{number}", entity=customer)
                if number % 10 == 0 and phase != "end":
                    at = time.perf_counter()
                    router.read("account", {"customer_id": customer}, entity=customer)
                    reads[phase][-1].append(time.perf_counter() - at)
            except Exception as error:  # noqa: BLE001 - whatever it is, a customer saw it
                print(f"a call failed: {type(error).__name__}: {error}", flush=True)
                failed += 1
    reached = number / (time.perf_counter() - began)
    runs = list(zip(*(_p99_of_runs(reads[name]) for name in ("during", "before")), strict=True))
    pipe.send((runs, failed, calls, reached))


def _p99_of_runs(reads: list[list[float]]) -> list[float]:
    """Of each run, in seconds."""
    return [_p99([seconds for some in reads[run::RUNS] for seconds in some]) for run in range(RUNS)]


def _p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98] if len(seconds) > 1 else 0.001


def router(ground: Ground) -> Iterator[Result]:
    """A charge through the router, against the same charge without it; and replay against the router."""
    with billing(ground, min(SMALL, ground.rows)) as made, made.router() as calls:
        customers = made.customers()
        months = itertools.count(1)
        pairs, replays = [], []
        with closing(connect(made.source.application)) as db:
            for _ in range(REPEATS):
                month = next(months)
                some = list(itertools.islice(itertools.cycle(customers), CALLS))
                bare = per_second(CALLS, _bare, db, some, month)
                routed = per_second(CALLS, _routed, calls, some, next(months) + 500)
                pairs.append((1 / routed, 1 / bare))
                replays.append((_replayed(made, some, next(months) + 1000), bare))
    yield result("router", "mysql, a charge through the router / without it", "s", pairs, goal=1.3)
    yield result("router", "mysql, queued charges replayed / done directly", "writes/s", replays, goal=0.5)


def _payload(customer: int, number: int, month: int) -> dict[str, Any]:
    # Customers come round again, and each is charged once for a month.
    year, part = divmod(month * 37 + number, 12)
    period, key = f"{3000 + year}-{part + 1:02}", f"bench-{month}-{number}"
    return {"customer_id": customer, "period": period, "key": key, "at": "2026-01-01T00:00:00"}


def _bare(db: Any, customers: list[int], month: int) -> None:
    for number, customer in enumerate(customers):
        payload = _payload(customer, number, month)
        service.charge(db, **payload | {"at": datetime.fromisoformat(payload["at"])})


def _routed(calls: Router, customers: list[int], month: int) -> None:
    for number, customer in enumerate(customers):
        payload = _payload(customer, number, month)
        calls.write("charge", payload, key=payload["key"], entity=customer)


def _replayed(made: Billing, customers: list[int], month: int) -> float:
    """Charges that were queued during a flip that is aborted, replayed a second."""
    with made.desk() as desk, made.router() as calls:
        (asked,) = tasks.ask(desk, "flip", [COHORT], actor="benchmark", reason="")
        tasks.replicate(desk, seconds=600, until_idle=True)
        approve(desk, asked)
        tasks.verify_cohort(desk, asked.id)
        with desk.cutover() as cutover:
            while cutover.advance(asked.id).step != "drain":
                pass
            _routed(calls, customers, month)
            desk.ledger.abort(desk.ledger.attempt(asked.id), "a benchmark")
            while cutover.advance(asked.id).step != "replay":
                pass
            rate = per_second(len(customers), cutover.run, asked.id)
    if desk.ledger.count_queue(COHORT).get("pending"):
        raise RuntimeError("the queue was not emptied")
    return rate
