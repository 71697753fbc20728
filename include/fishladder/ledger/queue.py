"""The queue: writes that customers were told are accepted while nobody may write, in order per entity (design §9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import Row, and_, bindparam, func, insert, or_, select, update

from fishladder.errors import StaleError
from fishladder.ledger import tables
from fishladder.ledger.database import Transaction
from fishladder.ledger.routes import Route, route_of

State = Literal["pending", "parked", "unwanted", "done", "refused"]
Optimistic = Literal["due", "done", "undone"]
"""Of what was promised along with a queued write: it is to be done, was done, or was done and undone again."""
QUEUEING = ("queue", "replay")
"""Stages in which a write may be queued."""
WAITING = ("pending", "parked", "unwanted")
"""Of writes that are not over: the last are about to be refused, in the owner too."""
TRIED = ("pending", "unwanted")
"""Of those, what the replayer tries: to do, or to refuse."""
REST, LONGEST_REST = 1.0, 30.0
"""Seconds before a write that failed is tried again: the first time, twice that the next time, at most the latter."""
SAME = ("operation", "entity", "idempotency_key")
"""What tells a write from another that a restored ledger has given the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A write in the queue. ``id`` numbers the writes of an entity in the order in which they were accepted.

    ``payload`` and ``result`` are JSON texts. ``state``: ``pending``; ``parked``, it failed too often and its entity
    waits for a person; ``unwanted``, who gave it up; ``done``; ``refused``, the business said no, for ``reason``.
    """

    id: int
    cohort: str
    entity: bytes
    operation: str
    key: str
    digest: str
    payload: str
    state: State
    result: str | None
    reason: str | None
    attempts: int
    optimistic: Optimistic | None
    at: datetime


_QUEUED = [tables.queue.c["idempotency_key" if part.name == "key" else part.name] for part in fields(Queued)]
"""And no other column: a router of a new version has to go on with a ledger that is not upgraded yet."""


class Waiting(NamedTuple):
    """Of a write that is not in the owner yet: what a reader is told. ``payload`` is a JSON text."""

    operation: str
    key: str
    payload: str


def enqueue(
    tx: Transaction,
    cohort: str,
    entity: bytes,
    operation: str,
    key: str,
    digest: str,
    payload: str,
    optimistic: bool,
    epoch: int,
) -> Queued | Route:
    """Queue a write, once per key: the ``digest`` says whether it is the same one. Returns the route instead when its
    stage takes none, or it is before ``epoch``.
    """
    route = route_of(tx, cohort, lock=True)  # the stage stays what it is until this is committed
    if known := find(tx, operation, entity, key):
        return known
    if route.stage not in QUEUEING or route.epoch < epoch:
        return route
    mine: dict[str, Any] = {
        "cohort": cohort,
        "entity": entity,
        "operation": operation,
        "digest": digest,
        "payload": payload,
        "state": "pending",
        "result": None,
        "reason": None,
        "attempts": 0,
        "optimistic": "due" if optimistic else None,
        "at": tx.now,
    }
    values = {"migration": tx.migration, "idempotency_key": key, **mine}
    made = tx.connection.execute(insert(tables.queue).values(values))
    assert made.inserted_primary_key is not None
    return Queued(id=made.inserted_primary_key[0], key=key, **mine)


def find(tx: Transaction, operation: str, entity: bytes, key: str) -> Queued | None:
    columns = tables.queue.c
    query = select(*_QUEUED).where(
        columns.migration == tx.migration,
        columns.operation == operation,
        columns.entity == entity,
        columns.idempotency_key == key,
    )
    row = tx.connection.execute(query).first()
    return None if row is None else _queued(row)


_STANDING = (
    select(
        tables.route.c.stage,
        tables.route.c.owner,
        tables.route.c.epoch,
        tables.queue.c.operation,
        tables.queue.c.idempotency_key,
        tables.queue.c.payload,
    )
    .outerjoin_from(
        tables.route,
        tables.queue,
        (tables.queue.c.migration == tables.route.c.migration)
        & (tables.queue.c.entity == bindparam("whose"))
        & tables.queue.c.state.in_(WAITING),
    )
    .where(tables.route.c.migration == bindparam("mine"), tables.route.c.cohort == bindparam("where"))
    .order_by(tables.queue.c.id)
)
"""Put together once: customers wait for it."""


def standing(tx: Transaction, cohort: str, entity: bytes) -> tuple[Route, list[Waiting]]:
    """A cohort's route, and an entity's writes that are not in the owner yet, oldest first; of the same moment."""
    rows = tx.connection.execute(_STANDING, {"mine": tx.migration, "where": cohort, "whose": entity}).all()
    if not rows:
        return route_of(tx, cohort), []
    (stage, owner, epoch, *_), *_ = rows
    return Route(stage=stage, owner=owner, epoch=epoch), [Waiting(*row[3:]) for row in rows if row[3] is not None]


def waiting(tx: Transaction, limit: int) -> list[Queued]:
    """Of all cohorts, oldest first."""
    columns = tables.queue.c
    query = select(*_QUEUED).where(columns.migration == tx.migration, columns.state.in_(WAITING))
    return [_queued(row) for row in tx.connection.execute(query.order_by(columns.id).limit(limit))]


def oldest(tx: Transaction, cohort: str, limit: int, after: int) -> list[Queued]:
    """The oldest writes to replay, or to refuse, of entities that have none parked or at rest.

    After a number, of entities that have none waiting up to it: in order, whosever rest has ended meanwhile.
    """
    columns = tables.queue.c
    mine = (columns.migration == tx.migration, columns.cohort == cohort)
    # Later than the longest rest would be by a clock that was wrong.
    rests = and_(columns.due_at > tx.now, columns.due_at <= tx.now + timedelta(seconds=LONGEST_REST))
    held = or_(columns.state == "parked", and_(columns.state.in_(TRIED), or_(rests, columns.id <= after)))
    others = columns.entity.not_in(select(columns.entity).where(*mine, held))
    query = select(*_QUEUED).where(*mine, columns.state.in_(TRIED), columns.id > after, others)
    return [_queued(row) for row in tx.connection.execute(query.order_by(columns.id).limit(limit))]


def count_waiting(tx: Transaction, cohort: str) -> int:
    columns = tables.queue.c
    query = select(func.count()).where(
        columns.migration == tx.migration, columns.cohort == cohort, columns.state.in_(WAITING)
    )
    return tx.connection.scalar(query) or 0


def count(tx: Transaction, cohort: str | None, since: datetime | None) -> dict[str, int]:
    """Writes per state, of one cohort or of all, that were queued since then or ever."""
    columns = tables.queue.c
    query = select(columns.state, func.count()).where(columns.migration == tx.migration).group_by(columns.state)
    if cohort is not None:
        query = query.where(columns.cohort == cohort)
    if since is not None:
        query = query.where(columns.at >= since)
    return {row.state: row[1] for row in tx.connection.execute(query)}


def longest_wait(tx: Transaction, cohort: str, since: datetime) -> float | None:
    """Seconds from queued to finished, of the write that waited longest among those queued since."""
    columns = tables.queue.c
    of_cohort = (columns.migration == tx.migration, columns.cohort == cohort, columns.at >= since)
    query = select(columns.at, columns.finished_at).where(*of_cohort, columns.finished_at.is_not(None))
    waits = [(row.finished_at - row.at).total_seconds() for row in tx.connection.execute(query)]
    return max(waits, default=None)


def finish(tx: Transaction, results: Mapping[Queued, str | None]) -> None:
    """Of writes that are waiting. One that is finished stays as it is."""
    columns = tables.queue.c
    mine = (columns.id == bindparam("number"), *(columns[name] == bindparam(f"its_{name}") for name in SAME))
    waits = (columns.migration == tx.migration, columns.finished_at.is_(None))
    done: dict[str, Any] = {"state": "done", "result": bindparam("returned"), "reason": None, "finished_at": tx.now}
    some = [
        {"number": queued.id, "returned": result, **{f"its_{name}": value for name, value in _same(queued).items()}}
        for queued, result in results.items()
    ]
    tx.connection.execute(update(tables.queue).where(*mine, *waits).values(done), some)


def refuse(tx: Transaction, queued: Queued, reason: str) -> None:
    """A write that is waiting. One that is finished stays as it is."""
    done = {"state": "refused", "result": None, "reason": _storable(reason), "finished_at": tx.now}
    _update(tx, queued, WAITING, **done)


def note_failure(tx: Transaction, queued: Queued, reason: str, most: int) -> State:
    """Count a failed attempt: the write rests for ever longer. After ``most`` of them it is parked, if it is wanted."""
    columns = tables.queue.c
    _update(tx, queued, ("pending",), reason=_storable(reason))  # that of an unwanted one is why it is so
    _update(tx, queued, TRIED, attempts=columns.attempts + 1)
    query = select(columns.attempts).where(columns.migration == tx.migration, columns.id == queued.id)
    attempts = tx.connection.scalar(query) or 0
    if attempts >= most and _update(tx, queued, ("pending",), state="parked"):
        return "parked"
    rest(tx, queued, min(REST * 2 ** min(attempts - 1, 10), LONGEST_REST))
    return "pending"


def rest(tx: Transaction, queued: Queued, seconds: float) -> None:
    """Leave the write alone for a while, and with it what its entity has in the queue."""
    _update(tx, queued, TRIED, due_at=tx.now + timedelta(seconds=seconds))


def note_optimistic(tx: Transaction, queued: Queued, state: Optimistic) -> None:
    _update(tx, queued, (*WAITING, "done", "refused"), optimistic=state)


def give_up(tx: Transaction, number: int, reason: str) -> None:
    """The replayer refuses it next, unless it took effect before. Raises StaleError when it does not wait."""
    if not _update(tx, number, ("pending", "parked"), state="unwanted", reason=reason, due_at=None):
        raise StaleError(f"write no. {number} does not wait in the queue any more")


def release(tx: Transaction, number: int) -> None:
    """Let a parked write be tried again. Raises StaleError when it is not parked."""
    if not _update(tx, number, ("parked",), state="pending", attempts=0, due_at=None):
        raise StaleError(f"write no. {number} of the queue is not parked")


def _update(tx: Transaction, which: int | Queued, states: tuple[str, ...], **values: Any) -> int:
    """Of a number that somebody names now, or of a write that was read some time ago."""
    columns = tables.queue.c
    number, same = (which, {}) if isinstance(which, int) else (which.id, _same(which))
    mine = (columns.migration == tx.migration, columns.id == number, *(columns[k] == v for k, v in same.items()))
    return tx.connection.execute(update(tables.queue).where(*mine, columns.state.in_(states)).values(values)).rowcount


def _same(queued: Queued) -> dict[str, Any]:
    return dict(zip(SAME, (queued.operation, queued.entity, queued.key), strict=True))


def _storable(reason: str) -> str:
    """What an application's error says may be text that a database does not take, and must not keep it from parking."""
    return reason.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _queued(row: Row[Any]) -> Queued:
    return Queued(
        id=row.id,
        cohort=row.cohort,
        entity=row.entity,
        operation=row.operation,
        key=row.idempotency_key,
        digest=row.digest,
        payload=row.payload,
        state=row.state,
        result=row.result,
        reason=row.reason,
        attempts=row.attempts,
        optimistic=row.optimistic,
        at=row.at,
    )
