"""Parses the DAG folder as Airflow does, in a process of its own: prints what that took, imported and made."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.serialization.serialized_objects import DagSerialization


def main(folder: Path) -> None:
    seconds, errors, dags = {}, {}, {}
    for file in sorted(folder.glob("*.py")):
        began = time.process_time()
        bag = BundleDagBag(file, bundle_path=folder, bundle_name="test")
        seconds[file.name] = time.process_time() - began
        errors |= bag.import_errors
        dags |= {dag_id: DagSerialization.to_dict(dag) for dag_id, dag in bag.dags.items()}
    modules = sorted({name.partition(".")[0] for name in sys.modules} | {m for m in sys.modules if "hooks" in m})
    print(json.dumps({"seconds": seconds, "errors": errors, "dags": dags, "modules": modules}))


main(Path(sys.argv[1]))
