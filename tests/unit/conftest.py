"""Small migrations on SQLite files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit import flips as moving
from tests.unit import small as smalls
from tests.unit.flips import Flips
from tests.unit.small import SCHEMA, SPEC, Small

LOOSE = SCHEMA.replace("customer_id INTEGER NOT NULL REFERENCES customer (id) ON DELETE CASCADE", "customer_id INTEGER")


@pytest.fixture
def make_small(tmp_path: Path) -> Iterator[Callable[..., Small]]:
    made: list[Small] = []

    def make(**options: str) -> Small:
        made.append(smalls.make(tmp_path, **options))
        return made[-1]

    yield make
    smalls.close(made)


@pytest.fixture
def small(make_small: Callable[..., Small]) -> Small:
    return make_small()


@pytest.fixture
def flips(small: Small) -> Iterator[Flips]:
    small.load()
    small.follow()
    with moving.flips(small) as made:
        yield made


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued write that failed is tried again at once."""
    monkeypatch.setattr("fishladder.ledger.queue.REST", 0.0)


@pytest.fixture
def loose(make_small: Callable[..., Small]) -> Iterator[Flips]:
    """As ``flips``, but an item may be there before its customer is."""
    small = make_small(schema=LOOSE, spec=SPEC + "ids: {interleaved: true}\n")
    small.load()
    small.follow()
    with moving.flips(small) as made:
        yield made
