"""What fishladder adds to Airflow's web server: Airflow loads this file; DAG files import the package beside it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from fishladder_airflow.links import PREFIX

if find_spec("fishladder") is None:
    # Airflow lists this as the plugin's import error, and goes on. Later it would be the end of the web server.
    raise ImportError("there is no fishladder here: put the folder include on PYTHONPATH, as for the workers")


class FishladderPlugin(AirflowPlugin):
    """Serves the pages that tasks link to."""

    name = "fishladder"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        # Only the web server asks; every worker and every parser of DAGs loads this file, and needs no pages.
        from fishladder_airflow.pages import app

        return [{"app": app, "url_prefix": PREFIX, "name": "fishladder"}]
