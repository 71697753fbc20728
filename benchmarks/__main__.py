"""``python -m benchmarks``: measure, print a table, and write benchmarks/results.jsonl."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from benchmarks import airflow_tasks, apply, flip, load, oracle, peers, reconcile, workers
from benchmarks.ground import Ground, database
from benchmarks.results import Result, keep, table
from billing.database import connect
from tests.servers import Unavailable, mysql

RESULTS = Path(__file__).with_name("results.jsonl")
SMALLEST = 1_000
LARGEST = 100_000_000
SETTINGS = ("version", "innodb_flush_log_at_trx_commit", "sync_binlog", "log_bin", "innodb_buffer_pool_size")

CASES: dict[str, Callable[[Ground], Iterator[Result]]] = {
    "load": load.load,
    "memory": load.memory,
    "oracle": oracle.oracle,
    "reconcile": reconcile.reconcile,
    "found": reconcile.found,
    "apply": apply.apply,
    "lag": apply.lag,
    "triggers": apply.triggers,
    "flip": flip.flip,
    "router": flip.router,
    "tasks": airflow_tasks.tasks,
    "parse": airflow_tasks.parse,
    "workers": workers.workers,
    "peers": peers.peers,
}


def main() -> int:
    """Returns 0; 1 if a goal is missed, or a store cannot be had and ``REQUIRE_STORES=1``; 2 for wrong settings."""
    argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"Set in the environment: ROWS=n, the size; CASES=a,b out of {', '.join(CASES)}; PEERS=1 to install"
        " and run other tools beside fishladder; NICE=n, the priority of copiers in the case flip.",
    ).parse_args()
    size = os.environ.get("ROWS") or "1000000"
    if not size.isdecimal() or not SMALLEST <= int(size) <= LARGEST:
        print(f"ROWS={size}: write a whole number from {SMALLEST} to {LARGEST}", file=sys.stderr)
        return 2
    with_peers = os.environ.get("PEERS") == "1"
    default = [name for name in CASES if with_peers or name != "peers"]
    chosen = [name.strip() for name in os.environ.get("CASES", "").split(",") if name.strip()] or default
    if unknown := set(chosen) - CASES.keys():
        print(f"CASES: there is no {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}", file=sys.stderr)
        return 2
    try:
        server = mysql.dsn()
    except Unavailable as reason:
        print(f"!!! NOT MEASURED: {reason}", file=sys.stderr)
        return int(os.environ.get("REQUIRE_STORES") == "1")
    results: list[Result] = []
    settings = _settings(server)
    with tempfile.TemporaryDirectory(prefix="fishladder-bench-") as name:
        for case in chosen:
            # Each case seeds its own: what one leaves behind in the server, or in a ledger, is not the next one's.
            folder = Path(name) / case
            folder.mkdir()
            with Ground(server=server, folder=folder, rows=int(size), peers=with_peers) as ground:
                for found in CASES[case](ground):
                    print(f"{found.benchmark}: {found.case}: {found.ratio}", file=sys.stderr)
                    results.append(found)
                    keep(results, RESULTS)
    print(", ".join(f"{setting} {value}" for setting, value in settings.items()))
    print(table(results))
    missing = [found for found in results if found.value is None]
    for found in missing:
        print(f"!!! NOT MEASURED: {found.benchmark}: {found.case}", file=sys.stderr)
    if _settings(server) != settings:
        print("!!! Somebody changed the server's settings meanwhile: measure again, alone", file=sys.stderr)
    missed = any(found.holds is False for found in results)
    return int(missed or (bool(missing) and os.environ.get("REQUIRE_STORES") == "1"))


def _settings(server: str) -> dict[str, str]:
    """What the numbers depend on besides the machine; it is the same for what is measured and for its reference."""
    with database(server) as address, closing(connect(address.admin)) as db:
        rows: dict[str, str] = dict(db.rows("SHOW GLOBAL VARIABLES"))
    return {setting: rows[setting] for setting in SETTINGS}


if __name__ == "__main__":
    raise SystemExit(main())
