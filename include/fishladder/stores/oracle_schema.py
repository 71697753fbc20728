"""Oracle's tables as its dictionary has them, and the statements that create them elsewhere.

Everything is looked for in the session's current schema: the copier's account need not own the tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from fishladder.errors import FatalError
from fishladder.stores.base import Column, Finding, ForeignKey, TableInfo
from fishladder.stores.oracle_types import (
    SETTINGS,
    OracleDialect,
    declared_type,
    dictionary_name,
    guard,
    logical_type,
    native_name,
    plain_name,
)
from fishladder.stores.sql import Guard


class Run(Protocol):
    """Runs a statement with parameters for its ``?`` and returns the rows, numbers as text."""

    def __call__(self, sql: str, parameters: Sequence[Any] = (), /) -> list[tuple[Any, ...]]: ...


SCHEMA = "SYS_CONTEXT('USERENV', 'CURRENT_SCHEMA')"
OURS = "FISHLADDER_"
LIKE_OURS = "LIKE 'FISHLADDER!_%' ESCAPE '!'"
_PADDED = ("CHAR", "NCHAR")


def describe(run: Run) -> dict[str, TableInfo]:
    """Every table of the schema that is not fishladder's, by name."""
    tables = run(
        "SELECT table_name, COALESCE(num_rows, 0), TRUNC(COALESCE(num_rows * avg_row_len, 0)) FROM all_tables"
        f" WHERE owner = {SCHEMA} AND duration IS NULL AND iot_name IS NULL ORDER BY table_name"
    )
    columns, constraints, indexes = _columns(run), _constraints(run), _unique_indexes(run)
    found = {}
    for name, rows, size in ((raw.decode(), rows, size) for raw, rows, size in tables):
        if name.startswith((OURS, "BIN$")):
            continue
        here = [constraint for constraint in constraints if constraint.table == name]
        key = next((constraint.columns for constraint in here if constraint.kind == "P"), ())
        uniques = {constraint.columns for constraint in here if constraint.kind == "U"} | {
            columns for table, columns in indexes if table == name
        }
        plain = plain_name(name)
        found[plain] = TableInfo(
            name=plain,
            columns=tuple(_as_key(column) if column.name in key else column for column in columns.get(name, ())),
            key=key,
            uniques=tuple(sorted(uniques - {key})),
            foreign_keys=tuple(_foreign_keys(here, constraints)),
            rows=int(rows),
            bytes=int(size),
        )
    return found


_COLUMNS = (
    "SELECT table_name, column_name, data_type, data_length, data_precision, data_scale,"
    " CASE WHEN data_type LIKE '%CHAR%' THEN char_length END, char_used, nullable, virtual_column, identity_column,"
    f" data_default, collation FROM all_tab_cols WHERE owner = {SCHEMA}"
    " AND (hidden_column = 'NO' OR user_generated = 'YES')"  # INVISIBLE is hidden, too
)


def _columns(run: Run) -> dict[str, list[Column]]:
    found: dict[str, list[Column]] = {}
    for line in run(f"{_COLUMNS} ORDER BY table_name, column_id"):
        table, name, data_type, *rest = _texts(line)
        *sizes, used, nullable, virtual, identity, default, collation = rest
        assert table and name and data_type
        length, precision, scale, characters = _numbers(sizes)
        type_ = logical_type(data_type, length, precision, scale, characters)
        native = native_name(data_type, length, precision, scale, characters, used or "")
        found.setdefault(table, []).append(
            Column(
                name=plain_name(name),
                native=f"{native} COLLATE {collation}" if _folds(collation) else native,
                type=type_,
                nullable=nullable == "Y",
                generated=identity == "YES" or _sequence(default) is not None,
                computed=virtual == "YES",
                bytewise=data_type not in _PADDED,
                blank_is_null=type_ is not None and type_.kind in ("string", "bytes"),
            )
        )
    return found


def _folds(collation: str | None) -> bool:
    return collation not in (None, "BINARY", "USING_NLS_COMP")


def _as_key(column: Column) -> Column:
    """National text is ordered by UTF-16, a folding collation by neither: chunks would leave rows out."""
    if column.native.startswith(("NVARCHAR2", "NCHAR")) or " COLLATE " in column.native:
        return replace(column, native=f"{column.native} in the primary key", type=None)
    return column


