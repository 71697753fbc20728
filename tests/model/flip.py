"""The flip (design §5, §9, §10): one customer's row, from request to live, aborted, and back.

The row's content is the list of writes that it has seen. The customer writes once through a router, hears nothing, asks
again, and then writes a second time through a router that has not looked at the route since the beginning. A batch job
knows no router and writes straight into the source. Appliers copy into whichever store says ``copier``. The state
machine is one controller here, which may abort before the switch; what two of them do is in ``controllers``.

Routers act on the route they last read, however late. A transaction stays open as long as it likes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from tests.model.checker import Rule


class FlipRule(Rule):
    NOBODY = "the old owner's fence says nobody until the new owner is open, not copier"
    FENCE_BEFORE_QUEUE = "the owner is fenced before the first write is queued"
    FENCE_WAITS = "raising a fence waits for every open transaction"
    COPIERS_HOLD_THE_FENCE = "a batch locks the destination's fence, shared, before it reads the owner's row"
    REPLAY_STAGE = "while the queue is replayed, a customer's writes queue behind its pending ones"
    ENQUEUE_CHECKS = "enqueueing looks at the stage in its own transaction"
    ROUTERS_COMPARE_EPOCHS = "a router is refused where the fence is newer than the route it read"
    KEYS_TRAVEL = "the keys of applied writes are copied with the rows"
    ENTRIES_KEPT = "entries are forgotten by who has copied them, and by nobody else, whoever owns the row"
    SWITCH_CHECKS = "the switch itself looks at the proofs"


SOURCE, TARGET = 0, 1
NAMES = ("source", "target")
FIRST, SECOND, BATCH_JOB = "first", "second", "batch job's"
T = TypeVar("T")
Writes: TypeAlias = tuple[str, ...]
Entry: TypeAlias = tuple[str, str]
"""Where it was made (a store's journal, or the ledger) and for which write."""


@dataclass(frozen=True, slots=True)
class Fence:
    writer: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    stage: str = "off"
    owner: int = SOURCE
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A write on its way. ``route``: as its router read it; ``store``: where its transaction is open."""

    write: str
    route: Route | None = None
    store: int | None = None
    again: bool = field(default=False, compare=False)  # for the story's sake


@dataclass(frozen=True, slots=True)
class Batch:
    """An applier's. ``step``: read, then written; looked comes first, or dropping at all, only without a rule."""

    step: str
    into: int
    entries: frozenset[Entry] = frozenset()
    row: Writes = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """Of the oldest queued write. ``done``: it is in effect, and not marked yet."""

    write: str
    store: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """``keys``: the writes that each store knows to be applied."""

    requests: tuple[Request, ...]
    batches: tuple[Batch | None, ...]
    replays: tuple[Replay | None, ...]
    retries: int
    doubts: int
    flips: int
    rollbacks: int
    rows: tuple[Writes, Writes] = ((), ())
    keys: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    journal: frozenset[Entry] = frozenset()
    fences: tuple[Fence, Fence] = (Fence("application"), Fence("copier"))
    # The ledger.
    route: Route = Route()
    step: str | None = None
    queue: Writes = ()
    acknowledged: frozenset[str] = frozenset()

    def written(self, store: int) -> bool:
        """Whether a transaction of the application is open there, and so holds the row."""
        return any(request.store == store for request in self.requests)

    def copied(self, into: int) -> bool:
        """Whether a batch is open there, and so holds the row's shard."""
        return any(batch is not None and batch.step == "read" and batch.into == into for batch in self.batches)


class Flip:
    """``batch_job``: there is one; ``aborts``: the flip may be given up; ``second``: there is a second write."""

    def __init__(
        self,
        without: frozenset[Rule] = frozenset(),
        *,
        second: bool = True,
        retries: int = 0,
        batch_job: bool = False,
        appliers: int = 1,
        replayers: int = 1,
        doubts: int = 0,
        aborts: bool = True,
        flips: int = 1,
        rollbacks: int = 0,
    ) -> None:
        self.rules = frozenset(FlipRule) - without
        self.second, self.aborts = second, aborts
        self.before_drain = ("fence", "queue") if FlipRule.FENCE_BEFORE_QUEUE in self.rules else ("queue", "fence")
        requests = (Request(FIRST), Request(BATCH_JOB)) if batch_job else (Request(FIRST),)
        self.start = State(requests, (None,) * appliers, (None,) * replayers, retries, doubts, flips, rollbacks)

    def starts(self) -> Iterator[tuple[str, State]]:
        yield "the source owns the row, the target has a copy", self.start

    # What must hold

    def wrong(self, state: State) -> str | None:
        writers = tuple(fence.writer for fence in state.fences)
        if writers == ("application", "application"):
            return "both stores let the application write"
        if any(len(set(row)) < len(row) for row in state.rows):
            return "a write is applied twice"
        if any(FIRST in row and SECOND in row and row.index(FIRST) > row.index(SECOND) for row in state.rows):
            return "a customer's writes are applied in the wrong order"
        if not state.acknowledged <= {*state.rows[state.route.owner], *state.queue}:
            return "an acknowledged write is neither in the owner's row nor in the queue"
        if state.rows[SOURCE] != state.rows[TARGET] and not state.journal:
            return "the copies differ, and nothing says so"
        if state.step is None and state.queue:
            return "a write is queued, and nobody is there to replay it"
        return None

    def settled(self, state: State) -> bool:
        at_work = any((*state.requests, *state.batches, *state.replays))
        return not (state.step or state.queue or state.journal or at_work)

    def same_as(self, state: State) -> Hashable:
        """Appliers are alike, and so are requests, and replayers."""
        return replace(
            state,
            requests=tuple(sorted(state.requests, key=hash)),
            batches=tuple(sorted(state.batches, key=hash)),
            replays=tuple(sorted(state.replays, key=hash)),
        )

    # The customer, the routers and the batch job

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        if state.retries and any(request.write == FIRST for request in state.requests):
            again = replace(state, requests=(*state.requests, Request(FIRST, again=True)), retries=state.retries - 1)
            yield "customer: hears nothing, sends the first write again", again
        for at, request in enumerate(state.requests):
            who = "batch job" if request.write == BATCH_JOB else f"router of the {request.write} write"
            for did, after, then in self._request(state, request):
                requests = (*state.requests[:at], *then, *state.requests[at + 1 :])
                yield f"{who}{', sent again' if request.again else ''}: {did}", replace(after, requests=requests)
        for number, batch in enumerate(state.batches):
            for did, after, mine in self._applier(state, batch):
                batches = tuple(mine if at == number else other for at, other in enumerate(state.batches))
                yield f"applier {number + 1}: {did}", replace(after, batches=batches)
        for number, replay in enumerate(state.replays):
            for did, after, its in self._replayer(state, replay):
                replays = tuple(its if at == number else other for at, other in enumerate(state.replays))
                yield f"replayer {number + 1}: {did}", replace(after, replays=replays)
        if state.doubts:
            doubt = replace(state, journal=state.journal | {("ledger", "doubt")}, doubts=state.doubts - 1)
            yield "reconciler: marks the row dirty", doubt
        for did, after in self._controller(state):
            yield f"controller: {did}", after

    def _request(self, state: State, request: Request) -> Iterator[tuple[str, State, tuple[Request, ...]]]:
        """What it did, the state then, and what goes on then: itself, the customer's next one, or nothing."""
        route, next_ = request.route, self._next(state, request)
        acknowledged = state.acknowledged | {request.write}
        if request.store is not None:
            after = replace(self._effect(state, request.write, request.store), acknowledged=acknowledged)
            yield f"commits in the {NAMES[request.store]}, acknowledged", after, next_
            if request.write in state.acknowledged:
                yield "its transaction is rolled back", state, ()
        elif request.write == BATCH_JOB:
            if state.fences[SOURCE].writer != "application":
                yield "is refused, and gives up", state, ()
            elif not state.written(SOURCE):
                yield "begins in the source", state, (replace(request, store=SOURCE),)
        elif route is None:
            yield f"reads the route: {_said(state.route)}", state, (replace(request, route=state.route),)
        elif self._must_queue(state, route):
            if state.route.stage in ("queue", "replay") or FlipRule.ENQUEUE_CHECKS not in self.rules:
                applied = any(request.write in keys for keys in (*state.keys, state.queue))
                queue = state.queue if applied else (*state.queue, request.write)
                yield "queues it, acknowledged", replace(state, queue=queue, acknowledged=acknowledged), next_
            else:
                yield "may not queue it, reads the route again", state, (replace(request, route=None),)
        else:
            fence = state.fences[route.owner]
            stale = fence.epoch > route.epoch and FlipRule.ROUTERS_COMPARE_EPOCHS in self.rules
            if fence.writer != "application" or stale:
                yield "is refused, reads the route again", state, (replace(request, route=None),)
            elif not state.written(route.owner):
                yield f"begins in the {NAMES[route.owner]}", state, (replace(request, store=route.owner),)

    def _next(self, state: State, request: Request) -> tuple[Request, ...]:
        """When the first write is acknowledged, the second is sent. Its router read the route at the beginning."""
        if request.write == FIRST and FIRST not in state.acknowledged and self.second:
            return (Request(SECOND, route=Route()),)
        return ()

    def _must_queue(self, state: State, route: Route) -> bool:
        pending = bool(state.queue) and FlipRule.REPLAY_STAGE in self.rules
        return route.stage == "queue" or (route.stage == "replay" and pending)

    def _effect(self, state: State, write: str, store: int) -> State:
        """The write, once, with its key and its entry, in one transaction."""
        if write in state.keys[store]:
            return state
        return replace(
            state,
            rows=put(state.rows, store, (*state.rows[store], write)),
            keys=put(state.keys, store, state.keys[store] | {write}),
            journal=state.journal | {(NAMES[store], write)},
        )

    # An applier

    def _applier(self, state: State, batch: Batch | None) -> Iterator[tuple[str, State, Batch | None]]:
        """What it did, the state then, and its batch then: None when it is over."""
        if batch is None:
            yield from self._begin(state)
        elif batch.step == "looked":
            if not state.copied(batch.into):
                yield from self._read(state, batch.into, "locks a shard")
        elif batch.step == "read":
            if not state.written(batch.into):
                did = f"writes {_row(batch.row)} into the {NAMES[batch.into]}, commits"
                after = replace(state, rows=put(state.rows, batch.into, batch.row))
                if FlipRule.KEYS_TRAVEL in self.rules:
                    after = replace(after, keys=put(state.keys, batch.into, frozenset(batch.row)))
                yield did, after, replace(batch, step="written", row=())
        elif batch.step == "written":
            yield "forgets the entries it read", replace(state, journal=state.journal - batch.entries), None
        else:
            kept = frozenset(entry for entry in state.journal if entry[0] != NAMES[batch.into])
            yield f"drops the entries of the {NAMES[batch.into]}", replace(state, journal=kept), None

    def _begin(self, state: State) -> Iterator[tuple[str, State, Batch | None]]:
        for into in (SOURCE, TARGET):
            if not state.journal or state.fences[into].writer != "copier":
                continue
            if FlipRule.COPIERS_HOLD_THE_FENCE not in self.rules:
                yield f"looks at the {NAMES[into]}'s fence: copier", state, Batch("looked", into)
            elif not state.copied(into):
                yield from self._read(state, into, f"locks a shard and the {NAMES[into]}'s fence: copier")
        if state.journal and FlipRule.ENTRIES_KEPT not in self.rules:
            owner = state.route.owner
            yield f"reads the route: the {NAMES[owner]} owns", state, Batch("dropping", 1 - owner)

    def _read(self, state: State, into: int, locked: str) -> Iterator[tuple[str, State, Batch | None]]:
        row = state.rows[1 - into]
        did = f"{locked}; reads from the {NAMES[1 - into]}: {_row(row)}"
        yield did, state, Batch("read", into, state.journal, row)

    # A replayer

    def _replayer(self, state: State, replay: Replay | None) -> Iterator[tuple[str, State, Replay | None]]:
        """What it did, the state then, and its replay then: None when it is over."""
        if replay is None:
            if state.step == "replay" and state.queue:
                yield f"takes up the {state.queue[0]} write", state, Replay(state.queue[0], state.route.owner)
            return
        if replay.done:
            queue = tuple(write for write in state.queue if write != replay.write)
            yield f"marks the {replay.write} write done", replace(state, queue=queue), None
        elif state.fences[replay.store].writer != "application":
            yield "is refused", state, None
        elif not state.written(replay.store):
            after = self._effect(state, replay.write, replay.store)
            did = "commits" if after != state else "finds it applied:"
            yield f"{did} the {replay.write} write in the {NAMES[replay.store]}", after, replace(replay, done=True)
        yield "dies", state, None

    # The state machine

    def _controller(self, state: State) -> Iterator[tuple[str, State]]:
        route, owner, other = state.route, state.route.owner, 1 - state.route.owner
        if state.step is None:
            yield from self._asked(state)
        elif state.step == self.before_drain[0]:
            yield from self._fence_or_queue(state, self.before_drain[1])
        elif state.step == self.before_drain[1]:
            yield from self._fence_or_queue(state, "drain")
        elif state.step == "drain":
            if not state.journal:
                yield "drained, no entry is left", replace(state, step="compare")
        elif state.step == "compare":
            if state.rows[SOURCE] == state.rows[TARGET]:
                yield "compares: equal, the proof is recorded", replace(state, step="switch")
        elif state.step == "open":
            yield from self._order(state, owner, "application", "close")
        elif state.step == "close":
            yield from self._order(state, other, "copier", "replay")
        elif state.step == "replay" and not state.queue:
            stage = "off" if owner == SOURCE else "live"
            yield f"the queue is empty, stage {stage}", replace(state, route=replace(route, stage=stage), step=None)
        yield from self._turn(state)

    def _turn(self, state: State) -> Iterator[tuple[str, State]]:
        """Switching, or aborting instead."""
        owner, other = state.route.owner, 1 - state.route.owner
        if state.step == "switch":
            yield f"switches, stage replay, the {NAMES[other]} owns", self._turned(state, other)
        elif state.step in ("drain", "compare") and FlipRule.SWITCH_CHECKS not in self.rules:
            yield f"its tasks are marked green; switches, the {NAMES[other]} owns", self._turned(state, other)
        if self.aborts and state.step in ("fence", "queue", "drain", "compare", "switch"):
            yield f"aborts, stage replay, the {NAMES[owner]} owns", self._turned(state, owner)

    def _asked(self, state: State) -> Iterator[tuple[str, State]]:
        route = Route("fencing", state.route.owner, state.route.epoch + 1)
        begun = replace(state, route=route, step=self.before_drain[0])
        if state.route.stage == "off" and state.flips:
            yield "begins the flip, stage fencing", replace(begun, flips=state.flips - 1)
        if state.route.stage == "live" and state.rollbacks:
            yield "begins the rollback, stage fencing", replace(begun, rollbacks=state.rollbacks - 1)

    def _fence_or_queue(self, state: State, then: str) -> Iterator[tuple[str, State]]:
        if state.step == "fence":
            writer = "nobody" if FlipRule.NOBODY in self.rules else "copier"
            yield from self._order(state, state.route.owner, writer, then)
        else:
            yield "stage queue", replace(state, route=replace(state.route, stage="queue"), step=then)

    def _turned(self, state: State, owner: int) -> State:
        return replace(state, route=Route("replay", owner, state.route.epoch + 1), step="open")

    def _order(self, state: State, store: int, writer: str, then: str) -> Iterator[tuple[str, State]]:
        held = state.copied(store) and FlipRule.COPIERS_HOLD_THE_FENCE in self.rules
        if (state.written(store) or held) and FlipRule.FENCE_WAITS in self.rules:
            return
        fences = put(state.fences, store, Fence(writer, state.route.epoch))
        yield f"the {NAMES[store]}'s fence := {writer}", replace(state, fences=fences, step=then)


def put(pair: tuple[T, T], store: int, value: T) -> tuple[T, T]:
    """The pair with another value for the source, or for the target."""
    return (value, pair[1]) if store == SOURCE else (pair[0], value)


def _said(route: Route) -> str:
    return f"{route.stage}, the {NAMES[route.owner]} owns, epoch {route.epoch}"


def _row(row: Writes) -> str:
    return ", ".join(row) or "no write"
