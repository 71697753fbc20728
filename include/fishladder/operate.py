"""What an operator can do to a migration under way: load a table again, doubt keys, rewrite entities (design §6)."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

from fishladder.apply import Ends
from fishladder.cells import HOMELESS, key_cells, key_text, misfit
from fishladder.clock import Clock
from fishladder.errors import FatalError, FenceError, InputError, StaleError
from fishladder.fence import set_fence
from fishladder.ledger import DirtyKey, Ledger, Route
from fishladder.pace import Pace
from fishladder.plan import SIDES, Plan, PlanTable, Side
from fishladder.reconcile import mark_entities
from fishladder.restored import heard_by, was_restored
from fishladder.spec import nearest
from fishladder.stores.base import Fence, Fenced, LoadState, Relation, Store
from fishladder.witness import forgotten

Action = Literal[
    "pause", "resume", "throttle", "restart tables", "retry rejects", "rewrite entities", "mark keys dirty"
]
ACTIONS: tuple[Action, ...] = get_args(Action)

HIGHEST_LIMIT = 1_000_000_000
"""More than anything can be throttled to; every ledger can hold it."""
CLEAN_ROWS = 2_000
"""Rows that a restart deletes in one transaction."""
MARKED = 1_000
"""Keys that are looked up and marked at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a person asks for. Each action looks at its own words only; others that are given are an error.

    ``rows_per_second``, ``running_threads``, ``replica_lag`` (seconds): throttle; None leaves a limit, 0 lifts it.
    ``tables``: restart tables, and retry rejects (none: all). ``error``: retry those whose error has this in it.
    ``entities``: the root's keys. ``keys``: CSV lines, a table and the cells of a key in each.
    """

    action: Action
    rows_per_second: int | None = None
    running_threads: int | None = None
    replica_lag: int | None = None
    tables: tuple[str, ...] = ()
    error: str = ""
    entities: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.action not in _WORDS:
            raise InputError(f"{self.action!r} is no action; there are {', '.join(ACTIONS)}")
        given = {f.name for f in fields(self) if getattr(self, f.name) not in (None, (), "")} - {"action"}
        takes, needs_one = _WORDS[self.action]
        if odd := sorted(given - takes):
            raise InputError(f"{self.action} takes no {', '.join(odd)}: leave that empty, or choose another action")
        if needs_one and not given:
            raise InputError(f"{self.action} needs {' or '.join(sorted(takes))}")
        for word in ("rows_per_second", "running_threads", "replica_lag"):
            limit = getattr(self, word)
            if limit is not None and not 0 <= limit <= HIGHEST_LIMIT:
                raise InputError(f"{word} must be 0, which lifts the limit, to {HIGHEST_LIMIT}; not {limit}")


_WORDS: dict[str, tuple[frozenset[str], bool]] = {
    "pause": (frozenset(), False),
    "resume": (frozenset(), False),
    "throttle": (frozenset({"rows_per_second", "running_threads", "replica_lag"}), True),
    "restart tables": (frozenset({"tables"}), True),
    "retry rejects": (frozenset({"tables", "error"}), False),
    "rewrite entities": (frozenset({"entities"}), True),
    "mark keys dirty": (frozenset({"keys"}), True),
}
"""The words that each action looks at, and whether it needs one of them."""


def restart(plan: Plan, names: Collection[str], target: Store, ledger: Ledger, pace: Pace, *, actor: str) -> None:
    """Delete what was loaded of these tables, so that they can be cut and loaded again. Safe to repeat or to resume.

    Their dirty keys stay: they are applied when the load is over again. Raises InputError when a table that refers to
    one of them by a foreign key is not among them, when one is fishladder's own, or when a cohort has begun to flip;
    FenceError when the target is not open to copiers.
    """
    tables = [table for table in plan.tables if table.name in names]
    _check_names(plan, names, tables)
    load_again(tables, target, ledger, pace, actor=actor)


def load_again(tables: Sequence[PlanTable], target: Store, ledger: Ledger, pace: Pace, *, actor: str) -> None:
    """``restart`` of tables that stand in foreign-key order, whatever refers to them."""
    for table in tables:
        _reopen(table, target, ledger, actor)
    for table in reversed(tables):  # children first
        _clean(table, target, ledger, pace)


def _check_names(plan: Plan, names: Collection[str], tables: Sequence[PlanTable]) -> None:
    for name in names:
        if plan.table(name).internal:
            raise InputError(f"{name} is fishladder's own and cannot be restarted")
    restarted = {table.target.name for table in tables}

    def refers(child: PlanTable) -> bool:
        return child.target.name not in restarted and any(fk.parent in restarted for fk in child.target.foreign_keys)

    missing = []
    while child := next(filter(refers, plan.tables), None):
        restarted.add(child.target.name)
        missing.append(child.name)
    if missing:
        asked = [table.name for table in tables]
        raise InputError(
            f"{', '.join(missing)} refers to {', '.join(asked)} by foreign keys, directly or not: restart"
            f" {', '.join([*asked, *missing])} together"
        )


def _reopen(table: PlanTable, target: Store, ledger: Ledger, actor: str) -> None:
    """The target first: from here on neither lanes of the old generation nor the applier write the table."""
    state = ledger.table_state(table.name)
    if state.phase == "new":
        raise InputError(f"{table.name} was never loaded: there is nothing to restart")
    generation = state.generation - (state.phase == "cleaning")
    cleaning = LoadState(generation=generation + 1, open=True, cleaning=True)
    ledger.check_restart(table.name, generation)
    with target.begin() as copy:
        found = copy.lock_load(table.name, exclusive=True)
        if found is not None and found.generation > generation + 1:
            raise StaleError(f"{table.name}: another restart came first, and is not over; nothing was done")
        if found is None or found.generation < generation:
            raise FatalError(f"{table.name}: the target's load row is not of generation {generation}; run prepare")
        if found.generation == generation:
            copy.write_load(table.name, cleaning)
        copy.commit()
    ledger.restart_table(table.name, generation, actor=actor)


def _clean(table: PlanTable, target: Store, ledger: Ledger, pace: Pace) -> None:
    generation = ledger.table_state(table.name).generation
    cleaning = LoadState(generation=generation, open=True, cleaning=True)
    last: list[bytes] = []
    while True:
        pace.resumed()
        with target.begin() as copy:
            # Shared: whoever ends the cleaning waits for this batch; whoever comes later finds it ended.
            if copy.lock_load(table.name) != cleaning:
                break
            closed = [cohort for cohort, fence in copy.lock_fences(None).items() if fence.writer != "copier"]
            if closed:
                raise FenceError(
                    f"{table.name}: the target is not open to copiers for {', '.join(sorted(closed))}, so nothing is"
                    " deleted there; when it is again, repeat the restart"
                )
            keys = copy.first_keys(table.target, CLEAN_ROWS)
            if keys and keys == last:
                raise FatalError(f"{table.name}: rows that cannot be found by their keys; empty the target's table")
            copy.delete(table.target, keys)
            copy.commit()
        last = keys
        if not keys:
            _finish(table, target, cleaning)
            break
        pace.wait(len(keys))
    ledger.finish_cleaning(table.name, generation)


def _finish(table: PlanTable, target: Store, cleaning: LoadState) -> None:
    with target.begin() as copy:
        if copy.lock_load(table.name, exclusive=True) == cleaning:
            copy.write_load(table.name, LoadState(generation=cleaning.generation, open=True))
        copy.commit()


# A ledger restored from a backup --------------------------------------------------------------------------


def adopt(
    plan: Plan, source: Store, target: Store, ledger: Ledger, pace: Pace, clock: Clock, *, actor: str
) -> list[str]:
    """Bring a ledger and its stores together, of which one was restored. Returns the tables that must be loaded again.
    Repeatable.

    All clean passes are void: the next ones find what was forgotten. A table whose load had ended is followed as
    before; one that was loading, whose chunks the ledger cannot know any more, is restarted. A store is closed again
    whose fence has forgotten that a cohort has left it; none is opened. Raises InputError when neither side has
    forgotten anything that the other remembers, and FatalError when a store's fence is ahead of the ledger's route.
    """
    assert isinstance(source, Fenced) and isinstance(target, Fenced)
    anchors = {*source.anchors().values(), *target.anchors().values()}
    # A backup that is newer than the last word lacks at most the newest events: fences may remember those.
    orders = forgotten(ledger, {"source": source, "target": target})
    if not was_restored(target, ledger) and not ledger.unknown_anchors(anchors) and not orders:
        raise InputError(f"the ledger of {ledger.migration} knows what it told the target last: nothing to adopt")
    routes = ledger.routes()
    for side, store in zip(SIDES, (source, target), strict=True):
        fences = {cohort: fence for cohort, fence in store.fences().items() if cohort != HOMELESS}  # it has no route
        ahead = sorted(c for c, fence in fences.items() if c not in routes or _is_ahead(side, fence, routes[c]))
        if ahead:
            raise FatalError(
                f"the {side}'s fences of {', '.join(ahead)} are ahead of the ledger: they were flipped or installed"
                " after the backup was taken. Restore a later one"
            )
    for attempt in ledger.attempts(only_open=True):
        if attempt.step == "verify":  # what people said of it since the backup is lost: a no, too
            ledger.abort(attempt, "restored from a backup: ask again", actor=actor)
    ledger.void_checks([table.name for table in plan.tables], "the ledger was restored from a backup")
    states, again = target.load_states(), []
    for table in plan.tables:
        state = states.get(table.name)
        if state is None:
            continue  # added to the migration file later: prepare knows
        if state.open:
            ledger.adopt_table(table.name, state.generation, "loading")
            again.append(table)
        else:
            ledger.adopt_table(table.name, state.generation, "closed")
    load_again(again, target, ledger, pace, actor=actor)
    anchors = {*source.anchors().values(), *target.anchors().values()}
    told = ledger.finish_adoption(heard_by(target), anchors, actor)
    target.hear(told.number, told.word)
    end = ledger.audit_head()
    for side, cohort, writer, epoch in orders:  # at last: they are what is found again when this dies before its end
        store = source if side == "source" else target
        set_fence(store, clock, cohort, writer, epoch, head=f"{end.sequence} {end.digest}")
    return [table.name for table in again]


def _is_ahead(side: Side, fence: Fence, route: Route) -> bool:
    """Also where a ledger that was restored came to the epoch of the stores by an abort: the owner is another one."""
    other = ("copier",) if route.owner == side else ("application", "free")
    return fence.epoch > route.epoch or (fence.epoch == route.epoch and fence.writer in other)


# Doubts that a person has ------------------------------------------------------------------------------------


def rewrite_entities(plan: Plan, ends: Ends, ledger: Ledger, values: Iterable[str], *, actor: str) -> int:
    """Mark every row of these entities dirty; each is the root's key as canonical text. Returns how many keys.

    Raises InputError for a value that the root's key cannot have, and for an entity that neither store knows.
    """
    entities = []
    for value in values:
        _check_cells("an entity", plan.root.source, [value])
        entities.append(key_text([value.encode()]))
    for entity in entities:
        found = 0
        for store, relation in ((ends.origin, plan.root.source), (ends.destination, plan.root.target)):
            with store.read() as reader:
                found += len(reader.rows_by_key(relation, [entity])) + len(reader.homes([entity]))
        if not found:
            raise InputError(f"neither store knows the {plan.root.name} {key_cells(entity)[0].decode()}")
    return mark_entities(plan, ends, ledger, entities, actor=actor)


def mark_keys(plan: Plan, ends: Ends, ledger: Ledger, lines: Iterable[str], *, actor: str) -> tuple[int, int]:
    """Mark keys dirty that are listed as CSV: a table and the cells of a key in each line.

    Returns how many, and how many of them are in neither store. The whole list is checked first: raises InputError
    with every line that is wrong, and then nothing is marked.
    """
    keys, unknown = _listed(plan, lines), 0
    for table, listed in keys.items():
        found = plan.table(table)
        for start in range(0, len(listed), MARKED):
            some = listed[start : start + MARKED]
            owners, lost = _entities(found, ends, some)
            unknown += lost
            ledger.mark_dirty(
                [
                    DirtyKey(table=table, key=key, entity=entity, cohort=cohort, origin="operator")
                    for key, (entity, cohort) in zip(some, owners, strict=True)
                ],
                actor=actor,
            )
    return sum(map(len, keys.values())), unknown


def _entities(table: PlanTable, ends: Ends, keys: Sequence[bytes]) -> tuple[list[tuple[bytes | None, str]], int]:
    """Of each key, the entity and the cohort, as the owner has them, or else the other store; how many neither has."""
    known: dict[bytes, bytes | None] = {}
    for store, relation in ((ends.destination, table.target), (ends.origin, table.source)):
        with store.read() as reader:
            known |= {key: found.entity for key, found in reader.rows_by_key(relation, keys).items()}
    some = [entity for entity in known.values() if entity is not None]
    with ends.origin.read() as ours, ends.destination.read() as theirs:
        homes = theirs.homes(some) | ours.homes(some)  # who was born in the target is not known here yet
    entities = [known.get(key) for key in keys]
    return [(entity, table.cohort(entity, homes)) for entity in entities], len(set(keys) - known.keys())


def _listed(plan: Plan, lines: Iterable[str]) -> dict[str, list[bytes]]:
    names = [table.name for table in plan.tables]
    keys: dict[str, list[bytes]] = {}
    wrong = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            table, *cells = next(csv.reader([line], strict=True))
            if table not in names:
                raise InputError(f"{plan.migration} migrates no table {table}{nearest(table, names)}")
            _check_cells(table, plan.table(table).source, cells)
        except (InputError, csv.Error) as error:
            wrong.append(f"line {number}: {error}")
            continue
        keys.setdefault(table, []).append(key_text(cell.encode() for cell in cells))
    if wrong:
        raise InputError("nothing was marked:\n" + "\n".join(wrong[:20]))
    return keys


def _check_cells(what: str, relation: Relation, cells: Sequence[str]) -> None:
    if len(cells) != len(relation.key):
        raise InputError(f"{what} has the key {', '.join(relation.key_columns)}, and {len(cells)} cells are given")
    for cell, position in zip(cells, relation.key, strict=True):
        field = relation.fields[position]
        try:
            reason = misfit(cell.encode(), field.type)
        except UnicodeEncodeError:
            reason = "not Unicode text"
        if reason is not None:
            raise InputError(f"{what}.{field.column}: what is given is {reason}")


__all__ = ["ACTIONS", "Action", "Order", "adopt", "mark_keys", "restart", "rewrite_entities"]
