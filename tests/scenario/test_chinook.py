"""A schema that is not ours: the public Chinook database, moved with live changes by a file and no code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from billing.database import connect
from billing.traffic import Traffic
from chinook import schema
from chinook.traffic import Shop
from fishladder import tasks
from tests import independent, ledgers
from tests.scenario.worker import desk
from tests.servers import mysql, oracle

FILE = Path(__file__).parents[2] / "include" / "migrations" / "chinook.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chinook:
    """The URLs of Chinook and of an empty target with its tables; the shop writes to the source by its own account."""

    source: str
    application: str
    target: str


# On the wire emulator it takes minutes: make scenario.
@pytest.fixture(
    params=["sqlite-mysql", *(pytest.param(pair, marks=pytest.mark.slow) for pair in ("sqlite-sqlite", "oracle-mysql"))]
)
def chinook(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chinook]:
    kinds = request.param.split("-")
    with ExitStack() as stack:
        if kinds[0] == "sqlite":
            source = application = schema.copy_sample(tmp_path / "source.db")
        else:
            database = stack.enter_context(oracle.database(request.getfixturevalue("oracle_server")))
            schema.load_sample(database.admin)
            source, application = database.copier, database.application
        if kinds[1] == "sqlite":
            target = f"sqlite:///{tmp_path}/target.db"
        else:
            target = stack.enter_context(mysql.database(request.getfixturevalue("mysql_server"))).copier
        schema.create(target)
        monkeypatch.setenv("CHINOOK_SOURCE_KIND", kinds[0])
        monkeypatch.setenv("CHINOOK_TARGET_KIND", kinds[1])
        monkeypatch.setenv("FISHLADDER_CHINOOK_SOURCE", source)
        monkeypatch.setenv("FISHLADDER_CHINOOK_TARGET", target)
        monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
        ledgers.create(f"sqlite:///{tmp_path}/ledger.db")
        yield Chinook(source=source, application=application, target=target)


def totals(url: str) -> list[tuple[str, int, int]]:
    """Per country: invoices, and what they come to in cents."""
    with closing(connect(url)) as database:
        found = database.rows(
            "SELECT c.Country, count(*), sum(round(i.Total * 100)) FROM Customer c"
            " JOIN Invoice i ON i.CustomerId = c.CustomerId GROUP BY c.Country"
        )
    return sorted((country, int(count), int(cents)) for country, count, cents in found)


def test_the_file_is_short() -> None:
    assert len(FILE.read_text().splitlines()) <= 40


@pytest.mark.timeout(900)  # on a busy machine the Oracle wire emulator takes minutes
def test_chinook_moves_under_live_changes(chinook: Chinook) -> None:
    source, target = chinook.source, chinook.target
    at = desk(FILE)
    rng = random.Random(4)
    shop = Traffic(chinook.application, Shop(rng), rng=rng, rate=80)
    customers = Thread(target=lambda: shop.run(seconds=600))
    customers.start()
    try:
        tasks.prepare(at, actor="test")
        tables = list(tasks.cut(at))
        for table in tables:
            tasks.load_table(at, table, "1")
            tasks.close_table(at, table)
        tasks.replicate(at, seconds=3)
        for table in tables:
            result = tasks.reconcile_table(at, table)
            assert (result.missing, result.extra, result.differs, result.rejected) == (0, 0, 0, 0), table
    finally:
        shop.stop()
        customers.join()
    assert shop.summary.acknowledged.total() > 50
    assert not shop.summary.failed and not shop.summary.refused
    tasks.replicate(at, seconds=60, until_idle=True)
    assert independent.compare(source, target, schema.TABLES) == []
    assert totals(source) == totals(target)
    for table in tables:
        tasks.reconcile_table(at, table)
    assert all(at.ledger.clean_passes(table) >= 1 for table in tables)
    assert all(result.equal for result in tasks.report(at))
