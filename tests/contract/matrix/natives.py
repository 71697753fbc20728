"""What stores hold, written and read by plain drivers: no code of the core has a part in it."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote, urlsplit

import MySQLdb
import oracledb

from tests.servers import oracle

DriverError = (sqlite3.Error, MySQLdb.Error, oracledb.Error, ValueError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Native:
    """A column type. ``meaning``: number, float, text, bytes, time, uuid or json.

    ``write`` is SQL around a parameter's ``?``, ``read`` SQL around the column's ``{}``; ``values``: besides those of
    the meaning. ``without_nul``: the Oracle wire emulator has no such character. ``most``: of what is larger, or
    longer, a few are tried: the column refuses all alike.
    """

    declared: str
    meaning: str
    write: str = "?"
    read: str = "{}"
    values: tuple[Any, ...] = ()
    without_nul: bool = False
    most: float = float("inf")


# The edges ---------------------------------------------------------------------------------------------------

NUMBERS = (
    *("0", "1", "-1", "2", "0.71", "-0.71", "10.50", "12345", "12300", "1.005", "128", "2147483648", "9999999999.99"),
    *("-9223372036854775808", "9223372036854775808", "18446744073709551615", "1234567890123456789.01"),
    *("-0", "-0.0", "1e0", "127", "-128", "-129", "255", "256", "32767", "32768", "-32769", "65535", "65536"),
    *("8388607", "8388608", "-8388609", "16777215", "16777216", "2147483647", "-2147483649", "4294967295"),
    *("4294967296", "9223372036854775807", "-9223372036854775809", "18446744073709551616"),
    *("9" * 38, "9" * 39, "0." + "1234567890" * 3, "0." + "0" * 37 + "1", "-" + "9" * 35 + "." + "9" * 30),
    *("9999999999", "10000000000", "-10000000000", "0.005", "99999"),
)
FLOATS = (0.0, -0.0, 0.1, -1.5, 16777217.0, 0.10000000149011612, 3.4028234663852886e38, 1e300, 5e-324, 1e-45,
          1.7976931348623157e308, float("inf"), float("-inf"), float("nan"))  # fmt: skip
TEXTS = (
    *("", " ", "a", "a ", " a", "A", "ä", "e\u0301", "\u00e9", "日本", "🎬", "a\u00a0b", "\t\r\n", "\\", "\\N", "\\0"),
    *("\x1f\\\x1e\\N\x1d", "\x1f", "\x1e", "\0", "a\0b", "\ufeff", "NULL", "'", '"', "%s ? :a {}", "0", "1e5", "٣"),
    *("yes", "YES", "x" * 20, "x" * 21, "🎬" * 20, "ä" * 11, "0188B3C4-7F3E-7C5D-9A6B-2F1E0D3C4B5A"),
    *('{"b": 1.10, "a": [1, 2]}', "[1, 2", "日本 \t\\" * 20_000),
    *("abcde", "abcdef", "日本日本日", "日本日本日本", "x" * 36, "x" * 37),
    *("x" * 255, "x" * 256, "ä" * 128, "x" * 255 + " ", "x" * 65_535, "x" * 65_536, "x" * 65_535 + " "),
)
BYTES = (
    *(b"", b"\0", b"\x00\xff", b" ", b"'", b"\\", b"\\N", b"\x1f\x1e\x1d", b"\xc3\x28", b"abcd", b"ab\0\0", b"ab  "),
    *(bytes(range(16)), bytes(17), bytes(range(256)) * 300, bytes(255), bytes(256), bytes(65_535), bytes(65_536)),
    *(b"\xff" * 16, b"\xff" * 17, b"\xff" * 2_000, b"\xff" * 2_001),
)
TIMES = (
    *("2026-01-31 00:00:00", "2026-01-31 12:00:00", "2026-01-31 12:00:00.5", "2026-01-31 12:00:00.123"),
    *("2026-01-31 12:00:00.123456", "2026-01-31 12:00:00.1234567", "2026-03-29 02:30:00", "2024-02-29 23:59:59.999999"),
    *("1969-12-31 23:59:59.999999", "1970-01-01 00:00:01", "2038-01-19 03:14:07.999999", "2038-01-19 03:14:08"),
    *("2026-01-31 23:30:00.123456+05:30", "2026-01-31 23:30:00-09:30", "2026-01-31 23:30:00+00:00"),
    *("1000-01-01 00:00:00", "0999-12-31 00:00:00", "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"),
)
OFFSETS = (
    *("2026-01-31 23:30:00.123456 +05:30", "2026-01-31 23:30:00 -12:00", "2026-01-31 00:30:00 +14:00"),
    *("2026-03-29 02:30:00.5 +01:00", "1969-12-31 23:59:59 -00:01", "2038-01-19 05:14:07 +02:00"),
    *("0001-01-01 00:30:00 +01:00", "9999-12-31 23:30:00 -01:00", "9999-12-31 23:30:00.123456 +01:00"),
)
"""Moments written with another zone than UTC; the last ones are in another year, and of another age, in UTC."""
UUIDS = ("0188b3c4-7f3e-7c5d-9a6b-2f1e0d3c4b5a", "0188B3C4-7F3E-7C5D-9A6B-2F1E0D3C4B5A", "no uuid")
JSONS = (
    *("null", "{}", "[]", '"x"', "true", "-0", "-0.0", "[-0e1]"),
    *('{"bb": 1.10, "a": null, "c": [1e2, 0.0]}', "[1.0, 1, -0.0]"),
    *("[18446744073709551615]", "[18446744073709551616]", "[12345678901234567890.5]", "0.1234567890123456789012345"),
    *('{"a": 1, "a": 2}', '"\\ud83c\\udfac"', '"ä\\t\\u0000"', '{"": ""}', '"' + "日" * 30_000 + '"'),
)  # fmt: skip
EDGES: dict[str, tuple[Any, ...]] = {
    "padded": TEXTS,
    "instant": TIMES,
    "number": NUMBERS,
    "float": FLOATS,
    "text": TEXTS,
    "bytes": BYTES,
    "time": TIMES,
    "uuid": UUIDS,
    "json": JSONS,
}


# The same value, whatever it was read as ----------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_TIME = re.compile(r"(-?\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d)?(?:\.(\d+))?)?", re.ASCII)


ONE = {"instant": "time", "padded": "text"}
"""Meanings that are another one's, once they are read."""


