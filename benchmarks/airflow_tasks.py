"""How many tasks Airflow runs for a load, whatever the number of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.ground import LANES, MIGRATION, Ground
from benchmarks.results import Result, result

# As the scheduler sees the DAG: parsed, serialised and read again, with nothing connected to. Airflow itself raises
# NotFullyPopulated here for a task whose number of copies is known only at run time, and so could depend on rows.
COUNT = """
import json, sys
from airflow.serialization.serialized_objects import DagSerialization
from fishladder_airflow.dags import build

dag = DagSerialization.from_dict(DagSerialization.to_dict(build(sys.argv[1])["bench_load"]))
print(json.dumps({t.task_id: t.get_parse_time_mapped_ti_count() if t.is_mapped else 1 for t in dag.tasks}))
"""


def tasks(ground: Ground) -> Iterator[Result]:
    """Tasks of a run of the load DAG: counted before anything is known of the tables, so the same for every size."""
    file = ground.folder / "bench.yaml"
    file.write_text(MIGRATION.format(kind="mysql", lanes=LANES, types=""), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(file)],
        env={**os.environ, "AIRFLOW_HOME": str(ground.folder / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the load DAG's tasks cannot be counted without running it: {done.stderr[-2000:]}")
    counted = json.loads(done.stdout.splitlines()[-1])
    total = sum(counted.values())
    yield result("tasks", "a load of any number of rows, known when the DAG is parsed", "tasks", [(total, total)])
