"""A billing migration from one MySQL database to another, for tests that disturb it."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy import text

from billing import invariants, schema
from billing.database import connect
from billing.seed import seed
from billing.traffic import Billing as Customers
from billing.traffic import Summary, Traffic
from fishladder import tasks
from fishladder.errors import AmbiguousError, TransientError
from fishladder.ledger import verify
from tests import independent, ledgers
from tests.contract.stores import Place
from tests.scenario.worker import desk
from tests.servers import mysql

ROOT = Path(__file__).parents[2]
FILE = ROOT / "include" / "migrations" / "billing.yaml"
CUSTOMERS = 150
CHUNK_ROWS = 100
DEADLINE = 120.0

T = TypeVar("T")


class Billing:
    """Customers in the source, an empty target, a ledger; chunks are small, so that there are many of them."""

    def __init__(
        self,
        folder: Path,
        source: mysql.Database | Place,
        target: mysql.Database | Place,
        *,
        ledger: str | None = None,
        customers: int = CUSTOMERS,
    ) -> None:
        self.folder, self.source, self.target = folder, source, target
        self.file = folder / "billing.yaml"
        self.file.write_text(f"{FILE.read_text()}chunk_rows: {CHUNK_ROWS}\n")
        self.log = folder / "acknowledged.jsonl"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("include", "plugins", ".")),
            "FISHLADDER_LEDGER": ledger or f"sqlite:///{folder / 'ledger.db'}",
            "BILLING_SOURCE_KIND": source.copier.partition(":")[0],
            "BILLING_TARGET_KIND": target.copier.partition(":")[0],
            "FISHLADDER_BILLING_SOURCE_APP": source.application,
            "FISHLADDER_BILLING_TARGET_APP": target.application,
        }
        self.by_way_of(source=source.copier, target=target.copier)
        self.processes = ExitStack()
        ledgers.create(self.environment["FISHLADDER_LEDGER"])
        schema.create(source.admin)
        seed(source.admin, customers=customers, seed=7)

    def by_way_of(self, **urls: str) -> None:
        """From now on copiers reach the ``source`` or the ``target`` under this URL."""
        self.environment |= {f"FISHLADDER_BILLING_{side.upper()}": url for side, url in urls.items()}

    def desk(self) -> tasks.Desk:
        return desk(self.file, self.environment)

    # Whole steps

    def prepare(self) -> None:
        tasks.prepare(self.desk(), actor="test")

    def load(self, *tables: str) -> None:
        """All of them, or these."""
        at = self.desk()
        for table in [table for table in tasks.cut(at) if not tables or table in tables]:
            tasks.load_table(at, table, "1")
            tasks.close_table(at, table)

    def follow(self) -> int:
        """Apply until nothing is left. Returns how often it failed and went on."""
        return tasks.replicate(self.desk(), seconds=DEADLINE, until_idle=True).failures

    # Customers

    def customers(
        self, seed_: int, *, rate: float | None = None, weights: Mapping[str, int] = Customers.weights
    ) -> Traffic:
        """A client; what it is told goes into the log."""
        rng = random.Random(seed_)
        work = Customers(rng, run=secrets.token_hex(4))
        work.weights = weights
        return Traffic(self.source.application, work, rng=rng, rate=rate, log=self.log)

    @contextmanager
    def traffic(self, *, rate: float = 60.0, weights: Mapping[str, int] = Customers.weights) -> Iterator[Summary]:
        """A client at work meanwhile; ``rate``: operations a second. Who follows to the end meanwhile wants few."""
        client = self.customers(1, rate=rate, weights=weights)
        thread = Thread(target=lambda: client.run(seconds=600))
        thread.start()
        try:
            yield client.summary
        finally:
            client.stop()
            thread.join()

    # Processes

    def worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A process of the copier."""
        return self.process("tests.scenario.worker", str(self.file), *arguments)

    def process(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Any process, which is killed at the end of the migration if it still runs."""
        log = (self.folder / "worker.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=log,
            stderr=log,
        )

        def end() -> None:
            process.kill()
            process.wait()
            log.close()

        self.processes.callback(end)
        return process

    def await_changes(self, number: int = 1) -> None:
        """Until appliers have done so many more."""
        counts = self.desk().ledger.counts
        wanted = counts("applied").get("changes", 0) + number
        until(lambda: counts("applied").get("changes", 0) >= wanted, f"{number} changes applied")

    def worker_log(self) -> str:
        return (self.folder / "worker.log").read_text()[-4000:]

    # What must be true in the end

    def problems(self) -> list[str]:
        """What an independent comparison finds, of rows and of what the customers were told."""
        told = independent.acknowledged(self.target.admin, [self.log]) if self.log.exists() else []
        return independent.compare(self.source.admin, self.target.admin, schema.TABLES) + told

    def ends_equal(self) -> None:
        """Follow to the end; nothing is lost, and the next pass over every table is clean."""
        self.follow()
        assert self.problems() == []
        assert invariants.check(self.target.admin) == []
        at = self.desk()
        for table in tasks.cut(at):
            found = tasks.reconcile_table(at, table)
            wrong = (found.missing, found.extra, found.differs, found.deferred, found.rejected, found.orphans)
            assert wrong == (0, 0, 0, 0, 0, 0), table
            assert at.ledger.clean_passes(table) >= 1, table
        assert at.ledger.count_rejects() == 0
        assert verify(at.ledger.engine, "billing") == []

    def damage(self, sql: str) -> None:
        """Change the target behind everybody's back: as the copier, whose changes no trigger refuses."""
        with closing(mysql.connect(self.target.copier)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            connection.commit()

    def rows(self, side: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask the ``source`` or the ``target``, as its administrator."""
        with closing(connect(getattr(self, side).admin)) as db:
            return db.rows(sql)


class Witness:
    """Of routed writes: it counted before, and judges after."""

    def __init__(self, billing: Billing) -> None:
        self.billing = billing
        billing.follow()  # a test before this one may have failed
        self.before = independent.counts(billing.source.admin)

    def judge(self, *logs: Path) -> None:
        """Of all that customers were told nothing is lost, nothing done twice, and each one's order was kept."""
        billing = self.billing
        billing.ends_equal()
        with billing.desk().ledger.engine.connect() as connection:
            queued = text("SELECT idempotency_key FROM ledger_queue WHERE state = 'refused'")
            refused = set(connection.scalars(queued))
        for side in (billing.source, billing.target):
            assert independent.accepted(side.admin, logs, before=self.before, refused=refused) == []


@contextmanager
def migration(
    folder: Path, source_server: str, target_server: str, *, ledger: str | None = None, customers: int = CUSTOMERS
) -> Iterator[Billing]:
    """In fresh databases; nothing is prepared yet."""
    with mysql.database(source_server) as source, mysql.database(target_server) as target:
        made = Billing(folder, source, target, ledger=ledger, customers=customers)
        with made.processes:
            yield made


def again(task: Callable[[], T], *, most: int = 3) -> T:
    """Run a task as Airflow does, which repeats what may be repeated; a FatalError ends it."""
    for _ in range(most):
        try:
            return task()
        except (TransientError, AmbiguousError):
            continue
    return task()


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.02)
