"""A cohort moves while routers, appliers and the ledger die, stall or are away; customers go on."""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from billing.operations import operations
from billing.routed import Customers
from fishladder import tasks
from fishladder.clock import SystemClock
from fishladder.errors import AmbiguousError, InputError, TransientError
from fishladder.ledger import Attempt, open_ledger
from fishladder.operate import Order
from fishladder.serving import Router
from fishladder.stores import connect_url, open_application
from tests.approving import approve
from tests.conftest import not_tested
from tests.scenario.migration import DEADLINE, Billing, Witness, migration, until
from tests.scenario.routed import Known, Logs
from tests.scenario.test_servers import holding
from tests.servers import Unavailable
from tests.servers.postgres import PostgresServer, needs_driver

MOVING = 30
"""Customers of the country that moves."""
LONG = 600
"""Seconds within which no attempt is late, however busy the machine."""


@pytest.fixture(scope="module")
def busy(mysql_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Billing]:
    """Prepared and loaded, for all tests of the module: each leaves it equal, and NZ in one of the stores."""
    with migration(tmp_path_factory.mktemp("busy"), mysql_server, mysql_server) as made:
        yield begun(made)


@pytest.fixture(scope="module")
def ledger_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A PostgreSQL of its own, so that its death harms nobody."""
    try:
        needs_driver()
        server = PostgresServer()
    except Unavailable as reason:
        not_tested(pytestconfig, "PostgreSQL of its own", reason)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def on_postgres(
    ledger_server: PostgresServer, mysql_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Billing]:
    """The same with its ledger there."""
    folder = tmp_path_factory.mktemp("on_postgres")
    with migration(folder, mysql_server, mysql_server, ledger=ledger_server.dsn) as made:
        yield begun(made)


def begun(billing: Billing) -> Billing:
    give_customers(billing)
    billing.prepare()
    billing.load()
    billing.ends_equal()
    return billing


def give_customers(billing: Billing) -> None:
    billing.rows("source", f"UPDATE customer SET country_code = 'NZ' WHERE id <= {MOVING}")


def of_nz(billing: Billing) -> list[int]:
    """The customers that move."""
    return at_home(billing, "= 'NZ'")


def of_others(billing: Billing) -> list[int]:
    return at_home(billing, "<> 'NZ'")


def at_home(billing: Billing, where: str) -> list[int]:
    found = billing.rows(
        "source",
        "SELECT c.id FROM customer c JOIN fishladder_home h ON h.root_key = trim(cast(c.id AS char(20)))"
        f" WHERE h.cohort {where} ORDER BY c.id",
    )
    return [int(row[0]) for row in found]


# An attempt, step by step --------------------------------------------------------------------------------------------


def ask(billing: Billing) -> Attempt:
    """A verified attempt to move NZ to where it is not."""
    at = patient(billing)
    kind = "flip" if at.ledger.route("NZ").stage == "off" else "rollback"
    (asked,) = tasks.ask(at, kind, ["NZ"], actor="test", reason="an outage")
    return verified(billing, asked)


def patient(billing: Billing) -> tasks.Desk:
    """Whose attempts have time."""
    at = billing.desk()
    gates = at.spec.gates.model_copy(update={"deadline": timedelta(seconds=LONG)})
    return replace(at, spec=at.spec.model_copy(update={"gates": gates}))


def verified(billing: Billing, asked: Attempt) -> Attempt:
    at = patient(billing)
    tasks.replicate(billing.desk(), seconds=1)  # else no applier may be at work
    approve(billing.desk(), asked)
    found = tasks.verify_cohort(at, asked.id)
    assert found.outcome is None, found.error
    return found


def advance(billing: Billing, attempt: Attempt, step: str) -> None:
    """Until this is its next step."""
    with billing.desk().cutover() as cutover:
        until(lambda: cutover.advance(attempt.id).step == step, f"the step {step}")


def expire(billing: Billing, attempt: Attempt) -> None:
    """As if its deadline had passed."""
    with billing.desk().ledger.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_attempt SET deadline = -1 WHERE id = :id"), {"id": attempt.id})


def cut_over(billing: Billing, attempt: Attempt) -> Attempt:
    return tasks.cut_over(billing.desk(), attempt.id)


def has_moved(billing: Billing, attempt: Attempt) -> bool:
    """It ended well, and NZ is where it was to go."""
    found, route = billing.desk().ledger.attempt(attempt.id), billing.desk().ledger.route("NZ")
    stage = "live" if attempt.winner == "target" else "off"
    return (found.outcome, found.error, route.stage, route.owner) == ("done", None, stage, attempt.winner)


def journaled(billing: Billing, side: str) -> int:
    return int(billing.rows(side, "SELECT count(*) FROM fishladder_journal WHERE cohort = 'NZ'")[0][0])


# Customers -----------------------------------------------------------------------------------------------------------


def router(billing: Billing, patience: float = DEADLINE) -> Router:
    """With a ledger of its own, as another process would have, and patient: outages take as long as they take."""
    source, target = (open_application(*connect_url(side.application)) for side in (billing.source, billing.target))
    ledger = open_ledger(billing.environment["FISHLADDER_LEDGER"], migration="billing")
    return Router(ledger, operations, source=source, target=target, patience=patience)


@contextmanager
def crowd(billing: Billing, ids: Sequence[int], log: Path) -> Iterator[Customers]:
    """One client of these customers, for as long as the block lasts; none of its calls fails."""
    plans = [row[0] for row in billing.rows("source", "SELECT id FROM plan ORDER BY id")]
    behind = router(billing)
    client = Known(behind, ids, plans, rng=random.Random(log.stem), run=secrets.token_hex(3))
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(client.run, rate=40, seconds=600, log=log)
        try:
            yield client
        finally:
            client.stop()
            calling.result()
            behind.close()
    assert client.felt.failed == {}, client.felt.errors
    assert log.exists()


def answered(client: Customers) -> int:
    return client.felt.done.total() + client.felt.queued.total()


def served(client: Customers, more: int) -> None:
    """Until so many more of its calls were answered."""
    wanted = answered(client) + more
    until(lambda: answered(client) >= wanted, "customers to be served")


def started(billing: Billing, folder: Path, name: str, ids: Sequence[int], *moment: str) -> subprocess.Popen[bytes]:
    """Customers in a process of their own. ``moment``: when it dies or stalls by itself, and which of the two."""
    return billing.process("tests.scenario.routed", str(billing.file), str(folder), name, json.dumps(ids), *moment)


def killed(process: subprocess.Popen[bytes]) -> bool:
    """Whether its end is that it was killed."""
    return process.wait(DEADLINE) == -signal.SIGKILL


# The way back --------------------------------------------------------------------------------------------------------


class Seen(SystemClock):
    """Which says that somebody has begun to wait."""

    def __init__(self) -> None:
        self.waited = threading.Event()

    def sleep(self, seconds: float) -> None:
        self.waited.set()
        super().sleep(seconds)


@pytest.mark.slow
def test_a_rollback_is_asked_for_while_the_flip_replays(busy: Billing, tmp_path: Path) -> None:
    """It waits for the flip's end, and both move all that customers were told."""
    witness, log, ledger, clock = Witness(busy), tmp_path / "log.jsonl", busy.desk().ledger, Seen()
    if ledger.route("NZ").stage == "live":
        cut_over(busy, ask(busy))
    with crowd(busy, of_nz(busy), log) as clients, ThreadPoolExecutor(1) as pool:
        flip = ask(busy)
        advance(busy, flip, "drain")
        until(lambda: clients.felt.queued.total() > 20, "writes to queue")
        advance(busy, flip, "replay")
        at = replace(patient(busy), clock=clock)
        asking = pool.submit(lambda: tasks.ask(at, "rollback", ["NZ"], actor="test", reason="at once"))
        until(lambda: clock.waited.is_set() or asking.done(), "it to wait")
        served(clients, 10)
        assert len(ledger.next_queued("NZ", 100)) > 20 and not asking.done()
        assert [attempt.kind for attempt in ledger.attempts(only_open=True)] == ["flip"]
        cut_over(busy, flip)
        assert ledger.attempt(flip.id).outcome == "done"
        (asked,) = asking.result(DEADLINE)
        assert (asked.kind, asked.outcome, ledger.route("NZ").stage) == ("rollback", None, "live")
        back = verified(busy, asked)
        advance(busy, back, "drain")
        queued = clients.felt.queued.total()
        until(lambda: clients.felt.queued.total() > queued, "a write to queue")
        cut_over(busy, back)
        served(clients, 10)
    assert has_moved(busy, back)
    witness.judge(log)


