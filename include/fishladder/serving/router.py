"""The router: where an application's reads and writes go while its state moves (design §9).

No lease and no clock decide anything. A write holds the owner's fence, shared, in its own transaction and compares the
epoch with the route it believes in; what it believes may be old, and then it is refused and looks again. So an
outage of the ledger stops no customer of a cohort that is not being moved, where its route is known. A router that
starts meanwhile serves nobody, and one that has not heard of a move does not serve that cohort.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from fishladder.cells import NO_HOME, cohort_entity
from fishladder.errors import AmbiguousError, FatalError, FishladderError, InputError, TransientError
from fishladder.ledger import Ledger, Queued, Route, Waiting
from fishladder.serving.metrics import Metrics, NoMetrics
from fishladder.serving.operations import Entity, Operation, Operations, Payload, entity_text, payload_text
from fishladder.serving.shadow import Shadow
from fishladder.stores.application import Application, Applied
from fishladder.stores.base import Fence

ROUTE_SECONDS = 1.0
"""How long a route is believed without asking the ledger again; a fence may say sooner that it is old."""
DOWN_SECONDS = 60.0
"""The ledger that failed is not asked for known routes, and a source that did is asked for homes after the target, for
so long: to find a host silent takes a while each time.
"""
PATIENCE = 30.0
"""Seconds that a call tries: longer than a fence takes to be raised, shorter than a customer waits."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.2
"""Seconds between tries, from the third on: after the first, mostly only the route was old."""
KEY_BYTES = 128
MOVING = ("fencing", "queue", "replay")
"""Stages in which writes may be waiting; a router that still believes in the first may be in the second."""
OLD = "its fence, or the ledger, knows another route"
"""Why a try came to nothing, where nothing failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """``done`` with the operation's result, or ``queued``: durable, in order, and replayed within seconds.

    ``repeated``: the key had taken effect before, and this is the result of then.
    """

    state: Literal["done", "queued"]
    result: Any = None
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A write of the entity that was accepted and may not be in the answer yet."""

    operation: str
    key: str
    payload: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``pending_known``: False when the ledger was away, so that nobody could tell what is pending."""

    value: Any
    pending: tuple[Pending, ...] = ()
    pending_known: bool = True


class Refused(FatalError):
    """The business said no to this write when it was replayed; the message is its reason."""


T = TypeVar("T")
Steps: TypeAlias = Generator[float, None, T]
"""A call, step by step. Before the next step it waits for the seconds that it yields: no transaction is open then."""


class _Tries:
    """Of one call, as long as there is patience.

    And once more where only its route was old: a process that stood still for longer has not looked meanwhile.
    """

    def __init__(self, failure: str, patience: float) -> None:
        self.began = time.monotonic()
        self._failure = failure
        self._patience = patience
        self._pause = 0.0
        self._is_last = False

    def pause(self, why: str, where: str = "") -> float:
        """Seconds to wait before the next try. Raises TransientError when there has been time enough."""
        passed = time.monotonic() - self.began
        if passed > self._patience:
            if self._is_last or why != OLD:
                raise TransientError(f"{self._failure}. For {passed:.0f} s: {where}{why}")
            self._is_last = True
        pause, self._pause = self._pause, min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        return pause


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    operation: Operation
    cohort: str
    entity: bytes
    key: str
    payload: Payload
    text: str
    digest: str


class _Outage:
    """Of what is asked, but not needed: who asked and failed did it for everybody, for a while."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When it failed last, or somebody began to ask whether it is over."""

    def lasts(self) -> bool:
        """Whether to do without. Once in a while the one who is told no finds out, and nobody else waits for that."""
        since, now = self.since, time.monotonic()
        if since is not None and now - since < DOWN_SECONDS:
            return True
        if since is not None:
            self.since = now
        return False

    def begin(self) -> None:
        self.since = time.monotonic()

    def end(self) -> None:
        self.since = None


