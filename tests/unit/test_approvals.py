"""Nothing moves but what other people have approved, for what it was when they looked at it."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from fishladder import tasks
from fishladder.clock import Clock, SystemClock
from fishladder.errors import InputError, LedgerError, StaleError
from fishladder.flip import Cutover
from fishladder.gates import closed
from fishladder.ledger import Attempt, CheckResult
from fishladder.serving import Replayer
from fishladder.spec import Migration
from fishladder.spec_parts import MAX_DURATION
from fishladder.stores import connect_url, open_store
from fishladder.tasks import Desk
from tests.approving import approve, make_evidence
from tests.unit import flips as moving
from tests.unit import small as smalls
from tests.unit.flips import Flips
from tests.unit.small import SPEC, Small

GATES = """
ids: {interleaved: true}
gates: {approvals: 2, approval_expires: 1h, observe: 1h, people: {ben: [ben.admin]}, service_accounts: [ci]}
monitors:
  free_items: {must_be: zero, target: "select count(*) from item where amount < 0"}
  items: {must_be: positive, source: "select count(*) from item"}
reports:
  amounts:
    source: select sum(amount) from item join fishladder_home on root_key = customer_id where cohort = :cohort
    target: select sum(amount) from item join fishladder_home on root_key = customer_id where cohort = :cohort
"""


class Watch:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.later = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    def monotonic(self) -> float:
        return self.now().timestamp()

    def sleep(self, seconds: float) -> None:
        self.later += timedelta(seconds=seconds)


def desk_of(small: Small, clock: Clock | None = None) -> Desk:
    return Desk(
        spec=small.spec,
        ledger=small.ledger,
        open=lambda connection: open_store(*connect_url(small.url(connection))),
        clock=clock or SystemClock(),
    )


class Case:
    """A loaded migration with gates, all evidence there, and a flip of NZ that ann has asked for."""

    def __init__(self, flips: Flips, small: Small) -> None:
        self.flips, self.small, self.clock = flips, small, Watch()
        small.ledger._clock = self.clock.now
        self.desk = desk_of(small, self.clock)
        small.follow()
        tasks.observe(self.desk)
        (self.attempt,) = tasks.ask(self.desk, "flip", ["NZ"], actor="ann", reason="it is time")

    def shown(self) -> str:
        return tasks.what_will_happen(self.desk, self.attempt.id)[1]

    def say_yes(self, account: str, shown: str | None = None) -> None:
        tasks.approve(self.desk, self.attempt.id, account=account, shown=shown or self.shown(), request=account)

    def cutover(self) -> Cutover:
        small = self.small
        return Cutover(
            spec=small.spec,
            plan=small.plan,
            stores={"source": small.source, "target": small.target},
            ledger=small.ledger,
            clock=self.clock,
            replay=Replayer(small.ledger, self.flips.operations, self.flips.stores).replay,
            runs=self.desk.runs,
            gates=lambda attempt, fenced: closed(self.desk.evaluate(attempt, fenced=fenced)),
        )

    def verify(self) -> None:
        assert self.cutover().verify(self.small.ledger.attempt(self.attempt.id))
        make_evidence(self.desk)

    def ends(self) -> Attempt:
        return self.cutover().run(self.attempt.id)

    def observed(self) -> None:
        """For long enough, quietly, and with an applier at work."""
        for _ in range(5):
            assert not tasks.watch(self.desk, self.attempt.id)
            self.clock.later += timedelta(minutes=12)
        assert tasks.watch(self.desk, self.attempt.id)
        self.small.ledger.note("applier", {"lag": 0.0})

    def until(self, step: str) -> None:
        while (attempt := self.cutover().advance(self.attempt.id)).step != step:
            assert attempt.outcome is None, attempt.error

    def aborts(self, why: str) -> None:
        ended = self.ends()
        assert ended.outcome == "aborted" and why in str(ended.error), ended.error
        assert self.flips.fences()[0][0] == "application"
        assert self.small.ledger.route("NZ").owner == "source"

    def sql(self, statement: str) -> None:
        with self.small.ledger.engine.begin() as connection:
            assert connection.execute(text(statement)).rowcount


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each test to copy: what is in it takes a second to make."""
    small = with_evidence(tmp_path_factory.mktemp("behind"))
    smalls.close([small])
    return small.folder


