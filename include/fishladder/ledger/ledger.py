"""The ledger of one migration: every public method is exactly one transaction.

All raise TransientError (nothing is done: repeat), AmbiguousError (the connection was lost in the commit: read before
anything else) and FatalError; LedgerError among them if the tables are missing. Keys and entities are key texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import Engine

from fishladder.ledger import (
    approvals,
    attempts,
    audit,
    checks,
    chunks,
    control,
    dirty,
    evidence,
    queue,
    rejects,
    routes,
    specs,
    told,
    version,
)
from fishladder.ledger.attempts import Attempt, ProofKind, Step
from fishladder.ledger.audit import Event, Head
from fishladder.ledger.checks import Check, CheckResult, Mismatch, Streak
from fishladder.ledger.chunks import Bounds, Chunk, ChunkState, Progress, TableState
from fishladder.ledger.control import Control, Status
from fishladder.ledger.database import Transaction, open_engine, transaction
from fishladder.ledger.dirty import DirtyEntry, DirtyKey
from fishladder.ledger.evidence import Evidence
from fishladder.ledger.queue import Queued, Waiting
from fishladder.ledger.rejects import Reject
from fishladder.ledger.routes import Route, StoreName
from fishladder.ledger.specs import SpecRecord
from fishladder.ledger.told import Told


def utc_now() -> datetime:
    return datetime.now(UTC)


def open_ledger(url: str, *, migration: str, clock: Callable[[], datetime] = utc_now) -> Ledger:
    """The ledger at ``sqlite:////path``, ``mysql://…`` or ``postgresql://…``; connects when used. Raises InputError."""
    return Ledger(open_engine(url), migration=migration, clock=clock)


