"""``python -m fishladder_airflow.pools FILE…``: the pools that the tasks of these migrations run in, as JSON.

``airflow pools import`` takes it, and so does a POST to the REST API, pool by pool. Tasks run in these pools when
the DAG processor has ``FISHLADDER_POOLS=1`` in its environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from fishladder.errors import SpecError
from fishladder.spec import Migration, load


def pools(specs: Iterable[Migration]) -> dict[str, dict[str, object]]:
    """One pool for each target, with slots for every migration into it: its load lanes, as many passes, the applier."""
    found: dict[str, dict[str, object]] = {}
    slots: dict[str, int] = {}
    for spec in specs:
        name = spec.target.pool
        slots[name] = slots.get(name, 0) + 2 * spec.lanes + 1
        description = f"fishladder's tasks at {spec.target.connection}; fewer slots mean less load on the store"
        found[name] = {"slots": slots[name], "description": description, "include_deferred": False}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fishladder_airflow.pools", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a migration file")
    try:
        print(json.dumps(pools(load(path) for path in parser.parse_args().files), indent=2))
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
