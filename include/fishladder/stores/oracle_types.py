"""How Oracle spells cells and types.

Oracle keeps no ``''``: it is NULL, and an empty LOB is taken for NULL with it. What Oracle returns exactly by itself
(text, numbers without scale, binary floats, LOBs) is read as it is. A few forms are chosen because the Oracle wire
emulator of the tests knows them, too: ``TO_CHAR(n)`` rather than ``TO_CHAR(n, 'TM9')``, ``AT TIME ZONE 'UTC'`` rather
than ``SYS_EXTRACT_UTC``, a sign for years before 1 rather than ``SYYYY``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from fishladder import cells
from fishladder.cells import Cell, LogicalType
from fishladder.stores.base import Field, Relation
from fishladder.stores.sql import Dialect, Guard

SETTINGS = {
    "NLS_CALENDAR": "GREGORIAN",
    "NLS_NUMERIC_CHARACTERS": ".,",
    "NLS_DATE_FORMAT": "YYYY-MM-DD HH24:MI:SS",
    "NLS_TIMESTAMP_FORMAT": "YYYY-MM-DD HH24:MI:SS.FF",
    "NLS_TIMESTAMP_TZ_FORMAT": "YYYY-MM-DD HH24:MI:SS.FF TZH:TZM",
    "NLS_SORT": "BINARY",
    "NLS_COMP": "BINARY",
    "NLS_NCHAR_CONV_EXCP": "TRUE",
    "TIME_ZONE": "+00:00",
    "COMMIT_WAIT": "WAIT",
    "COMMIT_LOGGING": "IMMEDIATE",
}
"""``ALTER SESSION SET``: how texts are bound, compared and ordered; a character that would be lost is an error; what is
committed is on disk."""

DIGITS = 38
"""Decimal digits that every NUMBER keeps; some keep 40."""
WIDEST = 62
"""Digits that a format of TO_CHAR has at most."""
LONGEST_TEXT = 1_000
"""Characters of a VARCHAR2 that always fit its 4,000 bytes."""
LONGEST_RAW = 2_000
RENDERED_RAW = 1_000
"""Bytes of a RAW whose hexadecimal the server can write; keys are shorter."""


class Double(float):
    """A binary float. The driver would bind a plain one as a NUMBER, which is neither infinite nor that large."""


class Char(str):
    """Text for a CHAR column. Bound as CHAR it is compared without regard to the padding; as VARCHAR2, with it."""

    __slots__ = ()


class OracleDialect(Dialect):
    share = exclusive = " FOR UPDATE"
    limit = " FETCH FIRST ? ROWS ONLY"
    nth = " OFFSET ? ROWS FETCH NEXT 1 ROWS ONLY"

    def quote(self, name: str) -> str:
        return f'"{dictionary_name(name)}"'

    def text(self, column: str, field: Field) -> str:
        """By what the column is; a text that the migration file takes for something else stays as it is."""
        native, type_ = field.native, field.type
        if native.kind in ("integer", "decimal"):
            return _number(column, native, type_)
        if native.kind in ("timestamp", "timestamptz"):
            moment = f"({column} AT TIME ZONE 'UTC')" if native.kind == "timestamptz" else column
            if type_.kind == "date":
                day = _signed(moment, "YYYY-MM-DD")
                return f"CASE WHEN {moment} = TRUNC({moment}) THEN {day} ELSE {_timestamp(moment, native)} END"
            return _timestamp(moment, native, type_)
        if native.kind == "boolean":
            return f"CASE WHEN {column} THEN '1' WHEN NOT {column} THEN '0' END"
        if native.kind == "json":
            return f"JSON_SERIALIZE({column} RETURNING CLOB)"
        if native.kind == "bytes" and native.size is not None and native.size <= RENDERED_RAW:
            return f"LOWER(RAWTOHEX({column}))" if type_.kind == "bytes" else column
        if native.kind in ("string", "bytes") and native.size is None:  # a LOB: an empty one is no NULL, but read so
            return f"CASE WHEN DBMS_LOB.GETLENGTH({column}) > 0 THEN {column} END"
        if native.kind == "string" and not field.bytewise:
            # Only CHAR is not bytewise. Its trailing blanks are padding and no part of the value; a value of nothing
            # but blanks keeps one of them, for without any it would be NULL.
            column = f"CASE WHEN {column} = ' ' THEN ' ' ELSE RTRIM({column}) END"
        return f"LOWER({column})" if type_.kind == "uuid" else column

    def cohort_text(self, root: Relation, prefix: str) -> str:
        column = super().cohort_text(root, prefix)
        padded = any(field.column == root.root_cohort and not field.bytewise for field in root.fields)
        return f"RTRIM({column})" if padded else column

    def plain_text(self, column: str, field: Field) -> str:
        if field.native.kind == "decimal" and field.native.scale is None:
            # Of more than 40 characters TO_CHAR would round: such a key is not found again, and so never written.
            scale = field.type.scale if field.type.kind == "decimal" else None
            return _fixed(column, scale) if scale else _shortest(column)
        if field.native.kind == "string" and field.native.size is not None:
            # National text as text of the database: its bytes are counted, and those are UTF-8 there.
            return f"CAST({self.text(column, field)} AS VARCHAR2(4000))"
        return self.text(column, field)

    def finish(self, field: Field) -> Callable[[Any], bytes] | None:
        """What the driver returned as a number, a float or bytes becomes text here."""
        native, kind = field.native, field.type.kind
        if native.kind in ("float", "double"):
            precision = native.kind
            return lambda value: cells.float_text(value, precision).encode()
        if native.kind == "decimal" and native.scale is None:
            scale = field.type.scale if kind == "decimal" else None
            return None if not scale else lambda number: _padded(number, scale)
        if native.kind == "bytes":
            if kind == "bytes" and (native.size is None or native.size > RENDERED_RAW):
                return lambda value: bytes(value).hex().encode()
            return None
        if native.kind == "json" or kind == "json":
            return lambda cell: cells.json_text(cell.decode()).encode()
        if native.kind != "string" or kind in ("string", "uuid"):
            return None
        return _read_as(field.type)

    def bind(self, cell: Cell, field: Field) -> Any:
        """What the driver binds as the column's own type: compared with a text, an index would not be used."""
        if cell is None:
            return None
        native, kind = field.native.kind, field.type.kind
        if native == "boolean" or kind == "boolean":
            return _truth(cell)
        if native in ("integer", "decimal"):
            return _bound_number(cell)
        if native in ("float", "double"):
            return Double(cell)
        if native == "timestamptz":
            return _instant(cell.decode())
        if native == "timestamp":
            return _moment(cell.decode())
        if native == "bytes":  # a text would be taken for hexadecimal
            return bytes.fromhex(cell.decode()) if kind == "bytes" else cell
        if kind == "bytes":
            cell = bytes.fromhex(cell.decode())
        text = cell.decode()
        return text if field.bytewise else Char(text)

    def key_piece(self, text: str) -> str:
        # Oracle joins NULL to a text as if it were '', and a piece of NULL is to be NULL.
        return f"CASE WHEN {text} IS NOT NULL THEN LENGTHB({text}) || ':' || {text} END"

    def blank_null(self, text: str) -> str:
        return text  # as it is here

    def insert_homes(self, entity: str, cohort: str, root_key: str, source: str) -> str:
        found = f"SELECT {entity} AS entity, {cohort} AS cohort, {root_key} AS root_key {source}"
        return (
            f"MERGE INTO fishladder_home h USING ({found}) s ON (h.entity = s.entity) WHEN NOT MATCHED THEN"
            " INSERT (entity, cohort, root_key) VALUES (s.entity, s.cohort, s.root_key)"
        )


