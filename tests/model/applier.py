"""The applier (design §7, §8): two of them, a customer, an operator and a reconciler at one row.

The row goes from entity A to entity B and back, goes away, and sometimes does not fit the target. A batch is a program
of six steps (``Applier.program``). Between any two steps everybody else may act, the process may die, or its connection
may be cut: then its locks are gone while it goes on. That is a zombie; a repeated task is the second applier.

As in the code, the order of a batch's steps is most of what makes it right, and half of the rules say so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from tests.model.checker import Rule


class ApplierRule(Rule):
    ENTRY_PER_CHANGE = "every change adds a journal entry, even if its key has one"
    OLD_AND_NEW_ENTITY = "a row that moves adds an entry for the entity it leaves and one for the entity it joins"
    ENTRIES_BEFORE_ROW = "a batch looks for its entries first, then reads the owner's row"
    SHARD_BEFORE_ROW = "a batch locks its shards in the destination first, then reads the owner's row"
    EVERY_SHARD = "a batch writes a row only if it holds the shards of all entities in sight"
    ONLY_DIFFERENCES = "a batch leaves a row alone that was equal, or gone in both stores, when it read it"
    FENCE_IN_TRANSACTION = "a batch holds the destination's fence, shared, in its transaction"
    RECORD_BEFORE_COMMIT = "a reject is recorded, or closed, while the shards are locked"
    DOUBT_UNTIL_COMMIT = "recording or closing a reject adds an entry, which only this batch's commit makes forgettable"
    FORGET_AFTER_COMMIT = "entries are forgotten after the commit, not before"
    VERDICT_UNDER_LOCKS = "the reconciler locks shards and row, then compares, then asks for entries"


@dataclass(frozen=True, slots=True)
class Row:
    entity: str
    fits: bool = True

    def __str__(self) -> str:
        return f"{self.entity}'s" if self.fits else f"{self.entity}'s, too long for the target"


A, B, TOO_LONG = Row("A"), Row("B"), Row("A", fits=False)


@dataclass(frozen=True, slots=True)
class World:
    """``rows``: what the customer writes; ``begin``: what is there at first; ``lost``: the copy may have vanished."""

    rows: tuple[Row | None, ...]
    begin: tuple[Row | None, ...] = (None, A)
    retries: int = 0
    lost: bool = False
    flip: bool = False


WORLDS = {
    "moves": World((None, A, B)),
    "rejects": World((A, TOO_LONG), begin=(TOO_LONG,), retries=1),
    "lost": World((None, A), lost=True),
    "flip": World((None, A), flip=True),
    "all": World((None, A, B, TOO_LONG), begin=(None, A, TOO_LONG), retries=1, lost=True, flip=True),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A reason to doubt the row, in the journal or in the ledger."""

    id: int
    entity: str


@dataclass(frozen=True, slots=True)
class Batch:
    """``done``: how many steps are behind it; ``row``: what it read from the owner; ``cut``: no locks, unnoticed."""

    shards: str
    done: int = 0
    entries: frozenset[Entry] = frozenset()
    row: Row | None = None
    differs: bool = True
    locked: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """``changes``, ``retries``: how many may still come; ``rotten``: the copy was changed behind everybody's back."""

    source: Row | None
    target: Row | None
    changes: int
    retries: int
    journal: frozenset[Entry] = frozenset()
    next_id: int = 0
    batches: tuple[Batch | None, ...] = (None, None)
    reject: str | None = None
    rotten: bool = False
    verdict: str | None = None
    compared: Row | None = None
    fenced: bool = False
    trespassed: bool = False


Step: TypeAlias = tuple[str, State, Batch | None]
"""What an applier did, the state then, and its batch then: None when it is over."""


