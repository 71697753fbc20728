"""What Oracle's dictionary says about types and names, and what its columns would change without an error."""

from __future__ import annotations

import pytest

from fishladder.cells import parse_type
from fishladder.stores.base import Field
from fishladder.stores.oracle_types import (
    Char,
    Double,
    OracleDialect,
    declared_type,
    dictionary_name,
    guard,
    logical_type,
    native_name,
    plain_name,
)


@pytest.mark.parametrize(
    ("there", "here"), [("CUSTOMER", "customer"), ("Odd", "Odd"), ("odd", '"odd"'), ("A$1", "a$1")]
)
def test_names_come_back(there: str, here: str) -> None:
    assert plain_name(there) == here
    assert dictionary_name(here) == there


@pytest.mark.parametrize(
    ("declared", "type_"),
    [
        (("NUMBER", 22, None, None, None), "decimal"),
        (("NUMBER", 22, None, 0, None), "integer(38)"),
        (("NUMBER", 22, 10, 0, None), "integer(10)"),
        (("NUMBER", 22, 12, 2, None), "decimal(12,2)"),
        (("NUMBER", 22, 5, -2, None), "integer(7)"),
        (("NUMBER", 22, 3, 5, None), "decimal(5,5)"),
        (("FLOAT", 22, 126, None, None), "decimal"),
        (("BINARY_FLOAT", 4, None, None, None), "float"),
        (("CHAR", 20, None, None, 5), "string(5)"),
        (("NVARCHAR2", 40, None, None, 20), "string(20)"),
        (("CLOB", 4000, None, None, None), "string"),
        (("RAW", 16, None, None, None), "bytes(16)"),
        (("DATE", 7, None, None, None), "timestamp(0)"),
        (("TIMESTAMP(9)", 11, None, 9, None), "timestamp(9)"),
        (("TIMESTAMP(6) WITH TIME ZONE", 13, None, 6, None), "timestamptz(6)"),
        (("TIMESTAMP(3) WITH LOCAL TIME ZONE", 11, None, 3, None), "timestamptz(3)"),
        (("BOOLEAN", 1, None, None, None), "boolean"),
        (("JSON", 8200, None, None, None), "json"),
    ],
)
def test_what_a_column_holds(declared: tuple[str, int, int | None, int | None, int | None], type_: str) -> None:
    assert logical_type(*declared) == parse_type(type_)


@pytest.mark.parametrize("odd", ["LONG", "LONG RAW", "INTERVAL DAY(2) TO SECOND(6)", "XMLTYPE", "ROWID", "BFILE"])
def test_what_cannot_be_carried(odd: str) -> None:
    assert logical_type(odd, 10, None, None, None) is None
    assert native_name(odd, 10, None, None, None, "") == odd


@pytest.mark.parametrize(
    ("declared", "cell", "refused"),
    [
        (("NUMBER", 22, 12, 2), b"1.005", True),
        (("NUMBER", 22, 12, 2), b"1.500", False),
        (("NUMBER", 22, 12, 2), b"12345678901", True),
        (("NUMBER", 22, 5, -2), b"12345", True),
        (("NUMBER", 22, 5, -2), b"12300", False),
        (("NUMBER", 22, 5, -2), b"0", False),
        (("NUMBER", 22, None, None), b"9" * 38 + b"0" * 20, False),
        (("NUMBER", 22, None, None), b"0.00" + b"9" * 39, True),
        (("FLOAT", 22, 20, None), b"1234567", True),
        (("FLOAT", 22, 20, None), b"123456", False),
        (("BINARY_FLOAT", 4, None, None), b"0.1", True),
        (("BINARY_FLOAT", 4, None, None), b"0.10000000149011612", False),
        (("BINARY_FLOAT", 4, None, None), b"inf", False),
        (("BINARY_DOUBLE", 8, None, None), b"-0.0", True),
        (("CHAR", 5, None, None), b"a ", True),
        (("CHAR", 5, None, None), b" ", False),
        (("VARCHAR2", 5, None, None), b"", True),
        (("VARCHAR2", 5, None, None), b"a ", False),
        (("DATE", 7, None, None), b"2026-01-31 12:00:00.5", True),
        (("NUMBER", 22, 3, 5), b"-0.00999", False),
        (("NUMBER", 22, 3, 5), b"0.01000", True),
        (("NUMBER", 22, 3, 5), b"0.71000", True),
        (("DATE", 7, None, None), b"2026-01-31 12:00:00.000", False),
        (("DATE", 7, None, None), b"2026-02-30", True),
        (("TIMESTAMP(3)", 11, None, 3), b"2026-01-31 12:00:00.1234", True),
        (("TIMESTAMP(3)", 11, None, 3), b"0000-01-31 12:00:00.123", True),
        (("JSON", 8200, None, None), b'{"a":1,"a":2}', True),
        (("JSON", 8200, None, None), b"[0." + b"1" * 39 + b"]", True),
        (("JSON", 8200, None, None), b"[0.1,1e30]", False),
    ],
)
def test_what_a_column_would_change_is_refused(
    declared: tuple[str, int | None, int | None, int | None], cell: bytes, refused: bool
) -> None:
    check = guard(*declared)
    assert check is not None
    assert bool(check(cell)) is refused


@pytest.mark.parametrize(
    ("type_", "declared"),
    [("string(40)", "VARCHAR2(40 CHAR)"), ("string(4000)", "CLOB"), ("bytes(2000)", "RAW(2000)"), ("bytes", "BLOB"),
     ("decimal(65,30)", "NUMBER"), ("integer(20)", "NUMBER(20)"), ("boolean", "NUMBER(1)"), ("json", "CLOB"),
     ("timestamp(3)", "TIMESTAMP(3)"), ("double", "BINARY_DOUBLE")],
)  # fmt: skip
def test_tables_are_made_with_oracle_s_types(type_: str, declared: str) -> None:
    assert declared_type(parse_type(type_), key=False) == declared


@pytest.mark.parametrize(
    ("native", "type_", "cell", "bound"),
    [
        ("timestamp(0)", "timestamp(6)", b"2026-01-31 12:00:00.000000", "2026-01-31 12:00:00"),
        ("timestamp(0)", "date", b"2026-01-31", "2026-01-31 00:00:00"),
        ("timestamptz(9)", "timestamptz(9)", b"2026-01-31 12:00:00.123456789", "2026-01-31 12:00:00.123456789 +00:00"),
        ("bytes(2)", "bytes(2)", b"00ff", b"\x00\xff"),
        ("bytes", "string", b"00ff", b"00ff"),
        ("decimal", "integer(38)", b"12", 12),
        ("double", "double", b"inf", Double("inf")),
    ],
)
def test_cells_are_bound_as_what_the_column_is(native: str, type_: str, cell: bytes, bound: object) -> None:
    field = Field(column="v", type=parse_type(type_), native=parse_type(native), checked=True)
    assert OracleDialect().bind(cell, field) == bound


def test_text_for_a_column_that_pads_is_bound_as_char() -> None:
    string = parse_type("string(5)")
    field = Field(column="v", type=string, native=string, checked=True, bytewise=False)
    assert type(OracleDialect().bind(b"ab", field)) is Char
