"""One migration file for stores that write its names in another case."""

from __future__ import annotations

from pathlib import Path

import pytest

from fishladder.errors import FatalError, TransientError
from fishladder.install import create_target_tables
from fishladder.names import own_name
from fishladder.stores.base import TableInfo
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


def test_a_table_that_another_prepare_creates_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second is told to repeat, and has nothing to create then."""
    made = small.make(tmp_path)
    real, before = made.target.describe, [dict[str, TableInfo]()]
    monkeypatch.setattr(made.target, "describe", lambda: before.pop() if before else real())
    with pytest.raises(TransientError, match="price: somebody has just created it in the target: repeat"):
        create_target_tables(made.spec, made.source, made.target)
    assert create_target_tables(made.spec, made.source, made.target) == []
    monkeypatch.setattr(made.target, "describe", dict)
    with pytest.raises(FatalError, match="already exists"):  # whatever else it is stays what it is
        create_target_tables(made.spec, made.source, made.target)
    close([made])


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
