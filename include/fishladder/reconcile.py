"""Reconciliation: enumerates both stores itself and believes neither the loader nor the applier (design §8).

A difference is only a candidate while traffic runs. The verdict is given under locks: with every shard held no
copier writes, with the owner's row held nobody changes it; so a key that differs then and is not dirty will stay
different for ever. Finding nothing is what proves: a pass that found (and so repaired) something is not clean.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from fishladder.apply import Dirty, Ends, apply_batch
from fishladder.cells import SHARDS, Cell, Row, row_digest, row_key
from fishladder.coverage import check_coverage
from fishladder.errors import InputError, StaleError, TransientError
from fishladder.ledger import CheckResult, DirtyKey, Ledger, Mismatch
from fishladder.plan import SIDES, Plan, PlanTable, Side, other_side
from fishladder.stores.base import Fence, Fenced, ForeignKey, Found, Relation, Store

VERDICT_KEYS = 200
"""Keys judged under one set of locks: small, because copiers and the owner's writers of these rows wait."""
TRIES = 3
CHUNKS_AT_ONCE = 5
"""Of the store's chunks in one range: rows are not kept, so only the age of what is read sets a limit."""
PARTITIONS = 64
ORPHANS = 1_000


Record = Callable[[Side, Sequence[Mismatch]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A chunk's outcome: how many keys were compared and which of them look different."""

    keys: int
    candidates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdict on candidates. ``dirty``: known to differ, not yet made right; ``rejected``: kept as rejects.

    ``elsewhere``: keys that differ, and whose copies do not go this way.
    """

    mismatches: tuple[Mismatch, ...] = ()
    dirty: tuple[Dirty, ...] = ()
    rejected: int = 0
    elsewhere: tuple[bytes, ...] = ()


def compare_chunk(table: PlanTable, source: Store, target: Store, lower: bytes | None, upper: bytes | None) -> Compared:
    """Read the same key range from both stores at once and compare the rows cell by cell.

    Rows pair up only where they are equal, so a store that did not keep to the order of keys would make
    candidates of what is equal, and never hide a difference.
    """
    keys, candidates = 0, list[bytes]()
    with source.read() as origin, target.read() as copy, ExitStack() as stack:
        ours = stack.enter_context(closing(origin.stream(table.source, lower, upper)))
        theirs = stack.enter_context(closing(copy.stream(table.target, lower, upper)))
        left, right = next(ours, []), next(theirs, [])
        while left and right:
            at = other = _equal_rows(left, right)
            keys += at
            while at < len(left) and other < len(right) and left[at] != right[other]:
                mine, yours = _place(table, left[at]), _place(table, right[other])
                candidates.append(row_key(left[at] if mine <= yours else right[other], table.source.key))
                at, other = at + (mine <= yours), other + (yours <= mine)
            left, right = left[at:] or next(ours, []), right[other:] or next(theirs, [])
        for rows in chain([left], ours, [right], theirs):
            candidates += (row_key(row, table.source.key) for row in rows)
    found = tuple(dict.fromkeys(candidates))
    return Compared(keys=keys + len(found), candidates=found)


def _equal_rows(ours: list[Row], theirs: list[Row]) -> int:
    """How many rows are equal before the first that is not. Lists are compared, for C does that, and halved."""
    if ours == theirs:
        return len(ours)
    equal, end = 0, min(len(ours), len(theirs))
    while equal < end:
        middle = (equal + end + 1) // 2
        if ours[equal:middle] == theirs[equal:middle]:
            equal = middle
        else:
            end = middle - 1
    return equal


def _place(table: PlanTable, row: Row) -> tuple[tuple[int, Cell], ...]:
    """Where a row stands among the others, as both stores order them (``PlanTable.alike``)."""
    return tuple(_rank(row[at], table.source.fields[at].type.kind) for at in table.source.key)


def _rank(cell: Cell, kind: str) -> tuple[int, Cell]:
    if kind in ("integer", "boolean") and cell is not None and cell.lstrip(b"-").isdigit():
        return int(cell), b""
    return 0, cell


def _unequal(ours: dict[bytes, bytes], theirs: dict[bytes, bytes]) -> list[bytes]:
    different = [key for key, row in ours.items() if theirs.get(key) != row]
    return different + [key for key in theirs if key not in ours]


def compare_partitions(table: PlanTable, source: Store, target: Store, chunk_rows: int) -> Iterator[Compared]:
    """The same where the two stores order keys differently: each is read in its own ranges, and (key, digest of the
    row) meet in hash partitions on disk, so that memory holds one partition at a time."""
    with tempfile.TemporaryDirectory(prefix="fishladder-") as folder:
        for side, store, relation in (("source", source, table.source), ("target", target, table.target)):
            _spill(Path(folder), side, store, relation, chunk_rows)
        for number in range(PARTITIONS):
            ours, theirs = (dict(_spilled(Path(folder) / f"{side}-{number}")) for side in ("source", "target"))
            yield Compared(keys=len(ours.keys() | theirs.keys()), candidates=tuple(_unequal(ours, theirs)))


def _spill(folder: Path, side: str, store: Store, relation: Relation, chunk_rows: int) -> None:
    ends = store.chunk_ends(relation, chunk_rows)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{side}-{number}").open("wb")) for number in range(PARTITIONS)]
        for lower, upper in zip([None, *ends], [*ends, None], strict=True):
            with store.read() as reader:
                for row in chain.from_iterable(reader.stream(relation, lower, upper)):
                    key = row_key(row, relation.key)
                    digest = row_digest((key,))  # spreads keys evenly, whatever they are
                    files[digest[0] % PARTITIONS].write(len(key).to_bytes(4) + key + row_digest(row))


def _spilled(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb") as file:
        while head := file.read(4):
            key = file.read(int.from_bytes(head))
            yield key, file.read(16)


def judge(
    plan: Plan,
    table: PlanTable,
    ends: Ends,
    ledger: Ledger,
    keys: Sequence[bytes],
    record: Record,
) -> Judged:
    """The verdict on these keys, under every shard's lock, the owner's lock on their rows, and the fences' own.

    Only on those whose cohort's copies go this way, as the fence says. Mismatches are given to ``record`` under the
    same locks, before the applier can write a row of theirs. Raises StaleError when the table is being loaded again.
    """
    owner = table.at(ends.owner)
    other = table.at(other_side(ends.owner))
    with ExitStack() as opened:
        # Both ways in the same order: of two stores that let one writer in, two verdicts would hold one each.
        transactions = {side: opened.enter_context(ends.at(side).begin()) for side in reversed(SIDES)}
        hold, copy = transactions[ends.owner], transactions[other_side(ends.owner)]
        state = transactions["target"].lock_load(table.name)
        if state is None or state.open:
            raise StaleError(f"{table.name}: it was restarted while this pass was looking at it; reconcile it again")
        copy.lock_shards(range(SHARDS))
        fences = copy.lock_fences(None)
        ours = hold.rows_by_key(owner, keys, lock=True)
        theirs = copy.rows_by_key(other, keys)
        different = [key for key in keys if _row(ours, key) != _row(theirs, key)]
        entities = {key: found.entity for key in different if (found := ours.get(key) or theirs.get(key))}
        # Only one store has it, and its parents are gone there: the entries about it say whose it was.
        lost = [key for key in different if entities[key] is None and not (key in ours and key in theirs)]
        for store in (hold, copy) if lost and not table.shared else ():
            entities |= {entry.key: entry.entity for entry in store.entries_of(table.name, lost) if entry.entity}
        known = [entity for entity in set(entities.values()) if entity is not None]
        homes = copy.homes(known) | hold.homes(known)  # one that was born a moment ago is only in its owner yet
        writers = {key: _writer(fences, table.cohort(entities[key], homes)) for key in different}
        different, elsewhere = (
            [key for key in different if writers[key] == "copier"],
            [key for key in different if writers[key] not in ("copier", "free")],
        )
        entries = hold.entries_of(table.name, different)
        dirty = [Dirty(table=e.table, key=e.key, entity=e.entity, cohort=e.cohort, journal=e.id) for e in entries]
        dirty += [
            Dirty(table=line.table, key=line.key, entity=line.entity, cohort=line.cohort or "", ledger=line.id)
            for line in ledger.dirty_of(table.name, different)
        ]
        doubted = {line.key for line in dirty}
        rejected = ledger.rejected_keys(table.name, different) - doubted
        wrong = [key for key in different if key not in doubted and key not in rejected]
        mismatches = tuple(
            Mismatch(
                table=table.name,
                key=key,
                entity=entities[key],
                cohort=table.cohort(entities[key], homes),
                kind="missing" if key not in theirs else "extra" if key not in ours else "differs",
            )
            for key in wrong
        )
        if mismatches:
            record(ends.owner, mismatches)
    return Judged(mismatches=mismatches, dirty=tuple(dirty), rejected=len(rejected), elsewhere=tuple(sorted(elsewhere)))


def _writer(fences: Mapping[str, Fence], cohort: str) -> str:
    return fences[cohort].writer if cohort in fences else "nobody"


def _row(found: dict[bytes, Found], key: bytes) -> Row | None:
    return found[key].row if key in found else None


def _patiently_judged(
    plan: Plan, table: PlanTable, ends: Ends, ledger: Ledger, keys: Sequence[bytes], record: Record
) -> Judged:
    """A deadlock with the owner's writers makes the verdict the victim, for it has written nothing: try again."""
    told = False

    def tell(owner: Side, found: Sequence[Mismatch]) -> None:
        nonlocal told
        told = True  # in doubt, too: what is recorded would be no mismatch any more, but a doubt
        record(owner, found)

    for _ in range(TRIES):
        try:
            return judge(plan, table, ends, ledger, keys, tell)
        except TransientError:
            if told:
                raise
    return judge(plan, table, ends, ledger, keys, tell)


def settle(
    plan: Plan, table: PlanTable, ends: Ends, ledger: Ledger, candidates: Iterable[bytes], record: Record
) -> tuple[Judged, int]:
    """Judge candidates; what is dirty is applied and judged again. Returns the verdict and how many stayed open.

    ``ends`` lead to the target; keys of cohorts that the target owns are judged the other way round. ``record`` takes
    mismatches as they are found: a pass that dies later has still found them.
    """
    back = Ends(owner="target", origin=ends.destination, destination=ends.origin)
    mismatches: list[Mismatch] = []
    rejected = deferred = 0
    wanted = list(candidates)
    for start in range(0, len(wanted), VERDICT_KEYS):
        keys: Sequence[bytes] = wanted[start : start + VERDICT_KEYS]
        for way in (ends, back):
            keys, judged, hot = _settle_one_way(plan, table, way, ledger, keys, record)
            mismatches += judged.mismatches
            rejected += judged.rejected
            deferred += hot
            if not keys:
                break
        deferred += len(keys)  # nobody's at this moment: a flip is between two steps
    return Judged(mismatches=tuple(mismatches), rejected=rejected), deferred


def _settle_one_way(
    plan: Plan, table: PlanTable, ends: Ends, ledger: Ledger, keys: Sequence[bytes], record: Record
) -> tuple[Sequence[bytes], Judged, int]:
    """The keys whose copies do not go this way, the verdict on the others, and how many of them stayed dirty."""
    mismatches: list[Mismatch] = []
    elsewhere: list[bytes] = []
    rejected = 0
    for _ in range(TRIES):
        judged = _patiently_judged(plan, table, ends, ledger, keys, record)
        mismatches += judged.mismatches
        rejected += judged.rejected
        elsewhere += judged.elsewhere
        keys = sorted({line.key for line in judged.dirty})
        if not keys or ledger.control().paused:
            break
        apply_batch(plan, ends, ledger, judged.dirty, every_shard=True)
    return elsewhere, Judged(mismatches=tuple(mismatches), rejected=rejected), len(keys)


def reconcile_table(
    plan: Plan,
    table: PlanTable,
    ends: Ends,
    ledger: Ledger,
    *,
    chunk_rows: int | None = None,
    progress: Callable[[int, int], None] = lambda compared, candidates: None,
) -> CheckResult:
    """One pass over a table, recorded. Clean only if nothing was found, nothing deferred and coverage never changed.

    Raises InputError while the table is being loaded, CoverageError when changes may have gone unrecorded.
    """
    assert isinstance(ends.destination, Fenced) and ends.owner == "source"
    _check_closed(table, ends.destination)
    before = _coverage(plan, ends, ledger)
    check = ledger.begin_check(table.name, before)
    # Looked at again: a restart that began before this pass did has not voided it, one that begins later does.
    _check_closed(table, ends.destination)
    compared = rejected = deferred = 0
    kinds, cohorts, entities = Counter[str](), Counter[str](), set[bytes]()
    for chunk in _chunks(table, ends, ledger, chunk_rows):
        compared += chunk.keys
        judged, hot = settle(plan, table, ends, ledger, chunk.candidates, partial(ledger.record_mismatches, check))
        kinds.update(mismatch.kind for mismatch in judged.mismatches)
        cohorts.update(mismatch.cohort for mismatch in judged.mismatches)
        if table.rewrite == "entity":
            entities |= {mismatch.entity for mismatch in judged.mismatches if mismatch.entity is not None}
        rejected += judged.rejected
        deferred += hot
        progress(compared, kinds.total())
    result = CheckResult(
        compared=compared,
        missing=kinds["missing"],
        extra=kinds["extra"],
        differs=kinds["differs"],
        deferred=deferred,
        rejected=rejected,
        orphans=sum(count_orphans(plan, table, ends, ledger, fk) for fk in table.target.foreign_keys),
        duplicates=_duplicates(table, ends),
        coverage=_coverage(plan, ends, ledger),
        by_cohort=dict(cohorts),
    )
    mark_entities(plan, ends, ledger, entities)
    ledger.finish_check(check, result)
    return result


def _check_closed(table: PlanTable, destination: Fenced) -> None:
    state = destination.load_states().get(table.name)
    if state is None or state.open:
        raise InputError(f"{table.name}: its load is not closed yet; a pass would only find what is still to come")


def _chunks(table: PlanTable, ends: Ends, ledger: Ledger, chunk_rows: int | None) -> Iterator[Compared]:
    rows = chunk_rows or CHUNKS_AT_ONCE * ends.origin.chunk_rows
    if not table.alike:
        yield from compare_partitions(table, ends.origin, ends.destination, rows)
        return
    bounds = _bounds(table, ends, ledger, rows)
    for lower, upper in zip([None, *bounds], [*bounds, None], strict=True):
        yield compare_chunk(table, ends.origin, ends.destination, lower, upper)


def _bounds(table: PlanTable, ends: Ends, ledger: Ledger, rows: int) -> list[bytes]:
    """Where the load was cut, which has counted the rows once; what came above that since is cut now.

    No key is left out, wherever the ends are: the first range is open below, the last above, and each begins where
    one ended.
    """
    bounds, held = list[bytes](), 0
    for chunk in ledger.chunks(table.name):
        if chunk.rows > rows:  # finer ranges are asked for than the load had
            return ends.origin.chunk_ends(table.source, rows)
        held += chunk.rows
        if held >= rows and chunk.upper is not None:
            bounds.append(chunk.upper)
            held = 0
    return bounds + ends.origin.chunk_ends(table.source, rows, bounds[-1] if bounds else None)


def _coverage(plan: Plan, ends: Ends, ledger: Ledger) -> str:
    return check_coverage(plan, ends.origin, "source", ledger) + check_coverage(
        plan, ends.destination, "target", ledger
    )


def _duplicates(table: PlanTable, ends: Ends) -> int:
    """Unique keys that only one of the stores declares, counted in the other, which does not enforce them."""
    count = 0
    for relation, other, store in (
        (table.source, table.target, ends.origin),
        (table.target, table.source, ends.destination),
    ):
        assert isinstance(store, Fenced)
        lacking = {tuple(sorted(u)) for u in other.uniques} - {tuple(sorted(u)) for u in relation.uniques}
        count += sum(store.duplicates(relation, unique, ORPHANS) for unique in lacking)
    return count


def count_orphans(plan: Plan, table: PlanTable, ends: Ends, ledger: Ledger, fk: ForeignKey) -> int:
    """Target rows whose parent is missing, beyond those that the source has too; at most ``ORPHANS`` are counted.

    A child may be there a moment before its parent: only what is found three times, never dirty, counts.
    """
    assert isinstance(ends.origin, Fenced) and isinstance(ends.destination, Fenced)
    parent = next((other for other in plan.tables if other.target.name == fk.parent), None)
    lost = {(orphan.key, orphan.parent_key) for orphan in ends.destination.orphans(table.target, fk, ORPHANS)}
    for _ in range(TRIES - 1):
        if not lost:
            return 0
        dirty = _dirty_keys(ends, ledger, table.name, [key for key, _ in lost])
        above = _dirty_keys(ends, ledger, parent.name, [key for _, key in lost]) if parent else set()
        lost = {pair for pair in lost if pair[0] not in dirty and pair[1] not in above}
        again = ends.destination.orphans(table.target, fk, ORPHANS)
        lost &= {(orphan.key, orphan.parent_key) for orphan in again}
    for mirror in table.source.foreign_keys:
        if _same_columns(table, mirror, fk):
            lost -= {(orphan.key, orphan.parent_key) for orphan in ends.origin.orphans(table.source, mirror, ORPHANS)}
    return len(lost)


def _same_columns(table: PlanTable, source: ForeignKey, target: ForeignKey) -> bool:
    names = {ours.column: theirs.column for ours, theirs in zip(table.source.fields, table.target.fields, strict=True)}
    return tuple(names[column] for column in source.columns) == target.columns


def _dirty_keys(ends: Ends, ledger: Ledger, table: str, keys: Sequence[bytes]) -> set[bytes]:
    with ends.origin.read() as origin, ends.destination.read() as destination:
        journaled = {entry.key for store in (origin, destination) for entry in store.entries_of(table, keys)}
    return journaled | ledger.dirty_keys(table, keys) | ledger.rejected_keys(table, keys)


def mark_entities(
    plan: Plan, ends: Ends, ledger: Ledger, entities: Iterable[bytes], *, actor: str | None = None
) -> int:
    """Mark every row of these entities dirty, as either store knows them. Returns how many keys.

    ``actor``: the person who asked for it.
    """
    keys: set[DirtyKey] = set()
    for entity in entities:
        for table in plan.tables:
            if table.shared:
                continue
            for store, relation in ((ends.origin, table.source), (ends.destination, table.target)):
                with store.read() as reader:
                    found = reader.keys_of_entity(relation, entity)
                    cohort = table.cohort(entity, reader.homes([entity]))
                keys |= {
                    DirtyKey(table=table.name, key=key, entity=entity, cohort=cohort, origin="rewrite") for key in found
                }
    ledger.mark_dirty(sorted(keys, key=lambda dirty: (dirty.table, dirty.key)), actor=actor)
    return len(keys)
