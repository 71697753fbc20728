"""What triggers journal and refuse, one application at a time."""

from __future__ import annotations

import pytest

from billing.database import DatabaseError
from fishladder.plan import resolve
from fishladder.spec import loads
from tests.contract.shop import (
    WHEN,
    Line,
    Shop,
    add_customer,
    add_invoice,
    add_line,
    add_subscription,
    entry,
    install,
    key,
    open_shop,
)
from tests.contract.stores import Place

home = "fishladder_home"


@pytest.fixture
def shop(reopened_shop: Shop) -> Shop:
    return reopened_shop


def refused(shop: Shop, sql: str, parameters: tuple[object, ...] = (), words: str = "fishladder:") -> None:
    with pytest.raises(DatabaseError, match=words):
        shop.user.execute(sql, parameters)


def owned(journal: list[Line]) -> list[Line]:
    """Without what a child's own trigger adds when its parent is gone already: an entry too many, of no entity."""
    return [line for line in journal if line[2] is not None]


def test_every_write_is_journaled_with_its_entity_and_cohort(shop: Shop) -> None:
    shop.user.execute("UPDATE customer SET name = 'x' WHERE id = 1")
    shop.user.execute("UPDATE plan SET name = 'x'")
    shop.user.execute("UPDATE invoice_line SET quantity = 2 WHERE id = 3")
    add_subscription(shop.user, 7, 2)
    shop.user.execute("DELETE FROM subscription WHERE id = 1")
    assert shop.journal() == [
        entry("customer", 1, 1, "NZ"),
        entry("invoice_line", 3, 2, "AU"),
        entry("plan", 1, None, "shared"),
        entry("subscription", 1, 1, "NZ"),
        entry("subscription", 7, 2, "AU"),
    ]


def test_the_copier_is_not_journaled(shop: Shop) -> None:
    relation = shop.relation("subscription")
    with shop.store.begin() as copy:
        row = copy.rows_by_key(relation, [key(1)])[key(1)].row
        copy.insert(relation, [(b"8", *row[1:])])
        copy.update(relation, [row])
        copy.delete(relation, [key(1)])
        copy.commit()
    assert shop.journal() == []
    shop.user.execute("DELETE FROM subscription WHERE id = 8")  # and its mark does not stay
    assert shop.journal() == [entry("subscription", 8, 1, "NZ")]


def test_a_new_customer_gets_a_home_that_travels(shop: Shop) -> None:
    add_customer(shop.user, 10, "AU")
    assert shop.homes(10) == {10: "AU"}
    assert shop.journal() == [
        entry("customer", 10, 10, "AU"),
        (home, key(key(10).decode()), key(10), "AU"),
    ]


@pytest.mark.parametrize("country", [None, "XX", "nz", "N", "", "?", "*"])
def test_a_new_customer_of_an_unknown_country_is_nobodys(shop: Shop, country: str | None) -> None:
    add_customer(shop.user, 10, country)
    assert shop.homes(10) == {10: "*"}
    assert entry("customer", 10, 10, "*") in shop.journal()


def test_the_backfill_gave_everybody_a_home(place: Place) -> None:
    shop = open_shop(place)
    assert shop.homes(1, 2, 3, 4) == {1: "NZ", 2: "AU", 3: "*", 4: "*"}


def test_a_home_survives_moves_and_deaths(shop: Shop) -> None:
    shop.user.execute("UPDATE customer SET country_code = 'AU' WHERE id = 1")
    assert shop.journal() == [entry("customer", 1, 1, "NZ")]
    shop.user.execute("DELETE FROM customer WHERE id = 1")
    assert shop.homes(1) == {1: "NZ"}
    add_customer(shop.user, 1, "AU")
    assert shop.homes(1) == {1: "NZ"}
    assert {cohort for *_, cohort in owned(shop.journal())} == {"NZ"}


def test_rows_of_no_country_are_journaled_as_nobodys(shop: Shop) -> None:
    add_subscription(shop.user, 7, 3)
    assert shop.journal() == [entry("subscription", 7, 3, "*")]


def test_rows_without_a_home_are_a_cohort_of_their_own(shop: Shop) -> None:
    shop.forget_home(1)
    add_subscription(shop.user, 7, 1)
    shop.user.execute("UPDATE invoice_line SET quantity = 2 WHERE id = 1")
    shop.user.execute("UPDATE invoice SET customer_id = 1 WHERE id = 2")
    shop.user.execute("DELETE FROM subscription WHERE id = 1")
    assert shop.journal() == [
        entry("invoice", 2, 1, "?"),
        entry("invoice", 2, 2, "AU"),
        entry("invoice_line", 1, 1, "?"),
        entry("subscription", 1, 1, "?"),
        entry("subscription", 7, 1, "?"),
    ]