def with_evidence(folder: Path) -> Small:
    """A loaded migration, and a night's evidence."""
    small = smalls.make(folder, spec=SPEC + GATES)
    small.load()
    small.follow()
    desk = desk_of(small)
    small.ledger.record_spec(small.spec.to_json(), desk.runs["spec"], desk.runs["code"], "test")
    make_evidence(desk)
    return small


@pytest.fixture
def case(behind: Path, tmp_path: Path) -> Iterator[Case]:
    small = smalls.reopen(shutil.copytree(behind, tmp_path / "case"), spec=SPEC + GATES)
    with moving.flips(small) as flips:
        yield Case(flips, small)
    smalls.close([small])


def test_two_people_approve_and_it_moves(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    assert case.ends().outcome == "done"
    said = [(event.actor, event.body["person"]) for event in case.small.ledger.events() if event.event == "approved"]
    assert said == [("cleo", "cleo"), ("ben", "ben")]


def test_a_rollback_that_is_asked_for_during_replay_waits_for_its_end(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    cutover, number = case.cutover(), case.attempt.id
    while cutover.advance(number).step != "replay":
        assert case.small.ledger.attempt(number).outcome is None
    with pytest.raises(InputError, match=r"its flip no\. 1 of ann is still open \(replay\); wait for its end"):
        tasks.ask(case.desk, "rollback", ["NZ"], actor="ann", reason="it never ends")

    class Meanwhile(Watch):
        def sleep(self, seconds: float) -> None:
            cutover.run(number)

    (back,) = tasks.ask(replace(case.desk, clock=Meanwhile()), "rollback", ["NZ"], actor="ann", reason="")
    assert (case.small.ledger.attempt(number).outcome, back.kind, back.step) == ("done", "rollback", "verify")


@pytest.mark.parametrize("accounts", [(), ("ben",)])
def test_without_enough_people_nothing_is_fenced(case: Case, accounts: tuple[str, ...]) -> None:
    """Whoever marks tasks green, clears them or runs the DAG twice: the ledger has no approval."""
    tasks.open_gates(case.desk, case.attempt.id)
    for account in accounts:
        case.say_yes(account)
    case.verify()
    case.aborts(f"{len(accounts)} of 2 approvals hold")
    assert case.flips.fences() == [("application", 1), ("copier", 1)]


def test_without_evidence_nobody_can_approve(case: Case) -> None:
    with pytest.raises(InputError, match="evaluate them, then ask again"):
        case.shown()
    with pytest.raises(LedgerError, match=r"there is no evidence for attempt no\. 1: evaluate its gates"):
        case.say_yes("ben", "0" * 64)


@pytest.mark.parametrize("account", ["ann", "ANN", " Ann ", "ａｎｎ"])
def test_who_asked_cannot_approve(case: Case, account: str) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    with pytest.raises(InputError, match="asked for it, and somebody else has to approve it"):
        case.say_yes(account)
    with pytest.raises(InputError, match="asked for it, and somebody else has to approve it"):
        case.small.ledger.approve(
            case.attempt.id,
            person=account,
            account=account,
            request="1",
            shown=case.shown(),
            runs=case.desk.runs,
            expires_at=case.clock.now() + timedelta(hours=1),
        )


def test_who_asked_under_another_account_cannot_approve(case: Case) -> None:
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="Ben.Admin", reason="")
    tasks.open_gates(case.desk, case.attempt.id)
    with pytest.raises(InputError, match="ben asked for it, and somebody else"):
        case.say_yes("ben")


@pytest.mark.parametrize("account", ["Ben", "BEN.admin"])
def test_a_person_has_one_say(case: Case, account: str) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    case.say_yes("ben")
    with pytest.raises(InputError, match="has approved it already; it takes different people"):
        case.say_yes(account)


def test_a_task_that_died_after_it_had_recorded_may_be_repeated(case: Case) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    case.say_yes("ben")
    case.say_yes("ben")
    assert [event.event for event in case.small.ledger.events()].count("approved") == 1


def test_nobody_is_asked_about_an_attempt_that_is_over(case: Case) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    tasks.abort(case.desk, case.attempt.id, "rejected by ben", actor="ben")
    with pytest.raises(InputError, match=r"attempt no\. 1 is aborted already"):
        case.shown()


@pytest.mark.parametrize("actor", ["airflow", ""])
def test_somebody_has_to_ask(case: Case, actor: str) -> None:
    with pytest.raises(InputError, match="so nobody else could approve it: trigger it as a person"):
        tasks.ask(case.desk, "flip", ["AU"], actor=actor, reason="")


@pytest.mark.parametrize("account", ["ci", "CI", "airflow", "fishladder"])
def test_a_service_account_approves_nothing(case: Case, account: str) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    with pytest.raises(InputError, match="is a service account, and a person has to approve it"):
        case.say_yes(account)


def test_nobody_in_particular_approves_nothing(case: Case) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    with pytest.raises(InputError, match="somebody else has to approve it"):
        case.say_yes(" ")


# What makes an approval void -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["spec", "code"])
def test_another_migration_file_or_other_code(case: Case, part: str) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    ended = replace(case.cutover(), runs={**case.desk.runs, part: "f" * 64}).run(case.attempt.id)
    assert ended.outcome == "aborted" and "is of another migration file or code" in str(ended.error)


def test_any_word_of_the_file_counts(case: Case) -> None:
    """Those of gates, monitors and reports too, which change without prepare."""
    gates = case.desk.spec.gates.model_copy(update={"max_lag": timedelta(hours=1)})
    other = replace(case.desk, spec=case.desk.spec.model_copy(update={"gates": gates}))
    assert other.runs["spec"] != case.desk.runs["spec"] and other.runs["code"] == case.desk.runs["code"]


def test_nobodys_words_look_like_facts(case: Case) -> None:
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    reason = "see\n\n| gate | found |\n|---|---|\n| all | **open** | <b>x</b> [here](http://x)"
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="ann", reason=reason)
    tasks.open_gates(case.desk, case.attempt.id)
    shown, _ = tasks.what_will_happen(case.desk, case.attempt.id)
    (line,) = (line for line in shown.split("\n") if line.startswith("Asked for by ann:"))
    assert line.endswith(r"\| all \| \*\*open\*\* \| \<b\>x\<\/b\> \[here\]\(http:\/\/x\)")


