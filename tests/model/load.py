"""The load (design §6): two lanes, the applier, a customer, whoever closes the load and whoever restarts the table.

The table is one chunk of one row. A lane claims it in the ledger, raises its token in the target, and copies it in one
transaction; a lane that stalls is thought dead and is a zombie when it goes on. Everybody may die between two steps,
and a lane's connection to the target may be cut unnoticed. A restart, and each repetition of one, opens the load again
in the next generation.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from tests.model.checker import Rule


class LoadRule(Rule):
    JOURNAL_FIRST = "the source's triggers exist before the first chunk is read"
    LOAD_ROW_IN_CHUNK = "a lane's transaction holds the load row, shared, and finds it open"
    GENERATION_IN_CHUNK = "a lane's transaction finds its own generation in the load row and in the chunk's row"
    CHUNK_ROW = "a lane's transaction locks the chunk's row, and finds its own token there and not done"
    DONE_WITH_ROWS = "the chunk is marked done in the transaction that writes its rows"
    REJECT_BEFORE_COMMIT = "a lane records its rejects before it commits"
    CLOSE_WHEN_DONE = "the load is closed only when every chunk is done"
    CLOSED_IN_BATCH = "the applier's transaction holds the load row, shared, and finds it closed"
    TOKENS_GO_ON = "tokens never repeat, not even in the next generation"
    CLAIM_AFTER_CLEANING = "after a restart, nobody claims a chunk before the target is clean"
    GENERATION_IN_CLEANING = "whoever cleans the target holds the load row, shared, and finds its own generation"


TOO_LONG = "too long for the target"
VALUES = (None, "old", "new", TOO_LONG)


@dataclass(frozen=True, slots=True)
class Lane:
    """``locked``: its transaction in the target is open; ``done_under``: the token of the rows that are there."""

    step: str
    generation: int
    token: int
    value: str | None = None
    locked: bool = False
    refused: bool = False
    done_under: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """The applier's: ``locked`` as in ``Lane``."""

    step: str
    entries: frozenset[int]
    value: str | None = None
    locked: bool = False


@dataclass(frozen=True, slots=True)
class State:
    changes: int
    restarts: int
    source: str | None = "old"
    target: str | None = None
    triggers: bool = False
    journal: frozenset[int] = frozenset()
    next_id: int = 0
    reject: int | None = None  # the token under which it was recorded, 0: the applier's
    # The ledger: the table's generation and phase, its chunk's token and state.
    generation: int = 1
    phase: str = "loading"
    token: int = 0
    chunk: str = "pending"
    # The target: the load row (generation, open) and the chunk's row (generation, token, done).
    load: tuple[int, bool] = (1, True)
    row: tuple[int, int, bool] = (0, 0, False)
    lanes: tuple[Lane | None, ...] = (None, None)
    batch: Batch | None = None
    closing: int | None = None  # the generation that somebody is about to close
    cleaning: tuple[int, ...] = ()  # the generations of those who are about to clean


Step: TypeAlias = tuple[str, State, Lane | None]
"""What a lane did, the state then, and the lane then: None when it is over."""


