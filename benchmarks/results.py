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

    ``goal``: the ratio that is asked for, None where none is set; ``holds``: whether it is reached.
    """

    benchmark: str
    case: str
    value: float
    unit: str
    reference: float
    ratio: float
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
        value=round(median(value for value, _ in rounds), 1),
        unit=unit,
        reference=round(median(reference for _, reference in rounds), 1),
        ratio=round(ratio, 3),
        goal=goal,
        holds=None if goal is None else ratio >= goal,
    )


def per_second(count: int, work: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> float:
    """How many a second, when ``work`` does ``count`` of them."""
    began = time.perf_counter()
    work(*arguments, **named)
    return count / (time.perf_counter() - began)


def table(results: Sequence[Result]) -> str:
    """The results as a table for a person."""
    width = max((len(found.case) for found in results), default=0)
    lines = [f"{'benchmark':<11}{'case':<{width}}{'value':>12}{'reference':>12}  {'unit':<15}{'ratio':>6}  goal"]
    for found in results:
        goal = "" if found.goal is None else f"{found.goal:g} {'holds' if found.holds else 'MISSED'}"
        line = f"{found.benchmark:<11}{found.case:<{width}}{found.value:>12,.0f}{found.reference:>12,.0f}"
        lines.append(f"{line}  {found.unit:<15}{found.ratio:>6.2f}  {goal}".rstrip())
    return "\n".join(lines)


def keep(results: Sequence[Result], path: Path) -> None:
    """Write one line of JSON per result, in place of those of the last run."""
    path.write_text("".join(json.dumps(asdict(found), ensure_ascii=False) + "\n" for found in results), "utf-8")
