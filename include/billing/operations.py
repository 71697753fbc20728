"""The billing service behind the router: every operation as a keyed call with a JSON payload.

Both stores have the same schema, so one implementation serves both; it finds out which driver it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from billing import service
from billing.database import joined, settle
from billing.service import Declined
from fishladder.serving import Operations

operations = Operations(connected=settle)

_PARSED: dict[str, Callable[[Any], Any]] = {
    "at": datetime.fromisoformat,
    "amount": Decimal,
    "monthly": Decimal,
    "yearly": Decimal,
}
"""Words of a payload that are no JSON."""


def _keyed(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def run(connection: Any, payload: Any) -> Any:
        parsed = {name: _PARSED.get(name, lambda given: given)(value) for name, value in payload.items()}
        return function(joined(connection), **parsed)

    return run


for _name in ("sign_up", "charge", "refund", "buy_gift_card", "redeem", "move_country", "change_plan", "change_price"):
    operations.add(_name, _keyed(getattr(service, _name)), refusals=(Declined,))


def _account(connection: Any, payload: Any) -> dict[str, Any]:
    """What a customer sees: the balance, the newest invoice, the gift cards. None for nobody."""
    db, customer = joined(connection), (payload["customer_id"],)
    found = db.rows("SELECT balance FROM customer WHERE id = ?", customer)
    if not found:
        return {"balance": None}
    invoices = db.rows("SELECT id, period, total FROM invoice WHERE customer_id = ? ORDER BY id DESC LIMIT 1", customer)
    cards = db.rows("SELECT code, remaining_amount FROM gift_card WHERE customer_id = ? ORDER BY code", customer)
    return {
        "balance": str(found[0][0]),
        "invoice": [str(value) for value in invoices[0]] if invoices else None,
        "cards": {str(code): str(left) for code, left in cards},
    }


operations.add("account", _account)