def test_rows_without_a_home_are_refused_once_their_fence_is_closed(shop: Shop) -> None:
    add_subscription(shop.user, 6, 2)
    shop.forget_home(2)
    assert shop.fence("?", "nobody").writer == "nobody"
    for sql in (
        "UPDATE invoice_line SET quantity = 2 WHERE id = 3",
        "UPDATE invoice SET customer_id = 1 WHERE id = 2",
        "DELETE FROM subscription WHERE id = 6",
        "DELETE FROM invoice WHERE id = 2",
    ):
        refused(shop, sql, words="fishladder:.* it has no home, its root row comes first")
    with pytest.raises(DatabaseError, match="its root row comes first"):
        add_subscription(shop.user, 7, 2)
    refused(shop, "UPDATE invoice SET customer_id = 2 WHERE id = 1")
    shop.journal()

    relation = shop.relation("subscription")
    with shop.store.begin() as copy:  # the copier is not asked
        row = copy.rows_by_key(relation, [key(6)])[key(6)].row
        copy.insert(relation, [(b"8", *row[1:])])
        copy.delete(relation, [key(6)])
        copy.commit()
    add_customer(shop.user, 10, "AU")  # its home comes first
    add_subscription(shop.user, 9, 3)
    shop.user.execute("DELETE FROM customer WHERE id = 1")
    journal = [line for line in owned(shop.journal()) if line[0] in ("customer", "subscription")]
    assert journal == [
        entry("customer", 1, 1, "NZ"),
        entry("customer", 10, 10, "AU"),
        entry("subscription", 1, 1, "NZ"),
        entry("subscription", 9, 3, "*"),
    ]


def test_entries_from_before_a_home_are_of_its_cohort(shop: Shop) -> None:
    """Else a flip of the cohort would not wait for them; of rows that still have none it must not wait."""
    shop.forget_home(2)
    add_subscription(shop.user, 7, 2)

    def counted() -> list[int]:
        with shop.store.read() as reader:
            return [reader.count_entries(cohort) for cohort in ("NZ", "AU")]

    assert counted() == [0, 0]
    shop.store.backfill_homes(shop.plan.root.source, None, 10)
    assert counted() == [0, 1]


def test_a_row_that_changes_hands_gets_two_entries(shop: Shop) -> None:
    shop.user.execute("UPDATE invoice SET customer_id = 2 WHERE id = 1")
    assert shop.journal() == [entry("invoice", 1, 1, "NZ"), entry("invoice", 1, 2, "AU")]
    shop.user.execute("UPDATE invoice_line SET invoice_id = 2 WHERE id = 1")  # both invoices are 2's by now
    assert shop.journal() == [entry("invoice_line", 1, 2, "AU")]


def test_a_row_that_changes_its_key_gets_two_entries(shop: Shop) -> None:
    shop.user.execute("UPDATE subscription SET id = 9 WHERE id = 1")
    shop.user.execute("UPDATE plan SET code = 'other'")
    assert shop.journal() == [
        entry("plan", 1, None, "shared"),
        entry("subscription", 1, 1, "NZ"),
        entry("subscription", 9, 1, "NZ"),
    ]


@pytest.mark.parametrize("closed", ["NZ", "AU"])
def test_a_row_may_not_cross_a_closed_fence(shop: Shop, closed: str) -> None:
    shop.fence(closed, "nobody")
    refused(shop, "UPDATE invoice SET customer_id = 2 WHERE id = 1")
    refused(shop, "UPDATE invoice_line SET invoice_id = 2 WHERE id = 1")
    assert shop.journal() == []


def test_a_row_may_not_cross_to_another_owner(shop: Shop) -> None:
    shop.fence("NZ", "free")
    refused(shop, "UPDATE invoice SET customer_id = 2 WHERE id = 1")


@pytest.mark.parametrize("writer", ["nobody", "copier"])
def test_a_closed_fence_refuses_every_write_of_its_cohort_only(shop: Shop, writer: str) -> None:
    shop.fence("NZ", writer)  # type: ignore[arg-type]
    refused(shop, "UPDATE customer SET name = 'x' WHERE id = 1")
    refused(shop, "UPDATE customer SET name = 'x'")
    refused(shop, "DELETE FROM customer WHERE id = 1")
    refused(shop, "DELETE FROM invoice_line WHERE id = 1")
    refused(shop, "INSERT INTO customer (id, country_code, name, balance, newsletter, created_at, updated_at)"
                  f" VALUES (10, 'NZ', '', 0, 0, '{WHEN}', '{WHEN}')")  # fmt: skip
    assert shop.homes(10) == {}
    assert shop.journal() == []
    shop.user.execute("UPDATE customer SET name = 'x' WHERE id IN (2, 3)")
    shop.user.execute("UPDATE plan SET name = 'x'")
    assert shop.journal() == [
        entry("customer", 2, 2, "AU"),
        entry("customer", 3, 3, "*"),
        entry("plan", 1, None, "shared"),
    ]