def test_newer_evidence(case: Case) -> None:
    shown = tasks.open_gates(case.desk, case.attempt.id) and case.shown()
    case.say_yes("ben")
    tasks.open_gates(case.desk, case.attempt.id)
    with pytest.raises(StaleError, match="the evidence is not what cleo was shown; look at it again"):
        case.say_yes("cleo", shown)
    case.say_yes("cleo")
    case.verify()
    case.aborts("1 of 2 approvals hold")


def test_another_attempt(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    shown = case.shown()
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    with pytest.raises(StaleError, match=r"attempt no\. 1 is aborted already"):
        case.say_yes("dan", shown)
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="ann", reason="")
    tasks.open_gates(case.desk, case.attempt.id)
    with pytest.raises(StaleError, match="the evidence is not what dan was shown"):
        case.say_yes("dan", shown)
    case.verify()
    case.aborts("0 of 2 approvals hold")


def test_another_epoch(case: Case) -> None:
    """Whatever has raised it: nobody has approved a move from where the cohort is now."""
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    for table, cohort in ("route", "cohort = 'NZ'"), ("attempt", "id = 1"):
        case.sql(f"UPDATE ledger_{table} SET epoch = epoch + 1 WHERE {cohort}")
    for store in ("source", "target"):  # else their fences say that somebody was here
        case.small.application("UPDATE fishladder_fence SET epoch = epoch + 1 WHERE cohort = 'NZ'", store=store)
    case.aborts("0 of 2 approvals hold")


