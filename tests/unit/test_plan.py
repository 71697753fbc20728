"""A migration file meets two real schemas: what does not fit is a finding that says what to do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fishladder import install
from fishladder.cells import SHARDS, LogicalType
from fishladder.errors import InputError
from fishladder.plan import Plan, examine, resolve
from fishladder.spec import loads
from fishladder.stores.base import Column, Finding, ForeignKey, TableInfo
from fishladder.stores.sqlite import SqliteStore, connect
from tests.unit.small import SCHEMA, SPEC

DDL = SCHEMA.partition("INSERT INTO")[0]
TWO_KEYS = DDL.replace("id INTEGER PRIMARY KEY, country VARCHAR(2),", "id INTEGER, country VARCHAR(2),").replace(
    "UNIQUE);", "UNIQUE, PRIMARY KEY (id, country));"
)


def look(folder: Path, *, spec: str = SPEC, source: str = DDL, target: str = DDL) -> tuple[list[Finding], Plan | None]:
    return examine(loads(spec, name="small.yaml", environment={}), *described(folder, source=source, target=target))


def described(folder: Path, *, source: str = DDL, target: str = DDL) -> list[dict[str, TableInfo]]:
    infos = []
    for name, script in (("one", source), ("two", target)):
        path = folder / f"{name}.db"
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
        store = SqliteStore(lambda path=path: connect(str(path)))
        infos.append(store.describe())
        store.close()
    return infos


def failures(findings: list[Finding]) -> list[str]:
    return [f"{finding.where}: {finding.message}" for finding in findings if finding.level == "fail"]


def test_parents_come_before_children_and_homes_before_all(tmp_path: Path) -> None:
    spec = SPEC.partition("tables:")[0] + (
        "tables:\n  line: {via: item}\n  item: {entity: customer_id}\n  customer: root\n  price: shared\n"
    )
    _, plan = look(tmp_path, spec=spec)
    assert plan is not None
    names = [table.name for table in plan.tables]
    assert names[:2] == ["fishladder_home", "fishladder_applied"]
    assert names.index("customer") < names.index("item") < names.index("line")


def test_shards_follow_the_entity(tmp_path: Path) -> None:
    _, plan = look(tmp_path)
    assert plan is not None

    def shards(table: str, key: bytes, entity: bytes | None) -> frozenset[int]:
        return plan.shards(table, key, entity, "target")

    assert shards("item", b"2:10", b"1:1") == shards("line", b"2:101:1", b"1:1")
    assert len(shards("item", b"2:10", None)) == SHARDS  # nobody knows whose it is
    assert shards("customer", b"1:1", b"1:1") == shards("customer", b"1:2", b"1:2")  # a secondary unique key
    assert len(shards("price", b"1:1", None)) == 1


def test_tables_tied_by_foreign_keys_that_are_always_checked_share_a_shard(tmp_path: Path) -> None:
    """In the store that checks them, as Oracle does: there a row waits for whoever is writing its parent."""
    source, target = described(tmp_path)
    for name, info in target.items():
        target[name] = replace(info, foreign_keys=tuple(replace(fk, checked=True) for fk in info.foreign_keys))
    plan = resolve(loads(SPEC, name="small.yaml", environment={}), source, target)
    tied = {plan.shards(name, b"1:1", b"1:%d" % n, "target") for name in ("customer", "item", "line") for n in range(9)}
    assert len(tied) == 1 and len(next(iter(tied))) == 1
    assert len({plan.shards("item", b"1:1", b"1:%d" % n, "source") for n in range(9)}) > 1
    assert len({plan.shards("price", b"1:%d" % n, None, "target") for n in range(9)}) > 1  # nothing refers to it


@pytest.mark.parametrize("side", ["source", "target"])
def test_rows_that_refer_to_each_other_are_warned_of_on_either_way(tmp_path: Path, side: str) -> None:
    """Where each is checked as it is written: a moved cohort goes back, too."""
    ddl = DDL.replace("email VARCHAR(40) UNIQUE", "email VARCHAR(40) UNIQUE, last_item INTEGER REFERENCES item (id)")
    source, target = described(tmp_path, source=ddl, target=ddl)
    checked = source if side == "source" else target
    for name, info in checked.items():
        checked[name] = replace(info, foreign_keys=tuple(replace(fk, checked=True) for fk in info.foreign_keys))
    findings, _ = examine(loads(SPEC, name="small.yaml", environment={}), source, target)
    warned = {finding.where: finding.message for finding in findings if "closes a circle" in finding.message}
    assert warned.keys() == {"customer (last_item)", "item (customer_id)"}
    assert all(message.startswith("on the way back: its") == (side == "source") for message in warned.values())


def test_new_tables_have_ids_that_their_store_can_generate() -> None:
    """An Oracle generates a bare NUMBER, MySQL no DECIMAL; and what refers to it must be of the same type."""
    number, counted = LogicalType(kind="decimal"), LogicalType(kind="integer", size=19)

    def table(name: str, *columns: Column, key: str = "id", **more: Any) -> TableInfo:
        return TableInfo(name=name, columns=columns, key=(key,), **more)

    def up(column: str, parent: str) -> ForeignKey:
        return ForeignKey(columns=(column,), parent=parent, parent_columns=("id",))

    def made(name: str, type_: LogicalType = number, *, generated: bool = False) -> Column:
        return Column(name=name, native="NUMBER", type=type_, nullable=False, generated=generated)

    small = LogicalType(kind="integer", size=9)
    ours = {
        "customer": table(
            "customer",
            *(made("id", generated=True), made("parent"), made("country"), made("price", small)),
            foreign_keys=(up("parent", "customer"),),
        ),
        "item": table(
            "item",
            *(made("id"), made("customer_id"), made("line")),
            foreign_keys=(up("id", "item"), up("customer_id", "customer"), up("line", "line")),
        ),
        "line": table("line", made("id", small, generated=True), foreign_keys=(up("id", "item"),)),
        "price": table("price", made("id"), foreign_keys=(up("id", "customer"),)),
    }
    spec = loads(SPEC, name="small.yaml", environment={})
    found = install.imagined_tables(spec, ours, ours)
    types = {(name, column.name): column.type for name, info in found.items() for column in info.columns}
    assert {place for place, type_ in types.items() if type_ == counted} == {
        ("customer", "id"),
        ("customer", "parent"),
        ("item", "customer_id"),
        ("price", "id"),
    }
    assert types["line", "id"] == types["item", "line"] == types["customer", "price"] == small
    assert types["item", "id"] == number  # the application's own, of any digits


def test_two_tables_are_never_one_in_the_target(tmp_path: Path) -> None:
    """MySQL may have Item and item; SQLite takes them for the same, and Oracle may have just ITEM."""
    source, target = described(tmp_path)
    source["Item"] = replace(source["item"], name="Item")
    spec = loads(SPEC + "  Item: {entity: customer_id}\n", name="small.yaml", environment={})
    both = {**target, "Item": replace(target["item"], name="Item")}
    # The target has the one, and the other is found under its name; or it has neither, and prepare would create both.
    for there, folds in ((target, False), (both, True)):
        findings, plan = examine(spec, source, there, folds=folds)
        assert plan is None
        (failure,) = failures(findings)
        assert "Item: it and item would be one table in the target" in failure and "small.yaml:13" in failure
    assert examine(spec, source, both)[1] is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"spec": SPEC.replace("price: shared", "prices: shared")},
            ["no table prices (did you mean 'price'?)", "small.yaml:9"],
        ),
        (
            {"spec": SPEC.replace("entity: customer_id", "entity: custmer_id")},
            ["custmer_id", "did you mean 'customer_id'?", "small.yaml:11"],
        ),
        (
            {"spec": SPEC.replace("column: country", "column: contry")},
            ["contry", "did you mean 'country'?", "small.yaml:7"],
        ),
        (
            {"target": DDL.replace("amount DECIMAL_TEXT", "amnt DECIMAL_TEXT")},
            ["price.amount", "did you mean 'amnt'?", "rename:"],
        ),
        ({"target": DDL.replace("amount INTEGER", "amount BLOB")}, ["item.amount", "no values in common", "types:"]),
        ({"source": DDL.replace("text VARCHAR(20)", "text GEOMETRY")}, ["line.text", "GEOMETRY", "drop:"]),
        (
            {"source": DDL.replace("id INTEGER PRIMARY KEY, customer_id", "id INTEGER, customer_id")},
            ["item", "no primary key"],
        ),
        (
            {"target": DDL.replace("PRIMARY KEY (item_id, no)", "PRIMARY KEY (no, item_id)")},
            ["line", "(item_id, no)", "(no, item_id)"],
        ),
        ({"spec": SPEC.replace("via: item", "via: customer")}, ["line", "no foreign key to customer", "small.yaml:12"]),
        (
            {
                "source": DDL.replace(
                    "no INTEGER NOT NULL,", "no INTEGER NOT NULL REFERENCES price (id) ON DELETE CASCADE,"
                )
            },
            ["line (no)", "other entities", "NO ACTION"],
        ),
        (
            {
                "source": DDL.replace(
                    "amount INTEGER NOT NULL)", "amount INTEGER REFERENCES item (id) ON DELETE CASCADE)"
                )
            },
            ["item (amount)", "circle"],
        ),
        (
            {
                "source": DDL + "CREATE TABLE region (id INTEGER PRIMARY KEY);"
                "ALTER TABLE customer ADD COLUMN region_id INTEGER REFERENCES region (id) ON DELETE CASCADE;",
                "target": DDL + "ALTER TABLE customer ADD COLUMN region_id INTEGER;",
            },
            ["customer (region_id)", "region", "migrate that table"],
        ),
        (
            {"source": DDL.replace("customer (id) ON DELETE CASCADE", "customer (id) ON UPDATE SET NULL")},
            ["item (customer_id)", "ON UPDATE SET NULL", "cannot be recorded"],
        ),
        (
            {"spec": SPEC.replace("price: shared", "price: {role: shared, types: {id: 'decimal(10,0)'}}")},
            ["price.id", "taken as decimal(10,0) cannot be a key"],
        ),
        (
            {"source": TWO_KEYS, "target": TWO_KEYS},
            ["customer: the root's primary key must be one column", "small.yaml:7"],
        ),
    ],
    ids=[
        "table",
        "entity",
        "cohort",
        "column",
        "type",
        "unknown-type",
        "no-key",
        "other-key",
        "via",
        "cascade",
        "circle",
        "outside cascade",
        "update action",
        "key type",
        "root",
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, str], words: list[str]) -> None:
    findings, plan = look(tmp_path, **change)
    assert plan is None
    text = "\n".join(failures(findings))
    for word in words:
        assert word in text


def test_narrower_targets_are_warned_of(tmp_path: Path) -> None:
    findings, plan = look(tmp_path, target=DDL.replace("(10,4)", "(10,2)"))
    assert plan is not None
    assert [f.where for f in findings if f.level == "warn"] == ["price.amount"]
    amount = next(f for f in plan.table("price").target.fields if f.column == "amount")
    assert str(amount.type) == "decimal(8,2)"


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        (
            {"target": ("text VARCHAR(20)", "text VARCHAR(20) NOT NULL")},
            "line.text",
            "can be NULL in the source but not in the target: such rows become rejects",
        ),
        (
            {"target": ("text VARCHAR(20)", "text VARCHAR(20), note VARCHAR(9) NOT NULL")},
            "line.note",
            "is NOT NULL in the target and not in the source: it needs a default",
        ),
        (
            dict.fromkeys(("source", "target"), ("price (id INTEGER", "price (id VARCHAR(501)")),
            "price",
            "keys can be longer than 2000 bytes: the application could not write such a row",
        ),
        (dict.fromkeys(("source", "target"), ("price (id INTEGER", "price (id VARCHAR(500)")), "", ""),
    ],
    ids=["NULL", "NOT NULL", "long key", "key"],
)
def test_what_some_rows_might_not_do_is_warned_of(
    tmp_path: Path, changes: dict[str, tuple[str, str]], where: str, words: str
) -> None:
    findings, plan = look(tmp_path, **{end: DDL.replace(*change) for end, change in changes.items()})
    assert plan is not None
    assert [(f.where, f.message) for f in findings if f.level == "warn"] == ([(where, words)] if words else [])


def test_renamed_tables_and_columns_are_followed(tmp_path: Path) -> None:
    spec = SPEC.replace(
        "item: {entity: customer_id}", "item: {entity: customer_id, target: thing, rename: {amount: total}}"
    )
    target = DDL.replace("TABLE item", "TABLE thing").replace("REFERENCES item", "REFERENCES thing")
    target = target.replace("amount INTEGER NOT NULL", "total INTEGER NOT NULL")
    _, plan = look(tmp_path, spec=spec, target=target)
    assert plan is not None
    assert plan.table("item").target.name == "thing"
    assert [f.column for f in plan.table("item").target.fields] == ["id", "customer_id", "total"]
    entity = plan.table("line").target.entity
    assert entity is not None and entity.steps[0].parent == "thing"


def test_resolve_raises_all_of_it_at_once(tmp_path: Path) -> None:
    spec = loads(SPEC, name="small.yaml", environment={})
    with pytest.raises(InputError) as caught:
        resolve(spec, {}, {})
    assert len(str(caught.value).splitlines()) == 8
