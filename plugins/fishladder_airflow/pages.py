"""Pages inside Airflow's web server: a piece of evidence, and where each cohort is. They read the ledger alone.

Whoever may read the log of a DAG's tasks, and nobody else, may read them. They hold counts, findings and the figures of
reports, no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from fishladder.cells import NO_HOME
from fishladder.errors import FishladderError
from fishladder.ledger import Attempt, Evidence, Ledger, open_ledger
from fishladder_airflow.connections import ledger_url
from fishladder_airflow.links import cohorts_path, evidence_path
from fishladder_airflow.texts import SUMMARIES

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #18181b; }
table { border-collapse: collapse; margin: .3rem 0; }
th, td { border: 1px solid #d4d4d8; padding: .2rem .6rem; text-align: left; vertical-align: top; }
th { background: #f4f4f5; font-weight: 600; }
pre { margin: .3rem 0; }
.failed, .fail { color: #b91c1c; font-weight: 600; }
.passed, .pass { color: #15803d; }
.warn { color: #b45309; }
small { color: #71717a; }
"""

#: Served without Swagger and schema: those two would be open to everybody.
app = FastAPI(title="fishladder", docs_url=None, redoc_url=None, openapi_url=None)


# Not async: the ledger's driver would hold up everything else that the server does.
@app.get(
    evidence_path("{dag_id}", "{digest}"),
    dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.TASK_LOGS))],
    response_class=HTMLResponse,
)
def evidence(dag_id: str, digest: str) -> HTMLResponse:
    """The evidence of this digest, with all that was found with it."""
    with _ledger(dag_id) as ledger:
        found = ledger.evidence(digest)
    if not found:
        raise HTTPException(404, f"the ledger holds no such evidence of {dag_id}")
    return _answer(f"{dag_id}: {found[0].kind}", map(_piece, found))


@app.get(
    cohorts_path("{dag_id}"),
    dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.TASK_LOGS))],
    response_class=HTMLResponse,
)
def cohorts(dag_id: str) -> HTMLResponse:
    """Each cohort's stage and owner, and its newest attempt."""
    with _ledger(dag_id) as ledger:
        routes, attempts = ledger.routes(), ledger.attempts()
    newest = {attempt.cohort: attempt for attempt in reversed(attempts)}
    rows = [
        {"cohort": cohort, "stage": route.stage, "owner": route.owner, "newest attempt": _said(newest.get(cohort))}
        for cohort, route in routes.items()
        if cohort != NO_HOME
    ]
    return _answer(f"{dag_id}: where each cohort is", [_html(rows) if rows else "<p>Nothing was prepared yet."])


def _said(attempt: Attempt | None) -> str:
    if attempt is None:
        return ""
    state = f"is at {attempt.step}" if attempt.outcome is None else attempt.outcome
    said = f"{attempt.kind} no. {attempt.id} of {attempt.actor}, {attempt.opened_at:%Y-%m-%d %H:%M} UTC: {state}"
    return f"{said}: {attempt.error}" if attempt.error else said


@contextmanager
def _ledger(dag_id: str) -> Iterator[Ledger]:
    # The right to read one DAG opens no other migration's ledger: the id says whose it is.
    migration, _, step = dag_id.rpartition("_")
    if step not in SUMMARIES:
        raise HTTPException(404, f"{dag_id} is no DAG of a migration")
    try:
        with open_ledger(ledger_url(), migration=migration) as ledger:
            ledger.check_version()
            yield ledger
    except FishladderError as error:
        raise HTTPException(503, f"the web server cannot read the ledger: {error}") from error


def _answer(title: str, parts: Iterable[str]) -> HTMLResponse:
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return HTMLResponse("".join([head, f"<h1>{escape(title)}</h1>", *parts]), headers=HEADERS)


def _piece(one: Evidence) -> str:
    state = "passed" if one.passed else "failed"
    return (
        f"<h2>{escape(one.subject)} <span class={state}>{state}</span></h2>"
        f"<p>as of {one.began:%Y-%m-%d %H:%M:%S} UTC <small>{escape(one.digest)}</small></p>{_html(one.body)}"
    )


def _table(rows: Iterable[str]) -> str:
    return f"<table>{''.join(rows)}</table>"


def _row(cells: Iterable[Any]) -> str:
    return f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in cells)}</tr>"


def _html(value: Any) -> str:
    """JSON as tables, whatever is in it."""
    match value:
        case [dict() as first, *rest] if all(isinstance(row, dict) and row.keys() == first.keys() for row in rest):
            names = sorted(first, key=lambda name: name == "message")  # the longest one last
            head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
            return _table([f"<tr>{head}</tr>", *(_row(row[name] for name in names) for row in value)])
        case [list(), *_]:
            return _table(_row(row if isinstance(row, list) else [row]) for row in value)
        case [str(), *_]:
            return f"<pre>{escape(chr(10).join(map(str, value)))}</pre>"
        case list():
            return ", ".join(map(_html, value)) or "none"
        case dict():
            rows = (f"<tr><th>{escape(str(name))}</th><td>{_html(part)}</td></tr>" for name, part in value.items())
            return _table(rows) if value else "none"
        case "pass" | "warn" | "fail":
            return f"<span class={value}>{value}</span>"
        case _:
            return escape(str(value))
