"""Raising and lowering fences: who may write a cohort's rows in a store (design §5)."""

from __future__ import annotations

from fishladder.clock import Clock
from fishladder.errors import FatalError, TransientError
from fishladder.stores.base import Fence, Fenced, Store, Writer

TRIES_WITHOUT_WAITING = 20
"""Tries close together that nobody has to queue behind."""
BETWEEN_TRIES = 0.02
LONGEST_QUEUE = 1.0
"""Seconds to queue for the lock when those fail; the cohort's writers wait behind it meanwhile."""


def set_fence(
    store: Store, clock: Clock, cohort: str, writer: Writer, epoch: int, *, deadline: float = 30.0, head: str = ""
) -> Fence:
    """Let ``writer`` write this cohort from now on, and return the fence as it then stands.

    Waits for every open transaction of the cohort. Only ever to a higher epoch: a late or repeated order changes
    nothing, and the answer shows it. ``deadline`` in seconds; raises TransientError when it passes. ``head``: where the
    audit chain ends, to be remembered by the store.
    """
    assert isinstance(store, Fenced)
    end, tries = clock.monotonic() + deadline, 0
    while True:
        tries += 1
        try:
            with store.begin(wait=0 if tries <= TRIES_WITHOUT_WAITING else LONGEST_QUEUE) as transaction:
                found = transaction.lock_fences([cohort], exclusive=True)
                if cohort not in found:
                    raise FatalError(f"the store has no fence for {cohort}; run prepare")
                if found[cohort].epoch < epoch:
                    transaction.write_fence(cohort, Fence(writer=writer, epoch=epoch, head=head))
                transaction.commit()
            break
        except TransientError as error:
            if clock.monotonic() >= end:
                raise TransientError(
                    f"the fence of {cohort} could not be locked in {deadline:g} s: a transaction stays open"
                ) from error
            clock.sleep(BETWEEN_TRIES)
    return store.fences()[cohort]
