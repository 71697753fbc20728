"""The company's customers while its cohorts move: an application with the router, and what it told them.

A call has a key, and is repeated under it, by a process that may be another one, until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fishladder.errors import InputError, TransientError
from fishladder.serving import Operations, Refused
from fishladder.serving.router import Router
from fishladder.stores.sqlite import SqliteApplication
from tests.simulation.audit import Violation
from tests.simulation.start import Lasting
from tests.simulation.world import Seam

PATIENCE = 3.0
FEWEST = 8
COHORTS = ("NZ", "AU", "IE")
"""Of customers 1, 2 and 3."""
CUSTOMERS = (1, 2, 3, 4)
"""Whom the application serves: NZ, AU, IE and one of no country. A batch job has the others to itself."""
POISON, FICKLE = 23, 5
"""Payments with such a number cannot be done; the business may or may not refuse those with such a one."""

Answer = Literal["done", "queued", "refused", "failed"]


class Declined(Exception):
    """The business says no."""


class Poison(Exception):
    """The operation has a bug."""


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """A payment (into an item of ``customer``), a birth (of ``customer``, in ``cohort``) or a price (shared).

    ``began`` and ``heard``: steps of the world.
    """

    kind: Literal["pay", "join", "price"]
    number: int
    customer: int = 0
    cohort: str = ""
    began: int = 0
    heard: int = 0
    answer: Answer | None = None

    @property
    def key(self) -> str:
        return f"k{self.number}"


@dataclass(slots=True)
class Book:
    """What customers asked for and were told, and the promises that were kept at once."""

    calls: list[Call] = field(default_factory=list)
    promised: set[str] = field(default_factory=set)

    def payments(self, customer: int) -> list[Call]:
        return [call for call in self.calls if call.kind == "pay" and call.customer == customer]


class SimulatedApplication(SqliteApplication):
    """``now`` is what the store's clock says."""

    def __init__(self, connect: Callable[[], Lasting], now: Callable[[], str]) -> None:
        super().__init__(connect)
        self._now = now

    def prepare(self, connection: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")
        connection.create_function("strftime", -1, lambda *_: self._now())


def operations(seam: Seam, book: Book) -> Operations:
    def pay(connection: Any, payload: Any) -> int:
        number, item = payload["number"], payload["customer"] * 10
        if number % POISON == 0:
            raise Poison(f"payment {number}")
        if number % FICKLE == 0 and seam.random.random() < 0.5:
            raise Declined(f"payment {number}")
        connection.execute("UPDATE customer SET balance = balance + 1 WHERE id = ?", [item // 10])
        seam.point(f"pays {number} for item {item}")
        connection.execute("UPDATE item SET amount = amount + 1 WHERE id = ?", [item])
        connection.execute(
            "INSERT INTO line SELECT ?, coalesce(max(no), 0) + 1, ? FROM line WHERE item_id = ?",
            [item, 1000 + number, item],
        )
        return number

    def join(connection: Any, payload: Any) -> int:
        customer = payload["customer"]
        row = [customer, payload["country"], f"c{customer}"]
        connection.execute("INSERT INTO customer VALUES (?, ?, ?, 0)", row)
        seam.point(f"customer {customer} joins")
        connection.execute("INSERT INTO item VALUES (?, ?, 0)", [customer * 10, customer])
        return customer

    def price(connection: Any, payload: Any) -> int:
        connection.execute("INSERT INTO price VALUES (?, 1, NULL)", [1000 + payload["number"]])
        return payload["number"]

    def payments(connection: Any, payload: Any) -> list[int]:
        sql = "SELECT amount - 1000 FROM line WHERE item_id = ? AND amount > 1000 ORDER BY no"
        return [number for (number,) in connection.execute(sql, [payload["customer"] * 10])]

    def promise(payload: Any, key: str) -> None:
        seam.point(f"promise {key}")
        book.promised.add(key)

    found = Operations()
    found.add("pay", pay, refusals=(Declined,), optimistic=promise, undo=promise)
    found.add("join", join)
    found.add("price", price)
    found.add("payments", payments)
    return found


def draw_calls(
    seam: Seam, book: Book, most: int, going_on: Callable[[], bool], moving: Callable[[], list[str]]
) -> Iterator[Call]:
    """What one process is asked for, one after the other, for as long as anything moves; most of it where it does."""
    random = seam.random
    for at in range(most):
        if at > FEWEST and not going_on():
            return
        hot = moving()
        seam.sleep(random.choice((0.0, 0.02) if hot else (0.1, 0.3, 0.6, 1.2)))  # in the last it forgets its route
        cohort = random.choice(hot or COHORTS)
        number = len(book.calls) + 1
        kind = random.choice(("pay", "pay", "pay", "pay", "join", "price"))
        if kind == "join":
            call = Call(kind="join", number=number, customer=100 + number, cohort=random.choice(COHORTS))
        elif kind == "price" or cohort == "shared":
            call = Call(kind="price", number=number, cohort="shared")
        else:
            customer = COHORTS.index(cohort) + 1 if random.random() < 0.7 else random.choice(CUSTOMERS)
            call = Call(kind="pay", number=number, customer=customer)
        book.calls.append(call)
        yield call


def make(router: Router, seam: Seam, call: Call) -> None:
    """Once, or again. Raises TransientError when it has to be repeated."""
    call.began = call.began or seam.steps
    try:
        match call.kind:
            case "pay":
                payload: dict[str, Any] = {"number": call.number, "customer": call.customer}
                written = router.write("pay", payload, key=call.key, entity=call.customer)
            case "join":
                payload = {"customer": call.customer, "country": call.cohort}
                written = router.write("join", payload, key=call.key, cohort=call.cohort)
            case "price":
                written = router.write("price", {"number": call.number}, key=call.key, cohort="shared")
        call.answer = written.state
    except (Declined, Refused):
        call.answer = "refused"
    except Poison:
        call.answer = "failed"
    except InputError as error:
        raise Violation(f"call {call.number}: {error}") from error
    call.heard = seam.steps
    seam.say(f"call {call.number} ({call.kind}): {call.answer}")


def look(router: Router, book: Book, customer: int, refused: Callable[[], set[str]]) -> None:
    """Read a customer's payments: each that was acknowledged is there, or is said to be pending."""
    known = {call.number for call in book.payments(customer) if call.answer in ("done", "queued")}
    answer = router.read("payments", {"customer": customer}, entity=customer)
    if not answer.pending_known:
        raise TransientError("nobody knows what is pending: repeat")
    seen = set(answer.value) | {int(pending.key[1:]) for pending in answer.pending}
    unseen = {number for number in known - seen if f"k{number}" not in refused()}
    if unseen:
        raise Violation(f"customer {customer} does not see the payments {sorted(unseen)}")
