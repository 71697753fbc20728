"""How much faster a load is with two Celery workers than with one, as Airflow runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from benchmarks.ground import LANES, Address, Ground, dag_folder, database
from benchmarks.results import Result, not_available, result
from billing.airflow import DemoError
from fishladder.ledger import upgrade
from tests.servers import Unavailable
from tests.servers.workers import celery_airflow

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2


def workers(ground: Ground) -> Iterator[Result]:
    """The whole load DAG, and the lanes of its large table alone: seconds with two workers, and with one.

    A worker runs one task at a time, so that one worker runs the lanes one after the other. One round: setting up
    Airflow and its workers takes longer than most loads.
    """
    bench = ground.bench()
    dags = dag_folder(ground.folder)
    name = f"{bench.label}, {LANES} lanes, {WORKERS} workers / 1"
    try:
        with_all, with_one = (_load(ground, bench.source, dags, count) for count in (WORKERS, 1))
    except Unavailable as reason:
        yield not_available("workers", name, str(reason))
        return
    for what, seconds, reference in zip(("the lanes of one table", "the whole DAG"), with_all, with_one, strict=True):
        yield result("workers", f"{name}, {what}", "s", [(seconds, reference)])


def _load(ground: Ground, source: Address, dags: Path, workers: int) -> tuple[float, float]:
    """Seconds from the first invoice's lane to the end of the last, and of the load DAG's run."""
    ledger = f"sqlite:///{ground.folder}/ledger-{workers}-workers.db"
    upgrade(ledger)
    with database(ground.server) as target:
        environment = {
            "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("include", "plugins", ".")),
            "FISHLADDER_LEDGER": ledger,
            "AIRFLOW_CONN_BENCH_SOURCE": source.copier,
            "AIRFLOW_CONN_BENCH_TARGET": target.copier,
        }
        home = ground.folder / f"airflow-{workers}"
        with celery_airflow(home, dags, environment, workers=workers, tasks_each=1) as airflow:
            for step in ("prepare", "load"):
                airflow.wait_for_dag(f"bench_{step}")
            for step in ("prepare", "load"):
                run = airflow.trigger(f"bench_{step}")
                if airflow.ended(f"bench_{step}", run) != "success":
                    raise DemoError(f"bench_{step} failed: {airflow.failures(f'bench_{step}')}; its log is in {home}")
            whole = airflow.call("GET", f"/api/v2/dags/bench_load/dagRuns/{run}")
            lanes = [task for task in airflow.tasks("bench_load", run) if task["task_id"] == "invoice.load"]
    if len({task["hostname"] for task in lanes}) != min(workers, LANES):
        raise DemoError(f"the lanes ran on {[task['hostname'] for task in lanes]}, not on {workers} workers")
    return _seconds(lanes), _seconds([whole])


def _seconds(runs: list[dict[str, str]]) -> float:
    """From the first's start to the last's end."""
    began = min(datetime.fromisoformat(run["start_date"]) for run in runs)
    return (max(datetime.fromisoformat(run["end_date"]) for run in runs) - began).total_seconds()
