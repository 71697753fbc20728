"""From a task to the evidence that it kept: the link, the page, and who may read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from airflow.api_fastapi.app import create_app, get_auth_manager, purge_cached_app
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.dagrun import DagRun
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from billing import schema
from billing.database import connect
from fishladder.ledger import open_ledger
from fishladder.spec import load
from fishladder.verdict import tables_of
from tests.dags.conftest import FILE, Stores, make_stores

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def web(airflow_database: None) -> Iterator[TestClient]:
    """Airflow's own web server, with the plugins that it finds by itself."""
    with TestClient(create_app(apps="core")) as client:
        yield client
    purge_cached_app()


def signed_in(role: str | None) -> dict[str, str]:
    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="ada", role=role))
    return {"Authorization": f"Bearer {token}"}


def links(web: TestClient, run: DagRun, task: str, index: int = -1) -> dict[str, str | None]:
    """As Airflow's page of the task asks for them."""
    answer = web.get(
        f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/{task}/links?map_index={index}",
        headers=signed_in("viewer"),
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, str | None] = answer.json()["extra_links"]
    return found


def read(web: TestClient, run: DagRun, task: str, index: int = -1) -> str:
    link = links(web, run, task, index)["Evidence"]
    assert link is not None and link.startswith(f"/fishladder/{run.dag_id}/evidence/")
    answer = web.get(link, headers=signed_in("viewer"))
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    return answer.text


def spoil(target: str) -> None:
    with closing(connect(target)) as db:
        db.execute("CREATE TABLE plan (id INTEGER PRIMARY KEY, code VARCHAR(20))")


def test_a_failed_preflight_links_to_its_findings_and_the_next_one_to_others(
    web: TestClient, stores: Stores, dags: dict[str, DAG]
) -> None:
    spoil(stores.target)
    failed = read(web, dags["billing_prepare"].test(), "preflight")
    assert "<span class=failed>failed</span>" in failed
    assert "<td>plan.name</td>" in failed and "the target has no column name" in failed
    with closing(connect(stores.target)) as db:
        db.drop("plan")
    run = dags["billing_prepare"].test()
    passed = read(web, run, "preflight")
    assert "<span class=passed>passed</span>" in passed and "the target has no column" not in passed
    assert "<span class=passed>passed</span>" in read(web, run, "install")


def test_the_log_of_preflight_has_its_table(
    stores: Stores, dags: dict[str, DAG], capfd: pytest.CaptureFixture[str]
) -> None:
    """What fails comes first, and each line of that says what to do; nobody has to look at the evidence."""
    with closing(connect(stores.target)) as db:
        db.execute("CREATE TABLE plan (id INTEGER PRIMARY KEY, code VARCHAR(5))")
    dags["billing_prepare"].test()
    line = r" \[info +\] (pass|warn|fail)  (\S+(?: \S+)*) +(.*) \[airflow\.\S+\.Preflight\] "
    logged = re.findall(line, capfd.readouterr().out)
    assert list(dict.fromkeys(level for level, _, _ in logged)) == ["fail", "warn", "pass"]
    assert {where.partition(".")[0] for _, where, _ in logged} >= set(schema.TABLES)
    found = {where: (level, message) for level, where, message in logged}
    here = f"({FILE}:{FILE.read_text().splitlines().index('  plan: shared') + 1})"
    assert found["plan.name"] == ("fail", f"the target has no column name; use rename: or drop: {here}")
    narrow = "VARCHAR(20) can hold more than string(5): such values become rejects"
    assert found["plan.code"] == ("warn", narrow)
    assert found["plan.id"] == ("pass", "INTEGER → INTEGER as integer(19)")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, dags: dict[str, DAG]) -> Iterator[tuple[Stores, DagRun]]:
    """Stores of these tests' own after a load, and its run. Whoever changes them repairs them."""
    with pytest.MonkeyPatch.context() as patch:
        made = make_stores(tmp_path_factory.mktemp("loaded"), patch)
        dags["billing_prepare"].test()
        yield made, dags["billing_load"].test()


def test_every_finding_of_a_reconciliation_can_be_read(
    web: TestClient, loaded: tuple[Stores, DagRun], dags: dict[str, DAG]
) -> None:
    stores, _ = loaded
    run = dags["billing_reconcile"].test()
    with open_ledger(stores.ledger, migration="billing") as ledger:
        cohorts = ledger.routes().keys() - {"*", "shared"}
    reports = read(web, run, "report")
    assert reports.count("<h2>") == 3 * len(cohorts)
    assert "revenue_by_month NZ" in reports and "<th>until</th>" in reports
    assert "<th>invoice_line</th>" in read(web, run, "totals")
    outcome = read(web, run, "outcome")
    assert "gift_card_entry" in outcome and "report revenue_by_month: equal for" in outcome


