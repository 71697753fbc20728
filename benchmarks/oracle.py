"""The load from Oracle's wire protocol into MySQL, against nothing but fetching the same texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from benchmarks.ground import COLUMNS, STEP, Address, Bench, Ground, Migration, check_count, database, rows_text
from benchmarks.lanes import run_lanes
from benchmarks.results import REPEATS, Result, not_available, per_second, result
from billing.database import connect
from fishladder.stores.oracle import raw_cells
from tests.servers import Unavailable
from tests.servers import oracle as server

ROWS = 100_000
SEED_BATCH = 20
"""More at once, and the wire emulator loses its place."""
FETCH = 5_000
TABLES = (
    """CREATE TABLE customer (
        id NUMBER(18) PRIMARY KEY, country VARCHAR2(2 CHAR), name VARCHAR2(80 CHAR) NOT NULL,
        updated_at TIMESTAMP(6) NOT NULL
    )""",
    """CREATE TABLE invoice (
        id NUMBER(18) PRIMARY KEY, customer_id NUMBER(18) NOT NULL REFERENCES customer (id),
        invoice_no VARCHAR2(20 CHAR) NOT NULL, status VARCHAR2(10 CHAR) NOT NULL, period VARCHAR2(7 CHAR) NOT NULL,
        quantity NUMBER(9) NOT NULL, net NUMBER(12,2) NOT NULL, tax NUMBER(12,4) NOT NULL, total NUMBER(12,2) NOT NULL,
        currency VARCHAR2(3 CHAR) NOT NULL, note VARCHAR2(200 CHAR), external_id RAW(16) NOT NULL, paid_on DATE,
        created_at TIMESTAMP(6) NOT NULL, updated_at TIMESTAMP(6) NOT NULL
    )""",
    "CREATE INDEX invoice_customer ON invoice (customer_id)",
    "CREATE INDEX invoice_created ON invoice (created_at)",
)
# Oracle's DATE has a time of day, so the field is said to be a date.
TYPES = ", types: {paid_on: date}"
TIME = "YYYY-MM-DD HH24:MI:SS.FF6"
TEXTS = {
    **{column: f"TO_CHAR({column})" for column in ("id", "customer_id", "quantity")},
    **{column: f"TO_CHAR({column}, 'FM9999999990.00')" for column in ("net", "total")},
    "tax": "TO_CHAR(tax, 'FM9999999990.0000')",
    "external_id": "LOWER(RAWTOHEX(external_id))",
    "paid_on": "TO_CHAR(paid_on, 'YYYY-MM-DD')",
    **{column: f"TO_CHAR({column}, '{TIME}')" for column in ("created_at", "updated_at")},
}


def oracle(ground: Ground) -> Iterator[Result]:
    """One lane from Oracle, or what speaks its protocol, against a loop that fetches its cells and drops them."""
    bench = ground.bench(ROWS)
    try:
        address = server.dsn()
    except Unavailable as reason:
        yield not_available(
            "oracle", f"Oracle wire→mysql, {rows_text(bench.invoices)}, 1 lane / bare fetch", str(reason), goal=0.8
        )
        return
    rounds: list[tuple[float, float]] = []
    with _source(bench, address) as source:
        for _ in range(REPEATS):
            with database(ground.server) as target:
                ledger = f"sqlite:///{ground.folder}/ledger-oracle-{len(rounds)}.db"
                migration = Migration(kind="oracle", source=source, target=target, ledger=ledger, types=TYPES)
                migration.prepare()
                fetch = per_second(bench.invoices, _fetch, source.copier)
                rounds.append((bench.invoices / run_lanes(migration, 1).seconds, fetch))
                check_count(target, bench.invoices)
    product = "Oracle" if server.is_real() else "Oracle wire emulator"
    yield result(
        "oracle", f"{product}→mysql, {rows_text(bench.invoices)}, 1 lane / bare fetch", "rows/s", rounds, goal=0.8
    )


@contextmanager
def _source(bench: Bench, address: str) -> Iterator[Address]:
    """The bench's rows in Oracle."""
    with ExitStack() as kept:
        made = kept.enter_context(server.database(address))
        into = kept.enter_context(closing(connect(made.admin)))
        out = kept.enter_context(closing(connect(bench.source.admin)))
        for statement in TABLES:
            into.execute(statement)
        customer = ("id", "country", "name", "updated_at")
        for table, columns in (("customer", customer), ("invoice", COLUMNS)):
            names = ", ".join(columns)
            statement = f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"
            for first in range(0, bench.last_id + 1, SEED_BATCH * STEP):
                end = first + SEED_BATCH * STEP
                rows = out.rows(f"SELECT {names} FROM {table} WHERE id > ? AND id <= ?", [first, end])
                if rows:
                    into.insert_many(statement, rows)
        yield Address(admin=made.admin, copier=made.copier, application=made.application)


def _fetch(url: str) -> None:
    """As texts that are canonical cells, with the same driver and in as many rows at a time as it likes best."""
    cells = ", ".join(TEXTS.get(column, column) for column in COLUMNS)
    with closing(server.connect(url)) as connection, connection.cursor() as cursor:
        cursor.outputtypehandler = raw_cells  # as the store reads: what came, without decoding it
        cursor.arraysize = cursor.prefetchrows = FETCH
        cursor.execute(f"SELECT {cells} FROM invoice")
        while cursor.fetchmany():
            pass