def test_the_fence_of_shared_tables(shop: Shop) -> None:
    shop.fence("shared", "nobody")
    refused(shop, "UPDATE plan SET name = 'x'")
    shop.user.execute("UPDATE customer SET name = 'x' WHERE id = 1")


def test_free_passes_unrecorded(shop: Shop) -> None:
    shop.fence("NZ", "free")
    shop.user.execute("UPDATE customer SET name = 'x'")
    shop.user.execute("DELETE FROM customer WHERE id = 1")
    assert {line[3] for line in shop.journal()} == {"AU", "*"}


def test_a_lower_or_repeated_epoch_changes_nothing(shop: Shop) -> None:
    assert shop.fence("NZ", "nobody", epoch=5).epoch == 5
    for epoch in (4, 5):
        found = shop.fence("NZ", "application", epoch=epoch)
        assert (found.writer, found.epoch) == ("nobody", 5)
    assert shop.fence("NZ", "application", epoch=6).writer == "application"


def test_a_cascade_journals_everything_below(shop: Shop) -> None:
    shop.user.execute("DELETE FROM customer WHERE id = 1")
    assert owned(shop.journal()) == [
        entry("customer", 1, 1, "NZ"),
        entry("invoice", 1, 1, "NZ"),
        entry("invoice_line", 1, 1, "NZ"),
        entry("invoice_line", 2, 1, "NZ"),
        entry("subscription", 1, 1, "NZ"),
    ]
    shop.user.execute("DELETE FROM invoice WHERE id = 2")
    assert owned(shop.journal()) == [entry("invoice", 2, 2, "AU"), entry("invoice_line", 3, 2, "AU")]


def test_a_statement_may_read_the_tables_that_its_cascade_reaches(shop: Shop) -> None:
    """MySQL refuses a trigger that locks for writing what the statement around it reads."""
    shop.user.execute(
        "DELETE FROM customer WHERE id IN (1, 3) AND NOT EXISTS"
        " (SELECT 1 FROM invoice WHERE invoice.customer_id = customer.id AND invoice.id > 1)"
    )
    assert {line[1] for line in shop.journal() if line[0] == "customer"} == {key(1), key(3)}


def test_a_cascade_passes_where_only_its_own_cohort_is_open(shop: Shop) -> None:
    """As on the target after the flip of NZ: whatever has no home is not the application's there."""
    shop.fence("*", "copier")
    shop.user.execute("DELETE FROM customer WHERE id = 1")
    assert len(shop.journal()) == 5


FOLLOWING = """
migration: following
strategy: replicate
source: {kind: KIND, connection: source}
target: {kind: KIND, connection: target}
application: {source: source_app, target: target_app}
cohort: {label: country, root: customer, column: country_code, waves: [[AU, NZ], ["*"]]}
tables:
  customer: root
  invoice: {entity: customer_id}
  invoice_line: {via: invoice}
"""
PADDED = FOLLOWING.partition("  invoice:")[0]


def test_rows_that_follow_a_changed_key_to_another_entity_are_journaled_for_both(place: Place) -> None:
    """A flip of the one that they left waits for them too: its copies are still there."""
    place.needs("ON UPDATE CASCADE")
    admin = place.administrator()
    follows = "ON DELETE CASCADE ON UPDATE CASCADE"
    for statement in (
        "CREATE TABLE customer (id BIGINT NOT NULL PRIMARY KEY, country_code CHAR(2))",
        "CREATE TABLE invoice (id BIGINT NOT NULL PRIMARY KEY, customer_id BIGINT NOT NULL)",
        "CREATE TABLE invoice_line (id BIGINT NOT NULL PRIMARY KEY, invoice_id BIGINT NOT NULL,"
        f" FOREIGN KEY (invoice_id) REFERENCES invoice (id) {follows})",
    ):
        admin.execute(statement)
    store = place.open()
    described = store.describe()
    plan = resolve(
        loads(FOLLOWING.replace("KIND", store.kind), name="following.yaml", environment={}), described, described
    )
    install(store, plan)
    shop = Shop(place=place, store=store, plan=plan, user=place.user())
    shop.user.execute("INSERT INTO customer VALUES (1, 'NZ'), (2, 'AU')")
    shop.user.execute("INSERT INTO invoice VALUES (1, 1)")
    shop.user.execute("INSERT INTO invoice_line VALUES (7, 1)")
    shop.journal()

    shop.user.execute("UPDATE invoice SET id = 9 WHERE id = 1")
    assert owned(shop.journal()) == [
        entry("invoice", 1, 1, "NZ"),
        entry("invoice", 9, 1, "NZ"),
        entry("invoice_line", 7, 1, "NZ"),
    ]
    shop.user.execute("UPDATE invoice SET id = 8, customer_id = 2 WHERE id = 9")
    assert owned(shop.journal()) == [
        entry("invoice", 8, 2, "AU"),
        entry("invoice", 9, 1, "NZ"),
        entry("invoice_line", 7, 1, "NZ"),
        entry("invoice_line", 7, 2, "AU"),
    ]


