"""The applier: makes dirty keys right, whoever marked them dirty (design §7).

A dirty key is made right by reading the owner's current row and writing or deleting the other side's. So the same
batch may be applied twice, late or in any order, as long as two rules hold: a key's row is read while its shard is
locked in the destination, and exactly the entries that were read before that are forgotten after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from fishladder.cells import HOMELESS, NO_HOME, SHARDS, Cell, Row, key_text, row_key
from fishladder.clock import Clock
from fishladder.coverage import check_coverage
from fishladder.errors import AmbiguousError, RowError, TransientError
from fishladder.ledger import DirtyKey, Ledger
from fishladder.load import Refusal, fitting_rows, rejects_of
from fishladder.plan import Plan, PlanTable, Side, other_side
from fishladder.restored import check_ledger, tell_target
from fishladder.stores.base import Fence, Fenced, ForeignKey, Found, LoadState, Relation, Store, Transaction

BATCH = 2_000
"""Reasons that a worker takes at once."""
POLL = 0.2
"""Seconds between looks at an empty journal."""
LONGEST_PAUSE = 30.0
"""Seconds that the applier backs off at most after failures."""
HEARTBEAT = 5.0
"""Seconds between looks at the coverage, and notes of the lag, while nothing is to do."""
BUSY_HEARTBEAT = 1.0
"""Seconds between notes in the ledger while there is: each is a flush to its disk."""


class Dirty(NamedTuple):
    """One reason to doubt a key: a journal entry (``journal`` is its id) or a line of the ledger (``ledger``)."""

    table: str
    key: bytes
    entity: bytes | None
    cohort: str
    journal: int | None = None
    ledger: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The two stores of a copy. ``owner`` says which of them the rows come from; they go to the other."""

    owner: Side
    origin: Store
    destination: Store

    def at(self, side: Side) -> Store:
        return self.origin if side == self.owner else self.destination