# A router ------------------------------------------------------------------------------------------------------------


def test_a_routers_process_is_killed(busy: Billing, tmp_path: Path) -> None:
    """It is started again, and asks again under the same keys for what was not answered."""
    witness, logs = Witness(busy), Logs(tmp_path)
    few, others = of_nz(busy)[:3], of_nz(busy)[3:]  # few, so that each has several writes in the queue

    def told(more: int, state: str) -> None:
        def count() -> int:
            return sum(line["state"] == state for line in logs.answered.lines())

        wanted = count() + more
        until(lambda: count() >= wanted, f"{more} more calls that are {state}: {busy.worker_log()}")

    first = started(busy, tmp_path, "1", few, "enqueued", "die")
    told(10, "done")
    attempt = ask(busy)
    advance(busy, attempt, "drain")
    assert killed(first)
    assert len(logs.unanswered()) == 1
    second = started(busy, tmp_path, "2", few)
    told(20, "queued")
    second.kill()
    assert killed(second)
    advance(busy, attempt, "replay")
    assert killed(started(busy, tmp_path, "3", others, "committed", "die"))
    assert len(logs.unanswered()) == 1
    last = started(busy, tmp_path, "4", few + others)
    cut_over(busy, attempt)
    assert has_moved(busy, attempt)
    told(20, "done")
    last.terminate()
    assert last.wait(DEADLINE) == 0, busy.worker_log()
    assert logs.failed.lines() == logs.unanswered() == []
    witness.judge(logs.answered.path)


