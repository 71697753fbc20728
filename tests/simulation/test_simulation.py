"""The simulated world holds for seeds, and finds every planted bug."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from fishladder.errors import FishladderError
from tests.simulation.bugs import BUGS
from tests.simulation.run import simulate

SEEDS = range(16)
FOUND_WITHIN = 500


def trouble(seed: int) -> str | None:
    """What is wrong in this world, if anything."""
    try:
        simulate(seed)
    except (AssertionError, FishladderError) as error:
        return f"{type(error).__name__}: {error}; replay: python -m tests.simulation --replay {seed}"
    return None


def found_at(bug: str) -> int | None:
    """The first seed whose world shows the planted bug."""
    with BUGS[bug]():
        return next((seed for seed in range(FOUND_WITHIN) if trouble(seed)), None)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Worlds share nothing, so that they can use every core."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        yield workers


@pytest.fixture(scope="module")
def searches(pool: ProcessPoolExecutor) -> dict[str, Future[int | None]]:
    return {bug: pool.submit(found_at, bug) for bug in BUGS}


def test_no_interleaving_loses_a_row(pool: ProcessPoolExecutor) -> None:
    assert [wrong for wrong in pool.map(trouble, SEEDS) if wrong] == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, searches: dict[str, Future[int | None]]) -> None:
    assert searches[bug].result() is not None, f"{bug} was not found within {FOUND_WITHIN} seeds"


def test_the_same_seed_is_the_same_world() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        simulate(8, trace=trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 500


def test_actors_are_killed_and_begin_again() -> None:
    trace: list[str] = []
    for seed in range(4):
        simulate(seed, trace=trace)
    assert any(line.endswith("killed") for line in trace)
