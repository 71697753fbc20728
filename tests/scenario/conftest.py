"""Billing migrations on real MySQL servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.migration import Billing, migration


@pytest.fixture
def billing(mysql_server: str, tmp_path: Path) -> Iterator[Billing]:
    with migration(tmp_path, mysql_server, mysql_server) as made:
        yield made


@pytest.fixture(scope="module")
def loaded(mysql_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Billing]:
    """Prepared and loaded, for all tests of a module: each leaves it equal, as it found it."""
    with migration(tmp_path_factory.mktemp("billing"), mysql_server, mysql_server) as made:
        made.prepare()
        made.load()
        made.ends_equal()
        yield made
