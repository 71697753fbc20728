"""A ledger of the step ``drain`` is restored after the switch. An abort would bring it to the epoch of the stores."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from fishladder import tasks
from fishladder.cli import main
from fishladder.errors import FatalError, LedgerError, TransientError
from fishladder.serving import Router
from tests.unit.flips import Flips
from tests.unit.small import SPEC
from tests.unit.test_approvals import desk_of


def copy(flips: Flips, source: str, target: str) -> None:
    folder = flips.small.folder
    with closing(sqlite3.connect(folder / source)) as old, closing(sqlite3.connect(folder / target)) as new:
        old.backup(new)


def starting(flips: Flips) -> Router:
    source, target = flips.stores["source"], flips.stores["target"]
    return Router(flips.small.ledger, flips.operations, source=source, target=target, patience=0.5)


@pytest.fixture
def running(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> Router:
    """A router that knows that NZ is live, and asks the ledger at each call."""
    monkeypatch.setattr("fishladder.serving.router.ROUTE_SECONDS", 0)
    return starting(flips)


@pytest.fixture
def restored(flips: Flips, running: Router) -> int:
    """The attempt; entity 1 has a write in the queue of the backup, which was done in the target."""
    number = flips.verified()
    flips.until(number, "drain")
    flips.router().write("pay", {"item": 10, "amount": 1}, key="queued", entity=1)
    copy(flips, "ledger.db", "backup.db")
    assert flips.cutover.run(number).outcome == "done"
    assert flips.fences() == [("copier", 3), ("application", 3)]
    assert running.write("pay", {"item": 10, "amount": 2}, key="live", entity=1).state == "done"
    flips.small.ledger.close()
    copy(flips, "backup.db", "ledger.db")
    assert flips.small.ledger.route("NZ").epoch == 2
    return number


def test_no_command_aborts(
    flips: Flips, restored: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (flips.small.folder / "small.yaml").write_text(SPEC)
    for name in ("ledger", "source", "target"):
        monkeypatch.setenv(f"FISHLADDER_{name.upper()}", flips.small.url(name))
    assert main(["abort", str(flips.small.folder / "small.yaml"), str(restored), "--reason", "it looks stuck"]) == 1
    assert "the ledger was restored from a backup" in capsys.readouterr().err
    assert flips.small.ledger.attempt(restored).step == "drain"


def test_no_step_aborts(flips: Flips, restored: int) -> None:
    """Though the source's fence is no more as it was raised."""
    with pytest.raises(LedgerError, match="the ledger was restored from a backup"):
        flips.cutover.run(restored)
    assert flips.small.ledger.attempt(restored).step == "compare"
    with pytest.raises(TransientError):
        starting(flips).write("pay", {"item": 10, "amount": 5}, key="later", entity=1)


def test_where_it_was_aborted_all_the_same_nothing_is_queued_nor_adopted(
    flips: Flips, running: Router, restored: int
) -> None:
    """As while the stores were away, or by the version before."""
    flips.small.ledger.abort(flips.small.ledger.attempt(restored), "it looks stuck")
    with pytest.raises(TransientError):
        starting(flips).write("pay", {"item": 10, "amount": 5}, key="later", entity=1)
    assert running.write("pay", {"item": 10, "amount": 5}, key="later", entity=1).state == "done"
    with pytest.raises(FatalError, match="ahead of the ledger"):
        tasks.adopt_ledger(desk_of(flips.small), actor="ada")
    with pytest.raises(LedgerError, match="the ledger was restored from a backup"):
        flips.cutover.run(restored)
