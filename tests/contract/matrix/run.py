"""One run of the matrix: from one store to another, every type into every type, judged by what plain drivers read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from fishladder import install, spec
from fishladder.apply import Ends, follow
from fishladder.cells import key_cells, key_text
from fishladder.clock import SystemClock
from fishladder.ledger import Ledger, open_ledger
from fishladder.load import close_load, cut, load_lane
from fishladder.plan import Plan, examine
from fishladder.reconcile import reconcile_table
from fishladder.stores.base import TableInfo
from tests import ledgers
from tests.contract import tables as small
from tests.contract.matrix.natives import DATABASES, EDGES, Database, DriverError, Native, normal
from tests.contract.stores import PATIENCE, Place

TABLE_COLUMNS = 30
CHUNK_ROWS = 60
PAIR_IDS = 1_000
"""Each pair of types has so many row ids."""
APPLIED_REJECTS = 4
"""Of the rows that the load refused, the applier is given one in so many: each costs it a dozen statements."""
FAR = 9
"""Of the values that are too large for the target, the smallest and one in so many: rejects cost more than the rest."""
SPEC = """
migration: matrix
strategy: replicate
source: {{kind: {source}, connection: ours}}
target: {{kind: {target}, connection: theirs}}
application: {{source: ours_app, target: theirs_app}}
cohort: {{label: country, root: customer, column: country, waves: [[NZ], ["*"]]}}
tables: {{customer: root, {tables}}}
"""


@dataclass(kw_only=True)
class Pair:
    """A type into a type: refused by preflight for a reason, or what became of each value."""

    source: Native
    target: Native
    column: str
    number: int
    refused: str | None = None
    table: str = ""
    exact: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True)
class Outcome:
    """What a run found. ``silent``: values that were changed without anybody being told, in words.

    ``values``: how many each source type took.
    """

    pairs: list[Pair]
    silent: list[str]
    values: dict[Native, int]


def run_matrix(ours: Place, theirs: Place, origin: str, destination: str, folder: Path) -> Outcome:
    """Load and then apply every value. ``origin`` and ``destination`` name the kinds as ``DATABASES`` does."""
    with closing(DATABASES[origin](ours.admin)) as here, closing(DATABASES[destination](theirs.admin)) as there:
        return _Run(ours, theirs, here, there, folder).run()


class _Run:
    def __init__(self, ours: Place, theirs: Place, here: Database, there: Database, folder: Path) -> None:
        self.ours, self.theirs, self.here, self.there = ours, theirs, here, there
        self.source, self.target = ours.open(), theirs.open()
        ledgers.create(url := f"sqlite:///{folder}/ledger.db")
        self.ledger: Ledger = open_ledger(url, migration="matrix")
        self.silent: list[str] = []
        self.blank = "oracle" in (ours.kind, theirs.kind)

    def run(self) -> Outcome:
        pairs = self._pairs()
        fitting = [pair for pair in pairs if pair.refused is None]
        values = self._stage()
        tables = self._tables(fitting)
        self._fill(fitting, values)
        plan = self._plan(list(tables))
        ends = Ends(owner="source", origin=self.source, destination=self.target)
        cut(plan, self.source, self.ledger, CHUNK_ROWS)
        for table in plan.tables:
            load_lane(table, self.source, self.target, self.ledger, lane="1")
            close_load(plan, table, self.target, self.ledger)
        self._judge("load", fitting, values, count=True)
        for table in tables:
            again = " AND ".join(["1 = 1", *(f"id <> {row}" for row in self._rejected(table) if row % APPLIED_REJECTS)])
            self._as_application(f"UPDATE {table} SET n = n + 1 WHERE {again}")
        follow(plan, [ends], self.ledger, SystemClock(), seconds=PATIENCE, until_idle=True)
        self._judge("apply", fitting, values, count=False)
        for name in tables:
            found = reconcile_table(plan, plan.table(name), ends, self.ledger)
            if found.differs or found.extra or found.missing or found.deferred:
                self.silent.append(f"{name}: a pass finds {found}")
        return Outcome(pairs=pairs, silent=self.silent, values={native: len(rows) for native, rows in values.items()})

    # Which pairs there are, and what preflight says of each

    def _pairs(self) -> list[Pair]:
        """Every type in a column of its own, as each store describes it; then all pairs as one table, examined."""
        for database in (self.here, self.there):
            columns = ", ".join(f"c{number} {native.declared}" for number, native in enumerate(database.types))
            database.run(f"CREATE TABLE every (id {database.key}, {columns})")
            database.commit()
        ours, theirs = self.source.describe()["every"], self.target.describe()["every"]
        pairs = [
            Pair(source=source, target=target, column=f"c{row}_{at}", number=row * len(self.there.types) + at)
            for row, source in enumerate(self.here.types)
            for at, target in enumerate(self.there.types)
        ]
        imagined = {
            side: TableInfo(
                name="every",
                key=("id",),
                columns=(
                    info.column("id"),
                    *(replace(info.column(f"c{pair.column[1:].split('_')[at]}"), name=pair.column) for pair in pairs),
                ),
            )
            for side, info, at in (("source", ours, 0), ("target", theirs, 1))
        }
        findings, _ = examine(self._spec(["every"]), *({"every": imagined[s], **_customer()} for s in imagined))
        failed = {finding.where: finding.message for finding in findings if finding.level == "fail"}
        for pair in pairs:
            pair.refused = failed.pop(f"every.{pair.column}", None)
        assert not failed, failed
        return pairs

    def _spec(self, tables: Sequence[str]) -> spec.Migration:
        words = ", ".join(f"{table}: shared" for table in tables)
        text = SPEC.format(source=self.ours.kind, target=self.theirs.kind, tables=words)
        return spec.loads(text, name="matrix.yaml", environment={})

    # Values

    def _stage(self) -> dict[Native, dict[int, object]]:
        """Write each type's edges where the source takes them; returns what it has then, by row id."""
        staged: dict[Native, list[int]] = {}
        for number, native in enumerate(self.here.types):
            for at, value in enumerate((None, *EDGES[native.meaning], *native.values)):
                row = number * 100 + at
                try:
                    self.here.run(f"INSERT INTO every (id, c{number}) VALUES (?, {native.write})", [row, value])
                except DriverError:
                    continue  # the source has no such value
                staged.setdefault(native, []).append(row)
            self.here.commit()
        return {
            native: self._read(self.here, native, "every", f"c{self.here.types.index(native)}", min(rows), max(rows))
            for native, rows in staged.items()
        }

    def _read(
        self, database: Database, native: Native, table: str, column: str, first: int, last: int
    ) -> dict[int, object]:
        """By row id, what the column holds, read natively."""
        expression = native.read.format(column)
        sql = f"SELECT id, {expression} FROM {table} WHERE id BETWEEN {first} AND {last}"
        return {int(row): database.value(native, value) for row, value in database.run(sql)}

    def _tables(self, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
        """The pairs in tables that both stores can have. Each row will have a value in one column only."""
        tables: dict[str, list[Pair]] = {}
        for at in range(0, len(pairs), TABLE_COLUMNS):
            tables[f"m{at // TABLE_COLUMNS}"] = list(pairs[at : at + TABLE_COLUMNS])
        for table, some in tables.items():
            for pair in some:
                pair.table = table
            for database, which in ((self.here, "source"), (self.there, "target")):
                columns = ", ".join(f"{pair.column} {getattr(pair, which).declared}" for pair in some)
                columns = columns.replace("TIMESTAMP(6)", "TIMESTAMP(6) NULL") if database.key[0] == "B" else columns
                database.run(f"CREATE TABLE {table} (id {database.key}, n INTEGER, {columns})")
                database.commit()
        for store in (self.source, self.target):
            customer = [small.column("id", "integer(19)", nullable=False), small.column("country", "string(2)")]
            store.create_table(small.table("customer", ["id"], *customer))
        return tables

    def _fill(self, pairs: Iterable[Pair], values: dict[Native, dict[int, object]]) -> None:
        for pair in pairs:
            at, rows = self.here.types.index(pair.source), ", ".join(map(str, _worth_trying(pair, values)))
            self.here.run(
                f"INSERT INTO {pair.table} (id, n, {pair.column}) SELECT id + {pair.number * PAIR_IDS - at * 100}, 0,"
                f" c{at} FROM every WHERE id IN ({rows})"
            )
        self.here.commit()

    # The real way

    def _plan(self, tables: Sequence[str]) -> Plan:
        migration = self._spec(tables)
        findings, plan = examine(migration, self.source.describe(), self.target.describe())
        assert plan is not None, [finding for finding in findings if finding.level == "fail"]
        install.install(migration, plan, self.source, self.target, self.ledger, actor="test")
        return plan

    def _rejected(self, table: str) -> list[int]:
        return [int(key_cells(reject.key)[0]) for reject in self.ledger.open_rejects(table, limit=100_000)]

    def _as_application(self, sql: str) -> None:
        self.ours.as_user(lambda db: db.execute(sql))

    # What became of it

    def _judge(self, way: str, pairs: Iterable[Pair], values: dict[Native, dict[int, object]], *, count: bool) -> None:
        rejects = {(reject.table, reject.key): reject for reject in self.ledger.open_rejects(limit=100_000)}
        for pair in pairs:
            at = self.here.types.index(pair.source)
            first = pair.number * PAIR_IDS
            found = self._read(self.there, pair.target, pair.table, pair.column, first, first + PAIR_IDS - 1)
            for staged, value in _worth_trying(pair, values).items():
                row = first + staged - at * 100
                reject = rejects.get((pair.table, key_text([str(row).encode()])))
                where = f"{way}: {pair.source.declared} → {pair.target.declared}"
                if row in found:
                    if not self._same(value, found[row], pair):
                        self.silent.append(f"{where}: {value!r:.80} became {found[row]!r:.80}")
                    elif reject is not None:
                        self.silent.append(f"{where}: {value!r:.80} is there and rejected: {reject.error}")
                    elif count:
                        pair.exact += 1
                elif reject is None:
                    self.silent.append(f"{where}: {value!r:.80} is missing")
                elif reject.column != pair.column:
                    self.silent.append(f"{where}: {value!r:.80}: the reject names {reject.column}: {reject.error}")
                elif count:
                    pair.reasons[_reason(reject.error)] += 1

    def _same(self, value: Any, copy: Any, pair: Pair) -> bool:
        meanings = (pair.source.meaning, pair.target.meaning)
        ours, theirs = normal(value, meanings[0]), normal(copy, meanings[1])
        for special in ("uuid", "json"):
            if special in meanings and value is not None and copy is not None:
                value = ours[1] if ours and meanings[0] == "padded" else value
                copy = theirs[1] if theirs and meanings[1] == "padded" else copy
                ours, theirs = normal(value, special), normal(copy, special)
        if self.blank:
            blank = (("text", ""), ("bytes", ""))
            ours, theirs = (None if one in blank else one for one in (ours, theirs))
        return ours == theirs


def _worth_trying(pair: Pair, values: dict[Native, dict[int, object]]) -> dict[int, object]:
    """Of texts that are to be JSON or a UUID, those that are, and a few others; a few of those that are too large."""
    staged, meaning = values[pair.source], pair.target.meaning
    if pair.target.without_nul:
        staged = {row: value for row, value in staged.items() if not isinstance(value, str) or "\0" not in value}
    sizes = {row: _size(value, pair.source) for row, value in staged.items()}
    least = min((size for size in sizes.values() if size > pair.target.most), default=0)
    most = max(pair.target.most, least)
    staged = {row: value for row, value in staged.items() if row % FAR == 0 or sizes[row] <= most}
    if meaning not in ("json", "uuid") or pair.source.meaning == meaning:
        return staged
    return {
        row: value for row, value in staged.items() if row % 9 == 0 or normal(value, meaning) != ("odd", str(value))
    }


def _size(value: Any, native: Native) -> Decimal | int:
    if native.meaning == "number" and (found := normal(value, "number")) is not None:
        return abs(Decimal(found[1])) if found[0] == "number" else 0
    return len(value) if isinstance(value, (str, bytes)) and native.meaning in ("text", "padded", "bytes") else 0


def _customer() -> dict[str, TableInfo]:
    columns = [small.column("id", "integer(19)", nullable=False), small.column("country", "string(2)")]
    return {"customer": small.table("customer", ["id"], *columns)}


def _reason(error: str) -> str:
    found = re.match(r"(?:a row is rejected: )?the value is (.*)", error)
    return found[1] if found else "the server refuses it"


def lines(outcome: Outcome) -> Iterator[str]:
    """The pairs of one run as lines of a table: per source type, what is exact, what is checked, what is refused."""
    by_source: dict[Native, list[Pair]] = {}
    for pair in outcome.pairs:
        by_source.setdefault(pair.source, []).append(pair)
    for source, some in by_source.items():
        exact = [f"`{p.target.declared}`" for p in some if p.refused is None and not p.reasons]
        checked = [f"`{p.target.declared}`" for p in some if p.refused is None and p.reasons]
        reasons = sorted({reason for p in some for reason in p.reasons})
        if not exact and not checked:
            carried = all("is no type that can be carried" in str(p.refused) for p in some)
            reasons = ["no type that can be carried" if carried else "refused as a whole"]
        yield (
            f"| `{source.declared}` | {outcome.values.get(source, 0)} | {', '.join(exact) or '–'} |"
            f" {', '.join(checked) or '–'} | {'; '.join(reasons)} |"
        )
