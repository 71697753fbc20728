"""Coverage: whether each table is still the one, with the triggers, that prepare installed (design §5).

A journal is only as good as the triggers that write it, so everything that believes one asks here first.
"""

from __future__ import annotations

from collections.abc import Sequence

from fishladder.errors import CoverageError, TransientError
from fishladder.ledger import Ledger
from fishladder.plan import Plan, Side
from fishladder.spec import digest
from fishladder.stores.base import Fenced, Relation, Store, Triggers

GONE = "gone"
"""Recorded instead of a digest."""


def changed_coverage(plan: Plan, store: Store, side: Side, ledger: Ledger) -> list[str]:
    """The tables whose identity or triggers in this store are not what was recorded when they were installed."""
    assert isinstance(store, Fenced)
    recorded = ledger.coverage(side)
    relations = [relation for relation in plan.relations(side) if relation.table in recorded]
    return sorted(table for table, found in store.coverage(relations).items() if found != recorded[table])


def void_changed_coverage(plan: Plan, store: Store, side: Side, ledger: Ledger) -> list[str]:
    """The same, and their clean passes do not count any more."""
    changed = changed_coverage(plan, store, side, ledger)
    if changed:
        ledger.void_checks(changed, f"{side}: table or triggers changed behind the journal")
    return changed


def note_changed_coverage(plan: Plan, store: Store, side: Side, ledger: Ledger) -> None:
    """Before triggers are installed again, which then look as if they had never been gone: remember which were.

    So ``install_triggers`` finds these tables changed, and voids the passes that begin in between, too; after a prepare
    that is cut short here, the next one's does.
    """
    changed = void_changed_coverage(plan, store, side, ledger)
    if changed:
        ledger.record_coverage(side, dict.fromkeys(changed, GONE))


def install_triggers(
    triggers: Sequence[Triggers], relations: Sequence[Relation], store: Store, side: Side, ledger: Ledger
) -> None:
    """Install them, and take the coverage of these tables as it is right afterwards for what it must stay.

    Where it is not what was recorded before, changes may have gone unrecorded: clean passes do not count any more.
    Raises TransientError when a trigger is gone again: taken for what must be, nobody would ever miss it.
    """
    assert isinstance(store, Fenced)
    store.install_triggers(triggers)
    known, found = ledger.coverage(side), store.coverage(relations)
    if not store.has_triggers(triggers):
        raise TransientError(f"fishladder's triggers in the {side} are dropped or changed while they are installed")
    moved = sorted(table for table, digest_ in found.items() if known.get(table, digest_) != digest_)
    ledger.void_checks(moved, f"{side}: installed again after its triggers or its table had changed")
    ledger.record_coverage(side, found)


def check_coverage(plan: Plan, store: Store, side: Side, ledger: Ledger) -> str:
    """A digest of the store's coverage. Raises CoverageError naming the tables that are not what they were."""
    changed = void_changed_coverage(plan, store, side, ledger)
    if changed:
        raise CoverageError(
            f"{', '.join(changed)}: the {side}'s table or its fishladder triggers are not what prepare installed"
            " (truncated, altered, swapped, or a trigger dropped), so changes may be unrecorded. Find out which, run"
            " prepare, which installs them again, then reconcile: the first pass finds what was missed"
        )
    return digest(ledger.coverage(side))
