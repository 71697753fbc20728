"""The router for asyncio: the same calls. Steps run in threads, since the drivers block; between steps none is held."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fishladder.serving.operations import Entity, Payload
from fishladder.serving.router import Answer, Router, Steps, Written

T = TypeVar("T")
THREADS = 16


class AsyncRouter:
    """One for a process, beside asyncio's own pool of threads.

    ``threads``: so many for reads and so many for writes, which may wait in a store for a fence; each may hold a
    connection to each store.
    """

    def __init__(self, router: Router, *, threads: int = THREADS) -> None:
        self._router = router
        self._reads = ThreadPoolExecutor(threads, "fishladder-read")
        self._writes = ThreadPoolExecutor(threads, "fishladder-write")

    def close(self) -> None:
        """When no call is under way any more; it waits for its threads, so not in the event loop's own."""
        self._reads.shutdown()
        self._writes.shutdown()
        self._router.close()

    async def write(
        self, operation: str, payload: Payload, *, key: str, entity: Entity | None = None, cohort: str | None = None
    ) -> Written:
        """As ``Router.write``. Cancelled, it may still take effect: repeat it with the same key to know."""
        return await _taken(
            self._router.writing(operation, payload, key=key, entity=entity, cohort=cohort), self._writes
        )

    async def read(
        self, operation: str, payload: Payload, *, entity: Entity | None = None, cohort: str | None = None
    ) -> Answer:
        """As ``Router.read``."""
        return await _taken(self._router.reading(operation, payload, entity=entity, cohort=cohort), self._reads)


async def _taken(steps: Steps[T], pool: ThreadPoolExecutor) -> T:
    """Each step in a thread that sees the caller's context, as with ``asyncio.to_thread``."""
    context = contextvars.copy_context()
    while True:
        end = await asyncio.get_running_loop().run_in_executor(pool, context.run, _step, steps)
        if not isinstance(end, float):
            return end.value
        await asyncio.sleep(end)


def _step(steps: Steps[T]) -> float | StopIteration:
    """The seconds to wait before the next one, or the end: a future cannot raise it."""
    try:
        return next(steps)
    except StopIteration as end:
        return end
