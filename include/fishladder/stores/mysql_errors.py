"""MySQL's errors, by number, in fishladder's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import MySQLdb

from fishladder.errors import AmbiguousError, FatalError, FenceError, RowError, TransientError

_WAITED, _UNREADABLE = 1205, 3854
_BUSY = {1020, 1040, 1203, 1205, 1213, 1412, 2002, 2003, 3101, 3572}
"""A row changed since the snapshot (MariaDB), too many connections, lock waits, deadlocks, a table changed under a
snapshot, nobody listening, a commit that another server of the group forestalled, NOWAIT."""
_LOST = {0, 1053, 1158, 1159, 1160, 1161, 1290, 1317, 1836, 1927, 2006, 2013, 2055, 4031}
"""The connection or its server ended, or is no primary any more (1290, 1836)."""
_ROW = {
    *(1048, 1062, 1169, 1216, 1217, 1264, 1265, 1292, 1364, 1366, 1367, 1406, 1416, 1451, 1452, 1525, 1586, 1690),
    *(3140, 3141, 3156, 3157, 3819, 3988, 4025),
}
_UNIQUE = {1062, 1169, 1586}
_DENIED = {1142, 1143, 1227, 1370}
"""A right that the account has not."""
_FULL = {1021, 1114}
"""The disk or the table's space."""
HARMLESS = {b"1287", b"1592", b"1681"}
"""Warnings about the statement (deprecated, unsafe in a statement-based log), not about its values."""


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
    """MySQL's errors in fishladder's words; values that the server quotes are left out."""
    try:
        yield
    except (MySQLdb.Error, MySQLdb.Warning) as error:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else -1
        message = without_values(str(error.args[1] if len(error.args) > 1 else error))
        said = f"MySQL {code}: {message}"
        if code in _LOST:
            if committing:
                raise AmbiguousError(f"the connection was lost in a commit: {said}") from error
            raise TransientError(said) from error
        if code in _BUSY:
            raise TransientError(said) from error
        if code == 1644:
            if "fishladder:" in message:
                raise FenceError(message) from error
            raise RowError("MySQL 1644: a trigger of the table refuses the row") from None  # its words may hold values
        if code in _ROW:
            raise RowError(said, column=column_of(message), unique=code in _UNIQUE) from None  # nor may a traceback
        if code in _DENIED:
            said += "; where it is the copier's, preflight names the GRANT that is missing"
        if code in _FULL or "No space left" in message:
            raise FatalError(f"{said}. Nothing was written: make room at that server, then repeat the task") from error
        raise FatalError(said) from error


def waited_in_vain(error: TransientError) -> bool:
    """Whether a lock was not to be had in time; whoever has it has it still."""
    return isinstance(error.__cause__, MySQLdb.Error) and error.__cause__.args[:1] == (_WAITED,)


def is_unreadable(error: FatalError) -> bool:
    """Whether the server could not show what it knows of sessions, for one of them runs a statement with bytes."""
    return isinstance(error.__cause__, MySQLdb.Error) and error.__cause__.args[:1] == (_UNREADABLE,)


def without_values(message: str) -> str:
    """The server quotes values; whatever stands in one, nothing of it is left."""
    for kept in ("(?= for column ['`][^']*['`] at row)", "(?= for function| at row|$)"):
        quoted = re.compile(rf"(value|DOUBLE|DECIMAL|INTEGER):? '.*'{kept}", re.S)
        message, found = quoted.subn(r"\1", message)
        if found:
            return message
    return re.sub(r"(Duplicate entry) '.*'(?= for key)", r"\1", message, flags=re.S)


def column_of(message: str) -> str | None:
    """MariaDB names the check of a column, such as that a JSON is one, ``table.column``."""
    found = re.search(r"(?:column|field) ['`]([^']+)['`]|CONSTRAINT `([^`]*\.[^`]+)`", message, re.I)
    return re.split(r"`\.`|\.", found[1] or found[2])[-1] if found else None
