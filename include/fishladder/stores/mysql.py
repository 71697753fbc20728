"""MySQL, and MariaDB where its words differ.

The copier's sessions run READ COMMITTED, strict, in UTC and with foreign key checks off: it copies key by key, and
cascades must not fire; orphans are a check of their own. Values travel as the server's own text.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import MySQLdb
import MySQLdb.cursors
from MySQLdb.constants import FIELD_TYPE

from fishladder import cells
from fishladder.cells import Row
from fishladder.errors import FatalError, RowError, TransientError
from fishladder.silence import CONNECT_SECONDS, SILENT_SECONDS, end_soon, keep_asking
from fishladder.stores.application import Application
from fishladder.stores.base import (
    Connect,
    Elsewhere,
    Finding,
    Relation,
    TableInfo,
    Triggers,
    Writer,
)
from fishladder.stores.mysql_bulk import BulkLoad, finding, is_allowed
from fishladder.stores.mysql_errors import HARMLESS, column_of, translated, waited_in_vain, without_values
from fishladder.stores.mysql_schema import (
    blockers,
    check_engine,
    creation,
    describe,
    folded,
    guards,
    holders,
    identities,
    inspect,
    installed_triggers,
    may_write,
    shapes,
    trigger_marks,
)
from fishladder.stores.mysql_triggers import KEY, NAME, trigger_texts
from fishladder.stores.mysql_types import Binary, MariaDbDialect, MySqlDialect
from fishladder.stores.mysql_upsert import MySqlSession
from fishladder.stores.sql import FIRST_ROWS, Guard, Session, named, percent_marks, rows_at_once
from fishladder.stores.sql_checks import MIGRATION, Checks, WholeTables, words_last

CHUNK_ROWS = 50_000
METADATA_WAIT = 60
"""Seconds that a statement waits for somebody who changes a table's definition."""
STREAM_WAIT = 3_600
"""Seconds that the server waits for somebody to take the next rows of a stream; they may be rejected one by one."""
INSTALL_TRIES = 30
"""How often a lock is asked for before the installation gives up, in seconds and their pauses: a minute."""
IDLE_SECONDS = 600
"""How long a copier's transaction may stand still between two statements; then the server ends its session.

A copier that hangs would keep its chunk, its shards and the fences for ``wait_timeout``, which is eight hours. It must
be longer than whatever lies between two statements of ours: at most what a source takes for a file's worth of rows
(mysql_bulk.py), two megabytes. What is ended too early has written nothing, and is repeated.
"""
ALONE_SECONDS = 60
"""The same while tables are locked as a whole: customers wait."""

TABLES = (
    f"fishladder_fence (cohort {NAME} PRIMARY KEY, writer {NAME} NOT NULL, epoch BIGINT NOT NULL, audit_head TEXT)",
    f"fishladder_home (entity {KEY} PRIMARY KEY, cohort {NAME} NOT NULL, root_key {KEY} NOT NULL, KEY (cohort),"
    " KEY (root_key))",
    f"fishladder_journal (id BIGINT AUTO_INCREMENT PRIMARY KEY, table_name {NAME} NOT NULL, row_key {KEY} NOT NULL,"
    f" entity {KEY}, cohort {NAME} NOT NULL, at DATETIME(6) NOT NULL, KEY (table_name, row_key))",
    f"fishladder_load (table_name {NAME} PRIMARY KEY, generation BIGINT NOT NULL, is_open TINYINT NOT NULL)",
    f"fishladder_chunk (table_name {NAME}, no BIGINT, generation BIGINT NOT NULL, token BIGINT NOT NULL,"
    " done TINYINT NOT NULL DEFAULT 0, row_count BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (table_name, no))",
    f"fishladder_migration (one INT PRIMARY KEY, name {NAME} NOT NULL)",
    "fishladder_ledger (one INT PRIMARY KEY, no BIGINT NOT NULL, word VARCHAR(64) NOT NULL)",
    "fishladder_shard (no INT PRIMARY KEY)",
    f"fishladder_touched (table_name {NAME}, row_key {KEY}, cohort {NAME} NOT NULL, attempt {NAME},"
    " PRIMARY KEY (table_name, row_key, attempt))",
    f"fishladder_applied (operation {NAME}, entity {KEY}, idempotency_key {NAME}, digest {NAME} NOT NULL,"
    " result MEDIUMBLOB, PRIMARY KEY (operation, entity, idempotency_key))",
)

SQL_MODE = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO"


