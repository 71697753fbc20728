"""The type matrix: what preflight accepts arrives exactly, or becomes a reject that names the column."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.matrix import page
from tests.contract.matrix.run import lines, run_matrix
from tests.contract.stores import STORES
from tests.servers import oracle

SOON = {("oracle", "mysql"), ("mysql", "mysql"), ("sqlite", "sqlite")}
"""The others are with make scenario, and in make types: up to a minute each, more on the wire emulator."""
PAIRS = [
    pytest.param(origin, destination, marks=[] if (origin, destination) in SOON else [pytest.mark.slow])
    for origin in STORES
    for destination in STORES
]


@pytest.mark.parametrize(("origin", "destination"), PAIRS)
def test_no_value_is_changed_in_silence(
    request: pytest.FixtureRequest, tmp_path: Path, origin: str, destination: str
) -> None:
    with ExitStack() as stack:
        ours = stack.enter_context(STORES[origin](request, tmp_path / "source"))
        theirs = stack.enter_context(STORES[destination](request, tmp_path / "target"))
        stack.callback(ours.close)
        stack.callback(theirs.close)
        outcome = run_matrix(ours, theirs, origin, destination, tmp_path)
    assert not outcome.silent, "\n".join([f"{len(outcome.silent)} silent changes", *outcome.silent[:200]])
    text = page.section(origin, destination, list(lines(outcome)))
    if "oracle" in (origin, destination) and oracle.is_real():
        return  # the page is about the emulator
    if os.environ.get("WRITE_TYPES"):
        page.write(origin, destination, text)
    assert page.sections().get(page.title(origin, destination)) == text, "docs/types.md is old: make types"


def test_the_page_has_its_head_and_all_pairs() -> None:
    titles = [page.title(origin, destination) for origin in STORES for destination in STORES]
    assert page.PAGE.read_text("utf-8").startswith(page.HEAD)
    assert list(page.sections()) == titles
