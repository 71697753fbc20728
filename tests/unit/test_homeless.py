"""Rows whose entity has no home: a cohort of their own, which nobody may write in the source after the first flip."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from fishladder import install, tasks
from fishladder.errors import FenceError, InputError
from fishladder.flip import check_homeless
from fishladder.stores import connect_url, open_store
from tests.unit.flips import Flips
from tests.unit.small import Small

OPEN, SHUT = [("application", 1), ("copier", 1)], [("nobody", 2), ("copier", 1)]


def desk(small: Small) -> tasks.Desk:
    def open_(connection: str):  # type: ignore[no-untyped-def]
        return open_store(*connect_url(small.url(connection)))

    small.ledger.record_spec(small.spec.to_json(), "", "", "test")
    return tasks.Desk(spec=small.spec, ledger=small.ledger, open=open_)


def refused(found: Flips, statement: str, store: str = "source", words: str = "its root row comes first") -> None:
    with pytest.raises(sqlite3.IntegrityError, match=words):
        found.small.application(statement, store=store)


def items(found: Flips, store: str) -> list[int]:
    return [number for (number,) in found.small.rows(store, "SELECT id FROM item WHERE id >= 40 ORDER BY id")]


def cohorts_of(found: Flips, store: str = "source") -> set[str]:
    return {cohort for (cohort,) in found.small.rows(store, "SELECT cohort FROM fishladder_journal")}


def test_who_was_born_in_the_target_gets_no_rows_in_the_source(loose: Flips) -> None:
    loose.move()
    loose.router().write("join", {"id": 50, "country": "NZ"}, key="j", cohort="NZ")
    refused(loose, "INSERT INTO item VALUES (40, 50, 1)")
    loose.small.application("INSERT INTO customer VALUES (51, 'AU', 'x')")
    refused(loose, "INSERT INTO item VALUES (41, 51, 1)", "target")
    loose.small.application("INSERT INTO item VALUES (42, 50, 1)", store="target")
    loose.small.application("INSERT INTO item VALUES (43, 51, 1)")
    loose.small.follow()
    assert items(loose, "source") == items(loose, "target") == [42, 43] and loose.same()
    refused(loose, "INSERT INTO item VALUES (44, 50, 1)", words="for this cohort$")


def test_until_the_first_flip_a_row_may_come_before_its_root(loose: Flips) -> None:
    loose.small.application("INSERT INTO item VALUES (40, 60, 1)", "UPDATE item SET amount = 2 WHERE id = 40")
    assert cohorts_of(loose) == {"?"}
    loose.small.follow()
    assert items(loose, "target") == [40]
    loose.small.application("INSERT INTO customer VALUES (60, 'NZ', 'x')", "UPDATE item SET amount = 3 WHERE id = 40")
    assert cohorts_of(loose) == {"NZ"}
    loose.small.follow()
    loose.move()
    assert loose.amount(40, "target") == 3


def test_what_has_no_home_is_copied_and_frozen_when_others_have_moved(loose: Flips) -> None:
    number = loose.verified()
    loose.small.application("INSERT INTO item VALUES (40, 60, 1)")
    loose.until(number, "drain")
    refused(loose, "UPDATE item SET amount = 2 WHERE id = 40")
    refused(loose, "UPDATE item SET customer_id = 2 WHERE id = 40")
    refused(loose, "DELETE FROM item WHERE id = 40")
    assert loose.cutover.run(number).outcome == "done"
    loose.small.follow()
    assert items(loose, "target") == [40] and loose.same()
    assert loose.small.rows("source", "SELECT * FROM fishladder_journal") == []
    loose.small.application("INSERT INTO customer VALUES (60, 'AU', 'x')", "UPDATE item SET amount = 2 WHERE id = 40")


def test_a_drain_takes_what_was_written_before_the_home_came(loose: Flips) -> None:
    number = loose.verified()
    loose.small.application("INSERT INTO item VALUES (40, 60, 1)", "INSERT INTO customer VALUES (60, 'NZ', 'x')")
    assert loose.cutover.run(number).outcome == "done"
    assert items(loose, "target") == [40]


def test_the_first_flip_closes_the_fence_for_good(loose: Flips) -> None:
    assert loose.fences("?") == OPEN and "?" not in loose.small.ledger.routes()  # so nobody waits for it to flip
    loose.until(loose.verified(), "drain")
    assert loose.fences("?") == SHUT
    loose.cutover.run(1)
    for kind, cohort in (("flip", "AU"), ("rollback", "AU"), ("rollback", "NZ"), ("flip", "NZ")):
        assert loose.move(kind, cohort).outcome == "done"
        assert loose.fences("?") == SHUT


def test_a_customer_of_nowhere_stays_writable_in_the_source(loose: Flips) -> None:
    loose.move()
    loose.small.application("INSERT INTO item VALUES (40, 3, 1)", "INSERT INTO customer VALUES (61, NULL, 'x')")
    loose.small.application("INSERT INTO item VALUES (41, 61, 1)", "INSERT INTO price VALUES (9, '1.00')")
    router = loose.router()
    assert router.write("join", {"id": 62, "country": "QQ"}, key="j", cohort="*").state == "done"
    assert router.write("join", {"id": 62, "country": "QQ"}, key="j", cohort="*").repeated
    loose.small.follow()
    assert loose.same() and items(loose, "target") == [40, 41]


def test_a_router_keeps_no_key_of_whom_neither_store_knows(loose: Flips) -> None:
    router = loose.router()
    assert router.write("pay", {"item": 10, "amount": 1}, key="a", entity=99).state == "done"
    loose.move()
    with pytest.raises(FenceError, match="its root row comes first"):
        router.write("pay", {"item": 20, "amount": 1}, key="b", entity=99)
    assert loose.amount(20, "source") == 6


@pytest.mark.parametrize("country", ["?", "*", "shared"])
def test_no_country_is_called_like_one_of_fishladders_own_cohorts(
    flips: Flips, make_small: Callable[..., Small], country: str
) -> None:
    flips.small.application(f"INSERT INTO customer VALUES (70, '{country}', 'x')")
    assert flips.small.rows("source", "SELECT cohort FROM fishladder_home WHERE entity = '2:70'") == [("*",)]
    small = flips.small
    with pytest.raises(InputError, match="is fishladder's own word"):
        install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")


# A migration that was prepared before there was such a fence ---------------------------------------------------------


@pytest.mark.parametrize("store", ["source", "target"])
def test_a_flip_without_the_fence_asks_for_prepare(loose: Flips, store: str) -> None:
    small = loose.small
    small.application("DELETE FROM fishladder_fence WHERE cohort = '?'", store=store)
    number = loose.verified()
    with pytest.raises(InputError, match="run prepare, then flip"):
        check_homeless(small.source, small.target)
    with pytest.raises(InputError, match="run prepare, then flip"):
        tasks.ask(desk(small), "flip", ["AU"], actor="ann", reason="")
    ended = loose.cutover.run(number)
    assert ended.outcome == "aborted" and "run prepare, then flip" in str(ended.error)
    if store == "source":
        refused(loose, "INSERT INTO item VALUES (40, 60, 1)")
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    assert loose.fences("?") == OPEN
    assert loose.move().outcome == "done"


def test_prepare_after_a_flip_installs_the_fence_closed(loose: Flips) -> None:
    loose.move()
    for store in ("source", "target"):
        loose.small.application("DELETE FROM fishladder_fence WHERE cohort = '?'", store=store)
    small = loose.small
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    assert loose.fences("?") == [("nobody", 1), ("copier", 1)]
    assert loose.move(cohort="AU").outcome == "done"


def test_a_fence_that_does_not_close_aborts_the_flip_before_anything_is_fenced(loose: Flips) -> None:
    number = loose.verified()
    loose.small.application(
        "CREATE TRIGGER deaf BEFORE UPDATE ON fishladder_fence WHEN NEW.cohort = '?' BEGIN SELECT RAISE(IGNORE); END"
    )
    ended = loose.cutover.run(number)
    assert ended.outcome == "aborted" and "still says application" in str(ended.error)
    assert loose.fences() == [("application", 3), ("copier", 3)]


# Who was born in the target, and prepare ------------------------------------------------------------------------------


def test_prepare_gives_who_has_a_home_in_the_target_no_other(loose: Flips) -> None:
    """The root row came first, as it may where another worker copies the homes; its country has changed since."""
    loose.move()
    small, homes = loose.small, "SELECT cohort FROM fishladder_home WHERE entity = '2:80'"
    small.application("INSERT INTO customer VALUES (80, 'NZ', 'y')", store="target")
    small.application("UPDATE customer SET country = 'AU' WHERE id = 80", store="target")
    mark, unmark = "INSERT INTO fishladder_copying VALUES (1)", "DELETE FROM fishladder_copying"
    small.application(mark, "INSERT INTO customer VALUES (80, 'AU', 'y')", unmark)
    small.application(mark, "INSERT INTO customer VALUES (81, 'AU', 'z')", unmark)  # of a time without triggers
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    assert small.rows("source", homes) == small.rows("target", homes) == [("NZ",)]
    assert small.rows("source", homes.replace("80", "81")) == [("AU",)]
    small.follow()
    assert small.rows("source", homes) == [("NZ",)] and small.ledger.count_dirty() == 0


def test_a_source_that_was_made_anew_has_the_homes_that_the_target_knows(loose: Flips) -> None:
    loose.move()
    small, homes = loose.small, "SELECT entity, cohort FROM fishladder_home ORDER BY 1"
    small.application("UPDATE customer SET country = 'NZ' WHERE country = 'AU'")
    small.follow()
    before = small.rows("source", homes)
    small.source.uninstall()
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    assert small.rows("source", homes) == before == small.rows("target", homes)
    small.application("UPDATE item SET amount = 9 WHERE id = 20")
