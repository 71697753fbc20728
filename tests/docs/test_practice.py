"""What docs/operating.md says to practise on the demo, done as it is written, on the demo's own stores."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import demo
from fishladder import tasks
from fishladder.errors import InputError
from fishladder.operate import Order
from tests.docs.test_docs import DOCS, ROOT, blocks, practice
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
    environment, spoil, rejects, mend = practice()
    assert "sqlite3" in spoil and "sqlite3" in mend
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


def test_the_restart_goes_as_the_page_says(folder: tuple[Path, tasks.Desk]) -> None:
    _, at = folder
    before = at.ledger.progress("invoice").rows

    def restart(*tables: str) -> None:
        tasks.operate(at, Order(action="restart tables", tables=tables), actor="ada")

    with pytest.raises(InputError, match=r"restart .* together") as refused:
        restart("invoice")
    with_it = re.findall(r"\w+", str(refused.value).partition(": restart ")[2].removesuffix(" together"))
    assert len(with_it) > 1
    restart(*with_it)
    assert {name for name, table in tasks.status(at)["tables"].items() if table["phase"] == "loading"} == {*with_it}
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    tasks.replicate(at, seconds=30, until_idle=True)
    assert at.ledger.progress("invoice").rows == before
    found = [tasks.reconcile_table(at, table) for table in at.spec.tables]
    assert {(result.missing, result.extra, result.differs, result.rejected) for result in found} == {(0, 0, 0, 0)}
