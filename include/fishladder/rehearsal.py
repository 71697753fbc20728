"""A rehearsal: the service's test workload and the reports on a copy of the target, and the way back (design §12).

Nothing of it can reach the migration's own stores but for reading: whose the test stores are is proved before a row is
deleted, and from then on only they can be opened. What it found is evidence; the gate ``rehearsals`` counts its days.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any

from fishladder import flip, gates, sandbox, tasks, workload
from fishladder.cells import HOMELESS, NO_HOME, SHARED
from fishladder.errors import FatalError, InputError, StaleError
from fishladder.install import BACKFILL_ROWS, create_target_tables
from fishladder.ledger import Attempt, Kind, open_ledger, upgrade
from fishladder.names import settle
from fishladder.plan import Plan, PlanTable, Side, resolve
from fishladder.reports import run_alone, run_reports
from fishladder.spec import Application, Migration, Target
from fishladder.spec_parts import Rehearsal
from fishladder.stores.base import Fenced, Store, TableInfo
from fishladder.tasks import Desk
from fishladder.verdict import tables_of

ACTOR = "rehearsal"
LANE = "1"
FOLLOW_SECONDS = 6 * 3600.0
"""The applier has so long to catch up with what the workload changed; nobody changes anything meanwhile."""
OWNER = "rehearsal's word"
"""Under which the ledger knows the word that is left in the test stores."""
CHECKS = 1_000_000
"""More than a night's passes."""
ROOM = 1_000_000
"""Ids of the rehearsal's target begin so far above all that there are, where the file says from where they begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: how long it took, and what it found, as JSON."""

    step: str
    seconds: float
    found: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """A day's rehearsal. ``problem``: why it is a dirty day."""

    steps: tuple[Step, ...]
    problem: str | None


def rehearse(desk: Desk, environment: Mapping[str, str] = os.environ) -> Rehearsed:
    """Rehearse once, and keep what was found, as of its beginning. It may be cut short anywhere, and run again.

    ``environment``: of the command, which gets it without what leads to the migration. Raises InputError, also kept,
    where a person has to mend the file, a connection or a test store; TransientError, which is not: repeat.
    """
    rehearsal = desk.spec.rehearsal
    if rehearsal is None:
        raise InputError(f"{desk.spec.migration}: its file has no rehearsal: ({desk.spec.where('rehearsal')})")
    desk.check_spec()
    day, began = _Day(desk=desk, rehearsal=rehearsal, environment=environment), desk.clock.now()

    def keep(problem: str | None) -> Rehearsed:
        body = {"steps": [asdict(step) for step in day.steps], "problem": problem, "runs": desk.runs}
        desk.keep(gates.REHEARSED, desk.spec.migration, body, problem is None, began)
        return Rehearsed(steps=tuple(day.steps), problem=problem)

    try:
        day.run()
    except InputError as error:
        keep(str(error))
        raise
    except FatalError as error:
        return keep(str(error))
    return keep(None)


class _Stage(Desk):
    """The desk of a migration whose stores and ledger are a rehearsal's own: its attempts have no gates."""

    def evaluate(
        self, attempt: Attempt, *, fenced: bool = False, stores: Mapping[Side, Store] | None = None
    ) -> list[gates.Gate]:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plans:
    """``within``: from the target into the test store of its kind. ``across``: between the target and the other one."""

    within: Plan
    across: Plan | None

    @property
    def copied(self) -> Sequence[PlanTable]:
        """What is copied, from the target into the store where the rehearsal begins."""
        if self.across is None:
            return self.within.tables
        return [replace(table, source=table.target, target=table.source) for table in self.across.tables]


