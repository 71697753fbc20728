"""The applier: whatever happened, the copies become equal, and nothing is forgotten too soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fishladder import apply, install
from fishladder.apply import Dirty, Followed, _Batch, apply_batch, follow, read_dirty
from fishladder.clock import SystemClock
from fishladder.errors import CoverageError, FishladderError, TransientError
from fishladder.fence import set_fence
from fishladder.ledger import DirtyKey, Ledger
from fishladder.stores.base import LoadState, Relation
from fishladder.stores.sql import Session
from fishladder.stores.sqlite import SqliteStore, SqliteTransaction
from tests import independent
from tests.unit.small import Small

TABLES = ["price", "customer", "item", "line"]


def _equal(small: Small) -> bool:
    return independent.compare(small.url("source"), small.url("target"), TABLES) == []


@pytest.mark.parametrize(
    "statements",
    [
        ["INSERT INTO customer VALUES (4, 'NZ', 'd')", "INSERT INTO item VALUES (40, 4, 1)"],
        ["UPDATE item SET amount = amount + 1"],
        ["DELETE FROM customer WHERE id = 1"],  # its item and lines go by cascade
        ["UPDATE customer SET email = 't' WHERE id = 1", "UPDATE customer SET email = 'a' WHERE id = 2",
         "UPDATE customer SET email = 'b' WHERE id = 1"],
        ["UPDATE customer SET email = 't' WHERE id = 1", "UPDATE customer SET email = 'a' WHERE id = 3",
         "UPDATE customer SET email = 'c' WHERE id = 2", "UPDATE customer SET email = 'b' WHERE id = 1"],
        ["UPDATE item SET customer_id = 2 WHERE id = 10", "UPDATE line SET text = 'moved' WHERE item_id = 10"],
        ["UPDATE line SET no = 7 WHERE item_id = 10 AND no = 1"],
        ["DELETE FROM customer WHERE id = 1", "INSERT INTO customer VALUES (1, 'AU', 'again')"],
        ["UPDATE OR REPLACE customer SET email = 'b' WHERE id = 1"],
        ["INSERT OR REPLACE INTO line VALUES (10, 1, 'replaced')"],
    ],
    ids=["insert", "update", "cascade", "swap", "rotate", "transfer", "new key", "again", "displace", "replace"],
)  # fmt: skip
def test_a_change_is_followed(loaded: Small, statements: list[str]) -> None:
    loaded.application(*statements)
    assert not _equal(loaded)
    loaded.follow()
    assert _equal(loaded)
    assert loaded.rows("source", "SELECT * FROM fishladder_journal") == []
    assert loaded.ledger.open_rejects() == []


def test_an_entry_that_comes_after_the_row_was_read_stays(loaded: Small) -> None:
    loaded.application("UPDATE item SET amount = 100 WHERE id = 10")
    dirty = read_dirty(loaded.plan, loaded.ends, loaded.ledger)
    loaded.application("UPDATE item SET amount = 200 WHERE id = 10")
    apply_batch(loaded.plan, loaded.ends, loaded.ledger, dirty)
    assert len(loaded.rows("source", "SELECT * FROM fishladder_journal")) == 1


def test_a_batch_repeated_after_a_crash_changes_nothing(loaded: Small) -> None:
    """It died after the destination's commit, before it forgot."""
    loaded.application("UPDATE item SET amount = 100 WHERE id = 10", "DELETE FROM line WHERE item_id = 20")
    dirty = read_dirty(loaded.plan, loaded.ends, loaded.ledger)
    first = apply_batch(loaded.plan, loaded.ends, loaded.ledger, dirty)
    again = apply_batch(loaded.plan, loaded.ends, loaded.ledger, dirty)
    assert (first.written, first.deleted) == (1, 1)
    assert (again.written, again.deleted, again.equal) == (0, 0, 1)
    assert _equal(loaded)


def test_nothing_is_applied_while_the_table_is_loaded(small: Small) -> None:
    small.application("UPDATE item SET amount = 100 WHERE id = 10")
    assert read_dirty(small.plan, small.ends, small.ledger) == []
    dirty = [Dirty(table="item", key=b"2:10", entity=b"1:1", cohort="NZ")]
    assert apply_batch(small.plan, small.ends, small.ledger, dirty).forgotten == 0
    assert small.rows("target", "SELECT * FROM item") == []


def test_a_closed_fence_keeps_its_keys_dirty(loaded: Small) -> None:
    set_fence(loaded.target, SystemClock(), "NZ", "nobody", 2)
    loaded.application("UPDATE item SET amount = 100")
    loaded.follow()
    assert loaded.rows("target", "SELECT id, amount FROM item ORDER BY 1") == [(10, 5), (20, 100), (30, 100)]
    assert [row[0] for row in loaded.rows("source", "SELECT row_key FROM fishladder_journal")] == ["2:10"]
    set_fence(loaded.target, SystemClock(), "NZ", "copier", 3)
    loaded.follow()
    assert _equal(loaded)


