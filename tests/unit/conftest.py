"""Small migrations on SQLite files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit import flips as moving
from tests.unit import small as smalls
from tests.unit.flips import Flips
from tests.unit.small import SCHEMA, SPEC, Small

LOOSE = SCHEMA.replace("customer_id INTEGER NOT NULL REFERENCES customer (id) ON DELETE CASCADE", "customer_id INTEGER")
LOOSE_SPEC = SPEC + "ids: {interleaved: true}\n"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small migration for hundreds of tests to copy."""
    folder = tmp_path_factory.mktemp("installed")
    smalls.close([smalls.make(folder)])
    return folder


@pytest.fixture(scope="session")
def with_rows(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, loaded."""
    small = _copy(installed, tmp_path_factory.mktemp("loaded"))
    small.load()
    smalls.close([small])
    return small.folder


@pytest.fixture(scope="session")
def followed(with_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with an applier that has caught up."""
    small = _copy(with_rows, tmp_path_factory.mktemp("followed"))
    small.follow()
    smalls.close([small])
    return small.folder


@pytest.fixture(scope="session")
def followed_loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = smalls.make(tmp_path_factory.mktemp("loose"), schema=LOOSE, spec=LOOSE_SPEC)
    small.load()
    small.follow()
    smalls.close([small])
    return small.folder


def _copy(made: Path, folder: Path, *, spec: str = SPEC) -> Small:
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return smalls.reopen(folder, spec=spec)


@pytest.fixture
def make_small(tmp_path: Path) -> Iterator[Callable[..., Small]]:
    made: list[Small] = []

    def make(**options: str) -> Small:
        made.append(smalls.make(tmp_path, **options))
        return made[-1]

    yield make
    smalls.close(made)


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Small]:
    """Loaded, or followed, for who asks for ``loaded`` or ``flips`` too, which are the same one."""
    made = {"flips": "followed", "loaded": "with_rows"}
    name = next((made[name] for name in made if name in request.fixturenames), "installed")
    small = _copy(request.getfixturevalue(name), tmp_path)
    yield small
    smalls.close([small])


@pytest.fixture
def loaded(small: Small) -> Small:
    return small


@pytest.fixture
def flips(small: Small) -> Iterator[Flips]:
    with moving.flips(small) as made:
        yield made


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued write that failed is tried again at once."""
    monkeypatch.setattr("fishladder.ledger.queue.REST", 0.0)


@pytest.fixture
def loose(followed_loose: Path, tmp_path: Path) -> Iterator[Flips]:
    """As ``flips``, but an item may be there before its customer is."""
    small = _copy(followed_loose, tmp_path, spec=LOOSE_SPEC)
    with moving.flips(small) as made:
        yield made
    smalls.close([small])
