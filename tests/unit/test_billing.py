"""The example applications and the witness: if these were wrong, the scenario tests would prove nothing."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from billing import invariants, schema, service
from billing.database import Database, DatabaseError, connect
from billing.seed import COUNTRIES, generate, seed
from billing.service import Declined
from billing.traffic import Billing, Summary, Traffic
from chinook import schema as chinook
from chinook.traffic import FIRST_ID, Shop
from fishladder import spec
from tests.independent import acknowledged, compare
from tests.servers import mysql, oracle

INCLUDE = Path(__file__).parents[2] / "include"
CUSTOMERS = 600
FEW_CUSTOMERS = 100  # to be changed on the Oracle wire emulator, which takes a second for 300
AT = datetime(2026, 1, 31, 12, 0, 0, 123456)
SERVERS = [pytest.param("mysql", marks=pytest.mark.mysql), "oracle"]


@pytest.fixture(scope="session")
def seeded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded database that tests copy, never write."""
    path = tmp_path_factory.mktemp("billing") / "seeded.db"
    schema.create(f"sqlite:///{path}")
    seed(f"sqlite:///{path}", customers=CUSTOMERS, seed=7)
    return path


@pytest.fixture
def sqlite_url(seeded_file: Path, tmp_path: Path) -> str:
    return copy_of(seeded_file, tmp_path / "billing.db")


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest) -> str:
    """A seeded database of each kind."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    admin = str(request.getfixturevalue(f"{request.param}_database").admin)
    schema.create(admin)
    seed(admin, customers=FEW_CUSTOMERS if request.param == "oracle" else CUSTOMERS, seed=7)
    return admin


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with closing(connect(url)) as database:
        yield database


def copy_of(file: Path, path: Path) -> str:
    # Through SQLite, so that what is still in the write-ahead log is copied too.
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
    return f"sqlite:///{path}"


def drive(url: str, operations: int, *, log: Path | None = None, number: int = 1) -> Summary:
    rng = random.Random(number)
    workload = Billing(rng, run=f"test{number}")
    return Traffic(url, workload, rng=rng, rate=None, log=log).run(operations=operations)


def customer_with(db: Database, table: str) -> int:
    ((customer_id,),) = db.rows(f"SELECT min(customer_id) FROM {table}")
    return int(customer_id)


def a_new_customer(db: Database, *, customer_id: int | None = None) -> int:
    receipt = service.sign_up(
        db,
        country="NZ",
        name="Aroha",
        email=None,
        plan_id=1,
        billing_cycle="monthly",
        at=AT,
        customer_id=customer_id,
    )
    return int(receipt["customer_id"] or 0)


class TestSchemaAndSeed:
    def test_what_is_created_can_be_dropped_and_created_again(self, url: str) -> None:
        schema.drop(url)
        schema.create(url)
        assert invariants.check(url) == []
        assert invariants.totals(url) == {}

    @pytest.mark.parametrize("word", ["a", "ab", "abc"])
    def test_a_statement_repeated_with_more_rows_than_a_packet_holds(
        self, request: pytest.FixtureRequest, word: str
    ) -> None:
        """Some packet ends with a whole row, whichever of these lengths the rows have."""
        with closing(connect(str(request.getfixturevalue("oracle_database").admin))) as database:
            database.script("CREATE TABLE much (word VARCHAR2(9))")
            for _ in range(3):
                database._BATCH = 20_000  # type: ignore[attr-defined]
                database.insert_many("INSERT INTO much VALUES (?)", [(word,)] * 20_000)
            assert database.rows("SELECT count(*) FROM much") == [(60_000,)]

    def test_the_same_seed_gives_the_same_rows(self) -> None:
        first, again, other = (list(generate(customers=CUSTOMERS, seed=number)) for number in (7, 7, 8))
        assert first == again
        assert first != other

    @pytest.mark.parametrize("kind", SERVERS)
    def test_every_kind_of_database_holds_the_same(
        self, sqlite_url: str, kind: str, request: pytest.FixtureRequest
    ) -> None:
        admin = str(request.getfixturevalue(f"{kind}_database").admin)
        schema.create(admin)
        written = seed(admin, customers=CUSTOMERS, seed=7)
        assert set(written) == set(schema.TABLES)
        assert compare(sqlite_url, admin) == []
        assert compare(admin, sqlite_url) == []
        assert invariants.totals(sqlite_url) == invariants.totals(admin)

    def test_all_countries_are_there_and_skewed(self, sqlite_url: str) -> None:
        totals = invariants.totals(sqlite_url)
        assert set(totals) == {*COUNTRIES, invariants.NOWHERE}
        assert totals[invariants.NOWHERE].customers == 2
        assert totals["US"].customers > totals["GB"].customers > totals["NZ"].customers > 0
        assert sum(total.customers for total in totals.values()) == CUSTOMERS

    def test_few_customers_are_in_every_country(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'small.db'}"
        schema.create(url)
        seed(url, customers=100, seed=1)
        assert set(invariants.totals(url)) == set(COUNTRIES)

    def test_it_holds_the_traps_of_real_data(self, sqlite_url: str) -> None:
        with closing(connect(sqlite_url)) as db:
            notes = {note for (note,) in db.rows("SELECT DISTINCT note FROM customer")}
            codes = [code for (code,) in db.rows("SELECT code FROM gift_card")]
            assert {None, ""} < notes and any("\x1f" in note for note in notes if note)
            assert len({code.lower() for code in codes}) < len(codes)
            assert db.rows("SELECT count(*) FROM customer WHERE email IS NULL") > [(1,)]
            assert db.rows("SELECT DISTINCT typeof(amount) FROM invoice_line") == [("text",)]


class TestService:
    def test_a_charge_uses_credit_first(self, db: Database, url: str) -> None:
        customer_id = a_new_customer(db)
        service.buy_gift_card(db, customer_id=customer_id, code="G", amount=Decimal("10.00"), at=AT)
        service.redeem(db, code="G", amount=Decimal("2.50"), at=AT)
        receipt = service.charge(db, customer_id=customer_id, period="2026-01", key="k", at=AT, usage_packs=2)
        assert (receipt["total"], receipt["amount"]) == ("9.99", "7.49")
        assert invariants.check(url) == []

    def test_a_repeated_charge_answers_the_same_and_writes_nothing(self, db: Database) -> None:
        customer_id = a_new_customer(db)
        first = service.charge(db, customer_id=customer_id, period="2026-01", key="k", at=AT)
        assert service.charge(db, customer_id=customer_id, period="2026-01", key="k", at=AT) == first
        assert db.rows("SELECT count(*) FROM invoice WHERE customer_id = ?", (customer_id,)) == [(1,)]

    def test_what_is_declined_leaves_nothing_behind(self, db: Database, url: str) -> None:
        customer_id = a_new_customer(db)
        service.buy_gift_card(db, customer_id=customer_id, code="G", amount=Decimal("10.00"), at=AT)
        charged = service.charge(db, customer_id=customer_id, period="2026-01", key="k", at=AT)
        invoice_id = int(charged["invoice_id"] or 0)
        before = invariants.totals(url)
        with pytest.raises(Declined, match="has an invoice for 2026-01"):
            service.charge(db, customer_id=customer_id, period="2026-01", key="other", at=AT)
        with pytest.raises(Declined, match=r"10\.00 is left"):
            service.redeem(db, code="G", amount=Decimal("10.01"), at=AT)
        with pytest.raises(Declined, match=r"no more than 7\.99"):
            service.refund(db, invoice_id=invoice_id, amount=Decimal("8.00"), key="r", at=AT)
        with pytest.raises(Declined, match="there is no customer 999999"):
            service.move_country(db, customer_id=999999, country="NZ", at=AT)
        with pytest.raises(Declined, match="exists"):
            a_new_customer(db, customer_id=customer_id)
        assert invariants.totals(url) == before

    def test_operations_join_the_open_transaction(self, db: Database) -> None:
        ((before,),) = db.rows("SELECT count(*) FROM customer")
        with pytest.raises(Declined), db.transaction():
            service.swap_emails(db, first=a_new_customer(db), second=999999, at=AT)
        assert db.rows("SELECT count(*) FROM customer") == [(before,)]

    def test_a_deleted_customer_can_come_back_under_the_same_id(self, db: Database, url: str) -> None:
        customer_id = customer_with(db, "gift_card")
        service.delete_customer(db, customer_id=customer_id)
        for table in ("subscription", "invoice", "payment", "gift_card"):
            assert db.rows(f"SELECT 1 FROM {table} WHERE customer_id = ?", (customer_id,)) == []
        assert a_new_customer(db, customer_id=customer_id) == customer_id
        assert invariants.check(url) == []

    def test_a_transferred_invoice_takes_its_payments_along(self, db: Database, url: str) -> None:
        owner, customer_id = a_new_customer(db), a_new_customer(db)
        invoice_id = service.charge(db, customer_id=owner, period="2026-01", key="k", at=AT)["invoice_id"]
        assert isinstance(invoice_id, int)
        service.transfer_invoice(db, invoice_id=invoice_id, customer_id=customer_id)
        assert db.rows("SELECT customer_id FROM payment WHERE idempotency_key = 'k'") == [(customer_id,)]
        assert invariants.check(url) == []

    def test_emails_are_swapped(self, db: Database) -> None:
        (first, first_email), (second, second_email) = db.rows(
            "SELECT id, email FROM customer WHERE email IS NOT NULL ORDER BY id LIMIT 2"
        )
        service.swap_emails(db, first=first, second=second, at=AT)
        swapped = db.rows("SELECT id, email FROM customer WHERE id IN (?, ?) ORDER BY id", (first, second))
        assert swapped == [(first, second_email), (second, first_email)]

    def test_prices_change_for_the_next_invoice(self, db: Database) -> None:
        customer_id = a_new_customer(db)
        service.change_price(db, plan_id=1, monthly=Decimal("1.23"), yearly=Decimal("12.30"), at=AT)
        assert service.charge(db, customer_id=customer_id, period="2026-01", key="k", at=AT)["total"] == "1.23"
        service.change_plan(db, customer_id=customer_id, plan_id=2, billing_cycle="monthly", at=AT)
        assert service.charge(db, customer_id=customer_id, period="2026-02", key="l", at=AT)["total"] == "13.99"

    def test_a_lock_is_told_from_other_errors(self, db: Database, url: str) -> None:
        with closing(connect(url)) as other:
            error = _deadlock(db, other) if url.startswith("oracle") else _lock_timeout(db, other, url)
            assert other.must_retry(error)
            with pytest.raises(DatabaseError) as wrong:
                other.execute("INSERT INTO gift_card_entry (gift_card_code, amount, created_at) VALUES ('no', 1, NULL)")
            assert not other.must_retry(wrong.value)


def _lock_timeout(db: Database, other: Database, url: str) -> Exception:
    """What a client gets when it has waited for another's lock."""
    other.execute("PRAGMA busy_timeout=0" if url.startswith("sqlite") else "SET innodb_lock_wait_timeout = 1")
    with db.transaction():
        service.move_country(db, customer_id=1, country="NZ", at=AT)
        with pytest.raises(DatabaseError) as locked:
            service.move_country(other, customer_id=1, country="AU", at=AT)
    return locked.value


