"""The DAG files: how they are parsed, and what they make."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, CronTriggerTimetable
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables import trigger
from airflow.timetables.base import TimeRestriction

from fishladder.errors import SpecError
from fishladder.spec import load
from fishladder_airflow.dags import build
from fishladder_airflow.operators import ASKED_AGAIN
from fishladder_airflow.pools import pools

ROOT = Path(__file__).parents[2]
FILES = {name: ROOT / f"include/migrations/{name}.yaml" for name in ("billing", "chinook")}
INTERNAL = ["fishladder_home", "fishladder_applied"]


def parse(folder: Path, **environment: str) -> dict[str, Any]:
    """What parsing the folder gives, in a process that knows no connection and no ledger."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_CONN_", "FISHLADDER"))}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "parse.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=known | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def parsed() -> dict[str, Any]:
    return parse(ROOT / "dags", PYTHONHASHSEED="1")


@pytest.fixture(scope="module", params=FILES)
def dags(request: pytest.FixtureRequest) -> dict[str, DAG]:
    return {dag_id.partition("_")[2]: dag for dag_id, dag in build(FILES[request.param]).items()}


@pytest.fixture
def rehearsing(tmp_path: Path) -> dict[str, DAG]:
    """The DAGs of the billing example with a rehearsal."""
    path = tmp_path / "billing.yaml"
    path.write_text(FILES["billing"].read_text() + "rehearsal: {connection: billing_test, command: run}\n")
    return {dag_id.partition("_")[2]: dag for dag_id, dag in build(path).items()}


def test_every_file_makes_its_dags(parsed: dict[str, Any]) -> None:
    steps = ("finish", "flip", "load", "monitor", "operate", "prepare", "reconcile", "replicate", "rollback")
    assert parsed["errors"] == {}
    assert sorted(parsed["dags"]) == [f"{name}_{step}" for name in FILES for step in steps]


def test_parsing_imports_no_driver(parsed: dict[str, Any]) -> None:
    modules = parsed["modules"]
    assert not {"MySQLdb", "oracledb", "cassandra", "psycopg", "psycopg2", "alembic"} & set(modules)
    hooks = {name for name in modules if name.startswith("airflow.providers") and ".hooks" in name}
    assert not {name for name in hooks if not name.startswith("airflow.providers.standard")}


def test_the_same_file_is_serialised_the_same(parsed: dict[str, Any]) -> None:
    assert parse(ROOT / "dags", PYTHONHASHSEED="2")["dags"] == parsed["dags"]


def test_a_broken_file_is_an_import_error_with_its_line_and_leaves_the_others_alone(tmp_path: Path) -> None:
    text = FILES["billing"].read_text()
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("payment: {entity:", "payment: {entitty:"))
    line = next(no for no, line in enumerate(broken.read_text().splitlines(), 1) if "entitty" in line)
    for name, path in {"broken": broken, "good": FILES["billing"]}.items():
        source = f"from fishladder_airflow.dags import build\nglobals().update(build({str(path)!r}))\n"
        (tmp_path / f"{name}.py").write_text(source)
    found = parse(tmp_path)
    assert set(found["errors"]) == {"broken.py"} and len(found["dags"]) == 9
    message = f"broken.yaml:{line}: tables.payment.entitty: unknown word; did you mean 'entity'?"
    assert message in found["errors"]["broken.py"]
    with pytest.raises(SpecError):
        build(broken)


def test_a_plugin_is_loaded_without_the_pages_that_only_the_web_server_needs(parsed: dict[str, Any]) -> None:
    assert parsed["plugins"] == ["fishladder_airflow", "fishladder_airflow.links", "fishladder_plugin"]


def test_without_the_core_the_plugin_is_an_import_error_that_airflow_lists(tmp_path: Path) -> None:
    found = parse(tmp_path, PYTHONPATH=str(ROOT / "plugins"))
    assert [name for name in found["plugins"] if name.endswith("fishladder_plugin.py")]


def test_prepare_checks_before_it_installs(dags: dict[str, DAG]) -> None:
    assert dags["prepare"].task_dict["preflight"].downstream_task_ids == {"install"}
    assert len(dags["prepare"].tasks) == 2


