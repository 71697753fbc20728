"""Rehearsals: on test stores alone, whole, and with their own way back; and the gate that counts their days."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from billing import invariants, schema
from billing.seed import seed
from fishladder import rehearsal, tasks
from fishladder.errors import InputError
from fishladder.gates import Gate, evaluate
from fishladder.ledger import open_ledger
from fishladder.pace import Pace
from fishladder.rehearsal import Rehearsed, rehearse, stage_spec
from fishladder.spec import Ids, digest, load
from fishladder.stores import connect_url, open_store
from fishladder.stores.base import Store
from fishladder.stores.sqlite import SqliteStore
from fishladder.tasks import Desk, code_digest
from tests import independent, ledgers
from tests.unit import small as smalls
from tests.unit.rehearsing import is_over
from tests.unit.small import SPEC, Small
from tests.unit.test_approvals import Watch, desk_of

REPORTS = """
ids: {interleaved: true}
reports:
  amounts:
    source: select sum(amount) from item join fishladder_home on root_key = customer_id where cohort = :cohort
    target: select sum(amount) from item join fishladder_home on root_key = customer_id where cohort = :cohort
"""
ALONE = ["guard", "copy", "command", "reports"]
WHOLE = [
    *("guard", "copy", "prepare", "load", "compare", "flip", "command", "reports"),
    *("way back", "compare again"),
]
STORES = ("source", "target", "test", "origin")
TABLES = ["price", "customer", "item", "line"]


def words(gates: str = "", **rehearsing: str) -> str:
    """The small migration's file with a rehearsal."""
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in {"connection": "test", **rehearsing}.items())
    return f"{SPEC}{REPORTS}rehearsal: {{{given}}}\n{gates}"


def command(*arguments: object) -> str:
    return shlex.join([sys.executable, "-m", "tests.unit.rehearsing", *map(str, arguments)])


class Case:
    """A loaded migration, and what its rehearsals say."""

    def __init__(self, folder: Path, **rehearsing: str) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.aim("small", **rehearsing)

    def aim(self, what: str, *arguments: object, store: str = "test", **rehearsing: str) -> None:
        """Rehearse with this command from now on."""
        line = command(what, self.small_url(store), *arguments)
        self.small = smalls.reopen(self.folder, spec=words(**{"command": line, **rehearsing}))
        smalls.close([self.small])
        self.desk = replace(desk_of(self.small), say=self.said.append)

    def small_url(self, store: str) -> str:
        return f"sqlite:///{self.folder / store}.db"

    def rehearse(self) -> Rehearsed:
        return rehearse(self.desk)

    def rows(self, store: str, query: str) -> list[tuple[Any, ...]]:
        return self.small.rows(store, query)

    def production(self) -> list[list[str]]:
        return [dump(self.folder / f"{name}.db") for name in ("source", "target")]


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = smalls.make(tmp_path_factory.mktemp("loaded"), spec=SPEC + REPORTS)
    small.load()
    small.follow()
    small.ledger.record_spec(small.spec.to_json(), digest(small.spec.data_part()), code_digest(), "test")
    smalls.close([small])
    return small.folder


