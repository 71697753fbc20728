"""One planted bug for each rule: the simulation is worth what it finds here.

Each is a context manager that breaks the real code in one place, as somebody might who did not know the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from fishladder import apply
from fishladder.stores import sql, sqlite_triggers


def _instead_of_apply_batch(batch: Callable[..., Any], before: Callable[[Any, Any], None]) -> Any:
    """``apply_batch`` with something done before the destination's transaction begins."""

    def broken(plan: Any, ends: Any, ledger: Any, dirty: Any, *, every_shard: bool = False) -> Any:
        broken_batch = batch(plan, ends, every_shard)
        before(broken_batch, dirty)
        with ends.destination.begin() as copy:
            states = {table: copy.lock_load(table) for table in {line.table for line in dirty}}
            dirty = [line for line in dirty if apply._closed(states[line.table])]
            broken_batch.lock(copy, dirty)
            broken_batch.read(copy, dirty)
            broken_batch.write(copy)
            broken_batch.record(ledger)
            copy.commit()
        broken_batch.forget(ledger, dirty)
        return broken_batch.applied

    return broken


@contextmanager
def row_read_before_its_shard_is_locked() -> Iterator[None]:
    """The owner's rows are read first, then the destination's transaction begins."""

    class Early(apply._Batch):
        def read(self, copy: Any, dirty: Any) -> None:
            super().read(copy, dirty)
            self.owner = {table: self.early.get(table, {}) for table in self.keys}

    def before(batch: Any, dirty: Any) -> None:
        batch.early = {}
        with batch.ends.origin.read() as origin:
            for line in dirty:
                found = origin.rows_by_key(batch.plan.table(line.table).source, [line.key])
                batch.early.setdefault(line.table, {}).update(found)

    broken = _instead_of_apply_batch(Early, before)
    with patch.object(apply, "apply_batch", broken), patch("tests.simulation.actors.apply_batch", broken):
        yield


@contextmanager
def forgets_up_to_n() -> Iterator[None]:
    """Deletes every entry up to the highest one that was read."""

    def forget(self: Any, ids: Sequence[int]) -> None:
        self.run("DELETE FROM fishladder_journal WHERE id <= ?", [max(ids)])

    with patch.object(sql.Session, "forget", forget):
        yield


@contextmanager
def one_dirty_row_per_key() -> Iterator[None]:
    """The trigger adds no entry for a key that has one already."""
    real = sqlite_triggers._journal

    def broken(table: str, key: str, entity: str | None, source: str = "") -> str:
        known = f"SELECT 1 FROM fishladder_journal j WHERE j.table_name = '{table}' AND j.row_key = {key}"
        return real(table, key, entity, source)[:-1] + f" AND NOT EXISTS ({known});"

    with patch.object(sqlite_triggers, "_journal", broken):
        yield


@contextmanager
def row_read_before_its_entries() -> Iterator[None]:
    """Forgets entries that came after the row was read."""
    real = apply._Batch.forget

    def broken(self: Any, ledger: Any, dirty: Any) -> None:
        with self.ends.origin.read() as origin:
            later = [
                apply.Dirty(table=e.table, key=e.key, entity=e.entity, cohort=e.cohort, journal=e.id)
                for table, keys in self.keys.items()
                for e in origin.entries_of(table, list(keys))
            ]
        real(self, ledger, [*(line for line in dirty if line.journal is None), *later])

    with patch.object(apply._Batch, "forget", broken):
        yield


@contextmanager
def zombie_lane_without_token() -> Iterator[None]:
    """A lane does not look whether a later claim has its chunk, or has done it."""
    with patch.object(sql.Session, "take_chunk", lambda *_: None):
        yield


@contextmanager
def fence_read_without_lock() -> Iterator[None]:
    """The applier looks at the fences before its transaction, when nothing holds them yet."""

    class Early(apply._Batch):
        def lock(self, copy: Any, dirty: Any) -> None:
            super().lock(copy, dirty)
            self.fences = self.early

    def before(batch: Any, dirty: Any) -> None:
        batch.early = batch.ends.destination.fences()

    broken = _instead_of_apply_batch(Early, before)
    with patch.object(apply, "apply_batch", broken), patch("tests.simulation.actors.apply_batch", broken):
        yield


@contextmanager
def applies_while_the_load_is_open() -> Iterator[None]:
    """The applier writes tables that lanes still load: a chunk read earlier lands on top of it."""

    def everything(plan: Any, ends: Any, ledger: Any, limit: int) -> Any:
        with ends.origin.read() as origin:
            entries = origin.entries([table.name for table in plan.tables], limit)
        return [apply.Dirty(table=e.table, key=e.key, entity=e.entity, cohort=e.cohort, journal=e.id) for e in entries]

    with patch.object(apply, "_closed", lambda state: True), patch("tests.simulation.actors.read_dirty", everything):
        yield


@contextmanager
def unique_clash_by_odku() -> Iterator[None]:
    """ON DUPLICATE KEY UPDATE matches any unique key: the holder is overwritten, the new row never made."""

    def broken(self: Any, copy: Any, table: Any, rows: Any) -> str:
        relation = self._copy(table.name)
        for holder in copy.holders(relation, list(rows.values())) - rows.keys():
            (row,) = rows.values()
            copy.update(relation, [(*sql.key_cells(holder), *row[len(relation.key) :])])
        return "written"

    with patch.object(apply._Batch, "_displace", broken):
        yield


@contextmanager
def cascade_not_journaled() -> Iterator[None]:
    """The parent's trigger says nothing of its children, and the child's own is not asked."""

    def none(*_: Any, **__: Any) -> Iterator[str]:
        return iter(())

    real = sqlite_triggers._journal

    def not_for_orphans(table: str, key: str, entity: str | None, source: str = "") -> str:
        return real(table, key, entity, source)[:-1] + (f" AND {entity} IS NOT NULL;" if entity else ";")

    broken = patch.multiple(sqlite_triggers, _descendants=none, _journal=not_for_orphans)
    with broken:
        yield


BUGS: dict[str, Callable[[], Any]] = {
    bug.__name__: bug
    for bug in (
        row_read_before_its_shard_is_locked,
        forgets_up_to_n,
        one_dirty_row_per_key,
        row_read_before_its_entries,
        zombie_lane_without_token,
        fence_read_without_lock,
        applies_while_the_load_is_open,
        unique_clash_by_odku,
        cascade_not_journaled,
    )
}
