"""A planted bug for each rule of design §5 to §8 but those in ELSEWHERE: the simulation is worth what it finds here.

Each breaks the real code in one place, as somebody might who did not know the rule that its docstring names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from fishladder import apply, install, load, operate, reconcile
from fishladder.errors import AmbiguousError, RowError
from fishladder.ledger import Ledger, checks, chunks, rejects
from fishladder.spec import digest
from fishladder.stores import sql, sqlite_triggers
from fishladder.stores.base import LoadState
from fishladder.stores.sqlite import SqliteStore
from tests.simulation.company import Kind

Plant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """``plant`` breaks the rule that ``rule`` says; ``shows_in``: worlds of other kinds cannot show it."""

    rule: str
    plant: Plant
    shows_in: Callable[[Kind], bool]


BUGS: dict[str, Bug] = {}


def planted(shows_in: Callable[[Kind], bool] = lambda kind: True) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        rule = (plant.__doc__ or "").strip()
        BUGS[plant.__name__] = Bug(rule=rule, plant=plant, shows_in=lambda kind: not kind.moves and shows_in(kind))
        return plant

    return register


def loads(kind: Kind) -> bool:
    """Something is loaded while the application is at work."""
    return kind.begins != "loaded" or kind.orders > 0


def restarts(kind: Kind) -> bool:
    return kind.orders > 0


def passes(kind: Kind) -> bool:
    return kind.reconcilers > 0


class Instead:
    """A proxy with some of its methods exchanged."""

    def __init__(self, inner: Any, **methods: Any) -> None:
        self._inner, self._methods = inner, methods

    def __getattr__(self, name: str) -> Any:
        return self._methods[name] if name in self._methods else getattr(self._inner, name)


def with_transaction(store: Any, **methods: Any) -> Any:
    """The store, with some methods of its transactions exchanged."""

    @contextmanager
    def begin(**options: Any) -> Iterator[Any]:
        with store.begin(**options) as transaction:
            yield Instead(transaction, **methods)

    return Instead(store, begin=begin)


def batch_in_order(
    batch: Callable[..., Any],
    steps: str,
    before: Callable[[Any, Any], None] = lambda batch, dirty: None,
) -> AbstractContextManager[Any]:
    """``apply_batch`` with its steps in this order, and something done before its transaction begins."""

    def broken(plan: Any, ends: Any, ledger: Any, dirty: Any, *, every_shard: bool = False) -> Any:
        this = batch(plan, ends, every_shard)
        before(this, dirty)
        done = {
            "lock": lambda: this.lock(copy, dirty),
            "read": lambda: this.read(copy, dirty),
            "write": lambda: this.write(copy),
            "record": lambda: this.record(ledger),
            "forget": lambda: this.forget(ledger, dirty),
        }
        inside, _, after = steps.partition("commit")
        with ends.destination.begin() as copy:
            states = {table: copy.lock_load(table) for table in {line.table for line in dirty}}
            dirty = [line for line in dirty if apply._closed(states[line.table])]
            for step in inside.split():
                done[step]()
            copy.commit()
        for step in after.split():
            done[step]()
        return this.applied

    return instead_of_apply_batch(broken)


@contextmanager
def instead_of_apply_batch(broken: Any) -> Iterator[None]:
    with patch.object(apply, "apply_batch", broken), patch.object(reconcile, "apply_batch", broken):
        yield


# §5: triggers, homes, fences, coverage -----------------------------------------------------------------------


@planted()
def one_dirty_row_per_key() -> AbstractContextManager[Any]:
    """Every change has an entry of its own: another that is there may be about to be forgotten."""
    real = sqlite_triggers._journal

    def broken(table: str, key: str, entity: str | None, source: str = "") -> str:
        known = f"SELECT 1 FROM fishladder_journal j WHERE j.table_name = '{table}' AND j.row_key = {key}"
        return real(table, key, entity, source)[:-1] + f" AND NOT EXISTS ({known});"

    return patch.object(sqlite_triggers, "_journal", broken)


@planted()
def key_change_writes_one_entry() -> AbstractContextManager[Any]:
    """An update that changes a row's key writes two entries: the old key is gone in the copy, too."""
    real = sqlite_triggers._journal

    def broken(table: str, key: str, entity: str | None, source: str = "") -> str:
        moved = source.startswith(" WHERE ") and "<>" in source
        return "" if moved else real(table, key, entity, source)

    return patch.object(sqlite_triggers, "_journal", broken)


