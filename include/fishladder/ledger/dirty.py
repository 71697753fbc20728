"""Keys whose two copies may differ.

Append-only: a key that is marked twice has two rows. Were it one row, the second mark would vanish with the first
when whoever read the first forgets it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select

from fishladder.ledger import tables
from fishladder.ledger.database import Transaction, slices


@dataclass(frozen=True, slots=True, kw_only=True)
class DirtyKey:
    """A doubt about a key. ``origin``: what raised it, such as ``retry`` or ``mismatch``."""

    table: str
    key: bytes
    entity: bytes | None
    cohort: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirtyEntry:
    """A doubt as it stands in the ledger; ``id`` is never given again."""

    id: int
    table: str
    key: bytes
    entity: bytes | None
    cohort: str
    origin: str
    at: datetime


def mark(tx: Transaction, keys: Collection[DirtyKey]) -> None:
    if keys:
        tx.connection.execute(insert(tables.dirty), [_values(tx, key) for key in keys])


def mark_one(tx: Transaction, key: DirtyKey) -> int:
    """Returns the entry's id."""
    made = tx.connection.execute(insert(tables.dirty).values(_values(tx, key)))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def _values(tx: Transaction, key: DirtyKey) -> dict[str, object]:
    return {
        "migration": tx.migration,
        "table": key.table,
        "key": key.key,
        "entity": key.entity,
        "cohort": key.cohort,
        "origin": key.origin,
        "at": tx.now,
    }


def read(
    tx: Transaction, limit: int, after_id: int, names: Collection[str] | None, cohorts: Collection[str] | None
) -> list[DirtyEntry]:
    columns = tables.dirty.c
    query = (
        select(tables.dirty)
        .where(columns.migration == tx.migration, columns.id > after_id)
        .order_by(columns.id)
        .limit(limit)
    )
    if names is not None:
        query = query.where(columns.table.in_(names))
    if cohorts is not None:
        query = query.where(columns.cohort.in_(cohorts))
    return list(map(_entry, tx.connection.execute(query)))


def of(tx: Transaction, table: str, keys: Collection[bytes]) -> list[DirtyEntry]:
    columns = tables.dirty.c
    found: list[DirtyEntry] = []
    for some in slices(keys):
        query = select(tables.dirty).where(columns.migration == tx.migration, columns.table == table)
        found += map(_entry, tx.connection.execute(query.where(columns.key.in_(some))))
    return found


def _entry(row: Row[Any]) -> DirtyEntry:
    return DirtyEntry(
        id=row.id,
        table=row.table,
        key=row.key,
        entity=row.entity,
        cohort=row.cohort,
        origin=row.origin,
        at=row.at,
    )


def forget(tx: Transaction, ids: Collection[int]) -> None:
    columns = tables.dirty.c
    for some in slices(sorted(ids)):  # in one order, so that two who forget do not block each other
        tx.connection.execute(delete(tables.dirty).where(columns.migration == tx.migration, columns.id.in_(some)))


def among(tx: Transaction, table: str, keys: Collection[bytes]) -> set[bytes]:
    columns = tables.dirty.c
    found: set[bytes] = set()
    for some in slices(keys):
        query = select(columns.key).distinct()
        query = query.where(columns.migration == tx.migration, columns.table == table, columns.key.in_(some))
        found.update(tx.connection.scalars(query))
    return found


def count(tx: Transaction, cohort: str | None) -> int:
    columns = tables.dirty.c
    query = select(func.count()).where(columns.migration == tx.migration)
    return tx.connection.scalar(query if cohort is None else query.where(columns.cohort == cohort)) or 0


def by_cohort(tx: Transaction) -> dict[str, int]:
    columns = tables.dirty.c
    query = select(columns.cohort, func.count()).where(columns.migration == tx.migration).group_by(columns.cohort)
    return dict(tx.connection.execute(query.order_by(columns.cohort)).all())
