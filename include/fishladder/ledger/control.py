"""What operators tell the migration, and what it tells them: pause and throttle; last values and counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """``paused``: whoever writes stops after its batch; ``rows_per_second``: for each writer, None is no limit."""

    paused: bool = False
    rows_per_second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The last value of something, and since when it is."""

    data: dict[str, Any]
    at: datetime


def read(tx: Transaction) -> Control:
    columns = tables.control.c
    row = tx.connection.execute(select(tables.control).where(columns.migration == tx.migration)).one_or_none()
    return Control(paused=row.paused, rows_per_second=row.rows_per_second) if row else Control()


def change(tx: Transaction, paused: bool | None, rows_per_second: int | None, actor: str) -> Control:
    if rows_per_second is not None and rows_per_second < 0:
        raise ValueError("rows per second are 1 or more; 0 lifts the limit")
    audit.head(tx, lock=True)  # two who change it at once take turns
    old = read(tx)
    new = Control(
        paused=old.paused if paused is None else paused,
        rows_per_second=old.rows_per_second if rows_per_second is None else rows_per_second or None,
    )
    if new == old:
        return new
    values = {"paused": new.paused, "rows_per_second": new.rows_per_second}
    upsert(tx.connection, tables.control, [{"migration": tx.migration, **values}], replace=values)
    audit.append(tx, actor, "control changed", values)
    return new


def note(tx: Transaction, kind: str, data: Mapping[str, Any]) -> None:
    row = {"migration": tx.migration, "kind": kind, "data": audit.canonical(data), "at": tx.now}
    upsert(tx.connection, tables.status, [row], replace=("data", "at"))


def status(tx: Transaction, kind: str) -> Status | None:
    columns = tables.status.c
    query = select(tables.status).where(columns.migration == tx.migration, columns.kind == kind)
    row = tx.connection.execute(query).one_or_none()
    return Status(data=json.loads(row.data), at=row.at) if row else None


def add_counts(tx: Transaction, kind: str, counts: Mapping[str, int]) -> None:
    rows = [
        {"migration": tx.migration, "kind": kind, "name": name, "value": value}
        for name, value in sorted(counts.items())  # in one order, so that two who add do not block each other
    ]
    upsert(tx.connection, tables.counter, rows, add=("value",))


def counts(tx: Transaction, kind: str) -> dict[str, int]:
    columns = tables.counter.c
    query = select(columns.name, columns.value).where(columns.migration == tx.migration, columns.kind == kind)
    return dict(tx.connection.execute(query.order_by(columns.name)).all())
