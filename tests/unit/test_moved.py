"""A row moves to another cohort, and its children go with it: what is pending of them goes, too."""

from __future__ import annotations

import pytest

from fishladder import apply
from tests.unit.flips import Flips

# Item 20 is customer 2's, of AU, and has line 1. It goes to customer 1, of NZ.
_MOVES = "UPDATE item SET customer_id = 1 WHERE id = 20"
CHANGES = {
    "a line that was added": ["INSERT INTO line VALUES (20, 2, 'new')", _MOVES],
    "a line that was changed": ["UPDATE line SET text = 'new' WHERE item_id = 20", _MOVES],
    "a line that was deleted": ["DELETE FROM line WHERE item_id = 20", _MOVES],
    "an item that is new": [
        "INSERT INTO item VALUES (21, 2, 1)",
        "INSERT INTO line VALUES (21, 1, 'new')",
        "UPDATE item SET customer_id = 1 WHERE id = 21",
    ],
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_flip_takes_what_was_pending_of_its_new_rows_along(flips: Flips, changes: list[str]) -> None:
    """The journal has the children under the cohort that they came from, where no drain of this one looks."""
    number = flips.verified(cohort="NZ")
    for change in changes:
        flips.small.application(change)
    flips.cutover.run(number)
    flips.small.follow()
    assert flips.small.ledger.attempt(number).outcome == "done"
    assert flips.same()


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_nothing_is_forgotten_while_the_new_cohort_is_closed(flips: Flips, changes: list[str]) -> None:
    small = flips.small
    for change in changes:
        small.application(change)
    fence = small.target.fences()["NZ"]
    small.application("UPDATE fishladder_fence SET writer = 'nobody' WHERE cohort = 'NZ'", store="target")
    small.follow()
    small.application("UPDATE fishladder_fence SET writer = 'copier' WHERE cohort = 'NZ'", store="target")
    assert small.target.fences()["NZ"] == fence
    small.follow()
    assert flips.same()


def test_children_that_went_with_their_new_entity_are_not_forgotten(flips: Flips) -> None:
    """Their deletion is journaled under that one; the copies are still under the one before, which is closed."""
    small = flips.small
    small.application(_MOVES.replace("= 1", "= 3"))
    small.application("DELETE FROM customer WHERE id = 3")
    small.application("UPDATE fishladder_fence SET writer = 'nobody' WHERE cohort = 'AU'", store="target")
    small.follow()
    small.application("UPDATE fishladder_fence SET writer = 'copier' WHERE cohort = 'AU'", store="target")
    small.follow()
    assert flips.same()


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_one_entry_at_a_time(flips: Flips, changes: list[str]) -> None:
    """Whatever a batch ends with."""
    small = flips.small
    for change in changes:
        small.application(change)
    for _ in range(20):
        apply.apply_round(small.plan, [small.ends], small.ledger, 1)
    assert flips.same()
