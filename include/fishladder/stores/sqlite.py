"""SQLite, the embedded store: one file, WAL, every writing transaction ``BEGIN IMMEDIATE``.

Its single writer is every lock at once: whoever holds a transaction holds the fence, the shards and the rows.
Decimals are kept as TEXT (declare ``DECIMAL_TEXT(12,2)``); a NUMERIC column holds binary floats beyond 15 digits.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fishladder import cells
from fishladder.cells import NO_HOME, SHARED, Cell, LogicalType
from fishladder.errors import FatalError, FenceError, RowError, TransientError
from fishladder.stores.base import (
    HOME_TABLE,
    Cascade,
    Column,
    Connect,
    Finding,
    Fence,
    Field,
    ForeignKey,
    LoadState,
    Orphan,
    Relation,
    TableInfo,
    Triggers,
    Writer,
)
from fishladder.stores.sql import Checks, Dialect, Session, named, read_fences

CHUNK_ROWS = 5_000
LOCK_WAIT = 60.0
"""Seconds that a transaction waits for the file's one writer."""

TABLES = (
    "fishladder_copying (marker INTEGER PRIMARY KEY)",
    "fishladder_fence (cohort TEXT PRIMARY KEY, writer TEXT NOT NULL, epoch INTEGER NOT NULL, audit_head TEXT)",
    "fishladder_home (entity TEXT PRIMARY KEY, cohort TEXT NOT NULL, root_key TEXT NOT NULL)",
    "fishladder_journal (id INTEGER PRIMARY KEY AUTOINCREMENT, table_name TEXT NOT NULL, row_key TEXT NOT NULL,"
    " entity TEXT, cohort TEXT NOT NULL, at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')))",
    "fishladder_load (table_name TEXT PRIMARY KEY, generation INTEGER NOT NULL, is_open INTEGER NOT NULL)",
    "fishladder_chunk (table_name TEXT, no INTEGER, generation INTEGER NOT NULL, token INTEGER NOT NULL,"
    " done INTEGER NOT NULL DEFAULT 0, row_count INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (table_name, no))",
    "fishladder_shard (no INTEGER PRIMARY KEY)",
    "fishladder_touched (table_name TEXT, row_key TEXT, cohort TEXT NOT NULL, attempt TEXT,"
    " PRIMARY KEY (table_name, row_key, attempt))",
    "fishladder_applied (operation TEXT, entity TEXT, idempotency_key TEXT, digest TEXT NOT NULL, result TEXT,"
    " PRIMARY KEY (operation, entity, idempotency_key))",
)
INDEXES = (
    "fishladder_journal_key ON fishladder_journal (table_name, row_key)",
    "fishladder_home_cohort ON fishladder_home (cohort)",
)


def connect(path: str) -> sqlite3.Connection:
    """A plain connection to the file; the store sets everything else."""
    return sqlite3.connect(path, timeout=LOCK_WAIT, check_same_thread=False)


class SqliteDialect(Dialect):
    def text(self, column: str, field: Field) -> str:
        kind, type_ = field.type.kind, field.type
        if kind == "decimal":
            return f"fishladder_decimal({column}, {'NULL' if type_.scale is None else type_.scale})"
        if kind in ("timestamp", "timestamptz"):
            return f"fishladder_timestamp({column}, {'NULL' if type_.size is None else type_.size})"
        if kind == "date":
            return f"fishladder_date({column})"
        if kind in ("json", "float", "double"):
            return f"fishladder_{kind}({column})"
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
        if kind in ("integer", "boolean"):
            return int(cell)
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
    if word in ("DATE", "UUID", "JSON"):
        return LogicalType(kind=word.lower())  # type: ignore[arg-type]
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
    words = {"integer": "INTEGER", "boolean": "BOOLEAN", "date": "DATE", "uuid": "UUID", "json": "JSON"}
    words |= {"float": "DOUBLE", "double": "DOUBLE", "string": "VARCHAR", "bytes": "BLOB"}
    word = words.get(kind, "DATETIME")
    return f"{word}({size})" if size is not None and kind in ("string", "bytes", "timestamp", "timestamptz") else word


