"""What a person is asked to approve, in Markdown: all that the ledger knows about an attempt, on one page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Context, Decimal

from fishladder import reports, verdict
from fishladder.gates import Gate
from fishladder.ledger import Attempt, CheckResult, Ledger
from fishladder.reports import Line
from fishladder.spec import Migration
from fishladder.spec_parts import duration_text

HISTORY_WITHIN, HISTORY = timedelta(hours=1), 3
"""Whoever approves sees so many of a monitor's newest values."""
FEW = 12
"""So many lines of a report are shown; of a longer one the last of them, and a sum."""
FINDS, PASSES = 5, 1000
"""So many passes that found something are shown, out of so many at most."""
_MISMATCHES = 10_000
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")
_EXACT = Context(prec=200)


def write(spec: Migration, ledger: Ledger, attempt: Attempt, evaluated: Sequence[Gate], now: datetime) -> str:
    """What is known about an attempt."""
    cohort = quoted(attempt.cohort)
    way = (attempt.loser, attempt.winner) if attempt.kind != "complete" else ("target", "target")
    here, there = (getattr(spec, side).connection for side in way)
    story = {
        "flip": f"Writes of **{cohort}** go from {here} to {there}. They queue for seconds; reads go on.",
        "rollback": f"Writes of **{cohort}** go back from {here} to {there}. They queue for seconds; reads go on.",
        "complete": f"**{cohort}** stays in {here} for good: nothing is copied back, and there is no way back.",
    }[attempt.kind]
    facts = {
        "stage": ledger.route(attempt.cohort).stage,
        "deadline": f"{attempt.deadline} s from fence to switch; past it, it goes back by itself",
        **({"after it": _observation(spec)} if attempt.kind == "flip" else {}),
        "approvals": f"{attempt.approvals}, of different people, each for {duration_text(spec.gates.approval_expires)}",
    }
    parts = [
        [story],
        [f"Asked for by {quoted(attempt.actor)}: {quoted(attempt.reason) or '(no reason given)'}"],
        *_manual(spec, attempt),
        _table(("gate", "found"), [(gate.name, quoted(gate.found)) for gate in evaluated]),
        _table(("fact", "value"), facts.items()),
        _table(("report", "source", "target"), _reports(spec, ledger, attempt.cohort)),
        *_copies(spec, ledger, attempt.cohort),
        *_finds(ledger, attempt.cohort),
        _table(("monitor", "must be", "newest values", "before"), _observations(spec, ledger, now)),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def quoted(text: str) -> str:
    """As it is, in one line of Markdown: nobody's words look like a fact of the ledger."""
    return re.sub(r"([^\w\s,;:])", r"\\\1", " ".join(text.split()))


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [names, ["---"] * len(names), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _observation(spec: Migration) -> str:
    then = "it goes back by itself" if spec.gates.automatic_rollback else "people judge"
    return f"observed for {duration_text(spec.gates.observe)}; when a monitor is not quiet, {then}"


def _manual(spec: Migration, attempt: Attempt) -> list[list[str]]:
    """What a person has to see to, because nothing else can."""
    if attempt.kind != "flip" or not spec.gates.manual:
        return []
    return [["Whoever approves this confirms:"], [f"- {quoted(sentence)}" for sentence in spec.gates.manual]]


def _reports(spec: Migration, ledger: Ledger, cohort: str) -> Iterator[tuple[str, str, str]]:
    """Both sides of every report of a cohort, line by line; of tables that belong to none, of all cohorts."""
    cohorts = reports.cohorts_of(ledger.routes(), cohort)
    few = max(FEW // max(len(cohorts), 1), 1)
    for name in spec.reports:
        for one in cohorts:
            newest = ledger.latest_evidence("report", f"{name} {one}")
            title = name if one == cohort else f"{name} of {quoted(one)}"
            if newest is None or not newest.genuine:
                yield title, "-", "-"
                continue
            result = reports.result_of(name, one, newest.body)
            if result.problem is not None:
                yield title, quoted(result.in_short()), "-"
                continue
            yield title, _count(result.source), _count(result.target)
            pairs, label = result.pairs(), f"as of {_when(newest.began)}"
            for ours, theirs in pairs[-few:]:
                yield label, _line(ours), _line(theirs)
                label = ""
            if len(pairs) > few:
                yield f"all {len(pairs)} lines, added up", _line(_sums(result.source)), _line(_sums(result.target))


def _count(lines: Sequence[Line]) -> str:
    return f"{len(lines)} line{'' if len(lines) == 1 else 's'}"


def _line(line: Line | None) -> str:
    return "-" if line is None else " / ".join("NULL" if cell is None else quoted(cell) for cell in line)


def _sums(lines: Sequence[Line]) -> Line | None:
    """Each column of numbers added up, exactly; a dash for any other."""
    if len({len(line) for line in lines}) != 1:
        return None
    return tuple(_sum([cell for cell in column if cell is not None]) for column in zip(*lines, strict=True))


def _sum(cells: Sequence[str]) -> str:
    if not cells or not all(_NUMBER.fullmatch(cell) for cell in cells):
        return "-"
    total = Decimal(0)
    for cell in cells:
        total = _EXACT.add(total, Decimal(cell))
    return f"{total:f}"


def _copies(spec: Migration, ledger: Ledger, cohort: str) -> Iterator[list[str]]:
    """Passes over each table, and the cohort's rows on either side as they were last counted."""
    counted, rows, said = ledger.latest_evidence("totals", spec.migration), {}, "not counted yet"
    if counted is not None and counted.genuine:
        rows, said = counted.body["rows"], f"as counted {_when(counted.began)}, while customers were at work"
    lines = []
    for table in verdict.tables_of(spec):
        newest = next(iter(ledger.checks(table, limit=1)), None)
        began = _when(newest.started_at) if newest else "never"
        compared = newest.result.compared if newest and newest.result else "-"
        sides = rows.get(table, {}).get(cohort, ("-", "-"))
        lines.append((quoted(table), ledger.clean_passes(table), began, compared, *sides))
    yield _table(("table", "clean passes", "newest began", "rows compared", "source rows", "target rows"), lines)
    yield [f"Source and target rows are those of {quoted(cohort)}, {said}."]


def _finds(ledger: Ledger, cohort: str) -> Iterator[list[str]]:
    """The newest passes that found something."""
    found = [(check, said) for check in ledger.checks(limit=PASSES) if check.result and (said := _found(check.result))]
    if not found:
        yield ["No pass has found a difference."]
        return
    still, lines = Counter(one.table for one in ledger.open_mismatches(limit=_MISMATCHES)), []
    for check, said in found[:FINDS]:
        assert check.result is not None
        later = ledger.clean_passes(check.table)
        since = f"{still[check.table]} still open" if still[check.table] else f"clean passes: {later}"
        lines.append((quoted(check.table), _when(check.started_at), said, check.result.by_cohort.get(cohort, 0), since))
    yield _table(("table", "a pass of", f"found ({len(found)} passes did)", f"of {quoted(cohort)}", "since"), lines)


def _found(result: CheckResult) -> str:
    names = ("missing", "extra", "differs", "orphans", "duplicates")
    return ", ".join(f"{count} {name}" for name in names if (count := getattr(result, name)))


def _observations(spec: Migration, ledger: Ledger, now: datetime) -> Iterator[tuple[str, str, str, str]]:
    """The newest values of each monitor, and what it was like before."""
    for name, monitor in spec.monitors.items():
        found = ledger.evidence_between("monitor", name, now - HISTORY_WITHIN, now)[: -HISTORY - 1 : -1]
        values = [", ".join(f"{side} {quoted(text)}" for side, text in one.body["values"].items()) for one in found]
        before = [f"{side} {quoted(text)}" for one in found[:1] for side, text in one.body.get("before", {}).items()]
        yield name, monitor.must_be, " · ".join(values) or "-", ", ".join(before) or "-"
