"""Tickets (design §7): two appliers and a lane copy a customer into Cassandra, which has no transactions and no locks.

Cassandra keeps, per row, the write with the highest stamp, whenever it arrives; of a delete and a row with the same
stamp the delete wins. A ticket is a number from the ledger, with which a batch stamps what it writes. What was sent may
arrive much later, even after its sender's death, or never: these are the zombies here. Nobody forgets or finishes
before all that it sent is acknowledged.

The customer has up to two rows, x and y, in one partition. The applier copies by rewriting: it writes the rows at its
ticket and deletes the partition just below it. A lane only inserts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from tests.model.checker import Rule


class TicketRule(Rule):
    TICKET_BEFORE_ROWS = "a batch draws its ticket first, then reads the owner's rows"
    ENTRIES_BEFORE_TICKET = "a batch looks for its entries first, then draws its ticket"
    ABOVE_THE_LAST = "a ticket is above every other one, even if the clock stands still"
    ABOVE_THE_CLOCK = "a ticket is not below the time, and so above what the application once wrote here"
    DELETE_TOO = "a rewrite deletes the partition, or what is gone would stay"
    ROWS_THEN_DELETE = "that delete is sent when the rows are acknowledged, not before"
    DELETE_BELOW = "that delete is stamped one below the ticket, or the rows would go with it"
    FORGET_LAST = "entries are forgotten when all writes are acknowledged"
    STAMPED_LOAD = "a lane stamps its writes with a ticket, too, drawn before it reads"


Rows: TypeAlias = tuple[int | None, int | None]
"""The values of x and y; None: there is no such row."""
VERSIONS: tuple[Rows, ...] = ((7, 7), (8, None), (None, 6), (None, None))
"""What the owner has, one version after the other."""
LONG_AGO = 10
"""The stamp of what the application wrote when this store was the owner: the time then."""


@dataclass(frozen=True, slots=True)
class Write:
    """A delete of the partition (no rows), or rows. Stamp 0: the server stamps it on arrival."""

    stamp: int
    rows: Rows | None = None

    def __str__(self) -> str:
        return (
            f"delete at {self.stamp}" if self.rows is None else f"{_said(self.rows)} at {self.stamp or 'its arrival'}"
        )


@dataclass(frozen=True, slots=True)
class Copier:
    """An applier or a lane. ``done``: how many steps are behind it; ``sent``: what is not acknowledged yet."""

    done: int = 0
    entries: frozenset[int] = frozenset()
    ticket: int = 0
    rows: Rows = (None, None)
    sent: frozenset[Write] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """``cells``: (stamp, value) of x and y in Cassandra; ``deleted``: the stamp of its newest delete."""

    loaded: bool
    cells: tuple[tuple[int, int], tuple[int, int]]
    deleted: int = 0
    version: int = 0
    journal: frozenset[int] = frozenset()
    last: int = 0
    drawn: int = 0
    now: int = LONG_AGO + 1
    flying: frozenset[Write] = frozenset()
    copiers: tuple[Copier | None, ...] = (None, None, None)

    @property
    def copy(self) -> Rows:
        x, y = (value if stamp > self.deleted else None for stamp, value in self.cells)
        return x, y


Step: TypeAlias = tuple[str, State, Copier | None]
"""What a copier did, the state then, and the copier then: None when it is over."""
RIGHT_ORDER = ("entries", "ticket", "rows")


class Tickets:
    """``versions``: how often the owner's rows change; ``tickets``: how many may be drawn."""

    def __init__(
        self,
        without: frozenset[Rule] = frozenset(),
        *,
        order: tuple[str, ...] = RIGHT_ORDER,
        versions: int = 1,
        tickets: int = 3,
    ) -> None:
        self.rules = frozenset(TicketRule) - without
        self.versions, self.tickets = versions, tickets
        if TicketRule.TICKET_BEFORE_ROWS in without:
            order = ("entries", "rows", "ticket")
        if TicketRule.ENTRIES_BEFORE_TICKET in without:
            order = ("ticket", "entries", "rows")
        sends = ["send rows", "send delete"]
        if TicketRule.DELETE_TOO in without:
            sends = ["send rows"]
        if TicketRule.ROWS_THEN_DELETE in without:
            sends = ["send both"]
        ends = [*sends, "forget"] if TicketRule.FORGET_LAST in self.rules else ["forget", *sends]
        self.applier, self.lane = (*order, *ends), ("ticket", "rows", "send rows", "finish")

    def starts(self) -> Iterator[tuple[str, State]]:
        yield "the application wrote both rows here long ago", State(loaded=True, cells=((LONG_AGO, 7), (LONG_AGO, 7)))
        yield "Cassandra is empty, nothing is loaded", State(loaded=False, cells=((0, 0), (0, 0)))

    def wrong(self, state: State) -> str | None:
        if state.loaded and not state.journal and state.copy != VERSIONS[state.version]:
            return "the copies differ, and nothing says so"
        return None

    def settled(self, state: State) -> bool:
        used_up = state.drawn == self.tickets
        return used_up or (state.loaded and not state.journal and not state.flying and not any(state.copiers))

    def same_as(self, state: State) -> Hashable:
        one, other, lane = state.copiers
        return state if hash(one) <= hash(other) else replace(state, copiers=(other, one, lane))

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        if state.version < self.versions:
            after = replace(state, version=state.version + 1, journal=state.journal | {state.version + 1})
            yield f"customer: makes it {_said(VERSIONS[after.version])}, entry {after.version}", after
        for write in state.flying:
            arrived = self._landed(replace(state, flying=state.flying - {write}), write)
            yield f"Cassandra: gets {write}, has {_said(arrived.copy)}", arrived
        for number, copier in enumerate(state.copiers):
            who, program = (f"applier {number + 1}", self.applier) if number < 2 else ("lane", self.lane)
            for did, after, mine in self._copier(state, copier, program):
                copiers = tuple(mine if at == number else other for at, other in enumerate(after.copiers))
                yield f"{who}: {did}", replace(after, copiers=copiers)

    def _landed(self, state: State, write: Write) -> State:
        copiers = tuple(copier and replace(copier, sent=copier.sent - {write}) for copier in state.copiers)
        state = replace(state, copiers=copiers)
        if write.rows is None:
            return replace(state, deleted=max(state.deleted, write.stamp))
        stamp = write.stamp or max(state.last, state.now) + 1
        state = replace(state, now=state.now if write.stamp else stamp + 1)
        x, y = (
            cell if value is None else max(cell, (stamp, value))  # of equal stamps the greater value wins
            for cell, value in zip(state.cells, write.rows, strict=True)
        )
        return replace(state, cells=(x, y))

    def _copier(self, state: State, copier: Copier | None, program: tuple[str, ...]) -> Iterator[Step]:
        if copier is None:
            if state.loaded == (program is self.applier):
                yield from self._step(state, Copier(), program)
            return
        yield "dies", state, None
        if not copier.sent:
            yield from self._step(state, copier, program)

    def _step(self, state: State, copier: Copier, program: tuple[str, ...]) -> Iterator[Step]:
        step = program[copier.done]
        next_ = replace(copier, done=copier.done + 1)
        still = next_ if next_.done < len(program) else None
        if step == "entries":
            if state.journal:
                yield f"looks for entries: {_listed(state.journal)}", state, replace(next_, entries=state.journal)
        elif step == "ticket":
            yield from self._draw(state, next_)
        elif step == "rows":
            rows = VERSIONS[state.version]
            yield f"reads from the owner: {_said(rows)}", state, replace(next_, rows=rows)
        elif step.startswith("send"):
            sent = frozenset(self._writes(copier, program, step))
            flying = replace(state, flying=state.flying | sent)
            said = " and ".join(sorted(map(str, sent))) or "no rows"
            yield f"sends {said}", flying, still and replace(still, sent=sent)
        elif step == "forget":
            yield f"forgets {_listed(copier.entries)}", replace(state, journal=state.journal - copier.entries), still
        else:
            yield "all acknowledged, the load is done", replace(state, loaded=True), None

    def _draw(self, state: State, next_: Copier) -> Iterator[Step]:
        ticket = max(state.last + 1, state.now)
        if TicketRule.ABOVE_THE_LAST not in self.rules:
            ticket = state.now
        if TicketRule.ABOVE_THE_CLOCK not in self.rules:
            ticket = state.last + 1
        if state.drawn < self.tickets:
            drawn = replace(state, last=ticket, drawn=state.drawn + 1)
            yield f"draws ticket {ticket}", drawn, replace(next_, ticket=ticket)

    def _writes(self, copier: Copier, program: tuple[str, ...], step: str) -> Iterator[Write]:
        if step != "send delete" and any(copier.rows):
            unstamped = program is self.lane and TicketRule.STAMPED_LOAD not in self.rules
            yield Write(0 if unstamped else copier.ticket, copier.rows)
        if step != "send rows":
            yield Write(copier.ticket - (TicketRule.DELETE_BELOW in self.rules))


def _said(rows: Rows) -> str:
    return " and ".join(f"{name}={value}" for name, value in zip("xy", rows, strict=True) if value) or "nothing"


def _listed(entries: frozenset[int]) -> str:
    return "entry " + ", ".join(map(str, sorted(entries)))
