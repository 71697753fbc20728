"""Live traffic on a billing database: `python -m billing.traffic URL --rate 50 --seconds 60 --seed S`.

One process is one client: it does one operation after the other, at about the rate asked for, and never more than a
second's worth behind. Each operation that the database acknowledged is a line of JSON in the log; what is in the log
must be in the database, or have been undone by a later line.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from billing import service
from billing.database import Database, DatabaseError, connect
from billing.seed import COUNTRIES
from billing.service import Declined, Receipt

#: How often an operation that met a lock is tried in all.
TRIES = 20


class Workload(Protocol):
    """What the clients of one application do."""

    #: Relative frequency per kind of operation.
    weights: Mapping[str, int]

    def prepare(self, db: Database) -> None:
        """Look at what is there, once, before the first operation."""

    def perform(self, db: Database, kind: str, at: datetime) -> Receipt:
        """One operation. Raises Declined when there is nothing to do it on, or the business says no."""


@dataclass(slots=True, kw_only=True)
class Summary:
    """What happened. `refused`: fishladder's fence said no. `unknown`: the connection broke in between."""

    acknowledged: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    retried: int = 0
    seconds: float = 0.0
    max_latency_ms: float = 0.0

    def as_json(self) -> str:
        counts = {name: dict(getattr(self, name)) for name in ("declined", "refused", "unknown", "failed")}
        return json.dumps(
            {
                "operations": dict(self.acknowledged),
                "total": self.acknowledged.total(),
                **counts,
                "errors": self.errors,
                "retried": self.retried,
                "seconds": round(self.seconds, 3),
                "max_latency_ms": round(self.max_latency_ms, 1),
            },
            indent=2,
        )


class Traffic:
    """One client. `run` blocks (use a thread), `stop` may be called from anywhere."""

    def __init__(
        self,
        url: str,
        workload: Workload,
        *,
        rng: random.Random,
        rate: float | None = 50.0,
        log: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC).replace(tzinfo=None),
    ) -> None:
        """`rate` is in operations per second; None goes as fast as the database does."""
        self._url = url
        self._workload = workload
        self._rng = rng
        self._interval = 1 / rate if rate else 0.0
        self._log_path = log
        self._clock = clock
        self._stop = threading.Event()
        self.summary = Summary()

    def stop(self) -> None:
        """Finish the current operation and return from `run`."""
        self._stop.set()

    def run(self, *, seconds: float | None = None, operations: int | None = None, until: Path | None = None) -> Summary:
        """Go on until the time is over, so many operations were tried, the file `until` exists, or `stop` is called."""
        started = due = time.monotonic()
        tried = 0
        with ExitStack() as stack:
            log = stack.enter_context(self._log_path.open("a", encoding="utf-8")) if self._log_path else None
            self._db = connect(self._url)
            stack.callback(self._close)
            self._workload.prepare(self._db)
            kinds, weights = zip(*self._workload.weights.items(), strict=True)
            while not self._stop.is_set():
                now = time.monotonic()
                if (
                    (seconds is not None and now - started >= seconds)
                    or tried == operations
                    or (until is not None and until.exists())
                ):
                    break
                (kind,) = self._rng.choices(kinds, weights)
                receipt = self._attempt(kind)
                self.summary.max_latency_ms = max(self.summary.max_latency_ms, (time.monotonic() - now) * 1000)
                tried += 1
                if receipt is not None and log:
                    at = service.timestamp(self._clock())
                    log.write(json.dumps({"operation": kind, "at": at, **receipt}, ensure_ascii=False) + "\n")
                    log.flush()
                due = max(due + self._interval, time.monotonic() - 1.0)
                self._stop.wait(max(0.0, due - time.monotonic()))
        self.summary.seconds = time.monotonic() - started
        return self.summary

    def _attempt(self, kind: str) -> Receipt | None:
        """Perform one operation, whatever happens to it; returns its receipt if the database acknowledged it."""
        for tries_left in reversed(range(TRIES)):
            try:
                receipt = self._workload.perform(self._db, kind, self._clock())
            except Declined:
                self.summary.declined[kind] += 1
            except DatabaseError as error:
                if self._db.must_retry(error) and tries_left:
                    self.summary.retried += 1
                    continue
                self._record(kind, error)
            else:
                self.summary.acknowledged[kind] += 1
                return receipt
            return None
        raise AssertionError("the last try returns")

    def _record(self, kind: str, error: Exception) -> None:
        if "fishladder:" in str(error):
            self.summary.refused[kind] += 1
        elif self._db.is_lost(error):
            self.summary.unknown[kind] += 1
            self._reconnect()
        else:
            self.summary.failed[kind] += 1
            if len(self.summary.errors) < 10:
                self.summary.errors.append(f"{kind}: {type(error).__name__}: {error}")

    def _close(self) -> None:
        self._db.close()

    def _reconnect(self) -> None:
        pause = 0.05
        while not self._stop.is_set():
            try:
                self._db = connect(self._url)
                return
            except DatabaseError:
                self._stop.wait(pause)
                pause = min(2 * pause, 1.0)