@dataclass(kw_only=True)
class _Day:
    desk: Desk
    rehearsal: Rehearsal
    environment: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    word: str = field(default_factory=lambda: secrets.token_hex(16))
    """This rehearsal's own."""
    marked: bool = False
    """Whether it is in the stores."""

    def run(self) -> None:
        first = self._begin()
        if self.rehearsal.source is None:
            self._alone(None)
        else:
            with tempfile.TemporaryDirectory(prefix="fishladder-rehearsal-") as folder:
                url = f"sqlite:///{folder}/ledger.db"
                upgrade(url)
                self._both_ways(stage_spec(self.desk.spec, self.rehearsal, self.rehearsal.source, first), url)
        for connection in self.rehearsal.connections:
            with self._opened(connection):
                continue  # it is this rehearsal's still

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Takes what the step found."""
        self.desk.say(f"rehearsal: {name}")
        began, found = self.desk.clock.monotonic(), dict[str, Any]()
        try:
            yield found
        finally:
            seconds = round(self.desk.clock.monotonic() - began, 3)
            self.steps.append(Step(step=name, seconds=seconds, found=found))

    def open(self, connection: str) -> Store:
        """A store of the rehearsal. Raises InputError for any other: nothing here writes anywhere else.

        Once this rehearsal's word is in its stores, each new connection must find it. Raises StaleError.
        """
        if connection not in self.rehearsal.connections:
            raise InputError(f"{connection} is no store of the rehearsal, which must not open it")
        store = self.desk.open(connection)
        if self.marked and self.word not in sandbox.words_in(store):
            store.close()
            raise StaleError(
                f"another rehearsal began in {connection} before this one ended, or the connection leads elsewhere by"
                " now: rehearse again"
            )
        return store

    # The copy

    def _begin(self) -> int:
        """Fill the first store from the target. Returns the first id that none of its tables has generated."""
        with ExitStack() as opened:
            source, target = opened.enter_context(self.desk.stores())
            stores = {name: self.open(name) for name in self.rehearsal.connections}
            for store in stores.values():
                opened.callback(store.close)
            with self.step("guard"):
                plans = self._guard(source, target, stores)
            with self.step("copy") as found:
                into = stores[self.rehearsal.source or self.rehearsal.connection]
                with self.desk.pace(target) as pace:
                    copied = sandbox.copy_tables(plans.copied, target, into, pace)
                found["rows"] = copied.rows
                found["left_out"] = {table: count for table, count in copied.orphans.items() if count}
                found["refused"] = copied.refused
                if copied.refused:
                    lines = [f"{table}: {why}" for table, why in copied.refused.items()]
                    raise FatalError("; ".join(lines))
            assert isinstance(into, Fenced)
            if plans.across is None:
                self._open_to_application(plans.within, into)
                return 1
            return max([into.generated_from(table.source) or 1 for table in plans.across.tables if not table.internal])

    def _guard(self, source: Store, target: Store, stores: Mapping[str, Store]) -> _Plans:
        """Prove that the stores are the rehearsal's own, and empty them. Raises InputError before a row is deleted."""
        spec = self.desk.spec
        assert isinstance(target, Fenced)
        others = {spec.source.connection: source, spec.target.connection: target}
        sandbox.check_apart(stores, others, self.word)
        owner = self._owner()
        owned = {name: sandbox.check_owned(name, store, owner) for name, store in stores.items()}
        if not sandbox.is_end(target):
            raise InputError(f"{spec.migration} is finished, or not prepared: there is nothing to rehearse")
        states = target.load_states()
        if loading := [table for table in tables_of(spec) if table not in states or states[table].open]:
            raise InputError(f"{', '.join(loading)} is not loaded yet: rehearse when {spec.migration}_load has ended")
        plans = self._plans(source, target, stores)
        relations = {self.rehearsal.connection: [table.target for table in plans.within.tables if not table.internal]}
        if self.rehearsal.source is not None and plans.across is not None:
            relations[self.rehearsal.source] = [table.source for table in plans.across.tables if not table.internal]
        for name, store in stores.items():
            if not owned[name]:
                sandbox.check_empty(name, store, relations[name])
        for name, store in stores.items():
            sandbox.reset(store, relations[name], [owner, self.word], owned=owned[name])
        self.marked = True
        return plans

    def _owner(self) -> str:
        """The word by which this ledger's rehearsals know their stores; kept before any store hears it."""
        if (known := self.desk.ledger.status(OWNER)) is None:
            self.desk.ledger.note(OWNER, {"word": secrets.token_hex(16)})
            known = self.desk.ledger.status(OWNER)
            assert known is not None
        return str(known.data["word"])

    def _plans(self, source: Store, target: Store, stores: Mapping[str, Store]) -> _Plans:
        """With the tables that the test stores lack made as the migration's own are."""
        spec = self.desk.spec
        settled, ours, theirs = settle(spec, source.describe(), target.describe())
        test = stores[self.rehearsal.connection]
        there = sandbox.alone(settled, "target", theirs)
        self._create(there, target, self.rehearsal.connection, test)
        within = self._resolve(there, theirs, self.rehearsal.connection, test.describe())
        if self.rehearsal.source is None:
            return _Plans(within=within, across=None)
        origin = stores[self.rehearsal.source]
        self._create(sandbox.alone(settled, "source", ours), source, self.rehearsal.source, origin)
        try:
            across = resolve(spec, origin.describe(), theirs)
        except InputError as error:
            raise self._unlike(self.rehearsal.source, error) from error
        return _Plans(within=within, across=across)

    def _create(self, spec: Migration, like: Store, name: str, store: Store) -> None:
        if created := create_target_tables(spec, like, store):
            self.desk.say(f"created in {name}: {', '.join(created)}")

    def _resolve(
        self, spec: Migration, tables: Mapping[str, TableInfo], name: str, found: Mapping[str, TableInfo]
    ) -> Plan:
        try:
            return resolve(spec, tables, found)
        except InputError as error:
            raise self._unlike(name, error) from error

    def _unlike(self, name: str, error: InputError) -> InputError:
        return InputError(f"{name} does not have the tables of the migration; change or drop them there: {error}")

    def _open_to_application(self, plan: Plan, store: Store) -> None:
        """As when every cohort is complete: the application writes, new customers get homes, nothing is recorded."""
        assert isinstance(store, Fenced)
        store.install_fences([*self.desk.ledger.routes(), HOMELESS], "free")
        store.install_triggers(plan.triggers("target"))
        after = store.backfill_homes(plan.root.target, None, BACKFILL_ROWS)
        while after is not None:  # who came after the homes were copied
            after = store.backfill_homes(plan.root.target, after, BACKFILL_ROWS)

    # The rehearsal

    def _alone(self, ledger: str | None) -> None:
        """The workload and the reports, with only the target's kind of store to write in."""
        rehearsal = self.rehearsal
        with self.step("command") as found:
            environment = workload.environment_for(self.environment, rehearsal.connections, ledger)
            ran = workload.run(
                rehearsal.command,
                patience=rehearsal.patience.total_seconds(),
                environment=environment,
                say=self.desk.say,
            )
            found |= {"exit_code": ran.exit_code}
            if ran.problem is not None:
                raise FatalError(f"{ran.problem}: see the log of this task")
        with self.step("reports") as found, self._opened(rehearsal.connection) as store:
            cohorts = _reported(self.desk.ledger.routes())
            found |= run_alone(self.desk.spec, store, cohorts=cohorts, until=self.desk.clock.now() + timedelta(days=1))

    def _both_ways(self, spec: Migration, url: str) -> None:
        """The whole migration, the workload, and the way back."""
        with open_ledger(url, migration=spec.migration, clock=self.desk.clock.now) as ledger:
            stage = _Stage(spec=spec, ledger=ledger, open=self.open, clock=self.desk.clock, say=self.desk.say)
            with self.step("prepare"):
                # Also those that homes name, and no row of the root any more: prepare knows the root's column alone.
                stage.ledger.ensure_routes(self.desk.ledger.routes().keys(), ACTOR)
                tasks.prepare(stage, actor=ACTOR)
            with self.step("load") as found:
                for table in tasks.cut(stage):
                    found[table] = tasks.load_table(stage, table, LANE).rows
                    tasks.close_table(stage, table)
            with self.step("compare") as found:
                self._compare(stage, found)
            with self.step("flip") as found:
                with stage.ends() as (plan, (ends,)):
                    flip.check_ids(spec, plan, ends.origin, ends.destination)
                for cohort in _in_waves(stage):
                    found[cohort] = self._move(stage, "flip", cohort)
            self._alone(url)
            with self.step("way back") as found:
                self._replicate(stage)
                for cohort in reversed(_in_waves(stage)):
                    found[cohort] = self._move(stage, "rollback", cohort)
            with self.step("compare again") as found:
                self._compare(stage, found)

    def _replicate(self, stage: Desk) -> None:
        tasks.replicate(stage, seconds=FOLLOW_SECONDS, until_idle=True)

    def _compare(self, stage: Desk, found: dict[str, Any]) -> None:
        """Every row and every report of both test stores. Raises FatalError when they are not the same."""
        self._replicate(stage)
        wrong = []
        if rejects := stage.ledger.count_rejects():
            first = stage.ledger.open_rejects(limit=1)[0]
            column = f".{first.column}" if first.column else ""
            wrong.append(f"{rejects} rows are refused, the first of {first.table}{column}: {first.error}")
        for table in tasks.cut(stage):
            found[table] = tasks.reconcile_table(stage, table).compared
            if not stage.ledger.clean_passes(table):
                wrong.append(f"{table}: not clean")
        # A difference that an earlier pass found, and the applier has repaired since, was one all the same.
        for check in stage.ledger.checks(limit=CHECKS):
            names = ("missing", "extra", "differs", "deferred", "orphans", "duplicates")
            counts = [f"{getattr(check.result, name)} {name}" for name in names if getattr(check.result, name, 0)]
            wrong += [f"{check.table}: {', '.join(counts)}"] if counts else []
        with stage.stores() as (source, target):
            until, cohorts = stage.clock.now() + timedelta(days=1), _reported(stage.ledger.routes())
            asked = run_reports(stage.spec, source, target, stage.clock, cohorts=cohorts, until=until)
            wrong += [f"report {one.name} {one.cohort} {one.in_short()}" for one in asked if not one.equal]
        if wrong:
            raise FatalError("; ".join(dict.fromkeys(wrong)))

    def _move(self, stage: Desk, kind: Kind, cohort: str) -> float:
        """Flip or roll back a cohort. Returns the seconds from fence to switch. Raises FatalError: it was aborted."""
        asked = stage.ledger.begin_attempt(
            cohort,
            kind,
            actor=ACTOR,
            reason="a rehearsal",
            deadline=int(stage.spec.gates.deadline.total_seconds()),
            needs=flip.wave_needs(stage.spec, cohort, kind, stage.ledger.routes()),
        )
        moved = tasks.verify_cohort(stage, asked.id)
        if moved.outcome is None:
            moved = tasks.cut_over(stage, asked.id)
        if moved.outcome != "done" or moved.fenced_at is None or moved.switched_at is None:
            raise FatalError(f"{kind} of {cohort}: {moved.error}")
        return round((moved.switched_at - moved.fenced_at).total_seconds(), 3)

    @contextmanager
    def _opened(self, connection: str) -> Iterator[Store]:
        store = self.open(connection)
        try:
            yield store
        finally:
            store.close()


