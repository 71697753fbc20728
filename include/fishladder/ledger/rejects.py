"""Rows that could not be written, kept with the reason until they are resolved."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, literal, select, update
from sqlalchemy.sql.elements import ColumnElement

from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction, may_be_open, slices, upsert

RETRY = "retry"
"""The origin of a dirty key that stands for a reject to be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that a store refused. ``error``: the database's reason; ``column``: where it says so.

    ``at`` (the last time) and ``attempts`` are the ledger's to say; what a caller records there is not looked at.
    """

    table: str
    key: bytes
    entity: bytes | None
    cohort: str
    column: str | None
    error: str
    at: datetime | None = None
    attempts: int = 1


def record(tx: Transaction, rejects: Collection[Reject], chunk: int | None, token: int | None) -> None:
    values = [
        {
            "migration": tx.migration,
            "table": reject.table,
            "key": reject.key,
            "entity": reject.entity,
            "cohort": reject.cohort,
            "column": reject.column,
            "error": reject.error,
            "at": tx.now,
            "attempts": 1,
            "chunk": chunk,
            "token": token,
            "state": "open",
        }
        for reject in sorted(rejects, key=lambda reject: (reject.table, reject.key))
    ]
    replace = ("entity", "cohort", "column", "error", "at", "chunk", "token", "state")
    upsert(tx.connection, tables.reject, values, replace=replace, add=("attempts",))


def keep_only(tx: Transaction, table: str, chunk: int, token: int) -> None:
    """Drop the rejects of a chunk that a lane recorded whose rows were rolled back."""
    columns = tables.reject.c
    tx.connection.execute(
        delete(tables.reject).where(
            columns.migration == tx.migration,
            columns.table == table,
            columns.chunk == chunk,
            columns.token != token,
        )
    )


def drop(tx: Transaction, table: str) -> None:
    """Of a table that is loaded again from the beginning."""
    columns = tables.reject.c
    tx.connection.execute(delete(tables.reject).where(columns.migration == tx.migration, columns.table == table))


def close(tx: Transaction, table: str, keys: Collection[bytes]) -> set[bytes]:
    """Returns which of the keys had an open one."""
    columns = tables.reject.c
    if not may_be_open(tx, tables.reject, table):
        return set()
    found = among(tx, table, keys)
    for some in slices(sorted(found)):
        tx.connection.execute(
            update(tables.reject)
            .where(columns.migration == tx.migration, columns.table == table, columns.key.in_(some))
            .values(state="closed")
        )
    return found


def _open(tx: Transaction, table: str | None = None, cohort: str | None = None) -> list[ColumnElement[bool]]:
    columns = tables.reject.c
    conditions = [columns.migration == tx.migration, columns.state == "open"]
    if table is not None:
        conditions.append(columns.table == table)
    if cohort is not None:
        conditions.append(columns.cohort == cohort)
    return conditions


def read(tx: Transaction, table: str | None, limit: int) -> list[Reject]:
    columns = tables.reject.c
    query = select(tables.reject).where(*_open(tx, table)).order_by(columns.at, columns.table, columns.key).limit(limit)
    return [
        Reject(
            table=row.table,
            key=row.key,
            entity=row.entity,
            cohort=row.cohort,
            column=row.column,
            error=row.error,
            at=row.at,
            attempts=row.attempts,
        )
        for row in tx.connection.execute(query)
    ]


def among(tx: Transaction, table: str, keys: Collection[bytes]) -> set[bytes]:
    key = tables.reject.c.key
    found: set[bytes] = set()
    for some in slices(keys):
        found.update(tx.connection.scalars(select(key).where(*_open(tx, table), key.in_(some))))
    return found


def count(tx: Transaction, *, table: str | None = None, cohort: str | None = None) -> int:
    return tx.connection.scalar(select(func.count()).select_from(tables.reject).where(*_open(tx, table, cohort))) or 0


def retry(tx: Transaction, table: str | None, error: str | None, actor: str) -> int:
    columns = tables.reject.c
    chosen = _open(tx, table)
    if error is not None:
        chosen.append(columns.error.contains(error, autoescape=True))
    names = list(tx.connection.scalars(select(columns.table).where(*chosen).distinct().order_by(columns.table)))
    marked: dict[str, int] = {}
    for name in names:
        copied = (columns.migration, columns.table, columns.key, columns.entity, columns.cohort)
        rows = select(*copied, literal(RETRY), literal(tx.now, tables.dirty.c.at.type))
        targets = [column.name for column in copied] + ["origin", "at"]
        result = tx.connection.execute(
            insert(tables.dirty).from_select(targets, rows.where(*chosen, columns.table == name)),
            execution_options={"preserve_rowcount": True},
        )
        marked[name] = result.rowcount
    if marked:
        # Not the error's text: databases put values into it.
        audit.append(tx, actor, "rejects retried", {"rejects": marked, "by_error": error is not None})
    return sum(marked.values())
