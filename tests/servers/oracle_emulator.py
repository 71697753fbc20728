"""The Oracle wire emulator: seerdb's server, which speaks Oracle's protocol, in front of a PostgreSQL with orafce.

A process of its own: ``python -m tests.servers.oracle_emulator --home=FOLDER --root=FOLDER``: the folder that
tests/servers/oracle.py made, where the port and the password of its accounts are too, and that of PostgreSQL's
programs. It ends, and PostgreSQL with it, on SIGTERM.

It is not Oracle: its translation of Oracle's SQL is what the tests run on where no Oracle is.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from seerdb.common.exceptions import Truncated
from seerdb.common.tns_consts import TNS_FUNC_REEXECUTE
from seerdb.server import BackendError, Result, Server, session
from seerdb.server.backends import postgres

from tests.servers.private import State

ACCOUNTS = ("SYSTEM",)
PRIVILEGES = (
    *(f"{verb} ANY TABLE" for verb in ("SELECT", "INSERT", "UPDATE", "DELETE", "LOCK")),
    *(f"{verb} ANY {kind}" for verb in ("CREATE", "ALTER", "DROP")
      for kind in ("TABLE", "INDEX", "TRIGGER", "SEQUENCE", "PROCEDURE")),
    *(f"CREATE {kind}" for kind in ("TABLE", "TRIGGER", "SEQUENCE", "PROCEDURE")),
    *("SELECT ANY SEQUENCE", "SELECT ANY DICTIONARY", "UNLIMITED TABLESPACE"),
    *("EXEMPT ACCESS POLICY", "EXEMPT REDACTION POLICY"),
)  # fmt: skip
"""What a GRANT is remembered for. It is all the same: whoever logs in may do anything here."""
BINARIES = "usr/lib/postgresql/15/bin"
START_SECONDS = 60
WIRE_OF_23AI = 24

# A folder's name may be too long for a socket; the way through the process's own working directory is not.
_CONNECTION = "host=/proc/self/cwd user=postgres dbname=postgres"
# Small, and without waiting for the disk: processes are killed here, machines are not.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "jit": "off",
    "join_collapse_limit": "4",  # a view of the dictionary takes longer to plan than to read
    "from_collapse_limit": "4",
    "track_commit_timestamp": "on",
    "log_min_messages": "fatal",  # what a statement fails with, its client is told
}


def postgres_command(root: Path, program: str, *arguments: str) -> list[str]:
    """Run a program of PostgreSQL, which refuses to be root: as nobody then. It ends with who started it."""
    account = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig=KILL", *account, str(root / BINARIES / program), *arguments]


def postgres_environment(root: Path) -> dict[str, str]:
    """The libraries that were unpacked with it, but for the loader's own: those are the system's."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu",
        "TZ": "UTC",
    }