class _Constraint:
    def __init__(self, name: str, kind: str, table: str, refers: str | None, rule: str | None) -> None:
        self.name, self.kind, self.table, self.refers, self.rule = name, kind, table, refers, rule
        self.columns: tuple[str, ...] = ()


def _constraints(run: Run) -> list[_Constraint]:
    """Primary, unique and foreign keys that are enabled, and that all rows keep to; any other proves nothing."""
    found: dict[str, _Constraint] = {}
    lines = run(
        "SELECT c.constraint_name, c.constraint_type, c.table_name, c.r_constraint_name, c.delete_rule, k.column_name"
        " FROM all_constraints c JOIN all_cons_columns k ON k.owner = c.owner AND k.constraint_name = c.constraint_name"
        f" WHERE c.owner = {SCHEMA} AND c.constraint_type IN ('P', 'U', 'R') AND c.status = 'ENABLED'"
        " AND (c.constraint_type = 'R' OR c.validated = 'VALIDATED')"
        " ORDER BY c.table_name, c.constraint_name, k.position"
    )
    for name, kind, table, refers, rule, column in map(_texts, lines):
        assert name and kind and table and column
        constraint = found.setdefault(name, _Constraint(name, kind, table, refers, rule))
        constraint.columns = (*constraint.columns, plain_name(column))
    return list(found.values())


def _foreign_keys(here: Iterable[_Constraint], everywhere: Iterable[_Constraint]) -> Iterable[ForeignKey]:
    parents = {constraint.name: constraint for constraint in everywhere if constraint.kind != "R"}
    for constraint in here:
        parent = parents.get(constraint.refers or "")
        if constraint.kind == "R" and parent is not None:
            yield ForeignKey(
                columns=constraint.columns,
                parent=plain_name(parent.table),
                parent_columns=parent.columns,
                on_delete=constraint.rule or "NO ACTION",
                checked=True,
            )


def _unique_indexes(run: Run) -> list[tuple[str, tuple[str, ...]]]:
    """Table and columns of each; of one over an expression there are none to compare by."""
    lines = run(
        "SELECT i.table_name, i.index_name, k.column_name FROM all_indexes i JOIN all_ind_columns k"
        " ON k.index_owner = i.owner AND k.index_name = i.index_name"
        f" WHERE i.table_owner = {SCHEMA} AND i.uniqueness = 'UNIQUE' AND i.index_type = 'NORMAL'"
        " ORDER BY i.table_name, i.index_name, k.column_position"
    )
    indexes: dict[tuple[str, str], tuple[str, ...]] = {}
    for table, index, column in map(_texts, lines):
        assert table and index and column
        indexes[table, index] = (*indexes.get((table, index), ()), plain_name(column))
    return [(table, columns) for (table, _), columns in indexes.items()]


def guards(run: Run, table: str) -> dict[str, Guard]:
    """By column, what to refuse before the server changes it without an error."""
    found = {}
    for line in run(f"{_COLUMNS} AND table_name = ?", [dictionary_name(table)]):
        _, name, data_type, *sizes = _texts(line)[:7]
        assert name and data_type
        check = guard(data_type, *_numbers(sizes)[:3])
        if check is not None:
            found[plain_name(name)] = check
    return found


def _texts(line: Sequence[Any]) -> list[str | None]:
    return [None if cell is None else cell.decode() if isinstance(cell, bytes) else str(cell) for cell in line]


def _numbers(texts: Iterable[str | None]) -> list[int | None]:
    return [None if text is None else int(text) for text in texts]


# Creating tables ---------------------------------------------------------------------------------------------


