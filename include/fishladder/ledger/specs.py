"""Which migration file and which code the migration runs with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select

from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRecord:
    """A migration file as it was recorded: canonical JSON, its digest and that of the code."""

    spec: str
    digest: str
    code_digest: str
    actor: str
    at: datetime


def record(tx: Transaction, spec_json: str, digest: str, code_digest: str, actor: str) -> bool:
    audit.head(tx, lock=True)  # two who record at once take turns
    last = latest(tx)
    if last is not None and (last.digest, last.code_digest) == (digest, code_digest):
        return False
    tx.connection.execute(
        insert(tables.spec).values(
            migration=tx.migration, spec=spec_json, digest=digest, code_digest=code_digest, actor=actor, at=tx.now
        )
    )
    audit.append(tx, actor, "spec recorded", {"digest": digest, "code_digest": code_digest})
    return True


def latest(tx: Transaction) -> SpecRecord | None:
    columns = tables.spec.c
    query = select(tables.spec).where(columns.migration == tx.migration).order_by(columns.id.desc()).limit(1)
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    return SpecRecord(spec=row.spec, digest=row.digest, code_digest=row.code_digest, actor=row.actor, at=row.at)
