"""The command line, and the tasks behind it, on a migration of SQLite files."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fishladder import tasks
from fishladder.cli import main
from fishladder.errors import InputError
from fishladder.ledger import open_ledger
from fishladder.spec import load
from fishladder.stores import connect_environment, connect_url, open_store
from tests.unit.small import SCHEMA, SPEC


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A migration file whose stores and ledger are set in the environment."""
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection:
        connection.executescript(SCHEMA)
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    for name in ("source", "target"):
        monkeypatch.setenv(f"FISHLADDER_{name.upper()}", f"sqlite:///{tmp_path}/{name}.db")
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    assert main(["ledger", "upgrade"]) == 0
    return path


def desk(file: Path) -> tasks.Desk:

    spec = load(file)
    ledger = open_ledger(os.environ["FISHLADDER_LEDGER"], migration=spec.migration)
    return tasks.Desk(spec=spec, ledger=ledger, open=lambda name: open_store(*connect_environment(name, os.environ)))


def test_preflight_prints_what_fails_first(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", str(file)]) == 0
    said = capsys.readouterr()
    assert "customer.country" in said.out
    assert "1 rows have no country" in said.out
    assert "prepare creates them" in said.err
    file.write_text(SPEC.replace("item: {", "itm: {").replace("via: item", "via: itm"))
    assert main(["preflight", str(file), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert "did you mean 'item'?" in next(f["message"] for f in findings if f["level"] == "fail")


def test_a_broken_file_says_where(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SPEC.replace("entity:", "entitty:"))
    assert main(["preflight", str(file)]) == 2
    assert f"{file}:11" in capsys.readouterr().err


def test_cycles_are_looked_for_rarely_while_rows_are_moved(file: Path) -> None:
    at, before = desk(file), gc.get_threshold()
    tasks.prepare(at, actor="somebody")
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(at.ends())
        second.enter_context(desk(file).ends())
        first.close()  # of two threads, whichever ends last
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


def test_a_whole_migration_and_its_status(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = desk(file)
    tasks.prepare(at, actor="somebody")
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    assert main(["status", str(file)]) == 0
    assert ", no applier has been at work yet" in capsys.readouterr().out
    tasks.replicate(at, seconds=5, until_idle=True)
    assert main(["status", str(file)]) == 0
    assert ", lag of the applier 0.0 s" in capsys.readouterr().out
    for table in tasks.cut(at):
        tasks.reconcile_table(at, table)
    totals = tasks.totals(at)
    assert totals["customer"] == {"*": (1, 1), "AU": (1, 1), "NZ": (1, 1)}
    assert totals["price"] == {"shared": (2, 2)}
    evidence = at.ledger.latest_evidence("totals")
    assert evidence is not None and evidence.passed
    capsys.readouterr()
    with open_ledger(os.environ["FISHLADDER_LEDGER"], migration="small") as ledger:
        ledger.set_control(rows_per_second=200, replica_lag=5, actor="ada")
    assert main(["status", str(file)]) == 0
    assert "slowed down to rows per second 200, replica lag 5\n" in capsys.readouterr().out
    assert main(["status", str(file), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["limits"] == {"rows_per_second": 200, "replica_lag": 5}
    assert {name: table["clean_passes"] for name, table in status["tables"].items()} == dict.fromkeys(
        status["tables"], 1
    )
    at.ledger.begin_attempt("NZ", "flip", actor="ann", reason="", deadline=60, approvals=1)
    assert main(["status", str(file)]) == 0
    said = capsys.readouterr().out
    assert "customer" in said and "flip no. 1 of NZ is at verify\n    closed: clean passes: " in said
    assert "approved by nobody; it takes 1\n" in said


def test_prepare_runs_twice(file: Path) -> None:
    at = desk(file)
    assert tasks.prepare(at, actor="somebody") == tasks.prepare(at, actor="somebody")


def test_a_file_changed_in_between_must_be_prepared(file: Path) -> None:
    tasks.prepare(desk(file), actor="somebody")
    file.write_text(SPEC.replace("waves: [[NZ]", "waves: [[AU]"))
    tasks.cut(desk(file))  # waves may change
    file.write_text(SPEC.replace("item: {entity: customer_id}", "item: {entity: customer_id, drop: [amount]}"))
    with pytest.raises(InputError, match="small_prepare"):
        tasks.cut(desk(file))
    with pytest.raises(InputError, match=r"item.*undo that"):
        tasks.prepare(desk(file), actor="somebody")


def test_tasks_ask_for_prepare_first(file: Path) -> None:
    with pytest.raises(InputError, match="run small_prepare first"):
        tasks.cut(desk(file))


def test_rows_in_the_target_before_the_load_are_refused(file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
        connection.executescript(SCHEMA)
    with pytest.raises(InputError, match=r"price.*already holds rows"):
        tasks.prepare(desk(file), actor="somebody")


def test_the_audit_trail_is_verified(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.prepare(desk(file), actor="somebody")
    assert main(["audit", "verify"]) == 0
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        table = connection.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%audit%' AND sql LIKE '%actor%'"
        ).fetchone()[0]
        connection.execute(f"UPDATE {table} SET actor = 'nobody' WHERE sequence = 1")
        connection.commit()
    assert main(["audit", "verify", "--migration", "small"]) == 1
    assert "broken" in capsys.readouterr().out


def test_with_a_file_its_stores_are_asked_too(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.prepare(desk(file), actor="somebody")
    assert main(["audit", "verify", str(file)]) == 0
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection:
        connection.execute("UPDATE fishladder_fence SET epoch = 9 WHERE cohort = 'NZ'")
        connection.commit()
    assert main(["audit", "verify"]) == 0
    assert main(["audit", "verify", str(file)]) == 1
    assert "NZ is off in epoch 1, and the source's fence says application in epoch 9" in capsys.readouterr().out


def test_the_ledger_must_be_there(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/other.db")
    assert main(["status", str(file)]) == 1
    assert "ledger upgrade" in capsys.readouterr().err
    monkeypatch.delenv("FISHLADDER_LEDGER")
    assert main(["status", str(file)]) == 2
    assert "FISHLADDER_LEDGER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://somebody:secret@host/db", "postgresql is no kind of store"),
        ("mysql://somebody:secret@host", "needs a host and a schema"),
        ("sqlite://", "needs a path"),
        ("nonsense", "nothing is no kind"),
    ],
)
def test_a_bad_url_is_named_without_its_password(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        connect_url(url)
    assert "secret" not in str(caught.value)


def test_connections_come_from_the_environment() -> None:
    kind, _ = connect_environment("billing-target.eu", {"FISHLADDER_BILLING_TARGET_EU": "sqlite:////tmp/x.db"})
    assert kind == "sqlite"
    with pytest.raises(InputError, match="FISHLADDER_SOURCE"):
        connect_environment("source", {})
    with pytest.raises(InputError, match="cassandra cannot be opened yet"):
        open_store("cassandra", lambda: None)


def test_rejects_are_listed_and_retried(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
        connection.executescript(SCHEMA.partition("INSERT INTO")[0].replace("UNIQUE", "UNIQUE CHECK (email <> 'b')"))
    at = desk(file)
    tasks.prepare(at, actor="somebody")
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    capsys.readouterr()
    assert main(["rejects", str(file), "--json"]) == 0
    (reject,) = json.loads(capsys.readouterr().out)
    assert (reject["table"], reject["key"], reject["cohort"], reject["attempts"]) == ("customer", "1:2", "AU", 1)
    assert main(["rejects", str(file), "--table", "item"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["rejects", str(file), "--table", "custoner"]) == 2
    assert "no table custoner (did you mean 'customer'?)" in capsys.readouterr().err
    assert main(["rejects", str(file), "--retry"]) == 0
    assert "customer key 1:2 (AU" in capsys.readouterr().out
    tasks.replicate(at, seconds=5, until_idle=True)
    assert at.ledger.open_rejects()[0].attempts == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("strategy: replicate", "strategy: coexist"), "coexist cannot run yet"),
        (("{entity: customer_id}", "{entity: customer_id, zone: {amount: UTC}}"), "zone: cannot be used yet"),
    ],
)
def test_what_nothing_acts_on_yet_is_refused(
    file: Path, change: tuple[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(SPEC.replace(*change))
    assert main(["preflight", str(file)]) == 1
    assert words in capsys.readouterr().out