def test_tables_are_loaded_in_the_order_of_the_file(dags: dict[str, DAG]) -> None:
    dag = dags["load"]
    spec = load(FILES[dag.dag_id.partition("_")[0]])
    tables = [*INTERNAL, *spec.tables]
    assert dag.task_dict["cut"].downstream_task_ids >= {f"{tables[0]}.load"}
    for table, following in pairwise(tables):
        assert dag.task_dict[f"{table}.load"].downstream_task_ids == {f"{table}.close", f"{following}.load"}
    assert dag.task_dict["reconcile"].upstream_task_ids == {f"{tables[-1]}.close"}
    assert dag.task_dict["outcome"].upstream_task_ids == {"report"}


def test_lanes_and_tables_are_mapped_and_named(dags: dict[str, DAG]) -> None:
    dag = dags["load"]
    spec = load(FILES[dag.dag_id.partition("_")[0]])
    for table in spec.tables:
        lanes: Any = dag.task_dict[f"{table}.load"]
        assert lanes.expand_input.value == {"lane": [str(lane + 1) for lane in range(spec.lanes)]}
        assert lanes.map_index_template == "{{ task.table }} · lane {{ task.lane }}"
    for passes in (dag.task_dict["reconcile"], dags["reconcile"].task_dict["reconcile"]):
        found: Any = passes
        assert found.expand_input.value == {"table": [*INTERNAL, *spec.tables]}
        assert found.map_index_template == "{{ task.table }}" and found.max_active_tis_per_dagrun == spec.lanes


def test_replicate_runs_all_the_time_but_not_after_failures(dags: dict[str, DAG]) -> None:
    dag = dags["replicate"]
    assert str(dag.schedule) == "@continuous" and dag.max_consecutive_failed_dag_runs == 3
    assert dag.task_ids == ["apply"] and dag.params["seconds"] == 1800


def test_reconcile_runs_at_night_and_outcome_waits_for_everything(dags: dict[str, DAG]) -> None:
    dag = dags["reconcile"]
    assert isinstance(dag.timetable, CronTriggerTimetable)
    assert (dag.timetable.expression, dag.timetable.run_immediately) == ("0 1 * * *", timedelta())
    assert dag.task_dict["outcome"].upstream_task_ids == {"report", "totals"}


@pytest.mark.parametrize(("name", "first"), [("reconcile", "25 01:00"), ("monitor", "24 01:05")])
def test_to_switch_a_dag_on_starts_no_run(
    dags: dict[str, DAG], monkeypatch: pytest.MonkeyPatch, name: str, first: str
) -> None:
    """As the scheduler reads it: who switches reconcile on late at night would have it run beside their own."""
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dags[name])).timetable
    monkeypatch.setattr(trigger, "utcnow", lambda: datetime(2026, 11, 24, 1, 1, tzinfo=UTC))
    info = timetable.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(earliest=None, latest=None, catchup=False)
    )
    assert info is not None and f"{info.run_after:%d %H:%M}" == first


def test_only_a_file_that_asks_for_it_is_rehearsed_and_then_every_night(
    rehearsing: dict[str, DAG], dags: dict[str, DAG]
) -> None:
    dag = rehearsing["rehearse"]
    assert isinstance(dag.timetable, CronTriggerTimetable)
    assert (dag.timetable.expression, dag.timetable.run_immediately) == ("0 3 * * *", timedelta())
    assert dag.task_ids == ["rehearse"] and dag.task_dict["rehearse"].pool == "default_pool"
    assert rehearsing.keys() - {"rehearse"} == dags.keys()
    test_everything_is_explained(rehearsing)
    test_each_dag_has_a_page_that_names_its_tasks_when_to_run_it_and_what_to_do_when_it_is_red(rehearsing)


def test_everything_is_explained(dags: dict[str, DAG]) -> None:
    page = (ROOT / "docs/dags.md").read_text()
    for step, dag in dags.items():
        assert dag.doc_md and dag.description and f"`<m>_{step}`" in page
        assert "fishladder" in dag.tags and dag.dag_id == f"{dag.doc_md.split('**')[1]}_{step}"
        assert not dag.catchup and dag.max_active_runs == (16 if step in ("operate", "flip", "rollback") else 1)
        for task in dag.tasks:
            assert task.doc_md and f"`{task.label}`" in page, task.task_id
            if task.label == "approve":  # asked again at once, after an answer that did not count
                assert (task.retries, task.retry_exponential_backoff) == (ASKED_AGAIN, 0)
                continue
            assert task.retries in ((0,) if task.label == "operate" else (3, 12))
            assert task.retry_exponential_backoff == 2.0
        for name in dag.params:
            param = dag.params.get_param(name)
            assert (
                param.schema["title"] and (param.description or param.schema["description_md"]) and f"`{name}`" in page
            )


