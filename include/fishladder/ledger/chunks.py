"""Tables under load and their chunks: who loads which, and what is done.

A generation is one loading of a table from the beginning. A chunk's token says whose it is: every claim raises it,
and in a table it never repeats, not even in another generation. Whoever holds an older one has lost the chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import Row, and_, case, func, insert, select, update

from fishladder.errors import InputError, LedgerError, StaleError
from fishladder.ledger import attempts, audit, rejects, routes, tables
from fishladder.ledger.database import Transaction, upsert

Phase: TypeAlias = Literal["new", "cleaning", "loading", "closed"]
Bounds: TypeAlias = tuple[bytes | None, bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """``new``: never started (generation 0); ``loading``: lanes may load it; ``closed``: only the applier writes it.

    ``cleaning``: restarted, and the target's rows are being deleted.
    """

    generation: int
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A claimed chunk: keys above ``lower``, up to and with ``upper``; None is open-ended."""

    no: int
    lower: bytes | None
    upper: bytes | None
    token: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkState:
    """A chunk as operators see it. ``rows``: loaded, 0 until it is done."""

    no: int
    lower: bytes | None
    upper: bytes | None
    token: int
    generation: int
    state: Literal["pending", "claimed", "done"]
    lane: str | None
    claimed_at: datetime | None
    finished_at: datetime | None
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of the current generation: chunks in all and done, the rows of those done, and open rejects."""

    chunks: int
    done: int
    rows: int
    rejects: int


def _table(tx: Transaction, table: str, *, lock: bool = False) -> TableState:
    columns = tables.table.c
    query = select(columns.generation, columns.phase).where(columns.migration == tx.migration, columns.table == table)
    row = tx.connection.execute(query.with_for_update() if lock else query).one_or_none()
    return TableState(generation=row.generation, phase=row.phase) if row else TableState(generation=0, phase="new")


def _locked(tx: Transaction, table: str, generation: int) -> TableState:
    """The table's state, held until the end. Raises StaleError if it is in another generation."""
    state = _table(tx, table, lock=True)
    if state.generation != generation:
        raise StaleError(
            f"{tx.migration}.{table} is in generation {state.generation}, not {generation}: "
            "it was restarted, or never started"
        )
    return state


def state(tx: Transaction, table: str) -> TableState:
    return _table(tx, table)


def start(tx: Transaction, table: str) -> int:
    audit.head(tx, lock=True)  # two who start it at once take turns
    state = _table(tx, table)
    if state.phase != "new":
        return state.generation
    values = {"migration": tx.migration, "table": table, "generation": 1, "phase": "loading", "at": tx.now}
    upsert(tx.connection, tables.table, [values])
    audit.append(tx, audit.MACHINE, "table started", {"table": table, "generation": 1})
    return 1


def restart(tx: Transaction, table: str, generation: int, actor: str) -> bool:
    """Whether it was not done yet."""
    _table(tx, table, lock=True)
    if not check_restart(tx, table, generation):
        return False
    _set(tx, table, generation=generation + 1, phase="cleaning")
    audit.append(tx, actor, "table restarted", {"table": table, "generation": generation + 1})
    return True


def check_restart(tx: Transaction, table: str, generation: int) -> bool:
    """Whether there is something to do. Raises StaleError, and InputError when a cohort has begun to flip."""
    state = _table(tx, table)
    if state == TableState(generation=generation + 1, phase="cleaning"):
        return False
    if state.generation != generation:
        raise StaleError(f"{tx.migration}.{table} is in generation {state.generation}: another restart came first")
    moved = sorted(cohort for cohort, route in routes.read(tx).items() if route.stage != "off")
    if moved:
        raise InputError(
            f"{table} cannot be restarted: {', '.join(moved)} left the stage off, so the target's rows may be in use;"
            " mark keys dirty or rewrite entities instead, or roll back first"
        )
    asked = sorted(attempt.cohort for attempt in attempts.every(tx, only_open=True, limit=1))
    if asked:
        raise InputError(f"{table} cannot be restarted: {asked[0]} is about to move; wait for its end, or abort it")
    return True


def finish_cleaning(tx: Transaction, table: str, generation: int) -> None:
    if _locked(tx, table, generation).phase == "cleaning":
        _set(tx, table, phase="loading")


def adopt(tx: Transaction, table: str, generation: int, phase: Phase) -> None:
    values = {"generation": generation, "phase": phase, "at": tx.now}
    upsert(tx.connection, tables.table, [{"migration": tx.migration, "table": table, **values}], replace=values)
    # Generations that the target has forgotten come once more, with the same numbers: nothing of theirs is done. Tokens
    # stay, so that their zombies hold none that is valid again.
    columns = tables.chunk.c
    forgotten = (columns.migration == tx.migration, columns.table == table, columns.generation > generation)
    undone = {"state": "pending", "lane": None, "rows": 0, "claimed_at": None, "finished_at": None}
    tx.connection.execute(update(tables.chunk).where(*forgotten).values(undone))


def _set(tx: Transaction, table: str, **values: object) -> None:
    columns = tables.table.c
    mine = (columns.migration == tx.migration, columns.table == table)
    tx.connection.execute(update(tables.table).where(*mine).values(at=tx.now, **values))


def close(tx: Transaction, table: str, generation: int) -> None:
    if _locked(tx, table, generation).phase == "closed":
        return
    if left := unfinished(tx, table, generation):
        raise LedgerError(f"{tx.migration}.{table} cannot be closed: {left} chunks are not done; load them first")
    _set(tx, table, phase="closed")
    audit.append(tx, audit.MACHINE, "table closed", {"table": table, "generation": generation})


