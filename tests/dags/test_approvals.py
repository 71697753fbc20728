"""The tasks of a flip in Airflow: who is asked what, and what an answer does."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskAwaitingInput

from billing.database import connect
from fishladder import tasks
from fishladder.ledger import Route
from fishladder.reports import ReportResult
from fishladder.tasks import Desk
from fishladder_airflow import operators
from fishladder_airflow.dags import build
from fishladder_airflow.sensors import GatesOpen, Observe
from tests import independent
from tests.approving import approve, make_evidence
from tests.dags.conftest import FILE, triggered_by
from tests.scenario.worker import desk


def run(by: str | None = "ann", run_id: str = "manual") -> SimpleNamespace:
    return SimpleNamespace(triggering_user_name=by, dag_id="billing_flip", run_id=run_id)


def ask(by: str | None = "ann", run_id: str = "manual") -> list[dict[str, Any]]:
    operator = operators.AskFor(task_id="ask", migration_file=str(FILE), kind="flip")
    form = {"cohorts": ["NZ"], "reason": "it is time"}
    return operator.execute({"dag_run": run(by, run_id), "params": form})  # type: ignore[typeddict-item]


def gates(attempt: dict[str, Any]) -> dict[str, str]:
    operator = operators.EvaluateGates(task_id="gates", migration_file=str(FILE), attempt=attempt)
    return operator.execute({"dag_run": run()})  # type: ignore[typeddict-item]


def cut_over(attempt: dict[str, Any]) -> str:
    operator = operators.Cutover(task_id="cutover", migration_file=str(FILE), attempt=attempt)
    return operator.execute({"dag_run": run()})  # type: ignore[typeddict-item]


class Question:
    """The task that asks a person, through its two halves."""

    def __init__(self, attempt: dict[str, Any]) -> None:
        self.task = operators.ApproveFlip(task_id="approve", migration_file=str(FILE), attempt=attempt)
        self.kept: dict[str, Any] = {}

    def ask(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """What is shown. What Airflow's server would keep until the answer is kept here."""
        monkeypatch.setattr(operators.ApproveFlip, "_asked", lambda task, _: task.body)
        with pytest.raises(TaskAwaitingInput) as waiting:
            self.task.execute(self.context)
        assert waiting.value.method_name == "answered"
        self.kept = waiting.value.kwargs or {}
        return f"{self.task.subject}\n{self.task.body}"

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(id="1", dag_id="billing_flip", run_id="manual", task_id="country.approve", map_index=0)
        return {"ti": ti, "task_instance": ti, "task": self.task, "dag_run": run()}

    def answer(self, account: str, option: str = "Approve") -> None:
        event = {
            "chosen_options": [option],
            "params_input": {},
            "responded_at": datetime.now(UTC),
            "responded_by_user": {"id": account, "name": account},
        }
        self.task.answered(self.context, event, **self.kept)


def approved(made: Desk) -> list[str]:
    return [event.actor for event in made.ledger.events() if event.event == "approved"]


def test_closed_gates_are_red_and_say_what_to_run(prepared: Desk) -> None:
    (attempt,) = ask()
    with pytest.raises(AirflowFailException, match=r"clean passes: .* has 0 in a row; run billing_reconcile") as closed:
        gates(attempt)
    for words in ("revenue_by_month NZ: nothing is known", "switch billing_monitor on"):
        assert words in str(closed.value)
    with pytest.raises(AirflowFailException, match="are not open: evaluate them, then ask again"):
        Question(attempt).task.execute({})
    sensor = GatesOpen(task_id="wait", migration_file=str(FILE), attempt=attempt["attempt"])
    assert not sensor.poke({})
    make_evidence(prepared)
    assert sensor.poke({})


