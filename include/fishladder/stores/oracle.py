"""Oracle, through python-oracledb's thin mode, which needs no client libraries.

The tables are those of the connection's current schema, which the copier's account need not own. Sessions run READ
COMMITTED, compare byte for byte and are in UTC. Values travel as text: a NUMBER is never a float.

What Oracle has no word for: a row cannot be locked in share mode, so that fences and loads are empty tables that are
locked as a whole (oracle_triggers.py), and a row that is held is held FOR UPDATE. A session cannot leave foreign keys
unchecked: parents are written before their children, and a parent that would take rows with it is not deleted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import oracledb

from fishladder import cells
from fishladder.cells import Row, row_key
from fishladder.errors import FatalError, RowError, TransientError
from fishladder.silence import ASK_AFTER, CONNECT_SECONDS, SILENT_SECONDS
from fishladder.stores.application import Application
from fishladder.stores.application import Session as ApplicationSession
from fishladder.stores.base import (
    Connect,
    Elsewhere,
    Fence,
    Finding,
    ForeignKey,
    LoadState,
    Relation,
    TableInfo,
    Triggers,
    Writer,
)
from fishladder.stores.oracle_errors import translated
from fishladder.stores.oracle_schema import (
    LIKE_OURS,
    SCHEMA,
    blockers,
    creation,
    describe,
    folded,
    generator,
    guards,
    identities,
    inspect,
    installed_triggers,
    may_write,
    quota,
    shapes,
    trigger_marks,
)
from fishladder.stores.oracle_triggers import FENCED, KEY, NAME, READERS, fenced_text, lock_name, trigger_texts
from fishladder.stores.oracle_types import SETTINGS, Char, Double, OracleDialect, dictionary_name, plain_name
from fishladder.stores.sql import (
    FIRST_ROWS,
    KEYS_PER_STATEMENT,
    Guard,
    Session,
    load_state,
    named,
    numbered_marks,
    read_fences,
    rows_at_once,
    slices,
    statements,
)
from fishladder.stores.sql_checks import MIGRATION, Checks, WholeTables, words_last

CHUNK_ROWS = 50_000
ROWS_PER_CALL = 500
"""Rows of one array INSERT or UPDATE: the Oracle wire emulator loses its place in one of 10,000."""
INSTALL_TRIES = 30
"""How often a lock is asked for before the installation gives up, in seconds and their pauses: a minute."""
INSTALL_WAIT = 1
INSTALL_PAUSE = 1.0
"""Seconds in which everybody who queued behind the lock gets on with it."""
BACKFILL_TRIES = 10

TABLES = {
    "fishladder_fence": f"cohort {NAME} PRIMARY KEY, writer {NAME} NOT NULL, epoch NUMBER(19) NOT NULL,"
    " audit_head VARCHAR2(100)",
    "fishladder_home": f"entity {KEY} PRIMARY KEY, cohort {NAME} NOT NULL, root_key {KEY} NOT NULL",
    "fishladder_journal": f"id NUMBER(19) PRIMARY KEY, table_name {NAME} NOT NULL, row_key {KEY} NOT NULL,"
    f" entity {KEY}, cohort {NAME} NOT NULL, at TIMESTAMP(6) NOT NULL",
    "fishladder_cascade": f"table_name {NAME} NOT NULL, row_key {KEY} NOT NULL, entity {KEY} NOT NULL",
    "fishladder_load": f"table_name {NAME} PRIMARY KEY, generation NUMBER(19) NOT NULL, is_open NUMBER(1) NOT NULL",
    "fishladder_chunk": f"table_name {NAME}, no NUMBER(19), generation NUMBER(19) NOT NULL, token NUMBER(19) NOT NULL,"
    " done NUMBER(1) DEFAULT 0 NOT NULL, row_count NUMBER(19) DEFAULT 0 NOT NULL, PRIMARY KEY (table_name, no)",
    "fishladder_migration": f"one NUMBER(1) PRIMARY KEY, name {NAME} NOT NULL",
    "fishladder_ledger": f"one NUMBER(1) PRIMARY KEY, no NUMBER(19) NOT NULL, word {NAME} NOT NULL",
    "fishladder_shard": "no NUMBER(5) PRIMARY KEY",
    "fishladder_touched": f"table_name {NAME}, row_key {KEY}, cohort {NAME} NOT NULL, attempt {NAME},"
    " PRIMARY KEY (table_name, row_key, attempt)",
    "fishladder_applied": f"operation {NAME}, entity {KEY}, idempotency_key {NAME}, digest {NAME} NOT NULL,"
    " result CLOB, PRIMARY KEY (operation, entity, idempotency_key)",
}
INDEXES = {
    "fishladder_journal_key": "fishladder_journal (table_name, row_key)",
    "fishladder_home_cohort": "fishladder_home (cohort)",
    "fishladder_home_root_key": "fishladder_home (root_key)",
    "fishladder_cascade_key": "fishladder_cascade (row_key)",
}
JOURNAL_IDS = "fishladder_journal_id"


def connect(*, schema: str | None = None, **options: Any) -> oracledb.Connection:
    """A plain connection; the store sets everything else. ``schema``: the tables' owner, if it is not the login.

    Raises TransientError or FatalError.
    """
    with translated():
        connection = oracledb.connect(**{**PATIENCE, **options})
        if schema:
            with connection.cursor() as cursor:
                cursor.execute(f'ALTER SESSION SET CURRENT_SCHEMA = "{dictionary_name(schema)}"')
        return connection


PATIENCE = {"tcp_connect_timeout": CONNECT_SECONDS, "expire_time": ASK_AFTER // 60}
"""What has to be said when connecting, so that nobody is waited for without an end; ``expire_time`` in minutes."""


# What the driver reads and binds -----------------------------------------------------------------------------


def raw_cells(cursor: oracledb.Cursor, column: oracledb.FetchInfo) -> oracledb.Var | None:
    """Text as the bytes that came; everything else but binary floats as bytes, too."""
    type_, size = column.type_code, cursor.arraysize
    if type_ in (oracledb.DB_TYPE_VARCHAR, oracledb.DB_TYPE_CHAR):
        return cursor.var(oracledb.DB_TYPE_VARCHAR, arraysize=size, bypass_decode=True)
    if type_ in (oracledb.DB_TYPE_CLOB, oracledb.DB_TYPE_NCLOB, oracledb.DB_TYPE_LONG):
        return cursor.var(oracledb.DB_TYPE_LONG, arraysize=size, outconverter=str.encode)
    if type_ in (oracledb.DB_TYPE_BLOB, oracledb.DB_TYPE_LONG_RAW):
        return cursor.var(oracledb.DB_TYPE_LONG_RAW, arraysize=size)
    if type_ in (oracledb.DB_TYPE_RAW, oracledb.DB_TYPE_BINARY_DOUBLE, oracledb.DB_TYPE_BINARY_FLOAT):
        return None
    return cursor.var(oracledb.DB_TYPE_VARCHAR, arraysize=size, outconverter=str.encode)


def _bound(cursor: oracledb.Cursor, value: Any, size: int) -> oracledb.Var | None:
    if isinstance(value, Double):
        return cursor.var(oracledb.DB_TYPE_BINARY_DOUBLE, arraysize=size)
    if isinstance(value, Char):
        return cursor.var(oracledb.DB_TYPE_CHAR, arraysize=size)
    if isinstance(value, datetime):  # as a DATE it would lose its fraction and its zone
        return cursor.var(oracledb.DB_TYPE_TIMESTAMP_TZ, arraysize=size)
    return None


# One transaction ------------------------------------------------------------------------------------------------


class OracleTransaction(Session):
    def __init__(self, store: OracleStore, connection: oracledb.Connection, wait: float | None) -> None:
        self.waiting = "" if wait is None else " NOWAIT" if wait == 0 else f" WAIT {max(1, round(wait))}"
        dialect = OracleDialect()
        dialect.share = dialect.exclusive = f"{dialect.exclusive}{self.waiting}"
        super().__init__(dialect, store.runner(connection))
        self.store = store
        self.connection = connection
        self.committed = False

    def guards(self, relation: Relation) -> Mapping[int, Guard]:
        found = self.store.guards(relation.name)
        return {at: found[field.column] for at, field in enumerate(relation.fields) if field.column in found}

    # Rows

    def insert(self, relation: Relation, rows: Sequence[Row]) -> None:
        quote = self.dialect.quote
        columns = ", ".join(quote(field.column) for field in relation.fields)
        marks = ", ".join("?" * len(relation.fields))
        sql = f"INSERT INTO {quote(relation.name)} ({columns}) VALUES ({marks})"
        for some in statements(rows, ROWS_PER_CALL):
            self._many(sql, self._values(relation, some))

    def update(self, relation: Relation, rows: Sequence[Row], columns: Sequence[int] | None = None) -> None:
        quote = self.dialect.quote
        others = [at for at in (range(len(relation.fields)) if columns is None else columns) if at not in relation.key]
        if not others:
            return
        changes = ", ".join(f"{quote(relation.fields[at].column)} = ?" for at in others)
        where = " AND ".join(f"{column} = ?" for column in self.key_columns(relation, ""))
        sql = f"UPDATE {quote(relation.name)} SET {changes} WHERE {where}"
        for some in statements(rows, ROWS_PER_CALL):
            values = self._values(relation, some)
            self._many(sql, [[line[at] for at in (*others, *relation.key)] for line in values])

    def _many(self, sql: str, lines: list[list[Any]]) -> None:
        with translated(), self.connection.cursor() as cursor:
            cursor.executemany(numbered_marks(sql), lines)

    def delete(self, relation: Relation, keys: Sequence[bytes]) -> None:
        self._keep_children(relation, keys)
        super().delete(relation, keys)

    def _keep_children(self, relation: Relation, keys: Sequence[bytes]) -> None:
        """Refuse what Oracle would not: a parent takes its children with it, who may be nobody's to delete."""
        columns = self.key_columns(relation, "p.")
        for child, foreign_key in self.store.cascading(relation.name):
            on = self.dialect.on("c", foreign_key.columns, "p", foreign_key.parent_columns)
            head = f"SELECT 1 FROM {self.dialect.quote(child)} c JOIN {self.dialect.quote(relation.name)} p ON {on}"
            for some in slices(keys, KEYS_PER_STATEMENT):
                parameters = [value for key in some for value in self.key_parameters(relation, key)]
                where = self.dialect.key_in(columns, len(some))
                if self.run(f"{head} WHERE {where}{self.dialect.limit}", [*parameters, 1]):
                    raise RowError(f"rows of {child} refer to this one, and would be deleted or changed with it")

    def replace(self, relation: Relation, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        """Rows that others refer to cannot go for a moment: their unique values do, where those may be NULL."""
        given_up = sorted({at for unique in relation.uniques for at in unique} - set(relation.key))
        if not self.store.nullable(relation.name).issuperset(relation.fields[at].column for at in given_up):
            super().replace(relation, keys, rows)
            return
        changes = ", ".join(f"{self.dialect.quote(relation.fields[at].column)} = NULL" for at in given_up)
        head = f"UPDATE {self.dialect.quote(relation.name)} SET {changes} WHERE "
        for some in slices(keys, KEYS_PER_STATEMENT):
            parameters = [value for key in some for value in self.key_parameters(relation, key)]
            self.run(head + self.dialect.key_in(self.key_columns(relation, ""), len(some)), parameters)
        new = {row_key(row, relation.key): row for row in rows}
        self.update(relation, [new.pop(key) for key in keys if key in new])
        self.insert(relation, list(new.values()))

    # Locks

    def _lock(self, kind: str, name: str, *, exclusive: bool) -> None:
        mode = "EXCLUSIVE" if exclusive else "ROW SHARE"
        self.run(f"LOCK TABLE {lock_name(kind, name)} IN {mode} MODE{self.waiting}", [])

    def lock_fences(self, cohorts: Iterable[str] | None, *, exclusive: bool = False) -> dict[str, Fence]:
        known = self.store.fences()
        wanted = sorted(set(known) if cohorts is None else set(cohorts) & set(known))
        for cohort in wanted:
            self._lock("fence", cohort, exclusive=exclusive)
        found = read_fences(self.run("SELECT cohort, writer, epoch FROM fishladder_fence ORDER BY cohort", []))
        return {cohort: fence for cohort, fence in found.items() if cohort in wanted}

    def lock_load(self, table: str, *, exclusive: bool = False) -> LoadState | None:
        if table not in self.store.load_states():
            return None
        self._lock("load", table, exclusive=exclusive)
        found = self.run("SELECT generation, is_open FROM fishladder_load WHERE table_name = ?", [table])
        return load_state(*found[0])

    # The end

    def commit(self) -> None:
        with translated(committing=True):
            self.connection.commit()
        self.committed = True

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self.run("SAVEPOINT attempt", [])
        try:
            yield
        except RowError:
            self.run("ROLLBACK TO SAVEPOINT attempt", [])
            raise


# The store --------------------------------------------------------------------------------------------------------


class OracleStore(WholeTables):
    """One Oracle schema. ``connect`` opens a new python-oracledb connection to it, as the copier."""

    kind = "oracle"
    ids_follow_rows = False
    chunk_rows = CHUNK_ROWS
    folds_names = False
    install_tries = INSTALL_TRIES

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._reading: oracledb.Connection | None = None
        self._writing: oracledb.Connection | None = None
        self._streaming: oracledb.Connection | None = None
        self._guards: dict[str, dict[str, Guard]] = {}
        self._tables: dict[str, TableInfo] | None = None
        self.dialect = OracleDialect()

    # Connections

    def _open(self, *, autocommit: bool) -> oracledb.Connection:
        with translated():
            connection: oracledb.Connection = self._connect()
            if not connection.thin:
                raise FatalError(
                    "python-oracledb is in its thick mode, which spells values otherwise: use the thin one"
                )
            connection.autocommit = autocommit
            connection.call_timeout = SILENT_SECONDS * 1_000
            connection.outputtypehandler = raw_cells
            connection.inputtypehandler = _bound
            with connection.cursor() as cursor:
                # What is wrong with a row is said by the statement that writes it, not by the commit of all.
                cursor.execute("ALTER SESSION SET CONSTRAINTS = IMMEDIATE")
                for name, value in SETTINGS.items():
                    cursor.execute(f"ALTER SESSION SET {name} = '{value}'")
                cursor.execute(f"ALTER SESSION SET DDL_LOCK_TIMEOUT = {INSTALL_WAIT}")
        return connection

    def connection(self) -> oracledb.Connection:
        if self._reading is None:
            self._reading = self._open(autocommit=True)
        return self._reading

    def runner(self, connection: oracledb.Connection) -> Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]:
        def run(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
            with translated(), connection.cursor() as cursor:
                cursor.arraysize = ROWS_PER_CALL
                cursor.execute(numbered_marks(sql) if parameters else sql, list(parameters))
                if cursor.warning is not None:  # a trigger or a function that does not compile is there all the same
                    raise FatalError(f"Oracle does not compile {sql[:80]}…: {cursor.warning}")
                return cursor.fetchall() if cursor.description else []

        return run

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._reconnecting():
            return self.runner(self.connection())(sql, parameters)

    @contextmanager
    def _reconnecting(self) -> Iterator[None]:
        """Whatever ended the connection: the next call opens another."""
        try:
            yield
        except TransientError:
            self._reading = self._discard(self._reading)
            raise

    @staticmethod
    def _discard(connection: oracledb.Connection | None) -> None:
        if connection is not None:
            try:
                connection.close()
            except oracledb.Error:
                return  # it was lost already

    @contextmanager
    def read(self) -> Iterator[Session]:
        yield Session(self.dialect, self.run, self.batches)

    def batches(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A query's rows as they come, on a connection of their own, which is kept for the next such query."""
        connection, self._streaming = self._streaming or self._open(autocommit=True), None
        done = False
        try:
            cursor, size = connection.cursor(), FIRST_ROWS
            cursor.arraysize = size
            with translated():
                cursor.execute(numbered_marks(sql), list(parameters))
            while True:
                cursor.arraysize = size  # the rows of a round trip, which are all in memory
                with translated():
                    found = cursor.fetchmany(size)
                if not found:
                    done = True
                    return
                yield found
                size = rows_at_once(found)
        finally:
            if done and self._streaming is None:
                self._streaming = connection
            else:
                self._discard(connection)

    @contextmanager
    def begin(self, *, wait: float | None = None) -> Iterator[OracleTransaction]:
        if self._writing is None:
            self._writing = self._open(autocommit=False)
        connection = self._writing
        transaction = OracleTransaction(self, connection, wait)
        try:
            with translated():
                connection.ping()
            yield transaction
        finally:
            if not transaction.committed:
                self._undo(connection)

    def _undo(self, connection: oracledb.Connection) -> None:
        try:
            connection.rollback()
        except oracledb.Error:  # the server undoes what a lost connection left open
            self._discard(connection)
            self._writing = None

    def close(self) -> None:
        self._reading = self._discard(self._reading)
        self._writing = self._discard(self._writing)
        self._streaming = self._discard(self._streaming)

    # Tables as declared

    def describe(self) -> dict[str, TableInfo]:
        return describe(self.run)

    def create_table(self, table: TableInfo) -> None:
        for statement in creation(self.dialect, table):
            self.run(statement)

    def guards(self, table: str) -> Mapping[str, Guard]:
        """By column, what to refuse before the server changes it without an error."""
        if table not in self._guards:
            self._guards[table] = guards(self.run, table)
        return self._guards[table]

    def cascading(self, table: str) -> Sequence[tuple[str, ForeignKey]]:
        """The foreign keys, and whose they are, by which rows go or change when a row of this table is deleted."""
        return [
            (child.name, key)
            for child in self._described().values()
            for key in child.foreign_keys
            if key.parent == table and key.on_delete in ("CASCADE", "SET NULL")
        ]

    def nullable(self, table: str) -> set[str]:
        """The columns of this table that may be NULL."""
        found = self._described().get(table)
        return {column.name for column in found.columns if column.nullable} if found is not None else set()

    def _described(self) -> dict[str, TableInfo]:
        """As they were when this store was first asked."""
        if self._tables is None:
            self._tables = self.describe()
        return self._tables

    # Reads over whole tables

    def _checks(self) -> Checks:
        return Checks(Session(self.dialect, self.run))

    def query(self, sql: str, parameters: Mapping[str, object]) -> list[tuple[str | None, ...]]:
        statement, values = named(sql, parameters)
        with self._reconnecting(), translated(), self.connection().cursor() as cursor:
            cursor.execute(numbered_marks(statement), values)
            numbers = [column[1] in _NUMBERS for column in cursor.description]
            lines = cursor.fetchall()
        return [tuple(map(_report_text, line, numbers)) for line in lines]

    # Fishladder's tables

    def _user(self) -> str:
        return self.run("SELECT SYS_CONTEXT('USERENV', 'SESSION_USER') FROM dual")[0][0].decode()

    def account(self) -> str:
        return plain_name(self._user())

    def inspect(self) -> list[Finding]:
        return inspect(self.run)

    def may_write(self, account: str) -> bool | None:
        return may_write(self.run, account)

    def disk(self) -> tuple[int, int] | None:
        """What the schema's quota says; None where it has none, or it cannot be seen."""
        found = quota(self.run, self.run(f"SELECT {SCHEMA} FROM dual")[0][0].decode())
        return None if found is None or found[2] < 0 else (found[1], max(0, found[2] - found[1]))

    def _there(self) -> set[str]:
        """Which of fishladder's tables, indexes, sequences and functions there are."""
        sql = f"SELECT object_name FROM all_objects WHERE owner = {SCHEMA} AND object_name {LIKE_OURS}"
        return {name.decode().lower() for (name,) in self.run(sql)}

    def own_tables(self) -> list[str]:
        return [name.lower() for name in self._own_tables()]

    def _own_tables(self) -> list[str]:
        """As the dictionary has them."""
        sql = f"SELECT table_name FROM all_tables WHERE owner = {SCHEMA} AND table_name {LIKE_OURS}"
        return words_last(name.decode() for (name,) in self.run(sql))

    def install_tables(self) -> None:
        there = self._there()
        for table, columns in TABLES.items():
            if table not in there:
                self.run(f"CREATE TABLE {table} ({columns})")
        for index, on in INDEXES.items():
            if index not in there:
                self.run(f"CREATE INDEX {index} ON {on}")
        if JOURNAL_IDS not in there:
            self.run(f"CREATE SEQUENCE {JOURNAL_IDS} CACHE 1000")
        for function, text in READERS.items():
            if function not in there:
                self.run(text)
        self._insert_new("fishladder_ledger (one, no, word)", [1, 0, "-"])
        known = {int(no) for (no,) in self.run("SELECT no FROM fishladder_shard")}
        for no in range(cells.SHARDS):
            if no not in known:
                self._insert_new("fishladder_shard (no)", [no])

    def installed_for(self) -> str | None:
        return self._checks().migration() if MIGRATION in self._there() else None

    def install_name(self, migration: str) -> None:
        self._insert_new("fishladder_migration (one, name)", [1, migration])

    def _insert_new(self, into: str, values: Sequence[Any]) -> None:
        """Insert a row, unless there is one of this key already."""
        try:
            self.run(f"INSERT INTO {into} VALUES ({', '.join('?' * len(values))})", values)
        except RowError as error:
            if not error.unique:
                raise

    def _install_locks(self, kind: str, names: Iterable[str]) -> None:
        there = self._there()
        for name in names:
            table = lock_name(kind, name)
            if table not in there:
                self.run(f"CREATE TABLE {table} (nothing NUMBER(1))")

    def install_fences(self, cohorts: Iterable[str], writer: Writer) -> None:
        wanted = list(cohorts)
        self._install_locks("fence", wanted)
        known, told = set(self.fences()), set[str]()
        if FENCED in self._there() and known.issuperset(wanted):
            told = known
        while not told.issuperset(known | set(wanted)):  # another prepare may have told of others meanwhile
            told = known | set(wanted)
            # Before the fences themselves: one that can be read but not locked would hold nobody back.
            self.run(fenced_text(sorted(told)))
            for cohort in wanted:
                self._insert_new("fishladder_fence (cohort, writer, epoch)", [cohort, writer, 1])
            known = set(self.fences())

    def install_load(self, tables: Iterable[str], *, open: bool) -> None:
        wanted = list(tables)
        self._install_locks("load", wanted)
        for table in wanted:
            self._insert_new("fishladder_load (table_name, generation, is_open)", [table, 1, int(open)])

    def raise_token(self, table: str, no: int, generation: int, token: int) -> None:
        self._insert_new("fishladder_chunk (table_name, no, generation, token)", [table, no, generation, token])
        sql = (
            "UPDATE fishladder_chunk SET done = 0, row_count = 0, token = ?, generation = ? WHERE table_name = ?"
            " AND no = ? AND (generation < ? OR (generation = ? AND done = 0 AND token < ?))"
        )
        self.run(sql, [token, generation, table, no, generation, generation, token])

    def install_triggers(self, tables: Sequence[Triggers]) -> None:
        user, installed = self._user(), installed_triggers(self.run)
        for table in tables:
            own = table.relation.name
            on = self.dialect.quote(own)
            for name, moment, body in trigger_texts(self.dialect, table, user):
                stored = dictionary_name(name)
                found = installed.get(stored)
                if found == (own, folded(body), True):
                    continue
                if found is not None and found[0] != own:
                    # A table that was renamed took its triggers along.
                    self._patiently(found[0], f'DROP TRIGGER "{stored}"')
                self._patiently(own, f'CREATE OR REPLACE TRIGGER "{stored}" {moment} ON {on} FOR EACH ROW {body}')
            # Whoever changed the table before the triggers were there has ended when this lock is had.
            self._patiently(own, f"LOCK TABLE {on} IN SHARE MODE WAIT {INSTALL_WAIT}")

    def has_triggers(self, tables: Sequence[Triggers]) -> bool:
        user, installed = self._user(), installed_triggers(self.run)
        return all(
            installed.get(dictionary_name(name)) == (table.relation.name, folded(body), True)
            for table in tables
            for name, _, body in trigger_texts(self.dialect, table, user)
        )

    def _patiently(self, table: str, statement: str) -> None:
        """Run a statement that waits for every open transaction on the table, for no longer than a second."""
        for _ in range(self.install_tries):
            try:
                self.run(statement)
                return
            except TransientError as error:
                last = error
            time.sleep(INSTALL_PAUSE)
        who = blockers(self.run, table)
        raise TransientError(f"{table}: its triggers cannot be changed while {who}: {last}") from last

    def backfill_homes(
        self, root: Relation, after: bytes | None, limit: int, *, elsewhere: Elsewhere | None = None
    ) -> bytes | None:
        for _ in range(BACKFILL_TRIES):
            try:
                return self._checks().backfill_homes(root, after, limit, elsewhere=elsewhere)
            except RowError as error:
                if not error.unique:
                    raise
                last = error  # a trigger gave one of them its home meanwhile
        raise TransientError(f"{root.name}: homes change as fast as they are given: {last}") from last

    def cohorts(self, root: Relation) -> dict[str | None, int]:
        column = self.dialect.cohort_text(root, "")
        found = self.run(f"SELECT {column}, count(*) FROM {self.dialect.quote(root.name)} GROUP BY {column}")
        return {None if cohort is None else cohort.decode(): int(count) for cohort, count in found}

    def coverage(self, tables: Sequence[Relation]) -> dict[str, str]:
        if not tables:
            return {}
        names = sorted({relation.name for relation in tables})
        ids, columns, triggers = identities(self.run, names), shapes(self.run, names), trigger_marks(self.run)
        found = {}
        for relation in tables:
            parts = [
                *ids.get(relation.name, ["absent"]),
                *columns.get(relation.name, []),
                *triggers.get(relation.name, []),
            ]
            found[relation.table] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return found

    def lag(self) -> float | None:
        sql = (
            "SELECT TO_CHAR(at, 'YYYY-MM-DD HH24:MI:SS.FF6'), TO_CHAR(SYS_EXTRACT_UTC(SYSTIMESTAMP),"
            f" 'YYYY-MM-DD HH24:MI:SS.FF6') FROM fishladder_journal ORDER BY id{self.dialect.limit}"
        )
        found = self.run(sql, [1])
        if not found:
            return None
        then, now = (datetime.fromisoformat(moment.decode()) for moment in found[0])
        return max(0.0, (now - then).total_seconds())

    def generated_from(self, relation: Relation) -> int | None:
        """The sequence's next number, or a higher one if that is taken already."""
        sequence = generator(self.run, relation.name, relation.key_columns[0])
        if sequence is None:
            return None
        sql = f"SELECT last_number FROM all_sequences WHERE sequence_owner = {SCHEMA} AND sequence_name = ?"
        column, table = self.dialect.quote(relation.key_columns[0]), self.dialect.quote(relation.name)
        found = self.run(sql, [sequence]) + self.run(f"SELECT max({column}) + 1 FROM {table}")
        return max(int(next_id) for (next_id,) in found if next_id is not None)

    def generate_from(self, relation: Relation, first: int) -> None:
        sequence = generator(self.run, relation.name, relation.key_columns[0])
        if sequence is None:
            raise FatalError(f"{relation.name}: no sequence generates its ids")
        if (self.generated_from(relation) or 1) < first:
            self.run(f'ALTER SEQUENCE "{sequence}" RESTART START WITH {int(first)}')

    def running_threads(self) -> int | None:
        """Nobody counts them here."""
        return None

    def replica_lag(self) -> float | None:
        return None

    def uninstall(self) -> None:
        for name, (table, *_) in installed_triggers(self.run).items():
            self._patiently(table, f'DROP TRIGGER "{name}"')
        there = self._there()
        for function in {FENCED, *READERS} & there:
            self.run(f"DROP FUNCTION {function}")
        if JOURNAL_IDS in there:
            self.run(f"DROP SEQUENCE {JOURNAL_IDS}")
        for name in self._own_tables():
            self._patiently(name, f'DROP TABLE "{name}" PURGE')


_NUMBERS = (oracledb.DB_TYPE_NUMBER, oracledb.DB_TYPE_BINARY_DOUBLE, oracledb.DB_TYPE_BINARY_FLOAT)


def _report_text(cell: Any, is_number: bool) -> str | None:
    if cell is None:
        return None
    text = cell.decode() if isinstance(cell, bytes) else str(cell)
    return cells.decimal_text(text, None) if is_number else text


class OracleApplication(Application):
    """``connect`` opens an ``oracledb`` connection in which the tables need no owner's name."""

    begin = begin_reading = ""
    shared = ""
    errors = translated

    def prepare(self, connection: oracledb.Connection) -> None:
        connection.autocommit = False

    def marked(self, sql: str) -> str:
        return numbered_marks(sql)

    def hold(self, session: ApplicationSession, cohort: str) -> None:
        session.run(f"LOCK TABLE {lock_name('fence', cohort)} IN ROW SHARE MODE")