def _deadlock(db: Database, other: Database) -> Exception:
    """What one of two clients gets who wait for each other: Oracle's locks have no timeout."""
    both = threading.Barrier(2, timeout=30)
    errors: list[Exception] = []

    def move(client: Database, *customers: int) -> None:
        try:
            with client.transaction():
                service.move_country(client, customer_id=customers[0], country="NZ", at=AT)
                both.wait()
                service.move_country(client, customer_id=customers[1], country="NZ", at=AT)
        except DatabaseError as error:
            errors.append(error)

    thread = threading.Thread(target=move, args=(db, 1, 2))
    thread.start()
    move(other, 2, 1)
    thread.join()
    (error,) = errors
    return error


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
class TestTraffic:
    def test_invariants_hold_and_the_log_is_what_the_database_holds(self, url: str, tmp_path: Path) -> None:
        log = tmp_path / "log"
        summary = drive(url, 400, log=log)
        assert set(summary.acknowledged) == set(Billing.weights)
        assert not (summary.failed or summary.refused or summary.unknown), summary.as_json()
        assert summary.acknowledged.total() + summary.declined.total() == 400
        assert len(log.read_text().splitlines()) == summary.acknowledged.total()
        assert invariants.check(url) == []
        assert acknowledged(url, [log]) == []

    def test_two_clients_at_once(self, url: str, tmp_path: Path) -> None:
        clients = [
            Traffic(url, Billing(rng, run=f"c{number}"), rng=rng, rate=None)
            for number, rng in enumerate([random.Random(1), random.Random(2)])
        ]
        threads = [threading.Thread(target=client.run, kwargs={"operations": 100}) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(client.summary.acknowledged.total() > 80 for client in clients)
        assert not any(client.summary.failed for client in clients), clients[0].summary.as_json()
        assert invariants.check(url) == []

    def test_a_refused_write_is_counted_and_not_logged(self, sqlite_url: str, tmp_path: Path) -> None:
        with closing(connect(sqlite_url)) as db:
            db.execute(
                "CREATE TRIGGER fence BEFORE INSERT ON invoice BEGIN SELECT RAISE(ABORT, 'fishladder: nobody'); END"
            )
        summary = drive(sqlite_url, 200, log=tmp_path / "log")
        assert summary.refused["charge"] > 0
        assert not summary.failed and not summary.acknowledged["charge"]
        assert acknowledged(sqlite_url, [tmp_path / "log"]) == []

    def test_it_stops_when_told(self, sqlite_url: str, tmp_path: Path) -> None:
        rng = random.Random(1)
        traffic = Traffic(sqlite_url, Billing(rng, run="x"), rng=rng, rate=0.001)
        thread = threading.Thread(target=traffic.run)
        thread.start()
        traffic.stop()
        thread.join(timeout=10)
        assert not thread.is_alive()

        (tmp_path / "stop").touch()
        assert (
            Traffic(sqlite_url, Billing(rng, run="y"), rng=rng).run(until=tmp_path / "stop").acknowledged.total() == 0
        )

    def test_a_terminated_process_sums_up(self, sqlite_url: str, tmp_path: Path) -> None:
        # A pipe as its log: reading a line waits until the first operation is done.
        log = tmp_path / "log"
        os.mkfifo(log)
        command = [sys.executable, "-m", "billing.traffic", sqlite_url, "--seconds", "60", "--log", str(log)]
        with subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(INCLUDE)}, stdout=subprocess.PIPE
        ) as process:
            with log.open() as lines:
                assert json.loads(lines.readline())["operation"] in Billing.weights
                process.terminate()
                logged = 1 + len(lines.readlines())
            assert process.stdout is not None
            summary = json.loads(process.stdout.read())
        assert process.returncode == 0
        assert summary["total"] == logged
        assert summary["seconds"] < 60

    @pytest.mark.parametrize("kind", SERVERS)
    def test_it_goes_on_after_a_lost_connection(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        admin, server = request.getfixturevalue(f"{kind}_database").admin, request.getfixturevalue(f"{kind}_server")
        schema.create(admin)
        seed(admin, customers=100, seed=1)

        class Cut(Billing):
            """The server ends the client's session before the tenth operation."""

            performed = 0

            def perform(self, db: Database, kind: str, at: datetime) -> service.Receipt:
                self.performed += 1
                if self.performed == 10:
                    _end_session(db, server)
                return super().perform(db, kind, at)

        rng = random.Random(1)
        traffic = Traffic(admin, Cut(rng, run="x"), rng=rng, rate=None, log=tmp_path / "log")
        summary = traffic.run(operations=50)
        assert summary.unknown.total() == 1 and not summary.failed, summary.as_json()
        assert acknowledged(admin, [tmp_path / "log"]) == []


def _end_session(db: Database, server: str) -> None:
    if server.startswith("mysql"):
        ((session,),) = db.rows("SELECT connection_id()")
        with closing(mysql.connect(server)) as admin, closing(admin.cursor()) as cursor:
            cursor.execute(f"KILL {session}")
        return
    ((session,),) = db.rows("SELECT sys_context('userenv', 'sid') FROM dual")
    with closing(oracle.connect(server)) as system, closing(system.cursor()) as cursor:
        ((serial,),) = cursor.execute("SELECT serial# FROM v$session WHERE sid = :1", [session]).fetchall()
        cursor.execute(f"ALTER SYSTEM KILL SESSION '{session},{int(serial)}' IMMEDIATE")


VIOLATIONS = {
    "UPDATE invoice SET total = '1000.00' WHERE id = 3": "total is the sum of its lines",
    "DELETE FROM invoice_line WHERE id = 3": "total is the sum of its lines",
    "UPDATE invoice_line SET quantity = quantity + 1 WHERE id = 3": "quantity × unit price",
    "UPDATE payment SET kind = 'chargeback' WHERE id = 3": "charges or refunds",
    "DELETE FROM payment WHERE id = 3": "charges less refunds",
    "INSERT INTO payment (customer_id, invoice_id, idempotency_key, kind, amount, created_at)"
    " SELECT customer_id, id, 'x', 'charge', '0.01', created_at FROM invoice WHERE id = 3": "charges less refunds",
    "INSERT INTO payment (customer_id, invoice_id, idempotency_key, kind, amount, created_at)"
    " SELECT customer_id, id, 'x', 'refund', '9999.00', created_at FROM invoice WHERE id = 3": "charges less refunds",
    "UPDATE gift_card SET remaining_amount = '0.01' WHERE code = 'GIFT-00000001'": "add up",
    "UPDATE gift_card SET initial_amount = '-1.00', remaining_amount = '-1.00' WHERE code NOT IN"
    " (SELECT gift_card_code FROM gift_card_entry)": "add up",
    "DELETE FROM gift_card_entry WHERE id = 1": "add up",
    "UPDATE customer SET balance = '77.77' WHERE id = 3": "what was redeemed less what was used",
    "UPDATE payment SET customer_id = customer_id + 1 WHERE id = 3": "belongs to its invoice's customer",
    "UPDATE subscription SET customer_id = 999999 WHERE id = 3": "every subscription.customer_id",
    "DELETE FROM plan WHERE id = 3": "every subscription.plan_id",
    "UPDATE invoice SET customer_id = 999999 WHERE id = 3": "every invoice.customer_id",
    "DELETE FROM invoice WHERE id = 3": "every invoice_line.invoice_id",
    "UPDATE payment SET invoice_id = 999999 WHERE id = 3": "every payment.invoice_id",
    "UPDATE payment SET customer_id = 999999 WHERE id = 3": "every payment.customer_id",
    "UPDATE gift_card SET customer_id = 999999 WHERE code = 'GIFT-00000001'": "every gift_card.customer_id",
    "UPDATE gift_card_entry SET gift_card_code = 'none' WHERE id = 1": "every gift_card_entry.gift_card_code",
}


class TestInvariants:
    @pytest.mark.parametrize("statement", VIOLATIONS)
    def test_a_planted_violation_is_found(self, sqlite_url: str, statement: str) -> None:
        with closing(connect(sqlite_url)) as db:
            db.execute("PRAGMA foreign_keys=OFF")
            assert db.execute(statement) > 0
        assert VIOLATIONS[statement] in "\n".join(invariants.check(sqlite_url))

    @pytest.mark.parametrize(
        ("table", "column"), [("invoice", "period"), ("payment", "idempotency_key"), ("customer", "email")]
    )
    def test_a_duplicate_in_a_table_without_its_unique_key_is_found(
        self, sqlite_url: str, table: str, column: str
    ) -> None:
        with closing(connect(sqlite_url)) as db:
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute(f"CREATE TABLE copy AS SELECT * FROM {table}")
            db.execute(f"DROP TABLE {table}")
            db.execute(f"ALTER TABLE copy RENAME TO {table}")
            db.execute(f"INSERT INTO {table} SELECT * FROM {table} WHERE {column} IS NOT NULL LIMIT 1")
        found = "\n".join(invariants.check(sqlite_url))
        assert {"invoice": "customer and period", "payment": "pays once", "customer": "address"}[table] in found

    def test_the_command_prints_totals_and_fails_on_a_violation(self, sqlite_url: str) -> None:
        command = [sys.executable, "-m", "billing.invariants", sqlite_url]
        environment = {**os.environ, "PYTHONPATH": str(INCLUDE)}
        good = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert f"{invariants.totals(sqlite_url)['NZ'].invoiced}" in good.stdout
        with closing(connect(sqlite_url)) as db:
            db.execute("UPDATE customer SET balance = '-1.00' WHERE id = 3")
        bad = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert bad.returncode == 1 and "VIOLATED" in bad.stdout

    def test_totals_are_those_of_a_sum_in_decimal(self, sqlite_url: str) -> None:
        with closing(connect(sqlite_url)) as db:
            rows = db.rows(
                "SELECT p.amount FROM payment p JOIN customer c ON c.id = p.customer_id"
                " WHERE c.country_code = 'DE' AND p.kind = 'charge'"
            )
        assert asdict(invariants.totals(sqlite_url)["DE"])["charged"] == sum(Decimal(amount) for (amount,) in rows)


class TestIndependent:
    @pytest.mark.parametrize(
        ("statement", "problem"),
        [
            ("DELETE FROM payment WHERE id = 5", "payment: 1 row(s) missing in the target: 5"),
            (
                "INSERT INTO payment SELECT 99999, customer_id, invoice_id, 'x', kind, amount, created_at"
                " FROM payment WHERE id = 5",
                "payment: 1 row(s) extra in the target: 99999",
            ),
            ("UPDATE invoice SET document_digest = x'00' WHERE id = 4", "invoice: 1 row(s) different in the target: 4"),
            (
                "UPDATE customer SET note = '' WHERE id = (SELECT min(id) FROM customer WHERE note IS NULL)",
                "customer: 1 row(s) different in the target",
            ),
            ("UPDATE customer SET note = 'ends in a blank' WHERE note = 'ends in a blank '", "different in the target"),
            ("UPDATE customer SET newsletter = 1 - newsletter WHERE id = 9", "different in the target: 9"),
            (
                "UPDATE gift_card SET code = lower(code) WHERE code = 'GIFT-00000001'",
                "missing in the target: GIFT-00000001",
            ),
            ("UPDATE invoice SET created_at = '2025-01-01 00:00:00.000001' WHERE id = 4", "different in the target: 4"),
            ("UPDATE payment SET invoice_id = 999999 WHERE id = 5", "name a invoice that is not there (invoice_id)"),
            ("UPDATE payment SET amount = 'much' WHERE id = 5", "payment: 1 row(s) different in the target: 5"),
            ("DROP TABLE gift_card_entry", "gift_card_entry: the target has no such table"),
            ("ALTER TABLE plan ADD COLUMN colour TEXT", "plan: only one side has the column(s) colour"),
        ],
    )
    def test_a_planted_difference_is_found(
        self, seeded_file: Path, sqlite_url: str, statement: str, problem: str
    ) -> None:
        with closing(connect(sqlite_url)) as db:
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute(statement)
        assert problem in "\n".join(compare(f"sqlite:///{seeded_file}", sqlite_url))

    def test_a_copy_is_equal(self, seeded_file: Path, sqlite_url: str) -> None:
        with closing(connect(sqlite_url)) as db:
            db.execute("CREATE TABLE fishladder_fence (cohort TEXT)")
        assert compare(f"sqlite:///{seeded_file}", sqlite_url) == []

    def test_two_swapped_amounts_are_found(self, seeded_file: Path, sqlite_url: str) -> None:
        with closing(connect(sqlite_url)) as db:
            ((first, amount, second, other),) = db.rows(
                "SELECT a.id, a.amount, b.id, b.amount FROM payment a JOIN payment b ON b.id > a.id"
                " AND b.amount <> a.amount ORDER BY a.id, b.id LIMIT 1"
            )
            db.execute("UPDATE payment SET amount = ? WHERE id = ?", (other, first))
            db.execute("UPDATE payment SET amount = ? WHERE id = ?", (amount, second))
        problems = compare(f"sqlite:///{seeded_file}", sqlite_url)
        assert problems == [f"payment: 2 row(s) different in the target: {first}, {second}"]

    def test_duplicates_are_found_where_the_target_lacks_the_key(self, seeded_file: Path, sqlite_url: str) -> None:
        with closing(connect(sqlite_url)) as db:
            db.execute("CREATE TABLE copy AS SELECT * FROM gift_card_entry")
            db.execute("INSERT INTO copy SELECT * FROM copy WHERE id = 1")
            db.execute("DROP TABLE gift_card_entry")
            db.execute("ALTER TABLE copy RENAME TO gift_card_entry")
        problems = "\n".join(compare(f"sqlite:///{seeded_file}", sqlite_url, ["gift_card_entry"]))
        assert "1 value(s) of id occur more than once in the target" in problems

    @pytest.mark.mysql
    def test_a_planted_difference_is_found_across_kinds(self, sqlite_url: str, mysql_database: mysql.Database) -> None:
        schema.create(mysql_database.admin)
        seed(mysql_database.admin, customers=CUSTOMERS, seed=7)
        with closing(connect(mysql_database.admin)) as db:
            db.execute("UPDATE invoice SET created_at = created_at + INTERVAL 1 MICROSECOND WHERE id = 4")
            db.execute("UPDATE invoice_line SET unit_price = unit_price + 0.0001 WHERE id = 5")
            db.execute(
                "UPDATE customer SET note = '' WHERE id = (SELECT min(id) FROM (SELECT * FROM customer) c"
                " WHERE note IS NULL)"
            )
            db.execute("SET foreign_key_checks = 0")
            db.execute("UPDATE subscription SET plan_id = 77 WHERE id = 6")
        problems = compare(sqlite_url, mysql_database.admin)
        assert [problem.split(":")[0] for problem in problems] == [
            "customer",
            "invoice",
            "invoice_line",
            "subscription",
            "subscription",
        ]
        assert "1 row(s) in the target name a plan that is not there (plan_id)" in problems[-1]

    @pytest.mark.parametrize(
        ("statement", "problem"),
        [
            ("DELETE FROM payment WHERE idempotency_key = '{key}'", "payment {key}: lost"),
            ("UPDATE payment SET amount = '0.01' WHERE idempotency_key = '{key}'", "payment {key}: altered"),
            ("DELETE FROM gift_card_entry", "gift_card_entry "),
            ("UPDATE customer SET country_code = 'XX'", "country of customer "),
            ("UPDATE customer SET email = NULL", "email of customer "),
            ("UPDATE plan SET monthly_price = '0.99'", "price of plan "),
            ("UPDATE subscription SET customer_id = customer_id + 1", "subscription "),
        ],
    )
    def test_a_lost_acknowledged_operation_is_found(
        self, sqlite_url: str, tmp_path: Path, statement: str, problem: str
    ) -> None:
        log = tmp_path / "log"
        drive(sqlite_url, 300, log=log)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        key = next(line["key"] for line in reversed(lines) if line["operation"] == "charge")
        with closing(connect(sqlite_url)) as db:
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute(statement.format(key=key))
        assert problem.format(key=key) in "\n".join(acknowledged(sqlite_url, [log]))


class TestChinook:
    def test_the_sample_is_whole(self, tmp_path: Path) -> None:
        sample = chinook.copy_sample(tmp_path / "sample.db")
        with closing(connect(sample)) as db:
            assert db.rows("SELECT count(*) FROM InvoiceLine") == [(2240,)]
            assert db.rows("PRAGMA foreign_key_check") == []
            assert {name for (name,) in db.rows("SELECT name FROM sqlite_master WHERE type = 'table'")} == set(
                chinook.TABLES
            )

    @pytest.mark.parametrize("kind", ["sqlite", SERVERS[0], pytest.param("oracle", marks=pytest.mark.slow)])
    def test_its_traffic_runs_on_a_copy_in_every_kind(
        self, kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sample = chinook.copy_sample(tmp_path / "sample.db")
        url = f"sqlite:///{tmp_path / 'copy.db'}"
        if kind != "sqlite":
            url = request.getfixturevalue(f"{kind}_database").admin
        if kind == "oracle":
            chinook.load_sample(url)
        else:
            chinook.create(url)
            with closing(connect(sample)) as source, closing(connect(url)) as target:
                for table in chinook.TABLES:
                    order = " ORDER BY ReportsTo, EmployeeId" if table == "Employee" else ""
                    rows = source.rows(f"SELECT * FROM {table}{order}")
                    target.insert_many(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        assert compare(sample, url) == []

        rng = random.Random(1)
        monkeypatch.setattr("chinook.traffic.LAST_ID", FIRST_ID + 600)  # so few that most are drawn more than once
        summary = Traffic(url, Shop(rng), rng=rng, rate=None).run(operations=200)
        assert set(summary.acknowledged) == set(Shop.weights) and not summary.failed, summary.as_json()
        changed = {problem.split(":")[0] for problem in compare(sample, url)}
        assert changed == {"Customer", "Invoice", "InvoiceLine", "Playlist", "PlaylistTrack", "Track"}
        with closing(connect(url)) as db:
            lines = (
                "SELECT InvoiceId, sum(round(UnitPrice * Quantity * 100)) AS cents FROM InvoiceLine GROUP BY InvoiceId"
            )
            assert not db.rows(
                f"SELECT i.InvoiceId FROM Invoice i LEFT JOIN ({lines}) l ON l.InvoiceId = i.InvoiceId"
                " WHERE round(i.Total * 100) <> coalesce(l.cents, 0)"
            )


class TestMigrations:
    @pytest.mark.parametrize("kind", ["sqlite", "mysql", "oracle"])
    def test_the_files_are_read_for_every_kind(self, kind: str) -> None:
        names = ("billing", "chinook")
        environment = {f"{name.upper()}_{end}_KIND": kind for name in names for end in ("SOURCE", "TARGET")}
        billing, music = (spec.load(INCLUDE / "migrations" / f"{name}.yaml", environment) for name in names)
        assert {end.kind for file in (billing, music) for end in (file.source, file.target)} == {kind}
        assert tuple(billing.tables) == schema.TABLES
        assert tuple(music.tables) == chinook.TABLES

    @pytest.mark.parametrize("kind", SERVERS)
    def test_the_reports_say_the_same_on_every_kind(
        self, sqlite_url: str, kind: str, request: pytest.FixtureRequest
    ) -> None:
        admin = str(request.getfixturevalue(f"{kind}_database").admin)
        schema.create(admin)
        seed(admin, customers=CUSTOMERS, seed=7)
        migration = spec.load(INCLUDE / "migrations" / "billing.yaml", {})
        collation = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" if kind == "mysql" else ""
        answers = []
        for url, text in ((sqlite_url, "VARCHAR(64)"), (admin, f"VARCHAR(64) {collation}")):
            with closing(connect(url)) as db:
                db.execute(f"CREATE TABLE fishladder_home (cohort {text}, root_key {text})")
                db.execute("INSERT INTO fishladder_home SELECT country_code, TRIM(CAST(id AS CHAR(20))) FROM customer")
                answers.append(
                    {name: db.rows(_bound(report.source)) for name, report in migration.reports.items()}
                    | {name: db.rows(monitor.target or "") for name, monitor in migration.monitors.items()}
                )
        assert answers[0] == answers[1]
        assert len(answers[0]["revenue_by_month"]) == 6
        assert answers[0]["active_subscriptions"] > [(0,)] == answers[0]["negative_balance"]

    @pytest.mark.parametrize("name", ["billing", "chinook"])
    def test_both_sides_of_a_report_ask_the_same(self, name: str) -> None:
        for report in spec.load(INCLUDE / "migrations" / f"{name}.yaml", {}).reports.values():
            assert report.source == report.target


def _bound(statement: str) -> str:
    for name, value in {"cohort": "US", "from": "2025-01-01 00:00:00", "until": "2025-07-01 00:00:00"}.items():
        statement = statement.replace(f":{name}", f"'{value}'")
    return statement
