"""The billing service's operations. Each is one transaction (or joins the one that is open on the database).

Every operation returns the ids and amounts that it wrote, as plain JSON values, and raises `Declined` when the
business says no; then nothing was written. Times are naive UTC.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias

from billing.database import Database, Row
from billing.money import cents

Receipt: TypeAlias = dict[str, int | str | None]

#: What one unit of metered use costs; sold in packs of eighty, so that an amount is whole cents.
USAGE_PRICE = Decimal("0.0125")
USAGE_PACK = 80


class Declined(Exception):
    """The business says no: no such customer, invoice exists already, too little left on the card."""


def timestamp(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="microseconds")


def sign_up(
    db: Database,
    *,
    country: str | None,
    name: str,
    email: str | None,
    plan_id: int,
    billing_cycle: str,
    at: datetime,
    customer_id: int | None = None,
) -> Receipt:
    """A new customer with a subscription. `customer_id` brings back one who was deleted, under the same id."""
    with db.transaction():
        if customer_id and db.rows("SELECT id FROM customer WHERE id = ?" + db.for_update, (customer_id,)):
            raise Declined(f"customer {customer_id} exists")
        given = {"id": customer_id} if customer_id else {}
        columns = {
            **given,
            "country_code": country,
            "name": name,
            "email": email,
            "balance": "0.00",
            "newsletter": True,
            "created_at": timestamp(at),
            "updated_at": timestamp(at),
        }
        customer_id = db.insert(
            f"INSERT INTO customer ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            list(columns.values()),
        )
        subscription_id = _subscribe(db, customer_id, plan_id, billing_cycle, at)
    return {"customer_id": customer_id, "subscription_id": subscription_id, "country": country, "email": email}


def charge(db: Database, *, customer_id: int, period: str, key: str, at: datetime, usage_packs: int = 0) -> Receipt:
    """Invoice a customer for a period (`2026-01`), pay it with credit first and then by card.

    The same `key` again returns the first answer and writes nothing.
    """
    with db.transaction():
        (balance,) = _lock_customer(db, customer_id, "balance")
        repeated = db.rows(
            "SELECT p.customer_id, p.invoice_id, i.total, p.amount FROM payment p JOIN invoice i ON i.id = p.invoice_id"
            " WHERE p.idempotency_key = ?",
            (key,),
        )
        if repeated:
            owner, invoice_id, total, paid = repeated[0]
            return {
                "customer_id": owner,
                "invoice_id": invoice_id,
                "period": period,
                "total": str(cents(total)),
                "amount": str(cents(paid)),
                "key": key,
            }
        lines = [*_subscription_lines(db, customer_id), *_usage_lines(usage_packs)]
        if not lines:
            raise Declined(f"customer {customer_id} has no active subscription")
        # A locking read: what a transaction that is joined has read before must not hide a newer invoice.
        charged = "SELECT id FROM invoice WHERE customer_id = ? AND period = ?" + db.for_update
        if db.rows(charged, (customer_id, period)):
            raise Declined(f"customer {customer_id} has an invoice for {period}")
        total = sum((quantity * price for _, quantity, price in lines), Decimal(0)).quantize(Decimal("0.01"))
        credit = min(cents(balance), total)
        document = repr((customer_id, period, lines)).encode()
        invoice_id = db.insert(
            "INSERT INTO invoice (customer_id, period, status, total, credit_used, document_digest, created_at)"
            " VALUES (?, ?, 'paid', ?, ?, ?, ?)",
            (customer_id, period, str(total), str(credit), hashlib.sha256(document).digest(), timestamp(at)),
        )
        db.insert_many(
            "INSERT INTO invoice_line (invoice_id, description, quantity, unit_price, amount) VALUES (?, ?, ?, ?, ?)",
            [
                (invoice_id, text, quantity, f"{price:.4f}", f"{quantity * price:.2f}")
                for text, quantity, price in lines
            ],
        )
        # A charge of 0.00 is recorded too: it holds the key.
        _pay(db, customer_id, invoice_id, key, "charge", total - credit, at)
        if credit:
            _change_balance(db, customer_id, -credit, at)
    return {
        "customer_id": customer_id,
        "invoice_id": invoice_id,
        "period": period,
        "total": str(total),
        "amount": str(total - credit),
        "key": key,
    }


def refund(db: Database, *, invoice_id: int, amount: Decimal, key: str, at: datetime) -> Receipt:
    """Pay back a part of what was charged for an invoice, or all of it."""
    with db.transaction():
        (customer_id,) = _lock(db, "invoice", invoice_id, "customer_id")
        payments = db.rows("SELECT kind, amount FROM payment WHERE invoice_id = ?", (invoice_id,))
        left = sum((cents(paid) if kind == "charge" else -cents(paid) for kind, paid in payments), Decimal(0))
        if not 0 < amount <= left:
            raise Declined(f"invoice {invoice_id}: no more than {left} can be refunded")
        _pay(db, customer_id, invoice_id, key, "refund", amount, at)
        if amount == left:
            db.execute("UPDATE invoice SET status = 'refunded' WHERE id = ?", (invoice_id,))
    return {"customer_id": customer_id, "invoice_id": invoice_id, "amount": str(amount), "key": key}


def buy_gift_card(db: Database, *, customer_id: int, code: str, amount: Decimal, at: datetime) -> Receipt:
    with db.transaction():
        _lock_customer(db, customer_id, "id")
        db.execute(
            "INSERT INTO gift_card (code, customer_id, initial_amount, remaining_amount, expires_on, created_at)"
            " VALUES (?, ?, ?, ?, NULL, ?)",
            (code, customer_id, str(amount), str(amount), timestamp(at)),
        )
    return {"customer_id": customer_id, "code": code, "amount": str(amount)}


def redeem(db: Database, *, code: str, amount: Decimal, at: datetime) -> Receipt:
    """Turn a part of a gift card into its owner's credit."""
    with db.transaction():
        found = db.rows("SELECT customer_id FROM gift_card WHERE code = ?", (code,))
        if not found:
            raise Declined(f"there is no gift card {code}")
        (customer_id,) = found[0]
        _lock_customer(db, customer_id, "id")
        held = db.rows("SELECT remaining_amount FROM gift_card WHERE code = ?" + db.for_update, (code,))
        left = cents(held[0][0]) if held else Decimal(0)
        if not 0 < amount <= left:
            raise Declined(f"gift card {code}: {left} is left")
        db.execute("UPDATE gift_card SET remaining_amount = ? WHERE code = ?", (str(left - amount), code))
        entry_id = db.insert(
            "INSERT INTO gift_card_entry (gift_card_code, amount, created_at) VALUES (?, ?, ?)",
            (code, str(amount), timestamp(at)),
        )
        _change_balance(db, customer_id, amount, at)
    return {"customer_id": customer_id, "code": code, "entry_id": entry_id, "amount": str(amount)}


