"""Creates and drops the billing tables: `python -m billing.schema create|drop URL`."""

from __future__ import annotations

import sys
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
            database.execute(f"DROP TABLE IF EXISTS {table}")


if __name__ == "__main__":
    {"create": create, "drop": drop}[sys.argv[1]](sys.argv[2])
