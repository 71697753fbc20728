"""What benchmarks say, not how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import keep, not_available, result, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("unit", "value", "holds"),
    [("rows/s", 80.0, True), ("rows/s", 70.0, False), ("s", 70.0, True), ("s", 80.0, False), ("MB", 75.0, True)],
)
def test_a_speed_has_to_reach_its_goal_and_everything_else_to_stay_within_it(
    unit: str, value: float, holds: bool
) -> None:
    assert result("load", "case", unit, [(value, 100.0)], goal=0.75).holds is holds


def test_the_ratio_is_the_median_of_the_rounds_own() -> None:
    found = result("load", "case", "rows/s", [(10.0, 10.0), (90.0, 100.0), (40.0, 20.0)])
    assert (found.value, found.reference, found.ratio) == (40.0, 20.0, 1.0)
    assert (found.goal, found.holds) == (None, None)


def test_what_could_not_be_measured_is_in_the_table_and_in_the_file(tmp_path: Path) -> None:
    results = [
        result("load", "fast / slow", "rows/s", [(3.0, 2.0)], goal=1.0),
        not_available("oracle", "fetch", "no Oracle here", goal=0.8),
    ]
    shown = table(results)
    assert "≥ 1 holds" in shown
    assert "NOT AVAILABLE  fetch: no Oracle here" in shown
    keep(results, tmp_path / "results.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    fields = ["benchmark", "case", "value", "unit", "reference", "ratio", "goal", "holds"]
    assert [list(line) for line in lines] == [fields, fields]
    assert lines[1]["holds"] is None


@pytest.mark.parametrize("wrong", [{"ROWS": "many"}, {"ROWS": "10"}, {"CASES": "load,speed"}])
def test_wrong_settings_are_refused_before_anything_is_started(wrong: dict[str, str]) -> None:
    path = os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins")))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert next(iter(wrong)) in done.stderr
