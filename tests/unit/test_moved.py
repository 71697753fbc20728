"""A row moves to another cohort, and its children go with it: what is pending of them goes, too.

Their entries are journaled under the cohort that they came from, where a drain finds them by looking at whose the rows
are now.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from fishladder import apply, flip, reconcile
from tests.unit import flips as moving
from tests.unit.flips import Flips
from tests.unit.small import SCHEMA, Small

# Item 20 is customer 2's, of AU, and has line 1. It goes to customer 1, of NZ.
_MOVES = "UPDATE item SET customer_id = 1 WHERE id = 20"
CHANGES = {
    "a line that was added": ["INSERT INTO line VALUES (20, 2, 'new')", _MOVES],
    "a line that was changed": ["UPDATE line SET text = 'new' WHERE item_id = 20", _MOVES],
    "a line that was deleted": ["DELETE FROM line WHERE item_id = 20", _MOVES],
    "an item that is new": [
        "INSERT INTO item VALUES (21, 2, 1)",
        "INSERT INTO line VALUES (21, 1, 'new')",
        "UPDATE item SET customer_id = 1 WHERE id = 21",
    ],
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_flip_takes_what_was_pending_of_its_new_rows_along(flips: Flips, changes: list[str]) -> None:
    """The journal has the children under the cohort that they came from, where no drain of this one looks."""
    number = flips.verified(cohort="NZ")
    for change in changes:
        flips.small.application(change)
    flips.cutover.run(number)
    flips.small.follow()
    assert flips.small.ledger.attempt(number).outcome == "done"
    assert flips.same()


def test_an_applier_too_far_behind_aborts_it_at_once(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers are not kept waiting until the deadline for what cannot be drained by then."""
    number = flips.verified(cohort="NZ")
    flips.small.application("UPDATE line SET text = 'new' WHERE item_id = 20")
    monkeypatch.setattr(flip, "STRAYS", 1)
    ended = flips.cutover.run(number)
    assert (ended.outcome, flips.fences()) == ("aborted", [("application", 3), ("copier", 3)])
    assert "1 rows and more wait to be copied: the applier is too far behind" in str(ended.error)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_nothing_is_forgotten_while_the_new_cohort_is_closed(flips: Flips, changes: list[str]) -> None:
    small = flips.small
    for change in changes:
        small.application(change)
    fence = small.target.fences()["NZ"]
    small.application("UPDATE fishladder_fence SET writer = 'nobody' WHERE cohort = 'NZ'", store="target")
    small.follow()
    small.application("UPDATE fishladder_fence SET writer = 'copier' WHERE cohort = 'NZ'", store="target")
    assert small.target.fences()["NZ"] == fence
    small.follow()
    assert flips.same()


def test_children_that_went_with_their_new_entity_are_not_forgotten(flips: Flips) -> None:
    """Their deletion is journaled under that one; the copies are still under the one before, which is closed."""
    small = flips.small
    small.application(_MOVES.replace("= 1", "= 3"))
    small.application("DELETE FROM customer WHERE id = 3")
    small.application("UPDATE fishladder_fence SET writer = 'nobody' WHERE cohort = 'AU'", store="target")
    small.follow()
    small.application("UPDATE fishladder_fence SET writer = 'copier' WHERE cohort = 'AU'", store="target")
    small.follow()
    assert flips.same()


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_one_entry_at_a_time(flips: Flips, changes: list[str]) -> None:
    """Whatever a batch ends with."""
    small = flips.small
    for change in changes:
        small.application(change)
    for _ in range(20):
        apply.apply_round(small.plan, [small.ends], small.ledger, 1)
    assert flips.same()


def what_keeps(flips: Flips, cohort: str) -> list[str]:
    """What a pass over the cohort says against its flip, which is then given up."""
    said: list[str] = []
    attempt = flips.ask(cohort=cohort)
    assert replace(flips.cutover, say=said.append).verify(attempt) == (said == [])
    flips.small.ledger.abort(attempt, "that was all")
    return said


