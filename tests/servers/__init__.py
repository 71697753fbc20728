"""Real database servers for the tests: no containers, nothing installed in the system, nothing left behind.

``python -m tests.servers start | stop | env | around COMMAND…``; everything lives in ``.stores``.
"""

from __future__ import annotations

from pathlib import Path

STORES = Path(__file__).resolve().parents[2] / ".stores"


class Unavailable(Exception):
    """A server cannot be had here. The message says which one, why, and what to do."""
