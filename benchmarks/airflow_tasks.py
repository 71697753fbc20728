"""How many tasks Airflow runs for a load, whatever the number of rows, and how long it takes to parse a DAG file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.ground import Ground, check_count, dag_folder, database, rows_text
from benchmarks.results import REPEATS, Result, result
from fishladder.ledger import upgrade

ROOT = Path(__file__).resolve().parents[1]
FEWEST = 10_000
MOST = 10
"""Times ``ROWS``: ten million, if nothing else was asked for."""

# A load in Airflow: what its run had, when it was over.
LOAD = """
import json, os, sys
from fishladder.ledger import open_ledger
from fishladder_airflow.dags import build

dags = build(sys.argv[1])
runs = [dags[dag].test() for dag in ("bench_prepare", "bench_load")]
states = {str(task.state) for run in runs for task in run.get_task_instances()}
assert states == {"success"}, states
with open_ledger(os.environ["FISHLADDER_LEDGER"], migration="bench") as ledger:
    progress = ledger.progress("invoice")
print(json.dumps({"tasks": len(runs[1].get_task_instances()), "chunks": progress.chunks}))
"""
# As Airflow's processor of DAG files does: in a process that knows Airflow, and nothing of ours yet.
PARSE = """
import json, sys, time
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
import airflow.providers.standard.operators.hitl

file = Path(sys.argv[1])
began = time.perf_counter()
bag = BundleDagBag(file, bundle_path=file.parent, bundle_name="bench")
took = time.perf_counter() - began
assert bag.dags and not bag.import_errors, bag.import_errors
print(json.dumps({"seconds": took, "dags": len(bag.dags)}))
"""


def tasks(ground: Ground) -> Iterator[Result]:
    """Task instances of two real loads, of ten thousand rows and of ten times ``ROWS``."""
    sizes = (ground.rows * MOST, FEWEST)
    large, small = (_load(ground, ground.folder / name, size) for name, size in zip("ab", sizes, strict=True))
    most, fewest = map(rows_text, sizes)
    case = f"a load of {most} in {large['chunks']} chunks / {fewest} in {small['chunks']}"
    yield result("tasks", case, "tasks", [(large["tasks"], small["tasks"])], goal=1.0)


def parse(ground: Ground) -> Iterator[Result]:
    """Seconds that Airflow needs for a DAG file, of each one that is here."""
    home = ground.folder / "airflow"
    for file in sorted((ROOT / "dags").glob("*.py")):
        rounds = [(_run(PARSE, home, str(file))["seconds"], 1.0) for _ in range(REPEATS)]
        yield result("parse", f"dags/{file.name} / a second", "s", rounds, goal=0.5)


def _load(ground: Ground, folder: Path, invoices: int) -> dict[str, Any]:
    folder.mkdir()
    dags = dag_folder(folder)
    ledger = f"sqlite:///{folder}/ledger.db"
    upgrade(ledger)
    home = folder / "airflow"
    _python(["-m", "airflow", "db", "migrate"], home, {})
    with ground.one_bench(invoices) as bench, database(ground.server) as target:
        said = _run(
            LOAD,
            home,
            str(dags / "bench.yaml"),
            AIRFLOW__CORE__DAGS_FOLDER=str(dags),
            FISHLADDER_LEDGER=ledger,
            AIRFLOW_CONN_BENCH_SOURCE=bench.source.copier,
            AIRFLOW_CONN_BENCH_TARGET=target.copier,
        )
        check_count(target, invoices)
    return said


def _run(script: str, home: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What a script says in its last line."""
    said: dict[str, Any] = json.loads(_python(["-c", script, *arguments], home, environment).splitlines()[-1])
    return said


def _python(command: list[str], home: Path, environment: dict[str, str]) -> str:
    ours = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("include", "plugins")),
    }
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | ours | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"Airflow says: {done.stderr[-2000:]}")
    return done.stdout
