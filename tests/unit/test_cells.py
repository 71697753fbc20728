"""Canonical text: one text per value, and nothing else has it."""

from __future__ import annotations

import pytest

from fishladder import cells
from fishladder.cells import LogicalType, holds, key_cells, key_text, meet, misfit, parse_type, row_digest
from fishladder.errors import InputError


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        ("0", 2, "0.00"),
        ("-0", 2, "0.00"),
        (".71", 2, "0.71"),
        ("10.5", 2, "10.50"),
        ("007.10", 1, "7.1"),
        ("1E+3", 0, "1000"),
        ("1.10", None, "1.1"),
        ("100", None, "100"),
        (0.1, 2, "0.10"),
        (1e22, 0, "10000000000000000000000"),
        ("-0.004", 2, "-0.004"),  # more digits than the field has: kept, so that the row is refused
        ("12345678901234567890123456789012345678", 0, "12345678901234567890123456789012345678"),
        ("no number", 2, "no number"),
        ("NaN", 2, "NaN"),
        ("1_000.5", 2, "1_000.5"),  # Python reads it as a number, a store does not
        ("١٢", 2, "١٢"),
    ],
)
def test_decimals_are_padded_and_never_rounded(value: object, scale: int | None, text: str) -> None:
    assert cells.decimal_text(value, scale) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        ("2026-01-31", 0, "2026-01-31 00:00:00"),
        ("2026-01-31T12:00", 3, "2026-01-31 12:00:00.000"),
        ("2026-01-31 12:00:00.123456", 6, "2026-01-31 12:00:00.123456"),
        ("2026-01-31 12:00:00.1200", None, "2026-01-31 12:00:00.12"),
        ("2026-01-31 12:00:00.123", 0, "2026-01-31 12:00:00.123"),
        ("next Tuesday", 0, "next Tuesday"),
    ],
)
def test_timestamps_keep_every_digit(value: str, digits: int | None, text: str) -> None:
    assert cells.timestamp_text(value, digits) == text


def test_json_is_equal_by_value() -> None:
    assert cells.json_text('{"b": 1.10, "a": [1e2, true, null, "é"]}') == '{"a":[100,true,null,"é"],"b":1.1}'
    assert cells.json_text('[-0.0, -0, 0, "x"]') == '[-0.0,-0.0,0,"x"]'
    for raw in ("{broken", '{"a":1,"a":2}', '"\\ud800"'):
        assert cells.json_text(raw) == raw


def test_floats_are_the_shortest_text_that_reads_back() -> None:
    assert cells.float_text("0.1", "double") == "0.1"
    assert cells.float_text(16777216, "float") == "16777216.0"
    assert cells.float_text(0.1, "float") == repr(0.10000000149011612)
    assert cells.float_text(-0.0, "double") == "-0.0"


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("decimal(12,2)", "decimal(10,4)", "decimal(8,2)"),
        ("decimal(12,2)", "decimal", "decimal(12,2)"),
        ("decimal", "decimal", "decimal"),
        ("integer(19)", "decimal(10,2)", "integer(8)"),
        ("integer(19)", "boolean", "boolean"),
        ("string(20)", "string", "string(20)"),
        ("timestamp(6)", "timestamp(3)", "timestamp(3)"),
        ("timestamp(6)", "date", "date"),
        ("string(36)", "uuid", "uuid"),
        ("float", "double", "float"),
        ("timestamp(6)", "timestamptz(6)", None),
        ("decimal(12,2)", "double", None),
        ("string(10)", "integer(10)", None),
        ("bytes(16)", "string(16)", None),
    ],
)
def test_meet_is_what_both_can_hold(one: str, other: str, found: str | None) -> None:
    expected = None if found is None else parse_type(found)
    assert meet(parse_type(one), parse_type(other)) == expected
    assert meet(parse_type(other), parse_type(one)) == expected
    if expected is not None:
        assert holds(parse_type(one), expected)


@pytest.mark.parametrize(
    "text", ["decimal(12)", "decimal(2,3)", "varchar(10)", "date(3)", "integer(1,2)", "", "json(1)"]
)
def test_a_bad_type_is_named(text: str) -> None:
    with pytest.raises(InputError):
        parse_type(text)


@pytest.mark.parametrize(
    ("cell", "type_", "fits"),
    [
        (None, "integer(3)", True),
        (b"-12", "integer(3)", True),
        (b"-0", "integer(3)", False),
        (b"012", "integer(3)", False),
        (b"1234", "integer(3)", False),
        (b"1.0", "integer(3)", False),
        (b"0.71", "decimal(4,2)", True),
        (b"0.7", "decimal(4,2)", False),
        (b"0.715", "decimal(4,2)", False),
        (b"123.00", "decimal(4,2)", False),
        (b"1", "decimal", True),
        ("äöü".encode(), "string(3)", True),
        ("äöüß".encode(), "string(3)", False),
        (b"\xff\xfe\xff\xfe", "string(3)", False),
        (b"00ff", "bytes(2)", True),
        (b"00FF", "bytes(2)", False),
        (b"000000", "bytes(2)", False),
        (b"2", "boolean", False),
        (b"0.1", "double", True),
        (b"0.10", "double", False),
        (b"0.123456789012345", "double", True),
        (b"0.123456789012345", "float", False),
        (b"16777216.0", "float", True),
        (b"16777217.0", "float", False),
        (b"-0.0", "float", True),
        (b"n/a", "double", False),
        (b"2026-01-31 00:00:00", "date", False),
        (b"2026-01-31 12:00:00.123", "timestamp(3)", True),
        (b"2026-01-31 12:00:00.1234", "timestamp(3)", False),
        (b"2026-01-31 12:00:00.1234", "timestamp", True),
    ],
)
def test_misfit_says_what_a_field_cannot_hold(cell: bytes | None, type_: str, fits: bool) -> None:
    reason = misfit(cell, parse_type(type_))
    assert (reason is None) == fits
    if cell is not None and reason is not None and len(cell) > 3:
        assert cell.decode(errors="replace") not in reason  # logs leak


def test_keys_are_length_prefixed() -> None:
    assert key_text((b"a", b"bc")) != key_text((b"ab", b"c"))
    for key in ((b"1",), (b"1", b"3402"), (b"", b":"), ("ü:3".encode(), b"12:")):
        assert key_cells(key_text(key)) == key
    for broken in (b"3:ab", b"x", b"1:ab"):
        with pytest.raises(ValueError, match=r"ends too early|not found|invalid literal"):
            key_cells(broken)


def test_a_digest_tells_null_from_empty_and_where_a_cell_ends() -> None:
    rows = [(b"a", b"bc"), (b"ab", b"c"), (None, b""), (b"", None), (b"-",), (None,), (b"",)]
    assert len({row_digest(row) for row in rows}) == len(rows)


def test_types_are_written_as_they_are_read() -> None:
    for text in ("decimal(12,2)", "string(20)", "decimal", "date", "timestamp(0)"):
        assert str(parse_type(text)) == text
    assert parse_type(" Decimal( 12 , 2 ) ") == LogicalType(kind="decimal", size=12, scale=2)
