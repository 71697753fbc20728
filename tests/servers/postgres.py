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
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from tests.servers import Unavailable

_SETTINGS = "-c listen_addresses='' -c fsync=off -c max_connections=100"


@functools.cache
def dsn() -> str:
    """The DSN of a PostgreSQL for this process, which stops at its end. Raises Unavailable."""
    if importlib.util.find_spec("psycopg") is None:
        raise Unavailable("no driver: pip install 'psycopg[binary]'")
    if given := os.environ.get("POSTGRES_DSN"):
        return given
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not binaries:
        raise Unavailable("no PostgreSQL: apt-get install postgresql, or set POSTGRES_DSN")
    return _start(binaries[-1].parent)


def _start(binaries: Path) -> str:
    home = Path(tempfile.mkdtemp(prefix="fishladder-postgres-"))
    account: str | None = None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        account = "postgres"
        os.chown(home, pwd.getpwnam(account).pw_uid, -1)

    def run(*command: str) -> None:
        # Into a file: a pipe would stay open as long as the server lives.
        with (home / "setup.log").open("a+b") as log:
            done = subprocess.run(
                [binaries / command[0], "-D", home / "data", *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home,
                user=account,
                check=False,
            )
        if done.returncode != 0:
            raise Unavailable(f"{command[0]} failed: {(home / 'setup.log').read_text()[-2000:]}")

    def stop() -> None:
        run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(home)

    try:
        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-w", "-l", str(home / "server.log"), "-o", f"-k {home} {_SETTINGS}", "start")
    except Unavailable:
        shutil.rmtree(home)
        raise
    atexit.register(stop)
    return f"postgresql://postgres@/postgres?host={home}"


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
