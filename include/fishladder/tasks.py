"""What the tasks of a migration do: each function is one task, safe to run twice and at the same time.

The command line and Airflow's operators call these and add nothing but connections and a place to log.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, time
from functools import cache, partial
from pathlib import Path
from typing import Any

from fishladder import apply, flip, gates, install, load, monitors, page, reconcile, reports, verdict
from fishladder.capacity import measure
from fishladder.cells import NO_HOME, SHARED
from fishladder.clock import Clock, SystemClock
from fishladder.errors import FatalError, InputError
from fishladder.ledger import BEFORE_SWITCH, MACHINE, Attempt, CheckResult, Kind, Ledger, SpecRecord
from fishladder.ledger.approvals import GATES, LOOK, OBSERVED, subject
from fishladder.names import settle
from fishladder.operate import Order, adopt, mark_keys, restart, rewrite_entities
from fishladder.pace import Pace
from fishladder.plan import SIDES, Plan, Side, resolve
from fishladder.preflight import preflight
from fishladder.restored import check_ledger, tell_target
from fishladder.serving import Replayer
from fishladder.serving.operations import load_operations
from fishladder.spec import Migration, nearest
from fishladder.spec_parts import identity
from fishladder.stores.application import Application
from fishladder.stores.base import Fenced, Finding, Store
from fishladder.witness import contradictions

Report = Callable[[str], None]
"""Takes a line about progress, for the log of the task."""


UNPREPARED_POLL = 5.0
"""Seconds between looks whether somebody has prepared the migration."""
PAUSED_POLL = 2.0
"""Seconds between looks whether a pause is over."""
REPLAY_PATIENCE = 60.0
"""Seconds that whoever asks for a rollback waits for a replay to end."""
NOBODY = "airflow"
"""In whose name a run is that nobody triggered."""
COLLECT_AFTER = 100_000
"""Objects more than there were: so often Python looks for cycles while rows are moved."""
_moving: list[tuple[int, int, int]] = []
_moving_lock = threading.Lock()
_LEVELS = ("fail", "warn", "pass")


def _silent(_: str) -> None:
    return None


def _no_application(connection: str) -> Application:
    raise InputError(f"the application's connection {connection} cannot be opened here")


@contextmanager
def _rarely_collecting() -> Iterator[None]:
    """Rows are freed when nobody has them any more: to look for cycles among every 700 takes a fifth of the time.

    The threshold is the whole process's: of the threads that move rows the last one puts it back.
    """
    with _moving_lock:
        _moving.append(gc.get_threshold())
        gc.set_threshold(COLLECT_AFTER, *_moving[0][1:])
    try:
        yield
    finally:
        with _moving_lock:
            before = _moving[0]
            _moving.pop()
            if not _moving:
                gc.set_threshold(*before)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What every task of a migration needs. ``open`` opens a store by connection id; each call a new one.

    ``serve`` opens the application's way into one, to replay queued writes. ``measure`` asks for a metric.
    ``kept`` is told the digest of each piece of evidence. ``reached``: how far the last turn of a cohort's replay came.
    """

    spec: Migration
    ledger: Ledger
    open: Callable[[str], Store]
    serve: Callable[[str], Application] = _no_application
    measure: monitors.Measure = monitors.no_metrics
    clock: Clock = field(default_factory=SystemClock)
    say: Report = _silent
    kept: Callable[[str], None] = _silent
    reached: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stores(self) -> Iterator[tuple[Store, Store]]:
        source, target = self.open(self.spec.source.connection), self.open(self.spec.target.connection)
        try:
            yield source, target
        finally:
            source.close()
            target.close()

    @contextmanager
    def ends(self, count: int = 1, *, checked: bool = True) -> Iterator[tuple[Plan, list[apply.Ends]]]:
        """The plan and ``count`` pairs of stores, one for each parallel worker.

        ``checked``: raises InputError unless prepare has taken this very migration file, and LedgerError when the
        ledger was restored from a backup.
        """
        opened: list[Store] = []
        try:
            workers = []
            for _ in range(count):
                pair = self.open(self.spec.source.connection), self.open(self.spec.target.connection)
                opened += pair
                workers.append(apply.Ends(owner="source", origin=pair[0], destination=pair[1]))
            if checked:
                self.check_spec()
                install.check_installed(self.spec.migration, workers[0].origin, workers[0].destination)
                check_ledger(workers[0].destination, self.ledger)
            plan = resolve(self.spec, workers[0].origin.describe(), workers[0].destination.describe())
            with _rarely_collecting():
                yield plan, workers
            if checked:
                tell_target(workers[0].destination, self.ledger)
        finally:
            for store in opened:
                store.close()

    @contextmanager
    def pace(self, target: Store) -> Iterator[Pace]:
        """What keeps a copier into ``target`` at the speed that operators allow."""
        replicas = [(name, self.open(name)) for name in self.spec.target.replicas]
        try:
            yield Pace(self.ledger, self.clock, target, replicas, self.say)
        finally:
            for _, replica in replicas:
                replica.close()

    @contextmanager
    def cutover(self, actor: str = MACHINE) -> Iterator[flip.Cutover]:
        """What moves a cohort, in the name of ``actor``."""

        def closed(attempt: Attempt, fenced: bool) -> list[str]:
            self.note_deployment(actor)
            return gates.closed(self.evaluate(attempt, fenced=fenced, stores=stores))

        with ExitStack() as kept:
            plan, (ends,) = kept.enter_context(self.ends())
            stores: dict[Side, Store] = {"source": ends.origin, "target": ends.destination}
            yield flip.Cutover(
                spec=self.spec,
                plan=plan,
                stores=stores,
                ledger=self.ledger,
                clock=self.clock,
                replay=self._replay(kept),
                runs=self.runs,
                gates=closed,
                say=self.say,
            )

    @property
    def runs(self) -> dict[str, str]:
        """The digests of the migration file, with its gates, reports and monitors, and of the code."""
        return {"spec": hashlib.sha256(self.spec.to_json().encode()).hexdigest(), "code": code_digest()}

    def evaluate(
        self, attempt: Attempt, *, fenced: bool = False, stores: Mapping[Side, Store] | None = None
    ) -> list[gates.Gate]:
        """An attempt's gates, as they are now; ``stores`` are opened where none are given."""
        back = attempt.kind == "rollback"
        against = ask_stores(self, back) if stores is None else contradictions(self.ledger, stores, way_back=back)
        now = self.clock.now()
        return gates.evaluate(self.spec, self.ledger, attempt, now, contradictions=against, fenced=fenced)

    def _replay(self, kept: ExitStack) -> flip.Replay:
        """Replays what is queued; the operations and the application's connections are opened once that is wanted."""
        application, opened = self.spec.application, dict[str, Replayer]()

        def replay(cohort: str) -> None:
            if not self.ledger.next_queued(cohort, 1):
                return
            if application.operations is None:
                raise InputError(
                    f"{cohort}: writes are queued, and the migration file does not say where the application's"
                    f" operations are ({self.spec.where('application')}): add application.operations, then repeat the"
                    " task"
                )
            owner = self.ledger.route(cohort).owner
            if owner not in opened:  # the other store may be what the cohort had to leave
                store = self.serve(application.source if owner == "source" else application.target)
                kept.callback(store.close)
                operations = load_operations(application.operations)
                opened[owner] = Replayer(self.ledger, operations, {owner: store}, reached=self.reached)
            opened[owner].replay(cohort)

        return replay

    def check_spec(self) -> SpecRecord:
        """The file that the ledger knows. Raises InputError unless prepare has taken the data part of this very one."""
        record = self.ledger.spec()
        if record is None:
            raise InputError(f"{self.spec.migration}: run {self.spec.migration}_prepare first")
        if not self._has(record):
            raise InputError(
                f"{self.spec.migration}: its file changed since prepare ran; run {self.spec.migration}_prepare"
            )
        return record

    def is_prepared(self) -> bool:
        """Whether prepare has taken the data part of this very file."""
        record = self.ledger.spec()
        return record is not None and self._has(record)

    def _has(self, record: SpecRecord) -> bool:
        return Migration.from_json(record.spec).data_part() == self.spec.data_part()

    def note_deployment(self, actor: str) -> None:
        """See that the audit has the file, as a whole, and the code that judge an attempt, and the ledger its text.

        Gates, monitors and reports change without prepare. Raises InputError where it has to run.
        """
        known, runs = self.check_spec(), self.runs
        if (known.digest, known.code_digest) != (runs["spec"], runs["code"]):
            self.ledger.record_spec(self.spec.to_json(), runs["spec"], runs["code"], actor, after=known)

    def keep(self, kind: str, subject: str, body: Mapping[str, Any], passed: bool, began: datetime) -> None:
        """Keep evidence as of ``began``."""
        self.kept(self.ledger.record_evidence(kind, subject, body, passed, began))


