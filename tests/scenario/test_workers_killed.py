"""Celery's workers are killed in the middle of a load, as docs/operating.md tells it, with customers at work."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import not_tested
from tests.scenario.migration import ROOT, Billing, migration
from tests.servers import Unavailable, mysql, postgres
from tests.servers.workers import CeleryAirflow, celery_airflow

DAGS = """
from fishladder_airflow.dags import build

globals().update(build({file!r}))
"""
SILENCE = timedelta(seconds=30)
"""Without a heartbeat, after which this Airflow takes a task for dead: [scheduler] task_instance_heartbeat_timeout,
which is 300 seconds where nobody says otherwise."""
LOOKS = timedelta(seconds=10)
"""Between its looks for such tasks: Airflow's own default."""
DELAY = timedelta(seconds=10)
"""Before the first repetition of a task of these DAGs; Airflow adds up to as much again."""
SLACK = timedelta(seconds=30)
"""For a busy machine to start what is due."""

DEADLINE = 300.0

pytestmark = [pytest.mark.mysql, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture
def billing(mysql_server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Billing]:
    with ExitStack() as stack:
        try:
            server = postgres.dsn()
        except Unavailable as reason:
            not_tested(request.config, "PostgreSQL", reason)
        ledger = stack.enter_context(postgres.database(server))
        yield stack.enter_context(migration(tmp_path, mysql_server, mysql_server, ledger=ledger))


@pytest.fixture
def airflow(billing: Billing, request: pytest.FixtureRequest) -> Iterator[CeleryAirflow]:
    dags = billing.folder / "dags"
    dags.mkdir()
    (dags / "billing.py").write_text(DAGS.format(file=str(billing.file)))
    settings = {
        **billing.environment,
        "AIRFLOW_CONN_BILLING_SOURCE": billing.source.copier,
        "AIRFLOW_CONN_BILLING_TARGET": billing.target.copier,
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(int(SILENCE.total_seconds())),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": str(int(LOOKS.total_seconds())),
    }
    with ExitStack() as stack:
        try:
            # Two tasks each: either of them can hold the applier and a lane when the other one is gone.
            found = stack.enter_context(
                celery_airflow(billing.folder / "airflow", dags, settings, workers=2, tasks_each=2)
            )
        except Unavailable as reason:
            not_tested(request.config, "Redis", reason)
        for step in ("prepare", "load", "replicate"):
            found.wait_for_dag(f"billing_{step}")
        yield found


def until(done: Callable[[], bool], what: str) -> None:
    """Asks twice a second: each question costs the API server time that its tasks need."""
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.5)


def running(airflow: CeleryAirflow) -> list[dict[str, Any]]:
    """The task instances that run, of all DAGs."""
    path = "/api/v2/dags/~/dagRuns/~/taskInstances?state=running&limit=1000"
    found: list[dict[str, Any]] = airflow.call("GET", path)["task_instances"]
    return found


def lanes(tasks: list[dict[str, Any]], table: str = "invoice") -> list[dict[str, Any]]:
    return [task for task in tasks if task["task_id"] == f"{table}.load"]