# Names ---------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A name of Oracle's dictionary as migration files have it: lower case, or in quotes where that is its own."""
    if name == name.upper():
        return name.lower()
    return f'"{name}"' if name == name.lower() else name


def dictionary_name(name: str) -> str:
    """The name in Oracle's dictionary; no name there holds a quote."""
    if name.startswith('"') and name.endswith('"') and len(name) > 2:
        return name[1:-1]
    return name.upper().replace('"', "") if name == name.lower() else name.replace('"', "")


# Numbers and times in SQL --------------------------------------------------------------------------------------


def _number(column: str, native: LogicalType, type_: LogicalType) -> str:
    """All the digits that there are, and at least as many after the point as the field has."""
    if native.kind == "integer" or native.scale == 0:
        if type_.kind == "decimal" and type_.scale:
            return f"TO_CHAR({column}, 'FM{'9' * (DIGITS - 1)}0.{'0' * min(type_.scale, 24)}')"
        return f"TO_CHAR({column})"
    if native.scale is None:
        return column
    whole = max((native.size or DIGITS) - native.scale, 1)
    scale = type_.scale if type_.kind == "decimal" else 0
    if scale is not None and scale >= native.scale:
        return f"TO_CHAR({column}, 'FM{'9' * (whole - 1)}0.{'0' * scale}')"
    if not scale:
        return _shortest(column)
    exact = f"TO_CHAR({column}, 'FM{'9' * (whole - 1)}0.{'0' * scale}')"
    return f"CASE WHEN {column} = TRUNC({column}, {scale}) THEN {exact} ELSE {_shortest(column)} END"