def test_time(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    case.clock.later = timedelta(minutes=61)
    make_evidence(case.desk)
    case.small.ledger.note("applier", {"lag": 0.0})
    case.aborts("0 of 2 approvals hold")


def test_a_clock_that_was_set_back(case: Case) -> None:
    case.verify()
    approve(case.desk, case.attempt, "ben", "cleo")
    case.clock.later = timedelta(hours=-2)
    with pytest.raises(LedgerError, match="0 of 2 approvals hold"):
        case.small.ledger.fence_attempt(case.small.ledger.attempt(case.attempt.id), case.desk.runs)


def test_an_approval_that_expires_under_the_fence_does_not_switch(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    while case.cutover().advance(case.attempt.id).step != "compare":
        pass
    case.sql("UPDATE ledger_attempt SET deadline = 1000000")
    case.clock.later = timedelta(minutes=61)
    make_evidence(case.desk)
    case.aborts("0 of 2 approvals hold")
    assert case.flips.fences() == [("application", 3), ("copier", 3)]


# Who writes into the ledger ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", ["passed = 1 - passed", "body = 'no JSON'", "body = replace(body, '0 open', '1 open')", "subject = 'x'"]
)
def test_evidence_that_was_changed(case: Case, change: str) -> None:
    approve(case.desk, case.attempt, "ben")
    shown = case.shown()
    case.sql(f"UPDATE ledger_evidence SET {change} WHERE kind = 'gates'")
    with pytest.raises(LedgerError, match="evaluate its gates"):
        case.say_yes("cleo", shown)
    with pytest.raises(InputError, match="evaluate them, then ask again"):
        case.shown()
    case.verify()
    case.aborts("evaluate its gates")


def test_an_approval_that_was_written_by_hand(case: Case) -> None:
    approve(case.desk, case.attempt, "ben")
    case.verify()
    case.sql(
        "INSERT INTO ledger_audit SELECT migration, sequence + 1, at, 'cleo', event,"
        " replace(body, 'ben', 'cleo'), previous, digest FROM ledger_audit WHERE event = 'approved'"
        " AND sequence + 1 NOT IN (SELECT sequence FROM ledger_audit)"
        " UNION SELECT migration, 9999, at, 'cleo', event, replace(body, 'ben', 'cleo'), previous, digest"
        " FROM ledger_audit WHERE event = 'approved'"
    )
    case.aborts("somebody wrote into the ledger")


def test_an_approval_for_somebody_elses_attempt_that_was_changed(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="ann", reason="")
    tasks.open_gates(case.desk, case.attempt.id)
    case.verify()
    case.sql(
        "UPDATE ledger_audit SET body = replace(body, '\"attempt\"\\:1', '\"attempt\"\\:2') WHERE event = 'approved'"
    )
    case.aborts("somebody wrote into the ledger")


# Gates ---------------------------------------------------------------------------------------------------------------


def test_gates_that_close_after_the_approval(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.small.damage("UPDATE item SET amount = -1 WHERE id = 20")
    tasks.observe(case.desk)
    with pytest.raises(InputError, match="its gates have closed since it was shown: monitors: free_items is not quiet"):
        case.say_yes("dan")
    assert case.cutover().verify(case.attempt)
    case.aborts("monitors: free_items is not quiet; switch small_monitor on")


def test_gates_that_close_under_the_fence(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    case.until("compare")
    case.small.damage("UPDATE item SET amount = -1 WHERE id = 20")
    tasks.observe(case.desk)
    case.aborts("its gates are closed: monitors: free_items is not quiet")


def test_what_came_since_the_attempt_was_asked_for_is_verified_while_writes_wait(case: Case) -> None:
    """And the years before are verified when no write waits: at the gates before the fence."""
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    case.until("compare")
    asked = case.small.ledger.asked(case.attempt)
    assert asked is not None and asked > 1

    def said(fenced: bool) -> bool:
        return any(line.startswith("audit chain") for line in closed(case.desk.evaluate(case.attempt, fenced=fenced)))

    case.sql(f"UPDATE ledger_audit SET actor = actor || 'x' WHERE sequence = {asked - 1}")
    assert (said(fenced=False), said(fenced=True)) == (True, False)
    case.sql(f"UPDATE ledger_audit SET actor = actor || 'x' WHERE sequence = {asked}")
    case.aborts(f"its gates are closed: audit chain: 1 problems: small: event {asked} is not what was written")


def test_a_yes_that_is_older_than_its_attempt_counts_for_nothing(case: Case) -> None:
    """It was written there by hand, where nobody looks again while writes wait."""
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    case.sql("UPDATE ledger_audit SET sequence = 0 WHERE event = 'approved' AND actor = 'ben'")
    with pytest.raises(LedgerError, match="1 of 2 approvals hold"):
        case.small.ledger.fence_attempt(case.small.ledger.attempt(case.attempt.id), case.desk.runs)
    case.sql("UPDATE ledger_audit SET event = 'nobody asked' WHERE event = 'flip asked for'")
    with pytest.raises(LedgerError, match="0 of 2 approvals hold"):
        case.small.ledger.fence_attempt(case.small.ledger.attempt(case.attempt.id), case.desk.runs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "DELETE FROM ledger_evidence WHERE kind = 'report'",
            r"reports: amounts NZ: nothing is known; run small_recon",
        ),
        ("UPDATE ledger_evidence SET body = '{}' WHERE kind = 'report'", "amounts NZ: its evidence is not what was"),
        ("UPDATE ledger_evidence SET passed = 0 WHERE kind = 'monitor'", "free_items: its evidence is not what was"),
        ("DELETE FROM ledger_evidence WHERE subject = 'items'", "items: nothing is known; switch small_monitor on"),
        ("DELETE FROM ledger_check WHERE \"table\" = 'line'", "clean passes: line has 0 in a row; run small_reconcile"),
        ("UPDATE ledger_check SET void = 'x' WHERE \"table\" = 'line'", "line has 0 in a row"),
        ("DELETE FROM ledger_status", "caught up: no applier is at work; switch small_replicate on"),
        ("UPDATE ledger_status SET data = '{\"lag\": 9.0}'", r"caught up: 9\.0 s behind, at most 5s are allowed"),
        ("UPDATE ledger_audit SET actor = 'eve' WHERE sequence = 3", "audit chain: .*event 3 is not what was written"),
    ],
)
def test_a_gate_says_what_is_missing_and_what_to_run(case: Case, change: str, words: str) -> None:
    case.sql(change)
    assert any(re.search(words, line) for line in closed(tasks.open_gates(case.desk, case.attempt.id)))
    with pytest.raises(InputError, match="are not open: evaluate them, then ask again"):
        case.shown()


def test_the_gate_of_the_reports_names_what_differs(case: Case) -> None:
    case.small.damage("UPDATE item SET amount = 55 WHERE id = 10")
    tasks.report(case.desk)
    (line,) = (line for line in closed(tasks.open_gates(case.desk, case.attempt.id)) if line.startswith("reports"))
    assert "amounts NZ differs: only in the source: 5; only in the target: 55; run small_reconcile" in line


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (timedelta(minutes=16), "monitors: free_items: as of .* which is not within 15m"),
        (timedelta(hours=27), "reports: amounts NZ: as of .* which is not within 26h"),
        (timedelta(hours=27), "clean passes: .*the newest of line began at "),
        (timedelta(hours=-1), "clean passes: .*the newest of line began at "),
    ],
)
def test_evidence_grows_old(case: Case, later: timedelta, words: str) -> None:
    case.clock.later = later
    case.small.ledger.note("applier", {"lag": 0.0})
    assert any(re.search(words, line) for line in closed(case.desk.evaluate(case.attempt)))


