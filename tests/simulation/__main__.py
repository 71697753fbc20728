"""``python -m tests.simulation --seeds 1000``: run many worlds; a failing seed prints how to replay it."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from fishladder.errors import FishladderError
from tests.simulation.run import simulate


def attempt(seed: int) -> tuple[int, int, str | None]:
    """The seed, how many steps its world took, and what was wrong, if anything."""
    try:
        return seed, simulate(seed).steps, None
    except (AssertionError, FishladderError) as error:
        return seed, 0, f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many worlds (100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--replay", type=int, help="run this one seed and print what its actors did")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    began, steps, failed = time.monotonic(), 0, 0
    with ProcessPoolExecutor() as pool:
        for seed, taken, wrong in pool.map(attempt, range(options.first, options.first + options.seeds), chunksize=4):
            steps += taken
            if wrong:
                failed += 1
                print(f"seed {seed}: {wrong}\n  replay: python -m tests.simulation --replay {seed}", flush=True)
    taken_seconds = time.monotonic() - began
    print(f"{options.seeds} worlds, {steps} steps, {taken_seconds:.0f} s, {failed} wrong")
    return 1 if failed else 0


def replay(seed: int) -> int:
    trace: list[str] = []
    try:
        simulate(seed, trace=trace)
    except (AssertionError, FishladderError) as error:
        print("\n".join(trace))
        print(f"seed {seed}: {type(error).__name__}: {error}")
        return 1
    print("\n".join(trace))
    print(f"seed {seed}: nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
