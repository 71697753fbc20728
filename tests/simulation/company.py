"""The small company that the simulation migrates: its databases, its application, and those who damage its data."""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import Engine

from fishladder import install
from fishladder.apply import Ends
from fishladder.flip import Cutover
from fishladder.ledger import Ledger, open_engine
from fishladder.serving import Replayer, Router
from tests.simulation.audit import Auditor, Violation
from tests.simulation.audit_moves import MovingAuditor
from tests.simulation.shop import PATIENCE, Book, SimulatedApplication, operations
from tests.simulation.start import CHUNK_ROWS, CUSTOMERS, Lasting, SimulatedStore, start_of
from tests.simulation.world import Clock, Seam, Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What happens in a world. ``begins``: with nothing installed, with everything still to load, or loaded.

    ``moves``: cohorts flip and roll back behind routers. ``restored``: then the ledger is restored from a backup.
    """

    begins: str
    appliers: int
    replications: int
    reconcilers: int
    orders: int
    strict: bool
    damage: bool
    uncovered: bool
    orphan: bool
    cuts: float
    partitions: float
    skew: float
    moves: bool
    restored: bool


def draw_kind(random: Random) -> Kind:
    damage = random.random() < 0.35
    kind = Kind(
        begins=random.choice(("bare", "prepared", "loaded", "loaded")),
        appliers=random.choice((1, 2)),
        replications=random.choice((1, 1, 2)),
        reconcilers=random.choice((0, 1, 2)),
        orders=random.choice((0, 0, 1, 2, 3)),
        strict=random.random() < 0.4,
        damage=damage,
        uncovered=not damage and random.random() < 0.25,
        orphan=random.random() < 0.3,
        cuts=random.choice((0.0, 0.005, 0.02)),
        partitions=random.choice((0.0, 0.0005, 0.002)),
        skew=random.choice((0.0, 0.3, 3.0)),
        moves=random.random() < 0.4,
        restored=False,
    )
    if not kind.moves:
        return kind
    # A pass of a flip is long: where calls fail too often none comes to its end.
    quiet: dict[str, Any] = {"strict": False, "damage": False, "uncovered": False, "orphan": False}
    few = {"cuts": kind.cuts / 5, "partitions": kind.partitions / 5, "reconcilers": kind.reconcilers // 2}
    return replace(kind, begins="loaded", orders=0, restored=random.random() < 0.1, **quiet, **few)


@cache
def _engine(file: Path) -> Engine:
    """For all worlds of this process, one after the other, so that no statement is compiled twice."""
    return open_engine(f"sqlite:///{file}")


class Company:
    """The three databases of one world, and everybody's way to them."""

    def __init__(self, seam: Seam, folder: Path, kind: Kind) -> None:
        self.seam, self.folder, self.kind = seam, folder, kind
        self.clock = Clock(seam)
        self._idle: dict[tuple[str, str], list[Lasting]] = defaultdict(list)
        self._opened: list[Lasting] = []
        start = start_of(kind.begins, strict=kind.strict, orphan=kind.orphan)
        shutil.copytree(start.folder, folder)
        self.spec, self.plan = start.spec, start.plan
        self.ledger = Ledger(_engine(folder / "ledger.db"), migration="simulated", clock=self.clock.now)
        self.dice = Dice(seam.random, 3 if kind.begins == "loaded" else CUSTOMERS + 5)
        self.book = Book()
        self.auditor = MovingAuditor(folder, self.book) if kind.moves else Auditor(folder, strict=kind.strict)
        self.applications_left = 0
        self.finishing = False
        self.ended = False
        self.auditor.prepared = kind.begins != "bare"
        self.auditor.look()

    # Ways to the databases: one of its own for every actor, as processes have

    def store(self, name: str, chunk_rows: int = CHUNK_ROWS) -> Any:
        store = SimulatedStore(lambda: self._connect(name, "copier"), self._idle[name, "copier"], self.clock)
        store.chunk_rows = chunk_rows
        return Watched(store, self.seam, name, self._after)

    def _connect(self, name: str, account: str) -> Lasting:
        file = self.folder / f"{name}.db"
        found = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False, factory=Lasting)
        found.idle = self._idle[name, account]
        self._opened.append(found)
        return found

    def ends(self) -> Ends:
        return Ends(owner="source", origin=self.store("source"), destination=self.store("target"))

    def watched_ledger(self) -> Any:
        return Watched(self.ledger, self.seam, "ledger", self._after, ledger=True)

    def _after(self, label: str, arguments: tuple[Any, ...], result: Any) -> None:
        actor = self.seam.actor
        if actor is not None:
            self.auditor.after(actor.name, label, arguments, result)

    @property
    def moving(self) -> MovingAuditor:
        assert isinstance(self.auditor, MovingAuditor)
        return self.auditor

    def _applications(self) -> dict[str, Any]:
        """The application's ways to both stores, of one process."""
        return {name: Watched(self._served(name), self.seam, name, self._after) for name in ("source", "target")}

    def _served(self, name: str) -> SimulatedApplication:
        idle = self._idle[name, "router"]
        return SimulatedApplication(
            lambda: idle.pop() if idle else self._connect(name, "router"), lambda: f"{self.clock.now():%F %T.%f}"[:23]
        )

    def router(self) -> Router:
        known = operations(self.seam, self.book)
        return Router(self.watched_ledger(), known, **self._applications(), patience=PATIENCE)

    def replayer(self) -> Replayer:
        return Replayer(self.watched_ledger(), operations(self.seam, self.book), self._applications())

    def cutover(self) -> Cutover:
        return Cutover(
            spec=self.spec,
            plan=self.plan,
            stores={"source": self.store("source", 100), "target": self.store("target", 100)},
            ledger=self.watched_ledger(),
            clock=self.clock,
            replay=self.replayer().replay,
            say=self.seam.say,
        )

    def close(self) -> None:
        for connection in self._opened:
            connection.end()
        self.ledger.close()
        self.auditor.close()

    # The application

    @contextmanager
    def transaction(self, name: str = "source") -> Iterator[sqlite3.Connection]:
        """One of the application's own, that waits for its turn and is committed at the end of the block."""
        idle = self._idle[name, "application"]
        connection = idle.pop() if idle else self._connect_application(name)
        try:
            while True:
                self.seam.point("application begins")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:
                    self.seam.sleep(0.005)
            yield connection
            self.seam.point("application commits")
            connection.execute("COMMIT")
        finally:
            connection.close()
        self.auditor.look()

    def _connect_application(self, name: str) -> Lasting:
        connection = self._connect(name, "application")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")
        connection.create_function("strftime", -1, lambda *_: f"{self.clock.now():%F %T.%f}"[:23])
        return connection

    def application(self, operations: int, kinds: tuple[Operation, ...] | None = None) -> Callable[[], None]:
        random = self.seam.random

        def work() -> None:
            for _ in range(operations):
                operation = random.choice(kinds or OPERATIONS)
                self.seam.sleep(random.choice((0.0, 0.0, 0.02, 0.1, 0.3)))
                self.attempt("source", operation, self.dice)
            self.applications_left -= 1

        self.applications_left += 1
        return work

    def attempt(self, store: str, operation: Operation, dice: Dice) -> None:
        """An operation, unless it is refused by a fence, a key or a foreign key: the customer is told so."""
        try:
            with self.transaction(store) as connection:
                for statement, parameters in operation(dice):
                    self.seam.point(f"{statement.split(' (')[0][:60]} {parameters}")
                    connection.execute(statement, parameters)
        except sqlite3.IntegrityError as error:
            self.seam.say(f"is refused by the {store}: {error}")

    def stray(self) -> None:
        """A misconfigured service writes into the target as the application: it must be refused."""
        statements = (
            "INSERT INTO price VALUES (77, 1, NULL)",
            "UPDATE item SET amount = amount + 1 WHERE id = 910",
            "DELETE FROM customer WHERE id = 92",
        )
        for _ in range(4):
            self.seam.sleep(self.seam.random.choice((0.2, 1.0)))
            statement = self.seam.random.choice(statements)
            table = next(name for name in ("price", "item", "customer") if f" {name} " in statement)
            with closing(sqlite3.connect(self.folder / "target.db", timeout=0, isolation_level=None)) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    written = self.auditor.closed(table) and connection.execute(statement).rowcount
                except (sqlite3.IntegrityError, sqlite3.OperationalError):
                    continue  # refused, or somebody else writes
                if written:
                    raise Violation(f"the target let the application write {table}, whose load is closed")

    def vandal(self) -> None:
        """Something changes rows in the target behind everybody's back."""
        random = self.seam.random
        for _ in range(2):
            self.seam.sleep(random.choice((0.1, 0.4, 1.5)))
            if not self.auditor.prepared:
                continue
            table, key, statement = random.choice(DAMAGE)
            with closing(sqlite3.connect(self.folder / "target.db", timeout=0, isolation_level=None)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("INSERT INTO fishladder_copying VALUES (1)")
                    connection.execute(statement)
                    connection.execute("DELETE FROM fishladder_copying")
                    if self.auditor.closed(table):
                        connection.execute("COMMIT")
                        self.auditor.damaged.add((table, key))
                        self.seam.say(statement)
                except (sqlite3.IntegrityError, sqlite3.OperationalError):
                    continue

    def uncover(self) -> None:
        """Somebody drops a trigger of the source, rows change unrecorded, and prepare is run again."""
        random = self.seam.random
        self.seam.sleep(random.choice((0.1, 0.5, 2.0)))
        while not self.auditor.prepared:
            self.seam.sleep(0.2)
        trigger, table, statement = random.choice(UNRECORDED)
        for _ in range(random.choice((0, 40))):
            if self.auditor.counting(table):  # a gap after a clean pass is the one that must void it
                break
            self.seam.sleep(0.5)
        with closing(sqlite3.connect(self.folder / "source.db", timeout=0, isolation_level=None)) as connection:
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:
                    self.seam.sleep(0.01)
            connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute("COMMIT")
            self.seam.say(f"DROP TRIGGER {trigger}")
            self.auditor.dropped = trigger, table
            self.seam.sleep(random.choice((0.2, 1.0, 3.0)))
            while True:
                try:
                    connection.execute(statement)
                    break
                except sqlite3.OperationalError:
                    self.seam.sleep(0.01)
            self.seam.say(statement)
        self.seam.sleep(random.choice((0.2, 1.0, 3.0)))
        install.install(
            self.spec, self.plan, self.store("source"), self.store("target"), self.watched_ledger(), actor="operator"
        )
        self.auditor.covered_again()


DAMAGE: tuple[tuple[str, str, str], ...] = (
    ("price", "2:91", "UPDATE price SET cents = cents + 1 WHERE id = 91"),
    ("item", "3:910", "DELETE FROM item WHERE id = 910"),
    ("item", "3:919", "INSERT INTO item VALUES (919, 91, 1)"),
    ("line", "3:9211:1", "UPDATE line SET amount = -1 WHERE item_id = 921 AND no = 1"),
    ("customer", "2:92", "UPDATE customer SET email = 'damaged' WHERE id = 92"),
    ("fishladder_home", "4:2:91", "DELETE FROM fishladder_home WHERE entity = '2:91'"),
)
UNRECORDED: tuple[tuple[str, str, str], ...] = (
    ("fishladder_price_update", "price", "UPDATE price SET cents = cents + 1 WHERE id = 91"),
    ("fishladder_item_delete", "item", "DELETE FROM item WHERE id = 911"),
    ("fishladder_line_insert", "line", "INSERT INTO line VALUES (910, 9, 1)"),
)


# Operations of the application: each yields the statements of one transaction ------------------------------

Statements = Iterator[tuple[str, list[Any]]]
Operation = Callable[["Dice"], Statements]


class Dice:
    """What the application draws: customers ``first`` to ``customers``, their items, and anything else."""

    def __init__(self, random: Random, customers: int, *, first: int = 1) -> None:
        self.choice, self.randint = random.choice, random.randint
        self.first, self.customers = first, customers

    def customer(self) -> int:
        return self.randint(self.first, self.customers)

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


def shift_emails(dice: Dice) -> Statements:
    """Each takes the next one's."""
    one, two, three = dice.customer(), dice.customer(), dice.customer()
    yield "UPDATE customer SET email = '-' || email WHERE id IN (?, ?, ?)", [one, two, three]
    taken = "UPDATE customer SET email = (SELECT substr(email, 2) FROM customer WHERE id = ?) WHERE id = ?"
    yield taken, [two, one]
    yield taken, [three, two]
    yield "UPDATE customer SET email = ? WHERE id = ?", [f"n{dice.randint(1, 9)}", three]


def renumber(dice: Dice) -> Statements:
    item = dice.item()
    yield "UPDATE line SET no = no + 100 WHERE item_id = ? AND no < 100", [item]


def replace_rows(dice: Dice) -> Statements:
    number = dice.customer()
    yield "INSERT OR REPLACE INTO price VALUES (?, ?, NULL)", [dice.randint(1, 4), dice.randint(1, 999)]
    yield "UPDATE OR REPLACE customer SET email = ? WHERE id = ?", [f"c{dice.customer()}", number]


def reprice_everything(dice: Dice) -> Statements:
    """A batch job: one statement, many rows."""
    yield "UPDATE item SET amount = amount + 1 WHERE id < 900", []
    yield "UPDATE price SET cents = cents + 1 WHERE id < 90", []


def drop_lines(dice: Dice) -> Statements:
    yield "DELETE FROM line WHERE item_id = ?", [dice.item()]


OPERATIONS: tuple[Operation, ...] = (
    sign_up, sign_up, charge, charge, charge, leave, move_country, transfer, transfer, swap_emails,
    shift_emails, renumber, replace_rows, drop_lines,
)  # fmt: skip
