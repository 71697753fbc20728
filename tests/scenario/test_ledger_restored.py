"""A ledger on PostgreSQL is restored in the middle of a migration, with the commands of docs/disaster-recovery.md."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from fishladder import tasks
from fishladder.errors import LedgerError, TransientError
from fishladder.operate import Order
from tests import independent
from tests.conftest import not_tested
from tests.scenario.migration import DEADLINE, ROOT, Billing, Witness, migration, until
from tests.scenario.test_flip_outages import advance, ask, begun, crowd, cut_over, has_moved, of_nz, router, served
from tests.servers import Unavailable, postgres

LOADED = ("fishladder_home", "fishladder_applied", "plan", "customer", "subscription")
"""Whose load ends before the backup is taken, in their order."""

pytestmark = [pytest.mark.mysql, pytest.mark.slow]


@pytest.fixture
def billing(mysql_server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Billing]:
    with ExitStack() as stack:
        try:
            server = postgres.dsn()
        except Unavailable as reason:
            not_tested(request.config, "PostgreSQL", reason)
        ledger = stack.enter_context(postgres.database(server))
        yield stack.enter_context(migration(tmp_path, mysql_server, mysql_server, ledger=ledger, customers=400))


def command(beginning: str) -> str:
    """The one command of the page that begins so."""
    (found,) = re.findall(rf"^ *({beginning} .*)$", (ROOT / "docs" / "disaster-recovery.md").read_text(), re.MULTILINE)
    return str(found)


def shell(billing: Billing, line: str) -> subprocess.CompletedProcess[str]:
    """A command as it is written, but for the migration's file."""
    line = line.replace("include/migrations/shop.yaml", str(billing.file))
    environment = {**billing.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", line], cwd=billing.folder, env=environment, capture_output=True, text=True, check=False
    )


def done(billing: Billing, line: str) -> str:
    ended = shell(billing, line)
    assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
    return ended.stdout


def test_a_restored_ledger_freezes_all_and_goes_on_when_it_was_adopted(billing: Billing) -> None:
    with billing.traffic(rate=15) as customers:
        ledger_is_restored(billing)
    assert customers.acknowledged.total() > 50
    assert not customers.failed and not customers.refused and not customers.unknown
    billing.ends_equal()
    assert "is whole" in done(billing, f"python -m fishladder audit verify {billing.file}")


def ledger_is_restored(billing: Billing) -> None:
    billing.prepare()
    billing.load(*LOADED)
    ledger = billing.desk().ledger
    tasks.operate(billing.desk(), Order(action="throttle", rows_per_second=50), actor="ada")

    # The backup, with two lanes and an applier at work
    working = [billing.worker("lane", "1"), billing.worker("lane", "2"), billing.worker("applier", "600")]
    until(lambda: ledger.progress("invoice").done > 0, "a chunk of invoices")
    billing.await_changes()
    done(billing, command("pg_dump"))

    # They go on. What the ledger comes to know now, it will have forgotten: chunks, what was followed, doubts.
    loaded = chunks(billing)
    until(lambda: chunks(billing) >= loaded + 2, "two more chunks")
    billing.await_changes(5)
    billing.damage("DELETE FROM subscription WHERE id % 10 = 3")
    billing.damage("UPDATE customer SET name = 'damaged' WHERE id % 10 = 4")
    spoilt = billing.rows("target", "SELECT count(*) FROM customer WHERE name = 'damaged'")[0][0]
    assert spoilt > 0
    events = len(ledger.events())
    tasks.operate(billing.desk(), Order(action="throttle", rows_per_second=40), actor="ada")
    assert len(ledger.events()) == events + 1

    ledger.close()
    done(billing, command("pg_restore"))
    ledger = billing.desk().ledger
    assert len(ledger.events()) == events

    # Whoever was at work notices, and so does whoever comes now.
    for process in working:
        assert process.wait(DEADLINE) != 0
    assert billing.worker_log().count("fishladder.errors.LedgerError: the ledger of billing does not know") > 0
    frozen: tuple[Callable[[], object], ...] = (
        lambda: tasks.cut(billing.desk()),
        lambda: tasks.load_table(billing.desk(), "invoice", "1"),
        lambda: tasks.close_table(billing.desk(), "invoice"),
        lambda: tasks.replicate(billing.desk(), seconds=1),
        lambda: tasks.reconcile_table(billing.desk(), "customer"),
        lambda: tasks.operate(billing.desk(), Order(action="rewrite entities", entities=("1",)), actor="ada"),
        lambda: tasks.ask(billing.desk(), "flip", ["NZ"], actor="ada", reason="now"),
    )
    before = copied(billing)
    for task in frozen:
        with pytest.raises(LedgerError, match="restored from a backup"):
            task()
    assert copied(billing) == before

    said = done(billing, command("python -m fishladder ledger adopt"))
    again = re.search(r"^(.*): their load had not ended, they are empty now; run billing_load$", said, re.MULTILINE)
    assert again and "invoice" in again[1].split(", ") and not set(again[1].split(", ")) & set(LOADED), said
    (adopted,) = [event for event in ledger.events() if event.event == "restored ledger adopted"]
    assert adopted.actor == getpass.getuser()
    assert billing.rows("target", "SELECT count(*) FROM invoice") == [(0,)]
    assert shell(billing, command("python -m fishladder ledger adopt")).returncode == 2  # there is nothing to adopt

    tasks.operate(billing.desk(), Order(action="throttle", rows_per_second=0), actor="ada")
    billing.load()
    at = billing.desk()
    assert all(ledger.clean_passes(table) == 0 for table in tasks.cut(at))
    found = {table: tasks.reconcile_table(at, table) for table in tasks.cut(at)}
    assert found["customer"].differs > 0 and found["subscription"].missing > 0
    billing.follow()
    assert billing.rows("target", "SELECT count(*) FROM customer WHERE name = 'damaged'") == [(0,)]


