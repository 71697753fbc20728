"""Attempts: one flip, rollback or completion of one cohort, step by step (design §10).

Every step is a compare-and-set on (attempt, epoch, step) together with the route, in one transaction with its audit
event: a task that was cleared, repeated or overtaken finds that its step is over, and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, func, insert, select, update

from fishladder.cells import NO_HOME
from fishladder.errors import InputError, LedgerError, StaleError
from fishladder.ledger import approvals, audit, tables
from fishladder.ledger.database import Transaction
from fishladder.ledger.routes import Route, StoreName, read, route_of, set_route

Kind = Literal["flip", "rollback", "complete"]
Step = Literal["verify", "fence", "drain", "compare", "open", "close", "replay", "free", "shut", "forget", "done"]
ProofKind = Literal["verified", "drained", "compared"]

BEFORE_SWITCH = ("verify", "fence", "drain", "compare")
"""Steps at which an attempt can still be aborted."""
OWNER_BEFORE: dict[str, StoreName] = {"flip": "source", "rollback": "target", "complete": "target"}
STAGES_BEFORE: dict[str, tuple[str, ...]] = {"flip": ("off", "shadow"), "rollback": ("live",), "complete": ("live",)}
STABLE = {"source": "off", "target": "live"}
"""The stage of a cohort that no attempt is moving, by its owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """``epoch``: the route's, which only this attempt changes. ``deadline``: seconds from fence to switch.

    ``error``: why it is being, or was, aborted. ``approvals``: how many different people have to approve it. ``head``:
    where the audit chain ended when one was read by its number, as "57 3fa…".
    """

    id: int
    cohort: str
    kind: Kind
    step: Step
    epoch: int
    actor: str
    reason: str
    request: str
    deadline: int
    approvals: int
    opened_at: datetime
    fenced_at: datetime | None = None
    switched_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    error: str | None = None
    head: str = field(default="", compare=False)

    @property
    def loser(self) -> StoreName:
        """The store that owns the cohort until the switch."""
        return OWNER_BEFORE[self.kind]

    @property
    def winner(self) -> StoreName:
        return "source" if self.loser == "target" else "target"


def begin(
    tx: Transaction,
    cohort: str,
    kind: Kind,
    actor: str,
    reason: str,
    request: str,
    deadline: int,
    approvals_needed: int,
    needs: Mapping[str, Collection[str]],
) -> Attempt:
    """Open an attempt, once for each ``request``, also when that one has ended.

    ``needs``: stages that other cohorts must have reached.

    Raises InputError.
    """
    audit.head(tx, lock=True)  # two who ask at once take turns, also for different cohorts
    routes = read(tx)
    route = routes.get(cohort)
    if cohort == NO_HOME or route is None:
        known = ", ".join(sorted(set(routes) - {NO_HOME}))
        raise InputError(f"{cohort!r} cannot flip: it is no cohort of {tx.migration}; there are {known}")
    other = open_of(tx, cohort)
    if other is not None and request and (other.kind, other.request) == (kind, request):
        return other
    if other is not None:
        raise InputError(
            f"{cohort}: its {other.kind} no. {other.id} of {other.actor} is still open ({other.step});"
            " wait for its end, or abort it"
        )
    before = _ended_of(tx, cohort, request) if request else None
    if before is not None:
        # Whoever clears a run in Airflow runs it again under the name of who triggered it.
        raise InputError(
            f"{cohort}: {request} has asked already, for {before.kind} no. {before.id}, which is {before.outcome};"
            " who wants it again asks in their own name: trigger the DAG again"
        )
    if route.stage not in STAGES_BEFORE[kind]:
        raise InputError(
            f"{cohort}: a {kind} starts from {' or '.join(STAGES_BEFORE[kind])}; the cohort is {route.stage}"
        )
    for other_cohort, stages in needs.items():
        found = routes[other_cohort].stage if other_cohort in routes else "unknown"
        if found not in stages:
            raise InputError(
                f"{cohort}: {other_cohort} comes first; it is {found} and has to be {' or '.join(sorted(stages))}"
            )
        moving = open_of(tx, other_cohort)
        if moving is not None and moving.kind != "complete":
            said = f"its {moving.kind} no. {moving.id} is still open; wait for its end, or abort it"
            raise InputError(f"{cohort}: {other_cohort} comes first, and {said}")
    values = {
        "migration": tx.migration,
        "cohort": cohort,
        "kind": kind,
        "step": "verify",
        "epoch": route.epoch,
        "open": 1,
        "actor": actor,
        "reason": reason,
        "request": request,
        "deadline": deadline,
        "approvals": approvals_needed,
        "opened_at": tx.now,
    }
    made = tx.connection.execute(insert(tables.attempt).values(values))
    assert made.inserted_primary_key is not None
    number = int(made.inserted_primary_key[0])
    asked = {"cohort": cohort, "kind": kind, "reason": reason, "approvals": approvals_needed}
    audit.append(tx, actor, f"{kind} asked for", {"attempt": number, **asked})
    return get(tx, number)


