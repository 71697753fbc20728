"""A schema that is not ours: the public Chinook database, moved with live changes by a file and no code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Thread

import pytest

from billing.database import connect
from billing.traffic import Traffic
from chinook import schema
from chinook.traffic import Shop
from fishladder import tasks
from fishladder.ledger import upgrade
from tests import independent
from tests.scenario.worker import desk
from tests.servers import mysql

FILE = Path(__file__).parents[2] / "include" / "migrations" / "chinook.yaml"


@pytest.fixture(params=["sqlite", "mysql"])
def chinook(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """The URLs of a copy of Chinook and of an empty target with its tables."""
    source = schema.copy_sample(tmp_path / "source.db")
    with ExitStack() as stack:
        if request.param == "sqlite":
            target = f"sqlite:///{tmp_path}/target.db"
        else:
            target = stack.enter_context(mysql.database(request.getfixturevalue("mysql_server"))).copier
        schema.create(target)
        monkeypatch.setenv("CHINOOK_TARGET_KIND", request.param)
        monkeypatch.setenv("FISHLADDER_CHINOOK_SOURCE", source)
        monkeypatch.setenv("FISHLADDER_CHINOOK_TARGET", target)
        monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
        upgrade(f"sqlite:///{tmp_path}/ledger.db")
        yield source, target


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


def test_chinook_moves_under_live_changes(chinook: tuple[str, str]) -> None:
    source, target = chinook
    at = desk(FILE)
    rng = random.Random(4)
    shop = Traffic(source, Shop(rng), rng=rng, rate=80)
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
