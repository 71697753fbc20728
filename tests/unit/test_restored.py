"""A ledger that was restored from a backup is noticed, and goes on only when it was adopted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import pytest

from fishladder import load, tasks
from fishladder.cli import main
from fishladder.clock import SystemClock
from fishladder.errors import FatalError, InputError, LedgerError
from fishladder.fence import set_fence
from fishladder.ledger import Ledger, Told, open_ledger
from fishladder.operate import Order
from fishladder.restored import check_ledger, tell_target
from fishladder.stores import connect_url, open_store
from tests import independent, ledgers
from tests.docs.test_docs import DOCS, blocks
from tests.unit.small import SPEC, Small

TABLES = ["price", "customer", "item", "line"]


@pytest.fixture
def desk(small: Small) -> tasks.Desk:
    def open_(connection: str):  # type: ignore[no-untyped-def]
        return open_store(*connect_url(small.url(connection)))

    small.ledger.record_spec(small.spec.to_json(), "", "", "test")
    return tasks.Desk(spec=small.spec, ledger=small.ledger, open=open_)


@pytest.fixture
def backup(small: Small) -> Callable[[], Callable[[], None]]:
    """Takes a backup of the ledger, and returns what restores it."""

    def copy(source: str, target: str) -> None:
        folder = small.folder
        with closing(sqlite3.connect(folder / source)) as old, closing(sqlite3.connect(folder / target)) as new:
            old.backup(new)

    def take() -> Callable[[], None]:
        copy("ledger.db", "backup.db")

        def restore() -> None:
            small.ledger.close()
            copy("backup.db", "ledger.db")

        return restore

    return take


def replicate(desk: tasks.Desk) -> None:
    tasks.replicate(desk, seconds=20, until_idle=True)


def load_all(small: Small, desk: tasks.Desk) -> None:
    tasks.cut(desk)
    for table in small.plan.tables:
        tasks.load_table(desk, table.name, "1")
    for table in small.plan.tables:
        tasks.close_table(desk, table.name)


def test_a_doubt_that_the_ledger_forgot_is_found_again(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]]
) -> None:
    load_all(small, desk)
    assert tasks.reconcile_table(desk, "line").missing == 0
    restore = backup()
    small.damage("DELETE FROM line WHERE no = 2")
    assert tasks.reconcile_table(desk, "line").missing == 1  # marked dirty, in the ledger
    restore()
    assert small.ledger.clean_passes("line") == 1  # it believes that all is well

    for frozen in (
        lambda: replicate(desk),
        lambda: tasks.reconcile_table(desk, "line"),
        lambda: tasks.load_table(desk, "line", "1"),
    ):
        with pytest.raises(LedgerError, match="restored from a backup"):
            frozen()

    assert tasks.adopt_ledger(desk, actor="ada") == []
    assert small.ledger.clean_passes("line") == 0
    assert [event.actor for event in small.ledger.events() if event.event == "restored ledger adopted"] == ["ada"]
    assert tasks.reconcile_table(desk, "line").missing == 1
    replicate(desk)
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []
    with pytest.raises(InputError, match="nothing to adopt"):
        tasks.adopt_ledger(desk, actor="ada")


def test_a_load_whose_chunks_were_forgotten_begins_again(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]]
) -> None:
    restore = backup()  # before anything was cut
    load.cut(small.plan, small.source, small.ledger, 1)
    for table in ("fishladder_home", "fishladder_applied", "price", "customer"):
        tasks.load_table(desk, table, "1")
        tasks.close_table(desk, table)
    tasks.load_table(desk, "item", "1")
    restore()
    small.application("INSERT INTO item VALUES (1, 1, 1)")  # the same chunks would not be cut again
    with pytest.raises(LedgerError, match="restored from a backup"):
        tasks.cut(desk)
    assert tasks.adopt_ledger(desk, actor="ada") == ["item", "line"]
    assert small.rows("target", "SELECT count(*) FROM item") == [(0,)]
    load_all(small, desk)
    replicate(desk)
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []


def test_generations_that_a_restored_target_has_forgotten_are_loaded_from_the_beginning(
    small: Small, desk: tasks.Desk
) -> None:
    """They come once more with the same numbers, and nothing of theirs is done."""
    load_all(small, desk)
    with closing(sqlite3.connect(small.folder / "target.db")) as old, closing(sqlite3.connect(":memory:")) as kept:
        old.backup(kept)
        tasks.operate(desk, Order(action="restart tables", tables=("item", "line")), actor="ada")
        load_all(small, desk)
        small.target.close()
        kept.backup(old)
    tasks.adopt_ledger(desk, actor="ada")
    tasks.operate(desk, Order(action="restart tables", tables=("item", "line")), actor="ada")
    assert small.rows("target", "SELECT count(*) FROM item") == [(0,)]
    load_all(small, desk)
    replicate(desk)
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []


def test_an_adoption_that_died_is_repeated(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = backup()
    tasks.cut(desk)
    tasks.load_table(desk, "item", "1")
    restore()
    with monkeypatch.context() as patch:
        patch.setattr(type(small.ledger), "finish_adoption", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tasks.adopt_ledger(desk, actor="ada")
    with pytest.raises(LedgerError):
        tasks.cut(desk)
    assert "item" in tasks.adopt_ledger(desk, actor="ada")
    load_all(small, desk)
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []


def test_a_running_applier_notices_that_its_ledger_was_exchanged(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]]
) -> None:
    load_all(small, desk)
    restore = backup()
    follow = partial(tasks.apply.follow, clock=SystemClock(), seconds=20, until_idle=True)
    stack = ExitStack()
    plan, workers = stack.enter_context(desk.ends())
    small.application("UPDATE item SET amount = 1")
    follow(plan, workers, small.ledger)
    restore()
    small.application("UPDATE item SET amount = 2")
    with pytest.raises(LedgerError, match="restored from a backup"):
        follow(plan, workers, small.ledger)
    with pytest.raises(LedgerError, match="Have it adopted"):
        stack.close()


def test_a_fence_ahead_of_the_ledger_is_not_adopted(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]]
) -> None:
    load_all(small, desk)
    restore = backup()
    replicate(desk)
    set_fence(small.source, SystemClock(), "NZ", "nobody", 2)
    restore()
    with pytest.raises(FatalError, match="the source's fences of NZ are ahead of the ledger"):
        tasks.adopt_ledger(desk, actor="ada")
    with pytest.raises(LedgerError):
        replicate(desk)


def test_what_a_fence_remembers_of_a_forgotten_chain_is_forgiven_by_whoever_adopts(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]]
) -> None:
    load_all(small, desk)
    restore = backup()
    small.ledger.record_event("something", {}, actor="test")
    end = small.ledger.audit_head()
    small.application(f"UPDATE fishladder_fence SET audit_head = '{end.sequence} {end.digest}' WHERE cohort = 'NZ'")
    replicate(desk)
    assert tasks.ask_stores(desk) == []
    restore()
    (problem,) = tasks.ask_stores(desk)
    assert problem.startswith("the source's fence of NZ was set when the audit chain ended with event")
    tasks.adopt_ledger(desk, actor="ada")
    assert tasks.ask_stores(desk) == []
    small.application("UPDATE fishladder_fence SET audit_head = '1 another' WHERE cohort = 'NZ'")
    assert len(tasks.ask_stores(desk)) == 1


def test_a_ledger_that_nobody_restored_is_never_frozen(small: Small, desk: tasks.Desk) -> None:
    load_all(small, desk)
    for number in range(5):
        small.application(f"UPDATE item SET amount = {number}")
        replicate(desk)
    heard = Told(number=(before := small.target.heard())[0], word=before[1])
    early, late, lost = (small.ledger.tell(heard) for _ in range(3))  # the last one never arrives
    for told in (late, early):  # whoever tells the early one was asleep
        small.target.hear(told.number, told.word)
    assert small.target.heard() == (late.number, late.word) < (lost.number, lost.word)
    replicate(desk)
    assert small.target.heard() > (lost.number, lost.word)
    assert not small.ledger.knows(heard)  # forgotten, for it will not be asked again


def test_whoever_tells_first_hides_nothing(
    small: Small, desk: tasks.Desk, backup: Callable[[], Callable[[], None]]
) -> None:
    """Prepare may well be what an operator runs first."""
    load_all(small, desk)
    restore = backup()
    replicate(desk)
    restore()
    with pytest.raises(LedgerError, match="restored from a backup"):
        tasks.prepare(desk, actor="ada")
    with pytest.raises(LedgerError, match="restored from a backup"):
        replicate(desk)


def test_prepare_does_not_hide_that_the_target_was_restored(small: Small, desk: tasks.Desk) -> None:
    """It would be told of the ledger as it is now, and nobody would save what the source alone still has."""
    load_all(small, desk)
    replicate(desk)
    with closing(sqlite3.connect(small.folder / "target.db")) as now, closing(sqlite3.connect(":memory:")) as kept:
        now.backup(kept)
        for _ in range(3):
            replicate(desk)
        kept.backup(now)
    for task in (lambda: tasks.prepare(desk, actor="ada"), lambda: replicate(desk)):
        with pytest.raises(LedgerError, match="does not know what it told the target last"):
            task()


def test_news_between_the_two_questions_freeze_nothing(
    small: Small, desk: tasks.Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_all(small, desk)
    knows = type(small.ledger).knows
    news = iter(range(3))

    def while_others_tell(ledger: Ledger, heard: Told) -> bool:
        if next(news, None) is not None:
            for _ in range(2):  # the second one makes the ledger forget what was heard
                tell_target(small.target, small.ledger)
        return knows(ledger, heard)

    monkeypatch.setattr(type(small.ledger), "knows", while_others_tell)
    check_ledger(small.target, small.ledger)


def test_the_command_adopts(
    small: Small,
    desk: tasks.Desk,
    backup: Callable[[], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("source", "target", "ledger"):
        monkeypatch.setenv(f"FISHLADDER_{name.upper()}", small.url(name))
    file = small.folder / "small.yaml"
    file.write_text(SPEC)
    restore = backup()
    tasks.cut(desk)
    restore()
    assert main(["ledger", "adopt", str(file)]) == 0
    assert "run small_load" in capsys.readouterr().out
    assert main(["ledger", "adopt", str(file)]) == 2


@pytest.mark.parametrize("flip_was_begun", [True, False])
def test_a_lost_ledger_is_a_new_migration(
    small: Small, desk: tasks.Desk, monkeypatch: pytest.MonkeyPatch, flip_was_begun: bool
) -> None:
    """As docs/disaster-recovery.md says; its own lines take fishladder out of the stores."""
    load_all(small, desk)
    replicate(desk)
    if flip_was_begun:  # and given up
        for epoch, writer in enumerate(("nobody", "application"), 2):
            set_fence(small.source, SystemClock(), "NZ", writer, epoch, head="9 of the chain that is lost")
    ledgers.create(url := f"sqlite:///{small.folder / 'new.db'}")
    with closing(open_ledger(url, migration="small")) as ledger:
        anew = replace(desk, ledger=ledger)
        small.damage(*(f"DELETE FROM {table}" for table in reversed(TABLES)))
        with pytest.raises(LedgerError, match="restored from a backup"):
            tasks.prepare(anew, actor="ada")
        with pytest.raises(FatalError, match="ahead of the ledger"):
            tasks.adopt_ledger(anew, actor="ada")

        monkeypatch.setenv("FISHLADDER_SHOP_NEW", small.url("target"))
        monkeypatch.setenv("FISHLADDER_SHOP_OLD", small.url("source" if flip_was_begun else "target"))
        (lines,) = blocks(DOCS / "disaster-recovery.md", "python")
        exec(lines, {})
        small.application("UPDATE item SET amount = amount + 1")
        tasks.prepare(anew, actor="ada")
        small.application("UPDATE item SET amount = amount + 1")
        load_all(small, anew)
        replicate(anew)
        assert independent.compare(small.url("source"), small.url("target"), TABLES) == []
        assert all(tasks.reconcile_table(anew, table).missing == 0 for table in TABLES)
        assert tasks.ask_stores(anew) == []
