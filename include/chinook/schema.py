"""Creates Chinook's tables (`python -m chinook.schema URL`): empty, or in an Oracle with the data that goes with it."""

from __future__ import annotations

import argparse
import re
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
#: How many rows an INSERT of the Oracle script may have: its own of a thousand take the emulator minutes.
ROWS = 40


def create(url: str) -> None:
    """Create all tables, without rows, in an empty database."""
    statements = (HERE / f"{urlsplit(url).scheme}.sql").read_text(encoding="utf-8")
    with closing(connect(url)) as database:
        database.script(statements)


def copy_sample(path: Path) -> str:
    """Copy the shipped SQLite database, which stays as it is, to `path`; returns its URL."""
    shutil.copyfile(HERE / "Chinook_Sqlite.sqlite", path)
    url = f"sqlite:///{path.absolute()}"
    connect(url).close()  # switches the file to WAL: two that do it later, at once, would not wait for each other
    return url


def load_sample(url: str) -> None:
    """Run the shipped Oracle script in an empty schema: tables and rows. Its INSERTs of many rows need Oracle 23."""
    script = (HERE / "Chinook_Oracle.sql").read_text(encoding="utf-8")
    # The account is there already, and these are words of SQL*Plus.
    script = re.sub(r"^(?:GRANT|CONNECT|exit|commit)\b.*;$", "", script, flags=re.MULTILINE)
    with closing(connect(url)) as database, database.transaction():
        database.script(re.sub(r"^(INSERT INTO .*)\n((?: +\(.*\)[,;]\n)+)", _in_parts, script, flags=re.MULTILINE))


def _in_parts(insert: re.Match[str]) -> str:
    """One INSERT as several of no more than ROWS."""
    rows = insert[2].splitlines()
    parts = ["\n".join(rows[start : start + ROWS])[:-1] for start in range(0, len(rows), ROWS)]
    return "".join(f"{insert[1]}\n{part};\n" for part in parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="sqlite:////path.db, mysql://user:password@host:port/database or oracle://…")
    url = parser.parse_args().url
    (load_sample if urlsplit(url).scheme == "oracle" else create)(url)
