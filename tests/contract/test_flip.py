"""Countries move between real stores and back while customers go on, judged by code that is not the core's."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from billing import invariants, schema, seed
from billing.database import connect, settle
from billing.operations import operations
from billing.routed import Customers
from billing.service import charge, delete_customer
from billing.traffic import Billing, Traffic
from fishladder import tasks
from fishladder.ledger import Attempt, Kind, open_ledger, upgrade
from fishladder.plan import Side
from fishladder.serving import Router
from fishladder.spec import load
from fishladder.stores import connect_url, open_application
from fishladder.verdict import caught_up
from tests import independent
from tests.approving import approve
from tests.contract.shop import SPEC
from tests.contract.stores import PATIENCE, STORES, Place
from tests.scenario.migration import until
from tests.scenario.worker import desk

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
"""What kills a client, or an applier, beside a test fails the test."""
PAIRS = [
    *(("sqlite", "sqlite"), ("mysql", "mariadb")),
    *(pytest.param(pair, marks=pytest.mark.slow) for pair in (("mysql", "mysql"), ("oracle", "mysql"))),
]


@dataclass
class Move:
    """A loaded migration, its applier at work, and customers behind routers."""

    folder: Path
    source: Place
    target: Place
    environment: dict[str, str]

    def desk(self) -> tasks.Desk:
        return desk(SPEC, self.environment)

    def router(self) -> Router:
        """With a ledger of its own, as another process would have."""
        migration = load(SPEC, self.environment)
        ledger = open_ledger(self.environment["FISHLADDER_LEDGER"], migration=migration.migration)
        source, target = (open_application(*connect_url(place.application)) for place in (self.source, self.target))
        return Router(ledger, operations, source=source, target=target)

    def move(self, kind: Kind, *cohorts: str) -> list[Attempt]:
        at = self.desk()
        asked = tasks.ask(at, kind, cohorts, actor="ann", reason="a test")
        for attempt in asked:
            approve(at, attempt)
            found = tasks.verify_cohort(at, attempt.id)
            assert found.outcome is None, found.error
        ended = [tasks.cut_over(at, attempt.id) for attempt in asked]
        if kind == "flip":
            assert all(tasks.watch(at, attempt.id) for attempt in asked)
        return ended

    def stage(self, cohort: str) -> tuple[str, str]:
        route = self.desk().ledger.route(cohort)
        return route.stage, route.owner


@pytest.fixture(params=PAIRS, ids="-".join)
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Move]:
    origin, destination = request.param
    with ExitStack() as stack:
        ours = stack.enter_context(STORES[origin](request, tmp_path / "source"))
        theirs = stack.enter_context(STORES[destination](request, tmp_path / "target"))
        stack.callback(ours.close)
        stack.callback(theirs.close)
        schema.create(ours.admin)
        seed.seed(ours.admin, customers=80, seed=7)
        url = f"sqlite:///{tmp_path}/ledger.db"
        upgrade(url)
        environment = {
            **os.environ,
            "FISHLADDER_LEDGER": url,
            "BILLING_SOURCE_KIND": ours.kind,
            "BILLING_TARGET_KIND": theirs.kind,
            "BILLING_OBSERVE": "1ms",
            "FISHLADDER_BILLING_SOURCE": ours.copier,
            "FISHLADDER_BILLING_TARGET": theirs.copier,
            "FISHLADDER_BILLING_SOURCE_APP": ours.application,
            "FISHLADDER_BILLING_TARGET_APP": theirs.application,
        }
        made = Move(folder=tmp_path, source=ours, target=theirs, environment=environment)
        at = made.desk()
        tasks.prepare(at, actor="test")
        for table in tasks.cut(at):
            tasks.load_table(at, table, "1")
            tasks.close_table(at, table)
        tasks.replicate(at, seconds=PATIENCE, until_idle=True)
        yield made


class BatchJob(Billing):
    """Knows nothing of a router, and works in one store on customers of its own, whoever owns them by now."""

    weights: Mapping[str, int] = {"charge": 4, "change_plan": 2, "buy_gift_card": 2, "redeem": 2, "refund": 1}

    def __init__(self, side: Side, customers: Sequence[int]) -> None:
        super().__init__(random.Random(side), run=side)
        self._side, self._own = side, customers

    def prepare(self, db: Any) -> None:
        settle(db._connection, self._side)
        super().prepare(db)
        self._customers = list(self._own)


def shared_out(move: Move) -> tuple[list[int], dict[Side, list[int]]]:
    """Customers for the routers' clients, and some for a batch job in each store: of those that move, and of others."""
    with closing(connect(move.source.admin)) as db:
        found = db.rows("SELECT id, country_code FROM customer ORDER BY id")
    moving = [customer for customer, country in found if country in ("NZ", "AU", "IE")]
    others = [customer for customer, _ in found if customer not in moving]
    jobs: dict[Side, list[int]] = {"source": moving[0::4] + others[0::8], "target": moving[1::4] + others[1::8]}
    return [customer for customer, _ in found if customer not in jobs["source"] + jobs["target"]], jobs


