"""The DAGs of include/migrations/billing.yaml: what each is for, docs/dags.md says."""

from __future__ import annotations

from pathlib import Path

from fishladder_airflow.dags import build

globals().update(build(Path(__file__).parents[1] / "include/migrations/billing.yaml"))