def test_values_that_rotate_again_while_their_rows_are_read_are_no_reject(
    loaded: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows want one value, for they were read at different moments; the one read first has no newer entry."""
    loaded.application(
        "UPDATE customer SET email = '-' || email",
        "UPDATE customer SET email = 'b' WHERE id = 1",
        "UPDATE customer SET email = 'c' WHERE id = 2",
        "UPDATE customer SET email = 'a' WHERE id = 3",
    )
    dirty = [line for line in read_dirty(loaded.plan, loaded.ends, loaded.ledger) if line.key == b"1:1"]
    again = [["UPDATE customer SET email = 'x' WHERE id = 2", "UPDATE customer SET email = 'c' WHERE id = 3"]]
    real = Session.rows_by_key

    def rows_by_key(self: Session, relation: Relation, keys: Sequence[bytes], *, lock: bool = False) -> Any:
        if list(keys) == [b"1:3"] and again and not isinstance(self, SqliteTransaction):
            loaded.application(*again.pop())
        return real(self, relation, keys, lock=lock)

    monkeypatch.setattr(Session, "rows_by_key", rows_by_key)
    apply_batch(loaded.plan, loaded.ends, loaded.ledger, dirty)
    assert not again and loaded.ledger.open_rejects() == []
    loaded.follow()
    assert _equal(loaded) and loaded.ledger.open_rejects() == []


def test_a_unique_value_held_by_a_closed_cohort_waits(loaded: Small) -> None:
    """Customer 2 (AU) takes the address of customer 1 (NZ), whose copy nobody may write right now."""
    set_fence(loaded.target, SystemClock(), "NZ", "nobody", 2)
    loaded.application("UPDATE customer SET email = 'z' WHERE id = 1", "UPDATE customer SET email = 'a' WHERE id = 2")
    loaded.follow()
    assert loaded.ledger.open_rejects() == []
    assert {row[0] for row in loaded.rows("source", "SELECT row_key FROM fishladder_journal")} == {"1:1", "1:2"}
    set_fence(loaded.target, SystemClock(), "NZ", "copier", 3)
    loaded.follow()
    assert _equal(loaded)


def test_a_row_of_another_home_is_not_overwritten(loaded: Small) -> None:
    """The target's own row, of a cohort that the target owns, has the id of a new one of the source."""
    loaded.damage("INSERT INTO item VALUES (99, 1, 1)")  # customer 1 lives in NZ
    set_fence(loaded.target, SystemClock(), "NZ", "nobody", 2)
    loaded.application("INSERT INTO item VALUES (99, 2, 2)")
    loaded.follow()
    assert loaded.rows("target", "SELECT customer_id FROM item WHERE id = 99") == [(1,)]
    assert len(loaded.rows("source", "SELECT * FROM fishladder_journal")) == 1


def test_a_key_whose_entity_changed_waits_for_every_shard(loaded: Small) -> None:
    loaded.application("UPDATE item SET customer_id = 2 WHERE id = 10")
    dirty = [line for line in read_dirty(loaded.plan, loaded.ends, loaded.ledger) if line.entity == b"1:1"]
    narrow = apply_batch(loaded.plan, loaded.ends, loaded.ledger, dirty)
    assert (narrow.written, len(narrow.wide)) == (0, 1)
    wide = apply_batch(loaded.plan, loaded.ends, loaded.ledger, narrow.wide, every_shard=True)
    assert (wide.written, wide.wide) == (1, [])


def test_keys_written_during_an_attempt_are_noted(loaded: Small) -> None:
    loaded.application("UPDATE item SET amount = amount + 1")
    dirty = read_dirty(loaded.plan, loaded.ends, loaded.ledger)
    attempt = loaded.ledger.begin_attempt("NZ", "flip", actor="test", reason="", deadline=60)
    for _ in range(2):
        apply_batch(loaded.plan, loaded.ends, loaded.ledger, dirty)
    found = loaded.rows("target", "SELECT table_name, row_key, cohort, attempt FROM fishladder_touched")
    assert found == [("item", "2:10", "NZ", str(attempt.id))]


def test_changed_coverage_stops_the_applier_and_names_the_table(loaded: Small) -> None:
    loaded.application("DROP TRIGGER fishladder_item_update")
    with pytest.raises(CoverageError, match="item"):
        loaded.follow()


def test_a_pause_is_honoured(loaded: Small) -> None:
    loaded.ledger.set_control(paused=True, actor="operator")
    loaded.application("UPDATE item SET amount = 100")
    follow(loaded.plan, [loaded.ends], loaded.ledger, SystemClock(), seconds=1, until_idle=True)
    assert not _equal(loaded)
    loaded.ledger.set_control(paused=False, actor="operator")
    loaded.follow()
    assert _equal(loaded)


def test_a_pause_in_mid_work_ends_the_batch_it_comes_in(loaded: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "BATCH", 2)
    left = []

    class Paused(SystemClock):
        """The applier waits for the first time: it is paused, and may go on."""

        def sleep(self, seconds: float) -> None:
            left.append(len(loaded.rows("source", "SELECT * FROM fishladder_journal")))
            loaded.ledger.set_control(paused=False, actor="operator")

    def pause(report: Followed) -> None:
        loaded.ledger.set_control(paused=report.applied == 2, actor="operator")

    loaded.application("UPDATE item SET amount = 100", "UPDATE line SET text = 'new'")
    follow(loaded.plan, [loaded.ends], loaded.ledger, Paused(), seconds=60, until_idle=True, progress=pause)
    assert left == [4]
    assert _equal(loaded)


def test_doubts_about_a_table_under_load_hold_up_no_other(loaded: Small) -> None:
    generation = loaded.ledger.table_state("line").generation
    with loaded.target.begin() as copy:
        copy.write_load("line", LoadState(generation=generation + 1, open=True))
        copy.commit()
    doubts = [DirtyKey(table="line", key=b"2:991:%d" % no, entity=None, cohort="*", origin="x") for no in range(10)]
    loaded.ledger.mark_dirty(doubts)
    loaded.damage("DELETE FROM price WHERE id = 1")
    loaded.ledger.mark_dirty([DirtyKey(table="price", key=b"1:1", entity=None, cohort="shared", origin="x")])
    dirty = read_dirty(loaded.plan, loaded.ends, loaded.ledger, limit=5)
    assert [line.table for line in dirty] == ["price"]


def test_a_batch_that_lost_its_locks_closes_no_reject_of_the_next_for_good(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its session before it records. Another finds the row refused; then the first one goes on."""
    small.load()
    other = replace(small.ends, origin=_again(small.source), destination=_again(small.target))
    small.application("UPDATE line SET text = 'good' WHERE item_id = 10 AND no = 1")
    record, forget = _Batch.record, _Batch.forget
    late: list[_Batch] = []

    def recording(batch: _Batch, ledger: Ledger) -> None:
        if late:
            record(batch, ledger)
            return
        late.append(batch)
        small.target.connection().rollback()
        small.application(f"UPDATE line SET text = '{'long' * 20}' WHERE item_id = 10 AND no = 1")
        apply_batch(small.plan, other, ledger, read_dirty(small.plan, other, ledger))

    def forgetting(batch: _Batch, ledger: Ledger, dirty: Sequence[Dirty]) -> None:
        assert len(ledger.open_rejects()) == 1
        record(late[0], ledger)  # it closes what it has not seen
        assert ledger.open_rejects() == []
        forget(batch, ledger, dirty)

    with monkeypatch.context() as patch:
        patch.setattr(_Batch, "record", recording)
        patch.setattr(_Batch, "forget", forgetting)
        with pytest.raises(FishladderError):  # its commit fails: the transaction is gone
            apply_batch(small.plan, small.ends, small.ledger, read_dirty(small.plan, small.ends, small.ledger))
    assert small.follow().rejected == 1
    assert [reject.table for reject in small.ledger.open_rejects()] == ["line"]
    assert small.ledger.count_dirty() == 0


def _again(store: SqliteStore) -> SqliteStore:
    return SqliteStore(store._connect)


def test_the_home_of_a_new_cohort_is_copied_however_quick_the_applier_is(
    loaded: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepare doubts the key before the row can be seen; whoever looks in between must wait, or the doubt is lost."""
    mark = loaded.ledger.mark_dirty
    ends = replace(loaded.ends, origin=_again(loaded.source), destination=_again(loaded.target))
    ends.destination.lock_wait = 0.05  # type: ignore[attr-defined]

    def hasten(keys: Sequence[DirtyKey]) -> None:
        mark(keys)
        with pytest.raises(TransientError, match="locked"):
            apply_batch(loaded.plan, ends, loaded.ledger, read_dirty(loaded.plan, ends, loaded.ledger))

    monkeypatch.setattr(loaded.ledger, "mark_dirty", hasten)
    loaded.application("INSERT INTO customer VALUES (9, 'FR', 'z')")
    install.install(loaded.spec, loaded.plan, loaded.source, loaded.target, loaded.ledger, actor="test")
    loaded.follow()
    home = "SELECT count(*) FROM fishladder_home WHERE CAST(entity AS TEXT) = '@FR'"
    assert [loaded.rows(store, home) for store in ("source", "target")] == [[(1,)], [(1,)]]


@pytest.mark.parametrize(("store", "call"), [("source", "lag"), ("target", "hear"), ("target", "heard")])
def test_an_outage_between_two_rounds_is_waited_for(
    loaded: Small, monkeypatch: pytest.MonkeyPatch, store: str, call: str
) -> None:
    """Not only what a round asks of the stores: also what is asked beside it."""
    loaded.application("UPDATE item SET amount = 77")
    one = getattr(loaded, store)
    real, failures = getattr(one, call), iter(range(2))

    def away(*arguments: object) -> object:
        if next(failures, None) is not None:
            raise TransientError("the server is away")
        return real(*arguments)

    monkeypatch.setattr(one, call, away)
    followed = loaded.follow()
    assert (followed.failures, followed.applied) == (2, 3)
    assert _equal(loaded)
