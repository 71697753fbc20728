"""After a flip: observed for a while, the next wave waits for that, and what is not quiet may go back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fishladder import tasks
from fishladder.errors import InputError
from fishladder.gates import closed
from tests.approving import approve, make_evidence
from tests.unit import small as smalls
from tests.unit.flips import flips
from tests.unit.small import SPEC
from tests.unit.test_approvals import GATES, Case, with_evidence

AUTOMATIC = GATES.replace("approvals: 2,", "approvals: 2, automatic_rollback: true,")
LOUD = "UPDATE item SET amount = -1 WHERE id = 10"
"""``free_items`` must be zero."""


def flipped(folder: Path, gates: str) -> Iterator[Case]:
    with_evidence(folder).ledger.close()
    small = smalls.reopen(folder, spec=SPEC + gates)
    with flips(small) as moving:
        case = Case(moving, small)
        approve(case.desk, case.attempt, "ben", "cleo")
        case.verify()
        assert case.ends().outcome == "done"
        yield case
    smalls.close([small])


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    yield from flipped(tmp_path, GATES)


@pytest.fixture
def automatic(tmp_path: Path) -> Iterator[Case]:
    yield from flipped(tmp_path, AUTOMATIC)


def evidence(case: Case) -> bool | None:
    found = case.small.ledger.latest_evidence("observed", f"attempt {case.attempt.id}")
    return None if found is None else found.passed


def test_it_is_observed_for_as_long_as_the_file_says(case: Case) -> None:
    for _ in range(4):
        assert not tasks.watch(case.desk, case.attempt.id) and evidence(case) is None
        case.clock.later += timedelta(minutes=14, seconds=59)
    assert not tasks.watch(case.desk, case.attempt.id) and evidence(case) is None
    case.clock.later += timedelta(seconds=4)
    assert tasks.watch(case.desk, case.attempt.id) and evidence(case) is True


def test_time_in_which_nobody_looked_does_not_count(case: Case) -> None:
    assert not tasks.watch(case.desk, case.attempt.id)
    case.clock.later += timedelta(hours=1)
    case.observed()


def test_once_observed_it_stays_so_whoever_runs_the_task_again(case: Case) -> None:
    case.observed()
    case.small.application(LOUD, store="target")
    assert tasks.watch(case.desk, case.attempt.id) and evidence(case) is True


def test_what_is_not_quiet_is_red_and_begins_anew_once_it_is_mended(case: Case) -> None:
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError, match="free_items must be zero"):
        tasks.watch(case.desk, case.attempt.id)
    assert evidence(case) is False
    case.small.application("UPDATE item SET amount = 1 WHERE id = 10", store="target")
    case.clock.later += timedelta(seconds=1)
    case.observed()


def test_rows_that_differ_are_not_quiet(case: Case) -> None:
    case.small.application(
        "INSERT INTO fishladder_copying VALUES (1)",
        "UPDATE item SET amount = 77 WHERE id = 10",
        "DELETE FROM fishladder_copying",
        store="source",
    )
    tasks.reconcile_table(case.desk, "item")
    with pytest.raises(InputError, match="1 mismatches"):
        tasks.watch(case.desk, case.attempt.id)


def test_only_what_has_flipped_is_observed(case: Case) -> None:
    (asked,) = tasks.ask(case.desk, "flip", ["AU"], actor="ann", reason="")
    with pytest.raises(InputError, match="has flipped nothing"):
        tasks.watch(case.desk, asked.id)


def test_the_next_wave_waits_for_it(case: Case) -> None:
    make_evidence(case.desk)
    (asked,) = tasks.ask(case.desk, "flip", ["AU"], actor="ann", reason="")

    def shut() -> list[str]:
        return [line for line in closed(case.desk.evaluate(asked)) if line.startswith("observed")]

    assert "NZ was not observed to the end" in shut()[0] and "small_flip" in shut()[0]
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError):
        tasks.watch(case.desk, case.attempt.id)
    assert "was not quiet" in shut()[0]
    case.small.application("UPDATE item SET amount = 1 WHERE id = 10", store="target")
    case.observed()
    assert shut() == []
    case.sql("UPDATE ledger_evidence SET passed = 0 WHERE kind = 'observed'")
    assert "not what was recorded" in shut()[0]


def test_it_goes_back_by_itself_if_the_file_says_so(automatic: Case) -> None:
    case = automatic
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError):
        tasks.watch(case.desk, case.attempt.id)
    ended = tasks.send_back(case.desk, case.attempt.id)
    assert ended is not None and (ended.kind, ended.outcome, ended.actor) == ("rollback", "done", "fishladder")
    assert f"flip no. {case.attempt.id} is not quiet: free_items must be zero" in ended.reason
    route = case.small.ledger.route("NZ")
    assert (route.stage, route.owner) == ("off", "source")
    assert case.flips.amount(10, "source") == -1 and case.flips.same()
    assert tasks.send_back(case.desk, case.attempt.id) is None  # cleared, and run again


def test_it_goes_back_only_for_evidence_that_was_recorded(automatic: Case) -> None:
    case = automatic
    assert tasks.send_back(case.desk, case.attempt.id) is None
    case.observed()
    assert tasks.send_back(case.desk, case.attempt.id) is None
    case.sql("UPDATE ledger_evidence SET passed = 0 WHERE kind = 'observed'")
    assert tasks.send_back(case.desk, case.attempt.id) is None
    assert case.small.ledger.route("NZ").owner == "target"


def test_nothing_goes_back_unless_the_file_says_so(case: Case) -> None:
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError):
        tasks.watch(case.desk, case.attempt.id)
    assert tasks.send_back(case.desk, case.attempt.id) is None
    assert case.small.ledger.route("NZ").owner == "target"


def test_what_it_came_to(case: Case) -> None:
    told = tasks.summary(case.desk, case.attempt.id)
    assert sorted(told["approved_by"]) == ["ben", "cleo"]
    assert (told["actor"], told["outcome"], told["writes_queued"], told["longest_wait"]) == ("ann", "done", 0, None)


def test_how_long_it_was_fenced(case: Case) -> None:
    """From the fence to the switch, by the ledger's clock."""
    now = datetime.now(UTC)
    case.small.ledger._clock = lambda: now
    number = case.flips.verified("rollback")
    case.flips.until(number, "drain")
    assert tasks.summary(case.desk, number)["seconds_fenced"] is None
    now += timedelta(seconds=2, milliseconds=500)
    case.flips.until(number, "open")
    now += timedelta(seconds=40)
    assert case.flips.cutover.run(number).outcome == "done"
    assert tasks.summary(case.desk, number)["seconds_fenced"] == 2.5
