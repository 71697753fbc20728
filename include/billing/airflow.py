"""A private Airflow for the demo: set up in one folder, spoken to by its REST API, ended with all its children."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

START_SECONDS = 180.0
POLL_SECONDS = 1.0
TRIES = 5


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Airflow:
    """``airflow standalone`` on SQLite with its home in ``home``, one user ``admin``."""

    def __init__(self, home: Path, dags: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self.password = secrets.token_urlsafe(9)
        self.port = _free_port(8080)
        self.url = f"http://127.0.0.1:{self.port}"
        self._token = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            **environment,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(dags.parent / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "6",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        }

    def start(self) -> None:
        """Start it and wait until a user can log in. Raises DemoError with the end of its log."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "passwords.json").write_text(json.dumps({"admin": self.password}))
        log = (self.home / "standalone.log").open("wb")
        command = [sys.executable, "-m", "airflow", "standalone"]
        # A group of its own: ending the parent alone would leave its children running.
        self._process = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        end = time.monotonic() + START_SECONDS
        while not self._log_in():
            if self._process.poll() is not None or time.monotonic() > end:
                tail = (self.home / "standalone.log").read_text(errors="replace")[-2000:]
                raise DemoError(f"Airflow did not start; the end of {self.home / 'standalone.log'}:\n{tail}")
            time.sleep(POLL_SECONDS)

    def _log_in(self) -> bool:
        try:
            answer = self.call("POST", "/auth/token", {"username": "admin", "password": self.password})
        except (urllib.error.URLError, ConnectionError, DemoError):
            return False
        self._token = answer["access_token"]
        return True

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One call of the REST API; what only asks is asked again when the answer is late.

        Raises ``urllib.error.HTTPError`` and its kin, and DemoError without an answer.
        """
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        for _ in range(TRIES if method == "GET" else 1):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    content = answer.read()
            except TimeoutError:
                continue
            return json.loads(content) if content else None
        raise DemoError(f"Airflow does not answer {method} {self.url}{path}; its log is in {self.home}")

    def wait_for_dag(self, dag: str, seconds: float = 120.0) -> None:
        """Until the DAG has been parsed."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.call("GET", f"/api/v2/dags/{dag}")
                return
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
            if time.monotonic() > end:
                problems = self.call("GET", "/api/v2/importErrors")["import_errors"]
                raise DemoError(
                    f"Airflow does not know {dag}: {[problem['stack_trace'][-500:] for problem in problems]}"
                )
            time.sleep(POLL_SECONDS)

    def pool(self, name: str, slots: int) -> None:
        """Create the pool, or leave it as it is."""
        try:
            self.call("POST", "/api/v2/pools", {"name": name, "slots": slots})
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def unpause(self, dag: str) -> None:
        self.call("PATCH", f"/api/v2/dags/{dag}?update_mask=is_paused", {"is_paused": False})

    def run(self, dag: str, conf: Mapping[str, object] | None = None, seconds: float = 900.0) -> str:
        """Trigger the DAG and wait for its end. Returns ``success`` or ``failed``."""
        self.unpause(dag)
        run = self.call("POST", f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        path = f"/api/v2/dags/{dag}/dagRuns/{run['dag_run_id']}"
        end = time.monotonic() + seconds
        while (state := self.call("GET", path)["state"]) not in ("success", "failed"):
            if time.monotonic() > end:
                raise DemoError(f"{dag} is still {state} after {seconds:.0f} s; look at {self.url}/dags/{dag}")
            time.sleep(POLL_SECONDS)
        return str(state)

    def failures(self, dag: str) -> list[str]:
        """The failed tasks of the DAG's newest run."""
        runs = self.call("GET", f"/api/v2/dags/{dag}/dagRuns?order_by=-run_after&limit=1")["dag_runs"]
        if not runs:
            return []
        tasks = self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{runs[0]['dag_run_id']}/taskInstances")["task_instances"]
        return [task["task_id"] for task in tasks if task["state"] == "failed"]

    def stop(self) -> None:
        """End it and everything that it started: tasks run in process groups of their own."""
        if self._process is None:
            return
        family = {self._process.pid, *_descendants(self._process.pid)}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if self._gone(family, 20.0):
                break
        self._process = None

    def _gone(self, family: set[int], seconds: float) -> bool:
        """Whether all of these processes have ended in this time."""
        assert self._process is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._process.poll()
            if not any(_alive(pid) for pid in family):
                return True
            time.sleep(0.1)
        return False


def _alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _descendants(pid: int) -> set[int]:
    """The children of a process, their children, and so on."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, before = {pid}, 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError("no free port on 127.0.0.1")
