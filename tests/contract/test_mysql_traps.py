"""What MySQL lets happen behind a journal, or to a text that is taken for a number: each was once missed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from fishladder.cells import misfit, parse_type
from fishladder.errors import RowError, TransientError
from fishladder.plan import Plan, resolve
from fishladder.spec import loads
from fishladder.stores import connect_url, open_application, open_store
from fishladder.stores.base import Field, Relation
from fishladder.stores.mysql import MySqlStore
from tests.servers import mysql

SPEC = """
migration: traps
strategy: replicate
source: {kind: mysql, connection: source}
target: {kind: mysql, connection: target}
application: {source: source_app, target: target_app}
cohort: {label: country, root: customer, column: country, waves: [["*"]]}
tables:
  customer: root
  item: {entity: customer_id}
"""
TABLES = (
    "CREATE TABLE customer (id BIGINT PRIMARY KEY, country VARCHAR(2), born VARCHAR(30), ratio DOUBLE)",
    "CREATE TABLE item (id BIGINT PRIMARY KEY, customer_id BIGINT NOT NULL, KEY (customer_id))",
)


@pytest.fixture
def store(mysql_database: mysql.Database) -> Iterator[MySqlStore]:
    """A schema with fishladder's tables and triggers."""
    with closing(mysql.connect(mysql_database.admin)) as connection, connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(table)
    opened = open_store(*connect_url(mysql_database.copier))
    assert isinstance(opened, MySqlStore)
    opened.install_tables()
    opened.install_triggers(plan(opened).triggers("source"))
    yield opened
    opened.close()


def plan(store: MySqlStore) -> Plan:
    tables = store.describe()
    return resolve(loads(SPEC, name="traps.yaml", environment={}), tables, tables)


def test_a_trigger_made_again_with_the_same_text_is_another(store: MySqlStore) -> None:
    relations = plan(store).relations("source")
    before = store.coverage(relations)
    name = "fishladder_item_update"
    triggers = "FROM information_schema.triggers WHERE trigger_schema = DATABASE() AND trigger_name = ?"
    ((body, made),) = store.run(f"SELECT action_statement, created {triggers}", [name])
    while store.run(f"SELECT created {triggers}", [name]) == [(made,)]:  # the server counts hundredths of a second
        store.run(f"DROP TRIGGER {name}")
        store.run(f"CREATE TRIGGER {name} AFTER UPDATE ON item FOR EACH ROW {body.decode()}")
    after = store.coverage(relations)
    assert {table for table in before if before[table] != after[table]} == {"item"}


def test_a_foreign_key_added_later_is_seen_at_both_of_its_ends(store: MySqlStore) -> None:
    relations = plan(store).relations("source")
    before = store.coverage(relations)
    store.run("ALTER TABLE item ADD FOREIGN KEY (customer_id) REFERENCES customer (id) ON DELETE CASCADE")
    after = store.coverage(relations)
    assert {table for table in before if before[table] != after[table]} == {"customer", "item"}


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("decimal(12,2)", "12abc"),
        ("integer(10)", "n/a"),
        ("boolean", "yes"),
        ("timestamp(0)", "2026-02-30 and more"),
        ("timestamp(0)", ""),
        ("double", "1,5"),
    ],
)
def test_text_that_is_no_such_value_is_found_as_it_is(store: MySqlStore, type_: str, text: str) -> None:
    store.run("INSERT INTO customer VALUES (1, 'NZ', ?, NULL)", [text])
    assert misfit(read(store, "born", type_, "string"), parse_type(type_)) is not None


def test_a_double_in_a_float_field_keeps_its_digits(store: MySqlStore) -> None:
    store.run("INSERT INTO customer VALUES (1, 'NZ', NULL, 0.123456789012345), (2, 'NZ', NULL, 0.5)")
    cell = read(store, "ratio", "float", "double")
    assert cell == b"0.123456789012345"
    assert misfit(cell, parse_type("float")) is not None