def creation(dialect: OracleDialect, table: TableInfo) -> list[str]:
    """The statements, in order, that make a table with Oracle's types for its logical types.

    Text and bytes may be NULL even where the other store's may not: ``''`` is NULL here. Ids come from a sequence.
    """
    quote = dialect.quote
    parts, before = [], list[str]()
    keyed = {*table.key, *(column for unique in table.uniques for column in unique)}
    keyed |= {column for key in table.foreign_keys for column in key.columns}
    for column in table.columns:
        if column.type is None:
            raise FatalError(f"{table.name}.{column.name}: {column.native} has no type here; create the table by hand")
        default = ""
        if column.generated and table.key == (column.name,):
            sequence = quote(sequence_name(table.name))
            before.append(f"CREATE SEQUENCE {sequence}")
            default = f" DEFAULT {sequence}.NEXTVAL"
        needed = not column.nullable and (column.name in table.key or column.type.kind not in ("string", "bytes"))
        type_ = declared_type(column.type, key=column.name in keyed)
        parts.append(f"{quote(column.name)} {type_}{default}{' NOT NULL' if needed else ''}")
    parts.append(f"PRIMARY KEY ({', '.join(map(quote, table.key))})")
    parts += [f"UNIQUE ({', '.join(map(quote, unique))})" for unique in table.uniques]
    for key in table.foreign_keys:
        rule = f" ON DELETE {key.on_delete}" if key.on_delete in ("CASCADE", "SET NULL") else ""
        parts.append(
            f"FOREIGN KEY ({', '.join(map(quote, key.columns))}) REFERENCES {quote(key.parent)}"
            f" ({', '.join(map(quote, key.parent_columns))}){rule}"
        )
    create = f"CREATE TABLE {quote(table.name)} ({', '.join(parts)})"
    # A child's parent would be locked as a whole whenever it changes.
    after = [
        f"CREATE INDEX {quote(f'{table.name}_parent_{number}'[:120])} ON {quote(table.name)}"
        f" ({', '.join(map(quote, key.columns))})"
        for number, key in enumerate(table.foreign_keys)
        if key.columns != table.key and key.columns not in table.uniques
    ]
    return [*before, create, *after]


def sequence_name(table: str) -> str:
    return f"{table}_ids"[:120]


def generator(run: Run, table: str, column: str) -> str | None:
    """The name, as the dictionary has it, of the sequence that a column takes its numbers from."""
    sql = f"SELECT data_default FROM all_tab_cols WHERE owner = {SCHEMA} AND table_name = ? AND column_name = ?"
    found = run(sql, [dictionary_name(table), dictionary_name(column)])
    return _sequence(_texts(found[0])[0]) if found else None


def _sequence(default: str | None) -> str | None:
    """Of ``"OWNER"."SEQUENCE"."NEXTVAL"``, as the dictionary has it, the sequence."""
    found = _NEXTVAL.search(default or "")
    return (found["quoted"] or found["plain"].upper()) if found else None


_NEXTVAL = re.compile(r'(?:"(?P<quoted>[^"]+)"|(?P<plain>[\w$#]+))\."?NEXTVAL"?\s*$', re.I)


# Preflight ---------------------------------------------------------------------------------------------------


def inspect(run: Run) -> list[Finding]:
    """Character sets, zones, privileges and space that a migration depends on."""

    def expect(where: str, holds: bool, good: str, bad: str, level: Literal["warn", "fail"] = "fail") -> Finding:
        return Finding(level="pass" if holds else level, where=where, message=good if holds else bad)

    ((characters,),) = map(
        _texts, run("SELECT value FROM nls_database_parameters WHERE parameter = 'NLS_CHARACTERSET'")
    )
    findings = [
        expect(
            "NLS_CHARACTERSET",
            characters == "AL32UTF8",
            "AL32UTF8: any text fits",
            f"is {characters}: it would replace characters that it has not, in silence; only AL32UTF8 can be migrated",
        )
    ]
    ((database, session),) = map(_texts, run("SELECT DBTIMEZONE, SESSIONTIMEZONE FROM dual"))
    findings.append(
        expect(
            "time_zone",
            session == SETTINGS["TIME_ZONE"],
            f"{database}; the copier's own sessions are in UTC",
            f"the copier's sessions are in {session}, though they asked for UTC: moments would be read shifted",
        )
    )
    user, schema = _texts(run(f"SELECT SYS_CONTEXT('USERENV', 'SESSION_USER'), {SCHEMA} FROM dual")[0])
    granted = privileges(run, schema or "")
    for privilege, own, why, level in _NEEDED:
        wanted = privilege if user != schema else own
        if wanted is not None:
            message = f"is needed {why}: GRANT {wanted} TO {_spelled(user or '')}"
            findings.append(expect(f"privilege {wanted}", wanted in granted, "granted", message, level))
    return [*findings, *_hidden(run, granted), _quota(run, schema or ""), *_others_triggers(run), *_unseen(run)]


