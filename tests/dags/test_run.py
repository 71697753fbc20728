"""A whole migration of the billing example by its DAGs, inside Airflow, on SQLite files."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from decimal import Decimal

from airflow.sdk import DAG

from billing import service
from billing.database import connect
from fishladder.ledger import open_ledger
from tests import independent
from tests.dags.conftest import Stores

AT = datetime(2026, 2, 1, 12)


def run(dag: DAG, conf: dict[str, object] | None = None) -> dict[tuple[str, int], str]:
    """Run a DAG to its end. Returns the state of each task by id and map index."""
    done = dag.test(run_conf=conf)
    return {(task.task_id, task.map_index): str(task.state) for task in done.get_task_instances()}


def change_everything(url: str) -> None:
    """Customers sign up, pay, move, leave and are billed by mistake."""
    with closing(connect(url)) as db:
        new = service.sign_up(
            db, country="NZ", name="Ngaio", email="ngaio@example.com", plan_id=1, billing_cycle="monthly", at=AT
        )
        customer = int(new["customer_id"] or 0)
        paid = service.charge(db, customer_id=customer, period="2026-02", key="first", at=AT)
        service.refund(db, invoice_id=int(paid["invoice_id"] or 0), amount=Decimal("1.00"), key="back", at=AT)
        service.buy_gift_card(db, customer_id=customer, code="NGAIO", amount=Decimal(20), at=AT)
        service.redeem(db, code="NGAIO", amount=Decimal(5), at=AT)
        service.move_country(db, customer_id=customer, country="AU", at=AT)
        service.swap_emails(db, first=1, second=2, at=AT)
        service.change_price(db, plan_id=1, monthly=Decimal("9.99"), yearly=Decimal("99.00"), at=AT)
        service.delete_customer(db, customer_id=3)


def damage(url: str) -> None:
    """Lose one row of the target and change another, as if by a copier gone mad."""
    with closing(connect(url)) as db, db.transaction():
        db.execute("INSERT INTO fishladder_copying VALUES (1)")
        db.execute("DELETE FROM payment WHERE id = (SELECT min(id) FROM payment)")
        db.execute("UPDATE plan SET name = 'mad' WHERE id = 2")
        db.execute("DELETE FROM fishladder_copying")


def test_a_migration_from_prepare_to_a_clean_pass(stores: Stores, dags: dict[str, DAG]) -> None:
    assert set(run(dags["billing_prepare"]).values()) == {"success"}

    states = run(dags["billing_load"])
    assert set(states.values()) == {"success"}
    assert {("invoice.load", 0), ("invoice.load", 1), ("reconcile", 9)} <= states.keys()
    assert independent.compare(stores.source, stores.target) == []

    change_everything(stores.source)
    assert independent.compare(stores.source, stores.target) != []
    assert run(dags["billing_replicate"], {"seconds": 1}) == {("apply", -1): "success"}
    assert independent.compare(stores.source, stores.target) == []

    damage(stores.target)
    states = run(dags["billing_reconcile"])
    assert {task: state for task, state in states.items() if state != "success"} == {("outcome", -1): "failed"}
    run(dags["billing_replicate"], {"seconds": 1})
    assert independent.compare(stores.source, stores.target) == []
    assert set(run(dags["billing_reconcile"]).values()) == {"success"}

    with open_ledger(stores.ledger, migration="billing") as ledger:
        assert ledger.clean_passes("payment") == 1 and ledger.clean_passes("invoice") == 3
