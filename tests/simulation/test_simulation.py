"""The simulated world holds for seeds, and finds every planted bug."""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fishladder import apply
from fishladder.serving import replay
from fishladder.stores import sql
from tests.simulation import run
from tests.simulation.bugs import Bug, Plant
from tests.simulation.run import kind_of, simulate
from tests.simulation.search import BUGS, ELSEWHERE, FOUND_AT, attempt, workers

SEEDS = range(80)
"""As many as take two minutes or so; ``make simulate`` runs more."""
FOUND_WITHIN = 500
"""Of so many seeds, those whose worlds can show the bug are tried."""
MORE = 20


def twice(work: str) -> str:
    """Somebody begins this while another is at it."""
    begins = rf"^\S+ (.+): begins ({work})\n"
    return rf"(?m){begins}(?:(?!\S+ \1: ends \2\n).*\n)*?\S+ (?!\1:).+: begins \2$"


HAPPENINGS = {
    "a process dies": ": killed",
    "a call is lost": ": lost",
    "an answer is lost": ": done, but no answer",
    "the answer of a commit is lost": r": \w+\.begin\.commit\n\S+ [^\n]*: done, but no answer",
    "a partition": "is out of reach for everybody",
    "a partition of one process": "is out of reach for (replicate|lane|applier|mover|shop)",
    "a call during a partition": ": away",
    "clocks differ": r"its clock is off by [+-]\d",
    "a table is loaded again": "orders: restart",
    "a pause": "orders: pause",
    "a throttle": "orders: throttle",
    "a load that is triggered twice": "lane 1 again: ",
    "a prepare twice at once": twice("prepare"),
    "a replication twice at once": twice("replicate"),
    "a reconciliation of one table twice at once": twice(r"reconcile (?!fishladder)\w+"),
    "a restart twice at once": twice("order restart .+"),
    "another order twice at once": twice("order (?!restart).+"),
    "a trigger is dropped": "DROP TRIGGER",
    "a flip": "flip of NZ: done",
    "a rollback": "rollback of NZ: done",
    "a completion": r"complete of \w+: done",
    "an abort": r"(flip|rollback) of \w+: aborted",
    "an abort under the fence": "given up at (fence|drain|compare)",
    "a switch that nobody may make": "meddles: switch",
    "an order of long ago": "meddles: order",
    "a prepare in between": "meddles: prepare",
    "a replay": "replay is done",
    "a call that is done": r"\(pay\): done",
    "a call that waits": r"\(pay\): queued",
    "a batch job that knows no router": r"(?s)moves=True.*batch job: application commits",
    "a batch job that a fence refuses": r"(?s)moves=True.*batch job: is refused by the (source|target): ",
    "a ledger of yesterday": "the ledger is yesterday's",
}
"""What is to be seen in the traces of worlds, as patterns."""


def world(seed: int) -> tuple[str | None, set[str]]:
    """What is wrong with it, and which of HAPPENINGS are seen in it."""
    trace: list[str] = []
    wrong = None
    try:
        simulate(seed, trace=trace)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a world is what is looked for
        wrong = f"{type(error).__name__}: {error}; replay: python -m tests.simulation --replay {seed}"
    text = "\n".join(trace)
    return wrong, {name for name, pattern in HAPPENINGS.items() if re.search(pattern, text)}


def found_at(bug: str, clean: Collection[int]) -> int | None:
    """A seed whose world shows the planted bug: the one that did last time, or the first. ``clean``: are without it."""
    seeds = [seed for seed in range(FOUND_WITHIN) if BUGS[bug].shows_in(kind_of(seed))]
    seeds.sort(key=lambda seed: seed != FOUND_AT.get(bug))
    return next((seed for seed in seeds if attempt(seed, bug)[2] and (seed in clean or not attempt(seed)[2])), None)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with workers() as pool:
        yield pool


@pytest.fixture(scope="module")
def worlds(pool: ProcessPoolExecutor) -> list[tuple[str | None, set[str]]]:
    return list(pool.map(world, SEEDS))


