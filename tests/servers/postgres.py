"""PostgreSQL as a private server on a socket of its own: Debian's binaries, no system cluster, no port.

``POSTGRES_DSN`` (``postgresql://user:password@host:port/database``, an account that may create databases) names a
server that is there already; nothing is started then.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from tests.servers import Unavailable

_LOGINS = "local all postgres trust\nlocal all all scram-sha-256\n"
"""Of pg_hba.conf: all but the administrator give a password."""
_SETTINGS = "-c listen_addresses='' -c fsync=off -c max_connections=100"


class PostgresServer:
    """A server in a folder of its own. Raises Unavailable where there is none to start."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not found:
            raise Unavailable("no PostgreSQL: apt-get install postgresql, or set POSTGRES_DSN")
        self._binaries = found[-1].parent
        self._account: str | None = None
        self.home = Path(tempfile.mkdtemp(prefix="fishladder-postgres-"))
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            self._account = "postgres"
            os.chown(self.home, pwd.getpwnam(self._account).pw_uid, -1)
        try:
            self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        except Unavailable:
            shutil.rmtree(self.home)
            raise
        (self.home / "data" / "pg_hba.conf").write_text(_LOGINS)

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.home}"

    def start(self) -> str:
        """Serve the data, also after a crash. Returns the DSN."""
        self._run("pg_ctl", "-w", "-l", str(self.home / "server.log"), "-o", f"-k {self.home} {_SETTINGS}", "start")
        return self.dsn

    def crash(self) -> None:
        """Kill all its processes at once: nothing is finished, nobody is told, and the next start recovers."""
        postmaster = self._postmaster()
        assert postmaster is not None, "it does not run"
        os.kill(postmaster, signal.SIGSTOP)  # it must not replace who dies before it, nor they hear of its death
        _until(lambda: _stat(postmaster)[0] == "T", "it to stand still")
        its = [*(pid for pid in _pids() if _stat(pid)[1] == postmaster), postmaster]
        for pid in its:
            os.kill(pid, signal.SIGKILL)
        _until(lambda: all(_stat(pid)[0] in "ZX" for pid in its), "its processes to end")
        with suppress(Unavailable):
            _until(lambda: _stat(postmaster)[0] == "X", "somebody to reap it", seconds=5)
            return
        for lock in (self._lock, self.home / ".s.PGSQL.5432.lock"):  # they name a process that seems to live
            lock.unlink()

    def remove(self) -> None:
        if self._postmaster() is None and self._lock.exists():
            self.start()  # which frees the shared memory of the one that was killed
        if self._lock.exists():
            self._run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.home)

    @property
    def _lock(self) -> Path:
        return self.home / "data" / "postmaster.pid"

    def _postmaster(self) -> int | None:
        """The process that has started the others, if it lives: the id may have gone to a stranger."""
        if not self._lock.exists():
            return None
        pid = int(self._lock.read_text(encoding="utf-8").split()[0])
        with suppress(FileNotFoundError, ProcessLookupError):
            if str(self.home / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        return None

    def _run(self, program: str, *arguments: str) -> None:
        # Into a file: a pipe would stay open as long as the server lives.
        with (self.home / "setup.log").open("a+b") as log:
            done = subprocess.run(
                [self._binaries / program, "-D", self.home / "data", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                user=self._account,
                check=False,
            )
        if done.returncode != 0:
            raise Unavailable(f"{program} failed: {(self.home / 'setup.log').read_text()[-2000:]}")


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> tuple[str, int]:
    """A process's state and its parent; X once it is gone, Z before who adopted it has noticed."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return state, int(parent)


def _until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Unavailable(f"PostgreSQL: waited {seconds} s for {what}")
        time.sleep(0.01)


@functools.cache
def dsn() -> str:
    """The DSN of a PostgreSQL for this process, which stops at its end. Raises Unavailable."""
    needs_driver()
    if given := os.environ.get("POSTGRES_DSN"):
        return given
    server = PostgresServer()
    atexit.register(server.remove)
    return server.start()


def needs_driver() -> None:
    """Raises Unavailable where there is no driver."""
    if importlib.util.find_spec("psycopg") is None:
        raise Unavailable("no driver: pip install 'psycopg[binary]'")


@contextmanager
def database(server: str) -> Iterator[str]:
    """The URL of a fresh, empty database on the server with this DSN; dropped at the end."""
    name = f"fl{secrets.token_hex(6)}"
    address = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield address.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        finally:
            with engine.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()
