"""A cutover is killed between any two of its steps and beside the orders to its fences; customers go on."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from billing.operations import operations
from billing.routed import Customers
from fishladder import tasks
from fishladder.ledger import open_ledger
from fishladder.serving import Router
from fishladder.stores import connect_url, open_application
from tests.approving import approve
from tests.scenario.migration import Billing, Witness, again, until

STEPS = ("fence", "drain", "compare", "open", "close", "replay")
DEATHS = [
    # What a fence was told, and the ledger does not know; and between the old owner and the new, and at the end.
    *((step, "between") for step in ("fence", "open", "close")),
    *((step, "after") for step in ("drain", "replay")),
    *(pytest.param(step, "after", marks=pytest.mark.slow) for step in STEPS if step not in ("drain", "replay")),
    *(pytest.param(step, "before", marks=pytest.mark.slow) for step in STEPS),
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
        worker = loaded.worker("cutover", str(asked.id), step, when)
        assert worker.wait() == -signal.SIGKILL, loaded.worker_log()
        stopped = at.ledger.attempt(asked.id)
        assert stopped.outcome is None or (step, when) == ("replay", "after")
        # The steps that replicate takes, sooner than it would, and a task that Airflow repeats: both at once.
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(again, lambda: tasks.cut_over(loaded.desk(), asked.id))
            until(lambda: tasks.advance_attempts(at) == 0, "the attempt's end")
            assert task.result().outcome == "done"
        before = crowd.felt.done.total()
        until(lambda: crowd.felt.done.total() > before + 10, "customers to be served")
    ended = at.ledger.attempt(asked.id)
    assert (ended.outcome, ended.error) == ("done", None)
    moved = ("live", "target") if kind == "flip" else ("off", "source")
    assert (at.ledger.route("NZ").stage, at.ledger.route("NZ").owner) == moved
    assert crowd.felt.failed == {}, crowd.felt.errors
    witness.judge(log)
