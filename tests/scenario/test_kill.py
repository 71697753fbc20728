"""Real stores, live traffic, and processes that are killed in the middle of whatever they do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from sqlalchemy import select

from billing import invariants, schema
from fishladder import tasks
from fishladder.cells import row_key
from fishladder.ledger import tables as ledger_tables
from fishladder.ledger import upgrade, verify
from tests import independent
from tests.scenario.worker import desk
from tests.servers import mysql, oracle

ROOT = Path(__file__).parents[2]
FILE = ROOT / "include" / "migrations" / "billing.yaml"
CUSTOMERS = 400
CHUNK_ROWS = 100
"""Small, so that there are many chunks."""
ROWS_PER_SECOND = 50
"""Of each lane while lanes are killed: else one would load everything while the other is starting."""
INTERRUPTED = 5
"""Lanes that have to die with a chunk in hand."""
DEAD_PASSES = 3
"""Passes that have to die when they have found something, and not all of it."""
LINES = "invoice_line"
DEADLINE = 120.0

Claim: TypeAlias = tuple[str, int, int]
"""Table, number and token of a chunk."""


class Scenario:
    """A billing database with customers at work, and the processes that migrate it."""

    def __init__(self, folder: Path, source: str, target: str, applications: tuple[str, str]) -> None:
        self.folder, self.source, self.target = folder, source, target
        self.file = folder / "billing.yaml"
        self.file.write_text(f"{FILE.read_text()}chunk_rows: {CHUNK_ROWS}\n")
        kinds = [url.partition(":")[0] for url in (source, target)]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("include", "plugins", ".")),
            "FISHLADDER_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
            "BILLING_SOURCE_KIND": kinds[0],
            "BILLING_TARGET_KIND": kinds[1],
            "FISHLADDER_BILLING_SOURCE": source,
            "FISHLADDER_BILLING_TARGET": target,
        }
        self.application = applications[0]
        self.acknowledged = folder / "acknowledged.jsonl"
        self.processes = ExitStack()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{module}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, env=self.environment, stdout=log, stderr=log
        )

        def end() -> None:
            process.kill()
            process.wait()
            log.close()

        self.processes.callback(end)
        return process

    def worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start("tests.scenario.worker", str(self.file), *arguments)

    def log(self, module: str) -> str:
        return (self.folder / f"{module}.log").read_text()[-4000:]


SERVERS: dict[str, Callable[[str], AbstractContextManager[mysql.Database | oracle.Database]]] = {
    "mysql": mysql.database,
    "oracle": oracle.database,
}


# The others: make scenario; on the wire emulator it takes minutes.
@pytest.fixture(
    params=[
        "mysql-mysql",
        *(pytest.param(pair, marks=pytest.mark.slow) for pair in ("sqlite-sqlite", "sqlite-mysql", "oracle-mysql")),
    ]
)
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    owners: list[str] = []
    urls: list[str] = []
    applications: list[str] = []
    with ExitStack() as stack:
        for number, kind in enumerate(request.param.split("-")):
            if kind == "sqlite":
                urls.append(f"sqlite:///{tmp_path}/{number}.db")
                owners.append(urls[-1])
                applications.append(urls[-1])
            else:
                server = request.getfixturevalue(f"{kind}_server")
                database = stack.enter_context(SERVERS[kind](server))
                owners.append(database.admin)
                urls.append(database.copier)
                applications.append(database.application)
        schema.create(owners[0])
        found = Scenario(tmp_path, urls[0], urls[1], (applications[0], applications[1]))
        stack.enter_context(found.processes)
        yield found


def until(done: Callable[[], bool], what: str, *, pause: float = 0.05) -> None:
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(pause)


@pytest.mark.timeout(900)  # on a busy machine the Oracle wire emulator takes minutes
def test_killed_lanes_and_appliers_lose_nothing(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    at, traffic = _begin(scenario, monkeypatch)
    _kill_lanes(scenario, at)
    for table in tasks.cut(at):
        tasks.close_table(at, table)
    _kill_appliers(scenario, at)
    _end(scenario, at, traffic)
    assert {at.ledger.clean_passes(table) for table in tasks.cut(at)} == {1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_reconciliations_lose_nothing(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    at, traffic = _begin(scenario, monkeypatch)
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    _kill_passes(scenario, at)
    for table in tasks.cut(at):
        tasks.reconcile_table(at, table)
    _end(scenario, at, traffic)


def _begin(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> tuple[tasks.Desk, subprocess.Popen[bytes]]:
    """Customers at work on a migration that is prepared."""
    for name, value in scenario.environment.items():
        monkeypatch.setenv(name, value)
    seed = scenario.start("billing.seed", scenario.source, "--customers", str(CUSTOMERS), "--seed", "3")
    assert seed.wait(DEADLINE) == 0
    upgrade(scenario.environment["FISHLADDER_LEDGER"])
    at = desk(scenario.file)
    log = scenario.acknowledged
    traffic = scenario.start(
        "billing.traffic", scenario.application, "--rate", "60", "--seconds", "600", "--log", str(log)
    )
    until(log.exists, "the first customer")
    tasks.prepare(at, actor="scenario")
    return at, traffic


def _end(scenario: Scenario, at: tasks.Desk, traffic: subprocess.Popen[bytes]) -> None:
    traffic.send_signal(signal.SIGTERM)
    assert traffic.wait(DEADLINE) == 0
    summary = json.loads(scenario.log("billing.traffic"))
    assert summary["refused"] == summary["failed"] == summary["unknown"] == {}
    assert summary["total"] > 100
    tasks.replicate(at, seconds=DEADLINE, until_idle=True)

    assert independent.compare(scenario.source, scenario.target, schema.TABLES) == []
    assert independent.acknowledged(scenario.target, [scenario.acknowledged]) == []
    assert invariants.check(scenario.target) == []
    for table in tasks.cut(at):
        result = tasks.reconcile_table(at, table)
        assert (result.missing, result.extra, result.differs, result.deferred, result.rejected) == (0, 0, 0, 0, 0), (
            table
        )
        assert at.ledger.checks(table, limit=1)[0].clean
    assert at.ledger.count_rejects() == 0
    assert verify(at.ledger.engine, "billing") == []


def _kill_lanes(scenario: Scenario, at: tasks.Desk) -> None:
    """Two lanes, killed again and again with a chunk in hand; whoever comes next takes over."""
    rng = random.Random(1)
    tables = list(tasks.cut(at))

    def loaded() -> bool:
        return all(at.ledger.unfinished(table, 1) == 0 for table in tables)

    at.ledger.set_control(rows_per_second=ROWS_PER_SECOND, actor="scenario")
    lanes = {name: scenario.worker("lane", name) for name in ("1", "2")}
    inherited: dict[str, set[Claim]] = {name: set() for name in lanes}  # from the one before, until it is claimed anew
    interrupted = 0
    while interrupted < INTERRUPTED:
        name = rng.choice(sorted(lanes))
        lane, old = lanes[name], inherited[name]
        until(
            lambda name=name, lane=lane, old=old: claims(at, name) - old or lane.poll() is not None,  # type: ignore[misc]
            f"a chunk of lane {name}",
            pause=0.001,  # it is in hand for some milliseconds only
        )
        time.sleep(rng.uniform(0.0, 0.03))  # not a wait for anything: the moment of death is the test
        lane.kill()
        assert lane.wait(DEADLINE) == -signal.SIGKILL, scenario.log("tests.scenario.worker")
        inherited[name] = claims(at, name)
        interrupted += bool(inherited[name] - old)
        lanes[name] = scenario.worker("lane", name)
    assert not loaded()
    at.ledger.set_control(rows_per_second=0, actor="scenario")
    for lane in lanes.values():
        assert lane.wait(DEADLINE) == 0, scenario.log("tests.scenario.worker")
    assert loaded()


def claims(at: tasks.Desk, lane: str) -> set[Claim]:
    """What a lane has in hand, dead or alive."""
    chunk = ledger_tables.chunk.c
    query = select(chunk.table, chunk.no, chunk.token).where(chunk.lane == lane, chunk.state == "claimed")
    with at.ledger.engine.connect() as connection:
        return {(table, no, token) for table, no, token in connection.execute(query)}


def _kill_appliers(scenario: Scenario, at: tasks.Desk) -> None:
    rng = random.Random(2)

    def followed() -> int:
        return at.ledger.counts("applied").get("changes", 0)

    for _ in range(5):
        before = followed()
        applier = scenario.worker("applier", "60")
        until(lambda before=before, applier=applier: followed() > before or applier.poll() is not None, "a change")  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.3))
        applier.kill()
        assert applier.wait() == -signal.SIGKILL, scenario.log("tests.scenario.worker")


def _kill_passes(scenario: Scenario, at: tasks.Desk) -> None:
    """Rows of the target are lost behind everybody's back, and who looks for them is killed on finding the first."""
    rng = random.Random(3)
    dead = last = 0

    def found() -> bool:
        newest = at.ledger.checks(LINES, limit=1)
        return bool(newest) and newest[0].id > last and newest[0].clean is False

    while dead < DEAD_PASSES:
        _lose_rows(at)
        worker = scenario.worker("reconcile")
        until(lambda worker=worker: found() or worker.poll() is not None, "a mismatch", pause=0.001)  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.03))
        worker.kill()
        assert worker.wait() == -signal.SIGKILL, scenario.log("tests.scenario.worker")
        (newest,) = at.ledger.checks(LINES, limit=1)
        assert newest.clean is False
        dead, last = dead + (newest.finished_at is None), newest.id


def _lose_rows(at: tasks.Desk) -> None:
    """One in five."""
    with at.ends() as (plan, (ends,)):
        lines = plan.table(LINES).target
        with ends.destination.read() as copy:
            keys = [row_key(row, lines.key) for rows in copy.stream(lines, None, None) for row in rows]
        with ends.destination.begin() as copy:
            copy.delete(lines, keys[::5])
            copy.commit()
