"""What a report says of two stores that do not agree, and what a flip makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from fishladder import tasks
from fishladder.errors import TransientError
from fishladder.gates import closed
from fishladder.ledger import Evidence
from fishladder.reports import Line, ReportResult
from fishladder.stores.sqlite import SqliteStore, connect
from tests.unit.flips import flips
from tests.unit.small import SPEC, Small
from tests.unit.test_approvals import desk_of

TWICE = "select 'a' union all select 'a'"
ONCE = "select 'a'"


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ([("a", "1")], [("a", "1")], []),
        ([("a", "1")], [("a", "2")], ["only in the source: a | 1", "only in the target: a | 2"]),
        ([("a",), ("a",)], [("a",)], ["only in the source: a"]),
        ([], [("a", None)], ["only in the target: a | NULL"]),
        (
            [("a", "1")],
            [("a",)],
            ["the source returns 2 columns, the target 1: select the same ones on both sides of reports.revenue"],
        ),
    ],
)
def test_what_differs(source: list[Line], target: list[Line], said: list[str]) -> None:
    result = ReportResult(name="revenue", cohort="NZ", source=tuple(source), target=tuple(target))
    assert (result.equal, result.differences()) == (not said, said)


@pytest.mark.parametrize(
    ("source", "target", "error"),
    [
        (ONCE, ONCE, None),
        (TWICE, ONCE, "only in the source: a"),
        ("select 'a', 1", ONCE, "the source returns 2 columns, the target 1"),
    ],
)
def test_reports_under_the_fence_stop_the_switch(
    make_small: Callable[..., Small], source: str, target: str, error: str | None
) -> None:
    report = f'reports: {{money: {{source: "{source}", target: "{target}", at_cutover: true}}}}\n'
    small = make_small(spec=SPEC + report)
    small.load()
    small.follow()
    with flips(small) as moving:
        ended = moving.move()
    assert ended.outcome == ("aborted" if error else "done")
    assert small.ledger.route("NZ").owner == ("source" if error else "target")
    assert error is None or f"money: {error}" in str(ended.error)


def test_the_first_differences_in_one_line() -> None:
    def result(*target: Line) -> ReportResult:
        source = (("2026-01", "1"), ("2026-02", "2"))
        return ReportResult(name="revenue", cohort="NZ", source=source, target=target)

    assert result(("2026-01", "1"), ("2026-02", "2")).in_short() == "equal"
    assert result(("2026-01", "1"), ("2026-02", "a\n b")).in_short() == (
        "differs: only in the source: 2026-02 | 2; only in the target: 2026-02 | a b"
    )
    assert result(*((f"2026-0{month}", "9") for month in range(1, 6))).in_short() == (
        "differs: only in the source: 2026-01 | 1; only in the target: 2026-01 | 9; only in the source: 2026-02 | 2;"
        " and 4 more"
    )


MIXED = """
reports:
  broken: {source: "select 1 from nowhere where :cohort <> ''", target: "select 1 where :cohort <> ''"}
  garbled: {source: "select cast(x'ff' as text) where :cohort <> ''", target: "select 1 where :cohort <> ''"}
  money: {source: "select 1 where :cohort <> ''", target: "select 1 where :cohort <> ''"}
"""


def newest(small: Small, subject: str) -> Evidence:
    found = small.ledger.latest_evidence("report", subject)
    assert found is not None
    return found


def test_a_report_that_cannot_be_asked_is_evidence_that_fails(make_small: Callable[..., Small]) -> None:
    small = make_small(spec=SPEC + MIXED)
    desk = desk_of(small)
    results = tasks.report(desk)
    assert [(result.name, result.cohort, result.equal) for result in results] == [
        (name, cohort, name == "money") for cohort in ("AU", "NZ") for name in ("broken", "garbled", "money")
    ]
    assert newest(small, "money AU").passed
    for cohort in "AU", "NZ":
        broken = newest(small, f"broken {cohort}")
        assert not broken.passed and broken.genuine and "nowhere" in broken.body["problem"]
    attempt = small.ledger.begin_attempt("NZ", "flip", actor="ann", reason="", deadline=60)
    (line,) = (line for line in closed(desk.evaluate(attempt)) if line.startswith("reports"))
    assert "broken NZ could not be asked: " in line and "nowhere" in line and "garbled NZ could not be asked" in line


def test_yesterdays_equal_report_opens_nothing_when_today_nobody_answers(make_small: Callable[..., Small]) -> None:
    small = make_small(spec=SPEC + MIXED.replace("nowhere", "customer"))
    desk = desk_of(small)
    tasks.report(desk)
    assert newest(small, "money AU").passed

    class Away(SqliteStore):
        def query(self, sql: str, parameters: Mapping[str, object]) -> list[Line]:
            raise TransientError("the store is away")

    path = str(small.folder / "target.db")
    away = Away(lambda: connect(path))
    with pytest.raises(TransientError, match="is away"):
        tasks.report(replace(desk, open=lambda connection: away if connection == "target" else desk.open(connection)))
    found = newest(small, "broken AU")
    assert (found.passed, found.body["problem"]) == (False, "the store is away")


def test_a_report_that_cannot_be_asked_under_the_fence_aborts(make_small: Callable[..., Small]) -> None:
    report = f'reports: {{money: {{source: "{ONCE}", target: "select 1 from nowhere", at_cutover: true}}}}\n'
    small = make_small(spec=SPEC + report)
    small.load()
    small.follow()
    with flips(small) as moving:
        ended = moving.move()
    assert ended.outcome == "aborted" and "nowhere" in str(ended.error)
    assert small.ledger.route("NZ").owner == "source"
