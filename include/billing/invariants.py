"""What must hold in a billing database at any time: `python -m billing.invariants URL`.

An auditor's view: it shares no code with the service, the seed or anything else. All statements run on SQLite, on
MySQL and on Oracle. Amounts are compared in whole cents (or hundredths of a cent), because SQLite computes with floats.
"""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import MySQLdb
import oracledb

#: What the customers without a country are listed under.
NOWHERE = "(none)"

#: Each statement selects (table, key) of the rows that are wrong.
CHECKS = {
    "an invoice's total is the sum of its lines": """
        select 'invoice', i.id from invoice i
        left join (select invoice_id, sum(round(amount * 100)) as cents from invoice_line group by invoice_id) l
            on l.invoice_id = i.id
        where round(i.total * 100) <> coalesce(l.cents, 0)""",
    "a line's amount is quantity × unit price": """
        select 'invoice_line', id from invoice_line where round(quantity * unit_price * 10000) <> round(amount * 10000)
        """,
    "payments are charges or refunds, and not negative": """
        select 'payment', id from payment where kind not in ('charge', 'refund') or round(amount * 100) < 0""",
    "charges less refunds are between nothing and what is due, and all of it when paid": """
        select 'invoice', i.id from invoice i
        left join (
            select invoice_id,
                sum(case when kind = 'charge' then round(amount * 100) else 0 end) as charged,
                sum(case when kind = 'refund' then round(amount * 100) else 0 end) as refunded
            from payment group by invoice_id
        ) p on p.invoice_id = i.id
        where coalesce(p.charged, 0) <> round(i.total * 100) - round(i.credit_used * 100)
            or coalesce(p.refunded, 0) > coalesce(p.charged, 0)
            or case when i.status = 'refunded' then 1 else 0 end
                <> case when p.refunded > 0 and p.refunded = p.charged then 1 else 0 end
            or i.status not in ('paid', 'refunded')""",
    "a gift card's entries and what remains add up to what it began with": """
        select 'gift_card', g.code from gift_card g
        left join (
            select gift_card_code, sum(round(amount * 100)) as cents from gift_card_entry group by gift_card_code
        ) e on e.gift_card_code = g.code
        where round(g.initial_amount * 100) - coalesce(e.cents, 0) <> round(g.remaining_amount * 100)
            or round(g.remaining_amount * 100) < 0""",
    "a customer's balance is what was redeemed less what was used": """
        select 'customer', c.id from customer c
        left join (
            select g.customer_id, sum(round(e.amount * 100)) as cents
            from gift_card g join gift_card_entry e on e.gift_card_code = g.code group by g.customer_id
        ) e on e.customer_id = c.id
        left join (select customer_id, sum(round(credit_used * 100)) as cents from invoice group by customer_id) i
            on i.customer_id = c.id
        where round(c.balance * 100) <> coalesce(e.cents, 0) - coalesce(i.cents, 0) or round(c.balance * 100) < 0""",
    "a payment belongs to its invoice's customer": """
        select 'payment', p.id from payment p join invoice i on i.id = p.invoice_id
        where i.customer_id <> p.customer_id""",
    "one invoice per customer and period": """
        select 'invoice', min(id) from invoice group by customer_id, period having count(*) > 1""",
    "an idempotency key pays once": """
        select 'payment', min(id) from payment group by idempotency_key having count(*) > 1""",
    "an address belongs to one customer": """
        select 'customer', min(id) from customer where email is not null group by email having count(*) > 1""",
    **{
        f"every {child}.{column} exists in {parent}": f"""
        select '{child}', x.{key} from {child} x left join {parent} p on p.{parent_key} = x.{column}
        where p.{parent_key} is null"""
        for child, key, column, parent, parent_key in (
            ("subscription", "id", "customer_id", "customer", "id"),
            ("subscription", "id", "plan_id", "plan", "id"),
            ("invoice", "id", "customer_id", "customer", "id"),
            ("invoice_line", "id", "invoice_id", "invoice", "id"),
            ("payment", "id", "customer_id", "customer", "id"),
            ("payment", "id", "invoice_id", "invoice", "id"),
            ("gift_card", "code", "customer_id", "customer", "id"),
            ("gift_card_entry", "id", "gift_card_code", "gift_card", "code"),
        )
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a country adds up to; amounts are exact."""

    customers: int = 0
    subscriptions: int = 0
    invoices: int = 0
    invoiced: Decimal = Decimal("0.00")
    charged: Decimal = Decimal("0.00")
    refunded: Decimal = Decimal("0.00")
    gift_cards_left: Decimal = Decimal("0.00")
    balance: Decimal = Decimal("0.00")


def check(url: str) -> list[str]:
    """One line per violated invariant, with how many rows violate it and the first few keys; empty if all hold."""
    violations = []
    with _Snapshot(url) as snapshot:
        for invariant, statement in CHECKS.items():
            wrong = snapshot.rows(statement)
            if wrong:
                keys = ", ".join(str(key) for _, key in wrong[:5])
                more = ", …" if len(wrong) > 5 else ""
                violations.append(f"{invariant}: {len(wrong)} {wrong[0][0]} row(s) do not comply: {keys}{more}")
    return violations


def totals(url: str) -> dict[str, Totals]:
    """Totals by the country that the customers have now; those without one are under `(none)`."""
    by_customer = "customer c join {0} on {0}.customer_id = c.id"
    measures = {
        "customers": ("customer c", "count(*)"),
        "subscriptions": (by_customer.format("subscription"), "count(*)"),
        "invoices": (by_customer.format("invoice"), "count(*)"),
        "invoiced": (by_customer.format("invoice"), "sum(round(invoice.total * 100))"),
        "charged": (by_customer.format("payment") + " and kind = 'charge'", "sum(round(payment.amount * 100))"),
        "refunded": (by_customer.format("payment") + " and kind = 'refund'", "sum(round(payment.amount * 100))"),
        "gift_cards_left": (by_customer.format("gift_card"), "sum(round(gift_card.remaining_amount * 100))"),
        "balance": ("customer c", "sum(round(c.balance * 100))"),
    }
    found: dict[str, dict[str, Any]] = {}
    with _Snapshot(url) as snapshot:
        for measure, (tables, value) in measures.items():
            for country, amount in snapshot.rows(
                f"select c.country_code, {value} from {tables} group by c.country_code"
            ):
                counted = "count" in value
                found.setdefault(country or NOWHERE, {})[measure] = (
                    int(amount) if counted else Decimal(int(amount)).scaleb(-2)
                )
    return {country: Totals(**found[country]) for country in sorted(found)}


class _Snapshot:
    """A connection that sees one moment for as long as it is open, whatever is written meanwhile."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection: Any
        if parts.scheme == "sqlite":
            self._connection = sqlite3.connect(unquote(parts.path[1:]), isolation_level=None, timeout=60)
            self._connection.execute("begin")
        elif parts.scheme == "mysql":
            self._connection = MySQLdb.connect(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or 3306,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                database=parts.path[1:],
                charset="utf8mb4",
            )
            self._connection.cursor().execute("start transaction with consistent snapshot")
        else:
            self._connection = oracledb.connect(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or 1521,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                service_name=parts.path[1:],
            )
            if schema := parse_qs(parts.query).get("schema"):
                self._connection.cursor().execute(f"alter session set current_schema = {schema[0]}")
            self._connection.cursor().execute("set transaction read only")

    def __enter__(self) -> _Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        cursor.execute(statement)
        return list(cursor.fetchall())


def main() -> int:
    url = sys.argv[1]
    columns = list(Totals.__dataclass_fields__)
    print("".join(f"{column:>16}" for column in ["country", *columns]))
    for country, total in totals(url).items():
        print("".join(f"{value!s:>16}" for value in [country, *(getattr(total, column) for column in columns)]))
    violations = check(url)
    for violation in violations:
        print(f"VIOLATED  {violation}")
    print(f"{len(CHECKS) - len(violations)} of {len(CHECKS)} invariants hold")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
