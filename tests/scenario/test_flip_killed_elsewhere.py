"""The deaths of ``test_flip_killed`` on other pairs of stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contract.stores import STORES
from tests.scenario import test_flip_killed
from tests.scenario.migration import Billing
from tests.scenario.test_flip_killed import STEPS

SMALL = 60
"""Customers: on the Oracle wire emulator each takes its time."""

FILES, MARIADB, ORACLE = "sqlite-sqlite", "mysql-mariadb", "oracle-mysql"
DEATHS = [
    (FILES, "open", "after"),
    (FILES, "close", "between"),
    *(pytest.param(FILES, step, "after", marks=pytest.mark.slow) for step in STEPS if step != "open"),
    *(pytest.param(FILES, step, "between", marks=pytest.mark.slow) for step in ("fence", "open")),
    *(pytest.param(FILES, step, "before", marks=pytest.mark.slow) for step in STEPS),
    *(
        pytest.param(pair, step, when, marks=pytest.mark.slow)
        for pair in (MARIADB, ORACLE)
        for step, when in (("fence", "between"), ("open", "after"))
    ),
]


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Billing]:
    """Prepared and loaded, for all deaths of a pair: each leaves it equal, as it found it."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        ends = []
        for side, kind in zip(("source", "target"), request.param.split("-"), strict=True):
            ends.append(stack.enter_context(STORES[kind](request, folder / side)))
            stack.callback(ends[-1].close)
        made = Billing(folder, *ends, customers=SMALL)
        stack.enter_context(made.processes)
        made.prepare()
        made.load()
        made.ends_equal()
        yield made


@pytest.mark.timeout(900)  # on the wire emulator
@pytest.mark.parametrize(("loaded", "step", "when"), DEATHS, indirect=["loaded"])
def test_a_cutover_is_killed(loaded: Billing, step: str, when: str) -> None:
    test_flip_killed.test_a_cutover_is_killed(loaded, step, when)
