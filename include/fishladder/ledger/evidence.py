"""What gates look at: evidence, and the coverage of each store's tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, func, select

from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One finding: of which ``kind``, about what, whether it passed, as of when (``began``), stored when (``at``).

    ``genuine``: it is what was recorded; of one that is not even JSON any more, the body is empty.
    """

    kind: str
    subject: str
    body: dict[str, Any]
    passed: bool
    began: datetime
    at: datetime
    digest: str
    genuine: bool


def record(tx: Transaction, kind: str, subject: str, body: Mapping[str, Any], passed: bool, began: datetime) -> str:
    digest = _digest(tx.migration, kind, subject, body, passed, began)
    fields = {"migration": tx.migration, "kind": kind, "subject": subject, "passed": passed}
    row = {**fields, "body": audit.canonical(body), "began": began, "at": tx.now, "digest": digest}
    upsert(tx.connection, tables.evidence, [row])
    return digest


def _digest(migration: str, kind: str, subject: str, body: Any, passed: bool, began: datetime) -> str:
    fields = {
        "migration": migration,
        "kind": kind,
        "subject": subject,
        "body": body,
        "passed": passed,
        "began": began.astimezone(UTC).isoformat(timespec="microseconds"),
    }
    return hashlib.sha256(audit.canonical(fields).encode()).hexdigest()


def latest(tx: Transaction, kind: str, subject: str | None) -> Evidence | None:
    columns = tables.evidence.c
    query = select(tables.evidence).where(columns.migration == tx.migration, columns.kind == kind)
    if subject is not None:
        query = query.where(columns.subject == subject)
    row = tx.connection.execute(query.order_by(columns.id.desc()).limit(1)).one_or_none()
    return None if row is None else _read(row)


def between(tx: Transaction, kind: str, subject: str, since: datetime, until: datetime, edited: bool) -> list[Evidence]:
    columns = tables.evidence.c
    query = select(tables.evidence).where(
        columns.migration == tx.migration,
        columns.kind == kind,
        columns.subject == subject,
        columns.began.between(since, until),
    )
    found = (_read(row) for row in tx.connection.execute(query.order_by(columns.began, columns.id)))
    return [one for one in found if one.genuine or edited]


def together_with(tx: Transaction, digest: str) -> list[Evidence]:
    columns, own = tables.evidence.c, tables.evidence.alias("own")
    same = [columns[name] == own.c[name] for name in ("migration", "kind", "began")]
    query = (
        select(tables.evidence).join(own, and_(*same)).where(columns.migration == tx.migration, own.c.digest == digest)
    )
    return [_read(row) for row in tx.connection.execute(query.order_by(columns.id))]


def as_of(tx: Transaction, moment: datetime) -> list[Evidence]:
    columns = tables.evidence.c
    newest = (
        select(func.max(columns.id))
        .where(columns.migration == tx.migration, columns.at <= moment)
        .group_by(columns.kind, columns.subject)
    )
    query = select(tables.evidence).where(columns.id.in_(newest)).order_by(columns.id)
    return [_read(row) for row in tx.connection.execute(query)]


def _read(row: Row[Any]) -> Evidence:
    try:
        body = json.loads(row.body)
        genuine = row.digest == _digest(row.migration, row.kind, row.subject, body, row.passed, row.began)
    except ValueError:  # somebody wrote into the ledger
        body, genuine = {}, False
    return Evidence(
        kind=row.kind,
        subject=row.subject,
        body=body,
        passed=row.passed,
        began=row.began,
        at=row.at,
        digest=row.digest,
        genuine=genuine,
    )


def record_coverage(tx: Transaction, store: str, parts: Mapping[str, str]) -> None:
    audit.head(tx, lock=True)  # two who record at once take turns
    known = coverage(tx, store)
    changed = {table: digest for table, digest in sorted(parts.items()) if known.get(table) != digest}
    if not changed:
        return
    rows = [
        {"migration": tx.migration, "store": store, "table": table, "digest": digest, "at": tx.now}
        for table, digest in changed.items()
    ]
    upsert(tx.connection, tables.coverage, rows, replace=("digest", "at"))
    event = "coverage changed" if known.keys() & changed.keys() else "coverage recorded"
    audit.append(tx, audit.MACHINE, event, {"store": store, "tables": changed})


def coverage(tx: Transaction, store: str) -> dict[str, str]:
    columns = tables.coverage.c
    query = select(columns.table, columns.digest).where(columns.migration == tx.migration, columns.store == store)
    return dict(tx.connection.execute(query.order_by(columns.table)).all())
