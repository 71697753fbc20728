"""``python -m benchmarks``: run everything, print a table, and write benchmarks/results.jsonl."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import cases
from benchmarks.ground import Bench, Ground, MysqlGround, SqliteGround
from benchmarks.results import Result, keep, table
from tests.servers import Unavailable, mysql

RESULTS = Path(__file__).with_name("results.jsonl")
ROWS = "ROWS"
SMALLEST = 1_000


def main() -> int:
    """Returns 0; 1 if a goal is missed, or a store cannot be had and ``REQUIRE_STORES=1``; 2 for a wrong size."""
    argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog=f"{ROWS}=n sets the size."
    ).parse_args()
    size = os.environ.get(ROWS) or "100000"
    if not size.isdecimal() or int(size) < SMALLEST:
        print(f"{ROWS}={size}: write a whole number of at least {SMALLEST}", file=sys.stderr)
        return 2
    results: list[Result] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fishladder-bench-") as name:
        for ground in _grounds(Path(name), skipped):
            folder = Path(name) / ground.kind
            folder.mkdir()
            with Bench(ground=ground, folder=folder, invoices=int(size)) as bench:
                for found in _run(bench):
                    print(f"{found.benchmark}: {found.case}: {found.ratio:g}", file=sys.stderr)
                    results.append(found)
    keep(results, RESULTS)
    print(table(results))
    for reason in skipped:
        print(f"!!! NOT MEASURED: {reason}", file=sys.stderr)
    missed = any(found.holds is False for found in results)
    return int(missed or (bool(skipped) and os.environ.get("REQUIRE_STORES") == "1"))


def _grounds(folder: Path, skipped: list[str]) -> Iterator[Ground]:
    yield SqliteGround(folder)
    try:
        server = mysql.dsn()
    except Unavailable as reason:
        skipped.append(f"MySQL, for {reason}")
        return
    yield MysqlGround(server)


def _run(bench: Bench) -> Iterator[Result]:
    for lanes in bench.ground.lanes:
        yield from cases.load(bench, lanes, typed=bench.ground.typed and lanes == 1)
    yield from cases.apply_and_reconcile(bench)
    yield from cases.triggers(bench)


if __name__ == "__main__":
    raise SystemExit(main())