@contextmanager
def translated() -> Iterator[None]:
    """SQLite's errors in fishladder's words. Its messages hold names, never values."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        message = str(error)
        if "fishladder:" in message:
            raise FenceError(message) from error
        found = re.search(r"constraint failed: (\S+?)\.(.+)", message)
        raise RowError(
            message, column=found[2].split(",")[0] if found else None, unique=message.startswith("UNIQUE")
        ) from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise TransientError(f"the database file is locked by another writer: {error}") from error
        raise FatalError(f"SQLite: {error}") from error
    except (ValueError, OverflowError, sqlite3.DataError) as error:
        raise RowError(f"a value does not fit its column: {type(error).__name__}") from error
    except sqlite3.Error as error:
        raise FatalError(f"SQLite: {error}") from error


class SqliteTransaction(Session):
    """``BEGIN IMMEDIATE`` … ``COMMIT``, with the copier's mark set, so that triggers let it pass."""

    def __init__(self, store: SqliteStore, connection: sqlite3.Connection) -> None:
        super().__init__(store.dialect, store.runner(connection))
        self.open = True

    def commit(self) -> None:
        self.run("DELETE FROM fishladder_copying", [])
        self.run("COMMIT", [])
        self.open = False

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what was done inside when a RowError leaves the block; the transaction goes on."""
        self.run("SAVEPOINT attempt", [])
        try:
            yield
        except RowError:
            self.run("ROLLBACK TO attempt", [])
            raise
        finally:
            self.run("RELEASE attempt", [])


class SqliteStore:
    """One SQLite file. ``connect`` opens a new ``sqlite3.Connection`` to it."""

    kind = "sqlite"
    chunk_rows = CHUNK_ROWS
    lock_wait = LOCK_WAIT

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self.dialect = SqliteDialect()

    # Connections

    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            with translated():
                connection: sqlite3.Connection = self._connect()
                connection.isolation_level = None
                connection.text_factory = bytes
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")  # a forgotten entry must not outlive its copy
                connection.execute("PRAGMA foreign_keys = OFF")  # the copier writes key by key; orphans are a check
                for name, count, function in _FUNCTIONS:
                    connection.create_function(name, count, function, deterministic=True)
            self._connection = connection
        return self._connection

    def runner(self, connection: sqlite3.Connection) -> Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]:
        def run(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
            with translated():
                return connection.execute(sql, parameters).fetchall()

        return run

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self.runner(self.connection())(sql, parameters)

    @contextmanager
    def read(self) -> Iterator[Session]:
        yield Session(self.dialect, self.runner(self.connection()))

    @contextmanager
    def begin(self, *, wait: float | None = None) -> Iterator[SqliteTransaction]:
        connection = self.connection()
        with translated():
            milliseconds = int((self.lock_wait if wait is None else wait) * 1000)
            connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            connection.execute("BEGIN IMMEDIATE")
        transaction = SqliteTransaction(self, connection)
        try:
            transaction.run("INSERT INTO fishladder_copying VALUES (1)", [])
            yield transaction
        finally:
            if connection.in_transaction:
                connection.rollback()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A transaction that changes tables and triggers: all or nothing."""
        connection = self.connection()
        self.run(f"PRAGMA busy_timeout = {int(self.lock_wait * 1000)}")
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        finally:
            if connection.in_transaction:
                connection.rollback()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Tables as declared

    def describe(self) -> dict[str, TableInfo]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        names = [name.decode() for (name,) in self.run(sql)]
        return {name: self._describe(name) for name in sorted(names) if not name.startswith("fishladder_")}

    def _describe(self, name: str) -> TableInfo:
        found = self.run("SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?)", [name])
        sql = self.run("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", [name])[0][0].decode()
        key = tuple(column.decode() for column, *_ in sorted((c for c in found if c[3]), key=lambda c: c[3]))
        rowid_alias = len(key) == 1 and any(c[3] and c[1].decode().upper() == "INTEGER" for c in found)
        columns = tuple(
            Column(
                name=column.decode(),
                native=type_.decode(),
                type=logical_type(type_.decode()),
                nullable=not required and not position,
                generated=bool(position) and rowid_alias,
                computed=hidden in (2, 3),
                enforced=False,
                bytewise=not re.search(rf"\b{re.escape(column.decode())}\b[^,]*\bCOLLATE\s+(?!BINARY)", sql, re.I),
            )
            for column, type_, required, position, hidden in found
        )
        return TableInfo(
            name=name,
            columns=columns,
            key=key,
            uniques=tuple(self._uniques(name)),
            foreign_keys=tuple(self._foreign_keys(name)),
            rows=self._row_estimate(name),
        )

    def _row_estimate(self, name: str) -> int:
        return int(self.run(f"SELECT count(*) FROM {self.dialect.quote(name)}")[0][0])

    def _uniques(self, name: str) -> Iterator[tuple[str, ...]]:
        sql = "SELECT name FROM pragma_index_list(?) WHERE \"unique\" AND origin <> 'pk' AND NOT partial ORDER BY name"
        for (index,) in self.run(sql, [name]):
            columns = self.run("SELECT name FROM pragma_index_info(?) ORDER BY seqno", [index.decode()])
            if all(column is not None for (column,) in columns):
                yield tuple(column.decode() for (column,) in columns)

    def _foreign_keys(self, name: str) -> Iterator[ForeignKey]:
        sql = 'SELECT id, "table", "from", "to", on_delete, on_update FROM pragma_foreign_key_list(?) ORDER BY id, seq'
        found = self.run(sql, [name])
        for number in sorted({line[0] for line in found}):
            lines = [line for line in found if line[0] == number]
            parent = lines[0][1].decode()
            columns = tuple(line[2].decode() for line in lines)
            named_columns = tuple(line[3].decode() for line in lines if line[3] is not None)
            yield ForeignKey(
                columns=columns,
                parent=parent,
                parent_columns=named_columns or self._key_of(parent),
                on_delete=lines[0][4].decode(),
                on_update=lines[0][5].decode(),
            )

    def _key_of(self, name: str) -> tuple[str, ...]:
        found = self.run("SELECT name FROM pragma_table_info(?) WHERE pk ORDER BY pk", [name])
        return tuple(column.decode() for (column,) in found)

    def create_table(self, table: TableInfo) -> None:
        quote = self.dialect.quote
        lines = []
        for column in table.columns:
            if column.type is None:
                raise FatalError(f"{table.name}.{column.name}: {column.native} has no type here; create the table by hand")
            line = f"{quote(column.name)} {declared_type(column.type)}{'' if column.nullable else ' NOT NULL'}"
            if column.generated and table.key == (column.name,):
                line = f"{quote(column.name)} INTEGER PRIMARY KEY AUTOINCREMENT"
            lines.append(line)
        if not any("AUTOINCREMENT" in line for line in lines):
            lines.append(f"PRIMARY KEY ({', '.join(map(quote, table.key))})")
        lines += [f"UNIQUE ({', '.join(map(quote, unique))})" for unique in table.uniques]
        for key in table.foreign_keys:
            lines.append(
                f"FOREIGN KEY ({', '.join(map(quote, key.columns))}) REFERENCES {quote(key.parent)}"
                f" ({', '.join(map(quote, key.parent_columns))}) ON DELETE {key.on_delete} ON UPDATE {key.on_update}"
            )
        self.run(f"CREATE TABLE {quote(table.name)} ({', '.join(lines)})")
        for number, key in enumerate(table.foreign_keys):
            columns = ", ".join(map(quote, key.columns))
            self.run(f"CREATE INDEX {quote(f'{table.name}_parent_{number}')} ON {quote(table.name)} ({columns})")

    # Reads over whole tables

    def _checks(self) -> Checks:
        return Checks(Session(self.dialect, self.runner(self.connection())))

    def chunk_ends(self, relation: Relation, rows: int) -> list[bytes]:
        return self._checks().chunk_ends(relation, rows)

    def is_empty(self, relation: Relation) -> bool:
        return self._checks().is_empty(relation)

    def count(self, relation: Relation) -> dict[str, int]:
        return self._checks().count(relation, SHARED if relation.entity is None else NO_HOME)

    def orphans(self, child: Relation, foreign_key: ForeignKey, limit: int) -> list[Orphan]:
        return self._checks().orphans(child, foreign_key, limit)

    def duplicates(self, relation: Relation, unique: Sequence[int], limit: int) -> int:
        return self._checks().duplicates(relation, unique, limit)

    def query(self, sql: str, parameters: Mapping[str, object]) -> list[tuple[str | None, ...]]:
        def text(value: Any) -> str | None:
            if value is None:
                return None
            return value.decode() if isinstance(value, bytes) else cells.decimal_text(value, None)

        return [tuple(map(text, line)) for line in self.run(*named(sql, parameters))]

    # Fishladder's tables

    def account(self) -> str:
        """SQLite has no accounts; the copier is known by its mark, so any two connections differ."""
        return ""

    def inspect(self) -> list[Finding]:
        mode = self.run("PRAGMA journal_mode")[0][0].decode()
        if mode != "wal":
            return [Finding(level="fail", where="journal_mode", message=f"is {mode}; readers would block: PRAGMA journal_mode = WAL")]
        return [Finding(level="pass", where="journal_mode", message="WAL")]

    def install_tables(self) -> None:
        with self._changing():
            for table in TABLES:
                self.run(f"CREATE TABLE IF NOT EXISTS {table}")
            for index in INDEXES:
                self.run(f"CREATE INDEX IF NOT EXISTS {index}")
            for number in range(cells.SHARDS):
                self.run("INSERT OR IGNORE INTO fishladder_shard VALUES (?)", [number])

    def install_fences(self, cohorts: Iterable[str], writer: Writer) -> None:
        with self._changing():
            for cohort in cohorts:
                self.run("INSERT OR IGNORE INTO fishladder_fence VALUES (?, ?, 1, NULL)", [cohort, writer])

    def install_load(self, tables: Iterable[str], *, open: bool) -> None:
        with self._changing():
            for table in tables:
                self.run("INSERT OR IGNORE INTO fishladder_load VALUES (?, 1, ?)", [table, int(open)])

    def raise_token(self, table: str, no: int, generation: int, token: int) -> None:
        with self._changing():
            sql = "INSERT OR IGNORE INTO fishladder_chunk (table_name, no, generation, token) VALUES (?, ?, ?, ?)"
            self.run(sql, [table, no, generation, token])
            sql = (
                "UPDATE fishladder_chunk SET generation = ?, token = ?, done = 0 WHERE table_name = ? AND no = ?"
                " AND (generation < ? OR (generation = ? AND NOT done AND token < ?))"
            )
            self.run(sql, [generation, token, table, no, generation, generation, token])

    def install_triggers(self, tables: Sequence[Triggers]) -> None:
        with self._changing():
            for table in tables:
                for name, body in _trigger_texts(self.dialect, table):
                    self.run(f"DROP TRIGGER IF EXISTS {self.dialect.quote(name)}")
                    self.run(f"CREATE TRIGGER {self.dialect.quote(name)} {body}")

    def backfill_homes(self, root: Relation, after: bytes | None, limit: int) -> bytes | None:
        assert root.entity is not None and root.root_cohort is not None
        quote, checks = self.dialect.quote, self._checks()
        key = checks.session._key_columns(root, "t.")[0]
        where, parameters = "", []
        if after is not None:
            where, parameters = f"WHERE {key} > ?", checks.session._key_parameters(root, after)
        some = f"SELECT * FROM {quote(root.name)} t {where} ORDER BY {key} LIMIT ?"
        entity = self.dialect.entity_sql(root.entity, "t")
        with self._changing():
            sql = (
                f"INSERT OR IGNORE INTO fishladder_home (entity, cohort, root_key)"
                f" SELECT {entity}, {_known_cohort(f't.{quote(root.root_cohort)}')}, CAST({key} AS TEXT) FROM ({some}) t"
            )
            self.run(sql, [*parameters, limit])
            last = self.run(f"SELECT {self.dialect.key_sql(root, 't')} FROM ({some}) t ORDER BY {key} DESC LIMIT 1", [*parameters, limit])
        return last[0][0] if last else None

    def cohorts(self, root: Relation) -> dict[str | None, int]:
        column = self.dialect.quote(root.root_cohort or "")
        found = self.run(f"SELECT CAST({column} AS TEXT), count(*) FROM {self.dialect.quote(root.name)} GROUP BY 1")
        return {None if cohort is None else cohort.decode(): count for cohort, count in found}

    def coverage(self, tables: Sequence[Relation]) -> dict[str, str]:
        found = self.run("SELECT tbl_name, type, name, sql FROM sqlite_master WHERE type IN ('table', 'trigger')")
        parts: dict[str, list[str]] = {}
        for table, kind, name, sql in sorted(found):
            if kind == b"table" or name.startswith(b"fishladder_"):
                parts.setdefault(table.decode(), []).append(f"{kind!r} {name!r} {sql!r}")
        return {
            relation.table: hashlib.sha256("\n".join(parts.get(relation.name, ["absent"])).encode()).hexdigest()
            for relation in tables
        }

    def fences(self) -> dict[str, Fence]:
        return read_fences(self.run("SELECT cohort, writer, epoch FROM fishladder_fence ORDER BY cohort"))

    def load_states(self) -> dict[str, LoadState]:
        found = self.run("SELECT table_name, generation, is_open FROM fishladder_load")
        return {table.decode(): LoadState(generation=generation, open=open_ == 1) for table, generation, open_ in found}

    def lag(self) -> float | None:
        sql = "SELECT (julianday('now') - julianday(at)) * 86400 FROM fishladder_journal ORDER BY id LIMIT 1"
        found = self.run(sql)
        return max(0.0, float(found[0][0])) if found else None

    def generated_from(self, relation: Relation) -> int | None:
        sql = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        if "AUTOINCREMENT" not in self.run(sql, [relation.name])[0][0].decode().upper():
            return None
        found = self.run("SELECT seq FROM sqlite_sequence WHERE name = ?", [relation.name])
        return int(found[0][0]) + 1 if found else 1

    def generate_from(self, relation: Relation, first: int) -> None:
        with self._changing():
            known = self.run("SELECT seq FROM sqlite_sequence WHERE name = ?", [relation.name])
            if not known:
                self.run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [relation.name, first - 1])
            elif known[0][0] < first - 1:
                self.run("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", [first - 1, relation.name])

    def uninstall(self) -> None:
        with self._changing():
            ours = "name LIKE 'fishladder!_%' ESCAPE '!'"
            for kind in ("trigger", "table"):
                for (name,) in self.run(f"SELECT name FROM sqlite_master WHERE type = '{kind}' AND {ours}"):
                    self.run(f"DROP {kind} {self.dialect.quote(name.decode())}")