class Billing:
    """What customers and staff of the billing service do."""

    weights: Mapping[str, int] = {
        "charge": 300,
        "sign_up": 100,
        "change_plan": 120,
        "redeem": 120,
        "refund": 80,
        "buy_gift_card": 80,
        "move_country": 40,
        "delete_customer": 20,
        "sign_up_again": 15,
        "swap_emails": 20,
        "transfer_invoice": 10,
        "change_price": 10,
    }

    def __init__(self, rng: random.Random, *, run: str) -> None:
        """`run` is part of every key and address that this client makes up: no two clients may share it."""
        self._rng = rng
        self._run = run
        self._made_up = 0
        self._customers: list[int] = []
        self._deleted: list[int] = []
        self._plans: list[int] = []

    def prepare(self, db: Database) -> None:
        self._customers = [customer_id for (customer_id,) in db.rows("SELECT id FROM customer ORDER BY id")]
        self._plans = [plan_id for (plan_id,) in db.rows("SELECT id FROM plan ORDER BY id")]

    def perform(self, db: Database, kind: str, at: datetime) -> Receipt:
        step: Callable[[Database, datetime], Receipt] = getattr(self, f"_{kind}")
        return step(db, at)

    def _charge(self, db: Database, at: datetime) -> Receipt:
        customer_id = self._customer()
        ((last,),) = db.rows("SELECT max(period) FROM invoice WHERE customer_id = ?", (customer_id,))
        year, month = map(int, (last or f"{at:%Y-%m}").split("-"))
        following = datetime(year, month, 1) + timedelta(days=32 if last else 0)
        return service.charge(
            db,
            customer_id=customer_id,
            period=f"{following:%Y-%m}",
            key=self._unique("charge"),
            at=at,
            usage_packs=self._rng.choice((0, 0, 1, 7)),
        )

    def _sign_up(self, db: Database, at: datetime, customer_id: int | None = None) -> Receipt:
        receipt = service.sign_up(
            db,
            country=self._country(),
            name=f"Newcomer {self._rng.choice(('Ōtepoti', 'Köln', '東京', '🎬'))}",
            email=f"{self._unique('mail')}@example.com",
            plan_id=self._rng.choice(self._plans),
            billing_cycle=self._rng.choice(("monthly", "yearly")),
            at=at,
            customer_id=customer_id,
        )
        self._customers.append(int(receipt["customer_id"] or 0))
        return receipt

    def _sign_up_again(self, db: Database, at: datetime) -> Receipt:
        """Somebody who was deleted comes back under the old id."""
        if not self._deleted:
            raise Declined("nobody was deleted yet")
        receipt = self._sign_up(db, at, customer_id=self._deleted[-1])
        self._deleted.pop()
        return receipt

    def _refund(self, db: Database, at: datetime) -> Receipt:
        invoice_id, total = self._one(
            db, "SELECT id, total FROM invoice WHERE customer_id = ? ORDER BY id DESC LIMIT 1"
        )
        amount = (Decimal(str(total)) / self._rng.choice((1, 2, 3))).quantize(Decimal("0.01"))
        return service.refund(db, invoice_id=invoice_id, amount=amount, key=self._unique("refund"), at=at)

    def _buy_gift_card(self, db: Database, at: datetime) -> Receipt:
        code = self._unique(self._rng.choice(("GIFT", "gift")))
        amount = Decimal(self._rng.choice(("10.00", "25.00", "50.00")))
        return service.buy_gift_card(db, customer_id=self._customer(), code=code, amount=amount, at=at)

    def _redeem(self, db: Database, at: datetime) -> Receipt:
        # From a random customer onward: most have no card.
        code, left = self._one(
            db,
            "SELECT code, remaining_amount FROM gift_card WHERE customer_id >= ?"
            " AND round(remaining_amount * 100) > 0 ORDER BY customer_id, code LIMIT 1",
        )
        amount = min(Decimal(str(left)), Decimal(self._rng.randrange(1, 1500)) / 100)
        return service.redeem(db, code=code, amount=amount, at=at)

    def _move_country(self, db: Database, at: datetime) -> Receipt:
        return service.move_country(db, customer_id=self._customer(), country=self._country(), at=at)

    def _change_plan(self, db: Database, at: datetime) -> Receipt:
        return service.change_plan(
            db,
            customer_id=self._customer(),
            plan_id=self._rng.choice(self._plans),
            billing_cycle=self._rng.choice(("monthly", "yearly")),
            at=at,
        )

    def _delete_customer(self, db: Database, at: datetime) -> Receipt:
        customer_id = self._customer()
        receipt = service.delete_customer(db, customer_id=customer_id)
        self._deleted.append(customer_id)
        self._customers.remove(customer_id)
        return receipt

    def _transfer_invoice(self, db: Database, at: datetime) -> Receipt:
        (invoice_id,) = self._one(db, "SELECT id FROM invoice WHERE customer_id = ? ORDER BY id DESC LIMIT 1")
        return service.transfer_invoice(db, invoice_id=invoice_id, customer_id=self._customer())

    def _change_price(self, db: Database, at: datetime) -> Receipt:
        monthly = Decimal(self._rng.randrange(399, 2499)) / 100
        return service.change_price(
            db, plan_id=self._rng.choice(self._plans), monthly=monthly, yearly=monthly * 10, at=at
        )

    def _swap_emails(self, db: Database, at: datetime) -> Receipt:
        return service.swap_emails(db, first=self._customer(), second=self._customer(), at=at)

    def _customer(self) -> int:
        if not self._customers:
            raise Declined("there are no customers")
        return self._rng.choice(self._customers)

    def _country(self) -> str:
        return self._rng.choices(list(COUNTRIES), weights=list(COUNTRIES.values()))[0]

    def _unique(self, kind: str) -> str:
        self._made_up += 1
        return f"{kind}-{self._run}-{self._made_up}"

    def _one(self, db: Database, sql: str) -> tuple[Any, ...]:
        found = db.rows(sql, (self._customer(),))
        if not found:
            raise Declined("this customer has nothing of the kind")
        return found[0]


def main(make: Callable[[random.Random, str], Workload], description: str) -> None:
    """The command line of a client."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=50.0, help="operations per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", type=Path, metavar="FILE", help="stop as soon as this file exists")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append each acknowledged operation as a JSON line")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # Not from the seed: a second run with the same seed must not repeat the first one's keys.
    run = secrets.token_hex(4)
    traffic = Traffic(arguments.url, make(rng, run), rng=rng, rate=arguments.rate, log=arguments.log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: traffic.stop())
    print(traffic.run(seconds=arguments.seconds, until=arguments.until).as_json())


if __name__ == "__main__":
    main(lambda rng, run: Billing(rng, run=run), "Live traffic on a billing database.")