@planted()
def cascade_not_journaled() -> AbstractContextManager[Any]:
    """What a cascade deletes is journaled by the parent's trigger."""
    real = sqlite_triggers._journal

    def not_for_orphans(table: str, key: str, entity: str | None, source: str = "") -> str:
        return real(table, key, entity, source)[:-1] + (f" AND {entity} IS NOT NULL;" if entity else ";")

    return patch.multiple(sqlite_triggers, _descendants=lambda *_, **__: iter(()), _journal=not_for_orphans)


@planted()
def replaced_holder_not_journaled() -> AbstractContextManager[Any]:
    """REPLACE fires no trigger for the rows whose unique values it takes: they are journaled first."""
    return patch.object(sqlite_triggers, "_displaced", lambda *_: iter(["SELECT 1;"]))


@planted()
def trigger_asks_no_fence() -> AbstractContextManager[Any]:
    """Whoever is not the fence's writer is refused."""
    return patch.object(sqlite_triggers, "_refuse", lambda *_: "SELECT 1;")


@planted()
def entity_change_under_one_fence() -> AbstractContextManager[Any]:
    """An update that changes a row's entity asks both fences."""
    real = sqlite_triggers._refuse

    def broken(relation: Any, where: str) -> str:
        return "SELECT 1;" if " IS NOT " in where else real(relation, where)

    return patch.object(sqlite_triggers, "_refuse", broken)


@planted()
def goes_by_the_column() -> AbstractContextManager[Any]:
    """An entity belongs to its home, wherever it has moved since."""
    real = apply._Batch.read

    def broken(self: Any, copy: Any, dirty: Any) -> None:
        real(self, copy, dirty)
        root = self.plan.root.source
        country = [field.column for field in root.fields].index(root.root_cohort)
        with self.ends.origin.read() as origin:
            found = origin.rows_by_key(root, list(self.homes))
        self.homes |= {key: (there.row[country] or b"*").decode() for key, there in found.items()}

    return patch.object(apply._Batch, "read", broken)


@planted()
def home_follows_the_column() -> AbstractContextManager[Any]:
    """A home never changes: not when the customer moves, not when it is deleted and created again."""
    real = sqlite_triggers._birth

    def broken(dialect: Any, root: Any) -> Iterator[str]:
        for text in real(dialect, root):
            always = text.partition("WHERE NOT EXISTS")[0] + ";"
            yield always.replace("INSERT INTO fishladder_home", "INSERT OR REPLACE INTO fishladder_home")

    return patch.object(sqlite_triggers, "_birth", broken)


@planted(lambda kind: kind.begins == "bare")
def homes_backfilled_before_the_triggers() -> AbstractContextManager[Any]:
    """The trigger gives homes from here on, then the backfill gives them to everybody who was there before."""
    real, done = install.install, list[bool]()

    def broken(spec: Any, plan: Any, source: Any, target: Any, ledger: Any, *, actor: str) -> Any:
        source.install_tables()
        if not done:  # the next one, by somebody else, would make it good
            source.backfill_homes(plan.root.source, None, 1000)
            done.append(True)
        return real(spec, plan, Instead(source, backfill_homes=lambda *_, **__: None), target, ledger, actor=actor)

    return patch.object(install, "install", broken)


@planted()
def epoch_may_fall() -> AbstractContextManager[Any]:
    """A fence only ever gets a higher epoch: a late or repeated order changes nothing."""
    real = sql.Session.lock_fences

    def broken(self: Any, cohorts: Any, *, exclusive: bool = False) -> Any:
        found = real(self, cohorts, exclusive=exclusive)
        return {cohort: replace(fence, epoch=-1) for cohort, fence in found.items()} if exclusive else found

    return patch.object(sql.Session, "lock_fences", broken)


@planted()
def target_without_triggers() -> AbstractContextManager[Any]:
    """The target's triggers are installed when its load ends: nobody else writes there from then on."""
    real = load.close_load

    def broken(plan: Any, table: Any, target: Any, ledger: Any) -> None:
        real(plan, table, Instead(target, install_triggers=lambda *_: None, has_triggers=lambda *_: True), ledger)

    return patch.object(load, "close_load", broken)


@planted(lambda kind: kind.uncovered)
def coverage_unchecked_by_the_applier() -> AbstractContextManager[Any]:
    """Each batch looks whether the triggers are still there."""
    return patch.object(apply, "check_coverage", lambda *_: "")


@planted(lambda kind: kind.uncovered and passes(kind))
def coverage_unchecked_by_the_pass() -> AbstractContextManager[Any]:
    """A pass looks before and after whether the triggers are still there."""
    return patch.object(reconcile, "check_coverage", lambda plan, store, side, ledger: digest(ledger.coverage(side)))


