"""Checks, each one pass of reconciliation over a table, and the mismatches they found.

A check is clean as of its start, or not at all. It becomes unclean with the first mismatch, even if nobody lives to
finish it, and clean only by finishing. One that never finished and found nothing says nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, func, insert, or_, select, update

from fishladder.errors import LedgerError, StaleError
from fishladder.ledger import audit, dirty, tables
from fishladder.ledger.database import Transaction, may_be_open, slices, upsert
from fishladder.ledger.routes import StoreName

ORIGIN = "mismatch"
"""The origin of a dirty key that stands for a mismatch to be repaired."""
SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a pass counted, in keys. ``coverage``: as it was at the end, None if it could not be read.

    ``by_cohort``: mismatches of each cohort that has any.
    """

    compared: int
    missing: int = 0
    extra: int = 0
    differs: int = 0
    deferred: int = 0
    rejected: int = 0
    orphans: int = 0
    duplicates: int = 0
    coverage: str | None
    by_cohort: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A pass. ``clean`` is None while nothing is known; ``void``: why a clean pass does not count any more.

    ``rows_source`` and ``rows_target``: read so far on each side.
    """

    id: int
    table: str
    coverage: str
    started_at: datetime
    finished_at: datetime | None
    rows_source: int
    rows_target: int
    result: CheckResult | None
    clean: bool | None
    void: str | None


@dataclass(frozen=True, slots=True)
class Streak:
    """Clean passes over a table since the last one that was not, or was voided. ``began``: when the newest did."""

    count: int
    began: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A difference that survived re-checking. ``check`` and ``at`` are the ledger's to say."""

    table: str
    key: bytes
    entity: bytes | None
    cohort: str
    kind: Literal["missing", "extra", "differs"]
    check: int | None = None
    at: datetime | None = None


def begin(tx: Transaction, table: str, coverage: str) -> int:
    result = tx.connection.execute(
        insert(tables.check).values(
            migration=tx.migration, table=table, coverage=coverage, started_at=tx.now, rows_source=0, rows_target=0
        )
    )
    inserted = result.inserted_primary_key
    assert inserted is not None
    return int(inserted[0])


def _locked(tx: Transaction, check: int) -> Row[Any]:
    columns = tables.check.c
    query = select(tables.check).where(columns.migration == tx.migration, columns.id == check).with_for_update()
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        raise LedgerError(f"check {check} of {tx.migration} is not in the ledger")
    return row


def _running(tx: Transaction, check: int) -> Row[Any]:
    row = _locked(tx, check)
    if row.finished_at is not None:
        raise StaleError(f"check {check} of {tx.migration}.{row.table} is finished; begin a new one")
    return row


def _set(tx: Transaction, check: int, **values: Any) -> None:
    tx.connection.execute(update(tables.check).where(tables.check.c.id == check).values(**values))


def note_compared(tx: Transaction, check: int, rows_source: int, rows_target: int) -> None:
    row = _running(tx, check)
    _set(tx, check, rows_source=row.rows_source + rows_source, rows_target=row.rows_target + rows_target)


def record_mismatches(tx: Transaction, check: int, owner: StoreName, mismatches: Collection[Mismatch]) -> None:
    if not mismatches:
        return
    audit.head(tx, lock=True)  # a switch takes it first, too: it counts these, or is seen here
    row = _running(tx, check)
    _refuse_switched(tx, owner, mismatches)
    _set(tx, check, clean=False)
    values = [
        {
            "migration": tx.migration,
            "check": check,
            "table": mismatch.table,
            "key": mismatch.key,
            "entity": mismatch.entity,
            "cohort": mismatch.cohort,
            "kind": mismatch.kind,
            "state": "open",
            "at": tx.now,
        }
        for mismatch in sorted(mismatches, key=lambda mismatch: (mismatch.table, mismatch.key))
    ]
    upsert(tx.connection, tables.mismatch, values, replace=("entity", "cohort", "kind", "state", "at"))
    dirty.mark(
        tx,
        [
            dirty.DirtyKey(table=found.table, key=found.key, entity=found.entity, cohort=found.cohort, origin=ORIGIN)
            for found in mismatches
        ],
    )
    kinds = Counter(mismatch.kind for mismatch in mismatches)
    audit.append(tx, audit.MACHINE, "mismatches recorded", {"check": check, "table": row.table, "found": kinds})


def _refuse_switched(tx: Transaction, owner: StoreName, mismatches: Collection[Mismatch]) -> None:
    columns = tables.route.c
    query = select(columns.cohort).where(columns.migration == tx.migration, columns.owner != owner)
    moved = set(tx.connection.scalars(query))
    lost = [found for found in mismatches if found.cohort in moved]
    if lost:
        keys = ", ".join(f"{found.table} {found.key.decode(errors='backslashreplace')}" for found in lost[:SHOWN])
        raise StaleError(
            f"{', '.join(sorted({found.cohort for found in lost}))}: the {owner} was the owner when {len(lost)} rows"
            f" were found to differ from its own, and no longer is: {keys}; look at them in both stores, for the next"
            " pass takes the new owner's for right"
        )