def move_country(db: Database, *, customer_id: int, country: str, at: datetime) -> Receipt:
    with db.transaction():
        (before,) = _lock_customer(db, customer_id, "country_code")
        db.execute(
            "UPDATE customer SET country_code = ?, updated_at = ? WHERE id = ?", (country, timestamp(at), customer_id)
        )
    return {"customer_id": customer_id, "before": before, "country": country}


def change_plan(db: Database, *, customer_id: int, plan_id: int, billing_cycle: str, at: datetime) -> Receipt:
    """End the active subscription and begin another."""
    with db.transaction():
        _lock_customer(db, customer_id, "id")
        db.execute(
            "UPDATE subscription SET active = ?, ended_at = ? WHERE customer_id = ? AND active = ?",
            (False, timestamp(at), customer_id, True),
        )
        subscription_id = _subscribe(db, customer_id, plan_id, billing_cycle, at)
    return {"customer_id": customer_id, "subscription_id": subscription_id, "plan_id": plan_id}


def delete_customer(db: Database, *, customer_id: int) -> Receipt:
    """Forget a customer. Money goes by name, what only describes it cascades from the customer's row."""
    with db.transaction():
        _lock_customer(db, customer_id, "id")
        db.execute(
            "DELETE FROM gift_card_entry WHERE gift_card_code IN (SELECT code FROM gift_card WHERE customer_id = ?)",
            (customer_id,),
        )
        db.execute("DELETE FROM gift_card WHERE customer_id = ?", (customer_id,))
        db.execute("DELETE FROM payment WHERE customer_id = ?", (customer_id,))
        db.execute("DELETE FROM customer WHERE id = ?", (customer_id,))
    return {"customer_id": customer_id}


