"""Replay: what was queued goes into the owner, oldest first per entity, as the application (design §9)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fishladder.errors import AmbiguousError, RowError, TransientError
from fishladder.ledger import Ledger, Queued, Route
from fishladder.serving.metrics import Metrics, NoMetrics
from fishladder.serving.operations import Operations
from fishladder.stores.application import Application, Applied

BATCH = 100
MOST_ATTEMPTS = 5
"""Failures of one write before it is parked, and its entity waits for a person."""


class Replayer:
    """Several may replay a cohort at once: whoever comes second finds the key applied."""

    def __init__(
        self,
        ledger: Ledger,
        operations: Operations,
        stores: Mapping[str, Application],
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self.ledger = ledger
        self.operations = operations
        self.stores = stores
        self.metrics = metrics or NoMetrics()
        for side, store in self.stores.items():
            store.connected = operations.for_side(side)

    def replay(self, cohort: str) -> int:
        """Replay what can be replayed now; how many writes were finished. Raises TransientError (the ledger's)."""
        finished = 0
        while True:
            route, stuck, before = self.ledger.route(cohort), set[bytes](), finished
            if route.stage != "replay":
                return finished
            for queued in self.ledger.next_queued(cohort, BATCH):
                if queued.entity in stuck:
                    continue  # in order: nothing overtakes what could not be done
                if self._one(queued, route):
                    finished += 1
                else:
                    stuck.add(queued.entity)
            if finished == before:
                return finished

    def _one(self, queued: Queued, route: Route) -> bool:
        """Whether it is over: done, or refused by the business."""
        operation, store = self.operations[queued.operation], self.stores[route.owner]
        payload = json.loads(queued.payload)
        if queued.optimistic == "due" and operation.optimistic is not None:
            operation.optimistic(payload, queued.key)  # whoever queued it died before
            self.ledger.note_optimistic(queued.id, "done")
        try:
            with store.transaction() as session:
                fence = session.fence(queued.cohort, hold=True)
                if fence is None or fence.writer != "application" or fence.epoch != route.epoch:
                    return False
                known = session.applied(operation.name, queued.entity, queued.key)
                if known is None:
                    result = json.dumps(operation.on(route.owner)(session.connection, payload))
                    known = Applied(digest=queued.digest, result=result)
                    session.record(operation.name, queued.entity, queued.key, known)
                    session.commit()
        except (TransientError, AmbiguousError):
            return False  # the applied key says whether it took effect
        except operation.refusals as refusal:
            self._refuse(queued, str(refusal))
            return True
        except Exception as error:  # noqa: BLE001 - a poison write may raise anything, and parks its entity only
            if store.is_passing(error) or (isinstance(error, RowError) and error.unique):
                return False
            state = self.ledger.note_failed_replay(queued.id, f"{type(error).__name__}: {error}", MOST_ATTEMPTS)
            outcome = "parked" if state == "parked" else "failed"
            self.metrics.count("replayed", operation=operation.name, outcome=outcome)
            return False
        self.ledger.finish_queued(queued.id, known.result)
        self.metrics.count("replayed", operation=operation.name, outcome="done")
        return True

    def _refuse(self, queued: Queued, reason: str) -> None:
        operation = self.operations[queued.operation]
        if operation.undo is not None and queued.optimistic is not None:
            operation.undo(json.loads(queued.payload), f"{queued.key}:undo")
            self.ledger.note_optimistic(queued.id, "undone")
        self.ledger.refuse_queued(queued.id, reason)
        self.metrics.count("replayed", operation=operation.name, outcome="refused")
