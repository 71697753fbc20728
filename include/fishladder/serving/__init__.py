"""What an application embeds so that its customers notice nothing: router, queue, replay, shadow comparison."""

from __future__ import annotations

from fishladder.serving.asynchronous import AsyncRouter
from fishladder.serving.metrics import Metrics, OpenTelemetry
from fishladder.serving.operations import Operation, Operations
from fishladder.serving.replay import Replayer
from fishladder.serving.router import Answer, Pending, Refused, Router, Written
from fishladder.serving.shadow import Observation, Shadow

__all__ = [
    "Answer",
    "AsyncRouter",
    "Metrics",
    "Observation",
    "OpenTelemetry",
    "Operation",
    "Operations",
    "Pending",
    "Refused",
    "Replayer",
    "Router",
    "Shadow",
    "Written",
]
