"""What is measured on: a source with customers and invoices, fresh targets, and the migration between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path

from billing.database import Database, connect
from fishladder import tasks
from fishladder.ledger import open_ledger, upgrade
from fishladder.spec import loads
from fishladder.stores import connect_url, open_store
from tests.servers import mysql

LANES = 2
STEP = 2
"""Between two keys, so that there is room for rows that only one side has."""
INVOICES_PER_CUSTOMER = 20
SEED_BATCH = 100_000
QUIET = 600.0
"""Seconds that the applier gets to make everything right that was left from a case before."""

COLUMNS = (
    *("id", "customer_id", "invoice_no", "status", "period", "quantity", "net", "tax", "total", "currency", "note"),
    *("external_id", "paid_on", "created_at", "updated_at"),
)
ALL = ", ".join(COLUMNS)
CUSTOMER = """CREATE TABLE customer (
    id BIGINT PRIMARY KEY, country VARCHAR(2), name VARCHAR(80) NOT NULL, updated_at DATETIME(6) NOT NULL
)"""
INVOICE = """CREATE TABLE invoice (
    id BIGINT PRIMARY KEY, customer_id BIGINT NOT NULL, invoice_no VARCHAR(20) NOT NULL, status VARCHAR(10) NOT NULL,
    period VARCHAR(7) NOT NULL, quantity INT NOT NULL, net DECIMAL(12,2) NOT NULL, tax DECIMAL(12,4) NOT NULL,
    total DECIMAL(12,2) NOT NULL, currency VARCHAR(3) NOT NULL, note VARCHAR(200), external_id BINARY(16) NOT NULL,
    paid_on DATE, created_at DATETIME(6) NOT NULL, updated_at DATETIME(6) NOT NULL,
    INDEX invoice_customer (customer_id), INDEX invoice_created (created_at),
    FOREIGN KEY (customer_id) REFERENCES customer (id)
)"""
CUSTOMER_VALUES = """
    n, ELT(1 + n % 3, 'NZ', 'AU', 'US'), CONCAT('Customer ', n), TIMESTAMP('2026-01-01 00:00:00.5') + INTERVAL n SECOND
"""
# The values of each column out of n, the number of the row from 1 on. Among them are what copying tends to change:
# microseconds, NULL beside '', trailing blanks, quotes and backslashes, letters beyond ASCII and beyond two bytes.
VALUES = f"""
    n * {STEP}, 1 + (n * 104729) % {{customers}}, CONCAT('INV-', LPAD(n, 10, '0')),
    ELT(1 + n % 3, 'open', 'paid', 'void'),
    CONCAT(2020 + n % 7, '-', LPAD(1 + n % 12, 2, '0')), n % 1000 - 20, (100 + n * 7919 % 99901) / 100,
    (100 + n * 7919 % 99901) / 500, (100 + n * 7919 % 99901) * 1.2 / 100, 'EUR',
    CASE WHEN n % 4 = 0 THEN NULL WHEN n % 101 = 1 THEN '' WHEN n % 103 = 1 THEN CONCAT('ends in a blank ', n, ' ')
        WHEN n % 107 = 1 THEN CONCAT('it''s "C:\\\\\\\\temp"\t', n, '\n')
        WHEN n % 109 = 1 THEN CONCAT('bezahlt – 谢谢 🐟 ', n)
        ELSE CONCAT('paid late by customer ', n % 977, ', prefers e-mail, see ticket ', n) END,
    UNHEX(LEFT(SHA2(n, 256), 32)), IF(n % 3 = 1, DATE('2026-01-01') + INTERVAL n % 365 DAY, NULL),
    TIMESTAMP('2025-01-01') + INTERVAL n * 977 % 31536000 SECOND + INTERVAL n % 1000000 MICROSECOND,
    TIMESTAMP('2026-01-01') + INTERVAL n * 7 % 31536000 SECOND + INTERVAL n * 13 % 1000000 MICROSECOND
"""
NUMBERS = """
    WITH RECURSIVE d (no) AS (SELECT 0 UNION ALL SELECT no + 1 FROM d WHERE no < 999)
    SELECT {values} FROM (
        SELECT {first} + a.no * 1000 + b.no AS n FROM d AS a, d AS b WHERE a.no < {thousands}
    ) AS numbers WHERE n <= {last} ORDER BY n
"""
MIGRATION = """
migration: bench
strategy: replicate
source: {{kind: {kind}, connection: bench_source}}
target: {{kind: mysql, connection: bench_target}}
application: {{source: bench_source_app, target: bench_target_app}}
cohort: {{root: customer, column: country, waves: [["*"]]}}
lanes: {lanes}
tables:
  customer: root
  invoice: {{entity: customer_id{types}}}
"""
DAG_FILE = """
from fishladder_airflow.dags import build

