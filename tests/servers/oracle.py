"""The Oracle wire emulator as a private server on a free port of 127.0.0.1: Oracle's protocol, not Oracle.

``ORACLE_DSN`` (``oracle://user:password@host:port/service``, an account that may create others and grant them what
they need, such as SYSTEM) names an Oracle that is there already; nothing is started then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from tests.servers import STORES, Unavailable, debian
from tests.servers.private import PrivateServer, State, free_port

if TYPE_CHECKING:
    from oracledb import Connection, Cursor

ROOT = Path(__file__).resolve().parents[2]
DROP_SECONDS = 20

COPIER = (
    "CREATE SESSION, SELECT ANY TABLE, INSERT ANY TABLE, UPDATE ANY TABLE, DELETE ANY TABLE, LOCK ANY TABLE,"
    " CREATE ANY TABLE, ALTER ANY TABLE, DROP ANY TABLE, CREATE ANY INDEX, CREATE ANY TRIGGER, ALTER ANY TRIGGER,"
    " DROP ANY TRIGGER, CREATE ANY SEQUENCE, ALTER ANY SEQUENCE, DROP ANY SEQUENCE, SELECT ANY SEQUENCE,"
    " CREATE ANY PROCEDURE, DROP ANY PROCEDURE, SELECT ANY DICTIONARY"
)
_ACCOUNTS = {
    "COPIER": COPIER,
    "APPLICATION": "CREATE SESSION, SELECT ANY TABLE, INSERT ANY TABLE, UPDATE ANY TABLE, DELETE ANY TABLE,"
    " LOCK ANY TABLE",
}

_EXISTS = 1920
_USER_IS_CONNECTED = 1940


class OracleEmulator(PrivateServer):
    name = "oracle"
    variable = "ORACLE_DSN"
    package = "postgresql-15-orafce"

    def dsn(self, state: State) -> str:
        return f"oracle://system:{state.password}@127.0.0.1:{state.port}/FREEPDB1"

    def mark(self) -> str:
        return f"--home={self.home}"

    def create(self) -> State:
        if importlib.util.find_spec("seerdb") is None:
            raise Unavailable("no Oracle wire emulator: pip install 'seerdb[mirror]', or set ORACLE_DSN")
        from tests.servers import oracle_emulator

        # The system's C library stays: another one of the same release, under its loader, gains nothing.
        archives = debian.download(self.package, suite="bookworm", cache=self.cache / self.name)
        debian.unpack(archives, without=("libc6",))
        self.data.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            shutil.chown(self.data, "nobody", "nogroup")
        done = subprocess.run(
            oracle_emulator.postgres_command(
                self.root,
                "initdb",
                *("-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8"),
                *("--locale=C.UTF-8", "--no-sync", "--no-instructions"),
            ),
            env=oracle_emulator.postgres_environment(self.root),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if done.returncode != 0:
            raise Unavailable(f"the Oracle wire emulator's PostgreSQL has no data directory: {done.stderr[-2000:]}")
        return State(version="wire emulator", port=free_port(), password=secrets.token_hex(16))

    def command(self, state: State) -> list[str]:
        program = [sys.executable, "-m", "tests.servers.oracle_emulator", self.mark(), f"--root={self.root}"]
        return ["env", "-C", str(ROOT), *program]

    def log_in(self, state: State) -> Exception | None:
        import oracledb

        try:
            connect(self.dsn(state)).close()
        except oracledb.Error as error:
            return error
        return None


def dsn() -> str:
    """The DSN for this process: ``ORACLE_DSN`` if given, else of the private server, started if need be.

    Raises Unavailable. Each process of pytest-xdist has an emulator of its own: the emulator stumbles over tables
    that somebody else drops meanwhile.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    home = None if worker == "gw0" else STORES / f"{OracleEmulator.name}-{worker}"
    return os.environ.get(OracleEmulator.variable) or OracleEmulator(home).use()


def emulators_of_workers() -> list[OracleEmulator]:
    """Those that processes of pytest-xdist have started, but the first's."""
    return [OracleEmulator(home) for home in sorted(STORES.glob(f"{OracleEmulator.name}-*"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A schema of a test, as its owner and two accounts see it: ``oracle://user:password@host:port/service?schema=…``"""

    name: str
    admin: str
    copier: str
    application: str


@contextmanager
def database(server: str) -> Iterator[Database]:
    """A fresh, empty schema on the server with this DSN, dropped at the end.

    ``admin`` owns it, ``copier`` may make and change all in it, ``application`` reads and writes rows. The accounts
    of the last two stay.
    """
    address = urlsplit(server)
    name = f"FL{secrets.token_hex(6)}".upper()
    # The same for every test run on this server, and known to nobody who cannot administer it.
    password = hashlib.sha256(server.encode()).hexdigest()[:28]
    host = (address.netloc).rpartition("@")[2]

    def url(user: str, secret: str) -> str:
        return urlunsplit(address._replace(netloc=f"{user}:{secret}@{host}", query=f"schema={name}"))

    with closing(connect(server)) as system, closing(system.cursor()) as cursor:
        _ensure_accounts(cursor, password)
        cursor.execute(f'CREATE USER {name} IDENTIFIED BY "{password}"')
        try:
            cursor.execute(f"GRANT CONNECT, RESOURCE, CREATE VIEW, UNLIMITED TABLESPACE, ALTER SYSTEM TO {name}")
            yield Database(
                name=name,
                admin=url(name, password),
                copier=url("COPIER", password),
                application=url("APPLICATION", password),
            )
        finally:
            _drop(cursor, name)


def connect(url: str) -> Connection:
    """A connection to an ``oracle://user:password@host:port/service?schema=SCHEMA`` URL."""
    import oracledb

    address = urlsplit(url)
    connection = oracledb.connect(
        user=unquote(address.username or ""),
        password=unquote(address.password or ""),
        host=address.hostname or "127.0.0.1",
        port=address.port or 1521,
        service_name=address.path.strip("/"),
    )
    if schema := parse_qs(address.query).get("schema"):
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER SESSION SET CURRENT_SCHEMA = {schema[0]}")
    return connection


def is_real() -> bool:
    """Whether the tests run on an Oracle: ``ORACLE_DSN`` names one, and not the emulator of ``make stores``."""
    given = os.environ.get(OracleEmulator.variable)
    return bool(given) and given != OracleEmulator().running()


def _ensure_accounts(cursor: Cursor, password: str) -> None:
    import oracledb

    for account, rights in _ACCOUNTS.items():
        try:
            cursor.execute(f'CREATE USER {account} IDENTIFIED BY "{password}"')
        except oracledb.DatabaseError as error:
            if error.args[0].code != _EXISTS:
                raise
            # The password of a server that has come back on another port is another one.
            cursor.execute(f'ALTER USER {account} IDENTIFIED BY "{password}"')
        cursor.execute(f"GRANT {rights} TO {account}")


def _drop(cursor: Cursor, name: str) -> None:
    """Its last connections may still be fading."""
    import oracledb

    deadline = time.monotonic() + DROP_SECONDS
    while True:
        try:
            cursor.execute(f"DROP USER {name} CASCADE")
            return
        except oracledb.DatabaseError as error:
            if error.args[0].code != _USER_IS_CONNECTED or time.monotonic() > deadline:
                raise
        time.sleep(0.05)