class Ledger:
    """``engine`` is one of ``open_engine``; ``clock`` gives aware datetimes. Threads may share it; processes not."""

    def __init__(self, engine: Engine, *, migration: str, clock: Callable[[], datetime]) -> None:
        self.engine = engine
        self.migration = migration
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        self.engine.dispose()

    def now(self) -> datetime:
        """What its clock says."""
        return self._clock()

    def check_version(self) -> None:
        """Raises LedgerError unless the tables are those of this code."""
        version.check_version(self.engine)

    @contextmanager
    def _begin(self, *, writing: bool) -> Iterator[Transaction]:
        with transaction(self.engine, writing=writing) as connection:
            # The moment is read after BEGIN, which may have waited.
            yield Transaction(connection=connection, migration=self.migration, now=self._clock())

    def _read(self) -> AbstractContextManager[Transaction]:
        return self._begin(writing=False)

    def _write(self) -> AbstractContextManager[Transaction]:
        return self._begin(writing=True)

    # The migration file --------------------------------------------------------------------------------

    def record_spec(
        self, spec_json: str, digest: str, code_digest: str, actor: str, after: SpecRecord | None = None
    ) -> bool:
        """Whether it was new: another digest, of the file or of the code, than the last one recorded.

        ``after``: what the caller knows as the last one. Raises TransientError when another has come between.
        """
        with self._write() as tx:
            return specs.record(tx, spec_json, digest, code_digest, actor, after)

    def spec(self, digest: str | None = None) -> SpecRecord | None:
        """The last one recorded, or the last one with this digest."""
        with self._read() as tx:
            return specs.latest(tx, digest)

    # Routes --------------------------------------------------------------------------------------------

    def ensure_routes(self, cohorts: Collection[str], actor: str) -> None:
        """Add those cohorts that have no route: stage ``off``, owner ``source``, epoch 1."""
        with self._write() as tx:
            routes.ensure(tx, cohorts, actor)

    def routes(self) -> dict[str, Route]:
        """Every cohort's route."""
        with self._read() as tx:
            return routes.read(tx)

    def route(self, cohort: str) -> Route:
        """One cohort's. Raises InputError if there is no such cohort."""
        with self._read() as tx:
            return routes.route_of(tx, cohort)

    # Attempts ------------------------------------------------------------------------------------------

    def begin_attempt(
        self,
        cohort: str,
        kind: attempts.Kind,
        *,
        actor: str,
        reason: str,
        deadline: int,
        request: str = "",
        approvals: int = 0,
        needs: Mapping[str, Collection[str]] | None = None,
    ) -> Attempt:
        """``begin_attempts`` for one cohort."""
        (attempt,) = self.begin_attempts(
            {cohort: needs or {}},
            kind,
            actor=actor,
            reason=reason,
            deadline=deadline,
            approvals=approvals,
            request=request,
        )
        return attempt

    def begin_attempts(
        self,
        wanted: Mapping[str, Mapping[str, Collection[str]]],
        kind: attempts.Kind,
        *,
        actor: str,
        reason: str,
        deadline: int,
        approvals: int,
        request: str = "",
    ) -> list[Attempt]:
        """Ask for a flip, a rollback or a completion of each cohort, or of none. ``deadline``: seconds from fence to
        switch. ``approvals``: how many different people have to approve each.

        ``wanted``: cohorts, with the stages that other cohorts must have reached before each. ``request``: who asks
        again under the same one gets the attempts that are open. Raises InputError: no such cohort, one that is not at
        the stage it starts from, another attempt of it that is open, one of this request that has ended, or a need
        that is not met.
        """
        with self._write() as tx:
            return [
                attempts.begin(tx, cohort, kind, actor, reason, request, deadline, approvals, needs)
                for cohort, needs in wanted.items()
            ]

    def attempt(self, number: int) -> Attempt:
        """As it is now. Raises InputError if there is none."""
        with self._read() as tx:
            return attempts.anchored(tx, number)

    def attempts(self, *, only_open: bool = False, limit: int = 1000) -> list[Attempt]:
        """The newest first."""
        with self._read() as tx:
            return attempts.every(tx, only_open=only_open, limit=limit)

    def prove(self, attempt: Attempt, kind: ProofKind, body: Mapping[str, Any]) -> None:
        """Record a proof that the switch asks for. Raises StaleError unless the attempt is as its caller read it."""
        with self._write() as tx:
            attempts.prove(tx, attempt, kind, body)

    def proof(self, attempt: int, kind: ProofKind) -> dict[str, Any] | None:
        """What the newest proof of this kind says."""
        with self._read() as tx:
            return attempts.proof(tx, attempt, kind)

    def approve(
        self,
        number: int,
        *,
        person: str,
        account: str,
        request: str,
        shown: str,
        runs: approvals.Runs,
        expires_at: datetime,
    ) -> None:
        """Record a person's yes to an attempt and to the evidence with the digest ``shown``.

        ``person``: whose ``account`` it is; one person has one say. ``request``: which question was answered; the same
        answer to it again changes nothing. Raises InputError (it is the requester, or the same person again),
        StaleError (the attempt has moved on, or its evidence is another one), LedgerError (its evidence is missing,
        was changed, or does not pass).
        """
        with self._write() as tx:
            approvals.approve(
                tx,
                attempts.get(tx, number),
                person=person,
                account=account,
                request=request,
                shown=shown,
                runs=runs,
                expires_at=expires_at,
            )

    def approvals_of(self, number: int) -> list[Event]:
        """Every yes to an attempt, whether it still holds or not; the newest first."""
        with self._read() as tx:
            return audit.named(tx, approvals.APPROVED, number)

    def asked(self, attempt: Attempt) -> int | None:
        """The number of the event that an attempt begins with; None: the audit has none, and was tampered with."""
        with self._read() as tx:
            return approvals.asked(tx, attempt)

    def complete_attempt(self, attempt: Attempt, runs: approvals.Runs) -> Attempt:
        """The stage is ``complete``, the epoch one higher. Raises LedgerError (not approved), StaleError."""
        with self._write() as tx:
            return attempts.complete(tx, attempt, runs)

    def fence_attempt(self, attempt: Attempt, runs: approvals.Runs) -> Attempt:
        """The stage is ``fencing``, the epoch one higher. ``runs``: what has to be approved.

        Raises LedgerError (not verified, or not approved), StaleError.
        """
        with self._write() as tx:
            return attempts.fence(tx, attempt, runs)

    def queue_attempt(self, attempt: Attempt) -> Attempt:
        """The owner's fence says nobody: the stage is ``queue``. Raises StaleError."""
        with self._write() as tx:
            return attempts.queue(tx, attempt)

    def drained(self, attempt: Attempt) -> Attempt:
        """Nothing of the cohort is dirty. Raises StaleError."""
        with self._write() as tx:
            return attempts.drained(tx, attempt)

    def switch(self, attempt: Attempt, runs: approvals.Runs) -> Attempt:
        """The other store owns the cohort, in a new epoch; from here it only goes forward.

        Raises LedgerError without the proofs of this attempt and epoch, without approvals that hold or with doubts
        left, StaleError (somebody took it further, or its deadline has passed).
        """
        with self._write() as tx:
            return attempts.switch(tx, attempt, runs)

    def abort(self, attempt: Attempt, error: str, *, actor: str = audit.MACHINE) -> Attempt:
        """The cohort stays where it is. Raises StaleError after the switch."""
        with self._write() as tx:
            return attempts.abort(tx, attempt, error, actor)

    def advance(self, attempt: Attempt, step: Step) -> Attempt:
        """To a step that changes no route. Raises StaleError."""
        with self._write() as tx:
            return attempts.advance(tx, attempt, step)

    def end_replay(self, attempt: Attempt) -> Attempt | None:
        """The cohort is ``live`` or ``off``, if its queue is empty; else None. Raises StaleError."""
        with self._write() as tx:
            routes.route_of(tx, attempt.cohort, lock=True)  # nobody queues from here on
            if queue.count_waiting(tx, attempt.cohort):
                return None
            return attempts.end_replay(tx, attempt)

    def end_attempt(self, attempt: Attempt) -> Attempt:
        """The end of a completion. Raises StaleError."""
        with self._write() as tx:
            return attempts.end(tx, attempt)

    # The queue -----------------------------------------------------------------------------------------

    def enqueue(
        self,
        cohort: str,
        entity: bytes,
        operation: str,
        key: str,
        digest: str,
        payload: str,
        *,
        optimistic: bool = False,
        epoch: int = 0,
    ) -> Queued | Route:
        """Accept a write for later, once per key, whose ``digest`` is of its first payload; the route instead where
        its stage takes none.

        ``optimistic``: something is due along with it. ``epoch``: the cohort has reached it; a ledger that was restored
        from before takes nothing.
        """
        with self._write() as tx:
            return queue.enqueue(tx, cohort, entity, operation, key, digest, payload, optimistic, epoch)

    def note_optimistic(self, queued: Queued, state: queue.Optimistic) -> None:
        """What became of that."""
        with self._write() as tx:
            queue.note_optimistic(tx, queued, state)

    def queued(self, operation: str, entity: bytes, key: str) -> Queued | None:
        """A write that was queued under this key, whatever became of it."""
        with self._read() as tx:
            return queue.find(tx, operation, entity, key)

    def waiting(self, limit: int = 1000) -> list[Queued]:
        """Queued writes of all cohorts that are still to come, oldest first."""
        with self._read() as tx:
            return queue.waiting(tx, limit)

    def standing(self, cohort: str, entity: bytes) -> tuple[Route, list[Waiting]]:
        """Where a cohort stands, and what waits of an entity of it, at one moment. Raises InputError."""
        with self._read() as tx:
            return queue.standing(tx, cohort, entity)

    def next_queued(self, cohort: str, limit: int = 100, *, after: int = 0) -> list[Queued]:
        """The oldest writes to replay; not of an entity that waits for a person, rests, or has one up to ``after``."""
        with self._read() as tx:
            return queue.oldest(tx, cohort, limit, after)

    def count_queue(self, cohort: str | None = None, since: datetime | None = None) -> dict[str, int]:
        """Writes per state, of those queued since then."""
        with self._read() as tx:
            return queue.count(tx, cohort, since)

    def longest_wait(self, cohort: str, since: datetime) -> float | None:
        """Seconds from queued to finished, of the write that waited longest among those queued since."""
        with self._read() as tx:
            return queue.longest_wait(tx, cohort, since)

    def finish_queued(self, results: Mapping[Queued, str | None]) -> None:
        """These queued writes are in the owner, with these results. Repeated, it changes nothing."""
        with self._write() as tx:
            queue.finish(tx, results)

    def refuse_queued(self, queued: Queued, reason: str) -> None:
        """The business said no to a queued write. Repeated, it changes nothing."""
        with self._write() as tx:
            queue.refuse(tx, queued, reason)

    def note_failed_replay(self, queued: Queued, reason: str, most: int) -> queue.State:
        """Count a failure of a queued write; after ``most`` it is parked, and its entity waits for a person."""
        with self._write() as tx:
            return queue.note_failure(tx, queued, reason, most)

    def rest_queued(self, queued: Queued) -> None:
        """Something passing was in the way of a queued write: it is tried again after a moment."""
        with self._write() as tx:
            queue.rest(tx, queued, queue.REST)

    def release_queued(self, number: int, *, actor: str) -> None:
        """Try a parked write again. Raises StaleError when it is not parked."""
        with self._write() as tx:
            queue.release(tx, number)
            audit.append(tx, actor, "parked write released", {"queued": number})

    def drop_queued(self, number: int, reason: str, *, actor: str) -> None:
        """Give a queued write up for a person's ``reason``: it is refused next, unless it took effect before.

        Raises StaleError when it does not wait.
        """
        with self._write() as tx:
            queue.give_up(tx, number, reason)
            audit.append(tx, actor, "queued write given up", {"queued": number, "reason": reason})

    # Tables and chunks ---------------------------------------------------------------------------------

    def table_state(self, table: str) -> TableState:
        """Which generation of the table is loading or closed; one never started is ``new``, generation 0."""
        with self._read() as tx:
            return chunks.state(tx, table)

    def start_table(self, table: str) -> int:
        """Open a new table for loading; its generation, whether or not it was new."""
        with self._write() as tx:
            return chunks.start(tx, table)

    def close_table(self, table: str, generation: int) -> None:
        """End the load. Raises StaleError (another generation), LedgerError (a chunk is not done, or there is none)."""
        with self._write() as tx:
            chunks.close(tx, table, generation)

    def check_restart(self, table: str, generation: int) -> None:
        """Raises what ``restart_table`` would raise; changes nothing."""
        with self._read() as tx:
            chunks.check_restart(tx, table, generation)

    def restart_table(self, table: str, generation: int, *, actor: str) -> None:
        """From ``generation`` to the next, which is ``cleaning``; does nothing if that is done. Forgets the table's
        rejects and mismatches, voids its checks, keeps its dirty keys.

        Raises StaleError (another generation), InputError (a cohort's route has left ``off``).
        """
        with self._write() as tx:
            if chunks.restart(tx, table, generation, actor):
                rejects.drop(tx, table)
                checks.settle_all(tx, table)
                checks.void(tx, [table], "the table was restarted")

    def finish_cleaning(self, table: str, generation: int) -> None:
        """The target's rows are gone: the table may be cut and loaded. Raises StaleError (another generation)."""
        with self._write() as tx:
            chunks.finish_cleaning(tx, table, generation)

    def cut(self, table: str, generation: int, bounds: Sequence[Bounds]) -> None:
        """Make chunks 1 to n of ``(lower, upper)`` unless this generation has some.

        Raises ValueError if they leave a gap or an end that is not open, StaleError (another generation), InputError
        (it is being cleaned).
        """
        with self._write() as tx:
            chunks.cut(tx, table, generation, bounds)

    def claim(self, table: str, generation: int, lane: str, stale: timedelta) -> Chunk | None:
        """The lane's own unfinished chunk, else a pending one, else one claimed longer ago than ``stale``; else None.

        Its token is raised, so whoever had it before has lost it. Raises StaleError (another generation).
        """
        with self._write() as tx:
            return chunks.claim(tx, table, generation, lane, stale)

    def finish_chunk(self, table: str, no: int, token: int, rows: int, *, done_under: int | None = None) -> bool:
        """Done, if the token is still mine (else False); drops the rejects that the chunk has under other tokens.

        ``done_under``: the token that the target's chunk row was done with, when that was an earlier one: its rows
        were not loaded again, so the rejects recorded with it are the ones that stay.
        """
        with self._write() as tx:
            return chunks.finish(tx, table, no, token, rows, done_under)

    def unfinished(self, table: str, generation: int) -> int:
        """Chunks that are not done. Raises LedgerError if the generation has no chunks."""
        with self._read() as tx:
            return chunks.unfinished(tx, table, generation)

    def progress(self, table: str | None = None) -> Progress:
        """Of one table or all."""
        with self._read() as tx:
            return chunks.progress(tx, table)

    def chunks(self, table: str) -> list[ChunkState]:
        """The chunks of the current generation in order."""
        with self._read() as tx:
            return chunks.read(tx, table)

    # Rejects -------------------------------------------------------------------------------------------

    def record_rejects(self, rows: Collection[Reject], *, chunk: int | None = None, token: int | None = None) -> None:
        """One per key: one that is there counts an attempt more and is open again.

        From a load: with the chunk and its token, before the target's transaction commits. Raises StaleError if
        the chunk is not mine any more.
        """
        with self._write() as tx:
            if chunk is not None:
                for table in sorted({row.table for row in rows}):
                    chunks.hold(tx, table, chunk, token)
            rejects.record(tx, rows, chunk, token)

    def close_rejects(self, table: str, keys: Collection[bytes]) -> None:
        """These keys were written after all."""
        with self._write() as tx:
            rejects.close(tx, table, keys)

    def open_rejects(self, table: str | None = None, limit: int = 1000) -> list[Reject]:
        """The oldest ones."""
        with self._read() as tx:
            return rejects.read(tx, table, limit)

    def rejected_keys(self, table: str, keys: Collection[bytes]) -> set[bytes]:
        """Which of these keys have an open reject."""
        with self._read() as tx:
            return rejects.among(tx, table, keys)

    def count_rejects(self, *, table: str | None = None, cohort: str | None = None) -> int:
        """Open ones."""
        with self._read() as tx:
            return rejects.count(tx, table=table, cohort=cohort)

    def retry_rejects(self, table: str | None = None, error: str | None = None, *, actor: str = audit.MACHINE) -> int:
        """Mark open rejects' keys dirty: of this table only, whose error contains this text only; how many it were."""
        with self._write() as tx:
            return rejects.retry(tx, table, error, actor)

    # Dirty keys ----------------------------------------------------------------------------------------

    def mark_dirty(self, keys: Collection[DirtyKey], *, actor: str | None = None) -> None:
        """Add one entry per key, also for a key that has some. ``actor``: the person who asked for it."""
        with self._write() as tx:
            dirty.mark(tx, keys)
            if actor is not None and keys:
                marked = dict(sorted(Counter(key.table for key in keys).items()))
                audit.append(tx, actor, "keys marked dirty", {"keys": marked, "origin": next(iter(keys)).origin})

    def dirty(
        self,
        limit: int,
        after_id: int = 0,
        *,
        tables: Collection[str] | None = None,
        cohorts: Collection[str] | None = None,
    ) -> list[DirtyEntry]:
        """The oldest entries (of these tables and cohorts), by ``id``; a lower id may still turn up later."""
        with self._read() as tx:
            return dirty.read(tx, limit, after_id, tables, cohorts)

    def dirty_of(self, table: str, keys: Collection[bytes]) -> list[DirtyEntry]:
        """All entries of these keys."""
        with self._read() as tx:
            return dirty.of(tx, table, keys)

    def record_outcome(
        self,
        right: Mapping[str, Collection[bytes]],
        refused: Collection[Reject],
        doubt: Callable[[str, bytes], DirtyKey],
    ) -> list[int]:
        """What a batch of the applier found: keys that are right now, by table, and rows that were refused.

        Closes the rejects and mismatches of the one, records the other. Called before the batch commits, while its
        shards are locked: later, it could close what the next batch has just recorded. Each key of which it changes
        something is dirty from then on, as ``doubt`` says: returns the entries, to be forgotten after the commit.
        """
        with self._write() as tx:
            changed = {(reject.table, reject.key) for reject in refused}
            for table, keys in right.items():
                changed |= {(table, key) for key in rejects.close(tx, table, keys)}
                changed |= {(table, key) for key in checks.settle_mismatches(tx, table, keys)}
            rejects.record(tx, refused, None, None)
            return [dirty.mark_one(tx, doubt(table, key)) for table, key in sorted(changed)]

    def forget(self, ids: Collection[int]) -> None:
        """Delete exactly these entries."""
        if ids:
            with self._write() as tx:
                dirty.forget(tx, ids)

    def dirty_keys(self, table: str, keys: Collection[bytes]) -> set[bytes]:
        """Which of these keys have an entry."""
        with self._read() as tx:
            return dirty.among(tx, table, keys)

    def count_dirty(self, cohort: str | None = None) -> int:
        """Entries, of all cohorts or one."""
        with self._read() as tx:
            return dirty.count(tx, cohort)

    def dirty_by_cohort(self) -> dict[str, int]:
        """Entries of each cohort that has any."""
        with self._read() as tx:
            return dirty.by_cohort(tx)

    # Checks --------------------------------------------------------------------------------------------

    def begin_check(self, table: str, coverage: str) -> int:
        """A new check's id; it started now, under this coverage."""
        with self._write() as tx:
            return checks.begin(tx, table, coverage)

    def note_compared(self, check: int, rows_source: int, rows_target: int) -> None:
        """Add to the rows read. Raises LedgerError (no such check), StaleError (it is finished)."""
        with self._write() as tx:
            checks.note_compared(tx, check, rows_source, rows_target)

    def record_mismatches(self, check: int, owner: StoreName, mismatches: Collection[Mismatch]) -> None:
        """Record where the copies differ from the ``owner``'s rows, and mark their keys dirty.

        Raises LedgerError (no such check), StaleError (it is finished, or a cohort of theirs has another owner now).
        """
        with self._write() as tx:
            checks.record_mismatches(tx, check, owner, mismatches)

    def finish_check(self, check: int, result: CheckResult) -> bool:
        """Whether it is clean: no mismatch, nothing deferred, no orphans or duplicates, the same coverage, not void.

        Finishing it again changes nothing. Raises LedgerError (no such check).
        """
        with self._write() as tx:
            return checks.finish(tx, check, result)

    def clean_passes(self, table: str) -> int:
        """How many clean checks there are since the last one that was not, or was voided."""
        with self._read() as tx:
            streak = checks.streaks(tx, table).get(table)
        return streak.count if streak else 0

    def streaks(self) -> dict[str, Streak]:
        """Of every table that has a clean check since the last one that was not, or was voided."""
        with self._read() as tx:
            return checks.streaks(tx)

    def void_checks(self, tables: Collection[str], why: str) -> int:
        """The clean and the running checks of these tables do not count any more; how many that were."""
        with self._write() as tx:
            return checks.void(tx, tables, why)

    def checks(self, table: str | None = None, limit: int = 100) -> list[Check]:
        """The newest first."""
        with self._read() as tx:
            return checks.read(tx, table, limit)

    def settle_mismatches(self, table: str, keys: Collection[bytes]) -> None:
        """These keys are right again."""
        with self._write() as tx:
            checks.settle_mismatches(tx, table, keys)

    def open_mismatches(self, table: str | None = None, limit: int = 1000) -> list[Mismatch]:
        """The oldest ones."""
        with self._read() as tx:
            return checks.open_mismatches(tx, table, limit)

    def count_mismatches(self, cohort: str | None = None) -> int:
        """Open ones."""
        with self._read() as tx:
            return checks.count_mismatches(tx, cohort)

    # Coverage and evidence -----------------------------------------------------------------------------

    def record_coverage(self, store: StoreName, parts: Mapping[str, str]) -> None:
        """The digest of each table's coverage in a store; tables that are not named stay as they are."""
        with self._write() as tx:
            evidence.record_coverage(tx, store, parts)

    def coverage(self, store: StoreName) -> dict[str, str]:
        """The digest of each table's coverage, as recorded."""
        with self._read() as tx:
            return evidence.coverage(tx, store)

    def record_evidence(self, kind: str, subject: str, body: Mapping[str, Any], passed: bool, began: datetime) -> str:
        """Its digest; the same evidence twice is one. Raises TypeError or ValueError if ``body`` is no JSON."""
        with self._write() as tx:
            return evidence.record(tx, kind, subject, body, passed, began)

    def latest_evidence(self, kind: str, subject: str | None = None) -> Evidence | None:
        """The one recorded last."""
        with self._read() as tx:
            return evidence.latest(tx, kind, subject)

    def evidence_between(
        self, kind: str, subject: str, since: datetime, until: datetime, *, edited: bool = False
    ) -> list[Evidence]:
        """What began from ``since`` to ``until`` and is what was recorded; the oldest first.

        ``edited``: also what is not genuine any more.
        """
        with self._read() as tx:
            return evidence.between(tx, kind, subject, since, until, edited)

    def evidence(self, digest: str) -> list[Evidence]:
        """The one with this digest, and what was found with it: of the same kind, begun at the same moment.

        Empty if this migration has none of this digest.
        """
        with self._read() as tx:
            return evidence.together_with(tx, digest)

    def evidence_as_of(self, moment: datetime) -> list[Evidence]:
        """The newest of each kind about each subject that was there at that moment."""
        with self._read() as tx:
            return evidence.as_of(tx, moment)

    # Control and status --------------------------------------------------------------------------------

    def control(self) -> Control:
        """What operators have set."""
        with self._read() as tx:
            return control.read(tx)

    def set_control(
        self,
        *,
        paused: bool | None = None,
        rows_per_second: int | None = None,
        running_threads: int | None = None,
        replica_lag: int | None = None,
        actor: str,
    ) -> Control:
        """Change what is given and leave the rest; 0 lifts a limit. Raises ValueError for a negative one."""
        limits = {"rows_per_second": rows_per_second, "running_threads": running_threads, "replica_lag": replica_lag}
        with self._write() as tx:
            return control.change(tx, paused, limits, actor)

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Set the last value of ``kind``."""
        with self._write() as tx:
            control.note(tx, kind, data)

    def status(self, kind: str) -> Status | None:
        """The last value of ``kind``."""
        with self._read() as tx:
            return control.status(tx, kind)

    def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to the counters of ``kind``."""
        with self._write() as tx:
            control.add_counts(tx, kind, counts)

    def counts(self, kind: str) -> dict[str, int]:
        """The counters of ``kind``."""
        with self._read() as tx:
            return control.counts(tx, kind)

    # Backups -------------------------------------------------------------------------------------------

    def tell(self, heard: Told) -> Told:
        """Something new for the target, which has ``heard`` that: a backup restored here will not know it.

        Raises LedgerError when this ledger is such a backup.
        """
        with self._write() as tx:
            return told.tell(tx, heard)

    def knows(self, heard: Told) -> bool:
        """Whether this ledger has told that; one that was restored from a backup has not."""
        with self._read() as tx:
            return told.knows(tx, heard)

    def adopt_table(self, table: str, generation: int, phase: Literal["loading", "closed"]) -> None:
        """Take over from the target where a table stands, after a backup was restored."""
        with self._write() as tx:
            chunks.adopt(tx, table, generation, phase)

    def finish_adoption(self, heard: Told, anchors: Collection[str], actor: str) -> Told:
        """After a backup was restored and all was adopted: what to tell the target, which has ``heard`` that.

        ``anchors``: of both stores. Those that lead to events which the backup did not have are forgiven by name.
        """
        with self._write() as tx:
            forgiven = sorted(audit.unknown(tx, anchors))
            audit.append(tx, actor, audit.ADOPTED, {"heard": heard.number, "anchors": forgiven})
            return told.tell(tx, heard, adopting=True)

    # Audit ---------------------------------------------------------------------------------------------

    def finish(self, actor: str) -> None:
        """Nothing of fishladder is left in the stores."""
        with self._write() as tx:
            audit.append(tx, actor, audit.FINISHED, {})

    def finished(self) -> bool:
        with self._read() as tx:
            return audit.happened(tx, audit.FINISHED)

    def record_event(self, event: str, body: Mapping[str, Any], *, actor: str) -> None:
        """Something that changes nothing else in the ledger."""
        with self._write() as tx:
            audit.append(tx, actor, event, dict(body))

    def events(self, limit: int = 100) -> list[Event]:
        """The newest first."""
        with self._read() as tx:
            return audit.events(tx, limit)

    def unknown_anchors(self, anchors: Collection[str]) -> set[str]:
        """Of these ends of the audit chain, as stores remember them, those that it does not have any more."""
        with self._read() as tx:
            return audit.unknown(tx, anchors)

    def audit_head(self) -> Head:
        """Where the chain ends, to be anchored outside the ledger."""
        with self._read() as tx:
            return audit.head(tx)