@pytest.fixture(scope="module")
def searches(pool: ProcessPoolExecutor, worlds: list[tuple[str | None, set[str]]]) -> dict[str, Future[int | None]]:
    """All side by side."""
    clean = frozenset(seed for seed, (wrong, _) in zip(SEEDS, worlds, strict=True) if not wrong)
    return {bug: pool.submit(found_at, bug, clean) for bug in BUGS}


def test_no_interleaving_loses_a_row(worlds: list[tuple[str | None, set[str]]]) -> None:
    assert [wrong for wrong, _ in worlds if wrong] == []


def test_whatever_can_go_wrong_does(worlds: list[tuple[str | None, set[str]]], pool: ProcessPoolExecutor) -> None:
    """Worlds change with the code: what no longer happens in these is looked for in others."""
    unseen = HAPPENINGS.keys() - set[str]().union(*(seen for _, seen in worlds))
    for first in range(len(SEEDS), FOUND_WITHIN, MORE):
        if unseen:
            unseen -= set[str]().union(*(seen for _, seen in pool.map(world, range(first, first + MORE))))
    assert unseen == set()


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, searches: dict[str, Future[int | None]]) -> None:
    assert searches[bug].result() is not None, f"not within {FOUND_WITHIN} seeds: {BUGS[bug].rule}"


def test_routers_that_believe_for_a_minute_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the bug ``epochs_not_compared``, and no faster a replay: it alone is what is found there."""
    monkeypatch.setattr(run, "ROUTE_SECONDS", 60.0)
    monkeypatch.setattr(replay, "TURN", 1e-6)
    assert attempt(FOUND_AT["epochs_not_compared"])[2] is None


@pytest.mark.parametrize("test", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_one_writer_cannot_show_is_tested_elsewhere(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((Path(__file__).parent.parent / file).read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in functions, f"there is no {test}"
    assert judges(name, functions), f"{test} asserts nothing"


def judges(name: str, functions: dict[str, ast.FunctionDef]) -> bool:
    """Whether a function asserts or expects something, itself or in another one of its file that it calls."""
    nodes = list(ast.walk(functions[name]))
    called = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
    if "raises" in called or any(isinstance(node, ast.Assert) for node in nodes):
        return True
    return any(judges(other, functions) for other in called & functions.keys() - {name})


def renamed() -> AbstractContextManager[Any]:
    return patch.object(apply, "read_dirt", lambda *_: [])


def with_other_arguments() -> AbstractContextManager[Any]:
    return patch.object(apply, "read_dirty", lambda plan, ends: [])


def of_another_shape() -> AbstractContextManager[Any]:
    return patch.object(apply, "read_dirty", lambda *_: [(1, 2)])


def with_another_column() -> AbstractContextManager[Any]:
    return patch.object(
        sql.Session, "forget", lambda self, ids: self.run("DELETE FROM fishladder_journal WHERE no = 1", [])
    )


@pytest.mark.parametrize("plant", [renamed, with_other_arguments, of_another_shape, with_another_column])
def test_a_bug_that_does_not_fit_the_code_is_not_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUGS, "outdated", Bug(rule="", plant=plant, shows_in=lambda kind: True))
    with pytest.raises((AttributeError, RuntimeError), match=r"read_dirt|outdated does not fit the code any more"):
        attempt(8, "outdated")


def test_the_same_seed_is_the_same_world() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        simulate(8, trace=trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 500


def open_files() -> set[str]:
    """What this process has open; also what only the garbage collector would close."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder that was being read
            found.add(f"{path.name} {path.readlink()}")
    return found


def test_a_world_leaves_no_file_open() -> None:
    """Ten thousand of them run in the same few processes."""
    moving = [seed for seed in range(20) if kind_of(seed).moves][:4]
    simulate(moving[0])
    gc.collect()
    before = open_files()
    for seed in moving:
        simulate(seed)
    assert open_files() <= before
