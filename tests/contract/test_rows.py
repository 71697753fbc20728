"""Rows in chunks and by key, and how they are written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from billing.database import connect
from fishladder.cells import Row, row_key
from fishladder.errors import RowError
from fishladder.stores.base import BulkLoader, Relation
from tests.contract.stores import Place
from tests.contract.tables import chunks, column, read, relation, row, table, write

KEYS: dict[str, tuple[list[str], list[Row]]] = {
    "none": (["integer(19)"], []),
    "one": (["integer(19)"], [row(7)]),
    "integers": (["integer(19)"], [row(n) for n in (-(2**63), -7, -1, 0, 1, 9, 10, 2**53, 2**53 + 1, 2**63 - 1)]),
    "many": (["integer(19)"], [row(n) for n in range(0, 2000, 2)]),
    "two integers": (["integer(19)"] * 2, [row(a, b) for a in (-1, 0, 3) for b in (-5, 0, 2**53, 2**53 + 1)]),
    "texts": (
        ["string(40)"],
        [(text.encode(),) for text in ("", " ", "a", "A", "a ", "a1", "A1", "ä", "a\0", "a\0b", "\0", "10", "9", "é",
                                       "e\u0301", "🎬", "🎬 ", "ß", "ss", "日本", "'", '"', "\\", "%", "?", "a:b",
                                       "\n")],
    ),
    "text and integer": (["string(40)", "integer(19)"], [row(t, n) for t in ("a", "A", "a ", "") for n in (1, 10, 9)]),
    "bytes": (["bytes(8)"], [(cell,) for cell in (b"", b"00", b"0000", b"ff", b"00ff", b"27", b"5c", b"c328")]),
}  # fmt: skip


@pytest.fixture(params=KEYS)
def keyed(
    request: pytest.FixtureRequest, shared_place: Place, shared_store: Any
) -> Iterator[tuple[Any, Relation, list[Row]]]:
    """A table with an awkward primary key, filled; the store, and the rows that are in it."""
    place, store = shared_place, shared_store
    types, keys = KEYS[request.param]
    if "empty texts" in place.lacks:
        keys = [key for key in keys if b"" not in key]
    if "NUL" in place.lacks:
        keys = [key for key in keys if not any(cell and b"\0" in cell for cell in key)]
    names = [f"k{number}" for number in range(len(types))]
    columns = [column(name, type_, nullable=False) for name, type_ in zip(names, types, strict=True)]
    store.create_table(table("t", names, *columns, column("v", "string(20)")))
    found = relation(store, "t")
    rows = [(*key, b"v%d" % number) for number, key in enumerate(keys)]
    write(store, found, *random.Random(1).sample(rows, len(rows)))
    yield store, found, rows
    with closing(connect(place.admin)) as db:
        db.drop("t")


def test_chunks_cover_the_table_exactly_once(keyed: tuple[Any, Relation, list[Row]]) -> None:
    store, found, rows = keyed
    for size in (1, 2, 3, 300, 5000) if len(rows) < 100 else (30, 300, 5000):  # each chunk is a question
        pieces = chunks(store, found, size)
        assert sorted(line for piece in pieces for line in piece) == sorted(rows)
        assert all(len(piece) <= size for piece in pieces)
        assert [line for piece in pieces for line in piece] == read(store, found)  # in order, across the ends


def test_chunks_stay_whole_when_the_table_changes(keyed: tuple[Any, Relation, list[Row]]) -> None:
    """Their ends need not exist any more."""
    store, found, rows = keyed
    ends = store.chunk_ends(found, 2 if len(rows) < 100 else 20)
    with store.begin() as transaction:
        transaction.delete(found, ends)
        transaction.commit()
    with store.read() as reader:
        pieces = [reader.rows(found, a, b) for a, b in zip([None, *ends], [*ends, None], strict=True)]
    left = [line for line in rows if row_key(line, found.key) not in ends]
    assert sorted(line for piece in pieces for line in piece) == sorted(left)


def test_rows_by_key_finds_exactly_those(keyed: tuple[Any, Relation, list[Row]]) -> None:
    store, found, rows = keyed
    expected = {row_key(line, found.key): line for line in rows}
    with store.read() as reader:
        assert {key: hit.row for key, hit in reader.rows_by_key(found, list(expected)).items()} == expected
        for key, line in list(expected.items())[:30]:
            assert {k: hit.row for k, hit in reader.rows_by_key(found, [key]).items()} == {key: line}
        assert reader.rows_by_key(found, []) == {}


def test_rows_are_updated_and_deleted_by_exact_key(keyed: tuple[Any, Relation, list[Row]]) -> None:
    store, found, rows = keyed
    new = [(*line[:-1], b"new") if number % 2 else line for number, line in enumerate(rows)]
    with store.begin() as transaction:
        transaction.update(found, [line for line in new if line[-1] == b"new"])
        transaction.commit()
    assert sorted(read(store, found)) == sorted(new)
    with store.begin() as transaction:
        transaction.delete(found, [row_key(line, found.key) for line in new if line[-1] == b"new"])
        transaction.commit()
    assert sorted(read(store, found)) == sorted(line for line in new if line[-1] != b"new")


def test_a_folding_key_does_not_find_its_likes(place: Place) -> None:
    """As on a source that was made by hand: 'a1' is not 'A1', whatever the collation says."""
    db, store = place.administrator(), place.open()
    place.needs("collations")
    db.execute("CREATE TABLE t (id VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, v INT)")
    db.execute("INSERT INTO t VALUES ('A1', 1), ('b ', 2)")
    found = relation(store, "t")
    assert not store.describe()["t"].column("id").bytewise
    with store.read() as reader:
        assert list(reader.rows_by_key(found, [b"2:a1", b"2:A1", b"1:b", b"2:b "])) == [b"2:A1", b"2:b "]


def test_one_spelling_of_an_entity_is_not_another(place: Place) -> None:
    place.needs("collations")
    db, store = place.administrator(), place.open()
    db.execute("CREATE TABLE t (id INT PRIMARY KEY, owner VARCHAR(20) COLLATE utf8mb4_general_ci, KEY (owner))")
    db.execute("INSERT INTO t VALUES (1, 'A1'), (2, 'a1'), (3, 'a1 ')")
    with store.read() as reader:
        assert reader.keys_of_entity(relation(store, "t", entity="owner"), b"2:a1") == [b"1:2"]


def test_one_kind_of_store_has_two_ways_to_load(shared_place: Place, shared_store: Any) -> None:
    """test_bulk.py compares them."""
    with shared_store.begin() as transaction:
        assert isinstance(transaction, BulkLoader) == (shared_place.kind == "mysql")


@pytest.fixture
def people(place: Place) -> tuple[Any, Relation]:
    """A table with two secondary unique keys; the copier may write it."""
    store = place.open()
    columns = [column("id", "integer(19)", nullable=False), column("email", "string(10)"), column("a", "integer(19)"),
               column("b", "integer(19)"), column("note", "string", nullable=False)]  # fmt: skip
    store.create_table(table("people", ["id"], *columns, uniques=(("email",), ("a", "b"))))
    store.install_tables()
    return store, relation(store, "people")


def person(number: int, email: str | None = None, a: object = None, b: object = None, note: object = "-") -> Row:
    return row(number, email, a, b, note)


def test_holders(people: tuple[Any, Relation]) -> None:
    store, found = people
    write(store, found, person(1, "one", 1, 1), person(2, "two", 1, 2), person(3, None, 1, None), person(4))
    with store.begin() as transaction:
        for wanted, holders in (
            (person(9, "one"), {b"1:1"}),
            (person(9, "two", 1, 1), {b"1:1", b"1:2"}),
            (person(9, None, 1, None), set()),
            (person(1, "one", 1, 2), {b"1:1", b"1:2"}),
            (person(9, "TWO", 2, 1), set()),
        ):
            assert transaction.holders(found, [wanted]) == holders


def test_a_savepoint_is_all_that_a_refused_row_undoes(people: tuple[Any, Relation]) -> None:
    store, found = people
    many = [person(number, f"m{number}") for number in range(10, 1200)]
    with store.begin() as transaction:
        transaction.insert(found, [person(1, "one")])
        with pytest.raises(RowError) as caught, transaction.savepoint():
            transaction.insert(found, [*many, person(2, "one", note="secret")])
        assert caught.value.unique
        assert "one" not in str(caught.value).replace("constraint", "")
        assert "secret" not in str(caught.value)
        with transaction.savepoint():
            transaction.insert(found, [person(3, "three")])
        with pytest.raises(RowError) as caught, transaction.savepoint():
            transaction.update(found, [person(1, "new"), person(3, "new")])
        assert caught.value.unique
        transaction.commit()
    assert read(store, found) == [person(1, "one"), person(3, "three")]


def test_what_is_not_committed_is_not_there(people: tuple[Any, Relation]) -> None:
    store, found = people
    with store.begin() as transaction:
        transaction.insert(found, [person(1)])
    assert read(store, found) == []

    def fail() -> None:
        with store.begin() as transaction:
            transaction.insert(found, [person(1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read(store, found) == []


def test_a_null_where_none_may_be(place: Place, people: tuple[Any, Relation]) -> None:
    place.needs("NOT NULL texts")
    store, found = people
    write(store, found, person(1))
    with store.begin() as transaction:
        for attempt in (
            lambda: transaction.insert(found, [person(2, note=None)]),
            lambda: transaction.insert(found, [person(3), person(2, note=None)]),
            lambda: transaction.update(found, [person(1, note=None)]),
        ):
            with pytest.raises(RowError) as caught, transaction.savepoint():
                attempt()
            assert caught.value.column == "note"
            assert not caught.value.unique


def test_many_rows_and_long_ones(people: tuple[Any, Relation]) -> None:
    store, found = people
    long = "🎬" * 300_000
    rows = [person(number, note=f"{number} {long if number % 1000 == 0 else ''}") for number in range(1, 3001)]
    write(store, found, *rows)
    assert sorted(read(store, found)) == sorted(rows)
    with store.begin() as transaction:
        transaction.update(found, [person(number, note="short") for number in range(1, 2001)])
        transaction.commit()
    assert sum(line[-1] == b"short" for line in read(store, found)) == 2000


def test_an_id_of_zero_stays_zero(place: Place) -> None:
    store = place.open()
    store.create_table(table("t", ["id"], column("id", "integer(19)", nullable=False, generated=True)))
    store.install_tables()
    found = relation(store, "t")
    write(store, found, row(0), row(-1))
    assert sorted(read(store, found)) == [row(-1), row(0)]


def test_awkward_names(place: Place) -> None:
    """Names are data too: a mark, a percent sign or a quote in one must not become part of a statement."""
    place.needs("quotes in names")
    store = place.open()
    names = ["a`b", 'c"d', "e'f", "g?h", "i%sj", "k:l", "m n", "select", "ü", "o--p", "q/*r*/s"]
    columns = [column(name, "integer(19)", nullable=False) for name in names]
    store.create_table(table("t?%s`'\"", names[:2], *columns, uniques=((names[2],),)))
    store.install_tables()
    found = relation(store, "t?%s`'\"", entity="g?h")
    rows = [row(*range(start, start + len(names))) for start in (0, 100)]
    write(store, found, *rows)
    assert read(store, found) == rows
    assert len(chunks(store, found, 1)) == 3
    with store.begin() as transaction:
        assert transaction.holders(found, rows) == {row_key(line, found.key) for line in rows}
        transaction.update(found, [(*rows[0][:2], *(b"7" for _ in names[2:]))])
        transaction.delete(found, [row_key(rows[1], found.key)])
        transaction.commit()
    assert read(store, found) == [(*rows[0][:2], *(b"7" for _ in names[2:]))]
    with store.read() as reader:
        assert reader.keys_of_entity(found, b"1:7") == [row_key(rows[0], found.key)]
    assert store.count(found) == {"?": 1}
