"""Inside Airflow: its scheduler is killed in the middle of a load; the same work is done by two runs at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from billing.airflow import Airflow, _descendants
from tests.scenario.migration import Billing, until

DAGS = """
from airflow.sdk import DAG
from fishladder_airflow.dags import build
from fishladder_airflow.operators import ApplyChanges

made = build({file!r})
# One run at a time is what Airflow is asked for: here it may start two.
made["billing_load"].max_active_runs = 2
with DAG("billing_replicate_too", max_active_runs=2) as dag:
    ApplyChanges(task_id="apply", migration_file={file!r}, seconds=600)
globals().update(made)
"""


class Standalone(Airflow):
    """``airflow standalone`` with the DAGs of a migration; its scheduler can be killed."""

    def __init__(self, billing: Billing) -> None:
        dags = billing.folder / "dags"
        dags.mkdir()
        (dags / "billing.py").write_text(DAGS.format(file=str(billing.file)))
        settings = {
            **billing.environment,
            "AIRFLOW_CONN_BILLING_SOURCE": billing.source.copier,
            "AIRFLOW_CONN_BILLING_TARGET": billing.target.copier,
            # It looks for what a dead scheduler left behind every few minutes: here, every few seconds.
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        }
        super().__init__(billing.folder / "airflow", dags, settings)
        self._outlived: dict[int, bytes] = {}  # what the killed one had started, and when that began

    def kill_scheduler(self) -> None:
        (standalone,) = self._processes
        scheduler = next(each for each in sorted(_descendants({standalone.pid})) if b"scheduler" in _about(each)[0])
        self._outlived |= {each: _about(each)[1] for each in _descendants({scheduler})}
        os.kill(scheduler, signal.SIGKILL)

    def tries(self, dag: str, task: str) -> int:
        """How often the DAG's newest run has started a task that runs now; 0 if it does not."""
        (run,) = self.call("GET", f"/api/v2/dags/{dag}/dagRuns?order_by=-run_after&limit=1")["dag_runs"]
        found = self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{run['dag_run_id']}/taskInstances")["task_instances"]
        return max(
            (each["try_number"] for each in found if each["task_id"] == task and each["state"] == "running"), default=0
        )

    def start_scheduler(self) -> None:
        self.launch("scheduler", "scheduler")

    def stop(self) -> None:
        super().stop()
        left = {each for each, moment in self._outlived.items() if _about(each)[1] == moment}
        for process in left | _descendants(left):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _about(process: int) -> tuple[bytes, bytes]:
    """Its command, and when it began: an id may have gone to a stranger. Empty if it is gone."""
    try:
        folder = Path(f"/proc/{process}")
        return (folder / "cmdline").read_bytes(), (folder / "stat").read_bytes().rpartition(b")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return b"", b""


@pytest.fixture
def airflow(billing: Billing) -> Iterator[Standalone]:
    found = Standalone(billing)
    try:
        found.start()
        found.wait_for_dag("billing_load")
        yield found
    finally:
        found.stop()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_the_scheduler_is_killed_in_the_middle_of_a_load(billing: Billing, airflow: Standalone) -> None:
    """The next one starts its lanes again, whatever became of those that it had started; nothing is there twice."""
    assert airflow.run("billing_prepare") == "success"
    billing.customers(1).run(operations=100)
    ledger = billing.desk().ledger
    ledger.set_control(rows_per_second=50, actor="test")
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(airflow.run, "billing_load")
        until(lambda: ledger.progress("invoice").done > 0, "a chunk of invoices")
        ledger.set_control(rows_per_second=0, paused=True, actor="test")  # its lanes wait, and are not done
        assert ledger.progress("invoice").done < ledger.progress("invoice").chunks
        airflow.kill_scheduler()
        airflow.start_scheduler()
        until(lambda: airflow.tries("billing_load", "invoice.load") > 1, "lanes that are started again")
        ledger.set_control(paused=False, actor="test")
        assert load.result() == "success", airflow.failures("billing_load")
    billing.customers(2).run(operations=100)
    billing.ends_equal()


def running(airflow: Standalone, dag: str, run: str, task: str) -> bool:
    return any(each["task_id"] == task and each["state"] == "running" for each in airflow.tasks(dag, run))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_two_runs_at_once(billing: Billing, airflow: Standalone) -> None:
    """Of the applier, and of the load, with customers at work: each row is there once, and nothing is lost."""
    assert airflow.run("billing_prepare") == "success"
    ledger = billing.desk().ledger
    ledger.set_control(rows_per_second=50, actor="test")
    with billing.traffic() as summary:
        appliers = [airflow.trigger("billing_replicate_too") for _ in range(2)]
        loads = [airflow.trigger("billing_load") for _ in range(2)]

        def all_at_work() -> bool:
            return all(running(airflow, "billing_replicate_too", run, "apply") for run in appliers) and all(
                running(airflow, "billing_load", run, "invoice.load") for run in loads
            )

        until(all_at_work, "two appliers and the lanes of two loads")
        ledger.set_control(rows_per_second=0, actor="test")
        for run in loads:
            airflow.ended("billing_load", run)  # its check may find customers at work
            states = {each["task_id"]: each["state"] for each in airflow.tasks("billing_load", run)}
            ours = {task: state for task, state in states.items() if task.endswith((".load", ".close"))}
            assert len(ours) == 20 and set(ours.values()) == {"success"}, ours
        billing.await_changes(300)
        assert all(running(airflow, "billing_replicate_too", run, "apply") for run in appliers)
    assert not summary.failed and not summary.refused
    billing.ends_equal()
