"""Operators, sensors and connections: what they find, what they refuse, and what is tried again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator, BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from fishladder.errors import AmbiguousError, FatalError, InputError, TransientError
from fishladder.ledger import CheckResult, Ledger, open_ledger, upgrade
from fishladder.spec import load
from fishladder.stores.base import Fenced
from fishladder.verdict import judge, tables_of
from fishladder_airflow import operators, sensors
from fishladder_airflow.connections import accounts, ledger_url, open_desk, open_store
from tests.servers import mysql

FILE = Path(__file__).parents[2] / "include/migrations/billing.yaml"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ledger that tasks find."""
    made = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(made)
    monkeypatch.setenv("FISHLADDER_LEDGER", made)
    return made


def silent(_: str) -> None:
    return None


# What is tried again


@pytest.mark.parametrize("error", [InputError, FatalError])
def test_what_repeating_would_not_mend_is_not_retried(url: str, error: type[Exception]) -> None:
    with pytest.raises(AirflowFailException, match="what to do"), open_desk(str(FILE), silent):
        raise error("what to do")


@pytest.mark.parametrize("error", [TransientError, AmbiguousError, ZeroDivisionError])
def test_everything_else_is_retried(url: str, error: type[Exception]) -> None:
    with pytest.raises(error), open_desk(str(FILE), silent):
        raise error


def test_a_server_that_is_away_is_retried(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BILLING_TARGET_KIND", "mysql")
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_SOURCE", f"sqlite:///{tmp_path}/source.db")
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_TARGET", "mysql://copier:secret@127.0.0.1:1/billing")
    with pytest.raises(TransientError):
        operators.Preflight(task_id="preflight", migration_file=str(FILE)).execute({})


def test_a_task_before_prepare_says_what_to_run(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for side in ("SOURCE", "TARGET"):
        monkeypatch.setenv(f"AIRFLOW_CONN_BILLING_{side}", f"sqlite:///{tmp_path}/{side}.db")
    with pytest.raises(AirflowFailException, match="run billing_prepare first"):
        operators.CutChunks(task_id="cut", migration_file=str(FILE)).execute({})


def test_the_applier_waits_for_prepare_and_is_skipped_without_it(url: str) -> None:
    apply = operators.ApplyChanges(task_id="apply", migration_file=str(FILE), seconds="0.1")
    with pytest.raises(AirflowSkipException, match="run billing_prepare"):
        apply.execute({})


def test_a_missing_ledger_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcome = operators.Outcome(task_id="outcome", migration_file=str(FILE))
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(AirflowFailException, match="fishladder ledger upgrade"):
        outcome.execute({})
    monkeypatch.delenv("FISHLADDER_LEDGER")
    with pytest.raises(AirflowFailException, match="set FISHLADDER_LEDGER to its URL"):
        outcome.execute({})


# Connections


@pytest.mark.parametrize(
    "written",
    [
        "sqlite:///{path}",
        "sqlite://{path}",
        '{{"conn_type": "sqlite", "host": "{path}"}}',
        '{{"conn_type": "sqlite", "schema": "{path}"}}',
    ],
)
def test_every_way_to_write_a_sqlite_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str) -> None:
    path = tmp_path / "store.db"
    monkeypatch.setenv("AIRFLOW_CONN_A_STORE", written.format(path=path))
    store = open_store("sqlite", "a_store")
    store.describe()
    store.close()
    assert path.exists()


def test_a_connection_that_is_missing_or_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"connection nowhere: .* set AIRFLOW_CONN_NOWHERE"):
        open_store("sqlite", "nowhere")
    monkeypatch.setenv("AIRFLOW_CONN_A_STORE", "postgres://user:secret@host/db")
    with pytest.raises(InputError, match="a_store: is of type postgres, and the migration file says mysql") as caught:
        open_store("mysql", "a_store")
    assert "secret" not in str(caught.value)


