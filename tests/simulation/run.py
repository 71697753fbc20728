"""One simulated run: a seed in, nothing out, or a Violation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from unittest.mock import patch

from fishladder import apply, load, operate
from fishladder.serving import replay, router
from tests.simulation import actors, movers
from tests.simulation.audit import Violation
from tests.simulation.company import Company, Kind, draw_kind, reprice_everything
from tests.simulation.shop import draw_calls
from tests.simulation.start import place
from tests.simulation.world import Actor, Seam

IMPATIENT = timedelta(seconds=0.2)
"""After so long a lane's chunk may be claimed by the other: a stalled lane becomes a zombie."""
CLEAN_ROWS = 3
POLL = 0.5
ROUTE_SECONDS = 3.0
"""Routers believe longer in what they know than they do in life: that old routes do no harm is what is shown."""
RESTARTS = 6
"""How often an actor that was killed is started again before it may live."""


def kind_of(seed: int) -> Kind:
    return draw_kind(Random(f"kind {seed}"))


def simulate(seed: int, *, operations: int = 20, trace: list[str] | None = None) -> Seam:
    """Run one world to its end. What happens in it is drawn, too: see ``company.Kind``.

    ``trace`` takes what its actors did. Raises Violation, or whatever one raised."""
    seam = Seam(seed)
    seam.trace = [] if trace is None else trace
    kind = kind_of(seed)
    seam.trace.append(repr(kind))
    with (
        _folder() as folder,
        patch.object(load, "STALE_CLAIM", IMPATIENT),
        patch.object(operate, "CLEAN_ROWS", CLEAN_ROWS),
        patch.object(apply, "POLL", POLL),
        patch.object(router, "time", _Time(seam)),
        patch.object(replay, "time", _Time(seam)),
        patch.object(router, "ROUTE_SECONDS", ROUTE_SECONDS),
        closing(Company(seam, folder, kind)) as company,
    ):
        try:
            if kind.moves:
                _play_moves(company)
            else:
                _play(company, operations)
        finally:
            seam.stop()
    return seam


class _Time:
    """What the router and the replayer know of time."""

    def __init__(self, seam: Seam) -> None:
        self.monotonic, self.sleep = lambda: seam.now, seam.sleep


@contextmanager
def _folder() -> Iterator[Path]:
    """Every world of this process has the same, after the one before."""
    folder = place() / "world"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _play(company: Company, operations: int) -> None:
    seam, kind = company.seam, company.kind
    seam.network.cuts, seam.network.partitions, company.clock.skew = kind.cuts, kind.partitions, kind.skew
    people = {
        "application 1": company.application(operations),
        "application 2": company.application(operations),
        "batch job": company.application(2, (reprice_everything,)),
        "stray": company.stray,
    }
    if kind.damage:
        people["vandal"] = company.vandal
    if kind.uncovered:
        people["administrator"] = company.uncover
    makers: dict[str, Callable[[], actors.Once]] = {
        **{f"applier {number}": lambda: actors.applier(company) for number in range(kind.appliers)},
        **{f"replicate {number}": lambda: actors.replicate(company) for number in range(kind.replications)},
        **{f"reconciler {number}": lambda: actors.reconciler(company) for number in range(kind.reconcilers)},
        "fencer": lambda: actors.fencer(company),
    }
    if kind.begins == "bare":
        makers |= {f"prepare {number}": lambda: actors.prepare(company) for number in (1, 2)}
    orders = [seam.random.choice(actors.ORDERS) for _ in range(kind.orders)]
    restarting = any(order.startswith("restart") for order in orders)
    if orders:
        # The same form twice, or two people who do not know of each other.
        twice = [list(orders), seam.random.choice((list(orders), list(orders), orders[::-1], []))]
        makers |= {f"operator {at}": lambda mine=mine: actors.operator(company, mine) for at, mine in enumerate(twice)}
    if kind.begins != "loaded" or restarting:
        # Lane 1 is there twice: two tasks that believe to be the same lane.
        makers |= {f"lane {name}": lambda name=name: actors.lane(company, name[0]) for name in ("1", "1 again", "2")}
    busy = [seam.start(name, work, mortal=False, remote=False) for name, work in people.items()]
    # The fencer lives: half a fence order is a test of the flip's, not of the copiers'.
    alive = _Alive(company, makers, immortal=("fencer",))

    def over() -> bool:
        return all(person.done for person in busy) and all(
            actor.done and not actor.doomed
            for name, actor in alive.actors.items()
            if name.startswith(("operator", "prepare"))
        )

    alive.until(seam.start("closing", actors.closing(company, over), mortal=False, remote=False))


def _play_moves(company: Company) -> None:
    seam, kind = company.seam, company.kind
    seam.network.cuts, seam.network.partitions, company.clock.skew = kind.cuts, kind.partitions, kind.skew
    people = {"batch job": movers.batch_job(company)}
    if kind.restored:
        people["restorer"] = movers.restorer(company)
    makers: dict[str, Callable[[], actors.Once]] = {
        **{f"replicate {number}": lambda: movers.replicate(company) for number in range(kind.replications)},
        **{f"reconciler {number}": lambda: actors.reconciler(company) for number in range(kind.reconcilers)},
        "meddler": lambda: movers.meddler(company),
        "clerk": lambda: movers.clerk(company),
    }
    for number in (1, 2):
        asks = [seam.random.choice(movers.WHOM) for _ in range(seam.random.choice((2, 4)))]
        makers[f"mover {number}"] = lambda asks=asks: movers.mover(company, asks)
    moving = [name for name in makers if name.startswith("mover")]

    def going_on() -> bool:
        return not all(alive.actors[name].done and not alive.actors[name].doomed for name in moving)

    for number in (1, 2, 3):
        makers[f"shop {number}"] = movers.shop(
            company, draw_calls(seam, company.book, 25, going_on, company.moving.under_way)
        )
    busy = [seam.start(name, work, mortal=False, remote=False) for name, work in people.items()]
    alive = _Alive(company, makers)

    def over() -> bool:
        return all(person.done for person in busy) and all(
            actor.done and not actor.doomed
            for name, actor in alive.actors.items()
            if name.startswith(("mover", "shop"))
        )

    alive.until(seam.start("closing", movers.closing_moves(company, over), mortal=False, remote=False))


class _Alive:
    """Actors that are started again when they were killed."""

    def __init__(
        self, company: Company, makers: dict[str, Callable[[], actors.Once]], immortal: tuple[str, ...] = ()
    ) -> None:
        self.company, self.makers, self.immortal = company, makers, immortal
        self.restarts = dict.fromkeys(makers, 0)
        self.actors: dict[str, Actor] = {}
        for name in makers:
            self._start(name)

    def _start(self, name: str) -> None:
        work = actors.repeated(self.company, self.makers[name]())
        lives = name in self.immortal
        mortal = not lives and self.restarts[name] < RESTARTS
        self.actors[name] = self.company.seam.start(name, work, mortal=mortal, remote=not lives)

    def until(self, last: Actor) -> None:
        while not last.done:
            self.company.seam.run(until=lambda: last.done or bool(self._dead()))
            for name in self._dead():
                self.restarts[name] += 1
                self._start(name)

    def _dead(self) -> list[str]:
        return [name for name, actor in self.actors.items() if actor.done and actor.doomed]


__all__ = ["Violation", "simulate"]
