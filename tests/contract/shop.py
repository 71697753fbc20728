"""A small billing database with fishladder installed: what the tests of triggers and fences look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from billing import schema
from billing.database import Database
from fishladder import spec
from fishladder.cells import key_text
from fishladder.clock import SystemClock
from fishladder.fence import set_fence
from fishladder.plan import Plan, resolve
from fishladder.stores.base import Entry, Fence, Relation, Writer
from tests.contract.stores import Place

SPEC = Path(schema.__file__).parents[1] / "migrations" / "billing.yaml"
COHORTS = ("AU", "NZ", "*", "?", "shared")
Line = tuple[str, bytes, bytes | None, str]
"""An entry of the journal: table, key, entity, cohort."""
WHEN = "2026-01-31 12:00:00.000000"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """Customers 1 (NZ), 2 (AU), 3 (no country) and 4 (XX, of which nobody has heard); plan 1.

    Customer 1 has subscription 1 and invoice 1 with lines 1 and 2; customer 2 has invoice 2 with line 3.
    """

    place: Place
    store: Any
    plan: Plan
    user: Database

    def relation(self, table: str) -> Relation:
        return self.plan.table(table).source

    def fence(self, cohort: str, writer: Writer, epoch: int = 2, store: Any = None, deadline: float = 30.0) -> Fence:
        return set_fence(store or self.store, SystemClock(), cohort, writer, epoch, deadline=deadline)

    def journal(self) -> list[Line]:
        """What was journaled since the last look, each line once."""
        with self.store.read() as reader:
            entries: list[Entry] = reader.entries([table.name for table in self.plan.tables], 10_000)
        with self.store.begin() as transaction:
            transaction.forget([entry.id for entry in entries])
            transaction.commit()
        return sorted({(e.table, e.key, e.entity, e.cohort) for e in entries}, key=repr)

    def forget_home(self, customer: int) -> None:
        """As if the customer had been born in the other store, and not been copied yet."""
        self.place.administrator().execute(f"DELETE FROM fishladder_home WHERE root_key = '{customer}'")

    def homes(self, *customers: int) -> dict[int, str]:
        with self.store.read() as reader:
            found = reader.homes([key(customer) for customer in customers])
        return {customer: found[key(customer)] for customer in customers if key(customer) in found}


def key(*cells: object) -> bytes:
    return key_text(str(cell).encode() for cell in cells)


def entry(table: str, row: object, customer: int | None, cohort: str) -> Line:
    return table, key(row), None if customer is None else key(customer), cohort


def add_customer(db: Database, number: int | None, country: str | None, email: str | None = None) -> int:
    given, id_, mark = ((number,), "id, ", "?, ") if number is not None else ((), "", "")
    return db.insert(
        f"INSERT INTO customer ({id_}country_code, name, email, balance, newsletter, created_at, updated_at)"
        f" VALUES ({mark}?, 'somebody', ?, '0.00', 1, ?, ?)",
        (*given, country, email, WHEN, WHEN),
    )


def add_subscription(db: Database, number: int | None, customer: int) -> None:
    given, id_, mark = ((number,), "id, ", "?, ") if number is not None else ((), "", "")
    db.execute(
        f"INSERT INTO subscription ({id_}customer_id, plan_id, billing_cycle, active, started_at)"
        f" VALUES ({mark}?, 1, 'monthly', 1, ?)",
        (*given, customer, WHEN),
    )


def add_invoice(db: Database, number: int, customer: int, lines: Iterable[int]) -> None:
    db.execute(
        "INSERT INTO invoice (id, customer_id, period, status, total, credit_used, created_at)"
        " VALUES (?, ?, ?, 'paid', '1.50', '0.00', ?)",
        (number, customer, f"2026-{number:02}", WHEN),
    )
    for line in lines:
        add_line(db, line, number)


def add_line(db: Database, number: int, invoice: int) -> None:
    db.execute(
        "INSERT INTO invoice_line (id, invoice_id, description, quantity, unit_price, amount)"
        " VALUES (?, ?, 'something', 1, '1.5000', '1.50')",
        (number, invoice),
    )


def fill(db: Database) -> None:
    with db.transaction():
        db.execute(
            "INSERT INTO plan (id, code, name, monthly_price, yearly_price, on_sale, updated_at)"
            " VALUES (1, 'basic', 'Basic', '9.90', '99.00', 1, ?)",
            (WHEN,),
        )
        for number, country in enumerate(("NZ", "AU", None, "XX"), start=1):
            add_customer(db, number, country, f"{number}@example.com")
        add_subscription(db, 1, 1)
        add_invoice(db, 1, 1, [1, 2])
        add_invoice(db, 2, 2, [3])


def billing_plan(store: Any) -> Plan:
    """The billing migration with this store at both ends."""
    kinds = {"BILLING_SOURCE_KIND": store.kind, "BILLING_TARGET_KIND": store.kind}
    tables = store.describe()
    return resolve(spec.load(SPEC, environment=kinds), tables, tables)


def install(store: Any, plan: Plan, writer: Writer = "application") -> None:
    store.install_tables()
    store.install_fences(COHORTS, writer)
    store.install_load([table.name for table in plan.tables], open=False)
    store.install_triggers(plan.triggers("source"))
    after = store.backfill_homes(plan.root.source, None, 3)
    while after is not None:
        after = store.backfill_homes(plan.root.source, after, 3)


def open_shop(place: Place) -> Shop:
    schema.create(place.admin)
    user = place.user()
    fill(user)
    store = place.open()
    plan = billing_plan(store)
    install(store, plan)
    return Shop(place=place, store=store, plan=plan, user=user)


def reopen(shop: Shop) -> Shop:
    """The same shop as it was made, whatever happened in it to rows and fences; for a new connection of its user.

    Its homes are the triggers' work, not the backfill's.
    """
    with shop.store.begin() as copy:
        for table in (*reversed(schema.TABLES), "fishladder_home", "fishladder_journal"):
            copy.run(f"DELETE FROM {table}", [])
        others = ", ".join(f"'{cohort}'" for cohort in COHORTS)
        copy.run(f"DELETE FROM fishladder_fence WHERE cohort NOT IN ({others})", [])
        copy.run("UPDATE fishladder_fence SET writer = 'application', epoch = 1", [])
        copy.commit()
    user = shop.place.user()
    fill(user)
    shop.journal()
    return replace(shop, user=user)
