"""Every test of the suite that asks for a ``place`` runs on every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from fishladder.stores import connect_url, open_store
from tests.contract import shop as shops
from tests.contract.shop import Shop
from tests.contract.stores import STORES, Place


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        found = stack.enter_context(STORES[request.param](request, tmp_path))
        stack.callback(found.close)
        yield found


@pytest.fixture(scope="module", params=STORES)
def shared_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for the tests of a module that leave nothing behind."""
    with ExitStack() as stack:
        found = stack.enter_context(STORES[request.param](request, tmp_path_factory.mktemp("shared")))
        stack.callback(found.close)
        yield found


@pytest.fixture(scope="module")
def installed_place(shared_place: Place) -> Place:
    with closing(open_store(*connect_url(shared_place.copier))) as store:
        store.install_tables()
    return shared_place


@pytest.fixture
def shared_store(installed_place: Place) -> Iterator[Any]:
    """A store of the shared place. It is new, for a store remembers tables by their names."""
    with closing(open_store(*connect_url(installed_place.copier))) as store:
        yield store


@pytest.fixture
def store(place: Place) -> Any:
    return place.open()


@pytest.fixture
def shop(place: Place) -> Shop:
    """The billing tables with a few customers, and fishladder installed as on a source that is served."""
    return shops.open_shop(place)


@pytest.fixture(scope="module")
def shared_shop(shared_place: Place) -> Shop:
    return shops.open_shop(shared_place)


@pytest.fixture
def reopened_shop(shared_shop: Shop) -> Iterator[Shop]:
    """As ``shop``, but one for all tests of a module that change rows and fences only: to make one takes a second."""
    opened = shared_shop.place.opened
    before = len(opened)
    yield shops.reopen(shared_shop)
    while len(opened) > before:
        opened.pop().close()


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run a call in a thread of its own."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit
