"""Where each cohort stands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row, Select, insert, select, update

from fishladder.errors import InputError
from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction

StoreName = Literal["source", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A cohort's stage, the store that owns it and the epoch of that."""

    stage: str
    owner: StoreName
    epoch: int


def ensure(tx: Transaction, cohorts: Collection[str], actor: str) -> None:
    audit.head(tx, lock=True)  # two who add at once take turns
    known = read(tx)
    new = sorted(set(cohorts) - set(known))
    if not new:
        return
    first = {"migration": tx.migration, "stage": "off", "owner": "source", "epoch": 1, "at": tx.now}
    tx.connection.execute(insert(tables.route), [{**first, "cohort": cohort} for cohort in new])
    audit.append(tx, actor, "routes added", {"cohorts": new})


def read(tx: Transaction) -> dict[str, Route]:
    columns = tables.route.c
    query = select(tables.route).where(columns.migration == tx.migration).order_by(columns.cohort)
    return {row.cohort: _route(row) for row in tx.connection.execute(query)}


def route_of(tx: Transaction, cohort: str, *, lock: bool = False) -> Route:
    """One cohort's route; ``lock``: nobody changes it before this transaction ends. Raises InputError."""
    columns = tables.route.c
    query: Select[Any] = select(tables.route).where(columns.migration == tx.migration, columns.cohort == cohort)
    row = tx.connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise InputError(f"{tx.migration} has no cohort {cohort!r}; run prepare")
    return _route(row)


def set_route(tx: Transaction, cohort: str, route: Route) -> None:
    """For ``attempts`` alone, which compares before it sets."""
    columns = tables.route.c
    tx.connection.execute(
        update(tables.route)
        .where(columns.migration == tx.migration, columns.cohort == cohort)
        .values(stage=route.stage, owner=route.owner, epoch=route.epoch, at=tx.now)
    )


def _route(row: Row[Any]) -> Route:
    return Route(stage=row.stage, owner=row.owner, epoch=row.epoch)
