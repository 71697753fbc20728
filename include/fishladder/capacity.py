"""Capacity: how large the tables are, how fast they grow, whether they fit, and how long the load will take.

Growth needs two looks at a time apart, so every preflight keeps its sizes as evidence, with the first that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from fishladder.ledger import Ledger
from fishladder.spec import Migration
from fishladder.stores.base import Finding, Store, TableInfo

YEAR = timedelta(days=365)
APART = timedelta(days=1)
"""How long growth is watched before a year is made of it: the hours of a day differ too much."""


@runtime_checkable
class OnDisk(Protocol):
    """A store that sees the disk it lies on."""

    def disk(self) -> tuple[int, int] | None:
        """Bytes that all of the store takes, and bytes that are free beside it; None if it lies on no disk."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of one table, by the store's own estimate, as of ``at``; and when it was first measured."""

    rows: int
    bytes: int
    at: datetime
    first_rows: int
    first_bytes: int
    first_at: datetime

    def a_year_more(self) -> tuple[int, int] | None:
        """Rows and bytes that a year adds at the measured rate, none if it shrinks; None: not watched long enough."""
        watched = self.at - self.first_at
        if watched < APART:
            return None
        rows, size = (self.rows - self.first_rows, self.bytes - self.first_bytes)
        return max(0, round(rows * (YEAR / watched))), max(0, round(size * (YEAR / watched)))

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "bytes": self.bytes,
            "at": self.at.isoformat(),
            "first": {"rows": self.first_rows, "bytes": self.first_bytes, "at": self.first_at.isoformat()},
        }


def measure(spec: Migration, source: Mapping[str, TableInfo], ledger: Ledger, now: datetime) -> dict[str, Size]:
    """The sizes of the source's migrated tables ``now``, beside those that the first preflight in the ledger saw."""
    evidence = ledger.latest_evidence("preflight", spec.migration)
    known = evidence.body.get("sizes", {}) if evidence is not None else {}
    found = {}
    for name in spec.tables:
        if name not in source:
            continue
        info = source[name]
        seen = {"rows": info.rows, "bytes": info.bytes, "at": now.isoformat()}
        first: dict[str, Any] = known[name]["first"] if name in known else seen
        found[name] = Size(
            rows=info.rows,
            bytes=info.bytes,
            at=now,
            first_rows=first["rows"],
            first_bytes=first["bytes"],
            first_at=datetime.fromisoformat(first["at"]),
        )
    return found


def capacity(
    spec: Migration,
    sizes: Mapping[str, Size],
    source: Store,
    target: Store,
    ledger: Ledger,
    *,
    there: Iterable[TableInfo],
) -> list[Finding]:
    """Size and growth per table, space at the target, and time. ``there``: the target's tables as they are."""
    findings = [Finding(level="pass", where=name, message=_told(size)) for name, size in sizes.items()]
    findings.append(_space(sizes, source, target, sum(info.rows for info in there)))
    findings.append(_time(spec, sizes, ledger))
    return findings


def _told(size: Size) -> str:
    held = f"{size.rows:,} rows{f', {bytes_text(size.bytes)}' if size.bytes else ''} in the source"
    more = size.a_year_more()
    if more is None:
        return f"{held}; its growth is known from a preflight that runs a day or more after the first"
    added = f"{more[0]:,} rows{f', {bytes_text(more[1])}' if size.bytes else ''}"
    return f"{held}; {added} more in a year, as it grew in {(size.at - size.first_at).days} days"


def _space(sizes: Mapping[str, Size], source: Store, target: Store, loaded: int) -> Finding:
    """Whether what is to be loaded, and a year's growth, fit beside the ``loaded`` rows that the target has."""
    year = [size.a_year_more() for size in sizes.values()]
    rows, now = sum(size.rows for size in sizes.values()), sum(size.bytes for size in sizes.values())
    grown = sum(more[1] for more in year if more is not None)
    ours = source.disk() if isinstance(source, OnDisk) else None
    if not now and ours is not None:  # a store that knows no table's size knows its own
        now = ours[0]
        grown = now * sum(more[0] for more in year if more is not None) // max(rows, 1)
    need, where = f"{bytes_text(now)} now and {bytes_text(grown)} more in a year", "target: space"
    if any(more is None for more in year):
        need = f"{bytes_text(now)} now, and growth that is not known yet"
    disk = target.disk() if isinstance(target, OnDisk) else None
    if disk is None:
        message = f"the target does not tell how much is free: see that there is room for {need}"
        return Finding(level="warn", where=where, message=message)
    left, free = now * max(0, rows - loaded) // max(rows, 1), disk[1]
    if left > free:
        message = f"{bytes_text(free)} are free, too little for {need}: make room before the load"
        return Finding(level="fail", where=where, message=message)
    if left + grown > free:
        message = f"{bytes_text(free)} are free, too little for a year: {need}"
        return Finding(level="warn", where=where, message=message)
    return Finding(level="pass", where=where, message=f"{bytes_text(free)} are free, enough for {need}")


def _time(spec: Migration, sizes: Mapping[str, Size], ledger: Ledger) -> Finding:
    """How long the lanes need for the rows that are left, at the speed of the chunks that are done."""
    rows, left, seconds = 0, 0, 0.0
    for name, size in sizes.items():
        done = list(_done(ledger, name))
        loaded = sum(chunk_rows for chunk_rows, _ in done)
        rows, seconds = rows + loaded, seconds + sum(taken for _, taken in done)
        left += 0 if ledger.table_state(name).phase == "closed" else max(0, size.rows - loaded)
    where = "load: time"
    if not rows or not seconds:
        message = f"unknown until the first chunks are loaded; {left:,} rows are to be loaded"
        return Finding(level="pass", where=where, message=message)
    speed = rows / seconds
    if not left:
        return Finding(level="pass", where=where, message=f"all is loaded, at {speed:,.0f} rows/s in each lane")
    message = f"{left:,} rows are left: about {duration(left / (speed * spec.lanes))} at the measured speed"
    return Finding(level="pass", where=where, message=f"{message} of {speed:,.0f} rows/s in each of {spec.lanes} lanes")


def _done(ledger: Ledger, table: str) -> Iterator[tuple[int, float]]:
    """Rows and seconds of each finished chunk."""
    for chunk in ledger.chunks(table):
        if chunk.state == "done" and chunk.claimed_at is not None and chunk.finished_at is not None:
            yield chunk.rows, (chunk.finished_at - chunk.claimed_at).total_seconds()


def duration(seconds: float) -> str:
    """In the largest units that still say something: ``3 s``, ``12 min``, ``5.2 h``, ``3.1 days``."""
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def bytes_text(size: int) -> str:
    """``512 B``, ``1.5 MB``, ``2.0 TB``: powers of ten, as disks are sold."""
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