class Backend(postgres.PostgresBackend):
    """One session of a client, with a few of Oracle's words that seerdb does not translate."""

    def __init__(self, credentials: dict[str, str]) -> None:
        self._schema: Any = None
        self._asked_schema: str | None = None
        super().__init__(_CONNECTION, presents="23ai", credentials=credentials)

    def execute(self, sql: str, binds: Sequence[Any] = ()) -> Result:
        with _deadlocks():
            return self._execute(sql, binds)

    def _execute(self, sql: str, binds: Sequence[Any]) -> Result:
        self._written, sql = sql, _unquoted(sql)
        if _SESSION.match(sql):
            asked = _SCHEMA.match(sql)
            if asked and asked["name"] == self._asked_schema:
                return Result()  # seerdb would commit; a driver that was told a schema repeats it with every call
            self._schema, self._asked_schema = None, asked["name"] if asked else self._asked_schema
        if _ROUTINE.match(sql):
            # PostgreSQL knows an error's state, and only inside its handler; and no transaction inside another.
            sql = re.sub(r"\bSQLCODE\b", _SQLCODE, sql, flags=re.I)
            return super().execute(re.sub(r"\bPRAGMA\s+AUTONOMOUS_TRANSACTION\s*;", "", sql, flags=re.I), binds)
        if found := _WAIT.search(sql):
            return self._waiting(sql[: found.end("asked")], binds, seconds=int(found["seconds"]))
        result = super().execute(sql, binds)
        if _LOCK.match(sql):
            # A transaction that wrote nothing is taken for over; one with a number of its own is not.
            self._conn.execute("SELECT pg_current_xact_id()")
        return result

    def _record_trigger(self, statement: str) -> None:
        super()._record_trigger(self._written)  # for ALL_TRIGGERS, as Oracle keeps it

    def _record_source(self, statement: str) -> None:
        """Nobody here reads ALL_SOURCE, and keeping it takes half the time of every trigger."""

    def _read_schema_facts(self) -> None:
        """After anybody's DDL, a quarter of all that PostgreSQL did here: types, domains and annotations, of which
        nobody makes any. Only columns of RAW come and go."""
        if not _TYPES:
            super()._read_schema_facts()
            _TYPES.append((self._collection_name_cache, self._has_sql_domains_cache, self._raw_constructor_cache))
        ((self._collection_name_cache, self._has_sql_domains_cache, self._raw_constructor_cache),) = _TYPES
        raw = "SELECT EXISTS (SELECT 1 FROM sys.ora_columns WHERE data_type = 'RAW')"
        self._has_raw_targets_cache = self._catalog_read(raw).fetchone() == (True,)

    def _catalog_read(self, statement: Any, params: Any = None) -> Any:
        """The columns of a statement's tables, asked for by every statement, are kept until somebody changes a
        table."""
        if not str(statement).startswith(_COLUMNS) or self._ddl_generation is None:
            return super()._catalog_read(statement, params)
        if self._schema is None:
            self._schema = self._catalog_read("SELECT current_schema()").fetchone()
        known = (self._ddl_generation, self._schema, *params)
        if (found := _KEPT.get(known)) is None:
            if len(_KEPT) > _MANY:
                _KEPT.clear()
            found = _KEPT[known] = _Kept(super()._catalog_read(statement, params).fetchall())
        return found

    def _prune_records(self) -> None:
        """Only what is dropped leaves records behind, and looking through all of them takes long."""
        if _DROP.search(self._written):
            super()._prune_records()

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> int | Result:
        if any(isinstance(value, datetime) and value.tzinfo for row in rows for value in row):
            # Which seerdb binds in two parts, and knows only one by one.
            return sum(self.execute(sql, row).rowcount for row in rows)
        with _deadlocks():
            return super().execute_many(_unquoted(sql), rows)

    def _replay_until_failure(self, bound_sql: str, params: list[Any]) -> BackendError:
        # What was prepared on the way to the failure, psycopg believes to be there.
        self._conn._prepared.clear()
        return super()._replay_until_failure(bound_sql, params)

    def _waiting(self, sql: str, binds: Sequence[Any], *, seconds: int) -> Result:
        """``… FOR UPDATE WAIT n`` and ``LOCK TABLE … WAIT n``."""
        self._conn.execute(f"SET LOCAL lock_timeout = '{seconds}s'")
        try:
            return self._execute(sql, binds)
        except BackendError as error:
            if error.ora_code == _BUSY:
                message = "resource busy; acquire with WAIT timeout expired or lock request cancelled"
                raise BackendError(message, ora_code=_WAITED) from error
            raise
        finally:
            if not self._conn.closed:
                self._conn.execute("SET LOCAL lock_timeout = 0")


@contextmanager
def _deadlocks() -> Iterator[None]:
    try:
        yield
    except BackendError as error:
        # The latter: row by row none fails, because what it waited for or referred to has come.
        if any(words in str(error) for words in ("deadlock detected", "the array statement failed")):
            raise BackendError("deadlock detected while waiting for resource", ora_code=_DEADLOCK) from error
        raise


@functools.lru_cache(maxsize=1024)
def _unquoted(sql: str) -> str:
    """To Oracle, ``"INVOICE"`` is invoice; to PostgreSQL it is another table. What is a word of SQL stays quoted."""

    def plain(found: re.Match[str]) -> str:
        name = found["name"]
        return found[0] if name is None or name in _WORDS else str(name)

    return _QUOTED.sub(plain, sql)


