"""A few rows that the target cannot hold, among very many that it can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fishladder import tasks
from fishladder.cells import key_text
from fishladder.operate import Order
from tests import independent, ledgers
from tests.scenario.worker import desk
from tests.servers import mysql

FILE = """
migration: narrow
strategy: replicate
source: {kind: mysql, connection: ours}
target: {kind: mysql, connection: theirs}
application: {source: ours_app, target: theirs_app}
cohort: {label: country, root: customer, column: country, waves: [["*"]]}
tables: {customer: root, event: {entity: customer_id}}
"""
CUSTOMER = """
CREATE TABLE customer (
    id BIGINT NOT NULL PRIMARY KEY, country VARCHAR(2) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin
)
"""
EVENT = """
CREATE TABLE event (
    id BIGINT NOT NULL PRIMARY KEY, customer_id BIGINT NOT NULL,
    name VARCHAR({name}) NOT NULL, amount {amount} NOT NULL,
    code VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL{unique}
)
"""
TOO_LONG, OUT_OF_RANGE, CLASH, HOLDER = 7_001, 12_345, 778, 777
"""Ids of events. CLASH has the code of HOLDER, which only the target wants to be unique."""


class Narrow:
    """Events of ten customers in the source; the target's table is narrower in three ways."""

    def __init__(self, folder: Path, source: mysql.Database, target: mysql.Database) -> None:
        self.source, self.target = source, target
        self.file = folder / "narrow.yaml"
        self.file.write_text(FILE)
        self.environment = {
            **os.environ,
            "FISHLADDER_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
            "FISHLADDER_OURS": source.copier,
            "FISHLADDER_THEIRS": target.copier,
        }
        ledgers.create(self.environment["FISHLADDER_LEDGER"])

    def fill(self, rows: int) -> None:
        self.run(
            self.source.admin,
            CUSTOMER,
            EVENT.format(name=60, amount="BIGINT", unique=""),
            "INSERT INTO customer VALUES (1, 'NZ'), (2, 'AU'), (3, 'NZ'), (4, 'IE'), (5, 'NZ')",
            f"SET SESSION cte_max_recursion_depth = {rows}",
            "INSERT INTO event WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n"
            f" WHERE id < {rows}) SELECT id, 1 + id % 5, CONCAT('event ', id), id, CONCAT('code-', id) FROM n",
            f"UPDATE event SET name = REPEAT('x', 41) WHERE id = {TOO_LONG}",
            f"UPDATE event SET amount = 3000000000 WHERE id = {OUT_OF_RANGE}",
            f"UPDATE event SET code = 'code-{HOLDER}' WHERE id = {CLASH}",
        )
        self.run(
            self.target.admin, CUSTOMER, EVENT.format(name=40, amount="INT", unique=", UNIQUE KEY event_code (code)")
        )

    def run(self, url: str, *statements: str) -> None:
        with closing(mysql.connect(url)) as connection, closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)
            connection.commit()

    def compare(self) -> list[str]:
        return independent.compare(self.source.admin, self.target.admin, ["customer", "event"])


@pytest.fixture
def narrow(mysql_server: str, tmp_path: Path) -> Iterator[Narrow]:
    with mysql.database(mysql_server) as source, mysql.database(mysql_server) as target:
        yield Narrow(tmp_path, source, target)


def few_among(narrow: Narrow, rows: int) -> None:
    """One reject each and all others there; each is closed once its cause is mended."""
    narrow.fill(rows)
    at = desk(narrow.file, narrow.environment)
    tasks.prepare(at, actor="test")
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    rejects = {reject.key: reject for reject in at.ledger.open_rejects()}
    reasons = {int(key.partition(b":")[2]): (rejects[key].column, rejects[key].error) for key in rejects}
    assert set(reasons) == {TOO_LONG, OUT_OF_RANGE, CLASH}
    assert reasons[TOO_LONG] == ("name", "the value is longer than 40 characters")
    assert reasons[OUT_OF_RANGE][0] == "amount"
    assert "event_code" in reasons[CLASH][1]
    assert narrow.compare() == [
        f"event: {rows} row(s) in the source, {rows - 3} in the target",
        f"event: 3 row(s) missing in the target: {CLASH}, {TOO_LONG}, {OUT_OF_RANGE}",
        "event: 1 value(s) of code occur more than once in the source",
    ]
    result = tasks.reconcile_table(at, "event")
    assert (result.missing, result.extra, result.differs, result.rejected) == (0, 0, 0, 3)
    assert at.ledger.clean_passes("event") == 0

    # Too long: the application mends the row, and that brings it back by itself.
    narrow.run(narrow.source.application, f"UPDATE event SET name = 'short' WHERE id = {TOO_LONG}")
    tasks.replicate(at, seconds=60, until_idle=True)
    assert {reject.key for reject in at.ledger.open_rejects()} == {_key(OUT_OF_RANGE), _key(CLASH)}
    # Out of range: somebody widens the column; prepare takes it as it is now, and the reject is tried again.
    narrow.run(narrow.target.admin, "ALTER TABLE event MODIFY amount BIGINT NOT NULL")
    tasks.prepare(at, actor="test")
    assert tasks.operate(at, Order(action="retry rejects", error=reasons[OUT_OF_RANGE][1]), actor="test") == {
        "rejects": 1
    }
    tasks.replicate(at, seconds=60, until_idle=True)
    assert [reject.key for reject in at.ledger.open_rejects()] == [_key(CLASH)]
    # A retry before anything is mended leaves it as it is, and counts.
    tasks.operate(at, Order(action="retry rejects"), actor="test")
    tasks.replicate(at, seconds=60, until_idle=True)
    assert [(reject.key, reject.attempts) for reject in at.ledger.open_rejects()] == [(_key(CLASH), 2)]
    # A clash: the row that should not have the code gets another one.
    narrow.run(narrow.source.application, f"UPDATE event SET code = 'its own' WHERE id = {HOLDER}")
    tasks.replicate(at, seconds=60, until_idle=True)
    tasks.operate(at, Order(action="retry rejects", tables=("event",)), actor="test")
    tasks.replicate(at, seconds=60, until_idle=True)
    assert at.ledger.open_rejects() == []
    assert narrow.compare() == []
    for table in ("customer", "event"):
        tasks.reconcile_table(at, table)
        assert at.ledger.clean_passes(table) == 1


def _key(number: int) -> bytes:
    return key_text([str(number).encode()])


def test_three_rejects_among_twenty_thousand_rows(narrow: Narrow) -> None:
    few_among(narrow, 20_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_rejects_among_a_million_rows(narrow: Narrow) -> None:
    few_among(narrow, 1_000_000)