def _date(value: str | None) -> str | None:
    if value is None:
        return None
    return cells.timestamp_text(value, None).removesuffix(" 00:00:00")


def _null(function: Callable[..., str]) -> Callable[..., str | None]:
    return lambda value, *rest: None if value is None else function(value, *rest)


_FUNCTIONS: tuple[tuple[str, int, Callable[..., str | None]], ...] = (
    ("fishladder_decimal", 2, _null(cells.decimal_text)),
    ("fishladder_timestamp", 2, _null(lambda value, digits: cells.timestamp_text(str(value), digits))),
    ("fishladder_date", 1, _date),
    ("fishladder_json", 1, _null(lambda value: cells.json_text(str(value)))),
    ("fishladder_float", 1, _null(lambda value: cells.float_text(value, "float"))),
    ("fishladder_double", 1, _null(lambda value: cells.float_text(value, "double"))),
)


# Triggers ------------------------------------------------------------------------------------------------

_NOT_COPYING = "WHEN NOT EXISTS (SELECT 1 FROM fishladder_copying)"


def _known_cohort(column: str) -> str:
    """The cohort of a new entity: the column's, if it has a fence; otherwise nobody's."""
    return f"coalesce((SELECT f.cohort FROM fishladder_fence f WHERE f.cohort = {column}), '{NO_HOME}')"


