"""What nights and people do before a move: passes, reports and monitors, then somebody else's yes."""

from __future__ import annotations

from fishladder import tasks
from fishladder.gates import closed
from fishladder.ledger import Attempt
from fishladder.tasks import Desk

TRIES = 5


def approve(desk: Desk, attempt: Attempt, *accounts: str) -> None:
    """By these accounts, or by one."""
    if closed(desk.evaluate(attempt)):
        make_evidence(desk)
    problems = closed(tasks.open_gates(desk, attempt.id))
    assert not problems, problems
    _, shown = tasks.what_will_happen(desk, attempt.id)
    for account in accounts or ("somebody else",):
        tasks.approve(desk, attempt.id, account=account, shown=shown, request=account)


def make_evidence(desk: Desk) -> None:
    """As many clean passes as are asked for, reports and monitors."""
    for table in tasks.cut(desk):
        for _ in range(desk.spec.gates.clean_passes + TRIES):
            if desk.ledger.clean_passes(table) >= desk.spec.gates.clean_passes:
                break
            tasks.reconcile_table(desk, table)  # one that met keys too busy to judge is made again
    tasks.report(desk)
    tasks.observe(desk)