_WORDS = {name.upper() for name in postgres._PG_RESERVED_NAMES} | postgres._ORACLE_RESERVED_WORDS | {"RAW"}
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?P<name>[A-Z][A-Z0-9_$]*)"|"[^"]*"|--[^\n]*""")
_SESSION = re.compile(r"\s*ALTER\s+SESSION\b", re.I)
_SCHEMA = re.compile(r"\s*ALTER\s+SESSION\s+SET\s+CURRENT_SCHEMA\s*=\s*(?P<name>\S+)\s*\Z", re.I)
_DROP = re.compile(r"\bDROP\b", re.I)


@dataclass(frozen=True, slots=True)
class _Kept:
    rows: list[Any]

    def fetchall(self) -> list[Any]:
        return self.rows


_COLUMNS = "SELECT column_name, data_type, data_length FROM all_tab_columns WHERE owner = coalesce(upper("
_KEPT: dict[tuple[Any, ...], _Kept] = {}
"""By the state of the database, the session's schema, and the table."""
_MANY = 1_000
_TYPES: list[tuple[Any, Any, Any]] = []
"""What the first session found of types that have names."""
_BUSY, _DEADLOCK, _WAITED = 54, 60, 30006
_LOCK = re.compile(r"\s*LOCK\s+TABLE\b", re.I)
_WAIT = re.compile(r"(?P<asked>\b(?:UPDATE|MODE))\s+WAIT\s+(?P<seconds>\d+)\s*\Z", re.I)
_ROUTINE = re.compile(r"\s*CREATE\s+(?:OR\s+REPLACE\s+)?(?:TRIGGER|FUNCTION|PROCEDURE)\b", re.I)
_SQLCODE = "(CASE SQLSTATE WHEN '23505' THEN -1 ELSE -20000 END)"

# Functions and columns of the dictionary that seerdb has not: OLD is a view's text without its last semicolon.
_ADDITIONS = {
    "sys_extract_utc": "CREATE OR REPLACE FUNCTION sys.sys_extract_utc(ora_tstz) RETURNS timestamp LANGUAGE sql"
    " IMMUTABLE AS $$ SELECT ($1).utc AT TIME ZONE 'UTC' $$",
    'sys."v$session"': 'CREATE OR REPLACE VIEW sys."v$session" AS SELECT s.*, (pg_blocking_pids(s.sid))[1] AS'
    " blocking_session FROM (OLD) s",
    "sys.all_objects": "CREATE OR REPLACE VIEW sys.all_objects AS SELECT o.*, CASE WHEN o.object_type = 'TABLE' THEN"
    " pg_relation_filenode(o.object_id::oid)::bigint END AS data_object_id, date_trunc('second',"
    " pg_xact_commit_timestamp(coalesce(c.xmin, t.xmin)))::timestamp AS last_ddl_time FROM (OLD) o"
    " LEFT JOIN pg_class c ON c.oid = o.object_id::oid AND o.object_type = 'TABLE'"
    " LEFT JOIN pg_trigger t ON t.oid = o.object_id::oid AND o.object_type = 'TRIGGER'",
    "sys.all_tables": "CREATE OR REPLACE VIEW sys.all_tables AS SELECT o.*,"
    " nullif(greatest(c.reltuples, 0), 0)::numeric AS num_rows,"
    " pg_relation_size(c.oid) / greatest(c.reltuples, 1)::numeric AS avg_row_len, NULL::text AS iot_type"
    " FROM (OLD) o LEFT JOIN pg_namespace n ON upper(n.nspname) = o.owner"
    " LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'"
    " AND sys.ora_name(c.relname::text) = o.table_name",
    "sys.all_tab_cols": "CREATE OR REPLACE VIEW sys.all_tab_cols AS SELECT COLUMNS, NULL::text AS collation,"
    " 'YES'::text AS user_generated FROM (OLD) o",
    "sys.all_constraints": "CREATE OR REPLACE VIEW sys.all_constraints AS SELECT COLUMNS FROM (OLD) o",
    "sys.all_policies": "CREATE TABLE IF NOT EXISTS sys.all_policies"
    " (object_owner text, object_name text, enable text)",
    "sys.redaction_columns": "CREATE TABLE IF NOT EXISTS sys.redaction_columns (object_owner text, object_name text)",
    'sys."v$locked_object"': 'CREATE OR REPLACE VIEW sys."v$locked_object" AS SELECT l.relation::bigint AS object_id,'
    ' l.pid AS session_id, s.username AS oracle_username FROM pg_locks l JOIN sys."v$session" s ON s.sid = l.pid'
    " WHERE l.locktype = 'relation' AND l.granted AND l.mode <> 'AccessShareLock'",
}

# Columns that seerdb fills with what PostgreSQL says, or not at all.
_OTHERWISE = {
    "delete_rule": "(SELECT CASE c.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE 'NO ACTION' END"
    " FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE upper(n.nspname) = o.owner"
    " AND c.contype = 'f' AND sys.ora_name(c.conname::text) = o.constraint_name LIMIT 1)",
    "data_default": 'CASE WHEN o.data_default ~ \'^nextval\' THEN (SELECT format(\'"%s"."%s"."NEXTVAL"\', o.owner,'
    " sys.ora_name((regexp_match(o.data_default, '([^.''\"]+)\"?''::regclass'))[1])))"
    " ELSE o.data_default END",
}


def _add() -> None:
    with psycopg.connect(_CONNECTION) as connection:
        for name, statement in _ADDITIONS.items():
            if "(OLD)" in statement:
                found = connection.execute("SELECT pg_get_viewdef(%s::regclass)", [name]).fetchone()
                assert found is not None
                if re.search("blocking_session|data_object_id|avg_row_len|collation|confdeltype", found[0]):
                    continue  # a second start on the same data
                statement = statement.replace("OLD", found[0].rstrip().removesuffix(";"))
            if "COLUMNS" in statement:
                sql = (
                    "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
                    " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
                )
                columns = list(connection.execute(sql, [name]))
                listed = [
                    f'({_OTHERWISE[column]})::{type_} AS "{column}"' if column in _OTHERWISE else f'o."{column}"'
                    for column, type_ in columns
                ]
                statement = statement.replace("COLUMNS", ", ".join(listed))
            connection.execute(statement.encode())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The Oracle wire emulator.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    given = parser.parse_args(arguments)
    home, root = given.home, given.root
    state = State(**json.loads((home / "state.json").read_text(encoding="utf-8")))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
    os.chdir(home / "data")
    _outlive_the_last()
    database = subprocess.Popen(
        postgres_command(root, "postgres", "-D", ".", *settings), env=postgres_environment(root)
    )
    try:
        _wait(database)
        with psycopg.connect(_CONNECTION) as connection:
            # Apart from seerdb's own session, which sets what only later versions of orafce know.
            connection.execute("CREATE EXTENSION IF NOT EXISTS orafce")
        _forget_json()
        _read_all_rows()
        postgres._SQLSTATE_TO_ORA["40P01"] = 60  # a deadlock, which seerdb calls a bad statement
        vars(postgres)["_SYSTEM_PRIVILEGES"] = (*postgres._SYSTEM_PRIVILEGES, *PRIVILEGES)
        credentials = dict.fromkeys(ACCOUNTS, state.password)
        Backend(credentials).close()  # installs the dictionary, once, before anyone asks
        _add()
        server = Server(
            "127.0.0.1", state.port, backend_factory=lambda: Backend(credentials), field_version=WIRE_OF_23AI
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while database.poll() is None and not stopping.wait(0.5):
            pass
        server.close()
    finally:
        database.send_signal(signal.SIGINT)
        database.wait()
    return 0 if stopping.is_set() else 1


def _outlive_the_last() -> None:
    """The PostgreSQL of an emulator that was killed is killed with it, a moment later, and leaves its locks behind."""
    lock = Path("postmaster.pid")
    if lock.exists():
        process = Path("/proc", lock.read_text().partition("\n")[0])
        deadline = time.monotonic() + START_SECONDS
        while _is_at_work_here(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    for left in (lock, Path(".s.PGSQL.5432.lock")):
        left.unlink(missing_ok=True)


def _is_at_work_here(process: Path) -> bool:
    try:
        return (process / "cwd").samefile(Path.cwd())
    except OSError:
        return False


def _wait(database: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(_CONNECTION).close()
            return
        except psycopg.OperationalError:
            if database.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _forget_json() -> None:
    """PostgreSQL 15 has no IS JSON, which one of seerdb's helpers is made of."""
    helpers = postgres._HELPER_FUNCTIONS_DDL
    for strict in ("$1 IS JSON STRICT", "$1 IS JSON"):
        helpers = helpers.replace(strict, "NULL::boolean")
    postgres._HELPER_FUNCTIONS_DDL = helpers


def _read_all_rows() -> None:
    """A repeated statement's rows may go on in the next packet, also where the last one ended with a whole row.

    seerdb looks for them in a statement's first execution only: of a repeated one it would execute a part, and take
    what follows for another message.
    """
    names = vars(session)
    parse = names["parse_reexecute"]

    def parse_whole(payload: bytes, *args: Any, **kwargs: Any) -> Any:
        request = parse(payload, *args, **kwargs)
        # For a query the number is that of the rows to fetch.
        if payload[1] == TNS_FUNC_REEXECUTE and 0 < len(request.bind_rows) < request.fetch:
            raise Truncated(f"{len(request.bind_rows)} of {request.fetch} rows")
        return request

    names["parse_reexecute"] = parse_whole


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
