"""What a person asks for in the form of ``<m>_operate``: the DAG runs, the ledger has it, and under whose name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fishladder import tasks
from fishladder.cells import key_text
from fishladder.ledger import Reject
from fishladder.tasks import Desk
from fishladder_airflow.dags import build
from tests.dags.conftest import FILE, triggered_by

WHO = "olga"
Events = list[tuple[str, dict[str, Any]]]
Operate = Callable[..., Events]


@pytest.fixture
def operate(prepared: Desk, airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Operate:
    """Triggers the DAG with this form as a person does, and returns what that person's name is on in the audit."""
    triggered_by(WHO, monkeypatch)
    ledger = prepared.ledger

    def run(ends: str = "success", **form: Any) -> Events:
        before = {event.sequence for event in ledger.events(limit=1000)}
        done = build(FILE)["billing_operate"].test(run_conf=form)  # of its own: a test leaves its form in the DAG
        assert str(done.state) == ends
        new = [event for event in ledger.events(limit=1000) if event.sequence not in before]
        assert {event.actor for event in new} <= {WHO}
        return [(event.event, dict(event.body)) for event in new]

    return run


def doubted(desk: Desk) -> list[tuple[str, bytes]]:
    return sorted((line.table, line.key) for line in desk.ledger.dirty(1000))


def key(number: int) -> bytes:
    return key_text([str(number).encode()])


def test_pause_and_resume(prepared: Desk, operate: Operate) -> None:
    assert operate(action="pause") == [("control changed", {"paused": True})]
    assert prepared.ledger.control().paused
    assert operate(action="resume") == [("control changed", {"paused": False})]
    assert not prepared.ledger.control().paused


def test_throttle(prepared: Desk, operate: Operate) -> None:
    assert operate(action="throttle", rows_per_second=500) == [("control changed", {"rows_per_second": 500})]
    assert prepared.ledger.control().rows_per_second == 500
    operate(action="throttle", running_threads=7)
    assert (prepared.ledger.control().rows_per_second, prepared.ledger.control().running_threads) == (500, 7)
    operate(action="throttle", rows_per_second=0)
    assert prepared.ledger.control().rows_per_second is None


def test_retry_rejects(prepared: Desk, operate: Operate) -> None:
    """Of this table, and with this in their error: those of others stay as they are."""
    wanted = Reject(table="plan", key=key(1), entity=None, cohort="shared", column=None, error="it is too long")
    others = [
        Reject(table="plan", key=key(2), entity=None, cohort="shared", column=None, error="it is too early"),
        Reject(table="customer", key=key(1), entity=key(1), cohort="NZ", column=None, error="it is too long"),
    ]
    prepared.ledger.record_rejects([wanted, *others])
    done = operate(action="retry rejects", tables=["plan"], error="too long")
    assert done == [("rejects retried", {"rejects": {"plan": 1}, "by_error": True})]
    assert doubted(prepared) == [("plan", key(1))]
    tasks.replicate(prepared, seconds=30, until_idle=True)
    assert prepared.ledger.rejected_keys("plan", [key(1), key(2)]) == {key(2)}


def test_mark_keys_dirty(prepared: Desk, operate: Operate, tmp_path: Path) -> None:
    done = operate(action="mark keys dirty", keys="plan,1\ncustomer,3\n")
    assert {event for event, _ in done} == {"keys marked dirty"}
    assert [body["keys"] for _, body in done] == [{"customer": 1}, {"plan": 1}]
    assert doubted(prepared) == [("customer", key(3)), ("plan", key(1))]
    file = tmp_path / "keys.csv"
    file.write_text("plan,2\nplan,3\n")
    done = operate(action="mark keys dirty", keys_file=str(file))
    assert done == [("keys marked dirty", {"keys": {"plan": 2}, "origin": "operator"})]
    assert doubted(prepared) == [("customer", key(3)), *(("plan", key(number)) for number in (1, 2, 3))]


def test_rewrite_entities(prepared: Desk, operate: Operate) -> None:
    """All rows of the customer are doubted, and written again where they differ."""
    with prepared.stores() as (_, target):
        target.run("INSERT INTO fishladder_copying VALUES (1)")  # type: ignore[attr-defined]
        target.run("DELETE FROM subscription WHERE customer_id = 1")  # type: ignore[attr-defined]
        target.run("DELETE FROM fishladder_copying")  # type: ignore[attr-defined]
    ((event, body),) = operate(action="rewrite entities", entities="1\n")
    assert (event, body["keys"]["customer"]) == ("keys marked dirty", 1)
    assert ("customer", key(1)) in doubted(prepared) and body["keys"].keys() >= {"subscription", "invoice"}
    tasks.replicate(prepared, seconds=30, until_idle=True)
    assert tasks.reconcile_table(prepared, "subscription").missing == 0


def test_a_restart_without_the_tables_that_refer_to_it_is_refused(prepared: Desk, operate: Operate) -> None:
    before = tasks.totals(prepared)["invoice"]
    assert operate("failed", action="restart tables", tables=["invoice"]) == []
    assert prepared.ledger.table_state("invoice").phase == "closed"
    assert tasks.totals(prepared)["invoice"] == before
    done = operate(action="restart tables", tables=["invoice", "invoice_line", "payment"])
    assert {event for event, _ in done} == {"table restarted"}
    assert {target for _, target in tasks.totals(prepared)["invoice"].values()} == {0}
