"""The DAGs of include/migrations/chinook.yaml: chinook_prepare, chinook_load, chinook_replicate, chinook_reconcile,
chinook_operate.
"""

from __future__ import annotations

from pathlib import Path

from fishladder_airflow.dags import build

globals().update(build(Path(__file__).parents[1] / "include/migrations/chinook.yaml"))