def test_the_longest_duration_of_a_file_can_be_counted_back(case: Case) -> None:
    words = ("max_age", "monitor_age", "approval_expires", "observe", "max_lag")
    longest = with_gates(case, **dict.fromkeys(words, MAX_DURATION))
    assert closed(tasks.open_gates(longest, case.attempt.id)) == []
    case.desk = longest
    case.say_yes("ben")


def test_a_pass_that_was_not_decided_makes_no_clean_one_younger(case: Case) -> None:
    case.clock.later = timedelta(hours=27)
    ledger = case.small.ledger
    for table in tasks.cut(case.desk):
        check = ledger.begin_check(table, "c")
        ledger.finish_check(check, CheckResult(compared=1, deferred=1, coverage="c", by_cohort={}))
        assert ledger.clean_passes(table) == 3
    assert any("clean passes: the newest of" in line for line in closed(case.desk.evaluate(case.attempt)))


def test_a_monitor_without_data_is_not_quiet(case: Case) -> None:
    from fishladder.monitors import observe
    from fishladder.spec_parts import Monitor

    asked = {
        "nothing": "select amount from item where id = 99",
        "null": "select null",
        "words": "select 'many'",
        "two": "select 1, 1",
        "wrong": "select count(*) from nowhere",
    }
    monitors = {name: Monitor(must_be="positive", target=query) for name, query in asked.items()}
    spec = case.small.spec.model_copy(update={"monitors": monitors})
    found = {one.name: one for one in observe(spec, {"target": case.small.target})}
    assert not any(one.quiet for one in found.values())
    assert found["null"].values == {"target": "no data"} and "nowhere" in found["wrong"].values["target"]


