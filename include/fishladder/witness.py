"""What the stores' fences testify against the ledger (design §12).

Only the ledger's orders set fences, and each leaves there where the audit chain ended. So a store or a ledger that was
restored from a backup shows, and a chain that was cut or written anew, even by somebody who could write all of the
ledger's database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fishladder.cells import HOMELESS
from fishladder.ledger import Ledger, Route
from fishladder.plan import Side
from fishladder.stores.base import Fence, Fenced, Store, Writer

_WRITERS: Mapping[str, Mapping[Side, Writer]] = {
    "off": {"source": "application", "target": "copier"},
    "shadow": {"source": "application", "target": "copier"},
    "live": {"source": "copier", "target": "application"},
    "complete": {"source": "nobody", "target": "free"},
}
"""Whom each store's fence lets write at a stage in which no attempt is moving the cohort (design §9)."""


def contradictions(ledger: Ledger, stores: Mapping[Side, Store], *, way_back: bool = False) -> list[str]:
    """One sentence for each; none when ledger and stores agree. Cohorts that are moving are left out.

    ``way_back``: for a rollback, which those need whose target was restored: only of stores that are open and must not.
    """
    before = _still(ledger)
    problems = list(_rewritten(ledger, stores))
    fences = {side: _fenced(store).fences() for side, store in stores.items()}
    after = _still(ledger)
    for cohort, route in before.items():
        if after.get(cohort) != route:
            continue  # it has moved meanwhile
        for side, found in fences.items():
            wanted, fence = Fence(writer=_WRITERS[route.stage][side], epoch=route.epoch), found.get(cohort)
            if fence is None:
                mend = "run prepare" if route.owner == "source" else "put it back before prepare runs again"
                problems.append(
                    f"{cohort} is {route.stage} in epoch {route.epoch}, and the {side} has no fence of it that says"
                    f" {wanted.writer}, so nobody can write it there: it was deleted by hand, or the {side} was"
                    f" restored from before it was prepared; {mend}"
                )
            elif fence != wanted and not (way_back and fence.writer in {wanted.writer, "copier", "nobody"}):
                problems.append(
                    f"{cohort} is {route.stage} in epoch {route.epoch}, and the {side}'s fence says {fence.writer} in"
                    f" epoch {fence.epoch}: the {side} or the ledger was restored from a backup, or somebody has"
                    " written there by hand"
                )
    if _homeless_open(ledger, fences["source"]):
        problems.append(
            f"cohorts have moved, and the source's fence of rows without a home ({HOMELESS}) says"
            f" {fences['source'][HOMELESS].writer}: the source was restored from a backup, or somebody has written"
            " there by hand"
        )
    return problems


def forgotten(ledger: Ledger, stores: Mapping[Side, Store]) -> list[tuple[Side, str, Writer, int]]:
    """The orders that a store has forgotten which was restored: side, cohort, who may write it, epoch.

    Never one that opens a store: its rows may be of yesterday, and people decide what is to become of them.
    """
    fences = {side: _fenced(store).fences() for side, store in stores.items()}
    orders: list[tuple[Side, str, Writer, int]] = [
        (side, cohort, writer, route.epoch)
        for cohort, route in _still(ledger).items()
        for side, writer in _WRITERS[route.stage].items()
        if (fence := fences[side].get(cohort)) is not None
        and fence.epoch < route.epoch
        and writer in {"copier", "nobody", fence.writer}
    ]
    if _homeless_open(ledger, fences["source"]):
        orders.append(("source", HOMELESS, "nobody", fences["source"][HOMELESS].epoch + 1))
    return orders


def _homeless_open(ledger: Ledger, source: Mapping[str, Fence]) -> bool:
    """Whether somebody may write rows without a home into the source, though some may have got one in the target."""
    moved = any(route.owner == "target" for route in ledger.routes().values())
    return moved and HOMELESS in source and source[HOMELESS].writer != "nobody"


def _still(ledger: Ledger) -> dict[str, Route]:
    """The routes of cohorts that nothing moves. Whoever waits for a yes has not begun to."""
    routes = ledger.routes()
    moving = {attempt.cohort for attempt in ledger.attempts(only_open=True) if attempt.step != "verify"}
    return {
        cohort: route
        for cohort, route in routes.items()
        if cohort not in (*moving, HOMELESS) and route.stage in _WRITERS
    }


def _rewritten(ledger: Ledger, stores: Mapping[Side, Store]) -> Iterator[str]:
    for side, store in stores.items():
        anchors = _fenced(store).anchors()
        unknown = ledger.unknown_anchors(anchors.values())
        for cohort, anchor in anchors.items():
            if anchor in unknown:
                yield (
                    f"the {side}'s fence of {cohort} was set when the audit chain ended with event {anchor[:16]}…,"
                    " which is not in it any more: it was cut or written anew"
                )


def _fenced(store: Store) -> Fenced:
    assert isinstance(store, Fenced)
    return store
