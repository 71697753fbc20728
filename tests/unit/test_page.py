"""What a person sees before saying yes: figures of both sides, and what was wrong lately."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fishladder import page, tasks
from fishladder.ledger import Attempt
from fishladder.spec_parts import Report
from fishladder.tasks import Desk
from tests.unit import small as smalls
from tests.unit.small import Small
from tests.unit.test_approvals import desk_of

MONTHS = (
    "with recursive n(i) as (select 10 union all select i + 1 from n where i < {last} and :cohort <> '')"
    " select '2026-' || i, i || '.50', null from n"
)


@pytest.fixture
def small(followed: Path, tmp_path: Path) -> Iterator[Small]:
    made = smalls.reopen(shutil.copytree(followed, tmp_path, dirs_exist_ok=True))
    desk = desk_of(made)
    made.ledger.record_spec(made.spec.to_json(), desk.runs["spec"], desk.runs["code"], "test")
    yield made
    smalls.close([made])


def ask(desk: Desk, cohort: str = "NZ") -> Attempt:
    return desk.ledger.begin_attempt(cohort, "flip", actor="ann", reason="", deadline=60, approvals=1)


def rows(desk: Desk, attempt: Attempt, first: str) -> list[list[str]]:
    """The rows of the table whose first column has this name, with what Markdown shows of each cell."""
    text = page.write(desk.spec, desk.ledger, attempt, desk.evaluate(attempt), desk.clock.now())
    (table,) = (part for part in text.split("\n\n") if part.startswith(f"| {first} |"))
    shown = [re.sub(r"\\(.)", r"\1", line) for line in table.split("\n")[2:]]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in shown]


def reporting(desk: Desk, source: str, target: str) -> Desk:
    report = Report(source=source, target=target)
    made = replace(desk, spec=desk.spec.model_copy(update={"reports": {"months": report}}))
    tasks.report(made)
    return made


def test_every_line_of_a_report_while_they_are_few(small: Small) -> None:
    months = MONTHS.format(last=12)
    desk = reporting(desk_of(small), months, months)
    title, first, *more = rows(desk, ask(desk), "report")
    assert title == ["months", "3 lines", "3 lines"]
    assert first[0].startswith("as of 20") and first[1:] == ["2026-10 / 10.50 / NULL"] * 2
    assert more == [
        ["", f"2026-{month} / {month}.50 / NULL", f"2026-{month} / {month}.50 / NULL"] for month in (11, 12)
    ]


def test_the_last_lines_of_a_long_report_and_a_sum_of_all(small: Small) -> None:
    desk = reporting(desk_of(small), MONTHS.format(last=29), MONTHS.format(last=30))
    title, *lines, total = rows(desk, ask(desk), "report")
    assert title == ["months", "20 lines", "21 lines"] and len(lines) == page.FEW
    assert lines[-1] == ["", "-", "2026-30 / 30.50 / NULL"], "what one side lacks stands beside nothing"
    assert lines[-2] == ["", *["2026-29 / 29.50 / NULL"] * 2]
    assert total == ["all 21 lines, added up", "- / 400.00 / -", "- / 430.50 / -"]


def test_sums_are_exact(small: Small) -> None:
    large = "99999999999999999999999999999999999.99"
    query = f"with recursive n(i) as (select 1 union all select i + 1 from n where i < 20) select i, '{large}' from n"
    desk = reporting(desk_of(small), f"{query} where :cohort <> ''", f"{query} where :cohort <> ''")
    assert rows(desk, ask(desk), "report")[-1][1] == "210 / 1999999999999999999999999999999999999.80"


def test_shared_tables_go_with_the_reports_of_every_cohort(small: Small) -> None:
    months = MONTHS.format(last=30)
    desk = reporting(desk_of(small), months, months)
    found = rows(desk, small.ledger.begin_attempt("shared", "flip", actor="ann", reason="", deadline=60), "report")
    assert [row[0] for row in found if row[0].startswith("months")] == ["months of AU", "months of NZ"]
    assert len(found) < 20, "of many cohorts fewer lines are shown each"


def test_a_report_that_nobody_has_asked_yet(small: Small) -> None:
    report = Report(source="select 1", target="select 1")
    desk = desk_of(small)
    desk = replace(desk, spec=desk.spec.model_copy(update={"reports": {"months": report}}))
    assert rows(desk, ask(desk), "report") == [["months", "-", "-"]]


def test_rows_on_both_sides_of_the_cohort(small: Small) -> None:
    desk, attempt = desk_of(small), ask(desk_of(small))
    assert {tuple(row[-2:]) for row in rows(desk, attempt, "table")} == {("-", "-")}
    small.damage("DELETE FROM line WHERE no = 2")
    tasks.totals(desk)
    found = {row[0]: row[-2:] for row in rows(desk, attempt, "table")}
    assert (found["customer"], found["line"]) == (["1", "1"], ["2", "1"])
    text = page.write(desk.spec, desk.ledger, attempt, [], desk.clock.now())
    assert re.search(r"those of NZ, as counted \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)


def test_the_last_differences_and_what_became_of_them(small: Small) -> None:
    desk, attempt = desk_of(small), ask(desk_of(small))
    assert "No pass has found a difference." in page.write(desk.spec, desk.ledger, attempt, [], desk.clock.now())
    small.damage("UPDATE item SET amount = 77 WHERE id IN (10, 20)", "DELETE FROM line WHERE no = 2")
    tasks.reconcile_table(desk, "item")
    tasks.reconcile_table(desk, "line")

    def finds() -> list[list[str]]:
        text = page.write(desk.spec, desk.ledger, attempt, [], desk.clock.now())
        table = text.split("| table | a pass of | found")[1].split("\n\n")[0]
        cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.split("\n")[2:]]
        return [[row[0], *row[2:]] for row in cells]

    assert finds() == [["line", "1 missing", "1", "1 still open"], ["item", "2 differs", "1", "2 still open"]]
    small.follow()
    tasks.reconcile_table(desk, "item")
    assert finds() == [["line", "1 missing", "1", "clean passes: 0"], ["item", "2 differs", "1", "clean passes: 1"]]


def test_whoever_approves_a_flip_confirms_what_nothing_can_check(small: Small) -> None:
    sentences = ("The service desk of *NZ* knows the date.", "Finance has closed the month.")
    desk = desk_of(small)
    spec = desk.spec.model_copy(update={"gates": desk.spec.gates.model_copy(update={"manual": sentences})})
    attempt = ask(desk)
    text = page.write(spec, desk.ledger, attempt, [], desk.clock.now())
    asked = r"- The service desk of \*NZ\* knows the date\." + "\n" + r"- Finance has closed the month\."
    assert f"\n\nWhoever approves this confirms:\n\n{asked}\n\n" in text
    assert replace(desk, spec=spec).runs != desk.runs, "another sentence voids what was approved"
    for other, kind in ((desk.spec, "flip"), (spec, "rollback")):
        assert "confirms" not in page.write(other, desk.ledger, replace(attempt, kind=kind), [], desk.clock.now())
