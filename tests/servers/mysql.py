"""MySQL of Debian sid, and MariaDB of this Debian, as private servers on a free port of 127.0.0.1.

Each server keeps everything in ``.stores/<name>``; its packages stay in ``.stores/cache/<name>`` when it is stopped.
``MYSQL_DSN`` or ``MARIADB_DSN`` (``mysql://user:password@host:port/``, an account that may create others) name a
server that is there already; nothing is started then.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

from tests.servers import STORES, Unavailable, debian

if TYPE_CHECKING:
    from MySQLdb.connections import Connection

log = logging.getLogger("tests.servers")

START_SECONDS = 120
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is remembered of an initialised server: enough to start it again and to log in."""

    version: str
    port: int
    password: str

    @property
    def dsn(self) -> str:
        return f"mysql://root:{self.password}@127.0.0.1:{self.port}/"


class MysqlServer:
    """``home`` is created by ``start`` and removed by ``stop``; ``cache`` holds downloads and locks."""

    name = "mysql"
    variable = "MYSQL_DSN"
    package = "mysql-server-core"
    binary = "usr/sbin/mysqld"
    options: ClassVar[tuple[str, ...]] = ("--mysqlx=OFF", "--secure-file-priv=NULL")

    def __init__(self, home: Path | None = None, cache: Path | None = None) -> None:
        self.home = home or STORES / self.name
        self.cache = cache or STORES / "cache"
        self.root = self.home / "root"
        self.data = self.home / "data"
        self.log = self.home / "server.log"
        self.busy = self.cache / f"{self.name}.busy"  # locked by who starts or stops the server
        self.users = self.cache / f"{self.name}.users"  # shared by who uses it

    def running(self) -> str | None:
        """The DSN of the server if its process runs."""
        state = self._state()
        return state.dsn if state and self.pid() else None

    def pid(self) -> int | None:
        """The recorded process if it lives and is this server: the id may have gone to a stranger."""
        try:
            pid = int((self.home / "pid").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        process = Path(f"/proc/{pid}")
        deadline = time.monotonic() + 10
        try:
            while time.monotonic() < deadline:
                arguments = (process / "cmdline").read_bytes()
                if arguments:
                    return pid if f"--datadir={self.data}".encode() in arguments.split(b"\0") else None
                # It has given up its memory. Until its last thread is gone, it holds its files and its port.
                state = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                if state == "Z" and len(list((process / "task").iterdir())) == 1:
                    return None  # dead; whoever adopted it has not noticed yet
                time.sleep(0.01)
        except (FileNotFoundError, ProcessLookupError):
            pass
        return None

    def start(self) -> str:
        """Have the server run and answer; return its DSN. Does nothing to one that runs.

        A server that died is started again on its data. Raises Unavailable.
        """
        with _locked(self.busy, fcntl.LOCK_EX):
            state = self._state() or self._create()
            had = self.pid() is not None
            if not had:
                state = self._launch(state)
            self._wait_for_login(state)
            log.info("%s %s %s on port %d", self.name, state.version, "runs already" if had else "started", state.port)
            return state.dsn

    def stop(self, *, unless_used: bool = False) -> bool:
        """End the server and remove its folder. False if it was left alone, because another test run uses it."""
        if not self.home.exists():
            return True
        with _locked(self.busy, fcntl.LOCK_EX):
            try:
                with _locked(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    self._end()
            except BlockingIOError:
                if unless_used:
                    return False
                self._end()
        return True

    def use(self) -> str:
        """``start``, and keep other test runs from stopping the server until this process ends."""
        _hold(self.users)
        return self.start()

    # -- how this server differs from the other one

    def _suite(self) -> str:
        return "sid"

    def _initialise(self, password: str) -> None:
        statements = self.home / "first.sql"
        statements.write_text(f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n", encoding="utf-8")
        self._run_once("--initialize-insecure", f"--init-file={statements}")
        statements.unlink()

    # -- steps

    def _create(self) -> State:
        shutil.rmtree(self.home, ignore_errors=True)  # what an interrupted start left
        archives = debian.download(self.package, suite=self._suite(), cache=self.cache / self.name)
        self.root.mkdir(parents=True)
        (self.home / "tmp").mkdir()
        debian.unpack(archives, self.root)
        version = subprocess.run([*self._program(), "--version"], capture_output=True, text=True, check=False)
        if version.returncode != 0:
            raise debian.NoPackage(f"{self.package} of Debian {self._suite()} does not run: {version.stderr.strip()}")
        password = secrets.token_hex(16)
        self._initialise(password)
        # "/path/mysqld  Ver 9.7.4-2 for Linux …"
        state = State(version=version.stdout.split("Ver ", 1)[1].split(" ", 1)[0], port=_free_port(), password=password)
        self._remember(state)
        return state

    def _launch(self, state: State) -> State:
        (self.home / "tmp").mkdir(exist_ok=True)
        if not _is_free(state.port):
            state = State(version=state.version, port=_free_port(), password=state.password)
            self._remember(state)
        # Of a server that was killed: it would count as alive for as long as nobody reaps the process.
        (self.data / "server.sock.lock").unlink(missing_ok=True)
        # The shell leaves the server to init and notes its process id even if this program dies meanwhile.
        command = [
            *("sh", "-c", 'pid=$1; log=$2; shift 2; "$@" >>"$log" 2>&1 </dev/null & echo $! >"$pid"', "sh"),
            *(str(self.home / "pid"), str(self.log), *self._program(), *self._arguments()),
            *(f"--port={state.port}", "--bind-address=127.0.0.1"),
        ]
        subprocess.run(command, check=True, start_new_session=True)
        return state

    def _wait_for_login(self, state: State) -> None:
        import MySQLdb

        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                connect(state.dsn).close()
                return
            except MySQLdb.OperationalError as error:
                if self.pid() is None:
                    raise Unavailable(f"{self.name} ended while starting. {self._log_tail()}") from error
                if time.monotonic() > deadline:
                    self._end_process()
                    raise Unavailable(
                        f"{self.name} let nobody in for {START_SECONDS} s: {error}. {self._log_tail()}"
                    ) from error
            time.sleep(0.05)

    def _end(self) -> None:
        if self.home.exists():
            self._end_process()
            shutil.rmtree(self.home)
            log.info("%s is stopped and its files are removed", self.name)

    def _end_process(self) -> None:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 10)):
            pid = self.pid()
            if pid is None:
                return
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(0.05)
        if self.pid() is not None:
            raise Unavailable(f"{self.name}: process {pid} does not end; its files are in {self.home}")

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
            raise Unavailable(f"{self.name} could not create its data directory. {self._log_tail()}")

    def _state(self) -> State | None:
        try:
            return State(**json.loads((self.home / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def _remember(self, state: State) -> None:
        written = self.home / "state.json.new"
        written.touch(mode=0o600)
        written.write_text(json.dumps(asdict(state)), encoding="utf-8")
        written.replace(self.home / "state.json")

    def _log_tail(self) -> str:
        if not self.log.exists():
            return "It wrote no log."
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"The end of {self.log}:", *lines[-25:]])


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
    password = hashlib.sha256(server.encode()).hexdigest()[:32]
    with closing(connect(server)) as admin, closing(admin.cursor()) as cursor:
        for user in ("copier", "application"):
            cursor.execute("CREATE USER IF NOT EXISTS %s@'%%' IDENTIFIED BY %s", (user, password))
        cursor.execute("GRANT PROCESS ON *.* TO copier@'%'")
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            cursor.execute(f"GRANT ALL ON {name}.* TO copier@'%'")
            cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO application@'%'")
            yield Database(
                name=name,
                admin=urlunsplit(address._replace(path=f"/{name}")),
                copier=f"mysql://copier:{password}@{address.hostname}:{address.port or 3306}/{name}",
                application=f"mysql://application:{password}@{address.hostname}:{address.port or 3306}/{name}",
            )
        finally:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does it: a port whose last connections are still fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@functools.cache
def _hold(path: Path) -> None:
    """Share the lock until this process ends, however that happens: the descriptor is left open on purpose."""
    fcntl.flock(_open(path), fcntl.LOCK_SH)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
