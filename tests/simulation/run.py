"""One simulated run: a seed in, nothing out, or a Violation."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from unittest.mock import patch

from fishladder import load
from tests.simulation.actors import Company, Violation, reprice_everything, template
from tests.simulation.world import Actor, Seam

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
IMPATIENT = timedelta(seconds=0.2)
"""After so long a lane's chunk may be claimed by the other: a stalled lane becomes a zombie."""
RESTARTS = 6
"""How often an actor that was killed is started again before it may live."""


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fishladder-template-", dir=FAST))
    atexit.register(shutil.rmtree, folder)
    template(folder)
    return folder


def simulate(seed: int, *, operations: int = 12, trace: list[str] | None = None) -> Seam:
    """Run one world to its end: every other one is hot, loaded already and busy with two customers.

    ``trace`` takes what its actors did. Raises Violation, or whatever one raised."""
    seam = Seam(seed)
    seam.trace = [] if trace is None else trace
    with tempfile.TemporaryDirectory(prefix="fishladder-sim-", dir=FAST) as folder:
        company = Company(seam, Path(folder), _template(), hot=seed % 2 == 1)
        try:
            with patch.object(load, "STALE_CLAIM", IMPATIENT):
                _play(company, seam, operations)
            company.check()
        finally:
            seam.stop()
            company.close()
    return seam


def _play(company: Company, seam: Seam, operations: int) -> None:
    people = [seam.start(f"application {n}", company.application(operations), mortal=False) for n in (1, 2)]
    people.append(seam.start("batch job", company.application(3, (reprice_everything,)), mortal=False))
    makers: dict[str, Callable[[], Callable[[], bool]]] = {
        "lane 1": lambda: company.lane("1"),
        "lane 2": lambda: company.lane("2"),
        "applier 1": lambda: company.applier(False),
        "applier 2": lambda: company.applier(False),
        "wide applier": lambda: company.applier(True),
        "reconciler": company.reconciler,
        "fencer": company.fencer,
    }
    restarts = dict.fromkeys(makers, 0)
    alive: dict[str, Actor] = {}

    def start(name: str) -> None:
        # The fencer lives: half a fence order is a test of the flip's, not of the copiers'.
        mortal = name != "fencer" and restarts[name] < RESTARTS
        alive[name] = seam.start(name, company.again(makers[name]()), mortal=mortal)

    for name in makers:
        start(name)
    while True:
        seam.run(until=lambda: any(actor.done and actor.doomed for actor in alive.values()))
        killed = [name for name, actor in alive.items() if actor.done and actor.doomed]
        for name in killed:
            restarts[name] += 1
            start(name)
        if all(person.done for person in people):
            company.ended = True
        if not killed and all(actor.done for actor in alive.values()):
            return


__all__ = ["Violation", "simulate"]
