"""Where each cohort stands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import insert, select

from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A cohort's stage, the store that owns it (``source`` or ``target``) and the epoch of that."""

    stage: str
    owner: str
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
    return {
        row.cohort: Route(stage=row.stage, owner=row.owner, epoch=row.epoch) for row in tx.connection.execute(query)
    }
