"""What was measured: taken, printed and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import ParamSpec

P = ParamSpec("P")

REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``value`` and ``reference`` in ``unit``, medians; ``ratio``: the median of value / reference of each round.

    ``goal``: the ratio that is asked for, None where none is set: at least this where the unit is one of speed
    (``…/s``), at most this for everything else. ``holds``: whether it is reached. What could not be measured has
    neither value nor ratio, and its ``unit`` says "not available".
    """

    benchmark: str
    case: str
    value: float | None
    unit: str
    reference: float | None
    ratio: float | None
    goal: float | None = None
    holds: bool | None = None


Rounds = Sequence[tuple[float, float]]
"""Value and reference of each round, measured one right after the other."""


def result(benchmark: str, case: str, unit: str, rounds: Rounds, *, goal: float | None = None) -> Result:
    """The medians of the rounds, and whether they reach the goal."""
    ratio = median(value / reference for value, reference in rounds)
    return Result(
        benchmark=benchmark,
        case=case,
        value=_rounded(median(value for value, _ in rounds)),
        unit=unit,
        reference=_rounded(median(reference for _, reference in rounds)),
        ratio=round(ratio, 3),
        goal=goal,
        holds=None if goal is None else ratio >= goal if _more_is_better(unit) else ratio <= goal,
    )


def not_available(benchmark: str, case: str, reason: str, *, goal: float | None = None) -> Result:
    """A case that this machine cannot measure, and why."""
    return Result(
        benchmark=benchmark,
        case=f"{case}: {reason}",
        value=None,
        unit="not available",
        reference=None,
        ratio=None,
        goal=goal,
    )


def _more_is_better(unit: str) -> bool:
    return unit.endswith("/s")


def _rounded(number: float) -> float:
    return round(number, 1 if number >= 100 else 3)


def seconds(work: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> float:
    """How long ``work`` takes."""
    began = time.perf_counter()
    work(*arguments, **named)
    return time.perf_counter() - began


def per_second(count: int, work: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> float:
    """How many a second, when ``work`` does ``count`` of them."""
    return count / seconds(work, *arguments, **named)


def table(results: Sequence[Result]) -> str:
    """The results as a table for a person."""
    width = max((len(found.case) for found in results if found.value is not None), default=0)
    lines = [f"{'benchmark':<11}{'case':<{width}}{'value':>12}{'reference':>12}  {'unit':<15}{'ratio':>7}  goal"]
    for found in results:
        if found.value is None or found.reference is None or found.ratio is None:
            lines.append(f"{found.benchmark:<11}NOT AVAILABLE  {found.case}")
            continue
        line = f"{found.benchmark:<11}{found.case:<{width}}{_number(found.value):>12}{_number(found.reference):>12}"
        lines.append(f"{line}  {found.unit:<15}{found.ratio:>7.2f}  {_goal(found)}".rstrip())
    return "\n".join(lines)


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.2f}"


def _goal(found: Result) -> str:
    if found.goal is None:
        return ""
    return f"{'≥' if _more_is_better(found.unit) else '≤'} {found.goal:g} {'holds' if found.holds else 'MISSED'}"


def keep(results: Sequence[Result], path: Path) -> None:
    """Write one line of JSON per result, in place of those of the last run."""
    path.write_text("".join(json.dumps(asdict(found), ensure_ascii=False) + "\n" for found in results), "utf-8")
