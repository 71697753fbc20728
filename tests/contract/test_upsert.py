"""Rows that are there and rows that are not, written in one call; and what happens when one of many is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fishladder.apply import apply_batch, read_dirty
from fishladder.cells import Row, parse_type, row_key
from fishladder.errors import RowError
from fishladder.stores.base import Relation
from tests.contract.move import Mover, moving
from tests.contract.stores import Place
from tests.contract.tables import column, read, relation, row, table, write

TYPES = {
    "number": "integer(19)", "amount": "decimal(20,4)", "text": "string(60)", "long": "string", "raw": "bytes(20)",
    "flag": "boolean", "day": "date", "moment": "timestamp(6)", "ratio": "double", "data": "json",
}  # fmt: skip
EMPTY = (None,) * len(TYPES)
SMALL = (b"-1", b"-0.0001", b"-", b" ", b"00", b"0", b"1969-12-31", b"1970-01-01 00:00:00.000000", b"0.1", b"[]")
LARGE = (
    b"9223372036854775807", b"1234567890123456.7890", "it's \\ \"ä\" 🎬 %s ? \x1a\n".encode(), "🎬".encode() * 5_000,
    b"00ff275c", b"1", b"9999-12-31", b"2026-12-31 23:59:59.999999", b"1.7976931348623157e+308",
    '{"a":"\\"\u00e4\\\\","b":[1,2.5,null]}'.encode(),
)  # fmt: skip


def upsert(store: Any, relation: Relation, *rows: Row) -> None:
    with store.begin() as transaction:
        there = transaction.rows_by_key(relation, [row_key(line, relation.key) for line in rows])
        transaction.upsert(relation, rows, there)
        transaction.commit()


@pytest.fixture
def wide(place: Place) -> tuple[Any, Relation]:
    """A table with a column of every type."""
    store = place.open()
    columns = [column(f"c_{name}", type_) for name, type_ in TYPES.items()]
    store.create_table(table("wide", ["id"], column("id", "integer(19)", nullable=False), *columns))
    store.install_tables()
    found = relation(store, "wide")
    # Oracle's DATE has a time; in a migration the field is what both ends can hold.
    fields = [replace(f, type=parse_type("date")) if f.column == "c_day" else f for f in found.fields]
    return store, replace(found, fields=tuple(fields))


def test_new_and_existing_rows_in_one_call(wide: tuple[Any, Relation]) -> None:
    store, found = wide
    values = [EMPTY, SMALL, LARGE]
    before = [(b"%d" % number, *values[number // 3]) for number in range(9)]
    after = [(b"%d" % number, *values[number % 3]) for number in range(9)]  # each value becomes each other
    write(store, found, *before)
    new = [(b"%d" % number, *values[number % 3]) for number in range(100, 106)]
    upsert(store, found, *new[:3], *after, *new[3:])
    assert sorted(read(store, found)) == sorted([*after, *new])


def test_what_did_not_change_stays(wide: tuple[Any, Relation]) -> None:
    """Rows differ from what is there in different columns."""
    store, found = wide
    write(store, found, *((b"%d" % number, *LARGE) for number in range(len(TYPES))))
    rows = [(b"%d" % at, *LARGE[:at], SMALL[at], *LARGE[at + 1 :]) for at in range(len(TYPES))]
    upsert(store, found, *rows)
    assert sorted(read(store, found)) == sorted(rows)


@pytest.mark.parametrize("types", [["string(20)"], ["bytes(8)"], ["string(20)", "integer(19)"]], ids=str)
def test_rows_are_found_by_exact_keys(place: Place, types: list[str]) -> None:
    kinds = {
        "string(20)": ["a", "A", "a ", "ä", "1", "01", "it's", "\\"],
        "bytes(8)": ["00", "0000", "27"],
        "integer(19)": [-1, 10, 2**63 - 1],
    }
    store = place.open()
    columns = [column(f"k{at}", type_, nullable=False) for at, type_ in enumerate(types)]
    store.create_table(table("t", [c.name for c in columns], *columns, column("v", "string(20)")))
    store.install_tables()
    found = relation(store, "t")
    keys = [row(cell) for cell in kinds[types[0]]]
    if len(types) > 1:
        keys = [(*key, *row(cell)) for key in keys for cell in kinds[types[1]]]
    write(store, found, *((*key, b"old") for key in keys[::2]))
    rows = [(*key, b"new %d" % number) for number, key in enumerate(keys)]
    upsert(store, found, *rows)
    assert sorted(read(store, found)) == sorted(rows)


def test_a_unique_value_of_another_row_is_not_taken(place: Place) -> None:
    """Also of an index that the relation does not know: the row that holds the value stays as it is."""
    store = place.open()
    columns = [column("id", "integer(19)", nullable=False), column("email", "string(10)"), column("note", "string(10)")]
    store.create_table(table("people", ["id"], *columns, uniques=(("email",),)))
    store.install_tables()
    known = relation(store, "people")
    before = [row(1, "one", "a"), row(2, "two", "b"), row(3, "three", "c")]
    for found in (known, replace(known, uniques=())):
        with store.begin() as transaction:
            transaction.delete(found, [b"1:1", b"1:2", b"1:3", b"1:4", b"1:5"])
            transaction.commit()
        write(store, found, *before)
        for wanted in ([row(4, "four", "x"), row(5, "one", "x")], [row(2, "x", "x"), row(3, "one", "x")]):
            with pytest.raises(RowError) as caught:
                upsert(store, found, *wanted)
            assert caught.value.unique
            assert read(store, found) == before


def test_a_column_that_the_server_would_set_keeps_its_value(place: Place) -> None:
    if place.kind != "mysql":
        pytest.skip(f"{place.kind} sets no column by itself")
    store = place.open()
    place.administrator().execute(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, note VARCHAR(10),"
        " at TIMESTAMP(6) NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6))"
    )
    store.install_tables()
    found = relation(store, "t")
    moment = "2026-01-31 12:00:00.000000"
    write(store, found, row(1, "a", moment), row(2, "b", None))
    rows = [row(1, "new", moment), row(2, "new", None)]
    upsert(store, found, *rows)
    assert read(store, found) == rows


@pytest.mark.parametrize(
    "collation", ["latin1_swedish_ci", "latin1_bin", "ascii_bin", "utf8mb3_bin", "utf8mb4_general_ci"]
)
def test_keys_of_any_character_set(place: Place, collation: str) -> None:
    """As a source may have them, where rows are written on the way back; folding ones hold no two that fold alike."""
    if place.kind != "mysql":
        pytest.skip(f"{place.kind} has one character set")
    store, (set_, _, _) = place.open(), collation.partition("_")
    place.administrator().execute(
        f"CREATE TABLE t (k VARCHAR(20) PRIMARY KEY, note VARCHAR(10)) CHARACTER SET {set_} COLLATE {collation}"
    )
    store.install_tables()
    found = relation(store, "t")
    keys = ["a", "b", "it's"] + (["ö"] if set_ != "ascii" else [])
    write(store, found, *(row(key, "old") for key in keys))
    rows = [row(key, "new") for key in [*keys, "c"]]
    upsert(store, found, *rows)
    assert sorted(read(store, found)) == sorted(rows)


# A batch of the applier ---------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "mysql", "mariadb"])
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mover]:
    with moving(request, tmp_path, request.param, request.param) as made:
        yield made


def test_of_two_thousand_keys_one_is_refused(move: Mover) -> None:
    """New, changed and deleted ones; the target does not take one of the new and one of the changed."""
    columns = "id BIGINT PRIMARY KEY, customer_id BIGINT NOT NULL, note VARCHAR(20)"
    found = move(
        {"item": "{entity: customer_id}"},
        source_sql=lambda _: f"CREATE TABLE item ({columns})",
        target_sql=lambda _: f"CREATE TABLE item ({columns}, CHECK (note <> 'no'))",
    )
    numbers = range(1, 2_001)
    insert = "INSERT INTO item (id, customer_id, note) VALUES (?, ?, ?)"
    found.install(lambda db: db.insert_many(insert, [(n, 1 + n % 3, "old") for n in numbers if n % 2]))
    found.load(chunk_rows=5_000)

    def change(db: Any) -> None:
        db.execute("UPDATE item SET note = 'new' WHERE id > 100")
        db.execute("DELETE FROM item WHERE id <= 100")
        db.insert_many(insert, [(n, 1 + n % 3, "new") for n in numbers if n % 2 == 0])
        db.execute("UPDATE item SET note = 'no' WHERE id IN (1001, 1500)")

    found.application(change)
    dirty = read_dirty(found.plan, found.ends, found.ledger, 10_000)
    applied = apply_batch(found.plan, found.ends, found.ledger, dirty, every_shard=True)
    assert (applied.rejected, applied.deleted) == (2, 50)
    assert applied.forgotten == len(dirty)
    rejects = found.ledger.open_rejects()
    assert {reject.key for reject in rejects} == {b"4:1001", b"4:1500"}
    expected = [row(n, 1 + n % 3, "new") for n in numbers if n % 2 == 0 or n > 100]
    expected[expected.index(row(1001, 1 + 1001 % 3, "new"))] = row(1001, 1 + 1001 % 3, "old")
    expected.remove(row(1500, 1 + 1500 % 3, "new"))
    assert sorted(found.there("item")) == sorted(expected)
    found.application(lambda db: db.execute("UPDATE item SET note = 'yes' WHERE note = 'no'"))
    found.follow()
    assert found.problems() == []


@pytest.mark.parametrize("place", ["mysql", "mariadb"], indirect=True)
def test_rows_are_found_by_their_keys_whatever_the_statistics_say(place: Place) -> None:
    """After a bulk load the optimizer may believe that a table has one row, and walk through it for every key."""
    store, admin = place.open(), place.administrator()
    store.create_table(table("t", ["id"], column("id", "integer(19)", nullable=False), column("v", "string(9)")))
    store.install_tables()
    found = relation(store, "t")
    write(store, found, *((b"%d" % number, b"x") for number in range(3_000)))
    admin.execute("INSERT INTO fishladder_journal (table_name, row_key, cohort, at) SELECT 't', id, 'NZ', NOW() FROM t")
    for name in ("t", "fishladder_journal"):
        admin.execute(f"ALTER TABLE {name} STATS_PERSISTENT = 1, STATS_AUTO_RECALC = 0")
        admin.execute(
            "UPDATE mysql.innodb_table_stats SET n_rows = 1, clustered_index_size = 1"
            f" WHERE database_name = DATABASE() AND table_name = '{name}'"
        )
        admin.execute(f"FLUSH TABLE {name}")
    cells = [b"%d" % number for number in range(0, 3_000, 10)]
    keys = [row_key((cell,), (0,)) for cell in cells]

    def looked_at() -> int:
        return sum(int(number) for _, number in transaction.run("SHOW SESSION STATUS LIKE 'Handler_read%'", []))

    for work in (
        lambda: transaction.rows_by_key(found, keys),
        lambda: transaction.rows_by_key(found, keys, lock=True),
        lambda: transaction.upsert(found, [(cell, b"y") for cell in cells], transaction.rows_by_key(found, keys)),
        lambda: transaction.delete(found, keys),
        lambda: transaction.forget([int(cell) + 1 for cell in cells]),
    ):
        with store.begin() as transaction:
            before = looked_at()
            work()
            assert looked_at() - before < 8 * len(keys)
