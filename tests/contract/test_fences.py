"""Fences against transactions that really run at the same time, each on a connection of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import pytest

from billing.database import Database, DatabaseError, OracleDatabase
from fishladder.cells import SHARDS
from fishladder.errors import TransientError
from fishladder.stores import connect_url, open_application
from tests.contract.shop import Shop, add_customer, add_invoice, add_subscription, entry, key, open_shop
from tests.contract.stores import PATIENCE, Place

Submit = Callable[..., Future[Any]]
RENAME = "UPDATE customer SET name = 'renamed' WHERE id = ?"


@pytest.fixture
def shop(reopened_shop: Shop) -> Shop:
    return reopened_shop


def isolate(db: Database, level: str) -> None:
    oracle = isinstance(db, OracleDatabase)
    how = "ALTER SESSION SET ISOLATION_LEVEL =" if oracle else "SET SESSION TRANSACTION ISOLATION LEVEL"
    db.execute(f"{how} {level}")


@pytest.mark.parametrize("cohort", ["NZ", "?"])
def test_raising_waits_for_a_transaction_that_wrote(shop: Shop, background: Submit, cohort: str) -> None:
    write = "UPDATE subscription SET active = 1 - active WHERE id = 1"
    if cohort == "?":
        shop.forget_home(1)
    with shop.user.transaction():
        shop.user.execute(write)
        raising = background(shop.fence, cohort, "nobody", store=shop.place.open())
        shop.place.wait_for_waiter()
        assert not raising.done()
    assert raising.result(PATIENCE).writer == "nobody"
    assert shop.journal() == [entry("subscription", 1, 1, cohort)]
    with pytest.raises(DatabaseError, match="fishladder:"):
        shop.user.execute(write)


def test_raising_waits_for_a_copier_that_looked(shop: Shop, background: Submit) -> None:
    with shop.store.begin() as copy:
        assert copy.lock_fences(["NZ"])["NZ"].writer == "application"
        raising = background(shop.fence, "NZ", "nobody", store=shop.place.open())
        shop.place.wait_for_waiter()
        assert not raising.done()
        copy.commit()
    assert raising.result(PATIENCE).writer == "nobody"


def test_raising_waits_for_a_write_of_the_router_that_looked(shop: Shop, background: Submit) -> None:
    with closing(open_application(*connect_url(shop.place.application))) as store, store.transaction() as session:
        fence = session.fence("NZ", hold=True)
        assert fence is not None and fence.writer == "application"
        raising = background(shop.fence, "NZ", "nobody", store=shop.place.open())
        shop.place.wait_for_waiter()
        assert not raising.done()
        session.commit()
    assert raising.result(PATIENCE).writer == "nobody"


def test_raising_gives_up_at_its_deadline(shop: Shop) -> None:
    with shop.user.transaction():
        shop.user.execute(RENAME, (1,))
        other = shop.place.open()
        other.lock_wait = 0.1
        with pytest.raises(TransientError, match="NZ could not be locked"):
            shop.fence("NZ", "nobody", store=other, deadline=0.3)
    shop.user.execute(RENAME, (1,))  # it left nothing locked, and nothing raised


def test_other_cohorts_do_not_wait(shop: Shop) -> None:
    shop.place.needs("row locks")
    with shop.user.transaction():
        shop.user.execute(RENAME, (1,))
        assert shop.fence("AU", "nobody", deadline=0).writer == "nobody"


def test_not_waiting_means_not_waiting(shop: Shop) -> None:
    with shop.user.transaction():
        shop.user.execute(RENAME, (1,))
        begun = time.monotonic()
        with pytest.raises(TransientError), shop.place.open().begin(wait=0) as transaction:
            transaction.lock_fences(["NZ"], exclusive=True)
        assert time.monotonic() - begun < 1


def test_a_snapshot_from_before_sees_the_raised_fence(shop: Shop) -> None:
    shop.place.needs("snapshots")
    shop.forget_home(4)
    isolate(shop.user, "REPEATABLE READ")
    with shop.user.transaction():
        shop.user.rows("SELECT * FROM customer")
        for cohort in ("NZ", "*", "?", "shared"):
            shop.fence(cohort, "nobody")
        for cohort, statement in (
            ("NZ", "UPDATE customer SET name = 'x' WHERE id = 1"),
            ("NZ", "UPDATE invoice_line SET quantity = 2 WHERE id = 1"),
            ("NZ", "UPDATE invoice SET customer_id = 2 WHERE id = 1"),
            ("NZ", "UPDATE invoice SET customer_id = 1 WHERE id = 2"),
            (r"\*", "UPDATE customer SET name = 'x' WHERE id = 3"),
            (r"\?", "UPDATE customer SET name = 'x' WHERE id = 4"),
            ("shared", "UPDATE plan SET name = 'x'"),
        ):
            with pytest.raises(DatabaseError, match=f"fishladder: {cohort} is not open"):
                shop.user.execute(statement)
        shop.user.execute(RENAME, (2,))
    assert shop.journal() == [entry("customer", 2, 2, "AU")]


def test_a_snapshot_from_before_sees_new_homes_and_fences(shop: Shop) -> None:
    shop.place.needs("snapshots")
    isolate(shop.user, "REPEATABLE READ")
    with shop.user.transaction():
        shop.user.rows("SELECT * FROM customer")
        add_customer(shop.place.user(), 10, "NZ")
        shop.store.install_fences(["XX"], "application")
        shop.journal()
        add_subscription(shop.user, 10, 10)
        add_customer(shop.user, 11, "XX")
    assert entry("subscription", 10, 10, "NZ") in shop.journal()
    assert shop.homes(11) == {11: "XX"}


LEVELS = pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])


def needs_level(shop: Shop, level: str) -> None:
    shop.place.needs("row locks", *(["snapshots"] if level == "REPEATABLE READ" else []))


@LEVELS
def test_a_customer_is_born_again_while_her_death_is_open(shop: Shop, background: Submit, level: str) -> None:
    """She moves and goes by one connection and comes back by another, elsewhere: her home and its fence stay hers."""
    needs_level(shop, level)
    born, over = threading.Event(), threading.Event()

    def come_back(db: Database) -> None:
        isolate(db, level)
        with db.transaction():
            db.rows("SELECT * FROM customer")
            add_customer(db, 1, "AU")
            add_subscription(db, 7, 1)
            born.set()
            assert over.wait(PATIENCE)

    with shop.user.transaction():
        shop.user.execute("UPDATE customer SET country_code = 'AU' WHERE id = 1")
        shop.user.execute("DELETE FROM customer WHERE id = 1")
        coming = background(shop.place.as_user, come_back)
        shop.place.wait_for_waiter()
        assert not born.is_set()
    try:
        assert born.wait(PATIENCE), coming.exception(0)
        raising = background(shop.fence, "NZ", "nobody", store=shop.place.open())
        shop.place.wait_for_waiter()
        assert not raising.done()
    finally:
        over.set()
    coming.result(PATIENCE)
    assert raising.result(PATIENCE).writer == "nobody"
    assert shop.homes(1) == {1: "NZ"}
    journal = [line for line in shop.journal() if line[2] is not None]
    assert {entry("customer", 1, 1, "NZ"), entry("subscription", 7, 1, "NZ")} <= set(journal)
    assert {cohort for *_, cohort in journal} == {"NZ"}


def test_a_death_that_is_taken_back_leaves_no_second_birth(shop: Shop, background: Submit) -> None:
    shop.place.needs("row locks")
    shop.user.execute("DELETE FROM subscription WHERE id = 1")
    shop.journal()

    def regret() -> Future[Any]:
        with shop.user.transaction():
            shop.user.execute("DELETE FROM customer WHERE id = 4")
            coming = background(shop.place.as_user, lambda db: add_customer(db, 4, "AU"))
            shop.place.wait_for_waiter()
            raise ZeroDivisionError(coming)

    with pytest.raises(ZeroDivisionError) as regretted:
        regret()
    with pytest.raises(DatabaseError, match=r"(?i)duplicate|unique"):
        regretted.value.args[0].result(PATIENCE)
    assert shop.homes(4) == {4: "*"}
    assert shop.journal() == []


@pytest.mark.parametrize("cohort", ["NZ", "AU"])
@pytest.mark.parametrize(
    "change", ["UPDATE invoice SET customer_id = 2 WHERE id = 1", "UPDATE invoice_line SET invoice_id = 2 WHERE id = 1"]
)
def test_raising_waits_for_a_row_that_changes_hands(shop: Shop, background: Submit, change: str, cohort: str) -> None:
    with shop.user.transaction():
        shop.user.execute(change)
        raising = background(shop.fence, cohort, "nobody", store=shop.place.open())
        shop.place.wait_for_waiter()
        assert not raising.done()
    assert raising.result(PATIENCE).writer == "nobody"
    table = change.split()[1]
    assert shop.journal() == [entry(table, 1, 1, "NZ"), entry(table, 1, 2, "AU")]


@LEVELS
@pytest.mark.parametrize("closed", [False, True])
def test_a_line_waits_for_an_invoice_that_changes_hands(
    shop: Shop, background: Submit, closed: bool, level: str
) -> None:
    """Else it would be taken for its old customer's, and a fence that was raised for the new one would miss it."""
    needs_level(shop, level)

    def change(db: Database) -> None:
        isolate(db, level)
        with db.transaction():
            db.rows("SELECT * FROM invoice")
            db.execute("UPDATE invoice_line SET quantity = 2 WHERE id = 1")

    with shop.user.transaction():
        shop.user.execute("UPDATE invoice SET customer_id = 2 WHERE id = 1")
        changing = background(shop.place.as_user, change)
        shop.place.wait_for_waiter()
        assert not changing.done()
        if closed:
            raising = background(shop.fence, "AU", "nobody", store=shop.place.open())
    if closed:
        assert raising.result(PATIENCE).writer == "nobody"
    error = changing.exception(PATIENCE)
    if error is not None:  # who was first of the two, the server decides
        assert closed
        assert "fishladder: AU is not open" in str(error)
    lines = [line for line in shop.journal() if line[0] == "invoice_line"]
    assert lines == ([entry("invoice_line", 1, 2, "AU")] if error is None else [])


