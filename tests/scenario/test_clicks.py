"""A country moves, goes back, moves again and is there for good: clicked through Airflow's pages in a real browser.

Customers are at work all the while. One person asks, another one approves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from billing import invariants, schema
from billing.airflow import Airflow
from billing.browser import Person, chromium
from billing.database import connect
from billing.seed import seed
from fishladder.cli import main
from fishladder.ledger import open_ledger, upgrade
from tests import independent
from tests.conftest import not_tested
from tests.servers import mysql

ROOT = Path(__file__).parents[2]
FILE = ROOT / "include/migrations/billing.yaml"
CUSTOMERS = 120
DEADLINE = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The connections of the example by their names, its source filled."""
    if request.param == "sqlite":
        urls = {end: f"sqlite:///{tmp_path}/{end}.db" for end in ("source", "target")}
        schema.create(urls["source"])
        seed(urls["source"], customers=CUSTOMERS, seed=11)
        yield {f"billing_{end}{suffix}": url for end, url in urls.items() for suffix in ("", "_app")}
        return
    server = request.getfixturevalue("mysql_server")
    with mysql.database(server) as source, mysql.database(server) as target:
        schema.create(source.admin)
        seed(source.admin, customers=CUSTOMERS, seed=11)
        yield {
            "billing_source": source.copier,
            "billing_source_app": source.application,
            "billing_target": target.copier,
            "billing_target_app": target.application,
        }


class Story:
    """An Airflow with the example's DAGs, customers behind the router, and what the test asks beside the pages."""

    def __init__(self, folder: Path, stores: dict[str, str]) -> None:
        self.folder, self.stores = folder, stores
        self.ledger = f"sqlite:///{folder}/ledger.db"
        kind = stores["billing_source"].partition(":")[0]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("include", "plugins", ".")),
            "FISHLADDER_LEDGER": self.ledger,
            "BILLING_SOURCE_KIND": kind,
            "BILLING_TARGET_KIND": kind,
            "BILLING_OBSERVE": "5s",
            **{f"AIRFLOW_CONN_{name.upper()}": url for name, url in stores.items()},
            **{f"FISHLADDER_{name.upper()}": url for name, url in stores.items()},
        }
        upgrade(self.ledger)
        self.airflow = Airflow(folder / "airflow", ROOT / "dags", self.environment)

    @contextmanager
    def customers(self) -> Iterator[dict[str, Any]]:
        """Behind the router; what they counted is in the dictionary afterwards."""
        command = [sys.executable, "-m", "billing.routed", str(FILE), "--rate", "10", "--seconds", "3600"]
        felt: dict[str, Any] = {}
        environment = {**os.environ, **self.environment}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as traffic:
            try:
                yield felt
                traffic.send_signal(signal.SIGTERM)
                felt |= json.loads(traffic.communicate(timeout=60)[0])
            finally:
                traffic.kill()

    def ended(self, dag: str, run: str) -> None:
        assert self.airflow.ended(dag, run) == "success", (dag, self.airflow.failures(dag))

    def has_ended(self, dag: str, run: str) -> bool:
        found = self.airflow.call("GET", f"/api/v2/dags/{dag}/dagRuns/{run}")
        return found["state"] in ("success", "failed")

    def route(self, cohort: str) -> tuple[str, str]:
        with open_ledger(self.ledger, migration="billing") as ledger:
            found = ledger.route(cohort)
        return found.stage, found.owner

    def events(self, name: str) -> list[str]:
        """Who caused the events of this name, the oldest first."""
        with open_ledger(self.ledger, migration="billing") as ledger:
            return [event.actor for event in reversed(ledger.events(10_000)) if event.event == name]

    def caught_up(self) -> bool:
        counts = []
        for end in ("source", "target"):
            with closing(connect(self.stores[f"billing_{end}"])) as db:
                counts.append(db.rows("SELECT count(*) FROM fishladder_journal")[0][0])
        with open_ledger(self.ledger, migration="billing") as ledger:
            return not any(counts) and not ledger.count_dirty()


