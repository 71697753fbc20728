"""Which migration files and which code the migration has run with, the newest last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select

from fishladder.errors import TransientError
from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRecord:
    """A migration file as it was recorded: its JSON, the SHA-256 of that, and the code's digest."""

    spec: str
    digest: str
    code_digest: str
    actor: str
    at: datetime


def record(
    tx: Transaction, spec_json: str, digest: str, code_digest: str, actor: str, after: SpecRecord | None
) -> bool:
    """``after``: which one has to be the last, if it matters. Raises TransientError where it is not."""
    audit.head(tx, lock=True)  # two who record at once take turns
    last = latest(tx)
    if last is not None and (last.digest, last.code_digest) == (digest, code_digest):
        return False
    if after is not None and last != after:
        raise TransientError(f"{tx.migration}: somebody has recorded another migration file meanwhile; repeat")
    tx.connection.execute(
        insert(tables.spec).values(
            migration=tx.migration, spec=spec_json, digest=digest, code_digest=code_digest, actor=actor, at=tx.now
        )
    )
    before = {"digest_before": last and last.digest, "code_digest_before": last and last.code_digest}
    audit.append(tx, actor, "spec recorded", {"digest": digest, "code_digest": code_digest, **before})
    return True


def latest(tx: Transaction, digest: str | None = None) -> SpecRecord | None:
    columns = tables.spec.c
    query = select(tables.spec).where(columns.migration == tx.migration).order_by(columns.id.desc()).limit(1)
    if digest is not None:
        query = query.where(columns.digest == digest)
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        return None
    return SpecRecord(spec=row.spec, digest=row.digest, code_digest=row.code_digest, actor=row.actor, at=row.at)
