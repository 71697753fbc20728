"""Empty ledgers for tests, of which there are hundreds."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

from fishladder.ledger import upgrade

_SQLITE = "sqlite:///"


def create(url: str) -> None:
    """As ``upgrade`` does where nothing is yet: an SQLite file is a copy of one that it has made in this process."""
    if url.startswith(_SQLITE):
        Path(url.removeprefix(_SQLITE)).write_bytes(_upgraded())
    else:
        upgrade(url)


@functools.cache
def _upgraded() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        upgrade(f"{_SQLITE}{path}")
        assert [found.name for found in path.parent.iterdir()] == [path.name], "part of it is still in a log"
        return path.read_bytes()
