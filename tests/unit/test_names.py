"""One migration file for stores that write its names in another case."""

from __future__ import annotations

from pathlib import Path

import pytest

from fishladder.names import own_name
from tests.unit import small
from tests.unit.small import SCHEMA, SPEC, close

DDL, _, ROWS = SCHEMA.partition("INSERT INTO")
SHOUTED = DDL.upper()


@pytest.mark.parametrize(("source", "target"), [(SHOUTED, DDL), (DDL, SHOUTED), (SHOUTED, SHOUTED), (SHOUTED, None)])
@pytest.mark.parametrize("spec", [SPEC, SPEC.replace("customer", "Customer").replace("item", "Item")])
def test_a_migration_with_names_in_another_case(tmp_path: Path, source: str, target: str | None, spec: str) -> None:
    moved = small.make(tmp_path, schema=f"{source}INSERT INTO{ROWS}", target=target, spec=spec)
    moved.load()
    moved.application("UPDATE item SET amount = 50 WHERE id = 10", "DELETE FROM customer WHERE id = 2")
    moved.follow()
    assert moved.rows("target", "SELECT id, amount FROM item ORDER BY id") == [(10, 50), (30, 7)]
    assert moved.rows("target", "SELECT * FROM line") == [(10, 1, "x"), (10, 2, None)]
    assert [table.name for table in moved.plan.tables if not table.internal] == list(moved.spec.tables)
    close([moved])


def test_a_table_that_is_created_keeps_its_parents(tmp_path: Path) -> None:
    moved = small.make(tmp_path, schema=f"{SHOUTED}INSERT INTO{ROWS}", spec=SPEC.replace("line", "Line"))
    made = moved.target.describe()
    assert set(made) == {"price", "customer", "item", "Line"}
    assert [(key.parent, key.on_delete) for key in made["Line"].foreign_keys] == [("item", "CASCADE")]
    close([moved])


@pytest.mark.parametrize(
    ("names", "meant"),
    [(["item", "ITEM"], "item"), (["ITEM", "other"], "ITEM"), (["Item", "ITEM"], "item"), ([], "item")],
)
def test_the_same_case_is_meant_first_and_nothing_is_guessed(names: list[str], meant: str) -> None:
    assert own_name("item", names) == meant
