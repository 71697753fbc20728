"""The judge of routed flips finds each thing that may go wrong: a store is doctored, or what clients were told."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from billing import schema
from billing.operations import operations
from billing.routed import WEIGHTS, Customers
from billing.seed import seed
from billing.service import Declined
from fishladder.serving import Answer, Written
from tests.independent import _MAKES_TOO, accepted, counts

WRITES = 250
CUSTOMERS = 12


class Straight:
    """In place of a router: does each write in the one store; of every third the client hears only that it waits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.written = 0

    def read(self, operation: str, payload: Any, **_: Any) -> Answer:
        return Answer(value=operations[operation].on("source")(self._connection, payload))

    def write(self, operation: str, payload: Any, **_: Any) -> Written:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = operations[operation].on("source")(self._connection, payload)
        except Declined:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        self.written += 1
        if self.written == WRITES:
            self.client.stop()
        return Written(state="queued") if self.written % 3 == 0 else Written(state="done", result=result)

    client: Customers


class Store:
    """A store and what was there before; `log`: what a client was told."""

    def __init__(self, folder: Path) -> None:
        self.file, self.log = folder / "store.db", folder / "routed.jsonl"
        self.url = f"sqlite:///{self.file}"
        schema.create(self.url)
        seed(self.url, customers=CUSTOMERS, seed=7)
        self.before = counts(self.url)

    def lines(self, *operations: str) -> list[dict[str, Any]]:
        """Those of these, or all."""
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if not operations or line["operation"] in operations]

    def doctor(self, sql: str, *parameters: object) -> None:
        with closing(sqlite3.connect(self.file)) as connection:
            assert connection.execute(sql, parameters).rowcount == 1, sql
            connection.commit()

    def problems(self, *logs: Path, **more: Any) -> list[str]:
        return accepted(self.url, logs or [self.log], before=self.before, **more)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def served(store: Store) -> Store:
    """With one client, who did a bit of everything."""
    with closing(sqlite3.connect(store.file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        router = Straight(connection)
        ids, plans = range(1, CUSTOMERS + 1), range(1, 6)
        router.client = Customers(router, ids, plans, rng=random.Random(1), run="r")  # type: ignore[arg-type]
        router.client.run(rate=100_000, seconds=60, log=store.log)
    assert router.written == WRITES and not router.client.felt.failed
    return store


def write(log: Path, lines: list[dict[str, Any]]) -> Path:
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return log


def test_what_was_kept_is_found_good(served: Store) -> None:
    assert served.problems() == []
    for state in ("done", "queued"):
        told = {line["operation"] for line in served.lines() if line["state"] == state}
        assert told >= WEIGHTS.keys() - {"account", "change_price"}


# One client ----------------------------------------------------------------------------------------------------------


ROWS = {
    "charge": ("payment", "idempotency_key = '{key}'", "amount = '0.07'"),
    "refund": ("payment", "idempotency_key = '{key}'", "kind = 'charge'"),
    "buy_gift_card": ("gift_card", "code = '{code}'", "initial_amount = '25.01'"),
    "sign_up": ("customer", "email = '{email}'", "id = 99"),
    "redeem": ("gift_card_entry", "gift_card_code = '{code}' AND created_at = '{at}'", "amount = '99.00'"),
    "change_plan": ("subscription", "customer_id = {customer_id} AND started_at = '{at}'", "billing_cycle = 'daily'"),
}
"""Operation → the table of its row, which one it is, and something that its client was not told."""


def row_of(served: Store, operation: str) -> tuple[str, str]:
    table, where, _ = ROWS[operation]
    line = next(line for line in reversed(served.lines(operation)) if line["state"] == "done")
    said = {**line, **line["payload"], "key": line["key"], "at": line["payload"]["at"].replace("T", " ")}
    return table, where.format(**said)


@pytest.mark.parametrize("operation", ROWS)
def test_a_lost_row(served: Store, operation: str) -> None:
    table, where = row_of(served, operation)
    served.doctor(f"DELETE FROM {table} WHERE {where}")
    assert [problem for problem in served.problems() if problem.startswith(operation) and "and not there" in problem]


@pytest.mark.parametrize("operation", ROWS)
def test_an_altered_row(served: Store, operation: str) -> None:
    table, where = row_of(served, operation)
    altered = ROWS[operation][2]
    served.doctor(f"UPDATE {table} SET {altered} WHERE {where}")
    (problem,) = [problem for problem in served.problems() if problem.startswith(operation)]
    assert problem.endswith(f"another {altered.split()[0]} than was told")


@pytest.mark.parametrize("operation", ["redeem", "change_plan"])
def test_a_row_that_was_made_twice(served: Store, operation: str) -> None:
    """The other tables' keys forbid it."""
    table, where = row_of(served, operation)
    with closing(sqlite3.connect(served.file)) as connection:
        columns = ", ".join(name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})") if name != "id")
    served.doctor(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE {where}")
    assert [problem for problem in served.problems() if problem.startswith(operation) and "there 2 times" in problem]


@pytest.mark.parametrize(
    ("operation", "table"),
    [*((operation, table) for operation, (table, _, _) in ROWS.items()), *_MAKES_TOO.items()],
)
def test_a_row_of_which_nobody_was_told(served: Store, operation: str, table: str) -> None:
    lines = served.lines()
    lines.remove(served.lines(operation)[-1])
    write(served.log, lines)
    (problem,) = [problem for problem in served.problems() if problem.startswith(f"{table}: ")]
    assert "row(s) more than before, and clients were told of" in problem


def test_what_a_batch_job_was_told_counts(served: Store, tmp_path: Path) -> None:
    lines, line = served.lines(), served.lines("redeem")[-1]
    lines.remove(line)
    write(served.log, lines)
    batch = write(tmp_path / "batch.log", [{"operation": "redeem", "at": line["payload"]["at"]}])
    assert served.problems() != []
    assert served.problems(beside=[batch]) == []


def test_only_what_was_queued_may_be_refused(served: Store) -> None:
    cards = {line["state"]: line for line in served.lines("buy_gift_card")}
    for line in cards.values():
        served.doctor("DELETE FROM gift_card WHERE code = ?", line["payload"]["code"])
    problems = "\n".join(served.problems(refused={line["key"] for line in cards.values()}))
    assert f"{cards['done']['payload']['code']}: accepted, and not there" in problems
    assert cards["queued"]["payload"]["code"] not in problems


def last_two(served: Store, operation: str, of: str = "customer_id") -> tuple[dict[str, Any], dict[str, Any]]:
    """What was asked in the last two of an operation for one customer, which are not the same."""
    asked: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for line in served.lines(operation):
        asked[line["payload"][of]].append(line["payload"])
    pairs = [(each[-2], each[-1]) for each in asked.values() if len(each) > 1]
    return next((before, last) for before, last in pairs if {**before, "at": None} != {**last, "at": None})


def test_plans_in_another_order(served: Store) -> None:
    asked = last_two(served, "change_plan")
    first, second = (each["at"].replace("T", " ") for each in asked)
    of = f"WHERE customer_id = {asked[0]['customer_id']} AND"
    served.doctor(f"UPDATE subscription SET ended_at = ? {of} ended_at = ?", second, first)
    served.doctor(f"UPDATE subscription SET ended_at = NULL {of} started_at = ?", first)
    served.doctor(f"UPDATE subscription SET ended_at = ? {of} started_at = ?", first, second)
    assert served.problems() == [
        f"plans of customer {asked[0]['customer_id']}: not in the order in which they were accepted"
    ]


@pytest.mark.parametrize(
    ("operation", "of", "what"), [("charge", "customer_id", "payments"), ("redeem", "code", "gift card entries")]
)
def test_rows_in_another_order(served: Store, operation: str, of: str, what: str) -> None:
    """The last one has a lower id than the one before; an even one is the other store's, and tells nothing."""
    table, where, _ = ROWS[operation]
    _, last = last_two(served, operation, of)
    for number, found in ((-2, 0), (-1, 1)):
        row = where.format(**{**last, "at": last["at"].replace("T", " ")})
        served.doctor(f"UPDATE {table} SET id = {number} WHERE {row}")
        problems = [problem for problem in served.problems() if problem.startswith(f"{what} of customer ")]
        assert len(problems) == found, problems
        assert all(problem.endswith(": not in the order in which they were accepted") for problem in problems)


def test_a_country_that_is_not_the_last(served: Store) -> None:
    before, last = last_two(served, "move_country")
    served.doctor("UPDATE customer SET country_code = ? WHERE id = ?", before["country"], last["customer_id"])
    assert served.problems() == [f"country of customer {last['customer_id']}: not what the last change said"]


# Two clients ---------------------------------------------------------------------------------------------------------


def line(minute: int, operation: str, **payload: object) -> dict[str, Any]:
    at = f"2026-01-31T12:{minute:02}:00"
    return {"operation": operation, "key": f"{minute}", "state": "done", "payload": {**payload, "at": at}}


def price(minute: int, monthly: str) -> dict[str, Any]:
    return line(minute, "change_price", plan_id=1, monthly=monthly, yearly="90.00")


def plan(minute: int) -> dict[str, Any]:
    return line(minute, "change_plan", customer_id=1, plan_id=1, billing_cycle="yearly")


OVERLAP, APART = line(30, "nothing"), line(15, "nothing")
"""What the first client asks for next, when it has been answered: after the second one's call began, or before."""


@pytest.mark.parametrize(
    ("then", "found", "good"),
    [
        *((OVERLAP, *each) for each in (("8.00", True), ("9.00", True), ("7.00", False))),
        *((APART, *each) for each in (("8.00", False), ("9.00", True), ("7.00", False))),
    ],
)
def test_prices_of_two_clients(store: Store, tmp_path: Path, then: dict[str, Any], found: str, good: bool) -> None:
    one = write(tmp_path / "one", [price(10, "8.00"), then])
    two = write(tmp_path / "two", [price(20, "9.00")])
    store.doctor("UPDATE plan SET monthly_price = ?, yearly_price = '90.00' WHERE id = 1", found)
    assert store.problems(one, two) == ([] if good else ["price of plan 1: not what the last change said"])


@pytest.mark.parametrize(
    ("then", "began", "good"),
    [
        *((OVERLAP, began, True) for began in ((10, 20), (20, 10))),
        (APART, (10, 20), True),
        (APART, (10, 12, 20), True),
        (APART, (20, 10), False),
        (APART, (20, 22, 10), False),
    ],
)
def test_plans_of_two_clients(
    store: Store, tmp_path: Path, then: dict[str, Any], began: tuple[int, ...], good: bool
) -> None:
    """`began`: the minutes at which plans began, each in the place of the one before; also a batch job's."""
    one, two = write(tmp_path / "one", [plan(10), then]), write(tmp_path / "two", [plan(20)])
    batch = write(tmp_path / "batch", [plan(minute) for minute in began if minute not in (10, 20)])
    at = [f"2026-01-31 12:{minute:02}:00.000000" for minute in began]
    for each, after in zip(at, [*at[1:], None], strict=True):
        store.doctor(
            "INSERT INTO subscription (customer_id, plan_id, billing_cycle, active, started_at, ended_at)"
            " VALUES (1, 1, 'yearly', ?, ?, ?)",
            after is None,
            each,
            after,
        )
    order = "plans of customer 1: not in the order in which they were accepted"
    assert store.problems(one, two, beside=[batch]) == ([] if good else [order])
