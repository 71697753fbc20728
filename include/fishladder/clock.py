"""Time, passed in: the real clock here, a virtual one in simulations."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The time of day in UTC, for records only: no decision that data depends on is made by it."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for budgets and rates."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