def check(desk: Desk, accounts: dict[str, str] | None = None) -> list[Finding]:
    """Preflight, kept as evidence. Returns every finding, what fails first; nothing is changed in the stores."""
    began = desk.clock.now()
    with desk.stores() as (source, target):
        spec, ours, there = settle(desk.spec, source.describe(), target.describe())
        missing = [name for name, table in spec.tables.items() if (table.target or name) not in there and name in ours]
        if missing:
            desk.say(f"the target lacks {', '.join(missing)}: prepare creates them after the source's")
            there = {**there, **install.imagined_tables(spec, ours, missing)}
        sizes = measure(desk.spec, ours, desk.ledger, began)
        findings, _ = preflight(
            desk.spec,
            source,
            target,
            desk.ledger,
            ours=ours,
            theirs=there,
            missing=missing,
            accounts=accounts,
            sizes=sizes,
            open=desk.open,
        )
    findings.sort(key=lambda finding: _LEVELS.index(finding.level))
    body = {
        "findings": [asdict(finding) for finding in findings],
        "sizes": {table: size.to_json() for table, size in sizes.items()},
    }
    desk.keep("preflight", desk.spec.migration, body, not _failed(findings), began)
    return findings


def _failed(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "fail" for finding in findings)


def findings_table(findings: Sequence[Finding]) -> str:
    """Findings as a table for a log."""
    lines = [(f.level, f.where, f.message) for f in findings]
    width = max((len(where) for _, where, _ in lines), default=0)
    return "\n".join(f"{level:<4}  {where:<{width}}  {message}" for level, where, message in lines)


