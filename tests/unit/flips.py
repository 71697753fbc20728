"""A cohort that can move between two SQLite files, with an application behind routers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fishladder.clock import SystemClock
from fishladder.flip import Cutover
from fishladder.ledger import Attempt
from fishladder.serving import Operations, Replayer, Router
from fishladder.stores.application import Application
from fishladder.stores.sqlite import SqliteApplication, connect
from tests.unit.small import Small


class Declined(Exception):
    pass


def _pay(connection: Any, payload: Any) -> dict[str, Any]:
    if payload["amount"] < 0:
        raise Declined("no negative amounts")
    if payload["amount"] == 666:
        raise RuntimeError("a bug in this operation")
    connection.execute("UPDATE item SET amount = amount + ? WHERE id = ?", (payload["amount"], payload["item"]))
    return {"amount": payload["amount"]}


def _amount(connection: Any, payload: Any) -> int:
    return int(connection.execute("SELECT amount FROM item WHERE id = ?", (payload["item"],)).fetchone()[0])


def _join(connection: Any, payload: Any) -> dict[str, Any]:
    connection.execute(
        "INSERT INTO customer (id, country, email) VALUES (?, ?, ?)", (payload["id"], payload["country"], payload["id"])
    )
    return {"id": payload["id"]}


@dataclass
class Flips:
    """A loaded migration, and an application on both of its ends."""

    small: Small
    operations: Operations
    stores: dict[str, Application]
    promised: list[str] = field(default_factory=list)

    @property
    def cutover(self) -> Cutover:
        small = self.small
        return Cutover(
            spec=small.spec,
            plan=small.plan,
            stores={"source": small.source, "target": small.target},
            ledger=small.ledger,
            clock=SystemClock(),
            replay=Replayer(small.ledger, self.operations, self.stores).replay,
        )

    def router(self) -> Router:
        source, target = self.stores["source"], self.stores["target"]
        return Router(self.small.ledger, self.operations, source=source, target=target, patience=5)

    def ask(self, kind: Any = "flip", cohort: str = "NZ", deadline: int = 60) -> Attempt:
        return self.small.ledger.begin_attempt(cohort, kind, actor="test", reason="because", deadline=deadline)

    def verified(self, kind: Any = "flip", cohort: str = "NZ", deadline: int = 60) -> int:
        attempt = self.ask(kind, cohort, deadline)
        assert self.cutover.verify(attempt)
        return attempt.id

    def move(self, kind: Any = "flip", cohort: str = "NZ") -> Attempt:
        return self.cutover.run(self.verified(kind, cohort))

    def until(self, number: int, step: str) -> Attempt:
        while (attempt := self.cutover.advance(number)).step != step:
            assert attempt.outcome is None
        return attempt

    def fences(self, cohort: str = "NZ") -> list[tuple[str, int]]:
        found = [store.fences()[cohort] for store in (self.small.source, self.small.target)]
        return [(fence.writer, fence.epoch) for fence in found]

    def amount(self, item: int, store: str) -> int:
        return int(self.small.rows(store, f"SELECT amount FROM item WHERE id = {item}")[0][0])

    def same(self) -> bool:
        return all(
            self.small.rows("source", f"SELECT * FROM {table} ORDER BY 1, 2, 3")
            == self.small.rows("target", f"SELECT * FROM {table} ORDER BY 1, 2, 3")
            for table in ("customer", "item", "line", "fishladder_home", "fishladder_applied")
        )


@contextmanager
def flips(loaded: Small) -> Iterator[Flips]:
    """Customer 1 of NZ has item 10, customer 2 of AU item 20, and 3, of nowhere, item 30."""
    paths = {name: str(loaded.folder / f"{name}.db") for name in ("source", "target")}
    stores: dict[str, Application] = {
        name: SqliteApplication(lambda path=path: connect(path)) for name, path in paths.items()
    }
    found = Flips(small=loaded, operations=Operations(), stores=stores)
    found.operations.add(
        "pay",
        _pay,
        refusals=(Declined,),
        optimistic=lambda payload, key: found.promised.append(key),
        undo=lambda payload, key: found.promised.append(key),
    )
    found.operations.add("amount", _amount)
    found.operations.add("join", _join)
    yield found
    for store in stores.values():
        store.close()
