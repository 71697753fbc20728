"""SQLite, the embedded store: one file, WAL, every writing transaction ``BEGIN IMMEDIATE``.

Its single writer is every lock at once: whoever holds a transaction holds the fence, the shards and the rows.
Declare decimals as ``DECIMAL_TEXT(12,2)`` and JSON as ``JSON_TEXT``: a NUMERIC column makes binary floats of numbers.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fishladder import cells
from fishladder.errors import AmbiguousError, FatalError, FenceError, RowError, TransientError
from fishladder.stores.application import Application
from fishladder.stores.base import (
    Column,
    Connect,
    Elsewhere,
    Finding,
    ForeignKey,
    Relation,
    TableInfo,
    Triggers,
    Writer,
)
from fishladder.stores.sql import FIRST_ROWS, Guard, Session, named, rows_at_once
from fishladder.stores.sql_checks import MIGRATION, Checks, WholeTables, words_last
from fishladder.stores.sqlite_triggers import trigger_texts
from fishladder.stores.sqlite_types import FUNCTIONS, SqliteDialect, can_be_key, declared_type, guard, logical_type

CHUNK_ROWS = 5_000
LOCK_WAIT = 60.0
"""Seconds that a transaction waits for the file's one writer."""

TABLES = (
    "fishladder_copying (marker INTEGER PRIMARY KEY)",
    "fishladder_cascade (level INTEGER PRIMARY KEY)",
    "fishladder_fence (cohort TEXT PRIMARY KEY, writer TEXT NOT NULL, epoch INTEGER NOT NULL, audit_head TEXT)",
    "fishladder_home (entity TEXT PRIMARY KEY, cohort TEXT NOT NULL, root_key TEXT NOT NULL)",
    "fishladder_journal (id INTEGER PRIMARY KEY AUTOINCREMENT, table_name TEXT NOT NULL, row_key TEXT NOT NULL,"
    " entity TEXT, cohort TEXT NOT NULL, at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')))",
    "fishladder_load (table_name TEXT PRIMARY KEY, generation INTEGER NOT NULL, is_open INTEGER NOT NULL)",
    "fishladder_chunk (table_name TEXT, no INTEGER, generation INTEGER NOT NULL, token INTEGER NOT NULL,"
    " done INTEGER NOT NULL DEFAULT 0, row_count INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (table_name, no))",
    "fishladder_migration (one INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    "fishladder_ledger (one INTEGER PRIMARY KEY, no INTEGER NOT NULL, word TEXT NOT NULL)",
    "fishladder_shard (no INTEGER PRIMARY KEY)",
    "fishladder_touched (table_name TEXT, row_key TEXT, cohort TEXT NOT NULL, attempt TEXT,"
    " PRIMARY KEY (table_name, row_key, attempt))",
    "fishladder_applied (operation TEXT, entity TEXT, idempotency_key TEXT, digest TEXT NOT NULL, result TEXT,"
    " PRIMARY KEY (operation, entity, idempotency_key))",
)
INDEXES = (
    "fishladder_journal_key ON fishladder_journal (table_name, row_key)",
    "fishladder_home_cohort ON fishladder_home (cohort)",
    "fishladder_home_root_key ON fishladder_home (root_key)",
)


def connect(path: str) -> sqlite3.Connection:
    """A plain connection to the file; the store sets everything else."""
    connection = sqlite3.connect(path, timeout=LOCK_WAIT, check_same_thread=False)
    connection.execute("SELECT 1 FROM sqlite_master")  # what is no database shows now, while it is known which file
    return connection


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
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
        if committing:
            raise AmbiguousError(f"the commit may have failed: SQLite: {error}") from error
        raise FatalError(f"SQLite: {error}") from error
    except (ValueError, OverflowError, sqlite3.DataError) as error:
        raise RowError(f"a value does not fit its column: {type(error).__name__}") from error
    except sqlite3.Error as error:
        raise FatalError(f"SQLite: {error}") from error