def test_every_pass_links_to_what_it_found(
    web: TestClient, loaded: tuple[Stores, DagRun], dags: dict[str, DAG]
) -> None:
    """Also one that found a difference, whose task is green all the same; and the first ones, in the load."""
    stores, run = loaded
    tables = tables_of(load(FILE))
    at = tables.index("payment")
    assert "<h2>payment <span class=passed>passed</span>" in read(web, run, "reconcile", at)
    with closing(connect(stores.target)) as db, db.transaction():
        db.execute("INSERT INTO fishladder_copying VALUES (1)")
        db.execute("DELETE FROM payment WHERE id = 1")
        db.execute("DELETE FROM fishladder_copying")
    run = dags["billing_reconcile"].test()
    found = read(web, run, "reconcile", at)
    assert "<h2>payment <span class=failed>failed</span>" in found and "<th>missing</th><td>1</td>" in found
    assert "<span class=passed>passed</span>" in read(web, run, "reconcile", tables.index("plan"))
    dags["billing_replicate"].test(run_conf={"seconds": 1})


@pytest.fixture
def kept(stores: Stores) -> str:
    """A piece of evidence with what a page must not take for its own."""
    body = {"findings": [{"level": "fail", "where": "<script>alert(1)</script>", "message": "a & b"}]}
    with open_ledger(stores.ledger, migration="billing") as ledger:
        return ledger.record_evidence("preflight", "billing", body, False, AT)


def test_whoever_may_not_read_the_log_may_not_read_the_evidence(web: TestClient, kept: str) -> None:
    path = f"/fishladder/billing_prepare/evidence/{kept}"
    assert web.get(path).status_code == 401
    assert web.get(path, headers=signed_in(None)).status_code == 403
    assert web.get(path, headers=signed_in("viewer")).status_code == 200
    for open_to_all in ("docs", "redoc", "openapi.json"):
        assert web.get(f"/fishladder/{open_to_all}").status_code == 404


@pytest.mark.parametrize("dag_id", ["chinook_prepare", "billing", "billing_x", "x_billing_prepare"])
def test_the_right_to_read_one_dag_opens_no_other_migration(web: TestClient, kept: str, dag_id: str) -> None:
    assert web.get(f"/fishladder/{dag_id}/evidence/{kept}", headers=signed_in("viewer")).status_code == 404


def test_where_each_cohort_is(web: TestClient, stores: Stores) -> None:
    path = "/fishladder/billing_flip/cohorts"
    assert [web.get(path, headers=headers).status_code for headers in ({}, signed_in(None))] == [401, 403]
    assert "Nothing was prepared yet" in web.get(path, headers=signed_in("viewer")).text
    with open_ledger(stores.ledger, migration="billing") as ledger:
        ledger.ensure_routes(["AU", "NZ", "*", "shared"], "test")
        first = ledger.begin_attempt("NZ", "flip", actor="<ada>", reason="", deadline=60)
        ledger.abort(first, "it rained")
        ledger.begin_attempt("NZ", "flip", actor="ben", reason="", deadline=60)
    page = web.get(path, headers=signed_in("viewer")).text
    assert re.findall(r"<td>(\w+)</td><td>off</td><td>source</td>", page) == ["AU", "NZ", "shared"]
    assert "flip no. 2 of ben, " in page and " UTC: is at verify<" in page and "it rained" not in page
    with open_ledger(stores.ledger, migration="billing") as ledger:
        ledger.abort(ledger.attempt(2), "<it> snowed")
    assert "UTC: aborted: &lt;it&gt; snowed" in web.get(path, headers=signed_in("viewer")).text
    assert web.get("/fishladder/billing_x/cohorts", headers=signed_in("viewer")).status_code == 404


def test_what_evidence_says_is_text_to_the_browser(web: TestClient, kept: str) -> None:
    page = web.get(f"/fishladder/billing_prepare/evidence/{kept}", headers=signed_in("viewer")).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "a &amp; b" in page and "<script" not in page


def test_a_ledger_that_is_away_is_said(web: TestClient, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHLADDER_LEDGER", "mysql://fishladder:secret@127.0.0.1:1/ledger")
    answer = web.get(f"/fishladder/billing_prepare/evidence/{kept}", headers=signed_in("viewer"))
    assert answer.status_code == 503 and "cannot read the ledger" in answer.text and "secret" not in answer.text
