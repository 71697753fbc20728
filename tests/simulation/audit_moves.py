"""What must hold at every moment while cohorts move, and what customers were told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.simulation.audit import TABLES, Auditor, Violation
from tests.simulation.shop import Book, Call

STORES = ("source", "target")
WAITING = ("pending", "parked", "unwanted")


class MovingAuditor(Auditor):
    """Judges each cohort by its owner: the store whose fence is open to the application, or else the ledger's word."""

    tables = TABLES | {
        "fishladder_applied": "SELECT operation, entity, idempotency_key, digest, result FROM fishladder_applied"
    }

    def __init__(self, folder: Path, book: Book) -> None:
        super().__init__(folder, strict=False)
        self.book = book
        self.restored = False
        self.orders: list[tuple[str, str, str, int]] = []
        """Every fence that was ever seen: store, cohort, writer, epoch."""
        self._homes_of: dict[str, dict[str, tuple[Any, ...]]] = {name: {} for name in STORES}

    # At every moment

    def _look_at_homes(self) -> None:
        homes = {name: self.homes(name) for name in STORES}
        for name in STORES:
            changed = {entity for entity, home in self._homes_of[name].items() if homes[name].get(entity) != home}
            if changed:
                raise Violation(f"homes that changed in the {name}: {sorted(changed)}")
        ours, theirs = homes["source"], homes["target"]
        if torn := [entity for entity in ours.keys() & theirs.keys() if ours[entity] != theirs[entity]]:
            raise Violation(f"homes that differ: {torn}")
        self._homes_of = homes

    def _look_at_fences(self) -> None:
        super()._look_at_fences()
        if not self.restored:
            self._look_at_routes()
        for cohort, writers in self.writers().items():
            if len([writer for writer in writers if writer in ("application", "free")]) > 1:
                raise Violation(f"both stores are open to the application for {cohort}: {writers}")
            if writers.count("copier") > 1:
                raise Violation(f"both stores are open to copiers for {cohort}: {writers}")

    def _look_at_routes(self) -> None:
        routes, writers = self.routes(), self.writers()
        for cohort, (stage, owner) in routes.items():
            if stage in ("off", "live") and writers[cohort][STORES.index(owner)] != "application":
                raise Violation(f"{cohort} is {stage} and its {owner} is not open: {writers[cohort]}")
        waiting = f"SELECT DISTINCT cohort FROM ledger_queue WHERE state IN {WAITING}"
        stranded = {cohort for (cohort,) in self.ask("ledger", waiting) if routes[cohort][0] not in ("queue", "replay")}
        if stranded:
            raise Violation(f"writes wait and nobody will replay them: {stranded}")

    def writers(self) -> dict[str, list[str]]:
        """Of each cohort, whom the fences of source and target let write."""
        found: dict[str, list[str]] = {}
        for name in STORES:
            for cohort, writer, epoch in self.ask(name, "SELECT cohort, writer, epoch FROM fishladder_fence"):
                found.setdefault(cohort, []).append(writer)
                if (order := (name, cohort, writer, epoch)) not in self.orders:
                    self.orders.append(order)
        return found

    def dirty(self) -> set[tuple[str, str]]:
        return super().dirty() | set(self.ask("target", "SELECT table_name, row_key FROM fishladder_journal"))

    def different(self) -> set[tuple[str, str]]:
        found = super().different()
        complete = {cohort for cohort, (stage, _) in self.routes().items() if stage == "complete"}
        complete |= {cohort for cohort, writers in self.writers().items() if "free" in writers}  # a ledger forgets
        return (
            {difference for difference in found if self._cohort_of(*difference) not in complete} if complete else found
        )

    def _cohort_of(self, table: str, key: str) -> str:
        """Of a row that differs, by the entity that either store knows for it."""
        cells = _cells(key)
        for name in STORES:
            entity = cells[0]
            if table == "price":
                return "shared"
            if table == "line" or table == "item":
                (item,) = self.ask(name, "SELECT max(customer_id) FROM item WHERE id = ?", cells[0])[0]
                entity = str(item)
            text = cells[{"fishladder_applied": 1}.get(table, 0)] if table.startswith("fishladder") else _text(entity)
            if home := self.homes(name).get(text):
                return str(home[1])
        return "*"

    def quiet(self) -> bool:
        if not super().quiet() or self.ask("target", "SELECT 1 FROM fishladder_journal LIMIT 1"):
            return False
        waiting = self.ask("ledger", f"SELECT 1 FROM ledger_queue WHERE state IN {WAITING}")
        return not waiting and not self.ask("ledger", "SELECT 1 FROM ledger_attempt WHERE open = 1")

    def nothing_known(self) -> bool:
        """The ledger knows of no attempt, no queued write and no doubt: it can be lost and nothing is."""
        tables = ("ledger_attempt WHERE open = 1", f"ledger_queue WHERE state IN {WAITING}", "ledger_dirty")
        return not any(self.ask("ledger", f"SELECT 1 FROM {table} LIMIT 1") for table in tables)

    def after(self, actor: str, label: str, arguments: tuple[Any, ...], result: Any) -> None:
        super().after(actor, label, arguments, result)
        if label.startswith("ledger."):
            self.look()
        if label == "ledger.switch":
            self.check_calls(arguments[0].cohort)

    # What customers were told

    def routes(self) -> dict[str, tuple[str, str]]:
        found = self.ask("ledger", "SELECT cohort, stage, owner FROM ledger_route")
        return {cohort: (stage, owner) for cohort, stage, owner in found}

    def under_way(self) -> list[str]:
        """Cohorts whose customers may notice something now."""
        return [cohort for cohort, (stage, _) in self.routes().items() if stage in ("fencing", "queue", "replay")]

    def owner(self, cohort: str) -> str:
        open_ = [
            name for name, writer in zip(STORES, self.writers()[cohort], strict=True)
            if writer in ("application", "free")
        ]  # fmt: skip
        return open_[0] if open_ else self.routes()[cohort][1]

    def refused(self) -> set[str]:
        """Keys of refused calls. A ledger of yesterday may not know them; the owner at that time does."""
        found = self.ask("ledger", "SELECT idempotency_key FROM ledger_queue WHERE state = 'refused'")
        for name in STORES:
            found += self.ask(name, "SELECT idempotency_key FROM fishladder_applied WHERE digest LIKE 'refused %'")
        return {key for (key,) in found}

    def check_calls(self, only: str | None = None) -> None:
        """What was acknowledged is in the owner once, or waits; in its order; what was refused is not there."""
        queued = dict(self.ask("ledger", "SELECT idempotency_key, state FROM ledger_queue"))
        queued |= dict.fromkeys(self.refused(), "refused")
        homes = self.homes("source") | self.homes("target")
        for customer in {call.customer for call in self.book.calls if call.kind == "pay"}:
            home = homes.get(_text(str(customer)))
            cohort = str(home[1]) if home else "*"
            if only in (None, cohort):
                self._check_payments(customer, self.owner(cohort), queued)
        for call in self.book.calls:
            if call.kind != "pay" and only in (None, call.cohort):
                store = self.owner(call.cohort)
                sql = f"SELECT count(*) FROM {'customer' if call.kind == 'join' else 'price'} WHERE id = ?"
                key = call.customer if call.kind == "join" else 1000 + call.number
                self._check_call(call, self.ask(store, sql, key)[0][0], queued, store)

    def _check_payments(self, customer: int, store: str, queued: dict[str, str]) -> None:
        sql = "SELECT amount - 1000 FROM line WHERE item_id = ? AND amount > 1000 ORDER BY no"
        there = [number for (number,) in self.ask(store, sql, customer * 10)]
        calls = self.book.payments(customer)
        for call in calls:
            self._check_call(call, there.count(call.number), queued, store)
        balance, amount = self.ask(
            store, "SELECT c.balance, i.amount FROM customer c JOIN item i ON i.id = c.id * 10 WHERE c.id = ?", customer
        )[0]
        if not balance == amount == len(there):
            raise Violation(f"customer {customer} in the {store}: {len(there)} payments and {balance}, {amount}")
        place = {number: at for at, number in enumerate(there)}
        heard = [call for call in calls if call.answer in ("done", "queued")]
        for one in heard:
            late = place.get(one.number, len(there) if queued.get(one.key) in WAITING else -1)
            early = [two.number for two in heard if two.began > one.heard and place.get(two.number, late) < late]
            if early:
                raise Violation(f"payments {early} of customer {customer} overtook no. {one.number} in the {store}")

    def _check_call(self, call: Call, times: int, queued: dict[str, str], store: str) -> None:
        state = queued.get(call.key)
        wanted: tuple[int, ...] = (0, 1)
        if call.answer == "done" or (call.answer == "queued" and state == "done"):
            wanted = (1,)
        elif call.answer in ("refused", "failed") or state == "refused":
            wanted = (0,)
        elif call.answer == "queued" and state is None and not self.restored:
            raise Violation(f"call {call.number} was queued, and is not in the queue")
        if times not in wanted:
            said = f"was told {call.answer}" if call.answer else "was told nothing"
            raise Violation(
                f"call {call.number} ({call.kind}) {said} (queue: {state}), is {times} times in the {store}"
            )

    def check(self) -> None:
        super().check()
        self.check_calls()
        unanswered = [call.number for call in self.book.calls if call.answer is None]
        if unanswered:
            raise Violation(f"calls without an answer: {unanswered}")
        for key, operation, state in self.ask("ledger", "SELECT idempotency_key, operation, state FROM ledger_queue"):
            if operation != "pay":
                continue
            kept, undone = key in self.book.promised, f"{key}:undo" in self.book.promised
            if not kept or undone != (state == "refused"):
                raise Violation(f"{key} is {state}; its promise: kept {kept}, undone {undone}")


def _cells(key: str) -> list[str]:
    found = []
    while key:
        size, _, rest = key.partition(":")
        found.append(rest[: int(size)])
        key = rest[int(size) :]
    return found


def _text(cell: str) -> str:
    return f"{len(cell)}:{cell}"
