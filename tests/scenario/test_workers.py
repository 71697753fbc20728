"""The DAGs on Celery: two workers share a load, with customers at work, on MySQL, PostgreSQL and Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from billing import invariants, schema
from billing.database import connect
from billing.seed import seed
from fishladder.ledger import Ledger, open_ledger, upgrade
from tests import independent
from tests.conftest import not_tested
from tests.servers import Unavailable, mysql, postgres
from tests.servers.workers import CeleryAirflow, celery_airflow

ROOT = Path(__file__).parents[2]
CUSTOMERS = 400
DEADLINE = 180.0

pytestmark = [pytest.mark.mysql, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1200)]


class Billing:
    """The example between two MySQL databases, its ledger, and the Airflow that moves it."""

    def __init__(self, source: mysql.Database, target: mysql.Database, ledger: str) -> None:
        self.source, self.target, self.ledger = source, target, ledger

    def environment(self) -> dict[str, str]:
        connections = {
            "BILLING_SOURCE": self.source.copier,
            "BILLING_SOURCE_APP": self.source.application,
            "BILLING_TARGET": self.target.copier,
            "BILLING_TARGET_APP": self.target.application,
        }
        return {
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("include", "plugins", ".")),
            "FISHLADDER_LEDGER": self.ledger,
            "FISHLADDER_POOLS": "1",
            "BILLING_SOURCE_KIND": "mysql",
            "BILLING_TARGET_KIND": "mysql",
            **{f"AIRFLOW_CONN_{name}": url for name, url in connections.items()},
        }

    def journal(self) -> int:
        with closing(connect(self.source.copier)) as db:
            return int(db.rows("SELECT COUNT(*) FROM fishladder_journal")[0][0])


@pytest.fixture
def billing(mysql_server: str, request: pytest.FixtureRequest) -> Iterator[Billing]:
    with ExitStack() as stack:
        try:
            server = postgres.dsn()
        except Unavailable as reason:
            not_tested(request.config, "PostgreSQL", reason)
        source, target = (stack.enter_context(mysql.database(mysql_server)) for _ in range(2))
        ledger = stack.enter_context(postgres.database(server))
        schema.create(source.admin)
        seed(source.admin, customers=CUSTOMERS, seed=11)
        upgrade(ledger)
        yield Billing(source, target, ledger)


@pytest.fixture
def airflow(billing: Billing, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CeleryAirflow]:
    with ExitStack() as stack:
        try:
            # Two tasks each: the applier holds one of them all the time.
            found = stack.enter_context(
                celery_airflow(tmp_path / "airflow", ROOT / "dags", billing.environment(), workers=2, tasks_each=2)
            )
        except Unavailable as reason:
            not_tested(request.config, "Redis", reason)
        for step in ("prepare", "load", "replicate", "reconcile"):
            found.wait_for_dag(f"billing_{step}")
        found.pool("fishladder_billing_target", 8)
        yield found


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.5)


def test_two_workers_move_a_busy_database(billing: Billing, airflow: CeleryAirflow, tmp_path: Path) -> None:
    acknowledged = tmp_path / "acknowledged.jsonl"
    command = [sys.executable, "-m", "billing.traffic", billing.source.application, "--rate", "20"]
    command += ["--seconds", "3600", "--log", str(acknowledged)]
    with subprocess.Popen(
        command, env={**os.environ, **billing.environment()}, stdout=subprocess.PIPE, text=True
    ) as traffic:
        try:
            assert airflow.run("billing_prepare") == "success"
            airflow.unpause("billing_replicate")
            load = airflow.trigger("billing_load")
            assert airflow.ended("billing_load", load) == "success", airflow.failures("billing_load")
            traffic.send_signal(signal.SIGTERM)
            printed, _ = traffic.communicate(timeout=60)
        finally:
            traffic.kill()
    summary = json.loads(printed)
    assert summary["total"] > 100
    assert summary["refused"] == summary["failed"] == summary["unknown"] == {}

    with open_ledger(billing.ledger, migration="billing") as ledger:
        until(lambda: billing.journal() == 0 and ledger.count_dirty() == 0, "the last changes")
        assert airflow.run("billing_reconcile") == "success", airflow.failures("billing_reconcile")
        everything_is_there(billing, ledger, acknowledged)

    tasks = airflow.tasks("billing_load", load)
    lanes = {task["hostname"] for task in tasks if task["task_id"].endswith(".load")}
    assert lanes == {"worker-1", "worker-2"}


def everything_is_there(billing: Billing, ledger: Ledger, acknowledged: Path) -> None:
    assert independent.compare(billing.source.copier, billing.target.copier, schema.TABLES) == []
    assert independent.acknowledged(billing.target.copier, [acknowledged]) == []
    assert invariants.check(billing.target.copier) == []
    assert ledger.count_rejects() == 0
