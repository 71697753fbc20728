"""Countries move between real stores and back while customers go on, judged by code that is not the core's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing import invariants, schema, seed
from billing.database import connect, settle
from billing.service import change_price, charge, delete_customer
from fishladder import tasks
from fishladder.errors import InputError
from fishladder.flip import Cutover
from fishladder.ledger import Attempt, Kind
from fishladder.plan import Side
from fishladder.verdict import caught_up
from tests import independent, ledgers
from tests.approving import approve
from tests.contract.shop import SPEC
from tests.contract.stores import PATIENCE, STORES, Place
from tests.scenario.migration import DEADLINE, until
from tests.scenario.worker import desk

PAIRS = [
    ("mysql", "mariadb"),
    *(pytest.param((kind, kind), marks=pytest.mark.slow) for kind in ("sqlite", "mysql")),
    pytest.param(("oracle", "mysql"), marks=[pytest.mark.slow, pytest.mark.timeout(900)]),  # on the wire emulator
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

    def move(self, kind: Kind, *cohorts: str) -> list[Attempt]:
        at = self.desk()
        asked = tasks.ask(at, kind, cohorts, actor="ann", reason="a test")
        for attempt in asked:
            until(lambda: caught_up(at.ledger, datetime.now(UTC), timedelta(seconds=5)), "the applier to catch up")
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
        ledgers.create(url)
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


def countries(move: Move) -> dict[int, str]:
    """Customers and where they are at home, before anybody moves."""
    with closing(connect(move.source.admin)) as db:
        return dict(db.rows("SELECT id, country_code FROM customer ORDER BY id"))


def shared_out(homes: Mapping[int, str]) -> tuple[list[int], dict[Side, list[int]]]:
    """Customers for the routers' clients, half of whose calls are for those that move, and some for a batch job in each
    store: of those that move, and of others."""
    moving = [customer for customer, country in homes.items() if country in ("NZ", "AU", "IE")]
    others = [customer for customer in homes if customer not in moving]
    jobs: dict[Side, list[int]] = {"source": moving[0::4] + others[0::8], "target": moving[1::4] + others[1::8]}
    routed = [customer for customer in homes if customer not in jobs["source"] + jobs["target"]]
    busy = [customer for customer in routed if customer in moving]
    return routed + busy * (len(routed) // len(busy)), jobs


@contextmanager
def applying(move: Move) -> Iterator[None]:
    stop = threading.Event()

    def replicate() -> None:
        while not stop.is_set():
            tasks.replicate(move.desk(), seconds=1)

    with ThreadPoolExecutor(1) as pool:
        applier = pool.submit(replicate)
        try:
            yield
        finally:
            stop.set()
            applier.result()


@contextmanager
def crowd(
    move: Move, role: str, name: str, rate: float, log: Path, customers: Sequence[int]
) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, which does not outlive the block."""
    command = [sys.executable, "-m", "tests.contract.crowd", role, name, str(rate), str(log), json.dumps(customers)]
    environment = {**move.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def end(*processes: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What each of them counted."""
    for process in processes:
        process.terminate()
    said = [process.communicate(timeout=DEADLINE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [json.loads(summary) for summary in said]


def lines(log: Path) -> list[dict[str, Any]]:
    """What is in it; it may not be there yet."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def told(log: Path) -> int:
    return len(lines(log))


BORN = {
    "sign_up": ("customer", "subscription"),
    "charge": ("invoice",),
    "change_plan": ("subscription",),
    "redeem": ("entry",),
}
"""What an operation makes whose id the store generates, and its client is told."""


@pytest.fixture
def queueing(monkeypatch: pytest.MonkeyPatch) -> None:
    """NZ moves no further than its queue before one waits that makes such a row, and that no business refuses."""
    drained = Cutover._drained

    def held(cutover: Cutover, attempt: Attempt) -> bool:
        waiting = {queued.operation for queued in cutover.ledger.next_queued(attempt.cohort, 100)}
        wanted = attempt.cohort != "NZ" or waiting & {"sign_up", "change_plan"}
        return drained(cutover, attempt) and bool(wanted)

    monkeypatch.setattr(Cutover, "_drained", held)


def replayed(move: Move) -> dict[str, dict[str, Any]]:
    """What the writes came to that were queued, by their keys."""
    with closing(connect(move.environment["FISHLADDER_LEDGER"])) as db:
        done = db.rows("SELECT idempotency_key, operation, result FROM ledger_queue WHERE state = 'done'")
    return {key: {"operation": operation, **json.loads(result)} for key, operation, result in done}


def born(said: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """The rows of which clients were told the ids; those of queued writes they were not."""
    made = [(name, line.get(f"{name}_id")) for line in said for name in BORN.get(line["operation"], ())]
    return [(name, number) for name, number in made if number is not None]


@pytest.mark.usefixtures("queueing")
def test_countries_move_and_one_moves_back_while_customers_go_on(move: Move) -> None:
    homes = countries(move)
    customers, batches = shared_out(homes)
    before = independent.counts(move.source.admin)
    rate = 3 if move.source.kind == "oracle" else 30  # the wire emulator follows some fifty changes a second
    logs = [move.folder / "r0.jsonl", move.folder / "r1.jsonl"]
    batch_logs = [move.folder / f"{side}.log" for side in batches]
    with applying(move), ExitStack() as stack:
        routed = [stack.enter_context(crowd(move, "routed", log.stem, rate, log, customers)) for log in logs]
        jobs = [
            stack.enter_context(crowd(move, "batch", log.stem, rate, log, own))
            for log, own in zip(batch_logs, batches.values(), strict=True)
        ]
        until(lambda: all(told(log) for log in logs) and batch_logs[1].exists(), "all to be at work")
        (moved,) = move.move("flip", "NZ")
        assert (moved.outcome, moved.error, move.stage("NZ")) == ("done", None, ("live", "target"))
        others = move.move("flip", "AU", "IE")
        assert [attempt.outcome for attempt in others] == ["done", "done"], others
        there = replayed(move)
        (back,) = move.move("rollback", "NZ")
        assert (back.outcome, back.error, move.stage("NZ")) == ("done", None, ("off", "source"))
        since = {log: told(log) + 1 for log in logs}  # of the next one nobody knows when it was asked for

        def served(*owners: str) -> list[dict[str, Any]]:
            """What customers of these countries were told since."""
            later = [line for log in logs for line in lines(log)[since[log] :]]
            return [line for line in later if homes.get(line.get("customer_id", 0)) in owners]

        until(lambda: all(told(log) >= since[log] + 10 for log in logs), "customers to be served")
        until(lambda: bool(born(served("NZ")) and born(served("AU", "IE"))), "rows to be born in both stores")
        *felt, source_job, target_job = end(*routed, *jobs)
    for log, summary in zip(logs, felt, strict=True):
        assert summary["failed"] == {}, summary
        accepted = Counter(summary["done"]) + Counter(summary["queued"])
        assert accepted.total() - accepted["account"] == told(log) > 20
    assert sum(sum(summary["queued"].values()) for summary in felt) >= 2  # one on the way there, one on the way back
    for log, summary in zip(batch_logs, (source_job, target_job), strict=True):
        assert summary["failed"] == summary["unknown"] == {}, summary
        assert summary["refused"] and summary["total"] == told(log) > 0, summary
    back_again = {key: said for key, said in replayed(move).items() if key not in there}
    source_born = [*lines(batch_logs[0]), *back_again.values(), *served(*{*homes.values()} - {"AU", "IE"})]
    target_born = [*lines(batch_logs[1]), *there.values(), *served("AU", "IE")]
    # ids: {interleaved: true}
    assert born(there.values()) and {number % 2 for _, number in born(target_born)} == {0}
    assert born(back_again.values()) and {number % 2 for _, number in born(source_born)} == {1}
    by_key = {line["key"]: line for log in logs for line in lines(log)} | replayed(move)
    every = Counter(born([*by_key.values(), *(line for log in batch_logs for line in lines(log))]))
    assert [row for row, times in every.items() if times > 1] == []
    ends_equal(move)
    assert independent.acknowledged(move.source.admin, batch_logs) == []
    for place in (move.source, move.target):
        problems = independent.accepted(place.admin, logs, before=before, refused=refused(move), beside=batch_logs)
        assert problems == [], place.kind


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


def set_price(place: Place, plan: int, monthly: str) -> None:
    with closing(connect(place.application)) as db:
        change_price(db, plan_id=plan, monthly=Decimal(monthly), yearly=Decimal(99), at=datetime(2026, 2, 1))


def test_at_the_end_nothing_is_left_but_the_rows(move: Move) -> None:
    """Until then shared tables are flipped last and go back first, with what was written to them on the way."""
    named = [cohort for cohort in move.desk().ledger.routes() if cohort not in ("*", "shared")]

    def go(kind: Kind, *wave: str) -> None:
        assert [attempt.outcome for attempt in move.move(kind, *wave)] == ["done"] * len(wave)

    with applying(move):
        for wave in ["NZ"], ["AU", "IE"], sorted({*named} - {"NZ", "AU", "IE"}):
            with pytest.raises(InputError, match=r"shared: .* comes first; it is off"):
                move.move("flip", "shared")
            go("flip", *wave)
        go("flip", "shared")
        set_price(move.target, 1, "1.11")
        with pytest.raises(InputError, match="NZ: shared comes first; it is live"):
            move.move("rollback", "NZ")
        go("rollback", "shared")
        set_price(move.source, 2, "2.22")
        go("flip", "shared")
        assert not tasks.finish(move.desk(), actor="ann") and left(move)
        ends_equal(move)
        with pytest.raises(InputError, match=r"shared: .* comes first; it is live and has to be complete"):
            tasks.ask(move.desk(), "complete", [*named, "shared"], actor="ann", reason="a test")
        for cohorts in named, ["shared"]:
            for attempt in tasks.ask(move.desk(), "complete", cohorts, actor="ann", reason="a test"):
                approve(move.desk(), attempt)
                assert tasks.cut_over(move.desk(), attempt.id).outcome == "done"
    assert tasks.finish(move.desk(), actor="ann")
    assert left(move) == []
    assert independent.compare(move.source.admin, move.target.admin) == []
    with closing(connect(move.target.admin)) as db:
        prices = db.rows("SELECT monthly_price FROM plan WHERE id < 3 ORDER BY id")
    assert [str(price) for (price,) in prices] == ["1.11", "2.22"]


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
