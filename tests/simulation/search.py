"""Many worlds at once, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from fishladder.errors import FishladderError
from tests.simulation import bugs, bugs_moves
from tests.simulation.audit import Violation
from tests.simulation.run import simulate
from tests.simulation.start import start_of
from tests.simulation.world import Stuck

BUGS = bugs.BUGS | bugs_moves.BUGS
ELSEWHERE = bugs.ELSEWHERE | bugs_moves.ELSEWHERE
FOUND_AT = bugs.FOUND_AT | bugs_moves.FOUND_AT


def attempt(seed: int, bug: str | None = None) -> tuple[int, int, str | None]:
    """The seed, how many steps its world took, and what was wrong, if anything.

    A planted bug that ends a world otherwise than by a verdict does not fit the code any more: that is raised.
    """
    with planted(bug):
        try:
            return seed, simulate(seed).steps, None
        except Exception as error:
            if bug is not None and not is_verdict(error):
                raise RuntimeError(f"{bug} does not fit the code any more: mend it") from error
            return seed, 0, f"{type(error).__name__}: {error}"


def is_verdict(error: Exception) -> bool:
    """Whether the auditors or fishladder itself say that something is wrong: not Python, nor a store's own parser."""
    return isinstance(error, Violation | Stuck | FishladderError) and not isinstance(error.__cause__, sqlite3.Error)


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
