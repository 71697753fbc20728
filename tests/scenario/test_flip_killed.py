"""A cutover is killed between any two of its steps and beside the orders to its fences; customers go on."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from billing import invariants
from billing.operations import operations
from billing.routed import Customers
from fishladder import tasks
from fishladder.errors import StaleError
from fishladder.ledger import Attempt, open_ledger
from fishladder.serving import Router
from fishladder.stores import connect_url, open_application
from tests import independent
from tests.approving import approve
from tests.scenario.migration import Billing, Witness, again, migration, until

STEPS = ("fence", "drain", "compare", "open", "close", "replay")
DEATHS = [
    # What a fence was told, and the ledger does not know; and between the old owner and the new, and at the end.
    *((step, "between") for step in ("fence", "open", "close")),
    *((step, "after") for step in ("drain", "replay")),
    *(pytest.param(step, "after", marks=pytest.mark.slow) for step in STEPS if step not in ("drain", "replay")),
    *(pytest.param(step, "before", marks=pytest.mark.slow) for step in STEPS),
]

COMPLETED = ("NZ", "AU", "IE", "ES", "JP", "BR")
"""In the order of their waves. Who is complete cannot go back: each death has a country of its own."""
DEATHS_OF_COMPLETE = [
    pytest.param(cohort, *death, marks=() if cohort == "NZ" else pytest.mark.slow)
    for cohort, death in zip(
        COMPLETED,
        (
            ("free", "between"),
            ("shut", "between"),
            ("forget", "before"),
            ("free", "after"),
            ("shut", "after"),
            ("forget", "after"),
        ),
        strict=True,
    )
]


@contextmanager
def customers(billing: Billing, run: str, log: Path) -> Iterator[Customers]:
    """One client behind a router of its own, for as long as the block lasts."""
    ids = [row[0] for row in billing.rows("source", "SELECT id FROM customer ORDER BY id")]
    plans = [row[0] for row in billing.rows("source", "SELECT id FROM plan ORDER BY id")]
    source, target = (open_application(*connect_url(side.application)) for side in (billing.source, billing.target))
    ledger = open_ledger(billing.environment["FISHLADDER_LEDGER"], migration="billing")
    router = Router(ledger, operations, source=source, target=target)
    crowd = Customers(router, ids, plans, rng=random.Random(run), run=run)
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(crowd.run, rate=60, seconds=600, log=log)
        try:
            yield crowd
        finally:
            crowd.stop()
            calling.result()
            router.close()


@pytest.mark.parametrize(("step", "when"), DEATHS)
def test_a_cutover_is_killed(loaded: Billing, step: str, when: str) -> None:
    at, witness, log = loaded.desk(), Witness(loaded), loaded.folder / f"{step}-{when}.jsonl"
    kind = "flip" if at.ledger.route("NZ").stage == "off" else "rollback"
    with customers(loaded, f"{step}-{when}", log) as crowd:
        loaded.follow()
        (asked,) = tasks.ask(at, kind, ["NZ"], actor="test", reason=f"killed {when} {step}")
        approve(at, asked)
        assert tasks.verify_cohort(at, asked.id).outcome is None
        stopped = killed(loaded, asked, step, when)
        assert stopped.outcome is None or (step, when) == ("replay", "after")
        is_brought_to_its_end(loaded, asked)
        before = crowd.felt.done.total()
        until(lambda: crowd.felt.done.total() > before + 10, "customers to be served")
    ended = at.ledger.attempt(asked.id)
    assert (ended.outcome, ended.error) == ("done", None)
    moved = ("live", "target") if kind == "flip" else ("off", "source")
    assert (at.ledger.route("NZ").stage, at.ledger.route("NZ").owner) == moved
    assert crowd.felt.failed == {}, crowd.felt.errors
    witness.judge(log)


def killed(billing: Billing, attempt: Attempt, step: str, when: str) -> Attempt:
    """The attempt as its cutover left it."""
    worker = billing.worker("cutover", str(attempt.id), step, when)
    assert worker.wait() == -signal.SIGKILL, billing.worker_log()
    return billing.desk().ledger.attempt(attempt.id)


def is_brought_to_its_end(billing: Billing, attempt: Attempt) -> None:
    """The steps that replicate takes, sooner than it would, and a task that Airflow repeats: both at once."""
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(again, lambda: tasks.cut_over(billing.desk(), attempt.id))
        until(lambda: tasks.advance_attempts(billing.desk()) == 0, "the attempt's end")
        assert task.result().outcome == "done"


# Without a way back --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def for_good(mysql_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Billing]:
    """Prepared and loaded; one country after the other leaves it. Who has flipped need not be quiet for long."""
    with migration(tmp_path_factory.mktemp("for_good"), mysql_server, mysql_server) as made:
        made.environment["BILLING_OBSERVE"] = "1ms"
        made.prepare()
        made.load()
        made.ends_equal()
        yield made


@pytest.mark.parametrize(("cohort", "step", "when"), DEATHS_OF_COMPLETE)
def test_a_completion_is_killed(for_good: Billing, cohort: str, step: str, when: str) -> None:
    """Its customers are served by the target meanwhile, and by nobody else ever after."""
    billing, at, log = for_good, for_good.desk(), for_good.folder / f"{cohort}.jsonl"
    for other in COMPLETED[: COMPLETED.index(cohort) + 1]:
        if at.ledger.route(other).stage == "off":
            flip(billing, other)
    billing.follow()
    before = independent.counts(billing.target.admin)
    with customers(billing, f"{step}-{when}", log) as crowd:
        until(lambda: crowd.felt.done.total() > 10, "customers to be served")
        (asked,) = tasks.ask(at, "complete", [cohort], actor="test", reason=f"killed {when} {step}")
        approve(at, asked)
        stopped = killed(billing, asked, step, when)
        assert stopped.outcome is None or (step, when) == ("forget", "after")
        with pytest.raises(StaleError, match="completes forward"):
            at.ledger.abort(stopped, "too late", actor="test")
        is_brought_to_its_end(billing, asked)
        served = crowd.felt.done.total()
        until(lambda: crowd.felt.done.total() > served + 10, "customers to be served")
    ended, route = at.ledger.attempt(asked.id), at.ledger.route(cohort)
    assert (ended.outcome, ended.error) == ("done", None)
    assert (route.stage, route.owner) == ("complete", "target")
    with at.stores() as pair:
        fences = [store.fences()[cohort] for store in pair]  # type: ignore[attr-defined]
    assert [(fence.writer, fence.epoch) for fence in fences] == [("nobody", ended.epoch), ("free", ended.epoch)]
    for side in ("source", "target"):
        assert billing.rows(side, f"SELECT * FROM fishladder_journal WHERE cohort = '{cohort}'") == []
    assert crowd.felt.failed == {}, crowd.felt.errors
    assert crowd.felt.queued.total() == 0
    billing.follow()
    assert independent.accepted(billing.target.admin, [log], before=before) == []
    assert invariants.check(billing.target.admin) == []
    assert who_may_go_back(billing, "source") == who_may_go_back(billing, "target")
    for table in tasks.cut(at):
        found = tasks.reconcile_table(at, table)
        assert (found.missing, found.extra, found.differs, found.orphans) == (0, 0, 0, 0), table


def flip(billing: Billing, cohort: str) -> None:
    at = billing.desk()
    (asked,) = tasks.ask(at, "flip", [cohort], actor="test", reason="it will be complete")
    tasks.replicate(at, seconds=1)  # else no applier may be at work
    approve(at, asked)
    assert tasks.verify_cohort(at, asked.id).outcome is None
    assert tasks.cut_over(at, asked.id).outcome == "done"
    assert tasks.watch(at, asked.id)


def who_may_go_back(billing: Billing, side: str) -> dict[str, set[tuple[object, ...]]]:
    """The rows of customers who are not complete, who are the same in both stores."""
    complete = [cohort for cohort, route in billing.desk().ledger.routes().items() if route.stage == "complete"]
    gone = ", ".join(f"'{cohort}'" for cohort in complete)
    home = f"SELECT cast(root_key AS unsigned) FROM fishladder_home WHERE cohort NOT IN ({gone})"
    owners = {"customer": "id"} | dict.fromkeys(("subscription", "invoice", "payment", "gift_card"), "customer_id")
    return {
        table: set(billing.rows(side, f"SELECT * FROM {table} WHERE {owner} IN ({home})"))
        for table, owner in owners.items()
    }