class Applier:
    def __init__(self, without: frozenset[Rule] = frozenset(), *, world: str, changes: int = 2) -> None:
        self.rules = frozenset(ApplierRule) - without
        self.world = WORLDS[world]
        self.changes = changes
        self.program = ["look", "lock", "read", "record", "commit", "forget"]
        for rule, wrong_order in {
            ApplierRule.ENTRIES_BEFORE_ROW: ["lock", "read", "look", "record", "commit", "forget"],
            ApplierRule.SHARD_BEFORE_ROW: ["look", "read", "lock", "record", "commit", "forget"],
            ApplierRule.RECORD_BEFORE_COMMIT: ["look", "lock", "read", "commit", "record", "forget"],
            ApplierRule.FORGET_AFTER_COMMIT: ["look", "lock", "read", "record", "forget", "commit"],
        }.items():
            if rule in without:
                self.program = wrong_order

    def starts(self) -> Iterator[tuple[str, State]]:
        state = State(source=None, target=None, changes=self.changes, retries=self.world.retries)
        for row in self.world.begin:
            if row == TOO_LONG:
                yield "the row is too long, and rejected", replace(state, source=row, reject=row.entity)
            else:
                yield f"source and target agree: the row is {_said(row)}", replace(state, source=row, target=row)
        if self.world.lost:
            yield "the target's copy was lost, and no entry says so", replace(state, source=A, rotten=True)

    # What must hold

    def wrong(self, state: State) -> str | None:
        if state.trespassed:
            return "a copier wrote into a store that belongs to the application"
        if state.verdict == "false mismatch":
            return "a mismatch is reported, and nothing was wrong"
        if state.source != state.target and not (state.journal or state.reject or state.rotten):
            return "the copies differ, and nothing says so"
        if state.source == state.target and state.reject and not state.journal:
            return "the copies are equal, and a reject is left that nothing will close"
        return None

    def settled(self, state: State) -> bool:
        if state.fenced:
            return True  # the direction has turned: what is dirty now is not for these appliers
        if state.journal or state.verdict or any(state.batches):
            return False
        if state.source and not state.source.fits:
            return state.reject is not None
        return state.source == state.target and state.reject is None

    def same_as(self, state: State) -> Hashable:
        """Appliers are alike, and so are entries of one entity that the same batches have read."""
        one, other = sorted((batch or Batch("") for batch in state.batches), key=_progress)
        every = state.journal | one.entries | other.entries
        entries = frozenset((e.entity, e in state.journal, e in one.entries, e in other.entries) for e in every)
        left = (state.changes, state.retries, state.rotten, state.fenced, state.trespassed)
        seen = (state.reject, state.verdict, state.compared)
        return state.source, state.target, *left, *seen, _progress(one), _progress(other), entries

    # The others

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        locked = [batch for batch in state.batches if batch and batch.locked]
        if not state.fenced:
            if state.changes:
                yield from self._customer(state)
            if state.reject and state.retries:
                entry = Entry(state.next_id, state.reject)
                marked = replace(state, journal=state.journal | {entry}, next_id=state.next_id + 1)
                yield f"operator: retries the reject, entry {entry.id}", replace(marked, retries=state.retries - 1)
            if self.world.flip and not (locked and ApplierRule.FENCE_IN_TRANSACTION in self.rules):
                yield "flip: raises the target's fence against copiers", replace(state, fenced=True)
            if self.world.lost:
                yield from self._reconciler(state, idle=not locked)
        for number, batch in enumerate(state.batches):
            for did, after, mine in self._applier(state, batch):
                batches = tuple(mine if at == number else other for at, other in enumerate(state.batches))
                yield f"applier {number + 1}: {did}", replace(after, batches=batches)

    def _customer(self, state: State) -> Iterator[tuple[str, State]]:
        for row in self.world.rows:
            if row == state.source:
                continue
            entities = sorted({known.entity for known in (state.source, row) if known})
            if ApplierRule.OLD_AND_NEW_ENTITY not in self.rules:
                entities = entities if row is None else [row.entity]
            if ApplierRule.ENTRY_PER_CHANGE not in self.rules:
                entities = [entity for entity in entities if entity not in {entry.entity for entry in state.journal}]
            new = [Entry(state.next_id + at, entity) for at, entity in enumerate(entities)]
            after = replace(state, source=row, changes=state.changes - 1, next_id=state.next_id + len(new))
            yield f"customer: makes it {_said(row)}, {_listed(new)}", replace(after, journal=state.journal | {*new})

    def _reconciler(self, state: State, *, idle: bool) -> Iterator[tuple[str, State]]:
        dirty = bool(state.journal or state.reject)
        if state.verdict == "mismatch":
            entry = Entry(state.next_id, (state.source or state.target or A).entity)
            marked = replace(state, journal=state.journal | {entry}, next_id=state.next_id + 1, rotten=False)
            yield f"reconciler: marks the row dirty, entry {entry.id}", replace(marked, verdict=None)
            yield "reconciler: dies", replace(state, verdict=None)
        elif ApplierRule.VERDICT_UNDER_LOCKS in self.rules:
            if idle and not dirty and state.source != state.target:
                found = "mismatch" if state.rotten else "false mismatch"
                yield "reconciler: with all locks, finds a difference and no entry", replace(state, verdict=found)
        elif state.verdict is None:
            yield "reconciler: reads the owner's row", replace(state, verdict="read", compared=state.source)
        elif state.verdict == "read":
            differs = "differs" if state.compared != state.target else None
            yield f"reconciler: reads the copy: {differs or 'equal'}", replace(state, verdict=differs, compared=None)
        else:
            verdict = None if dirty else "mismatch" if state.rotten else "false mismatch"
            yield f"reconciler: asks for entries: {'some' if dirty else 'none'}", replace(state, verdict=verdict)

    # An applier

    def _applier(self, state: State, batch: Batch | None) -> Iterator[Step]:
        if batch is None:
            for shards in ("A", "B", "AB"):
                yield from self._step(state, Batch(shards))
            return
        yield from self._step(state, batch)
        yield "dies", state, None
        if batch.locked:
            yield "is cut off, its locks are gone, and does not know it", state, replace(batch, locked=False, cut=True)

    def _step(self, state: State, batch: Batch) -> Iterator[Step]:
        step = self.program[batch.done]
        next_ = replace(batch, done=batch.done + 1)
        last = next_.done == len(self.program)
        if step == "look":
            found = frozenset(entry for entry in state.journal if entry.entity in batch.shards)
            if found and not state.fenced:
                yield f"takes up shard {batch.shards}, {_listed(found)}", state, replace(next_, entries=found)
        elif step == "lock":
            taken = any(other and other.locked and {*other.shards} & {*batch.shards} for other in state.batches)
            shut = state.fenced and ApplierRule.FENCE_IN_TRANSACTION in self.rules
            if not taken and not shut:
                yield f"locks shard {batch.shards}", state, replace(next_, locked=True)
        elif step == "read":
            sight = {entry.entity for entry in batch.entries} | {
                row.entity for row in (state.source, state.target) if row
            }
            if ApplierRule.EVERY_SHARD in self.rules and not sight <= {*batch.shards}:
                yield f"sees {' and '.join(sorted(sight))}: leaves it to a batch with every shard", state, None
            else:
                differs = state.source != state.target or ApplierRule.ONLY_DIFFERENCES not in self.rules
                equal = "" if differs else ", as in the copy"
                read = replace(next_, row=state.source, differs=differs)
                yield f"reads the owner's row: {_said(state.source)}{equal}", state, read
        elif step == "record":
            refused = batch.row is not None and not batch.row.fits
            reject = batch.row.entity if batch.row and refused else None
            after = replace(state, reject=reject)
            if (entity := reject or state.reject) and ApplierRule.DOUBT_UNTIL_COMMIT in self.rules:
                doubt = Entry(state.next_id, entity)
                after = replace(after, journal=state.journal | {doubt}, next_id=state.next_id + 1)
                next_ = replace(next_, entries=batch.entries | {doubt})
            yield f"records in the ledger: {'rejected' if refused else 'right'}", after, next_
        elif step == "commit":
            yield self._commit(state, batch, None if last else next_)
        else:
            forgotten = replace(state, journal=state.journal - batch.entries)
            yield f"forgets {_listed(batch.entries)}", forgotten, None if last else next_

    def _commit(self, state: State, batch: Batch, next_: Batch | None) -> Step:
        if batch.cut:
            return "cannot commit", state, None
        if not batch.differs or (batch.row and not batch.row.fits):
            return "commits, having written nothing", state, next_ and replace(next_, locked=False)
        after = replace(state, target=batch.row, rotten=False, trespassed=state.fenced)
        return f"commits, the copy is now {_said(batch.row)}", after, next_ and replace(next_, locked=False)


def _progress(batch: Batch) -> tuple[str, int, str, bool, bool, bool]:
    return batch.shards, batch.done, str(batch.row), batch.differs, batch.locked, batch.cut


def _said(row: Row | None) -> str:
    return "gone" if row is None else str(row)


def _listed(entries: Iterable[Entry]) -> str:
    return (
        ", ".join(f"entry {entry.id} ({entry.entity})" for entry in sorted(entries, key=lambda entry: entry.id))
        or "no entry"
    )