def prepare(desk: Desk, *, actor: str, accounts: dict[str, str] | None = None) -> install.Installed:
    """Create what is missing, install fishladder's tables, fences, triggers and homes, and take the file as it is.

    Raises InputError when preflight fails, and when the migration is finished.
    """
    if desk.ledger.finished():  # its fences would be as in the beginning, and its customers refused
        raise InputError(f"{desk.spec.migration} is finished, and its target is no copy any more: nothing to prepare")
    if desk.ledger.routes() and not _incomplete(desk.ledger):  # nor can it be told how far the end has come
        raise InputError(f"every cohort is complete: nothing to prepare; run {desk.spec.migration}_finish to the end")
    findings = check(desk, accounts)
    if _failed(findings):
        raise InputError(f"preflight fails:\n{findings_table([f for f in findings if f.level == 'fail'])}")
    with desk.stores() as (source, target):
        install.check_installed(desk.spec.migration, source, target)
        assert isinstance(target, Fenced)
        target.install_tables()
        check_ledger(target, desk.ledger)  # or what is told below would hide that one of them was restored
        created = install.create_target_tables(desk.spec, source, target)
        if created:
            desk.say(f"created in the target: {', '.join(created)}")
        plan = resolve(desk.spec, source.describe(), target.describe())
        installed = install.install(desk.spec, plan, source, target, desk.ledger, actor=actor)
        tell_target(target, desk.ledger)
    desk.ledger.record_spec(desk.spec.to_json(), desk.runs["spec"], desk.runs["code"], actor)
    desk.say(f"fences for {len(installed.cohorts)} {desk.spec.cohort.label} cohorts; triggers and homes are installed")
    return installed


def cut(desk: Desk) -> dict[str, int]:
    """Cut all tables into chunks. Returns how many each has."""
    with desk.ends() as (plan, (ends,)):
        load.cut(plan, ends.origin, desk.ledger, desk.spec.chunk_rows)
        return {table.name: len(desk.ledger.chunks(table.name)) for table in plan.tables}


def load_table(desk: Desk, table: str, lane: str) -> load.LaneReport:
    """Load chunks of a table as one lane until none is left; while the migration is paused, wait."""
    total = load.LaneReport(chunks=0, rows=0, rejects=0)

    def progress(report: load.LaneReport) -> None:
        done = desk.ledger.progress(table)
        seconds = max(desk.clock.monotonic() - began, 1e-6)
        left = (done.chunks - done.done) * seconds / max(done.done - before, 1)  # at the speed of all lanes
        desk.say(
            f"{table} lane {lane}: chunk {done.done} of {done.chunks}, {report.rows} rows here,"
            f" {report.rows / seconds:,.0f} rows/s, about {left:.0f} s left, {done.rejects} rejects"
        )

    with desk.ends() as (plan, (ends,)), desk.pace(ends.destination) as pace:
        found = plan.table(table)
        while True:
            began, before = desk.clock.monotonic(), desk.ledger.progress(table).done
            done = load.load_lane(
                found,
                ends.origin,
                ends.destination,
                desk.ledger,
                lane=lane,
                progress=progress,
                pace=pace.wait,
            )
            total = load.LaneReport(
                chunks=total.chunks + done.chunks, rows=total.rows + done.rows, rejects=total.rejects + done.rejects
            )
            if not desk.ledger.control().paused:
                return total
            desk.say(f"{table} lane {lane}: paused; it goes on when the migration is resumed")
            while desk.ledger.control().paused:
                desk.clock.sleep(PAUSED_POLL)


def close_table(desk: Desk, table: str) -> None:
    """End the load of a table: install the target's triggers and let the applier have it."""
    with desk.ends() as (plan, (ends,)):
        load.close_load(plan, plan.table(table), ends.destination, desk.ledger)


def replicate(desk: Desk, *, seconds: float, until_idle: bool = False) -> apply.Followed:
    """Apply dirty keys for this long."""
    last, stalled = [0.0], flip.Stalled(desk.ledger, desk.clock)

    def progress(report: apply.Followed) -> None:
        if desk.clock.monotonic() - last[0] >= 10:
            last[0] = desk.clock.monotonic()
            desk.say(f"{report.applied} changes applied, lag {report.lag or 0:.1f} s, {report.rejected} rejects")

    # Before the plan is made: what prepare does from here on is noticed.
    taken = desk.ledger.spec()
    installed = {side: desk.ledger.coverage(side) for side in SIDES}
    with desk.ends(desk.spec.lanes) as (plan, workers), desk.pace(workers[0].destination) as pace:
        ends = workers[0]

        def outdated() -> bool:
            """Whether prepare took another file, or it or the end of a load found another table than is planned."""
            now = {side: desk.ledger.coverage(side) for side in SIDES}
            if any(now[side].get(table) != digest for side in SIDES for table, digest in installed[side].items()):
                return True
            if closed := now["target"].keys() - installed["target"].keys():
                found = resolve(desk.spec, ends.origin.describe(), ends.destination.describe())
                if any(found.table(name) != plan.table(name) for name in closed):
                    return True
                installed["target"].update({name: now["target"][name] for name in closed})
            return desk.ledger.spec() != taken and not desk.is_prepared()

        return apply.follow(
            plan,
            workers,
            desk.ledger,
            desk.clock,
            seconds=seconds,
            until_idle=until_idle,
            progress=progress,
            pace=pace.wait,
            beside=lambda: advance_attempts(desk, stalled),
            outdated=outdated,
        )


