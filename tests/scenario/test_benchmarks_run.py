"""Every benchmark still measures: small, so that what it says of speed means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WITHOUT_AIRFLOW = ("load", "memory", "oracle", "reconcile", "found", "apply", "lag", "triggers", "flip", "router")


@pytest.mark.parametrize("case", WITHOUT_AIRFLOW)
def test_a_benchmark_measures(mysql_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    monkeypatch.setenv("CASES", case)
    monkeypatch.setenv("ROWS", "2000")
    monkeypatch.setenv("NICE", "0")  # beside other tests
    monkeypatch.delenv("PEERS", raising=False)
    assert command.main() in (0, 1)  # 1: a goal is missed
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    assert {line["benchmark"] for line in found} == {case}
    assert [line for line in found if line["value"] is None and "PEERS=1" not in line["case"]] == []
