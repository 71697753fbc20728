"""MySQL of Debian sid, and MariaDB of this Debian, as private servers on a free port of 127.0.0.1.

Each server keeps its data in ``.stores/<name>``; its programs stay in ``.stores/cache/<name>`` when it is stopped.
``MYSQL_DSN`` or ``MARIADB_DSN`` (``mysql://user:password@host:port/``, an account that may create others) name a
server that is there already; nothing is started then.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

from tests.servers import Unavailable, debian
from tests.servers.private import PrivateServer, State, free_port

if TYPE_CHECKING:
    from MySQLdb.connections import Connection

log = logging.getLogger("tests.servers")

VOLATILE = "FISHLADDER_STORES_VOLATILE"
"""Set in the environment: a server that starts waits for no disk."""


class MysqlServer(PrivateServer):
    name = "mysql"
    variable = "MYSQL_DSN"
    package = "mysql-server-core"
    binary = "usr/sbin/mysqld"
    options: ClassVar[tuple[str, ...]] = ("--mysqlx=OFF", "--secure-file-priv=NULL")

    # -- how this server differs from the other one

    def _suite(self) -> str:
        return "sid"

    def _initialise(self, password: str) -> None:
        statements = self.home / "first.sql"
        statements.write_text(f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n", encoding="utf-8")
        self._run_once("--initialize-insecure", f"--init-file={statements}")
        statements.unlink()

    # -- steps

    def dsn(self, state: State) -> str:
        return f"mysql://root:{state.password}@127.0.0.1:{state.port}/"

    def mark(self) -> str:
        return f"--datadir={self.data}"

    def create(self) -> State:
        archives = debian.download(self.package, suite=self._suite(), cache=self.cache / self.name)
        (self.home / "tmp").mkdir(parents=True)
        debian.unpack(archives)
        version = subprocess.run([*self._program(), "--version"], capture_output=True, text=True, check=False)
        if version.returncode != 0:
            raise debian.NoPackage(f"{self.package} of Debian {self._suite()} does not run: {version.stderr.strip()}")
        password = secrets.token_hex(16)
        self._initialise(password)
        # "/path/mysqld  Ver 9.7.4-2 for Linux …"
        return State(version=version.stdout.split("Ver ", 1)[1].split(" ", 1)[0], port=free_port(), password=password)

    def command(self, state: State) -> list[str]:
        (self.home / "tmp").mkdir(exist_ok=True)
        # Of a server that was killed: it would count as alive for as long as nobody reaps the process.
        (self.data / "server.sock.lock").unlink(missing_ok=True)
        return [*self._program(), *self._arguments(), f"--port={state.port}", "--bind-address=127.0.0.1"]

    def log_in(self, state: State) -> Exception | None:
        import MySQLdb

        try:
            connect(self.dsn(state)).close()
        except MySQLdb.OperationalError as error:
            return error
        return None

    # -- parts

    def _program(self) -> list[str]:
        return debian.program(self.root, self.binary, "usr/lib/mysql/private")

    def _arguments(self) -> list[str]:
        return [
            "--no-defaults",
            *(["--user=root"] if os.geteuid() == 0 else []),
            f"--basedir={self.root / 'usr'}",
            f"--datadir={self.data}",
            f"--lc-messages-dir={self.root / 'usr/share/mysql'}/",
            f"--plugin-dir={self.root / 'usr/lib/mysql/plugin'}",
            f"--tmpdir={self.home / 'tmp'}",  # in a shared one, a server that starts removes another's tables
            "--socket=server.sock",  # relative to the data directory: a deep folder would exceed a socket's 107 bytes
            f"--pid-file={self.data / 'server.pid'}",
            "--local-infile=1",
            "--log-bin-trust-function-creators=1",  # triggers are installed by an account that is not an administrator
            # Small, and durable like a real one: binary log, flush at commit and double writes are as they come.
            "--innodb-buffer-pool-size=128M",
            "--table-open-cache=400",
            "--max-connections=200",
            # What was written is there still when the server is killed; when the machine is, it need not be.
            *(["--innodb-flush-method=nosync", "--sync-binlog=0"] if os.environ.get(VOLATILE) else []),
            *self.options,
        ]

    def _run_once(self, *arguments: str, statements: str | None = None) -> None:
        done = subprocess.run(
            [*self._program(), *self._arguments(), *arguments],
            input=statements or "",
            capture_output=True,
            text=True,
            check=False,
        )
        with self.log.open("a", encoding="utf-8") as out:
            out.write(done.stdout + done.stderr)
        if done.returncode != 0:
            raise Unavailable(f"{self.name} could not create its data directory. {self.log_tail()}")


class MariadbServer(MysqlServer):
    name = "mariadb"
    variable = "MARIADB_DSN"
    package = "mariadb-server-core"
    binary = "usr/sbin/mariadbd"
    options: ClassVar[tuple[str, ...]] = ("--log-bin=binlog", "--server-id=1")

    def _suite(self) -> str:
        return debian.codename()

    def _initialise(self, password: str) -> None:
        # What mariadb-install-db does, without its search for a system's own files.
        self.data.mkdir()
        scripts = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")
        self._run_once(
            "--bootstrap",
            statements="\n".join(
                [
                    "CREATE DATABASE mysql;",
                    "USE mysql;",
                    "SET @auth_root_socket = NULL;",
                    *((self.root / "usr/share/mysql" / script).read_text(encoding="utf-8") for script in scripts),
                    "DELETE FROM global_priv WHERE Host <> 'localhost' OR User NOT IN ('root', 'mariadb.sys');",
                    "FLUSH PRIVILEGES;",
                    f"ALTER USER root@localhost IDENTIFIED BY '{password}';",
                ]
            ),
        )


SERVERS: dict[str, type[MysqlServer]] = {kind.name: kind for kind in (MysqlServer, MariadbServer)}


def dsn() -> str:
    """The DSN of a MySQL for this process: ``MYSQL_DSN`` if given, else of the private server, started if need be.

    Where Debian sid has no usable MySQL, MariaDB takes its place and a warning says so. Raises Unavailable.
    """
    if given := os.environ.get(MysqlServer.variable):
        return given
    try:
        return MysqlServer().use()
    except debian.NoPackage as reason:
        log.warning("!!! NO MYSQL: %s. MariaDB takes its place; nothing is shown about MySQL itself. !!!", reason)
        return MariadbServer().use()


def mariadb_dsn() -> str:
    """The DSN of a MariaDB for this process, like ``dsn``. Raises Unavailable."""
    return os.environ.get(MariadbServer.variable) or MariadbServer().use()


def version(server: str) -> str:
    """What the server with this DSN calls itself, such as ``9.7.4-2`` or ``10.11.14-MariaDB``."""
    with closing(connect(server)) as admin, closing(admin.cursor()) as cursor:
        cursor.execute("SELECT VERSION()")
        return str(cursor.fetchone()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database of a test: the same one as three accounts see it, each as ``mysql://user:password@host:port/name``."""

    name: str
    admin: str
    copier: str
    application: str


