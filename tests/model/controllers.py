"""The state machine of an attempt (design §10): two controllers, a watchdog that aborts, orders that are late or lost.

A controller reads the ledger, stalls as long as it likes, and then does what it found to do: it orders a fence, reads
it back, and moves the ledger on by compare-and-set. Any other may have done so meanwhile: a task and the one that was
thought dead, or the replicate task that completes what it finds. Flips and rollbacks may be asked for again and again.

Rows are numbers of writes here: of those that a store has seen, that are queued, and that the customer was told of.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from tests.model.checker import Rule
from tests.model.flip import NAMES, SOURCE, TARGET, Fence, put


class ControllerRule(Rule):
    STEP_COMPARED = "a compare-and-set compares the step, too: who comes second does not move on from where it is now"
    EPOCH_COMPARED = "a compare-and-set compares the epoch"
    ATTEMPT_COMPARED = "a compare-and-set compares the attempt"
    EPOCHS_RISE = "a fence obeys only an order of a higher epoch, so late and repeated ones do nothing"
    READ_BACK = "a fence is read back, and only the very writer and epoch that were ordered let the step pass"
    PROOFS_BOUND = "a proof counts for the attempt and the epoch in which it was made"
    OWNER_FIRST = "the new owner is opened before the old one becomes copier"
    ROLLBACK_FROM_LIVE = "a rollback begins when the flip is live, not while its queue is replayed"
    ONE_OPEN = "a flip begins when no other attempt of the cohort is open"


@dataclass(frozen=True, slots=True)
class Route:
    """``step``: what is to be done next for the attempt, None if none is open."""

    stage: str = "off"
    owner: int = SOURCE
    epoch: int = 0
    attempt: int = 0
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a controller has set out to do. ``sees``: what it found out about it since, and relies on."""

    route: Route
    sees: str | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """How often it may still happen."""

    writes: int
    flips: int
    rollbacks: int
    aborts: int
    losses: int


@dataclass(frozen=True, slots=True)
class State:
    """``dirty``: the row's key; ``proofs``: the attempts and epochs in which the copies were found equal;
    ``late``: orders that have not arrived, or not for the last time.
    """

    left: Left
    rows: tuple[int, int] = (0, 0)
    dirty: bool = False
    fences: tuple[Fence, Fence] = (Fence("application"), Fence("copier"))
    late: frozenset[tuple[int, Fence]] = frozenset()
    # The ledger.
    route: Route = Route()
    queue: int = 0
    proofs: frozenset[tuple[int, int]] = frozenset()
    told: int = 0
    plans: tuple[Plan | None, ...] = (None, None)


Step: TypeAlias = tuple[str, State, Plan | None]
"""What a controller did, the state then, and its plan then: None when it will look into the ledger again."""