globals().update(build({file!r}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A database as its accounts see it, each a URL."""

    admin: str
    copier: str
    application: str

    @property
    def name(self) -> str:
        return self.admin.rpartition("/")[2]


@contextmanager
def database(server: str) -> Iterator[Address]:
    """A fresh, empty database on the MySQL with this DSN."""
    with mysql.database(server) as found:
        yield Address(admin=found.admin, copier=found.copier, application=found.application)


def create_tables(url: str) -> None:
    with closing(connect(url)) as db:
        db.execute(CUSTOMER)
        db.execute(INVOICE)


def seed(url: str, invoices: int) -> None:
    """Create the tables and fill them inside the server: the same rows for the same number."""
    create_tables(url)
    customers = invoices // INVOICES_PER_CUSTOMER + 1
    with closing(connect(url)) as db:
        db.execute("SET SESSION foreign_key_checks = 0, transaction_isolation = 'READ-COMMITTED'")
        _fill(db, "customer", CUSTOMER_VALUES, customers)
        _fill(db, f"invoice ({ALL})", VALUES.format(customers=customers), invoices)


def _fill(db: Database, into: str, values: str, rows: int) -> None:
    for first in range(1, rows + 1, SEED_BATCH):
        numbers = NUMBERS.format(values=values, first=first, last=rows, thousands=SEED_BATCH // 1000)
        db.execute(f"INSERT INTO {into} {numbers}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A migration under way. It can be pickled, so that lanes can be processes.

    ``kind`` of the source, whose invoices may need ``types``: more of their words in the migration file.
    """

    source: Address
    target: Address
    ledger: str
    kind: str = "mysql"
    types: str = ""

    @contextmanager
    def desk(self, lanes: int = LANES) -> Iterator[tasks.Desk]:
        spec = loads(MIGRATION.format(kind=self.kind, lanes=lanes, types=self.types), name="bench.yaml", environment={})
        urls = {spec.source.connection: self.source.copier, spec.target.connection: self.target.copier}
        with open_ledger(self.ledger, migration=spec.migration) as ledger:
            yield tasks.Desk(spec=spec, ledger=ledger, open=lambda name: open_store(*connect_url(urls[name])))

    def prepare(self) -> None:
        """Prepared and cut, with everything loaded but the invoices."""
        upgrade(self.ledger)
        with self.desk() as desk:
            tasks.prepare(desk, actor="benchmark")
            for table in tasks.cut(desk):
                if table != "invoice":
                    tasks.load_table(desk, table, "1")

    def close(self) -> None:
        """All loads closed, and what the source's journal holds applied."""
        with self.desk() as desk:
            for table in tasks.cut(desk):
                tasks.close_table(desk, table)
            self.settle(desk)

    def settle(self, desk: tasks.Desk) -> None:
        """Apply until nothing is dirty."""
        tasks.replicate(desk, seconds=QUIET, until_idle=True)


@dataclass(kw_only=True)
class Bench:
    """A seeded source and migrations from it to fresh targets, all in one server."""

    server: str
    folder: Path
    invoices: int
    source: Address = field(init=False)
    kept: ExitStack = field(default_factory=ExitStack)
    numbers: Iterator[int] = field(default_factory=count)

    def __enter__(self) -> Bench:
        self.source = self.kept.enter_context(database(self.server))
        seed(self.source.admin, self.invoices)
        return self

    def __exit__(self, *_: object) -> None:
        self.kept.close()

    @property
    def last_id(self) -> int:
        return self.invoices * STEP

    @property
    def label(self) -> str:
        """How the cases call what is copied."""
        return f"mysql→mysql, {rows_text(self.invoices)}"

    @contextmanager
    def migration(self) -> Iterator[Migration]:
        """Prepared, with a target and a ledger of its own."""
        ledger = self.folder / f"ledger-{self.invoices}-{next(self.numbers)}.db"
        with database(self.server) as target:
            made = Migration(source=self.source, target=target, ledger=f"sqlite:///{ledger}")
            made.prepare()
            yield made

    @cached_property
    def loaded(self) -> Migration:
        """A migration that is loaded, closed and at rest. Whoever changes rows leaves it at rest again."""
        made = self.kept.enter_context(self.migration())
        with made.desk() as desk:
            tasks.load_table(desk, "invoice", "1")
        made.close()
        return made


@dataclass(kw_only=True)
class Ground:
    """A MySQL server and the benches on it, by size; they are seeded when they are first asked for."""

    server: str
    folder: Path
    rows: int
    peers: bool = False
    kept: ExitStack = field(default_factory=ExitStack)
    benches: dict[int, Bench] = field(default_factory=dict)

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self.kept.close()

    def bench(self, at_most: int | None = None) -> Bench:
        """Of the size that was asked for, or of ``at_most`` if that is less."""
        size = min(self.rows, at_most or self.rows)
        if size not in self.benches:
            self.benches[size] = self.kept.enter_context(self.one_bench(size))
        return self.benches[size]

    def one_bench(self, size: int) -> Bench:
        """One that is not kept for other cases."""
        return Bench(server=self.server, folder=self.folder, invoices=size)


def dag_folder(parent: Path) -> Path:
    """A folder for Airflow, with the DAGs of the migration from MySQL to MySQL."""
    dags = parent / "dags"
    dags.mkdir()
    file = dags / "bench.yaml"
    file.write_text(MIGRATION.format(kind="mysql", lanes=LANES, types=""), encoding="utf-8")
    (dags / "bench.py").write_text(DAG_FILE.format(file=str(file)), encoding="utf-8")
    return dags


def check_count(target: Address, expected: int) -> None:
    with closing(connect(target.copier)) as db:
        ((found,),) = db.rows("SELECT COUNT(*) FROM invoice")
    if found != expected:
        raise RuntimeError(f"{found} of {expected} invoices were loaded; no speed is worth that")


def rows_text(rows: int) -> str:
    """1000000 as "1M rows", 20000 as "20k rows"."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if rows % size == 0:
            return f"{rows // size}{letter} rows"
    return f"{rows} rows"
