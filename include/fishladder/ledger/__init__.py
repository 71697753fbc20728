"""The ledger: the control database that remembers what a migration has done and decided."""

from __future__ import annotations

from fishladder.ledger.attempts import BEFORE_SWITCH, Attempt, Kind
from fishladder.ledger.audit import MACHINE, Event, Head, canonical, verify
from fishladder.ledger.checks import Check, CheckResult, Mismatch
from fishladder.ledger.chunks import Chunk, ChunkState, Progress, TableState
from fishladder.ledger.control import Control, Status
from fishladder.ledger.database import UPGRADE, open_engine
from fishladder.ledger.dirty import DirtyEntry, DirtyKey
from fishladder.ledger.evidence import Evidence
from fishladder.ledger.ledger import Ledger, open_ledger, utc_now
from fishladder.ledger.queue import Queued, Waiting
from fishladder.ledger.rejects import Reject
from fishladder.ledger.routes import Route
from fishladder.ledger.specs import SpecRecord
from fishladder.ledger.told import Told
from fishladder.ledger.version import upgrade

__all__ = [
    "BEFORE_SWITCH",
    "MACHINE",
    "UPGRADE",
    "Attempt",
    "Check",
    "CheckResult",
    "Chunk",
    "ChunkState",
    "Control",
    "DirtyEntry",
    "DirtyKey",
    "Event",
    "Evidence",
    "Head",
    "Kind",
    "Ledger",
    "Mismatch",
    "Progress",
    "Queued",
    "Reject",
    "Route",
    "SpecRecord",
    "Status",
    "TableState",
    "Told",
    "Waiting",
    "canonical",
    "open_engine",
    "open_ledger",
    "upgrade",
    "utc_now",
    "verify",
]
