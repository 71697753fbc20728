"""Many worlds at once, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from tests.simulation import bugs, bugs_moves
from tests.simulation.run import simulate
from tests.simulation.start import start_of

BUGS = bugs.BUGS | bugs_moves.BUGS
ELSEWHERE = bugs.ELSEWHERE | bugs_moves.ELSEWHERE
FOUND_AT = bugs.FOUND_AT | bugs_moves.FOUND_AT


def attempt(seed: int, bug: str | None = None) -> tuple[int, int, str | None]:
    """The seed, how many steps its world took, and what was wrong, if anything."""
    try:
        with planted(bug):
            return seed, simulate(seed).steps, None
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a world is what is looked for
        return seed, 0, f"{type(error).__name__}: {error}"


@contextmanager
def planted(bug: str | None) -> Iterator[None]:
    """The bug is there from the start of a world, and not in the next one's."""
    if bug is None:
        yield
        return
    start_of.cache_clear()
    try:
        with BUGS[bug].plant():
            yield
    finally:
        start_of.cache_clear()


@contextmanager
def workers(jobs: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Worlds share nothing, so that they can use every core."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=spawn, initializer=_settle) as pool:
        yield pool


def _settle() -> None:
    """What was imported stays: the garbage collector, which would look at it many times in each world, need not."""
    gc.freeze()