class Router:
    """One for a process; threads share it.

    ``source`` and ``target``: the application's own accounts. ``shadow``: compares reads of cohorts that the source
    owns, off the customer's path.
    """

    def __init__(
        self,
        ledger: Ledger,
        operations: Operations,
        *,
        source: Application,
        target: Application,
        metrics: Metrics | None = None,
        shadow: Shadow | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.ledger = ledger
        self.operations = operations
        self.stores: Mapping[str, Application] = {"source": source, "target": target}
        self.metrics = metrics or NoMetrics()
        for side, store in self.stores.items():
            store.connected = operations.for_side(side)
        self._shadow = shadow
        self._patience = patience
        self._routes: dict[str, tuple[Route, float]] = {}
        self._homes: dict[bytes, str] = {}
        self._source = _Outage()
        self._ledger = _Outage()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        """Held by the one call that asks the ledger where a cohort is that had a known route; it may never hear."""

    def close(self) -> None:
        for store in self.stores.values():
            store.close()

    # Writes

    def write(
        self, operation: str, payload: Payload, *, key: str, entity: Entity | None = None, cohort: str | None = None
    ) -> Written:
        """Do it once in the owner, or queue it while nobody may write.

        ``key``: the idempotency key: the same again is answered and not done again. ``entity``: the customer whose
        rows it writes; for one who is still to be born, and for shared tables, ``cohort`` instead.
        Raises what the operation raises; InputError for a key that was used for another payload, TransientError when
        nothing worked in time (the same call with the same key may be repeated), Refused.
        """
        return _here(self.writing(operation, payload, key=key, entity=entity, cohort=cohort))

    def writing(
        self, operation: str, payload: Payload, *, key: str, entity: Entity | None = None, cohort: str | None = None
    ) -> Steps[Written]:
        """The steps of ``write``, for who waits between them in another way than by sleeping."""
        if not 0 < len(key.encode()) <= KEY_BYTES:  # '' is NULL to Oracle; MySQL may cut a long one in silence
            raise InputError(f"an idempotency key has 1 to {KEY_BYTES} bytes")
        text, digest = payload_text(payload)
        tries = _Tries(f"{operation} could not be written; repeat it with the same key", self._patience)
        where, whose, route = yield from self._begin(entity, cohort, tries)
        wanted = _Write(
            operation=self.operations[operation],
            cohort=where,
            entity=whose,
            key=key,
            payload=payload,
            text=text,
            digest=digest,
        )
        while True:
            written = self._try(wanted, route)
            if isinstance(written, Written):
                outcome = "repeated" if written.repeated else written.state
                self.metrics.count("writes", operation=operation, stage=route.stage, outcome=outcome)
                self.metrics.seconds("write", time.monotonic() - tries.began, operation=operation)
                return written
            yield tries.pause(written, f"{where} is in stage {route.stage}; ")  # until somebody else's step is over
            route = self._route(where, fresh=True)

    def _try(self, wanted: _Write, route: Route) -> Written | str:
        """Or why not: the route was old, or something passing was in the way."""
        if route.stage == "queue":
            return self._queue(wanted, route)
        if route.stage == "replay":
            _, waiting = self._standing(wanted.cohort, wanted.entity)
            if waiting is None:
                return "the ledger does not say what is queued"
            if waiting:
                return self._queue(wanted, route)
        return self._do(wanted, route)

    def _queue(self, wanted: _Write, route: Route) -> Written | str:
        operation = wanted.operation
        try:
            with self.stores[route.owner].transaction(reading=True) as session:
                fence = session.fence(wanted.cohort, hold=False)
                known = session.applied(operation.name, wanted.entity, wanted.key)
        except (TransientError, AmbiguousError) as error:
            return str(error)
        if known is not None:
            return _repeated(wanted, known)
        if fence is not None and (
            fence.epoch > route.epoch or (fence.epoch == route.epoch and fence.writer == "copier")
        ):
            return OLD  # if the ledger knows no newer one, it was restored: it takes nothing
        try:
            found = self.ledger.enqueue(
                wanted.cohort,
                wanted.entity,
                operation.name,
                wanted.key,
                wanted.digest,
                wanted.text,
                optimistic=operation.optimistic is not None,
                epoch=route.epoch,
            )
        except FishladderError as error:  # the key says whether it was queued
            return str(error)
        if isinstance(found, Route):
            self._remember(wanted.cohort, found)
            return OLD
        return self._accepted(wanted, found)

    def _accepted(self, wanted: _Write, queued: Queued) -> Written:
        _check_payload(wanted, queued.digest)
        if queued.state == "done":
            result = None if queued.result is None else json.loads(queued.result)
            return Written(state="done", result=result, repeated=True)
        if queued.state == "refused":
            raise Refused(queued.reason or "refused")
        if queued.optimistic == "due" and wanted.operation.optimistic is not None:
            try:
                wanted.operation.optimistic(wanted.payload, wanted.key)
                self.ledger.note_optimistic(queued, "done")
            except Exception:  # noqa: BLE001 - whatever the application's own code raised: the write is accepted
                self.metrics.count("promises", operation=wanted.operation.name, outcome="left to the replay")
        return Written(state="queued")

    def _do(self, wanted: _Write, route: Route) -> Written | str:
        store, operation = self.stores[route.owner], wanted.operation
        failed: Exception | None = None
        try:
            with store.transaction() as session:
                if not _is_open(session.fence(wanted.cohort, hold=True), route):
                    self.metrics.count("refused", operation=operation.name, stage=route.stage)
                    return OLD
                result = operation.on(route.owner)(session.connection, wanted.payload)
                applied = Applied(digest=wanted.digest, result=json.dumps(result))
                if session.record(operation.name, wanted.entity, wanted.key, applied):
                    session.commit()
                    return Written(state="done", result=result)
        except Exception as error:  # noqa: BLE001 - the key says first what came of it
            failed = error
        with suppress(TransientError, AmbiguousError):
            known = self._applied(wanted, store)
            if known is not None:
                return _repeated(wanted, known)
            if failed is not None and (isinstance(failed, operation.refusals) or not store.is_passing(failed)):
                raise failed
        self.metrics.count("retries", operation=operation.name, stage=route.stage)
        return str(failed or "somebody else is about to do it")

    def _applied(self, wanted: _Write, store: Application) -> Applied | None:
        with store.transaction(reading=True) as session:
            return session.applied(wanted.operation.name, wanted.entity, wanted.key)

    # Reads

    def read(
        self, operation: str, payload: Payload, *, entity: Entity | None = None, cohort: str | None = None
    ) -> Answer:
        """Ask the owner. The answer names the writes of the entity that are accepted and may not be in it yet.

        While a cohort moves, only the ledger knows those; without it, the answer says that they are not known.
        """
        return _here(self.reading(operation, payload, entity=entity, cohort=cohort))

    def reading(
        self, operation: str, payload: Payload, *, entity: Entity | None = None, cohort: str | None = None
    ) -> Steps[Answer]:
        """The steps of ``read``."""
        found = self.operations[operation]
        tries = _Tries(f"{operation} could not be read; repeat it", self._patience)
        where, whose, route = yield from self._begin(entity, cohort, tries)
        pending: list[Waiting] | None = []
        if route.stage in MOVING:
            route, pending = self._standing(where, whose)
        while True:
            value, seen = self._ask(found, payload, where, route)
            if seen == route:
                break
            yield tries.pause(seen if isinstance(seen, str) else OLD, f"{where} is in stage {route.stage}; ")
            route, pending = self._standing(where, whose)
            if isinstance(seen, Route) and (route.owner, route.epoch) == (seen.owner, seen.epoch):
                break  # nothing that waited then has been replayed: the epoch would be higher
        self.metrics.count("reads", operation=operation, stage=route.stage)
        self.metrics.seconds("read", time.monotonic() - tries.began, operation=operation)
        if self._shadow is not None and route.stage in ("off", "shadow"):
            self._shadow.compare(found, payload, value, self.stores, self.metrics)
        return Answer(
            value=value,
            pending=tuple(
                Pending(operation=p.operation, key=p.key, payload=json.loads(p.payload)) for p in pending or ()
            ),
            pending_known=pending is not None,
        )

    def _standing(self, cohort: str, entity: bytes) -> tuple[Route, list[Waiting] | None]:
        """The route, and the entity's writes that wait (None: nobody can tell). Before a value is read: so what is
        replayed meanwhile may be in both, never in neither.

        Both of one moment: while its cohort moves, no read is turned away for a route that is old.
        """
        route = self._route(cohort)
        try:
            found, waiting = self.ledger.standing(cohort, entity)
        except FishladderError:
            return route, None if route.stage in MOVING else []
        known = self._remember(cohort, found)
        return known, waiting if known.epoch == found.epoch else None

    def _ask(self, operation: Operation, payload: Payload, cohort: str, route: Route) -> tuple[Any, Route | str]:
        """The value, and the route under which it is the owner's: the given one, or that of a newer fence that says
        nobody. Or why there is none: it may be a copy's, or something passing was in the way.
        """
        store, under, closed = self.stores[route.owner], route, False
        try:
            with store.transaction(reading=True) as session:
                fence = session.fence(cohort, hold=False)
                if fence is not None and fence.writer != "free" and fence.epoch >= route.epoch:
                    if fence.writer == "copier" or (fence.writer == "application" and fence.epoch > route.epoch):
                        return None, OLD
                    under = replace(route, epoch=fence.epoch)
                closed = fence is not None and fence.writer == "nobody"
                value = operation.on(route.owner)(session.connection, payload)
        except (TransientError, AmbiguousError) as error:
            return None, str(error)
        except Exception as error:
            if not isinstance(error, operation.refusals) and store.is_passing(error):
                return None, str(error)
            if under != route or (closed and not self._is_owner(cohort, route)):
                return None, OLD
            raise
        return value, OLD if closed and not self._is_owner(cohort, route) else under

    def _is_owner(self, cohort: str, route: Route) -> bool:
        """Whether a store whose fence said nobody was the owner when it was read: the other one is not open yet."""
        try:
            with self.stores["target" if route.owner == "source" else "source"].transaction(reading=True) as session:
                fence = session.fence(cohort, hold=False)
            return fence is None or fence.writer not in ("application", "free")
        except (TransientError, AmbiguousError):
            with suppress(FishladderError):
                return self.ledger.route(cohort).owner == route.owner
            return False

    # Where a call goes

    def _begin(self, entity: Entity | None, cohort: str | None, tries: _Tries) -> Steps[tuple[str, bytes, Route]]:
        """The cohort, the entity under which a key is kept, and the route."""
        while True:
            try:
                where, whose = self._place(entity, cohort)
                return where, whose, self._route(where)
            except (TransientError, AmbiguousError) as error:
                failure = error
            yield tries.pause(str(failure))

    def _place(self, entity: Entity | None, cohort: str | None) -> tuple[str, bytes]:
        """The cohort, and the entity under which a key is kept."""
        if cohort is not None and entity is None:
            return cohort, cohort_entity(cohort)
        if entity is None or cohort is not None:  # one: a key that is kept under the other next time is done twice
            raise InputError("a call names its entity, or its cohort where there is none yet, and not both")
        text = entity_text(entity)
        return self._home(text) or NO_HOME, text

    def _home(self, entity: bytes) -> str | None:
        """It never changes, so once known it is known for ever. None: neither store knows it.

        Whoever has moved is served while the source is down, where the target knows the home. The source's word goes
        first all the same, and only what was asked in this order is kept.
        """
        if entity in self._homes:
            return self._homes[entity]
        trusted = not self._source.lasts()
        failures: list[FishladderError] = []
        for side in ("source", "target") if trusted else ("target", "source"):
            try:
                with self.stores[side].transaction(reading=True) as session:
                    found = session.home(entity)
            except FishladderError as error:
                failures.append(error)
                self.metrics.count("outages", of=side, error=type(error).__name__)
                if side == "source":
                    self._source.begin()
                continue
            if side == "source":
                self._source.end()
            if found is not None:
                if trusted and not failures:
                    self._homes[entity] = found
                return found
        if failures:
            passing = [error for error in failures if isinstance(error, (TransientError, AmbiguousError))]
            raise (passing or failures)[0]
        return None

    def _route(self, cohort: str, *, fresh: bool = False) -> Route:
        """What is known may be old, for a fence refuses then: so no failure of the ledger is one of who has it."""
        known = self._routes.get(cohort)
        if known is None or fresh:
            return self._asked(cohort)
        if time.monotonic() - known[1] < ROUTE_SECONDS or not self._asking.acquire(blocking=False):
            return known[0]
        try:
            return known[0] if self._ledger.lasts() else self._asked(cohort)
        finally:
            self._asking.release()

    def _asked(self, cohort: str) -> Route:
        known = self._routes.get(cohort)
        try:
            if known is None:  # of all cohorts at once: the ledger may be away when the next one is asked for
                for other, found in self.ledger.routes().items():
                    self._remember(other, found)
            route = self.ledger.route(cohort)
        except FishladderError as error:
            if known is None and isinstance(error, InputError):  # it answers: there is no such cohort
                raise
            self._ledger.begin()
            self.metrics.count("outages", of="ledger", error=type(error).__name__)
            if known is None:
                raise
            return known[0]
        self._ledger.end()
        return self._remember(cohort, route)

    def _remember(self, cohort: str, route: Route) -> Route:
        with self._lock:
            known = self._routes.get(cohort)
            if known is not None and known[0].epoch > route.epoch:
                return known[0]
            if known is not None and known[0].epoch == route.epoch and known[0].owner != route.owner:
                return known[0]  # a ledger that was restored came to this epoch by another way
            self._routes[cohort] = (route, time.monotonic())
            return route


def _repeated(wanted: _Write, known: Applied) -> Written:
    """The answer to a key that was used before. Raises InputError (with another payload), Refused."""
    _check_payload(wanted, known.digest)
    result = json.loads(known.result or "null")
    if known.refused:
        raise Refused(result)
    return Written(state="done", result=result, repeated=True)


def _check_payload(wanted: _Write, digest: str) -> None:
    if digest != wanted.digest:
        reused = f"the idempotency key {wanted.key!r} was used before, with another payload"
        raise InputError(f"{wanted.operation.name}: {reused}")


def _is_open(fence: Fence | None, route: Route) -> bool:
    """Whether the application may write here, and no newer route than the one that the router believes in says where.

    An older fence is one that an attempt has not reached yet: the application may still write.
    """
    if fence is None:
        return False
    return fence.writer == "free" or (fence.writer == "application" and fence.epoch <= route.epoch)


def _here(steps: Steps[T]) -> T:
    """Take them in this thread."""
    while True:
        try:
            pause = next(steps)
        except StopIteration as end:
            answer: T = end.value
            return answer
        time.sleep(pause)