class Load:
    def __init__(self, without: frozenset[Rule] = frozenset(), *, changes: int = 1, restarts: int = 1) -> None:
        self.rules = frozenset(LoadRule) - without
        self.bounds = changes, restarts

    def starts(self) -> Iterator[tuple[str, State]]:
        changes, restarts = self.bounds
        yield "the row is old, the target is empty, the chunk is cut", State(changes, restarts)

    def wrong(self, state: State) -> str | None:
        closed = not state.load[1] and state.load[0] == state.generation
        if closed and state.source != state.target and not state.journal and state.reject is None:
            return "the load is closed, the copies differ, and nothing says so"
        if closed and state.source == state.target and not state.journal and state.reject is not None:
            return "the load is closed, the copies are equal, and a reject is left that nothing will close"
        return None

    def settled(self, state: State) -> bool:
        if state.phase != "closed" or state.load[1] or state.journal or state.batch or any(state.lanes):
            return False
        rejected = state.reject is not None
        return rejected if state.source == TOO_LONG else state.source == state.target and not rejected

    def same_as(self, state: State) -> Hashable:
        """Lanes are alike, and of tokens only the order matters."""
        lanes = sorted((lane for lane in state.lanes if lane), key=hash)
        tokens = [
            state.token,
            state.row[1],
            state.reject or 0,
            *(n for lane in lanes for n in (lane.token, lane.done_under)),
        ]
        rank = {token: at for at, token in enumerate(sorted({0, *tokens}))}
        lanes = [replace(lane, token=rank[lane.token], done_under=rank[lane.done_under]) for lane in lanes]
        row, reject = (state.row[0], rank[state.row[1]], state.row[2]), state.reject and rank[state.reject]
        return replace(state, token=rank[state.token], row=row, reject=reject, lanes=(*lanes,))

    # Everybody but the lanes

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        if not state.triggers:
            yield "prepare: installs the source's triggers", replace(state, triggers=True)
        for value in VALUES if state.changes else ():
            if value != state.source:
                after = replace(state, source=value, changes=state.changes - 1)
                if state.triggers:
                    after = replace(after, journal=state.journal | {state.next_id}, next_id=state.next_id + 1)
                said = f"entry {state.next_id}" if state.triggers else "no trigger sees it"
                yield f"customer: makes the row {_said(value)}, {said}", after
        yield from self._applier(state)
        yield from self._closer(state)
        yield from self._restarter(state)
        for number, lane in enumerate(state.lanes):
            for did, after, mine in self._lane(state, lane):
                lanes = tuple(mine if at == number else other for at, other in enumerate(state.lanes))
                yield f"lane {number + 1}: {did}", replace(after, lanes=lanes)

    def _applier(self, state: State) -> Iterator[tuple[str, State]]:
        batch, closed = state.batch, not state.load[1]
        if batch is None:
            if state.journal and (closed or LoadRule.CLOSED_IN_BATCH not in self.rules):
                yield f"applier: takes up {_listed(state.journal)}", replace(state, batch=Batch("look", state.journal))
            return
        yield "applier: dies", replace(state, batch=None)
        if batch.step == "look":
            held = LoadRule.CLOSED_IN_BATCH in self.rules
            if closed or not held:
                read = replace(batch, step="read", value=state.source, locked=held)
                yield f"applier: reads the owner's row: {_said(state.source)}", replace(state, batch=read)
        elif batch.step == "read":
            refused = batch.value == TOO_LONG
            written = state.target if refused else batch.value
            after = replace(state, target=written, reject=0 if refused else None)
            done = replace(batch, step="committed", locked=False)
            yield f"applier: {'rejects the row' if refused else 'commits'}", replace(after, batch=done)
        else:
            yield (
                f"applier: forgets {_listed(batch.entries)}",
                replace(state, journal=state.journal - batch.entries, batch=None),
            )

    def _closer(self, state: State) -> Iterator[tuple[str, State]]:
        if state.closing is None:
            done = state.chunk == "done" or LoadRule.CLOSE_WHEN_DONE not in self.rules
            if state.phase == "loading" and done:
                yield "closer: sees that all chunks are done", replace(state, closing=state.generation)
            return
        yield "closer: dies", replace(state, closing=None)
        generation, opened = state.load
        if generation != state.closing:
            return
        if opened and not self._lanes_hold_load_row(state):
            yield "closer: closes the load row", replace(state, load=(generation, False))
        if not opened and state.generation == generation:
            yield "closer: tells the ledger", replace(state, phase="closed", closing=None)

    def _restarter(self, state: State) -> Iterator[tuple[str, State]]:
        held = self._lanes_hold_load_row(state) or (state.batch and state.batch.locked)
        if state.restarts and state.triggers and not held:
            generation = state.generation + 1
            begun = replace(state, generation=generation, load=(generation, True), phase="cleaning", chunk="pending")
            if LoadRule.TOKENS_GO_ON not in self.rules:
                begun = replace(begun, token=0)
            begun = replace(begun, restarts=state.restarts - 1, cleaning=(*state.cleaning, generation))
            yield f"operator: restarts the table, generation {generation}", begun
        for generation in state.cleaning:
            who = f"cleaner of generation {generation}"
            rest = replace(state, cleaning=tuple(other for other in state.cleaning if other != generation))
            if generation == state.load[0] or LoadRule.GENERATION_IN_CLEANING not in self.rules:
                after = replace(rest, target=None, reject=None)
                if generation == state.generation:
                    after = replace(after, phase="loading")
                yield f"{who}: deletes the target's row and the reject", after

    # A lane

    def _lane(self, state: State, lane: Lane | None) -> Iterator[Step]:
        ready = state.triggers or LoadRule.JOURNAL_FIRST not in self.rules
        clean = state.phase == "loading" or (
            state.phase == "cleaning" and LoadRule.CLAIM_AFTER_CLEANING not in self.rules
        )
        if lane is None:
            if ready and clean and state.chunk != "done":
                token = state.token + 1
                claimed = replace(state, token=token, chunk="claimed")
                yield f"claims the chunk, token {token}", claimed, Lane("claimed", state.generation, token)
            return
        yield "dies", state, None
        if lane.locked:
            yield "is cut off, its locks are gone, and does not know it", state, replace(lane, locked=False)
        if lane.step == "claimed":
            yield from self._raise_token(state, lane)
        elif lane.step == "raised":
            yield from self._read(state, lane)
        elif lane.step == "read":
            yield from self._record(state, lane)
        elif lane.step == "recorded":
            yield from self._commit(state, lane)
        elif lane.step == "written":
            generation, token, _ = state.row
            marked = replace(state, row=(generation, token, True))
            yield "marks the chunk done", marked, replace(lane, step="committed")
        elif lane.refused and LoadRule.REJECT_BEFORE_COMMIT not in self.rules:
            yield "records the reject", replace(state, reject=lane.token), replace(lane, refused=False)
        else:
            yield from self._finish(state, lane)

    def _lanes_hold_load_row(self, state: State) -> bool:
        return LoadRule.LOAD_ROW_IN_CHUNK in self.rules and any(lane and lane.locked for lane in state.lanes)

    def _chunk_row_taken(self, state: State) -> bool:
        return LoadRule.CHUNK_ROW in self.rules and any(lane and lane.locked for lane in state.lanes)

    def _raise_token(self, state: State, lane: Lane) -> Iterator[Step]:
        if self._chunk_row_taken(state):
            return
        generation, token, done = state.row
        later = generation < lane.generation or (generation == lane.generation and not done and token < lane.token)
        row = (lane.generation, lane.token, False) if later else state.row
        did = "raises the token in the target" if later else "leaves the token in the target"
        yield did, replace(state, row=row), replace(lane, step="raised")

    def _read(self, state: State, lane: Lane) -> Iterator[Step]:
        if self._chunk_row_taken(state):
            return
        generation, token, done = state.row
        mine = LoadRule.GENERATION_IN_CHUNK not in self.rules or generation == state.load[0] == lane.generation
        opened = LoadRule.LOAD_ROW_IN_CHUNK not in self.rules or state.load[1]
        claimed = LoadRule.CHUNK_ROW not in self.rules or done or token == lane.token
        if not (mine and opened and claimed):
            yield "finds its claim over", state, None
        elif done and LoadRule.CHUNK_ROW in self.rules:
            yield "finds the chunk done", state, replace(lane, step="committed", done_under=token)
        else:
            read = replace(lane, step="read", value=state.source, locked=True, done_under=lane.token)
            yield f"locks load and chunk, reads the source: {_said(state.source)}", state, read

    def _record(self, state: State, lane: Lane) -> Iterator[Step]:
        double = lane.value is not None and state.target is not None
        refused = lane.value == TOO_LONG or double
        next_ = replace(lane, step="recorded", refused=refused)
        if not refused or LoadRule.REJECT_BEFORE_COMMIT not in self.rules:
            yield "inserts" if not refused else "inserts, and the row is refused", state, next_
        elif lane.token == state.token:
            why = "there is one with its key" if double else "it is too long"
            yield f"inserts, and records that the row is refused: {why}", replace(state, reject=lane.token), next_
        else:
            yield "finds its claim over", state, None

    def _commit(self, state: State, lane: Lane) -> Iterator[Step]:
        if not lane.locked:
            yield "cannot commit", state, None
            return
        target = state.target if lane.refused else lane.value
        if LoadRule.DONE_WITH_ROWS in self.rules:
            row = (*state.row[:2], True)
            yield "commits", replace(state, target=target, row=row), replace(lane, step="committed", locked=False)
        else:
            yield "commits its rows", replace(state, target=target), replace(lane, step="written", locked=False)

    def _finish(self, state: State, lane: Lane) -> Iterator[Step]:
        if state.token != lane.token or state.chunk == "pending":
            yield "is too late to tell the ledger", state, None
            return
        reject = state.reject if state.reject in (0, lane.done_under) else None
        yield "tells the ledger that the chunk is done", replace(state, chunk="done", reject=reject), None


def _said(value: str | None) -> str:
    return value or "gone"


def _listed(entries: frozenset[int]) -> str:
    return "entry " + ", ".join(map(str, sorted(entries)))