def chunks(billing: Billing) -> int:
    """How many are loaded."""
    return sum(table["done"] for table in tasks.status(billing.desk())["tables"].values())


def copied(billing: Billing) -> list[tuple[int, ...]]:
    return billing.rows("target", "SELECT (SELECT count(*) FROM invoice), (SELECT count(*) FROM customer)")


# In the middle of a flip ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_ledger_from_before_the_switch_freezes_the_cohort_until_a_later_backup_is_restored(billing: Billing) -> None:
    witness, ids = Witness(begun(billing)), of_nz(billing)
    first, second = (billing.folder / f"{name}.jsonl" for name in ("first", "second"))
    with crowd(billing, ids[:20], first) as customers:
        attempt = ask(billing)
        advance(billing, attempt, "drain")
        until(lambda: customers.felt.queued.total() > 10, "writes to queue")
        done(billing, command("pg_dump"))
        served(customers, 10)  # of these the backup knows nothing
        cut_over(billing, attempt)
        assert has_moved(billing, attempt)
        served(customers, 10)
        refused = keys_refused(billing)
        done(billing, later("pg_dump"))
        billing.follow()

        done(billing, command("pg_restore"))
        is_frozen(billing, attempt.id, ids[0])
        served(customers, 20)  # by a router that knows where they are
    assert independent.accepted(billing.target.admin, [first], before=witness.before, refused=refused) == []

    done(billing, later("pg_restore"))
    done(billing, command("python -m fishladder ledger adopt"))
    with crowd(billing, ids[20:], second) as newcomers:
        served(newcomers, 20)
    assert has_moved(billing, attempt)
    witness.judge(first, second)
    assert "is whole" in done(billing, f"python -m fishladder audit verify {billing.file}")


def later(beginning: str) -> str:
    """The command of the page for another backup."""
    return command(beginning).replace("ledger.dump", "later.dump")


def keys_refused(billing: Billing) -> set[str]:
    """Of queued writes that the business refused."""
    with billing.desk().ledger.engine.connect() as connection:
        return set(connection.scalars(text("SELECT idempotency_key FROM ledger_queue WHERE state = 'refused'")))


def is_frozen(billing: Billing, attempt: int, customer: int) -> None:
    """As the page says: neither forward nor back, no new router serves it, no command decides it."""
    ledger = billing.desk().ledger
    waiting = len(ledger.next_queued("NZ", 1000))
    assert waiting > 10
    starting = router(billing, patience=1.0)
    plan = {"customer_id": customer, "plan_id": 1, "billing_cycle": "yearly", "at": "2026-02-01T00:00:00"}
    with pytest.raises(TransientError, match="repeat it with the same key"):
        starting.write("change_plan", plan, key="a router that starts", entity=customer)
    with pytest.raises(TransientError, match="could not be read"):
        starting.read("account", {"customer_id": customer}, entity=customer)
    starting.close()
    frozen: tuple[Callable[[], object], ...] = (
        lambda: tasks.cut_over(billing.desk(), attempt),
        lambda: tasks.replicate(billing.desk(), seconds=1),
        lambda: tasks.advance_attempts(billing.desk()),
        lambda: tasks.ask(billing.desk(), "rollback", ["NZ"], actor="ada", reason="back"),
    )
    for task in frozen:
        with pytest.raises(LedgerError, match="restored from a backup"):
            task()
    refused = shell(billing, command("python -m fishladder ledger adopt"))
    assert refused.returncode and "the source's fences of NZ are ahead of the ledger" in refused.stderr, refused

    # What the page says to compare
    status = json.loads(done(billing, f"python -m fishladder status {billing.file} --json"))["cohorts"]["NZ"]
    assert (status["stage"], status["owner"], status["epoch"]) == ("queue", "source", 2)
    with billing.desk().stores() as pair:
        fences = [store.fences()["NZ"] for store in pair]  # type: ignore[attr-defined]
    assert [(fence.writer, fence.epoch) for fence in fences] == [("copier", 3), ("application", 3)]
    verified = shell(billing, f"python -m fishladder audit verify {billing.file}")
    assert verified.returncode and "which is not in it any more" in verified.stdout, verified
    assert len(ledger.next_queued("NZ", 1000)) == waiting
    assert ledger.attempt(attempt).step == "drain"
