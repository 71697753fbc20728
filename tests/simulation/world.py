"""A deterministic world: of all actors exactly one runs at a time, and a seeded scheduler says which.

Every call of a store, a transaction or the ledger passes ``Seam.point``: there the scheduler may let another actor
go on, put this one to sleep, or kill it; and the network may lose the call. The stores are real SQLite files; the
seam is a proxy around them, so the code under test knows nothing of it. The same seed gives the same run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal

from greenlet import getcurrent, greenlet

from fishladder.errors import AmbiguousError, TransientError

STEPS = 60_000

Fault = Literal["away", "lost", "done"]
"""Of a call: it never arrives; its answer never comes and it was not done; nor does its answer, but it was done."""


class Killed(BaseException):
    """The process of an actor dies here. Not an Exception: nothing may catch it."""


class Stuck(AssertionError):
    """The world made no progress within its steps."""


@dataclass(slots=True, kw_only=True, eq=False)
class Actor:
    """``mortal``: it may be killed. ``remote``: it is a process of its own, whose connections may break."""

    name: str
    work: Callable[[], None]
    mortal: bool
    remote: bool
    thread: greenlet | None = None
    wakes: float = 0.0
    done: bool = False
    doomed: bool = False
    error: BaseException | None = None


class Seam:
    """The scheduler. ``kills``: the chance, per point, that the actor at it dies there."""

    def __init__(self, seed: int, *, kills: float = 0.002) -> None:
        self.random = random.Random(seed)
        self.kills = kills
        self.network = Network(self)
        self.now = 0.0
        self.steps = 0
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.trace: list[str] = []

    # Called by actors

    @property
    def actor(self) -> Actor | None:
        """Who runs now; None while the world itself does: set-up and checks."""
        return self.current if self.current is not None and getcurrent() is self.current.thread else None

    def point(self, what: str) -> None:
        actor = self.actor
        if actor is not None:
            self.say(what)
            self._wait(actor)

    def say(self, what: str) -> None:
        if self.current is not None:
            self.trace.append(f"{self.now:.3f} {self.current.name}: {what}")

    @contextmanager
    def work(self, what: str) -> Iterator[None]:
        """Says when it begins and ends, however that is."""
        self.say(f"begins {what}")
        try:
            yield
        finally:
            self.say(f"ends {what}")

    def sleep(self, seconds: float) -> None:
        actor = self.actor
        if actor is None:
            self.now += seconds
            return
        actor.wakes = self.now + seconds
        self._wait(actor)

    def _wait(self, actor: Actor) -> None:
        assert actor.thread is not None and actor.thread.parent is not None
        actor.thread.parent.switch()
        if actor.doomed:
            raise Killed

    # The world's side

    def start(self, name: str, work: Callable[[], None], *, mortal: bool = True, remote: bool = True) -> Actor:
        actor = Actor(name=name, work=work, mortal=mortal, remote=remote)
        actor.thread = greenlet(lambda: self._live(actor))
        actor.wakes = self.now
        self.actors.append(actor)
        return actor

    def _live(self, actor: Actor) -> None:
        try:
            if not actor.doomed:
                actor.work()
        except Killed:
            self.trace.append(f"{self.now:.3f} {actor.name}: killed")
        except BaseException as error:  # noqa: BLE001 - whatever ends an actor ends the run: kept here, raised by ``run``
            actor.error = error
        actor.done = True

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
            self._let(actor)
            if actor.error is not None:
                raise actor.error

    def _let(self, actor: Actor) -> None:
        assert actor.thread is not None
        self.current = actor
        actor.thread.switch()
        self.current = None

    def stop(self) -> None:
        """End what is left of the actors, so that nobody holds a database of a world that is over."""
        for actor in self.actors:
            actor.doomed = True
            while not actor.done:
                self._let(actor)


class Network:
    """What comes between an actor and a database. Nothing does until ``cuts`` and ``partitions`` are chances."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam
        self.cuts = 0.0
        self.partitions = 0.0
        self._away: dict[tuple[str | None, str], float] = {}

    def heal(self) -> None:
        self.cuts = self.partitions = 0.0
        self._away.clear()

    def fault(self, database: str) -> Fault | None:
        """What happens to this call of the actor that runs now."""
        actor, random = self.seam.actor, self.seam.random
        if actor is None or not actor.remote:
            return None
        if self.partitions and random.random() < self.partitions:
            whom = random.choice((None, actor.name))  # nobody reaches this database, or only this actor does not
            self._away[whom, database] = self.seam.now + random.choice((0.02, 0.1, 0.5))
            self.seam.say(f"the {database} is out of reach for {whom or 'everybody'}")
        if any(self._away.get((whom, database), 0.0) > self.seam.now for whom in (None, actor.name)):
            return "away"
        if self.cuts and random.random() < self.cuts:
            return random.choice(("away", "lost", "done"))
        return None