def cut(tx: Transaction, table: str, generation: int, bounds: Sequence[Bounds]) -> None:
    # A gap between two chunks would be rows that nobody loads.
    uppers = [None, *(upper for _, upper in bounds)]
    if not bounds or uppers[-1] is not None or [lower for lower, _ in bounds] != uppers[:-1] or None in uppers[1:-1]:
        raise ValueError("chunks must follow each other without a gap, the first and the last open-ended")
    if _locked(tx, table, generation).phase == "cleaning":
        raise InputError(f"{table} is being restarted: its old rows are not all deleted; run the restart again")
    columns = tables.chunk.c
    mine = (columns.migration == tx.migration, columns.table == table)
    if tx.connection.scalar(select(func.count()).where(*mine, columns.generation == generation)):
        return
    # Tokens go on where the generation before ended, so that its zombies hold none that is valid again.
    token = tx.connection.scalar(select(func.max(columns.token)).where(*mine)) or 0
    values = {"migration": tx.migration, "table": table, "generation": generation, "token": token}
    tx.connection.execute(
        insert(tables.chunk),
        [
            {**values, "no": no, "lower": lower, "upper": upper, "state": "pending", "rows": 0}
            for no, (lower, upper) in enumerate(bounds, start=1)
        ],
    )


def claim(tx: Transaction, table: str, generation: int, lane: str, stale: timedelta) -> Chunk | None:
    _locked(tx, table, generation)  # lanes take turns
    columns = tables.chunk.c
    this = (columns.migration == tx.migration, columns.table == table, columns.generation == generation)
    claimed = columns.state == "claimed"
    for eligible in (
        and_(claimed, columns.lane == lane),
        columns.state == "pending",
        and_(claimed, columns.claimed_at < tx.now - stale),
    ):
        query = select(tables.chunk).where(*this, eligible).order_by(columns.no).limit(1)
        row = tx.connection.execute(query).one_or_none()
        if row is not None:
            break
    else:
        return None
    token = row.token + 1
    tx.connection.execute(
        update(tables.chunk)
        .where(*this, columns.no == row.no)
        .values(state="claimed", lane=lane, token=token, claimed_at=tx.now)
    )
    return Chunk(no=row.no, lower=row.lower, upper=row.upper, token=token, generation=generation)


def finish(tx: Transaction, table: str, no: int, token: int, rows: int, done_under: int | None) -> bool:
    columns = tables.chunk.c
    # Locked, or a claim that has just seen the chunk unfinished would undo this.
    generation = _table(tx, table, lock=True).generation
    changed = tx.connection.execute(
        update(tables.chunk)
        .where(
            columns.migration == tx.migration,
            columns.table == table,
            columns.generation == generation,
            columns.no == no,
            columns.token == token,
            columns.state.in_(("claimed", "done")),
        )
        .values(state="done", finished_at=tx.now, rows=rows)
    )
    if changed.rowcount != 1:
        return False
    rejects.keep_only(tx, table, no, token if done_under is None else done_under)
    return True


def hold(tx: Transaction, table: str, no: int, token: int | None) -> None:
    """Lock a chunk that is mine. Raises StaleError if it is somebody else's by now."""
    columns = tables.chunk.c
    query = select(columns.token).where(
        columns.migration == tx.migration,
        columns.table == table,
        columns.generation == _table(tx, table).generation,
        columns.no == no,
    )
    if tx.connection.scalar(query.with_for_update()) != token:
        raise StaleError(f"{tx.migration}.{table}: chunk {no} was taken over (token {token} is no longer valid)")


def unfinished(tx: Transaction, table: str, generation: int) -> int:
    columns = tables.chunk.c
    # One query, so that it is one moment.
    chunks, done = tx.connection.execute(
        select(func.count(), func.coalesce(func.sum(case((columns.state == "done", 1), else_=0)), 0)).where(
            columns.migration == tx.migration, columns.table == table, columns.generation == generation
        )
    ).one()
    if not chunks:
        # 0 would read as "all done".
        raise LedgerError(f"{tx.migration}.{table} has no chunks in generation {generation}; cut it first")
    return int(chunks - done)


def progress(tx: Transaction, table: str | None) -> Progress:
    columns, of_table = tables.chunk.c, tables.table.c
    current = and_(
        of_table.migration == columns.migration,
        of_table.table == columns.table,
        of_table.generation == columns.generation,
    )
    query = (
        select(func.count(), func.sum(case((columns.state == "done", 1), else_=0)), func.sum(columns.rows))
        .select_from(tables.chunk.join(tables.table, current))
        .where(columns.migration == tx.migration)
    )
    if table is not None:
        query = query.where(columns.table == table)
    chunks, done, rows = tx.connection.execute(query).one()
    return Progress(chunks=chunks, done=int(done or 0), rows=int(rows or 0), rejects=rejects.count(tx, table=table))


def read(tx: Transaction, table: str) -> list[ChunkState]:
    columns = tables.chunk.c
    query = (
        select(tables.chunk)
        .where(
            columns.migration == tx.migration,
            columns.table == table,
            columns.generation == _table(tx, table).generation,
        )
        .order_by(columns.no)
    )
    return [_state(row) for row in tx.connection.execute(query)]


def _state(row: Row[tuple[object, ...]]) -> ChunkState:
    names = ChunkState.__dataclass_fields__
    return ChunkState(**{name: row._mapping[name] for name in names})
