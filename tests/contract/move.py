"""A small migration between two stores of the suite, step by step, for tables that a test brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from billing.database import Database
from fishladder import install, spec
from fishladder.apply import Ends, apply_round, follow
from fishladder.cells import Row
from fishladder.clock import SystemClock
from fishladder.ledger import CheckResult, Ledger, open_ledger
from fishladder.load import LaneReport, close_load, cut, load_lane
from fishladder.plan import Plan, PlanTable, examine
from fishladder.reconcile import reconcile_table
from fishladder.stores.base import Finding, TableInfo
from tests import independent, ledgers
from tests.contract import tables as small
from tests.contract.stores import PATIENCE, STORES, Place
from tests.contract.tables import column, read

SPEC = """
migration: move
strategy: replicate
source: {{kind: {source}, connection: ours}}
target: {{kind: {target}, connection: theirs}}
application: {{source: ours_app, target: theirs_app}}
cohort: {{label: country, root: customer, column: country, waves: [[NZ], ["*"]]}}
tables: {{customer: root, {tables}}}
"""
CUSTOMERS = ((1, "NZ"), (2, "AU"), (3, "NZ"))


@dataclass(kw_only=True)
class Move:
    """Two places and what lies between them. ``plan`` is None where a finding says why not."""

    ours: Place
    theirs: Place
    source: Any
    target: Any
    url: str
    ledger: Ledger
    migration: spec.Migration
    findings: list[Finding]
    found: Plan | None

    @property
    def plan(self) -> Plan:
        assert self.found is not None, self.failures
        return self.found

    @property
    def failures(self) -> list[str]:
        return [f"{finding.where}: {finding.message}" for finding in self.findings if finding.level == "fail"]

    @property
    def ends(self) -> Ends:
        return Ends(owner="source", origin=self.source, destination=self.target)

    def install(self, *rows: Callable[[Database], Any]) -> None:
        """After the application wrote its customers, and these rows."""
        self.application(customers)
        for work in rows:
            self.application(work)
        install.install(self.migration, self.plan, self.source, self.target, self.ledger, actor="test")

    def load(self, *, lanes: int = 1, chunk_rows: int = 3) -> list[LaneReport]:
        """Load every table; returns what the lanes of the last one did."""
        cut(self.plan, self.source, self.ledger, chunk_rows)
        reports: list[LaneReport] = []
        for table in self.plan.tables:
            reports = self.load_table(table, lanes=lanes)
        self.close_load()
        return reports

    def load_table(self, table: PlanTable, *, lanes: int = 1) -> list[LaneReport]:
        """Load a table that was cut. Each lane has stores of its own."""

        def lane(number: int) -> LaneReport:
            with open_ledger(self.url, migration="move") as ledger:
                return load_lane(table, self.ours.open(), self.theirs.open(), ledger, lane=str(number))

        with ThreadPoolExecutor(lanes) as pool:
            return list(pool.map(lane, range(lanes)))

    def close_load(self) -> None:
        for table in self.plan.tables:
            close_load(self.plan, table, self.target, self.ledger)

    def follow(self) -> None:
        follow(self.plan, [self.ends], self.ledger, SystemClock(), seconds=PATIENCE, until_idle=True)

    def follow_in_pieces(self, limit: int) -> None:
        """Two workers, and batches so small that what belongs together is torn apart."""
        workers = [Ends(owner="source", origin=self.ours.open(), destination=self.theirs.open()) for _ in range(2)]
        while (applied := apply_round(self.plan, workers, self.ledger, limit)).forgotten + applied.woken:
            continue

    def reconcile(self, name: str) -> CheckResult:
        return reconcile_table(self.plan, self.plan.table(name), self.ends, self.ledger, chunk_rows=3)

    def application(self, work: Callable[[Database], Any]) -> None:
        """One transaction of the application."""

        def transaction(db: Database) -> None:
            with db.transaction():
                work(db)

        self.ours.as_user(transaction)

    def there(self, name: str) -> list[Row]:
        """The rows in the target, in the order of their keys."""
        return read(self.target, self.plan.table(name).target)

    def problems(self) -> list[str]:
        """What keeps the copies from being equal and complete, as two who know nothing of each other see it."""
        found = independent.compare(self.ours.admin, self.theirs.admin)
        for table in self.plan.tables:
            if sorted(read(self.source, table.source), key=repr) != sorted(read(self.target, table.target), key=repr):
                found.append(f"{table.name}: the cells differ")
        found += [f"{reject.table}: rejected: {reject.error}" for reject in self.ledger.open_rejects()]
        left = self.source.query("SELECT count(*) FROM fishladder_journal", {})
        return found if left == [("0",)] else [*found, f"{left} entries are left in the journal"]


def customers(db: Database) -> None:
    for number, country in CUSTOMERS:
        db.execute("INSERT INTO customer (id, country) VALUES (?, ?)", (number, country))


Mover = Callable[..., Move]


@contextmanager
def moving(
    request: pytest.FixtureRequest, folder: Path, origin: str, destination: str, *, needs_there: Sequence[str] = ()
) -> Iterator[Mover]:
    """Makes the move from one kind of store to another; once, because it takes both places.

    ``needs_there``: what the destination must not lack.
    """
    with ExitStack() as stack:
        ours = stack.enter_context(STORES[origin](request, folder / "ours"))
        theirs = stack.enter_context(STORES[destination](request, folder / "theirs"))
        theirs.needs(*needs_there)
        stack.callback(ours.close)
        stack.callback(theirs.close)
        url = f"sqlite:///{folder}/ledger.db"
        ledgers.create(url)
        ledger = stack.enter_context(open_ledger(url, migration="move"))

        def make(
            tables: Mapping[str, str],
            infos: Sequence[TableInfo] = (),
            *,
            source_sql: Callable[[Place], str] | None = None,
            target_sql: Callable[[Place], str] | None = None,
        ) -> Move:
            """``tables``: their words in the migration file. A table is made from ``infos``, or by SQL."""
            source, target = ours.open(), theirs.open()
            root = [column("id", "integer(19)", nullable=False), column("country", "string(2)")]
            ours.create_tables(source, [small.table("customer", ["id"], *root), *infos])
            for place, sql in ((ours, source_sql), (theirs, target_sql)):
                if sql is not None:
                    place.administrator().execute(sql(place))
            words = ", ".join(f"{name}: {word}" for name, word in tables.items())
            text = SPEC.format(source=ours.kind, target=theirs.kind, tables=words)
            migration = spec.loads(text, name="move.yaml", environment={})
            tables_of_source, tables_of_target = source.describe(), target.describe()
            missing = [name for name in migration.tables if name not in tables_of_target]
            imagined = install.imagined_tables(migration, tables_of_source, missing)
            findings, plan = examine(migration, tables_of_source, {**tables_of_target, **imagined})
            if plan is not None:
                install.create_target_tables(migration, source, target)
                findings, plan = examine(migration, tables_of_source, target.describe())
            return Move(ours=ours, theirs=theirs, source=source, target=target, url=url, ledger=ledger,
                        migration=migration, findings=findings, found=plan)  # fmt: skip

        yield make