class Clock:
    """Virtual time. ``skew``: the clocks of actors differ by up to so many seconds, and jump back and forth."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam
        self.skew = 0.0
        self._off: dict[str, float] = {}

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=1, seconds=self.seam.now + self._offset())

    def _offset(self) -> float:
        actor = self.seam.actor
        if actor is None or not self.skew:
            return 0.0
        if actor.name not in self._off or self.seam.random.random() < 0.05:
            self._off[actor.name] = self.seam.random.uniform(-self.skew, self.skew)
            self.seam.say(f"its clock is off by {self._off[actor.name]:+.1f} s")
        return self._off[actor.name]

    def monotonic(self) -> float:
        return self.seam.now

    def sleep(self, seconds: float) -> None:
        self.seam.sleep(seconds)


After = Callable[[str, tuple[Any, ...], Any], None]
"""Told of every call that was done, before anybody else goes on: its label, arguments and result."""

UNSEEN = ("savepoint", "close", "connection", "is_passing")
"""What no other process can come between."""
_WRITES = ("install_", "raise_token", "backfill_homes", "hear", "commit")


class Watched:
    """A proxy: each call of the thing inside passes the seam; a call that finds a lock taken waits for its turn.

    ``ambiguous``: whether a lost answer to a call of this name leaves open what was done.
    """

    def __init__(self, inner: Any, seam: Seam, name: str, after: After, *, ledger: bool = False) -> None:
        self._inner, self._seam, self._name, self._after, self._ledger = inner, seam, name, after, ledger

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        if not callable(found) or attribute in UNSEEN:
            return found
        label = f"{self._name}.{attribute}"

        def call(*args: Any, **kwargs: Any) -> Any:
            self._seam.point(label)
            if attribute in ("begin", "read", "transaction"):
                return WatchedSession(lambda: found(*args, **kwargs), self._seam, label, self._after)
            fault = self._seam.network.fault(self._name.partition(".")[0])
            if fault is not None and (fault == "away" or not (self._ledger or attribute.startswith(_WRITES))):
                self._seam.say("away")
                raise TransientError(f"{label}: the connection was lost before anything was done")
            if fault == "lost":
                self._seam.say("lost")
                raise AmbiguousError(f"{label}: no answer")
            result = _patiently(lambda: found(*args, **kwargs), self._seam)
            self._after(label, args, result)
            if fault == "done":
                self._seam.say("done, but no answer")
                raise AmbiguousError(f"{label}: no answer")
            return result

        self.__dict__[attribute] = call  # found at once from here on, also by isinstance, which looks for every method
        return call


class WatchedSession:
    """The ``with`` block of a transaction or a reader."""

    def __init__(self, open_: Callable[[], AbstractContextManager[Any]], seam: Seam, name: str, after: After) -> None:
        self._open, self._seam, self._name, self._after = open_, seam, name, after
        self._manager: AbstractContextManager[Any] | None = None

    def __enter__(self) -> Watched:
        def enter() -> Any:
            self._manager = self._open()
            return self._manager.__enter__()

        if self._seam.network.fault(self._name.partition(".")[0]) is not None:
            self._seam.say("away")
            raise TransientError(f"{self._name}: no connection")
        return Watched(_patiently(enter, self._seam), self._seam, self._name, self._after)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None
        return self._manager.__exit__(kind, error, trace)


def _patiently(call: Callable[[], Any], seam: Seam) -> Any:
    wait = 0.002
    while True:
        try:
            return call()
        except TransientError as error:
            if "locked" not in str(error) or seam.actor is None:
                raise
            seam.sleep(wait)  # somebody else has the lock: let them go on
            wait = min(2 * wait, 0.02)
