"""What the ledger's records add up to: whether the copies are clean, and whether the applier has caught up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fishladder.cells import NO_HOME, SHARED
from fishladder.ledger import Check, Ledger, Status
from fishladder.spec import Migration
from fishladder.stores.base import APPLIED_TABLE, HOME_TABLE

SILENT = timedelta(minutes=1)
"""An applier that has noted nothing for so long is not running, whatever its last lag was."""

_COUNTS = ("compared", "missing", "extra", "differs", "deferred", "orphans", "duplicates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``lines``: what was found, as a table for a log. ``problems``: why it is not clean, each with what to do."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def tables_of(spec: Migration) -> list[str]:
    """Every table that is copied, in the order in which they are loaded: fishladder's own come first."""
    return [HOME_TABLE, APPLIED_TABLE, *spec.tables]


def judge(spec: Migration, ledger: Ledger) -> Verdict:
    """Judge the newest pass over every table and the newest result of every report; what is missing is not clean."""
    rows: list[Sequence[str]] = [("table", *_COUNTS, "rejects", "")]
    problems: list[str] = []
    for table in tables_of(spec):
        newest = next(iter(ledger.checks(table, limit=1)), None)
        rejects = ledger.count_rejects(table=table)
        doubts = list(_doubts(table, newest, rejects))
        result = newest.result if newest else None
        counts = [str(getattr(result, name)) if result else "-" for name in _COUNTS]
        rows.append((table, *counts, str(rejects), "not clean" if doubts else "clean"))
        problems += doubts
    lines = _aligned(rows)
    cohorts = sorted(ledger.routes().keys() - {NO_HOME, SHARED})
    for report in spec.reports:
        results = {cohort: ledger.latest_evidence("report", f"{report} {cohort}") for cohort in cohorts}
        wrong = [cohort for cohort, result in results.items() if result is None or not result.passed]
        lines.append(f"report {report}: equal for {len(cohorts) - len(wrong)} of {len(cohorts)} cohorts")
        if wrong:
            problems.append(f"report {report}: differs, or has no result, for {_some(wrong)}; see the log of its task")
    return Verdict(lines=tuple(lines), problems=tuple(problems))


def _doubts(table: str, check: Check | None, rejects: int) -> Iterator[str]:
    if rejects:
        yield f"{table}: the target refused {rejects} rows: see python -m fishladder rejects, mend why, retry them"
    if check is None:
        yield f"{table}: no pass is known; reconcile it"
    elif check.void is not None:
        yield f"{table}: its last pass does not count any more ({check.void}); see to that, then reconcile again"
    elif check.result is None:
        yield f"{table}: its last pass is not finished; wait for it, or reconcile again"
    elif not check.clean:
        found = [f"{getattr(check.result, name)} {name}" for name in _COUNTS[1:] if getattr(check.result, name)]
        what = ", ".join(found) or "its coverage changed during the pass"
        yield f"{table}: {what}; what can be repaired is marked dirty, and the applier repairs it: reconcile again"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first and the last column to the left, counts to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for first, *counts, last in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(width) for c, width in zip(counts, widths[1:-1], strict=True)), last]
        lines.append("  ".join(cells).rstrip())
    return lines


def clean(spec: Migration, ledger: Ledger, *, passes: int, tables: Sequence[str] = ()) -> bool:
    """Whether these tables, or all, have so many clean passes in a row."""
    return all(ledger.clean_passes(table) >= passes for table in tables or tables_of(spec))


def at_work(applier: Status | None, now: datetime) -> bool:
    """Whether the applier, of which this is the last sign, follows the source."""
    return applier is not None and now - applier.at <= SILENT


def caught_up(ledger: Ledger, now: datetime, max_lag: timedelta) -> bool:
    """Whether the applier runs, is behind by at most ``max_lag``, and nothing else is dirty."""
    last = ledger.status("applier")
    if last is None or not at_work(last, now) or ledger.count_dirty():
        return False
    return timedelta(seconds=last.data["lag"] or 0) <= max_lag
