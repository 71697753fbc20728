"""Monitors: presence of the unexpected, absence of the expected; no data is a failure (design §12).

``no_more_than_before`` and ``no_less_than_before`` measure a number against the median of the same monitor's own
values before the last flip. The median, because half of the values may be wild and it stays where it was (Hampel's
breakdown point of one half). It is a before/after comparison, which knows nothing of nights and weekends: see "Before/
After Evaluation Is Risky" in chapter 16 of The Site Reliability Workbook (Google, 2018).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import isfinite
from statistics import median

from fishladder.errors import FatalError, InputError
from fishladder.ledger import Ledger
from fishladder.plan import Side
from fishladder.spec import Migration, digest
from fishladder.spec_parts import Metric, Monitor, duration_text
from fishladder.stores.base import Store

FEWEST = 12
"""Values of a baseline: an hour of ``<m>_monitor``."""

SLOT = 300
"""Seconds of which a baseline takes one value, the first: somebody's runs by hand outweigh no past."""

Measure = Callable[[Metric], float]
"""The value of a metric now. Raises InputError and FatalError, which say why there is none."""
Before = Callable[[str, Monitor], Mapping[str, Sequence[float]]]
"""A monitor's values before the last flip, by what was asked: ``source``, ``target``, ``metric``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a monitor found on each side that it asks, or why it found nothing; ``quiet``: all as it must be.

    ``before``: by side, what the past allows, or why it says nothing. ``asked``: the digest of the question.
    """

    name: str
    must_be: str
    values: Mapping[str, str]
    before: Mapping[str, str]
    asked: str
    quiet: bool

    def __str__(self) -> str:
        """In one line, for a log or a message."""
        parts = [f"{side} {value}{self._allowed(side)}" for side, value in self.values.items()]
        return f"{self.name} must be {self.must_be}: {', '.join(parts)}"

    def _allowed(self, side: str) -> str:
        return f" ({self.before[side]})" if side in self.before else ""


def no_metrics(metric: Metric) -> float:
    """For a desk that asks none. Raises InputError."""
    raise InputError(f"connection {metric.connection}: metrics cannot be asked here")


def _nothing_before(name: str, monitor: Monitor) -> Mapping[str, Sequence[float]]:
    return {}


def observe(
    spec: Migration, stores: Mapping[Side, Store], *, measure: Measure = no_metrics, before: Before = _nothing_before
) -> Iterator[Observed]:
    """Ask every monitor for all that it names. Raises TransientError when a store is away.

    Anything else that fails is no data, and keeps no other monitor from being asked.
    """
    for name, monitor in spec.monitors.items():
        past = before(name, monitor) if monitor.compares else {}
        values, allowed, quiet = dict[str, str](), dict[str, str](), True
        for side, ask in _questions(monitor, stores, measure):
            try:
                number = ask()
            except (InputError, FatalError) as error:
                values[side], quiet = f"no data: {error}", False
                continue
            if number is None:
                values[side], quiet = "no data", False
                continue
            values[side] = f"{number:.15g}"
            if monitor.compares:
                allowed[side], fits = _compare(monitor, number, past.get(side, ()))
            else:
                fits = number == 0 if monitor.must_be == "zero" else number > 0
            quiet &= fits
        yield Observed(
            name=name, must_be=monitor.must_be, values=values, before=allowed, asked=question(monitor), quiet=quiet
        )


def question(monitor: Monitor) -> str:
    """The digest of what is asked: values are compared only with those of the same question."""
    return digest(monitor.model_dump(mode="json", include={"source", "target", "metric"}, exclude_defaults=True))


def whole(monitor: Monitor) -> str:
    """The digest of all that the file says of a monitor: evidence of another one opens no gate."""
    return digest(monitor.model_dump(mode="json"))


def values_before(ledger: Ledger, now: datetime, name: str, monitor: Monitor) -> dict[str, list[float]]:
    """What evidence says of a monitor within its window before the last flip began to fence, or else before ``now``.

    Only evidence that is what was recorded, and of the same question. Loud or quiet does not matter.
    """
    flips = (attempt for attempt in ledger.attempts(limit=10_000) if attempt.kind == "flip" and attempt.switched_at)
    until = max((flip.fenced_at for flip in flips if flip.fenced_at is not None), default=now)
    found, slots = defaultdict[str, list[float]](list), set[tuple[str, float]]()
    for evidence in ledger.evidence_between("monitor", name, until - monitor.window, until):
        if evidence.body.get("asked") != question(monitor):
            continue
        for side, text in evidence.body["values"].items():
            slot = side, evidence.began.timestamp() // SLOT
            if slot not in slots and not text.startswith("no data"):
                slots.add(slot)
                found[side].append(float(text))
    return found


def _questions(
    monitor: Monitor, stores: Mapping[Side, Store], measure: Measure
) -> Iterator[tuple[str, Callable[[], float | None]]]:
    for side, store in stores.items():
        query: str | None = getattr(monitor, side)
        if query is not None:
            yield side, partial(_number, store, query)
    if monitor.metric is not None:
        yield "metric", partial(measure, monitor.metric)


def _number(store: Store, query: str) -> float | None:
    """The one number that a query has to return."""
    lines = store.query(query, {})
    if len(lines) != 1 or len(lines[0]) != 1 or lines[0][0] is None:
        return None
    try:
        number = float(lines[0][0])
    except ValueError:
        return None
    return number if isfinite(number) else None


def _compare(monitor: Monitor, number: float, past: Sequence[float]) -> tuple[str, bool]:
    """What the past allows, in words, and whether the number is that."""
    assert monitor.within is not None
    if len(past) < FEWEST:
        window = duration_text(monitor.window)
        return f"no baseline: {len(past)} values of {window} before the last flip, it takes {FEWEST}", False
    middle, factor, upward = median(past), monitor.within, monitor.must_be == "no_more_than_before"
    if middle < 0 or (middle == 0 and not upward):
        return f"no baseline: its median is {middle:g}, of which no factor makes sense", False
    limit = middle * factor if upward else middle / factor
    most = f"at most {limit:g}, {factor:g} times" if upward else f"at least {limit:g}, 1/{factor:g} of"
    return f"{most} the median {middle:g} of {len(past)} values", number <= limit if upward else number >= limit