def _shortest(column: str) -> str:
    """No zeros at the end, and one before the point. The point is one whatever the session's settings."""
    text = f"REPLACE(TO_CHAR({column}), ',', '.')"
    return (
        f"CASE WHEN {column} > 0 AND {column} < 1 THEN '0' || {text}"
        f" WHEN {column} < 0 AND {column} > -1 THEN '-0' || SUBSTR({text}, 2) ELSE {text} END"
    )


def _fixed(column: str, scale: int) -> str:
    """With so many digits after the point at least, as ``_padded`` has it: a number that may have any."""
    exact = f"TO_CHAR({column}, 'FM{'9' * (WIDEST - scale - 1)}0.{'0' * scale}')"
    fits = f"{column} = TRUNC({column}, {scale}) AND ABS({column}) < 1E{WIDEST - scale}"
    return f"CASE WHEN {fits} THEN {exact} ELSE {_shortest(column)} END"


def _signed(moment: str, format_: str) -> str:
    """Years before 1 with a sign: no field takes them, but without it they would be taken for others."""
    text = f"TO_CHAR({moment}, '{format_}')"
    return f"CASE WHEN {moment} < TIMESTAMP '0001-01-01 00:00:00' THEN '-' || {text} ELSE {text} END"


def _timestamp(moment: str, native: LogicalType, type_: LogicalType | None = None) -> str:
    """All the fraction digits that the column has, but for zeros beyond those of the field."""
    have = native.size or 0
    want = have if type_ is None or type_.kind not in ("timestamp", "timestamptz") else type_.size
    format_ = "YYYY-MM-DD HH24:MI:SS"
    if want is None:
        full = _signed(moment, f"{format_}.FF{have}" if have else format_)
        return f"RTRIM(RTRIM({full}, '0'), '.')" if have else full
    if want >= have:
        fraction = f".FF{have}" if have else "." if want else ""
        zeros = "0" * (want - have)
        quoted = f'"{zeros}"' if zeros else ""
        return _signed(moment, f"{format_}{fraction}{quoted}")
    digits, zeros = f"TO_CHAR({moment}, 'FF{have}')", "0" * (have - want)
    short = _signed(moment, f"{format_}.FF{want}" if want else format_)
    return f"CASE WHEN SUBSTR({digits}, {want + 1}) = '{zeros}' THEN {short} ELSE {_timestamp(moment, native)} END"


# Cells in Python -----------------------------------------------------------------------------------------------


def _padded(number: bytes, scale: int) -> bytes:
    whole, _, fraction = number.partition(b".")
    return b"%s.%s" % (whole, fraction.ljust(scale, b"0"))


def _read_as(type_: LogicalType) -> Callable[[bytes], bytes] | None:
    """A text that is taken for something else, in that one's canonical form where it has one."""
    if type_.kind == "bytes":
        return lambda cell: cell.hex().encode()
    if type_.kind == "decimal":
        return lambda cell: cells.decimal_text(cell.decode(), type_.scale).encode()
    if type_.kind in ("timestamp", "timestamptz"):
        return lambda cell: cells.timestamp_text(cell.decode(), type_.size).encode()
    if type_.kind in ("float", "double"):
        return lambda cell: cells.float_text(cell.decode(), "double").encode()
    return None


def _truth(cell: bytes) -> int:
    if cell not in (b"0", b"1"):  # any other number would be true
        raise ValueError("neither 0 nor 1")
    return int(cell)


def _bound_number(cell: bytes) -> int | Decimal:
    text = cell.decode()
    if text.removeprefix("-").isdigit():
        return int(text)
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError("Oracle has no such number")
    return number


def _moment(text: str) -> str:
    """For DATE and TIMESTAMP, which read it by the session's formats; DATE takes no fraction."""
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole if " " in whole else f"{whole} 00:00:00"


def _instant(text: str) -> datetime | str:
    """A moment with a zone. Beyond microseconds as text, which the wire emulator does not take."""
    short = _moment(text)
    if len(short.partition(".")[2]) > 6:
        return f"{short} +00:00"
    return datetime.fromisoformat(short).replace(tzinfo=UTC)


