"""The DAGs of include/migrations/billing.yaml: billing_prepare, billing_load, billing_replicate, billing_reconcile,
billing_operate.
"""

from __future__ import annotations

from pathlib import Path

from fishladder_airflow.dags import build

globals().update(build(Path(__file__).parents[1] / "include/migrations/billing.yaml"))
