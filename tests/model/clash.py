"""Unique clashes (design §7): two customers give each other a unique value, and two appliers copy that.

Rows x (of customer A) and y (of B) hold 1, 2 or nothing, never the same. A batch reads its own keys, then, for as long
as its rows clash with another's in the target, the owner's row of that holder too; then it deletes all of them and
inserts them again. One transaction of a customer may commit late: it has its journal id already.

The model does not count on locks that a database takes by itself when an insert clashes. Orders of steps, moves and
rejects are the business of the applier's model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

from tests.model.checker import Rule


class ClashRule(Rule):
    ONE_SHARD = "a table with secondary unique keys is one shard"
    REWRITE_THE_HOLDER = "whoever holds the value in the target is rewritten as the owner has it now"
    FORGET_EXACTLY = "exactly the entries that were read are forgotten, not all up to the highest of them"


Rows: TypeAlias = tuple[int | None, int | None]
"""The values of x and y; None: there is no such row."""
Entry: TypeAlias = tuple[int, int]
"""Its id and the key's number, 0 for x."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``rows``: what the owner had, by key: this batch's own and those of holders."""

    step: str
    keys: frozenset[int]
    entries: frozenset[Entry]
    rows: tuple[tuple[int, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """``late``: what a transaction that is not committed yet will make of the rows, and its entries."""

    changes: int
    source: Rows
    target: Rows
    journal: frozenset[Entry] = frozenset()
    next_id: int = 0
    late: tuple[Rows, frozenset[Entry]] | None = None
    rejects: frozenset[int] = frozenset()
    batches: tuple[Batch | None, ...] = (None, None)


Step: TypeAlias = tuple[str, State, Batch | None]
"""What an applier did, the state then, and its batch then: None when it is over."""


class Clash:
    def __init__(self, without: frozenset[Rule] = frozenset(), *, changes: int = 2) -> None:
        self.rules = frozenset(ClashRule) - without
        self.changes = changes
        one_shard = ClashRule.ONE_SHARD in self.rules
        self.shards = [frozenset({0, 1})] if one_shard else [frozenset({0}), frozenset({1})]

    def starts(self) -> Iterator[tuple[str, State]]:
        for rows in ((1, 2), (1, None)):
            yield f"source and target agree: {_said(rows)}", State(self.changes, rows, rows)

    def wrong(self, state: State) -> str | None:
        doubted = state.rejects | {key for _, key in state.journal}
        if any(state.source[key] != state.target[key] for key in {0, 1} - doubted):
            return "the copies differ, and nothing says so"
        return None

    def settled(self, state: State) -> bool:
        return not (state.journal or state.late or state.rejects or any(state.batches))

    def same_as(self, state: State) -> Hashable:
        one, other = state.batches
        return state if hash(one) <= hash(other) else replace(state, batches=(other, one))

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._customers(state)
        for number, batch in enumerate(state.batches):
            for did, after, mine in self._applier(state, batch):
                batches = tuple(mine if at == number else other for at, other in enumerate(state.batches))
                yield f"applier {number + 1}: {did}", replace(after, batches=batches)

    def _customers(self, state: State) -> Iterator[tuple[str, State]]:
        if state.late:
            rows, entries = state.late
            committed = replace(state, source=rows, journal=state.journal | entries, late=None)
            yield f"customer: the late transaction commits, {_said(rows)}", committed
        for rows in product((None, 1, 2), (None, 1, 2)) if state.changes else ():
            changed = [key for key in (0, 1) if rows[key] != state.source[key]]
            if not changed or (rows[0] == rows[1] and rows[0]):
                continue
            entries = frozenset((state.next_id + at, key) for at, key in enumerate(changed))
            after = replace(state, changes=state.changes - 1, next_id=state.next_id + len(changed))
            ids = _listed(entries)
            if state.late is None:
                yield (
                    f"customer: commits {_said(rows)}, {ids}",
                    replace(after, source=rows, journal=state.journal | entries),
                )
                yield (
                    f"customer: changes to {_said(rows)}, {ids}, and does not commit yet",
                    replace(after, late=(rows, entries)),
                )
            elif self._free(state, rows, changed):
                x, y = (rows[key] if key in changed else state.late[0][key] for key in (0, 1))
                after = replace(after, late=((x, y), state.late[1]))
                yield (
                    f"customer: commits {_said(rows)}, {ids}",
                    replace(after, source=rows, journal=state.journal | entries),
                )

    @staticmethod
    def _free(state: State, rows: Rows, changed: list[int]) -> bool:
        """Whether the late transaction has neither these rows locked nor their unique values."""
        assert state.late
        late = [key for key in (0, 1) if state.late[0][key] != state.source[key]]
        taken = {value for key in late for value in (state.late[0][key], state.source[key])} - {None}
        return not any(key in late or rows[key] in taken for key in changed)

    # An applier

    def _applier(self, state: State, batch: Batch | None) -> Iterator[Step]:
        if batch is None:
            for keys in self.shards:
                found = frozenset(entry for entry in state.journal if entry[1] in keys)
                if found:
                    yield f"looks for entries: {_listed(found)}", state, Batch("lock", keys, found)
            return
        yield "dies", state, None
        if batch.step == "lock":
            others = [other for other in state.batches if other and other.step in ("read", "write")]
            if not any(other.keys & batch.keys for other in others):
                yield f"locks the shard of {_names(batch.keys)}", state, replace(batch, step="read")
        elif batch.step == "read":
            own = sorted({key for _, key in batch.entries})
            rows = tuple((key, state.source[key]) for key in own)
            yield f"reads from the owner {_read(rows)}", state, replace(batch, step="write", rows=rows)
        elif batch.step == "write":
            yield self._write(state, batch)
        else:
            forgotten = batch.entries
            if ClashRule.FORGET_EXACTLY not in self.rules:
                forgotten = frozenset(entry for entry in state.journal if entry[0] <= max(batch.entries)[0])
            yield f"forgets {_listed(forgotten)}", replace(state, journal=state.journal - forgotten), None

    def _write(self, state: State, batch: Batch) -> Step:
        rows = dict(batch.rows)
        own = {key for _, key in batch.entries}
        values = [value for value in rows.values() if value]
        holders = [key for key in (0, 1) if key not in rows and state.target[key] in values]
        target: list[int | None] = list(state.target)
        refused: set[int] = set()
        if holders and ClashRule.REWRITE_THE_HOLDER in self.rules:
            read = (holders[0], state.source[holders[0]])
            did = f"clashes with {'xy'[holders[0]]}, reads from the owner {_read([read])}"
            return did, state, replace(batch, rows=(*batch.rows, read))
        if len({*values}) < len(values):
            refused = own  # read at moments that do not fit together
        else:
            for key, value in rows.items():
                inserted = value is not None and state.target[key] is None
                # INSERT … ON DUPLICATE KEY UPDATE finds the holder by the unique value, and makes no row.
                lost = ClashRule.REWRITE_THE_HOLDER not in self.rules and inserted and value in state.target
                target[key] = None if lost else value
        rejects = (state.rejects - own) | refused
        after = replace(state, target=(target[0], target[1]), rejects=rejects)
        said = "is refused, and says so" if refused else f"commits, the copies are {_said(after.target)}"
        return said, after, replace(batch, step="forget")


def _said(rows: Rows) -> str:
    return _read(list(enumerate(rows)))


def _read(rows: Iterable[tuple[int, int | None]]) -> str:
    return " and ".join(f"{'xy'[key]}={'gone' if value is None else value}" for key, value in rows)


def _names(keys: frozenset[int]) -> str:
    return " and ".join("xy"[key] for key in sorted(keys))


def _listed(entries: frozenset[Entry]) -> str:
    return ", ".join(f"entry {number} ({'xy'[key]})" for number, key in sorted(entries)) or "no entry"
