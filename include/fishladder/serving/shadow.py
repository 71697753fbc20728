"""Shadow comparison: a sample of reads is asked of the other store too, off the customer's path."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from fishladder.serving.metrics import Metrics
from fishladder.serving.operations import Operation, Payload
from fishladder.stores.application import Application

Outcome = Literal["match", "mismatch", "ignored", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """``reason``: why a difference was ignored, or the name of the error that the new implementation raised."""

    operation: str
    outcome: Outcome
    reason: str | None = None


class Shadow:
    """``sample``: the part of reads to compare, 0 to 1. ``waiting``: how many may wait; more are left out.

    A copy is a moment behind its owner. So what differs is asked once more, of both, after ``settle`` seconds.
    """

    def __init__(
        self,
        *,
        sample: float = 1.0,
        threads: int = 1,
        waiting: int = 100,
        settle: float = 2.0,
        observed: Callable[[Observation], None] = lambda observation: None,
        rng: random.Random | None = None,
    ) -> None:
        self._sample = sample
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fishladder-shadow")
        self._room = threading.BoundedSemaphore(waiting)
        self._settle = settle
        self._observed = observed
        self._random = rng or random.Random()

    def compare(
        self, operation: Operation, payload: Payload, ours: Any, stores: Mapping[str, Application], metrics: Metrics
    ) -> None:
        """Returns at once; whatever becomes of it, the customer has the owner's answer."""
        if self._random.random() >= self._sample:
            return
        if not self._room.acquire(blocking=False):
            metrics.count("compared", operation=operation.name, outcome="dropped")
            return
        self._pool.submit(self._look, operation, payload, ours, stores, metrics)

    def _look(
        self, operation: Operation, payload: Payload, ours: Any, stores: Mapping[str, Application], metrics: Metrics
    ) -> None:
        try:
            found = observe(operation, payload, ours, stores["target"])
            if found.outcome == "mismatch":
                time.sleep(self._settle)
                found = observe_again(operation, payload, stores)
            metrics.count("compared", operation=operation.name, outcome=found.outcome)
            self._observed(found)
        finally:
            self._room.release()

    def close(self) -> None:
        """Wait for the comparisons under way."""
        self._pool.shutdown()


def observe_again(operation: Operation, payload: Payload, stores: Mapping[str, Application]) -> Observation:
    """Ask the owner, too."""
    try:
        with stores["source"].transaction(reading=True) as session:
            ours = operation.legacy(session.connection, payload)
    except Exception as error:  # noqa: BLE001 - the customer had an answer; this one only counts
        return Observation(operation=operation.name, outcome="failed", reason=type(error).__name__)
    return observe(operation, payload, ours, stores["target"])


def observe(operation: Operation, payload: Payload, ours: Any, other: Application) -> Observation:
    """Ask the new implementation, and compare."""
    try:
        with other.transaction(reading=True) as session:
            theirs = operation.new(session.connection, payload)
    except Exception as error:  # noqa: BLE001 - the new system may do what it likes here: nobody waits for it
        return Observation(operation=operation.name, outcome="failed", reason=type(error).__name__)
    if ours == theirs:
        return Observation(operation=operation.name, outcome="match")
    reason = operation.ignore(payload, ours, theirs)
    return Observation(operation=operation.name, outcome="ignored" if reason else "mismatch", reason=reason)
