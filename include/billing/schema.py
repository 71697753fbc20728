"""Creates and drops the billing tables: `python -m billing.schema create|drop URL`."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from billing.database import connect

#: Parents before children.
TABLES = ("plan", "customer", "subscription", "invoice", "invoice_line", "payment", "gift_card", "gift_card_entry")


def create(url: str) -> None:
    """Create all tables in an empty database."""
    statements = (Path(__file__).with_name("schema") / f"{urlsplit(url).scheme}.sql").read_text(encoding="utf-8")
    with closing(connect(url)) as database:
        database.script(statements)


def drop(url: str) -> None:
    """Drop the tables that exist."""
    with closing(connect(url)) as database:
        for table in reversed(TABLES):
            database.drop(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("create", "drop"))
    parser.add_argument("url", help="sqlite:////path.db, mysql://… or oracle://…, as billing.database.connect has it")
    chosen = parser.parse_args()
    (create if chosen.what == "create" else drop)(chosen.url)
