"""A drafted migration file: runs as it is where the schema says all, and says what a person must look at."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from fishladder import tasks
from fishladder.cells import parse_type
from fishladder.cli import main
from fishladder.draft import End, draft
from fishladder.errors import InputError
from fishladder.spec import load, loads
from fishladder.stores.base import Column, ForeignKey, TableInfo
from fishladder.stores.sqlite import SqliteStore, connect
from tests import independent
from tests.scenario.worker import desk

ROOT = Path(__file__).parents[2]
ENDS = (End(kind="sqlite", connection="shop_source"), End(kind="mysql", connection="shop_target"))


def table(name: str, *columns: str, parents: Mapping[str, str] = {}) -> TableInfo:
    """``columns``: ``name type`` with ``?`` for nullable; the first is the key. ``parents``: column → table."""
    made = []
    for column in columns:
        word, _, type_ = column.partition(" ")
        made.append(Column(name=word, native=type_, type=parse_type(type_.rstrip("?")), nullable=type_.endswith("?")))
    keys = [ForeignKey(columns=(c,), parent=parent, parent_columns=("id",)) for c, parent in parents.items()]
    return TableInfo(name=name, columns=tuple(made), key=(made[0].name,), foreign_keys=tuple(keys))


def tables(*infos: TableInfo) -> dict[str, TableInfo]:
    return {info.name: info for info in infos}


CUSTOMER = table("customer", "id integer(18)", "country string(2)")


def drafted(source: dict[str, TableInfo], target: dict[str, TableInfo] | None = None, **options: str) -> str:
    return draft("shop", ENDS, source, target or {}, **options)


def test_chinooks_draft_is_the_file_that_is_used_but_for_its_waves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "include/chinook/Chinook_Sqlite.sqlite", tmp_path / "source.db")
    for end in ("source", "target"):
        monkeypatch.setenv(f"FISHLADDER_CHINOOK_{end.upper()}", f"sqlite:///{tmp_path}/{end}.db")
    assert main(["draft", "--source", "chinook_source", "--target", "chinook_target"]) == 0
    found = loads(capsys.readouterr().out, name="drafted.yaml", environment={})
    used = load(ROOT / "include/migrations/chinook.yaml", {})
    assert (found.tables, found.migration, found.ids) == (used.tables, used.migration, used.ids)
    assert (found.source, found.target, found.application) == (used.source, used.target, used.application)
    words = ("label", "root", "column")
    assert [getattr(found.cohort, word) for word in words] == [getattr(used.cohort, word) for word in words]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_draft_passes_preflight_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    shutil.copy(ROOT / "include/chinook/Chinook_Sqlite.sqlite", tmp_path / "source.db")
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    for end in ("source", "target"):
        monkeypatch.setenv(f"FISHLADDER_CHINOOK_{end.upper()}", f"sqlite:///{tmp_path}/{end}.db")
    store = SqliteStore(lambda: connect(f"{tmp_path}/source.db"))
    ends = (End(kind=kind, connection="chinook_source"), End(kind=kind, connection="chinook_target"))
    file = tmp_path / "chinook.yaml"
    file.write_text(draft("chinook", ends, store.describe(), {}))
    store.close()
    assert main(["ledger", "upgrade"]) == 0
    assert main(["preflight", str(file)]) == 0


def test_a_draft_with_waves_runs_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else of it is edited."""
    shutil.copy(ROOT / "include/chinook/Chinook_Sqlite.sqlite", tmp_path / "source.db")
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    for end in ("source", "target"):
        monkeypatch.setenv(f"FISHLADDER_CHINOOK_{end.upper()}", f"sqlite:///{tmp_path}/{end}.db")
    assert main(["ledger", "upgrade"]) == 0
    capsys.readouterr()
    assert main(["draft", "--source", "chinook_source", "--target", "chinook_target"]) == 0
    drafted = capsys.readouterr().out
    assert drafted.count('waves: [["*"]]') == 1
    file = tmp_path / "chinook.yaml"
    file.write_text(drafted.replace('waves: [["*"]]', 'waves: [[Norway, Denmark], [USA], ["*"]]'))
    at = desk(file)
    tasks.prepare(at, actor="ada")
    tables = list(tasks.cut(at))
    for table in tables:
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    tasks.replicate(at, seconds=60, until_idle=True)
    for table in tables:
        tasks.reconcile_table(at, table)
    assert all(at.ledger.clean_passes(table) == 1 for table in tables)
    assert {"Norway", "Denmark", "USA", "Brazil"} <= at.ledger.routes().keys()
    assert independent.compare(f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db") == []


def test_entities_are_found_by_the_shortest_and_surest_way() -> None:
    source = tables(
        table("note", "id integer(18)", "invoice_id integer(18)?", parents={"invoice_id": "invoice"}),
        table("line", "id integer(18)", "invoice_id integer(18)", parents={"invoice_id": "invoice"}),
        table(
            "invoice",
            "id integer(18)",
            "payer_id integer(18)?",
            "customer_id integer(18)",
            parents={"payer_id": "customer", "customer_id": "customer"},
        ),
        CUSTOMER,
        table("price", "id integer(18)"),
    )
    text = drafted(source)
    assert text[text.index("tables:") :].splitlines() == [
        "tables:",
        "  customer: root",
        "  # its entity could also be found by payer_id → customer",
        "  invoice: {entity: customer_id}",
        "  # invoice_id can be NULL: such rows belong to no cohort, and never flip",
        "  note: {via: invoice}",
        "  line: {via: invoice}",
        "  price: shared",
    ]


def test_two_foreign_keys_to_one_parent_are_no_via() -> None:
    columns = ("id integer(18)", "a integer(18)", "b integer(18)")
    source = tables(
        CUSTOMER,
        table("card", "id integer(18)", "customer_id integer(18)", parents={"customer_id": "customer"}),
        table("transfer", *columns, parents={"a": "card", "b": "card"}),
    )
    assert "  transfer: shared" in drafted(source)


def test_what_differs_between_the_ends_is_said_or_renamed() -> None:
    source = tables(
        table("CUSTOMER", "ID integer(18)", "COUNTRY string(2)", "NAME string(80)", "BORN date?", "PHOTO bytes?")
    )
    target = tables(table("customer", "id integer(18)", "country string(2)", "name string(40)", "born uuid?"))
    text = drafted(source, target)
    assert text.splitlines()[1:-2] == [
        "migration: shop",
        "strategy: replicate",
        "source: {kind: sqlite, connection: shop_source}",
        "target: {kind: mysql, connection: shop_target}",
        "application: {source: shop_source_app, target: shop_target_app}",
        'cohort: {label: country, root: CUSTOMER, column: COUNTRY, waves: [["*"]]}',
        "tables:",
        "  # warn: NAME: string(80) can hold more than string(40): such values become rejects",
        "  # fail: BORN: date? and uuid? have no values in common; give the type with types:",
    ]
    assert "PHOTO: the target has no column PHOTO" in text
    assert "rename: {ID: id, COUNTRY: country, NAME: name, BORN: born}" in text


def test_names_that_yaml_would_misread_come_back_whole() -> None:
    source = tables(
        table("customer", "id integer(18)", "country string(2)"),
        table("on", "id integer(18)"),
        table("price ${HOME} 'é'", "id integer(18)"),
    )
    text = drafted(source)
    assert set(loads(text, name="drafted.yaml", environment={}).tables) == set(source)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"root": "custmer"}, r"--root custmer: the source has no such table \(did you mean 'customer'\?\)"),
        ({"root": "customer", "column": "land"}, "--cohort land: customer has no such column"),
        ({"root": "price"}, "no table looks like the root"),
    ],
)
def test_a_root_that_cannot_be_is_an_error(options: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        drafted(tables(CUSTOMER, table("price", "id integer(18)")), **options)


def test_a_cycle_of_foreign_keys_ends() -> None:
    source = tables(
        CUSTOMER,
        table("a", "id integer(18)", "b_id integer(18)", parents={"b_id": "b"}),
        table("b", "id integer(18)", "a_id integer(18)", parents={"a_id": "a"}),
    )
    assert drafted(source).endswith("  customer: root\n  a: shared\n  b: shared\n")
