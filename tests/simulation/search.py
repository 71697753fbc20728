"""Many worlds at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tests.simulation.bugs import BUGS
from tests.simulation.run import simulate


def attempt(seed: int, bug: str | None = None) -> tuple[int, int, str | None]:
    """The seed, how many steps its world took, and what was wrong, if anything."""
    try:
        with planted(bug):
            return seed, simulate(seed).steps, None
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a world is what is looked for
        return seed, 0, f"{type(error).__name__}: {error}"


def planted(bug: str | None) -> AbstractContextManager[Any]:
    return BUGS[bug].plant() if bug else nullcontext()


@contextmanager
def workers(jobs: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Worlds share nothing, so that they can use every core."""
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
