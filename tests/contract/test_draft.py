"""A migration file that is drafted from two live schemas moves them, with no edits but those that it asks for."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from chinook import schema
from fishladder import tasks
from fishladder.cli import main
from fishladder.names import settle
from fishladder.plan import resolve
from fishladder.spec import Migration, load, loads
from fishladder.stores.base import ForeignKey, TableInfo
from tests import independent, ledgers
from tests.contract.stores import STORES, Place
from tests.contract.tables import column, table
from tests.scenario.worker import desk

FILE = Path(schema.__file__).parents[1] / "migrations" / "chinook.yaml"
FEW = (
    "DELETE FROM Customer WHERE CustomerId > 5",
    "DELETE FROM Invoice WHERE CustomerId > 5",
    "DELETE FROM InvoiceLine WHERE InvoiceId NOT IN (SELECT InvoiceId FROM Invoice)",
    "DELETE FROM Track WHERE TrackId NOT IN (SELECT TrackId FROM InvoiceLine)",
    "DELETE FROM PlaylistTrack WHERE TrackId NOT IN (SELECT TrackId FROM Track)",
)
"""What leaves some hundreds of Chinook's rows: five customers, and what belongs to them."""
Draft = Callable[[str], str]


KINDS = ["mysql", "mariadb", "oracle"]
SLOWER = ["mysql", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
"""Where the whole way is gone: on the wire emulator it takes a minute."""


@pytest.fixture(params=KINDS)
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with STORES[request.param](request, tmp_path) as place:
        yield place
        place.close()


@pytest.fixture
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with STORES["mysql"](request, tmp_path) as place:
        yield place
        place.close()


@pytest.fixture
def draft(
    ours: Place, theirs: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Draft:
    """Drafts a file of this name from what the two hold now."""
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    ledgers.create(f"sqlite:///{tmp_path}/ledger.db")

    def draft(name: str) -> str:
        for end, place in (("source", ours), ("target", theirs)):
            monkeypatch.setenv(f"FISHLADDER_{name.upper()}_{end.upper()}", place.copier)
        capsys.readouterr()
        assert main(["draft", "--source", f"{name}_source", "--target", f"{name}_target"]) == 0
        return capsys.readouterr().out

    return draft


def run(file: Path) -> None:
    """Prepare and load; then every row of both is read."""
    at = desk(file)
    tasks.prepare(at, actor="ada")
    tables = list(tasks.cut(at))
    for name in tables:
        tasks.load_table(at, name, "1")
        tasks.close_table(at, name)
    tasks.replicate(at, seconds=60, until_idle=True)
    assert at.ledger.open_rejects() == []
    for name in tables:
        tasks.reconcile_table(at, name)
    assert [name for name in tables if at.ledger.clean_passes(name) != 1] == []


def create_chinook(ours: Place, theirs: Place) -> None:
    """Chinook's own tables in both, as it ships them for each kind."""
    schema.create(theirs.admin)
    if ours.kind == "oracle":
        tables = (schema.HERE / "Chinook_Oracle.sql").read_text("utf-8").partition("INSERT INTO")[0]
        ours.administrator().script(re.sub(r"^(GRANT|CONNECT)\b.*;$", "", tables, flags=re.M))
    else:
        schema.create(ours.admin)


def fill_chinook(place: Place, folder: Path) -> None:
    schema.copy_sample(folder / "sample.db")
    with closing(sqlite3.connect(folder / "sample.db")) as sample:
        for statement in FEW:
            sample.execute(statement)
        for name in schema.TABLES:
            found = sample.execute(f"SELECT * FROM {name} ORDER BY 1")
            columns = [column for column, *_ in found.description]
            marks = ", ".join("?" * len(columns))
            place.administrator().insert_many(
                f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", found.fetchall()
            )


def planned(migration: Migration, ours: Place, theirs: Place) -> dict[str, tuple[Any, ...]]:
    """What a file makes of the tables of both, by their names in the source."""
    plan = resolve(*settle(migration, ours.open().describe(), theirs.open().describe()))

    def end(relation: Any) -> tuple[Any, ...]:
        return relation.name, relation.fields, relation.key, relation.entity, relation.root_cohort

    return {found.source.name: (end(found.source), end(found.target)) for found in plan.tables}


def test_chinooks_draft_is_the_file_that_is_used_but_for_its_waves(ours: Place, theirs: Place, draft: Draft) -> None:
    """The Oracle's names are other ones than the target's."""
    create_chinook(ours, theirs)
    drafted = draft("chinook")
    assert "fail:" not in drafted
    found = loads(drafted, name="drafted.yaml", environment={})
    used = load(FILE, {"CHINOOK_SOURCE_KIND": ours.kind, "CHINOOK_TARGET_KIND": theirs.kind})
    assert planned(found, ours, theirs) == planned(used, ours, theirs)
    words = ("migration", "source", "target", "application")
    assert [getattr(found, word) for word in words] == [getattr(used, word) for word in words]
    infos, written = ours.open().describe(), list(found.tables)
    for at, name in enumerate(written):
        assert {key.parent for key in infos[name].foreign_keys} <= set(written[: at + 1])  # parents come first


@pytest.mark.parametrize("ours", SLOWER, indirect=True)
def test_chinooks_draft_with_waves_runs_to_the_end(ours: Place, theirs: Place, draft: Draft, tmp_path: Path) -> None:
    create_chinook(ours, theirs)
    fill_chinook(ours, tmp_path)
    drafted = draft("chinook")
    assert drafted.count('waves: [["*"]]') == 1
    file = tmp_path / "chinook.yaml"
    file.write_text(drafted.replace('waves: [["*"]]', 'waves: [[Norway], [Brazil], ["*"]]'))
    run(file)
    assert independent.compare(ours.admin, theirs.admin, schema.TABLES) == []


def shop(name: str, since: str, born: str, note: str) -> list[TableInfo]:
    """Tables whose ends differ. ``name``, ``since`` and ``note``: types; ``born``: what that column is called."""
    number = column("id", "integer(18)", nullable=False)

    def child(name: str, parent: str) -> TableInfo:
        up = f"{parent}_id"
        key = ForeignKey(columns=(up,), parent=parent, parent_columns=("id",))
        return table(name, ["id"], number, column(up, "integer(18)", nullable=False), foreign_keys=(key,))

    columns = (column("country", "string(2)"), column("name", name), column("since", since), column(born, "date"))
    return [
        table("price", ["id"], number, column("note", note)),
        table("customer", ["id"], number, *columns),
        child("invoice", "customer"),
        child("line", "invoice"),
    ]


@pytest.mark.parametrize("ours", SLOWER, indirect=True)
def test_what_a_draft_asks_for_is_all_that_is_edited(ours: Place, theirs: Place, draft: Draft, tmp_path: Path) -> None:
    """Between tables whose columns differ in type, length and name."""
    ours.create_tables(ours.open(), shop("string(80)", "string(10)", "born", "string(20)"))
    theirs.create_tables(theirs.open(), shop("string(40)", "date", "birthday", "string(200)"))
    db = ours.administrator()
    db.execute("INSERT INTO price (id, note) VALUES (1, 'é')")
    db.execute(
        "INSERT INTO customer (id, country, name, since, born) VALUES (7, 'NZ', ?, '2025-12-31', DATE '2026-01-31')",
        ("n" * 40,),
    )
    db.execute("INSERT INTO invoice (id, customer_id) VALUES (70, 7)")
    db.execute("INSERT INTO line (id, invoice_id) VALUES (700, 70)")
    drafted = draft("shop")
    asked = dict(re.findall(r"^  # fail: (\w+): .*; (.*)$", drafted, re.M))
    assert asked == {"since": "give the type with types:", "born": "use rename: or drop:"}
    assert re.search(r"^  # warn: name: .*\(80.*\) can hold more than string\(40\)", drafted, re.M)
    file = tmp_path / "shop.yaml"
    file.write_text(drafted)
    assert main(["preflight", str(file)]) == 1
    assert drafted.count("\n  customer: root\n") == 1
    given = "\n  customer: {role: root, types: {since: date}, rename: {born: birthday}}\n"
    file.write_text(drafted.replace("\n  customer: root\n", given))
    run(file)
    found = theirs.administrator().rows("SELECT id, country, name, since, birthday FROM customer")
    assert found == [(7, "NZ", "n" * 40, date(2025, 12, 31), date(2026, 1, 31))]
    assert independent.compare(ours.admin, theirs.admin, ["price", "invoice", "line"]) == []