@planted(lambda kind: kind.uncovered and passes(kind))
def gap_voids_nothing() -> AbstractContextManager[Any]:
    """When a trigger was gone, the clean passes from before do not count any more."""
    return patch.object(Ledger, "void_checks", lambda *_: 0)


# §6: load, restart, pause --------------------------------------------------------------------------------------


@planted(loads)
def row_between_two_chunks() -> AbstractContextManager[Any]:
    """A chunk goes up to and with the key that the next begins above."""
    real = sql.Session.stream

    def broken(self: Any, relation: Any, lower: Any, upper: Any) -> Any:
        for rows in real(self, relation, lower, upper):
            yield [row for row in rows if sql.row_key(row, relation.key) != upper]

    return patch.object(sql.Session, "stream", broken)


@planted(loads)
def chunk_without_token() -> AbstractContextManager[Any]:
    """A lane looks whether a later claim has its chunk, or has done it: a zombie writes nothing."""
    return patch.object(sql.Session, "take_chunk", lambda *_: None)


@planted(restarts)
def zombie_generation() -> AbstractContextManager[Any]:
    """A chunk is loaded only while the load, and the chunk, are of the lane's own generation."""
    real = load.load_chunk

    def take(self: Any, table: str, no: int, generation: int, token: int) -> Any:
        latest, done, rows = self.run(
            "SELECT token, done, row_count FROM fishladder_chunk WHERE table_name = ? AND no = ?", [table, no]
        )[0]
        if latest != token and not done:
            raise load.StaleError("a later claim has it")
        return load.LoadedChunk(token=latest, rows=rows) if done and latest == token else None

    def broken(table: Any, source: Any, target: Any, ledger: Any, chunk: Any) -> Any:
        state = LoadState(generation=chunk.generation, open=True)
        return real(table, source, with_transaction(target, lock_load=lambda *_: state), ledger, chunk)

    @contextmanager
    def both() -> Iterator[None]:
        with patch.object(load, "load_chunk", broken), patch.object(sql.Session, "take_chunk", take):
            yield

    return both()


@planted(loads)
def chunk_done_before_its_rows() -> AbstractContextManager[Any]:
    """A chunk is done exactly when its rows are there."""
    real = load.load_chunk

    def broken(table: Any, source: Any, target: Any, ledger: Any, chunk: Any) -> Any:
        ledger.finish_chunk(table.name, chunk.no, chunk.token, 0)
        return real(table, source, target, ledger, chunk)

    return patch.object(load, "load_chunk", broken)


@planted(loads)
def load_asks_no_fence() -> AbstractContextManager[Any]:
    """The loader holds all fences, and writes only while all say copier."""
    real = load.load_chunk

    def broken(table: Any, source: Any, target: Any, ledger: Any, chunk: Any) -> Any:
        return real(table, source, with_transaction(target, lock_fences=lambda *_: {}), ledger, chunk)

    return patch.object(load, "load_chunk", broken)


@planted(restarts)
def restart_asks_no_fence() -> AbstractContextManager[Any]:
    """So does whoever deletes what was loaded."""
    real = operate._clean

    def broken(table: Any, target: Any, ledger: Any, pace: Any) -> None:
        real(table, with_transaction(target, lock_fences=lambda *_: {}), ledger, pace)

    return patch.object(operate, "_clean", broken)


@planted(lambda kind: kind.strict)
def refusal_takes_its_neighbours() -> AbstractContextManager[Any]:
    """What fails is halved until each row that fails alone is known: the others are loaded."""

    def broken(relation: Any, rows: Any, write: Any) -> Any:
        try:
            write(rows)
            return []
        except RowError as error:
            return [load.Refusal(row=row, column=error.column, error=str(error)) for row in rows]

    return patch.object(load, "bisect", broken)


