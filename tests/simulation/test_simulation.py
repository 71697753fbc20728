"""The simulated world holds for seeds, and finds every planted bug."""

from __future__ import annotations

import pytest

from fishladder.errors import FishladderError
from tests.simulation.bugs import BUGS
from tests.simulation.run import simulate

SEEDS = 20
FOUND_WITHIN = 500


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_interleaving_loses_a_row(seed: int) -> None:
    simulate(seed)


def test_the_same_seed_is_the_same_world() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        simulate(7, trace=trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 500


def test_actors_are_killed_and_begin_again() -> None:
    trace: list[str] = []
    for seed in range(5):
        simulate(seed, trace=trace)
    assert any(line.endswith("killed") for line in trace)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    with BUGS[bug]():
        for seed in range(FOUND_WITHIN):
            try:
                simulate(seed)
            except (AssertionError, FishladderError):
                return
    pytest.fail(f"{bug} was not found within {FOUND_WITHIN} seeds")
