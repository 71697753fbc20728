"""Lanes as Airflow runs them: each a process of its own, here started together."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.ground import Migration
from fishladder import tasks

START_SECONDS = 60.0
_CONTEXT = multiprocessing.get_context("spawn")

Lane = Callable[[Migration, str], None]
"""What a lane does, given its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Until all lanes had ended; the memory of the largest at its peak."""

    seconds: float
    megabytes: float


def load_invoices(migration: Migration, lane: str) -> None:
    with migration.desk() as desk:
        tasks.load_table(desk, "invoice", lane)


def run_lanes(migration: Migration, lanes: int, work: Lane = load_invoices) -> Ran:
    """Run the lanes side by side; the clock starts when all have been imported. Raises RuntimeError if one fails."""
    start = _CONTEXT.Barrier(lanes + 1)
    peaks: SimpleQueue[float] = _CONTEXT.SimpleQueue()
    processes = [
        _CONTEXT.Process(target=_lane, args=(work, migration, str(number), start, peaks))
        for number in range(1, lanes + 1)
    ]
    for process in processes:
        process.start()
    start.wait(START_SECONDS)
    began = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise RuntimeError("a lane failed; its error stands above")
    return Ran(seconds=seconds, megabytes=max(peaks.get() for _ in processes))


def _lane(work: Lane, migration: Migration, lane: str, start: Barrier, peaks: SimpleQueue[float]) -> None:
    start.wait(START_SECONDS)
    work(migration, lane)
    peaks.put(_peak_megabytes())


def _peak_megabytes() -> float:
    # Not getrusage: its peak begins with that of the process which started this one.
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status names no peak of memory (VmHWM); this benchmark needs Linux")
