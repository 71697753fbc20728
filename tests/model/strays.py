"""Strays (ADR 8): a child goes with its parent to another cohort, and what is pending of it stays under the one before.

An item belongs to cohort A or B, and its line to whatever the item belongs to. The application changes both in the
store that owns the cohorts; when the item goes to the other cohort there is an entry of it under each of the two, and
none of the line, whose row has not changed. Cohorts flip meanwhile, and back. A flip's full pass is left out: it was
before, and sees nothing of what the application does after it.

The code takes copies along whose parent is gone, too. Here nobody would miss that: an item is made again only in the
store in which it was deleted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from tests.model.checker import Rule
from tests.model.flip import NAMES, SOURCE, TARGET, put


class StrayRule(Rule):
    WHOSE_NOW = "a drain takes every entry of a row that is the cohort's by now, under whatever cohort it is journaled"
    WHOSE_COPY = "and every entry of a row whose copy is the cohort's still"
    WHOSE_NOWHERE = "and every entry of a row that is in neither store: it may come again as anybody's"
    UNTIL_COPIED = "an entry of a row that went by itself is not forgotten while its copy is the cohort's that it left"
    NEVER_MOOT = "an entry of a row that went with its parent is not forgotten while its new cohort is closed"


COHORTS = ("A", "B")
STORES = (SOURCE, TARGET)


@dataclass(frozen=True, slots=True)
class Rows:
    """``item``: the cohort that it belongs to; ``line``: the write that made it. None: there is none."""

    item: str | None = None
    line: int | None = None

    def cohort_of(self, key: str) -> str | None:
        """None also for a line whose item is not there."""
        return None if getattr(self, key) is None else self.item


@dataclass(frozen=True, slots=True)
class Cohort:
    """``fences``: the writers in source and target; ``step``: of the flip, None if there is none."""

    owner: int
    fences: tuple[str, str]
    flips: int
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """How often it may still happen."""

    moves: int
    lines: int
    deletes: int


@dataclass(frozen=True, slots=True)
class State:
    """``entries``: of each store's journal, (item or line, cohort); ``told``: what the application was told last.

    ``gone_in``: where the item was deleted, if it was: it is made again there or nowhere, for the ids of the two stores
    never meet.
    """

    left: Left
    cohorts: tuple[Cohort, Cohort]
    rows: tuple[Rows, Rows]
    told: Rows
    gone_in: int | None = None
    entries: tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]] = (frozenset(), frozenset())
    writes: int = 1

    def cohort(self, name: str) -> Cohort:
        return self.cohorts[COHORTS.index(name)]

    def open_to(self, writer: str, store: int, *names: str | None) -> bool:
        return all(name is None or self.cohort(name).fences[store] == writer for name in names)


class Strays:
    """``flips``: how often each cohort flips, there or back; the rest are ``Left``'s."""

    def __init__(
        self,
        without: frozenset[Rule] = frozenset(),
        *,
        flips: int = 1,
        moves: int = 2,
        lines: int = 1,
        deletes: int = 1,
    ) -> None:
        self.rules = frozenset(StrayRule) - without
        self.left = Left(moves, lines, deletes)
        self.cohorts = (Cohort(SOURCE, ("application", "copier"), flips),) * 2

    def starts(self) -> Iterator[tuple[str, State]]:
        for said, rows in (("an item of A with a line", Rows("A", 0)), ("an item of A without a line", Rows("A"))):
            yield f"{said}, and its copy", State(self.left, self.cohorts, (rows, rows), rows)

    # What must hold

    def wrong(self, state: State) -> str | None:
        owner = state.cohort(state.told.item).owner if state.told.item is not None else None
        if owner is not None and state.rows[owner] != state.told:
            return f"the {NAMES[owner]} owns the item, and lacks an acknowledged write"
        if not any(state.entries) and state.rows[SOURCE] != state.rows[TARGET]:
            return "the copies differ, and nothing says so"
        return None

    def settled(self, state: State) -> bool:
        return not any(state.entries) and not any(cohort.step for cohort in state.cohorts)

    def same_as(self, state: State) -> Hashable:
        return state

    # Who acts

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        for store in STORES:
            for did, after in self._application(state, store):
                yield f"application: {did} in the {NAMES[store]}", after
            for key, cohort in sorted(state.entries[store]):
                yield from self._applier(state, store, key, cohort)
        for name in COHORTS:
            yield from self._flip(state, name)

    def _application(self, state: State, store: int) -> Iterator[tuple[str, State]]:
        left, rows = state.left, state.rows[store]
        if rows.item is None:
            if left.moves and state.gone_in == store:
                for cohort in COHORTS:
                    if state.open_to("application", store, cohort):
                        less = replace(state, left=replace(left, moves=left.moves - 1))
                        made = replace(less, gone_in=None)
                        yield f"makes the item, of {cohort}", self._written(made, store, Rows(cohort), ("item", cohort))
            return
        if not state.open_to("application", store, rows.item):
            return
        other = COHORTS[1 - COHORTS.index(rows.item)]
        if left.moves and state.open_to("application", store, other):
            less = replace(state, left=replace(left, moves=left.moves - 1))
            entries = (("item", rows.item), ("item", other))
            yield f"gives the item to {other}", self._written(less, store, replace(rows, item=other), *entries)
        if left.lines:
            less = replace(state, left=replace(left, lines=left.lines - 1))
            for line in {state.writes, None} if rows.line is not None else {state.writes}:
                did = "deletes the line" if line is None else "writes the line"
                yield did, self._written(less, store, replace(rows, line=line), ("line", rows.item))
        if left.deletes:
            less = replace(state, left=replace(left, deletes=left.deletes - 1), gone_in=store)
            entries = (("item", rows.item), *([("line", rows.item)] if rows.line is not None else []))
            yield "deletes the item, and so its line", self._written(less, store, Rows(), *entries)

    def _written(self, state: State, store: int, rows: Rows, *entries: tuple[str, str]) -> State:
        noted = put(state.entries, store, state.entries[store] | set(entries))
        return replace(state, rows=put(state.rows, store, rows), told=rows, entries=noted, writes=state.writes + 1)

    def _applier(self, state: State, origin: int, key: str, cohort: str) -> Iterator[tuple[str, State]]:
        """One entry: the row as it is now is written over its copy, if all whose it was or is let copiers write."""
        into = 1 - origin
        ours, theirs = state.rows[origin], state.rows[into]
        forgotten = replace(state, entries=put(state.entries, origin, state.entries[origin] - {(key, cohort)}))
        now, copied_as = ours.cohort_of(key), theirs.cohort_of(key)
        if state.open_to("copier", into, cohort, now, copied_as):
            copied = replace(theirs, **{key: getattr(ours, key)})
            done = replace(forgotten, rows=put(state.rows, into, copied))
            yield f"applier: copies the {key}, which was {cohort}'s, to the {NAMES[into]}", done
        elif now not in (None, cohort) and self._moot(key, cohort, copied_as):
            yield f"applier: forgets the {key} under {cohort}, it has gone to {now}", forgotten

    def _moot(self, key: str, cohort: str, copied_as: str | None) -> bool:
        """Whether an entry can be forgotten once the row is another cohort's. Of an item that one has an entry, too."""
        if key == "line":
            return StrayRule.NEVER_MOOT not in self.rules
        return StrayRule.UNTIL_COPIED not in self.rules or copied_as != cohort

    def _flip(self, state: State, name: str) -> Iterator[tuple[str, State]]:
        cohort = state.cohort(name)
        owner, there = cohort.owner, 1 - cohort.owner
        if cohort.step is None and cohort.flips:
            fences = put(cohort.fences, owner, "nobody")
            fenced = replace(cohort, fences=fences, flips=cohort.flips - 1, step="drain")
            yield f"cohort {name}: the {NAMES[owner]} is fenced", self._set(state, name, fenced)
        elif cohort.step == "drain" and not any(self._its(state, owner, entry, name) for entry in state.entries[owner]):
            opened = replace(cohort, owner=there, fences=put(cohort.fences, there, "application"), step="close")
            yield f"cohort {name}: drained, now the {NAMES[there]}'s", self._set(state, name, opened)
        elif cohort.step == "close":
            closed = replace(cohort, fences=put(cohort.fences, there, "copier"), step=None)
            yield f"cohort {name}: the {NAMES[there]} becomes the copy", self._set(state, name, closed)

    def _its(self, state: State, origin: int, entry: tuple[str, str], name: str) -> bool:
        """Whether a drain has to wait until the entry is applied."""
        key, cohort = entry
        if cohort == name:
            return True
        if key == "item":
            return False  # it is journaled under each cohort that it was of
        ours, theirs = state.rows[origin], state.rows[1 - origin]
        return (
            (StrayRule.WHOSE_NOW in self.rules and ours.cohort_of(key) == name)
            or (StrayRule.WHOSE_COPY in self.rules and theirs.cohort_of(key) == name)
            or (StrayRule.WHOSE_NOWHERE in self.rules and ours.line is None and theirs.line is None)
        )

    def _set(self, state: State, name: str, cohort: Cohort) -> State:
        return replace(state, cohorts=put(state.cohorts, COHORTS.index(name), cohort))
