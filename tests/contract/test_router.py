"""Calls of the router beside others, on real stores: what the router adds to a transaction must not change what the
application's own statements see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing import service
from billing.operations import operations
from billing.service import Declined
from fishladder.ledger import Ledger, Queued, open_ledger
from fishladder.serving import Replayer, Router
from fishladder.stores import connect_url, open_application
from fishladder.stores.application import Application, Applied
from tests import ledgers
from tests.contract.shop import Shop, key
from tests.contract.stores import PATIENCE

Submit = Callable[..., Future[Any]]
AT = datetime(2026, 1, 31, 12)


@pytest.fixture
def shop(reopened_shop: Shop) -> Shop:
    return reopened_shop


@dataclass
class Calls:
    """Of an application that has embedded the router; nothing is being moved."""

    ledger: Ledger
    store: Application

    def direct(self, payload: dict[str, Any]) -> Any:
        router = Router(self.ledger, operations, source=self.store, target=self.store)
        return router.write("refund", payload, key=payload["key"], entity=1).result

    def replayed(self, payload: dict[str, Any]) -> Any:
        """As if it had been queued. Raises what the business said."""
        queued = Queued(
            id=1,
            cohort="NZ",
            entity=key(1),
            operation="refund",
            key=payload["key"],
            digest="digest",
            payload=json.dumps(payload),
            state="pending",
            result=None,
            reason=None,
            attempts=0,
            optimistic=None,
            at=datetime.now(UTC),
        )
        replayer = Replayer(self.ledger, operations, {"source": self.store})
        done = replayer._decide(operations["refund"], self.store, queued, self.ledger.route("NZ"))
        assert done is not None
        if done.refused:
            raise Declined(done.result)
        return json.loads(done.result or "null")


@pytest.fixture
def calls(shop: Shop, tmp_path: Path) -> Iterator[Calls]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledgers.create(url)
    with (
        open_ledger(url, migration="billing") as ledger,
        closing(open_application(*connect_url(shop.place.application))) as store,
    ):
        ledger.ensure_routes(["NZ"], "test")
        yield Calls(ledger=ledger, store=store)


@pytest.mark.parametrize("way", ["direct", "replayed"])
def test_a_refund_that_waited_for_another_sees_it(shop: Shop, calls: Calls, background: Submit, way: str) -> None:
    """It locks the invoice and then adds up the payments with a plain SELECT, which is right without the router."""
    charge = service.charge(shop.user, customer_id=1, period="2027-01", key=f"charge-{way}", at=AT)
    invoice, paid = charge["invoice_id"], Decimal(str(charge["amount"]))
    payload = {"invoice_id": invoice, "amount": str(paid), "key": f"second-{way}", "at": AT.isoformat()}
    with shop.user.transaction():
        service.refund(shop.user, invoice_id=int(str(invoice)), amount=paid, key=f"first-{way}", at=AT)
        second = background(getattr(calls, way), payload)
        shop.place.wait_for_waiter()
        assert not second.done()
    with pytest.raises(Declined, match="no more than 0"):
        second.result(PATIENCE)
    assert shop.user.rows("SELECT count(*) FROM payment WHERE invoice_id = ?", (invoice,)) == [(2,)]


@pytest.mark.parametrize("part", [1, 2], ids=["the business says no", "its own unique key does"])
@pytest.mark.parametrize("way", ["direct", "replayed"])
def test_what_cannot_be_done_twice_is_done_once(shop: Shop, calls: Calls, way: str, part: int) -> None:
    """What the second time says is not what the customer hears: the router's key tells what came of the first."""
    name = f"{way}-{part}"
    charge = service.charge(shop.user, customer_id=1, period=f"2027-0{part}", key=f"charge-{name}", at=AT)
    amount = Decimal(str(charge["amount"])) / part
    payload = {
        "invoice_id": charge["invoice_id"],
        "amount": f"{amount:.2f}",
        "key": f"refund-{name}",
        "at": AT.isoformat(),
    }
    first, second = (getattr(calls, way)(payload) for _ in range(2))
    assert first == second
    assert (first["invoice_id"], first["amount"]) == (payload["invoice_id"], payload["amount"])
    rows = shop.user.rows("SELECT kind FROM payment WHERE invoice_id = ? ORDER BY id", (charge["invoice_id"],))
    assert rows == [("charge",), ("refund",)]


@pytest.mark.parametrize(
    "result", ['{"id": 5}', "1234", "null", '"\U0001f3ac\u00e4"', '"' + "x" * 70_000 + '"'], ids=lambda text: text[:9]
)
def test_an_applied_key_says_the_same_where_it_was_copied_to(shop: Shop, result: str) -> None:
    applied, relation = Applied(digest="d", result=result), shop.relation("fishladder_applied")
    here, there = f"here {result[:9]}", f"there {result[:9]}"
    with closing(open_application(*connect_url(shop.place.application))) as application:
        with application.transaction() as session:
            assert session.record("pay", key(1), here, applied)
            session.commit()
        with shop.store.read() as reader:
            (found,) = reader.rows_by_key(relation, [key("pay", "1:1", here)]).values()
        with shop.store.begin() as copy:
            copy.insert(relation, [(*found.row[:2], there.encode(), *found.row[3:])])
            copy.commit()
        with application.transaction(reading=True) as session:
            assert session.applied("pay", key(1), here) == session.applied("pay", key(1), there) == applied
