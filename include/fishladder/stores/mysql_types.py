"""How MySQL and MariaDB spell cells and types."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from fishladder import cells
from fishladder.cells import Cell, LogicalType
from fishladder.stores.base import Field, Relation
from fishladder.stores.sql import Dialect, Guard


class Binary(bytes):
    """Bytes for a binary column. The driver would write plain bytes as text, which not all of them are."""

    @staticmethod
    def literal(value: bytes, _: object) -> str:
        return f"x'{value.hex()}'"


class MySqlDialect(Dialect):
    share = " FOR SHARE"
    exclusive = " FOR UPDATE"
    bytewise = "utf8mb4_0900_bin"
    """The collation that neither folds nor pads."""
    tables_view = "innodb_tables"
    """Where ``information_schema`` has InnoDB's ids of tables."""
    next_row = b"),ROW("
    """What parts the rows of ``table_of_rows``."""

    def quote(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def text(self, column: str, field: Field) -> str:
        kind, size = field.type.kind, field.type.size
        if _spelled_out(field):
            return column  # a CAST would turn what is no such value into 0, NULL or a part of it
        if kind == "bytes":
            return f"LOWER(HEX({column}))"
        if kind == "uuid":
            return f"LOWER({column})"
        if kind == "boolean":
            return column if field.canonical and field.native.kind == "boolean" else f"({column} + 0)"
        if kind in ("float", "double"):
            return f"CAST({column} AS DOUBLE)"
        if kind == "decimal" and field.native.kind == "decimal" and field.type.scale == field.native.scale:
            # Of itself it has these digits; only ZEROFILL would add to them.
            return column if field.canonical else f"({column} + 0)"
        if kind == "decimal":
            return _decimal(column if field.type.scale is not None else f"({column} + 0)", field.type.scale)
        if kind == "integer":
            return column if field.native.kind in ("integer", "boolean") else _decimal(f"({column} + 0)", None)
        if kind == "date" and field.native.kind != "date":
            return f"IF(TIME({column}) = 0, CAST(DATE({column}) AS CHAR), CAST({column} AS CHAR))"
        if kind in ("timestamp", "timestamptz") and (field.native.kind, field.native.size) == (kind, size):
            return column
        if kind in ("timestamp", "timestamptz"):
            return _timestamp(f"CAST({column} AS DATETIME(6))", size)
        return column

    def plain_text(self, column: str, field: Field) -> str:
        if field.type.kind == "timestamptz" and field.native.kind == "timestamptz":
            # In UTC, whatever the time zone of the session.
            utc = f"(TIMESTAMP'1970-01-01 00:00:00.000000' + INTERVAL UNIX_TIMESTAMP({column}) SECOND)"
            return _timestamp(utc, field.type.size)
        if field.type.kind in ("string", "uuid"):
            return f"CONVERT({self.text(column, field)} USING utf8mb4)"
        return self.text(column, field)

    def finish(self, field: Field) -> Callable[[bytes], bytes] | None:
        kind = field.type.kind
        if kind == "json":
            return lambda cell: cells.json_text(cell.decode()).encode()
        if kind in ("float", "double"):
            # In the precision of the column: in the field's, a digit too many would be lost on both sides alike.
            precision = "float" if field.native.kind == "float" else "double"
            return lambda cell: cells.float_text(cell.decode(), precision).encode()
        if not _spelled_out(field):
            return None
        if kind == "decimal":
            return lambda cell: cells.decimal_text(cell.decode(), field.type.scale).encode()
        if kind in ("timestamp", "timestamptz"):
            return lambda cell: cells.timestamp_text(cell.decode(), field.type.size).encode()
        return None

    def bind(self, cell: Cell, field: Field) -> Any:
        """Numbers as numbers: compared with a text, they would be compared as binary floats."""
        if cell is None:
            return None
        kind = field.type.kind
        if kind in ("integer", "boolean"):
            return int(cell)
        if kind == "decimal":
            number = Decimal(cell.decode())
            if not number.is_finite():
                raise ValueError("MySQL has no such number")
            return number
        if kind == "bytes":
            return Binary.fromhex(cell.decode())
        return cell.decode()

    def key_in(self, columns: Sequence[str], count: int) -> str:
        """Spelled out: MariaDB's (a, b) IN (…) misses texts of another character set."""
        if len(columns) == 1:
            return super().key_in(columns, count)
        one = f"({' AND '.join(f'{column} = ?' for column in columns)})"
        return f"({' OR '.join([one] * count)})"

    def table_of_rows(self, alias: str, names: Sequence[str], rows: str) -> str:
        """SQL for a table that is only in this statement."""
        return f"(VALUES ROW({rows})) {alias} ({', '.join(names)})"

    def delete_by_key(self, table: str) -> str:
        """The beginning of a DELETE that goes by the primary key, whatever the statistics say; no other hint does."""
        return f"DELETE /*+ INDEX({table} PRIMARY) */ FROM {table}"

    def key_piece(self, text: str) -> str:
        return f"CONCAT(LENGTH({text}), ':', {text})"

    def blank_null(self, text: str) -> str:
        return f"IF(LENGTH({text}) = 0, NULL, {text})"  # equality would take blanks for '' under some collations

    def cohort_text(self, root: Relation, prefix: str) -> str:
        return f"CAST(CONVERT({super().cohort_text(root, prefix)} USING utf8mb4) AS BINARY)"

    def concat(self, pieces: Sequence[str]) -> str:
        return f"CONCAT({', '.join(pieces)})"


def _spelled_out(field: Field) -> bool:
    """Whether the column is text that the migration file takes for something else."""
    return field.native.kind in ("string", "json") and field.type.kind not in ("string", "json", "uuid", "bytes")


class MariaDbDialect(MySqlDialect):
    share = " LOCK IN SHARE MODE"
    bytewise = "utf8mb4_nopad_bin"
    tables_view = "innodb_sys_tables"
    next_row = b"),("

    def table_of_rows(self, alias: str, names: Sequence[str], rows: str) -> str:
        return f"(WITH v ({', '.join(names)}) AS (VALUES ({rows})) SELECT * FROM v) {alias}"

    def delete_by_key(self, table: str) -> str:
        return f"DELETE {table} FROM {table} FORCE INDEX (PRIMARY)"


def _decimal(column: str, scale: int | None) -> str:
    """All the digits that there are, and at least ``scale`` of them after the point."""
    if scale is None:
        return f"IF(LOCATE('.', {column}), TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {column})), {column})"
    exact = f"CAST(CAST({column} AS DECIMAL(65,{scale})) AS CHAR)"
    return f"IF({column} = TRUNCATE({column}, {scale}), {exact}, CAST({column} AS CHAR))"


def _timestamp(moment: str, digits: int | None) -> str:
    """``moment`` is a DATETIME(6)."""
    text = f"CAST({moment} AS CHAR)"
    if digits is None:
        return f"TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {text}))"
    if digits >= 6:
        return text if digits == 6 else f"CONCAT({text}, '{'0' * (digits - 6)}')"
    left = 19 if digits == 0 else 20 + digits
    return f"IF(MICROSECOND({moment}) % {10 ** (6 - digits)} = 0, LEFT({text}, {left}), {text})"


_INTEGERS = {"tinyint": 3, "smallint": 5, "mediumint": 8, "int": 10, "bigint": 19}


def logical_type(
    data_type: str, column_type: str, length: int | None, digits: int | None, scale: int | None
) -> LogicalType | None:
    """What a column of ``information_schema.columns`` can hold; ``digits``: of a number or a second's fraction."""
    if column_type.startswith("tinyint(1)") or (data_type == "bit" and digits == 1):
        return LogicalType(kind="boolean")
    if "zerofill" in column_type and data_type in (*_INTEGERS, "decimal"):
        return LogicalType(kind="decimal", size=digits, scale=scale or 0)  # decimals are rendered, integers taken as is
    if data_type in _INTEGERS:
        size = _INTEGERS[data_type] + (data_type == "bigint" and "unsigned" in column_type)
        return LogicalType(kind="integer", size=size)
    if data_type == "decimal":
        return LogicalType(kind="decimal", size=digits, scale=scale)
    if data_type in ("char", "varchar", "text", "tinytext", "mediumtext", "longtext", "enum"):
        return LogicalType(kind="string", size=None if data_type.endswith("text") else length)
    if data_type in ("varbinary", "binary", "blob", "tinyblob", "mediumblob", "longblob"):
        return LogicalType(kind="bytes", size=None if data_type.endswith("blob") else length)
    if data_type in ("datetime", "timestamp"):
        return LogicalType(kind="timestamp" if data_type == "datetime" else "timestamptz", size=digits or 0)
    if data_type in ("date", "json", "float", "double"):
        return LogicalType(kind=data_type)  # type: ignore[arg-type]
    return None


def declared_type(type_: LogicalType, *, key: bool, bytewise: str) -> str:
    """The column type for a logical type; keys are compared byte for byte and without padding."""
    kind, size = type_.kind, type_.size
    if kind == "integer":
        if size is None or size > 20:
            return f"DECIMAL({min(size or 65, 65)},0)"
        return "BIGINT UNSIGNED" if size == 20 else "BIGINT"
    if kind == "decimal":
        return f"DECIMAL({size or 65},{type_.scale if type_.scale is not None else 30})"
    if kind == "string":
        if size is None or size > 4_000:  # VARCHARs count towards the longest row, 65,535 bytes
            return f"VARCHAR(255) COLLATE {bytewise}" if key else "LONGTEXT"
        return f"VARCHAR({size}){f' COLLATE {bytewise}' if key else ''}"
    if kind == "bytes":
        long = size is None or size > 16_000
        return f"VARBINARY({255 if long else size})" if key else "LONGBLOB" if long else f"VARBINARY({size})"
    if kind in ("timestamp", "timestamptz"):
        return f"{'DATETIME' if kind == 'timestamp' else 'TIMESTAMP'}({6 if size is None else min(size, 6)})"
    words = {"boolean": "TINYINT(1)", "uuid": f"CHAR(36) COLLATE {bytewise}"}
    return words.get(kind, kind.upper())


# What MySQL changes without an error -------------------------------------------------------------------------


def guard(data_type: str, column_type: str, length: int, digits: int, *, mariadb: bool = False) -> Guard | None:
    """What to refuse before a column of ``information_schema.columns`` changes it; None: nothing."""
    if data_type in ("float", "double") and (found := _FIXED.search(column_type)):
        places = int(found[1])
        return lambda cell: (
            f"a number of more than {places} fraction digits" if _rounds(cell, data_type, places) else None
        )
    if mariadb and data_type in ("float", "double"):
        return lambda cell: "a negative zero, which MariaDB does not keep" if cell == b"-0.0" else None
    if data_type == "char":
        return lambda cell: "a text that ends in a blank, which CHAR drops" if cell.endswith(b" ") else None
    if data_type == "binary":
        return lambda cell: f"not {length} bytes, and BINARY pads" if len(cell) != 2 * length else None
    if data_type == "date":
        return lambda cell: "not a date" if _DATE.fullmatch(cell) is None else None
    if data_type in ("datetime", "timestamp"):
        return lambda cell: _misfit_timestamp(cell, digits)
    if data_type == "enum":
        words = {word.replace("''", "'").encode() for word in re.findall(r"'((?:[^']|'')*)'", column_type)}
        return lambda cell: "none of the ENUM's words" if cell not in words else None
    if data_type == "json":
        return inexact_json
    return None


_FIXED = re.compile(r"\(\d+,(\d+)\)")
"""Of FLOAT(7,2) and DOUBLE(10,2), which are rounded, when they are written or when they are read."""


def _rounds(cell: bytes, kind: str, places: int) -> bool:
    """Whether ``places`` fraction digits are too few, by the arithmetic that the server does itself."""
    try:
        value = float(cell)
    except ValueError:
        return False  # the server refuses it, as it does infinities
    if not math.isfinite(value):
        return False
    whole, power = value // 1.0, float(f"1e{places}")
    rounded = whole + round((value - whole) * power) / power
    return cells.float_text(rounded, kind) != cells.float_text(value, kind)


_DATE = re.compile(rb"\d{4}-\d\d-\d\d")
_TIMESTAMP = re.compile(rb"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.(\d+))?)?")


def _misfit_timestamp(cell: bytes, digits: int) -> str | None:
    found = _TIMESTAMP.fullmatch(cell)
    if found is None:
        return "not a timestamp"
    return f"a time of more than {digits} fraction digits" if len((found[1] or b"").rstrip(b"0")) > digits else None


def inexact_json(cell: bytes) -> str | None:
    """JSON numbers are kept as 64-bit integers or binary floats."""

    def check(text: str) -> None:
        if Decimal(repr(float(text))) != Decimal(text):
            raise ArithmeticError

    def check_integer(text: str) -> None:
        if not -(2**63) <= int(text) < 2**64:
            check(text)

    def once(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) < len(pairs):
            raise KeyError

    try:
        json.loads(cell, parse_float=check, parse_int=check_integer, object_pairs_hook=once)
    except KeyError:
        return "JSON with the same key twice, of which one would be lost"
    except ArithmeticError:
        return "JSON with a number of more digits than a binary float keeps"
    except ValueError:
        return "not JSON"
    return None