def shown(airflow: CeleryAirflow) -> dict[str, int]:
    """What the page's command finds of this Airflow: the id of a task instance → its process."""
    command = re.search(r"^ *(pgrep .*)$", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert command
    listed = subprocess.run(shlex.split(command[1]), capture_output=True, text=True, check=False).stdout
    ours = set[int]().union(*map(airflow.family, ("worker-1", "worker-2")))
    processes = {line.split()[-1]: int(line.split()[0]) for line in listed.splitlines()}
    return {task: process for task, process in processes.items() if process in ours}


@contextmanager
def held(billing: Billing, table: str) -> Iterator[None]:
    """Nobody can insert into this table of the target: each lane stands still in the middle of a chunk."""
    with closing(mysql.connect(billing.target.admin)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 60")
        cursor.execute(f"SELECT id FROM {table} FOR UPDATE")
        yield


def waiting(billing: Billing, table: str) -> int:
    """Sessions of copiers that wait to insert into it."""
    sql = (
        "SELECT count(DISTINCT thread_id) FROM performance_schema.data_locks"
        f" WHERE object_schema = DATABASE() AND object_name = '{table}' AND lock_status = 'WAITING'"
    )
    return int(billing.rows("target", sql)[0][0])


def start(billing: Billing, airflow: CeleryAirflow) -> str:
    """The applier and a load, slowly. Returns the load's run."""
    assert airflow.run("billing_prepare") == "success"
    billing.desk().ledger.set_control(rows_per_second=50, actor="test")
    airflow.unpause("billing_replicate")
    until(lambda: any(task["task_id"] == "apply" for task in running(airflow)), "the applier")
    return airflow.trigger("billing_load")


def kill_in_mid_chunk(billing: Billing, airflow: CeleryAirflow) -> tuple[str, list[dict[str, Any]]]:
    """Kill a worker with a lane in the middle of a chunk, the applier's if it has one. Returns its name and tasks."""
    ledger = billing.desk().ledger
    until(lambda: ledger.progress("customer").done > 0, "a chunk of customers")
    with held(billing, "invoice"):
        # On a busy machine the second lane may begin much later than the first.
        until(lambda: 0 < len(lanes(running(airflow))) == waiting(billing, "invoice"), "lanes in mid-chunk")
        alive = running(airflow)
        applier = next(task["hostname"] for task in alive if task["task_id"] == "apply")
        hosts = {task["hostname"] for task in lanes(alive)}
        victim = applier if applier in hosts else hosts.pop()
        airflow.kill_worker(victim)
    ledger.set_control(rows_per_second=0, actor="test")
    return victim, [task for task in alive if task["hostname"] == victim]


def ends_well(billing: Billing, airflow: CeleryAirflow, load: str, victim: str) -> None:
    """The load and the applier go on with the other worker alone."""
    ended = airflow.ended("billing_load", load)
    assert ended == "success", [(task["task_id"], task["state"]) for task in airflow.tasks("billing_load", load)]
    billing.await_changes()
    left = {task["hostname"] for task in lanes(airflow.tasks("billing_load", load))}
    assert left == {"worker-1", "worker-2"} - {victim}


def test_a_process_and_then_a_worker_are_killed_in_the_middle_of_a_load(
    billing: Billing, airflow: CeleryAirflow
) -> None:
    """A lane whose process was killed is repeated soon; what a worker ran, when its silence has lasted too long."""
    with billing.traffic(rate=20) as customers:
        load = start(billing, airflow)
        until(lambda: len(lanes(running(airflow), "customer")) == 2, "two lanes")
        until(lambda: set(shown(airflow)) == {task["id"] for task in running(airflow)}, "pgrep to show each task")
        (dead, *_) = lanes(running(airflow), "customer")
        os.kill(shown(airflow)[dead["id"]], signal.SIGKILL)
        killed = now()
        passed = at(repeated(airflow, dead)) - killed
        assert DELAY < passed < 2 * DELAY + SLACK

        victim, gone = kill_in_mid_chunk(billing, airflow)
        killed = now()
        for task in lanes(gone):
            again = repeated(airflow, task)
            passed = at(again) - killed
            assert again["hostname"] != victim
            # Its last heartbeat was some seconds before its end.
            assert SILENCE / 2 + DELAY < passed < SILENCE + LOOKS + 2 * DELAY + SLACK
        ends_well(billing, airflow, load, victim)
    assert not customers.failed and not customers.refused and not customers.unknown
    billing.ends_equal()


def now() -> datetime:
    return datetime.now().astimezone()


def at(task: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(task["start_date"])


def instance(airflow: CeleryAirflow, task: dict[str, Any]) -> dict[str, Any]:
    """The same one, as it is now."""
    which = ("task_id", "map_index")
    found = airflow.tasks(task["dag_id"], task["dag_run_id"])
    return next(each for each in found if all(each[word] == task[word] for word in which))


def repeated(airflow: CeleryAirflow, dead: dict[str, Any]) -> dict[str, Any]:
    """The task instance once it runs again, or has."""

    def is_again(found: dict[str, Any]) -> bool:
        return found["try_number"] > dead["try_number"] and found["state"] in ("running", "success")

    until(lambda: is_again(instance(airflow, dead)), "its repetition")
    return instance(airflow, dead)
