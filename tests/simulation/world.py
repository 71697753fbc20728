"""A deterministic world: actors are threads, exactly one runs at a time, and a seeded scheduler says which.

Every call of a store, a transaction or the ledger passes ``Seam.point``: there the scheduler may let another actor
go on, put this one to sleep, or kill it. The stores are real SQLite files; the seam is a proxy around them, so the
code under test knows nothing of it. The same seed gives the same run.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from fishladder.errors import TransientError

STEPS = 60_000


class Killed(BaseException):
    """The process of an actor dies here. Not an Exception: nothing may catch it."""


class Stuck(AssertionError):
    """The world made no progress within its steps."""


@dataclass(slots=True)
class Actor:
    name: str
    work: Callable[[], None]
    mortal: bool
    baton: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thread: threading.Thread | None = None
    wakes: float = 0.0
    done: bool = False
    doomed: bool = False
    error: BaseException | None = None


class Seam:
    """The scheduler. ``kills``: the chance, per point, that the actor at it dies there."""

    def __init__(self, seed: int, *, kills: float = 0.002) -> None:
        self.random = random.Random(seed)
        self.kills = kills
        self.now = 0.0
        self.steps = 0
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self._back = threading.Semaphore(0)
        self.trace: list[str] = []

    # Called by actors

    def point(self, what: str) -> None:
        actor = self.current
        if actor is None or threading.current_thread() is not actor.thread:
            return  # set-up and checks run outside the world
        self.trace.append(f"{actor.name}: {what}")
        self._wait(actor)

    def sleep(self, seconds: float) -> None:
        actor = self.current
        if actor is None or threading.current_thread() is not actor.thread:
            self.now += seconds
            return
        actor.wakes = self.now + seconds
        self._wait(actor)

    def _wait(self, actor: Actor) -> None:
        self._back.release()
        actor.baton.acquire()
        if actor.doomed:
            raise Killed

    # The world's side

    def start(self, name: str, work: Callable[[], None], *, mortal: bool = True) -> Actor:
        actor = Actor(name=name, work=work, mortal=mortal)
        actor.thread = threading.Thread(target=self._live, args=(actor,), daemon=True)
        self.actors.append(actor)
        actor.thread.start()
        return actor

    def _live(self, actor: Actor) -> None:
        actor.baton.acquire()
        try:
            if not actor.doomed:
                actor.work()
        except Killed:
            self.trace.append(f"{actor.name}: killed")
        except BaseException as error:  # noqa: BLE001 - whatever ends an actor ends the run: kept here, raised by ``run``
            actor.error = error
        actor.done = True
        self._back.release()

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let actors go on until all are done; what one of them raises is raised here."""
        while True:
            waiting = [actor for actor in self.actors if not actor.done]
            if not waiting or until():
                return
            self.steps += 1
            if self.steps > STEPS:
                raise Stuck(f"nothing ended within {STEPS} steps: {[actor.name for actor in waiting]}")
            ready = [actor for actor in waiting if actor.wakes <= self.now]
            if not ready:
                self.now = min(actor.wakes for actor in waiting)
                continue
            actor = self.random.choice(ready)
            self.now += 0.001
            if actor.mortal and self.random.random() < self.kills:
                actor.doomed = True
            elif self.random.random() < 0.02:
                actor.wakes = self.now + self.random.choice((0.02, 0.1, 0.5))  # a pause, a stall
                continue
            self.current = actor
            actor.baton.release()
            self._back.acquire()
            self.current = None
            if actor.error is not None:
                raise actor.error

    def stop(self) -> None:
        """End what is left of the actors, so that no thread outlives its world."""
        for actor in self.actors:
            while not actor.done:
                actor.doomed = True
                actor.wakes = 0.0
                self.current = actor
                actor.baton.release()
                self._back.acquire()
        self.current = None


class Clock:
    """Virtual time."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seam.now)

    def monotonic(self) -> float:
        return self.seam.now

    def sleep(self, seconds: float) -> None:
        self.seam.sleep(seconds)


class Watched:
    """A proxy: each call of the thing inside passes the seam; a call that finds a lock taken waits for its turn."""

    def __init__(self, inner: Any, seam: Seam, name: str) -> None:
        self._inner, self._seam, self._name = inner, seam, name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        if not callable(found) or attribute in ("savepoint", "close"):
            return found
        label = f"{self._name}.{attribute}"

        def call(*args: Any, **kwargs: Any) -> Any:
            self._seam.point(label)
            if attribute in ("begin", "read"):
                return WatchedSession(lambda: found(*args, **kwargs), self._seam, label)
            return _patiently(lambda: found(*args, **kwargs), self._seam, label)

        return call


class WatchedSession:
    """The ``with`` block of a transaction or a reader."""

    def __init__(self, open_: Callable[[], AbstractContextManager[Any]], seam: Seam, name: str) -> None:
        self._open, self._seam, self._name = open_, seam, name
        self._manager: AbstractContextManager[Any] | None = None

    def __enter__(self) -> Watched:
        def enter() -> Any:
            self._manager = self._open()
            return self._manager.__enter__()

        return Watched(_patiently(enter, self._seam, self._name), self._seam, self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None
        return self._manager.__exit__(kind, error, trace)


def _patiently(call: Callable[[], Any], seam: Seam, label: str) -> Any:
    while True:
        try:
            return call()
        except TransientError as error:
            if "locked" not in str(error):
                raise
            seam.sleep(0.003)  # somebody else has the lock: let them go on