def read(store: MySqlStore, column: str, type_: str, native: str) -> bytes | None:
    """The cell of the first customer's column, taken as a type that the migration file might give."""
    key = Field(column="id", type=parse_type("integer(19)"), native=parse_type("integer(19)"), checked=False)
    field = Field(column=column, type=parse_type(type_), native=parse_type(native), checked=True)
    relation = Relation(table="customer", name="customer", fields=(key, field), key=(0,), entity=None)
    with store.read() as reader:
        return reader.rows(relation, None, None)[0][1]


@pytest.mark.parametrize("where", ["its hook", "an operation"])
def test_an_application_that_turns_autocommit_on_is_in_a_transaction_all_the_same(
    store: MySqlStore, mysql_database: mysql.Database, where: str
) -> None:
    """Else an effect is there before its key is: who dies in between is done twice."""
    store.run("CREATE TABLE effect (id INT)")
    with closing(open_application(*connect_url(mysql_database.application))) as application:
        if where == "its hook":
            application.connected = lambda connection: connection.autocommit(True)
        else:
            with application.transaction() as session:
                session.connection.autocommit(True)
                session.commit()
        with application.transaction() as session:
            session.run("INSERT INTO effect VALUES (1)")
    assert store.run("SELECT * FROM effect") == []


def test_a_connection_that_was_lost_while_autocommit_was_on_is_repeated(mysql_database: mysql.Database) -> None:
    with closing(open_application(*connect_url(mysql_database.application))) as application:
        with application.transaction() as session:
            ((number,),) = session.run("SELECT connection_id()")
            session.connection.autocommit(True)
            session.commit()
        with closing(mysql.connect(mysql_database.admin)) as admin, admin.cursor() as cursor:
            cursor.execute("KILL %s", [number])
        with pytest.raises(TransientError), application.transaction():
            raise AssertionError("the connection is gone")
        with application.transaction(reading=True) as session:
            assert session.run("SELECT 1") == [(1,)]


def test_what_an_applications_hook_reads_is_no_part_of_its_first_transaction(
    store: MySqlStore, mysql_database: mysql.Database
) -> None:
    """It would be read as of then."""
    with closing(open_application(*connect_url(mysql_database.application))) as application:

        def hook(connection: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("SELECT * FROM customer")
            cursor.fetchall()
            store.run("INSERT INTO customer VALUES (1, 'NZ', NULL, NULL)")

        application.connected = hook
        with application.transaction(reading=True) as session:
            assert session.run("SELECT count(*) FROM customer") == [(1,)]


def test_a_limit_that_the_server_sets_for_everybody_cuts_nothing(mysql_database: mysql.Database) -> None:
    kind, connect = connect_url(mysql_database.copier)

    def limited() -> Any:
        connection = connect()
        connection.cursor().execute("SET SESSION sql_select_limit = 2, sql_notes = 0, sql_safe_updates = 1")
        return connection

    with closing(open_store(kind, limited)) as opened:
        assert isinstance(opened, MySqlStore)
        found = opened.run("SELECT @@sql_select_limit, @@sql_notes, @@sql_safe_updates")
        assert found == [(b"18446744073709551615", b"1", b"0")]
        assert len(opened.run("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")) == 3


def test_a_row_that_is_too_long_is_refused_also_among_others(store: MySqlStore) -> None:
    customer = plan(store).table("customer").source
    store.run("ALTER TABLE customer MODIFY born LONGTEXT")
    rows = [(b"%d" % no, b"NZ", b"x" * 100, None) for no in range(3)]
    with store.begin() as copy:
        copy.insert(customer, rows)
        store.longest_statement = 200_000
        there = copy.rows_by_key(customer, [b"1:0", b"1:1", b"1:2"])
        long = [(*row[:2], b"y" * 150_000, None) for row in rows]
        with pytest.raises(RowError, match="max_allowed_packet"):
            copy.upsert(customer, long, there)
        with pytest.raises(RowError, match="max_allowed_packet"):
            copy.insert(customer, [(b"8", *long[0][1:]), (b"9", *long[0][1:])])


@pytest.mark.parametrize("number", [1020, 1205, 1213, 3101, 3572])
def test_what_may_be_repeated_is_told_by_its_number(store: MySqlStore, number: int) -> None:
    with pytest.raises(TransientError, match=f"MySQL {number}: busy"):
        store.run(f"SIGNAL SQLSTATE '40000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'busy'")
