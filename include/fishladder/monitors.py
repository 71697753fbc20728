"""Monitors: presence of the unexpected, absence of the expected; no data is a failure (design §12)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fishladder.errors import FatalError
from fishladder.plan import Side
from fishladder.spec import Migration
from fishladder.stores.base import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a monitor found on each side that it asks, or why it found nothing; ``quiet``: all as it must be."""

    name: str
    must_be: str
    values: Mapping[str, str]
    quiet: bool


def observe(spec: Migration, stores: Mapping[Side, Store]) -> Iterator[Observed]:
    """Ask every monitor on every side that it names. Raises TransientError when a store is away."""
    for name, monitor in spec.monitors.items():
        values, quiet = dict[str, str](), True
        for side, store in stores.items():
            query = getattr(monitor, side)
            if query is None:
                continue
            try:
                lines = store.query(query, {})
            except FatalError as error:  # a query that fails is no data
                values[side], quiet = str(error), False
                continue
            number = _number(lines)
            values[side] = "no data" if number is None else f"{number:g}"
            quiet &= number is not None and (number == 0 if monitor.must_be == "zero" else number > 0)
        yield Observed(name=name, must_be=monitor.must_be, values=values, quiet=quiet)


def _number(lines: list[tuple[str | None, ...]]) -> float | None:
    """The one number that a query has to return."""
    if len(lines) != 1 or len(lines[0]) != 1 or lines[0][0] is None:
        return None
    try:
        return float(lines[0][0])
    except ValueError:
        return None
