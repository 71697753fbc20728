"""How SQLite spells cells and types. Decimals are text: a NUMERIC column holds binary floats beyond 15 digits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fishladder import cells
from fishladder.cells import Cell, LogicalType
from fishladder.stores.base import Field
from fishladder.stores.sql import Dialect, Guard

EXACT_DIGITS = 15
"""Decimal digits that a binary float always keeps."""


class SqliteDialect(Dialect):
    ignore = "OR IGNORE"

    def text(self, column: str, field: Field) -> str:
        kind, type_ = field.type.kind, field.type
        if kind == "decimal":
            return f"fishladder_decimal({column}, {'NULL' if type_.scale is None else type_.scale})"
        if kind in ("timestamp", "timestamptz"):
            return f"fishladder_timestamp({column}, {'NULL' if type_.size is None else type_.size})"
        if kind == "date":
            return f"fishladder_date({column})"
        if kind == "json":
            return f"fishladder_json({column})"
        if kind in ("float", "double"):  # what SQLite holds is a double, whatever the field can take
            return f"fishladder_double({column})"
        return self.plain_text(column, field)

    def plain_text(self, column: str, field: Field) -> str:
        if field.type.kind == "bytes":
            return f"CASE WHEN {column} IS NULL THEN NULL ELSE lower(hex({column})) END"
        text = f"CAST({column} AS TEXT)"
        return f"lower({text})" if field.type.kind == "uuid" else text

    def bind(self, cell: Cell, field: Field) -> Any:
        if cell is None:
            return None
        kind = field.type.kind
        if kind in ("integer", "boolean") and cell.removeprefix(b"-").isdigit():
            return _integer(cell)  # what is no number stays the text that SQLite lets an INTEGER column hold
        if kind == "bytes":
            return bytes.fromhex(cell.decode())
        if kind in ("float", "double"):
            return float(cell)
        return cell.decode()

    def key_piece(self, text: str) -> str:
        return f"(length(CAST({text} AS BLOB)) || ':' || {text})"

    def key_in(self, columns: Sequence[str], count: int) -> str:
        if len(columns) == 1:
            return super().key_in(columns, count)
        one = f"({', '.join('?' * len(columns))})"
        return f"({', '.join(columns)}) IN (VALUES {', '.join([one] * count)})"


def _integer(cell: bytes) -> int:
    number = int(cell)
    if not -(2**63) <= number < 2**63:
        raise ValueError("SQLite's integers have 64 bits")
    return number


_DECLARED = re.compile(r"\s*([A-Za-z_ ]*?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*")


def logical_type(declared: str) -> LogicalType | None:
    """What a declared type means. SQLite enforces none of it, so every cell is checked."""
    found = _DECLARED.fullmatch(declared)
    if found is None or not found[1]:
        return None
    word, size, scale = found[1].upper(), *(int(part) if part else None for part in found.groups()[1:])
    if word in ("DECIMAL_TEXT", "DECIMAL", "NUMERIC", "NUMBER"):
        return LogicalType(kind="decimal", size=size, scale=scale if size is None or scale is not None else 0)
    if word in ("BOOLEAN", "BOOL"):
        return LogicalType(kind="boolean")
    if word in ("DATETIME", "TIMESTAMP"):
        return LogicalType(kind="timestamp", size=size)
    if word in ("DATE", "UUID", "JSON", "JSON_TEXT"):
        return LogicalType(kind=word.removesuffix("_TEXT").lower())  # type: ignore[arg-type]
    if "INT" in word:
        return LogicalType(kind="integer", size=19)
    if any(part in word for part in ("CHAR", "CLOB", "TEXT")):
        return LogicalType(kind="string", size=size)
    if "BLOB" in word or "BINARY" in word:
        return LogicalType(kind="bytes", size=size)
    if any(part in word for part in ("REAL", "FLOA", "DOUB")):
        return LogicalType(kind="double")
    return None


def declared_type(type_: LogicalType) -> str:
    """The declaration that reads back as this logical type."""
    kind, size = type_.kind, type_.size
    if kind == "decimal":
        return f"DECIMAL_TEXT({size},{type_.scale})" if size is not None else "DECIMAL_TEXT"
    words = {"integer": "INTEGER", "boolean": "BOOLEAN", "date": "DATE", "uuid": "UUID", "json": "JSON_TEXT"}
    words |= {"float": "DOUBLE", "double": "DOUBLE", "string": "VARCHAR", "bytes": "BLOB"}
    word = words.get(kind, "DATETIME")
    return f"{word}({size})" if size is not None and kind in ("string", "bytes", "timestamp", "timestamptz") else word


_KEY_KINDS = ("integer", "boolean", "string", "bytes")


def can_be_key(type_: LogicalType) -> bool:
    """Triggers write keys as they are stored; of other types SQLite stores several texts for one value."""
    return type_.kind in _KEY_KINDS


def guard(declared: str) -> Guard | None:
    """What to refuse before a column without text affinity changes it, or takes what it is not; None: nothing."""
    word = declared.upper()
    if any(part in word for part in ("CHAR", "CLOB", "TEXT", "BLOB")):
        return None
    type_ = logical_type(declared)
    if type_ is not None and type_.kind in ("decimal", "json"):
        return _inexact
    if type_ is not None and type_.kind in ("date", "timestamp"):
        return lambda cell: "no date or time" if _MOMENT.fullmatch(cell) is None else None
    if type_ is not None and type_.kind == "double":
        return _LOST_FLOATS.get
    return None


_LOST_FLOATS = {
    b"-0.0": "a negative zero, which SQLite does not keep",
    b"nan": "not a number, of which SQLite makes NULL",
}
_MOMENT = re.compile(rb"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.\d+)?)?")
_NUMBER = re.compile(rb"\s*[+-]?(\d*)\.?(\d*)(?:[eE]([+-]?\d+))?\s*")


def _inexact(cell: bytes) -> str | None:
    if cell == b"-0.0":  # of JSON; no decimal is spelled so
        return _LOST_FLOATS[cell]
    found = _NUMBER.fullmatch(cell)
    if found is None or (found[3] is None and len((found[1] + found[2]).strip(b"0")) <= EXACT_DIGITS):
        return None
    return f"a number of more than {EXACT_DIGITS} digits, for which the column must be declared as text"


# Functions that SQL calls ------------------------------------------------------------------------------------


def _date(value: str | None) -> str | None:
    if value is None:
        return None
    return cells.timestamp_text(value, None).removesuffix(" 00:00:00")


def _null(function: Callable[..., str]) -> Callable[..., str | None]:
    return lambda value, *rest: None if value is None else function(value, *rest)


FUNCTIONS: tuple[tuple[str, int, Callable[..., str | None]], ...] = (
    ("fishladder_decimal", 2, _null(cells.decimal_text)),
    ("fishladder_timestamp", 2, _null(lambda value, digits: cells.timestamp_text(str(value), digits))),
    ("fishladder_date", 1, _date),
    ("fishladder_json", 1, _null(lambda value: cells.json_text(str(value)))),
    ("fishladder_double", 1, _null(lambda value: cells.float_text(value, "double"))),
)
