"""The example of docs/router.md, run as it is written, before and after its customer has moved.

On SQLite's stores instead of MySQL's: the URLs are others, and the connections take the marks of MySQL's driver.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import MySQLdb
import pytest

from fishladder import tasks
from fishladder.clock import SystemClock
from fishladder.errors import InputError
from fishladder.flip import Cutover
from fishladder.stores import sqlite
from tests import ledgers
from tests.docs.test_docs import DOCS, blocks
from tests.scenario.worker import desk

FILE = """\
migration: shop
strategy: replicate
source: {kind: sqlite, connection: shop_old}
target: {kind: sqlite, connection: shop_new}
application: {source: shop_old_app, target: shop_new_app}
cohort: {root: customer, column: country, waves: [["*"]]}
tables: {customer: root, account: {entity: customer_id}}
"""
SCHEMA = """
CREATE TABLE customer (id INTEGER PRIMARY KEY, country VARCHAR(2));
CREATE TABLE account (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer (id),
    balance INTEGER NOT NULL);
INSERT INTO customer VALUES (7, 'NZ');
INSERT INTO account VALUES (7, 7, 2000);
"""


class Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        return super().execute(sql.replace("%s", "?"), parameters)


class Connection(sqlite3.Connection):
    def cursor(self, *_: Any) -> Cursor:  # type: ignore[override]
        return super().cursor(Cursor)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[tasks.Desk, dict[str, str]]]:
    """A loaded migration, and what stands for the page's URLs."""
    with closing(sqlite3.connect(tmp_path / "old.db")) as source:
        source.executescript(SCHEMA)
    (tmp_path / "shop.yaml").write_text(FILE)
    old, new, ledger = (f"sqlite:///{tmp_path}/{name}.db" for name in ("old", "new", "ledger"))
    ledgers.create(ledger)
    at = desk(
        tmp_path / "shop.yaml", {"FISHLADDER_SHOP_OLD": old, "FISHLADDER_SHOP_NEW": new, "FISHLADDER_LEDGER": ledger}
    )
    tasks.prepare(at, actor="test")
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    tasks.replicate(at, seconds=30, until_idle=True)
    monkeypatch.setattr(
        sqlite, "connect", lambda path: sqlite3.connect(path, check_same_thread=False, factory=Connection)
    )
    yield (
        at,
        {
            "postgresql://app:secret@ledger/fishladder": ledger,
            "mysql://app:secret@old/shop": old,
            "mysql://app:secret@new/shop": new,
        },
    )
    at.ledger.close()


def move(at: tasks.Desk) -> None:
    with at.ends() as (plan, (ends,)):
        cutover = Cutover(
            spec=at.spec,
            plan=plan,
            stores={"source": ends.origin, "target": ends.destination},
            ledger=at.ledger,
            clock=SystemClock(),
            replay=lambda cohort: None,
        )
        attempt = at.ledger.begin_attempt("NZ", "flip", actor="test", reason="", deadline=60)
        assert cutover.verify(attempt)
        assert cutover.run(attempt.id).outcome == "done"


def test_the_example_runs_as_it_is_written(shop: tuple[tasks.Desk, dict[str, str]]) -> None:
    at, urls = shop
    operations, router, calls = blocks(DOCS / "router.md", "python")
    assert MySQLdb.paramstyle == "format" and "%s" in operations
    assert sorted(re.findall(r"\w+://[^\"]+", router)) == sorted(urls)
    for said, real in urls.items():
        router = router.replace(said, real)

    page: dict[str, Any] = {}
    with ExitStack() as stack:
        exec(operations + router, page)
        stack.callback(page["router"].ledger.close)
        stack.callback(page["router"].close)
        exec(calls, page)
        assert (page["written"].state, page["written"].result) == ("done", {"paid": 1250})
        assert (page["answer"].value, page["answer"].pending) == (750, ())

        exec(calls, page)  # the same key
        assert page["written"].repeated and page["answer"].value == 750
        with pytest.raises(page["Declined"]):
            exec(calls.replace("payment-8812", "payment-8813"), page)
        with pytest.raises(InputError, match="another payload"):
            exec(calls.replace("1250", "1"), page)

        move(at)
        exec(calls, page)
        assert page["written"].repeated and page["answer"].value == 750
        exec(calls.replace("payment-8812", "payment-8814").replace("1250", "50"), page)
        assert page["answer"].value == 700
        with at.stores() as (_, target), target.begin() as session:
            assert session.lock_fences(["NZ"])["NZ"].writer == "application"
