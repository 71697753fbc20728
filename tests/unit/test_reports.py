"""What a report says of two stores that do not agree, and what a flip makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fishladder.reports import Line, ReportResult
from tests.unit.flips import flips
from tests.unit.small import SPEC, Small

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
