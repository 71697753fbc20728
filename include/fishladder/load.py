"""The bulk load: chunks, each exactly once, whatever dies in between (design §6)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from fishladder.cells import Cell, Row, misfit, row_key
from fishladder.coverage import install_triggers
from fishladder.errors import FatalError, FenceError, InputError, RowError, StaleError
from fishladder.ledger import Chunk, DirtyKey, Ledger, Reject
from fishladder.plan import Plan, PlanTable
from fishladder.restored import check_ledger, tell_target
from fishladder.stores.base import BulkLoader, Fenced, LoadedChunk, LoadState, Relation, Store, Transaction

STALE_CLAIM = timedelta(minutes=10)
"""After so long an unfinished claim may be claimed again. Only speed depends on it: tokens keep zombies out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A row that the destination refuses, with the reason in words that hold no value."""

    row: Row
    column: str | None
    error: str
    orphan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReport:
    """What one lane did: chunks and rows it loaded itself, rows it had to reject."""

    chunks: int
    rows: int
    rejects: int


def cut(plan: Plan, source: Store, ledger: Ledger, chunk_rows: int | None) -> None:
    """Cut every table into chunks, once per generation; the first and the last are open-ended."""
    for table in plan.tables:
        generation = ledger.start_table(table.name)
        if ledger.table_state(table.name).phase == "closed" or ledger.chunks(table.name):
            continue
        ends = source.chunk_ends(table.source, chunk_rows or source.chunk_rows)
        bounds = list(zip([None, *ends], [*ends, None], strict=True))
        ledger.cut(table.name, generation, bounds)


def load_lane(
    table: PlanTable,
    source: Store,
    target: Store,
    ledger: Ledger,
    *,
    lane: str,
    progress: Callable[[LaneReport], None] = lambda report: None,
    pace: Callable[[int], None] = lambda rows: None,
) -> LaneReport:
    """Claim and load chunks until none is left. Several lanes, and repeated ones, may run at once.

    ``pace``: called after each chunk with its rows; returns when the next may begin.
    """
    assert isinstance(target, Fenced)
    done = LaneReport(chunks=0, rows=0, rejects=0)
    generation = ledger.start_table(table.name)
    while not ledger.control().paused:
        check_ledger(target, ledger)
        chunk = ledger.claim(table.name, generation, lane, STALE_CLAIM)
        if chunk is None:
            break
        try:
            target.raise_token(table.name, chunk.no, chunk.generation, chunk.token)
            rows, rejects = load_chunk(table, source, target, ledger, chunk)
        except StaleError:
            if target.load_states().get(table.name) != LoadState(generation=generation, open=True):
                raise  # the load is over, or the table was restarted
            continue  # a later claim has this chunk
        done = LaneReport(chunks=done.chunks + 1, rows=done.rows + rows, rejects=done.rejects + rejects)
        tell_target(target, ledger)
        progress(done)
        pace(rows)
    return done


def load_chunk(table: PlanTable, source: Store, target: Store, ledger: Ledger, chunk: Chunk) -> tuple[int, int]:
    """Copy one chunk in one target transaction. Returns rows written and rows rejected.

    The chunk is done exactly when its rows are there. Raises StaleError, having written nothing, when a later
    claim, generation or the end of the load came first.
    """
    refusals: list[Refusal] = []
    with target.begin() as copy:
        state = copy.lock_load(table.name)
        if state != LoadState(generation=chunk.generation, open=True):
            raise StaleError(f"{table.name}: the load of generation {chunk.generation} is over; nothing was written")
        loaded = copy.take_chunk(table.name, chunk.no, chunk.generation, chunk.token)
        if loaded is None:
            for cohort, fence in copy.lock_fences(None).items():
                if fence.writer != "copier":
                    raise FenceError(
                        f"{table.name}: the target is not open to the copier for {cohort} ({fence.writer})"
                    )
            with source.read() as origin:
                written, refusals = insert_all_that_fit(
                    copy, table, lambda: origin.stream(table.source, chunk.lower, chunk.upper)
                )
            orphans = [refusal for refusal in refusals if refusal.orphan]
            refusals = [refusal for refusal in refusals if not refusal.orphan]
            if refusals:
                rejects = rejects_of(source, table.source, table, refusals)
                ledger.record_rejects(rejects, chunk=chunk.no, token=chunk.token)
            if orphans:  # their parents may yet come: the applier's, once the load is over
                ledger.mark_dirty(_waiting(rejects_of(source, table.source, table, orphans)))
            loaded = LoadedChunk(token=chunk.token, rows=written)
            copy.finish_chunk(table.name, chunk.no, loaded.rows)
            copy.commit()
    ledger.finish_chunk(table.name, chunk.no, chunk.token, loaded.rows, done_under=loaded.token)
    return loaded.rows, len(refusals)


def insert_all_that_fit(
    copy: Transaction, table: PlanTable, stream: Callable[[], Generator[list[Row], None, None]]
) -> tuple[int, list[Refusal]]:
    """Insert the rows of a stream, the fast way if they all fit; else halve what fails until each bad row is known.

    ``stream`` starts from the beginning each time. Returns how many rows were written, and those that were not.
    """
    if isinstance(copy, BulkLoader):
        refused: list[Refusal] = []
        try:
            with copy.savepoint(), closing(stream()) as batches:
                return copy.load(table.target, _fitting(table, batches, refused)), refused
        except RowError:
            refused.clear()  # once more, row by row where need be
    written, refused = 0, []
    with closing(stream()) as batches:
        for batch in _fitting(table, batches, refused):
            wrong = bisect(table.target, batch, lambda some: _attempt(copy, lambda: copy.insert(table.target, some)))
            written += len(batch) - len(wrong)
            refused += wrong
    return written, refused


def _fitting(table: PlanTable, batches: Iterable[Sequence[Row]], refused: list[Refusal]) -> Iterator[list[Row]]:
    for batch in batches:
        fitting, wrong = fitting_rows(table.source, table.target, batch)
        refused += wrong
        if fitting:
            yield fitting


def fitting_rows(owner: Relation, copy: Relation, rows: Sequence[Row]) -> tuple[list[Row], list[Refusal]]:
    """Part the rows that the fields can hold exactly from those that they cannot: servers round in silence."""
    wrong: dict[int, dict[Cell, str]] = {}
    for position, field in enumerate(owner.fields):
        if field.checked:
            cells = {row[position] for row in rows}
            reasons = {cell: reason for cell in cells if (reason := misfit(cell, field.type)) is not None}
            if reasons:
                wrong[position] = reasons
    if not wrong:
        return list(rows), []
    fitting, refused = [], []
    for row in rows:
        found = ((at, reasons[row[at]]) for at, reasons in wrong.items() if row[at] in reasons)
        at, reason = next(found, (None, ""))
        if at is None:
            fitting.append(row)
        else:
            refused.append(Refusal(row=row, column=copy.fields[at].column, error=f"the value is {reason}"))
    return fitting, refused


def bisect(relation: Relation, rows: Sequence[Row], write: Callable[[Sequence[Row]], None]) -> list[Refusal]:
    """Write the rows, halving whatever raises RowError; returns the rows that fail alone."""
    if not rows:
        return []
    try:
        write(rows)
        return []
    except RowError as error:
        if len(rows) == 1:
            return [Refusal(row=rows[0], column=error.column, error=str(error), orphan=error.orphan)]
    middle = len(rows) // 2
    return bisect(relation, rows[:middle], write) + bisect(relation, rows[middle:], write)


def _attempt(copy: Transaction, write: Callable[[], None]) -> None:
    with copy.savepoint():
        write()


def rejects_of(origin: Store, owner: Relation, table: PlanTable, refusals: Sequence[Refusal]) -> list[Reject]:
    """Refused rows as the ledger keeps them: by key, with the cohort that has to wait for them."""
    if not refusals:
        return []
    reasons = {row_key(refusal.row, owner.key): refusal for refusal in refusals}
    with origin.read() as reader:
        found = reader.rows_by_key(owner, list(reasons))
        homes = reader.homes(row.entity for row in found.values() if row.entity is not None)
    entities = {key: found[key].entity if key in found else None for key in reasons}
    return [
        Reject(
            table=table.name,
            key=key,
            entity=entities[key],
            cohort=table.cohort(entities[key], homes),
            column=refusal.column,
            error=refusal.error,
        )
        for key, refusal in reasons.items()
    ]


def _waiting(orphans: Iterable[Reject]) -> list[DirtyKey]:
    return [
        DirtyKey(table=row.table, key=row.key, entity=row.entity, cohort=row.cohort, origin="orphan") for row in orphans
    ]


def close_load(plan: Plan, table: PlanTable, target: Store, ledger: Ledger) -> None:
    """All chunks done: install the target's triggers, then let the applier have the table. Repeatable.

    Raises InputError while chunks are unfinished.
    """
    assert isinstance(target, Fenced)
    generation = ledger.start_table(table.name)
    if ledger.table_state(table.name).phase == "closed":
        if target.load_states().get(table.name) != LoadState(generation=generation, open=False):
            raise FatalError(f"{table.name}: a restart of the table is under way, or was cut short: repeat it")
        return
    unfinished = ledger.unfinished(table.name, generation)
    if unfinished:
        raise InputError(
            f"{table.name}: {unfinished} chunks are not loaded yet; let its lanes finish, then run this again"
        )
    # Before the applier may have the table: if it plans with another one, it is to see that first.
    triggers = [found for found in plan.triggers("target") if found.relation.table == table.name]
    install_triggers(triggers, [table.target], target, "target", ledger)
    with target.begin() as copy:
        state = copy.lock_load(table.name, exclusive=True)
        if state is not None and state.generation > generation:
            raise StaleError(f"{table.name}: it was restarted meanwhile; load it again")
        if state is None or state.generation != generation:
            raise FatalError(f"{table.name}: the target's load row is not of generation {generation}; run prepare")
        if state.open:
            copy.write_load(table.name, LoadState(generation=generation, open=False))
        copy.commit()
    ledger.close_table(table.name, generation)


__all__ = ["LaneReport", "Refusal", "bisect", "close_load", "cut", "load_chunk", "load_lane"]
