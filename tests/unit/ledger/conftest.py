"""A ledger on every database that it can live in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from fishladder.ledger import Ledger, open_ledger
from tests import ledgers
from tests.conftest import not_tested
from tests.servers import Unavailable, postgres


class Clock:
    """Stands still until it is told to go on; starts with microseconds and away from UTC."""

    def __init__(self) -> None:
        self.now = datetime.fromisoformat("2026-01-31T12:00:00.123456+13:00")

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(params=["sqlite", "mysql", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database for the ledger."""
    match request.param:
        case "sqlite":
            yield f"sqlite:///{tmp_path}/ledger.db"
        case "mysql":
            yield request.getfixturevalue("mysql_database").copier
        case "postgresql":
            try:
                server = postgres.dsn()
            except Unavailable as reason:
                not_tested(request.config, "PostgreSQL", reason)
            with postgres.database(server) as address:
                yield address


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    ledgers.create(url)
    with open_ledger(url, migration="billing", clock=clock) as opened:
        yield opened
