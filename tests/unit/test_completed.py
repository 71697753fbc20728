"""What a completed cohort leaves behind keeps no other where it is, and nothing of the others is dropped with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from fishladder import apply, tasks
from fishladder.apply import Dirty, Ends
from fishladder.operate import Order
from tests.unit.flips import Flips
from tests.unit.test_approvals import desk_of


def complete(flips: Flips, cohort: str) -> None:
    assert flips.cutover.run(flips.ask("complete", cohort).id).outcome == "done"


def mark(flips: Flips, *keys: str) -> None:
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    tasks.operate(desk_of(flips.small), Order(action="mark keys dirty", keys=keys), actor="ada")


def moves(flips: Flips, kind: str) -> tuple[str | None, str | None]:
    ended = flips.cutover.run(flips.verified(kind, "NZ", deadline=2))
    return ended.outcome, ended.error


def in_target(flips: Flips, *statements: str) -> None:
    flips.small.application(*statements, store="target")


@pytest.mark.parametrize("kind", ["flip", "rollback"])
def test_a_doubt_about_a_row_that_is_gone_keeps_nobody(flips: Flips, kind: str) -> None:
    """No fence opens for it again, and a row that is nowhere may come again as anybody's: each drain takes it."""
    for cohort in ("AU", "NZ") if kind == "rollback" else ("AU",):
        assert flips.move(cohort=cohort).outcome == "done"
    complete(flips, "AU")
    in_target(flips, "INSERT INTO line VALUES (20, 7, 'x')")
    mark(flips, "line,20,7")
    in_target(flips, "DELETE FROM line WHERE item_id = 20 AND no = 7")
    flips.small.follow()
    assert moves(flips, kind) == ("done", None)


def test_a_doubt_deletes_no_row_that_is_the_targets_for_good(flips: Flips) -> None:
    """Not even one that has lost its parent there."""
    assert flips.move(cohort="AU").outcome == "done"
    complete(flips, "AU")
    in_target(flips, "INSERT INTO item VALUES (21, 2, 1)", "INSERT INTO line VALUES (21, 7, 'x')")
    mark(flips, "line,21,7")
    with closing(sqlite3.connect(flips.small.folder / "target.db")) as connection, connection:
        connection.execute("DELETE FROM item WHERE id = 21")  # nothing is cascaded
    flips.small.follow()
    number = flips.ask().id
    flips.cutover.verify(flips.small.ledger.attempt(number))
    flips.cutover.run(number)
    assert flips.small.rows("target", "SELECT text FROM line WHERE item_id = 21") == [("x",)]


@pytest.mark.parametrize(
    "change", ["customer_id = 1 WHERE id = 20", "customer_id = 2 WHERE id = 10"], ids=["out", "in"]
)
def test_a_row_that_moved_a_moment_before_keeps_nobody(flips: Flips, change: str) -> None:
    """Its entry under the other cohort would wait for ever: the lag would grow, and that one could not go back."""
    for cohort in ("AU", "NZ"):
        assert flips.move(cohort=cohort).outcome == "done"
    in_target(flips, f"UPDATE item SET {change}")
    complete(flips, "AU")
    flips.small.follow()
    assert flips.small.rows("target", "SELECT * FROM fishladder_journal") == [] and flips.same()
    assert moves(flips, "rollback") == ("done", None)


@pytest.mark.parametrize("copied", ["item", "nothing"])
@pytest.mark.parametrize(
    "change", ["UPDATE line SET text = 'new' WHERE item_id = 20", "DELETE FROM line WHERE item_id = 20"]
)
def test_what_is_pending_of_a_row_that_it_gave_away_is_not_dropped(flips: Flips, change: str, copied: str) -> None:
    """The other cohort was compared before, and goes back without looking again."""
    small = flips.small
    for cohort in ("AU", "NZ"):
        assert flips.move(cohort=cohort).outcome == "done"
    number = flips.verified("rollback", "NZ")
    in_target(flips, change)
    in_target(flips, "UPDATE item SET customer_id = 1 WHERE id = 20")
    back = Ends(owner="target", origin=small.target, destination=small.source)
    with small.target.read() as reader:
        entries = reader.entries([copied], 100)
    if entries:
        dirty = [Dirty(e.table, e.key, e.entity, e.cohort, journal=e.id) for e in entries]
        apply.apply_batch(small.plan, back, small.ledger, dirty, every_shard=True)
    complete(flips, "AU")
    assert flips.cutover.run(number).outcome == "done"
    small.follow()
    assert flips.same()


