"""``python -m tests.simulation --seeds 1000``: run many worlds; a failing seed prints how to replay it."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

from tests.simulation.run import kind_of, simulate
from tests.simulation.search import BUGS, attempt, planted, workers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many worlds (100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, help="how many at once (one for each core)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one and print what its actors did")
    parser.add_argument("--bug", choices=BUGS, metavar="NAME", help="plant this bug of bugs.py")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay, options.bug)
    seeds = range(options.first, options.first + options.seeds)
    if options.bug:
        seeds = [seed for seed in seeds if BUGS[options.bug].shows_in(kind_of(seed))]  # type: ignore[assignment]
    extra = f" --bug {options.bug}" if options.bug else ""
    began, steps, failed = time.monotonic(), 0, 0
    with workers(options.jobs) as pool:
        for seed, taken, wrong in pool.map(partial(attempt, bug=options.bug), seeds, chunksize=4):
            steps += taken
            if wrong:
                failed += 1
                print(f"seed {seed}: {wrong}\n  replay: python -m tests.simulation --replay {seed}{extra}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} worlds, {steps:,} steps, {seconds:.0f} s, {len(seeds) / seconds:.1f} worlds/s, {failed} wrong")
    return 1 if failed else 0


def replay(seed: int, bug: str | None) -> int:
    trace: list[str] = []
    try:
        with planted(bug):
            simulate(seed, trace=trace)
    except Exception as error:  # noqa: BLE001 - as above
        print("\n".join(trace))
        print(f"seed {seed}: {type(error).__name__}: {error}")
        return 1
    print("\n".join(trace))
    print(f"seed {seed}: nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
