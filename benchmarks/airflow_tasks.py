"""How many tasks Airflow runs for a load, whatever the number of rows, and how long it takes to parse a DAG file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.ground import Ground
from benchmarks.results import REPEATS, Result, result

ROOT = Path(__file__).resolve().parents[1]
CUSTOMERS = (40, 4_000)
"""Of the small load and of the large one: all of it is one chunk for each table, or several are."""

# A load of the billing example between SQLite files: what its run had, when it was over.
LOAD = """
import json, os, sys
from contextlib import closing
from airflow.models.dagrun import DagRun
from billing import schema
from billing.database import connect
from billing.seed import seed
from fishladder.ledger import open_ledger, upgrade
from fishladder_airflow.dags import build

source = os.environ["AIRFLOW_CONN_BILLING_SOURCE"]
schema.create(source)
seed(source, customers=int(sys.argv[2]), seed=7)
upgrade(os.environ["FISHLADDER_LEDGER"])
dags = build(sys.argv[1])
runs = [dags[dag].test() for dag in ("billing_prepare", "billing_load")]
states = {str(task.state) for run in runs for task in run.get_task_instances()}
assert states == {"success"}, states
with open_ledger(os.environ["FISHLADDER_LEDGER"], migration="billing") as ledger:
    progress = ledger.progress("invoice_line")
with closing(connect(source)) as db:
    ((rows,),) = db.rows("SELECT count(*) FROM invoice_line")
print(json.dumps({"tasks": len(runs[1].get_task_instances()), "rows": rows, "chunks": progress.chunks}))
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
    """Task instances of two real loads, one of a hundred times as many customers as the other."""
    small, large = (_load(ground.folder / str(customers), customers) for customers in CUSTOMERS)
    case = f"a load with {large['rows']:,} lines in {large['chunks']} chunks / {small['rows']:,} in {small['chunks']}"
    yield result("tasks", case, "tasks", [(large["tasks"], small["tasks"])], goal=1.0)


def parse(ground: Ground) -> Iterator[Result]:
    """Seconds that Airflow needs for a DAG file, of each one that is here."""
    home = ground.folder / "airflow"
    for file in sorted((ROOT / "dags").glob("*.py")):
        rounds = [(_run(PARSE, home, str(file))["seconds"], 1.0) for _ in range(REPEATS)]
        yield result("parse", f"dags/{file.name} / a second", "s", rounds, goal=0.5)


def _load(folder: Path, customers: int) -> dict[str, Any]:
    folder.mkdir()
    urls = {name: f"sqlite:///{folder / name}.db" for name in ("source", "target", "ledger")}
    environment = {
        "AIRFLOW_CONN_BILLING_SOURCE": urls["source"],
        "AIRFLOW_CONN_BILLING_TARGET": urls["target"],
        "FISHLADDER_LEDGER": urls["ledger"],
    }
    home = folder / "airflow"
    _python(["-m", "airflow", "db", "migrate"], home, environment)
    file = ROOT / "include/migrations/billing.yaml"
    return _run(LOAD, home, str(file), str(customers), **environment)


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
        raise RuntimeError(f"Airflow on SQLite says: {done.stderr[-2000:]}")
    return done.stdout