@LEVELS
def test_a_cascade_sees_children_that_came_while_it_waited(shop: Shop, background: Submit, level: str) -> None:
    needs_level(shop, level)

    def delete(db: Database) -> None:
        isolate(db, level)
        db.execute("DELETE FROM customer WHERE id IN (1, 2)")

    with shop.user.transaction():
        add_invoice(shop.user, 7, 2, [70])
        deleting = background(shop.place.as_user, delete)
        shop.place.wait_for_waiter()
    deleting.result(PATIENCE)
    journal = shop.journal()
    assert entry("invoice", 7, 2, "AU") in journal
    assert entry("invoice_line", 70, 2, "AU") in journal


def test_raising_succeeds_under_constant_traffic(shop: Shop, background: Submit) -> None:
    begun = threading.Barrier(4)

    def write_until_refused(db: Database) -> int:
        done = 0
        begun.wait(PATIENCE)
        while True:
            try:
                with db.transaction():
                    db.execute(RENAME, (1,))
                    db.execute("UPDATE subscription SET active = 1 - active WHERE id = 1")
                done += 1
            except DatabaseError as error:
                if "fishladder:" in str(error):
                    return done
                if not db.must_retry(error):
                    raise

    writers = [background(shop.place.as_user, write_until_refused) for _ in range(3)]
    begun.wait(PATIENCE)
    assert shop.fence("NZ", "nobody", store=shop.place.open()).writer == "nobody"
    for writer in writers:
        writer.result(PATIENCE)
    assert {line[0] for line in shop.journal()} <= {"customer", "subscription"}


