"""A private server of the tests: a process of its own that outlives who started it, and is found again.

It keeps everything in ``.stores/<name>``, but for its programs: those stay in ``.stores/cache/<name>`` when it is
stopped.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.servers import STORES, Unavailable

log = logging.getLogger("tests.servers")

START_SECONDS = 120
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is remembered of an initialised server: enough to start it again and to log in."""

    version: str
    port: int
    password: str


class PrivateServer(ABC):
    """``home`` is created by ``start`` and removed by ``stop``; ``cache`` holds downloads and locks."""

    name: str
    variable: str
    """The environment variable that names a server that is there already; nothing is started then."""

    def __init__(self, home: Path | None = None, cache: Path | None = None) -> None:
        self.home = home or STORES / self.name
        self.cache = cache or STORES / "cache"
        self.root = self.cache / self.name / "root"  # shared by all servers of the kind
        self.data = self.home / "data"
        self.log = self.home / "server.log"
        self.busy = self.cache / f"{self.name}.busy"  # locked by who starts or stops the server
        self.users = self.cache / f"{self.name}.users"  # shared by who uses it

    # -- how one server differs from another

    @abstractmethod
    def dsn(self, state: State) -> str: ...

    @abstractmethod
    def mark(self) -> str:
        """The argument by which its process is told from all others."""

    @abstractmethod
    def create(self) -> State:
        """Make the data in an empty ``home``. Raises Unavailable."""

    @abstractmethod
    def command(self, state: State) -> list[str]:
        """The program that serves on the port of the state, with its arguments."""

    @abstractmethod
    def log_in(self, state: State) -> Exception | None:
        """Try it: what went wrong when the server does not answer (yet)."""

    # -- what they have in common

    def running(self) -> str | None:
        """The DSN of the server if its process runs."""
        state = self._state()
        return self.dsn(state) if state and self.pid() else None

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
                    return pid if self.mark().encode() in arguments.split(b"\0") else None
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
            return self.dsn(state)

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

    def log_tail(self) -> str:
        if not self.log.exists():
            return "It wrote no log."
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"The end of {self.log}:", *lines[-25:]])

    # -- steps

    def _create(self) -> State:
        shutil.rmtree(self.home, ignore_errors=True)  # what an interrupted start left
        state = self.create()
        self._remember(state)
        return state

    def _launch(self, state: State) -> State:
        if not _is_free(state.port):
            state = replace(state, port=free_port())
            self._remember(state)
        # The shell leaves the server to init and notes its process id even if this program dies meanwhile.
        command = [
            *("sh", "-c", 'pid=$1; log=$2; shift 2; "$@" >>"$log" 2>&1 </dev/null & echo $! >"$pid"', "sh"),
            *(str(self.home / "pid"), str(self.log), *self.command(state)),
        ]
        subprocess.run(command, check=True, start_new_session=True)
        return state

    def _wait_for_login(self, state: State) -> None:
        deadline = time.monotonic() + START_SECONDS
        while (error := self.log_in(state)) is not None:
            if self.pid() is None:
                raise Unavailable(f"{self.name} ended while starting. {self.log_tail()}") from error
            if time.monotonic() > deadline:
                self._end_process()
                raise Unavailable(
                    f"{self.name} let nobody in for {START_SECONDS} s: {error}. {self.log_tail()}"
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


def free_port() -> int:
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