def get(tx: Transaction, number: int) -> Attempt:
    columns = tables.attempt.c
    query = select(tables.attempt).where(columns.migration == tx.migration, columns.id == number)
    row = tx.connection.execute(query).first()
    if row is None:
        raise InputError(f"{tx.migration} has no attempt no. {number}")
    return _attempt(row)


def anchored(tx: Transaction, number: int) -> Attempt:
    """With where the chain ends now, for the fences that it will order."""
    end = audit.head(tx)
    return replace(get(tx, number), head=f"{end.sequence} {end.digest}")


def open_of(tx: Transaction, cohort: str) -> Attempt | None:
    columns = tables.attempt.c
    query = select(tables.attempt).where(columns.migration == tx.migration, columns.cohort == cohort, columns.open == 1)
    row = tx.connection.execute(query).first()
    return None if row is None else _attempt(row)


def _ended_of(tx: Transaction, cohort: str, request: str) -> Attempt | None:
    """The newest ended attempt that this request has opened."""
    columns = tables.attempt.c
    mine = (columns.migration == tx.migration, columns.cohort == cohort, columns.request == request)
    query = select(tables.attempt).where(*mine, columns.outcome.is_not(None)).order_by(columns.id.desc()).limit(1)
    row = tx.connection.execute(query).first()
    return None if row is None else _attempt(row)


def every(tx: Transaction, *, only_open: bool, limit: int) -> list[Attempt]:
    columns = tables.attempt.c
    query = select(tables.attempt).where(columns.migration == tx.migration).order_by(columns.id.desc()).limit(limit)
    if only_open:
        query = query.where(columns.open == 1)
    return [_attempt(row) for row in tx.connection.execute(query)]


def _attempt(row: Row[Any]) -> Attempt:
    return Attempt(**{name: getattr(row, name) for name in Attempt.__dataclass_fields__ if name != "head"})


# Proofs ------------------------------------------------------------------------------------------------------------


def prove(tx: Transaction, attempt: Attempt, kind: ProofKind, body: Mapping[str, Any]) -> None:
    """Record a proof of this attempt in its epoch; a later one takes the place of an earlier one."""
    _check(tx, attempt)
    columns = tables.proof.c
    mine = (
        columns.migration == tx.migration,
        columns.attempt == attempt.id,
        columns.epoch == attempt.epoch,
        columns.kind == kind,
    )
    tx.connection.execute(tables.proof.delete().where(*mine))
    values = {"attempt": attempt.id, "epoch": attempt.epoch, "kind": kind, "body": audit.canonical(dict(body))}
    tx.connection.execute(insert(tables.proof).values(values | {"migration": tx.migration, "at": tx.now}))


def proofs(tx: Transaction, attempt: int, epoch: int | None = None) -> set[str]:
    """The kinds of proof that an attempt has, of one of its epochs or of any."""
    columns = tables.proof.c
    query = select(columns.kind).where(columns.migration == tx.migration, columns.attempt == attempt)
    return set(tx.connection.scalars(query if epoch is None else query.where(columns.epoch == epoch)))


def proof(tx: Transaction, attempt: int, kind: ProofKind) -> dict[str, Any] | None:
    """What the newest proof of this kind says."""
    columns = tables.proof.c
    query = select(columns.body).where(
        columns.migration == tx.migration, columns.attempt == attempt, columns.kind == kind
    )
    body = tx.connection.scalar(query.order_by(columns.epoch.desc()).limit(1))
    return None if body is None else dict(json.loads(body))


# Steps --------------------------------------------------------------------------------------------------------------


def complete(tx: Transaction, attempt: Attempt, runs: approvals.Runs) -> Attempt:
    """From ``verify`` to ``free``: the stage is ``complete``. Raises LedgerError without approval."""
    approvals.check(tx, attempt, runs, attempt.epoch)
    return _move(tx, attempt, "free", stage="complete", raised=True, event="completing")


def fence(tx: Transaction, attempt: Attempt, runs: approvals.Runs) -> Attempt:
    """From ``verify`` to ``fence``: the stage is ``fencing``.

    Raises LedgerError without the proof of a full pass or without approval.
    """
    if "verified" not in proofs(tx, attempt.id):
        raise LedgerError(f"{attempt.cohort}: attempt no. {attempt.id} has not compared its rows yet")
    approvals.check(tx, attempt, runs, attempt.epoch)
    return _move(tx, attempt, "fence", stage="fencing", raised=True, fenced_at=tx.now, event="fencing")


def queue(tx: Transaction, attempt: Attempt) -> Attempt:
    """From ``fence`` to ``drain``: the owner's fence says nobody, so writes may queue."""
    return _move(tx, attempt, "drain", stage="queue", event="queueing")


def drained(tx: Transaction, attempt: Attempt) -> Attempt:
    """From ``drain`` to ``compare``."""
    prove(tx, attempt, "drained", {})
    return _move(tx, attempt, "compare")


