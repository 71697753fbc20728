"""Oracle's errors, by number, in fishladder's words.

Oracle 23ai quotes values in some of its messages, and so does the Oracle wire emulator: of an error about a row only
its number and names are told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import oracledb

from fishladder.errors import AmbiguousError, FatalError, FenceError, RowError, TransientError
from fishladder.stores.oracle_types import plain_name

_BUSY = {
    *(54, 60, 1013, 1555, 4020, 4021, 8177, 12829, 14403, 30006),
    *(18, 20, 2391, 12516, 12519, 12520),
}
"""Locks, deadlocks, snapshots that are too old, DDL in the way; no session to be had."""
_LOST = {
    *(22, 24, 28, 600, 603, 1012, 1033, 1034, 1089, 1090, 1092, 2396, 2399, 3113, 3114, 3135, 3136, 25401, 25408),
    *(12153, 12170, 12502, 12505, 12514, 12521, 12525, 12528, 12537, 12541, 12543, 12545, 12547, 12570, 12571, 12757),
    *(16000, 16456),  # opened for reading only: it is no primary any more
}
_DRIVER_LOST = {"DPY-1001", "DPY-1002", "DPY-4011", "DPY-4024", "DPY-6000", "DPY-6001", "DPY-6003", "DPY-6005"}
_ROW = {
    1: "a unique value is held by another row",
    932: "a value is of another type than its column",
    1400: "a column takes no NULL",
    1401: "a value is too long for its column",
    1407: "a column takes no NULL",
    1426: "a number is too large",
    1438: "a number has more digits than its column",
    1455: "a number is too large",
    1457: "a number is too large",
    1461: "a text is too long for its column",
    1465: "a value is no hexadecimal number",
    1483: "a text is too long to be bound",
    1704: "a text is too long",
    1722: "a value is no number",
    1801: "a date cannot be read",
    1830: "a date cannot be read",
    1839: "there is no such date",
    1840: "a date cannot be read",
    1841: "there is no such year",
    1843: "there is no such month",
    1847: "there is no such day",
    1850: "there is no such hour",
    1858: "a date cannot be read",
    1861: "a date cannot be read",
    1862: "a date cannot be read",
    2290: "a check constraint of the table refuses the row",
    2291: "a foreign key's parent is not there",
    2292: "other rows refer to this one by a foreign key",
    2449: "other rows refer to this one by a foreign key",
    6502: "a value does not fit",
    12899: "a text is too long for its column",
    14400: "no partition of the table takes the value",
    14401: "the value belongs to another partition",
    14402: "the row would move to another partition, and the table has no ROW MOVEMENT enabled",
    14699: "a text is too long for its column",
    12713: "a character is none of the database's",
    40441: "a value is no JSON",
    40478: "a value is too long",
}
_OURS = 20001
"""What fishladder's triggers raise; a trigger of the application may use any of -20000 to -20999."""


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
    """Oracle's errors in fishladder's words; values that the server quotes are left out."""
    try:
        yield
    except oracledb.Error as error:
        found = error.args[0] if error.args else None
        code, name = getattr(found, "code", 0), getattr(found, "full_code", "") or ""
        message = str(getattr(found, "message", error))
        driver = name.startswith("DPY-")
        said = f"Oracle: {_first_line(message)}"
        if name in _DRIVER_LOST or (not driver and code in _LOST) or getattr(found, "is_session_dead", False):
            if committing:
                raise AmbiguousError(f"the connection was lost in a commit: {said}") from error
            raise TransientError(said) from error
        if not driver and code in _BUSY:
            raise TransientError(said) from error
        if not driver and 20000 <= code <= 20999:
            if code == _OURS and "fishladder:" in message:
                raise FenceError(_first_line(message)) from error
            raise RowError(f"ORA-{code}: a trigger of the table refuses the row") from None  # its words may hold values
        if not driver and code in _ROW:  # nor may a traceback
            raise RowError(
                f"ORA-{code:05}: {_ROW[code]}", column=_column_of(message), unique=code == 1, orphan=code == 2291
            ) from None
        if isinstance(error, oracledb.DataError) or name in ("DPY-3013", "DPY-4019", "DPY-4020", "DPY-4038"):
            raise RowError(f"{name}: the driver cannot bind a value") from None
        raise FatalError(f"Oracle: {without_values(_first_line(message))}") from error


def _first_line(message: str) -> str:
    return message.partition("\n")[0].strip()


def without_values(message: str) -> str:
    """Names stand in double quotes, values in single ones, or behind a colon in what PostgreSQL says."""
    return re.sub(r"'.*'|(?<=syntax for type )(\w+).*", r"\1…", message)


def _column_of(message: str) -> str | None:
    """The last of ``"SCHEMA"."TABLE"."COLUMN"``, as ``describe`` spells it."""
    found = re.search(r'"(?P<schema>[^"]+)"\."(?P<table>[^"]+)"\."(?P<column>[^"]+)"', _first_line(message))
    return plain_name(found["column"]) if found else None