# Types ---------------------------------------------------------------------------------------------------------

_TIMESTAMP = re.compile(r"TIMESTAMP\((\d)\)( WITH (?:LOCAL )?TIME ZONE)?")


def logical_type(
    data_type: str, length: int | None, precision: int | None, scale: int | None, characters: int | None
) -> LogicalType | None:
    """What a column of ALL_TAB_COLUMNS can hold. ``length`` in bytes, ``characters`` where it is text.

    LONG, LONG RAW, intervals, XMLTYPE, ROWID, BFILE and objects have no logical type.
    """
    if data_type == "NUMBER":
        return _numeric(precision, scale)
    if data_type == "FLOAT":
        return LogicalType(kind="decimal")
    if found := _TIMESTAMP.fullmatch(data_type):
        return LogicalType(kind="timestamptz" if found[2] else "timestamp", size=int(found[1]))
    if data_type in ("CHAR", "NCHAR", "VARCHAR2", "NVARCHAR2"):
        return LogicalType(kind="string", size=characters)
    if data_type == "RAW":
        return LogicalType(kind="bytes", size=length)
    words = {"DATE": ("timestamp", 0), "CLOB": ("string", None), "NCLOB": ("string", None), "BLOB": ("bytes", None)}
    words |= {"BINARY_FLOAT": ("float", None), "BINARY_DOUBLE": ("double", None)}
    words |= {"BOOLEAN": ("boolean", None), "JSON": ("json", None)}
    if data_type not in words:
        return None
    kind, size = words[data_type]
    return LogicalType(kind=kind, size=size)  # type: ignore[arg-type]


def _numeric(precision: int | None, scale: int | None) -> LogicalType:
    scale = _signed_scale(scale)
    if scale is None:
        return LogicalType(kind="decimal")
    precision = DIGITS if precision is None else precision  # NUMBER(*,s), and INTEGER, which is NUMBER(*,0)
    if scale <= 0:
        return LogicalType(kind="integer", size=precision - scale)
    return LogicalType(kind="decimal", size=max(precision, scale), scale=scale)


def _signed_scale(scale: int | None) -> int | None:
    """The wire emulator's dictionary has a scale of -2 as 2046."""
    return scale - 2_048 if scale is not None and scale > 1_000 else scale


def native_name(
    data_type: str, length: int | None, precision: int | None, scale: int | None, characters: int | None, used: str
) -> str:
    """The type as a person would declare it."""
    if data_type == "NUMBER" and (precision is not None or scale is not None):
        return f"NUMBER({'*' if precision is None else precision}{f',{_signed_scale(scale)}' if scale else ''})"
    if data_type in ("CHAR", "VARCHAR2"):
        return f"{data_type}({characters} CHAR)" if used == "C" else f"{data_type}({length})"
    if data_type in ("NCHAR", "NVARCHAR2"):
        return f"{data_type}({characters})"
    if data_type == "RAW":
        return f"RAW({length})"
    return f"FLOAT({precision})" if data_type == "FLOAT" else data_type


def declared_type(type_: LogicalType, *, key: bool) -> str:
    """The column type for a logical type; what is compared is never a LOB."""
    kind, size = type_.kind, type_.size
    if kind == "integer":
        return f"NUMBER({min(size or DIGITS, DIGITS)})"
    if kind == "decimal":
        if size is None or type_.scale is None or size > DIGITS:
            return "NUMBER"
        return f"NUMBER({size},{type_.scale})"
    if kind == "string":
        long = size is None or size > LONGEST_TEXT
        return "CLOB" if long and not key else f"VARCHAR2({255 if size is None else min(size, LONGEST_TEXT)} CHAR)"
    if kind == "bytes":
        long = size is None or size > LONGEST_RAW
        return "BLOB" if long and not key else f"RAW({255 if size is None else min(size, LONGEST_RAW)})"
    if kind in ("timestamp", "timestamptz"):
        zone = " WITH TIME ZONE" if kind == "timestamptz" else ""
        return f"TIMESTAMP({9 if size is None else min(size, 9)}){zone}"
    words = {"boolean": "NUMBER(1)", "date": "DATE", "uuid": "VARCHAR2(36 CHAR)", "json": "CLOB"}
    return words.get(kind, f"BINARY_{kind.upper()}")


# What Oracle changes without an error --------------------------------------------------------------------------


