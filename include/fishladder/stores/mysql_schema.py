"""MySQL's tables as ``information_schema`` has them, and the statements that create them elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from fishladder.errors import FatalError
from fishladder.stores.base import Column, Finding, ForeignKey, TableInfo
from fishladder.stores.mysql_errors import is_unreadable
from fishladder.stores.mysql_types import MySqlDialect, declared_type, guard, logical_type
from fishladder.stores.sql import Guard


class Run(Protocol):
    """Runs a statement with parameters for its ``?`` and returns the rows."""

    def __call__(self, sql: str, parameters: Sequence[Any] = (), /) -> list[tuple[Any, ...]]: ...


_COLUMNS = (
    "SELECT table_name, column_name, data_type, column_type, is_nullable, extra, collation_name,"
    " character_maximum_length, COALESCE(numeric_precision, datetime_precision), numeric_scale"
    " FROM information_schema.columns WHERE table_schema = DATABASE()"
)


def describe(run: Run) -> dict[str, TableInfo]:
    """Every table of the schema that is not fishladder's, by name."""
    tables = run(
        "SELECT table_name, COALESCE(table_rows, 0), COALESCE(data_length + index_length, 0) FROM"
        " information_schema.tables WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' ORDER BY table_name"
    )
    columns, foreign_keys = _columns(run), _foreign_keys(run)
    keys, uniques = _indexes(run)
    found = {}
    for raw, rows, size in tables:
        name = raw.decode()
        if name.startswith("fishladder_"):
            continue
        key = keys.get(name, ())
        found[name] = TableInfo(
            name=name,
            columns=tuple(_as_key(column) if column.name in key else column for column in columns.get(name, ())),
            key=key,
            uniques=tuple(uniques.get(name, ())),
            foreign_keys=tuple(foreign_keys.get(name, ())),
            rows=int(rows),
            bytes=int(size),
        )
    return found


def _as_key(column: Column) -> Column:
    """An ENUM is ordered by its numbers but compared by its words: chunks of it would leave rows out."""
    if column.native.startswith("enum("):
        return replace(column, native=f"{column.native} in the primary key", type=None)
    return column


def _columns(run: Run) -> dict[str, list[Column]]:
    found: dict[str, list[Column]] = {}
    for line in run(f"{_COLUMNS} ORDER BY table_name, ordinal_position"):
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
                canonical="zerofill" not in column_type.lower() and data_type.lower() != "bit",
                collation=collation or "",
                characters=_lacking(collation),
            )
        )
    return found


def _lacking(collation: str | None) -> str:
    """The character set that a collation is of, if it lacks some of Unicode."""
    characters = (collation or "binary").partition("_")[0]
    return "" if characters in ("utf8mb4", "utf32", "utf16", "utf16le", "gb18030", "binary") else characters


