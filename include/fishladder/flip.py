"""The flip: a state machine in the ledger that moves one cohort from one store to the other (design §10).

``Cutover.advance`` takes one step of one attempt, from the ledger alone. Each step may be repeated, may be late, and
may be taken by two at once: orders to a fence only ever raise its epoch and are read back, and the ledger compares
(attempt, epoch, step) before it sets anything. A rollback is the same path with the stores swapped, an abort the
same path to where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fishladder import apply, reconcile
from fishladder.apply import Dirty, Ends
from fishladder.cells import HOMELESS, NO_HOME, SHARDS, SHARED, Row
from fishladder.clock import Clock
from fishladder.coverage import check_coverage
from fishladder.errors import AmbiguousError, FishladderError, InputError, LedgerError, StaleError, TransientError
from fishladder.fence import set_fence
from fishladder.ledger import BEFORE_SWITCH, Attempt, Ledger
from fishladder.plan import Plan, PlanTable, Side, other_side
from fishladder.reports import run_cutover_reports
from fishladder.spec import Migration
from fishladder.spec_parts import OTHERS
from fishladder.stores.base import Fence, Fenced, Found, Reader, Store, Writer

POLL = 0.05
"""Seconds between looks at what others have to finish."""
TRIES = 3
STRAYS = 100_000
"""So much at most may wait to be copied of all cohorts when one is drained: who is behind by more waits."""
SLICE, SLICES = 500, 200
"""Of the keys that were copied during a pass so many are compared while copiers wait, and so often."""
STALLED = 0.5
"""Seconds for which an attempt stands still before somebody besides its task takes it further."""
STEP_PATIENCE = 10.0
"""Seconds that one step may wait for a fence; then the attempt is looked at again."""

Gatekeeper = Callable[[Attempt, bool], Sequence[str]]
"""What keeps an attempt from going on, which is fenced already or not."""
Replay = Callable[[str], object]
"""Replays what is queued of a cohort into its owner, as far as it can."""


def wave_needs(spec: Migration, cohort: str, kind: str, cohorts: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The stages that other cohorts must have reached before this one may go.

    Waves go in their order; shared tables are flipped last and rolled back first. They are completed last, too: once
    they are, nobody can go back.
    """
    moved = ("live", "complete")
    others = [other for other in sorted(cohorts) if other not in (cohort, NO_HOME)]
    if kind == "complete" and cohort == SHARED:
        return dict.fromkeys(others, ("complete",))
    if kind == "flip" and cohort == SHARED:
        return dict.fromkeys(others, moved)
    if kind == "flip":
        return dict.fromkeys((other for other in others if _wave(spec, other) < _wave(spec, cohort)), moved)
    if kind == "rollback" and cohort != SHARED and SHARED in cohorts:
        return {SHARED: ("off", "shadow")}
    return {}


def check_ids(spec: Migration, plan: Plan, source: Store, target: Store) -> None:
    """Raises InputError where both stores would generate the same ids once a cohort has moved."""
    assert isinstance(source, Fenced) and isinstance(target, Fenced)
    apart = spec.ids is not None and (spec.ids.interleaved or not source.ids_follow_rows)
    for table in plan.tables:
        if apart or table.internal or source.generated_from(table.source) is None:
            continue
        if target.generated_from(table.target) is not None:
            raise InputError(
                f"{table.name}: both stores generate its ids, and after a flip would generate the same ones: keep them"
                " apart with ids: {interleaved: true}, run prepare, and see preflight"
            )


def check_homeless(source: Store, target: Store) -> Fence:
    """The source's fence of rows without a home. Raises InputError where a store was prepared before there was one."""
    assert isinstance(source, Fenced) and isinstance(target, Fenced)
    ours, theirs = source.fences(), target.fences()
    if HOMELESS not in ours or HOMELESS not in theirs:
        raise InputError(f"there is no fence ({HOMELESS}) for rows without a home yet: run prepare, then flip")
    return ours[HOMELESS]