@contextmanager
def running(*work: Callable[[], object]) -> Iterator[None]:
    """Each in a thread. Whoever leaves has told them to stop."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


@contextmanager
def applying(move: Move) -> Iterator[None]:
    stop = threading.Event()

    def replicate() -> None:
        while not stop.is_set():
            tasks.replicate(move.desk(), seconds=1)

    with running(replicate):
        try:
            yield
        finally:
            stop.set()


def test_countries_move_and_one_moves_back_while_customers_go_on(move: Move) -> None:
    customers, batches = shared_out(move)
    before = independent.counts(move.source.admin)
    with closing(connect(move.source.admin)) as db:
        plans = [row[0] for row in db.rows("SELECT id FROM plan ORDER BY id")]
    crowds = [
        Customers(move.router(), customers, plans, rng=random.Random(number), run=f"r{number}") for number in range(2)
    ]
    logs = [move.folder / f"{number}.jsonl" for number in range(len(crowds))]
    stores: dict[Side, Place] = {"source": move.source, "target": move.target}
    calm = 4 if move.source.kind == "oracle" else 1  # the wire emulator follows some fifty changes a second
    jobs = {
        side: Traffic(
            place.application,
            BatchJob(side, batches[side]),
            rng=random.Random(side),
            rate=20 / calm,
            log=move.folder / f"{side}.log",
        )
        for side, place in stores.items()
    }
    work: list[Callable[[], object]] = [partial(job.run, seconds=600) for job in jobs.values()]
    work += [partial(crowd.run, rate=40 / calm, seconds=600, log=log) for crowd, log in zip(crowds, logs, strict=True)]
    with applying(move), running(*work):
        try:
            (moved,) = move.move("flip", "NZ")
            assert (moved.outcome, moved.error, move.stage("NZ")) == ("done", None, ("live", "target"))
            others = move.move("flip", "AU", "IE")
            assert [attempt.outcome for attempt in others] == ["done", "done"], others
            (back,) = move.move("rollback", "NZ")
            assert (back.outcome, back.error, move.stage("NZ")) == ("done", None, ("off", "source"))
        finally:
            for client in (*crowds, *jobs.values()):
                client.stop()
    for crowd in crowds:
        assert crowd.felt.failed == {}, crowd.felt.errors
        assert crowd.felt.done.total() > 20
    for side, job in jobs.items():
        assert job.summary.failed == job.summary.unknown == {}, job.summary.errors
        assert job.summary.refused.total() and job.summary.acknowledged.total(), (side, job.summary)
    ends_equal(move)
    batches_logs = [move.folder / f"{side}.log" for side in jobs]
    assert independent.acknowledged(move.source.admin, batches_logs) == []
    for place in stores.values():
        told = {"before": before, "refused": refused(move), "beside": batches_logs}
        assert independent.accepted(place.admin, logs, **told) == []


def test_the_way_back_carries_all_that_a_long_stay_has_changed(move: Move) -> None:
    """Births, deaths, and thousands of rows that statements of many rows have changed."""
    with applying(move):
        moved = [*move.move("flip", "NZ"), *move.move("flip", "AU")]
        assert [attempt.outcome for attempt in moved] == ["done", "done"], moved
        with closing(connect(move.target.application)) as db:
            settle(db._connection, "target")  # type: ignore[attr-defined]
            first, *others = (row[0] for row in db.rows("SELECT id FROM customer WHERE country_code = 'AU'"))
            for number, customer in enumerate(others):
                key, at = f"long-{number}", datetime(2026, 2, 1)
                charge(db, customer_id=customer, period="2031-01", key=key, at=at, usage_packs=7)
            delete_customer(db, customer_id=first)
            theirs = f"SELECT id FROM invoice WHERE customer_id IN ({', '.join(map(str, others))})"
            lines = f"UPDATE invoice_line SET description = ? WHERE invoice_id IN ({theirs})"
            changed = 0
            while changed < 3_000:
                changed += db.execute(lines, (f"changed after {changed} others",))
        ledger = move.desk().ledger
        until(lambda: caught_up(ledger, datetime.now(UTC), timedelta(seconds=5)), "the applier to catch up")
        (back,) = move.move("rollback", "AU")
        assert (back.outcome, back.error, move.stage("AU")) == ("done", None, ("off", "source"))
    ends_equal(move)


OURS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE lower(name) LIKE 'fishladder%' OR lower(sql) LIKE '%fishladder%'",
    "mysql": """
        SELECT table_name FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name LIKE 'fishladder%'
        UNION ALL SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE()
        UNION ALL SELECT routine_name FROM information_schema.routines WHERE routine_schema = DATABASE()
    """,
    "oracle": "SELECT object_name FROM user_objects WHERE lower(object_name) LIKE 'fishladder%'",
}
"""What is there of fishladder's, by kind of store."""