def normal(value: Any, meaning: str) -> tuple[str, Any] | None:
    """What a value is. What is not what its column says stays as it is, marked."""
    if value is None:
        return None
    try:
        return ONE.get(meaning, meaning), _normal(value, meaning)
    except ValueError:
        return "odd", str(value)


def _normal(value: Any, meaning: str) -> object:
    if meaning == "number":
        text = repr(value) if isinstance(value, float) else str(value)
        if not _NUMBER.fullmatch(text):
            raise ValueError
        return _number(Decimal(text)) if Decimal(text) else "0"
    if meaning == "float":
        return "nan" if float(value) != float(value) else struct.pack(">d", float(value)).hex()
    if meaning == "bytes":
        if not isinstance(value, bytes):
            raise ValueError
        return value.hex()
    if meaning in ("time", "instant"):
        found = _TIME.fullmatch(str(value))
        if found is None:
            raise ValueError
        return f"{found[1]} {found[2] or '00:00'}{found[3] or ':00'}.{(found[4] or '').rstrip('0')}"
    if meaning == "uuid":
        return str(uuid.UUID(str(value)))
    if meaning == "json":
        return repr(
            json.loads(str(value), parse_float=_json_number, parse_int=_json_number, object_pairs_hook=_members)
        )
    text = str(value)
    # Of CHAR's padding nothing is the value's; one that is all blank is a blank.
    return (text.rstrip(" ") or text[:1]) if meaning == "padded" else text