_NEEDED: tuple[tuple[str, str | None, str, Literal["warn", "fail"]], ...] = (
    ("SELECT ANY TABLE", None, "to read rows", "fail"),
    ("INSERT ANY TABLE", None, "to write rows and the journal", "fail"),
    ("UPDATE ANY TABLE", None, "to write rows and fences", "fail"),
    ("DELETE ANY TABLE", None, "to write rows and to empty the journal", "fail"),
    ("LOCK ANY TABLE", None, "to raise fences and to close loads", "fail"),
    ("CREATE ANY TABLE", "CREATE TABLE", "to create fishladder's tables", "fail"),
    ("CREATE ANY INDEX", None, "to create their indexes", "fail"),
    ("CREATE ANY TRIGGER", "CREATE TRIGGER", "to install triggers", "fail"),
    ("CREATE ANY SEQUENCE", "CREATE SEQUENCE", "to number the journal", "fail"),
    ("CREATE ANY PROCEDURE", "CREATE PROCEDURE", "for the functions that fishladder's triggers call", "fail"),
    ("ALTER ANY SEQUENCE", None, "if generated ids are to begin elsewhere", "warn"),
    ("DROP ANY TRIGGER", None, "to remove fishladder's triggers at the end", "warn"),
    ("DROP ANY TABLE", None, "to remove fishladder's tables at the end", "warn"),
    ("DROP ANY SEQUENCE", None, "to remove fishladder's sequence at the end", "warn"),
    ("DROP ANY PROCEDURE", None, "to remove fishladder's functions at the end", "warn"),
    ("SELECT ANY DICTIONARY", "SELECT ANY DICTIONARY", "to see quotas, policies, and who holds a lock", "warn"),
)
"""A privilege in a schema that is not the copier's own, and in its own: None where an owner has it anyway."""


def privileges(run: Run, schema: str) -> set[str]:
    """The system privileges of this session, also those that are granted for this schema only (23ai)."""
    found = run("SELECT privilege FROM session_privs")
    try:
        found += run("SELECT privilege FROM session_schema_privs WHERE schema = ?", [schema])
    except FatalError:
        return {privilege or "" for (privilege,) in map(_texts, found)}  # an older Oracle has none of these
    return {privilege or "" for (privilege,) in map(_texts, found)}


def _spelled(name: str) -> str:
    """A name of the dictionary as a statement has it."""
    return name if re.fullmatch(r"[A-Z][A-Z0-9_$#]*", name) else f'"{name}"'


def may_write(run: Run, account: str) -> bool | None:
    """Whether an account may write rows of this schema, also by a role; None where this one does not see that."""
    writes, owner = ("INSERT", "UPDATE", "DELETE"), _texts(run(f"SELECT {SCHEMA} FROM dual")[0])[0]
    who = dictionary_name(account)
    if who == owner:
        return True
    anywhere = ", ".join(f"'{write} ANY TABLE'" for write in writes)
    here = ", ".join(f"'{write}'" for write in writes)
    todo, known = ["PUBLIC", who], set[str]()
    try:
        while todo:
            known.add(grantee := todo.pop())
            sql = f"SELECT 1 FROM dba_sys_privs WHERE grantee = ? AND privilege IN ({anywhere})"
            if run(sql, [grantee]):
                return True
            sql = f"SELECT 1 FROM dba_tab_privs WHERE grantee = ? AND owner = {SCHEMA} AND privilege IN ({here})"
            if run(sql, [grantee]):
                return True
            more = (("dba_col_privs", "owner", here), ("dba_schema_privs", "schema", anywhere))
            if any(_may_some(run, view, column, grantee, rights) for view, column, rights in more):
                return True
            roles = run("SELECT granted_role FROM dba_role_privs WHERE grantee = ?", [grantee])
            todo += {role for (role,) in map(_texts, roles) if role is not None} - known
    except FatalError:  # the DBA_ views are not everybody's to read
        return None
    return False


def _may_some(run: Run, view: str, column: str, grantee: str, rights: str) -> bool:
    """By a grant for columns, or for a schema: an older Oracle has not all of them."""
    sql = f"SELECT 1 FROM {view} WHERE grantee = ? AND {column} = {SCHEMA} AND privilege IN ({rights})"
    try:
        return bool(run(sql, [grantee]))
    except FatalError:
        return False


def quota(run: Run, schema: str) -> tuple[str, int, int] | None:
    """The schema's default tablespace, and bytes that it uses and may use there, -1 for any; None: cannot be seen."""
    try:
        if run("SELECT 1 FROM dba_sys_privs WHERE grantee = ? AND privilege = 'UNLIMITED TABLESPACE'", [schema]):
            return "every tablespace", 0, -1
        found = run(
            "SELECT u.default_tablespace, COALESCE(q.bytes, 0), COALESCE(q.max_bytes, 0) FROM dba_users u"
            " LEFT JOIN dba_ts_quotas q ON q.username = u.username AND q.tablespace_name = u.default_tablespace"
            " WHERE u.username = ?",
            [schema],
        )
    except FatalError:
        return None
    name, *sizes = _texts(found[0])
    used, most = _numbers(sizes)
    return name or "", used or 0, most or 0