@pytest.fixture
def folder(loaded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(loaded, tmp_path / "case")


@pytest.fixture
def alone(folder: Path) -> Case:
    return Case(folder)


@pytest.fixture
def whole(folder: Path) -> Case:
    return Case(folder, source="origin")


def steps(found: Rehearsed) -> list[str]:
    return [step.step for step in found.steps]


def last(case: Case) -> tuple[bool, Any]:
    found = case.small.ledger.latest_evidence("rehearsal", "small")
    assert found is not None and found.genuine
    return found.passed, found.body["problem"]


# Clean days


def test_the_workload_and_the_reports_run_on_a_copy_of_the_target(alone: Case) -> None:
    before = alone.production()
    found = alone.rehearse()
    assert (found.problem, steps(found)) == (None, ALONE)
    assert alone.production() == before and last(alone) == (True, None)
    copied = found.steps[1].found
    assert copied["rows"]["item"] == 3 and (copied["left_out"], copied["refused"]) == ({}, {})
    assert alone.rows("test", "SELECT amount FROM item ORDER BY id") == [(6,), (6,), (7,), (9,)]
    assert alone.rows("test", "SELECT cohort FROM fishladder_home WHERE root_key = '100'") == [("NZ",)]
    assert found.steps[3].found == {"amounts": {"AU": (("6",),), "NZ": (("15",),)}}
    evidence = alone.small.ledger.latest_evidence("rehearsal", "small")
    assert evidence is not None and evidence.body["steps"][3]["found"]["amounts"]["NZ"] == [["15"]]


def test_the_whole_migration_moves_and_comes_back_with_what_the_workload_changed(whole: Case) -> None:
    before = whole.production()
    found = whole.rehearse()
    assert (found.problem, steps(found)) == (None, WHOLE)
    assert whole.production() == before and last(whole) == (True, None)
    assert {"AU", "NZ", "shared"} == found.steps[5].found.keys() == found.steps[8].found.keys()
    assert independent.compare(whole.small_url("origin"), whole.small_url("test"), TABLES) == []
    assert whole.rows("origin", "SELECT amount FROM item ORDER BY id") == [(6,), (6,), (7,), (9,)]
    assert whole.rows("origin", "SELECT writer FROM fishladder_fence WHERE cohort = 'NZ'") == [("application",)]


@pytest.mark.parametrize("source", [{}, pytest.param({"source": "origin"}, marks=pytest.mark.slow)])
def test_another_night_begins_from_the_target_again(folder: Path, source: dict[str, str]) -> None:
    case = Case(folder, **source)
    case.rehearse()
    case.small.application("UPDATE item SET amount = 50 WHERE id = 20")
    case.small.follow()
    assert case.rehearse().problem is None
    assert case.rows("test", "SELECT amount FROM item ORDER BY id") == [(6,), (50,), (7,), (9,)]


def test_with_a_test_source_from_one_night_to_the_next(folder: Path) -> None:
    case = Case(folder)
    assert case.rehearse().problem is None
    case.aim("small", source="origin")
    assert case.rehearse().problem is None


def test_a_cohort_that_has_moved_is_rehearsed_as_any_other(whole: Case) -> None:
    """The copy comes from the target, where some customers live and others are copies."""
    small = smalls.reopen(whole.folder, spec=words(command="true", source="origin"))
    cutover = tasks.flip.Cutover(
        spec=small.spec, plan=small.plan, stores={"source": small.source, "target": small.target},
        ledger=small.ledger, clock=tasks.SystemClock(), replay=lambda cohort: None,
    )  # fmt: skip
    attempt = small.ledger.begin_attempt("NZ", "flip", actor="test", reason="", deadline=60)
    assert cutover.verify(attempt) and cutover.run(attempt.id).outcome == "done"
    small.application("UPDATE item SET amount = 100 WHERE id = 10", store="target")
    smalls.close([small])
    assert whole.rehearse().problem is None
    assert whole.rows("origin", "SELECT amount FROM item WHERE id = 10") == [(101,)]


def test_a_cohort_that_only_homes_name_is_rehearsed_too(whole: Case) -> None:
    """Its last customer moved to another country, and kept the home."""
    whole.small.application("UPDATE customer SET country = 'NZ' WHERE id = 2")
    whole.small.follow()
    found = whole.rehearse()
    assert found.problem is None and "AU" in found.steps[5].found


# The workload


def test_a_command_that_fails_is_a_dirty_day_and_its_words_are_in_the_log_alone(alone: Case) -> None:
    alone.aim("fails")
    found = alone.rehearse()
    assert found.problem == "the command ended with exit code 3: see the log of this task"
    assert last(alone) == (False, found.problem) and steps(found) == ALONE[:3]
    assert any("secret" in line for line in alone.said)
    evidence = alone.small.ledger.latest_evidence("rehearsal", "small")
    assert evidence is not None and "secret" not in json.dumps(evidence.body)
    assert evidence.body["steps"][2]["found"] == {"exit_code": 3}


def test_a_command_that_hangs_is_ended_with_all_that_it_began(alone: Case) -> None:
    pid = alone.folder / "pid"
    alone.aim("hangs", pid, patience="3s")
    assert alone.rehearse().problem == "the command took longer than 3 s: see the log of this task"
    assert is_over(pid)


def test_a_command_that_is_not_there(alone: Case) -> None:
    alone.aim("small", command="/no/such/program --at all")
    problem = alone.rehearse().problem
    assert problem is not None and "cannot be run on this worker: No such file" in problem


@pytest.mark.parametrize("source", [{}, {"source": "origin"}])
def test_a_command_gets_nothing_that_leads_to_the_migration(
    folder: Path, source: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, said = Case(folder), folder / "said.json"
    case.aim("says", said, **source)
    for name in (
        "AIRFLOW_CONN_SOURCE",
        "FISHLADDER_TARGET",
        "FISHLADDER_LEDGER",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    ):
        monkeypatch.setenv(name, "production")
    monkeypatch.setenv("AIRFLOW_CONN_TEST", "rehearsal")
    assert case.rehearse().problem is None
    found = json.loads(said.read_text())
    assert found.pop("AIRFLOW_CONN_TEST") == "rehearsal"
    ledger = found.pop("FISHLADDER_LEDGER", "")
    assert found == {} and "production" not in ledger and ledger.startswith("sqlite:////") is bool(source)


def test_books_that_do_not_meet_on_the_way_back_are_a_dirty_day(whole: Case) -> None:
    whole.aim("behind", store="origin", source="origin")
    found = whole.rehearse()
    assert found.problem is not None and "item: 1 differs" in found.problem
    assert last(whole)[0] is False


def test_a_report_that_does_not_run_there_is_a_dirty_day(alone: Case) -> None:
    spec = words(command="true").replace("target: select sum", "target: select no_such_function")
    alone.desk = replace(alone.desk, spec=smalls.loads(spec, name="small.yaml", environment={}))
    found = alone.rehearse()
    assert found.problem is not None and "no_such_function" in found.problem and last(alone)[0] is False


# The copy


def test_rows_whose_parent_did_not_come_along_are_left_out_and_counted(alone: Case) -> None:
    with closing(sqlite3.connect(alone.folder / "target.db")) as connection:  # which checks no foreign keys
        connection.executescript(
            "BEGIN; INSERT INTO fishladder_copying VALUES (1); INSERT INTO item VALUES (900, 99, 1); INSERT INTO line"
            " VALUES (900, 1, 'x'); DELETE FROM item WHERE id = 20; DELETE FROM fishladder_copying; COMMIT"
        )
    found = alone.rehearse()
    assert found.problem is None
    assert found.steps[1].found["left_out"] == {"item": 1, "line": 2}
    assert alone.rows("test", "SELECT count(*) FROM line WHERE item_id <> 10") == [(0,)]
    assert alone.rows("target", "SELECT count(*) FROM item WHERE id = 900") == [(1,)]


def test_rows_that_changed_under_the_copy_are_copied_once_more(alone: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unique value goes from a row that was copied to one that was not yet."""
    real, changed = Pace.wait, list[int]()

    def wait(pace: Pace, rows: int) -> None:
        real(pace, rows)
        if not changed and alone.rows("test", "SELECT id FROM customer") == [(1,)]:
            changed.append(rows)
            alone.small.damage(
                "UPDATE customer SET email = 'z' WHERE id = 1", "UPDATE customer SET email = 'a' WHERE id = 2"
            )

    monkeypatch.setattr(SqliteStore, "chunk_rows", 1)
    monkeypatch.setattr(Pace, "wait", wait)
    assert alone.rehearse().problem is None and changed
    assert alone.rows("test", "SELECT email FROM customer ORDER BY id") == [("z",), ("a",), ("c",), ("new",)]


def test_rows_that_do_not_fit_are_a_dirty_day(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "test.db")) as connection:
        connection.executescript(
            smalls.SCHEMA.partition("INSERT")[0].replace("text VARCHAR(20)", "text VARCHAR(20) CHECK (text <> 'x')")
        )
    case = Case(folder)
    found = case.rehearse()
    assert found.problem is not None and found.problem.startswith("line: 1 rows do not fit"), found
    assert found.steps[1].found["refused"].keys() == {"line"} and last(case)[0] is False


def test_a_test_store_with_other_tables_says_so(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "test.db")) as connection:
        connection.execute("CREATE TABLE price (id INTEGER PRIMARY KEY)")
    case = Case(folder)
    with pytest.raises(InputError, match=r"test does not have the tables of the migration.*no column amount"):
        case.rehearse()


def test_before_the_load_has_ended_there_is_nothing_to_rehearse(folder: Path) -> None:
    case = Case(folder)
    with closing(sqlite3.connect(folder / "target.db")) as connection:
        connection.execute("UPDATE fishladder_load SET is_open = 1 WHERE table_name = 'item'")
        connection.commit()
    with pytest.raises(InputError, match="item is not loaded yet"):
        case.rehearse()


# Whose the stores are


def other_way(case: Case, **paths: Path) -> None:
    """Have these connections lead elsewhere."""
    usual = case.desk.open

    def open_(connection: str) -> Store:
        return open_store(*connect_url(f"sqlite:///{paths[connection]}")) if connection in paths else usual(connection)

    case.desk = replace(case.desk, open=open_)


@pytest.mark.parametrize("production", ["target", "source"])
@pytest.mark.parametrize("spelling", ["link", "dots"])
def test_a_test_store_that_is_one_of_the_migrations_own_is_refused(
    folder: Path, production: str, spelling: str
) -> None:
    case = Case(folder, source="origin")
    (folder / "link.db").symlink_to(folder / f"{production}.db")
    path = {"link": folder / "link.db", "dots": folder / ".." / folder.name / f"{production}.db"}[spelling]
    for connection in ("test", "origin"):
        case.aim("small", source="origin")
        other_way(case, **{connection: path})
        before = case.production()
        with pytest.raises(InputError, match=rf"{connection} and {production} are one database.*Nothing was deleted"):
            case.rehearse()
        assert case.production() == before
        assert last(case)[0] is False


def test_one_database_for_both_is_refused(whole: Case) -> None:
    other_way(whole, origin=whole.folder / "test.db")
    with pytest.raises(InputError, match="test and origin are one database"):
        whole.rehearse()


def test_another_migrations_store_is_refused(folder: Path, tmp_path: Path) -> None:
    """Also a copy of the target itself, such as a replica or a backup that somebody restored."""
    shutil.copy(folder / "target.db", folder / "test.db")
    case, before = Case(folder), dump(folder / "test.db")
    with pytest.raises(InputError, match="test holds tables of fishladder that no rehearsal of this migration made"):
        case.rehearse()
    assert dump(folder / "test.db") == before and last(case)[0] is False


def test_another_migrations_rehearsal_is_refused(folder: Path, loaded: Path, tmp_path: Path) -> None:
    Case(folder).rehearse()
    other = Case(shutil.copytree(loaded, tmp_path / "other"))
    other_way(other, test=folder / "test.db")
    before = dump(folder / "test.db")
    with pytest.raises(InputError, match="no rehearsal of this migration made"):
        other.rehearse()
    assert dump(folder / "test.db") == before


def test_rows_that_nobody_rehearsed_are_not_deleted(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "test.db")) as connection:
        connection.executescript(smalls.SCHEMA)
    case = Case(folder)
    with pytest.raises(InputError, match="test holds rows of price, customer, item, line that no rehearsal put there"):
        case.rehearse()
    assert case.rows("test", "SELECT count(*) FROM line") == [(3,)]


def test_nothing_but_test_stores_can_be_opened(alone: Case) -> None:
    assert alone.desk.spec.rehearsal is not None
    day = rehearsal._Day(desk=alone.desk, rehearsal=alone.desk.spec.rehearsal, environment={})
    with pytest.raises(InputError, match="target is no store of the rehearsal"):
        day.open("target")


def test_a_connection_that_leads_elsewhere_by_now_is_not_used(whole: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    real, before = rehearsal._Day._both_ways, whole.production()

    def diverted(day: rehearsal._Day, *arguments: Any) -> None:
        other_way(whole, test=whole.folder / "target.db")
        day.desk = whole.desk
        real(day, *arguments)

    monkeypatch.setattr(rehearsal._Day, "_both_ways", diverted)
    found = whole.rehearse()
    assert found.problem is not None and "another rehearsal began in test" in found.problem
    assert whole.production() == before


def test_two_at_once_prove_nothing(alone: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    real, again = rehearsal._Day._alone, iter([True])

    def overtaken(day: rehearsal._Day, ledger: str | None) -> None:
        if next(again, False):
            assert alone.rehearse().problem is None
        real(day, ledger)

    alone.aim("says", alone.folder / "said.json")
    monkeypatch.setattr(rehearsal._Day, "_alone", overtaken)
    found = alone.rehearse()
    assert found.problem is not None and "another rehearsal began in test" in found.problem


# Cut short

DIE = """
import os, signal, sys
from fishladder import sandbox, tasks, rehearsal
from fishladder.stores.sqlite import SqliteStore
from pathlib import Path
from tests.unit.test_rehearsal import Case

def dying(*arguments, **words):
    os.kill(os.getpid(), signal.SIGKILL)

folder, place = sys.argv[1:]
owner, name = {
    "asked": (sandbox, "check_owned"), "emptied": (SqliteStore, "uninstall"), "nobody's": (sandbox, "_make_words"),
    "marked": (SqliteStore, "install_tables"), "copied": (sandbox, "_leave_out_orphans"),
    "moved": (rehearsal._Day, "_alone"), "half back": (rehearsal._Day, "_compare"),
}[place]
case = Case(Path(folder), source="origin")
if place == "nobody's":
    first = SqliteStore.uninstall
    SqliteStore.uninstall = lambda store: (first(store), dying())
elif place == "half back":
    real, times = rehearsal._Day._compare, iter([1])
    rehearsal._Day._compare = lambda *a: real(*a) if next(times, 0) else dying()
else:
    setattr(owner, name, dying)
case.rehearse()
"""


@pytest.mark.parametrize(
    "place",
    [
        *(pytest.param(place, marks=pytest.mark.slow) for place in ("asked", "emptied", "marked", "copied", "moved")),
        *("nobody's", "half back"),
    ],
)
def test_killed_anywhere_the_next_one_is_clean(whole: Case, place: str) -> None:
    if place in ("emptied", "nobody's", "marked"):
        whole.rehearse()  # in stores that are known already
    before = whole.production()
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(whole.folder), place], check=False, env=dict(os.environ) | PATHS
    )
    assert done.returncode == -signal.SIGKILL
    assert whole.rehearse().problem is None
    assert whole.production() == before


PATHS = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# The example


class Billing:
    """The billing example with a rehearsal, on four SQLite files."""

    def __init__(self, folder: Path, *, source: bool) -> None:
        self.urls = {
            name: f"sqlite:///{folder / name}.db"
            for name in ("billing_source", "billing_target", "billing_test", "billing_test_source", "ledger")
        }
        text_ = (Path(schema.__file__).parents[1] / "migrations/billing.yaml").read_text()
        text_ += f"rehearsal: {{connection: billing_test, command: {json.dumps(self.command)}"
        text_ += ", source: billing_test_source}\n" if source else "}\n"
        (folder / "billing.yaml").write_text(text_)
        schema.create(self.urls["billing_source"])
        seed(self.urls["billing_source"], customers=40, seed=7)
        ledgers.create(self.urls["ledger"])
        self.ledger = open_ledger(self.urls["ledger"], migration="billing")
        self.desk = Desk(
            spec=load(folder / "billing.yaml", {}),
            ledger=self.ledger,
            open=lambda name: open_store(*connect_url(self.urls[name])),
        )
        tasks.prepare(self.desk, actor="test")
        for table in tasks.cut(self.desk):
            tasks.load_table(self.desk, table, "1")
            tasks.close_table(self.desk, table)

    @property
    def command(self) -> str:
        return command("billing", self.urls["billing_test"])


@pytest.mark.parametrize("source", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_night_of_the_billing_example(tmp_path: Path, source: bool) -> None:
    billing = Billing(tmp_path, source=source)
    files = [tmp_path / f"{name}.db" for name in ("billing_source", "billing_target")]
    before = [dump(file) for file in files]
    found = rehearse(billing.desk)
    assert (found.problem, steps(found)) == (None, WHOLE if source else ALONE)
    assert [dump(file) for file in files] == before
    reported = next(step.found for step in found.steps if step.step == "reports")
    assert reported.keys() == billing.desk.spec.reports.keys()
    assert invariants.check(billing.urls["billing_test"]) == []
    if source:
        assert independent.compare(billing.urls["billing_test_source"], billing.urls["billing_test"]) == []
        assert invariants.check(billing.urls["billing_test_source"]) == []
    billing.ledger.close()


# The migration between the test stores


@pytest.mark.parametrize(("first", "begins"), [(500, 1000), (1000, 1_001_000), (5000, 1_005_000)])
def test_ids_of_the_rehearsal_begin_above_all_that_were_copied(first: int, begins: int) -> None:
    spec = smalls.loads(words(command="true", source="origin"), name="small.yaml", environment={})
    spec = spec.model_copy(update={"ids": Ids(target_from=1000)})
    assert spec.rehearsal is not None
    made = stage_spec(spec, spec.rehearsal, "origin", first)
    assert made.ids == Ids(target_from=begins) and spec.ids == Ids(target_from=1000)
    connections = {made.source.connection, made.target.connection, made.application.source, made.application.target}
    assert connections == {"origin", "test"} and made.rehearsal is None


# The gate


class Days:
    """Evidence of days, at noon of 20 November 2026."""

    def __init__(self, small: Small) -> None:
        self.ledger, self.watch = small.ledger, Watch()
        self.spec = smalls.loads(
            words(command="true", gates="gates: {rehearsal_days: 3}"), name="small.yaml", environment={}
        )
        self.now = datetime(2026, 11, 20, 12, tzinfo=UTC)
        (self.attempt,) = self.ledger.begin_attempts({"NZ": {}}, "flip", actor="a", reason="", deadline=60, approvals=0)

    def day(self, ago: int, problem: str | None = None, hour: int = 3) -> None:
        began = datetime(2026, 11, 20, hour, tzinfo=UTC) - timedelta(days=ago)
        self.ledger.record_evidence("rehearsal", "small", {"steps": [], "problem": problem}, problem is None, began)

    def sql(self, statement: str) -> None:
        with self.ledger.engine.begin() as connection:
            assert connection.execute(text(statement)).rowcount

    def gate(self) -> Gate:
        gates = evaluate(self.spec, self.ledger, self.attempt, self.now, contradictions=())
        return next(gate for gate in gates if gate.name == "rehearsals")

    def found(self) -> tuple[bool, str]:
        return self.gate().open, self.gate().found


@pytest.fixture
def days(small: Small) -> Days:
    return Days(small)


def test_so_many_clean_days_in_a_row_open_it(days: Days) -> None:
    assert days.found() == (False, "0 of 3 clean days; 2026-11-19: no rehearsal")
    for ago in (2, 1):
        days.day(ago)
    assert days.found() == (False, "2 of 3 clean days; 2026-11-17: no rehearsal")
    days.day(0)
    assert days.found() == (True, "3 of 3 clean days")
    assert "small_rehearse" in days.gate().remedy


def test_today_may_be_still_to_come(days: Days) -> None:
    for ago in (3, 2, 1):
        days.day(ago)
    assert days.found()[0]
    days.now += timedelta(hours=12)  # the next day: yesterday's is missing
    assert days.found() == (False, "0 of 3 clean days; 2026-11-20: no rehearsal")


@pytest.mark.parametrize(("dirty", "count"), [(0, 0), (1, 1), (2, 2)])
def test_a_dirty_day_begins_the_count_anew(days: Days, dirty: int, count: int) -> None:
    for ago in range(6):
        days.day(ago, "the command ended\nwith exit code 1" if ago == dirty else None)
    when = (days.now - timedelta(days=dirty)).date()
    assert days.found() == (False, f"{count} of 3 clean days; {when}: the command ended with exit code 1")


def test_a_missing_day_begins_the_count_anew(days: Days) -> None:
    for ago in (0, 2, 3, 4):
        days.day(ago)
    assert days.found() == (False, "1 of 3 clean days; 2026-11-19: no rehearsal")


def test_the_last_rehearsal_of_a_day_counts(days: Days) -> None:
    for ago in range(3):
        days.day(ago)
    days.day(1, "a report differs", hour=5)
    assert days.found() == (False, "1 of 3 clean days; 2026-11-19: a report differs")
    days.day(1, hour=6)
    assert days.found()[0]


def test_edited_evidence_opens_nothing_and_hides_nothing(days: Days) -> None:
    for ago in range(3):
        days.day(ago)
    days.day(1, "a report differs", hour=5)
    days.sql("UPDATE ledger_evidence SET passed = 1 WHERE passed = 0")
    assert days.found() == (False, "1 of 3 clean days; 2026-11-19: its evidence is not what was recorded")


def test_evidence_from_the_future_opens_nothing(days: Days) -> None:
    for ago in range(3):
        days.day(ago)
    days.day(0, hour=13)
    assert days.found() == (False, "3 of 3 clean days; a rehearsal lies in the future")


def test_days_are_those_of_utc(days: Days) -> None:
    for ago in range(1, 4):
        days.day(ago, hour=23)
    days.now = datetime(2026, 11, 20, 0, 30, tzinfo=UTC)
    assert days.found()[0]


def test_without_days_it_is_open(days: Days) -> None:
    days.spec = smalls.loads(SPEC, name="small.yaml", environment={})
    assert days.found() == (True, "no clean days are asked for")
