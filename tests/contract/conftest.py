"""Every test of the suite that asks for a ``place`` runs on every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.contract import shop as shops
from tests.contract.shop import Shop
from tests.contract.stores import STORES, Place


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        found = stack.enter_context(STORES[request.param](request, tmp_path))
        stack.callback(found.close)
        yield found


@pytest.fixture
def store(place: Place) -> Any:
    return place.open()


@pytest.fixture
def shop(place: Place) -> Shop:
    """The billing tables with a few customers, and fishladder installed as on a source that is served."""
    return shops.open_shop(place)


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run a call in a thread of its own."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit
