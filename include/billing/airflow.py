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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

START_SECONDS = 180.0
POLL_SECONDS = 1.0
TRIES = 5
SETTLE_SECONDS = 10.0
"""How long an approval must have been waiting before it can be answered."""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


USERS = {"admin": "admin", "approver": "user"}
"""Who asks for a flip, and who approves it, by Airflow's roles."""


class Airflow:
    """``airflow standalone`` on SQLite with its home in ``home``, and users ``admin`` and ``approver``.

    Another port is taken if ``port`` is in use.
    """

    def __init__(self, home: Path, dags: Path, environment: Mapping[str, str], *, port: int = 8080) -> None:
        self.home = home
        self.passwords = {name: secrets.token_urlsafe(9) for name in USERS}
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self._tokens: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            # Settings of another Airflow are not this one's, and its database least of all.
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")},
            **environment,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(dags.parent / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "6",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
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
        (self.home / "passwords.json").write_text(json.dumps(self.passwords))
        self.launch("standalone", "standalone")
        self.wait("a login", self._log_in)

    def launch(
        self, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one of its processes, with a log of this name."""
        log = (self.home / f"{name}.log").open("wb")
        # A group of its own: ending the parent alone would leave its children running.
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", *arguments],
            env={**self.environment, **(environment or {})},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def wait(self, what: str, done: Callable[[], bool]) -> None:
        """Until it is done. Raises DemoError when a process has ended, or after ``START_SECONDS``."""
        end = time.monotonic() + START_SECONDS
        while not done():
            if time.monotonic() > end or any(process.poll() is not None for process in self._processes):
                tails = [f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in self.home.glob("*.log")]
                raise DemoError(
                    f"Airflow did not start: waited in vain for {what}; the ends of its logs\n" + "\n".join(tails)
                )
            time.sleep(POLL_SECONDS)

    def _log_in(self) -> bool:
        try:
            for name, password in self.passwords.items():
                answer = self.call("POST", "/auth/token", {"username": name, "password": password})
                self._tokens[name] = answer["access_token"]
        except (urllib.error.URLError, ConnectionError, DemoError):
            return False
        return True

    def call(self, method: str, path: str, body: object = None, *, user: str = "admin") -> Any:
        """One call of the REST API; what only asks is asked again when the answer is late.

        Two requests at once may keep each other from SQLite until one gives up, after 5 s, and is answered 500: it is
        asked again. If it had been done all the same, a run would follow on its like, which harms nothing.

        Raises ``urllib.error.HTTPError`` and its kin, and DemoError without an answer.
        """
        headers = {"Content-Type": "application/json"}
        if user in self._tokens:
            headers["Authorization"] = f"Bearer {self._tokens[user]}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        for tried in range(1, TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    content = answer.read()
            except urllib.error.HTTPError as error:
                if error.code != 500 or tried == TRIES:
                    raise
                continue
            except TimeoutError:
                if method != "GET":
                    break
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

    def trigger(self, dag: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a run of the DAG. Returns its id."""
        self.unpause(dag)
        run = self.call("POST", f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def ended(self, dag: str, run: str, seconds: float = 900.0) -> str:
        """Wait for the end of a run. Returns ``success`` or ``failed``."""
        end = time.monotonic() + seconds
        while (state := self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{run}")["state"]) not in ("success", "failed"):
            if time.monotonic() > end:
                raise DemoError(f"{dag} is still {state} after {seconds:.0f} s; look at {self.url}/dags/{dag}")
            time.sleep(POLL_SECONDS)
        return str(state)

    def run(self, dag: str, conf: Mapping[str, object] | None = None) -> str:
        """Trigger the DAG and wait for its end. Returns ``success`` or ``failed``."""
        return self.ended(dag, self.trigger(dag, conf))

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """The task instances of a run, as the REST API has them."""
        path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances?limit=1000"
        found: list[dict[str, Any]] = self.call("GET", path)["task_instances"]
        return found

    def approve(self, dag: str, run: str, task: str, patience: float, seconds: float = 600.0) -> None:
        """Wait until a person has answered all instances of an approval; after ``patience`` seconds the second user
        says yes, and again if the question is asked again.

        The first ten belong to Airflow, which fails an answer that comes sooner.
        """
        asked: dict[tuple[int, int], float] = {}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [one for one in self.tasks(dag, run) if one["task_id"] == task]
            if found and all(one["state"] in ("success", "failed", "upstream_failed", "skipped") for one in found):
                return
            for one in found:
                number = int(one["map_index"])
                question = number, int(one["try_number"])
                if one["state"] not in ("deferred", "awaiting_input"):
                    continue
                asked.setdefault(question, time.monotonic())
                if time.monotonic() - asked[question] > max(patience, SETTLE_SECONDS):
                    path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}/{number}/hitlDetails"
                    self.call("PATCH", path, {"chosen_options": ["Approve"], "params_input": {}}, user="approver")
                    asked[question] = end
            if any(one["state"] == "failed" for one in self.tasks(dag, run)):
                return
            time.sleep(POLL_SECONDS)
        raise DemoError(f"{dag}: {task} was not asked within {seconds:.0f} s; look at {self.url}/dags/{dag}")

    def failures(self, dag: str) -> list[str]:
        """The failed tasks of the DAG's newest run."""
        runs = self.call("GET", f"/api/v2/dags/{dag}/dagRuns?order_by=-run_after&limit=1")["dag_runs"]
        if not runs:
            return []
        tasks = self.tasks(dag, runs[0]["dag_run_id"])
        return [task["task_id"] for task in tasks if task["state"] == "failed"]

    def stop(self) -> None:
        """End it and everything that it started: tasks run in process groups of their own."""
        own = {process.pid for process in self._processes}
        family = own | _descendants(own)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if self._gone(family, 20.0):
                break
        self._processes.clear()

    def _gone(self, family: set[int], seconds: float) -> bool:
        """Whether all of these processes have ended in this time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for process in self._processes:
                process.poll()
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


def _descendants(pids: set[int]) -> set[int]:
    """The children of these processes, their children, and so on."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, before = set(pids), 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - pids


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