def finish(tx: Transaction, check: int, result: CheckResult) -> bool:
    row = _locked(tx, check)
    if row.finished_at is not None:
        return bool(row.clean) and row.void is None
    mismatches = result.missing + result.extra + result.differs + sum(result.by_cohort.values())
    spotless = (
        row.clean is None
        and row.void is None
        and not (mismatches or result.rejected or result.orphans or result.duplicates)
        and result.coverage == row.coverage
    )
    clean = spotless and not result.deferred
    # One that met keys too busy to judge, and nothing else, neither counts nor breaks the row.
    known = None if spotless and result.deferred else clean
    _set(tx, check, finished_at=tx.now, clean=known, result=audit.canonical(asdict(result)))
    counts = {name: value for name, value in asdict(result).items() if isinstance(value, int)}
    body = {"check": check, "table": row.table, "clean": clean, "covered": result.coverage == row.coverage, **counts}
    audit.append(tx, audit.MACHINE, "check finished", body)
    return clean


def streaks(tx: Transaction, table: str | None = None) -> dict[str, Streak]:
    """By table, of those that have one, or of one."""
    columns = tables.check.c
    these = [columns.migration == tx.migration, *([columns.table == table] if table is not None else [])]
    # A pass whose end is not known, or that was not decided, and that found nothing, neither counts nor breaks the row.
    spoilt = or_(columns.clean.is_(False), columns.void.is_not(None))
    last = (
        select(columns.table, func.max(columns.id).label("id")).where(*these, spoilt).group_by(columns.table).subquery()
    )
    count, newest = func.count().label("count"), func.max(columns.id).label("newest")
    found = (
        select(count, newest)
        .outerjoin_from(tables.check, last, columns.table == last.c.table)
        .where(*these, columns.clean.is_(True), columns.id > func.coalesce(last.c.id, 0))
        .group_by(columns.table)
        .subquery()
    )
    query = select(columns.table, found.c["count"], columns.started_at).join_from(
        tables.check, found, (columns.id == found.c.newest) & (columns.migration == tx.migration)
    )
    return {name: Streak(count, began) for name, count, began in tx.connection.execute(query)}


def void(tx: Transaction, table_names: Collection[str], why: str) -> int:
    columns = tables.check.c
    names = sorted(set(table_names))
    changed = tx.connection.execute(
        update(tables.check)
        .where(
            columns.migration == tx.migration,
            columns.table.in_(names),
            columns.void.is_(None),
            # Also those that are still running: their beginning is not covered any more.
            or_(columns.clean.is_(True), columns.finished_at.is_(None)),
        )
        .values(void=why)
    ).rowcount
    if changed:
        audit.append(tx, audit.MACHINE, "checks voided", {"tables": names, "why": why, "checks": changed})
    return changed


def read(tx: Transaction, table: str | None, limit: int) -> list[Check]:
    columns = tables.check.c
    query = select(tables.check).where(columns.migration == tx.migration).order_by(columns.id.desc()).limit(limit)
    if table is not None:
        query = query.where(columns.table == table)
    return [
        Check(
            id=row.id,
            table=row.table,
            coverage=row.coverage,
            started_at=row.started_at,
            finished_at=row.finished_at,
            rows_source=row.rows_source,
            rows_target=row.rows_target,
            result=None if row.result is None else CheckResult(**json.loads(row.result)),
            clean=row.clean,
            void=row.void,
        )
        for row in tx.connection.execute(query)
    ]


def settle_mismatches(tx: Transaction, table: str, keys: Collection[bytes]) -> set[bytes]:
    """Returns which of the keys had an open one."""
    columns = tables.mismatch.c
    found: set[bytes] = set()
    if not may_be_open(tx, tables.mismatch, table):
        return found
    mine = (columns.migration == tx.migration, columns.table == table, columns.state == "open")
    for some in slices(keys):
        found.update(tx.connection.scalars(select(columns.key).where(*mine, columns.key.in_(some))))
    for some in slices(sorted(found)):  # in one order, so that two who settle do not block each other
        tx.connection.execute(update(tables.mismatch).where(*mine, columns.key.in_(some)).values(state="settled"))
    return found


def settle_all(tx: Transaction, table: str) -> None:
    """Of a table that is loaded again from the beginning."""
    columns = tables.mismatch.c
    mine = (columns.migration == tx.migration, columns.table == table, columns.state == "open")
    tx.connection.execute(update(tables.mismatch).where(*mine).values(state="settled"))


def open_mismatches(tx: Transaction, table: str | None, limit: int) -> list[Mismatch]:
    columns = tables.mismatch.c
    query = select(tables.mismatch).where(columns.migration == tx.migration, columns.state == "open")
    if table is not None:
        query = query.where(columns.table == table)
    query = query.order_by(columns.check, columns.table, columns.key).limit(limit)
    return [
        Mismatch(
            table=row.table,
            key=row.key,
            entity=row.entity,
            cohort=row.cohort,
            kind=row.kind,
            check=row.check,
            at=row.at,
        )
        for row in tx.connection.execute(query)
    ]


def count_mismatches(tx: Transaction, cohort: str | None) -> int:
    columns = tables.mismatch.c
    query = select(func.count()).where(columns.migration == tx.migration, columns.state == "open")
    return tx.connection.scalar(query if cohort is None else query.where(columns.cohort == cohort)) or 0
