"""An Airflow with Celery workers on PostgreSQL and Redis, as docker-compose.yml describes one, without containers.

Each worker is a process of its own, and the host that Airflow names for its tasks: worker-1, worker-2 and so on.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import make_url

from billing.airflow import Airflow, DemoError, _descendants
from tests.servers import postgres, redis

NAME = "FISHLADDER_WORKER"


def name() -> str:
    """What a worker calls itself: Airflow asks it for its host's name."""
    return os.environ[NAME]


class CeleryAirflow(Airflow):
    """API server, scheduler, DAG processor, and Celery workers that run ``tasks_each`` at a time.

    ``database``: for Airflow's own tables. ``broker``: an empty Redis.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        environment: Mapping[str, str],
        *,
        workers: int,
        tasks_each: int,
        database: str,
        broker: str,
    ) -> None:
        super().__init__(home, dags, environment, port=0)
        self.workers = workers
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self.broker = broker
        own = make_url(database).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        self.environment |= {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "16",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": own,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": own,  # else with asyncpg, one more driver
            "AIRFLOW__CELERY__BROKER_URL": broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{own}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(tasks_each),
            # Of all processes of this Airflow.
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
        }

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "passwords.json").write_text(json.dumps(self.passwords))
        self._migrate()
        for part in ("api-server", "scheduler", "dag-processor"):
            self.launch(part, part)
        self.wait("a login", self._log_in)
        for number in range(1, self.workers + 1):
            worker = f"worker-{number}"
            # They have one home: each would serve its logs on the same port.
            self._workers[worker] = self.launch(
                worker,
                *("celery", "worker", "--celery-hostname", f"{worker}@%h", "--skip-serve-logs"),
                environment={NAME: worker, "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{__name__}.name"},
            )
        self.wait(f"{self.workers} workers", lambda: self._answering() == self.workers)

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"Airflow's database cannot be made: {done.stderr[-2000:]}")

    def family(self, worker: str) -> set[int]:
        """The processes of a worker, those of its tasks among them, which have process groups of their own."""
        started = {self._workers[worker].pid}
        return started | _descendants(started)

    def kill_worker(self, worker: str) -> None:
        """``kill -9`` to all of them, as when its machine is gone."""
        for process in self.family(worker):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        parent = self._workers.pop(worker)
        parent.wait()
        self._processes.remove(parent)  # whose id may go to a stranger

    def _answering(self) -> int:
        """How many workers answer a ping."""
        from celery import Celery

        with Celery(broker=self.broker) as app:
            return len(app.control.ping(timeout=1.0))


@contextmanager
def celery_airflow(
    home: Path, dags: Path, environment: Mapping[str, str], *, workers: int, tasks_each: int
) -> Iterator[CeleryAirflow]:
    """One that runs, with a database of its own and an empty broker. Raises Unavailable without PostgreSQL or Redis."""
    broker = redis.dsn()
    with postgres.database(postgres.dsn()) as database:
        redis.empty(broker)
        airflow = CeleryAirflow(
            home, dags, environment, workers=workers, tasks_each=tasks_each, database=database, broker=broker
        )
        try:
            airflow.start()
            yield airflow
        finally:
            airflow.stop()
