"""A test workload: ``python -m tests.unit.rehearsing WHAT STORE …``, as the command of a rehearsal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from billing import service
from billing.database import connect, settle

AT = datetime(2026, 2, 1, 12)
PATIENCE = 10.0
"""Seconds."""


def main(what: str, store: str, *arguments: str) -> int:
    if what == "small":
        with closing(connect(store)) as db, db.transaction():
            db.execute("INSERT INTO customer (id, country, email) VALUES (100, 'NZ', 'new')")
            db.execute("INSERT INTO item VALUES (1000, 100, 9)")
            db.execute("UPDATE item SET amount = amount + 1 WHERE id = 10")
            db.execute("DELETE FROM line WHERE no = 2")
    elif what == "billing":
        bill(store)
    elif what == "behind":
        # As the copier would, behind the triggers.
        with closing(connect(store)) as db, db.transaction():
            db.execute("INSERT INTO fishladder_copying VALUES (1)")
            db.execute("UPDATE item SET amount = 77 WHERE id = 20")
            db.execute("DELETE FROM fishladder_copying")
    elif what == "says":
        found = {name: value for name, value in os.environ.items() if name.startswith(("AIRFLOW", "FISHLADDER"))}
        Path(arguments[0]).write_text(json.dumps(found))
    elif what == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(arguments[0]).write_text(str(child.pid))
        time.sleep(600)
    elif what == "fails":
        print("the secret of customer 1")
        return 3
    return 0


def is_over(pid: Path) -> bool:
    """Whether the process whose number is in this file has ended; it has been told to."""
    state, end = Path(f"/proc/{pid.read_text()}/stat"), time.monotonic() + PATIENCE
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        if time.monotonic() > end:
            return False
    return True


def bill(url: str) -> None:
    """Customers of every kind of operation, new ones and old ones."""
    with closing(connect(url)) as db:
        settle(db._connection, "target")  # type: ignore[attr-defined]
        for country in ("NZ", "AU", "US"):
            new = service.sign_up(
                db, country=country, name="Ngaio", email=f"{country}@test", plan_id=1, billing_cycle="monthly", at=AT
            )
            customer = int(new["customer_id"] or 0)
            paid = service.charge(db, customer_id=customer, period="2026-02", key=f"first {country}", at=AT)
            service.refund(db, invoice_id=int(paid["invoice_id"] or 0), amount=Decimal(1), key=f"b {country}", at=AT)
            service.buy_gift_card(db, customer_id=customer, code=f"CARD-{country}", amount=Decimal(20), at=AT)
            service.redeem(db, code=f"CARD-{country}", amount=Decimal(5), at=AT)
        ((first,),) = db.rows("SELECT min(id) FROM customer")
        service.delete_customer(db, customer_id=first)
        service.change_price(db, plan_id=1, monthly=Decimal("9.99"), yearly=Decimal("99.00"), at=AT)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