def test_sign_ups_do_not_wait_for_each_other(shop: Shop, background: Submit) -> None:
    shop.place.needs("row locks")
    one, two = shop.place.user(), shop.place.user()
    with one.transaction(), two.transaction():
        for db, number in ((one, 100), (two, 101), (one, 102), (two, 99), (one, 98), (two, 103)):
            background(add_customer, db, number, "NZ").result(PATIENCE)
    assert set(shop.homes(*range(98, 104)).values()) == {"NZ"}


def test_many_sign_ups_at_once(shop: Shop, background: Submit) -> None:
    def sign_up(db: Database, country: str) -> list[int]:
        numbers: list[int] = []
        for _ in range(25):
            with db.transaction():
                numbers.append(add_customer(db, None, country))
                add_subscription(db, None, numbers[-1])
        return numbers

    done = {c: background(shop.place.as_user, lambda db, c=c: sign_up(db, c)) for c in ("NZ", "AU", "XX")}
    for country, numbers in done.items():
        expected = country if country != "XX" else "*"
        assert set(shop.homes(*numbers.result(PATIENCE)).values()) == {expected}


def test_an_entry_that_commits_late_is_not_lost(shop: Shop) -> None:
    shop.place.needs("row locks")
    other = shop.place.user()
    with other.transaction():
        other.execute(RENAME, (2,))  # draws the lower number
        shop.user.execute(RENAME, (1,))
        assert shop.journal() == [entry("customer", 1, 1, "NZ")]  # read and forgotten
    assert shop.journal() == [entry("customer", 2, 2, "AU")]


def test_shards_exclude_copiers(shop: Shop, background: Submit) -> None:
    def take(numbers: list[int]) -> None:
        with shop.place.open().begin() as transaction:
            transaction.lock_shards(numbers)
            transaction.commit()

    with shop.store.begin() as copy:
        copy.lock_shards([5, 3])
        waiting = background(take, [3, 4])
        shop.place.wait_for_waiter()
        assert not waiting.done()
        copy.commit()
    waiting.result(PATIENCE)


def test_copiers_of_other_shards_do_not_wait(shop: Shop) -> None:
    """Also not where each has so many that the optimizer would rather look at all."""
    shop.place.needs("row locks")
    other = shop.place.open()
    with shop.store.begin() as one, other.begin(wait=0) as two:
        one.lock_shards(range(0, SHARDS, 2))
        two.lock_shards(range(1, SHARDS, 2))


def test_a_row_that_is_held_cannot_change(shop: Shop, background: Submit) -> None:
    with shop.store.begin() as hold:
        found = hold.rows_by_key(shop.relation("customer"), [key(1)], lock=True)
        assert found[key(1)].entity == key(1)
        changing = background(shop.place.as_user, lambda db: db.execute(RENAME, (1,)))
        shop.place.wait_for_waiter()
        assert not changing.done()
    changing.result(PATIENCE)


def test_installing_names_who_is_in_the_way(place: Place) -> None:
    place.needs("row locks")
    shop = open_shop(place)
    store = shop.place.open()
    store.install_tries = 1
    store.uninstall()
    store = shop.place.open()
    store.install_tries = 1
    store.install_tables()
    with shop.user.transaction():
        shop.user.execute(RENAME, (1,))
        begun = time.monotonic()
        with pytest.raises(TransientError, match=r"session \d+ of application"):
            store.install_triggers(shop.plan.triggers("source"))
        assert time.monotonic() - begun < 8