def _lines(flips: Flips, store: str, item: int) -> list:
    return flips.small.rows(store, f"SELECT no, text FROM line WHERE item_id = {item} ORDER BY 1")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE line SET text = 'new' WHERE item_id = 10 AND no = 1",
        "DELETE FROM line WHERE item_id = 10 AND no = 1",
        "INSERT INTO line VALUES (10, 3, 'new')",
    ],
)
def test_there_and_back(flips: Flips, change: str) -> None:
    small = flips.small
    number = flips.verified(cohort="NZ")
    small.application("UPDATE item SET customer_id = 2 WHERE id = 10")
    small.application(change)
    small.application("UPDATE item SET customer_id = 1 WHERE id = 10")
    truth = _lines(flips, "source", 10)
    assert flips.cutover.run(number).outcome == "done"
    assert _lines(flips, "target", 10) == truth
    small.follow()
    assert flips.same()


def test_a_doubt_of_a_row_that_has_gone_and_moved(flips: Flips) -> None:
    """It goes with the row, and does not keep the cohort that the row has left from flipping."""
    small = flips.small
    number = flips.verified(cohort="NZ")
    small.application(
        "UPDATE line SET text = 'new' WHERE item_id = 20", "UPDATE item SET customer_id = 3 WHERE id = 20"
    )
    small.application("UPDATE item SET customer_id = 2 WHERE id = 20")
    # a round that sees the item's entries and leaves doubts about line (20, 1) under AU
    apply.apply_round(small.plan, [small.ends], small.ledger)
    small.application("UPDATE item SET customer_id = 1 WHERE id = 20")
    assert flips.cutover.run(number).outcome == "done"
    small.follow()
    assert flips.same()
    assert small.ledger.dirty_by_cohort() == {}
    ended = flips.cutover.run(flips.verified(cohort="AU", deadline=3))
    assert (ended.outcome, ended.error) == ("done", None)


def test_deleted_after_moving_then_born_again_in_the_target(flips: Flips) -> None:
    small = flips.small
    number = flips.verified(cohort="NZ")
    small.application("DELETE FROM line WHERE item_id = 20")
    small.application("UPDATE item SET customer_id = 1 WHERE id = 20")
    small.application("DELETE FROM item WHERE id = 20")
    assert flips.cutover.run(number).outcome == "done"
    small.application("INSERT INTO item VALUES (20, 1, 9)", store="target")
    small.follow()
    assert _lines(flips, "target", 20) == []
    assert flips.same()


def test_deleted_by_a_pass_then_born_again_elsewhere(flips: Flips) -> None:
    small = flips.small
    number = flips.verified(cohort="NZ")
    small.application("DELETE FROM line WHERE item_id = 20")
    small.application("DELETE FROM item WHERE id = 20")
    reconcile.reconcile_table(small.plan, small.plan.table("item"), small.ends, small.ledger)
    small.application("INSERT INTO item VALUES (20, 1, 9)")
    assert flips.cutover.run(number).outcome == "done"
    assert _lines(flips, "target", 20) == []
    small.follow()
    assert _lines(flips, "target", 20) == []
    assert flips.same()


def test_a_rejected_mover_stops_the_flip_of_the_cohort_it_left(flips: Flips) -> None:
    small = flips.small
    small.application(
        "INSERT INTO line VALUES (20, 2, 'x')", "UPDATE item SET customer_id = 1, amount = 'abc' WHERE id = 20"
    )
    small.follow()
    assert not flips.cutover.verify(flips.ask(cohort="AU"))
    assert not flips.cutover.verify(flips.ask(cohort="NZ"))
    small.application("UPDATE item SET amount = 3 WHERE id = 20")
    small.follow()
    assert flips.same() and small.ledger.dirty_by_cohort() == {}


def test_a_reject_of_a_homeless_row_is_its_cohorts_later(loose: Flips) -> None:
    small = loose.small
    small.application("INSERT INTO item VALUES (40, 60, 1)")
    small.application("INSERT INTO line VALUES (40, 1, 'far too long for the twenty characters')")
    small.follow()
    small.application("INSERT INTO customer VALUES (60, 'NZ', 'x')")
    small.follow()
    assert what_keeps(loose, "NZ") == ["NZ: 1 open rejects; nothing is fenced"]
    small.application("UPDATE line SET text = 'short' WHERE item_id = 40")
    small.follow()
    assert what_keeps(loose, "NZ") == [] and loose.same()


