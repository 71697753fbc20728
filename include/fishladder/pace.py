"""How fast whatever copies may go: what operators have set, obeyed from one batch to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fishladder.clock import Clock
from fishladder.ledger import Control, Ledger
from fishladder.stores.base import Fenced, Store

LOOK = 1.0
"""Seconds between looks whether what slows us down is over, or has been changed."""


class Pace:
    """One for each lane and each applier. ``replicas``: of the target, by connection id."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        target: Store,
        replicas: Sequence[tuple[str, Store]] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._target = target
        self._replicas = replicas
        self._say = say
        self._last = clock.monotonic()
        self._reason = ""
        self._rate: int | None = None

    def wait(self, rows: int) -> None:
        """After a batch of ``rows``: return when the next may begin, or when all is paused.

        The limits are read again every second, so that a lifted one holds nobody up.
        """
        while True:
            control, now = self._ledger.control(), self._clock.monotonic()
            if control.rows_per_second != self._rate:
                self._rate = control.rows_per_second
                self._say(f"at most {self._rate} rows a second" if self._rate else "no limit of rows a second any more")
            due = self._last + rows / control.rows_per_second if control.rows_per_second else now
            reason = self._too_much(control)
            if control.paused or (now >= due and not reason):
                break
            if reason and reason != self._reason:
                self._say(f"waiting: {reason}")
            self._reason = reason
            self._clock.sleep(LOOK if reason else min(LOOK, due - now))
        self._last, self._reason = self._clock.monotonic(), ""

    def resumed(self) -> None:
        """Return when nothing is paused: for whoever has no other place to wait."""
        while self._ledger.control().paused:
            self._clock.sleep(LOOK)

    def _too_much(self, control: Control) -> str:
        """Why the target must be left alone now, if it must."""
        assert isinstance(self._target, Fenced)
        if control.running_threads is not None:
            running = self._target.running_threads()
            if running is not None and running > control.running_threads:
                return f"the target runs more than {control.running_threads} threads"
        if control.replica_lag is not None:
            for name, replica in self._replicas:
                assert isinstance(replica, Fenced)
                behind = replica.replica_lag()
                if behind is None:
                    return f"the replica {name} does not follow the target"
                if behind > control.replica_lag:
                    return f"the replica {name} is more than {control.replica_lag} s behind"
        return ""
