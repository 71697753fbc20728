"""What docs/operating.md says to practise on the demo, done as it is written, on the demo's own stores."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import demo
from fishladder import tasks
from tests.docs.test_docs import DOCS, ROOT, blocks
from tests.scenario.worker import desk

FILE = ROOT / "include/migrations/billing.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, tasks.Desk]]:
    """A demo that has loaded its tables."""
    monkeypatch.setattr(demo, "HOME", tmp_path / ".demo")
    demo.HOME.mkdir()
    (tmp_path / "include").symlink_to(ROOT / "include")
    made = demo.Demo(real=False, customers=100, automatic=True)
    made.prepare_stores()
    at = desk(FILE, made._environment())
    tasks.prepare(at, actor="test")
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    assert made.write_environment().stat().st_mode & 0o077 == 0
    yield tmp_path, at
    at.ledger.close()


def test_the_reject_is_the_one_that_the_page_shows(folder: tuple[Path, tasks.Desk]) -> None:
    place, at = folder
    page = DOCS / "operating.md"
    steps = [text.strip() for text in blocks(page, "sh")]
    practice = steps[next(no for no, text in enumerate(steps) if text.startswith(". ")) :]
    environment, spoil, rejects, mend, find = (*practice[:4], practice[4])
    assert "sqlite3" in spoil and "sqlite3" in mend and find.startswith("pgrep")
    enter, _, status = environment.partition("\n")

    def shell(line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"{enter}\n{line}"], cwd=place, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "customer                closed" in shell(status)
    shell(spoil)
    tasks.replicate(at, seconds=30, until_idle=True)
    said = next(text.strip() for text in blocks(page, "text") if "key 1:7 (" in text)
    assert shell(rejects).strip() == said
    shell(mend)
    tasks.replicate(at, seconds=30, until_idle=True)
    assert shell(rejects) == ""
