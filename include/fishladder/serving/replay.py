"""Replay: what was queued goes into the owner, oldest first per entity, as the application (design §9)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from fishladder.errors import AmbiguousError, FishladderError, TransientError
from fishladder.ledger import Ledger, Queued, Route
from fishladder.serving.metrics import Metrics, NoMetrics
from fishladder.serving.operations import Operation, Operations
from fishladder.stores.application import Application, Applied, Session

BATCH = 20
"""Writes that are done in the owner before the ledger hears of them, in one transaction."""
TURN = 5.0
"""Seconds that a replay takes at once: whoever has it done has other things to look after."""
MOST_ATTEMPTS = 5
"""Failures of one write before it is parked, and its entity waits for a person."""


class Replayer:
    """Several may replay a cohort at once: whoever comes second finds the key applied.

    ``reached``: the number of the last write that was tried, of cohorts whose turn was over before all were. Who makes
    another replayer for the next turn keeps it: else the first writes would be tried for ever, and the last ones never.
    """

    def __init__(
        self,
        ledger: Ledger,
        operations: Operations,
        stores: Mapping[str, Application],
        *,
        metrics: Metrics | None = None,
        reached: dict[str, int] | None = None,
    ) -> None:
        self.ledger = ledger
        self.operations = operations
        self.stores = stores
        self.metrics = metrics or NoMetrics()
        self._reached = {} if reached is None else reached
        for side, store in self.stores.items():
            store.connected = operations.for_side(side)

    def replay(self, cohort: str) -> int:
        """Replay what can be replayed now, for a while; how many writes were finished.

        A cohort is replayed where one of ``stores`` owns it. Raises TransientError (the ledger's).
        """
        finished, end, begun = 0, time.monotonic() + TURN, cohort in self._reached
        while (done := self._sweep(cohort, end)) or begun:
            finished, begun = finished + done, False
        return finished

    def _sweep(self, cohort: str, end: float) -> int:
        """Try what waits, once each, so that nobody waits for what others cannot do; how many were finished.

        Until ``end``: the next sweep goes on from there.
        """
        finished, last = 0, self._reached.get(cohort, 0)
        while True:
            self._reached[cohort] = last
            if time.monotonic() >= end:
                return finished
            route, stuck, over = self.ledger.route(cohort), set[bytes](), dict[Queued, Applied]()
            mine = route.stage == "replay" and route.owner in self.stores
            batch = self.ledger.next_queued(cohort, BATCH, after=last) if mine else []
            if not batch:
                self._reached.pop(cohort, None)
                return finished
            try:
                for queued in batch:
                    last = queued.id
                    if queued.entity in stuck:
                        continue  # in order: nothing overtakes what could not be done
                    known = self._one(queued, route)
                    if known is None:
                        stuck.add(queued.entity)
                    else:
                        over[queued] = known
                    if time.monotonic() >= end:
                        break  # after one write at least, however slow the ledger
            except FishladderError:
                self._reached[cohort] = last
                self._tell(over)
                raise
            self._tell(over)
            finished += len(over)

    def _tell(self, over: Mapping[Queued, Applied]) -> None:
        """The ledger, of what was done. Who dies before this finds the keys applied."""
        done = {queued: known.result for queued, known in over.items() if not known.refused}
        if done:
            self.ledger.finish_queued(done)
        for queued in done:
            self.metrics.count("replayed", operation=queued.operation, outcome="done")

    def _one(self, queued: Queued, route: Route) -> Applied | None:
        """What is in the owner now: done, or refused by the business, which the ledger knows then. None: not yet."""
        store = self.stores[route.owner]
        try:
            if queued.state == "unwanted":
                return self._give_up(store, queued, route)
            operation = self.operations[queued.operation]
            if queued.optimistic == "due" and operation.optimistic is not None:
                operation.optimistic(json.loads(queued.payload), queued.key)  # whoever queued it died before
                self.ledger.note_optimistic(queued, "done")
            known = self._decide(operation, store, queued, route)
            if known is not None and known.refused:
                self._refuse(operation, queued, json.loads(known.result or "null"))
            return known
        except Exception as error:  # noqa: BLE001 - a poison write may raise anything, and parks its entity only
            if isinstance(error, (TransientError, AmbiguousError)) or store.is_passing(error):
                self.ledger.rest_queued(queued)  # the applied key says whether it took effect
                return None
            state = self.ledger.note_failed_replay(queued, f"{type(error).__name__}: {error}", MOST_ATTEMPTS)
            self.metrics.count(
                "replayed", operation=queued.operation, outcome="parked" if state == "parked" else "failed"
            )
            return None

    def _decide(self, operation: Operation, store: Application, queued: Queued, route: Route) -> Applied | None:
        """Done or refused, once for everybody: what is recorded first under the key in the owner holds, and a second
        effect is undone with its transaction. None: the owner is not open to this route.
        """
        try:
            with store.transaction() as session:
                if not self._is_open(session, queued, route):
                    return None
                result = json.dumps(operation.on(route.owner)(session.connection, json.loads(queued.payload)))
                known = Applied(digest=queued.digest, result=result)
                if session.record(operation.name, queued.entity, queued.key, known):
                    session.commit()
                    return known
        except operation.refusals as refusal:
            return self._record_refusal(store, queued, route, str(refusal))
        except Exception:
            done = self._recorded(store, queued)
            if done is None:
                raise
            return done
        return self._recorded(store, queued)

    def _record_refusal(self, store: Application, queued: Queued, route: Route, reason: str) -> Applied | None:
        """In the owner: another replayer, behind this one, might find that the business has changed its mind."""
        with store.transaction() as session:
            if not self._is_open(session, queued, route):
                return None
            known = Applied(digest=queued.digest, result=json.dumps(reason), refused=True)
            if session.record(queued.operation, queued.entity, queued.key, known):
                session.commit()
                return known
        return self._recorded(store, queued)

    def _give_up(self, store: Application, queued: Queued, route: Route) -> Applied | None:
        """What a person has given up is refused, unless it took effect before anybody heard of that."""
        known = self._record_refusal(store, queued, route, queued.reason or "given up")
        if known is not None and known.refused:
            operation = self.operations[queued.operation] if queued.operation in set(self.operations) else None
            self._refuse(operation, queued, json.loads(known.result or "null"))
        return known

    def _is_open(self, session: Session, queued: Queued, route: Route) -> bool:
        """Whether the owner is open to this route; it stays so until the transaction ends."""
        fence = session.fence(queued.cohort, hold=True)
        return fence is not None and fence.writer == "application" and fence.epoch == route.epoch

    def _recorded(self, store: Application, queued: Queued) -> Applied | None:
        """What the store has under its key."""
        with store.transaction(reading=True) as session:
            known = session.applied(queued.operation, queued.entity, queued.key)
        if known is not None and known.digest != queued.digest:
            reused = json.dumps(f"the idempotency key {queued.key!r} was used before, with another payload")
            return Applied(digest=queued.digest, result=reused, refused=True)
        return known

    def _refuse(self, operation: Operation | None, queued: Queued, reason: str) -> None:
        """``operation``: None for one that nobody knows any more, and that only a person can refuse."""
        if operation is not None and operation.undo is not None and queued.optimistic is not None:
            operation.undo(json.loads(queued.payload), f"{queued.key}:undo")
            self.ledger.note_optimistic(queued, "undone")
        self.ledger.refuse_queued(queued, reason)
        self.metrics.count("replayed", operation=queued.operation, outcome="refused")
