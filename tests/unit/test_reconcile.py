"""Reconciliation: finds what it must, says nothing of what is only on its way, and repairs by marking dirty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from fishladder import install, operate, reconcile
from fishladder.clock import SystemClock
from fishladder.errors import CoverageError, InputError, StaleError, TransientError
from fishladder.ledger import CheckResult, Ledger
from fishladder.pace import Pace
from fishladder.plan import PlanTable
from fishladder.stores.base import Triggers
from tests import independent
from tests.unit.small import SCHEMA, SPEC, Small

TABLES = ["price", "customer", "item", "line"]


def pace_of(small: Small) -> Pace:
    return Pace(small.ledger, SystemClock(), small.target)


def check(small: Small, table: str, chunk_rows: int = 2) -> CheckResult:
    return reconcile.reconcile_table(
        small.plan, small.plan.table(table), small.ends, small.ledger, chunk_rows=chunk_rows
    )


def found(result: CheckResult) -> tuple[int, int, int]:
    return result.missing, result.extra, result.differs


@pytest.mark.parametrize(("rows", "ranges"), [(1, 54), (2, 27), (10, 6), (1000, 1)])
def test_ranges_are_joined_from_the_loads_chunks(
    small: Small, monkeypatch: pytest.MonkeyPatch, rows: int, ranges: int
) -> None:
    """Differences at their ends, in rows that came since then between them, and above the last."""
    small.application(*(f"INSERT INTO item VALUES ({number}, 1, 0)" for number in range(100, 180, 4)))
    small.load(chunk_rows=2)
    ends = [chunk.upper for chunk in small.ledger.chunks("item")]
    assert len(ends) == 12
    small.application(
        *(f"INSERT INTO item VALUES ({number}, 2, 0)" for number in range(200, 230)),
        "INSERT INTO item VALUES (130, 2, 0)",
        "DELETE FROM item WHERE id IN (104, 144)",  # ends of chunks
        "INSERT INTO item VALUES (9, 1, 0)",
    )
    small.follow()
    spoiled = [9, 10, 20, 100, 112, 116, 120, 130, 148, 152, 176, 200, 229]
    small.damage(
        f"UPDATE item SET amount = -1 WHERE id IN ({', '.join(map(str, spoiled[1:-1]))})",
        "DELETE FROM item WHERE id IN (9, 229)",
        "INSERT INTO item VALUES (104, 1, 0), (131, 1, 0), (230, 1, 0)",
    )
    compared, real = [], reconcile.compare_chunk

    def compare(table: PlanTable, source: Any, target: Any, lower: bytes | None, upper: bytes | None) -> Any:
        compared.append((lower, upper))
        return real(table, source, target, lower, upper)

    monkeypatch.setattr(reconcile, "compare_chunk", compare)
    result = check(small, "item", rows)
    assert (found(result), result.compared) == ((2, 3, 11), 53 + 3)
    assert len(compared) == ranges
    small.follow()
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []


def test_a_mismatch_is_recorded_before_any_copier_can_write(loaded: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would tell of rows that were mended meanwhile."""
    waited: list[str] = []
    real = type(loaded.ledger).record_mismatches

    def record(ledger: Ledger, *found: Any) -> None:
        with pytest.raises(TransientError), closing(loaded.another("target")) as target, target.begin(wait=0):
            pytest.fail("somebody else may write rows")
        waited.append("yes")
        real(ledger, *found)

    monkeypatch.setattr(type(loaded.ledger), "record_mismatches", record)
    loaded.damage("UPDATE item SET amount = 77 WHERE id = 10")
    assert found(check(loaded, "item")) == (0, 0, 1)
    assert waited == ["yes"]