@dataclass(slots=True, kw_only=True)
class Applied:
    """What a batch did. ``woken``: parents that are dirty from now on, because a row waits for them.

    ``wide``: reasons left because their keys need every shard; ``left``: because of a fence or of another row.
    """

    written: int = 0
    deleted: int = 0
    equal: int = 0
    rejected: int = 0
    forgotten: int = 0
    woken: int = 0
    wide: list[Dirty] = field(default_factory=list)
    left: list[Dirty] = field(default_factory=list)

    def add(self, other: Applied) -> None:
        for name in ("written", "deleted", "equal", "rejected", "forgotten", "woken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wide += other.wide
        self.left += other.left


def read_dirty(
    plan: Plan, ends: Ends, ledger: Ledger, limit: int = BATCH, cohorts: Collection[str] | None = None
) -> list[Dirty]:
    """The oldest reasons to doubt keys of tables whose load is closed: the ledger's, then the journal's.

    Only of cohorts (of these, if given) whose copies go this way: what waits for a fence must not hide the others.
    """
    assert isinstance(ends.destination, Fenced)
    fences = ends.destination.fences()
    wanted = [c for c, fence in fences.items() if fence.writer == "copier" and (cohorts is None or c in cohorts)]
    some = None if len(wanted) == len(fences) else wanted
    states = ends.destination.load_states()
    closed = [table.name for table in plan.tables if table.name in states and not states[table.name].open]
    found = [
        Dirty(table=line.table, key=line.key, entity=line.entity, cohort=line.cohort or "", ledger=line.id)
        for line in ledger.dirty(limit, tables=closed, cohorts=some)
    ]
    with ends.origin.read() as origin:
        entries = origin.entries(closed, limit, some)
    found += [Dirty(table=e.table, key=e.key, entity=e.entity, cohort=e.cohort, journal=e.id) for e in entries]
    return found


def apply_batch(
    plan: Plan,
    ends: Ends,
    ledger: Ledger,
    dirty: Sequence[Dirty],
    *,
    every_shard: bool = False,
) -> Applied:
    """Make these keys right in one destination transaction, then forget exactly these reasons.

    ``every_shard``: lock all shards and fences, for keys whose entity changed or is not known. Keys of a cohort that
    an attempt is open for are noted in ``fishladder_touched``.
    """
    batch = _Batch(plan, ends, every_shard)
    with ends.destination.begin() as copy:
        states = {table: copy.lock_load(table) for table in sorted({line.table for line in dirty})}
        closed = {table for table, state in states.items() if _closed(state)}
        dirty = [line for line in dirty if line.table in closed]
        batch.lock(copy, dirty)
        batch.read(copy, dirty)
        # After the rows: what was read before an attempt was open cannot be newer than what its pass compares.
        attempts = ledger.attempts(only_open=True)
        batch.write(copy)
        for attempt in attempts:
            copy.touch(batch.changed_in(attempt.cohort), str(attempt.id))
        batch.record(ledger)
        copy.commit()
    batch.forget(ledger, dirty)
    return batch.applied


def _closed(state: LoadState | None) -> bool:
    return state is not None and not state.open


class _Batch:
    """One transaction of the applier, step by step as in ``apply_batch``."""

    def __init__(self, plan: Plan, ends: Ends, every_shard: bool) -> None:
        self.plan = plan
        self.ends = ends
        self.every_shard = every_shard
        self.applied = Applied()
        self.shards: frozenset[int] = frozenset()
        self.into = _destination(ends)
        self.fences: dict[str, Fence] = {}
        self.over: frozenset[str] = frozenset()
        """Cohorts that are complete: for good the target's alone, so that neither fence opens for a copier again."""
        self.homes: dict[bytes, str] = {}
        self.keys: dict[str, dict[bytes, list[Dirty]]] = {}
        self.owner: dict[str, dict[bytes, Found]] = {}
        self.there: dict[str, dict[bytes, Found]] = {}
        self.refused: dict[str, list[Refusal]] = {}
        self.changed: dict[str, set[bytes]] = {}
        self.kept: set[tuple[str, bytes]] = set()
        self.moot: set[Dirty] = set()
        self.born_twice: set[bytes | None] = set()
        """Entities with a home here and another one there: to copy either would destroy the other."""
        self.doubts: list[int] = []

    def lock(self, copy: Transaction, dirty: Sequence[Dirty]) -> None:
        """Shards in ascending order, then the fences, shared: raising a fence waits for this transaction."""
        if self.every_shard:
            self.shards = frozenset(range(SHARDS))
        else:
            self.shards = frozenset().union(*{self._shards_of(d.table, d.key, d.entity) for d in dirty})
        copy.lock_shards(self.shards)
        self.fences = copy.lock_fences(None)
        assert isinstance(self.ends.origin, Fenced)
        targets = self.fences if self._forth else self.ends.origin.fences()
        self.over = frozenset(cohort for cohort, fence in targets.items() if fence.writer == "free")

    def read(self, copy: Transaction, dirty: Sequence[Dirty]) -> None:
        """The owner's rows as they are now, and what the destination has."""
        for line in dirty:
            self.keys.setdefault(line.table, {}).setdefault(line.key, []).append(line)
            if line.journal is not None and line.entity is not None and line.cohort not in (NO_HOME, HOMELESS):
                self.homes[line.entity] = line.cohort  # the trigger read it there, and homes never change
        with self.ends.origin.read() as origin:
            for table, keys in self.keys.items():
                self.owner[table] = origin.rows_by_key(self._owner(table), list(keys))
            unknown = ({line.entity for line in dirty} | _entities(self.owner)) - self.homes.keys()
            self.homes |= origin.homes(entity for entity in unknown if entity is not None)
        for table, keys in self.keys.items():
            self.there[table] = copy.rows_by_key(self._copy(table), list(keys))
        unknown = _entities(self.there) - self.homes.keys()
        self.homes |= copy.homes(entity for entity in unknown if entity is not None)
        if any(fence.writer != "copier" for fence in self.fences.values()):  # both stores may give birth
            entities = [entity for entity in _entities(self.owner) | _entities(self.there) if entity is not None]
            here = copy.homes(entities)
            with self.ends.origin.read() as origin:
                owners = origin.homes(entities)
            self.born_twice = {entity for entity in here.keys() & owners.keys() if here[entity] != owners[entity]}

    def write(self, copy: Transaction) -> None:
        """Parents before children, then deletes, children first."""
        ordered = [table for table in self.plan.tables if table.name in self.keys]
        gone: list[tuple[PlanTable, list[bytes]]] = []
        for table in ordered:
            keys = [key for key in self.keys[table.name] if self._may(table, key)]
            owner, there = self.owner[table.name], self.there[table.name]
            rows = {key: owner[key].row for key in keys if key in owner}
            changed = {key: row for key, row in rows.items() if key not in there or there[key].row != row}
            self.applied.equal += len(rows) - len(changed)
            self._write_rows(copy, table, changed)
            gone.append((table, [key for key in keys if key not in owner and key in there]))
        for table, keys in reversed(gone):
            gone_now = self._delete_some(copy, table, keys)
            self.applied.deleted += len(gone_now)
            self._note(table, gone_now)

    def _delete_some(self, copy: Transaction, table: PlanTable, keys: list[bytes]) -> list[bytes]:
        """Delete these keys; those that rows of another table still need stay dirty (only Oracle refuses them)."""
        if not keys:
            return []
        try:
            with copy.savepoint():
                copy.delete(self._copy(table.name), keys)
            return keys
        except RowError:
            if len(keys) == 1:
                self._keep(table, keys[0], self.applied.left)
                return []
        middle = len(keys) // 2
        return self._delete_some(copy, table, keys[:middle]) + self._delete_some(copy, table, keys[middle:])

    def record(self, ledger: Ledger) -> None:
        """Rejects, and doubts that are over, into the ledger while the shards are still locked.

        If the commit then fails, the reasons are not forgotten and the keys stay dirty: also where another batch has
        forgotten them, for each outcome is a doubt of its own until the commit.
        """
        self._let_wait(ledger)
        refused = [
            reject
            for name, refusals in self.refused.items()
            for reject in rejects_of(self.ends.origin, self._owner(name), self.plan.table(name), refusals)
        ]
        wrong = {(reject.table, reject.key) for reject in refused} | self.kept
        right = {table: [key for key in keys if (table, key) not in wrong] for table, keys in self.keys.items()}
        self.doubts = ledger.record_outcome(right, refused, self._doubt)
        self.applied.rejected = len(refused)

    def _let_wait(self, ledger: Ledger) -> None:
        """Rows that the destination refuses for want of a parent stay dirty while it is to come."""
        for name, refusals in self.refused.items():
            self.refused[name] = []
            for refusal in refusals:
                if refusal.orphan and self._parents_come(ledger, name, refusal.row):
                    self._keep(self.plan.table(name), self._key(name, refusal.row), self.applied.left)
                else:
                    self.refused[name].append(refusal)

    def _parents_come(self, ledger: Ledger, name: str, row: Row) -> bool:
        """Whether the owner has the parents that are not here, and none is rejected; they are dirty from then on."""
        relation, missing, known = self._copy(name), list[DirtyKey](), True
        cells = {field.column: cell for field, cell in zip(relation.fields, row, strict=True)}
        for foreign_key in relation.foreign_keys:
            if any(cells[column] is None for column in foreign_key.columns):
                continue
            found = self._parent(foreign_key, cells)
            if found is None:
                known = False
                continue
            parent, key = found
            with self.ends.destination.read() as there, self.ends.origin.read() as origin:
                if key in there.rows_by_key(self._copy(parent.name), [key]):
                    continue
                owned = origin.rows_by_key(self._owner(parent.name), [key]).get(key)
                homes = origin.homes([owned.entity] if owned is not None and owned.entity is not None else [])
            if owned is None or ledger.rejected_keys(parent.name, [key]):
                return False
            cohort = parent.cohort(owned.entity, homes)
            missing.append(DirtyKey(table=parent.name, key=key, entity=owned.entity, cohort=cohort, origin="orphan"))
        woken = [parent for parent in missing if not ledger.dirty_keys(parent.table, [parent.key])]
        ledger.mark_dirty(woken)
        self.applied.woken += len(woken)
        return bool(missing) or known  # known, and none is missing: it came meanwhile

    def _parent(self, foreign_key: ForeignKey, cells: Mapping[str, Cell]) -> tuple[PlanTable, bytes] | None:
        """The row that a foreign key refers to; None where it is not migrated, or is not found by its primary key."""
        for table in self.plan.tables:
            above = self._copy(table.name)
            if above.name == foreign_key.parent and set(above.key_columns) == set(foreign_key.parent_columns):
                columns = dict(zip(foreign_key.parent_columns, foreign_key.columns, strict=True))
                return table, key_text(cells[columns[column]] or b"" for column in above.key_columns)
        return None

    def _doubt(self, table: str, key: bytes) -> DirtyKey:
        entity = self._entity(table, key)
        cohort = self.plan.table(table).cohort(entity, self.homes)
        return DirtyKey(table=table, key=key, entity=entity, cohort=cohort, origin="outcome")

    def forget(self, ledger: Ledger, dirty: Sequence[Dirty]) -> None:
        """After the commit: delete exactly the reasons that were read, but those of keys that were left."""
        done = [line for line in dirty if (line.table, line.key) not in self.kept or line in self.moot]
        ledger.forget(self.doubts + [line.ledger for line in done if line.ledger is not None])
        journal = [line.journal for line in done if line.journal is not None]
        if journal:
            with self.ends.origin.begin() as origin:
                origin.forget(journal)
                origin.commit()
        self.applied.forgotten = len(done)

    # Which keys this batch may write

    def _may(self, table: PlanTable, key: bytes) -> bool:
        now = {found.entity for rows in (self.owner, self.there) if (found := rows[table.name].get(key)) is not None}
        named = {line.entity for line in self.keys[table.name][key]}
        held = all(self._shards_of(table.name, key, entity) <= self.shards for entity in now | named)
        # A row that only the copy has and whose parents are gone there already is whose they were.
        whose = named - {None} if now == {None} and key not in self.owner[table.name] else set()
        # Rows that are somebody's say more than a doubt about nobody's.
        asked = whose or now | (named - {None}) or named
        # No fence opens for a complete cohort again. What it had of these rows is not touched in the target; but rows
        # that it gave away go on, and of its copies in the source nobody expects anything.
        here = asked if whose else now
        asked = {entity for entity in asked if not self._is_over(table, entity) or (self._forth and entity in here)}
        if held and not asked & self.born_twice and all(self._is_open(table, entity) for entity in asked):
            return True
        if held and now and not whose and not self._copy(table.name).has_parent:
            # The row went to an entity that has moved by now, in whose cohort its trigger has journaled it too. A row
            # that went with its parent is journaled nowhere else: its entries wait until that cohort is open again.
            self.moot |= {
                line
                for line in self.keys[table.name][key]
                if (line.journal is not None or line.entity is not None)
                and line.entity not in now
                and self._is_open(table, line.entity)
            }
        # Not held: the row moved to another entity, whose shard somebody else may hold right now.
        return self._keep(table, key, self.applied.left if held else self.applied.wide)

    @property
    def _forth(self) -> bool:
        return self.ends.owner == "source"

    def _is_over(self, table: PlanTable, entity: bytes | None) -> bool:
        return table.cohort(entity, self.homes) in self.over

    def _is_open(self, table: PlanTable, entity: bytes | None) -> bool:
        """Whether the fence lets copiers write."""
        fence = self.fences.get(table.cohort(entity, self.homes))
        return fence is not None and fence.writer == "copier"

    def _shards_of(self, table: str, key: bytes, entity: bytes | None) -> frozenset[int]:
        return self.plan.shards(table, key, entity, self.into)

    def _keep(self, table: PlanTable, key: bytes, where: list[Dirty]) -> bool:
        self.kept.add((table.name, key))
        where += self.keys[table.name][key]
        return False

    # Writing rows

    def _write_rows(self, copy: Transaction, table: PlanTable, changed: Mapping[bytes, Row]) -> None:
        owner, relation = self._owner(table.name), self._copy(table.name)
        fitting, refused = fitting_rows(owner, relation, list(changed.values()))
        refused += self._write_some(copy, table, fitting)
        self.refused[table.name] = refused
        bad = {self._key(table.name, refusal.row) for refusal in refused}
        written = [key for key in changed if key not in bad and (table.name, key) not in self.kept]
        self.applied.written += len(written)
        self._note(table, written)

    def _write_some(self, copy: Transaction, table: PlanTable, rows: Sequence[Row]) -> list[Refusal]:
        """Write rows in few statements; what fails is halved until each row that fails alone is known."""
        if not rows:
            return []
        try:
            with copy.savepoint():
                copy.upsert(self._copy(table.name), rows, self.there[table.name])
            return []
        except RowError:
            if len(rows) == 1:
                return self._write_row(copy, table, rows[0])
        middle = len(rows) // 2
        return self._write_some(copy, table, rows[:middle]) + self._write_some(copy, table, rows[middle:])

    def _write_row(self, copy: Transaction, table: PlanTable, row: Row) -> list[Refusal]:
        """A row that was refused among others, or alone: whether it is there may have changed meanwhile.

        One that came meanwhile is another entity's, whose shard is not held here and whose cohort may have moved since.
        """
        relation, key = self._copy(table.name), self._key(table.name, row)
        now = copy.rows_by_key(relation, [key])
        if now.keys() - self.there[table.name].keys() and key not in self.changed.get(table.name, ()):
            self._keep(table, key, self.applied.left if self.every_shard else self.applied.wide)
            return []
        try:
            with copy.savepoint():
                copy.upsert(relation, [row], now)
            return []
        except RowError as error:
            if error.unique and table.serial:
                outcome = self._displace(copy, table, {key: row})
                if outcome == "later":
                    self._keep(table, key, self.applied.left)
                if outcome != "refused":
                    return []
            return [Refusal(row=row, column=error.column, error=str(error), orphan=error.orphan)]

    def _displace(
        self, copy: Transaction, table: PlanTable, rows: dict[bytes, Row]
    ) -> Literal["written", "later", "refused"]:
        """Another row holds a unique value. Write it and everyone it displaces as the owner has them now.

        Values may be swapped or rotated, so holders are followed until the circle closes; then all are deleted and
        inserted again, or what comes to the same where others refer to them. ``later``: a holder's cohort is closed to
        the copier for now, or is to go and cannot yet, or the rows were read at moments that do not fit together, so
        the key stays dirty.
        ``refused``: they can never be written.
        """
        owner, relation, wanted = self._owner(table.name), self._copy(table.name), dict(rows)
        present = set(copy.rows_by_key(relation, list(wanted)))
        while more := copy.holders(relation, list(wanted.values())) - wanted.keys() - present:
            found = copy.rows_by_key(relation, list(more))
            homes = copy.homes(f.entity for f in found.values() if f.entity is not None)
            self.there[table.name] |= found  # whose keys are noted as touched, too
            self.homes = homes | self.homes
            cohorts = {table.cohort(f.entity, homes) for f in found.values()}
            shut = {c for c in cohorts if c not in self.fences or self.fences[c].writer != "copier"}
            if shut - (frozenset() if self._forth else self.over):  # old copies in the source are nobody's: they follow
                return "later"
            present |= more
            with self.ends.origin.read() as origin:
                owned = origin.rows_by_key(owner, list(more))
            wanted |= {key: found.row for key, found in owned.items()}
            if fitting_rows(owner, relation, list(wanted.values()))[1]:
                return "refused"  # a holder's new row does not fit, and the server might change it in silence
        try:
            with copy.savepoint():
                copy.replace(relation, sorted(present), list(wanted.values()))
        except RowError:
            with self.ends.origin.read() as origin:
                now = {key: found.row for key, found in origin.rows_by_key(owner, list(wanted)).items()}
            # Holders that the owner has no more are deleted when the rows that refer to them are: their own turn comes.
            return "refused" if now == wanted and not present - wanted.keys() else "later"
        self._note(table, [*present, *wanted])
        return "written"

    def changed_in(self, cohort: str) -> list[tuple[str, bytes, str]]:
        """The keys of this cohort that were written or deleted, as ``touch`` takes them."""
        return [
            (table.name, key, cohort)
            for table in self.plan.tables
            for key in self.changed.get(table.name, ())
            if table.cohort(self._entity(table.name, key), self.homes) == cohort
        ]

    def _entity(self, table: str, key: bytes) -> bytes | None:
        found = self.owner[table].get(key) or self.there[table].get(key)
        if found is not None and found.entity is not None:
            return found.entity
        return next((line.entity for line in self.keys[table].get(key, ()) if line.entity is not None), None)

    def _note(self, table: PlanTable, keys: Iterable[bytes]) -> None:
        self.changed.setdefault(table.name, set()).update(keys)

    def _owner(self, table: str) -> Relation:
        return self.plan.table(table).at(self.ends.owner)

    def _copy(self, table: str) -> Relation:
        return self.plan.table(table).at(self.into)

    def _key(self, table: str, row: Row) -> bytes:
        return row_key(row, self._owner(table).key)


def _entities(tables: Mapping[str, Mapping[bytes, Found]]) -> set[bytes | None]:
    return {found.entity for rows in tables.values() for found in rows.values()}


def apply_round(
    plan: Plan,
    workers: Sequence[Ends],
    ledger: Ledger,
    limit: int | None = None,
    cohorts: Collection[str] | None = None,
    *,
    outdated: Callable[[], bool] = lambda: False,
) -> Applied:
    """One look at the oldest reasons, applied by shard in parallel; what needs every shard comes last, alone.

    ``limit``: how many of them, a batch for each worker unless it is given. ``cohorts``: of these only. ``outdated``:
    whether the plan is no longer right; then nothing is done.
    """
    ends = workers[0]
    dirty = read_dirty(plan, ends, ledger, limit or BATCH * len(workers), cohorts)
    if dirty and outdated():  # asked after it was read which tables are closed: the end of a load tells it before
        return Applied()
    if dirty:
        check_coverage(plan, ends.origin, ends.owner, ledger)
        check_ledger(_target(ends), ledger)
    narrow: list[list[Dirty]] = [[] for _ in workers]
    total, into = Applied(), _destination(ends)
    for line in dirty:
        shards = plan.shards(line.table, line.key, line.entity, into)
        if len(shards) > 1:
            total.wide.append(line)
        else:
            narrow[min(shards) % len(workers)].append(line)
    busy = [(end, lines) for end, lines in zip(workers, narrow, strict=True) if lines]
    if len(busy) > 1:
        with ThreadPoolExecutor(len(busy)) as pool:
            for applied in pool.map(lambda work: apply_batch(plan, work[0], ledger, work[1]), busy):
                total.add(applied)
    else:
        for end, lines in busy:
            total.add(apply_batch(plan, end, ledger, lines))
    if total.wide:
        wide, total.wide = total.wide, []
        total.add(apply_batch(plan, ends, ledger, wide, every_shard=True))
    return total


def _destination(ends: Ends) -> Side:
    return other_side(ends.owner)


def _target(ends: Ends) -> Store:
    return ends.destination if ends.owner == "source" else ends.origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What an applier did in its time: changes made right, rejects, seconds of lag at the end and at worst."""

    applied: int = 0
    rejected: int = 0
    failures: int = 0
    lag: float | None = None
    worst_lag: float = 0.0


def follow(
    plan: Plan,
    workers: Sequence[Ends],
    ledger: Ledger,
    clock: Clock,
    *,
    seconds: float,
    until_idle: bool = False,
    progress: Callable[[Followed], None] = lambda report: None,
    pace: Callable[[int], None] = lambda rows: None,
    beside: Callable[[], object] = lambda: None,
    outdated: Callable[[], bool] = lambda: False,
) -> Followed:
    """Apply dirty keys until the time is up (or nothing is dirty), polling when idle, backing off after failures.

    Into the store that a cohort's fence opens to copiers: so after a flip the same applier keeps the way back open.
    ``pace``: called after each round with its changes; returns when the next may begin. ``beside``: what else is
    looked after between two rounds. ``outdated``: whether the plan is no longer right, which ends it at once.

    Raises CoverageError and other FatalErrors at once; TransientErrors only when the time is up.
    """
    ends = workers[0]
    back = [Ends(owner="target", origin=each.destination, destination=each.origin) for each in workers]
    assert isinstance(ends.origin, Fenced) and isinstance(ends.destination, Fenced)
    report = noted = Followed()
    pause, beat, end = POLL, 0.0, clock.monotonic() + seconds
    while True:
        try:
            beside()
            if outdated():
                _note(ledger, report, noted)
                return report
            paused = ledger.control().paused
            applied = Applied() if paused else apply_round(plan, workers, ledger, outdated=outdated)
            flipped = any(fence.writer == "copier" for fence in ends.origin.fences().values())
            if flipped and not paused:
                applied.add(apply_round(plan, back, ledger, outdated=outdated))
            busy = applied.forgotten + applied.woken > 0
            report = replace(
                report, applied=report.applied + applied.forgotten, rejected=report.rejected + applied.rejected
            )
            lag = ends.origin.lag()
            if flipped and (behind := ends.destination.lag()) is not None:
                lag = max(lag or 0.0, behind)
            report = replace(report, lag=lag, worst_lag=max(report.worst_lag, lag or 0.0))
            finished = not busy and ((until_idle and not paused) or clock.monotonic() + POLL >= end)
            if finished or clock.monotonic() - beat >= (BUSY_HEARTBEAT if busy else HEARTBEAT):
                beat = clock.monotonic()
                if not busy:
                    check_coverage(plan, ends.origin, ends.owner, ledger)
                check_ledger(_target(ends), ledger)
                noted = _note(ledger, report, noted)
                tell_target(_target(ends), ledger)
            if busy:
                progress(report)
                pace(applied.forgotten)
            pause = POLL
        except (TransientError, AmbiguousError):  # repeating is reading again: nothing was forgotten
            pause = min(2 * pause, LONGEST_PAUSE)
            report = replace(report, failures=report.failures + 1)
            if clock.monotonic() + pause >= end:
                raise
            clock.sleep(pause)
            continue
        if finished:
            return report
        if not busy:
            clock.sleep(POLL)
        if clock.monotonic() >= end:
            _note(ledger, report, noted)
            tell_target(_target(ends), ledger)
            return report


def _note(ledger: Ledger, report: Followed, noted: Followed) -> Followed:
    """Into the ledger: where the applier stands, and what it did since ``noted``."""
    ledger.note("applier", {"applied": report.applied, "lag": report.lag, "worst_lag": report.worst_lag})
    changes, rejects = report.applied - noted.applied, report.rejected - noted.rejected
    if changes or rejects:
        ledger.add_counts("applied", {"changes": changes, "rejects": rejects})
    return report