def shapes(run: Run, names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of these tables, their types, their unique keys and their foreign keys both ways, for coverage.

    A unique key says how copiers of the table divide its rows among them.
    """
    sql = (
        "SELECT table_name, column_name, column_type, is_nullable FROM information_schema.columns"
        f" WHERE table_schema = DATABASE() AND table_name IN ({', '.join('?' * len(names))})"
        " ORDER BY table_name, ordinal_position"
    )
    found: dict[str, list[str]] = {}
    for table, *column in run(sql, names):
        found.setdefault(table.decode(), []).append(repr(column))
    uniques = _indexes(run)[1]
    for table in found.keys() & uniques.keys():
        found[table].append(f"unique {sorted(uniques[table])}")
    sql = (
        "SELECT table_name, referenced_table_name, constraint_name, delete_rule, update_rule"
        " FROM information_schema.referential_constraints WHERE constraint_schema = DATABASE() ORDER BY 1, 2, 3"
    )
    for child, parent, *constraint in run(sql):
        for table in {child.decode(), (parent or b"").decode()} & found.keys():
            found[table].append(repr((child, parent, *constraint)))
    return found


def guards(run: Run, table: str) -> dict[str, Guard]:
    """By column, what to refuse before the server changes it without an error."""
    found, mariadb = {}, b"mariadb" in run("SELECT VERSION()")[0][0].lower()
    for line in run(f"{_COLUMNS} AND table_name = ?", [table]):
        _, name, data_type, column_type, _, _, _, length, digits, _ = line
        sizes = int(length or 0), int(digits or 0)
        check = guard(data_type.decode().lower(), column_type.decode(), *sizes, mariadb=mariadb)
        if check is not None:
            found[name.decode()] = check
    return found


def _indexes(run: Run) -> tuple[dict[str, tuple[str, ...]], dict[str, list[tuple[str, ...]]]]:
    keys: dict[str, tuple[str, ...]] = {}
    uniques: dict[str, list[tuple[str, ...]]] = {}
    lines = run(
        "SELECT table_name, index_name, column_name, column_name IS NULL OR sub_part IS NOT NULL"
        " FROM information_schema.statistics WHERE table_schema = DATABASE() AND non_unique = 0"
        " ORDER BY table_name, index_name, seq_in_index"
    )
    indexes: dict[tuple[str, str], list[str]] = {}
    odd = set()
    for table, index, column, partial in lines:
        name = table.decode(), index.decode()
        indexes.setdefault(name, []).append("" if column is None else column.decode())
        if int(partial):
            odd.add(name)
    for (table, index), columns in indexes.items():
        if (table, index) in odd:  # over an expression or a prefix: no columns to compare by
            continue
        if index == "PRIMARY":
            keys[table] = tuple(columns)
        else:
            uniques.setdefault(table, []).append(tuple(columns))
    return keys, uniques


def _foreign_keys(run: Run) -> dict[str, list[ForeignKey]]:
    lines = run(
        "SELECT k.table_name, k.constraint_name, k.referenced_table_name, r.delete_rule, r.update_rule, k.column_name,"
        " k.referenced_column_name FROM information_schema.key_column_usage k"
        " JOIN information_schema.referential_constraints r ON r.constraint_schema = k.constraint_schema"
        " AND r.constraint_name = k.constraint_name AND r.table_name = k.table_name"
        " WHERE k.table_schema = DATABASE() AND k.referenced_table_name IS NOT NULL"
        " ORDER BY k.table_name, k.constraint_name, k.ordinal_position"
    )
    pairs: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for *constraint, column, above in ([part.decode() for part in line] for line in lines):
        pairs.setdefault(tuple(constraint), []).append((column, above))
    found: dict[str, list[ForeignKey]] = {}
    for (table, _, parent, delete, update), columns in pairs.items():
        key = ForeignKey(
            columns=tuple(column for column, _ in columns),
            parent=parent,
            parent_columns=tuple(above for _, above in columns),
            on_delete=delete,
            on_update=update,
        )
        found.setdefault(table, []).append(key)
    return found


def creation(dialect: MySqlDialect, table: TableInfo) -> str:
    """The CREATE TABLE of a table with this server's types for its logical types."""
    quote = dialect.quote
    parts: list[str] = []
    keyed = {*table.key, *(column for unique in table.uniques for column in unique)}
    keyed |= {column for key in table.foreign_keys for column in key.columns}
    for column in table.columns:
        if column.type is None:
            raise FatalError(f"{table.name}.{column.name}: {column.native} has no type here; create the table by hand")
        type_ = declared_type(column.type, key=column.name in keyed, bytewise=dialect.bytewise)
        number = " AUTO_INCREMENT" if column.generated and table.key == (column.name,) else ""
        parts.append(f"{quote(column.name)} {type_} {'NULL' if column.nullable else 'NOT NULL'}{number}")
    parts.append(f"PRIMARY KEY ({', '.join(map(quote, table.key))})")
    parts += [f"UNIQUE ({', '.join(map(quote, unique))})" for unique in table.uniques]
    for key in table.foreign_keys:
        parts.append(
            f"FOREIGN KEY ({', '.join(map(quote, key.columns))}) REFERENCES {quote(key.parent)}"
            f" ({', '.join(map(quote, key.parent_columns))})"
            f" ON DELETE {_rule(key.on_delete)} ON UPDATE {_rule(key.on_update)}"
        )
    return f"CREATE TABLE {quote(table.name)} ({', '.join(parts)}) ENGINE=InnoDB CHARACTER SET utf8mb4"


def _rule(rule: str) -> str:
    return "NO ACTION" if rule == "SET DEFAULT" else rule


# Preflight ---------------------------------------------------------------------------------------------------


def inspect(run: Run) -> list[Finding]:
    """Modes, privileges and limits that a migration depends on."""

    def expect(where: str, holds: bool, good: str, bad: str, level: Literal["warn", "fail"] = "fail") -> Finding:
        return Finding(level="pass" if holds else level, where=where, message=good if holds else bad)

    variables = {name.decode().lower(): value.decode() for name, value in run("SHOW VARIABLES")}
    zone = run("SELECT @@GLOBAL.time_zone")[0][0].decode()
    everywhere, here, single = privileges(run)
    flush = variables["innodb_flush_log_at_trx_commit"]
    findings = [
        expect(
            "innodb_flush_log_at_trx_commit",
            flush in ("1", "3"),
            f"{flush}: what is committed outlives a crash of the server, and of its machine",
            f"is {flush}: a crash of the {'server' if flush == '0' else 'machine'} takes back copies, fences and"
            " changes that the other side has acted on; set it to 1 in its configuration",
            "fail" if flush == "0" else "warn",
        ),
        expect(
            "group_replication_single_primary_mode",
            variables.get("group_replication_single_primary_mode", "ON") == "ON",
            "one member at most takes writes",
            "is OFF: a lock that one member holds is none in the others, and so is a fence; SELECT"
            " group_replication_switch_to_single_primary_mode()",
        ),
        expect(
            "wsrep_on",
            variables.get("wsrep_on", "OFF") == "OFF",
            "off: no node of a Galera cluster",
            "is ON: a lock that one node holds is none in the others, and so is a fence; let the copier and the"
            " application write through the same node, always",
            "warn",
        ),
        expect(
            "sql_mode",
            "STRICT_" in run("SELECT @@GLOBAL.sql_mode")[0][0].decode(),
            "strict",
            "is not strict: the application's own writes may be changed in silence; add STRICT_TRANS_TABLES",
            "warn",
        ),
        expect(
            "innodb_native_foreign_keys",
            variables.get("innodb_native_foreign_keys", "OFF") == "OFF",
            "off: triggers see every cascade's parent",
            "must be OFF: it has not been shown that cascades are journaled otherwise",
        ),
        expect(
            "explicit_defaults_for_timestamp",
            variables.get("explicit_defaults_for_timestamp", "ON") == "ON",
            "on",
            "must be ON: a NULL would become the current time",
        ),
        expect(
            "log_bin_trust_function_creators",
            variables.get("log_bin") == "OFF"
            or variables.get("log_bin_trust_function_creators") == "ON"
            or not everywhere.isdisjoint(("SUPER", "ALL PRIVILEGES")),
            "triggers may be created",
            "must be ON (or the copier needs SUPER): with a binary log, triggers cannot be created otherwise:"
            " SET GLOBAL log_bin_trust_function_creators = ON, and the same in the server's option file",
        ),
        expect(
            "character_set_database",
            variables.get("character_set_database") == "utf8mb4",
            "utf8mb4",
            f"is {variables.get('character_set_database')}: columns that are added without one of their own cannot hold"
            " every character; ALTER DATABASE … CHARACTER SET utf8mb4",
            "warn",
        ),
        expect(
            "character_set_connection",
            variables.get("character_set_connection") == "utf8mb4",
            "utf8mb4",
            f"is {variables.get('character_set_connection')}: texts would be changed on their way; let init_connect and"
            " skip-character-set-client-handshake leave the copier's sessions alone",
        ),
        Finding(
            level="pass",
            where="time_zone",
            message=f"{zone} (the system's is {variables.get('system_time_zone')});"
            " the copier's own sessions are in UTC",
        ),
    ]
    schema, account = (part.decode() for part in run("SELECT DATABASE(), CURRENT_USER()")[0])
    user, _, host = account.rpartition("@")
    to = "@".join("'" + part.replace("'", "''") + "'" for part in (user, host))
    for privilege, why, level in _NEEDED:
        scope = "*.*" if privilege == "PROCESS" else f"`{schema.replace('`', '``')}`.*"
        words = {privilege, "ALL PRIVILEGES"}
        enough = not words.isdisjoint(everywhere) or (scope != "*.*" and not words.isdisjoint(here))
        message = f"is needed {why}: GRANT {privilege} ON {scope} TO {to}"
        if not enough and words & single:
            message, level = f"is granted for single tables only; {message}", "warn"
        findings.append(expect(f"privilege {privilege}", enough, "granted", message, level))
    return findings + _others_triggers(run)


_NEEDED: tuple[tuple[str, str, Literal["warn", "fail"]], ...] = (
    ("SELECT", "to read rows", "fail"),
    ("INSERT", "to write rows and the journal", "fail"),
    ("UPDATE", "to write rows and fences", "fail"),
    ("DELETE", "to write rows and to empty the journal", "fail"),
    ("TRIGGER", "to install triggers", "fail"),
    ("CREATE", "to create fishladder's tables", "fail"),
    ("LOCK TABLES", "to install triggers between two transactions", "fail"),
    ("PROCESS", "to see that a table was truncated or swapped (INNODB_TABLES)", "fail"),
    ("ALTER", "if generated ids are to begin elsewhere", "warn"),
    ("REFERENCES", "if tables with foreign keys are to be created here", "warn"),
    ("DROP", "to remove fishladder's tables at the end", "warn"),
)


def privileges(run: Run) -> tuple[set[str], set[str], set[str]]:
    """What this account, with its active roles, may do everywhere, in this schema, and in single tables of it."""
    schema = run("SELECT DATABASE()")[0][0].decode()
    everywhere, here, single = found = (set[str](), set[str](), set[str]())
    for (line,) in run("SHOW GRANTS"):
        match = _GRANT.match(line.decode())
        if match is None:  # a role, whose own grants are listed as well
            continue
        words = {re.sub(r"\s*\(.*", "", word).strip() for word in re.split(r",(?![^(]*\))", match["words"])}
        pattern = match["schema"].strip("`").replace("``", "`")
        if match["verb"] == "REVOKE":  # MySQL's partial revokes: everywhere but here
            if pattern == schema:
                everywhere -= words
        elif pattern == "*":
            everywhere |= words
        elif _like(pattern, schema):
            (here if match["table"] == "*" else single).update(words)
    return found


_GRANT = re.compile(
    r"(?P<verb>GRANT|REVOKE) (?P<words>.+?) ON (?:TABLE )?(?P<schema>\*|`(?:[^`]|``)+`)\.(?P<table>\*|`(?:[^`]|``)+`)"
    r" (?:TO|FROM) "
)


def _like(pattern: str, name: str) -> bool:
    """Whether a schema's name is one of those that a grant is for: ``%`` and ``_`` unless a backslash is before."""
    parts = re.findall(r"\\.|.", pattern)
    wild = {"%": ".*", "_": "."}
    return re.fullmatch("".join(wild.get(part, re.escape(part[-1])) for part in parts), name) is not None


def may_write(run: Run, account: str) -> bool | None:
    """Whether an account may write rows of this schema; None where this one does not see the rights of others.

    Rights that it has by a role are not seen.
    """
    grantee = "'" + re.sub(r"([!%_])", r"!\1", account) + "'@%"
    who = "grantee LIKE ? ESCAPE '!'"
    if not run(f"SELECT 1 FROM information_schema.user_privileges WHERE {who} LIMIT 1", [grantee]):
        return None
    writes = f"{who} AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE')"
    sql = (
        f"SELECT 1 FROM information_schema.user_privileges WHERE {writes} UNION ALL"
        f" SELECT 1 FROM information_schema.schema_privileges WHERE {writes} AND DATABASE() LIKE table_schema UNION ALL"
        f" SELECT 1 FROM information_schema.table_privileges WHERE {writes} AND table_schema = DATABASE()"
    )
    return bool(run(sql, [grantee] * 3))


def _others_triggers(run: Run) -> list[Finding]:
    found = run(
        "SELECT event_object_table, trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
        " AND trigger_name NOT LIKE 'fishladder!_%' ESCAPE '!' ORDER BY 1, 2"
    )
    why = "also fires when the copier writes here, so that what it writes would be there twice: let the copier pass"
    return [
        Finding(level="warn", where=table.decode(), message=f"trigger {name.decode()} {why}") for table, name in found
    ]


# Triggers and coverage ---------------------------------------------------------------------------------------


def installed_triggers(run: Run) -> dict[str, tuple[str, str]]:
    """Per trigger of fishladder's, its table and its body."""
    return {name: (table, body) for name, table, body, _ in _triggers(run)}


def trigger_marks(run: Run) -> dict[str, list[str]]:
    """By table, what tells each trigger of fishladder's from any other, also from one made again with the same text."""
    found: dict[str, list[str]] = {}
    for name, table, body, made in sorted(_triggers(run)):
        found.setdefault(table, []).append(f"{name} {made} {body}")
    return found


def _triggers(run: Run) -> list[tuple[str, str, str, str]]:
    found = run(
        "SELECT trigger_name, event_object_table, action_statement,"
        " CONCAT_WS(' ', action_timing, event_manipulation, definer, created) FROM information_schema.triggers"
        " WHERE trigger_schema = DATABASE() AND trigger_name LIKE 'fishladder!_%' ESCAPE '!'"
    )
    return [(name.decode(), table.decode(), folded(body.decode()), made.decode()) for name, table, body, made in found]


def check_engine(run: Run, table: str) -> None:
    """Raises FatalError for a table whose changes no transaction holds together."""
    sql = "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
    found = run(sql, [table])
    if not found or found[0][0] != b"InnoDB":
        engine = (found[0][0] or b"none").decode() if found else "none"
        raise FatalError(f"{table}: its engine is {engine}, which has no transactions; ALTER TABLE … ENGINE=InnoDB")


def blockers(run: Run, table: str) -> str:
    """In words: the sessions that keep the table from being locked."""
    sql = (
        "SELECT t.processlist_id, t.processlist_user FROM performance_schema.metadata_locks l"
        " JOIN performance_schema.threads t ON t.thread_id = l.owner_thread_id WHERE l.object_schema = DATABASE()"
        " AND l.object_name = ? AND l.lock_status = 'GRANTED' AND t.processlist_id <> CONNECTION_ID() LIMIT 5"
    )
    try:
        found, what = run(sql, [table]), "hold the table open"
    except FatalError:  # performance_schema is not ours to read; PROCESS shows the transactions
        return holders(run)
    return f"{_sessions(found)} {what}"


LOOKS, LOOK_SECONDS = 5, 0.05
"""How often, and how long one after the other, sessions are looked at that cannot be shown at the moment. The one who
asks may hold locks itself.
"""


def holders(run: Run) -> str:
    """In words: the sessions whose transactions have been open for longest. Whoever holds a lock is one of them.

    Who was waited for, the server says only while somebody waits.
    """
    others = "x.trx_mysql_thread_id <> CONNECTION_ID() ORDER BY x.trx_started LIMIT 5"
    # Neither list can be read while one of those in it runs a statement with bytes: that lasts a moment, mostly.
    for _ in range(LOOKS):
        for user, sessions in (
            ("p.user", " JOIN information_schema.processlist p ON p.id = x.trx_mysql_thread_id"),
            ("NULL", ""),
        ):
            sql = f"SELECT x.trx_mysql_thread_id, {user} FROM information_schema.innodb_trx x{sessions} WHERE {others}"
            try:
                return f"the transactions that have been open for longest are of {_sessions(run(sql, []))}"
            except FatalError as error:
                unreadable = is_unreadable(error)
        if not unreadable:
            return "the right PROCESS would let the account see who holds it"
        time.sleep(LOOK_SECONDS)
    return "who holds it cannot be seen while others run statements with bytes in them"


def _sessions(found: list[tuple[Any, ...]]) -> str:
    return ", ".join(f"session {no.decode()} of {(user or b'?').decode()}" for no, user in found) or "other sessions"


def identities(run: Run, view: str, names: Sequence[str]) -> dict[str, list[str]]:
    """InnoDB's ids of these tables, of every partition: a new one after TRUNCATE, a rebuild or a swap."""
    schema = run("SELECT DATABASE()")[0][0].decode()
    prefix = re.sub(r"([!%_])", r"!\1", _file_name(schema)) + "/%"
    sql = f"SELECT name, table_id FROM information_schema.{view} WHERE name LIKE ? ESCAPE '!' ORDER BY name"
    ids: dict[str, list[str]] = {}
    for name, number in run(sql, [prefix]):
        file = name.decode().partition("/")[2]
        ids.setdefault(re.split("#p#", file, flags=re.I)[0], []).append(f"{file} {number.decode()}")
    return {name: ids[file] for name in names if (file := _file_name(name)) in ids}


def _file_name(name: str) -> str:
    """A name as InnoDB keeps it: what is not a letter, digit or _ becomes @ and its code point."""
    return re.sub(r"[^A-Za-z0-9_]", lambda found: f"@{ord(found[0]):04x}", name)


def folded(text: str) -> str:
    """As the server may give it back: every run of blanks as one."""
    return " ".join(text.split())