class SqliteTransaction(Session):
    """``BEGIN IMMEDIATE`` … ``COMMIT``, with the copier's mark set, so that triggers let it pass."""

    def __init__(self, store: SqliteStore, connection: sqlite3.Connection) -> None:
        super().__init__(store.dialect, store.runner(connection))
        self.store = store

    def guards(self, relation: Relation) -> Mapping[int, Guard]:
        found = self.store.guards(relation.name)
        return {at: found[field.column] for at, field in enumerate(relation.fields) if field.column in found}

    def commit(self) -> None:
        self.run("DELETE FROM fishladder_copying", [])
        with translated(committing=True):
            self.store.connection().execute("COMMIT")

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


_CREATED_UNIQUES = "SELECT name, partial FROM pragma_index_list(?) WHERE \"unique\" AND origin = 'c'"


class SqliteStore(WholeTables):
    """One SQLite file. ``connect`` opens a new ``sqlite3.Connection`` to it."""

    kind = "sqlite"
    chunk_rows = CHUNK_ROWS
    folds_names = True
    lock_wait = LOCK_WAIT
    ids_follow_rows = True

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._guards: dict[str, dict[str, Guard]] = {}
        self.dialect = SqliteDialect()

    # Connections

    def _open(self) -> sqlite3.Connection:
        with translated():
            connection: sqlite3.Connection = self._connect()
            connection.isolation_level = None
            connection.text_factory = bytes
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a forgotten entry must not outlive its copy
            connection.execute("PRAGMA foreign_keys = OFF")  # the copier writes key by key; orphans are a check
            for name, count, function in FUNCTIONS:
                connection.create_function(name, count, function, deterministic=True)
        return connection

    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
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
        yield Session(self.dialect, self.runner(self.connection()), self.batches)

    def batches(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A query's rows as they come, on a connection of their own: other reads are not held at the same moment."""
        with closing(self._open()) as connection:
            with translated():
                cursor = connection.execute(sql, parameters)
            size = FIRST_ROWS
            while True:
                with translated():
                    found = cursor.fetchmany(size)
                if not found:
                    return
                yield found
                size = rows_at_once(found)

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

    def guards(self, table: str) -> Mapping[str, Guard]:
        """By column, what to refuse before the column's affinity changes it."""
        if table not in self._guards:
            found = self.run("SELECT name, type FROM pragma_table_info(?)", [table])
            checks = ((name.decode(), guard(type_.decode())) for name, type_ in found)
            self._guards[table] = {name: check for name, check in checks if check is not None}
        return self._guards[table]

    # Tables as declared

    def describe(self) -> dict[str, TableInfo]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        names = [name.decode() for (name,) in self.run(sql)]
        return {name: self._describe(name) for name in sorted(names) if not name.startswith("fishladder_")}

    def _describe(self, name: str) -> TableInfo:
        found = self.run('SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?)', [name])
        sql = self.run("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", [name])[0][0].decode()
        key = tuple(column.decode() for column, *_ in sorted((c for c in found if c[3]), key=lambda c: c[3]))
        rowid_alias = len(key) == 1 and any(c[3] and c[1].decode().upper() == "INTEGER" for c in found)
        columns = tuple(self._column(*line, alias=rowid_alias, declaration=sql) for line in found)
        return TableInfo(
            name=name,
            columns=columns,
            key=key,
            uniques=tuple(self._uniques(name)),
            unrecorded=tuple(self._odd_uniques(name)),
            foreign_keys=tuple(self._foreign_keys(name)),
            rows=self._row_estimate(name),
        )

    @staticmethod
    def _column(
        name: bytes, native: bytes, required: int, place: int, hidden: int, *, alias: bool, declaration: str
    ) -> Column:
        word, type_ = native.decode(), logical_type(native.decode())
        if place and type_ is not None and not can_be_key(type_):
            word, type_ = f"{word} in the primary key", None
        folds = re.search(rf"\b{re.escape(name.decode())}\b[^,]*\bCOLLATE\s+(?!BINARY)", declaration, re.I)
        return Column(
            name=name.decode(),
            native=word,
            type=type_,
            nullable=not required and not place,
            generated=bool(place) and alias,
            computed=hidden in (2, 3),
            enforced=False,
            bytewise=folds is None,
        )

    def _row_estimate(self, name: str) -> int:
        return int(self.run(f"SELECT count(*) FROM {self.dialect.quote(name)}")[0][0])

    def _uniques(self, name: str) -> Iterator[tuple[str, ...]]:
        sql = "SELECT name FROM pragma_index_list(?) WHERE \"unique\" AND origin <> 'pk' AND NOT partial ORDER BY name"
        for (index,) in self.run(sql, [name]):
            columns = self.run("SELECT name FROM pragma_index_info(?) ORDER BY seqno", [index.decode()])
            if all(column is not None for (column,) in columns):
                yield tuple(column.decode() for (column,) in columns)

    def _odd_uniques(self, name: str) -> Iterator[str]:
        """Unique indexes whose holders a trigger cannot find by columns, when REPLACE deletes them in silence."""
        for index, partial in self.run(_CREATED_UNIQUES, [name]):
            columns = self.run("SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", [index.decode()])
            if partial or any(column is None or coll.upper() != b"BINARY" for column, coll in columns):
                yield index.decode()

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
                name = f"{table.name}.{column.name}"
                raise FatalError(f"{name}: {column.native} has no type here; create the table by hand")
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
        if mode == "wal":
            findings = [Finding(level="pass", where="journal_mode", message="WAL")]
        else:
            message = f"is {mode}; readers would block: PRAGMA journal_mode = WAL"
            findings = [Finding(level="fail", where="journal_mode", message=message)]
        triggers = self.run("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        for name, sql in triggers:
            if re.search(rb"RAISE\s*\(\s*IGNORE", sql, re.I) and not name.startswith(b"fishladder_"):
                message = "uses RAISE(IGNORE), which cuts fishladder's own triggers short: let it refuse instead"
                findings.append(Finding(level="fail", where=f"trigger {name.decode()}", message=message))
        file = self._file()
        if file is not None and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
            message = f"the copier may not write {file.name} or its folder: chmod u+w both, or chown them to its user"
            findings.append(Finding(level="fail", where="privilege write", message=message))
        return findings

    def is_behind(self, other: Any) -> bool:
        mine, theirs = self._file(), other._file()
        return mine is not None and theirs is not None and mine.samefile(theirs)

    def disk(self) -> tuple[int, int] | None:
        """Bytes of the file with its journals, and bytes free in its folder."""
        file = self._file()
        if file is None:
            return None
        parts = [file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))]
        return sum(part.stat().st_size for part in parts if part.exists()), shutil.disk_usage(file.parent).free

    def _file(self) -> Path | None:
        path = self.run("SELECT file FROM pragma_database_list WHERE name = 'main'")[0][0]
        return Path(os.fsdecode(path)) if path else None

    def own_tables(self) -> list[str]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'fishladder!_%' ESCAPE '!'"
        return words_last(name.decode() for (name,) in self.run(sql))

    def install_tables(self) -> None:
        with self._changing():
            for table in TABLES:
                self.run(f"CREATE TABLE IF NOT EXISTS {table}")
            for index in INDEXES:
                self.run(f"CREATE INDEX IF NOT EXISTS {index}")
            self.run("INSERT OR IGNORE INTO fishladder_ledger VALUES (1, 0, '-')")
            for number in range(cells.SHARDS):
                self.run("INSERT OR IGNORE INTO fishladder_shard VALUES (?)", [number])

    def installed_for(self) -> str | None:
        return self._checks().migration() if MIGRATION in self.own_tables() else None

    def install_name(self, migration: str) -> None:
        with self._changing():
            self.run("INSERT OR IGNORE INTO fishladder_migration VALUES (1, ?)", [migration])

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
                "UPDATE fishladder_chunk SET generation = ?, token = ?, done = 0, row_count = 0"
                " WHERE table_name = ? AND no = ? AND (generation < ? OR (generation = ? AND NOT done AND token < ?))"
            )
            self.run(sql, [generation, token, table, no, generation, generation, token])

    def install_triggers(self, tables: Sequence[Triggers]) -> None:
        with self._changing():
            for name, sql in self._triggers(tables):
                self.run(f"DROP TRIGGER IF EXISTS {self.dialect.quote(name)}")
                self.run(sql)

    def has_triggers(self, tables: Sequence[Triggers]) -> bool:
        found = self.run("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        there = {name.decode(): sql.decode() for name, sql in found}
        return all(there.get(name) == sql for name, sql in self._triggers(tables))

    def _triggers(self, tables: Sequence[Triggers]) -> Iterator[tuple[str, str]]:
        """Each one's name and the statement that makes it."""
        for table in tables:
            for name, body in trigger_texts(self.dialect, table, list(self._uniques(table.relation.name))):
                yield name, f"CREATE TRIGGER {self.dialect.quote(name)} {body}"

    def backfill_homes(
        self, root: Relation, after: bytes | None, limit: int, *, elsewhere: Elsewhere | None = None
    ) -> bytes | None:
        with self._changing():
            return self._checks().backfill_homes(root, after, limit, elsewhere=elsewhere)

    def cohorts(self, root: Relation) -> dict[str | None, int]:
        column = self.dialect.cohort_text(root, "")
        found = self.run(f"SELECT CAST({column} AS TEXT), count(*) FROM {self.dialect.quote(root.name)} GROUP BY 1")
        return {None if cohort is None else cohort.decode(): count for cohort, count in found}

    def coverage(self, tables: Sequence[Relation]) -> dict[str, str]:
        found = self.run("SELECT tbl_name, type, name, coalesce(sql, '') FROM sqlite_master")
        parts: dict[str, list[str]] = {}
        for table, kind, name, sql in sorted(found):
            unique = kind == b"index" and sql.upper().startswith(b"CREATE UNIQUE")  # whose holders REPLACE deletes
            if kind == b"table" or unique or name.startswith(b"fishladder_"):
                parts.setdefault(table.decode(), []).append(f"{kind!r} {name!r} {sql!r}")
        return {
            relation.table: hashlib.sha256("\n".join(parts.get(relation.name, ["absent"])).encode()).hexdigest()
            for relation in tables
        }

    def lag(self) -> float | None:
        sql = "SELECT (julianday('now') - julianday(at)) * 86400 FROM fishladder_journal ORDER BY id LIMIT 1"
        found = self.run(sql)
        return max(0.0, float(found[0][0])) if found else None

    def generated_from(self, relation: Relation) -> int | None:
        if not self._describe(relation.name).column(relation.key_columns[0]).generated:  # type: ignore[union-attr]
            return None
        found: list[tuple[Any, ...]] = []
        if self._autoincrements(relation.name):
            found = self.run("SELECT seq FROM sqlite_sequence WHERE name = ?", [relation.name])
        column, table = self.dialect.quote(relation.key_columns[0]), self.dialect.quote(relation.name)
        found += self.run(f"SELECT max({column}) FROM {table}")
        return max(int(last or 0) for (last,) in found) + 1

    def _autoincrements(self, table: str) -> bool:
        sql = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        return "AUTOINCREMENT" in self.run(sql, [table])[0][0].decode().upper()

    def generate_from(self, relation: Relation, first: int) -> None:
        if not self._autoincrements(relation.name):
            raise FatalError(f"{relation.name}: its ids begin where its rows end; declare the key AUTOINCREMENT")
        with self._changing():
            known = self.run("SELECT seq FROM sqlite_sequence WHERE name = ?", [relation.name])
            if not known:
                self.run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [relation.name, first - 1])
            elif known[0][0] < first - 1:
                self.run("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", [first - 1, relation.name])

    def running_threads(self) -> int | None:
        return None

    def replica_lag(self) -> float | None:
        return None

    def hear(self, number: int, word: str) -> None:
        with self._changing():
            self._checks().hear(number, word)

    def uninstall(self) -> None:
        with self._changing():
            ours = "name LIKE 'fishladder!_%' ESCAPE '!'"
            for kind in ("trigger", "table"):
                for (name,) in self.run(f"SELECT name FROM sqlite_master WHERE type = '{kind}' AND {ours}"):
                    self.run(f"DROP {kind} {self.dialect.quote(name.decode())}")


class SqliteApplication(Application):
    """``connect`` opens a ``sqlite3.Connection``; whoever writes is alone, so the fence needs no lock."""

    begin = "BEGIN IMMEDIATE"
    begin_reading = "BEGIN"
    shared = ""
    errors = translated

    def prepare(self, connection: sqlite3.Connection) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(LOCK_WAIT * 1000)}")

    def marked(self, sql: str) -> str:
        return sql