def _cohort(entity: str | None) -> str:
    if entity is None:
        return f"'{SHARED}'"
    return f"coalesce((SELECT h.cohort FROM fishladder_home h WHERE h.entity = {entity}), '{NO_HOME}')"


def _writer(cohort: str) -> str:
    return f"(SELECT f.writer FROM fishladder_fence f WHERE f.cohort = {cohort})"


def _refuse(relation: Relation, where: str) -> str:
    name = relation.table.replace("'", "''")
    return f"SELECT RAISE(ABORT, 'fishladder: {name} is not open to the application here for this cohort') WHERE {where};"


def _journal(table: str, key: str, entity: str | None, source: str = "") -> str:
    cohort = _cohort(entity)
    name = table.replace("'", "''")
    where = f"{_writer(cohort)} = 'application'"
    where = f"{source} AND {where}" if " WHERE " in source else f"{source} WHERE {where}"
    return (
        f"INSERT INTO fishladder_journal (table_name, row_key, entity, cohort)"
        f" SELECT '{name}', {key}, {entity or 'NULL'}, {cohort}{where};"
    )


def _closed(entity: str | None) -> str:
    return f"coalesce({_writer(_cohort(entity))}, 'nobody') NOT IN ('application', 'free')"


def _trigger_texts(dialect: SqliteDialect, table: Triggers) -> Iterator[tuple[str, str]]:
    relation = table.relation
    name, quoted = f"fishladder_{relation.name}", dialect.quote(relation.name)
    new_key, old_key = dialect.key_sql(relation, "NEW"), dialect.key_sql(relation, "OLD")
    new = dialect.entity_sql(relation.entity, "NEW") if relation.entity else None
    old = dialect.entity_sql(relation.entity, "OLD") if relation.entity else None

    def trigger(when: str, lines: Iterable[str]) -> str:
        return f"{when} ON {quoted} {_NOT_COPYING} BEGIN {' '.join(lines)} END"

    # REPLACE deletes the holders of the new unique values without firing anything: journal them first.
    yield f"{name}_displace", trigger("BEFORE INSERT", _displaced(dialect, relation, None))
    yield f"{name}_displace_update", trigger("BEFORE UPDATE", _displaced(dialect, relation, old_key))

    born = list(_birth(dialect, relation)) if relation.root_cohort is not None else []
    yield (
        f"{name}_insert",
        trigger("AFTER INSERT", [*born, _refuse(relation, _closed(new)), _journal(relation.table, new_key, new)]),
    )
    yield (
        f"{name}_delete",
        trigger(
            "BEFORE DELETE",
            [
                _refuse(relation, _closed(old)),
                *_descendants(dialect, table.cascades, "OLD", old),
                _journal(relation.table, old_key, old),
            ],
        ),
    )
    moved = f"{old_key} <> {new_key}"
    refusals = [_refuse(relation, _closed(new))]
    if old is not None and new is not None:
        moved = f"({moved} OR {old} IS NOT {new})"
        apart = f"{_writer(_cohort(old))} IS NOT {_writer(_cohort(new))}"
        refusals.append(_refuse(relation, f"{old} IS NOT {new} AND ({_closed(old)} OR {apart})"))
    yield (
        f"{name}_update",
        trigger(
            "AFTER UPDATE",
            [
                *refusals,
                _journal(relation.table, new_key, new),
                _journal(relation.table, old_key, old, f" WHERE {moved}"),
                *_descendants(dialect, table.cascades, "NEW", new, f"{old_key} <> {new_key}"),
            ],
        ),
    )