def test_new_code_is_an_event_under_the_name_of_who_runs_it(prepared: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evidence(prepared)
    (attempt,) = ask()
    monkeypatch.setattr(tasks, "code_digest", lambda: "f" * 64)
    gates(attempt)
    newest = next(event for event in prepared.ledger.events() if event.event == "spec recorded")
    assert (newest.actor, newest.body["code_digest"]) == ("ann", "f" * 64)


def test_a_person_sees_the_evidence_and_says_yes(prepared: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evidence(prepared)
    (attempt,) = ask()
    assert gates(attempt)["audit chain"] == "intact"
    question = Question(attempt)
    shown = question.ask(monkeypatch)
    wanted = ["billing: NZ: may it go?", "Asked for by ann: it is time", "| clean passes |", "| monitors | 3 quiet |"]
    for words in (*wanted, "| revenue_by_month |", "| customer | 1 |", question.kept["shown"]):
        assert words in shown, words
    question.answer("ben")
    assert approved(prepared) == ["ben"]
    question.answer("ben")  # it had died before Airflow heard of it
    assert approved(prepared) == ["ben"]


@pytest.mark.parametrize("account", ["ann", "Ann ", "airflow", "fishladder", ""])
def test_who_may_not_is_refused_and_somebody_is_asked_again(
    prepared: Desk, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    make_evidence(prepared)
    (attempt,) = ask()
    gates(attempt)
    question = Question(attempt)
    question.ask(monkeypatch)
    with pytest.raises(AirflowException, match="has to approve it") as refused:
        question.answer(account)
    assert not isinstance(refused.value, AirflowFailException)  # so it is retried, and asks again
    assert approved(prepared) == []
    question.ask(monkeypatch)
    question.answer("ben")
    assert approved(prepared) == ["ben"]


def test_a_yes_to_evidence_that_is_not_the_newest_does_not_count(
    prepared: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_evidence(prepared)
    (attempt,) = ask()
    gates(attempt)
    question = Question(attempt)
    question.ask(monkeypatch)
    gates(attempt)
    with pytest.raises(AirflowException, match="the evidence is not what ben was shown; look at it again"):
        question.answer("ben")
    assert approved(prepared) == []


def test_a_no_ends_the_attempt(prepared: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evidence(prepared)
    (attempt,) = ask()
    gates(attempt)
    question = Question(attempt)
    question.ask(monkeypatch)
    with pytest.raises(AirflowException, match="Reject"):
        question.answer("ben", "Reject")
    ended = prepared.ledger.attempt(attempt["attempt"])
    assert (ended.outcome, ended.error) == ("aborted", "rejected by ben")
    with pytest.raises(AirflowFailException, match="is aborted already"):
        question.task.execute({})


def test_an_answer_that_never_came_decides_nothing(prepared: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evidence(prepared)
    (attempt,) = ask()
    gates(attempt)
    question = Question(attempt)
    question.ask(monkeypatch)
    with pytest.raises(HITLTimeoutError):
        question.task.answered(question.context, {"error": "late", "error_type": "timeout"}, **question.kept)
    assert approved(prepared) == [] and prepared.ledger.attempt(attempt["attempt"]).outcome is None


def test_nobody_asks_for_a_flip(prepared: Desk) -> None:
    with pytest.raises(AirflowFailException, match="trigger it as a person"):
        ask(by=None)


def test_tasks_marked_green_open_nothing(prepared: Desk) -> None:
    """Every task before cutover was skipped by hand."""
    make_evidence(prepared)
    (attempt,) = ask()
    with pytest.raises(AirflowFailException, match="has not compared its rows yet"):
        cut_over(attempt)
    (attempt,) = ask(run_id="manual again")
    gates(attempt)
    operators.VerifyCohort(task_id="verify", migration_file=str(FILE), attempt=attempt).execute({})
    with pytest.raises(AirflowFailException, match="0 of 1 approvals hold"):
        cut_over(attempt)
    assert prepared.ledger.route("NZ").owner == "source"


def test_a_monitor_that_is_not_quiet_is_red(prepared: Desk) -> None:
    monitor = operators.Monitor(task_id="monitor", migration_file=str(FILE))
    assert monitor.execute({}) == {"quiet": 3}
    with prepared.stores() as (_, target):
        target.run("INSERT INTO fishladder_copying VALUES (1)")  # type: ignore[attr-defined]
        target.run("UPDATE customer SET balance = '-1.00' WHERE id = (SELECT min(id) FROM customer)")  # type: ignore[attr-defined]
        target.run("DELETE FROM fishladder_copying")  # type: ignore[attr-defined]
    with pytest.raises(AirflowFailException, match="negative_balance must be zero: target 1"):
        monitor.execute({})


def test_a_report_that_cannot_be_asked_is_red(prepared: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    report = operators.Report(task_id="report", migration_file=str(FILE))
    assert report.execute({})["different"] == 0
    lines = (("2026-01", "1"),)
    found = [
        ReportResult(name="revenue", cohort="AU", source=lines),  # differs, which outcome judges
        ReportResult(name="revenue", cohort="NZ", problem="no such table: nowhere"),
    ]
    monkeypatch.setattr(tasks, "report", lambda desk: found[:1])
    assert report.execute({}) == {"equal": 0, "different": 1}
    monkeypatch.setattr(tasks, "report", lambda desk: found)
    with pytest.raises(AirflowFailException, match=r"^revenue NZ could not be asked: no such table: nowhere$"):
        report.execute({})


@pytest.mark.parametrize("rejected", [False, True])
def test_the_last_task_of_finish_runs_when_all_are_complete(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch, rejected: bool
) -> None:
    """Airflow decides that from the states of mapped tasks, one of which is skipped when all is well."""

    def answer(*_: Any, **__: Any) -> None:
        if rejected:
            raise AirflowFailException("no")

    attempts = [{"attempt": 1, "cohort": "NZ"}, {"attempt": 2, "cohort": "AU"}]
    monkeypatch.setattr(operators.AskFor, "execute", lambda *_, **__: attempts)
    monkeypatch.setattr(operators.ApproveFlip, "execute", answer)
    for operator in (operators.EvaluateGates, operators.Cutover, operators.GiveUp, operators.Summary, operators.Finish):
        monkeypatch.setattr(operator, "execute", lambda *_, **__: None)
    done = build(FILE)["billing_finish"].test(run_conf={"cohorts": ["NZ", "AU"], "reason": ""})
    states = [(task.task_id, str(task.state)) for task in done.get_task_instances()]
    assert ("uninstall", "upstream_failed" if rejected else "success") in states, states
    assert {state for task, state in states if task == "country.give_up"} == {"success" if rejected else "skipped"}


@pytest.mark.parametrize("quiet", [True, False])
def test_what_is_not_quiet_after_a_flip_is_sent_back(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    sent: list[int] = []

    def look(*_: Any, **__: Any) -> bool:
        if not quiet:
            raise AirflowFailException("not quiet")
        return True

    monkeypatch.setattr(operators.AskFor, "execute", lambda *_, **__: [{"attempt": 1, "cohort": "NZ"}])
    monkeypatch.setattr(Observe, "poke", look)
    monkeypatch.setattr(operators.SendBack, "execute", lambda *_, **__: sent.append(1))
    for name in ("EvaluateGates", "ApproveFlip", "VerifyCohort", "Cutover", "GiveUp", "Summary"):
        monkeypatch.setattr(getattr(operators, name), "execute", lambda *_, **__: None)
    done = build(FILE)["billing_flip"].test(run_conf={"cohorts": ["NZ"], "reason": ""})
    assert (str(done.state), sent) == (("success", []) if quiet else ("failed", [1]))
    states = {task.task_id: str(task.state) for task in done.get_task_instances()}
    assert states["country.done"] == ("success" if quiet else "upstream_failed")


# Whole runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def answered(prepared: Desk, airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Ann triggers, and ben says yes to what he is asked; who has flipped need not be quiet for long."""
    monkeypatch.setenv("BILLING_OBSERVE", "1ms")
    at = desk(FILE)

    def say_yes(task: operators.ApproveFlip, context: Any) -> None:
        number = task.attempt["attempt"]
        _, shown = tasks.what_will_happen(at, number)
        tasks.approve(at, number, account="ben", shown=shown, request=task.task_id)

    monkeypatch.setattr(operators.ApproveFlip, "execute", say_yes)
    triggered_by("ann", monkeypatch)
    return at


def flip(at: Desk, *wave: str) -> None:
    """Without Airflow."""
    for attempt in tasks.ask(at, "flip", wave, actor="ann", reason=""):
        approve(at, attempt)
        tasks.verify_cohort(at, attempt.id)
        assert tasks.cut_over(at, attempt.id).outcome == "done"


@pytest.fixture
def live(answered: Desk) -> Desk:
    """NZ has flipped."""
    flip(answered, "NZ")
    make_evidence(answered)
    return answered


def test_a_cohort_that_is_live_goes_back(live: Desk) -> None:
    done = build(FILE)["billing_rollback"].test(run_conf={"cohorts": ["NZ"], "reason": "we changed our minds"})
    states = {task.task_id: str(task.state) for task in done.get_task_instances()}
    assert str(done.state) == "success", states
    newest = live.ledger.attempts()[0]
    assert (newest.kind, newest.cohort, newest.outcome, newest.actor) == ("rollback", "NZ", "done", "ann")
    assert newest.reason == "we changed our minds" and approved(live)[0] == "ben"
    route = live.ledger.route("NZ")
    assert (route.stage, route.owner) == ("off", "source")
    with live.stores() as stores:
        writers = [store.fences()["NZ"].writer for store in stores]  # type: ignore[attr-defined]
    assert writers == ["application", "copier"]


def test_a_cohort_that_is_live_does_not_flip_again(live: Desk) -> None:
    before = live.ledger.attempts()
    done = build(FILE)["billing_flip"].test(run_conf={"cohorts": ["NZ"], "reason": ""})
    states = {task.task_id: str(task.state) for task in done.get_task_instances()}
    assert (str(done.state), states["ask"]) == ("failed", "failed")
    assert (live.ledger.attempts(), live.ledger.route("NZ").stage) == (before, "live")


def left(store: str) -> list[str]:
    """What is in a store of fishladder's."""
    with closing(connect(os.environ[f"FISHLADDER_BILLING_{store}"])) as db:
        found = db.rows("SELECT name FROM sqlite_master WHERE lower(name || coalesce(sql, '')) LIKE '%fishladder%'")
    return [name for (name,) in found]


def test_a_migration_from_its_first_flip_to_nothing_but_the_rows(answered: Desk) -> None:
    at, dags = answered, build(FILE)
    source, target = (os.environ[f"FISHLADDER_BILLING_{store}"] for store in ("SOURCE", "TARGET"))
    before = independent.counts(source)

    def runs(dag: str, *cohorts: str) -> dict[str, set[str]]:
        """Which of its tasks did not just succeed, and how they ended."""
        tasks.replicate(at, seconds=30, until_idle=True)
        done = dags[dag].test(run_conf={"cohorts": [*cohorts], "reason": "it is time"})
        states: dict[str, set[str]] = {}
        for task in done.get_task_instances():
            states.setdefault(task.task_id.removeprefix("country."), set()).add(str(task.state))
        assert str(done.state) == "success", states
        return {task: ended for task, ended in states.items() if ended != {"success"}}

    make_evidence(at)
    others = sorted(at.ledger.routes().keys() - {"NZ", "AU", "shared", "*"})
    for wave in (["NZ"], ["AU", "IE"], sorted({*others} - {"IE"}), ["shared"]):
        if len(wave) == 1:
            assert runs("billing_flip", *wave) == {"give_up": {"skipped"}, "send_back": {"skipped"}}
            assert at.ledger.route(*wave) == Route(stage="live", owner="target", epoch=3)
        else:
            flip(at, *wave)
            assert all(tasks.watch(at, attempt.id) for attempt in at.ledger.attempts()[: len(wave)])

    for attempt in tasks.ask(at, "complete", others, actor="ann", reason=""):
        approve(at, attempt)
        assert tasks.cut_over(at, attempt.id).outcome == "done"
    assert runs("billing_finish", "AU", "NZ") == {"give_up": {"skipped"}, "uninstall": {"skipped"}}
    assert left("SOURCE") and left("TARGET")
    assert runs("billing_finish", "shared") == {"give_up": {"skipped"}}
    assert left("SOURCE") == left("TARGET") == []
    assert independent.compare(source, target) == [] and independent.counts(target) == before
    assert approved(at)[:3] == ["ben"] * 3
