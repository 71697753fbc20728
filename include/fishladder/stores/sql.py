"""What relational stores share: statements over cells, and over fishladder's own tables.

A concrete store brings its spelling (``Dialect``), its connections and its triggers. Statements are written
with ``?`` for parameters; a store whose driver spells them otherwise translates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count, pairwise
from typing import Any

from fishladder.cells import HOMELESS, NO_HOME, OWN_COHORTS, Cell, Row, key_cells, row_key
from fishladder.errors import FatalError, RowError, StaleError
from fishladder.stores.base import (
    Cascade,
    EntityPath,
    Entry,
    Fence,
    Field,
    Found,
    LoadedChunk,
    LoadState,
    Relation,
    Writer,
)

KEYS_PER_STATEMENT = 500
ROWS_PER_STATEMENT = 500
PARAMETERS_PER_STATEMENT = 30_000
"""SQLite takes 32,766."""
STREAM_ROWS, STREAM_BYTES = 1_000, 8_000_000
"""How many rows a stream brings at once, and about how much where they are long."""
FIRST_ROWS, SAMPLED = 20, 20
"""So many rows come first, and all are measured; then every so-manieth."""
STATEMENT_BYTES = 1_000_000
"""About how long an INSERT may grow; a longer row goes alone."""

CLEANING = 2
"""In ``fishladder_load.is_open``, where 0 is closed and 1 is open."""

NOT_OWN = "cohort NOT IN ({})".format(", ".join(f"'{cohort}'" for cohort in OWN_COHORTS))
"""Of a fence that a root's column may name."""

ROOT_FIRST = ": it has no home, its root row comes first"
"""What a trigger adds when it refuses a row of which no root was ever seen in this store."""

Guard = Callable[[bytes], str | None]
"""Why a column of this store would not keep a cell as it is, in words without the value; None if it does."""