# Flips ----------------------------------------------------------------------------------------------


def ask(desk: Desk, kind: Kind, cohorts: Sequence[str], *, actor: str, reason: str, request: str = "") -> list[Attempt]:
    """Open an attempt for each of these cohorts; the same ``request`` again gets the same ones, while open.

    A rollback that is asked for while a flip of these replays waits for its end. Raises InputError, and then none of
    them is open.
    """
    if identity(actor) in ("", NOBODY, MACHINE):
        raise InputError("nobody is known to ask for this, so nobody else could approve it: trigger it as a person")
    if desk.ledger.control().paused:
        raise InputError(f"{desk.spec.migration} is paused, and a flip has to copy: resume it first")
    if kind != "complete" and (operations := desk.spec.application.operations):
        load_operations(operations)  # past the switch, what is queued could be replayed by nothing else
        _try_application(desk, kind, [cohort for cohort in cohorts if cohort in desk.ledger.routes()])
    with desk.ends() as (plan, (ends,)):
        flip.check_ids(desk.spec, plan, ends.origin, ends.destination)
        if kind == "flip":
            flip.check_homeless(ends.origin, ends.destination)
        flip.check_loads(plan, ends.destination)
    if kind == "rollback":
        _await_replay(desk, cohorts)
    known = desk.ledger.routes()
    return desk.ledger.begin_attempts(
        {cohort: flip.wave_needs(desk.spec, cohort, kind, known) for cohort in cohorts},
        kind,
        actor=actor,
        reason=reason,
        request=request,
        deadline=int(desk.spec.gates.deadline.total_seconds()),
        approvals=desk.spec.gates.approvals,
    )


def _try_application(desk: Desk, kind: Kind, cohorts: Sequence[str]) -> None:
    """Whether the application can live in the stores as a router does, before its customers find out.

    A flip may abort, and replays into the source then. Of a rollback the target is what customers have to leave.
    """
    accounts = desk.spec.application
    sides = [("source", accounts.source), ("target", accounts.target)]
    for side, connection in sides if kind == "flip" else sides[:1]:
        with closing(desk.serve(connection)) as application:
            for cohort in cohorts:
                try:
                    application.try_out(cohort)
                except FatalError as error:
                    raise InputError(
                        f"the application's account ({connection}) cannot do in the {side} what its router does there:"
                        f" {error}. docs/router.md names the rights that it needs"
                    ) from error


def _await_replay(desk: Desk, cohorts: Sequence[str]) -> None:
    """Until no attempt of these is past its switch, or for so long that something must be in its way."""
    end = desk.clock.monotonic() + REPLAY_PATIENCE
    while desk.clock.monotonic() < end:
        under_way = desk.ledger.attempts(only_open=True)
        if not any(other.cohort in cohorts and other.step not in BEFORE_SWITCH for other in under_way):
            return
        desk.clock.sleep(flip.POLL)


def verify_cohort(desk: Desk, attempt: int) -> Attempt:
    """Compare every row while traffic is on. An attempt whose cohort differs is aborted, and nothing was fenced."""
    found = desk.ledger.attempt(attempt)
    if found.outcome is None and found.step == "verify":
        with desk.cutover() as cutover:
            if not cutover.verify(found):
                why = "its rows are not proven equal: see the task's log, and the newest reconciliation"
                return desk.ledger.abort(found, why)
    return desk.ledger.attempt(attempt)


def open_gates(desk: Desk, attempt: int, *, actor: str = MACHINE) -> list[gates.Gate]:
    """Evaluate the gates of an attempt, and keep what was found, with the page that a person will be shown.

    An approval is for exactly that, and for the migration file and the code that made it: the audit knows both, and
    that ``actor`` ran them. Raises InputError once the attempt waits for nobody any more.
    """
    began = desk.clock.now()
    found = _waiting(desk, attempt)
    desk.note_deployment(actor)
    evaluated = desk.evaluate(found)
    body = {
        "cohort": found.cohort,
        "kind": found.kind,
        "epoch": found.epoch,
        "gates": [asdict(gate) for gate in evaluated],
        "automatic_rollback": desk.spec.gates.automatic_rollback,
        "page": page.write(desk.spec, desk.ledger, found, evaluated, began),
        "runs": desk.runs,
    }
    desk.keep(GATES, subject(attempt), body, not gates.closed(evaluated), began)
    return evaluated