def switch(tx: Transaction, attempt: Attempt, runs: approvals.Runs) -> Attempt:
    """The point of no return, from ``compare`` to ``open``: the other store is the owner.

    Believes nobody: raises LedgerError unless the proofs of this very attempt and epoch are there, its approvals still
    hold and the ledger holds no doubt about the cohort, StaleError past the deadline.
    """
    audit.head(tx, lock=True)  # whoever records a doubt right now goes first
    approvals.check(tx, attempt, runs, attempt.epoch - 1)  # fencing has raised it
    missing = {"drained", "compared"} - proofs(tx, attempt.id, attempt.epoch)
    if missing or "verified" not in proofs(tx, attempt.id):
        raise LedgerError(f"{attempt.cohort}: no switch without proof: {', '.join(sorted(missing)) or 'verified'}")
    for name, table in (("dirty keys", tables.dirty), ("open rejects", tables.reject), ("mismatches", tables.mismatch)):
        query = select(func.count()).where(table.c.migration == tx.migration, table.c.cohort == attempt.cohort)
        if "state" in table.c:
            query = query.where(table.c.state == "open")
        if tx.connection.scalar(query):
            raise LedgerError(f"{attempt.cohort}: no switch while there are {name}")
    if is_late(attempt, tx.now):
        raise StaleError(f"{attempt.cohort}: its deadline of {attempt.deadline} s has passed; it can only be aborted")
    return _move(
        tx, attempt, "open", stage="replay", owner=attempt.winner, raised=True, switched_at=tx.now, event="switched"
    )


def abort(tx: Transaction, attempt: Attempt, error: str, actor: str) -> Attempt:
    """Back to the owner: at once before the fence, through replay after it. Raises StaleError after the switch."""
    if attempt.step not in BEFORE_SWITCH:
        raise StaleError(f"{attempt.cohort}: attempt no. {attempt.id} is past its switch and completes forward")
    if attempt.step == "verify":
        return _end(tx, attempt, "aborted", error, actor)
    return _move(tx, attempt, "open", stage="replay", raised=True, error=error, actor=actor, event="aborting")


def advance(tx: Transaction, attempt: Attempt, step: Step) -> Attempt:
    """To a step that changes no route."""
    return _move(tx, attempt, step)


def end_replay(tx: Transaction, attempt: Attempt) -> Attempt:
    """The end, in the transaction that saw the queue empty."""
    route = route_of(tx, attempt.cohort, lock=True)
    moved = _move(tx, attempt, "done", stage=STABLE[route.owner])
    outcome = "aborted" if attempt.error else "done"
    return _end(tx, moved, outcome, attempt.error, audit.MACHINE)


def end(tx: Transaction, attempt: Attempt) -> Attempt:
    """The end of a completion."""
    return _end(tx, attempt, "done", None, audit.MACHINE)


def is_late(attempt: Attempt, now: datetime) -> bool:
    """Whether the time from fence to switch is over. A clock that went back only makes it longer."""
    return attempt.fenced_at is not None and (now - attempt.fenced_at).total_seconds() > attempt.deadline


def _check(tx: Transaction, attempt: Attempt) -> Route:
    """Lock the route and see that the attempt is exactly where its caller read it. Raises StaleError."""
    route = route_of(tx, attempt.cohort, lock=True)
    now = get(tx, attempt.id)
    if (now.step, now.epoch, now.outcome) != (attempt.step, attempt.epoch, None) or route.epoch != attempt.epoch:
        raise StaleError(
            f"{attempt.cohort}: attempt no. {attempt.id} is at {now.outcome or now.step} in epoch {route.epoch}, not"
            f" at {attempt.step} in epoch {attempt.epoch}; somebody else has taken it further"
        )
    return route


def _move(
    tx: Transaction,
    attempt: Attempt,
    step: Step,
    *,
    stage: str | None = None,
    owner: StoreName | None = None,
    raised: bool = False,
    event: str | None = None,
    actor: str = audit.MACHINE,
    **fields: object,
) -> Attempt:
    audit.head(tx, lock=True)
    route = _check(tx, attempt)
    epoch = route.epoch + raised
    if stage is not None:
        set_route(tx, attempt.cohort, Route(stage=stage, owner=owner or route.owner, epoch=epoch))
    columns = tables.attempt.c
    tx.connection.execute(
        update(tables.attempt)
        .where(columns.migration == tx.migration, columns.id == attempt.id)
        .values(step=step, epoch=epoch, **fields)
    )
    if event is not None:
        body = {"attempt": attempt.id, "cohort": attempt.cohort, "epoch": epoch, "owner": owner or route.owner}
        audit.append(tx, actor, event, body | ({"error": fields["error"]} if "error" in fields else {}))
    return get(tx, attempt.id)


def _end(tx: Transaction, attempt: Attempt, outcome: str, error: str | None, actor: str) -> Attempt:
    audit.head(tx, lock=True)
    _check(tx, attempt)
    columns = tables.attempt.c
    tx.connection.execute(
        update(tables.attempt)
        .where(columns.migration == tx.migration, columns.id == attempt.id)
        .values(open=None, step="done", outcome=outcome, error=error, ended_at=tx.now)
    )
    body = {"attempt": attempt.id, "cohort": attempt.cohort} | ({"error": error} if error else {})
    audit.append(tx, actor, f"{attempt.kind} {outcome}", body)
    return get(tx, attempt.id)