def stage_spec(spec: Migration, rehearsal: Rehearsal, source: str, first: int) -> Migration:
    """The migration between the test stores. Its name stays: under it the application's router asks its ledger.

    ``first``: an id from which on its source has generated none. Production's source stays below ``ids.target_from``;
    a copy of the target does not, once a cohort has flipped.
    """
    ids = spec.ids
    if ids is not None and ids.target_from is not None and first >= ids.target_from:
        ids = ids.model_copy(update={"target_from": first + ROOM})
    return spec.model_copy(
        update={
            "source": spec.source.model_copy(update={"connection": source}),
            "target": Target(kind=spec.target.kind, connection=rehearsal.connection),
            "application": Application(source=source, target=rehearsal.connection),
            "rehearsal": None,
            "ids": ids,
        }
    )


def _in_waves(stage: Desk) -> list[str]:
    """Every cohort that flips, in an order in which they may: whoever goes later needs more others to have gone."""
    cohorts = stage.ledger.routes().keys() - {NO_HOME}
    return sorted(cohorts, key=lambda cohort: (len(flip.wave_needs(stage.spec, cohort, "flip", cohorts)), cohort))


def _reported(cohorts: Mapping[str, object]) -> list[str]:
    return sorted(cohorts.keys() - {NO_HOME, SHARED})