def test_homeless_rows_that_found_a_home(loose: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    small = loose.small
    small.application(*(f"INSERT INTO line VALUES (20, {n}, 'x')" for n in range(2, 9)))
    small.follow()
    number = loose.verified(cohort="NZ")
    monkeypatch.setattr(apply, "BATCH", 2)
    small.application("UPDATE line SET text = 'new' WHERE item_id = 20")
    small.application("UPDATE item SET customer_id = 60 WHERE id = 20")
    apply.apply_round(small.plan, [small.ends], small.ledger, 2, ["?"])
    small.application("INSERT INTO customer VALUES (60, 'NZ', 'x')")
    truth = _lines(loose, "source", 20)
    assert loose.cutover.run(number).outcome == "done"
    assert _lines(loose, "target", 20) == truth
    small.follow()
    assert loose.same()


def test_a_line_that_comes_again_in_the_target(flips: Flips) -> None:
    """Its entry of before, under the other cohort, would wait for ever: that one could not flip any more."""
    number = flips.verified(cohort="NZ")
    for change in (
        "INSERT INTO line VALUES (20, 2, 'old')",
        "DELETE FROM line WHERE item_id = 20",
        "DELETE FROM item WHERE id = 20",
        "INSERT INTO item VALUES (20, 1, 6)",
    ):
        flips.small.application(change)
    assert flips.cutover.run(number).outcome == "done"
    flips.small.application("INSERT INTO line VALUES (20, 2, 'new')", store="target")
    flips.small.follow()
    assert flips.move(cohort="AU").outcome == "done"
    flips.small.follow()
    assert flips.same()


def test_nothing_is_left_for_a_completed_cohort(flips: Flips) -> None:
    small = flips.small
    number = flips.verified(cohort="NZ")
    small.application(
        "UPDATE line SET text = 'new' WHERE item_id = 20", "UPDATE item SET customer_id = 1 WHERE id = 20"
    )
    assert flips.cutover.run(number).outcome == "done"
    assert flips.cutover.run(flips.ask("complete").id).outcome == "done"
    for _ in range(5):
        small.follow()
    assert small.ledger.dirty_by_cohort() == {}


UNIQUE = (
    SCHEMA.replace("amount INTEGER NOT NULL)", "amount INTEGER NOT NULL UNIQUE)")
    .replace("(3, NULL, 'c');", "(3, NULL, 'c'), (4, 'FJ', 'd');")
    .replace("(30, 3, 7);", "(30, 3, 7), (40, 4, 8);")
)


@pytest.fixture
def unique(make_small: Callable[..., Small]) -> Iterator[Flips]:
    small = make_small(schema=UNIQUE)
    small.load()
    small.follow()
    with moving.flips(small) as made:
        yield made


def test_displaced_by_another_cohorts_drain(unique: Flips) -> None:
    small = unique.small
    number = unique.verified(cohort="NZ")
    small.application("UPDATE line SET text = 'new' WHERE item_id = 20")
    small.application("UPDATE item SET customer_id = 1, amount = 100 WHERE id = 20")
    small.application("UPDATE item SET amount = 6 WHERE id = 40")
    apply.apply_round(small.plan, [small.ends], small.ledger, cohorts=["FJ"])
    truth = _lines(unique, "source", 20)
    assert unique.cutover.run(number).outcome == "done"
    assert _lines(unique, "target", 20) == truth
    small.follow()
    assert unique.same()


def test_a_reject_of_an_orphan_whose_parent_comes(flips: Flips) -> None:
    small = flips.small
    with closing(sqlite3.connect(small.folder / "source.db")) as c, c:
        c.execute("INSERT INTO line VALUES (50, 1, 'far too long for the twenty characters')")
    small.follow()
    small.application("INSERT INTO item VALUES (50, 1, 1)")
    small.follow()
    assert what_keeps(flips, "NZ") == ["NZ: 1 open rejects; nothing is fenced"]
    small.application("UPDATE line SET text = 'short' WHERE item_id = 50")
    small.follow()
    assert what_keeps(flips, "NZ") == [] and flips.same()
