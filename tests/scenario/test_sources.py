"""A source table that is changed behind the journal: nothing follows it in silence, and it ends equal after repair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fishladder import tasks
from fishladder.errors import CoverageError, InputError
from fishladder.operate import Order
from tests.scenario.migration import Billing


def run(billing: Billing, *statements: str) -> None:
    """By an administrator of the source."""
    for statement in statements:
        billing.rows("source", statement)


def is_noticed(billing: Billing, table: str) -> None:
    """Neither the applier nor a pass goes on; the table is named, and its clean passes count no more."""
    desk = billing.desk()
    attempts: Sequence[Callable[[], object]] = (
        lambda: tasks.replicate(desk, seconds=5, until_idle=True),
        lambda: tasks.reconcile_table(desk, table),
        lambda: tasks.reconcile_table(desk, "plan"),
    )
    for attempt in attempts:
        with pytest.raises(CoverageError) as caught:
            attempt()
        tables, _, what = str(caught.value).partition(": ")
        assert table in tables.split(", ") and what.startswith("the source's table")
    assert desk.ledger.clean_passes(table) == 0
    assert desk.ledger.clean_passes("plan") > 0


def is_repaired(billing: Billing, table: str, wrong: int) -> None:
    """Prepare, then a pass that finds what was missed, then it is as if nothing had happened."""
    billing.prepare()
    at = billing.desk()
    passes = {name: tasks.reconcile_table(at, name) for name in tasks.cut(at)}
    found = {name: result.missing + result.extra + result.differs for name, result in passes.items()}
    assert found[table] == wrong
    billing.customers(2).run(operations=100)
    billing.ends_equal()


UNRECORDED = "UPDATE payment SET created_at = created_at + INTERVAL 1 DAY WHERE id IN (1, 2, 3)"
RECORDED = "UPDATE payment SET created_at = created_at - INTERVAL 1 DAY WHERE id IN (1, 2, 3)"


def test_truncated(loaded: Billing) -> None:
    """The target keeps the rows, although some of them are dirty: somebody will want them back."""
    run(
        loaded,
        "CREATE TABLE kept SELECT * FROM gift_card_entry",
        "UPDATE gift_card_entry SET created_at = created_at + INTERVAL 1 SECOND",
        "TRUNCATE TABLE gift_card_entry",
    )
    ((before,),) = loaded.rows("target", "SELECT count(*) FROM gift_card_entry")
    is_noticed(loaded, "gift_card_entry")
    assert loaded.rows("target", "SELECT count(*) FROM gift_card_entry") == [(before,)]
    run(loaded, "INSERT INTO gift_card_entry SELECT * FROM kept", "DROP TABLE kept")
    is_repaired(loaded, "gift_card_entry", wrong=0)


def test_a_trigger_dropped(loaded: Billing) -> None:
    run(loaded, "DROP TRIGGER fishladder_payment_update", UNRECORDED)
    is_noticed(loaded, "payment")
    is_repaired(loaded, "payment", wrong=3)
    run(loaded, RECORDED)
    loaded.ends_equal()


def test_the_triggers_of_the_root_dropped(loaded: Billing) -> None:
    """Customers leave meanwhile, with all that they had, and others come, without a home."""
    run(loaded, *(f"DROP TRIGGER fishladder_customer_{event}" for event in ("insert", "update", "delete")))
    leaving = loaded.customers(3, weights={"delete_customer": 1}).run(operations=3)
    coming = loaded.customers(4, weights={"sign_up": 1}).run(operations=3)
    is_noticed(loaded, "customer")
    is_repaired(loaded, "customer", wrong=(leaving.acknowledged + coming.acknowledged).total())


def test_a_trigger_dropped_for_a_moment(loaded: Billing) -> None:
    """Somebody drops it for a batch job, and creates it again with the same words."""
    ((_, _, made, *_),) = loaded.rows("source", "SHOW CREATE TRIGGER fishladder_payment_update")
    run(loaded, "DROP TRIGGER fishladder_payment_update", UNRECORDED, made)
    is_noticed(loaded, "payment")
    is_repaired(loaded, "payment", wrong=3)


def test_a_trigger_dropped_while_the_table_is_loaded(loaded: Billing) -> None:
    """The load itself does not ask; whoever follows it does."""
    desk = loaded.desk()
    tasks.operate(desk, Order(action="restart tables", tables=("payment",)), actor="test")
    tasks.cut(desk)
    tasks.load_table(desk, "payment", "1")
    run(loaded, "DROP TRIGGER fishladder_payment_update", UNRECORDED)
    tasks.close_table(desk, "payment")
    with pytest.raises(CoverageError, match=r"^payment: the source's table"):
        tasks.replicate(desk, seconds=5, until_idle=True)
    is_repaired(loaded, "payment", wrong=3)


def test_altered(loaded: Billing) -> None:
    run(loaded, "ALTER TABLE customer MODIFY name VARCHAR(150) NOT NULL")
    is_noticed(loaded, "customer")
    is_repaired(loaded, "customer", wrong=0)


def test_altered_by_a_column_that_the_target_lacks(loaded: Billing) -> None:
    """Nothing is copied without it; it is added to the target too, and prepare takes both."""
    add = "ALTER TABLE customer ADD COLUMN loyalty INT NOT NULL DEFAULT 3"
    run(loaded, add, "UPDATE customer SET loyalty = id")
    with pytest.raises(InputError, match=r"customer\.loyalty"):
        tasks.replicate(loaded.desk(), seconds=5, until_idle=True)
    loaded.rows("target", add)
    with pytest.raises(CoverageError, match=r"^customer: "):
        tasks.replicate(loaded.desk(), seconds=5, until_idle=True)
    loaded.prepare()
    loaded.customers(2).run(operations=100)
    loaded.ends_equal()


def test_swapped_and_back(loaded: Billing) -> None:
    """Both tables are what they were: what was written into the other one meanwhile is not there any more."""
    run(
        loaded,
        "CREATE TABLE payment_new LIKE payment",
        "RENAME TABLE payment TO payment_old, payment_new TO payment",
        "INSERT INTO payment SELECT * FROM payment_old WHERE id < 5",
        "RENAME TABLE payment TO payment_new, payment_old TO payment",
        "DROP TABLE payment_new",
    )
    loaded.customers(2).run(operations=100)
    loaded.ends_equal()


def test_swapped(loaded: Billing) -> None:
    """As a tool for online schema changes does it. The triggers go with the old table, which stays for a while."""
    run(
        loaded,
        "CREATE TABLE payment_new LIKE payment",
        "INSERT INTO payment_new SELECT * FROM payment",
        "RENAME TABLE payment TO payment_old, payment_new TO payment",
        UNRECORDED,
    )
    is_noticed(loaded, "payment")
    is_repaired(loaded, "payment", wrong=3)
    run(loaded, RECORDED)
    loaded.ends_equal()
