"""Fishladder's own processes. Each may die anywhere and begin again, as a task does; most of them run twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fishladder import apply, install, load, operate, reconcile
from fishladder.errors import (
    AmbiguousError,
    CoverageError,
    FenceError,
    FishladderError,
    InputError,
    StaleError,
    TransientError,
)
from fishladder.fence import set_fence
from fishladder.pace import Pace
from tests.simulation.audit import Violation
from tests.simulation.company import Company
from tests.simulation.start import CHUNK_ROWS

BATCH = 5
FAILS_THE_TASK = (TransientError, AmbiguousError, StaleError, FenceError, InputError)
"""What may end a task that is then repeated: by Airflow, or by the person who reads the message."""
ORDERS = (
    "pause", "pause", "throttle 0", "throttle 200", "rewrite", "mark", "retry",
    "restart line", "restart line", "restart price", "restart price", "restart item line", "restart item line",
    "restart customer item line",
)  # fmt: skip

Once = Callable[[], bool]
"""One try of a task; whether there is nothing left to do for good."""


def repeated(company: Company, once: Once) -> Callable[[], None]:
    """A task that is repeated until nothing is left to do; the world starts a killed one again."""

    def work() -> None:
        while True:
            try:
                if once():
                    return
            except FAILS_THE_TASK as error:
                company.seam.say(f"the task fails: {type(error).__name__}: {error}")
            except FishladderError as error:
                if not _is_expected(company, error):
                    raise
                company.seam.say(f"the task fails: {error}")
            company.seam.sleep(company.seam.random.choice((0.02, 0.1, 0.5)))

    return work


def _is_expected(company: Company, error: FishladderError) -> bool:
    if isinstance(error, CoverageError):
        return company.kind.uncovered
    if company.kind.moves:
        return company.moving.restored
    # A restart that is under way, or that died and has to be repeated: lanes cannot go on, nor close the table.
    words = ("load row is not of generation", "restart of the table is under way", "cut it")
    return company.kind.orders > 0 and any(word in str(error) for word in words)


def prepare(company: Company) -> Once:
    source, target, ledger = company.store("source"), company.store("target"), company.watched_ledger()

    def once() -> bool:
        with company.seam.work("prepare"):
            install.install(company.spec, company.plan, source, target, ledger, actor="simulation")
        company.auditor.prepared = True
        return True

    return once


def lane(company: Company, name: str) -> Once:
    """Cuts, loads and closes every table: two of them are a load that was triggered twice."""
    source, target, ledger = company.store("source"), company.store("target"), company.watched_ledger()
    pace = Pace(ledger, company.clock, target)

    def once() -> bool:
        if company.finishing and company.auditor.closed():
            return True
        if not company.auditor.prepared:
            return False
        tables = [table for table in company.plan.tables if not company.auditor.closed(table.name)]
        if not tables and company.seam.random.random() < 0.9:
            company.seam.sleep(0.2)  # nothing to load before an operator restarts a table
            return False
        mine = replace(company.plan, tables=tuple(tables or company.plan.tables))
        load.cut(mine, source, ledger, CHUNK_ROWS)
        for table in mine.tables:
            load.load_lane(table, source, target, ledger, lane=name, pace=pace.wait)
        for table in mine.tables:
            load.close_load(company.plan, table, target, ledger)
        return False

    return once


def applier(company: Company) -> Once:
    """Applies whatever it likes of what is dirty, as a worker does that is one of many."""
    ends, ledger, random = company.ends(), company.watched_ledger(), company.seam.random

    def once() -> bool:
        if not company.auditor.prepared:
            return False
        dirty = apply.read_dirty(company.plan, ends, ledger, BATCH)
        dirty = dirty[random.randrange(2) :: 2] or dirty
        applied = apply.apply_batch(company.plan, ends, ledger, dirty) if dirty else None
        if applied and applied.wide:
            apply.apply_batch(company.plan, ends, ledger, applied.wide, every_shard=True)
        if not dirty:
            company.seam.sleep(0.5)
        return company.ended

    return once


def replicate(company: Company) -> Once:
    """The task as it is; two of them are a replication that was triggered twice."""
    ends, ledger = company.ends(), company.watched_ledger()
    pace = Pace(ledger, company.clock, ends.destination)

    def once() -> bool:
        if not company.auditor.prepared:
            return False
        uncovered = company.auditor.uncovered()
        with company.seam.work("replicate"):
            done = apply.follow(company.plan, [ends], ledger, company.clock, seconds=1.0, pace=pace.wait)
        if uncovered and company.auditor.uncovered() == uncovered and done.applied:
            raise Violation(f"{uncovered}: its trigger was gone, and the applier went on")
        return company.ended

    return once


def reconciler(company: Company) -> Once:
    ends, ledger, random = company.ends(), company.watched_ledger(), company.seam.random

    def once() -> bool:
        if not company.auditor.prepared:
            return False
        table = random.choice(company.plan.tables)
        with company.seam.work(f"reconcile {table.name}"):
            reconcile.reconcile_table(company.plan, table, ends, ledger, chunk_rows=CHUNK_ROWS)
        company.seam.sleep(random.choice((0.1, 0.5, 1.5)))
        return company.ended

    return once


def fencer(company: Company) -> Once:
    """Closes a store to everybody for a while, and looks whether anybody writes."""
    clock, random, auditor = company.clock, company.seam.random, company.auditor
    stores = {name: company.store(name) for name in ("source", "target")}
    orders: list[Any] = []

    def once() -> bool:
        if not auditor.prepared:
            return False
        name, cohort = random.choice(("source", "target", "target")), random.choice(("NZ", "AU"))
        writer = "application" if name == "source" else "copier"
        epoch = stores[name].fences()[cohort].epoch
        if set_fence(stores[name], clock, cohort, "nobody", epoch + 1, deadline=60).writer == "nobody":
            before = auditor.rows_of(name, cohort)
            if orders and random.random() < 0.5:  # a task of long ago is repeated
                set_fence(*random.choice(orders), deadline=60)
            company.seam.sleep(random.choice((0.02, 0.1, 0.3)))
            after = auditor.rows_of(name, cohort)
            if before != after:
                raise Violation(f"the {name} was closed for {cohort} and changed: {set(before) ^ set(after)}")
        set_fence(stores[name], clock, cohort, writer, epoch + 2, deadline=60)
        orders.append((stores[name], clock, cohort, writer, epoch + 2))
        company.seam.sleep(random.choice((0.005, 0.1, 0.3)))
        return company.finishing and auditor.quiet()

    return once


# People ------------------------------------------------------------------------------------------------------


def operator(company: Company, orders: list[str]) -> Once:
    """Gives these orders; one that failed, or whose task died, is given again."""
    ends, ledger, random, seam = company.ends(), company.watched_ledger(), company.seam.random, company.seam
    pace = Pace(ledger, company.clock, ends.destination)

    def once() -> bool:
        if not orders:
            return True
        seam.sleep(0.2)
        if not company.auditor.prepared:
            return False
        seam.say(f"orders: {orders[0]}")
        with seam.work(f"order {orders[0]}"):
            match orders[0].split():
                case ["pause"]:
                    _pause(company, random.choice((0.1, 0.3, 1.0)))
                case ["throttle", rows]:
                    ledger.set_control(rows_per_second=int(rows), actor="operator")
                case ["rewrite"]:
                    number = random.randint(1, company.dice.customers)
                    operate.rewrite_entities(company.plan, ends, ledger, [str(number)], actor="operator")
                case ["mark"]:
                    item = company.dice.item()
                    operate.mark_keys(company.plan, ends, ledger, [f"item,{item}", f"line,{item},1"], actor="operator")
                case ["retry"]:
                    ledger.retry_rejects(actor="operator")
                case ["restart", *names]:
                    if any(company.ledger.table_state(name).phase == "new" for name in names):
                        return False  # nothing to restart yet
                    operate.restart(company.plan, names, ends.destination, ledger, pace, actor="operator")
        orders.pop(0)
        return False

    return once


def _pause(company: Company, seconds: float) -> None:
    company.ledger.set_control(paused=True, actor="operator")
    company.auditor.writes.clear()
    company.auditor.paused = True
    company.seam.sleep(seconds)
    company.auditor.paused = False
    company.ledger.set_control(paused=False, actor="operator")


def go_home(company: Company) -> None:
    company.seam.network.heal()
    company.clock.skew = 0.0
    company.finishing = True


def closing(company: Company, others: Callable[[], bool]) -> Callable[[], None]:
    """The last act: everybody goes home, the network heals, people mend what is broken, and every table is clean."""
    ends, ledger, auditor, seam = company.ends(), company.watched_ledger(), company.auditor, company.seam

    def quiet() -> None:
        while not auditor.quiet():
            seam.sleep(0.1)

    def work() -> None:
        while not others():
            seam.sleep(0.2)
        company.ledger.set_control(paused=False, rows_per_second=0, actor="operator")
        go_home(company)
        quiet()
        auditor.look()
        if not auditor.damaged:
            auditor.check()
        if company.kind.strict:
            with company.transaction("target") as target:
                target.execute("INSERT INTO tolerant VALUES (1)")
            ledger.retry_rejects(actor="operator")
            quiet()
        with company.transaction() as source:
            source.execute("UPDATE price SET after = NULL WHERE after = 999")
            auditor.written_again("price", "2:91")
        quiet()
        for table in company.plan.tables:
            for _ in range(4):
                reconcile.reconcile_table(company.plan, table, ends, ledger, chunk_rows=CHUNK_ROWS)
                if company.ledger.clean_passes(table.name):
                    break
                quiet()
            else:
                raise Violation(f"{table.name}: no pass is clean, although all is mended")
        quiet()
        auditor.look()
        auditor.check()
        company.ended = True

    return work
