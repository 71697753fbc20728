"""Operators, sensors and connections: what they find, what they refuse, and what is tried again."""

from __future__ import annotations

import json
import os
import socket
import string
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from airflow.sdk import BaseOperator, BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, ParamValidationError

from billing import schema
from fishladder import silence, tasks
from fishladder.errors import AmbiguousError, FatalError, InputError, TransientError
from fishladder.ledger import CheckResult, Ledger, open_ledger, upgrade
from fishladder.spec import load
from fishladder.stores import connect_url
from fishladder.stores import mysql as mysql_store
from fishladder.stores import open_store as open_any
from fishladder.stores import oracle as oracle_store
from fishladder.stores.base import Fenced
from fishladder.verdict import judge, tables_of
from fishladder_airflow import operators, sensors
from fishladder_airflow.connections import accounts, ledger_url, open_desk, open_store
from fishladder_airflow.dags import build
from tests import ledgers
from tests.scenario.proxy import PlainProxy, Proxy, saying
from tests.servers import mysql, oracle

FILE = Path(__file__).parents[2] / "include/migrations/billing.yaml"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ledger that tasks find."""
    made = f"sqlite:///{tmp_path}/ledger.db"
    ledgers.create(made)
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


def test_the_applier_waits_for_prepare_of_a_changed_file_and_fails_without_it(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for side in ("SOURCE", "TARGET"):
        monkeypatch.setenv(f"AIRFLOW_CONN_BILLING_{side}", f"sqlite:///{tmp_path}/{side}.db")
    spec = load(FILE)
    before = spec.model_copy(
        update={"tables": {name: table for name, table in spec.tables.items() if name != "gift_card_entry"}}
    )
    with open_ledger(url, migration="billing") as ledger:
        ledger.record_spec(before.to_json(), "digest", "code", "ada")
    apply = operators.ApplyChanges(task_id="apply", migration_file=str(FILE), seconds="0.1")
    with pytest.raises(AirflowFailException, match="its file changed since prepare ran; run billing_prepare"):
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


def test_a_sqlite_path_of_odd_characters_is_that_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a b%20#é'&+;=@:.db"
    for written in (f"sqlite:///{quote(str(path))}", json.dumps({"conn_type": "sqlite", "host": str(path)})):
        monkeypatch.setenv("AIRFLOW_CONN_A_STORE", written)
        store = open_store("sqlite", "a_store")
        store.describe()
        store.close()
        assert path in set(tmp_path.iterdir()), written
        path.unlink()


@pytest.mark.mysql
def test_a_password_of_every_special_character_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
    mysql_database: mysql.Database,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """However the connection is written; and of the ledger that is a connection."""
    password, name = string.punctuation + " äß€😀", f"odd_{mysql_database.name}"
    at = urlsplit(mysql_database.admin)
    uri = f"mysql://{name}:{quote(password, safe='')}@{at.hostname}:{at.port}{at.path}"
    parts = {"login": name, "password": password, "host": at.hostname, "port": at.port, "schema": at.path[1:]}
    with closing(mysql.connect(mysql_database.admin)) as admin, closing(admin.cursor()) as cursor:
        cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (name, password))
        cursor.execute(f"GRANT ALL ON {mysql_database.name}.* TO %s@'%%'", (name,))
        try:
            for written in (uri, json.dumps({"conn_type": "mysql", **parts})):
                monkeypatch.setenv("AIRFLOW_CONN_A_STORE", written)
                store = open_store("mysql", "a_store")
                assert isinstance(store, Fenced) and store.account() == name
                store.close()
                monkeypatch.delenv("FISHLADDER_LEDGER", raising=False)
                monkeypatch.setenv("AIRFLOW_CONN_FISHLADDER_LEDGER", written)
                upgrade(ledger_url())
            monkeypatch.setenv("AIRFLOW_CONN_A_STORE", json.dumps({"conn_type": "mysql", **parts, "password": "wr^ng"}))
            with pytest.raises(
                FatalError, match=r"connection a_store: MySQL 1045: Access denied .* mend the"
            ) as refused:
                open_store("mysql", "a_store").describe()
        finally:
            cursor.execute("DROP USER %s@'%%'", (name,))
    told = capfd.readouterr()
    for text in (str(refused.value), caplog.text, told.out, told.err):
        assert password not in text and quote(password, safe="") not in text and "wr^ng" not in text


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


@pytest.mark.mysql
def test_a_mysql_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch, mysql_database: mysql.Database) -> None:
    """Though Airflow's hook takes no time-outs from a connection."""
    monkeypatch.setitem(mysql_store.PATIENCE, "read_timeout", 3)
    with Proxy(mysql_database.copier) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_A_STORE", proxy.url)
        store = open_store("mysql", "a_store")
        assert isinstance(store, Fenced) and store.account() == "copier"
        proxy.silence(saying(b"SELECT USER()"), dropped=False)
        with pytest.raises(TransientError):
            store.account()
        assert store.account() == "copier"
        store.close()


