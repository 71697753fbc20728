"""The audit: events in a hash chain per migration, committed with the change that they describe.

An event's digest is SHA-256 over all its columns, the previous event's digest among them. The head row says which
event is the last; it is locked until the transaction ends, so events of one migration are numbered without a gap.
Whoever can rewrite every event *and* the head goes unnoticed here: that is why every order to a fence leaves the head
in the store's fence row, which the ledger's own database has no hand in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Row, func, insert, select, union, update

from fishladder.errors import FatalError, InputError, LedgerError
from fishladder.ledger import tables
from fishladder.ledger.database import Transaction, transaction, upsert

MACHINE = "fishladder"
"""The actor of what nobody in particular asked for."""
ADOPTED = "restored ledger adopted"
FINISHED = "finished"
_FIRST = "0" * 64
_COLUMNS = ("migration", "sequence", "at", "actor", "event", "body", "previous")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last event's number and digest; number 0: there is none."""

    sequence: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the audit. ``body``: counts, names, digests; never row values or keys."""

    sequence: int
    at: datetime
    actor: str
    event: str
    body: dict[str, Any]
    previous: str
    digest: str


def canonical(data: Any) -> str:
    """One JSON text per value: keys sorted, no blanks, ASCII. Raises TypeError and ValueError for what JSON lacks."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(fields: Mapping[str, Any]) -> str:
    # default: SQLite lets anyone put bytes into a text column, and `verify` must survive it
    text = json.dumps({name: fields[name] for name in _COLUMNS}, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def head(tx: Transaction, *, lock: bool = False) -> Head:
    """Where the chain ends; ``lock``: no other transaction adds to it before this one ends."""
    columns = tables.audit_head.c
    query = select(columns.sequence, columns.digest).where(columns.migration == tx.migration)
    row = tx.connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None and lock:
        first = {"migration": tx.migration, "sequence": 0, "digest": _FIRST}
        upsert(tx.connection, tables.audit_head, [first])
        row = tx.connection.execute(query.with_for_update()).one()
    return Head(sequence=row.sequence, digest=row.digest) if row else Head(sequence=0, digest=_FIRST)


def append(tx: Transaction, actor: str, event: str, body: Mapping[str, Any]) -> None:
    """Add an event to the chain, in the transaction of what it describes."""
    last = head(tx, lock=True)
    fields = {
        "migration": tx.migration,
        "sequence": last.sequence + 1,
        "at": tx.now.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": actor,
        "event": event,
        "body": canonical(body),
        "previous": last.digest,
    }
    digest = _digest(fields)
    tx.connection.execute(insert(tables.audit).values(**fields, digest=digest))
    columns = tables.audit_head.c
    tx.connection.execute(
        update(tables.audit_head)
        .where(columns.migration == tx.migration)
        .values(sequence=fields["sequence"], digest=digest)
    )


def unknown(tx: Transaction, anchors: Collection[str]) -> set[str]:
    """Of these ends of the chain ("57 3fa…"), those that it does not have and that no adoption has forgiven."""
    if not anchors:
        return set()
    columns = tables.audit.c
    adopted = select(columns.body).where(columns.migration == tx.migration, columns.event == ADOPTED)
    forgiven = {anchor for body in tx.connection.scalars(adopted) for anchor in json.loads(body).get("anchors", ())}
    left = set(anchors) - forgiven
    digests = [anchor.partition(" ")[2] for anchor in left]
    query = select(columns.sequence, columns.digest).where(
        columns.migration == tx.migration, columns.digest.in_(digests)
    )
    return left - {f"{row.sequence} {row.digest}" for row in tx.connection.execute(query)}


def events(tx: Transaction, limit: int) -> list[Event]:
    columns = tables.audit.c
    query = select(tables.audit).where(columns.migration == tx.migration).order_by(columns.sequence.desc()).limit(limit)
    return [_event(row) for row in tx.connection.execute(query)]


def happened(tx: Transaction, event: str) -> bool:
    columns = tables.audit.c
    query = select(columns.sequence).where(columns.migration == tx.migration, columns.event == event).limit(1)
    return tx.connection.scalar(query) is not None


def named(tx: Transaction, event: str, attempt: int) -> list[Event]:
    """All events of that name about an attempt, the newest first."""
    columns = tables.audit.c
    query = select(tables.audit).where(columns.migration == tx.migration, columns.event == event)
    found = (_event(row) for row in tx.connection.execute(query.order_by(columns.sequence.desc())))
    return [one for one in found if one.body["attempt"] == attempt]


def first(tx: Transaction, event: str, attempt: int) -> int | None:
    """The number of the first event of that name about an attempt, from text that nobody has verified yet."""
    columns = tables.audit.c
    query = select(func.min(columns.sequence)).where(
        columns.migration == tx.migration,
        columns.event == event,
        columns.body.contains(f'"attempt":{attempt},', autoescape=True),
    )
    return tx.connection.scalar(query)


def _event(row: Row[Any]) -> Event:
    return Event(
        sequence=row.sequence,
        at=datetime.fromisoformat(row.at),
        actor=row.actor,
        event=row.event,
        body=json.loads(row.body),
        previous=row.previous,
        digest=row.digest,
    )


def verify(engine: Engine, migration: str | None = None, *, since: int = 1) -> list[str]:
    """What is wrong with the chain of one migration, or of all: one sentence per problem, none when it is intact.

    Finds changed, missing, added and exchanged events and a cut tail. ``since``: the first event that is looked at;
    what is before it somebody has verified already. Raises TransientError, LedgerError, and
    InputError for a migration of which the ledger knows nothing.
    """
    audit, heads = tables.audit, tables.audit_head
    try:
        with transaction(engine, writing=False, snapshot=True) as connection:
            # The spec's table too: it notices a chain that was removed as a whole.
            asked = [select(source.c.migration) for source in (audit, heads, tables.spec)]
            if migration is not None:
                asked = [query.where(query.selected_columns[0] == migration) for query in asked]
            names = list(connection.scalars(union(*asked)))
            if migration is not None and not names:
                raise InputError(f"the ledger knows no migration {migration}; leave it out to check all that there are")
            problems: list[str] = []
            for name in sorted(names, key=str):
                end = connection.execute(select(heads).where(heads.c.migration == name)).one_or_none()
                query = select(audit).where(audit.c.migration == name).order_by(audit.c.sequence)
                if since > 1:
                    query = query.where(audit.c.sequence >= since)
                problems += [f"{name}: {problem}" for problem in _problems(connection.execute(query), end, since)]
            return problems
    except LedgerError:
        raise
    except FatalError as error:
        # Text that is no UTF-8, for instance: a reader that fails must not pass for an intact chain.
        return [f"the audit cannot be read: {error}"]


def _problems(rows: Iterable[Row[Any]], end: Row[Any] | None, since: int) -> list[str]:
    problems = []
    expected, previous = since, _FIRST
    for row in rows:
        if row.sequence == since > 1:
            previous = row.previous
        if row.sequence != expected:
            problems.append(f"event {expected} is missing before event {row.sequence}")
        if row.digest != _digest(row._asdict()):
            problems.append(f"event {row.sequence} is not what was written")
        if row.previous != previous:
            problems.append(f"event {row.sequence} does not follow the event before it")
        if not isinstance(row.sequence, int):
            return [*problems, f"event {row.sequence!r} has no number: what follows it was not looked at"]
        expected, previous = row.sequence + 1, row.digest
    if end is None:
        problems.append("the audit has no head")
    elif (end.sequence, end.digest) != (expected - 1, previous):
        problems.append(f"the audit ends at event {expected - 1}, its head says {end.sequence} or another event")
    return problems
