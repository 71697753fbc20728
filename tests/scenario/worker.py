"""One process of a migration: ``python -m tests.scenario.worker FILE ROLE …``, to be killed at any moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fishladder import tasks
from fishladder.ledger import open_ledger
from fishladder.spec import load
from fishladder.stores import connect_environment, open_application, open_store
from fishladder.stores.base import Store


def desk(file: Path, environment: Mapping[str, str] = os.environ) -> tasks.Desk:
    spec = load(file, environment)

    def open_(connection: str) -> Store:
        loads = connection == spec.target.connection
        return open_store(*connect_environment(connection, environment, loads=loads))

    return tasks.Desk(
        spec=spec,
        ledger=open_ledger(environment["FISHLADDER_LEDGER"], migration=spec.migration),
        open=open_,
        serve=lambda connection: open_application(*connect_environment(connection, environment)),
        say=lambda line: print(line, flush=True),
    )


def main(file: str, role: str, *arguments: str) -> None:
    at = desk(Path(file))
    if role == "lane":
        for table in tasks.cut(at):
            tasks.load_table(at, table, arguments[0])
    elif role == "applier":
        tasks.replicate(at, seconds=float(arguments[0]))
    elif role == "cutover":
        tasks.cut_over(at, int(arguments[0]))
    else:
        raise SystemExit(f"no such role: {role}")


if __name__ == "__main__":
    main(*sys.argv[1:])