def test_an_oracle_that_falls_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch, oracle_database: oracle.Database
) -> None:
    """A call that takes too long ends; and the kernel asks the other end's, whichever way the store was opened."""
    monkeypatch.setattr(oracle_store, "SILENT_SECONDS", 5)
    at = urlsplit(oracle_database.copier)
    with PlainProxy(oracle_database.copier) as proxy:
        account = f"{at.netloc.rpartition('@')[0]}@{urlsplit(proxy.url).netloc.rpartition('@')[2]}"
        schema = parse_qs(at.query).get("schema", [""])[0]
        monkeypatch.setenv("AIRFLOW_CONN_A_STORE", f"oracle://{account}/{schema}?service_name={at.path[1:]}")
        for store in (open_store("oracle", "a_store"), open_any(*connect_url(proxy.url))):
            assert isinstance(store, Fenced)
            user = store.account()
            (asked,) = {each for each in asked_after(urlsplit(proxy.url).port or 0) if each is not None}
            assert asked == silence.ASK_AFTER
            proxy.silence(lambda *_: True, dropped=False)
            with pytest.raises(TransientError):
                store.account()
            assert not proxy.spare()
            assert store.account() == user
            store.close()


def asked_after(port: int) -> Iterator[int | None]:
    """Of connections to the port, the seconds of silence after which the kernel asks the other end; None: never."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            end = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # no socket, or gone
        with end:
            try:
                if end.getpeername()[1] != port:
                    continue
            except (OSError, IndexError):
                continue  # connected to nobody, or without ports
            asks = end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            yield end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) if asks else None


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


@pytest.mark.mysql
def test_copier_and_application_by_the_same_account(
    url: str, monkeypatch: pytest.MonkeyPatch, mysql_database: mysql.Database, tmp_path: Path
) -> None:
    """By the application's connection, if Airflow has one; prepare asks again what preflight asked."""
    schema.create(mysql_database.admin)
    monkeypatch.setenv("BILLING_SOURCE_KIND", "mysql")
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_SOURCE", mysql_database.copier)
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_TARGET", f"sqlite:///{tmp_path}/target.db")
    preflight = operators.Preflight(task_id="preflight", migration_file=str(FILE))
    install = operators.Install(task_id="install", migration_file=str(FILE))
    who: Any = {"dag_run": SimpleNamespace(triggering_user_name="ada")}

    def said() -> list[tuple[str, str]]:
        with open_ledger(url, migration="billing") as ledger:
            evidence = ledger.latest_evidence("preflight", "billing")
        assert evidence is not None
        return [(f["level"], f["message"]) for f in evidence.body["findings"] if f["where"] == "source: account"]

    monkeypatch.setenv("AIRFLOW_CONN_BILLING_SOURCE_APP", mysql_database.copier)
    both = "the copier and the application both log in as copier; fences cannot tell them apart"
    for task in (preflight, install):
        with pytest.raises(AirflowFailException, match=f"source: account +{both}: give the copier its own"):
            task.execute(who)
    assert [level for level, _ in said()] == ["fail"]
    monkeypatch.delenv("AIRFLOW_CONN_BILLING_SOURCE_APP")
    preflight.execute({})
    unknown = "the application's login is not known here: not checked that it differs from the copier's"
    assert said() == [("warn", unknown)]
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_SOURCE_APP", mysql_database.application)
    preflight.execute({})
    assert said() == []
    install.execute(who)


