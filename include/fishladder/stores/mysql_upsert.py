"""Many rows of MySQL by key in one statement: read, written and deleted.

The applier does little else. So cells become literals column by column, not parameter by parameter, which would cost
it more than the server takes to write the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

from MySQLdb import string_literal

from fishladder.cells import Cell, Row, key_cells, row_key
from fishladder.errors import RowError
from fishladder.stores.base import Field, Found, Relation
from fishladder.stores.mysql_bulk import proven
from fishladder.stores.mysql_types import MySqlDialect
from fishladder.stores.sql import Session, slices, statements

KEYS_AT_ONCE = 2_000
"""A key is at most 2,000 bytes long: a statement with so many stays below what every server takes by default."""

_BY_KEY = "FORCE INDEX (PRIMARY)"
"""Said to the optimizer: where its statistics lag behind a load, it would walk through the table, for every key."""
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")
_HEX = re.compile(rb"(?:[0-9a-f]{2})*")
_JOINED = {"integer", "string", "uuid", "bytes"}
"""Kinds of keys that are joined by their index, and compared as they are: in a character set that has all of Unicode,
for MariaDB compares a column in another one with single values, not with those of a table."""


class MySqlSession(Session):
    """``Session`` with the statements of the applier spelled in bulk."""

    dialect: MySqlDialect

    def rows_by_key(self, relation: Relation, keys: Sequence[bytes], *, lock: bool = False) -> dict[bytes, Found]:
        entity = self.dialect.entity_sql(relation.entity, "t") if relation.entity else "NULL"
        select = (
            f"SELECT {self._select(relation)}, {entity} FROM {self.dialect.quote(relation.name)} t {_BY_KEY} WHERE "
        )
        found: dict[bytes, Found] = {}
        key_of = itemgetter(*relation.key)  # the cell, where a key is only one
        for some in slices(list(dict.fromkeys(keys)), KEYS_AT_ONCE):
            cells = list(map(key_cells, some))
            wanted = dict(zip([cell for (cell,) in cells] if len(relation.key) == 1 else cells, some, strict=True))
            where = self._keys(relation, cells, "t.")
            answer = self.run(f"{select}{where}{self.dialect.share if lock else ''}", [])
            rows = self._rows(relation, [line[:-1] for line in answer])
            for row, line in zip(rows, answer, strict=True):
                key = wanted.get(key_of(row))
                if key is not None:  # a collation that folds case or pads finds more than was asked for
                    found[key] = Found(row, line[-1])
        return found

    def delete(self, relation: Relation, keys: Sequence[bytes]) -> None:
        for some in slices(keys, KEYS_AT_ONCE):
            where = self._keys(relation, list(map(key_cells, some)), "")
            self.run(f"{self.dialect.delete_by_key(self.dialect.quote(relation.name))} WHERE {where}", [])

    def homes(self, entities: Iterable[bytes]) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for some in slices(list(set(entities)), KEYS_AT_ONCE):
            texts = _text(b",".join(map(string_literal, some)))
            sql = f"SELECT entity, cohort FROM fishladder_home {_BY_KEY} WHERE entity IN ({texts})"
            found |= {entity: cohort.decode() for entity, cohort in self.run(sql, [])}
        return found

    def forget(self, ids: Sequence[int]) -> None:
        for some in slices(ids, KEYS_AT_ONCE):
            # Walking through the journal, it would wait for the transactions that are writing it.
            wanted = ", ".join(map(str, some))
            self.run(f"{self.dialect.delete_by_key('fishladder_journal')} WHERE id IN ({wanted})", [])

    def lock_shards(self, numbers: Iterable[int]) -> None:
        wanted = [b"%d" % number for number in sorted(set(numbers))]
        if wanted:  # one after the other, ascending, as all copiers do; IN (…) would walk through those of others, too
            names = self.dialect.table_of_rows("n", ["no"], _text(self.dialect.next_row.join(wanted)))
            sql = f"SELECT s.no FROM {names} STRAIGHT_JOIN fishladder_shard s {_BY_KEY} ON s.no = n.no"
            self.run(f"{sql}{self.dialect.exclusive}", [])

    def _keys(self, relation: Relation, keys: Sequence[tuple[bytes, ...]], alias: str) -> str:
        """SQL that holds for the rows with these keys."""
        columns = self.key_columns(relation, alias)
        fields = [relation.fields[position] for position in relation.key]
        literals = [self._literals(field, cells) for field, cells in zip(fields, zip(*keys, strict=True), strict=True)]
        if len(columns) == 1:
            return f"{columns[0]} IN ({_text(b','.join(literals[0]))})"
        names = [f"{column} = ".encode() for column in columns]
        parts = [[name + literal for literal in some] for name, some in zip(names, literals, strict=True)]
        return f"({_text(b' OR '.join(map(b' AND '.join, zip(*parts, strict=True))))})"

    def _literals(self, field: Field, cells: Sequence[Cell]) -> list[bytes]:
        """One column's cells as they stand in a statement. Raises RowError for what is no such value."""
        if field.type.kind in ("integer", "boolean", "decimal"):
            _check(_NUMBER, cells, field)
            return [b"NULL" if cell is None else cell for cell in cells]
        return self._texts(field, cells)

    def _texts(self, field: Field, cells: Sequence[Cell]) -> list[bytes]:
        """The same, with numbers as texts."""
        if field.type.kind in ("integer", "boolean", "decimal"):
            _check(_NUMBER, cells, field)
        if field.type.kind in ("float", "double"):
            cells = [self._value(cell, field) for cell in cells]
        if field.type.kind == "bytes":
            _check(_HEX, cells, field)
            return [b"NULL" if cell is None else b"x'%s'" % cell for cell in cells]
        return [b"NULL" if cell is None else string_literal(cell) for cell in cells]

    # Writing

    def insert(self, relation: Relation, rows: Sequence[Row]) -> None:
        if len(rows) < 2:
            super().insert(relation, rows)
            return
        columns = ", ".join(self.dialect.quote(field.column) for field in relation.fields)
        for some in statements(rows, len(rows)):
            self._guard(relation, some)
            columns_of_cells = zip(relation.fields, zip(*some, strict=True), strict=True)
            literals = [self._literals(field, cells) for field, cells in columns_of_cells]
            values = _text(b"),(".join(map(b",".join, zip(*literals, strict=True))))
            self.write(f"INSERT INTO {self.dialect.quote(relation.name)} ({columns}) VALUES ({values})", [])

    def upsert(self, relation: Relation, rows: Sequence[Row], there: Mapping[bytes, Found]) -> None:
        """What is there is joined with a table of the new cells, of the columns that changed in any row.

        Not ``ON DUPLICATE KEY UPDATE``, which overwrites whichever row holds *any* unique value of the new one.
        """
        found = [there.get(row_key(row, relation.key)) for row in rows]
        self.insert(relation, [row for row, old in zip(rows, found, strict=True) if old is None])
        pairs = [(row, old.row) for row, old in zip(rows, found, strict=True) if old is not None]
        if not pairs:
            return
        after, before = (list(zip(*side, strict=True)) for side in zip(*pairs, strict=True))
        changed = [at for at, (new, old) in enumerate(zip(after, before, strict=True)) if new != old]
        if any(f.type.kind not in _JOINED or f.characters for f in (relation.fields[at] for at in relation.key)):
            self.update(
                relation, [row for row, _ in pairs], sorted({*changed, *_timestamps(relation)} if changed else ())
            )
        elif changed:
            self._update_many(relation, [row for row, _ in pairs], changed)

    def _update_many(self, relation: Relation, rows: Sequence[Row], changed: Sequence[int]) -> None:
        """Every cell but the key's comes as a text, as LOAD DATA has them, so that no column of numbers is rounded."""
        quote, fields = self.dialect.quote, relation.fields
        names = [*(f"k{at}" for at in relation.key), *(f"c{at}" for at in changed)]
        on = " AND ".join(f"t.{quote(fields[at].column)} = n.k{at}" for at in relation.key)
        sets = ", ".join(
            f"t.{quote(fields[at].column)} = n.c{at}{' + 0' if fields[at].type.kind == 'boolean' else ''}"
            for at in changed
        )
        for at in _timestamps(relation):
            if at not in changed:
                sets += f", t.{quote(fields[at].column)} = t.{quote(fields[at].column)}"
        for some in statements(rows, len(rows)):
            self._guard(relation, some)
            columns = list(zip(*some, strict=True))
            literals = [self._literals(fields[at], columns[at]) for at in relation.key]
            literals += [self._texts(fields[at], columns[at]) for at in changed]
            values = _text(self.dialect.next_row.join(map(b",".join, zip(*literals, strict=True))))
            new = self.dialect.table_of_rows("n", names, values)
            self.write(f"UPDATE {new} STRAIGHT_JOIN {quote(relation.name)} t {_BY_KEY} ON {on} SET {sets}", [])

    def _guard(self, relation: Relation, rows: Sequence[Row]) -> None:
        for at, guard in self.guards(relation).items():
            if not proven(relation.fields[at]):
                for cell in {row[at] for row in rows}:
                    reason = guard(cell) if cell is not None else None
                    if reason is not None:
                        raise RowError(f"the value is {reason}", column=relation.fields[at].column)


def _timestamps(relation: Relation) -> list[int]:
    """Columns that ON UPDATE would set to now where a statement leaves them out."""
    return [at for at, field in enumerate(relation.fields) if field.native.kind in ("timestamp", "timestamptz")]


def _check(pattern: re.Pattern[bytes], cells: Sequence[Cell], field: Field) -> None:
    known = [cell for cell in cells if cell is not None]
    if pattern is _NUMBER and all(known) and b"".join(known).isdigit():
        return  # as keys mostly are
    if not all(map(pattern.fullmatch, known)):
        raise RowError(f"the value is not {field.type}", column=field.column)


def _text(statement: bytes) -> str:
    try:
        return statement.decode()
    except UnicodeDecodeError as error:
        raise RowError("a value is not UTF-8") from error