@pytest.fixture
def story(stores: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Story]:
    if shutil.which("chromium") is None:
        not_tested(request.config, "Chromium", "apt-get install chromium")
    made = Story(tmp_path, stores)
    made.airflow.start()
    try:
        for step in ("prepare", "load", "replicate", "reconcile", "monitor", "flip", "rollback", "finish"):
            made.airflow.wait_for_dag(f"billing_{step}")
        yield made
    finally:
        made.airflow.stop()


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.5)


def test_a_country_moves_by_clicks_alone(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in story.environment.items():
        monkeypatch.setenv(name, value)
    with chromium() as browser:
        ann, ben = (Person(browser, story.airflow, user) for user in story.airflow.passwords)

        def run(dag: str) -> None:
            story.ended(dag, ann.send(ann.form(dag)))

        def ask(dag: str, reason: str) -> str:
            form = ann.form(dag)
            ann.fill_cohorts(form, ["NZ"], reason)
            return ann.send(form)

        def approved(dag: str, reason: str) -> None:
            run_id, answered = ask(dag, reason), {0}

            def end() -> bool:
                if (number := asked(story, dag, run_id)) > max(answered):  # once more if Airflow fails an early answer
                    answered.add(number)
                    ben.answer(dag, run_id, "Approve")
                return story.has_ended(dag, run_id)

            until(end, "the end")
            story.ended(dag, run_id)
            ben.look(f"/dags/{dag}/runs/{run_id}", "Success")

        run("billing_prepare")
        ann.switch_on("billing_replicate")
        run("billing_load")
        run("billing_monitor")
        with story.customers() as felt:
            first = ask("billing_flip", "it is time")
            answer_at_once(story, first)
            ann.answer("billing_flip", first, "Approve")  # who asked may not
            until(lambda: asked(story, "billing_flip", first) == 3, "the question to be asked again")
            assert (story.route("NZ"), story.events("approved")) == (("off", "source"), [])
            ben.answer("billing_flip", first, "Approve")
            story.ended("billing_flip", first)
            assert (story.route("NZ"), story.events("approved")) == (("live", "target"), ["approver"])
            ann.look("/fishladder/billing_flip/cohorts", "live")
            approved("billing_rollback", "it was a mistake")
            assert story.route("NZ") == ("off", "source")
            run("billing_monitor")
            approved("billing_flip", "now it is right")
        assert felt["failed"] == {} and sum(felt["done"].values()) > 100
        until(story.caught_up, "the last changes")
        ends = story.stores["billing_source"], story.stores["billing_target"]
        assert independent.compare(*ends) == []
        assert invariants.check(ends[0]) + invariants.check(ends[1]) == []
        run("billing_reconcile")
        run("billing_monitor")
        approved("billing_finish", "nobody would go back")
    assert story.route("NZ") == ("complete", "target")
    assert story.events("approved") == ["approver"] * 4
    assert {*story.events("flip asked for"), *story.events("complete asked for")} == {"admin"}
    assert main(["audit", "verify"]) == 0


def asked(story: Story, dag: str, run: str) -> int:
    """Which question waits for its answer, 0 if none does: each try of the task is one."""
    waiting = [one for one in story.airflow.tasks(dag, run) if one["state"] in ("deferred", "awaiting_input")]
    return max((int(one["try_number"]) for one in waiting), default=0)


def answer_at_once(story: Story, run: str) -> None:
    """By whoever asked, in the first seconds: whether Airflow fails that or it is refused, the question comes again."""
    until(lambda: asked(story, "billing_flip", run) == 1, "the question")
    path = f"/api/v2/dags/billing_flip/dagRuns/{run}/taskInstances/country.approve/0/hitlDetails"
    story.airflow.call("PATCH", path, {"chosen_options": ["Approve"], "params_input": {}})
    until(lambda: asked(story, "billing_flip", run) == 2, "the question to be asked again")
    assert (story.route("NZ"), story.events("approved")) == (("off", "source"), [])