def check_loads(plan: Plan, target: Store) -> None:
    """Raises InputError while a table is being loaded: its rows cannot be compared, and nothing of it is copied."""
    assert isinstance(target, Fenced)
    states = target.load_states()
    loading = [table.name for table in plan.tables if table.name not in states or states[table.name].open]
    if loading:
        raise InputError(
            f"nothing can move while {', '.join(loading)} is being loaded: see that the load ends, then ask again"
        )


def check_newest(ledger: Ledger, stores: Mapping[Side, Store], attempt: Attempt) -> None:
    """Raises LedgerError where a store knows a newer epoch of the cohort than this ledger, which was restored then.

    Before an abort: its epoch would be the one that the stores have, and nothing would look restored any more. A store
    that does not answer is not asked: it must not keep customers waiting at the other one. Raises StaleError when
    somebody else has taken the attempt further.
    """
    for side, store in stores.items():
        assert isinstance(store, Fenced)
        with suppress(TransientError, AmbiguousError):
            found = store.fences().get(attempt.cohort)
            if found is not None and found.epoch > attempt.epoch:
                raise _ahead(ledger, attempt, side, found)


def _wave(spec: Migration, cohort: str) -> int:
    waves = spec.cohort.waves
    named = (number for number, wave in enumerate(waves) if cohort in wave)
    rest = (number for number, wave in enumerate(waves) if OTHERS in wave)
    return len(waves) if cohort == SHARED else next(named, next(rest, len(waves)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutover:
    """What moving a cohort needs. ``stores`` are the copier's connections, ``runs`` the digests of what runs."""

    spec: Migration
    plan: Plan
    stores: Mapping[Side, Store]
    ledger: Ledger
    clock: Clock
    replay: Replay
    runs: Mapping[str, str] = field(default_factory=dict)
    gates: Gatekeeper = lambda attempt, fenced: ()
    say: Callable[[str], None] = lambda line: None

    def verify(self, attempt: Attempt) -> bool:
        """A full pass over every table while traffic is on; whether nothing of the cohort was found.

        Keys that are copied from here on are noted as touched; those of them that are compared again in the end, and
        are right, need not be compared under the fence.
        """
        self._forget_touched()
        coverage, loads = self._coverage(), self._loads()  # before the passes: what changes while they run shows
        wrong = [line for table in self.plan.tables if (line := self._pass(table, attempt.cohort))]
        if rejects := self._rejects(attempt):
            wrong.append(f"{rejects} open rejects")
        if wrong:
            self.say(f"{attempt.cohort}: {'; '.join(wrong)}; nothing is fenced")
        else:
            self._settle_touched(attempt)
            self.ledger.prove(attempt, "verified", {"coverage": coverage, "loads": loads})
        return not wrong

    def _settle_touched(self, attempt: Attempt) -> None:
        """Compare what was copied during the pass, a slice at a time, until little is left for the fence.

        Copiers are held back for each slice: so what is forgotten here is as it was compared, or will be noted again.
        """
        ends, number = self._ends(attempt.loser), str(attempt.id)
        for _ in range(SLICES):
            with ends.destination.begin() as copy, ends.origin.read() as origin:
                copy.lock_shards(range(SHARDS))
                keys = _by_table(copy.touched(number)[:SLICE])
                wrong = self._differing(ends, origin, copy, keys)
                right = {name: sorted({*some} - {*wrong.get(name, ())}) for name, some in keys.items()}
                copy.forget_touched(number, right)
                copy.commit()
            if sum(map(len, keys.values())) < SLICE:
                return

    def _differing(
        self, ends: Ends, origin: Reader, destination: Reader, keys: Mapping[str, list[bytes]]
    ) -> dict[str, list[bytes]]:
        """Of these keys by table, those whose rows are not the same on both sides."""
        found = {}
        for name, some in keys.items():
            table = self.plan.table(name)
            ours = origin.rows_by_key(table.at(ends.owner), some)
            theirs = destination.rows_by_key(table.at(other_side(ends.owner)), some)
            found[name] = [key for key in some if _cells(ours, key) != _cells(theirs, key)]
        return {name: some for name, some in found.items() if some}

    def _pass(self, table: PlanTable, cohort: str) -> str | None:
        """What a pass over a table says against the cohort. One that met keys too busy to judge is made again."""
        for _ in range(TRIES):
            found = reconcile.reconcile_table(self.plan, table, self._ends("source"), self.ledger)
            counts = {
                "mismatches": found.by_cohort.get(cohort, 0),
                "orphans": found.orphans,
                "duplicates": found.duplicates,
                "keys too busy to judge": found.deferred,
            }
            said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            if not found.deferred:
                break
        return f"{table.name}: {said}" if said else None

    def run(self, number: int) -> Attempt:
        """Take an attempt to its end, however often others take steps of it meanwhile.

        Raises LedgerError when it cannot go on: a store is ahead of the ledger.
        """
        attempt = self.ledger.attempt(number)
        while attempt.outcome is None:
            before = attempt
            attempt = self.advance(number)
            if attempt.step != before.step:
                self.say(f"{attempt.cohort}: {before.step} is done")
            elif attempt.outcome is None:
                self.clock.sleep(POLL)
        return attempt

    def advance(self, number: int) -> Attempt:
        """Take one step, or abort what can no longer be in time. Returns the attempt as it then is.

        Raises LedgerError when a store's fence is ahead of the ledger, TransientError past the switch.
        """
        attempt = self.ledger.attempt(number)
        if attempt.outcome is not None:
            return attempt
        abortable = attempt.step in BEFORE_SWITCH
        if abortable and attempt.fenced_at and self._late(attempt):
            return self._abort(attempt, f"not ready within {attempt.deadline} s of fencing")
        try:
            return self._step(attempt)
        except StaleError:
            return self.ledger.attempt(number)
        except (TransientError, AmbiguousError) as error:
            self.say(f"{attempt.cohort}: {attempt.step}: {error}")
            return self.ledger.attempt(number)
        except FishladderError as error:
            if not abortable or isinstance(error, _Frozen):
                raise
            return self._abort(attempt, str(error))

    def _late(self, attempt: Attempt) -> bool:
        assert attempt.fenced_at is not None
        return (self.clock.now() - attempt.fenced_at).total_seconds() > attempt.deadline

    def _abort(self, attempt: Attempt, why: str) -> Attempt:
        try:
            check_newest(self.ledger, self.stores, attempt)
            aborted = self.ledger.abort(attempt, why)
        except StaleError:
            return self.ledger.attempt(attempt.id)
        self.say(f"{attempt.cohort}: aborted: {why}")
        return aborted

    # The steps

    def _step(self, attempt: Attempt) -> Attempt:
        match attempt.step:
            case "verify":
                self._pass_gates(attempt, fenced=False)
                go = self.ledger.complete_attempt if attempt.kind == "complete" else self.ledger.fence_attempt
                return go(attempt, self.runs)
            case "fence":
                if attempt.kind == "flip":
                    self._close_homeless(attempt)
                self._order(attempt, attempt.loser, "nobody")
                return self.ledger.queue_attempt(attempt)
            case "drain":
                return self.ledger.drained(attempt) if self._drained(attempt) else attempt
            case "compare":
                self._compare(attempt)
                self._pass_gates(attempt, fenced=True)
                self._check_fenced(attempt)
                return self.ledger.switch(attempt, self.runs)
            case "open":
                self._order(attempt, self.ledger.route(attempt.cohort).owner, "application")
                return self.ledger.advance(attempt, "close")
            case "close":
                self._order(attempt, other_side(self.ledger.route(attempt.cohort).owner), "copier")
                return self.ledger.advance(attempt, "replay")
            case "replay":
                self.replay(attempt.cohort)
                return self.ledger.end_replay(attempt) or attempt
            case "free":
                self._order(attempt, "target", "free")
                return self.ledger.advance(attempt, "shut")
            case "shut":
                self._order(attempt, "source", "nobody")
                return self.ledger.advance(attempt, "forget")
            case "forget":
                if self._forget_some(attempt):
                    return attempt
                with self.stores["target"].begin() as there:
                    there.forget_cohort(attempt.cohort)
                    there.commit()
                return self.ledger.end_attempt(attempt)
        raise AssertionError(attempt.step)

    def _pass_gates(self, attempt: Attempt, *, fenced: bool) -> None:
        """They were open when somebody approved; are they still? Raises LedgerError."""
        if problems := self.gates(attempt, fenced):
            raise LedgerError(f"{attempt.cohort}: its gates are closed: {'; '.join(problems)}")

    def _order(self, attempt: Attempt, side: Side, writer: Writer) -> None:
        """Set a fence, and believe only what is read back."""
        wanted = Fence(writer=writer, epoch=attempt.epoch)
        patience, store = self._patience(attempt), self.stores[side]
        found = set_fence(store, self.clock, attempt.cohort, writer, wanted.epoch, deadline=patience, head=attempt.head)
        if found == wanted:
            return
        raise _ahead(self.ledger, attempt, side, found)

    def _check_fenced(self, attempt: Attempt) -> None:
        """Whether the fence is still as it was raised. Raises LedgerError."""
        store = self.stores[attempt.loser]
        assert isinstance(store, Fenced)
        found = store.fences().get(attempt.cohort)
        if found != Fence(writer="nobody", epoch=attempt.epoch):
            says = "is gone" if found is None else f"says {found.writer} in epoch {found.epoch}"
            raise LedgerError(
                f"{attempt.cohort}: the {attempt.loser}'s fence {says}, and was raised for nobody in epoch"
                f" {attempt.epoch}: the {attempt.loser} has lost what it had committed, or somebody has written there"
            )

    def _close_homeless(self, attempt: Attempt) -> None:
        """From the first flip on, and for ever: who has no home in the source may be born in the target by now."""
        source = self.stores["source"]
        found = check_homeless(source, self.stores["target"])
        if found.writer != "nobody":
            found = set_fence(
                source,
                self.clock,
                HOMELESS,
                "nobody",
                found.epoch + 1,
                deadline=self._patience(attempt),
                head=attempt.head,
            )
        if found.writer != "nobody":
            raise LedgerError(f"{attempt.cohort}: the source's fence of {HOMELESS} still says {found.writer}")

    def _patience(self, attempt: Attempt) -> float:
        if attempt.step not in BEFORE_SWITCH or attempt.fenced_at is None:
            return STEP_PATIENCE
        left = attempt.deadline - (self.clock.now() - attempt.fenced_at).total_seconds()
        return min(STEP_PATIENCE, max(0.0, left))

    def _coverage(self) -> str:
        """Raises CoverageError when changes may have gone unrecorded."""
        sides: tuple[Side, Side] = ("source", "target")
        return "".join(check_coverage(self.plan, self.stores[side], side, self.ledger) for side in sides)

    def _loads(self) -> dict[str, int | None]:
        """The generation of each table's load in the target, None while it is open."""
        target = self.stores["target"]
        assert isinstance(target, Fenced)
        return {name: None if state.open else state.generation for name, state in target.load_states().items()}

    def _ends(self, owner: Side) -> Ends:
        return Ends(owner=owner, origin=self.stores[owner], destination=self.stores[other_side(owner)])

    def _drained(self, attempt: Attempt) -> bool:
        """Apply what is dirty of the cohort; whether nothing is any more."""
        ends, cohort = self._ends(attempt.loser), attempt.cohort
        apply.apply_round(self.plan, [ends], self.ledger, cohorts=[cohort, HOMELESS])
        strays = self._strays(ends, cohort)
        for start in range(0, len(strays), apply.BATCH):
            apply.apply_batch(self.plan, ends, self.ledger, strays[start : start + apply.BATCH], every_shard=True)
        if rejects := self._rejects(attempt):
            raise LedgerError(f"{cohort}: {rejects} of its rows are rejected; mend and retry them before the flip")
        with ends.origin.read() as origin:
            left = origin.count_entries(cohort)
        return not left and not strays and not self.ledger.count_dirty(cohort)

    def _forget_some(self, attempt: Attempt) -> bool:
        """Of what is journaled under a complete cohort: apply what is of rows that are another's by now, or of copies
        that have lost their parent, and forget the rest, once no such is left. Whether there was more than that.

        A row's children are another's only when its copy is, so that nothing is forgotten in the same look.
        """
        ends = self._ends("target")
        with ends.origin.read() as origin:
            entries = origin.entries([table.name for table in self.plan.tables], STRAYS, [attempt.cohort])
        dirty = [Dirty(e.table, e.key, e.entity, e.cohort, journal=e.id) for e in entries]
        theirs = self._whose(ends, {(line.table, line.key) for line in dirty})
        found = [line for line in dirty if theirs[line.table, line.key] != {attempt.cohort}]
        for start in range(0, len(found), apply.BATCH):
            apply.apply_batch(self.plan, ends, self.ledger, found[start : start + apply.BATCH], every_shard=True)
        if not found:
            with ends.origin.begin() as there:
                there.forget([entry.id for entry in entries])
                there.commit()
        return bool(found) or len(entries) == STRAYS

    def _strays(self, ends: Ends, cohort: str) -> list[Dirty]:
        """What is dirty under another cohort, of rows that are this one's by now.

        A row that goes with its parent to another entity is journaled under the one it came from. A copy that has lost
        its parent is every cohort's, for nobody knows whose the next parent will be; so is a row that is in neither
        store, which may come again as anybody's. Before a flip all is that has no home: it may get one in the target.
        """
        every = [table.name for table in self.plan.tables]
        children = [table.name for table in self.plan.tables if table.source.has_parent]
        mine = {cohort, None, HOMELESS} if ends.owner == "source" else {cohort, None}
        with ends.origin.read() as origin:
            entries = origin.entries(children, STRAYS) if children else []
            entries += origin.entries(every, STRAYS, [HOMELESS])
        doubts = self.ledger.dirty(STRAYS, tables=children) if children else []
        doubts += self.ledger.dirty(STRAYS, cohorts=[HOMELESS, NO_HOME])
        if max(len(entries), len(doubts)) >= STRAYS:
            raise LedgerError(f"{STRAYS} rows and more wait to be copied: the applier is too far behind for a flip")
        dirty = {Dirty(e.table, e.key, e.entity, e.cohort, journal=e.id) for e in entries if e.cohort != cohort}
        dirty |= {Dirty(d.table, d.key, d.entity, d.cohort, ledger=d.id) for d in doubts if d.cohort != cohort}
        theirs = self._whose(ends, {(line.table, line.key) for line in dirty})
        found = [line for line in dirty if theirs[line.table, line.key] & mine]
        return sorted(found, key=lambda line: (line.journal or 0, line.ledger or 0))

    def _rejects(self, attempt: Attempt) -> int:
        """Open rejects of the cohort, also of rows that are its own by now, or in the copy still."""
        others = [reject for reject in self.ledger.open_rejects(limit=STRAYS) if reject.cohort != attempt.cohort]
        whose = self._whose(self._ends(attempt.loser), {(reject.table, reject.key) for reject in others})
        return self.ledger.count_rejects(cohort=attempt.cohort) + sum(attempt.cohort in now for now in whose.values())

    def _whose(self, ends: Ends, keys: Collection[tuple[str, bytes]]) -> dict[tuple[str, bytes], set[str | None]]:
        """The cohorts of these rows in both stores; None: a copy without the parent that it had, or no row at all."""
        found: dict[tuple[str, bytes], set[str | None]] = {key: set() for key in keys}
        for name, some in _by_table(sorted(keys)).items():
            table = self.plan.table(name)
            with ends.origin.read() as origin, ends.destination.read() as destination:
                ours = origin.rows_by_key(table.at(ends.owner), some)
                theirs = destination.rows_by_key(table.at(other_side(ends.owner)), some)
                entities = {row.entity for row in (*ours.values(), *theirs.values())} - {None}
                homes = destination.homes(entities) | origin.homes(entities)  # type: ignore[arg-type]
            for rows in (ours, theirs):
                for key, row in rows.items():
                    lost = row.entity is None and table.source.has_parent and key not in ours
                    found[name, key].add(None if lost else table.cohort(row.entity, homes))
        return {key: cohorts or {None} for key, cohorts in found.items()}

    def _compare(self, attempt: Attempt) -> None:
        """Exactly the keys touched since the pass began, and the reports for this moment. Raises LedgerError."""
        verified = self.ledger.proof(attempt.id, "verified")
        if verified is None or verified["coverage"] != self._coverage():
            raise LedgerError(f"{attempt.cohort}: triggers were installed again since its rows were compared")
        if verified["loads"] != self._loads():
            raise LedgerError(f"{attempt.cohort}: a table was loaded again since its rows were compared")
        ends = self._ends(attempt.loser)
        with ends.destination.read() as there, ends.origin.read() as here:
            keys = _by_table(there.touched(str(attempt.id)))
            for name, wrong in self._differing(ends, here, there, keys).items():
                raise LedgerError(f"{attempt.cohort}: {len(wrong)} rows of {name} differ under the fence")
        unequal = [
            f"{result.name}: {difference}"
            for result in run_cutover_reports(self.spec, self.stores, cohort=attempt.cohort, now=self.clock.now())
            for difference in result.differences()
        ]
        if unequal:
            raise LedgerError(f"{attempt.cohort}: reports differ under the fence: {'; '.join(unequal)}")
        self.ledger.prove(attempt, "compared", {"touched": {name: len(some) for name, some in keys.items()}})

    def _forget_touched(self) -> None:
        """What was noted for attempts that are over, also where somebody died before this."""
        for store in self.stores.values():
            with store.read() as reader:
                noted = reader.touching()
            over = noted - {str(attempt.id) for attempt in self.ledger.attempts(only_open=True)}
            with store.begin() as transaction:
                for number in over:
                    transaction.forget_touched(number)
                transaction.commit()


class Stalled:
    """For who looks again and again: the attempts that have stood still, so that their task may have died.

    A step that two take at once is safe, but each holds the other up: they drain, and replay, the same.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._seen: dict[int, tuple[object, float]] = {}
        """How each attempt stood, and since when nobody else has taken it further."""

    def has(self, attempt: Attempt) -> bool:
        standing, now = self._standing(attempt), self._clock.monotonic()
        known, since = self._seen.get(attempt.id, (None, now))
        if known != standing:
            since = now
            self._seen[attempt.id] = (standing, now)
        return now - since >= STALLED

    def moved(self, attempt: Attempt) -> None:
        """Who asked has just taken it here, and may go on unless somebody else does."""
        self._seen[attempt.id] = (self._standing(attempt), self._seen[attempt.id][1])

    def _standing(self, attempt: Attempt) -> object:
        waiting = self._ledger.next_queued(attempt.cohort, 1) if attempt.step == "replay" else []
        return attempt.step, attempt.epoch, [queued.id for queued in waiting]


def _by_table(noted: Sequence[tuple[str, bytes]]) -> dict[str, list[bytes]]:
    keys: dict[str, list[bytes]] = {}
    for name, key in noted:
        keys.setdefault(name, []).append(key)
    return keys


def _cells(found: Mapping[bytes, Found], key: bytes) -> Row | None:
    return found[key].row if key in found else None


class _Frozen(LedgerError):
    """Neither forward nor back: what the stores say and what the ledger says cannot both be true."""


def _ahead(ledger: Ledger, attempt: Attempt, side: Side, found: Fence) -> FishladderError:
    """What it means that a fence is not of the epoch in which its caller believes the attempt."""
    if ledger.attempt(attempt.id) != attempt:
        return StaleError(f"{attempt.cohort}: somebody else has taken attempt no. {attempt.id} further")
    return _Frozen(
        f"{attempt.cohort}: the {side}'s fence says {found.writer} in epoch {found.epoch}, the ledger is in epoch"
        f" {attempt.epoch}: the ledger was restored from a backup, or another ledger moves this cohort. It stays as it"
        " is until somebody has looked"
    )
