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
from tests.simulation import actors
from tests.simulation.audit import Violation
from tests.simulation.company import Company, Kind, draw_kind, reprice_everything
from tests.simulation.start import place
from tests.simulation.world import Actor, Seam

IMPATIENT = timedelta(seconds=0.2)
"""After so long a lane's chunk may be claimed by the other: a stalled lane becomes a zombie."""
CLEAN_ROWS = 3
POLL = 0.5
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
        closing(Company(seam, folder, kind)) as company,
    ):
        try:
            _play(company, operations)
        finally:
            seam.stop()
    return seam


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
    restarts = dict.fromkeys(makers, 0)
    alive: dict[str, Actor] = {}

    def start(name: str) -> None:
        # The fencer lives: half a fence order is a test of the flip's, not of the copiers'.
        mortal = name != "fencer" and restarts[name] < RESTARTS
        alive[name] = seam.start(name, actors.repeated(company, makers[name]()), mortal=mortal, remote=name != "fencer")

    busy = [seam.start(name, work, mortal=False, remote=False) for name, work in people.items()]
    for name in makers:
        start(name)

    def over() -> bool:
        return all(person.done for person in busy) and all(
            actor.done and not actor.doomed for name, actor in alive.items() if name.startswith(("operator", "prepare"))
        )

    last = seam.start("closing", actors.closing(company, over), mortal=False, remote=False)
    while not last.done:
        seam.run(until=lambda: last.done or any(actor.done and actor.doomed for actor in alive.values()))
        for name in [name for name, actor in alive.items() if actor.done and actor.doomed]:
            restarts[name] += 1
            start(name)


__all__ = ["Violation", "simulate"]