def _waiting(desk: Desk, attempt: int) -> Attempt:
    """An attempt that has fenced nothing yet. Raises InputError."""
    found = desk.ledger.attempt(attempt)
    if found.outcome is not None or found.step != "verify":
        raise InputError(f"{found.cohort}: attempt no. {attempt} is {found.outcome or found.step} already")
    return found


def what_will_happen(desk: Desk, attempt: int) -> tuple[str, str]:
    """What a person is asked to approve, in Markdown, and the digest of the evidence that it shows.

    Raises InputError when the attempt waits for nobody any more, when its gates were not evaluated yet, or were closed,
    or were evaluated with another migration file or code.
    """
    cohort = _waiting(desk, attempt).cohort
    shown = desk.ledger.latest_evidence(GATES, subject(attempt))
    if shown is None or not shown.genuine or not shown.passed:
        raise InputError(f"{cohort}: the gates of attempt no. {attempt} are not open: evaluate them, then ask again")
    if shown.body.get("runs") != desk.runs:
        raise InputError(
            f"{cohort}: the migration file or the code has changed since the gates of attempt no. {attempt} were"
            " evaluated: evaluate them again"
        )
    evidence = f"Evidence as of {shown.began:%Y-%m-%d %H:%M:%S} UTC, digest {shown.digest}"
    return f"{shown.body['page']}\n\n{evidence}", shown.digest


def approve(desk: Desk, attempt: int, *, account: str, shown: str, request: str = "") -> None:
    """Record a person's yes to an attempt, for the evidence with the digest that the person was ``shown``.

    ``request``: which question was answered; its task may be repeated. Raises InputError: a service account, who asked
    for it, the same person again, or gates that have closed since.
    """
    found = desk.ledger.attempt(attempt)
    policy = desk.spec.gates
    if identity(account) in {identity(name) for name in (*policy.service_accounts, MACHINE, NOBODY)}:
        raise InputError(f"{found.cohort}: {account} is a service account, and a person has to approve it")
    person = gates.person_of(policy, account)
    if identity(person) == identity(gates.person_of(policy, found.actor)):
        raise InputError(f"{found.cohort}: {account} asked for it, and somebody else has to approve it")
    if problems := gates.closed(desk.evaluate(found)):
        raise InputError(f"{found.cohort}: its gates have closed since it was shown: {'; '.join(problems)}")
    desk.ledger.approve(
        attempt,
        person=person,
        account=account,
        request=request,
        shown=shown,
        runs=desk.runs,
        expires_at=desk.clock.now() + policy.approval_expires,
    )


def observe(desk: Desk) -> list[monitors.Observed]:
    """Ask every monitor, and keep what was found."""
    began = desk.clock.now()
    before = partial(monitors.values_before, desk.ledger, began)
    with desk.stores() as (source, target):
        stores: dict[Side, Store] = {"source": source, "target": target}
        found = list(monitors.observe(desk.spec, stores, measure=desk.measure, before=before))
    for one in found:
        body = {"must_be": one.must_be, "values": one.values, "before": one.before, "asked": one.asked}
        body |= {"monitor": monitors.whole(desk.spec.monitors[one.name])}
        desk.keep("monitor", one.name, body, one.quiet, began)
    return found


def watch(desk: Desk, attempt: int) -> bool:
    """Look after a cohort that has flipped; whether all has been quiet for as long as the file asks.

    Each look is evidence, and so is the end, good or bad: the next wave waits for a good one. Looks further apart than
    ``gates.monitor_age`` say nothing of the time between them, which then begins anew. Raises InputError when a monitor
    is not quiet, or was not since the last look, or rows of the cohort differ or are rejected.
    """
    found = desk.ledger.attempt(attempt)
    if not _is_newest_flip(desk, found) or found.ended_at is None:
        raise InputError(f"{found.cohort}: attempt no. {attempt} has flipped nothing that could be observed")
    before = desk.ledger.latest_evidence(OBSERVED, subject(attempt))
    if before is not None and before.genuine and before.passed:
        return True
    since = found.ended_at if before is None else before.began  # from the trouble on that somebody has mended
    loud, began = _loud(desk, found.cohort), desk.clock.now()
    for name in desk.spec.monitors if not loud else ():
        seen = desk.ledger.evidence_between("monitor", name, since, began)
        loud += [f"{name} was not quiet at {one.began:%H:%M:%S} UTC" for one in seen if not one.passed]
    if not loud:
        desk.keep(LOOK, subject(attempt), {"cohort": found.cohort}, True, began)
        quiet = began
        for look in reversed(desk.ledger.evidence_between(LOOK, subject(attempt), since, began)):
            quiet = look.began if quiet - look.began <= desk.spec.gates.monitor_age else quiet
        quiet = since if quiet - since <= desk.spec.gates.monitor_age else quiet
        if began - quiet < desk.spec.gates.observe:
            return False
    body = {"cohort": found.cohort, "since": since.isoformat(), "loud": loud}
    desk.keep(OBSERVED, subject(attempt), body, not loud, began)
    if loud:
        raise InputError(f"{found.cohort} is not quiet: {'; '.join(loud)}")
    return True