def _birth(dialect: SqliteDialect, root: Relation) -> Iterator[str]:
    """A new root gets its home, once: a root that is deleted and created again keeps the one it had."""
    assert root.entity is not None and root.root_cohort is not None
    entity = dialect.entity_sql(root.entity, "NEW")
    plain = dialect.plain_text(f"NEW.{dialect.quote(root.key_columns[0])}", root.fields[root.key[0]])
    cohort = _known_cohort(f"NEW.{dialect.quote(root.root_cohort)}")
    unborn = f"WHERE NOT EXISTS (SELECT 1 FROM fishladder_home h WHERE h.entity = {entity})"
    yield (
        f"INSERT INTO fishladder_journal (table_name, row_key, entity, cohort)"
        f" SELECT '{HOME_TABLE}', {dialect.key_piece(entity)}, {entity}, {cohort} {unborn};"
    )
    yield f"INSERT INTO fishladder_home (entity, cohort, root_key) SELECT {entity}, {cohort}, {plain} {unborn};"


def _displaced(dialect: SqliteDialect, relation: Relation, old_key: str | None) -> Iterator[str]:
    key = dialect.key_sql(relation, "t")
    entity = dialect.entity_sql(relation.entity, "t") if relation.entity else None
    for unique in (relation.key, *relation.uniques):
        columns = [dialect.quote(relation.fields[at].column) for at in unique]
        same = " AND ".join(f"t.{column} = NEW.{column}" for column in columns)
        if old_key is not None:
            same += f" AND {key} <> {old_key}"
        held = f"FROM {dialect.quote(relation.name)} t WHERE {same}"
        yield _refuse(relation, f"EXISTS (SELECT 1 {held} AND {_closed(entity)})")
        yield _journal(relation.table, key, entity, f" {held}")


def _descendants(
    dialect: SqliteDialect, cascades: Iterable[Cascade], parent: str, entity: str | None, when: str = ""
) -> Iterator[str]:
    """Journal the rows that the database changes by itself below the row that ``parent`` names."""
    for cascade in cascades:
        aliases = ["t", *(f"a{number}" for number in range(1, len(cascade.path)))]
        source = f" FROM {dialect.quote(cascade.relation.name)} t"
        for number, step in enumerate(cascade.path[:-1]):
            on = dialect._on(aliases[number], step.columns, aliases[number + 1], step.parent_columns)
            source += f" JOIN {dialect.quote(step.parent)} {aliases[number + 1]} ON {on}"
        last = cascade.path[-1]
        source += f" WHERE {dialect._on(aliases[-1], last.columns, parent, last.parent_columns)}"
        if when:
            source += f" AND {when}"
        yield _journal(cascade.relation.table, dialect.key_sql(cascade.relation, "t"), entity, source)
