"""The command line: see ``python -m tests.servers --help``."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.servers import Unavailable, mysql, oracle, redis
from tests.servers.private import PrivateServer

SERVERS: dict[str, type[PrivateServer]] = {
    **mysql.SERVERS,
    oracle.OracleEmulator.name: oracle.OracleEmulator,
    redis.RedisServer.name: redis.RedisServer,
}
STARTS = {"mysql": mysql.dsn, "mariadb": mysql.mariadb_dsn, "oracle": oracle.dsn, "redis": redis.dsn}

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that must be free there for a run's temporary files, which are many small databases."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description="Private servers for the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start a server unless it runs already, and print its DSN")
    start.add_argument("name", nargs="?", choices=STARTS, help="without it: all of them")
    stop = commands.add_parser("stop", help="stop every server, or one, and remove its files, but for downloads")
    stop.add_argument("name", nargs="?", choices=SERVERS)
    commands.add_parser("env", help="print an export line for each server that runs")
    around = commands.add_parser("around", help="run a command, then stop the servers that it started")
    around.add_argument("--volatile", action="store_true", help="nothing that it writes need outlive the machine")
    around.add_argument("words", nargs=argparse.REMAINDER, metavar="command")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        match chosen.command:
            case "start":
                for name in [chosen.name] if chosen.name else STARTS:
                    print(f"{SERVERS[name].variable}={STARTS[name]()}", flush=True)
            case "stop":
                for kind in [SERVERS[chosen.name]] if chosen.name else SERVERS.values():
                    kind().stop()
                if chosen.name in (None, oracle.OracleEmulator.name):
                    for server in oracle.emulators_of_workers():
                        server.stop()
            case "env":
                for kind in SERVERS.values():
                    if dsn := os.environ.get(kind.variable) or kind().running():
                        print(f"export {kind.variable}={shlex.quote(dsn)}")
            case "around":
                return _around(chosen.words, volatile=chosen.volatile)
    except Unavailable as reason:
        print(f"tests.servers: {reason}", file=sys.stderr)
        return 1
    return 0


def _around(command: list[str], *, volatile: bool) -> int:
    idle = [server for kind in SERVERS.values() if not (server := kind()).running()]
    with ExitStack() as kept:
        environment = dict(os.environ)
        if volatile:
            environment[mysql.VOLATILE] = "1"
            if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM:
                made = tempfile.TemporaryDirectory(prefix="fishladder-", dir=MEMORY, ignore_cleanup_errors=True)
                folder = kept.enter_context(made)
                os.chmod(folder, 0o755)  # PostgreSQL is another user, if we are root
                environment["TMPDIR"] = folder
        process = subprocess.Popen(command, env=environment)
        # Ctrl-C reaches the command by itself; the servers are stopped after it has ended, whatever ended it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    for server in [*idle, *oracle.emulators_of_workers()]:
        if not server.stop(unless_used=True):
            print(f"{server.name} was left running: another test run uses it", file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
