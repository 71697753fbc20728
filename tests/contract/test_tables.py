"""Fishladder's own tables in a store: loads, chunks, shards, fences, homes, the journal; and checks of whole tables."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest

from fishladder.cells import HOMELESS, NO_HOME
from fishladder.errors import FatalError, RowError, StaleError
from fishladder.stores.base import Fence, ForeignKey, LoadedChunk, LoadState, Orphan, Triggers
from tests.contract import shop as shops
from tests.contract.shop import Shop, add_customer, add_invoice, add_line, entry, key
from tests.contract.stores import Place
from tests.contract.tables import column, read, relation, row, table, write


def test_loads(store: Any) -> None:
    store.install_tables()
    store.install_load(["t"], open=True)
    store.install_load(["t", "u"], open=False)  # the first answer stands
    assert store.load_states() == {"t": LoadState(generation=1, open=True), "u": LoadState(generation=1, open=False)}
    with store.begin() as transaction:
        assert transaction.lock_load("t") == LoadState(generation=1, open=True)
        assert transaction.lock_load("nothing") is None
        transaction.lock_load("t", exclusive=True)
        transaction.write_load("t", LoadState(generation=2, open=False))
        transaction.commit()
    assert store.load_states()["t"] == LoadState(generation=2, open=False)


def test_a_chunk_is_done_once_and_only_by_the_latest_claim(store: Any) -> None:
    store.install_tables()

    def take(generation: int, token: int) -> LoadedChunk | None:
        with store.begin() as transaction:
            found: LoadedChunk | None = transaction.take_chunk("t", 1, generation, token)
            if found is None:
                transaction.finish_chunk("t", 1, 10 * token)
            transaction.commit()
        return found

    with pytest.raises(FatalError, match="chunk 1"):
        take(1, 1)
    store.raise_token("t", 1, 1, 1)
    store.raise_token("t", 1, 1, 3)
    store.raise_token("t", 1, 1, 2)  # comes late
    for token in (1, 2):
        with pytest.raises(StaleError):
            take(1, token)
    assert take(1, 3) is None
    assert take(1, 3) == LoadedChunk(token=3, rows=30)
    store.raise_token("t", 1, 1, 4)  # it is done: by whom stays
    assert take(1, 4) == LoadedChunk(token=3, rows=30)
    store.raise_token("t", 1, 2, 5)  # the table starts anew
    with pytest.raises(StaleError):
        take(1, 3)
    assert take(2, 5) is None


def test_a_chunk_that_is_not_committed_is_not_done(store: Any) -> None:
    store.install_tables()
    store.raise_token("t", 1, 1, 1)
    with store.begin() as transaction:
        assert transaction.take_chunk("t", 1, 1, 1) is None
        transaction.finish_chunk("t", 1, 5)
    with store.begin() as transaction:
        assert transaction.take_chunk("t", 1, 1, 1) is None


HEAD = f"12345 {'9f' * 32}"


def test_fences(store: Any) -> None:
    store.install_tables()
    store.install_fences(["NZ", "Ōtepoti"], "application")
    store.install_fences(["NZ", "AU"], "copier")
    one, two = Fence(writer="application", epoch=1), Fence(writer="copier", epoch=1)
    assert store.fences() == {"NZ": one, "Ōtepoti": one, "AU": two}
    with store.begin() as transaction:
        assert transaction.lock_fences(None) == store.fences()
        assert transaction.lock_fences(["AU", "XX"], exclusive=True) == {"AU": two}
        transaction.write_fence("AU", Fence(writer="nobody", epoch=7, head=HEAD))
        transaction.write_fence("NZ", Fence(writer="nobody", epoch=7, head=HEAD[1:]))
        transaction.commit()
    assert store.fences()["AU"] == Fence(writer="nobody", epoch=7)
    assert store.anchors() == {"AU": HEAD, "NZ": HEAD[1:]}


def test_a_store_says_whose_installation_it_holds_until_it_holds_none(store: Any) -> None:
    """Whoever dies while it is taken away leaves the name to the last, or another migration would begin in the rest."""
    assert store.installed_for() is None
    store.install_tables()
    assert store.installed_for() is None
    store.install_name("first")
    store.install_name("second")
    assert store.installed_for() == "first" and store.own_tables()[-1] == "fishladder_migration"
    store.uninstall()
    assert (store.installed_for(), store.own_tables()) == (None, [])


def test_touched_keys_are_noted_once(store: Any) -> None:
    store.install_tables()
    for _ in range(2):
        with store.begin() as transaction:
            transaction.touch([("t", b"1:1", "NZ"), ("t", b"1:1", "NZ"), ("t", b"1:2", "NZ")], "attempt")
            transaction.touch([("t", b"1:1", "NZ")], "other")
            transaction.commit()
    assert store.query("SELECT count(*) FROM fishladder_touched", {}) == [("3",)]


def test_forgetting_is_exact(shop: Shop) -> None:
    for customer in (1, 2, 1, 2, 3):
        shop.user.execute("UPDATE customer SET newsletter = 1 - newsletter WHERE id = ?", (customer,))
    with shop.store.read() as reader:
        entries = reader.entries(["customer"], 100)
        assert [e.key for e in entries] == [key(c) for c in (1, 2, 1, 2, 3)]
        assert reader.entries(["customer"], 2) == entries[:2]
        assert reader.entries(["plan"], 100) == reader.entries([], 100) == []
        assert reader.entries_of("customer", [key(1), key(3), key(9)]) in (
            [entries[0], entries[2], entries[4]],
            sorted((entries[0], entries[2], entries[4]), key=lambda e: (e.key, e.id)),
        )
    with shop.store.begin() as transaction:
        transaction.forget([entries[1].id, entries[2].id])
        transaction.forget([])
        transaction.commit()
    with shop.store.read() as reader:
        assert reader.entries(["customer"], 100) == [entries[0], entries[3], entries[4]]


def test_homes_are_backfilled_in_slices_and_only_once(shop: Shop) -> None:
    root = shop.plan.root.source
    with shop.user.transaction():
        for number in range(10, 60):
            add_customer(shop.user, number, ("NZ", "AU", None, "XX")[number % 4])
    db = shop.place.administrator()
    db.execute("DELETE FROM fishladder_home")
    slices, after = [], shop.store.backfill_homes(root, None, 20)
    while after is not None:
        slices.append(after)
        after = shop.store.backfill_homes(root, after, 20)
    assert slices == [key(25), key(45), key(59)]
    everybody = shop.homes(*range(1, 100))
    assert len(everybody) == 54
    assert [everybody[number] for number in (1, 2, 3, 4, 12, 13, 14, 15)] == [
        "NZ",
        "AU",
        "*",
        "*",
        "NZ",
        "AU",
        "*",
        "*",
    ]
    db.execute("UPDATE customer SET country_code = 'AU'")
    assert shop.store.backfill_homes(root, None, 1000) == key(59)
    assert shop.homes(*range(1, 100)) == everybody
    assert shop.store.cohorts(root) == {"AU": 54}


def test_who_has_a_home_in_the_other_store_is_given_that_one(shop: Shop) -> None:
    root, asked = shop.plan.root.source, list[bytes]()
    with shop.user.transaction():
        for number in range(10, 15):
            add_customer(shop.user, number, "NZ")
    shop.place.administrator().execute("DELETE FROM fishladder_home WHERE entity <> '2:10'")

    def elsewhere(entities: Collection[bytes]) -> dict[bytes, str]:
        asked.extend(entities)
        if shop.place.kind != "sqlite":  # where nobody comes meanwhile
            add_customer(shop.user, 9, "AU")
            shop.place.administrator().execute("DELETE FROM fishladder_home WHERE entity = '1:9'")
        return {key(12): "AU", key(14): "*"}

    assert shop.store.backfill_homes(root, key(7), 1000, elsewhere=elsewhere) == key(14)
    assert sorted(asked) == [key(number) for number in (11, 12, 13, 14)]
    assert shop.homes(*range(8, 20)) == dict.fromkeys((10, 11, 13), "NZ") | {12: "AU", 14: "*"}
    assert shop.store.backfill_homes(root, key(14), 1000, elsewhere=elsewhere) is None


def test_cohorts_are_told_apart_by_their_letters(shop: Shop) -> None:
    for number, country in enumerate(("nz", "NZ", "n", ""), start=10):
        add_customer(shop.user, number, country)
    expected = {"NZ": 2, "AU": 1, "XX": 1, None: 1, "nz": 1, "n": 1, "": 1}
    if shop.place.kind == "oracle":  # where '' is NULL
        expected[None] += expected.pop("")
    assert shop.store.cohorts(shop.plan.root.source) == expected


def test_homes_are_migrated_like_any_table(shop: Shop) -> None:
    homes = shop.relation("fishladder_home")
    assert read(shop.store, homes)[0] == (b"1:1", b"NZ", b"1")
    assert len(shop.store.chunk_ends(homes, 2)) == 2
    with shop.store.read() as reader:
        found = reader.rows_by_key(homes, [key("1:1")])[key("1:1")]
    assert (found.row, found.entity) == ((b"1:1", b"NZ", b"1"), b"1:1")
    write(shop.store, homes, (b"2:10", b"NZ", b"10"))
    assert shop.homes(10) == {10: "NZ"}


def test_entities(shop: Shop) -> None:
    with shop.store.read() as reader:
        assert reader.keys_of_entity(shop.relation("invoice_line"), key(1)) == [key(1), key(2)]
        assert reader.keys_of_entity(shop.relation("customer"), key(1)) == [key(1)]
        assert reader.keys_of_entity(shop.relation("fishladder_home"), key(1)) == [key("1:1")]
        assert reader.keys_of_entity(shop.relation("invoice"), key(99)) == []
        found = reader.rows_by_key(shop.relation("invoice_line"), [key(1), key(3)])
        assert {k: hit.entity for k, hit in found.items()} == {key(1): key(1), key(3): key(2)}


def test_counts_are_by_home(shop: Shop) -> None:
    shop.user.execute("UPDATE customer SET country_code = 'AU'")
    assert shop.store.count(shop.relation("customer")) == {"NZ": 1, "AU": 1, NO_HOME: 2}
    assert shop.store.count(shop.relation("invoice_line")) == {"NZ": 2, "AU": 1}
    assert shop.store.count(shop.relation("plan")) == {"shared": 1}
    shop.forget_home(2)
    assert shop.store.count(shop.relation("customer")) == {"NZ": 1, HOMELESS: 1, NO_HOME: 2}
    assert shop.store.count(shop.relation("invoice_line")) == {"NZ": 2, HOMELESS: 1}
    assert shop.store.is_empty(shop.relation("payment"))
    assert not shop.store.is_empty(shop.relation("plan"))


def test_orphans(shop: Shop) -> None:
    shop.place.needs("unchecked foreign keys")
    lines = shop.relation("invoice_line")
    (parent,) = lines.foreign_keys
    assert shop.store.orphans(lines, parent, 10) == []
    write(shop.store, lines, row(9, 77, "x", 1, "1.0000", "1.00"), row(8, 77, "x", 1, "1.0000", "1.00"))
    found = shop.store.orphans(lines, parent, 10)
    assert sorted(found, key=lambda o: o.key) == [Orphan(key=key(n), parent_key=key(77)) for n in (8, 9)]
    assert len(shop.store.orphans(lines, parent, 1)) == 1
    nowhere = ForeignKey(columns=("ended_at",), parent="customer", parent_columns=("created_at",))
    assert shop.store.orphans(shop.relation("subscription"), nowhere, 10) == []  # NULL points at nothing


def test_duplicates(place: Place) -> None:
    store = place.open()
    columns = [column("id", "integer(19)", nullable=False), column("a", "string(9)"), column("b", "integer(19)")]
    store.create_table(table("t", ["id"], *columns))
    store.install_tables()
    found = relation(store, "t")
    write(store, found, row(1, "x", 1), row(2, "x", 2), row(3, "y", 1), row(4, None, 1), row(5, None, 1))
    assert [store.duplicates(found, unique, 10) for unique in ((1,), (2,), (1, 2))] == [1, 1, 0]


def test_reports(shop: Shop) -> None:
    add_invoice(shop.user, 5, 1, [])
    shop.user.execute("UPDATE invoice SET total = '10.00' WHERE id = 5")
    total, customer, odd = "cast(sum(round(i.total * 100)) as signed integer)", "cast(i.customer_id as char)", "7 % 2"
    if shop.place.kind == "oracle":
        total, customer, odd = "sum(round(i.total * 100))", "to_char(i.customer_id)", "mod(7, 2)"
    sql = f"""
        select h.cohort, ':cohort ? 100%' as words, count(*), {total}, null
        from invoice i join fishladder_home h on h.root_key = {customer} -- :from here on
        where h.cohort = :cohort and i.created_at >= :from and i.created_at < :until and 1 = {odd}
        group by h.cohort
    """
    period = {"from": "2026-01-01 00:00:00", "until": "2026-02-01 00:00:00"}
    assert shop.store.query(sql, {"cohort": "NZ", **period}) == [("NZ", ":cohort ? 100%", "2", "1150", None)]
    assert shop.store.query(sql, {"cohort": "N'Z?%s", **period}) == []
    numbers = "select 1, 0.10, 1.50, -0.0, 100, 2e0, 'x', '1.50'" + (
        " from dual" if shop.place.kind == "oracle" else ""
    )
    assert shop.store.query(numbers, {}) == [("1", "0.1", "1.5", "0", "100", "2", "x", "1.50")]


def test_reports_find_homes_by_an_index(shop: Shop) -> None:
    shop.place.needs("EXPLAIN")
    homes, db = shop.relation("fishladder_home"), shop.place.administrator()
    write(shop.store, homes, *((key(n), b"NZ", str(n).encode()) for n in range(1000, 3000)))
    explain = "EXPLAIN"
    if shop.place.kind == "sqlite":
        explain = "EXPLAIN QUERY PLAN"
    else:
        db.rows("ANALYZE TABLE fishladder_home")
    join = "select * from invoice i join fishladder_home h on h.root_key = cast(i.customer_id as char)"
    plan = str(db.rows(f"{explain} {join}"))
    assert re.search(r"\(root_key=|using root_key|'ref'.*'root_key'", plan)


def shared_table(place: Place, *columns: Any, **more: Any) -> tuple[Any, Any]:
    """A shared table of its own, with triggers; the store and the table."""
    store = place.open()
    store.create_table(
        table("t", ["id"], column("id", "integer(19)", nullable=False, generated=True), *columns, **more)
    )
    store.install_tables()
    store.install_fences(["shared"], "application")
    found = relation(store, "t")
    store.install_triggers([Triggers(relation=found)])
    return store, found


def coverage(store: Any, found: Any) -> str:
    digest: str = store.coverage([found])["t"]
    return digest


def test_coverage_stays_while_rows_come_and_go(place: Place) -> None:
    store, found = shared_table(place, column("v", "string(9)"))
    before, db = coverage(store, found), place.user()
    db.execute("INSERT INTO t (id, v) VALUES (1, 'x')")
    db.execute("UPDATE t SET v = 'y'")
    db.execute("DELETE FROM t")
    store.install_triggers([Triggers(relation=found)])
    store.generate_from(found, 1000)
    assert coverage(place.open(), found) == before
    assert store.coverage([]) == {}


@pytest.mark.parametrize(
    "statements",
    [
        ["TRUNCATE TABLE t"],
        ["ALTER TABLE t ADD COLUMN more INTEGER"],
        ["CREATE UNIQUE INDEX one ON t (v)"],
        ["DROP TRIGGER fishladder_t_insert"],
        ["DROP TRIGGER fishladder_t_delete"],
        ["ALTER TRIGGER fishladder_t_insert DISABLE"],
        ["DROP TABLE t"],
        ["DROP TABLE t", "CREATE TABLE t (id INTEGER PRIMARY KEY, v VARCHAR(9))"],
        [
            "CREATE TABLE u (id INTEGER PRIMARY KEY, v VARCHAR(9))",
            "ALTER TABLE t RENAME TO old",
            "ALTER TABLE u RENAME TO t",
        ],
    ],
    ids=" ".join,
)  # fmt: skip
def test_coverage_changes_when_changes_could_go_unseen(place: Place, statements: list[str]) -> None:
    for word, capability in (("TRUNCATE", "truncate"), ("DISABLE", "disabled triggers")):
        if word in statements[0]:
            place.needs(capability)
    store, found = shared_table(place, column("v", "string(9)"))
    before = coverage(store, found)
    db = place.administrator()
    for statement in statements:
        db.execute(statement.replace("ADD COLUMN", "ADD") if place.kind == "oracle" else statement)
    assert coverage(store, found) != before


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TRIGGER fishladder_t_update"],
        ["ALTER TRIGGER fishladder_t_update DISABLE"],
        ["DROP TABLE t", "CREATE TABLE t (id INTEGER PRIMARY KEY, v VARCHAR(9))"],
        [
            "CREATE TABLE u (id INTEGER PRIMARY KEY, v VARCHAR(9))",
            "ALTER TABLE t RENAME TO old",
            "ALTER TABLE u RENAME TO t",
        ],
    ],
    ids=" ".join,
)  # fmt: skip
def test_installed_again_every_change_is_recorded(place: Place, statements: list[str]) -> None:
    if "DISABLE" in statements[0]:
        place.needs("disabled triggers")
    store, found = shared_table(place, column("v", "string(9)"))
    assert store.has_triggers([Triggers(relation=found)])
    for statement in statements:
        place.administrator().execute(statement)
    store = place.open()
    assert not store.has_triggers([Triggers(relation=found)])
    store.install_triggers([Triggers(relation=found)])
    assert store.has_triggers([Triggers(relation=found)])
    db = place.user()
    for statement in ("INSERT INTO t (id, v) VALUES (1, 'x')", "UPDATE t SET v = 'y'", "DELETE FROM t"):
        db.execute(statement)
        with store.read() as reader:
            entries = reader.entries(["t"], 10)
        assert [entry.key for entry in entries] == [b"1:1"], statement
        with store.begin() as transaction:
            transaction.forget([entry.id for entry in entries])
            transaction.commit()


def test_coverage_sees_partitions(place: Place) -> None:
    place.needs("truncate", "partitions")
    db, store = place.administrator(), place.open()
    db.execute("CREATE TABLE t (id INT PRIMARY KEY) PARTITION BY HASH (id) (PARTITION p0, PARTITION p1)")
    before = coverage(store, relation(store, "t"))
    db.execute("ALTER TABLE t TRUNCATE PARTITION p1")
    assert coverage(store, relation(store, "t")) != before


def test_a_key_is_the_same_text_in_a_trigger_and_in_a_chunk(place: Place) -> None:
    """Whatever its type, and whatever the session of the application is set to."""
    place.needs("accounts", "types of MySQL")
    store, db = place.open(), place.user()
    place.administrator().execute(
        "CREATE TABLE t (a TIMESTAMP(3) NOT NULL, b DECIMAL(8,2) NOT NULL, c DATE NOT NULL, d DATETIME NOT NULL,"
        " e VARCHAR(9) CHARACTER SET latin1 NOT NULL, f VARBINARY(4) NOT NULL, g CHAR(3) NOT NULL,"
        " h BIGINT UNSIGNED NOT NULL, i SMALLINT(6) ZEROFILL NOT NULL, v INT, PRIMARY KEY (a, b, c, d, e, f, g, h, i))"
    )
    store.install_tables()
    store.install_fences(["shared"], "application")
    found = relation(store, "t")
    store.install_triggers([Triggers(relation=found)])
    db.execute("SET time_zone = '+05:30', sql_mode = 'PAD_CHAR_TO_FULL_LENGTH'")
    db.execute("SET NAMES latin1")  # what the driver sends as é, the server now takes for Ã©
    db.execute(
        "INSERT INTO t VALUES ('2026-01-31 12:00:00.5', 1.5, '2026-01-31', '2026-01-31 12:00:00', 'a:é ', x'00ff',"
        " 'x', 18446744073709551615, 7, 1)"
    )
    with store.read() as reader:
        (journaled,) = reader.entries(["t"], 10)
        rows = reader.rows(found, None, None)
        assert list(reader.rows_by_key(found, [journaled.key])) == [journaled.key]
    assert rows == [
        row("2026-01-31 06:30:00.500", "1.50", "2026-01-31", "2026-01-31 12:00:00", "a:Ã© ", "00ff", "x",
            "18446744073709551615", "7", 1)
    ]  # fmt: skip
    write(store, found, (b"2026-01-31 06:30:00.501", *rows[0][1:]))
    assert store.chunk_ends(found, 1)[0] == journaled.key


def test_generated_ids(place: Place) -> None:
    store, found = shared_table(place, column("v", "string(9)"))
    db = place.user()
    assert store.generated_from(found) == 1
    write(store, found, row(41, "x"))
    assert store.generated_from(found) == 42
    store.generate_from(found, 1000)
    store.generate_from(found, 500)
    assert store.generated_from(found) == 1000
    odd = place.kind != "oracle"  # sessions of the example generate odd ids; an Oracle's ids are its sequence's
    assert db.insert("INSERT INTO t (v) VALUES (?)", ("y",)) == 1000 + odd
    store.create_table(table("plain", ["code"], column("code", "string(9)", nullable=False)))
    assert store.generated_from(relation(store, "plain")) is None


def test_installing_twice_changes_nothing(shop: Shop) -> None:
    relations = shop.plan.relations("source")
    before, fences, homes = shop.store.coverage(relations), shop.store.fences(), shop.homes(1, 2, 3, 4)
    shop.fence("NZ", "nobody")
    again = shop.place.open()
    shops.install(again, shop.plan)
    assert again.coverage(relations) == before
    assert again.fences() == {**fences, "NZ": Fence(writer="nobody", epoch=2)}
    assert shop.homes(1, 2, 3, 4) == homes


def test_nothing_is_left_after_uninstalling(shop: Shop) -> None:
    tables = shop.store.describe()
    shop.store.uninstall()
    db = shop.place.administrator()
    if shop.place.kind == "sqlite":
        left = db.rows("SELECT name FROM sqlite_master WHERE name LIKE 'fishladder%' OR sql LIKE '%fishladder%'")
    elif shop.place.kind == "oracle":
        ours = "owner = SYS_CONTEXT('USERENV', 'CURRENT_SCHEMA') AND object_name LIKE 'FISH%'"
        left = db.rows(f"SELECT object_name FROM all_objects WHERE {ours}")
    else:
        left = db.rows(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name LIKE 'fish%'"
        ) + db.rows("SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE()")
    assert list(left) == []
    assert shop.place.open().describe().keys() == tables.keys()
    shop.user.execute("UPDATE customer SET name = 'x'")
    shop.store.uninstall()


def test_lag_is_the_age_of_the_oldest_entry(shop: Shop) -> None:
    assert shop.store.lag() is None
    shop.user.execute("UPDATE customer SET name = 'x'")
    assert 0 <= shop.store.lag() < 60
    hour = {"sqlite": "datetime(at, '-1 hour')", "oracle": "at - INTERVAL '1' HOUR"}
    older = hour.get(shop.place.kind, "at - INTERVAL 1 HOUR")
    shop.place.administrator().execute(f"UPDATE fishladder_journal SET at = {older}")
    assert timedelta(hours=1).total_seconds() <= shop.store.lag() < 3700


def test_a_batch_of_upserts_takes_no_more_than_moments(shop: Shop) -> None:
    lines = shop.relation("invoice_line")
    rows = [row(number, 1, "text", 1, "1.0000", "1.00") for number in range(1000, 3000)]
    write(shop.store, lines, *rows)
    begun = time.monotonic()
    with shop.store.begin() as transaction:
        transaction.update(lines, [(*line[:2], b"new", *line[3:]) for line in rows])
        transaction.commit()
    assert time.monotonic() - begun < 5
    assert shop.store.query("SELECT count(*) FROM invoice_line WHERE description = 'new'", {}) == [("2000",)]


def test_a_table_without_transactions_is_refused(place: Place) -> None:
    place.needs("tables without transactions")
    place.administrator().execute("CREATE TABLE t (id INT PRIMARY KEY) ENGINE=MyISAM")
    store = place.open()
    with pytest.raises(FatalError, match="MyISAM"):
        store.install_triggers([Triggers(relation=relation(store, "t"))])


def test_a_trigger_of_the_table_that_refuses_a_row(place: Place) -> None:
    store, found = shared_table(place, column("v", "string(9)"))
    when = {
        "sqlite": "BEGIN SELECT RAISE(ABORT, 'no secret'); END",
        "mysql": "FOR EACH ROW BEGIN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no secret'; END",
        "oracle": "FOR EACH ROW BEGIN RAISE_APPLICATION_ERROR(-20001, 'no secret'); END;",
    }
    place.administrator().execute(f"CREATE TRIGGER theirs BEFORE INSERT ON t {when[place.kind]}")
    with pytest.raises(RowError):
        write(store, found, row(1, "x"))


def test_a_line_follows_its_invoice(shop: Shop) -> None:
    """A line's entity is its invoice's customer, also right after that was changed."""
    shop.user.execute("UPDATE invoice SET customer_id = 2 WHERE id = 1")
    add_line(shop.user, 50, 1)
    assert entry("invoice_line", 50, 2, "AU") in shop.journal()
