"""Whether the ledger is the one that it was: a backup that was restored has forgotten doubts (ADR 7).

Rejects, mismatches and marked keys would be gone, and clean passes would say more than is known. So the target
remembers the last thing that the ledger told it, and whoever copies or compares asks the ledger whether it knows that.
"""

from __future__ import annotations

from fishladder.errors import LedgerError
from fishladder.ledger import Ledger, Told
from fishladder.stores.base import Fenced, Store


def heard_by(target: Store) -> Told:
    assert isinstance(target, Fenced)
    number, word = target.heard()
    return Told(number=number, word=word)


def was_restored(target: Store, ledger: Ledger) -> bool:
    """Whether the target has heard what the ledger does not know."""
    heard = heard_by(target)
    while not ledger.knows(heard):
        # What is older than the target's is forgotten: perhaps it has heard something newer since it was asked.
        last, heard = heard, heard_by(target)
        if heard == last:
            return True
    return False


def check_ledger(target: Store, ledger: Ledger) -> None:
    """Raises LedgerError when the target has heard of the ledger what the ledger does not know."""
    if was_restored(target, ledger):
        raise LedgerError(
            f"the ledger of {ledger.migration} does not know what it told the target last: it was restored from a"
            " backup, or is another one. Nothing is copied or compared until somebody has it adopted:"
            " python -m fishladder ledger adopt FILE"
        )


def tell_target(target: Store, ledger: Ledger) -> None:
    """Let the target remember the ledger as it is now. Cut short anywhere, it changes nothing."""
    assert isinstance(target, Fenced)
    told = ledger.tell(heard_by(target))
    target.hear(told.number, told.word)
