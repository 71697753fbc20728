"""Countries move between real stores and back while customers go on, judged by code that is not the core's."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from billing import invariants, schema, seed
from billing.database import DatabaseError, connect
from billing.operations import operations
from billing.routed import Customers
from fishladder import tasks
from fishladder.ledger import Attempt, Kind, open_ledger, upgrade
from fishladder.serving import Router
from fishladder.spec import load
from fishladder.stores import connect_url, open_application
from tests import independent
from tests.contract.shop import SPEC
from tests.contract.stores import PATIENCE, STORES, Place
from tests.scenario.worker import desk

PAIRS = [
    *(("sqlite", "sqlite"), ("mysql", "mariadb")),
    *(pytest.param(pair, marks=pytest.mark.slow) for pair in (("mysql", "mysql"), ("oracle", "mysql"))),
]


@dataclass
class Move:
    """A loaded migration, its applier at work, and customers behind routers."""

    folder: Path
    source: Place
    target: Place
    environment: dict[str, str]

    def desk(self) -> tasks.Desk:
        return desk(SPEC, self.environment)

    def router(self) -> Router:
        """With a ledger of its own, as another process would have."""
        migration = load(SPEC, self.environment)
        ledger = open_ledger(self.environment["FISHLADDER_LEDGER"], migration=migration.migration)
        source, target = (open_application(*connect_url(place.application)) for place in (self.source, self.target))
        return Router(ledger, operations, source=source, target=target)

    def move(self, kind: Kind, *cohorts: str) -> list[Attempt]:
        at = self.desk()
        asked = tasks.ask(at, kind, cohorts, actor="ann", reason="a test")
        for attempt in asked:
            found = tasks.verify_cohort(at, attempt.id)
            assert found.outcome is None, found.error
        return [tasks.cut_over(at, attempt.id) for attempt in asked]

    def stage(self, cohort: str) -> tuple[str, str]:
        route = self.desk().ledger.route(cohort)
        return route.stage, route.owner

    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))


@pytest.fixture(params=PAIRS, ids="-".join)
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Move]:
    origin, destination = request.param
    with ExitStack() as stack:
        ours = stack.enter_context(STORES[origin](request, tmp_path / "source"))
        theirs = stack.enter_context(STORES[destination](request, tmp_path / "target"))
        stack.callback(ours.close)
        stack.callback(theirs.close)
        schema.create(ours.admin)
        seed.seed(ours.admin, customers=80, seed=7)
        url = f"sqlite:///{tmp_path}/ledger.db"
        upgrade(url)
        environment = {
            **os.environ,
            "FISHLADDER_LEDGER": url,
            "BILLING_SOURCE_KIND": ours.kind,
            "BILLING_TARGET_KIND": theirs.kind,
            "FISHLADDER_BILLING_SOURCE": ours.copier,
            "FISHLADDER_BILLING_TARGET": theirs.copier,
            "FISHLADDER_BILLING_SOURCE_APP": ours.application,
            "FISHLADDER_BILLING_TARGET_APP": theirs.application,
        }
        made = Move(folder=tmp_path, source=ours, target=theirs, environment=environment)
        at = made.desk()
        tasks.prepare(at, actor="test")
        for table in tasks.cut(at):
            tasks.load_table(at, table, "1")
            tasks.close_table(at, table)
        tasks.replicate(at, seconds=PATIENCE, until_idle=True)
        yield made


def test_countries_move_and_one_moves_back_while_customers_go_on(move: Move) -> None:
    with closing(connect(move.source.admin)) as db:
        customers = [row[0] for row in db.rows("SELECT id FROM customer ORDER BY id")]
        plans = [row[0] for row in db.rows("SELECT id FROM plan ORDER BY id")]
    stop = threading.Event()
    crowds = [
        Customers(move.router(), customers, plans, rng=random.Random(number), run=f"r{number}") for number in range(2)
    ]
    clients = [
        threading.Thread(target=crowd.run, kwargs={"rate": 40, "seconds": 600, "log": move.folder / f"{number}.jsonl"})
        for number, crowd in enumerate(crowds)
    ]
    applier = threading.Thread(target=lambda: _replicate(move, stop))
    for thread in (*clients, applier):
        thread.start()
    try:
        (moved,) = move.move("flip", "NZ")
        assert (moved.outcome, moved.error, move.stage("NZ")) == ("done", None, ("live", "target"))
        others = move.move("flip", "AU", "IE")
        assert [attempt.outcome for attempt in others] == ["done", "done"], others
        (back,) = move.move("rollback", "NZ")
        assert (back.outcome, back.error, move.stage("NZ")) == ("done", None, ("off", "source"))
        batch_job_is_refused(move)
    finally:
        for crowd in crowds:
            crowd.stop()
        for thread in clients:
            thread.join(PATIENCE)
        stop.set()
        applier.join(PATIENCE)
    assert not any(thread.is_alive() for thread in (*clients, applier))
    for crowd in crowds:
        assert crowd.felt.failed == {}, crowd.felt.errors
        assert crowd.felt.done.total() > 20
    at = move.desk()
    tasks.replicate(at, seconds=PATIENCE, until_idle=True)
    assert at.ledger.count_queue().keys() <= {"done", "refused"}
    assert independent.compare(move.source.admin, move.target.admin) == []
    for place in (move.source, move.target):
        assert independent.accepted(place.admin, move.logs(), refused(move)) == []
        assert invariants.check(place.admin) == []
    for table in tasks.cut(at):
        found = tasks.reconcile_table(at, table)
        assert (found.missing, found.extra, found.differs, found.deferred, found.orphans) == (0, 0, 0, 0, 0), table


def _replicate(move: Move, stop: threading.Event) -> None:
    while not stop.is_set():
        tasks.replicate(move.desk(), seconds=1)


def refused(move: Move) -> set[str]:
    """Keys of queued writes that the business refused."""
    with closing(connect(move.environment["FISHLADDER_LEDGER"])) as db:
        return {row[0] for row in db.rows("SELECT idempotency_key FROM ledger_queue WHERE state = 'refused'")}


def batch_job_is_refused(move: Move) -> None:
    """One that knows nothing of the router, and writes where a country lived before."""
    with closing(connect(move.source.application)) as db:
        (australian,) = db.rows(
            "SELECT h.root_key FROM fishladder_home h JOIN customer c ON h.root_key = trim(cast(c.id as char(20)))"
            " WHERE h.cohort = 'AU' ORDER BY 1 LIMIT 1"
        )
        with pytest.raises(DatabaseError, match="fishladder:"):
            db.execute("UPDATE customer SET name = 'batch' WHERE id = ?", (int(australian[0]),))