def test_a_rollback_asks_for_less_and_is_approved_too(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    assert case.ends().outcome == "done"
    case.clock.later = timedelta(hours=30)
    (case.attempt,) = tasks.ask(case.desk, "rollback", ["NZ"], actor="ann", reason="")
    case.small.ledger.note("applier", {"lag": 0.0})
    approve(case.desk, case.attempt, "ben", "cleo")
    assert case.cutover().verify(case.attempt)
    assert case.ends().outcome == "done"


def test_status_says_what_an_attempt_waits_for(case: Case) -> None:
    (waiting,) = tasks.status(case.desk)["attempts"]
    assert (waiting["closed_gates"], waiting["approvals"], waiting["approved_by"]) == ([], 2, [])
    tasks.open_gates(case.desk, case.attempt.id)
    case.say_yes("ben.admin")
    case.clock.later = timedelta(minutes=16)
    (waiting,) = tasks.status(case.desk)["attempts"]
    assert waiting["approved_by"] == ["ben.admin"]
    assert any(line.startswith("monitors: ") for line in waiting["closed_gates"])


def test_a_completion_changes_nothing_before_it_is_approved(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    assert case.ends().outcome == "done"
    case.observed()
    (case.attempt,) = tasks.ask(case.desk, "complete", ["NZ"], actor="ann", reason="")
    assert case.small.ledger.route("NZ").stage == "live"
    tasks.open_gates(case.desk, case.attempt.id)
    case.say_yes("ben")
    ended = case.ends()
    assert ended.outcome == "aborted" and "1 of 2 approvals hold" in str(ended.error)
    assert case.small.ledger.route("NZ").stage == "live"
    (case.attempt,) = tasks.ask(case.desk, "complete", ["NZ"], actor="ann", reason="")
    approve(case.desk, case.attempt, "ben", "cleo")
    assert case.ends().outcome == "done" and case.small.ledger.route("NZ").stage == "complete"


def test_a_flip_with_no_router_alive_ends_well(case: Case) -> None:
    """Nobody queues, and neither operations nor the application's connections are asked for."""
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    ended = tasks.cut_over(case.desk, case.attempt.id)
    assert (ended.outcome, ended.error) == ("done", None)
    route = case.small.ledger.route("NZ")
    assert (route.stage, route.owner, case.small.ledger.count_queue()) == ("live", "target", {})
    case.small.application("UPDATE item SET amount = 77 WHERE id = 10", store="target")
    with pytest.raises(sqlite3.IntegrityError, match="is not open to the application here"):
        case.small.application("UPDATE item SET amount = 78 WHERE id = 10")
    tasks.replicate(case.desk, seconds=20, until_idle=True)
    assert case.flips.amount(10, "source") == 77 and case.flips.same()


# Deployments ---------------------------------------------------------------------------------------------------------


def with_gates(case: Case, **words: object) -> Desk:
    """The same migration with other gates, which nobody runs prepare for."""
    gates = case.desk.spec.gates.model_copy(update=words)
    return replace(case.desk, spec=case.desk.spec.model_copy(update={"gates": gates}))


def deployed(case: Case) -> list[tuple[str, str, str]]:
    """Who ran which file and which code, the oldest first."""
    events = [event for event in reversed(case.small.ledger.events()) if event.event == "spec recorded"]
    return [(event.actor, event.body["digest"], event.body["code_digest"]) for event in events]


def test_gates_that_ask_for_less_are_an_event(case: Case) -> None:
    tasks.open_gates(case.desk, case.attempt.id, actor="ann")
    (before,) = deployed(case)
    less = with_gates(case, approvals=1)
    tasks.open_gates(less, case.attempt.id, actor="eve")
    tasks.open_gates(less, case.attempt.id, actor="ann")
    assert deployed(case) == [before, ("eve", less.runs["spec"], less.runs["code"])]
    (newest,) = (event for event in case.small.ledger.events() if event.actor == "eve")
    assert (newest.body["digest_before"], newest.body["code_digest_before"]) == before[1:]
    for desk in case.desk, less:  # an auditor can read what each of them asked for
        record = case.small.ledger.spec(desk.runs["spec"])
        assert record is not None and Migration.from_json(record.spec).gates == desk.spec.gates


def test_new_code_is_an_event(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "code_digest", lambda: "f" * 64)
    tasks.open_gates(case.desk, case.attempt.id, actor="ann")
    assert deployed(case)[1:] == [("ann", case.desk.runs["spec"], "f" * 64)]


def test_what_comes_between_approval_and_cutover_is_an_event(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    other = with_gates(case, approvals=1)
    ended = tasks.cut_over(other, case.attempt.id, actor="eve")
    assert ended.outcome == "aborted" and "another migration file or code" in str(ended.error)
    assert deployed(case)[1:] == [("eve", other.runs["spec"], other.runs["code"])]


def test_another_data_part_still_needs_prepare(case: Case) -> None:
    tables = {**case.desk.spec.tables, "item": case.desk.spec.tables["price"]}
    other = replace(case.desk, spec=case.desk.spec.model_copy(update={"tables": tables}))
    with pytest.raises(InputError, match="its file changed since prepare ran; run small_prepare"):
        tasks.open_gates(other, case.attempt.id)
    assert len(deployed(case)) == 1


@pytest.mark.parametrize("file", ["include/fishladder/flip.py", "plugins/fishladder_airflow/operators.py"])
def test_the_code_is_the_cores_and_the_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """The plugin says who has answered."""
    monkeypatch.setattr(tasks, "__file__", str(tmp_path / "include/fishladder/tasks.py"))
    changed = tmp_path / file
    changed.parent.mkdir(parents=True)
    changed.write_text("one\n")
    before = tasks.code_digest.__wrapped__()
    changed.write_text("two\n")
    assert tasks.code_digest.__wrapped__() != before
