"""One exact text per value and type, the same from every store (design §4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from billing.database import connect
from fishladder.errors import RowError
from fishladder.load import fitting_rows
from fishladder.stores.base import Relation
from tests.contract.stores import Place
from tests.contract.tables import column, read, relation, row, table, write

VALUES: dict[str, list[str]] = {
    "integer(19)": ["0", "-12", "9223372036854775807", "-9223372036854775808"],
    "integer(20)": ["0", "9223372036854775807"],
    "decimal(12,2)": ["0.00", "0.71", "-10.50", "9999999999.99", "-0.01"],
    "decimal(5,0)": ["0", "-99999"],
    "decimal(38,10)": ["1234567890123456789012345678.0123456789", "0.0000000001"],
    "decimal": ["0", "-0.5", "12345678901234567890.123456789", "100"],
    "string(40)": ["", " ", "a ", "A", "ä🎬", "\0", "a\0b", "NULL", "\\N", "it's", '"', "\\", "\t\r\n", "%s ? :a",
                   "\x1f\x1e"],
    "string": ["", "x" * 70_000, "日本 " * 100],
    "bytes(16)": ["", "00", "00ff", "27", "5c", "c3283f", "20", "f0" * 16],
    "bytes": ["", "00" * 70_000],
    "boolean": ["0", "1"],
    "date": ["2026-01-31", "1000-01-01", "9999-12-31", "2024-02-29"],
    "timestamp(6)": ["2026-01-31 12:00:00.123456", "2026-01-31 00:00:00.000000", "1969-12-31 23:59:59.999999"],
    "timestamp(3)": ["2026-01-31 12:00:00.120"],
    "timestamp(0)": ["2026-01-31 12:00:00"],
    "timestamptz(6)": ["2026-01-31 12:00:00.123456", "2026-03-29 01:30:00.000000", "1970-01-02 00:00:00.000000"],
    "uuid": ["0188b3c4-7f3e-7c5d-9a6b-2f1e0d3c4b5a"],
    "json": ["null", "{}", '{"a":1.1,"aa":[true,"ä"],"b":{"c":null}}', "[0,-1,18446744073709551615]", '"x"', "0.5"],
    "double": ["0.1", "-1e+300", "5e-324", "1.7976931348623157e+308", "16777217.0", "-0.0", "3.0"],
    "float": ["0.10000000149011612", "16777216.0", "-0.0", "3.0"],
}  # fmt: skip


TableOf = Callable[[str], Relation]


@pytest.fixture
def table_of(shared_place: Place, shared_store: Any) -> Iterator[TableOf]:
    """Makes a table for the test: ``id`` and a column ``v`` of a type."""

    def make(type_: str) -> Relation:
        id_ = column("id", "integer(19)", nullable=False)
        shared_store.create_table(table("t", ["id"], id_, column("v", type_)))
        return relation(shared_store, "t", types={"v": type_})

    yield make
    with closing(connect(shared_place.admin)) as db:
        db.drop("t")


@pytest.mark.parametrize("type_", VALUES)
def test_what_is_bound_reads_back_the_same(
    shared_place: Place, shared_store: Any, table_of: TableOf, type_: str
) -> None:
    place, store, found = shared_place, shared_store, table_of(type_)
    lacking = {"-0.0": "negative zero", "": "empty texts", "\0": "NUL", "a\0b": "NUL"}
    cells = [cell for cell in VALUES[type_] if lacking.get(cell) not in place.lacks]
    rows = [row(number, cell) for number, cell in enumerate([*cells, None])]
    assert fitting_rows(found, found, rows) == (rows, [])
    write(store, found, *rows)
    assert read(store, found) == rows
    with store.begin() as transaction:
        transaction.update(found, [(line[0], other[1]) for line, other in zip(rows, rows[1:] + rows[:1], strict=True)])
        transaction.commit()
    assert [line[1] for line in read(store, found)] == [line[1] for line in rows[1:] + rows[:1]]


NATIVE: dict[str, list[tuple[str, str, str, str | None]]] = {
    # declared, written as, read as the type, the cell
    "sqlite": [
        ("DECIMAL_TEXT(12,2)", "'1.5'", "decimal(12,2)", "1.50"),
        ("DECIMAL_TEXT(12,2)", "'+01.500'", "decimal(12,2)", "1.50"),
        ("DECIMAL_TEXT(12,2)", "'1.505'", "decimal(12,2)", "1.505"),
        ("DECIMAL_TEXT(12,2)", "'rubbish'", "decimal(12,2)", "rubbish"),
        ("DECIMAL(12,2)", "1.5", "decimal(12,2)", "1.50"),
        ("NUMERIC(10,2)", "0.99", "decimal(10,2)", "0.99"),
        ("DECIMAL(12,2)", "7", "decimal(12,2)", "7.00"),
        ("INTEGER", "-0", "integer(19)", "0"),
        ("INTEGER", "'text'", "integer(19)", "text"),
        ("BOOLEAN", "TRUE", "boolean", "1"),
        ("DATETIME(6)", "'2026-01-31T12:00'", "timestamp(6)", "2026-01-31 12:00:00.000000"),
        ("DATETIME(6)", "'2026-01-31 12:00:00.12'", "timestamp(6)", "2026-01-31 12:00:00.120000"),
        ("DATETIME", "'2026-01-31 12:00:00.1234567'", "timestamp(6)", "2026-01-31 12:00:00.1234567"),
        ("DATE", "'2026-01-31'", "date", "2026-01-31"),
        ("DATETIME", "'2026-01-31 00:00:00'", "date", "2026-01-31"),
        ("DATETIME", "'2026-01-31 10:00:00'", "date", "2026-01-31 10:00:00"),
        ("BLOB", "x'00FF'", "bytes", "00ff"),
        ("UUID", "'0188B3C4-7F3E-7C5D-9A6B-2F1E0D3C4B5A'", "uuid", "0188b3c4-7f3e-7c5d-9a6b-2f1e0d3c4b5a"),
        ("JSON", """' {"b" : 1.10, "a":null, "\\u0061b": 1e2}'""", "json", '{"a":null,"ab":100,"b":1.1}'),
        ("REAL", "0.1", "double", "0.1"),
        ("VARCHAR(9)", "'a '", "string(9)", "a "),
        ("VARCHAR(9)", "''", "string(9)", ""),
        ("VARCHAR(9)", "NULL", "string(9)", None),
    ],
    "mysql": [
        ("TINYINT(1)", "TRUE", "boolean", "1"),
        ("BIT(1)", "b'1'", "boolean", "1"),
        ("TINYINT", "-128", "integer(3)", "-128"),
        ("INT UNSIGNED", "4294967295", "integer(10)", "4294967295"),
        ("INT(5) ZEROFILL", "42", "integer(10)", "42"),
        ("BIGINT UNSIGNED", "18446744073709551615", "integer(20)", "18446744073709551615"),
        ("DECIMAL(5,0)", "12", "integer(5)", "12"),
        ("DECIMAL(12,2)", "12", "integer(10)", "12"),
        ("DECIMAL(12,2)", "12.50", "integer(10)", "12.5"),
        ("DECIMAL(14,4)", "1.5", "decimal(12,2)", "1.50"),
        ("DECIMAL(14,4)", "1.2345", "decimal(12,2)", "1.2345"),
        ("DECIMAL(14,4)", "1.5", "decimal", "1.5"),
        ("DECIMAL(14,4)", "-100", "decimal", "-100"),
        ("DECIMAL(65,30)", "1.5", "decimal(65,30)", "1." + "5".ljust(30, "0")),
        ("INT", "7", "decimal(12,2)", "7.00"),
        ("DATETIME", "'2026-01-31 12:00:00'", "timestamp(0)", "2026-01-31 12:00:00"),
        ("DATETIME", "'2026-01-31 12:00:00'", "timestamp(6)", "2026-01-31 12:00:00.000000"),
        ("DATETIME(6)", "'2026-01-31 12:00:00.12'", "timestamp(3)", "2026-01-31 12:00:00.120"),
        ("DATETIME(6)", "'2026-01-31 12:00:00.1234'", "timestamp(3)", "2026-01-31 12:00:00.123400"),
        ("DATETIME(6)", "'2026-01-31 12:00:00'", "timestamp(0)", "2026-01-31 12:00:00"),
        ("DATETIME(6)", "'2026-01-31 12:00:00.5'", "timestamp(9)", "2026-01-31 12:00:00.500000000"),
        ("DATETIME(6)", "'2026-01-31 12:00:00.5'", "timestamp", "2026-01-31 12:00:00.5"),
        ("DATETIME", "'2026-01-31 00:00:00'", "date", "2026-01-31"),
        ("DATETIME(3)", "'2026-01-31 00:00:00.001'", "date", "2026-01-31 00:00:00.001"),
        ("CHAR(5)", "'ab  '", "string(5)", "ab"),
        ("VARCHAR(5)", "'ab  '", "string(5)", "ab  "),
        ("VARCHAR(5) CHARACTER SET latin1", "'é'", "string(5)", "é"),
        ("ENUM('b','it''s','a')", "'it''s'", "string(9)", "it's"),
        ("BINARY(4)", "x'00ff'", "bytes(4)", "00ff0000"),
        ("VARBINARY(4)", "x'00FF'", "bytes(4)", "00ff"),
        ("FLOAT", "16777216", "float", "16777216.0"),
        ("FLOAT", "0.1", "float", "0.10000000149011612"),
        ("DOUBLE", "0.1", "double", "0.1"),
        ("JSON", """'{"bb": 1.10, "a": null, "c": [1e2, 0.0]}'""", "json", '{"a":null,"bb":1.1,"c":[100,0]}'),
        ("CHAR(36)", "'0188B3C4-7F3E-7C5D-9A6B-2F1E0D3C4B5A'", "uuid", "0188b3c4-7f3e-7c5d-9a6b-2f1e0d3c4b5a"),
    ],
    "oracle": [
        ("NUMBER(10)", "-7", "integer(10)", "-7"),
        ("NUMBER(1)", "1", "boolean", "1"),
        ("NUMBER", "1.50", "decimal", "1.5"),
        ("NUMBER", ".5", "decimal", "0.5"),
        ("NUMBER", "-.25", "decimal", "-0.25"),
        ("NUMBER(14,4)", "1.5", "decimal(12,2)", "1.50"),
        ("NUMBER(14,4)", "1.2345", "decimal(12,2)", "1.2345"),
        ("NUMBER(12,2)", ".5", "decimal(12,2)", "0.50"),
        ("DATE", "DATE '2026-01-31'", "date", "2026-01-31"),
        ("DATE", "TO_DATE('2026-01-31 10:00:00', 'YYYY-MM-DD HH24:MI:SS')", "timestamp(0)", "2026-01-31 10:00:00"),
        ("TIMESTAMP(6)", "TIMESTAMP '2026-01-31 12:00:00.12'", "timestamp(3)", "2026-01-31 12:00:00.120"),
        ("TIMESTAMP(6)", "TIMESTAMP '2026-01-31 12:00:00.1234'", "timestamp(3)", "2026-01-31 12:00:00.123400"),
        ("TIMESTAMP(6)", "TIMESTAMP '2026-01-31 12:00:00'", "timestamp(6)", "2026-01-31 12:00:00.000000"),
        ("CHAR(5)", "'ab'", "string(5)", "ab"),
        ("VARCHAR2(5 CHAR)", "'ab '", "string(5)", "ab "),
        ("VARCHAR2(5 CHAR)", "''", "string(5)", None),
        ("CLOB", "'text'", "string", "text"),
        ("RAW(4)", "HEXTORAW('00FF')", "bytes(4)", "00ff"),
        ("BLOB", "HEXTORAW('00FF')", "bytes", "00ff"),
        ("BINARY_DOUBLE", "0.1", "double", "0.1"),
    ],
}  # fmt: skip


def test_what_the_application_wrote_reads_canonically(place: Place) -> None:
    db, store = place.administrator(), place.open()
    for number, (declared, literal, type_, cell) in enumerate(NATIVE[place.kind]):
        db.execute(f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY, v {declared})")
        db.execute(f"INSERT INTO t{number} (id, v) VALUES (1, {literal})")
        found = relation(store, f"t{number}", types={"v": type_})
        assert read(store, found) == [row(1, cell)], (declared, literal, type_)


def test_times_with_a_zone_are_read_in_utc(place: Place) -> None:
    place.needs("accounts")  # that is: sessions with settings of their own
    db, store = place.administrator(), place.open()
    native, zone, moment = "TIMESTAMP(6) NULL", "SET time_zone = '+05:30'", "'2026-01-31 12:00:00.5'"
    if place.kind == "oracle":
        native, zone = "TIMESTAMP(6) WITH TIME ZONE", "ALTER SESSION SET TIME_ZONE = '+05:30'"
        moment = "CAST(TIMESTAMP '2026-01-31 12:00:00.5' AS TIMESTAMP WITH TIME ZONE)"
    db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, v {native})")
    db.execute(zone)
    db.execute(f"INSERT INTO t VALUES (1, {moment})")
    assert read(store, relation(store, "t")) == [row(1, "2026-01-31 06:30:00.500000")]


REFUSED: list[tuple[str, str]] = [
    ("decimal(12,2)", "1.234"),
    ("decimal(12,2)", "12345678901.00"),
    ("decimal(12,2)", "abc"),
    ("timestamp(6)", "2026-01-31 12:00:00.1234567"),
    ("timestamp(3)", "2026-01-31 12:00:00.1234"),
    ("timestamp(0)", "2026-01-31 12:00:00.5"),
    ("timestamp(6)", "2026-01-31 12:00:00.000000+02:00"),
    ("string(5)", "123456"),
    ("string(5)", "12345 "),
    ("bytes(2)", "000000"),
    ("bytes(2)", "0"),
    ("integer(19)", "9223372036854775808"),
    ("integer(19)", "1.5"),
    ("integer(19)", ""),
    ("boolean", "yes"),
    ("date", "2026-1-31"),
    ("date", "2026-01-31 10:00:00"),
]


@pytest.mark.parametrize(("type_", "cell"), REFUSED)
def test_what_would_be_changed_is_refused(
    shared_place: Place, shared_store: Any, table_of: TableOf, type_: str, cell: str
) -> None:
    """Either the core finds it (where the store's column does not vouch for its type), or the store refuses it."""
    lacking = {"12345 ": "blanks at an end", "2026-01-31 10:00:00": "dates without a time"}
    lacking["9223372036854775808"] = "64-bit integers"
    shared_place.needs(*[lacking[cell]] if cell in lacking else [])
    store, found, rows = shared_store, table_of(type_), [row(1, cell)]
    with store.begin() as transaction:
        fitting, refused = fitting_rows(found, found, rows)
        if fitting:
            with pytest.raises(RowError) as caught, transaction.savepoint():
                transaction.insert(found, fitting)
            column_, error = caught.value.column, str(caught.value)
        else:
            column_, error = refused[0].column, refused[0].error
        transaction.commit()
    assert column_ == "v"
    assert cell not in error or len(cell) < 3
    assert read(store, found) == []


SILENT: dict[str, list[tuple[str, str, str]]] = {
    "sqlite": [
        ("DECIMAL(30,2)", "decimal(30,2)", "1234567890123456789.01"),
        ("DECIMAL(30,20)", "decimal(30,20)", "0.12345678901234567890"),
        ("JSON", "json", "12345678901234567.5"),
        ("JSON", "json", "-0.0"),
    ],
    "mysql": [
        ("CHAR(5)", "string(5)", "a "),
        ("BINARY(4)", "bytes(4)", "00ff"),
        ("DATETIME", "timestamp(6)", "2026-01-31 12:00:00.500000"),
        ("TIMESTAMP(3) NULL", "timestamptz(6)", "2026-01-31 12:00:00.123456"),
        ("DATETIME(6)", "timestamp(9)", "2026-01-31 12:00:00.123456789"),
        ("ENUM('yes', 'no')", "string(9)", "YES"),
        ("ENUM('yes', 'no')", "string(9)", ""),
        ("JSON", "json", '{"a":0.12345678901234567890}'),
        ("JSON", "json", "[18446744073709551617]"),
        ("VARCHAR(5) CHARACTER SET latin1", "string(5)", "日"),
        ("VARCHAR(5) CHARACTER SET utf8mb3", "string(5)", "🎬"),
        ("INT", "integer(19)", "4294967296"),
        ("INT UNSIGNED", "integer(10)", "-1"),
        ("DECIMAL(12,2)", "decimal(14,4)", "1.2345"),
        ("DATE", "date", "2026-02-30"),
        ("DATE", "timestamp(0)", "2026-01-31 10:00:00"),
        ("DOUBLE", "double", "inf"),
        ("DOUBLE(10,2)", "double", "0.125"),
        ("DOUBLE(10,2)", "double", "-0.0"),
        ("FLOAT(7,2)", "float", "1.0049999952316284"),
        ("TINYTEXT", "string", f"a{' ' * 255}"),
    ],
    "oracle": [
        ("CHAR(5)", "string(5)", "ab "),
        ("NUMBER(12,2)", "decimal(14,4)", "1.2345"),
        ("NUMBER(3)", "integer(19)", "1000"),
        ("NUMBER(3,5)", "decimal(5,5)", "0.71000"),
        ("DATE", "timestamp(6)", "2026-01-31 12:00:00.500000"),
        ("TIMESTAMP(3)", "timestamp(6)", "2026-01-31 12:00:00.123456"),
        ("VARCHAR2(5 CHAR)", "string(9)", "123456"),
        ("BINARY_DOUBLE", "double", "-0.0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("type_", ["float", "double"])
def test_a_negative_zero_is_kept_or_refused(
    shared_place: Place, shared_store: Any, table_of: TableOf, type_: str
) -> None:
    place, store = shared_place, shared_store
    table_of(type_)
    found = relation(store, "t")
    if "negative zero" not in place.lacks:
        write(store, found, row(1, "-0.0"))
        assert read(store, found) == [row(1, "-0.0")]
        return
    with pytest.raises(RowError):
        write(store, found, row(1, "-0.0"))


def test_what_a_column_would_change_in_silence_is_refused(place: Place) -> None:
    """Columns that were made by hand and hold less than the migration's type."""
    db, store = place.administrator(), place.open()
    store.install_tables()
    for number, (declared, type_, cell) in enumerate(SILENT[place.kind]):
        if declared in place.lacks:
            continue
        db.execute(f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY, v {declared})")
        found = relation(store, f"t{number}", types={"v": type_})
        with store.begin() as transaction:
            with pytest.raises(RowError) as caught, transaction.savepoint():
                transaction.insert(found, [row(1, cell)])
            assert caught.value.column == "v", (declared, str(caught.value))
            assert cell not in str(caught.value) or len(cell) < 3
            transaction.insert(found, [row(2, None)])
            with pytest.raises(RowError), transaction.savepoint():
                transaction.update(found, [row(2, cell)])
            transaction.commit()
        assert read(store, found) == [row(2, None)], declared