@contextmanager
def database(server: str) -> Iterator[Database]:
    """A fresh, empty utf8mb4 database on the server with this DSN, dropped at the end.

    ``copier`` may do all within the database and has PROCESS (to read table ids and to name who blocks it);
    ``application`` reads and writes rows. Both accounts stay, without any right.
    """
    address = urlsplit(server)
    name = f"fl{secrets.token_hex(6)}"
    # The same for every test run on this server, and known to nobody who cannot administer it.
    # Of the password alone: the accounts stay when the server comes back on another port.
    password = hashlib.sha256((urlsplit(server).password or "").encode()).hexdigest()[:32]
    with closing(connect(server)) as admin, closing(admin.cursor()) as cursor:
        for user in ("copier", "application"):
            cursor.execute("CREATE USER IF NOT EXISTS %s@'%%' IDENTIFIED BY %s", (user, password))
        cursor.execute("GRANT PROCESS ON *.* TO copier@'%'")
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        cursor.execute(f"GRANT ALL ON {name}.* TO copier@'%'")
        cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO application@'%'")
    try:
        yield Database(
            name=name,
            admin=urlunsplit(address._replace(path=f"/{name}")),
            copier=f"mysql://copier:{password}@{address.hostname}:{address.port or 3306}/{name}",
            application=f"mysql://application:{password}@{address.hostname}:{address.port or 3306}/{name}",
        )
    finally:
        # Another connection: the test may have killed the server and started it again.
        with closing(connect(server)) as admin, closing(admin.cursor()) as cursor:
            cursor.execute(f"DROP DATABASE {name}")
            cursor.execute(f"REVOKE ALL ON {name}.* FROM copier@'%'")
            cursor.execute(f"REVOKE ALL ON {name}.* FROM application@'%'")


def connect(url: str) -> Connection:
    """A connection to a ``mysql://user:password@host:port/database`` URL."""
    # Imported late: `stop` has to work without the driver.
    import MySQLdb

    address = urlsplit(url)
    return MySQLdb.connect(
        host=address.hostname or "127.0.0.1",
        port=address.port or 3306,
        user=unquote(address.username or "root"),
        passwd=unquote(address.password or ""),
        db=address.path.strip("/"),
        charset="utf8mb4",
        local_infile=True,
    )
