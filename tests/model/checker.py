"""A tiny explicit-state model checker: tries every order of steps, breadth first.

A model says where the world starts, which steps are possible in a state and what must never be seen. The checker walks
through all states that can be reached. The first wrong one it meets has the shortest trace, which is a
story: who did what, one step per line.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

State = TypeVar("State", bound=Hashable)

MOST_STATES = 5_000_000


class Rule(Enum):
    """A rule of the protocol that can be switched off. Its value says what it demands, and of whom."""


class Model(Protocol[State]):
    def starts(self) -> Iterable[tuple[str, State]]:
        """Where it may begin, each with a name."""
        ...

    def actions(self, state: State) -> Iterable[tuple[str, State]]:
        """Every step that anybody may take now: who does what, and the state after it."""
        ...

    def wrong(self, state: State) -> str | None:
        """What must never be seen, if it is seen in this state."""
        ...

    def settled(self, state: State) -> bool:
        """Whether all is done and well. Such a state must stay within reach, whatever has happened."""
        ...

    def same_as(self, state: State) -> Hashable:
        """Equal for states that differ only in which of several equal workers is which."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``wrong``: what is violated, None if nothing is; ``trace``: the shortest way there, beginning with the start."""

    states: int
    seconds: float
    wrong: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = f"{self.states:,} states, {self.seconds:.1f} s"
        if self.wrong is None:
            return f"holds ({size})"
        return "\n".join([f"{self.wrong} ({size})", *_numbered(self.trace)])


def _numbered(trace: tuple[str, ...]) -> Iterator[str]:
    start, *steps = trace
    yield f"      {start}"
    for number, step in enumerate(steps, start=1):
        yield f"  {number:>2}. {step}"


def check(model: Model[State]) -> Outcome:
    """Walk through every reachable state. Raises OverflowError above ``MOST_STATES``: then make the bounds smaller."""
    began = time.monotonic()
    numbers: dict[Hashable, int] = {}
    came_from: list[tuple[int, str]] = []  # by number: the state before, and the step that led here
    followers: list[list[int]] = []
    settled: list[int] = []
    queue: deque[tuple[int, State]] = deque()

    def outcome(wrong: str | None = None, last: int | None = None) -> Outcome:
        trace: list[str] = []
        while last is not None and last >= 0:
            last, step = came_from[last]
            trace.append(step)
        return Outcome(states=len(numbers), seconds=time.monotonic() - began, wrong=wrong, trace=tuple(reversed(trace)))

    def meet(state: State, before: int, step: str) -> int:
        """The number of the state, which is new if it is the highest."""
        number = numbers.setdefault(model.same_as(state), len(numbers))
        if number == len(came_from):
            came_from.append((before, step))
            followers.append([])
            queue.append((number, state))
        return number

    for name, state in model.starts():
        meet(state, -1, name)
    while queue:
        here, state = queue.popleft()
        if wrong := model.wrong(state):
            return outcome(wrong, here)
        if len(numbers) > MOST_STATES:
            raise OverflowError(f"more than {MOST_STATES:,} states")
        if model.settled(state):
            settled.append(here)
        for step, after in model.actions(state):
            followers[here].append(meet(after, here, step))
    lost = _first_that_cannot_reach(settled, followers)
    return outcome() if lost is None else outcome("whatever happens next, it never comes right", lost)


def _first_that_cannot_reach(goals: list[int], followers: list[list[int]]) -> int | None:
    """Numbers rise with the distance from the start, so the first state is also the nearest."""
    leaders: list[list[int]] = [[] for _ in followers]
    for state, after in enumerate(followers):
        for follower in after:
            leaders[follower].append(state)
    reaching, todo = set(goals), list(goals)
    while todo:
        for leader in leaders[todo.pop()]:
            if leader not in reaching:
                reaching.add(leader)
                todo.append(leader)
    return next((state for state in range(len(followers)) if state not in reaching), None)
