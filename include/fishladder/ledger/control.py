"""What operators tell the migration, and what it tells them: pause and throttle; last values and counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """``paused``: whoever writes stops after its batch. The rest slows them down, None is no limit.

    ``rows_per_second``: of each lane, and of the applier; ``running_threads``: statements at work in the target;
    ``replica_lag``: seconds that the slowest of the target's replicas may be behind.
    """

    paused: bool = False
    rows_per_second: int | None = None
    running_threads: int | None = None
    replica_lag: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The last value of something, and since when it is."""

    data: dict[str, Any]
    at: datetime


_NAMES = tuple(field.name for field in fields(Control))


def read(tx: Transaction) -> Control:
    columns = tables.control.c
    row = tx.connection.execute(select(tables.control).where(columns.migration == tx.migration)).one_or_none()
    return Control(**{name: getattr(row, name) for name in _NAMES}) if row else Control()


def change(tx: Transaction, paused: bool | None, limits: Mapping[str, int | None], actor: str) -> Control:
    """``limits``: None leaves one as it is, 0 lifts it."""
    for name, limit in limits.items():
        if limit is not None and limit < 0:
            raise ValueError(f"{name.replace('_', ' ')} must be 1 or more, or 0 to lift the limit; not {limit}")
    audit.head(tx, lock=True)  # two who change it at once take turns
    old = read(tx)
    given = {name: limit or None for name, limit in limits.items() if limit is not None}
    new = replace(old, paused=old.paused if paused is None else paused, **given)
    if new == old:
        return new
    values = asdict(new)
    changed = {name: value for name, value in values.items() if value != getattr(old, name)}
    upsert(tx.connection, tables.control, [{"migration": tx.migration, **values}], replace=values)
    audit.append(tx, actor, "control changed", changed)
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
