"""Customers of a billing service that has embedded the router: `python -m billing.routed MIGRATION.yaml --rate 50`.

The connections are URLs in the environment, as for `python -m fishladder`. Each acknowledged operation is a line of
JSON in the log; one that was queued is a line too, and must be in the owner in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from billing.database import connect
from billing.operations import operations
from billing.seed import COUNTRIES
from billing.service import Declined
from fishladder.errors import FishladderError
from fishladder.ledger import open_ledger
from fishladder.serving import Router, Written
from fishladder.spec import load
from fishladder.stores import connect_environment, open_application

WEIGHTS = {
    "charge": 30,
    "account": 30,
    "sign_up": 8,
    "change_plan": 10,
    "buy_gift_card": 8,
    "redeem": 8,
    "refund": 6,
    "move_country": 3,
    "change_price": 1,
}


@dataclass(slots=True, kw_only=True)
class Felt:
    """What customers felt: counts, seconds, and what went wrong."""

    done: Counter[str] = field(default_factory=Counter)
    queued: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    longest_write: float = 0.0
    longest_read: float = 0.0

    def as_json(self) -> str:
        counts = {name: dict(getattr(self, name)) for name in ("done", "queued", "declined", "failed")}
        longest = {"longest_write_ms": self.longest_write * 1000, "longest_read_ms": self.longest_read * 1000}
        return json.dumps({**counts, "errors": self.errors, **longest})


class Customers:
    """One client after the other, at a rate; `run` blocks, `stop` may be called from anywhere."""

    def __init__(
        self, router: Router, customers: Sequence[int], plans: Sequence[int], *, rng: random.Random, run: str
    ) -> None:
        """`run` is part of every key that is made up: no two processes may share it."""
        self._router = router
        self._customers = list(customers)
        self._plans = list(plans)
        self._rng = rng
        self._run = run
        self._made_up = 0
        self._stop = threading.Event()
        self.felt = Felt()

    def stop(self) -> None:
        self._stop.set()

    def run(self, *, rate: float, seconds: float, log: Path | None = None) -> Felt:
        began = due = time.monotonic()
        with ExitStack() as kept:
            file = kept.enter_context(log.open("a", encoding="utf-8")) if log else None
            while not self._stop.is_set() and time.monotonic() - began < seconds:
                (kind,) = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
                line = self._one(kind)
                if file and line:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    file.flush()
                due = max(due + 1 / rate, time.monotonic() - 1.0)
                self._stop.wait(max(0.0, due - time.monotonic()))
        return self.felt

    def _one(self, kind: str) -> dict[str, Any] | None:
        began = time.monotonic()
        try:
            if kind == "account":
                self._account(self._customer())
                self.felt.done[kind] += 1
                return None
            key, payload, written = getattr(self, f"_{kind}")()
        except Declined:
            self.felt.declined[kind] += 1
            return None
        except FishladderError as error:
            self.felt.failed[kind] += 1
            self.felt.errors.append(f"{kind}: {type(error).__name__}: {error}")
            return None
        finally:
            took = time.monotonic() - began
            if kind == "account":
                self.felt.longest_read = max(self.felt.longest_read, took)
            else:
                self.felt.longest_write = max(self.felt.longest_write, took)
        (self.felt.queued if written.state == "queued" else self.felt.done)[kind] += 1
        receipt = written.result or {}
        if kind == "sign_up" and written.state == "done":
            self._customers.append(int(receipt["customer_id"]))
        return {"operation": kind, "key": key, "state": written.state, "payload": payload, **receipt}

    # Operations

    def _write(self, kind: str, payload: dict[str, Any], **where: Any) -> tuple[str, dict[str, Any], Written]:
        key = payload.get("key") or self._unique(kind)
        return key, payload, self._router.write(kind, payload, key=key, **where)

    def _account(self, customer: int) -> dict[str, Any]:
        found: dict[str, Any] = self._router.read("account", {"customer_id": customer}, entity=customer).value
        if found["balance"] is None:
            raise Declined("nobody")
        return found

    def _charge(self) -> tuple[str, dict[str, Any], Written]:
        customer = self._customer()
        invoice = self._account(customer)["invoice"]
        year, month = map(int, (invoice[1] if invoice else f"{_now():%Y-%m}").split("-"))
        following = datetime(year, month, 1) + timedelta(days=32 if invoice else 0)
        payload = {
            "customer_id": customer,
            "period": f"{following:%Y-%m}",
            "key": self._unique("charge"),
            "usage_packs": self._rng.choice((0, 0, 1, 7)),
            "at": _now().isoformat(),
        }
        return self._write("charge", payload, entity=customer)

    def _sign_up(self) -> tuple[str, dict[str, Any], Written]:
        country = self._rng.choices(list(COUNTRIES), weights=list(COUNTRIES.values()))[0]
        payload = {
            "country": country,
            "name": f"Newcomer {self._rng.choice(('Ōtepoti', 'Köln', '東京', '🎬'))}",
            "email": f"{self._unique('mail')}@example.com",
            "plan_id": self._rng.choice(self._plans),
            "billing_cycle": self._rng.choice(("monthly", "yearly")),
            "at": _now().isoformat(),
        }
        return self._write("sign_up", payload, cohort=country)

    def _refund(self) -> tuple[str, dict[str, Any], Written]:
        customer = self._customer()
        invoice = self._account(customer)["invoice"]
        if invoice is None:
            raise Declined("no invoice")
        amount = (Decimal(invoice[2]) / self._rng.choice((1, 2, 3))).quantize(Decimal("0.01"))
        payload = {
            "invoice_id": int(invoice[0]),
            "amount": str(amount),
            "key": self._unique("refund"),
            "at": _now().isoformat(),
        }
        return self._write("refund", payload, entity=customer)

    def _buy_gift_card(self) -> tuple[str, dict[str, Any], Written]:
        customer, code = self._customer(), self._unique(self._rng.choice(("GIFT", "gift")))
        payload = {"customer_id": customer, "code": code, "amount": "25.00", "at": _now().isoformat()}
        return self._write("buy_gift_card", payload, entity=customer)

    def _redeem(self) -> tuple[str, dict[str, Any], Written]:
        customer = self._customer()
        cards = {code: left for code, left in self._account(customer)["cards"].items() if Decimal(left) > 0}
        if not cards:
            raise Declined("no gift card")
        code, left = next(iter(cards.items()))
        amount = min(Decimal(left), Decimal(self._rng.randrange(1, 1500)) / 100)
        return self._write("redeem", {"code": code, "amount": str(amount), "at": _now().isoformat()}, entity=customer)

    def _move_country(self) -> tuple[str, dict[str, Any], Written]:
        customer, country = self._customer(), self._rng.choice(list(COUNTRIES))
        payload = {"customer_id": customer, "country": country, "at": _now().isoformat()}
        return self._write("move_country", payload, entity=customer)

    def _change_plan(self) -> tuple[str, dict[str, Any], Written]:
        customer = self._customer()
        payload = {
            "customer_id": customer,
            "plan_id": self._rng.choice(self._plans),
            "billing_cycle": self._rng.choice(("monthly", "yearly")),
            "at": _now().isoformat(),
        }
        return self._write("change_plan", payload, entity=customer)

    def _change_price(self) -> tuple[str, dict[str, Any], Written]:
        monthly = Decimal(self._rng.randrange(399, 2499)) / 100
        payload = {
            "plan_id": self._rng.choice(self._plans),
            "monthly": str(monthly),
            "yearly": str(monthly * 10),
            "at": _now().isoformat(),
        }
        return self._write("change_price", payload, cohort="shared")

    def _customer(self) -> int:
        return self._rng.choice(self._customers)

    def _unique(self, kind: str) -> str:
        self._made_up += 1
        return f"{kind}-{self._run}-{self._made_up}"


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def open_router(file: Path) -> tuple[Router, str]:
    """The router of a migration file's stores, and the URL of the application at the source."""
    spec = load(file)
    ledger = open_ledger(os.environ["FISHLADDER_LEDGER"], migration=spec.migration)
    source, target = (
        open_application(*connect_environment(name, os.environ))
        for name in (spec.application.source, spec.application.target)
    )
    url = os.environ[f"FISHLADDER_{spec.application.source.upper()}"]
    return Router(ledger, operations, source=source, target=target), url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, default=50.0, help="operations per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--busy", metavar="COUNTRY", help="half of the calls are for customers who are there now")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append each accepted write as a JSON line")
    options = parser.parse_args()
    router, url = open_router(options.file)
    with closing(connect(url)) as db:
        customers = [row[0] for row in db.rows("SELECT id FROM customer ORDER BY id")]
        busy = [row[0] for row in db.rows("SELECT id FROM customer WHERE country_code = ?", [options.busy])]
        plans = [row[0] for row in db.rows("SELECT id FROM plan ORDER BY id")]
    if busy:
        customers += busy * (len(customers) // len(busy))
    # Not from the seed: a second run with the same seed must not repeat the first one's keys.
    crowd = Customers(router, customers, plans, rng=random.Random(options.seed), run=secrets.token_hex(4))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: crowd.stop())
    print(crowd.run(rate=options.rate, seconds=options.seconds, log=options.log).as_json())
    router.close()


if __name__ == "__main__":
    main()