class Controllers:
    """The bounds are those of ``Left``."""

    def __init__(
        self,
        without: frozenset[Rule] = frozenset(),
        *,
        writes: int = 1,
        flips: int = 1,
        rollbacks: int = 0,
        aborts: int = 0,
        losses: int = 0,
    ) -> None:
        self.rules = frozenset(ControllerRule) - without
        self.left = Left(writes, flips, rollbacks, aborts, losses)
        turn = ("open", "close") if ControllerRule.OWNER_FIRST in self.rules else ("close", "open")
        self.after = dict(zip(("switch", *turn), (*turn, "replay"), strict=True))
        self.steps = {
            "verify": self._verify,
            "fence": self._fence,
            "drain": self._drain,
            "compare": self._compare,
            "switch": self._switch,
            "open": self._open,
            "close": self._close,
            "replay": self._replay,
        }
        self.after |= {"verify": "fence", "fence": "drain", "drain": "compare", "compare": "switch"}

    def starts(self) -> Iterator[tuple[str, State]]:
        yield "the source owns the rows, the target has copies", State(self.left)

    # What must hold

    def wrong(self, state: State) -> str | None:
        writers = tuple(fence.writer for fence in state.fences)
        route = state.route
        if writers == ("application", "application"):
            return "both stores let the application write"
        if writers == ("copier", "copier"):
            return "both stores let copiers write: a copy may go either way"
        if state.rows[route.owner] + state.queue != state.told:
            return "an acknowledged write is neither in the owner's rows nor in the queue"
        if state.rows[SOURCE] != state.rows[TARGET] and not state.dirty:
            return "the copies differ, and nothing says so"
        if route.step is None and state.queue:
            return "a write is queued, and nobody is there to replay it"
        if route.stage not in ("queue", "replay") and state.queue and writers[route.owner] == "application":
            return "the application may overtake what is queued"
        return None

    def settled(self, state: State) -> bool:
        if state.route.step or state.queue or state.dirty or any(state.plans):
            return False
        return state.fences[state.route.owner].writer == "application"

    def same_as(self, state: State) -> Hashable:
        """Controllers are alike."""
        one, other = state.plans
        return state if hash(one) <= hash(other) else replace(state, plans=(other, one))

    # Everybody but the controllers

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        left, route = state.left, state.route
        if left.writes:
            yield from self._customer(replace(state, left=replace(left, writes=left.writes - 1), told=state.told + 1))
        for into in (SOURCE, TARGET) if state.dirty else ():
            if state.fences[into].writer == "copier":
                rows = put(state.rows, into, state.rows[1 - into])
                yield f"applier: copies to the {NAMES[into]}, forgets", replace(state, rows=rows, dirty=False)
        begun = replace(state, route=replace(route, attempt=route.attempt + 1, step="verify"))
        at_rest = route.step is None
        if left.flips and route.owner == SOURCE and (at_rest or ControllerRule.ONE_OPEN not in self.rules):
            after = replace(begun, left=replace(left, flips=left.flips - 1))
            yield f"operator: asks for a flip, attempt {route.attempt + 1}", after
        too_early = route.stage == "replay" and ControllerRule.ROLLBACK_FROM_LIVE not in self.rules
        if left.rollbacks and route.owner == TARGET and (at_rest or too_early):
            after = replace(begun, left=replace(left, rollbacks=left.rollbacks - 1))
            yield f"operator: asks for a rollback, attempt {route.attempt + 1}", after
        if left.aborts and route.step in ("fence", "drain", "compare", "switch"):
            aborted = replace(route, stage="replay", epoch=route.epoch + 1, step=self.after["switch"])
            after = replace(state, route=aborted, left=replace(left, aborts=left.aborts - 1))
            yield f"watchdog: aborts, {_said(aborted)}", after
        for store, fence in state.late:
            order = f"the {NAMES[store]}'s fence := {fence.writer}, epoch {fence.epoch}"
            yield f"late: {order}", self._ordered(state, store, fence)
        for number, plan in enumerate(state.plans):
            for did, after, mine in self._controller(state, plan):
                plans = tuple(mine if at == number else other for at, other in enumerate(state.plans))
                yield f"controller {number + 1}: {did}", replace(after, plans=plans)

    def _customer(self, state: State) -> Iterator[tuple[str, State]]:
        """Routers compare epochs, and queue behind what is pending: see the flip's model."""
        pending = state.route.stage == "replay" and state.queue > 0
        for store in (SOURCE, TARGET):
            if state.fences[store].writer == "application" and not pending:
                yield f"customer: writes into the {NAMES[store]}", self._written(state, store)
        if state.route.stage == "queue" or pending:
            yield "customer: writes, and it is queued", replace(state, queue=state.queue + 1)

    def _written(self, state: State, store: int) -> State:
        return replace(state, rows=put(state.rows, store, state.rows[store] + 1), dirty=True)

    # A controller

    def _controller(self, state: State, plan: Plan | None) -> Iterator[Step]:
        if plan is None:
            if state.route.step:
                yield f"reads the ledger: {_said(state.route)}", state, Plan(state.route)
            return
        yield from self.steps[plan.route.step or ""](state, plan)
        yield "dies", state, None

    def _verify(self, state: State, plan: Plan) -> Iterator[Step]:
        yield self._moves_on(state, plan, "has compared everything once")

    def _fence(self, state: State, plan: Plan) -> Iterator[Step]:
        yield from self._order(state, plan, plan.route.owner, "nobody")

    def _drain(self, state: State, plan: Plan) -> Iterator[Step]:
        if state.proofs and ControllerRule.PROOFS_BOUND not in self.rules:
            yield self._moves_on(state, plan, "finds a proof, need not drain and compare", done="compare")
        if plan.sees:
            yield self._moves_on(state, plan)
        elif not state.dirty:
            yield "drained, no key is dirty", state, replace(plan, sees="drained")

    def _compare(self, state: State, plan: Plan) -> Iterator[Step]:
        if plan.sees is None:
            if state.rows[SOURCE] == state.rows[TARGET]:
                yield "compares: equal", state, replace(plan, sees="equal")
        else:
            attempt, epoch = plan.route.attempt, plan.route.epoch
            proven = replace(state, proofs=state.proofs | {(attempt, epoch)})
            yield self._moves_on(proven, plan, f"records the proof of attempt {attempt}, epoch {epoch}")

    def _switch(self, state: State, plan: Plan) -> Iterator[Step]:
        bound = ControllerRule.PROOFS_BOUND in self.rules
        if (state.route.attempt, state.route.epoch) in state.proofs or (state.proofs and not bound):
            yield self._moves_on(state, plan, "finds the proof")
        else:
            yield "finds no proof, may not switch", state, None

    def _open(self, state: State, plan: Plan) -> Iterator[Step]:
        yield from self._order(state, plan, plan.route.owner, "application")

    def _close(self, state: State, plan: Plan) -> Iterator[Step]:
        yield from self._order(state, plan, 1 - plan.route.owner, "copier")

    def _replay(self, state: State, plan: Plan) -> Iterator[Step]:
        owner = plan.route.owner
        if not state.queue:
            yield self._moves_on(state, plan, "finds the queue empty")
        elif state.fences[owner] == Fence("application", plan.route.epoch):
            replayed = replace(self._written(state, owner), queue=state.queue - 1)
            yield f"replays a write into the {NAMES[owner]}", replayed, plan
        else:
            yield "may not replay, its epoch is over", state, None

    def _order(self, state: State, plan: Plan, store: int, writer: str) -> Iterator[Step]:
        ordered = Fence(writer, plan.route.epoch)
        if plan.sees is None:
            after = self._ordered(state, store, ordered)
            did = f"orders the {NAMES[store]}'s fence := {writer}, epoch {ordered.epoch}"
            sent = replace(plan, sees="ordered")
            yield did if after != state else f"{did}, which changes nothing", after, sent
            if state.left.losses:
                left = replace(state.left, losses=state.left.losses - 1)
                lost = replace(state, left=left, late=state.late | {(store, ordered)})
                yield f"{did}, which does not arrive", lost, sent
        elif plan.sees == "as ordered" or ControllerRule.READ_BACK not in self.rules:
            yield self._moves_on(state, plan)
        elif state.fences[store] == ordered:
            yield "reads it back: as ordered", state, replace(plan, sees="as ordered")
        else:
            yield "reads it back: not as ordered", state, None

    def _ordered(self, state: State, store: int, ordered: Fence) -> State:
        if ordered.epoch <= state.fences[store].epoch and ControllerRule.EPOCHS_RISE in self.rules:
            return state
        return replace(state, fences=put(state.fences, store, ordered))

    def _moves_on(self, state: State, plan: Plan, why: str = "", done: str | None = None) -> Step:
        """Compare-and-set. ``done``: the step that is behind it then, if it is not the one that the ledger has."""
        now, then = state.route, plan.route
        mine = (
            (now.attempt == then.attempt or ControllerRule.ATTEMPT_COMPARED not in self.rules)
            and (now.epoch == then.epoch or ControllerRule.EPOCH_COMPARED not in self.rules)
            and (now.step == then.step or ControllerRule.STEP_COMPARED not in self.rules)
        )
        why = f"{why}; " if why else ""
        if not mine or now.step is None:
            return f"{why}somebody else has moved on", state, None
        after = self._next(now, done or now.step)
        return f"{why}{_said(after)}", replace(state, route=after), Plan(after) if after.step else None

    def _next(self, route: Route, done: str) -> Route:
        if done == "replay":
            return replace(route, stage="off" if route.owner == SOURCE else "live", step=None)
        route = replace(route, step=self.after[done])
        if done == "verify":
            return replace(route, stage="fencing", epoch=route.epoch + 1)
        if done == "fence":
            return replace(route, stage="queue")
        if done == "switch":
            return replace(route, stage="replay", owner=1 - route.owner, epoch=route.epoch + 1)
        return route


def _said(route: Route) -> str:
    at = f"stage {route.stage}, epoch {route.epoch}"
    return f"{at}, next {route.step}" if route.step else f"{at}, the attempt is over"
