"""Creates Chinook's tables, empty (`python -m chinook.schema URL`), or a copy of its SQLite file with the data."""

from __future__ import annotations

import argparse
import shutil
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from billing.database import connect

HERE = Path(__file__).parent
#: Parents before children.
TABLES = (
    "Artist",
    "Album",
    "Genre",
    "MediaType",
    "Track",
    "Playlist",
    "PlaylistTrack",
    "Employee",
    "Customer",
    "Invoice",
    "InvoiceLine",
)


def create(url: str) -> None:
    """Create all tables, without rows, in an empty database."""
    statements = (HERE / f"{urlsplit(url).scheme}.sql").read_text(encoding="utf-8")
    with closing(connect(url)) as database:
        database.script(statements)


def copy_sample(path: Path) -> str:
    """Copy the shipped database, which stays as it is, to `path`; returns its URL."""
    shutil.copyfile(HERE / "Chinook_Sqlite.sqlite", path)
    return f"sqlite:///{path.absolute()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="sqlite:////path.db or mysql://user:password@host:port/database")
    create(parser.parse_args().url)