@planted(lambda kind: kind.strict)
def bisect_loses_rows() -> AbstractContextManager[Any]:
    """Both halves of what fails are tried again."""
    real = load.bisect

    def broken(relation: Any, rows: Any, write: Any) -> Any:
        refused = real(relation, rows[: len(rows) // 2], write) if len(rows) > 1 else None
        return real(relation, rows, write) if refused is None or not refused else refused

    return patch.object(load, "bisect", broken)


@planted(lambda kind: kind.strict)
def load_skips_what_is_refused() -> AbstractContextManager[Any]:
    """Each row that fails alone becomes a reject: INSERT IGNORE would forget it."""
    real = load.insert_all_that_fit

    def broken(copy: Any, table: Any, stream: Any) -> Any:
        written, _ = real(copy, table, stream)
        return written, []

    return patch.object(load, "insert_all_that_fit", broken)


@planted(lambda kind: kind.strict and loads(kind))
def rejects_recorded_after_the_chunk() -> AbstractContextManager[Any]:
    """A chunk's rejects are in the ledger before it is done: who dies in between has lost nothing."""
    real = load.load_chunk

    def broken(table: Any, source: Any, target: Any, ledger: Any, chunk: Any) -> Any:
        found: list[Any] = []

        def finish(*arguments: Any, **names: Any) -> Any:
            for rows, where in found:
                ledger.record_rejects(rows, **where)
            return ledger.finish_chunk(*arguments, **names)

        later = Instead(ledger, record_rejects=lambda rows, **where: found.append((rows, where)), finish_chunk=finish)
        return real(table, source, target, later, chunk)

    return patch.object(load, "load_chunk", broken)


@planted()
def copier_with_foreign_keys() -> AbstractContextManager[Any]:
    """A row whose parent is not there yet is no reject: the copier's session has foreign keys off."""
    real = SqliteStore.connection

    def broken(self: Any) -> Any:
        connection = real(self)
        if not connection.in_transaction:
            connection.execute("PRAGMA foreign_keys = ON")
        return connection

    return patch.object(SqliteStore, "connection", broken)


@planted(loads)
def closed_with_chunks_missing() -> AbstractContextManager[Any]:
    """The load is closed when all chunks are done."""
    return patch.object(chunks, "unfinished", lambda *_: 0)


@planted(restarts)
def closed_by_the_generation_before() -> AbstractContextManager[Any]:
    """Whoever closes a load looks whether it is still the one whose chunks are done."""
    real = load.close_load

    def broken(plan: Any, table: Any, target: Any, ledger: Any) -> None:
        generation = ledger.start_table(table.name)
        state = LoadState(generation=generation, open=True)
        real(
            plan,
            table,
            with_transaction(target, lock_load=lambda *_, **__: state),
            Instead(ledger, start_table=lambda _: generation),
        )

    return patch.object(load, "close_load", broken)


@planted(loads)
def applies_while_the_load_is_open() -> AbstractContextManager[Any]:
    """The applier leaves tables alone that lanes still load: a chunk read earlier would land on top of it."""

    def everything(plan: Any, ends: Any, ledger: Any, limit: int = 10, cohorts: Any = None) -> Any:
        with ends.origin.read() as origin:
            entries = origin.entries([table.name for table in plan.tables], limit, cohorts)
        return [apply.Dirty(table=e.table, key=e.key, entity=e.entity, cohort=e.cohort, journal=e.id) for e in entries]

    return patch.multiple(apply, _closed=lambda state: True, read_dirty=everything)


@planted(loads)
def cut_drops_dirty_keys() -> AbstractContextManager[Any]:
    """A load takes no entries away: those that came after a chunk was read are applied when it is closed."""
    real = load.cut

    def broken(plan: Any, source: Any, ledger: Any, chunk_rows: int | None) -> None:
        real(plan, source, ledger, chunk_rows)
        fresh = [table.name for table in plan.tables if ledger.table_state(table.name).phase == "loading"]
        with source.begin() as origin:
            origin.forget([entry.id for entry in origin.entries(fresh, 1000)])
            origin.commit()

    return patch.object(load, "cut", broken)


@planted(restarts)
def loads_while_it_is_cleaned() -> AbstractContextManager[Any]:
    """A restarted table is cut, and loaded, when its old rows are all gone."""
    real_cut, real_load = chunks.cut, load.load_chunk

    def cut(tx: Any, table: str, generation: int, bounds: Any) -> None:
        phase = chunks.state(tx, table).phase
        chunks._set(tx, table, phase="loading")
        real_cut(tx, table, generation, bounds)
        chunks._set(tx, table, phase=phase)

    def load_chunk(table: Any, source: Any, target: Any, ledger: Any, chunk: Any) -> Any:
        state = LoadState(generation=chunk.generation, open=True)
        return real_load(table, source, with_transaction(target, lock_load=lambda *_: state), ledger, chunk)

    @contextmanager
    def both() -> Iterator[None]:
        with patch.object(chunks, "cut", cut), patch.object(load, "load_chunk", load_chunk):
            yield

    return both()


@planted(lambda kind: restarts(kind) and passes(kind))
def restart_keeps_clean_passes() -> AbstractContextManager[Any]:
    """Passes over what was loaded before do not count for what is loaded now."""
    real = checks.void

    def broken(tx: Any, names: Any, why: str) -> int:
        return 0 if why == "the table was restarted" else real(tx, names, why)

    return patch.object(checks, "void", broken)


@planted(restarts)
def pause_unheeded() -> AbstractContextManager[Any]:
    """Everything that writes looks between batches whether the migration is paused."""
    real = Ledger.control
    return patch.object(Ledger, "control", lambda self: replace(real(self), paused=False))


# §7: apply ---------------------------------------------------------------------------------------------------


@planted()
def row_read_before_its_shard_is_locked() -> AbstractContextManager[Any]:
    """The owner's rows are read when the destination is locked."""

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

    return batch_in_order(Early, "lock read write record commit forget", before)


@planted()
def row_read_before_its_entries() -> AbstractContextManager[Any]:
    """Only entries that were there before the row was read are forgotten."""
    real = apply._Batch.forget

    def broken(self: Any, ledger: Any, dirty: Any) -> None:
        with self.ends.origin.read() as origin:
            later = [
                apply.Dirty(table=e.table, key=e.key, entity=e.entity, cohort=e.cohort, journal=e.id)
                for table, keys in self.keys.items()
                for e in origin.entries_of(table, list(keys))
            ]
        real(self, ledger, [*(line for line in dirty if line.journal is None), *later])

    return patch.object(apply._Batch, "forget", broken)


@planted()
def forgets_up_to_n() -> AbstractContextManager[Any]:
    """Exactly the entries that were read are forgotten: a range takes others along, most of all on a retry."""

    def forget(self: Any, ids: Sequence[int]) -> None:
        self.run("DELETE FROM fishladder_journal WHERE id <= ?", [max(ids)])

    return patch.object(sql.Session, "forget", forget)


@planted()
def forgets_by_range() -> AbstractContextManager[Any]:
    """The same, from the first that was read to the last."""

    def forget(self: Any, ids: Sequence[int]) -> None:
        self.run("DELETE FROM fishladder_journal WHERE id BETWEEN ? AND ?", [min(ids), max(ids)])

    return patch.object(sql.Session, "forget", forget)


@planted()
def forgets_before_the_commit() -> AbstractContextManager[Any]:
    """Entries are forgotten after the commit: who dies in between applies them again."""
    return batch_in_order(apply._Batch, "lock read write record forget commit")


@planted()
def forgets_what_it_left() -> AbstractContextManager[Any]:
    """Keys that a fence, or a shard, kept from being written stay dirty."""
    real = apply._Batch.forget

    def broken(self: Any, ledger: Any, dirty: Any) -> None:
        self.kept = set()
        real(self, ledger, dirty)

    return patch.object(apply._Batch, "forget", broken)


@planted(lambda kind: kind.cuts > 0)
def ambiguous_commit_taken_for_done() -> AbstractContextManager[Any]:
    """A commit without an answer may not have happened: nothing is forgotten."""
    real = apply.apply_batch

    def broken(plan: Any, ends: Any, ledger: Any, dirty: Any, **options: Any) -> Any:
        @contextmanager
        def begin(**wait: Any) -> Iterator[Any]:
            with ends.destination.begin(**wait) as copy:

                def commit() -> None:
                    try:
                        copy.commit()
                    except AmbiguousError:
                        return

                yield Instead(copy, commit=commit)

        hopeful = replace(ends, destination=Instead(ends.destination, begin=begin))
        return real(plan, hopeful, ledger, dirty, **options)

    return instead_of_apply_batch(broken)


@planted()
def fence_read_without_lock() -> AbstractContextManager[Any]:
    """The applier holds the fences in its transaction: raising one waits for it."""

    class Early(apply._Batch):
        def lock(self, copy: Any, dirty: Any) -> None:
            super().lock(copy, dirty)
            self.fences = self.early

    def before(batch: Any, dirty: Any) -> None:
        batch.early = batch.ends.destination.fences()

    return batch_in_order(Early, "lock read write record commit forget", before)


@planted()
def applier_asks_no_fence() -> AbstractContextManager[Any]:
    """A fence that does not say copier: the keys are left."""
    real = apply._Batch.lock

    def broken(self: Any, copy: Any, dirty: Any) -> None:
        real(self, copy, dirty)
        self.fences = {cohort: replace(fence, writer="copier") for cohort, fence in self.fences.items()}

    return patch.object(apply._Batch, "lock", broken)


@planted()
def drops_what_it_does_not_own() -> AbstractContextManager[Any]:
    """Both cohorts are asked: the one the row belongs to now, and the one whose row is in the destination."""
    real = apply._Batch._may

    def broken(self: Any, table: Any, key: bytes) -> bool:
        there = self.there[table.name]
        self.there[table.name] = {}
        try:
            return real(self, table, key)
        finally:
            self.there[table.name] = there

    return patch.object(apply._Batch, "_may", broken)


@planted()
def unique_clash_by_odku() -> AbstractContextManager[Any]:
    """ON DUPLICATE KEY UPDATE matches any unique key: the holder is overwritten, the new row never made."""

    def broken(self: Any, copy: Any, table: Any, rows: Any) -> str:
        relation = self._copy(table.name)
        for holder in copy.holders(relation, list(rows.values())) - rows.keys():
            (row,) = rows.values()
            copy.update(relation, [(*sql.key_cells(holder), *row[len(relation.key) :])])
        return "written"

    return patch.object(apply._Batch, "_displace", broken)


@planted()
def unique_clash_by_replace() -> AbstractContextManager[Any]:
    """The row that held the value is written again, as its owner has it now."""

    def broken(self: Any, copy: Any, table: Any, rows: Any) -> str:
        relation = self._copy(table.name)
        copy.delete(relation, sorted(copy.holders(relation, list(rows.values())) | rows.keys()))
        copy.insert(relation, list(rows.values()))
        return "written"

    return patch.object(apply._Batch, "_displace", broken)


@planted()
def displaced_holder_not_followed() -> AbstractContextManager[Any]:
    """Holders are followed until the circle closes: values may be swapped or rotated."""
    real = apply._Batch._displace

    def broken(self: Any, copy: Any, table: Any, rows: Any) -> Any:
        asked: list[Any] = []

        def holders(relation: Any, wanted: Any) -> Any:
            asked.append(wanted)
            return copy.holders(relation, wanted) if len(asked) == 1 else set()

        return real(self, Instead(copy, holders=holders), table, rows)

    return patch.object(apply._Batch, "_displace", broken)


@planted()
def holder_of_a_closed_cohort_displaced() -> AbstractContextManager[Any]:
    """The fence of the row that held the value is asked, too."""
    real = apply._Batch._displace

    def broken(self: Any, copy: Any, table: Any, rows: Any) -> Any:
        fences = self.fences
        self.fences = {cohort: replace(fence, writer="copier") for cohort, fence in fences.items()}
        try:
            return real(self, copy, table, rows)
        finally:
            self.fences = fences

    return patch.object(apply._Batch, "_displace", broken)


@planted(lambda kind: kind.strict)
def reject_forgotten() -> AbstractContextManager[Any]:
    """A row that the destination refuses becomes a reject."""
    real = apply._Batch.record

    def broken(self: Any, ledger: Any) -> None:
        self.refused = {}
        real(self, ledger)

    return patch.object(apply._Batch, "record", broken)


@planted(lambda kind: kind.strict)
def reject_not_closed() -> AbstractContextManager[Any]:
    """The next success of a rejected key closes its reject."""
    return patch.object(rejects, "close", lambda *_: set())


@planted(lambda kind: kind.strict)
def outcome_recorded_after_the_commit() -> AbstractContextManager[Any]:
    """What a batch found is recorded while its shards are locked: later, it closes what the next batch recorded."""
    return batch_in_order(apply._Batch, "lock read write commit forget record")


@planted(lambda kind: kind.strict)
def retry_closes_the_reject() -> AbstractContextManager[Any]:
    """A retry marks the key dirty and leaves the reject open until it succeeds."""

    def broken(tx: Any, table: Any, error: Any, actor: str) -> int:
        found = rejects.read(tx, table, 1000)
        for reject in found:
            rejects.close(tx, reject.table, [reject.key])
        return len(found)

    return patch.object(rejects, "retry", broken)


# §8: reconcile -----------------------------------------------------------------------------------------------


@planted(lambda kind: kind.damage)
def enumerates_the_source_only() -> AbstractContextManager[Any]:
    """A pass enumerates both sides itself: a row that only the target has is found."""
    return patch.object(reconcile, "compare_chunk", _candidates(lambda ours, theirs: bool(ours)))


@planted(lambda kind: kind.damage)
def compares_keys_only() -> AbstractContextManager[Any]:
    """Cells are compared, not counts."""
    return patch.object(reconcile, "compare_chunk", _candidates(lambda ours, theirs: bool(ours) != bool(theirs)))


def _candidates(look: Callable[[Any, Any], bool]) -> Callable[..., reconcile.Compared]:
    """``compare_chunk`` that keeps only the candidates of whose rows, source's and target's, this is true."""
    real = reconcile.compare_chunk

    def broken(table: Any, source: Any, target: Any, lower: Any, upper: Any) -> reconcile.Compared:
        compared = real(table, source, target, lower, upper)
        with source.read() as origin, target.read() as copy:
            ours = origin.rows_by_key(table.source, compared.candidates)
            theirs = copy.rows_by_key(table.target, compared.candidates)
        kept = tuple(key for key in compared.candidates if look(ours.get(key), theirs.get(key)))
        return replace(compared, candidates=kept)

    return broken


@planted(passes)
def candidate_taken_for_a_mismatch() -> AbstractContextManager[Any]:
    """A difference is only a candidate while its key is dirty."""
    return patch.object(sql.Session, "entries_of", lambda *_: [])


@planted(passes)
def verdict_without_locks() -> AbstractContextManager[Any]:
    """The verdict is given while nobody can change the row, nor copy it."""
    real = reconcile.judge

    def broken(plan: Any, table: Any, ends: Any, ledger: Any, keys: Any, record: Any) -> Any:
        def reading(store: Any) -> Any:
            @contextmanager
            def begin(**_: Any) -> Iterator[Any]:
                with store.read() as reader:
                    yield Instead(reader, lock_shards=lambda _: None)

            return Instead(store, begin=begin)

        bare = replace(ends, origin=reading(ends.origin), destination=reading(ends.destination))
        return real(plan, table, bare, ledger, keys, record)

    return patch.object(reconcile, "judge", broken)


@planted(lambda kind: kind.damage)
def mismatch_not_marked_dirty() -> AbstractContextManager[Any]:
    """A mismatch is marked dirty, so that the applier repairs it."""
    quiet = SimpleNamespace(DirtyKey=checks.dirty.DirtyKey, mark=lambda *_: None)
    return patch.object(checks, "dirty", quiet)


@planted(lambda kind: kind.damage)
def repaired_counts_as_clean() -> AbstractContextManager[Any]:
    """Only a pass that found nothing is clean: repairing is not verifying."""
    real = checks.finish

    def broken(tx: Any, check: int, result: Any) -> bool:
        checks._set(tx, check, clean=None)
        return real(tx, check, replace(result, missing=0, extra=0, differs=0, by_cohort={}))

    return patch.object(checks, "finish", broken)


@planted(lambda kind: kind.strict and passes(kind))
def rejects_count_as_clean() -> AbstractContextManager[Any]:
    """A key that is rejected is no equal key."""
    real = checks.finish
    return patch.object(checks, "finish", lambda tx, check, result: real(tx, check, replace(result, rejected=0)))


@planted(lambda kind: kind.orphan and passes(kind))
def orphans_unchecked() -> AbstractContextManager[Any]:
    """A pass counts rows whose parent the target demands and does not have."""
    return patch.object(reconcile, "count_orphans", lambda *_: 0)


# SQLite has one writer: what cannot show here, or has no bug, and the test that shows it ---------------------------

ELSEWHERE = {
    "home and fence are read in one statement, with a lock": (
        "contract/test_fences.py::test_a_snapshot_from_before_sees_new_homes_and_fences"
    ),
    "a raised fence is seen by a snapshot from before": (
        "contract/test_fences.py::test_a_snapshot_from_before_sees_the_raised_fence"
    ),
    "raising a fence waits for the application": (
        "contract/test_fences.py::test_raising_waits_for_a_transaction_that_wrote"
    ),
    "raising a fence waits for copiers": "contract/test_fences.py::test_raising_waits_for_a_copier_that_looked",
    "a lower entry may be committed later": "contract/test_fences.py::test_an_entry_that_commits_late_is_not_lost",
    "a shard keeps copiers apart": "contract/test_fences.py::test_shards_exclude_copiers",
    "a key of another or no entity takes every shard": (
        "unit/test_apply.py::test_a_key_whose_entity_changed_waits_for_every_shard"
    ),
    "the owner's row is held for the verdict": "contract/test_fences.py::test_a_row_that_is_held_cannot_change",
    "the copier is not journaled": "contract/test_triggers.py::test_the_copier_is_not_journaled",
    "truncating or exchanging a table changes its coverage": (
        "contract/test_tables.py::test_coverage_changes_when_changes_could_go_unseen"
    ),
    "a unique key that comes or goes changes its table's coverage": (
        "contract/test_tables.py::test_coverage_changes_when_changes_could_go_unseen"
    ),
    "a store is installed for one migration": (
        "unit/test_finish.py::test_a_store_is_installed_for_one_migration_at_a_time"
    ),
    "prepare guesses no home that the other store knows": (
        "unit/test_homeless.py::test_prepare_gives_who_has_a_home_in_the_target_no_other"
    ),
    "a claim takes the token of its chunk": (
        "contract/test_tables.py::test_a_chunk_is_done_once_and_only_by_the_latest_claim"
    ),
    "rows read at moments that do not fit together are tried again": (
        "unit/test_apply.py::test_values_that_rotate_again_while_their_rows_are_read_are_no_reject"
    ),
    "keys written during an attempt are noted": "unit/test_apply.py::test_keys_written_during_an_attempt_are_noted",
    "duplicates are counted": "unit/test_reconcile.py::test_duplicates_that_the_target_does_not_forbid_are_counted",
    "a mismatch may rewrite the entity": "unit/test_reconcile.py::test_a_mismatch_can_rewrite_the_whole_customer",
    "a rate is kept": "unit/test_operate.py::test_a_rate_is_kept_and_may_be_lifted_live",
    "no restart once a cohort has begun to flip": (
        "unit/test_operate.py::test_a_cohort_that_has_begun_to_flip_keeps_its_tables"
    ),
    "who cleans a table looks each time whether it is still being cleaned": (
        "unit/test_operate.py::test_a_cleaner_that_wakes_up_late_deletes_nothing"
    ),
    "children are restarted with their parents": "unit/test_operate.py::test_children_are_named",
    "a row crosses to no other owner": "contract/test_triggers.py::test_a_row_may_not_cross_to_another_owner",
    "parents are written first and deleted last": (
        "contract/test_rotations.py::test_parents_are_written_first_and_deleted_last"
    ),
    "a row that waits for its parent stays dirty": "contract/test_into_oracle.py::test_a_row_waits_for_its_parent",
    "a row of another home is not overwritten": "unit/test_apply.py::test_a_row_of_another_home_is_not_overwritten",
    "a pass that found, left or missed anything is not clean": (
        "unit/ledger/test_ledger_doubts.py::test_what_makes_a_check_unclean"
    ),
}
FOUND_AT: dict[str, int] = {
    "ambiguous_commit_taken_for_done": 379,
    "applier_asks_no_fence": 8,
    "applies_while_the_load_is_open": 5,
    "bisect_loses_rows": 5,
    "candidate_taken_for_a_mismatch": 16,
    "cascade_not_journaled": 4,
    "chunk_done_before_its_rows": 5,
    "chunk_without_token": 5,
    "closed_by_the_generation_before": 157,
    "closed_with_chunks_missing": 2,
    "compares_keys_only": 27,
    "copier_with_foreign_keys": 4,
    "coverage_unchecked_by_the_applier": 248,
    "coverage_unchecked_by_the_pass": 172,
    "cut_drops_dirty_keys": 5,
    "displaced_holder_not_followed": 172,
    "drops_what_it_does_not_own": 95,
    "entity_change_under_one_fence": 143,
    "enumerates_the_source_only": 4,
    "epoch_may_fall": 2,
    "fence_read_without_lock": 27,
    "forgets_before_the_commit": 4,
    "forgets_by_range": 4,
    "forgets_up_to_n": 4,
    "forgets_what_it_left": 4,
    "gap_voids_nothing": 194,
    "goes_by_the_column": 20,
    "holder_of_a_closed_cohort_displaced": 174,
    "home_follows_the_column": 2,
    "homes_backfilled_before_the_triggers": 29,
    "key_change_writes_one_entry": 11,
    "load_asks_no_fence": 6,
    "load_skips_what_is_refused": 4,
    "loads_while_it_is_cleaned": 30,
    "mismatch_not_marked_dirty": 4,
    "one_dirty_row_per_key": 4,
    "orphans_unchecked": 8,
    "outcome_recorded_after_the_commit": 4,
    "pause_unheeded": 2,
    "refusal_takes_its_neighbours": 5,
    "reject_forgotten": 4,
    "reject_not_closed": 4,
    "rejects_count_as_clean": 35,
    "rejects_recorded_after_the_chunk": 6,
    "repaired_counts_as_clean": 4,
    "replaced_holder_not_journaled": 17,
    "restart_asks_no_fence": 90,
    "restart_keeps_clean_passes": 53,
    "retry_closes_the_reject": 4,
    "row_between_two_chunks": 2,
    "row_read_before_its_entries": 8,
    "row_read_before_its_shard_is_locked": 20,
    "target_without_triggers": 8,
    "trigger_asks_no_fence": 8,
    "unique_clash_by_odku": 11,
    "unique_clash_by_replace": 21,
    "verdict_without_locks": 135,
    "zombie_generation": 29,
}
"""A seed whose world shows the bug: where the test looks first."""