@pytest.mark.parametrize(
    ("moment", "moves"),
    [
        ("begun", 2),
        pytest.param("begun", 1, marks=pytest.mark.slow),
        pytest.param("enqueueing", 1, marks=pytest.mark.slow),
        pytest.param("enqueueing", 2, marks=pytest.mark.slow),
    ],
)
def test_a_router_stalls_and_goes_on_where_it_was(busy: Billing, tmp_path: Path, moment: str, moves: int) -> None:
    """NZ moves, and back, meanwhile: what it was about to write is refused by the fence, and done at the owner."""
    witness, logs, ids, log = Witness(busy), Logs(tmp_path), of_nz(busy), tmp_path / "others.jsonl"
    with crowd(busy, ids[10:], log) as others:
        stalling = started(busy, tmp_path, f"{moment}-{moves}", ids[:10], moment, "stall")
        if moment == "begun":
            until(lambda: is_stopped(stalling), f"its stall: {busy.worker_log()}")
        for number in range(moves):
            attempt = ask(busy)
            if moment == "enqueueing" and number == 0:
                until(lambda: bool(logs.answered.lines()), f"its start: {busy.worker_log()}")
                advance(busy, attempt, "drain")
                until(lambda: is_stopped(stalling), f"its stall: {busy.worker_log()}")
            cut_over(busy, attempt)
            assert has_moved(busy, attempt)
            served(others, 10)
        (begun_before,) = logs.unanswered()
        stalling.send_signal(signal.SIGCONT)
        until(lambda: len(logs.answered.lines()) > 10, f"it to go on: {busy.worker_log()}")
        stalling.terminate()
        assert stalling.wait(DEADLINE) == 0, busy.worker_log()
    assert logs.failed.lines() == logs.unanswered() == []
    over = [line["key"] for log in (logs.answered, logs.declined) for line in log.lines()]
    assert over.count(begun_before["key"]) == 1
    (counted,) = logs.counted.lines()
    assert moment != "begun" or counted.get("refused", 0) >= 1
    witness.judge(logs.answered.path, log)


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    return Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"


