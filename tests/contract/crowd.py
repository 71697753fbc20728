"""A process beside a flip: ``python -m tests.contract.crowd ROLE NAME RATE LOG CUSTOMERS``, ended by SIGTERM.

``routed``: customers behind a router of their own. ``batch``: a job that has never heard of one, in the store NAME.
What it counted is on the standard output in the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from billing.database import connect, settle
from billing.routed import Customers, open_router
from billing.traffic import Billing, Traffic
from tests.contract.shop import SPEC

SECONDS = 600.0


class BatchJob(Billing):
    """Knows nothing of a router, and works in one store on customers of its own, whoever owns them by now."""

    weights: Mapping[str, int] = {"charge": 4, "change_plan": 2, "buy_gift_card": 2, "redeem": 2, "refund": 1}

    def __init__(self, side: str, customers: Sequence[int]) -> None:
        super().__init__(random.Random(side), run=side)
        self._side, self._own = side, customers

    def prepare(self, db: Any) -> None:
        settle(db._connection, self._side)
        super().prepare(db)
        self._customers = list(self._own)


def routed(name: str, rate: float, log: Path, customers: Sequence[int]) -> str:
    router, url = open_router(SPEC)
    with closing(router), closing(connect(url)) as db:
        plans = [row[0] for row in db.rows("SELECT id FROM plan ORDER BY id")]
        crowd = Customers(router, customers, plans, rng=random.Random(name), run=name)
        signal.signal(signal.SIGTERM, lambda *_: crowd.stop())
        return crowd.run(rate=rate, seconds=SECONDS, log=log).as_json()


def batch(side: str, rate: float, log: Path, customers: Sequence[int]) -> str:
    url = os.environ[f"FISHLADDER_BILLING_{side.upper()}_APP"]
    job = Traffic(url, BatchJob(side, customers), rng=random.Random(side), rate=rate, log=log)
    signal.signal(signal.SIGTERM, lambda *_: job.stop())
    return job.run(seconds=SECONDS).as_json()


def main(role: str, name: str, rate: str, log: str, customers: str) -> None:
    print({"routed": routed, "batch": batch}[role](name, float(rate), Path(log), json.loads(customers)))


if __name__ == "__main__":
    main(*sys.argv[1:])