def connect(**options: Any) -> Any:
    """A plain MySQLdb connection; the store sets everything else. Raises TransientError or FatalError."""
    with translated():
        return MySQLdb.connect(**{**PATIENCE, **options})


PATIENCE = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS, "write_timeout": SILENT_SECONDS}
"""What has to be said when connecting, so that nobody is waited for without an end."""


# One transaction ------------------------------------------------------------------------------------------------


class MySqlTransaction(MySqlSession):
    def __init__(self, store: MySqlStore, connection: Any, dialect: MySqlDialect) -> None:
        super().__init__(dialect, store.runner(connection))
        self.store = store
        self.connection = connection
        self.committed = False

    def guards(self, relation: Relation) -> Mapping[int, Guard]:
        found = self.store.guards(relation.name)
        return {at: found[field.column] for at, field in enumerate(relation.fields) if field.column in found}

    def write(self, sql: str, values: Sequence[Any]) -> None:
        """The server changes some values with no more than a warning; a row that it would change is refused."""
        longest = self.store.longest_statement
        length = sum(len(value) for value in values if isinstance(value, str | bytes)) * 2
        if length > longest or (not values and len(sql.encode()) > longest):
            raise RowError(f"a row is longer than max_allowed_packet ({longest} bytes) lets through")
        self.run(sql, values)
        if self.connection.warning_count():
            shown = self.run("SHOW WARNINGS", [])
            if not shown:
                raise RowError("the server warns and does not say of what: its max_error_count is 0")
            for level, code, text in shown:
                if code not in HARMLESS:
                    message = without_values(text.decode())
                    raise RowError(f"MySQL {level.decode()} {code.decode()}: {message}", column=column_of(message))

    def load(self, relation: Relation, batches: Iterable[Sequence[Row]]) -> int:
        if self.store.bulk is None:
            self.store.bulk = is_allowed(self.connection)
        if not self.store.bulk:
            raise RowError("LOAD DATA LOCAL is off at the server or for this client")
        guards, longest = self.guards(relation), self.store.longest_statement
        return BulkLoad(self.connection, self.dialect, relation, guards, longest).load(batches)

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
        self.run("RELEASE SAVEPOINT attempt", [])


# The store --------------------------------------------------------------------------------------------------------