def test_each_dag_has_a_page_that_names_its_tasks_when_to_run_it_and_what_to_do_when_it_is_red(
    dags: dict[str, DAG],
) -> None:
    for step, dag in dags.items():
        assert dag.doc_md is not None
        migration, *named = re.findall(r"\*\*(.+?)\*\*", dag.doc_md)
        assert migration == dag.dag_id.removesuffix(f"_{step}")
        assert set(named) == {str(task.label) for task in dag.tasks}, dag.dag_id
        assert dag.doc_md.count("*When to run it:*") == dag.doc_md.count("*When it is red:*") == 1
        for other in re.findall(r"`(\w+)`", dag.doc_md):
            assert other.removeprefix(f"{migration}_") in dags.keys() - {step}, f"{dag.dag_id} speaks of {other}"
        actions = set(dag.params.get_param("action").schema["enum"]) if step == "operate" else set()
        assert all(f"*{action}*" in dag.doc_md for action in actions)


@pytest.mark.parametrize("kind", ["flip", "rollback"])
def test_nothing_moves_before_somebody_approved_it(dags: dict[str, DAG], kind: str) -> None:
    dag = dags[kind]
    after_it = ["observe"] if kind == "flip" else []
    order = ["gates", "approve", "verify", "cutover", *after_it, "done"]
    aside = {"give_up", "send_back"} if kind == "flip" else {"give_up"}
    assert dag.task_dict["ask"].downstream_task_ids == {f"country.{step}" for step in {*order, *aside}}
    for before, after in pairwise(order):
        assert f"country.{after}" in dag.task_dict[f"country.{before}"].downstream_task_ids
    approve: Any = dag.task_dict["country.approve"]
    assert approve.fail_on_reject and approve.defaults is None
    for name in order:
        assert dag.task_dict[f"country.{name}"].map_index_template == "{{ task.attempt['cohort'] }}"


@pytest.mark.parametrize(("step", "then"), [("flip", "verify"), ("rollback", "verify"), ("finish", "cutover")])
def test_each_of_two_people_has_a_question_of_their_own(tmp_path: Path, step: str, then: str) -> None:
    """Neither waits for the other, and nothing goes on without both."""
    text = FILES["billing"].read_text()
    assert "approvals: 1," in text
    path = tmp_path / "billing.yaml"
    path.write_text(text.replace("approvals: 1,", "approvals: 2,"))
    found = build(path)[f"billing_{step}"].task_dict
    assert sorted(name for name in found if "approve" in name) == ["country.approve", "country.approve_2"]
    for name in ("country.approve", "country.approve_2"):
        assert found[name].upstream_task_ids == {"ask", "country.gates"}
        assert found[name].downstream_task_ids == {f"country.{then}", "country.give_up"}
        assert found[name].trigger_rule == found[f"country.{then}"].trigger_rule == "all_success"
    if then == "verify":
        assert "country.verify" in found["country.cutover"].upstream_task_ids


@pytest.mark.parametrize(("pools_exist", "pool"), [("", "default_pool"), ("1", "fishladder_billing_target")])
def test_tasks_run_in_the_targets_pool_once_it_exists(
    monkeypatch: pytest.MonkeyPatch, pools_exist: str, pool: str
) -> None:
    monkeypatch.setenv("FISHLADDER_POOLS", pools_exist)
    dags = build(FILES["billing"])
    heavy = ("prepare", "load", "replicate", "reconcile")
    assert {task.pool for step in heavy for task in dags[f"billing_{step}"].tasks} == {pool}
    assert dags["billing_operate"].task_dict["operate"].pool == "default_pool"
    flip = dags["billing_flip"].task_dict
    assert flip["country.verify"].pool == pool and flip["country.cutover"].pool == "default_pool"
    made = pools([load(FILES["billing"]), load(FILES["billing"])])
    assert list(made) == ["fishladder_billing_target"] and made["fishladder_billing_target"]["slots"] == 10


def test_a_table_may_be_called_like_a_task(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(
        "migration: odd\nstrategy: replicate\nsource: {kind: sqlite, connection: odd_source}\n"
        "target: {kind: sqlite, connection: odd_target}\napplication: {source: a, target: b}\n"
        "cohort: {root: report, column: country, waves: [['*']]}\n"
        "tables: {report: root, a b: {entity: x}, a.b: {entity: x}}\n"
    )
    groups = build(path)["odd_load"].task_group.children
    assert {"report", "report_", "a_b", "a_b_"} <= groups.keys()