@pytest.mark.mysql
def test_a_mysql_store_is_opened_as_the_copier_in_whichever_thread(
    monkeypatch: pytest.MonkeyPatch, mysql_database: mysql.Database
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_A_STORE", mysql_database.copier)
    store = open_store("mysql", "a_store")
    assert isinstance(store, Fenced)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(store.account).result() == "copier"
    store.close()


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("sqlite:////var/ledger.db", "sqlite:////var/ledger.db"),
        ("postgres://me:p%40ss@host:5432/ledger", "postgresql://me:p%40ss@host:5432/ledger"),
        ("mysql://me:pw@host:3306/ledger", "mysql://me:pw@host:3306/ledger"),
    ],
)
def test_the_ledger_may_be_a_connection(monkeypatch: pytest.MonkeyPatch, connection: str, expected: str) -> None:
    monkeypatch.delenv("FISHLADDER_LEDGER", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_FISHLADDER_LEDGER", connection)
    assert ledger_url() == expected


def test_the_applications_accounts_are_those_that_airflow_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_TARGET_APP", "mysql://billing:pw@host/billing")
    assert accounts(load(FILE)) == {"target": "billing"}


# Outcome and sensors


def record(ledger: Ledger, table: str, **counts: Any) -> None:
    check = ledger.begin_check(table, "same")
    result = CheckResult(compared=3, coverage="same", by_cohort={})
    ledger.finish_check(check, replace(result, **counts))


@pytest.fixture
def clean(url: str) -> Ledger:
    """A ledger with one clean pass over every table and equal reports of one country."""
    spec = load(FILE)
    ledger = open_ledger(url, migration="billing")
    ledger.ensure_routes(["NZ", "*", "shared"], "test")
    for table in tables_of(spec):
        record(ledger, table)
    for report in spec.reports:
        ledger.record_evidence("report", f"{report} NZ", {}, True, NOW)
    return ledger


def test_a_clean_outcome_counts_its_lines(clean: Ledger) -> None:
    outcome = operators.Outcome(task_id="outcome", migration_file=str(FILE))
    assert outcome.execute({}) == {"lines": 1 + 10 + 3}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda ledger: record(ledger, "invoice", missing=2),
            "invoice: 2 missing; what can be repaired is marked dirty",
        ),
        (lambda ledger: record(ledger, "invoice", deferred=1), "invoice: 1 deferred"),
        (lambda ledger: record(ledger, "invoice", coverage="other"), "invoice: its coverage changed during the pass"),
        (lambda ledger: ledger.begin_check("plan", "same"), "plan: its last pass is not finished"),
        (
            lambda ledger: ledger.void_checks(["plan"], "truncated"),
            r"plan: its last pass does not count .*\(truncated\)",
        ),
        (
            lambda ledger: ledger.record_evidence("report", "revenue_by_month NZ", {"cents": 1}, False, NOW),
            "report revenue_by_month: differs, or has no result, for NZ",
        ),
        (
            lambda ledger: ledger.ensure_routes(["AU"], "test"),
            "report revenue_by_month: differs, or has no result, for AU",
        ),
    ],
)
def test_what_is_not_clean_fails_and_says_why(clean: Ledger, spoil: Callable[[Ledger], object], problem: str) -> None:
    spoil(clean)
    with pytest.raises(AirflowFailException, match=problem):
        operators.Outcome(task_id="outcome", migration_file=str(FILE)).execute({})


def test_nothing_known_is_not_clean(url: str) -> None:
    verdict = judge(load(FILE), open_ledger(url, migration="billing"))
    assert len(verdict.problems) == 10 and "plan: no pass is known; reconcile it" in verdict.problems


def test_clean_passes_waits_for_every_table_and_starts_again_after_a_spoilt_one(clean: Ledger) -> None:
    def reached(**options: Any) -> bool:
        return sensors.CleanPasses(task_id="wait", migration_file=str(FILE), **options).poke({})

    assert reached() and not reached(passes=2)
    record(clean, "plan")
    assert reached(passes=2, tables=["plan"]) and not reached(passes=2)
    record(clean, "plan", extra=1)
    assert not reached() and reached(tables=["invoice"])


def test_caught_up_needs_a_living_applier_with_little_lag(url: str) -> None:
    def reached(**options: Any) -> bool:
        return sensors.CaughtUp(task_id="wait", migration_file=str(FILE), **options).poke({})

    assert not reached()
    with open_ledger(url, migration="billing") as ledger:
        ledger.note("applier", {"lag": 6.0})
        assert not reached() and reached(max_lag=timedelta(seconds=7))
        ledger.note("applier", {"lag": None})
        assert reached()
    with open_ledger(url, migration="billing", clock=lambda: datetime.now(UTC) - timedelta(minutes=2)) as ledger:
        ledger.note("applier", {"lag": None})
    assert not reached()


@pytest.mark.parametrize("sensor", [sensors.CleanPasses, sensors.CaughtUp])
def test_sensors_hold_no_worker(sensor: type[BaseSensorOperator]) -> None:
    made: BaseOperator = sensor(task_id="wait", migration_file=str(FILE))
    assert isinstance(made, BaseSensorOperator) and made.mode == "reschedule"