def _loud(desk: Desk, cohort: str) -> list[str]:
    """What is not quiet about a cohort that has flipped, asked now."""
    counts = {
        "mismatches": desk.ledger.count_mismatches(cohort),
        "rejects": desk.ledger.count_rejects(cohort=cohort),
    }
    answers = [str(one) for one in observe(desk) if not one.quiet]
    return answers + [f"{count} {name}" for name, count in counts.items() if count]


def _is_newest_flip(desk: Desk, attempt: Attempt) -> bool:
    """Whether the cohort is where this flip has brought it."""
    done = (one for one in desk.ledger.attempts() if (one.cohort, one.outcome) == (attempt.cohort, "done"))
    return attempt.kind == "flip" and next(done, None) == attempt


def send_back(desk: Desk, attempt: int) -> Attempt | None:
    """Roll a flip back that is not quiet, if the file says so, and said so on the page that was approved.

    None: it stays. For it is not the cohort's newest move, or was quiet, or is quiet by now.
    """
    found, spec = desk.ledger.attempt(attempt), desk.spec
    seen = desk.ledger.latest_evidence(OBSERVED, subject(attempt))
    if seen is None or not seen.genuine or seen.passed or not _is_newest_flip(desk, found):
        return None
    if not (spec.gates.automatic_rollback and _approved_to_go_back(desk, attempt)):
        desk.say(f"{found.cohort} stays where it is: judge for yourself, and run {spec.migration}_rollback if need be")
        return None
    if not (loud := _loud(desk, found.cohort)):
        desk.say(f"{found.cohort} stays where it is: all is quiet by now")
        return None
    asked = desk.ledger.begin_attempt(
        found.cohort,
        "rollback",
        actor=MACHINE,
        reason=f"flip no. {attempt} is not quiet: {'; '.join(loud)}; evidence {seen.digest}",
        request=f"rollback of flip no. {attempt}",
        deadline=int(spec.gates.deadline.total_seconds()),
        needs=flip.wave_needs(spec, found.cohort, "rollback", desk.ledger.routes()),
    )
    verified = verify_cohort(desk, asked.id)
    return verified if verified.outcome else cut_over(desk, asked.id)


def _approved_to_go_back(desk: Desk, attempt: int) -> bool:
    """Whether the page that people approved said that it would go back by itself."""
    shown = desk.ledger.latest_evidence(GATES, subject(attempt))
    return (
        shown is not None and shown.genuine and shown.body["automatic_rollback"] and bool(_approved_by(desk, attempt))
    )


def summary(desk: Desk, attempt: int) -> dict[str, Any]:
    """What an attempt came to, kept as evidence: who approved it, how long it took, what its customers felt."""
    found, began = desk.ledger.attempt(attempt), desk.clock.now()
    told = _shown(found) | {"reason": found.reason, "approved_by": _approved_by(desk, attempt)}
    if found.fenced_at is not None:
        told["writes_queued"] = sum(desk.ledger.count_queue(found.cohort, found.fenced_at).values())
        told["longest_wait"] = desk.ledger.longest_wait(found.cohort, found.fenced_at)
    desk.keep("summary", subject(attempt), told, found.outcome == "done", began)
    return told


def abort(desk: Desk, attempt: int, why: str, *, actor: str) -> Attempt:
    """Give an attempt up that has fenced nothing yet; one that has is brought to its end by ``replicate``."""
    found = desk.ledger.attempt(attempt)
    return desk.ledger.abort(found, why, actor=actor) if found.outcome is None and found.step == "verify" else found


def abort_by_hand(desk: Desk, attempt: int, why: str, *, actor: str) -> Attempt:
    """At any step before the switch. Raises StaleError past it, and LedgerError where a store knows a newer epoch."""
    found = desk.ledger.attempt(attempt)
    if found.step != "verify":
        with desk.stores() as (source, target):
            flip.check_newest(desk.ledger, {"source": source, "target": target}, found)
    return desk.ledger.abort(found, why, actor=actor)


def finish(desk: Desk, *, actor: str) -> bool:
    """Remove every trace of fishladder from both stores once every cohort is complete; whether it did.

    The ledger stays, for whoever audits it.
    """
    if desk.ledger.finished():  # what is in the stores by now is another migration's
        return True
    desk.check_spec()
    if open_ := _incomplete(desk.ledger):
        desk.say(f"not complete yet: {', '.join(open_)}; both stores stay as they are")
        return False
    with desk.stores() as pair:
        for store in pair:
            assert isinstance(store, Fenced)
            if store.installed_for() in (None, desk.spec.migration):  # else it is another's since an earlier try
                store.uninstall()
    desk.ledger.finish(actor)
    return True


def _incomplete(ledger: Ledger) -> list[str]:
    """The cohorts that have a way back, or are on the last one."""
    moving = {attempt.cohort for attempt in ledger.attempts(only_open=True)}
    routes = ledger.routes().items()
    return [name for name, route in routes if (route.stage != "complete" or name in moving) and name != NO_HOME]


def cut_over(desk: Desk, attempt: int, *, actor: str = MACHINE) -> Attempt:
    """Take an attempt to its end: moved, or back where it was."""
    with desk.cutover(actor) as cutover:
        return cutover.run(attempt)