def test_a_verdict_whose_record_is_in_doubt_is_not_repeated(loaded: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one would find a doubt where the first found a mismatch, and the pass would be clean."""
    real = type(loaded.ledger).record_mismatches

    def record(ledger: Ledger, *found: Any) -> None:
        real(ledger, *found)
        raise TransientError("the ledger went away")

    monkeypatch.setattr(type(loaded.ledger), "record_mismatches", record)
    loaded.damage("UPDATE item SET amount = 77 WHERE id = 10")
    with pytest.raises(TransientError, match="the ledger went away"):
        check(loaded, "item")
    assert [line.key for line in loaded.ledger.open_mismatches("item")] == [b"2:10"]


def test_a_pass_ends_when_its_table_is_restarted(loaded: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row that is not loaded again yet would be a mismatch."""
    real = reconcile.compare_chunk

    def compare(*arguments: Any) -> Any:
        names = ("item", "line")
        operate.restart(loaded.plan, names, loaded.target, loaded.ledger, pace_of(loaded), actor="ada")
        return real(*arguments)

    monkeypatch.setattr(reconcile, "compare_chunk", compare)
    with pytest.raises(StaleError, match="item: it was restarted while this pass was looking at it"):
        check(loaded, "item")
    assert loaded.ledger.open_mismatches() == []


def test_a_pass_repairs_nothing_while_all_is_paused(loaded: Small) -> None:
    loaded.application("UPDATE item SET amount = 9 WHERE id = 10")
    loaded.ledger.set_control(paused=True, actor="ada")
    result = check(loaded, "item")
    assert (found(result), result.deferred) == ((0, 0, 0), 1)
    assert loaded.rows("target", "SELECT amount FROM item WHERE id = 10") == [(5,)]
    loaded.ledger.set_control(paused=False, actor="ada")
    assert (check(loaded, "item").deferred, loaded.rows("target", "SELECT amount FROM item WHERE id = 10")) == (
        0,
        [(9,)],
    )


def test_equal_tables_are_clean(loaded: Small) -> None:
    for table in loaded.plan.tables:
        assert found(check(loaded, table.name)) == (0, 0, 0)
        assert loaded.ledger.clean_passes(table.name) == 1


@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
def test_missing_extra_and_different_rows_are_found_and_repaired(loaded: Small, chunk_rows: int) -> None:
    loaded.damage(
        "DELETE FROM line WHERE item_id = 10 AND no = 1",
        "UPDATE line SET text = NULL WHERE item_id = 20",  # '' is not NULL
        "INSERT INTO line VALUES (10, 99, 'extra')",
    )
    result = check(loaded, "line", chunk_rows)
    assert found(result) == (1, 1, 1)
    assert result.by_cohort == {"NZ": 2, "AU": 1}
    assert loaded.ledger.clean_passes("line") == 0
    assert {m.kind for m in loaded.ledger.open_mismatches("line")} == {"missing", "extra", "differs"}
    loaded.follow()
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []
    assert loaded.ledger.open_mismatches() == []
    assert loaded.ledger.clean_passes("line") == 0  # repairing is not verifying
    assert found(check(loaded, "line", chunk_rows)) == (0, 0, 0)
    assert loaded.ledger.clean_passes("line") == 1


def test_two_values_swapped_are_found(loaded: Small) -> None:
    loaded.damage("UPDATE item SET amount = CASE id WHEN 10 THEN 6 ELSE 5 END WHERE id IN (10, 20)")
    assert found(check(loaded, "item")) == (0, 0, 2)


def test_a_change_on_its_way_is_no_mismatch(loaded: Small) -> None:
    loaded.application("UPDATE item SET amount = 100", "DELETE FROM line WHERE item_id = 20")
    for table in ("item", "line"):
        assert found(check(loaded, table)) == (0, 0, 0)
    assert loaded.ledger.open_mismatches() == []


def test_a_reject_is_reported_as_one(make_small: Callable[..., Small]) -> None:
    small = make_small(target=SCHEMA.partition("INSERT INTO")[0].replace("UNIQUE", "UNIQUE CHECK (email <> 'b')"))
    small.load()
    result = check(small, "customer")
    assert (found(result), result.rejected) == ((0, 0, 0), 1)
    assert small.ledger.clean_passes("customer") == 0


def test_orphans_are_found_but_not_those_that_the_source_has_too(loaded: Small) -> None:
    loaded.damage("PRAGMA defer_foreign_keys = ON", "INSERT INTO line VALUES (10, 50, '')")
    assert check(loaded, "line").orphans == 0
    with loaded.target.begin() as copy:
        copy.run("DELETE FROM item WHERE id = 20", [])
        copy.commit()
    result = check(loaded, "line")
    assert result.orphans == 1
    assert loaded.ledger.clean_passes("line") == 0


def test_duplicates_that_the_target_does_not_forbid_are_counted(make_small: Callable[..., Small]) -> None:
    lax = SCHEMA.partition("INSERT INTO")[0].replace(" UNIQUE", "")
    small = make_small(target=lax)
    small.load()
    small.damage("UPDATE customer SET email = 'same'")
    assert check(small, "customer").duplicates == 1


def test_a_mismatch_can_rewrite_the_whole_customer(make_small: Callable[..., Small]) -> None:
    small = make_small(spec=SPEC.replace("{entity: customer_id}", "{entity: customer_id, rewrite: entity}"))
    small.load()
    small.damage("UPDATE item SET amount = 77 WHERE id = 10", "DELETE FROM line WHERE item_id = 10")
    check(small, "item")
    dirty = {(line.table, line.key) for line in small.ledger.dirty(100)}
    assert dirty >= {("item", b"2:10"), ("line", b"2:101:1"), ("line", b"2:101:2"), ("customer", b"1:1")}
    small.follow()
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []


def test_stores_that_order_keys_differently_meet_in_partitions(make_small: Callable[..., Small]) -> None:
    schema = """
    CREATE TABLE customer (id INTEGER PRIMARY KEY, country VARCHAR(2));
    CREATE TABLE card (code VARCHAR(10) PRIMARY KEY{}, customer_id INTEGER NOT NULL REFERENCES customer (id));
    """
    spec = SPEC.partition("tables:")[0] + "tables:\n  customer: root\n  card: {entity: customer_id}\n"
    rows = "INSERT INTO customer VALUES (1, 'NZ'); INSERT INTO card VALUES ('a', 1), ('B', 1), ('ä', 1), ('a ', 1);"
    small = make_small(schema=schema.format(" COLLATE NOCASE") + rows, target=schema.format(""), spec=spec)
    assert not small.plan.table("card").alike
    small.load()
    small.damage("DELETE FROM card WHERE code = 'B'", "INSERT INTO card VALUES ('b', 1)")
    assert found(check(small, "card", chunk_rows=1)) == (1, 1, 0)


def test_a_table_that_is_loading_cannot_be_judged(small: Small) -> None:
    with pytest.raises(InputError, match="item"):
        check(small, "item")


def test_what_was_missed_without_a_trigger_is_found_after_prepare(loaded: Small) -> None:
    for table in loaded.plan.tables:
        check(loaded, table.name)
    loaded.application("DROP TRIGGER fishladder_item_update", "UPDATE item SET amount = 1000 WHERE id = 10")
    with pytest.raises(CoverageError, match="run prepare"):
        loaded.follow()
    install.install(loaded.spec, loaded.plan, loaded.source, loaded.target, loaded.ledger, actor="operator")
    loaded.follow()
    assert [table.name for table in loaded.plan.tables if not loaded.ledger.clean_passes(table.name)] == ["item"]
    assert found(check(loaded, "item")) == (0, 0, 1)
    loaded.application("UPDATE item SET amount = 2000 WHERE id = 20")
    loaded.follow()
    assert found(check(loaded, "item")) == (0, 0, 0)
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []


def test_a_trigger_that_is_dropped_while_prepare_installs_it_is_missed(
    loaded: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for what must be, its absence would never show again."""
    install_triggers = loaded.source.install_triggers

    def install_and_lose(tables: Sequence[Triggers]) -> None:
        install_triggers(tables)
        loaded.application("DROP TRIGGER fishladder_item_delete")

    def prepare() -> None:
        install.install(loaded.spec, loaded.plan, loaded.source, loaded.target, loaded.ledger, actor="operator")

    monkeypatch.setattr(loaded.source, "install_triggers", install_and_lose)
    with pytest.raises(TransientError, match="triggers in the source are dropped or changed while they are installed"):
        prepare()
    loaded.application("DELETE FROM line WHERE item_id = 10", "DELETE FROM item WHERE id = 10")
    with pytest.raises(CoverageError, match="run prepare"):
        loaded.follow()
    monkeypatch.setattr(loaded.source, "install_triggers", install_triggers)
    prepare()
    loaded.follow()
    assert found(check(loaded, "item")) == (0, 1, 0)


def test_a_pass_that_begins_while_a_lost_trigger_is_put_back_is_not_clean(
    loaded: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_check, install_triggers = loaded.ledger.begin_check, loaded.source.install_triggers

    def begin_late(table: str, coverage: str) -> int:  # a pass, which saw every trigger; now prepare comes between
        loaded.application("DROP TRIGGER fishladder_item_update")
        checks: list[int] = []

        def install_late(tables: Sequence[Triggers]) -> None:  # prepare, which saw that the trigger is gone
            checks.append(begin_check(table, coverage))
            compared.append(reconcile.compare_chunk(item, loaded.source, loaded.target, None, None))
            loaded.application("UPDATE item SET amount = 1000 WHERE id = 10")
            install_triggers(tables)

        monkeypatch.setattr(loaded.source, "install_triggers", install_late)
        install.install(loaded.spec, loaded.plan, loaded.source, loaded.target, loaded.ledger, actor="operator")
        return checks[0]

    item, compared = loaded.plan.table("item"), list[reconcile.Compared]()
    monkeypatch.setattr(loaded.ledger, "begin_check", begin_late)
    monkeypatch.setattr(reconcile, "_chunks", lambda *_: compared)
    assert found(check(loaded, "item")) == (0, 0, 0)  # it had read the row before
    assert loaded.ledger.clean_passes("item") == 0


def test_a_change_behind_the_journal_voids_the_passes(loaded: Small) -> None:
    check(loaded, "item")
    loaded.application("DROP TRIGGER fishladder_item_delete")
    with pytest.raises(CoverageError, match="item"):
        check(loaded, "item")
    assert loaded.ledger.clean_passes("item") == 0
