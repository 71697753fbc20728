"""The models hold with all rules, over all their states, and show what goes wrong without any one of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

from tests.model.catalog import SUBJECTS
from tests.model.checker import Rule, check
from tests.model.tickets import RIGHT_ORDER, Tickets

WORLDS = [(name, world) for name, subject in SUBJECTS.items() for world in subject.worlds]
RULES = [(name, rule) for name, subject in SUBJECTS.items() for rule in subject.rules]
SPARE = [(name, rule) for name, subject in SUBJECTS.items() for rule in subject.together]
FEWEST_STATES = 500


@pytest.mark.parametrize(("name", "world"), WORLDS)
def test_with_all_rules_nothing_goes_wrong(name: str, world: str) -> None:
    outcome = check(SUBJECTS[name].worlds[world](frozenset()))
    print(outcome)
    assert outcome.wrong is None, str(outcome)
    assert outcome.states > FEWEST_STATES


@pytest.mark.parametrize(("name", "rule"), RULES, ids=[f"{name}-{rule.name.lower()}" for name, rule in RULES])
def test_without_the_rule_something_goes_wrong(name: str, rule: Rule) -> None:
    subject = SUBJECTS[name]
    outcome = check(subject.worlds[subject.world_of(rule)](subject.missed(rule)))
    print(outcome)
    assert outcome.wrong is not None
    assert len(outcome.trace) > 1


@pytest.mark.parametrize(("name", "rule"), SPARE, ids=[f"{name}-{rule.name.lower()}" for name, rule in SPARE])
def test_without_a_rule_that_another_makes_up_for_nothing_goes_wrong(name: str, rule: Rule) -> None:
    for build in SUBJECTS[name].worlds.values():
        assert check(build(frozenset({rule}))).wrong is None


@pytest.mark.parametrize("order", [order for order in permutations(RIGHT_ORDER) if order != RIGHT_ORDER], ids=" ".join)
def test_every_other_order_of_entries_ticket_and_rows_is_wrong(order: tuple[str, ...]) -> None:
    assert check(Tickets(order=order, versions=2, tickets=3)).wrong


def test_the_command_tells_one_story() -> None:
    command = [sys.executable, "-m", "tests.model", "load", "--without", "tokens-go-on"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("without tokens_go_on (")
    assert "\n   1. prepare: installs the source's triggers\n" in done.stdout


def test_the_rules_that_are_documented_are_the_models() -> None:
    page = (Path(__file__).parents[2] / "docs/model.md").read_text("utf-8")
    cells = re.findall(r"^\| (`.+?`) \|", page, re.M)
    documented = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(documented) == sorted(rule.name.lower() for _, rule in RULES)


# The checker itself


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts up to ``end``, by one or by two; ``broken`` must not be met; ``goal`` must stay within reach."""

    end: int
    broken: int | None = None
    goal: int | None = None

    def starts(self) -> Iterator[tuple[str, int]]:
        yield "zero", 0

    def actions(self, state: int) -> Iterator[tuple[str, int]]:
        yield from ((f"adds {step}", state + step) for step in (1, 2) if state + step <= self.end)

    def wrong(self, state: int) -> str | None:
        return "broken" if state == self.broken else None

    def settled(self, state: int) -> bool:
        return self.goal is None or state == self.goal

    def same_as(self, state: int) -> int:
        return state


def test_the_trace_is_the_shortest() -> None:
    assert check(Counter(end=9, broken=5)).trace == ("zero", "adds 1", "adds 2", "adds 2")


def test_every_state_is_met_once() -> None:
    outcome = check(Counter(end=9))
    assert (outcome.states, outcome.wrong) == (10, None)


def test_a_goal_that_can_be_missed_for_good_is_found() -> None:
    outcome = check(Counter(end=9, goal=8))
    assert outcome.wrong == "whatever happens next, it never comes right"
    assert len(outcome.trace) == 6  # to 9, past the goal