def test_the_padding_of_a_column_is_no_part_of_a_cohort(place: Place) -> None:
    user = place.administrator()
    user.execute("CREATE TABLE customer (id BIGINT NOT NULL PRIMARY KEY, country_code CHAR(4))")
    user.execute("INSERT INTO customer VALUES (1, 'NZ')")
    store = place.open()
    described = store.describe()
    file = PADDED.replace("KIND", store.kind)
    plan = resolve(loads(file, name="padded.yaml", environment={}), described, described)
    root = plan.table("customer").source
    assert store.cohorts(root) == {"NZ": 1}
    install(store, plan)  # which gives customer 1 her home
    shop = Shop(place=place, store=store, plan=plan, user=place.user())
    shop.user.execute("INSERT INTO customer VALUES (2, 'AU')")
    assert shop.homes(1, 2) == {1: "NZ", 2: "AU"}


def test_a_plan_that_is_in_use_stays(shop: Shop) -> None:
    with pytest.raises(DatabaseError, match=r"(?i)foreign key"):
        shop.user.execute("DELETE FROM plan WHERE id = 1")
    assert shop.journal() == []


def test_a_transaction_that_is_rolled_back_leaves_nothing(shop: Shop) -> None:
    def regret() -> None:
        with shop.user.transaction():
            add_customer(shop.user, 10, "NZ")
            add_invoice(shop.user, 10, 10, [10])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        regret()
    assert shop.journal() == []
    assert shop.homes(10) == {}


def test_unique_values_that_are_swapped(shop: Shop) -> None:
    with shop.user.transaction():
        for customer, email in ((1, None), (2, "1@example.com"), (1, "2@example.com")):
            shop.user.execute("UPDATE customer SET email = ? WHERE id = ?", (email, customer))
    assert shop.journal() == [entry("customer", 1, 1, "NZ"), entry("customer", 2, 2, "AU")]


def test_replace_journals_whom_it_displaces(shop: Shop) -> None:
    shop.place.needs("REPLACE")
    shop.user.execute(
        "REPLACE INTO customer (id, country_code, name, email, balance, newsletter, created_at, updated_at)"
        " VALUES (10, 'AU', '', '1@example.com', 0, 0, ?, ?)",
        (WHEN, WHEN),
    )
    journal = shop.journal()
    assert {entry("customer", 1, 1, "NZ"), entry("customer", 10, 10, "AU")} <= set(journal)
    # Its rows go with it, by cascade.
    assert {line[1] for line in journal if line[0] == "invoice_line"} == {key(1), key(2)}


def test_replace_may_not_displace_across_a_closed_fence(shop: Shop) -> None:
    shop.place.needs("REPLACE")
    shop.fence("NZ", "nobody")
    refused(shop, "REPLACE INTO customer (id, country_code, name, email, balance, newsletter, created_at, updated_at)"
                  f" VALUES (10, 'AU', '', '1@example.com', 0, 0, '{WHEN}', '{WHEN}')")  # fmt: skip


def test_a_statement_of_many_rows_journals_each(shop: Shop) -> None:
    with shop.user.transaction():
        for number in range(100, 400):
            add_line(shop.user, number, 1)
    assert len(shop.journal()) == 300
    shop.user.execute("UPDATE invoice_line SET quantity = 5")
    assert len(shop.journal()) == 303
    shop.user.execute("DELETE FROM invoice_line WHERE id >= 100")
    assert len(shop.journal()) == 300


def test_entries_come_in_order(shop: Shop) -> None:
    for customer in (2, 1, 2):
        shop.user.execute("UPDATE customer SET newsletter = 1 - newsletter WHERE id = ?", (customer,))
    with shop.store.read() as reader:
        found = reader.entries(["customer", "invoice"], 10)
    assert [e.key for e in found] == [key(2), key(1), key(2)]
    assert [e.id for e in found] == sorted(e.id for e in found)