def advance_attempts(desk: Desk, stalled: flip.Stalled | None = None) -> int:
    """Take one step of every attempt that is between fence and end (of those that are stalled); how many there are."""
    under_way = [attempt for attempt in desk.ledger.attempts(only_open=True) if attempt.step != "verify"]
    if mine := [attempt for attempt in under_way if stalled is None or stalled.has(attempt)]:
        with desk.cutover() as cutover:
            for attempt in mine:
                try:
                    after = cutover.advance(attempt.id)
                    if stalled is not None:
                        stalled.moved(after)
                except (FatalError, InputError) as error:  # a person has to look at this one; the others go on
                    desk.say(f"{attempt.cohort}: attempt no. {attempt.id} cannot go on: {error}")
    return len(under_way)


def await_prepare(desk: Desk, seconds: float) -> float:
    """Wait at most this long until prepare has taken this migration file. Returns the seconds left, 0 if it has not."""
    end, said = desk.clock.monotonic() + seconds, False
    while (left := end - desk.clock.monotonic()) > 0 and not desk.is_prepared():
        if not said:
            desk.say(f"nothing to do before {desk.spec.migration}_prepare has taken its file; waiting for it")
        said = True
        desk.clock.sleep(min(UNPREPARED_POLL, left))
    return max(left, 0.0)


def reconcile_table(desk: Desk, table: str) -> CheckResult:
    """One pass over a table, kept as evidence."""
    began = desk.clock.now()

    def progress(compared: int, wrong: int) -> None:
        desk.say(f"{table}: {compared} keys compared, {wrong} mismatches")

    with desk.ends() as (plan, (ends,)):
        found = plan.table(table)
        result = reconcile.reconcile_table(
            plan, found, ends, desk.ledger, chunk_rows=desk.spec.chunk_rows, progress=progress
        )
    check = next(check for check in desk.ledger.checks(table) if check.result == result)
    body = {**asdict(result), "by_cohort": dict(result.by_cohort)}
    desk.keep("pass", table, body, check.clean is True and check.void is None, began)
    return result


def report(desk: Desk) -> list[reports.ReportResult]:
    """All financial reports per cohort over the period that ended at midnight (UTC), kept as evidence.

    One that cannot be asked is kept, too, as evidence that fails.
    """
    began = desk.clock.now()
    until = datetime.combine(began.date(), time(), UTC)
    results = []
    with desk.stores() as (source, target):
        cohorts = reports.cohorts_of(desk.ledger.routes(), SHARED)
        for result in reports.run_reports(desk.spec, source, target, desk.clock, cohorts=cohorts, until=until):
            body = {"source": result.source, "target": result.target, "problem": result.problem}
            body |= {"until": until.isoformat(), "report": reports.whole(desk.spec.reports[result.name])}
            desk.keep("report", f"{result.name} {result.cohort}", body, result.equal, began)
            results.append(result)
    return results


def totals(desk: Desk) -> dict[str, dict[str, tuple[int, int]]]:
    """Rows per table and cohort in source and target, kept as evidence. Equal only when nothing is on its way."""
    began = desk.clock.now()
    with desk.ends() as (plan, (ends,)):
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for table in plan.tables:
            ours, theirs = ends.origin.count(table.source), ends.destination.count(table.target)
            found[table.name] = {
                cohort: (ours.get(cohort, 0), theirs.get(cohort, 0)) for cohort in sorted(ours.keys() | theirs.keys())
            }
    equal = all(ours == theirs for counts in found.values() for ours, theirs in counts.values())
    desk.keep("totals", desk.spec.migration, {"rows": found}, equal, began)
    return found


def outcome(desk: Desk) -> verdict.Verdict:
    """What the newest passes and reports add up to, and whether the fences are as they must be, kept as evidence."""
    began = desk.clock.now()
    found = verdict.judge(desk.spec, desk.ledger)
    found = replace(found, problems=(*found.problems, *ask_stores(desk)))
    body = {"lines": found.lines, "problems": found.problems}
    desk.keep("outcome", desk.spec.migration, body, not found.problems, began)
    return found


def ask_stores(desk: Desk, way_back: bool = False) -> list[str]:
    """What their fences say against the ledger; nothing once every cohort is complete and they are removed."""
    if desk.ledger.finished() and not _incomplete(desk.ledger):
        return []
    with desk.stores() as (source, target):
        return contradictions(desk.ledger, {"source": source, "target": target}, way_back=way_back)


def check_names(spec: Migration, tables: Sequence[str]) -> None:
    """Raises InputError unless the migration copies all of these tables."""
    known = verdict.tables_of(spec)
    unknown = [f"{table}{nearest(table, known)}" for table in tables if table not in known]
    if unknown:
        raise InputError(f"{spec.migration} migrates no table {', '.join(unknown)}; nothing was done")


