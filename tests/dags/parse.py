"""Loads the plugins and parses a DAG folder as Airflow does; prints what that imported and made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.plugins_manager import _get_plugins
from airflow.serialization.serialized_objects import DagSerialization


def main(folder: Path) -> None:
    _, plugin_errors = _get_plugins()
    plugins = [
        *plugin_errors,
        *sorted(name for name in sys.modules if "fishladder" in name or name in ("links", "dags")),
    ]
    errors: dict[str, str] = {}
    dags: dict[str, Any] = {}
    for file in sorted(folder.glob("*.py")):
        bag = BundleDagBag(file, bundle_path=folder, bundle_name="test")
        errors |= bag.import_errors
        dags |= {dag_id: DagSerialization.to_dict(dag) for dag_id, dag in bag.dags.items()}
    modules = sorted({name.partition(".")[0] for name in sys.modules} | {m for m in sys.modules if "hooks" in m})
    found = {"plugins": plugins, "errors": errors, "dags": dags, "modules": modules}
    print(json.dumps(found))


main(Path(sys.argv[1]))
