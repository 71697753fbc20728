"""One process of a migration: ``python -m tests.scenario.worker FILE ROLE …``, to be killed at any moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fishladder import apply, tasks
from fishladder.flip import Cutover
from fishladder.ledger import Attempt, Ledger, open_ledger
from fishladder.operate import ACTIONS, Order
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
    if role == "together":
        role, *arguments = arguments
        _meet(Path(file).parent)
    if role == "prepare":
        tasks.prepare(at, actor="worker")
    elif role == "reconcile":
        for table in tasks.cut(at):
            tasks.reconcile_table(at, table)
    elif role in ACTIONS:
        tasks.operate(at, Order(action=role, tables=tuple(arguments)), actor="worker")
    elif role == "lane":
        for table in tasks.cut(at):
            tasks.load_table(at, table, arguments[0])
    elif role == "applier":
        seconds, *where = arguments
        if where:
            _die_copying(*where)
        tasks.replicate(at, seconds=float(seconds))
    elif role == "cutover":
        number, *where = arguments
        if where:
            _die(*where)
        tasks.cut_over(at, int(number))
    else:
        raise SystemExit(f"no such role: {role}")


def _meet(folder: Path) -> None:
    """Say that one is here, and wait for the word to begin."""
    (folder / f"here.{os.getpid()}").touch()
    while not (folder / "begin").exists():
        time.sleep(0.001)


def _die(step: str, when: str) -> None:
    """Die as by ``kill -9`` ``before`` a step of the flip, ``after`` it, or ``between`` its order to a fence and the
    ledger's word that it was obeyed."""
    real_step, real_order = Cutover._step, Cutover._order

    def stepping(cutover: Cutover, attempt: Attempt) -> Attempt:
        if (attempt.step, when) == (step, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        found = real_step(cutover, attempt)
        if (attempt.step, when) == (step, "after") and found.step != step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def ordering(cutover: Cutover, attempt: Attempt, side: Any, writer: Any) -> None:
        real_order(cutover, attempt, side, writer)
        if (attempt.step, when) == (step, "between"):
            os.kill(os.getpid(), signal.SIGKILL)

    Cutover._step, Cutover._order = stepping, ordering  # type: ignore[method-assign]


def _die_copying(when: str, side: str) -> None:
    """Die as by ``kill -9`` with rows of this owner in hand: ``uncommitted``, or committed and ``unforgotten``."""
    name = {"uncommitted": "record", "unforgotten": "forget"}[when]
    real = getattr(apply._Batch, name)

    def dying(batch: apply._Batch, ledger: Ledger, *arguments: Any) -> None:
        if batch.ends.owner == side and batch.applied.written:
            os.kill(os.getpid(), signal.SIGKILL)
        real(batch, ledger, *arguments)

    setattr(apply._Batch, name, dying)


if __name__ == "__main__":
    main(*sys.argv[1:])
