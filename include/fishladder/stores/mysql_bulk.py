"""The fast way into MySQL: LOAD DATA LOCAL of cells as they are, taken only if the server changed none of them.

``REPLACE`` is what makes the server strict: without it, LOCAL turns errors into warnings. It would also delete rows
that hold a unique value of a new one; so a load counts only when the server reports that none was deleted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle
from typing import IO, Any

import MySQLdb

from fishladder.cells import Cell, Row, holds
from fishladder.errors import FatalError, RowError
from fishladder.stores.base import Field, Finding, Relation
from fishladder.stores.mysql_errors import translated
from fishladder.stores.sql import Dialect, Guard

CELL, LINE, NULL = b"\x1f", b"\x1e", b"\x1d"
"""What parts cells and lines, and stands for NULL until backslashes are doubled."""
FILE_BYTES = 2_000_000
"""About how much the server is given at once. It is kept in memory, and twice: one is filled while one is sent."""
SWITCHED_OFF = {1148, 2068, 3948, 4166}
"""The numbers that say that LOAD DATA LOCAL is not allowed, by the server or by this client."""


def is_allowed(connection: Any) -> bool:
    """Whether server and client both allow LOAD DATA LOCAL: they look at that before they look for the table."""
    try:
        connection.cursor().execute("LOAD DATA LOCAL INFILE '/dev/null' INTO TABLE fishladder_none")
    except MySQLdb.Error as error:
        return not error.args or error.args[0] not in SWITCHED_OFF
    return True


def finding(connection: Any) -> Finding:
    if is_allowed(connection):
        return Finding(level="pass", where="local_infile", message="on: tables are loaded the fast way")
    message = (
        "is OFF, or this client forbids it: loading into this store takes three times as long;"
        " SET GLOBAL local_infile = ON"
    )
    return Finding(level="warn", where="local_infile", message=message)


class BulkLoad:
    """Rows of one relation on their way in, inside a transaction; ``longest``: what a row may be, in bytes."""

    def __init__(
        self, connection: Any, dialect: Dialect, relation: Relation, guards: Mapping[int, Guard], longest: int
    ) -> None:
        self.connection = connection
        self.relation = relation
        self.guards = {at: guard for at, guard in guards.items() if not proven(relation.fields[at])}
        self.longest = longest
        self.statement = _statement(dialect, relation)

    def load(self, batches: Iterable[Sequence[Row]]) -> int:
        """Returns how many rows there were. Raises RowError when not all of them go in as they are."""
        rest, loaded, sent = iter(batches), 0, None
        with _anonymous_file() as one, _anonymous_file() as other, ThreadPoolExecutor(1) as sender:
            for file in cycle((one, other)):
                rows = self._fill(file, rest)  # while the server still takes the other file
                if sent is not None:
                    loaded += sent.result()
                if not rows:
                    break
                sent = sender.submit(self._send, file, rows)
        return loaded

    def _fill(self, file: IO[bytes], batches: Iterator[Sequence[Row]]) -> int:
        """Write as many of the batches as the file takes. Returns how many rows; 0 at the end."""
        file.seek(0)
        file.truncate()
        rows = 0
        for batch in batches:
            self._guard(batch)
            file.write(self._lines(batch))
            rows += len(batch)
            if file.tell() >= FILE_BYTES:
                break
        file.seek(0)  # and flush: the client opens it by its path
        return rows

    def _guard(self, batch: Sequence[Row]) -> None:
        for at, guard in self.guards.items():
            for cell in {row[at] for row in batch}:
                reason = guard(cell) if cell is not None else None
                if reason is not None:
                    raise RowError(f"the value is {reason}", column=self.relation.fields[at].column)

    def _lines(self, batch: Sequence[Row]) -> bytes:
        text = b"".join(filter(None, chain.from_iterable(batch)))
        if CELL in text or LINE in text or NULL in text:
            return self._joined([CELL.join(map(_escaped, row)) for row in batch])
        try:
            lines = list(map(CELL.join, batch))  # type: ignore[arg-type]  # mostly there is no NULL, and this is fast
        except TypeError:
            lines = [CELL.join([NULL if cell is None else cell for cell in row]) for row in batch]
        found = self._joined(lines)
        if b"\\" in text:
            found = found.replace(b"\\", b"\\\\")
        return found.replace(NULL, b"\\N")

    def _joined(self, lines: list[bytes]) -> bytes:
        if max(map(len, lines), default=0) > self.longest // 2:
            raise RowError(f"a row is longer than max_allowed_packet ({self.longest} bytes) lets through")
        return LINE.join([*lines, b""])

    def _send(self, file: IO[bytes], rows: int) -> int:
        try:
            with translated():
                self.connection.cursor().execute(self.statement(f"/dev/fd/{file.fileno()}"))
        except FatalError as error:
            raise RowError(f"LOAD DATA: {error}") from None  # the rows themselves, one by one, will tell more
        report = self.connection.info()
        if report != f"Records: {rows}  Deleted: 0  Skipped: 0  Warnings: 0":
            raise RowError(f"LOAD DATA did not take {rows} rows as they are: {report}")
        return rows


def proven(field: Field) -> bool:
    """Whether a cell of the field's type cannot be changed: a date or timestamp with no more digits than the column."""
    return field.type.kind in ("date", "timestamp", "timestamptz") and holds(field.native, field.type)


def _escaped(cell: Cell) -> bytes:
    if cell is None:
        return b"\\N"
    return cell.replace(b"\\", b"\\\\").replace(CELL, b"\\" + CELL).replace(LINE, b"\\" + LINE)


def _statement(dialect: Dialect, relation: Relation) -> Callable[[str], str]:
    """What takes the file's path and gives the statement. What is written otherwise than it is read goes through @c."""
    columns, changed = [], []
    for at, field in enumerate(relation.fields):
        name, cell = dialect.quote(field.column), f"@c{at}"
        if field.type.kind == "bytes":
            changed.append(f"{name} = UNHEX({cell})")
        elif field.type.kind == "boolean":
            changed.append(f"{name} = {cell} + 0")  # BIT would take the digit for a byte
        else:
            cell = name
        columns.append(cell)
    tail = (
        f" REPLACE INTO TABLE {dialect.quote(relation.name)} CHARACTER SET utf8mb4"
        f" FIELDS TERMINATED BY x'{CELL.hex()}' ESCAPED BY '\\\\' LINES TERMINATED BY x'{LINE.hex()}'"
        f" ({', '.join(columns)}){' SET ' if changed else ''}{', '.join(changed)}"
    )
    return lambda path: f"LOAD DATA LOCAL INFILE '{path}'{tail}"


def _anonymous_file() -> IO[bytes]:
    """A file without a name, which nobody else can open and which is gone however this process ends."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("fishladder"), "w+b")
    return tempfile.TemporaryFile()
