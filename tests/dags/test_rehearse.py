"""A rehearsal as a task of Airflow: what is clean, what is dirty, and what nobody may repeat."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from fishladder import tasks
from fishladder_airflow.connections import open_desk
from fishladder_airflow.operators import Rehearse
from tests.dags.conftest import FILE, Stores
from tests.unit.rehearsing import is_over

Make = Callable[..., Rehearse]


@pytest.fixture
def rehearse(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the task of a loaded billing migration, with this workload."""
    path, test = tmp_path / "billing.yaml", f"sqlite:///{tmp_path}/test.db"
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_TEST", test)

    def make(what: str, *arguments: object) -> Rehearse:
        command = shlex.join([sys.executable, "-m", "tests.unit.rehearsing", what, test, *map(str, arguments)])
        words = f"rehearsal: {{connection: billing_test, command: {json.dumps(command)}}}\n"
        path.write_text(FILE.read_text() + words)
        return Rehearse(task_id="rehearse", migration_file=str(path))

    make("billing")
    with open_desk(str(path), print) as desk:
        tasks.prepare(desk, actor="test")
        for table in tasks.cut(desk):
            tasks.load_table(desk, table, "1")
            tasks.close_table(desk, table)
    return make


def test_a_clean_day_is_evidence(rehearse: Make) -> None:
    task = rehearse("billing")
    assert list(task.execute({})) == ["guard", "copy", "command", "reports"]
    with open_desk(task.migration_file, print) as desk:
        found = desk.ledger.latest_evidence("rehearsal", "billing")
    assert found is not None and found.passed and found.digest == task.evidence


def test_a_dirty_day_is_red_and_not_repeated(rehearse: Make) -> None:
    task = rehearse("fails")
    with pytest.raises(AirflowFailException, match="a dirty day: the command ended with exit code 3"):
        task.execute({})
    assert task.evidence


def test_when_airflow_ends_the_task_its_command_ends(rehearse: Make, tmp_path: Path) -> None:
    task, pid = rehearse("hangs", tmp_path / "pid"), tmp_path / "pid"

    def end() -> None:
        while not (pid.exists() and pid.read_text()):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    usual = signal.signal(signal.SIGTERM, lambda *_: task.on_kill())  # as Airflow does
    ending = threading.Thread(target=end)
    ending.start()
    try:
        with pytest.raises(AirflowException, match="ended before its time"):
            task.execute({})
    finally:
        signal.signal(signal.SIGTERM, usual)
        ending.join()
    assert is_over(pid)


def test_a_connection_that_leads_to_the_target_is_red(
    rehearse: Make, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_TEST", stores.target)
    with pytest.raises(AirflowFailException, match="billing_test and billing_target are one database"):
        rehearse("billing").execute({})


def test_a_connection_that_is_missing_is_red(rehearse: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_BILLING_TEST")
    with pytest.raises(AirflowFailException, match="connection billing_test: Airflow has none"):
        rehearse("billing").execute({})
