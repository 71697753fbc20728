"""The router for asyncio: the same calls, each in a thread, since the drivers block."""

from __future__ import annotations

import asyncio

from fishladder.serving.operations import Entity, Payload
from fishladder.serving.router import Answer, Router, Written


class AsyncRouter:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def write(
        self, operation: str, payload: Payload, *, key: str, entity: Entity | None = None, cohort: str | None = None
    ) -> Written:
        """As ``Router.write``. Cancelled, it may still take effect: repeat it with the same key to know."""
        return await asyncio.to_thread(self._router.write, operation, payload, key=key, entity=entity, cohort=cohort)

    async def read(
        self, operation: str, payload: Payload, *, entity: Entity | None = None, cohort: str | None = None
    ) -> Answer:
        """As ``Router.read``."""
        return await asyncio.to_thread(self._router.read, operation, payload, entity=entity, cohort=cohort)
