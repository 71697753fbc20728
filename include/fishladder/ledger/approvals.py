"""Approvals: events of the audit chain, and nothing else (design §12).

An approval binds an attempt, in its epoch, to the migration file, the code and the evidence that a person was shown.
It counts for as long as all of these are the same and it has not expired. Nobody else's word is taken for it: a task
that was marked green has left no such event.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from fishladder.errors import InputError, LedgerError, StaleError
from fishladder.ledger import audit, evidence, tables
from fishladder.ledger.database import Transaction
from fishladder.spec_parts import identity

if TYPE_CHECKING:
    from fishladder.ledger.attempts import Attempt

APPROVED = "approved"
Runs = Mapping[str, str]
"""What decides and acts: the digests of the migration file, as a whole, and of the code, by name."""
GATES = "gates"
"""The kind of evidence that an approval is for; its subject is that of ``subject``."""
LOOK, OBSERVED = "look", "observed"
"""The kinds of evidence about what came after a flip, one look and the end; their subject is the same."""


def subject(attempt: int) -> str:
    return f"attempt {attempt}"


def approve(
    tx: Transaction,
    attempt: Attempt,
    *,
    person: str,
    account: str,
    request: str,
    shown: str,
    runs: Runs,
    expires_at: datetime,
) -> None:
    """Record a person's yes to the evidence with the digest ``shown``, once for each ``request``.

    Raises InputError (the requester, or the same person twice), StaleError (the attempt has moved on, or its evidence
    is another one by now), LedgerError (evidence is missing, changed or does not pass).
    """
    audit.head(tx, lock=True)
    if attempt.outcome is not None or attempt.step != "verify":
        raise StaleError(f"{attempt.cohort}: attempt no. {attempt.id} is {attempt.outcome or attempt.step} already")
    who = identity(person)
    if who in (identity(attempt.actor), ""):
        raise InputError(f"{attempt.cohort}: {account} asked for it, and somebody else has to approve it")
    bound = _bound(tx, attempt, runs, attempt.epoch)
    if bound["evidence"] != shown:
        raise StaleError(f"{attempt.cohort}: the evidence is not what {account} was shown; look at it again")
    earlier = _people(tx, attempt, bound).get(who)
    if earlier is not None:
        if earlier == request:
            return  # its task died before it could tell
        raise InputError(f"{attempt.cohort}: {account} has approved it already; it takes different people")
    body = {"attempt": attempt.id, "cohort": attempt.cohort, "person": who, "request": request, **bound}
    audit.append(tx, account, APPROVED, body | {"expires_at": expires_at.isoformat()})


def check(tx: Transaction, attempt: Attempt, runs: Runs, epoch: int) -> None:
    """Raises LedgerError unless enough people have approved what would happen now. ``epoch``: when it was asked for."""
    if not attempt.approvals:
        return
    bound = _bound(tx, attempt, runs, epoch)
    people = _people(tx, attempt, bound)
    if len(people) < attempt.approvals:
        raise LedgerError(
            f"{attempt.cohort}: {len(people)} of {attempt.approvals} approvals hold: they expire, and none holds for"
            " another migration file, code or evidence than was shown; ask for it again"
        )


def _bound(tx: Transaction, attempt: Attempt, runs: Runs, epoch: int) -> dict[str, Any]:
    """What an approval would be for."""
    shown = evidence.latest(tx, GATES, subject(attempt.id))
    if shown is None:
        raise LedgerError(f"{attempt.cohort}: there is no evidence for attempt no. {attempt.id}: evaluate its gates")
    if not shown.genuine or not shown.passed:
        why = "does not pass" if shown.genuine else "is not what was recorded"
        raise LedgerError(f"{attempt.cohort}: the evidence of attempt no. {attempt.id} {why}; evaluate its gates again")
    if shown.body.get("runs") != dict(runs):
        raise LedgerError(
            f"{attempt.cohort}: the evidence of attempt no. {attempt.id} is of another migration file or code; evaluate"
            " its gates again"
        )
    return {**runs, "evidence": shown.digest, "epoch": epoch}


def asked(tx: Transaction, attempt: Attempt) -> int | None:
    """The number of the event that an attempt begins with."""
    return audit.first(tx, f"{attempt.kind} asked for", attempt.id)


def _people(tx: Transaction, attempt: Attempt, bound: dict[str, Any]) -> dict[str, str]:
    """Whose approval of exactly this still counts, each with its request.

    Only of what comes after the attempt's own beginning: that part of the audit is verified again under the fence.
    """
    columns, since = tables.audit.c, asked(tx, attempt)
    people = dict[str, str]()
    if since is None:
        return people
    query = select(columns.at, columns.body).where(
        columns.migration == tx.migration, columns.event == APPROVED, columns.sequence > since
    )
    for at, text in tx.connection.execute(query):
        body = json.loads(text)
        # One from the future comes from a clock that was set back: nobody knows how old it is.
        fresh = datetime.fromisoformat(at) <= tx.now < datetime.fromisoformat(body["expires_at"])
        if fresh and body["attempt"] == attempt.id and all(body[name] == value for name, value in bound.items()):
            people[body["person"]] = body["request"]
    return people
