"""A whole copy under live traffic, judged by code that shares nothing with the core."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from billing import schema, seed
from billing.traffic import Billing, Traffic
from fishladder import install, spec
from fishladder.apply import Ends, follow
from fishladder.clock import SystemClock
from fishladder.ledger import open_ledger
from fishladder.load import close_load, cut, load_lane
from fishladder.plan import resolve
from fishladder.reconcile import reconcile_table
from fishladder.reports import run_reports
from tests import independent, ledgers
from tests.contract.shop import SPEC
from tests.contract.stores import PATIENCE, STORES

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
"""What kills a client, or an applier, beside a test fails the test."""
PAIRS = [
    *(("sqlite", "sqlite"), ("mysql", "mysql"), ("oracle", "mysql")),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("sqlite", "mysql"), ("mysql", "sqlite"))),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("mariadb", "mariadb"), ("mysql", "oracle"))),
]


@pytest.mark.parametrize(("origin", "destination"), PAIRS)
def test_a_copy_under_live_traffic(
    request: pytest.FixtureRequest, tmp_path: Path, origin: str, destination: str
) -> None:
    with ExitStack() as stack:
        ours = stack.enter_context(STORES[origin](request, tmp_path / "source"))
        theirs = stack.enter_context(STORES[destination](request, tmp_path / "target"))
        stack.callback(ours.close)
        stack.callback(theirs.close)
        schema.create(ours.admin)
        seed.seed(ours.admin, customers=120, seed=7)
        source, target, clock = ours.open(), theirs.open(), SystemClock()
        ledgers.create(url := f"sqlite:///{tmp_path}/ledger.db")
        ledger = open_ledger(url, migration="billing")
        kinds = {"BILLING_SOURCE_KIND": ours.kind, "BILLING_TARGET_KIND": theirs.kind}
        migration = spec.load(SPEC, environment=kinds)
        traffic = Traffic(ours.application, Billing(random.Random(1), run="one"), rng=random.Random(2), rate=100)
        client = threading.Thread(target=traffic.run, kwargs={"seconds": PATIENCE})
        client.start()
        stack.callback(client.join)
        stack.callback(traffic.stop)

        install.create_target_tables(migration, source, target)
        plan = resolve(migration, source.describe(), target.describe())
        install.install(migration, plan, source, target, ledger, actor="test")
        cut(plan, source, ledger, 100)
        for table in plan.tables:
            load_lane(table, source, target, ledger, lane="1")
        for table in plan.tables:
            close_load(plan, table, target, ledger)
        workers = [Ends(owner="source", origin=ours.open(), destination=theirs.open()) for _ in range(2)]
        follow(plan, workers, ledger, clock, seconds=1)
        live = {table.name: reconcile_table(plan, table, workers[0], ledger, chunk_rows=100) for table in plan.tables}
        traffic.stop()
        client.join(PATIENCE)
        assert not client.is_alive()
        assert traffic.summary.failed == {}
        assert traffic.summary.refused == {}
        assert sum(traffic.summary.acknowledged.values()) > 20

        assert follow(plan, workers, ledger, clock, seconds=PATIENCE, until_idle=True).rejected == 0
        for table in plan.tables:
            # While traffic runs a key may stay hot, but nothing may be wrong.
            found = live[table.name]
            assert (found.missing, found.extra, found.differs, found.rejected) == (0, 0, 0, 0), (table.name, found)
            found = reconcile_table(plan, table, workers[0], ledger, chunk_rows=100)
            assert found.compared > 0 or table.name == "fishladder_applied"
            problems = (found.missing, found.extra, found.differs, found.deferred, found.orphans, found.duplicates)
            assert problems == (0, 0, 0, 0, 0, 0), (table.name, found)
        assert ledger.open_rejects() == []
        assert independent.compare(ours.admin, theirs.admin) == []
        reports = [*run_reports(migration, source, target, clock, cohorts=["NZ", "US"], until=clock.now())]
        assert [report.differences() for report in reports if not report.equal] == []
        assert any(report.source for report in reports)
