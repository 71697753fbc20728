"""Fills empty billing tables: `python -m billing.seed URL --customers N --seed S`.

The same N and S give the same rows on every kind of database. Countries are skewed, a few customers have none, some
have very many invoices, and the text holds what data in the wild holds: other scripts, emoji, quotes, control
characters, empty strings, keys that differ in case only.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime, timedelta

from billing.database import Row, connect

#: Share of the customers, in per cent.
COUNTRIES = {
    "US": 40,
    "GB": 20,
    "DE": 12,
    "FR": 8,
    "CA": 6,
    "AU": 4,
    "ES": 3,
    "IE": 2,
    "JP": 2,
    "BR": 2,
    "NZ": 1,
}
COLUMNS = {
    "plan": "id, code, name, monthly_price, yearly_price, on_sale, updated_at",
    "customer": "id, country_code, name, email, born_on, balance, newsletter, note, created_at, updated_at",
    "subscription": "id, customer_id, plan_id, billing_cycle, active, started_at, ended_at",
    "invoice": "id, customer_id, period, status, total, credit_used, document_digest, created_at",
    "invoice_line": "id, invoice_id, description, quantity, unit_price, amount",
    "payment": "id, customer_id, invoice_id, idempotency_key, kind, amount, created_at",
    "gift_card": "code, customer_id, initial_amount, remaining_amount, expires_on, created_at",
    "gift_card_entry": "id, gift_card_code, amount, created_at",
}
#: (code, name, price of a month and of a year in cents, on sale)
PLANS = [
    ("basic", "Basic", 799, 7999, True),
    ("standard", "Standard", 1399, 13999, True),
    ("premium", "Prémium – 4K", 1999, 19999, True),
    ("student", "Student", 399, 3999, True),
    ("legacy", "Étoile 2019 ★", 649, 6499, False),
]
GIVEN = ["Ada", "Zoë", "Łukasz", "José", "Aroha", "Siobhán", "李", "さくら", "Jürgen", "Renée", "Noël", "O’Neil"]
FAMILY = ["Smith", "Müller", "García", "Ngāti", "O'Brien", "小龍", "Nakamura", "Çelik", "Núñez", "Dvořák", "St. Clair"]
NOTES = [
    "",
    "called about the invoice",
    "prefers e-mail 🎬",
    "ends in a blank ",
    "quotes \" and ' and `",
    "back\\slash \\N \\n",
    "tab\tand\nnew line",
    "separators \x1e\x1f inside",
    "e\u0301 is not é",
]
EPOCH = datetime(2024, 1, 1)
MONTHS = 24  # invoices begin in 2024-01 and end in 2025-12
BATCH = 5000
BLOCK = 2000  # customers per transaction


def seed(url: str, *, customers: int, seed: int) -> dict[str, int]:
    """Fill the tables. Returns the number of rows per table."""
    written: dict[str, int] = defaultdict(int)
    with closing(connect(url)) as database:
        for block in generate(customers=customers, seed=seed):
            with database.transaction():
                for table, rows in block.items():
                    marks = ", ".join("?" * len(COLUMNS[table].split(",")))
                    for start in range(0, len(rows), BATCH):
                        database.insert_many(
                            f"INSERT INTO {table} ({COLUMNS[table]}) VALUES ({marks})", rows[start : start + BATCH]
                        )
                    written[table] += len(rows)
    return dict(written)


def generate(*, customers: int, seed: int) -> Iterator[dict[str, list[Row]]]:
    """The rows, in blocks of whole customers; in each block parents come before children."""
    yield {
        "plan": [
            (number, code, name, _money(month), _money(year), on_sale, _time(EPOCH))
            for number, (code, name, month, year, on_sale) in enumerate(PLANS, start=1)
        ]
    }
    maker = _Maker(random.Random(seed), customers)
    for first in range(1, customers + 1, BLOCK):
        for number in range(first, min(first + BLOCK, customers + 1)):
            maker.customer(number)
        yield maker.take()


class _Maker:
    """Amounts are whole cents here: a million customers are made in seconds, not minutes."""

    def __init__(self, rng: random.Random, customers: int) -> None:
        self._rng = rng
        self._countries = rng.choices(list(COUNTRIES), weights=list(COUNTRIES.values()), k=customers)
        # Every country has a customer, however few there are, and at most two customers have no country.
        self._countries[: len(COUNTRIES)] = list(COUNTRIES)[:customers]
        self._nowhere = {customers // 3, customers // 2} if customers >= 500 else set()
        self._rows: dict[str, list[Row]] = {table: [] for table in COLUMNS}
        self._last: dict[str, int] = defaultdict(int)

    def take(self) -> dict[str, list[Row]]:
        rows, self._rows = self._rows, {table: [] for table in COLUMNS}
        return rows

    def customer(self, number: int) -> None:
        rng = self._rng
        begun = rng.randrange(MONTHS)
        at = _month(begun) + timedelta(days=rng.random() * 27)
        credit = self._gift_cards(number, at)
        used = self._invoices(number, begun, credit)
        self._rows["customer"].append(
            (
                number,
                None if number in self._nowhere else self._countries[number - 1],
                f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}",
                None if rng.random() < 0.01 else f"customer{number}@example.com",
                date(1940 + rng.randrange(65), 1 + rng.randrange(12), 1 + rng.randrange(28)).isoformat()
                if rng.random() < 0.7
                else None,
                _money(credit - used),
                rng.random() < 0.5,
                rng.choice(NOTES) if rng.random() < 0.2 else None,
                _time(at),
                _time(at),
            )
        )

    def _invoices(self, customer: int, begun: int, credit: int) -> int:
        """The subscription and its invoices. Returns the credit that they used, in cents."""
        rng = self._rng
        plan = rng.randrange(len(PLANS))
        _, name, month_price, year_price, _ = PLANS[plan]
        yearly = rng.random() < 0.15
        cycle, price, step = ("yearly", year_price, 12) if yearly else ("monthly", month_price, 1)
        ended = rng.random() < 0.1
        self._rows["subscription"].append(
            (
                self._next("subscription"),
                customer,
                plan + 1,
                cycle,
                not ended,
                _time(_month(begun)),
                _time(_month(MONTHS)) if ended else None,
            )
        )
        # Most have one or two, some have one for each month.
        count = min(int(rng.paretovariate(1.2)), (MONTHS - begun + step - 1) // step)
        used = 0
        for month in range(begun, begun + count * step, step):
            used += self._invoice(customer, month, f"{name} ({cycle})", price, credit - used)
        return used

    def _invoice(self, customer: int, month: int, description: str, price: int, credit: int) -> int:
        rng = self._rng
        # (description, quantity, unit price in hundredths of a cent)
        lines = [(description, 1, price * 100)]
        if rng.random() < 0.3:
            lines.append(("Metered use", 80 * rng.randint(1, 9), 125))
        if rng.random() < 0.1:
            lines.append(("Welcome back, −10 %", 1, -price // 10 * 100))
        invoice = self._next("invoice")
        total = sum(quantity * unit for _, quantity, unit in lines) // 100
        used = min(credit, total)
        at = _month(month) + timedelta(seconds=rng.randrange(28 * 86400), microseconds=rng.randrange(10**6))
        refund = 0
        if rng.random() < 0.05:
            refund = total - used if rng.random() < 0.5 else (total - used) // 3
        status = "refunded" if refund and refund == total - used else "paid"
        digest = hashlib.sha256(f"{customer} {month} {lines}".encode()).digest() if rng.random() < 0.9 else None
        period = f"{_month(month):%Y-%m}"
        self._rows["invoice"].append(
            (invoice, customer, period, status, _money(total), _money(used), digest, _time(at))
        )
        for text, quantity, unit in lines:
            sign, digits = ("-", -unit) if unit < 0 else ("", unit)
            self._rows["invoice_line"].append(
                (
                    self._next("invoice_line"),
                    invoice,
                    text,
                    quantity,
                    f"{sign}{digits // 10000}.{digits % 10000:04d}",
                    _money(quantity * unit // 100),
                )
            )
        self._payment(customer, invoice, "charge", total - used, at)
        if refund:
            self._payment(customer, invoice, "refund", refund, at + timedelta(hours=1))
        return used

    def _payment(self, customer: int, invoice: int, kind: str, amount: int, at: datetime) -> None:
        number = self._next("payment")
        key = f"seed-{kind}-{invoice}"
        self._rows["payment"].append((number, customer, invoice, key, kind, _money(amount), _time(at)))

    def _gift_cards(self, customer: int, at: datetime) -> int:
        """Cards and what was redeemed of them. Returns the credit that this gave, in cents."""
        rng = self._rng
        if rng.random() >= 0.15:
            return 0
        number = self._next("gift_card")
        codes = [f"GIFT-{number:08d}"]
        if number % 10 == 0:
            codes.append(codes[0].lower())  # another card: codes are compared by their bytes
        credit = 0
        for code in codes:
            initial = rng.choice((1000, 2500, 5000))
            amounts = [rng.randint(1, initial // 2) for _ in range(rng.randrange(3))]
            expires = (at + timedelta(days=730)).date().isoformat() if rng.random() < 0.5 else None
            left = initial - sum(amounts)
            self._rows["gift_card"].append((code, customer, _money(initial), _money(left), expires, _time(at)))
            for amount in amounts:
                self._rows["gift_card_entry"].append((self._next("gift_card_entry"), code, _money(amount), _time(at)))
            credit += sum(amounts)
        return credit

    def _next(self, table: str) -> int:
        self._last[table] += 1
        return self._last[table]


def _money(cents: int) -> str:
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def _time(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="microseconds")


def _month(number: int) -> datetime:
    return datetime(EPOCH.year + number // 12, number % 12 + 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill empty billing tables with made-up customers.")
    parser.add_argument("url")
    parser.add_argument("--customers", type=int, default=1000, help="100 to 1,000,000")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    written = seed(arguments.url, customers=arguments.customers, seed=arguments.seed)
    for table, rows in written.items():
        print(f"{table:16} {rows:>10,}")


if __name__ == "__main__":
    main()
