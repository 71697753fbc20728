"""What is measured on: a source with customers and invoices, fresh targets, and the migration between them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Protocol

from billing.database import Database, Row, connect
from fishladder import tasks
from fishladder.ledger import open_ledger, upgrade
from fishladder.spec import loads
from fishladder.stores import connect_url, open_store
from tests.servers import mysql

INVOICES_PER_CUSTOMER = 20
SEED_BATCH = 10_000
COLUMNS = "id, customer_id, number, status, period, net, tax, total, currency, note, created_at, updated_at"
SCHEMA = """
CREATE TABLE customer (
    id {key}, country VARCHAR(2), name VARCHAR(80) NOT NULL, updated_at DATETIME(6) NOT NULL
);
CREATE TABLE invoice (
    id {key}, customer_id BIGINT NOT NULL, number VARCHAR(20) NOT NULL, status VARCHAR(10) NOT NULL,
    period VARCHAR(7) NOT NULL, net {money}, tax {money}, total {money}, currency VARCHAR(3) NOT NULL,
    note VARCHAR(200), created_at DATETIME(6) NOT NULL, updated_at DATETIME(6) NOT NULL,
    FOREIGN KEY (customer_id) REFERENCES customer (id)
);
CREATE INDEX invoice_created ON invoice (created_at);
"""
WORDS = {
    "sqlite": {"key": "INTEGER PRIMARY KEY", "money": "DECIMAL_TEXT(12,2)"},
    "mysql": {"key": "BIGINT PRIMARY KEY", "money": "DECIMAL(12,2)"},
}
MIGRATION = """
migration: bench
strategy: replicate
source: {{kind: {kind}, connection: bench_source}}
target: {{kind: {kind}, connection: bench_target}}
application: {{source: bench_source_app, target: bench_target_app}}
cohort: {{root: customer, column: country, waves: [["*"]]}}
tables:
  customer: root
  invoice: {{entity: customer_id}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A database as two accounts see it; where a store knows no accounts, they are the same."""

    copier: str
    application: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An empty copy of the target's invoices without triggers, and the source's, both reached through ``db``."""

    db: Database
    origin: str
    copy: str


class Ground(Protocol):
    """A kind of store that databases can be had from. ``label`` is what the results call it.

    ``lanes``: with how many lanes to load; ``typed``: whether also to compare with the driver's own types.
    """

    kind: str
    label: str
    lanes: tuple[int, ...]
    typed: bool

    def database(self) -> AbstractContextManager[Address]:
        """A fresh, empty database."""
        ...

    def reference(self, source: Address, target: Address) -> AbstractContextManager[Reference]: ...


class SqliteGround:
    kind = label = "sqlite"
    lanes: tuple[int, ...] = (1,)  # a file has one writer
    typed = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = count(1)

    @contextmanager
    def database(self) -> Iterator[Address]:
        path = self.folder / f"{next(self.numbers)}.db"
        yield Address(copier=f"sqlite:///{path}", application=f"sqlite:///{path}")
        for file in self.folder.glob(f"{path.name}*"):
            file.unlink()

    @contextmanager
    def reference(self, source: Address, target: Address) -> Iterator[Reference]:
        ours = "SELECT sql FROM sqlite_master WHERE tbl_name = 'invoice' AND type <> 'trigger' AND sql IS NOT NULL"
        with closing(connect(target.copier)) as db:
            statements = [sql for (sql,) in db.rows(ours)]
        with self.database() as fresh, closing(connect(fresh.copier)) as db:
            for sql in statements:
                db.execute(sql)
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute("ATTACH ? AS origin", [source.copier.removeprefix("sqlite:///")])
            yield Reference(db=db, origin="origin.invoice", copy="invoice")


class MysqlGround:
    kind = "mysql"
    lanes: tuple[int, ...] = (1, 2)
    typed = True

    def __init__(self, server: str) -> None:
        self.server = server
        self.label = "mariadb" if "MariaDB" in mysql.version(server) else "mysql"

    @contextmanager
    def database(self) -> Iterator[Address]:
        with mysql.database(self.server) as found:
            yield Address(copier=found.copier, application=found.application)

    @contextmanager
    def reference(self, source: Address, target: Address) -> Iterator[Reference]:
        with closing(connect(target.copier)) as db:
            db.execute("SET SESSION foreign_key_checks = 0")
            db.execute("CREATE TABLE reference LIKE invoice")
            try:
                yield Reference(db=db, origin=f"{source.copier.rpartition('/')[2]}.invoice", copy="reference")
            finally:
                db.execute("DROP TABLE reference")


def seed(kind: str, url: str, invoices: int) -> None:
    """Create the tables and fill them: the same rows for the same number, whatever the store."""
    rng = random.Random(1)
    with closing(connect(url)) as db:
        db.script(SCHEMA.format(**WORDS[kind]))
        with db.transaction():
            customers = invoices // INVOICES_PER_CUSTOMER + 1
            rows = (
                (no, rng.choice(("NZ", "AU", "US")), f"Customer {no}", _moment(no)) for no in range(1, customers + 1)
            )
            while some := list(islice(rows, SEED_BATCH)):
                db.insert_many("INSERT INTO customer (id, country, name, updated_at) VALUES (?, ?, ?, ?)", some)
            marks = ", ".join("?" * len(COLUMNS.split(",")))
            lines = _invoices(invoices, customers, rng)
            while some := list(islice(lines, SEED_BATCH)):
                db.insert_many(f"INSERT INTO invoice ({COLUMNS}) VALUES ({marks})", some)


def _invoices(invoices: int, customers: int, rng: random.Random) -> Iterator[Row]:
    for no in range(1, invoices + 1):
        net = rng.randrange(100, 100_000)
        tax = net // 5
        money = [f"{cents // 100}.{cents % 100:02}" for cents in (net, tax, net + tax)]
        note = None if no % 4 else f"paid late by customer {no % 977}, prefers e-mail, see ticket {no}"
        period = f"20{20 + no % 7}-{1 + no % 12:02}"
        yield (
            *(no, rng.randint(1, customers), f"INV-{no:010}", ("open", "paid", "void")[no % 3], period, *money),
            *("EUR", note, _moment(no), _moment(no + 86_400)),
        )


def _moment(no: int) -> str:
    return f"2026-{1 + no % 12:02}-{1 + no % 28:02} {no % 24:02}:{no % 60:02}:{no % 59:02}.{no % 1_000_000:06}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A migration under way. It can be pickled, so that lanes can be processes."""

    kind: str
    source: Address
    target: Address
    ledger: str

    @contextmanager
    def desk(self) -> Iterator[tasks.Desk]:
        spec = loads(MIGRATION.format(kind=self.kind), name="bench.yaml", environment={})
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

    def finish_load(self) -> None:
        """The invoices too, and all loads closed."""
        with self.desk() as desk:
            for table in tasks.cut(desk):
                tasks.load_table(desk, table, "1")
                tasks.close_table(desk, table)


@dataclass(kw_only=True)
class Bench:
    """A seeded source of one kind, and migrations from it to fresh targets."""

    ground: Ground
    folder: Path
    invoices: int
    source: Address = field(init=False)
    kept: ExitStack = field(default_factory=ExitStack)
    numbers: Iterator[int] = field(default_factory=count)

    def __enter__(self) -> Bench:
        self.source = self.kept.enter_context(self.ground.database())
        seed(self.ground.kind, self.source.copier, self.invoices)
        return self

    def __exit__(self, *_: object) -> None:
        self.kept.close()

    @contextmanager
    def migration(self) -> Iterator[Migration]:
        """Prepared, with a target and a ledger of its own."""
        ledger = self.folder / f"ledger-{next(self.numbers)}.db"
        with self.ground.database() as target:
            made = Migration(kind=self.ground.kind, source=self.source, target=target, ledger=f"sqlite:///{ledger}")
            made.prepare()
            yield made
