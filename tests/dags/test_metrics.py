"""A metric's connection is one of Airflow's, read as its own hook for HTTP reads it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from fishladder.errors import FatalError, InputError
from fishladder.ledger import open_ledger
from fishladder.spec_parts import Metric
from fishladder_airflow import operators
from fishladder_airflow.connections import measure
from fishladder_airflow.dags import build
from tests.dags.conftest import FILE, Stores
from tests.unit.metrics_server import Pages, pages

METRIC = Metric(connection="billing_metrics", name="stuck")


@pytest.fixture
def page() -> Iterator[Pages]:
    with pages() as found:
        found.say("stuck 7\n")
        yield found


def connect(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_METRICS", json.dumps({"conn_type": "http", **fields}))


def test_where_it_is(page: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(page.url.rpartition(":")[2])
    connect(monkeypatch, host="127.0.0.1", port=port)
    assert measure(METRIC) == 7
    connect(monkeypatch, host="http://127.0.0.1", port=port)
    assert measure(METRIC) == 7
    page.say("stuck 8\n", path="/billing/metrics")
    connect(monkeypatch, host=f"{page.url}/billing/")
    assert measure(METRIC) == 8
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_METRICS", page.url)
    assert measure(METRIC) == 7
    connect(monkeypatch, host="127.0.0.1", port=port, schema="https")
    with pytest.raises(FatalError, match=r"^connection billing_metrics: /metrics: .*SSL"):
        measure(METRIC)


def test_who_asks(page: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, host=page.url, login="ann", password="p@:s")
    measure(METRIC)
    connect(monkeypatch, host=page.url, extra={"Authorization": "Bearer x"})
    measure(METRIC)
    said = [headers["Authorization"] for _, headers in page.asked]
    assert said == [f"Basic {b64encode(b'ann:p@:s').decode()}", "Bearer x"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conn_type": "mysql", "host": "x"}, "is of type mysql, and a metric takes one of type http"),
        ({}, "its URL must be http://host:port"),
        ({"host": "x:secret"}, "its URL must be http://host:port"),
        ({"host": "x", "schema": "billing"}, "its URL must be http://host:port"),
        ({"host": "x", "extra": {"Authorization": "Bearer\n"}}, "its Authorization holds what no header may"),
    ],
)
def test_a_connection_that_is_none(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str) -> None:
    connect(monkeypatch, **fields)
    with pytest.raises(InputError, match=f"^connection billing_metrics: {words}"):
        measure(METRIC)


def with_metrics(folder: Path, **connections: str) -> Path:
    """The billing example with no other monitors than these, each with its connection."""
    kept = [line for line in FILE.read_text("utf-8").split("\n") if ": {must_be: " not in line]
    at = kept.index("monitors:") + 1
    kept[at:at] = [
        f"  {name}: {{must_be: positive, metric: {{connection: {connection}, name: stuck}}}}"
        for name, connection in connections.items()
    ]
    file = folder / "billing.yaml"
    file.write_text("\n".join(kept), "utf-8")
    return file


def test_the_task_asks_the_others_too(
    stores: Stores, tmp_path: Path, page: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two metrics one has no connection."""
    connect(monkeypatch, host=page.url)
    file = with_metrics(tmp_path, unknown="nowhere", stuck="billing_metrics")
    task = operators.Monitor(task_id="monitor", migration_file=str(file))
    with pytest.raises(AirflowFailException) as loud:
        task.execute({})
    assert str(loud.value) == (
        "not quiet:\nunknown must be positive: metric no data: connection nowhere: Airflow has none of this id;"
        " create it, or set AIRFLOW_CONN_NOWHERE to its URL"
    )
    assert len(page.asked) == 1 and task.evidence


def test_a_run_of_the_dag(
    airflow_database: None, stores: Stores, tmp_path: Path, page: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, host=page.url)
    run = build(with_metrics(tmp_path, stuck="billing_metrics"))["billing_monitor"].test()
    assert run.state == "success"
    with open_ledger(stores.ledger, migration="billing") as ledger:
        kept = ledger.latest_evidence("monitor", "stuck")
    assert kept is not None and kept.passed and kept.body["values"] == {"metric": "7"}
