"""Ways to move a country without its people, that somebody has thought of: none of them works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fishladder import tasks
from fishladder.errors import InputError, LedgerError, SpecError, StaleError
from fishladder.gates import closed
from fishladder.spec import digest, loads
from fishladder.spec_parts import Monitor, Report
from tests.approving import approve, make_evidence
from tests.unit import flips as moving
from tests.unit import small as smalls
from tests.unit.small import SPEC
from tests.unit.test_approvals import GATES, Case, Watch, behind, desk_of
from tests.unit.test_observe import AUTOMATIC, LOUD

__all__ = ["behind"]
QUIET = "UPDATE item SET amount = 1 WHERE id = 10"


def opened(folder: Path, gates: str) -> Iterator[Case]:
    small = smalls.reopen(folder, spec=SPEC + gates)
    with moving.flips(small) as flips:
        yield Case(flips, small)
    smalls.close([small])


@pytest.fixture
def case(behind: Path, tmp_path: Path) -> Iterator[Case]:
    yield from opened(shutil.copytree(behind, tmp_path / "case"), GATES)


@pytest.fixture
def auto(behind: Path, tmp_path: Path) -> Iterator[Case]:
    yield from opened(shutil.copytree(behind, tmp_path / "case"), AUTOMATIC)


def flip(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    ended = case.ends()
    assert ended.outcome == "done", ended.error


def other_file(case: Case, **gates: object) -> None:
    """Somebody edits the migration file; prepare is not asked for."""
    changed = case.desk.spec.model_copy(update={"gates": case.desk.spec.gates.model_copy(update=gates)})
    case.desk = replace(case.desk, spec=changed)


def test_a_yes_is_for_the_file_that_was_shown(case: Case) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    body, shown = tasks.what_will_happen(case.desk, case.attempt.id)
    assert "people judge" in body and "observed for 1h" in body
    other_file(case, automatic_rollback=True, observe=timedelta(seconds=1))
    with pytest.raises(LedgerError, match="of another migration file or code"):
        case.say_yes("ben", shown)
    with pytest.raises(InputError, match="the migration file or the code has changed"):
        tasks.what_will_happen(case.desk, case.attempt.id)


def test_a_yes_is_for_the_figures_that_were_shown(case: Case) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    asked = tasks.what_will_happen(case.desk, case.attempt.id)
    case.small.application("UPDATE item SET amount = 999999 WHERE id = 10")
    case.small.follow()
    tasks.report(case.desk)
    tasks.observe(case.desk)
    assert tasks.what_will_happen(case.desk, case.attempt.id) == asked  # until its gates are evaluated again
    tasks.open_gates(case.desk, case.attempt.id)
    body, shown = tasks.what_will_happen(case.desk, case.attempt.id)
    assert body != asked[0] and shown != asked[1]
    with pytest.raises(StaleError, match="not what ben was shown"):
        case.say_yes("ben", asked[1])


def test_an_old_runs_send_back_does_not_move_a_later_flip(auto: Case) -> None:
    case = auto
    flip(case)
    first = case.attempt.id
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError):
        tasks.watch(case.desk, first)  # red; a person rolls back before send_back has run (or it was marked)
    case.small.application(QUIET, store="target")
    tasks.observe(case.desk)
    case.small.follow()
    (case.attempt,) = tasks.ask(case.desk, "rollback", ["NZ"], actor="ann", reason="")
    approve(case.desk, case.attempt, "ben", "cleo")
    assert case.cutover().verify(case.attempt) and case.ends().outcome == "done"
    make_evidence(case.desk)
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="ann", reason="again")
    flip(case)
    case.observed()
    assert tasks.send_back(case.desk, first) is None  # somebody clears it in the first run
    assert case.small.ledger.route("NZ").owner == "target"


def test_trouble_that_was_mended_sends_nothing_back(auto: Case) -> None:
    case = auto
    flip(case)
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError):
        tasks.watch(case.desk, case.attempt.id)  # send_back dies or is marked; people mend the cause
    case.small.application(QUIET, store="target")
    case.clock.later += timedelta(minutes=50)
    assert not tasks.watch(case.desk, case.attempt.id)  # quiet again, and observed anew
    tasks.observe(case.desk)
    case.small.ledger.note("applier", {"lag": 0.0})
    assert tasks.send_back(case.desk, case.attempt.id) is None
    assert case.small.ledger.route("NZ").owner == "target"


def test_who_approved_was_shown_that_people_judge(case: Case) -> None:
    flip(case)
    case.small.application(LOUD, store="target")
    with pytest.raises(InputError):
        tasks.watch(case.desk, case.attempt.id)
    other_file(case, automatic_rollback=True)
    assert tasks.send_back(case.desk, case.attempt.id) is None
    assert case.small.ledger.route("NZ").owner == "target"


def test_one_look_at_the_end_is_not_an_hour_of_quiet(case: Case) -> None:
    flip(case)  # observe is marked, or its worker is away
    case.clock.later += timedelta(minutes=30)
    case.small.application(LOUD, store="target")
    assert not all(one.quiet for one in tasks.observe(case.desk))  # small_monitor is red, and the ledger knows
    case.small.application(QUIET, store="target")
    case.clock.later += timedelta(minutes=30)
    with pytest.raises(InputError, match="free_items was not quiet at"):
        tasks.watch(case.desk, case.attempt.id)  # cleared


def test_a_worker_whose_clock_is_ahead_has_not_observed(case: Case) -> None:
    flip(case)
    ahead = type(case.clock)()
    ahead.later = case.clock.later + timedelta(hours=1)
    assert not tasks.watch(replace(case.desk, clock=ahead), case.attempt.id)


def test_two_looks_an_hour_apart_that_met_no_trouble(case: Case) -> None:
    """Who was away for all of the hour has seen nothing."""
    flip(case)
    case.clock.later += timedelta(hours=1)
    assert not tasks.watch(case.desk, case.attempt.id)


def test_as_many_people_as_the_file_asks_for(case: Case) -> None:
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    two = case.desk
    other_file(case, approvals=1)
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="ann", reason="")
    case.desk = two  # two are asked for from now on
    assert any(line.startswith("people: 1 of 2 are asked") for line in closed(case.desk.evaluate(case.attempt)))


def test_the_second_wave_does_not_go_while_the_first_is_back(case: Case) -> None:
    flip(case)
    case.observed()
    make_evidence(case.desk)
    (second,) = tasks.ask(case.desk, "flip", ["AU"], actor="ann", reason="")
    (case.attempt,) = tasks.ask(case.desk, "rollback", ["NZ"], actor="ann", reason="it does not work")
    approve(case.desk, case.attempt, "ben", "cleo")
    assert case.cutover().verify(case.attempt) and case.ends().outcome == "done"
    assert case.small.ledger.route("NZ").owner == "source"
    case.attempt = second
    make_evidence(case.desk)
    found = {gate.name: gate for gate in tasks.open_gates(case.desk, second.id)}
    if not closed(list(found.values())):
        flip(case)
    assert case.small.ledger.route("AU").owner == "source"


def test_one_account_belongs_to_one_person() -> None:
    text = SPEC + GATES.replace("people: {ben: [ben.admin]}", "people: {ben: [ben.admin], cleo: [BEN]}")
    with pytest.raises(SpecError, match="BEN is an account of ben and of cleo; keep one"):
        loads(text, name="x.yaml", environment={})


def test_evidence_is_of_the_monitor_that_the_file_has_now(case: Case) -> None:
    new = Monitor(must_be="zero", target="select count(*) from item")  # is 3, so it would be loud
    changed = case.desk.spec.model_copy(update={"monitors": {**case.desk.spec.monitors, "free_items": new}})
    case.desk = replace(case.desk, spec=changed)
    assert closed(case.desk.evaluate(case.attempt))


def test_evidence_is_of_the_report_that_the_file_has_now(case: Case) -> None:
    new = Report(source="select 1 where :cohort <> ''", target="select 2 where :cohort <> ''")
    changed = case.desk.spec.model_copy(update={"reports": {"amounts": new}})
    case.desk = replace(case.desk, spec=changed)
    assert closed(case.desk.evaluate(case.attempt))


def test_a_reports_words_do_not_look_like_facts(case: Case) -> None:
    words = "'7 | 7 |' || char(10, 10) || '**All approved already.** ![](http://evil.example/x)'"
    new = Report(source=f"select {words} where :cohort <> ''", target=f"select {words} where :cohort <> ''")
    changed = case.desk.spec.model_copy(update={"reports": {"amounts": new}})
    case.desk = replace(case.desk, spec=changed)
    tasks.report(case.desk)
    tasks.open_gates(case.desk, case.attempt.id)
    body, _ = tasks.what_will_happen(case.desk, case.attempt.id)
    assert "\n\n**All approved" not in body


def test_a_no_survives_a_restored_ledger(case: Case) -> None:
    folder = case.small.folder
    approve(case.desk, case.attempt, "ben", "cleo")
    for suffix in ("", "-wal", "-shm"):
        if (folder / f"ledger.db{suffix}").exists():
            shutil.copy(folder / f"ledger.db{suffix}", folder / f"backup.db{suffix}")
    tasks.abort(case.desk, case.attempt.id, "rejected by dan", actor="dan")
    case.small.follow()
    with case.desk.ends() as (_, _ends):
        pass  # the target is told something
    case.small.ledger.close()
    for suffix in ("", "-wal", "-shm"):
        (folder / f"ledger.db{suffix}").unlink(missing_ok=True)
        if (folder / f"backup.db{suffix}").exists():
            shutil.copy(folder / f"backup.db{suffix}", folder / f"ledger.db{suffix}")
    tasks.adopt_ledger(case.desk, actor="otto")
    ended = case.small.ledger.attempt(case.attempt.id)
    assert ended.outcome == "aborted" and "restored from a backup" in str(ended.error)


BASE = GATES.replace(
    "monitors:\n",
    "monitors:\n  errors: {must_be: no_more_than_before, within: 2, window: 1d,"
    ' target: "select amount from item where id = 10"}\n',
)


def test_a_minutes_runs_are_no_past(tmp_path: Path) -> None:
    small = smalls.make(tmp_path, spec=SPEC + BASE)
    small.load()
    small.follow()
    small.ledger.record_spec(small.spec.to_json(), digest(small.spec.data_part()), tasks.code_digest(), "test")
    clock = Watch()
    small.ledger._clock = clock.now
    desk = desk_of(small, clock)
    for _ in range(20):  # at 5: an hour and a half of the schedule
        tasks.observe(desk)
        clock.later += timedelta(minutes=5)
    small.damage("UPDATE item SET amount = 5000 WHERE id = 10")
    for _ in range(21):
        clock.later += timedelta(seconds=1)
        tasks.observe(desk)  # an operator triggers small_monitor by hand, in 21 seconds
    clock.later += timedelta(seconds=1)
    found = {one.name: one for one in tasks.observe(desk)}
    smalls.close([small])
    assert not found["errors"].quiet


@pytest.mark.parametrize(
    "cohorts", [["nz"], [" NZ"], ["NZ\u200b"], ["ＮＺ"], ["*"], ["?"], [""], ["NZ", "AU"], ["shared"], ["{{ 1 }}"]]
)
def test_odd_cohorts(case: Case, cohorts: list[str]) -> None:
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    with pytest.raises(InputError):
        tasks.ask(case.desk, "flip", cohorts, actor="ann", reason="")
    assert len(case.small.ledger.attempts()) == 1


def test_a_cohort_twice_is_one(case: Case) -> None:
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    assert len(tasks.ask(case.desk, "flip", ["NZ", "NZ"], actor="ann", reason="")) == 1