def _quota(run: Run, schema: str) -> Finding:
    found, where, owner = quota(run, schema), "tablespace quota", _spelled(schema)
    if found is None:
        message = f"cannot be seen: see that {owner} may grow, or GRANT SELECT ANY DICTIONARY to the copier"
        return Finding(level="warn", where=where, message=message)
    name, used, most = found
    if most < 0:
        return Finding(level="pass", where=where, message=f"unlimited in {name}")
    if used >= most:
        message = f"{owner} may use no more of {name}: ALTER USER {owner} QUOTA UNLIMITED ON {name}"
        return Finding(level="fail", where=where, message=message)
    return Finding(level="pass", where=where, message=f"{most - used:,} bytes are left of {most:,} in {name}")


def _hidden(run: Run, granted: Collection[str]) -> Iterator[Finding]:
    """Rows and values that a policy keeps from the copier: it would find nothing wrong with copies that lack them."""
    for view, condition, exempt, what in (
        ("all_policies", " AND enable = 'YES'", "EXEMPT ACCESS POLICY", "hides rows"),
        ("redaction_columns", "", "EXEMPT REDACTION POLICY", "shows other values than there are"),
    ):
        try:
            found = run(f"SELECT DISTINCT object_name FROM {view} WHERE object_owner = {SCHEMA}{condition} ORDER BY 1")
        except FatalError:  # not everybody's to read: see SELECT ANY DICTIONARY
            continue
        for (table,) in map(_texts, found):
            if exempt not in granted:
                message = f"a policy {what} from who lacks {exempt}, the owner too: GRANT {exempt} to the copier"
                yield Finding(level="fail", where=plain_name(table or ""), message=message)
    archived = f"SELECT table_name FROM all_tab_cols WHERE owner = {SCHEMA} AND column_name = 'ORA_ARCHIVE_STATE'"
    for (table,) in map(_texts, run(archived)):
        message = (
            "ROW ARCHIVAL hides rows that were archived, and no copy of them would be made: move those elsewhere, then"
            f" ALTER TABLE {_spelled(table or '')} NO ROW ARCHIVAL"
        )
        yield Finding(level="fail", where=plain_name(table or ""), message=message)


def _unseen(run: Run) -> Iterator[Finding]:
    """What is written or removed and fires no trigger, nor changes an id of the table."""
    lobs = run(
        f"SELECT table_name, column_name, data_type FROM all_tab_cols WHERE owner = {SCHEMA}"
        f" AND data_type IN ('CLOB', 'NCLOB', 'BLOB') AND table_name NOT {LIKE_OURS} ORDER BY 1, 2"
    )
    for table, column, type_ in (map(str, _texts(line)) for line in lobs):
        message = (
            f"{type_}: what is written through its locator (DBMS_LOB, Clob.setString, lob.write) fires no trigger and"
            " is not copied; have it written by INSERT and UPDATE"
        )
        yield Finding(level="warn", where=f"{plain_name(table)}.{plain_name(column)}", message=message)
    for (name,) in map(_texts, run(f"SELECT table_name FROM all_tables WHERE owner = {SCHEMA} AND iot_type = 'IOT'")):
        message = "is index-organized: a TRUNCATE of it would not be noticed"
        yield Finding(level="warn", where=plain_name(name or ""), message=message)


def _others_triggers(run: Run) -> list[Finding]:
    found = run(
        f"SELECT table_name, trigger_name FROM all_triggers WHERE table_owner = {SCHEMA} AND status = 'ENABLED'"
        f" AND base_object_type = 'TABLE' AND trigger_name NOT {LIKE_OURS} ORDER BY 1, 2"
    )
    why = "also fires when the copier writes here, so that what it writes would be there twice: let the copier pass"
    return [
        Finding(level="warn", where=plain_name(table), message=f"trigger {plain_name(name)} {why}")
        for table, name in (map(str, _texts(line)) for line in found)
    ]


# Triggers and coverage ---------------------------------------------------------------------------------------


