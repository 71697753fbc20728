"""The small company that the simulation migrates, and everybody who touches its databases."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from fishladder import install, load, reconcile
from fishladder.apply import Ends, apply_batch, read_dirty
from fishladder.errors import FenceError, InputError
from fishladder.fence import set_fence
from fishladder.ledger import Ledger, open_ledger, upgrade
from fishladder.plan import Plan, resolve
from fishladder.spec import Migration, loads
from fishladder.stores.sqlite import SqliteStore
from tests.simulation.world import Clock, Seam, Watched

SPEC = """
migration: simulated
strategy: replicate
source: {kind: sqlite, connection: source}
target: {kind: sqlite, connection: target}
application: {source: source_app, target: target_app}
cohort: {label: country, root: customer, column: country, waves: [[NZ], ["*"]]}
tables:
  price: shared
  customer: root
  item: {entity: customer_id}
  line: {via: item}
"""
SCHEMA = """
CREATE TABLE price (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
CREATE TABLE customer (id INTEGER PRIMARY KEY, country TEXT, email TEXT UNIQUE, balance INTEGER NOT NULL);
CREATE TABLE item (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer (id) ON DELETE CASCADE,
    amount INTEGER NOT NULL);
CREATE TABLE line (item_id INTEGER NOT NULL REFERENCES item (id) ON DELETE CASCADE, no INTEGER NOT NULL,
    amount INTEGER NOT NULL, PRIMARY KEY (item_id, no));
"""
TABLES = ("price", "customer", "item", "line", "fishladder_home")
CUSTOMERS = 8
CHUNK_ROWS = 4
BATCH = 5


class Violation(AssertionError):
    """The world is not as it must be."""


class SimulatedStore(SqliteStore):
    lock_wait = 0.0  # nobody really waits: the scheduler lets somebody else go on
    chunk_rows = CHUNK_ROWS

    def connection(self) -> sqlite3.Connection:
        fresh = self._connection is None
        connection = super().connection()
        if fresh:
            connection.execute("PRAGMA synchronous = OFF")  # the machine itself never fails here
        return connection


def template(folder: Path) -> None:
    """Make the three databases once; every world begins with a copy of them."""
    with closing(sqlite3.connect(folder / "source.db")) as source:
        source.executescript(SCHEMA)
        for number in range(1, CUSTOMERS + 1):
            country = ("NZ", "AU", "IE", None)[number % 4]
            source.execute("INSERT INTO customer VALUES (?, ?, ?, 0)", [number, country, f"c{number}"])
            for item in range(2):
                source.execute("INSERT INTO item VALUES (?, ?, ?)", [number * 10 + item, number, item])
                source.execute("INSERT INTO line VALUES (?, 1, 5)", [number * 10 + item])
        source.executemany("INSERT INTO price VALUES (?, 100)", [(1,), (2,), (3,)])
        source.commit()
    upgrade(f"sqlite:///{folder / 'ledger.db'}")


class Company:
    """The three databases of one world and its actors.

    ``hot``: everything is loaded already, and all that happens happens to two customers.
    """

    def __init__(self, seam: Seam, folder: Path, begin_with: Path, *, hot: bool) -> None:
        for name in ("source.db", "ledger.db"):
            shutil.copy(begin_with / name, folder / name)
        self.seam, self.folder, self.clock = seam, folder, Clock(seam)
        self.spec: Migration = loads(SPEC, name="simulated.yaml", environment={})
        self.ledger: Ledger = open_ledger(
            f"sqlite:///{folder / 'ledger.db'}", migration="simulated", clock=self.clock.now
        )
        self.stores: list[SqliteStore] = []
        source, target = self.store("source"), self.store("target")
        install.create_target_tables(self.spec, source, target)
        self.plan: Plan = resolve(self.spec, source.describe(), target.describe())
        install.install(self.spec, self.plan, source, target, self.ledger, actor="simulation")
        load.cut(self.plan, source, self.ledger, CHUNK_ROWS)
        self.dice = Dice(seam.random, 2 if hot else CUSTOMERS + 2)
        if hot:
            for table in self.plan.tables:
                load.load_lane(table, source, target, self.ledger, lane="1")
                load.close_load(self.plan, table, target, self.ledger)
        self.closed: dict[str, list[Any]] = {}
        self.applications_left = 0
        self.ended = False

    def store(self, name: str) -> Any:
        """A watched store with connections of its own, as every process has."""
        path = str(self.folder / f"{name}.db")
        store = SimulatedStore(lambda: sqlite3.connect(path, timeout=0, check_same_thread=False))
        self.stores.append(store)
        return Watched(store, self.seam, name)

    def watched_ledger(self) -> Any:
        return Watched(self.ledger, self.seam, "ledger")

    def ends(self) -> Ends:
        return Ends(owner="source", origin=self.store("source"), destination=self.store("target"))

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.ledger.close()

    # The application

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / "source.db"
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = OFF")
            while True:
                self.seam.point("application begins")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:
                    self.seam.sleep(0.003)
            yield connection
            self.seam.point("application commits")
            connection.execute("COMMIT")
        finally:
            connection.close()

    def application(self, operations: int, kinds: tuple[Operation, ...] | None = None) -> Callable[[], None]:
        random = self.seam.random

        def work() -> None:
            for _ in range(operations):
                operation = random.choice(kinds or OPERATIONS)
                self.seam.sleep(random.choice((0.0, 0.02, 0.2)))
                try:
                    with self.transaction() as connection:
                        for statement, parameters in operation(self.dice):
                            self.seam.point(statement.split(" (")[0][:60])
                            connection.execute(statement, parameters)
                except sqlite3.IntegrityError:
                    continue  # refused by a fence, a key or a foreign key: the customer is told so
            self.applications_left -= 1

        self.applications_left += 1
        return work

    # Fishladder's actors; each may die anywhere and begin again, as a task does

    def again(self, once: Callable[[], bool]) -> Callable[[], None]:
        """Repeat until it says that all is done; a killed actor is started again by the world."""

        def work() -> None:
            while not once():
                self.seam.sleep(0.05)

        return work

    def lane(self, name: str) -> Callable[[], bool]:
        source, target, ledger = self.store("source"), self.store("target"), self.watched_ledger()

        def once() -> bool:
            try:
                for table in self.plan.tables:
                    load.load_lane(table, source, target, ledger, lane=name)
            except FenceError:
                return False  # the target is closed for a moment: the task is repeated
            done = True
            for table in self.plan.tables:
                try:
                    load.close_load(self.plan, table, target, ledger)
                except InputError:
                    done = False
            return done

        return once

    def applier(self, every_shard: bool) -> Callable[[], bool]:
        ends, ledger = self.ends(), self.watched_ledger()

        def once() -> bool:
            dirty = read_dirty(self.plan, ends, ledger, BATCH)
            if not every_shard:
                dirty = dirty[self.seam.random.randrange(2) :: 2] or dirty  # two appliers part the work as they like
            applied = apply_batch(self.plan, ends, ledger, dirty, every_shard=every_shard) if dirty else None
            if applied and applied.wide:
                apply_batch(self.plan, ends, ledger, applied.wide, every_shard=True)
            return self.ended and self.quiet()

        return once

    def reconciler(self) -> Callable[[], bool]:
        ends, ledger = self.ends(), self.watched_ledger()

        def once() -> bool:
            table = self.seam.random.choice(self.plan.tables)
            states = ends.destination.load_states()
            if not any(state.open for state in states.values()):
                result = reconcile.reconcile_table(self.plan, table, ends, ledger, chunk_rows=CHUNK_ROWS)
                if result.missing or result.extra or result.differs:
                    raise Violation(f"{table.name}: a pass found what nobody had marked dirty: {result}")
            self.seam.sleep(0.2)
            return self.ended

        return once

    def fencer(self) -> Callable[[], bool]:
        """Closes a store to everybody for a while, and looks whether anybody writes."""
        clock, random = self.clock, self.seam.random
        stores = {name: self.store(name) for name in ("source", "target")}

        def once() -> bool:
            name = random.choice(("source", "target", "target", "target"))
            writer = "application" if name == "source" else "copier"
            epoch = stores[name].fences()["NZ"].epoch
            if set_fence(stores[name], clock, "NZ", "nobody", epoch + 1, deadline=60).writer == "nobody":
                before = self.rows_of(name, "NZ")
                self.seam.sleep(random.choice((0.01, 0.02, 0.1)))
                after = self.rows_of(name, "NZ")
                if before != after:
                    raise Violation(f"the {name} was closed for NZ and changed: {set(before) ^ set(after)}")
            set_fence(stores[name], clock, "NZ", writer, epoch + 2, deadline=60)
            self.seam.sleep(random.choice((0.005, 0.02, 0.1)))
            return self.ended and self.quiet()

        return once

    # What must hold

    def rows_of(self, store: str, cohort: str) -> list[Any]:
        """The rows of a cohort, by home, in plain SQL."""
        home = "SELECT h.root_key FROM fishladder_home h WHERE h.cohort = ?"
        with closing(sqlite3.connect(self.folder / f"{store}.db", timeout=0)) as connection:
            found = connection.execute(
                f"SELECT 'c', id, country, email, balance FROM customer WHERE id IN ({home})", [cohort]
            )
            rows = list(found)
            rows += connection.execute(f"SELECT 'i', * FROM item WHERE customer_id IN ({home})", [cohort])
            return sorted(map(repr, rows))

    def quiet(self) -> bool:
        """Nothing is dirty and every load is closed."""
        with closing(sqlite3.connect(self.folder / "source.db", timeout=0)) as connection:
            entries = connection.execute("SELECT count(*) FROM fishladder_journal").fetchone()[0]
        with closing(sqlite3.connect(self.folder / "target.db", timeout=0)) as connection:
            loading = connection.execute("SELECT count(*) FROM fishladder_load WHERE is_open").fetchone()[0]
        return not entries and not loading and not self.ledger.count_dirty()

    def check(self) -> None:
        """Nothing is dirty: so both sides are equal, by hashes that the core has no part in, and no reject is open."""
        sides = [self._digests("source"), self._digests("target")]
        wrong = [table for table in TABLES if sides[0][table] != sides[1][table]]
        if wrong:
            raise Violation(f"nothing is dirty and the copies differ: {wrong}")
        rejects = self.ledger.open_rejects()
        if rejects:
            raise Violation(f"open rejects: {[(r.table, r.key, r.error) for r in rejects]}")

    def _digests(self, store: str) -> dict[str, str]:
        with closing(sqlite3.connect(self.folder / f"{store}.db", timeout=0)) as connection:
            return {
                table: hashlib.sha256(
                    repr(sorted(map(repr, connection.execute(f"SELECT * FROM {table}")))).encode()
                ).hexdigest()
                for table in TABLES
            }


# Operations of the application: each yields the statements of one transaction ------------------------------

Statements = Iterator[tuple[str, list[Any]]]
Operation = Callable[["Dice"], Statements]


class Dice:
    """What the application draws: customers 1 to ``customers``, their items, and anything else."""

    def __init__(self, random: Random, customers: int) -> None:
        self.choice, self.randint = random.choice, random.randint
        self.customers = customers

    def customer(self) -> int:
        return self.randint(1, self.customers)

    def item(self) -> int:
        return self.customer() * 10 + self.randint(0, 2)


def sign_up(dice: Dice) -> Statements:
    number = dice.customer()
    email = dice.choice([f"c{number}", f"c{dice.customer()}"])
    yield "INSERT INTO customer VALUES (?, ?, ?, 0)", [number, dice.choice(("NZ", "AU", "ZZ", None)), email]
    yield "INSERT INTO item VALUES (?, ?, 0)", [number * 10, number]


def charge(dice: Dice) -> Statements:
    number = dice.item()
    yield "UPDATE customer SET balance = balance + 1 WHERE id = ?", [number // 10]
    yield "UPDATE item SET amount = amount + 1 WHERE id = ?", [number]
    yield "INSERT INTO line SELECT ?, coalesce(max(no), 0) + 1, 7 FROM line WHERE item_id = ?", [number, number]


def leave(dice: Dice) -> Statements:
    yield "DELETE FROM customer WHERE id = ?", [dice.customer()]


def move_country(dice: Dice) -> Statements:
    yield "UPDATE customer SET country = ? WHERE id = ?", [dice.choice(("NZ", "AU", "IE")), dice.customer()]


def transfer(dice: Dice) -> Statements:
    yield "UPDATE item SET customer_id = ? WHERE id = ?", [dice.customer(), dice.item()]


def swap_emails(dice: Dice) -> Statements:
    one, other = dice.customer(), dice.customer()
    yield "UPDATE customer SET email = 'swapping' WHERE id = ?", [one]
    yield "UPDATE customer SET email = ? WHERE id = ?", [f"c{one}", other]
    yield "UPDATE customer SET email = ? WHERE id = ?", [f"c{other}", one]


def renumber(dice: Dice) -> Statements:
    item = dice.item()
    yield "UPDATE line SET no = no + 100 WHERE item_id = ? AND no < 100", [item]


def replace(dice: Dice) -> Statements:
    number = dice.customer()
    yield "INSERT OR REPLACE INTO price VALUES (?, ?)", [dice.randint(1, 4), dice.randint(1, 999)]
    yield "UPDATE OR REPLACE customer SET email = ? WHERE id = ?", [f"c{dice.customer()}", number]


def reprice_everything(dice: Dice) -> Statements:
    """A batch job: one statement, many rows."""
    yield "UPDATE item SET amount = amount + 1", []
    yield "UPDATE price SET cents = cents + 1", []


def drop_lines(dice: Dice) -> Statements:
    yield "DELETE FROM line WHERE item_id = ?", [dice.item()]


OPERATIONS: tuple[Operation, ...] = (
    sign_up, sign_up, charge, charge, charge, leave, move_country, transfer, swap_emails, renumber, replace,
    drop_lines,
)  # fmt: skip