# The applier ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["unforgotten", pytest.param("uncommitted", marks=pytest.mark.slow)])
def test_the_applier_is_killed(busy: Billing, tmp_path: Path, moment: str) -> None:
    """While a move drains, which nobody else looks after, and while changes flow back after it."""
    witness, log = Witness(busy), tmp_path / "log.jsonl"
    with crowd(busy, of_nz(busy), log) as clients:
        attempt = ask(busy)
        until(lambda: journaled(busy, attempt.loser) > 0, "something to drain")
        advance(busy, attempt, "drain")
        assert killed(busy.worker("applier", str(LONG), moment, attempt.loser)), busy.worker_log()
        assert busy.desk().ledger.attempt(attempt.id).step == "drain"
        served(clients, 5)
        applier = busy.worker("applier", str(LONG))
        until(lambda: has_moved(busy, attempt), "the attempt's end")
        applier.kill()
        assert killed(applier)
        until(lambda: journaled(busy, attempt.winner) > 10, "changes to flow back")
        assert killed(busy.worker("applier", str(LONG), moment, attempt.winner)), busy.worker_log()
        applier = busy.worker("applier", str(LONG))
        busy.await_changes(20)
        applier.kill()
        assert killed(applier)
    witness.judge(log)


# The ledger ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "late"),
    [
        ("drain", False),
        *(pytest.param(s, False, marks=pytest.mark.slow) for s in ("open", "fence", "compare", "close", "replay")),
        *(pytest.param(step, True, marks=pytest.mark.slow) for step in ("fence", "drain", "compare")),
    ],
)
def test_the_ledger_dies(
    on_postgres: Billing, ledger_server: PostgresServer, tmp_path: Path, step: str, late: bool
) -> None:
    """Who does not move is served; who does is read, and written when it is back. The attempt goes on, or back."""
    billing, ids = on_postgres, of_nz(on_postgres)
    witness, logs = Witness(billing), [tmp_path / "moving.jsonl", tmp_path / "standing.jsonl"]
    with crowd(billing, ids, logs[0]) as moving, crowd(billing, of_others(billing), logs[1]) as standing:
        reader = router(billing)
        served(standing, 1)
        attempt = ask(billing)
        advance(billing, attempt, step)
        reader.read("account", {"customer_id": ids[0]}, entity=ids[0])
        ledger_server.crash()
        with pytest.raises(TransientError, match="the ledger"):
            cut_over(billing, attempt)
        served(standing, 30)
        for customer in ids[:5]:
            answer = reader.read("account", {"customer_id": customer}, entity=customer)
            assert answer.value["balance"] is not None
            assert (answer.pending, answer.pending_known) == ((), False)
        ledger_server.start()
        if late:
            expire(billing, attempt)
        ended = cut_over(billing, attempt)
        served(moving, 20)
        served(standing, 10)
        reader.close()
    assert ended.outcome == ("aborted" if late else "done")
    assert late or has_moved(billing, attempt)
    assert not late or billing.desk().ledger.route("NZ").owner == attempt.loser
    witness.judge(*logs)


@pytest.mark.slow
def test_the_ledger_dies_again_and_again(on_postgres: Billing, ledger_server: PostgresServer, tmp_path: Path) -> None:
    """Under the task, the applier and the routers, at any moment."""
    billing, log, rng = on_postgres, tmp_path / "log.jsonl", random.Random(1)
    witness = Witness(billing)
    with crowd(billing, of_nz(billing), log) as clients, ThreadPoolExecutor(1) as pool:
        applier = billing.worker("applier", str(LONG))
        billing.await_changes()
        for _ in range(3):
            attempt = ask(billing)

            def task(attempt: Attempt = attempt) -> Attempt:
                """As Airflow does, which repeats it."""
                while True:
                    try:
                        return cut_over(billing, attempt)
                    except (TransientError, AmbiguousError):
                        continue

            done = pool.submit(task)
            for _ in range(2):
                threading.Event().wait(rng.uniform(0.0, 0.4))  # no wait for anything: the moment of death is the test
                ledger_server.crash()
                ledger_server.start()
            assert done.result(DEADLINE).outcome == "done"
            assert has_moved(billing, attempt)
            served(clients, 10)
        assert applier.poll() is None, billing.worker_log()
        applier.kill()
        assert killed(applier)
    witness.judge(log)