def test_a_doubt_about_a_row_that_was_nowhere_goes_with_the_row(flips: Flips) -> None:
    """Nobody knew whose it would be; the doubt is the source's, whose fence never lets copies in."""
    assert flips.move().outcome == "done"
    mark(flips, "item,77")
    in_target(flips, "INSERT INTO item VALUES (77, 1, 5)")
    flips.small.follow()
    assert flips.same() and moves(flips, "rollback") == ("done", None)
    flips.small.follow()
    assert flips.small.ledger.dirty_by_cohort() == {}


def test_a_doubt_about_who_was_born_in_the_target_is_its_cohorts(flips: Flips) -> None:
    assert flips.move().outcome == "done"
    flips.router().write("join", {"id": 50, "country": "NZ"}, key="j", cohort="NZ")
    mark(flips, "customer,50")
    assert flips.small.ledger.dirty_by_cohort() == {"NZ": 1}
    flips.small.follow()
    assert flips.small.ledger.dirty_by_cohort() == {}


def test_all_rows_without_a_home_are_drained_before_one_can_get_it_in_the_target(
    loose: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = loose.small
    small.application("INSERT INTO item VALUES (40, 60, 1)")
    small.follow()
    number = loose.verified()
    small.application("INSERT INTO item VALUES (9, 61, 1)")  # it fills the drain's batch
    small.application("UPDATE item SET amount = 101 WHERE id = 40")
    monkeypatch.setattr(apply, "BATCH", 1)
    assert loose.cutover.run(number).outcome == "done"
    assert small.rows("source", "SELECT * FROM fishladder_journal") == []
    router = loose.router()
    router.write("join", {"id": 60, "country": "NZ"}, key="j", cohort="NZ")
    router.write("pay", {"item": 40, "amount": 1}, key="p", entity=60)
    small.follow()
    assert (loose.amount(40, "source"), loose.amount(40, "target")) == (102, 102)


def test_a_value_that_a_completed_cohort_gave_up_is_free_in_the_source(flips: Flips) -> None:
    """Its old copy holds it there for ever, for nobody copies it any more: it gives way, or nobody goes back."""
    for cohort in ("AU", "NZ"):
        assert flips.move(cohort=cohort).outcome == "done"
    complete(flips, "AU")
    in_target(flips, "UPDATE customer SET email = 'z' WHERE id = 2", "UPDATE customer SET email = 'b' WHERE id = 1")
    flips.small.follow()
    assert moves(flips, "rollback") == ("done", None)
    assert flips.same() and flips.small.ledger.open_rejects() == []


def test_a_value_that_is_a_completed_cohorts_in_the_target_is_waited_for(flips: Flips) -> None:
    """No copier may touch its row there, ever; the application may."""
    small = flips.small
    assert flips.move(cohort="AU").outcome == "done"
    complete(flips, "AU")
    in_target(flips, "UPDATE customer SET email = 'a!' WHERE id = 2")
    small.application("UPDATE customer SET email = 'a!' WHERE id = 1")
    small.follow()
    assert small.rows("target", "SELECT email FROM customer WHERE id IN (1, 2)") == [("a",), ("a!",)]
    assert small.rows("source", "SELECT row_key FROM fishladder_journal") == [("1:1",)]
    in_target(flips, "UPDATE customer SET email = 'b!' WHERE id = 2")
    small.follow()
    assert small.rows("target", "SELECT email FROM customer WHERE id = 1") == [("a!",)]
    assert small.ledger.open_rejects() == []