def left(move: Move) -> list[str]:
    found = []
    for place in (move.source, move.target):
        with closing(connect(place.admin)) as db:
            found += [f"{place.kind}: {name}" for (name,) in db.rows(OURS[place.kind])]
    return found


def test_at_the_end_nothing_is_left_but_the_rows(move: Move) -> None:
    with applying(move):
        named = [cohort for cohort in move.desk().ledger.routes() if cohort not in ("*", "shared")]
        waves = ["NZ"], ["AU", "IE"], sorted({*named} - {"NZ", "AU", "IE"}), ["shared"]
        for wave in waves:
            assert [attempt.outcome for attempt in move.move("flip", *wave)] == ["done"] * len(wave)
        assert not tasks.finish(move.desk(), actor="ann") and left(move)
        ends_equal(move)
        for attempt in tasks.ask(move.desk(), "complete", [*named, "shared"], actor="ann", reason="a test"):
            approve(move.desk(), attempt)
            assert tasks.cut_over(move.desk(), attempt.id).outcome == "done"
    assert tasks.finish(move.desk(), actor="ann")
    assert left(move) == []
    assert independent.compare(move.source.admin, move.target.admin) == []


def ends_equal(move: Move) -> None:
    """Judged by code that is not the core's, and by the core's passes."""
    at = move.desk()
    tasks.replicate(at, seconds=PATIENCE, until_idle=True)
    assert at.ledger.count_queue().keys() <= {"done", "refused"}
    assert independent.compare(move.source.admin, move.target.admin) == []
    for place in (move.source, move.target):
        assert invariants.check(place.admin) == []
    for table in tasks.cut(at):
        found = tasks.reconcile_table(at, table)
        assert (found.missing, found.extra, found.differs, found.deferred, found.orphans) == (0, 0, 0, 0, 0), table


def refused(move: Move) -> set[str]:
    """Keys of queued writes that the business refused."""
    with closing(connect(move.environment["FISHLADDER_LEDGER"])) as db:
        return {row[0] for row in db.rows("SELECT idempotency_key FROM ledger_queue WHERE state = 'refused'")}
