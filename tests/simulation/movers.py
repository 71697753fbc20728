"""Who moves cohorts, and who gets in the way: people, tasks that run twice, orders of long ago."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

from fishladder import apply, flip, install
from fishladder.errors import InputError, LedgerError, StaleError
from fishladder.fence import set_fence
from fishladder.pace import Pace
from fishladder.restored import check_ledger
from tests.simulation.actors import Once, go_home
from tests.simulation.company import (
    Company,
    Dice,
    Statements,
    charge,
    leave,
    move_country,
    transfer,
)
from tests.simulation.shop import CUSTOMERS, Call, look, make

FENCED = ("fence", "drain", "compare")
WHOM = ("NZ", "NZ", "NZ", "AU", "AU", "IE", "shared", "shared")


def shop(company: Company, calls: Iterator[Call]) -> Callable[[], Once]:
    """A process of the application: each time it starts it has a router of its own, that knows nothing yet."""
    asked: list[Call] = []

    def started() -> Once:
        router, random, seam = company.router(), company.seam.random, company.seam

        def once() -> bool:
            if not asked:
                call = next(calls, None)
                if call is None:
                    return True
                asked.append(call)
            make(router, seam, asked[0])
            asked.clear()
            if random.random() < 0.3:
                look(router, company.book, random.choice(CUSTOMERS), company.moving.refused)
            return False

        return once

    return started


def mover(company: Company, asks: list[str]) -> Once:
    """A person who wants these cohorts elsewhere, and the task that does it. Asked again under the same request."""
    cutover, ledger, random, seam = company.cutover(), company.watched_ledger(), company.seam.random, company.seam

    def once() -> bool:
        if not asks or company.moving.restored:
            return True
        cohort, _, kind = asks[0].partition(" ")
        if not kind:
            seam.sleep(random.choice((0.05, 0.3, 1.0)))
            ways = ("flip",) if company.moving.routes()[cohort][1] == "source" else (*["rollback"] * 6, "complete")
            kind = random.choice(ways)
            asks[0] = f"{cohort} {kind}"  # who dies asks for the same again
        try:
            attempt = ledger.begin_attempt(
                cohort, kind, actor="mover", reason="", request=f"no. {len(asks)}", deadline=random.choice((1, 5, 60)),
                needs=flip.wave_needs(company.spec, cohort, kind, company.ledger.routes()),
            )  # fmt: skip
        except InputError as error:
            seam.say(str(error))
            asks.pop(0)
            return False
        seam.say(f"attempt {attempt.id}: {kind} of {cohort}")
        if attempt.step == "verify" and kind != "complete" and not cutover.verify(attempt):
            ledger.abort(attempt, "it differs")
        seam.say(f"attempt {attempt.id}: {kind} of {cohort}: {cutover.run(attempt.id).outcome}")
        asks.pop(0)
        return False

    return once


def replicate(company: Company) -> Once:
    """The task as it is: it also brings attempts to their end whose task died."""
    ends, cutover, ledger = company.ends(), company.cutover(), company.watched_ledger()
    pace, stalled = Pace(ledger, company.clock, ends.destination), flip.Stalled(ledger, company.clock)

    def advance() -> None:
        under_way = [attempt for attempt in ledger.attempts(only_open=True) if attempt.step != "verify"]
        if mine := [attempt for attempt in under_way if stalled.has(attempt)]:
            check_ledger(ends.destination, ledger)  # as whoever opens the stores for it does
            for attempt in mine:
                stalled.moved(cutover.advance(attempt.id))

    def once() -> bool:
        apply.follow(company.plan, [ends], ledger, company.clock, seconds=1.0, pace=pace.wait, beside=advance)
        return company.ended

    return once


def meddler(company: Company) -> Once:
    """Gives up half-way, switches too early, repeats orders of long ago, runs prepare again."""
    ledger, random, seam, clock = company.watched_ledger(), company.seam.random, company.seam, company.clock
    stores = {name: company.store(name) for name in ("source", "target")}

    def once() -> bool:
        seam.sleep(random.choice((0.05, 0.2, 0.4)))
        if company.finishing or company.moving.restored:
            return True
        what = random.choice((*["abort"] * 2, *["switch"] * 8, *["order"] * 4, *["prepare"] * company.kind.appliers))
        seam.say(f"meddles: {what}")
        if what == "order" and company.moving.orders:
            store, cohort, writer, epoch = random.choice(company.moving.orders)
            set_fence(stores[store], clock, cohort, writer, epoch, deadline=1)
        elif what == "prepare":
            install.install(company.spec, company.plan, stores["source"], stores["target"], ledger, actor="meddler")
        elif what in ("abort", "switch"):
            for _ in range(40 if what == "abort" else 1):  # it lies in wait for one that is fenced
                attempts = ledger.attempts(only_open=True)
                mine = [attempt for attempt in attempts if what == "switch" or attempt.step in FENCED]
                if mine:
                    break
                seam.sleep(0.02)
            try:
                for attempt in mine:
                    if what == "switch" and attempt.step in flip.BEFORE_SWITCH:
                        ledger.switch(attempt, {})
                    elif what == "abort":
                        ledger.abort(attempt, "somebody changed their mind")
                        seam.say(f"attempt {attempt.id}: given up at {attempt.step}")
            except (LedgerError, StaleError) as error:
                seam.say(str(error))
        return False

    return once


def clerk(company: Company) -> Once:
    """Gives parked writes up, so that the rest goes on."""
    ledger = company.watched_ledger()

    def once() -> bool:
        company.seam.sleep(0.5)
        for queued in ledger.waiting():
            if queued.state == "parked":
                ledger.drop_queued(queued.id, "it can never be done", actor="clerk")
        return company.ended

    return once


# What is unique is so in one store only: of two stores' customers the application itself has to keep it apart.


def sign_up_anew(dice: Dice) -> Statements:
    number = dice.customer()
    email = f"e{dice.randint(1, 10**9)}"
    yield "INSERT INTO customer VALUES (?, ?, ?, 0)", [number, dice.choice(("NZ", "AU", "ZZ", None)), email]
    yield "INSERT INTO item VALUES (?, ?, 0)", [number * 10, number]


def pass_email_on(dice: Dice) -> Statements:
    """Each takes the next one's, of those that are here; the last takes one that nobody ever had."""
    one, two, three = dice.customer(), dice.customer(), dice.customer()
    yield "UPDATE customer SET email = '-' || email WHERE id IN (?, ?, ?)", [one, two, three]
    taken = "UPDATE customer SET email = (SELECT substr(email, 2) FROM customer WHERE id = ?) WHERE id = ?"
    for giver, taker in ((two, one), (three, two)):
        yield taken, [giver, taker]
    yield "UPDATE customer SET email = ? WHERE id = ?", [f"e{dice.randint(1, 10**9)}", three]