class Dialect:
    """How one database spells what all relational stores do. Pure text; opens nothing."""

    share = ""
    exclusive = ""
    ignore = "IGNORE"
    """In ``INSERT … INTO``: leave out rows whose key is there already."""
    limit = " LIMIT ?"
    nth = " LIMIT 1 OFFSET ?"
    """After ORDER BY: the one row after so many others."""

    def quote(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def text(self, column: str, field: Field) -> str:
        """SQL for the canonical text of a column (``column`` is quoted SQL already)."""
        raise TypeError("a concrete dialect spells text()")

    def plain_text(self, column: str, field: Field) -> str:
        """The same for use in triggers: it must not depend on the settings of the session that fires them."""
        return self.text(column, field)

    def finish(self, field: Field) -> Callable[[bytes], bytes] | None:
        """What Python still has to do to a cell that SQL rendered; None for most types."""
        return None

    def bind(self, cell: Cell, field: Field) -> Any:
        """The driver's parameter for a cell. Raises ValueError when the cell is no such value."""
        raise TypeError("a concrete dialect spells bind()")

    def key_piece(self, text: str) -> str:
        """SQL for one column's part of a key text: its length in bytes, ``:`` and the cell."""
        raise TypeError("a concrete dialect spells key_piece()")

    def blank_null(self, text: str) -> str:
        """SQL that turns ``''`` into NULL and leaves every other text as it is."""
        return f"nullif({text} || '', '')"  # an expression: the column's collation is not its own

    def cell(self, column: str, field: Field) -> str:
        """SQL for a column as a list of columns to read has it."""
        text = self.text(column, field)
        return self.blank_null(text) if field.blank_is_null else text

    def concat(self, pieces: Sequence[str]) -> str:
        return "(" + " || ".join(pieces) + ")"

    def key_in(self, columns: Sequence[str], count: int) -> str:
        """SQL that holds for rows whose key is one of ``count`` parameter tuples."""
        if len(columns) == 1:
            return f"{columns[0]} IN ({', '.join('?' * count)})"
        one = f"({', '.join('?' * len(columns))})"
        return f"({', '.join(columns)}) IN ({', '.join([one] * count)})"

    def cohort_text(self, root: Relation, prefix: str) -> str:
        """SQL for a root's cohort, to be compared byte for byte; ``prefix``: ``NEW.``, a table's alias or nothing."""
        return f"{prefix}{self.quote(root.root_cohort or '')}"

    def insert_homes(self, entity: str, cohort: str, root_key: str, source: str) -> str:
        """SQL that gives the rows of ``source`` a home, of those that have none."""
        into = f"INSERT {self.ignore} INTO fishladder_home (entity, cohort, root_key)"
        return f"{into} SELECT {entity}, {cohort}, {root_key} {source}"

    # Built from the above

    def known_cohort(self, root: Relation, prefix: str) -> str:
        """SQL for the cohort of a new entity: its column's, if that has a fence; otherwise nobody's."""
        cohort = self.cohort_text(root, prefix)
        found = f"SELECT f.cohort FROM fishladder_fence f WHERE f.cohort = {cohort} AND {NOT_OWN}"
        return f"coalesce(({found}), '{NO_HOME}')"

    def key_sql(self, relation: Relation, alias: str) -> str:
        """SQL for the key text of the row that ``alias`` names (``NEW``, ``OLD`` or a table alias)."""
        pieces = [
            self.key_piece(self.plain_text(f"{alias}.{self.quote(field.column)}", field))
            for field in (relation.fields[position] for position in relation.key)
        ]
        return pieces[0] if len(pieces) == 1 else self.concat(pieces)

    def entity_parts(self, path: EntityPath, alias: str) -> tuple[str, str]:
        """SQL for the entity text of the row that ``alias`` names, and the ``FROM … WHERE …`` it needs, if any."""
        if not path.steps:
            return self.entity_of(path, alias), ""
        hops = list(reversed(path.steps))
        source = f"FROM {self.quote(hops[0].parent)} e0"
        for number, (upper, lower) in enumerate(pairwise(hops)):
            on = self.on(f"e{number + 1}", upper.columns, f"e{number}", upper.parent_columns)
            source += f" JOIN {self.quote(lower.parent)} e{number + 1} ON {on}"
        on = self.on(alias, path.steps[0].columns, f"e{len(hops) - 1}", path.steps[0].parent_columns)
        return self.entity_of(path, "e0"), f"{source} WHERE {on}"

    def entity_sql(self, path: EntityPath, alias: str) -> str:
        """The same as one expression; NULL when a parent is not there."""
        text, source = self.entity_parts(path, alias)
        return f"(SELECT {text} {source})" if source else text

    def entity_of(self, path: EntityPath, alias: str) -> str:
        column = f"{alias}.{self.quote(path.column)}"
        return column if path.text else self.key_piece(self.plain_text(column, path.field))

    def below(self, cascade: Cascade, parent: str) -> str:
        """``FROM … WHERE …`` of the rows (alias ``t``) that go with the row that ``parent`` names."""
        names = ["t", *(f"a{number}" for number in range(1, len(cascade.path)))]
        source = f" FROM {self.quote(cascade.relation.name)} t"
        for step, lower, upper in zip(cascade.path, names, names[1:], strict=False):
            on = self.on(lower, step.columns, upper, step.parent_columns)
            source += f" JOIN {self.quote(step.parent)} {upper} ON {on}"
        last = cascade.path[-1]
        return f"{source} WHERE {self.on(names[-1], last.columns, parent, last.parent_columns)}"

    def on(self, child: str, columns: Sequence[str], parent: str, parent_columns: Sequence[str]) -> str:
        pairs = zip(columns, parent_columns, strict=True)
        return " AND ".join(f"{parent}.{self.quote(up)} = {child}.{self.quote(down)}" for down, up in pairs)

    def after(self, columns: Sequence[str]) -> str:
        """Keys above a tuple, spelled so that an index on the key serves it; takes ``range_parameters``."""
        first, *rest = columns
        if not rest:
            return f"{first} > ?"
        return f"({first} >= ? AND ({first} > ? OR ({first} = ? AND {self.after(rest)})))"

    def up_to(self, columns: Sequence[str]) -> str:
        first, *rest = columns
        if not rest:
            return f"{first} <= ?"
        return f"({first} <= ? AND ({first} < ? OR ({first} = ? AND {self.up_to(rest)})))"


def range_parameters(values: Sequence[Any]) -> list[Any]:
    """Parameters for ``Dialect.after`` and ``up_to``, in the order in which they stand there."""
    first, *rest = values
    return [first] if not rest else [first, first, first, *range_parameters(rest)]


def slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def statements(rows: Sequence[Row], most: int) -> Iterator[Sequence[Row]]:
    """The rows in pieces that each make one statement of bearable length."""
    start, size = 0, 0
    for at, row in enumerate(rows):
        length = sum(map(len, filter(None, row)))
        if at > start and (at - start == most or size + length > STATEMENT_BYTES):
            yield rows[start:at]
            start, size = at, 0
        size += length
    if rows:
        yield rows[start:]


def rows_at_once(found: Sequence[tuple[Any, ...]]) -> int:
    """How many more rows a stream may bring at once if they are as long as these."""
    some = found[::SAMPLED] if len(found) > FIRST_ROWS else found
    longest = max(sum(len(cell) for cell in row if isinstance(cell, str | bytes)) for row in some)
    return max(1, min(STREAM_ROWS, STREAM_BYTES // (longest + 1)))


class Session:
    """A connection for reading, or one transaction: statements that read the same in every relational store."""

    def __init__(
        self,
        dialect: Dialect,
        run: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]],
        batches: Callable[[str, Sequence[Any]], Iterator[Sequence[tuple[Any, ...]]]] | None = None,
    ) -> None:
        """``batches`` runs a query whose rows are too many to be held at once; without it, they are."""
        self.dialect = dialect
        self.run = run
        self.batches = batches or (lambda sql, parameters: slices(run(sql, parameters), STREAM_ROWS))

    # Migrated tables

    def _select(self, relation: Relation, alias: str = "t") -> str:
        quote = self.dialect.quote
        return ", ".join(self.dialect.cell(f"{alias}.{quote(field.column)}", field) for field in relation.fields)

    def _rows(self, relation: Relation, found: Iterable[tuple[Any, ...]]) -> list[Row]:
        finishers = [(at, finish) for at, field in enumerate(relation.fields) if (finish := self.dialect.finish(field))]
        if not finishers:
            return list(found)
        rows = []
        for row in found:
            cells = list(row)
            for at, finish in finishers:
                if cells[at] is not None:
                    cells[at] = finish(cells[at])
            rows.append(tuple(cells))
        return rows

    def key_parameters(self, relation: Relation, key: bytes) -> list[Any]:
        fields = [relation.fields[position] for position in relation.key]
        return [self._value(cell, field) for cell, field in zip(key_cells(key), fields, strict=True)]

    def key_columns(self, relation: Relation, alias: str) -> list[str]:
        return [f"{alias}{self.dialect.quote(column)}" for column in relation.key_columns]

    def rows(self, relation: Relation, lower: bytes | None, upper: bytes | None) -> list[Row]:
        return [row for batch in self.stream(relation, lower, upper) for row in batch]

    def stream(self, relation: Relation, lower: bytes | None, upper: bytes | None) -> Generator[list[Row], None, None]:
        columns = self.key_columns(relation, "t.")
        low = self.key_parameters(relation, lower) if lower is not None else []
        high = self.key_parameters(relation, upper) if upper is not None else []
        # What both ends begin with is asked for as such: SQLite would scan all that begins so, for every chunk.
        alike = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), 0)
        where, parameters = [f"{column} = ?" for column in columns[:alike]], list(low[:alike])
        if low:
            where.append(self.dialect.after(columns[alike:]))
            parameters += range_parameters(low[alike:])
        if high:
            where.append(self.dialect.up_to(columns[alike:]))
            parameters += range_parameters(high[alike:])
        sql = f"SELECT {self._select(relation)} FROM {self.dialect.quote(relation.name)} t"
        if where:
            sql += " WHERE " + " AND ".join(where)
        for found in self.batches(f"{sql} ORDER BY {', '.join(columns)}", parameters):
            yield self._rows(relation, found)

    def rows_by_key(self, relation: Relation, keys: Sequence[bytes], *, lock: bool = False) -> dict[bytes, Found]:
        columns = self.key_columns(relation, "t.")
        entity = self.dialect.entity_sql(relation.entity, "t") if relation.entity else "NULL"
        select = f"SELECT {self._select(relation)}, {entity} FROM {self.dialect.quote(relation.name)} t WHERE "
        wanted, found = set(keys), dict[bytes, Found]()
        for some in slices(list(wanted), KEYS_PER_STATEMENT):
            parameters = [value for key in some for value in self.key_parameters(relation, key)]
            sql = select + self.dialect.key_in(columns, len(some)) + (self.dialect.share if lock else "")
            answer = self.run(sql, parameters)
            rows = self._rows(relation, (line[:-1] for line in answer))
            for row, line in zip(rows, answer, strict=True):
                key = row_key(row, relation.key)
                if key in wanted:  # a store that folds case or pads finds more than was asked for
                    found[key] = Found(row, line[-1])
        return found

    def first_keys(self, relation: Relation, limit: int) -> list[bytes]:
        key, columns = self.dialect.key_sql(relation, "t"), self.key_columns(relation, "t.")
        sql = (
            f"SELECT {key} FROM {self.dialect.quote(relation.name)} t ORDER BY {', '.join(columns)}{self.dialect.limit}"
        )
        return [found for (found,) in self.run(sql, [limit])]

    def keys_of_entity(self, relation: Relation, entity: bytes) -> list[bytes]:
        assert relation.entity is not None
        quote, path = self.dialect.quote, relation.entity
        names = ["t", *(f"a{number}" for number in range(len(path.steps)))]
        source = f"{quote(relation.name)} t"
        for step, below, above in zip(path.steps, names, names[1:], strict=False):
            on = self.dialect.on(below, step.columns, above, step.parent_columns)
            source += f" JOIN {quote(step.parent)} {above} ON {on}"
        value = self.key(entity) if path.text else self.dialect.bind(key_cells(entity)[0], path.field)
        column = f"{names[-1]}.{quote(path.column)}"
        texts = f"{self.dialect.key_sql(relation, 't')}, {self.dialect.entity_of(path, names[-1])}"
        found = self.run(f"SELECT {texts} FROM {source} WHERE {column} = ?", [value])
        return [key for key, whose in found if whose == entity]  # a store that folds case finds others', too

    def guards(self, relation: Relation) -> Mapping[int, Guard]:
        """By position: columns that would change some values without an error."""
        return {}

    def _values(self, relation: Relation, rows: Sequence[Row]) -> list[list[Any]]:
        """The driver's parameters of each row. Raises RowError."""
        for at, guard in self.guards(relation).items():
            for row in rows:
                cell = row[at]
                reason = guard(cell) if cell is not None else None
                if reason is not None:
                    raise RowError(f"the value is {reason}", column=relation.fields[at].column)
        return [[self._value(cell, field) for cell, field in zip(row, relation.fields, strict=True)] for row in rows]

    def _value(self, cell: Cell, field: Field) -> Any:
        try:
            return self.dialect.bind(cell, field)
        except (ValueError, ArithmeticError) as error:
            raise RowError(f"the value is not {field.type}", column=field.column) from error

    def write(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that writes migrated rows. Raises RowError."""
        self.run(sql, values)

    def insert(self, relation: Relation, rows: Sequence[Row]) -> None:
        quote = self.dialect.quote
        columns = ", ".join(quote(field.column) for field in relation.fields)
        one = f"({', '.join('?' * len(relation.fields))})"
        head = f"INSERT INTO {quote(relation.name)} ({columns}) VALUES "
        most = max(1, min(ROWS_PER_STATEMENT, PARAMETERS_PER_STATEMENT // len(relation.fields)))
        for some in statements(rows, most):
            values = [value for row in self._values(relation, some) for value in row]
            self.write(head + ", ".join([one] * len(some)), values)

    def update(self, relation: Relation, rows: Sequence[Row], columns: Sequence[int] | None = None) -> None:
        """``columns``: by position, those to write; None: all but the key."""
        quote = self.dialect.quote
        others = [at for at in (range(len(relation.fields)) if columns is None else columns) if at not in relation.key]
        if not others:
            return
        changes = ", ".join(f"{quote(relation.fields[at].column)} = ?" for at in others)
        where = " AND ".join(f"{column} = ?" for column in self.key_columns(relation, ""))
        sql = f"UPDATE {quote(relation.name)} SET {changes} WHERE {where}"
        for values in self._values(relation, rows):
            self.write(sql, [values[at] for at in others] + [values[at] for at in relation.key])

    def upsert(self, relation: Relation, rows: Sequence[Row], there: Mapping[bytes, Found]) -> None:
        found = [there.get(row_key(row, relation.key)) for row in rows]
        self.insert(relation, [row for row, old in zip(rows, found, strict=True) if old is None])
        pairs = [(row, old.row) for row, old in zip(rows, found, strict=True) if old is not None]
        # Only what changed: a column whose '' is read as NULL keeps what it has.
        changed = [at for at in range(len(relation.fields)) if any(new[at] != old[at] for new, old in pairs)]
        self.update(relation, [row for row, _ in pairs], changed)

    def delete(self, relation: Relation, keys: Sequence[bytes]) -> None:
        columns = self.key_columns(relation, "")
        for some in slices(keys, KEYS_PER_STATEMENT):
            parameters = [value for key in some for value in self.key_parameters(relation, key)]
            where = self.dialect.key_in(columns, len(some))
            self.run(f"DELETE FROM {self.dialect.quote(relation.name)} WHERE {where}", parameters)

    def replace(self, relation: Relation, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        self.delete(relation, keys)  # nothing goes with them: foreign keys are not checked
        self.insert(relation, rows)

    def holders(self, relation: Relation, rows: Sequence[Row]) -> set[bytes]:
        keys = set()
        key = self.dialect.key_sql(relation, "t")
        for unique in relation.uniques:
            columns = [f"t.{self.dialect.quote(relation.fields[at].column)}" for at in unique]
            for some in slices([row for row in rows if all(row[at] is not None for at in unique)], KEYS_PER_STATEMENT):
                values = [self._value(row[at], relation.fields[at]) for row in some for at in unique]
                where = self.dialect.key_in(columns, len(some))
                sql = f"SELECT {key} FROM {self.dialect.quote(relation.name)} t WHERE {where}"
                keys |= {line[0] for line in self.run(sql, values)}
        return keys

    # Homes and the journal

    def homes(self, entities: Iterable[bytes]) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for some in slices(list(set(entities)), KEYS_PER_STATEMENT):
            sql = f"SELECT entity, cohort FROM fishladder_home WHERE entity IN ({', '.join('?' * len(some))})"
            found |= {entity: cohort.decode() for entity, cohort in self.run(sql, [self.key(key) for key in some])}
        return found

    def key(self, key: bytes) -> Any:
        """A key text as the parameter of a column of fishladder's own tables."""
        return key.decode()

    def _entries(self, where: str, parameters: Sequence[Any]) -> list[Entry]:
        sql = f"SELECT id, table_name, row_key, entity, cohort, at FROM fishladder_journal {where}"
        return [
            Entry(int(id_), table.decode(), key, entity, cohort.decode(), at.decode())
            for id_, table, key, entity, cohort, at in self.run(sql, parameters)
        ]

    def entries(self, tables: Sequence[str], limit: int, cohorts: Sequence[str] | None = None) -> list[Entry]:
        if not tables or cohorts == []:
            return []
        where = f"WHERE table_name IN ({', '.join('?' * len(tables))})"
        if cohorts is not None:
            where += f" AND cohort IN ({', '.join('?' * len(cohorts))})"
        return self._entries(f"{where} ORDER BY id{self.dialect.limit}", [*tables, *(cohorts or ()), limit])

    def count_entries(self, cohort: str) -> int:
        home = "SELECT 1 FROM fishladder_home h WHERE h.entity = j.entity AND h.cohort = ?"
        sql = (
            "SELECT count(*) FROM fishladder_journal j WHERE j.cohort = ? OR (j.cohort = ? AND j.entity IS NULL)"
            f" OR (j.cohort IN (?, ?) AND EXISTS ({home}))"  # in '*': of triggers that knew no '?'
        )
        return int(self.run(sql, [cohort, NO_HOME, NO_HOME, HOMELESS, cohort])[0][0])

    def entries_of(self, table: str, keys: Sequence[bytes]) -> list[Entry]:
        found: list[Entry] = []
        for some in slices(keys, KEYS_PER_STATEMENT):
            where = f"WHERE table_name = ? AND row_key IN ({', '.join('?' * len(some))})"
            found += self._entries(where, [table, *map(self.key, some)])
        return found

    def forget(self, ids: Sequence[int]) -> None:
        for some in slices(ids, ROWS_PER_STATEMENT):
            self.run(f"DELETE FROM fishladder_journal WHERE id IN ({', '.join('?' * len(some))})", some)

    # Load, chunks, shards, fences

    def lock_load(self, table: str, *, exclusive: bool = False) -> LoadState | None:
        lock = self.dialect.exclusive if exclusive else self.dialect.share
        found = self.run(f"SELECT generation, is_open FROM fishladder_load WHERE table_name = ?{lock}", [table])
        return load_state(*found[0]) if found else None

    def write_load(self, table: str, state: LoadState) -> None:
        sql = "UPDATE fishladder_load SET generation = ?, is_open = ? WHERE table_name = ?"
        self.run(sql, [state.generation, CLEANING if state.cleaning else int(state.open), table])

    def take_chunk(self, table: str, no: int, generation: int, token: int) -> LoadedChunk | None:
        sql = (
            f"SELECT generation, token, done, row_count FROM fishladder_chunk"
            f" WHERE table_name = ? AND no = ?{self.dialect.exclusive}"
        )
        found = self.run(sql, [table, no])
        if not found:
            raise FatalError(f"{table}: chunk {no} was claimed but is not in fishladder_chunk; run the load again")
        latest_generation, latest_token, done, rows = (int(value) for value in found[0])
        if latest_generation != generation or (latest_token != token and not done):
            raise StaleError(f"{table}: chunk {no} was taken over by a later claim; this one wrote nothing")
        return LoadedChunk(token=latest_token, rows=rows) if done else None

    def finish_chunk(self, table: str, no: int, rows: int) -> None:
        sql = "UPDATE fishladder_chunk SET done = 1, row_count = ? WHERE table_name = ? AND no = ?"
        self.run(sql, [rows, table, no])

    def lock_shards(self, numbers: Iterable[int]) -> None:
        for number in sorted(set(numbers)):  # ascending: two copiers never wait for each other in a circle
            self.run(f"SELECT no FROM fishladder_shard WHERE no = ?{self.dialect.exclusive}", [number])

    def lock_fences(self, cohorts: Iterable[str] | None, *, exclusive: bool = False) -> dict[str, Fence]:
        lock = self.dialect.exclusive if exclusive else self.dialect.share
        sql = "SELECT cohort, writer, epoch FROM fishladder_fence"
        parameters: list[Any] = []
        if cohorts is not None:
            parameters = sorted(set(cohorts))
            sql += f" WHERE cohort IN ({', '.join('?' * len(parameters))})"
        return read_fences(self.run(f"{sql} ORDER BY cohort{lock}", parameters))

    def write_fence(self, cohort: str, fence: Fence) -> None:
        sql = "UPDATE fishladder_fence SET writer = ?, epoch = ?, audit_head = ? WHERE cohort = ?"
        self.run(sql, [fence.writer, fence.epoch, fence.head or None, cohort])

    def touch(self, entries: Iterable[tuple[str, bytes, str]], attempt: str) -> None:
        known = "SELECT 1 FROM fishladder_touched WHERE table_name = ? AND row_key = ? AND attempt = ?"
        sql = "INSERT INTO fishladder_touched (table_name, row_key, cohort, attempt) VALUES (?, ?, ?, ?)"
        for table, key, cohort in entries:
            if not self.run(known, [table, self.key(key), attempt]):
                self.run(sql, [table, self.key(key), cohort, attempt])

    def touching(self) -> set[str]:
        found = self.run("SELECT DISTINCT attempt FROM fishladder_touched", [])
        return {attempt.decode() for (attempt,) in found}

    def touched(self, attempt: str) -> list[tuple[str, bytes]]:
        found = self.run("SELECT table_name, row_key FROM fishladder_touched WHERE attempt = ?", [attempt])
        return [(table.decode(), key) for table, key in found]

    def forget_touched(self, attempt: str, keys: Mapping[str, Sequence[bytes]] | None = None) -> None:
        sql = "DELETE FROM fishladder_touched WHERE attempt = ?"
        if keys is None:
            self.run(sql, [attempt])
            return
        for table, some in keys.items():
            for key in some:
                self.run(f"{sql} AND table_name = ? AND row_key = ?", [attempt, table, self.key(key)])

    def forget_cohort(self, cohort: str) -> None:
        self.run("DELETE FROM fishladder_journal WHERE cohort = ?", [cohort])


def load_state(generation: Any, is_open: Any) -> LoadState:
    return LoadState(generation=int(generation), open=int(is_open) != 0, cleaning=int(is_open) == CLEANING)


def read_fences(found: Iterable[tuple[Any, ...]]) -> dict[str, Fence]:
    fences = {}
    for cohort, writer, epoch in found:
        name: Writer = writer.decode()
        fences[cohort.decode()] = Fence(writer=name, epoch=int(epoch))
    return fences


_WORDS = re.compile(
    r"""(?P<apart>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|--[^\n]*|/\*.*?\*/)|(?P<mark>\?)|(?<![:\w]):(?P<name>[a-z_]+)\b""",
    re.S,
)
"""What is quoted or a comment, a parameter's mark, and a parameter's name."""


def named(sql: str, parameters: Mapping[str, object]) -> tuple[str, list[object]]:
    """``:name`` turned into ``?`` for the names that are known; anything else stays, as does what is quoted."""
    values: list[object] = []

    def take(found: re.Match[str]) -> str:
        if found["name"] not in parameters:
            return found[0]
        values.append(parameters[found["name"]])
        return "?"

    return _WORDS.sub(take, sql), values


@lru_cache(maxsize=256)
def percent_marks(sql: str) -> str:
    """The statement for a driver that spells parameters ``%s``; names and texts may hold ``?`` and ``%``."""
    return _WORDS.sub(lambda found: "%s" if found["mark"] else found[0], sql.replace("%", "%%"))


@lru_cache(maxsize=256)
def numbered_marks(sql: str) -> str:
    """The same for a driver that spells them ``:1``, ``:2``."""
    numbers = count(1)
    return _WORDS.sub(lambda found: f":{next(numbers)}" if found["mark"] else found[0], sql)
