"""Control totals that finance trusts: the same question asked of both stores (design §8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fishladder.cells import NO_HOME, SHARED
from fishladder.clock import Clock
from fishladder.errors import FishladderError, TransientError
from fishladder.plan import Side
from fishladder.spec import Migration, digest
from fishladder.spec_parts import Report
from fishladder.stores.base import Store

Line = tuple[str | None, ...]

SHOWN = 3
"""So many differences are named where one line says it all."""
TRIES = 5
BETWEEN_TRIES = 1.0
"""Seconds in which a change that is on its way may arrive before two totals count as different."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """One report for one cohort: the lines of both stores, and whether they are the same text, line by line.

    ``problem``: why it could not be asked, if so.
    """

    name: str
    cohort: str
    source: tuple[Line, ...] = ()
    target: tuple[Line, ...] = ()
    problem: str | None = None

    @property
    def equal(self) -> bool:
        return self.problem is None and self.source == self.target

    def differences(self) -> list[str]:
        """What differs, a line each, in words for a person; a line that one side has twice is one of them."""
        if self.problem is not None:
            return [f"could not be asked: {self.problem}"]
        if self.source and self.target and len(self.source[0]) != len(self.target[0]):
            widths = f"the source returns {len(self.source[0])} columns, the target {len(self.target[0])}"
            return [f"{widths}: select the same ones on both sides of reports.{self.name}"]
        return [
            f"only in the source: {words(ours)}" if ours is not None else f"only in the target: {words(theirs)}"
            for ours, theirs in self.pairs()
            if ours != theirs
        ]

    def in_short(self) -> str:
        """The same in one line of text, with the first differences only."""
        if self.equal:
            return "equal"
        found, differs = self.differences(), "" if self.problem is not None else "differs: "
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        return " ".join(f"{differs}{'; '.join(found[:SHOWN] + more)}".split())

    def pairs(self) -> list[tuple[Line | None, Line | None]]:
        """The lines of both sides in order, each beside its like; None: the other side lacks it."""
        ours, theirs = Counter(self.source), Counter(self.target)
        return [
            (line if number < ours[line] else None, line if number < theirs[line] else None)
            for line in sorted(ours | theirs, key=_order)
            for number in range(max(ours[line], theirs[line]))
        ]


def result_of(name: str, cohort: str, body: Mapping[str, Any]) -> ReportResult:
    """What a piece of evidence says."""
    ours, theirs = (tuple(map(tuple, body.get(side, ()))) for side in ("source", "target"))
    return ReportResult(name=name, cohort=cohort, source=ours, target=theirs, problem=body.get("problem"))


def cohorts_of(cohorts: Collection[str], cohort: str) -> list[str]:
    """Whose reports are those of a cohort. Tables that belong to none are in every cohort's, and go last."""
    return sorted(set(cohorts) - {NO_HOME, SHARED}) if cohort == SHARED else [cohort]


def words(line: Line | None) -> str:
    """One line as text; empty for none."""
    return "" if line is None else " | ".join("NULL" if cell is None else cell for cell in line)


def whole(report: Report) -> str:
    """The digest of all that the file says of a report: evidence of another one opens no gate."""
    return digest(report.model_dump(mode="json"))


def run_reports(
    spec: Migration, source: Store, target: Store, clock: Clock, *, cohorts: Iterable[str], until: datetime
) -> Iterator[ReportResult]:
    """Every report for every cohort over the closed period that ends before ``until`` (UTC).

    One that cannot be asked says why, and keeps no other from being asked. Raises TransientError where a store is away,
    after the result that says so.
    """
    period = _period(until)
    for cohort in cohorts:
        for name, report in spec.reports.items():
            try:
                result = _run(name, report, cohort, source, target, clock, period)
            except (FishladderError, UnicodeError) as error:  # text that is no UTF-8
                yield ReportResult(name=name, cohort=cohort, problem=str(error))
                if isinstance(error, TransientError):
                    raise
            else:
                yield result


def run_cutover_reports(
    spec: Migration, stores: Mapping[Side, Store], *, cohort: str, now: datetime
) -> list[ReportResult]:
    """The reports marked ``at_cutover`` up to this moment: nobody writes, so they are asked once."""
    marked = {name: report for name, report in spec.reports.items() if report.at_cutover}
    period = {"cohort": cohort, **_period(now)}
    return [_compare(name, report, stores["source"], stores["target"], period) for name, report in marked.items()]


def run_alone(
    spec: Migration, target: Store, *, cohorts: Iterable[str], until: datetime
) -> dict[str, dict[str, tuple[Line, ...]]]:
    """Every report in a target without its source: by name, the lines of each cohort before ``until`` (UTC)."""
    period, asked = _period(until), list(cohorts)
    return {
        name: {
            cohort: tuple(sorted(target.query(report.target, {"cohort": cohort, **period}), key=_order))
            for cohort in asked
        }
        for name, report in spec.reports.items()
    }


def _period(until: datetime) -> dict[str, str]:
    return {"from": "1970-01-01 00:00:00", "until": until.strftime("%Y-%m-%d %H:%M:%S")}


def _run(
    name: str, report: Report, cohort: str, source: Store, target: Store, clock: Clock, period: dict[str, str]
) -> ReportResult:
    tries = 0
    while True:
        tries += 1
        result = _compare(name, report, source, target, {"cohort": cohort, **period})
        if result.equal or tries == TRIES:
            return result
        clock.sleep(BETWEEN_TRIES)


def _compare(name: str, report: Report, source: Store, target: Store, parameters: Mapping[str, str]) -> ReportResult:
    ours = tuple(sorted(source.query(report.source, parameters), key=_order))
    theirs = tuple(sorted(target.query(report.target, parameters), key=_order))
    return ReportResult(name=name, cohort=parameters["cohort"], source=ours, target=theirs)


def _order(line: Line) -> list[str]:
    return ["" if cell is None else "=" + cell for cell in line]
