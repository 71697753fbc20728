"""MySQL, and MariaDB where its words differ.

The copier's sessions run READ COMMITTED, strict, in UTC and with foreign key checks off: it copies key by key, and
cascades must not fire; orphans are a check of their own. Values travel as the server's own text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import MySQLdb
from MySQLdb.constants import FIELD_TYPE

from fishladder import cells
from fishladder.cells import NO_HOME, SHARED, Cell, LogicalType
from fishladder.errors import AmbiguousError, FatalError, FenceError, RowError, TransientError
from fishladder.stores.base import (
    HOME_TABLE,
    Cascade,
    Column,
    Connect,
    Fence,
    Field,
    Finding,
    ForeignKey,
    LoadState,
    Orphan,
    Relation,
    TableInfo,
    Triggers,
    Writer,
)
from fishladder.stores.sql import Checks, Dialect, Session, named, read_fences

CHUNK_ROWS = 50_000
STATEMENT_BYTES = 1_000_000

_KEY = "VARBINARY(512)"
_NAME = "VARBINARY(255)"
TABLES = (
    f"fishladder_fence (cohort {_NAME} PRIMARY KEY, writer {_NAME} NOT NULL, epoch BIGINT NOT NULL, audit_head TEXT)",
    f"fishladder_home (entity {_KEY} PRIMARY KEY, cohort {_NAME} NOT NULL, root_key {_KEY} NOT NULL, KEY (cohort))",
    f"fishladder_journal (id BIGINT AUTO_INCREMENT PRIMARY KEY, table_name {_NAME} NOT NULL, row_key {_KEY} NOT NULL,"
    f" entity {_KEY}, cohort {_NAME} NOT NULL, at DATETIME(6) NOT NULL, KEY (table_name, row_key))",
    f"fishladder_load (table_name {_NAME} PRIMARY KEY, generation BIGINT NOT NULL, is_open TINYINT NOT NULL)",
    f"fishladder_chunk (table_name {_NAME}, no BIGINT, generation BIGINT NOT NULL, token BIGINT NOT NULL,"
    " done TINYINT NOT NULL DEFAULT 0, row_count BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (table_name, no))",
    "fishladder_shard (no INT PRIMARY KEY)",
    f"fishladder_touched (table_name {_NAME}, row_key {_KEY}, cohort {_NAME} NOT NULL, attempt {_NAME},"
    " PRIMARY KEY (table_name, row_key, attempt))",
    f"fishladder_applied (operation {_NAME}, entity {_KEY}, idempotency_key {_NAME}, digest {_NAME} NOT NULL,"
    " result MEDIUMBLOB, PRIMARY KEY (operation, entity, idempotency_key))",
)

SQL_MODE = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO"


def connect(**options: Any) -> Any:
    """A plain MySQLdb connection; the store sets everything else."""
    return MySQLdb.connect(**options)


class MySqlDialect(Dialect):
    share = " FOR SHARE"
    exclusive = " FOR UPDATE"

    def quote(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def text(self, column: str, field: Field) -> str:
        kind, size = field.type.kind, field.type.size
        if kind == "bytes":
            return f"LOWER(HEX({column}))"
        if kind == "uuid":
            return f"LOWER({column})"
        if kind == "boolean":
            return f"({column} + 0)"
        if kind in ("float", "double"):
            return f"CAST({column} AS DOUBLE)"
        if kind == "decimal":
            return self._decimal(column, field.type.scale)
        if kind == "date":
            return f"IF(TIME({column}) = 0, DATE({column}), {column})" if field.native != "date" else column
        if kind in ("timestamp", "timestamptz"):
            return self._timestamp(column, size)
        return column

    def _decimal(self, column: str, scale: int | None) -> str:
        if scale is None:
            return f"IF(LOCATE('.', {column}), TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {column})), {column})"
        return f"IF({column} = TRUNCATE({column}, {scale}), CAST({column} AS DECIMAL(65,{scale})), {column})"

    def _timestamp(self, column: str, digits: int | None) -> str:
        text = f"CAST({column} AS CHAR)"
        if digits is None:
            return f"IF(LOCATE('.', {text}), TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {text})), {text})"
        left = 19 if digits == 0 else 20 + digits
        return f"IF(MICROSECOND({column}) % {10 ** (6 - min(digits, 6))} = 0, LEFT({text}, {left}), {text})"

    def plain_text(self, column: str, field: Field) -> str:
        if field.type.kind in ("string", "uuid"):
            return f"CONVERT({self.text(column, field)} USING utf8mb4)"
        return self.text(column, field)

    def finish(self, field: Field) -> Callable[[bytes], bytes] | None:
        if field.type.kind == "json":
            return lambda cell: cells.json_text(cell.decode()).encode()
        if field.type.kind in ("float", "double"):
            return lambda cell: cells.float_text(cell.decode(), field.type.kind).encode()
        return None

    def bind(self, cell: Cell, field: Field) -> Any:
        if cell is None:
            return None
        return bytes.fromhex(cell.decode()) if field.type.kind == "bytes" else cell.decode()

    def key_piece(self, text: str) -> str:
        return f"CONCAT(LENGTH({text}), ':', {text})"

    def concat(self, pieces: Sequence[str]) -> str:
        return f"CONCAT({', '.join(pieces)})"


class MariaDbDialect(MySqlDialect):
    share = " LOCK IN SHARE MODE"


_INTEGERS = {"tinyint": 3, "smallint": 5, "mediumint": 8, "int": 10, "bigint": 19}


def logical_type(data_type: str, column_type: str, length: int | None, digits: int | None, scale: int | None) -> LogicalType | None:
    """What a column of ``information_schema.columns`` can hold; ``digits``: of a number or a second's fraction."""
    if column_type.startswith("tinyint(1)") or (data_type == "bit" and digits == 1):
        return LogicalType(kind="boolean")
    if data_type in _INTEGERS:
        return LogicalType(kind="integer", size=_INTEGERS[data_type] + (data_type == "bigint" and "unsigned" in column_type))
    if data_type == "decimal":
        return LogicalType(kind="decimal", size=digits, scale=scale)
    if data_type in ("char", "varchar", "text", "tinytext", "mediumtext", "longtext", "enum"):
        return LogicalType(kind="string", size=None if data_type.endswith("text") else length)
    if data_type in ("varbinary", "binary", "blob", "tinyblob", "mediumblob", "longblob"):
        return LogicalType(kind="bytes", size=None if data_type.endswith("blob") else length)
    if data_type in ("datetime", "timestamp"):
        return LogicalType(kind="timestamp" if data_type == "datetime" else "timestamptz", size=digits or 0)
    if data_type in ("date", "json", "float", "double"):
        return LogicalType(kind=data_type)  # type: ignore[arg-type]
    return None


