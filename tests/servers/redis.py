"""Redis of this Debian as a private server on a free port of 127.0.0.1: the broker of Airflow's Celery workers.

``REDIS_DSN`` (``redis://:password@host:port/0``, a database that may be filled) names a server that is there already;
nothing is started then.
"""

from __future__ import annotations

import os
import secrets
import subprocess

from tests.servers import debian
from tests.servers.private import PrivateServer, State, free_port


class RedisServer(PrivateServer):
    name = "redis"
    variable = "REDIS_DSN"
    package = "redis-server"
    binary = "usr/bin/redis-server"

    def dsn(self, state: State) -> str:
        return f"redis://:{state.password}@127.0.0.1:{state.port}/0"

    def mark(self) -> str:
        return str(self.home / "redis.conf")

    def create(self) -> State:
        archives = debian.download(self.package, suite=debian.codename(), cache=self.cache / self.name)
        self.data.mkdir(parents=True)
        debian.unpack(archives)
        program = debian.program(self.root, self.binary)
        version = subprocess.run([*program, "--version"], capture_output=True, text=True, check=False)
        if version.returncode != 0:
            raise debian.NoPackage(f"{self.package} of this Debian does not run: {version.stderr.strip()}")
        # "Redis server v=7.0.15 sha=…"
        number = version.stdout.split("v=", 1)[1].split(" ", 1)[0]
        return State(version=number, port=free_port(), password=secrets.token_hex(16))

    def command(self, state: State) -> list[str]:
        settings = self.home / "redis.conf"
        settings.touch(mode=0o600)
        # Its title would hide the arguments by which it is found again. What it holds is gone with it.
        settings.write_text(
            f"bind 127.0.0.1\nport {state.port}\nrequirepass {state.password}\ndir {self.data}\n"
            'set-proc-title no\nsave ""\nappendonly no\n',
            encoding="utf-8",
        )
        return [*debian.program(self.root, self.binary), str(settings)]

    def log_in(self, state: State) -> Exception | None:
        # Imported late: `stop` has to work without the driver.
        import redis

        try:
            with redis.Redis.from_url(self.dsn(state)) as client:
                client.ping()
        except redis.RedisError as error:
            return error
        return None


def dsn() -> str:
    """The DSN of a Redis. Raises Unavailable."""
    return os.environ.get(RedisServer.variable) or RedisServer().use()


def empty(server: str) -> None:
    """Remove everything from the database with this DSN: what a broker was not asked for any more."""
    import redis

    with redis.Redis.from_url(server) as client:
        client.flushdb()