def batch_job(company: Company) -> Callable[[], None]:
    """Knows nothing of routers, and writes customers of its own wherever it likes: fences refuse what is wrong."""
    random, seam = company.seam.random, company.seam
    operations = (charge, charge, charge, leave, sign_up_anew, move_country, pass_email_on, pass_email_on, transfer)
    ours = Dice(random, 7, first=CUSTOMERS[-1] + 1)

    def work() -> None:
        for _ in range(20):
            seam.sleep(random.choice((0.1, 0.3, 0.6)))
            born = [call.customer for call in company.book.calls if call.kind == "join"]
            if born and random.random() < 0.3:
                number = random.choice(born)
                company.attempt(random.choice(("source", "target")), charge, Dice(random, number, first=number))
            else:
                company.attempt(random.choice(("source", "target")), random.choice(operations), ours)

    return work


def restorer(company: Company) -> Callable[[], None]:
    """Loses the ledger, at a moment when nothing was under way, and puts yesterday's in its place."""
    random, seam, file = company.seam.random, company.seam, company.folder / "ledger.db"

    def copy(here: str, there: str) -> None:
        with closing(sqlite3.connect(here)) as one, closing(sqlite3.connect(there)) as other:
            one.backup(other)

    def work() -> None:
        seam.sleep(random.choice((0.1, 1.0, 3.0)))
        copy(str(file), f"{file}.yesterday")
        before = company.moving.routes()
        for _ in range(400):
            seam.sleep(0.1)
            if company.moving.nothing_known() and company.moving.routes() != before:
                break
        else:
            return
        company.moving.restored = True
        copy(f"{file}.yesterday", str(file))
        seam.say("the ledger is yesterday's")

    return work


def closing_moves(company: Company, others: Callable[[], bool]) -> Callable[[], None]:
    """The last act: the network heals, attempts and queues come to their end, and both sides are equal."""
    auditor, seam = company.moving, company.seam

    def work() -> None:
        while not (others() or auditor.restored):
            seam.sleep(0.2)
        if auditor.restored:
            seam.sleep(5.0)  # nothing may move, and nothing be lost, until somebody has looked
            auditor.look()
            auditor.check_calls()
            company.ended = True
            return
        go_home(company)
        while not auditor.quiet():
            seam.sleep(0.1)
        auditor.look()
        auditor.check()
        company.ended = True

    return work
