"""Customers behind a router in a process of their own, to be killed or stopped at any moment:
``python -m tests.scenario.routed FILE FOLDER NAME CUSTOMERS [MOMENT ACTION]``.

What is about to be asked is written down before, and what was answered before the next call, in the folder. Whoever
comes next asks again, under the same keys, for what was not answered.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from billing.database import connect
from billing.routed import Customers, open_router
from billing.service import Declined
from fishladder.errors import FishladderError
from fishladder.ledger import Ledger
from fishladder.serving import Router, Written
from fishladder.stores.application import Session

ACTIONS = {"die": signal.SIGKILL, "stall": signal.SIGSTOP}
RATE = 60.0
SECONDS = 600.0


class Log:
    """Lines of JSON in a file; each is there, whatever becomes of this process, when ``add`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


class Logs:
    """What a folder's processes asked, were answered (accepted or declined), and failed at."""

    def __init__(self, folder: Path) -> None:
        self.asked = Log(folder / "asked.jsonl")
        self.answered = Log(folder / "answered.jsonl")
        self.declined = Log(folder / "declined.jsonl")
        self.failed = Log(folder / "failed.jsonl")
        self.counted = Log(folder / "counted.jsonl")

    def unanswered(self) -> list[dict[str, Any]]:
        over = {line["key"] for log in (self.answered, self.declined) for line in log.lines()}
        return [line for line in self.asked.lines() if line["key"] not in over]


class Known(Customers):
    """Of the customers that it is given, and of nobody else: nobody is born, and no price changes."""

    def _one(self, kind: str) -> dict[str, Any] | None:
        return super()._one("change_plan" if kind in ("sign_up", "change_price") else kind)


class Client(Known):
    """One client that remembers in files what it was about to do."""

    def __init__(self, logs: Logs, router: Router, *arguments: Any, **more: Any) -> None:
        super().__init__(router, *arguments, **more)
        self._logs = logs

    def again(self) -> None:
        """Ask for what a process before this one was not answered."""
        for line in self._logs.unanswered():
            try:
                written = self._router.write(line["operation"], line["payload"], key=line["key"], **line["where"])
            except Declined:
                self._logs.declined.add({"key": line["key"]})
                continue
            receipt = written.result or {}
            self._logs.answered.add({**line, "state": written.state, **receipt})

    def _write(self, kind: str, payload: dict[str, Any], **where: Any) -> tuple[str, dict[str, Any], Written]:
        key = payload.get("key") or self._unique(kind)
        self._logs.asked.add({"operation": kind, "key": key, "payload": payload, "where": where})
        try:
            return key, payload, self._router.write(kind, payload, key=key, **where)
        except Declined:
            self._logs.declined.add({"key": key})
            raise
        except FishladderError as error:
            self._logs.failed.add({"key": key, "error": f"{type(error).__name__}: {error}"})
            raise

    def _account(self, customer: int) -> dict[str, Any]:
        try:
            return super()._account(customer)
        except FishladderError as error:
            self._logs.failed.add({"customer": customer, "error": f"{type(error).__name__}: {error}"})
            raise


class Counting:
    """What the router counts, by name."""

    def __init__(self) -> None:
        self.counted = Counter[str]()

    def count(self, name: str, **labels: str) -> None:
        self.counted[name] += 1

    def seconds(self, name: str, value: float, **labels: str) -> None:
        return None


def at(moment: str, action: str) -> None:
    """Do it to this process, once, at a moment of a write: ``begun``, ``committed``, ``enqueueing`` or ``enqueued``."""
    owner, name, before = {
        "begun": (Router, "_do", True),
        "committed": (Session, "commit", False),
        "enqueueing": (Ledger, "enqueue", True),
        "enqueued": (Ledger, "enqueue", False),
    }[moment]
    real: Callable[..., Any] = getattr(owner, name)

    def doing(*arguments: Any, **more: Any) -> Any:
        setattr(owner, name, real)
        if before:
            os.kill(os.getpid(), ACTIONS[action])
        found = real(*arguments, **more)
        if not before:
            os.kill(os.getpid(), ACTIONS[action])
        return found

    setattr(owner, name, doing)


def main(file: str, folder: str, name: str, customers: str, *moment: str) -> None:
    logs = Logs(Path(folder))
    router, url = open_router(Path(file))
    router.metrics = counting = Counting()
    with closing(connect(url)) as db:
        plans: Sequence[int] = [row[0] for row in db.rows("SELECT id FROM plan ORDER BY id")]
    client = Client(logs, router, json.loads(customers), plans, rng=random.Random(name), run=name)
    signal.signal(signal.SIGTERM, lambda *_: client.stop())
    client.again()
    if moment:
        at(*moment)
    client.run(rate=RATE, seconds=SECONDS, log=logs.answered.path)
    router.close()
    logs.counted.add(dict(counting.counted))


if __name__ == "__main__":
    main(*sys.argv[1:])