def installed_triggers(run: Run) -> dict[str, tuple[str, str, bool]]:
    """Per trigger of fishladder's, by its name in the dictionary: its table, its body, and whether it is enabled."""
    return {name: (plain_name(table), body, kind.endswith(" ENABLED")) for name, table, body, kind in _triggers(run)}


def trigger_marks(run: Run) -> dict[str, list[str]]:
    """By table, what tells each trigger of fishladder's from any other, also from one that was off for a while."""
    lines = run(
        "SELECT object_name, object_id || ' ' || TO_CHAR(last_ddl_time, 'YYYY-MM-DD HH24:MI:SS') FROM all_objects"
        f" WHERE owner = {SCHEMA} AND object_type = 'TRIGGER' AND object_name {LIKE_OURS}"
    )
    changed = {line[0]: line[1] for line in map(_texts, lines)}
    found: dict[str, list[str]] = {}
    for name, table, body, kind in sorted(_triggers(run)):
        found.setdefault(plain_name(table), []).append(f"{name} {changed.get(name)} {kind} {body}")
    return found


def _triggers(run: Run) -> list[tuple[str, str, str, str]]:
    # A trigger may be INVALID until it is next fired, and be compiled then: only whether it is enabled counts.
    found = run(
        "SELECT trigger_name, table_name, trigger_body, trigger_type, triggering_event, status FROM all_triggers"
        f" WHERE table_owner = {SCHEMA} AND trigger_name {LIKE_OURS}"
    )
    lines = [[text or "" for text in _texts(line)] for line in found]
    return [(name, table, folded(body), " ".join(kind)) for name, table, body, *kind in lines]


def identities(run: Run, names: Sequence[str]) -> dict[str, list[str]]:
    """The ids of these tables and their data, of every partition: new after TRUNCATE, a move or an exchange."""
    marks = ", ".join("?" * len(names))
    found: dict[str, list[str]] = {}
    for line in run(
        "SELECT object_name, subobject_name, object_id, data_object_id FROM all_objects"
        f" WHERE owner = {SCHEMA} AND object_type LIKE 'TABLE%' AND object_name IN ({marks}) ORDER BY 1, 2, 3",
        [dictionary_name(name) for name in names],
    ):
        name, *ids = _texts(line)
        found.setdefault(plain_name(name or ""), []).append(repr(ids))
    return found


def shapes(run: Run, names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of these tables, their types, their unique keys and their foreign keys both ways, for coverage.

    A unique key says how copiers of the table divide its rows among them.
    """
    marks, wanted = ", ".join("?" * len(names)), [dictionary_name(name) for name in names]
    found: dict[str, list[str]] = {}
    for line in run(
        "SELECT table_name, column_name, data_type, data_length, data_precision, data_scale, char_length, nullable"
        f" FROM all_tab_cols WHERE owner = {SCHEMA} AND table_name IN ({marks}) ORDER BY table_name, column_id",
        wanted,
    ):
        table, *column = _texts(line)
        found.setdefault(plain_name(table or ""), []).append(repr(column))
    constraints = _constraints(run)
    uniques = {(one.table, one.columns) for one in constraints if one.kind == "U"} | {*_unique_indexes(run)}
    for table, columns in sorted(uniques):
        if (plain := plain_name(table)) in found:
            found[plain].append(f"unique {columns}")
    for constraint in constraints:
        for key in _foreign_keys([constraint], constraints):
            for table in {plain_name(constraint.table), key.parent} & found.keys():
                found[table].append(f"{constraint.name} {constraint.table} {key}")
    return found


def blockers(run: Run, table: str) -> str:
    """In words: the sessions that keep the table from being locked."""
    sql = (
        "SELECT s.sid, s.username FROM v$locked_object l JOIN all_objects o ON o.object_id = l.object_id"
        f" JOIN v$session s ON s.sid = l.session_id WHERE o.owner = {SCHEMA} AND o.object_name = ?"
        " AND TO_CHAR(s.sid) <> SYS_CONTEXT('USERENV', 'SID') FETCH FIRST 5 ROWS ONLY"
    )
    try:
        found = run(sql, [dictionary_name(table)])
    except FatalError:  # V$ views are not everybody's to read
        found = []
    sessions = [f"session {no} of {plain_name(user or '?')}" for no, user in map(_texts, found)]
    return f"{', '.join(sessions) or 'other sessions'} hold the table locked"


def folded(text: str) -> str:
    """As the server may give it back: every run of blanks as one."""
    return " ".join(text.split())