# The form of _operate

FORM: dict[str, Any] = dict.fromkeys(operators.FORM) | {"action": "mark keys dirty"}


def asked(form: dict[str, Any]) -> Any:
    return operators._order(FORM | form)


def test_the_form_has_the_words_that_are_read() -> None:
    (form,) = (dag.params for name, dag in build(FILE).items() if name == "billing_operate")
    assert set(form) == set(operators.FORM)
    with pytest.raises(ParamValidationError, match="action"):  # a form that is sent as it came asks for nothing
        form.validate()


def test_the_form_is_read_word_by_word(tmp_path: Path) -> None:
    path = tmp_path / "keys.csv"
    path.write_bytes("\ufeffplan,1\r\n\r\nplan,a\u2028b\r\n".encode())
    assert asked({"keys_file": str(path)}).keys == ("plan,1", "", "plan,a\u2028b", "")
    assert asked({"keys": "plan,1\nplan,2"}).keys == ("plan,1", "plan,2")
    assert asked({"action": "rewrite entities", "entities": "1\n\n2\n"}).entities == ("1", "2")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            {"action": "retry rejects", "table": ["plan"]},
            r"the form has no 'table' \(did you mean 'tables'\?\); nothing",
        ),
        ({"acton": "resume"}, r"the form has no 'acton' \(did you mean 'action'"),
        ({"action": "throttle", "rows_per_second": -5}, "rows_per_second must be 0, which lifts the limit"),
        ({"keys_file": "{folder}/none.csv"}, r"none.csv' cannot be read on this worker: .*No such file"),
        ({"keys_file": "{folder}"}, r"cannot be read on this worker: .*Is a directory"),
        ({"keys_file": "{folder}/garbage"}, r"garbage' cannot be read on this worker: 'utf-8' codec"),
        ({"keys_file": "{folder}/empty"}, "empty' holds no keys"),
        ({"keys_file": "a\0b"}, "cannot be read on this worker: embedded null byte"),
        ({"keys_file": "{folder}/empty", "keys": "plan,1"}, "give keys or keys_file, not both"),
        ({"action": "pause", "keys_file": "{folder}/good"}, "pause takes no keys"),
        ({}, "mark keys dirty needs keys"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(tmp_path: Path, form: dict[str, Any], words: str) -> None:
    (tmp_path / "garbage").write_bytes(b"plan,1\n\xff\xfe\n")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "good").write_text("plan,1\n")
    filled = {word: v.replace("{folder}", str(tmp_path)) if isinstance(v, str) else v for word, v in form.items()}
    with pytest.raises(InputError, match=words):
        asked(filled)


# Outcome and sensors


def record(ledger: Ledger, table: str, **counts: Any) -> None:
    check = ledger.begin_check(table, "same")
    result = CheckResult(compared=3, coverage="same", by_cohort={})
    ledger.finish_check(check, replace(result, **counts))


@pytest.fixture
def clean(url: str, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger with one clean pass over every table and equal reports of one country; its stores agree with it."""
    monkeypatch.setattr(tasks, "ask_stores", lambda desk: [])
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


def test_fences_that_contradict_the_ledger_are_not_clean(clean: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ask_stores", lambda desk: ["NZ is live, and the source's fence says application"])
    with pytest.raises(AirflowFailException, match="NZ is live, and the source's fence says application"):
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