def transfer_invoice(db: Database, *, invoice_id: int, customer_id: int) -> Receipt:
    """Give an invoice and its payments to another customer (the wrong account was billed)."""
    with db.transaction():
        owner, credit, period = _lock(db, "invoice", invoice_id, "customer_id, credit_used, period")
        for each in sorted({owner, customer_id}):
            _lock_customer(db, each, "id")
        if cents(credit):
            raise Declined(f"invoice {invoice_id} used credit of customer {owner}")
        if db.rows("SELECT id FROM invoice WHERE customer_id = ? AND period = ?", (customer_id, period)):
            raise Declined(f"customer {customer_id} has an invoice for {period}")
        db.execute("UPDATE invoice SET customer_id = ? WHERE id = ?", (customer_id, invoice_id))
        db.execute("UPDATE payment SET customer_id = ? WHERE invoice_id = ?", (customer_id, invoice_id))
    return {"invoice_id": invoice_id, "before": owner, "customer_id": customer_id}


def change_price(db: Database, *, plan_id: int, monthly: Decimal, yearly: Decimal, at: datetime) -> Receipt:
    with db.transaction():
        _lock(db, "plan", plan_id, "id")
        db.execute(
            "UPDATE plan SET monthly_price = ?, yearly_price = ?, updated_at = ? WHERE id = ?",
            (str(monthly), str(yearly), timestamp(at), plan_id),
        )
    return {"plan_id": plan_id, "monthly": str(monthly), "yearly": str(yearly)}


def swap_emails(db: Database, *, first: int, second: int, at: datetime) -> Receipt:
    """Two customers exchange their addresses, which are unique: one is empty for a moment."""
    with db.transaction():
        emails: dict[int, str | None] = {}
        for each in sorted({first, second}):
            (emails[each],) = _lock_customer(db, each, "email")
        if len(emails) < 2:
            raise Declined(f"customer {first} cannot swap with itself")
        set_email = "UPDATE customer SET email = ?, updated_at = ? WHERE id = ?"
        db.execute(set_email, (None, timestamp(at), first))
        db.execute(set_email, (emails[first], timestamp(at), second))
        db.execute(set_email, (emails[second], timestamp(at), first))
    return {"first": first, "first_email": emails[second], "second": second, "second_email": emails[first]}


def _lock(db: Database, table: str, key: int, columns: str) -> Row:
    found = db.rows(f"SELECT {columns} FROM {table} WHERE id = ?" + db.for_update, (key,))
    if not found:
        raise Declined(f"there is no {table} {key}")
    return found[0]


def _lock_customer(db: Database, customer_id: int, columns: str) -> Row:
    """Makes the operations of one customer take turns. A locking read: it sees what was committed just now."""
    return _lock(db, "customer", customer_id, columns)


def _subscribe(db: Database, customer_id: int, plan_id: int, billing_cycle: str, at: datetime) -> int:
    return db.insert(
        "INSERT INTO subscription (customer_id, plan_id, billing_cycle, active, started_at, ended_at)"
        " VALUES (?, ?, ?, ?, ?, NULL)",
        (customer_id, plan_id, billing_cycle, True, timestamp(at)),
    )


def _subscription_lines(db: Database, customer_id: int) -> list[tuple[str, int, Decimal]]:
    """(description, quantity, unit price) of the active subscriptions."""
    found = db.rows(
        "SELECT p.name, p.monthly_price, p.yearly_price, s.billing_cycle FROM subscription s"
        " JOIN plan p ON p.id = s.plan_id WHERE s.customer_id = ? AND s.active = ? ORDER BY s.id",
        (customer_id, True),
    )
    return [
        (f"{name} ({billing_cycle})", 1, cents(yearly if billing_cycle == "yearly" else monthly))
        for name, monthly, yearly, billing_cycle in found
    ]


def _usage_lines(packs: int) -> list[tuple[str, int, Decimal]]:
    return [("Metered use", packs * USAGE_PACK, USAGE_PRICE)] if packs else []


def _pay(db: Database, customer_id: int, invoice_id: int, key: str, kind: str, amount: Decimal, at: datetime) -> None:
    db.insert(
        "INSERT INTO payment (customer_id, invoice_id, idempotency_key, kind, amount, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (customer_id, invoice_id, key, kind, str(amount), timestamp(at)),
    )


def _change_balance(db: Database, customer_id: int, amount: Decimal, at: datetime) -> None:
    (balance,) = _lock_customer(db, customer_id, "balance")
    db.execute(
        "UPDATE customer SET balance = ?, updated_at = ? WHERE id = ?",
        (str(cents(balance) + amount), timestamp(at), customer_id),
    )