def declared_type(type_: LogicalType, *, key: bool) -> str:
    """The column type for a logical type; keys are compared byte for byte and without padding."""
    kind, size = type_.kind, type_.size
    if kind == "integer":
        return "BIGINT"
    if kind == "decimal":
        return f"DECIMAL({size or 65},{type_.scale if type_.scale is not None else 30})"
    if kind == "string":
        if size is None or size > 8_000:
            return "VARCHAR(255) COLLATE utf8mb4_0900_bin" if key else "LONGTEXT"
        return f"VARCHAR({size}){' COLLATE utf8mb4_0900_bin' if key else ''}"
    if kind == "bytes":
        return f"VARBINARY({size or 512})" if key else "LONGBLOB" if size is None or size > 32_000 else f"VARBINARY({size})"
    if kind in ("timestamp", "timestamptz"):
        return f"{'DATETIME' if kind == 'timestamp' else 'TIMESTAMP'}({6 if size is None else min(size, 6)})"
    words = {"boolean": "TINYINT(1)", "date": "DATE", "uuid": "CHAR(36) COLLATE utf8mb4_0900_bin", "json": "JSON"}
    return words.get(kind, kind.upper())


_LOCKED = {1205, 1213, 3572, 1040, 1203, 2002, 2003, 1053, 1028}
_LOST = {2006, 2013, 2055}
_ROW = {1048, 1062, 1169, 1216, 1217, 1264, 1265, 1292, 1364, 1366, 1406, 1451, 1452, 1525, 1586, 3140, 3141, 3819, 3988, 4025}


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
    """MySQL's errors in fishladder's words; values that the server quotes are left out."""
    try:
        yield
    except (MySQLdb.Error, MySQLdb.Warning) as error:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        message = _without_values(str(error.args[1] if len(error.args) > 1 else error))
        said = f"MySQL {code}: {message}"
        if code in _LOST:
            if committing:
                raise AmbiguousError(f"the connection was lost in a commit: {said}") from error
            raise TransientError(said) from error
        if code in _LOCKED:
            raise TransientError(said) from error
        if code == 1644 and "fishladder:" in message:
            raise FenceError(message) from error
        if code in _ROW:
            column = re.search(r"column '([^']+)'", message, re.I)
            raise RowError(said, column=column[1] if column else None, unique=code in (1062, 1586)) from error
        raise FatalError(said) from error