def test_a_move_is_asked_for_while_the_ledger_is_away(on_postgres: Billing, ledger_server: PostgresServer) -> None:
    at = on_postgres.desk()
    kind = "flip" if at.ledger.route("NZ").stage == "off" else "rollback"
    ledger_server.crash()
    try:
        with pytest.raises(TransientError, match=r"the ledger in postgresql.* is busy or away .*repeat"):
            tasks.ask(on_postgres.desk(), kind, ["NZ"], actor="test", reason="a test")
    finally:
        ledger_server.start()
    assert on_postgres.desk().ledger.attempts(only_open=True) == []


# The stores ----------------------------------------------------------------------------------------------------------


def test_a_transaction_stays_open(busy: Billing, tmp_path: Path) -> None:
    """The attempt goes back; customers are served meanwhile, and what the transaction wrote is kept."""
    witness, log, ids = Witness(busy), tmp_path / "log.jsonl", of_nz(busy)
    with crowd(busy, ids[1:], log) as clients, ThreadPoolExecutor(1) as pool:
        attempt = ask(busy)
        writes = getattr(busy, attempt.loser).application
        with holding(writes, f"UPDATE customer SET name = 'held' WHERE id = {ids[0]}") as execute:
            done = pool.submit(lambda: cut_over(busy, attempt))
            ledger = busy.desk().ledger
            until(lambda: ledger.attempt(attempt.id).step == "fence", "the fence")
            served(clients, 5)
            expire(busy, attempt)
            until(lambda: ledger.attempt(attempt.id).error is not None, "the attempt to be given up")
            served(clients, 5)
            assert not done.done()
            execute("COMMIT")
        ended = done.result(DEADLINE)
        served(clients, 20)
    assert ended.outcome == "aborted" and "not ready within" in str(ended.error)
    assert busy.desk().ledger.route("NZ").owner == attempt.loser
    witness.judge(log)
    for side in ("source", "target"):
        assert busy.rows(side, f"SELECT name FROM customer WHERE id = {ids[0]}") == [("held",)]


def test_a_move_is_asked_for_while_a_table_loads(billing: Billing, tmp_path: Path) -> None:
    """Of a load that was never closed, and of a table that is loaded again: it is refused, and nothing is fenced."""
    give_customers(billing)
    billing.prepare()
    at = billing.desk()
    *tables, last = tasks.cut(at)
    billing.load(*tables)
    tasks.load_table(at, last, "1")
    witness, log = Witness(billing), tmp_path / "log.jsonl"
    with crowd(billing, of_nz(billing), log) as clients:
        is_refused(billing, last)
        tasks.close_table(at, last)
        tasks.operate(at, Order(action="restart tables", tables=("payment",)), actor="test")
        is_refused(billing, "payment")
        billing.load("payment")
        served(clients, 10)
        attempt = ask(billing)
        cut_over(billing, attempt)
        served(clients, 10)
    assert has_moved(billing, attempt)
    witness.judge(log)


def is_refused(billing: Billing, table: str) -> None:
    at = billing.desk()
    with pytest.raises(InputError, match=f"nothing can move while {table} is being loaded: see that the load ends"):
        tasks.ask(at, "flip", ["NZ"], actor="test", reason="too early")
    assert at.ledger.attempts(only_open=True) == []
    # One that was asked for a moment before the load began.
    (asked,) = at.ledger.begin_attempts(
        {"NZ": {}}, "flip", actor="test", reason="too early", deadline=LONG, approvals=0
    )
    with pytest.raises(InputError, match=f"{table}: its load is not closed yet"):
        tasks.verify_cohort(at, asked.id)
    assert tasks.abort(at, asked.id, "not equal", actor="test").outcome == "aborted"
    with at.stores() as pair:
        fences = [store.fences()["NZ"] for store in pair]  # type: ignore[attr-defined]
    assert [(fence.writer, fence.epoch) for fence in fences] == [("application", 1), ("copier", 1)]