def _number(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _json_number(text: str) -> Decimal:
    return Decimal(_number(Decimal(text)))


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the same key twice")
    return dict(sorted(pairs))


# The databases -------------------------------------------------------------------------------------------------


class Database(Protocol):
    """A plain connection to one database. ``types``: what it has."""

    types: ClassVar[tuple[Native, ...]]
    key: ClassVar[str]

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    @staticmethod
    def value(native: Native, found: Any) -> Any:
        """What ``native.read`` found, as Python has it."""

    def commit(self) -> None: ...

    def close(self) -> None: ...


class Sqlite:
    key = "INTEGER PRIMARY KEY"
    types: ClassVar[tuple[Native, ...]] = (
        Native(declared="INTEGER", meaning="number"),
        Native(declared="BOOLEAN", meaning="number", most=2),
        Native(declared="DECIMAL_TEXT(12,2)", meaning="number", most=10**10,
               values=("1e3", "-0", ".5", "1_000", "NaN")),
        Native(declared="DECIMAL_TEXT", meaning="number", values=("1e3", "-0.0", "007", "1e-66", "٣")),
        Native(declared="DECIMAL(12,2)", meaning="number", most=10**10),
        Native(declared="NUMERIC", meaning="number", values=("1e3", "no number")),
        Native(declared="NUMBER(10)", meaning="number", most=10**10),
        Native(declared="DOUBLE", meaning="float", values=("no number",)),
        Native(declared="REAL", meaning="float"),
        Native(declared="TEXT", meaning="text"),
        Native(declared="VARCHAR(20)", meaning="text", most=21),
        Native(declared="CHAR(5)", meaning="text", most=20),
        Native(declared="CLOB", meaning="text"),
        Native(declared="BLOB", meaning="bytes"),
        Native(declared="VARBINARY(16)", meaning="bytes", most=17),
        Native(declared="DATE", meaning="time", values=("2026-1-31", "2026-02-30", "tomorrow", "0000-00-00")),
        Native(declared="DATETIME(6)", meaning="time",
               values=("2026-01-31T12:00", "2026-01-31 12:00:00Z", "-0044-03-15 00:00:00")),
        Native(declared="DATETIME", meaning="time",
               values=("2026-02-30 00:00:00", "2026-01-31 24:00:00", "2026-01-31 12:00:60")),
        Native(declared="TIMESTAMP(3)", meaning="time", values=OFFSETS),
        Native(declared="UUID", meaning="uuid"),
        Native(declared="JSON_TEXT", meaning="json", values=("{not json", "")),
        Native(declared="JSON", meaning="json"),
        Native(declared="", meaning="text"),
    )  # fmt: skip

    def __init__(self, url: str) -> None:
        self._connection = sqlite3.connect(unquote(urlsplit(url).path[1:]), isolation_level=None, timeout=60)

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if not self._connection.in_transaction and sql.startswith("INSERT"):
            self._connection.execute("BEGIN IMMEDIATE")
        return self._connection.execute(sql, parameters).fetchall()

    @staticmethod
    def value(native: Native, found: Any) -> Any:
        return found

    def commit(self) -> None:
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


_EXACT = "CAST({} AS CHAR)"
_BYTES = "HEX({})"
_TEXT = "HEX(CONVERT({} USING utf8mb4))"


class Mysql:
    key = "BIGINT PRIMARY KEY"
    types: ClassVar[tuple[Native, ...]] = (
        Native(declared="TINYINT(1)", meaning="number", most=2, read=_EXACT),
        Native(declared="TINYINT", meaning="number", most=256, read=_EXACT),
        Native(declared="TINYINT UNSIGNED", meaning="number", most=256, read=_EXACT),
        Native(declared="SMALLINT", meaning="number", most=65_536, read=_EXACT),
        Native(declared="SMALLINT UNSIGNED", meaning="number", most=65_536, read=_EXACT),
        Native(declared="MEDIUMINT", meaning="number", most=2**24, read=_EXACT),
        Native(declared="MEDIUMINT UNSIGNED", meaning="number", most=2**24, read=_EXACT),
        Native(declared="BIT(1)", meaning="number", most=2, write="? + 0", read="{} + 0"),
        Native(declared="INT", meaning="number", most=2**32, read=_EXACT),
        Native(declared="INT UNSIGNED", meaning="number", most=2**32, read=_EXACT),
        Native(declared="INT(8) ZEROFILL", meaning="number", most=2**32, read="{} + 0"),
        Native(declared="BIGINT", meaning="number", read=_EXACT),
        Native(declared="BIGINT UNSIGNED", meaning="number", read=_EXACT),
        Native(declared="DECIMAL(12,2)", meaning="number", most=10**10, read=_EXACT),
        Native(declared="DECIMAL(65,30)", meaning="number", read=_EXACT),
        Native(declared="DECIMAL(12,2) UNSIGNED", meaning="number", most=10**10, read=_EXACT),
        Native(declared="DECIMAL(8,2) ZEROFILL", meaning="number", most=10**6, read="{} + 0"),
        Native(declared="FLOAT", meaning="float", read="CAST({} AS DOUBLE)"),
        Native(declared="FLOAT(7,2)", meaning="float", read="CAST({} AS DOUBLE)", values=(10.5, 1.005, 12345.68)),
        Native(declared="DOUBLE", meaning="float"),
        Native(declared="DOUBLE UNSIGNED", meaning="float"),
        Native(declared="DOUBLE(10,2)", meaning="float", values=(10.5, 1.005, 12345.68)),
        Native(declared="CHAR(5)", meaning="text", most=20, read=_TEXT),
        Native(declared="VARCHAR(20)", meaning="text", most=21, read=_TEXT),
        Native(declared="VARCHAR(20) CHARACTER SET latin1", meaning="text", most=21, read=_TEXT),
        Native(declared="ENUM('yes','no','')", meaning="text", most=3, read=_TEXT),
        Native(declared="VARCHAR(20) CHARACTER SET utf16", meaning="text", most=21, read=_TEXT),
        Native(declared="TINYTEXT", meaning="text", most=256, read=_TEXT),
        Native(declared="TEXT", meaning="text", most=65_536, read=_TEXT),
        Native(declared="MEDIUMTEXT", meaning="text", read=_TEXT),
        Native(declared="LONGTEXT", meaning="text", read=_TEXT),
        Native(declared="BINARY(4)", meaning="bytes", most=5, read=_BYTES),
        Native(declared="VARBINARY(16)", meaning="bytes", most=17, read=_BYTES),
        Native(declared="TINYBLOB", meaning="bytes", most=256, read=_BYTES),
        Native(declared="BLOB", meaning="bytes", read=_BYTES),
        Native(declared="MEDIUMBLOB", meaning="bytes", read=_BYTES),
        Native(declared="LONGBLOB", meaning="bytes", read=_BYTES),
        Native(declared="DATE", meaning="time", read=_EXACT, values=("0000-00-00", "2026-00-00")),
        Native(declared="DATETIME", meaning="time", read=_EXACT, values=("0000-00-00 00:00:00",)),
        Native(declared="DATETIME(3)", meaning="time", read=_EXACT),
        Native(declared="DATETIME(6)", meaning="time", read=_EXACT),
        Native(declared="TIMESTAMP", meaning="instant", read=_EXACT),
        Native(declared="TIMESTAMP(3)", meaning="instant", read=_EXACT),
        Native(declared="TIMESTAMP(6)", meaning="instant", read=_EXACT, values=("0000-00-00 00:00:00",)),
        Native(declared="JSON", meaning="json", read=_TEXT),
        Native(declared="TIME", meaning="text", read=_EXACT),
        Native(declared="YEAR", meaning="number", read=_EXACT),
        Native(declared="SET('a','b')", meaning="text", read=_TEXT),
        Native(declared="BIT(8)", meaning="number", write="? + 0", read="{} + 0"),
        Native(declared="POINT", meaning="bytes", write="ST_GeomFromText(?)", read="HEX(ST_AsBinary({}))",
               values=("POINT(1 2)",)),
    )  # fmt: skip

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = MySQLdb.connect(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=parts.path[1:],
            charset="utf8mb4",
        )
        self._connection.converter = {}
        # As an application that is not strict about dates: such values are there, in old databases.
        self.run("SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES'")

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        cursor.execute(*((sql.replace("?", "%s"), list(parameters)) if parameters else (sql,)))
        return [tuple(map(self._value, line)) for line in cursor.fetchall()]

    @staticmethod
    def _value(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    @staticmethod
    def value(native: Native, found: Any) -> Any:
        if found is None or native.read not in (_BYTES, _TEXT):
            return found
        return bytes.fromhex(found).decode() if native.read == _TEXT else bytes.fromhex(found)

    def commit(self) -> None:
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


_MOMENT = "'YYYY-MM-DD HH24:MI:SS.FF9'"
_SECOND = "'YYYY-MM-DD HH24:MI:SS'"
_WRITE_MOMENT = "TO_TIMESTAMP(?, 'YYYY-MM-DD HH24:MI:SS.FF')"
_WRITE_INSTANT = "TO_TIMESTAMP_TZ(?, 'YYYY-MM-DD HH24:MI:SS.FF TZH:TZM')"
_BC = "CASE WHEN {0} < TIMESTAMP '0001-01-01 00:00:00' THEN '-' END || "
_LOB = "CASE WHEN DBMS_LOB.GETLENGTH({0}) > 0 THEN {0} END"  # an empty one and NULL are one here


EMULATED = not oracle.is_real()


class Oracle:
    key = "NUMBER(19) PRIMARY KEY"
    types: ClassVar[tuple[Native, ...]] = (
        Native(declared="NUMBER(10)", meaning="number", most=10**10),
        Native(declared="NUMBER(12,2)", meaning="number", most=10**10),
        Native(declared="NUMBER(5,-2)", meaning="number", most=10**7),
        Native(declared="NUMBER(3,5)", meaning="number", most=1, values=("0.00999", "-0.00999", "0.00001")),
        Native(declared="NUMBER(*,2)", meaning="number"),
        Native(declared="INTEGER", meaning="number"),
        Native(declared="NUMBER", meaning="number"),
        Native(declared="FLOAT(20)", meaning="number"),
        Native(declared="FLOAT", meaning="number"),
        Native(declared="BINARY_FLOAT", meaning="float"),
        Native(declared="BINARY_DOUBLE", meaning="float"),
        Native(declared="CHAR(5 CHAR)", meaning="padded", most=20, without_nul=EMULATED),
        Native(declared="NCHAR(5)", meaning="padded", most=20, without_nul=EMULATED),
        Native(declared="VARCHAR2(20 CHAR)", meaning="text", most=21, without_nul=EMULATED),
        Native(declared="VARCHAR2(20)", meaning="text", most=21, without_nul=EMULATED),
        Native(declared="NVARCHAR2(20)", meaning="text", most=21, without_nul=EMULATED),
        Native(declared="CLOB", meaning="text", without_nul=EMULATED, read=_LOB),
        Native(declared="NCLOB", meaning="text", without_nul=EMULATED, read=_LOB),
        Native(declared="RAW(16)", meaning="bytes", most=17),
        Native(declared="RAW(2000)", meaning="bytes", most=2000),
        Native(declared="BLOB", meaning="bytes", read=_LOB),
        Native(declared="DATE", meaning="time", write=f"TO_DATE(?, {_SECOND})",
               read=_BC + f"TO_CHAR({{0}}, {_SECOND})"),
        *(
            Native(declared=f"TIMESTAMP({digits})", meaning="time", write=_WRITE_MOMENT,
                   read=_BC + f"TO_CHAR({{0}}, {_MOMENT})")
            for digits in (0, 3, 6, 9)
        ),
        *(
            # The cast does nothing, but for the wire emulator: its columns with a zone keep all digits otherwise.
            Native(declared=f"TIMESTAMP({digits}) WITH {local}TIME ZONE", meaning="instant",
                   write=f"CAST({_WRITE_INSTANT} AS TIMESTAMP({digits}) WITH {local}TIME ZONE)",
                   read=_BC + f"TO_CHAR({{0}} AT TIME ZONE 'UTC', {_MOMENT})", values=OFFSETS)
            for digits, local in ((3, ""), (6, ""), (9, ""), (3, "LOCAL "), (6, "LOCAL "))
        ),
        Native(declared="INTERVAL DAY TO SECOND", meaning="text"),
        Native(declared="INTERVAL YEAR TO MONTH", meaning="text"),
        Native(declared="LONG", meaning="text"),
        # An Oracle's table has one column of these two, and the matrix declares all types in one table.
        *((Native(declared="LONG RAW", meaning="bytes"),) if EMULATED else ()),
        Native(declared="ROWID", meaning="text"),
        Native(declared="XMLTYPE", meaning="text"),
        Native(declared="BFILE", meaning="bytes"),
        # Of which the wire emulator's dictionary says something else.
        *(
            () if EMULATED else
            (Native(declared="BOOLEAN", meaning="number", most=2), Native(declared="JSON", meaning="json"))
        ),
    )  # fmt: skip

    def __init__(self, url: str) -> None:
        self._connection: Any = oracle.connect(url)
        self._connection.outputtypehandler = self._exactly
        self.run("ALTER SESSION SET TIME_ZONE = '+00:00'")

    @staticmethod
    def _exactly(cursor: Any, column: Any) -> Any:
        if column.type_code == oracledb.DB_TYPE_NUMBER:
            return cursor.var(str, arraysize=cursor.arraysize)
        for lob, text in (
            (oracledb.DB_TYPE_CLOB, oracledb.DB_TYPE_LONG),
            (oracledb.DB_TYPE_BLOB, oracledb.DB_TYPE_LONG_RAW),
        ):
            if column.type_code == lob:
                return cursor.var(text, arraysize=cursor.arraysize)
        return None

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        marks = iter(range(1, len(parameters) + 1))
        sizes = [self._size(value) for value in parameters]
        if any(sizes):
            cursor.setinputsizes(*sizes)
        cursor.execute(re.sub(r"\?", lambda _: f":{next(marks)}", sql) if parameters else sql, list(parameters))
        return list(cursor.fetchall()) if cursor.description else []

    @staticmethod
    def value(native: Native, found: Any) -> Any:
        return found

    @staticmethod
    def _size(value: Any) -> Any:
        return oracledb.DB_TYPE_BINARY_DOUBLE if isinstance(value, float) else None

    def commit(self) -> None:
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


DATABASES: dict[str, Any] = {"sqlite": Sqlite, "mysql": Mysql, "mariadb": Mysql, "oracle": Oracle}