class MySqlStore(WholeTables):
    """One MySQL or MariaDB schema. ``connect`` opens a new MySQLdb connection to it, as the copier."""

    kind = "mysql"
    ids_follow_rows = True
    chunk_rows = CHUNK_ROWS
    install_tries = INSTALL_TRIES

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._reading: Any = None
        self._writing: Any = None
        self._wait: float | None = None
        self._written = 0.0
        self._dialect: MySqlDialect | None = None
        self._guards: dict[str, dict[str, Guard]] = {}
        self.bulk: bool | None = None
        """Whether rows can be loaded the fast way; None: not asked yet."""
        self.longest_statement = 0

    # Connections

    def _open(self, *, autocommit: bool) -> Any:
        with translated():
            connection = self._connect()
            keep_asking(connection.fileno())
            connection.set_character_set("utf8mb4")
            connection.converter = {}  # cells are the server's own text
            connection.encoders = {**connection.encoders, Binary: Binary.literal}
            connection.autocommit(autocommit)
            mariadb = "mariadb" in connection.get_server_info().lower()
            settings = [
                f"sql_mode = '{SQL_MODE}'",
                "time_zone = '+00:00'",
                "foreign_key_checks = 0",
                f"lock_wait_timeout = {METADATA_WAIT}",
                # What a server or a DBA may have set for everybody: it would cut what is read and hide what is changed.
                "sql_select_limit = 18446744073709551615",
                "sql_notes = 1",
                "sql_safe_updates = 0",
                "max_statement_time = 0" if mariadb else "max_execution_time = 0",
            ]
            if not mariadb:
                settings.append("information_schema_stats_expiry = 0")
            if not autocommit:
                settings.append(f"wait_timeout = {IDLE_SECONDS}")
            cursor = connection.cursor(MySQLdb.cursors.Cursor)
            cursor.execute(f"SET SESSION {', '.join(settings)}")
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute("SELECT @@max_allowed_packet")
            self.longest_statement = int(cursor.fetchone()[0])
            connection.commit()
        if self._dialect is None:
            self._dialect = MariaDbDialect() if mariadb else MySqlDialect()
        return connection

    @property
    def dialect(self) -> MySqlDialect:
        if self._dialect is None:
            self.connection()
        assert self._dialect is not None
        return self._dialect

    def connection(self) -> Any:
        if self._reading is None:
            self._reading = self._open(autocommit=True)
        return self._reading

    def runner(self, connection: Any) -> Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]:
        def run(sql: str, parameters: Sequence[Any] = (), /) -> list[tuple[Any, ...]]:
            with translated():
                cursor = connection.cursor(MySQLdb.cursors.Cursor)
                if parameters:
                    cursor.execute(percent_marks(sql), list(parameters))
                else:
                    cursor.execute(sql)
                return list(cursor.fetchall())

        def run_or_name_the_holder(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
            try:
                return run(sql, parameters)
            except TransientError as error:
                if not waited_in_vain(error):
                    raise
                raise TransientError(f"{error}; {holders(run)}") from error

        return run_or_name_the_holder

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
    def _discard(connection: Any) -> None:
        if connection is not None:
            try:
                connection.close()
            except MySQLdb.Error:
                return  # it was lost already

    @contextmanager
    def read(self) -> Iterator[Session]:
        yield MySqlSession(self.dialect, self.run, self.batches)

    def batches(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A query's rows as they come, on a connection of their own: until the last one it can do nothing else."""
        connection = self._open(autocommit=True)
        try:
            with translated():
                cursor = connection.cursor(MySQLdb.cursors.SSCursor)
                cursor.execute(f"SET SESSION net_write_timeout = {STREAM_WAIT}")
                cursor.execute(percent_marks(sql), list(parameters))
            size = FIRST_ROWS
            while True:
                with translated():
                    found = cursor.fetchmany(size)
                if not found:
                    return
                yield found
                size = rows_at_once(found)
        finally:
            self._discard(connection)

    @contextmanager
    def begin(self, *, wait: float | None = None) -> Iterator[MySqlTransaction]:
        if self._writing is not None and time.monotonic() - self._written > IDLE_SECONDS / 2:
            self._writing = self._discard(self._writing)  # the server has ended it, or soon will
        if self._writing is None:
            self._writing, self._wait = self._open(autocommit=False), None
        connection, dialect = self._writing, self.dialect
        transaction = MySqlTransaction(self, connection, _without_waiting(dialect) if wait == 0 else dialect)
        try:
            if wait != self._wait:
                seconds = "DEFAULT" if wait is None else str(max(1, round(wait)))
                transaction.run(f"SET SESSION innodb_lock_wait_timeout = {seconds}", [])
                self._wait = wait
            with translated():
                connection.begin()
            yield transaction
        finally:
            if not transaction.committed:
                self._undo(connection)
            self._written = time.monotonic()

    def _undo(self, connection: Any) -> None:
        try:
            connection.rollback()
        except MySQLdb.Error:  # the server undoes what a lost connection left open
            self._discard(connection)
            self._writing = None

    def close(self) -> None:
        self._reading = self._discard(self._reading)
        self._writing = self._discard(self._writing)

    # Tables as declared

    @property
    def folds_names(self) -> bool:
        return self.run("SELECT @@lower_case_table_names") != [(b"0",)]

    def describe(self) -> dict[str, TableInfo]:
        return describe(self.run)

    def create_table(self, table: TableInfo) -> None:
        self.run(creation(self.dialect, table))

    def guards(self, table: str) -> Mapping[str, Guard]:
        """By column, what to refuse before the server changes it without an error."""
        if table not in self._guards:
            self._guards[table] = guards(self.run, table)
        return self._guards[table]

    # Reads over whole tables

    def _checks(self) -> Checks:
        return Checks(Session(self.dialect, self.run))

    def query(self, sql: str, parameters: Mapping[str, object]) -> list[tuple[str | None, ...]]:
        statement, values = named(sql, parameters)
        with self._reconnecting(), translated():
            cursor = self.connection().cursor(MySQLdb.cursors.Cursor)
            cursor.execute(percent_marks(statement), values)
            numbers = [column[1] in _NUMBERS for column in cursor.description]
            lines = cursor.fetchall()
        return [
            tuple(
                None if cell is None else cells.decimal_text(cell.decode(), None) if number else cell.decode()
                for cell, number in zip(line, numbers, strict=True)
            )
            for line in lines
        ]

    # Fishladder's tables

    def account(self) -> str:
        return self.run("SELECT USER()")[0][0].decode().rpartition("@")[0]

    def inspect(self) -> list[Finding]:
        return [*inspect(self.run), finding(self.connection())]

    def is_behind(self, other: Any) -> bool:
        """A lock by name is the whole server's, and asks for no right."""
        name = f"fishladder {secrets.token_hex(16)}"
        self.run("SELECT GET_LOCK(?, 0)", [name])
        try:
            ((held,),) = other.run("SELECT IS_USED_LOCK(?) IS NOT NULL", [name])
        finally:
            self.run("SELECT RELEASE_LOCK(?)", [name])
        schema = "SELECT DATABASE()"
        return bool(held == b"1" and self.run(schema) == other.run(schema))

    def may_write(self, account: str) -> bool | None:
        return may_write(self.run, account)

    def own_tables(self) -> list[str]:
        sql = (
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
            " AND table_name LIKE 'fishladder!_%' ESCAPE '!'"
        )
        return words_last(name.decode() for (name,) in self.run(sql))

    def install_tables(self) -> None:
        for table in TABLES:
            self.run(f"CREATE TABLE IF NOT EXISTS {table} ENGINE=InnoDB")
        self.run("INSERT IGNORE INTO fishladder_ledger VALUES (1, 0, '-')")
        self.run(f"INSERT IGNORE INTO fishladder_shard VALUES {', '.join(f'({no})' for no in range(cells.SHARDS))}")

    def installed_for(self) -> str | None:
        return self._checks().migration() if MIGRATION in self.own_tables() else None

    def install_name(self, migration: str) -> None:
        self.run("INSERT IGNORE INTO fishladder_migration VALUES (1, ?)", [migration])

    def install_fences(self, cohorts: Iterable[str], writer: Writer) -> None:
        for cohort in cohorts:
            self.run("INSERT IGNORE INTO fishladder_fence VALUES (?, ?, 1, NULL)", [cohort, writer])

    def install_load(self, tables: Iterable[str], *, open: bool) -> None:
        for table in tables:
            self.run("INSERT IGNORE INTO fishladder_load VALUES (?, 1, ?)", [table, int(open)])

    def raise_token(self, table: str, no: int, generation: int, token: int) -> None:
        sql = "INSERT IGNORE INTO fishladder_chunk (table_name, no, generation, token) VALUES (?, ?, ?, ?)"
        self.run(sql, [table, no, generation, token])
        sql = (
            "UPDATE fishladder_chunk SET done = 0, row_count = 0, token = ?, generation = ?"
            " WHERE table_name = ? AND no = ? AND (generation < ? OR (generation = ? AND NOT done AND token < ?))"
        )
        self.run(sql, [token, generation, table, no, generation, generation, token])

    def install_triggers(self, tables: Sequence[Triggers]) -> None:
        user, installed = self.account(), installed_triggers(self.run)
        for table in tables:
            relation = table.relation
            check_engine(self.run, relation.name)
            wanted = list(trigger_texts(self.dialect, table, user))
            if _are_among(installed, relation, wanted):
                continue
            on, there = self.dialect.quote(relation.name), [name for name, _, _ in wanted if name in installed]
            # All, and if they exist: a try that lost its connection may have made or dropped any of them.
            statements = [f"DROP TRIGGER IF EXISTS {self.dialect.quote(name)}" for name, _, _ in wanted]
            statements += [
                f"CREATE TRIGGER {self.dialect.quote(name)} {moment} ON {on} FOR EACH ROW {body}"
                for name, moment, body in wanted
            ]
            # A table that was renamed took its triggers along.
            strangers = {installed[name][0] for name in there} - {relation.name}
            self._alone_with([relation.name, *sorted(strangers)], statements)

    def has_triggers(self, tables: Sequence[Triggers]) -> bool:
        user, installed = self.account(), installed_triggers(self.run)
        return all(_are_among(installed, one.relation, trigger_texts(self.dialect, one, user)) for one in tables)

    def _alone_with(self, tables: Sequence[str], statements: Sequence[str]) -> None:
        """Run statements while nobody changes the tables, so that no change slips between two triggers.

        The lock waits for every open transaction on a table, and whoever comes then waits behind it: for a second
        at most; then everybody has a second before the next try.
        """
        locks = ", ".join(f"{self.dialect.quote(table)} WRITE" for table in tables)
        for _ in range(self.install_tries):
            try:
                self.run(f"SET SESSION lock_wait_timeout = 1, wait_timeout = {ALONE_SECONDS}")
                self.run(f"LOCK TABLES {locks}")
                for statement in statements:
                    self.run(statement)
                return
            except TransientError as error:
                last = error
            finally:
                self.run("UNLOCK TABLES")
                self.run(f"SET SESSION lock_wait_timeout = {METADATA_WAIT}, wait_timeout = DEFAULT")
            self.run("DO SLEEP(1)")
        who = " and ".join(blockers(self.run, table) for table in tables)
        raise TransientError(f"{tables[0]}: its triggers cannot be changed while {who}: {last}") from last

    def backfill_homes(
        self, root: Relation, after: bytes | None, limit: int, *, elsewhere: Elsewhere | None = None
    ) -> bytes | None:
        return self._checks().backfill_homes(root, after, limit, elsewhere=elsewhere)

    def cohorts(self, root: Relation) -> dict[str | None, int]:
        # Grouped by bytes: under a folding collation 'nz' and 'NZ' would be one.
        text = self.dialect.cohort_text(root, "")
        found = self.run(f"SELECT {text}, count(*) FROM {self.dialect.quote(root.name)} GROUP BY 1")
        return {None if cohort is None else cohort.decode(): int(count) for cohort, count in found}

    def coverage(self, tables: Sequence[Relation]) -> dict[str, str]:
        if not tables:
            return {}
        names = sorted({relation.name for relation in tables})
        ids, columns = identities(self.run, self.dialect.tables_view, names), shapes(self.run, names)
        for name in names:
            if name in columns and name not in ids:
                raise FatalError(f"{name}: InnoDB's id of the table cannot be found, so a TRUNCATE would go unseen")
        triggers = trigger_marks(self.run)
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
        sql = "SELECT TIMESTAMPDIFF(MICROSECOND, at, UTC_TIMESTAMP(6)) FROM fishladder_journal ORDER BY id LIMIT 1"
        found = self.run(sql)
        return max(0.0, int(found[0][0]) / 1_000_000) if found else None

    def generated_from(self, relation: Relation) -> int | None:
        found = self.run("SHOW CREATE TABLE " + self.dialect.quote(relation.name))[0][1].decode()
        if " AUTO_INCREMENT" not in found:
            return None
        next_id = re.search(r"\) ENGINE=.*AUTO_INCREMENT=(\d+)", found)
        return int(next_id[1]) if next_id else 1

    def generate_from(self, relation: Relation, first: int) -> None:
        if (self.generated_from(relation) or 1) < first:
            self.run(f"ALTER TABLE {self.dialect.quote(relation.name)} AUTO_INCREMENT = {int(first)}")

    def running_threads(self) -> int | None:
        return int(self.run("SHOW GLOBAL STATUS LIKE 'Threads_running'")[0][1])

    def replica_lag(self) -> float | None:
        with self._reconnecting(), translated():
            cursor = self.connection().cursor(MySQLdb.cursors.DictCursor)
            cursor.execute("SHOW REPLICA STATUS")
            lines = cursor.fetchall()
        # The older word is MariaDB's. NULL: it is configured, and it does not run.
        lags = [line.get("Seconds_Behind_Source", line.get("Seconds_Behind_Master")) for line in lines]
        return None if not lags or None in lags else float(max(int(lag) for lag in lags))

    def uninstall(self) -> None:
        of_table: dict[str, list[str]] = {}
        for name, (table, _) in installed_triggers(self.run).items():
            of_table.setdefault(table, []).append(f"DROP TRIGGER {self.dialect.quote(name)}")
        for table, statements in of_table.items():
            self._alone_with([table], statements)
        for name in self.own_tables():
            self.run(f"DROP TABLE IF EXISTS {self.dialect.quote(name)}")


_NUMBERS = {
    FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL, FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.LONG,
    FIELD_TYPE.LONGLONG, FIELD_TYPE.INT24, FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE,
}  # fmt: skip


def _are_among(
    installed: Mapping[str, tuple[str, str]], relation: Relation, wanted: Iterable[tuple[str, str, str]]
) -> bool:
    return all(installed.get(name) == (relation.name, folded(body)) for name, _, body in wanted)


def _without_waiting(dialect: MySqlDialect) -> MySqlDialect:
    other = type(dialect)()
    other.share, other.exclusive = f"{dialect.share} NOWAIT", f"{dialect.exclusive} NOWAIT"
    return other


class MySqlApplication(Application):
    """``connect`` opens a ``MySQLdb`` connection."""

    begin = begin_reading = ""
    errors = translated

    def _take(self) -> Any:
        connection = super()._take()
        with translated():
            connection.autocommit(False)  # asks the server only where the application has changed it
        return connection

    def prepare(self, connection: Any) -> None:
        end_soon(connection.fileno())
        if "MariaDB" in connection.get_server_info():
            self.shared = " LOCK IN SHARE MODE"