def guard(data_type: str, length: int | None, precision: int | None, scale: int | None) -> Guard | None:
    """What to refuse before a column of ALL_TAB_COLUMNS changes it; None: nothing."""
    if data_type in ("CHAR", "NCHAR"):
        return _guard_char
    if data_type in ("VARCHAR2", "NVARCHAR2", "CLOB", "NCLOB", "RAW", "BLOB"):
        return lambda cell: None if cell else _EMPTY  # of a key, for one; elsewhere '' and NULL are one already
    if data_type == "NUMBER":
        return _guard_number(precision, _signed_scale(scale))
    if data_type == "FLOAT":
        digits = int((precision or 126) * 0.30103)
        return lambda cell: f"a number of more than {digits} digits" if _digits(cell) > digits else None
    if data_type == "BINARY_FLOAT":
        return _guard_float
    if data_type == "BINARY_DOUBLE":
        return lambda cell: _NEGATIVE_ZERO if cell == b"-0.0" else None
    if data_type == "DATE":
        return lambda cell: _misfit_timestamp(cell, 0)
    if found := _TIMESTAMP.fullmatch(data_type):
        fraction = int(found[1])
        return lambda cell: _misfit_timestamp(cell, fraction)
    return inexact_json if data_type == "JSON" else None


_EMPTY = "empty, which is NULL in Oracle"
_NEGATIVE_ZERO = "a negative zero, which Oracle does not keep"
_NUMBER = re.compile(rb"-?(?P<whole>\d+)(?:\.(?P<fraction>\d+))?")
_MOMENT = re.compile(rb"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.(\d+))?)?")


def _guard_char(cell: bytes) -> str | None:
    if not cell:
        return _EMPTY
    return "a text that ends in a blank, which CHAR takes for padding" if cell.endswith(b" ") and cell != b" " else None


def _guard_number(precision: int | None, scale: int | None) -> Guard:
    precision = DIGITS if precision is None else precision

    def check(cell: bytes) -> str | None:
        found = _NUMBER.fullmatch(cell)
        if found is None:
            return None  # is none: the driver refuses it
        whole, fraction = found["whole"].lstrip(b"0"), (found["fraction"] or b"").rstrip(b"0")
        if scale is not None and len(fraction) > max(scale, 0):
            return f"a number of more than {max(scale, 0)} fraction digits, which Oracle would round"
        if scale is not None and scale < 0 and whole and not whole.endswith(b"0" * -scale):
            return f"no multiple of {10**-scale}, to which Oracle would round it"
        if scale is not None and len(whole) > max(precision - scale, 0):
            return f"a number of more than {max(precision - scale, 0)} digits before the point"
        if scale is not None and fraction[: max(scale - precision, 0)].strip(b"0"):
            return f"a number whose fraction does not begin with {scale - precision} zeros"  # of NUMBER(3,5)
        return f"a number of more than {DIGITS} digits" if _digits(cell) > DIGITS else None

    return check


def _digits(cell: bytes) -> int:
    """How many significant digits a decimal has."""
    return len(cell.lstrip(b"-0.").replace(b".", b"").rstrip(b"0") if b"." in cell else cell.lstrip(b"-").strip(b"0"))


def _guard_float(cell: bytes) -> str | None:
    if cell == b"-0.0":
        return _NEGATIVE_ZERO
    text = cell.decode(errors="replace")
    return None if cells.float_text(text, "float") == text else "a number of more digits than a BINARY_FLOAT keeps"


def _misfit_timestamp(cell: bytes, digits: int) -> str | None:
    found = _MOMENT.fullmatch(cell)
    try:
        datetime.fromisoformat(cell[:19].decode())
    except ValueError:  # there is no such day or hour; Oracle would not say in which column
        found = None
    if found is None:
        return "no date or time that Oracle has"
    return f"a time of more than {digits} fraction digits" if len((found[1] or b"").rstrip(b"0")) > digits else None


def inexact_json(cell: bytes) -> str | None:
    """JSON numbers are kept as NUMBERs; of the same key twice, one is lost."""

    def check(text: str) -> None:
        number = Decimal(text)
        digits = "".join(map(str, number.as_tuple().digits)).strip("0")
        if len(digits) > DIGITS or not -120 < number.adjusted() < 120 or (number.is_signed() and not digits):
            raise ArithmeticError

    def once(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) < len(pairs):
            raise ArithmeticError

    try:
        json.loads(cell, parse_float=check, parse_int=check, object_pairs_hook=once)
    except ArithmeticError:
        return "JSON with the same key twice, or with a number that Oracle does not keep"
    except ValueError:
        return "not JSON"
    return None
