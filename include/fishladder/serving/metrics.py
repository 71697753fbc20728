"""What the router tells about itself: counts and latencies, to whoever listens."""

from __future__ import annotations

from typing import Any, Protocol


class Metrics(Protocol):
    def count(self, name: str, **labels: str) -> None: ...

    def seconds(self, name: str, value: float, **labels: str) -> None: ...


class NoMetrics:
    """Nobody listens."""

    def count(self, name: str, **labels: str) -> None:
        return None

    def seconds(self, name: str, value: float, **labels: str) -> None:
        return None


class OpenTelemetry:
    """``fishladder.<name>`` as counters and histograms of an OpenTelemetry meter, which the application brings."""

    def __init__(self, meter: Any) -> None:
        self._counters = {
            name: meter.create_counter(f"fishladder.{name}", description=text) for name, text in COUNTERS.items()
        }
        self._histograms = {
            name: meter.create_histogram(f"fishladder.{name}", unit="s", description=text)
            for name, text in HISTOGRAMS.items()
        }

    def count(self, name: str, **labels: str) -> None:
        self._counters[name].add(1, labels)

    def seconds(self, name: str, value: float, **labels: str) -> None:
        self._histograms[name].record(value, labels)


COUNTERS = {
    "writes": "writes by operation, stage and outcome: done, repeated, queued",
    "reads": "reads by operation and stage",
    "refused": "times that a fence or a route sent the router back to the ledger",
    "promises": "optimistic actions that failed when the write was queued: left to the replay",
    "retries": "times that a transaction was repeated",
    "replayed": "queued writes by outcome: done, refused, parked, failed",
    "outages": "times that the ledger, or a store that was asked for a home, did not answer, by which and error",
    "compared": "shadow comparisons by operation and outcome: match, mismatch, ignored, failed, dropped",
}
HISTOGRAMS = {
    "write": "seconds of a write, with all its waiting",
    "read": "seconds of a read",
}
