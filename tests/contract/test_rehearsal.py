"""A rehearsal of the billing example between real stores: both ways, twice, and never in the migration's own."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from billing import invariants, schema
from billing.database import connect
from billing.seed import seed
from fishladder import tasks
from fishladder.errors import InputError
from fishladder.rehearsal import rehearse
from tests import independent, ledgers
from tests.contract.shop import SPEC
from tests.contract.stores import STORES, Place
from tests.scenario.worker import desk

PAIRS = [("sqlite", "sqlite"), ("mysql", "mariadb"), pytest.param(("oracle", "mysql"), marks=pytest.mark.slow)]


class Night:
    """A loaded billing migration, and a test store for each of its ends."""

    def __init__(self, folder: Path, places: dict[str, Place]) -> None:
        self.places, self.file = places, folder / "billing.yaml"
        schema.create(places["source"].admin)
        seed(places["source"].admin, customers=30, seed=7)
        with closing(connect(places["source"].admin)) as db:  # each cohort is flipped, which takes seconds
            db.execute("UPDATE customer SET country_code = 'US' WHERE country_code NOT IN ('NZ', 'AU', 'US')")
        command = shlex.join([sys.executable, "-m", "tests.unit.rehearsing", "billing", places["test"].application])
        words = f"{{connection: test, source: origin, command: {json.dumps(command)}}}"
        self.file.write_text(f"{SPEC.read_text()}rehearsal: {words}\n")
        url = f"sqlite:///{folder}/ledger.db"
        ledgers.create(url)
        self.environment = {
            **os.environ,
            "FISHLADDER_LEDGER": url,
            "BILLING_SOURCE_KIND": places["source"].kind,
            "BILLING_TARGET_KIND": places["target"].kind,
            "FISHLADDER_BILLING_SOURCE": places["source"].copier,
            "FISHLADDER_BILLING_TARGET": places["target"].copier,
            "FISHLADDER_TEST": places["test"].copier,
            "FISHLADDER_ORIGIN": places["origin"].copier,
        }
        at = self.desk()
        tasks.prepare(at, actor="test")
        for table in tasks.cut(at):
            tasks.load_table(at, table, "1")
            tasks.close_table(at, table)

    def desk(self) -> tasks.Desk:
        return desk(self.file, self.environment)


@pytest.fixture(params=PAIRS, ids="-".join)
def night(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Night]:
    origin, destination = request.param
    kinds = {"source": origin, "target": destination, "test": destination, "origin": origin}
    with ExitStack() as stack:
        places = {}
        for name, kind in kinds.items():
            places[name] = stack.enter_context(STORES[kind](request, tmp_path / name))
            stack.callback(places[name].close)
        yield Night(tmp_path, places)


@pytest.mark.parametrize(
    ("night", "nights"),
    [
        pytest.param(("sqlite", "sqlite"), 2, marks=pytest.mark.slow),
        pytest.param(("mysql", "mariadb"), 2, marks=pytest.mark.slow),
        pytest.param(("oracle", "mysql"), 2, marks=pytest.mark.slow),
    ],
    indirect=["night"],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_night_and_another_one(night: Night, nights: int) -> None:
    before = [invariants.totals(night.places[name].admin) for name in ("source", "target")]
    for _ in range(nights):
        assert rehearse(night.desk(), night.environment).problem is None
        assert independent.compare(night.places["origin"].admin, night.places["test"].admin) == []
        assert invariants.check(night.places["test"].admin) == []
    assert [invariants.totals(night.places[name].admin) for name in ("source", "target")] == before
    assert independent.compare(night.places["source"].admin, night.places["target"].admin) == []


@pytest.mark.parametrize(("one", "other"), [("TEST", "BILLING_TARGET"), ("ORIGIN", "BILLING_SOURCE")])
def test_the_migrations_own_stores_are_refused(night: Night, one: str, other: str) -> None:
    night.environment[f"FISHLADDER_{one}"] = night.environment[f"FISHLADDER_{other}"]
    before = independent.compare(night.places["source"].admin, night.places["target"].admin)
    with pytest.raises(InputError, match="are one database"):
        rehearse(night.desk(), night.environment)
    assert independent.compare(night.places["source"].admin, night.places["target"].admin) == before == []