def operate(desk: Desk, order: Order, *, actor: str) -> dict[str, int]:
    """Do what a person asked for, under that person's name in the audit. Returns counts of what was touched.

    Raises InputError when the order does not fit the migration; then nothing was done.
    """
    ledger = desk.ledger
    match order.action:
        case "pause" | "resume":
            ledger.set_control(paused=order.action == "pause", actor=actor)
            return {}
        case "throttle":
            if order.replica_lag and not desk.spec.target.replicas:
                raise InputError(f"the migration file names no replicas of the target ({desk.spec.where('target')})")
            ledger.set_control(
                rows_per_second=order.rows_per_second,
                running_threads=order.running_threads,
                replica_lag=order.replica_lag,
                actor=actor,
            )
            return {}
        case "retry rejects":
            check_names(desk.spec, order.tables)
            found = [ledger.retry_rejects(t, order.error or None, actor=actor) for t in order.tables or (None,)]
            return {"rejects": sum(found)}
    with desk.ends() as (plan, (ends,)):
        match order.action:
            case "restart tables":
                with desk.pace(ends.destination) as pace:
                    restart(plan, order.tables, ends.destination, ledger, pace, actor=actor)
                desk.say(f"{', '.join(order.tables)}: empty; run {desk.spec.migration}_load to load again")
                return {"tables": len(order.tables)}
            case "rewrite entities":
                return {"keys": rewrite_entities(plan, ends, ledger, order.entities, actor=actor)}
            case "mark keys dirty":
                marked, nowhere = mark_keys(plan, ends, ledger, order.keys, actor=actor)
                if nowhere:
                    desk.say(f"{nowhere} of the {marked} keys are in neither store: see that they are what you mean")
                return {"keys": marked}


def adopt_ledger(desk: Desk, *, actor: str) -> list[str]:
    """Go on after a backup of the ledger or of a store was restored. Returns the tables that must be loaded again."""
    with desk.ends(checked=False) as (plan, (ends,)), desk.pace(ends.destination) as pace:
        return adopt(plan, ends.origin, ends.destination, desk.ledger, pace, desk.clock, actor=actor)


def status(desk: Desk) -> dict[str, Any]:
    """Where the migration stands, from the ledger alone: tables, passes, rejects, dirty keys, applier."""
    ledger, control = desk.ledger, desk.ledger.control()
    tables = {}
    for name in verdict.tables_of(desk.spec):
        progress, state = ledger.progress(name), ledger.table_state(name)
        newest = ledger.checks(name, limit=1)
        tables[name] = {
            "phase": state.phase,
            "chunks": progress.chunks,
            "done": progress.done,
            "rows": progress.rows,
            "rejects": ledger.count_rejects(table=name),
            "clean_passes": ledger.clean_passes(name),
            "last_check": newest[0].started_at.isoformat() if newest else None,
        }
    applier = ledger.status("applier")
    results = [check.result for check in ledger.checks(limit=10_000) if check.result is not None]
    return {
        "migration": desk.spec.migration,
        "paused": control.paused,
        "limits": {limit: value for limit, value in asdict(control).items() if limit != "paused" and value},
        "tables": tables,
        "cohorts": {
            cohort: {"stage": route.stage, "owner": route.owner, "epoch": route.epoch}
            for cohort, route in ledger.routes().items()
        },
        "attempts": [_shown(attempt) | _awaited(desk, attempt) for attempt in ledger.attempts(limit=20)],
        "queue": ledger.count_queue(),
        "dirty": ledger.count_dirty(),
        "mismatches": ledger.count_mismatches(),
        "mismatches_found": sum(result.missing + result.extra + result.differs for result in results),
        "changes": ledger.counts("applied").get("changes", 0),
        "applier": applier.data | {"at": applier.at.isoformat()} if applier else None,
        "applier_at_work": verdict.at_work(applier, desk.clock.now()),
    }


def _shown(attempt: Attempt) -> dict[str, Any]:
    fenced, switched = attempt.fenced_at, attempt.switched_at
    return {
        "number": attempt.id,
        "cohort": attempt.cohort,
        "kind": attempt.kind,
        "step": attempt.step,
        "outcome": attempt.outcome,
        "error": attempt.error,
        "actor": attempt.actor,
        "seconds_fenced": (switched - fenced).total_seconds() if fenced and switched else None,
    }


def _awaited(desk: Desk, attempt: Attempt) -> dict[str, Any]:
    """What an attempt that has fenced nothing yet waits for."""
    if attempt.outcome is not None or attempt.step != "verify":
        return {}
    evaluated = gates.evaluate(desk.spec, desk.ledger, attempt, desk.clock.now(), contradictions=None)
    closed, people = gates.closed(evaluated), _approved_by(desk, attempt.id)
    return {"closed_gates": closed, "approvals": attempt.approvals, "approved_by": people}


def _approved_by(desk: Desk, attempt: int) -> list[str]:
    """The accounts that have approved an attempt, whether that still holds or not."""
    return [event.actor for event in desk.ledger.approvals_of(attempt)]


@cache
def code_digest() -> str:
    """SHA-256 over fishladder's own files: which code decided something is part of the evidence.

    The core's and, where it lies beside the core as in the repository, the plugin's, which says who has answered.
    """
    core = Path(__file__).parent
    root = core.parents[1]
    whole = hashlib.sha256()
    for path in sorted([*core.rglob("*.py"), *(root / "plugins" / "fishladder_airflow").rglob("*.py")]):
        whole.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()