def _without_values(message: str) -> str:
    message = re.sub(r"(Duplicate entry) '.*' (for key)", r"\1 \2", message, flags=re.S)
    return re.sub(r"(value): '.*?' (for column)", r"\1 \2", message, flags=re.S)


class MySqlTransaction(Session):
    def __init__(self, store: MySqlStore, connection: Any) -> None:
        super().__init__(store.dialect, store.runner(connection))
        self.connection = connection
        self.committed = False

    def write(self, sql: str, values: Sequence[Any]) -> None:
        """The server changes some values with no more than a warning; a row that it would change is refused."""
        self.run(sql, values)
        if self.connection.warning_count():
            level, _, message = self.run("SHOW WARNINGS", [])[0]
            raise RowError(f"MySQL {level.decode()}: {_without_values(message.decode())}")

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


class MySqlStore:
    """One MySQL or MariaDB schema. ``connect`` opens a new MySQLdb connection to it, as the copier."""

    kind = "mysql"
    chunk_rows = CHUNK_ROWS

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._reading: Any = None
        self._writing: Any = None
        self._wait: float | None = None
        self._dialect: MySqlDialect | None = None

    # Connections

    def _open(self, *, autocommit: bool) -> Any:
        with translated():
            connection = self._connect()
            connection.set_character_set("utf8mb4")
            connection.converter = {}  # cells are the server's own text
            connection.autocommit(autocommit)
            cursor = connection.cursor()
            cursor.execute(
                f"SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00', foreign_key_checks = 0, max_execution_time = 0"
                if not self._is_mariadb(connection)
                else f"SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00', foreign_key_checks = 0"
            )
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.commit()
        return connection

    @staticmethod
    def _is_mariadb(connection: Any) -> bool:
        return "mariadb" in connection.get_server_info().lower()

    @property
    def dialect(self) -> MySqlDialect:
        if self._dialect is None:
            self._dialect = MariaDbDialect() if self._is_mariadb(self.connection()) else MySqlDialect()
        return self._dialect

    def connection(self) -> Any:
        if self._reading is None:
            self._reading = self._open(autocommit=True)
        return self._reading

    def runner(self, connection: Any) -> Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]:
        def run(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
            with translated():
                cursor = connection.cursor()
                if parameters:
                    cursor.execute(sql.replace("%", "%%").replace("?", "%s"), list(parameters))
                else:
                    cursor.execute(sql)
                return list(cursor.fetchall())

        return run

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self.runner(self.connection())(sql, parameters)
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
        yield Session(self.dialect, self.run)

    @contextmanager
    def begin(self, *, wait: float | None = None) -> Iterator[MySqlTransaction]:
        if self._writing is None:
            self._writing, self._wait = self._open(autocommit=False), None
        connection = self._writing
        transaction = MySqlTransaction(self, connection)
        try:
            if wait != self._wait:
                seconds = "DEFAULT" if wait is None else str(max(1, round(wait)))
                transaction.run(f"SET SESSION innodb_lock_wait_timeout = {seconds}", [])
                self._wait = wait
            transaction.dialect = self._without_waiting() if wait == 0 else self.dialect
            with translated():
                connection.begin()
            yield transaction
        finally:
            if not transaction.committed:
                self._undo(connection)

    def _without_waiting(self) -> MySqlDialect:
        dialect = type(self.dialect)()
        dialect.share, dialect.exclusive = f"{dialect.share} NOWAIT", f"{dialect.exclusive} NOWAIT"
        return dialect

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

    def describe(self) -> dict[str, TableInfo]:
        tables = self.run(
            "SELECT table_name, COALESCE(table_rows, 0), COALESCE(data_length + index_length, 0) FROM"
            " information_schema.tables WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' ORDER BY table_name"
        )
        columns = self._columns()
        keys, uniques = self._indexes()
        foreign_keys = self._foreign_keys()
        found = {}
        for raw, rows, size in tables:
            name = raw.decode()
            if name.startswith("fishladder_"):
                continue
            found[name] = TableInfo(
                name=name,
                columns=tuple(columns.get(name, ())),
                key=keys.get(name, ()),
                uniques=tuple(uniques.get(name, ())),
                foreign_keys=tuple(foreign_keys.get(name, ())),
                rows=int(rows),
                bytes=int(size),
            )
        return found

    def _columns(self) -> dict[str, list[Column]]:
        found: dict[str, list[Column]] = {}
        lines = self.run(
            "SELECT table_name, column_name, data_type, column_type, is_nullable, extra, collation_name,"
            " character_maximum_length, COALESCE(numeric_precision, datetime_precision), numeric_scale"
            " FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY table_name, ordinal_position"
        )
        for line in lines:
            table, name, data_type, column_type, nullable, extra, collation, *sizes = (
                None if value is None else value.decode() for value in line
            )
            assert table and name and data_type and column_type
            length, digits, scale = (None if size is None else int(size) for size in sizes)
            found.setdefault(table, []).append(
                Column(
                    name=name,
                    native=column_type,
                    type=logical_type(data_type.lower(), column_type.lower(), length, digits, scale),
                    nullable=nullable == "YES",
                    generated="auto_increment" in (extra or ""),
                    computed="GENERATED" in (extra or "") and "DEFAULT_GENERATED" not in (extra or ""),
                    bytewise=collation is None or collation in ("binary", "utf8mb4_0900_bin", "utf8mb4_nopad_bin"),
                )
            )
        return found

    def _indexes(self) -> tuple[dict[str, tuple[str, ...]], dict[str, list[tuple[str, ...]]]]:
        keys: dict[str, tuple[str, ...]] = {}
        uniques: dict[str, list[tuple[str, ...]]] = {}
        lines = self.run(
            "SELECT table_name, index_name, GROUP_CONCAT(column_name ORDER BY seq_in_index SEPARATOR '\\0'),"
            " SUM(column_name IS NULL OR sub_part IS NOT NULL) FROM information_schema.statistics"
            " WHERE table_schema = DATABASE() AND non_unique = 0 GROUP BY table_name, index_name ORDER BY 1, 2"
        )
        for table, index, columns, odd in lines:
            if int(odd):
                continue
            names = tuple(columns.decode().split("\0"))
            if index == b"PRIMARY":
                keys[table.decode()] = names
            else:
                uniques.setdefault(table.decode(), []).append(names)
        return keys, uniques

    def _foreign_keys(self) -> dict[str, list[ForeignKey]]:
        found: dict[str, list[ForeignKey]] = {}
        lines = self.run(
            "SELECT k.table_name, k.referenced_table_name, r.delete_rule, r.update_rule,"
            " GROUP_CONCAT(k.column_name ORDER BY k.ordinal_position SEPARATOR '\\0'),"
            " GROUP_CONCAT(k.referenced_column_name ORDER BY k.ordinal_position SEPARATOR '\\0')"
            " FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r"
            " ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name"
            " AND r.table_name = k.table_name WHERE k.table_schema = DATABASE() AND k.referenced_table_name IS NOT NULL"
            " GROUP BY k.table_name, k.constraint_name, k.referenced_table_name, r.delete_rule, r.update_rule ORDER BY 1"
        )
        for table, parent, delete, update, columns, above in lines:
            key = ForeignKey(
                columns=tuple(columns.decode().split("\0")),
                parent=parent.decode(),
                parent_columns=tuple(above.decode().split("\0")),
                on_delete=delete.decode(),
                on_update=update.decode(),
            )
            found.setdefault(table.decode(), []).append(key)
        return found

    def create_table(self, table: TableInfo) -> None:
        quote = self.dialect.quote
        parts: list[str] = []
        keyed = {*table.key, *(column for unique in table.uniques for column in unique)}
        keyed |= {column for key in table.foreign_keys for column in key.columns}
        for column in table.columns:
            if column.type is None:
                raise FatalError(f"{table.name}.{column.name}: {column.native} has no type here; create the table by hand")
            type_ = declared_type(column.type, key=column.name in keyed)
            number = " AUTO_INCREMENT" if column.generated and table.key == (column.name,) else ""
            parts.append(f"{quote(column.name)} {type_} {'NULL' if column.nullable else 'NOT NULL'}{number}")
        parts.append(f"PRIMARY KEY ({', '.join(map(quote, table.key))})")
        parts += [f"UNIQUE ({', '.join(map(quote, unique))})" for unique in table.uniques]
        for key in table.foreign_keys:
            rules = f"ON DELETE {_rule(key.on_delete)} ON UPDATE {_rule(key.on_update)}"
            parts.append(
                f"FOREIGN KEY ({', '.join(map(quote, key.columns))}) REFERENCES {quote(key.parent)}"
                f" ({', '.join(map(quote, key.parent_columns))}) {rules}"
            )
        self.run(f"CREATE TABLE {quote(table.name)} ({', '.join(parts)}) ENGINE=InnoDB CHARACTER SET utf8mb4")

    # Reads over whole tables

    def _checks(self) -> Checks:
        return Checks(Session(self.dialect, self.run))

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
        statement, values = named(sql, parameters)
        with translated():
            cursor = self.connection().cursor()
            cursor.execute(statement.replace("%", "%%").replace("?", "%s"), values)
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
        findings = [
            _expect("schema", self.run("SELECT DATABASE()")[0][0] is not None, "the connection names a schema"),
            _expect(
                "sql_mode",
                "STRICT_" in self.run("SELECT @@GLOBAL.sql_mode")[0][0].decode(),
                "strict",
                "is not strict: the application's own writes may be changed in silence; add STRICT_TRANS_TABLES",
                "warn",
            ),
            _expect(
                "innodb_native_foreign_keys",
                all(value != b"ON" for _, value in self.run("SHOW VARIABLES LIKE 'innodb_native_foreign_keys'")),
                "off, as cascades are journaled by triggers",
            ),
        ]
        granted = " ".join(line[0].decode() for line in self.run("SHOW GRANTS"))
        everything = "ALL PRIVILEGES ON *.*" in granted
        for privilege, why in (
            ("TRIGGER", "to install triggers"),
            ("CREATE", "to create fishladder's tables"),
            ("PROCESS", "to see that a table was not truncated or swapped (INNODB_TABLES)"),
        ):
            has = everything or privilege in granted or ("ALL PRIVILEGES ON" in granted and privilege != "PROCESS")
            scope = "*.*" if privilege == "PROCESS" else "the schema"
            findings.append(
                _expect(f"privilege {privilege}", has, "granted", f"is needed {why}: GRANT {privilege} ON {scope} TO this account")
            )
        return findings

    def install_tables(self) -> None:
        for table in TABLES:
            self.run(f"CREATE TABLE IF NOT EXISTS {table} ENGINE=InnoDB")
        self.run(f"INSERT IGNORE INTO fishladder_shard VALUES {', '.join(f'({no})' for no in range(cells.SHARDS))}")

    def install_fences(self, cohorts: Iterable[str], writer: Writer) -> None:
        for cohort in cohorts:
            self.run("INSERT IGNORE INTO fishladder_fence VALUES (?, ?, 1, NULL)", [cohort, writer])

    def install_load(self, tables: Iterable[str], *, open: bool) -> None:
        for table in tables:
            self.run("INSERT IGNORE INTO fishladder_load VALUES (?, 1, ?)", [table, int(open)])

    def raise_token(self, table: str, no: int, generation: int, token: int) -> None:
        sql = "INSERT IGNORE INTO fishladder_chunk (table_name, no, generation, token) VALUES (?, ?, ?, ?)"
        self.run(sql, [table, no, generation, token])
        # ``done`` and ``token`` are compared before they are set: assignments run from left to right.
        sql = (
            "UPDATE fishladder_chunk SET done = 0, token = ?, generation = ? WHERE table_name = ? AND no = ?"
            " AND (generation < ? OR (generation = ? AND NOT done AND token < ?))"
        )
        self.run(sql, [token, generation, table, no, generation, generation, token])

    def install_triggers(self, tables: Sequence[Triggers]) -> None:
        user = self.account()
        installed = {
            name.decode(): _folded(body.decode())
            for name, body in self.run("SELECT trigger_name, action_statement FROM information_schema.triggers WHERE trigger_schema = DATABASE()")
        }
        for table in tables:
            wanted = list(_trigger_texts(self.dialect, table, user))
            if all(installed.get(name) == _folded(body) for name, _, body in wanted):
                continue
            self._replace_triggers(table.relation, wanted, installed)

    def _replace_triggers(self, relation: Relation, wanted: Sequence[tuple[str, str, str]], installed: Mapping[str, str]) -> None:
        """Under a lock of the table, so that no change slips between the old trigger and the new one."""
        table = self.dialect.quote(relation.name)
        last: TransientError | None = None
        for _ in range(_INSTALL_TRIES):
            try:
                self.run("SET SESSION lock_wait_timeout = 1")  # so long everyone may queue behind us, not longer
                self.run(f"LOCK TABLES {table} WRITE")
                for name, when, body in wanted:
                    if name in installed:
                        self.run(f"DROP TRIGGER IF EXISTS {self.dialect.quote(name)}")
                    self.run(f"CREATE TRIGGER {self.dialect.quote(name)} {when} ON {table} FOR EACH ROW {body}")
                return
            except TransientError as error:
                last = error
            finally:
                self.run("UNLOCK TABLES")
                self.run("SET SESSION lock_wait_timeout = DEFAULT")
        raise TransientError(f"{relation.name}: its triggers could not be installed, for {self._blockers(relation)}: {last}") from last

    def _blockers(self, relation: Relation) -> str:
        sql = (
            "SELECT t.processlist_id, t.processlist_user, t.processlist_time FROM performance_schema.metadata_locks l"
            " JOIN performance_schema.threads t ON t.thread_id = l.owner_thread_id WHERE l.object_schema = DATABASE()"
            " AND l.object_name = ? AND l.lock_status = 'GRANTED' AND t.processlist_id <> CONNECTION_ID() LIMIT 5"
        )
        try:
            found = self.run(sql, [relation.name])
        except FatalError:
            return "open transactions (performance_schema cannot be read to name them)"
        sessions = [f"session {no.decode()} of {(user or b'?').decode()}" for no, user, _ in found]
        return f"{', '.join(sessions) or 'a session'} holds the table open"

    def backfill_homes(self, root: Relation, after: bytes | None, limit: int) -> bytes | None:
        assert root.entity is not None and root.root_cohort is not None
        quote, session = self.dialect.quote, self._checks().session
        key = session._key_columns(root, "t.")[0]
        where, parameters = "", []
        if after is not None:
            where, parameters = f"WHERE {key} > ?", session._key_parameters(root, after)
        some = f"SELECT * FROM {quote(root.name)} t {where} ORDER BY {key} LIMIT ?"
        plain = self.dialect.plain_text(key, root.fields[root.key[0]])
        self.run(
            "INSERT IGNORE INTO fishladder_home (entity, cohort, root_key)"
            f" SELECT {self.dialect.entity_sql(root.entity, 't')}, {_known_cohort(f't.{quote(root.root_cohort)}')}, {plain}"
            f" FROM ({some}) t",
            [*parameters, limit],
        )
        last = self.run(f"SELECT {self.dialect.key_sql(root, 't')} FROM ({some}) t ORDER BY {key} DESC LIMIT 1", [*parameters, limit])
        return last[0][0] if last else None

    def cohorts(self, root: Relation) -> dict[str | None, int]:
        column = self.dialect.quote(root.root_cohort or "")
        # Grouped by bytes: under a folding collation 'nz' and 'NZ' would be one.
        found = self.run(f"SELECT CAST({column} AS BINARY), count(*) FROM {self.dialect.quote(root.name)} GROUP BY 1")
        return {None if cohort is None else cohort.decode(): int(count) for cohort, count in found}

    def coverage(self, tables: Sequence[Relation]) -> dict[str, str]:
        if not tables:
            return {}
        schema = self.run("SELECT DATABASE()")[0][0].decode()
        names = {_file_name(f"{schema}/{relation.name}"): relation.name for relation in tables}
        view = "innodb_sys_tables" if isinstance(self.dialect, MariaDbDialect) else "innodb_tables"
        sql = f"SELECT name, table_id FROM information_schema.{view} WHERE name IN ({', '.join('?' * len(names))})"
        ids = {names[name.decode()]: number for name, number in self.run(sql, list(names))}
        triggers: dict[bytes, list[str]] = {}
        for table, name, when, event, body in self.run(
            "SELECT event_object_table, trigger_name, action_timing, event_manipulation, action_statement"
            " FROM information_schema.triggers WHERE trigger_schema = DATABASE() AND trigger_name LIKE 'fishladder!_%' ESCAPE '!'"
            " ORDER BY trigger_name"
        ):
            triggers.setdefault(table, []).append(f"{name!r} {when!r} {event!r} {body!r}")
        columns = self._columns()
        found = {}
        for relation in tables:
            shape = [f"{column.name} {column.native}" for column in columns.get(relation.name, [])]
            parts = [repr(ids.get(relation.name)), *shape, *triggers.get(relation.name.encode(), [])]
            found[relation.table] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return found

    def fences(self) -> dict[str, Fence]:
        return read_fences(self.run("SELECT cohort, writer, epoch FROM fishladder_fence ORDER BY cohort"))

    def load_states(self) -> dict[str, LoadState]:
        found = self.run("SELECT table_name, generation, is_open FROM fishladder_load")
        return {table.decode(): LoadState(generation=int(generation), open=int(open_) == 1) for table, generation, open_ in found}

    def lag(self) -> float | None:
        found = self.run("SELECT TIMESTAMPDIFF(MICROSECOND, at, UTC_TIMESTAMP(6)) FROM fishladder_journal ORDER BY id LIMIT 1")
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

    def uninstall(self) -> None:
        ours = "LIKE 'fishladder!_%' ESCAPE '!'"
        for (name,) in self.run(f"SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE() AND trigger_name {ours}"):
            self.run(f"DROP TRIGGER IF EXISTS {self.dialect.quote(name.decode())}")
        for (name,) in self.run(f"SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name {ours}"):
            self.run(f"DROP TABLE IF EXISTS {self.dialect.quote(name.decode())}")


_INSTALL_TRIES = 30
_NUMBERS = {
    FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL, FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.LONG,
    FIELD_TYPE.LONGLONG, FIELD_TYPE.INT24, FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE,
}  # fmt: skip


def _rule(rule: str) -> str:
    return "NO ACTION" if rule == "SET DEFAULT" else rule


def _expect(where: str, holds: bool, good: str, bad: str = "", level: str = "fail") -> Finding:
    if holds:
        return Finding(level="pass", where=where, message=good)
    return Finding(level=level, where=where, message=bad or f"must be: {good}")  # type: ignore[arg-type]


def _file_name(path: str) -> str:
    """A table's name as InnoDB keeps it: what is not a letter, digit or _ becomes @ and its code point."""
    return re.sub(r"[^A-Za-z0-9_/]", lambda found: f"@{ord(found[0]):04x}", path)


def _folded(text: str) -> str:
    return " ".join(text.split())


# Triggers ------------------------------------------------------------------------------------------------


def _string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _known_cohort(column: str) -> str:
    """The cohort of a new entity: the column's, if it has a fence; otherwise nobody's."""
    return f"COALESCE((SELECT f.cohort FROM fishladder_fence f WHERE f.cohort = CAST({column} AS BINARY)), '{NO_HOME}')"


class _Trigger:
    """The body of one trigger, in the order in which it must happen: locks first, then the journal."""

    def __init__(self, dialect: MySqlDialect, relation: Relation, user: str) -> None:
        self.dialect = dialect
        self.relation = relation
        self.lines = [
            "DECLARE c_old, c_new VARBINARY(255);",
            "DECLARE w_old, w_new VARBINARY(255);",
            "DECLARE e_old, e_new VARBINARY(512);",
            "DECLARE said VARCHAR(120);",
            "DECLARE CONTINUE HANDLER FOR NOT FOUND BEGIN END;",
        ]
        pattern = re.sub(r"([!%_])", r"!\1", user)
        self.open = f"IF USER() NOT LIKE {_string(pattern + '@%')} ESCAPE '!' THEN"

    def entity(self, which: str, row: str) -> None:
        path = self.relation.entity
        if path is None:
            return
        text, source = self.dialect.entity_parts(path, row)
        if source:  # the parent as it is now, not as an old snapshot has it
            self.lines.append(f"SELECT {text} INTO e_{which} {source}{self.dialect.share};")
        else:
            self.lines.append(f"SET e_{which} = {text};")

    def home(self, which: str) -> None:
        """Home and fence in one statement with a shared lock: a plain SELECT would read an old snapshot."""
        if self.relation.entity is None:
            self.lines.append(f"SET c_{which} = '{SHARED}';")
        else:
            self.lines.append(
                f"SELECT f.cohort, f.writer INTO c_{which}, w_{which} FROM fishladder_home h JOIN fishladder_fence f"
                f" ON f.cohort = h.cohort WHERE h.entity = e_{which}{self.dialect.share};"
            )
            self.lines.append(f"IF c_{which} IS NULL THEN SET c_{which} = '{NO_HOME}'; END IF;")
        self.lines.append(f"IF w_{which} IS NULL THEN {self._fence(which)} END IF;")

    def _fence(self, which: str) -> str:
        return f"SELECT writer INTO w_{which} FROM fishladder_fence WHERE cohort = c_{which}{self.dialect.share};"

    def both_homes(self) -> None:
        """An entity changes: find both cohorts without touching a fence, then lock both fences in name order."""
        for which in ("old", "new"):
            self.lines.append(
                f"SELECT cohort INTO c_{which} FROM fishladder_home WHERE entity = e_{which}{self.dialect.share};"
            )
            self.lines.append(f"IF c_{which} IS NULL THEN SET c_{which} = '{NO_HOME}'; END IF;")
        old_first, new_first = self._fence("old") + self._fence("new"), self._fence("new") + self._fence("old")
        self.lines.append(f"IF c_old <= c_new THEN {old_first} ELSE {new_first} END IF;")

    def refuse(self, which: str, also: str = "FALSE") -> None:
        shut = f"COALESCE(w_{which}, 'nobody') NOT IN ('application', 'free') OR {also}"
        words = f"CONCAT('fishladder: ', c_{which}, ' is not open to the application here (', COALESCE(w_{which}, 'no fence'), ')')"
        self.lines.append(f"IF {shut} THEN SET said = LEFT({words}, 120); SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = said; END IF;")

    def journal(self, which: str, key: str, source: str = "", table: str | None = None, when: str = "TRUE") -> None:
        entity = f"e_{which}" if self.relation.entity is not None else "NULL"
        self.lines.append(
            f"IF w_{which} = 'application' AND {when} THEN"
            " INSERT INTO fishladder_journal (table_name, row_key, entity, cohort, at)"
            f" SELECT {_string(table or self.relation.table)}, {key}, {entity}, c_{which}, UTC_TIMESTAMP(6){source}; END IF;"
        )

    def descendants(self, which: str, cascades: Iterable[Cascade], parent: str, when: str = "TRUE") -> None:
        dialect = self.dialect
        for cascade in cascades:
            names = ["t", *(f"a{number}" for number in range(1, len(cascade.path)))]
            source = f" FROM {dialect.quote(cascade.relation.name)} t"
            for number, step in enumerate(cascade.path[:-1]):
                on = dialect._on(names[number], step.columns, names[number + 1], step.parent_columns)
                source += f" JOIN {dialect.quote(step.parent)} {names[number + 1]} ON {on}"
            last = cascade.path[-1]
            source += f" WHERE {dialect._on(names[-1], last.columns, parent, last.parent_columns)}"
            self.journal(which, dialect.key_sql(cascade.relation, "t"), source, cascade.relation.table, when)

    def text(self) -> str:
        declared, body = self.lines[:5], self.lines[5:]
        return f"BEGIN {' '.join(declared)} {self.open} {' '.join(body)} END IF; END"


def _trigger_texts(dialect: MySqlDialect, table: Triggers, user: str) -> Iterator[tuple[str, str, str]]:
    relation = table.relation
    new_key, old_key = dialect.key_sql(relation, "NEW"), dialect.key_sql(relation, "OLD")

    insert = _Trigger(dialect, relation, user)
    insert.entity("new", "NEW")
    if relation.root_cohort is not None:
        _birth(insert, relation)
    insert.home("new")
    insert.refuse("new")
    insert.journal("new", new_key)
    if relation.root_cohort is not None:
        # Its home travels before it; both entries are of one statement, so their order does not matter to a reader.
        insert.journal("new", dialect.key_piece("e_new"), table=HOME_TABLE)
    yield _trigger_name(relation, "insert"), "AFTER INSERT", insert.text()

    delete = _Trigger(dialect, relation, user)
    delete.entity("old", "OLD")
    delete.home("old")
    delete.refuse("old")
    delete.descendants("old", table.cascades, "OLD")
    delete.journal("old", old_key)
    yield _trigger_name(relation, "delete"), "BEFORE DELETE", delete.text()

    update = _Trigger(dialect, relation, user)
    update.entity("new", "NEW")
    rekeyed = f"CAST({new_key} AS BINARY) <> CAST({old_key} AS BINARY)"
    if relation.entity is None:
        update.home("new")
        update.refuse("new")
        update.journal("new", new_key)
        update.journal("new", old_key, when=rekeyed)
    else:
        update.entity("old", "OLD")
        update.lines.append("IF e_old <=> e_new THEN")
        update.home("new")
        update.lines.append("SET c_old = c_new, w_old = w_new; ELSE")
        update.both_homes()
        update.lines.append("END IF;")
        update.refuse("old")
        update.refuse("new", also="NOT (w_old <=> w_new)")
        update.journal("new", new_key)
        update.journal("old", old_key, when=f"({rekeyed} OR NOT (e_old <=> e_new))")
    update.descendants("new", table.cascades, "NEW", when=rekeyed)
    yield _trigger_name(relation, "update"), "AFTER UPDATE", update.text()


def _birth(trigger: _Trigger, root: Relation) -> None:
    """A new root gets its home, once: a root that is deleted and created again keeps the one it had."""
    dialect = trigger.dialect
    plain = dialect.plain_text(f"NEW.{dialect.quote(root.key_columns[0])}", root.fields[root.key[0]])
    cohort = _known_cohort(f"NEW.{dialect.quote(root.root_cohort or '')}")
    trigger.lines.append(f"INSERT IGNORE INTO fishladder_home (entity, cohort, root_key) VALUES (e_new, {cohort}, {plain});")


def _trigger_name(relation: Relation, event: str) -> str:
    name = f"fishladder_{relation.name}_{event}"
    if len(name) <= 64:
        return name
    return f"fishladder_{hashlib.sha256(relation.name.encode()).hexdigest()[:20]}_{event}"
