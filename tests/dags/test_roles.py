"""Who may do what: the roles of docs/roles.md, asked of Airflow's own web server by people who have logged in to it.

The tables of the page are read here, and its commands are run: what it says is what is tested.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.api_fastapi.app import create_app, purge_cached_app
from airflow.executors.base_executor import BaseExecutor
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.sdk.definitions.dag import _run_task
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from fastapi.testclient import TestClient
from sqlalchemy import select

from fishladder.tasks import Desk, open_gates
from fishladder_airflow.dags import build
from tests.approving import make_evidence
from tests.dags.conftest import FILE, ROOT

if TYPE_CHECKING:
    from httpx import Response

PAGE = (ROOT / "docs/roles.md").read_text("utf-8")
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
REQUEST = {"logical_date": None, "conf": {"cohorts": ["NZ"], "reason": "it is time"}}
FLIP = "/api/v2/dags/billing_flip"
YES = {"chosen_options": ["Approve"], "params_input": {}}

Ask = tuple[str, str, Any]
"""Method, path below the DAG's, and body."""
RUN = "/dagRuns/none"
TASK = f"{RUN}/taskInstances/country.approve"
ASKS: Mapping[str, Sequence[Ask]] = {
    "look": [
        ("GET", "", None),
        ("GET", "/dagRuns", None),
        ("GET", f"{RUN}/taskInstances", None),
        ("GET", f"{TASK}/logs/1", None),
        ("GET", f"{RUN}/hitlDetails", None),
        ("GET", f"{TASK}/xcomEntries/return_value", None),
    ],
    "pause": [("PATCH", "?update_mask=is_paused", {"is_paused": True})],
    "run": [
        ("POST", "/dagRuns", {"logical_date": None, "conf": {"cohorts": ["NZ"], "action": "pause"}}),
        ("POST", "/clearTaskInstances", {"dag_run_id": "none", "dry_run": False}),
        ("POST", f"{RUN}/clear", {"dry_run": False}),
        ("PATCH", RUN, {"state": "success"}),
        ("PATCH", TASK, {"new_state": "success"}),
    ],
    "answer": [("PATCH", f"{TASK}/0/hitlDetails", YES)],
    "": [
        ("DELETE", RUN, None),
        ("DELETE", "", None),
        ("POST", f"{TASK}/xcomEntries", {"key": "return_value", "value": 1}),
    ],
}
"""What the words of the page's tables stand for; nobody on it may do what stands at the end. No run is called none:
who may is told that it is not there, and who may not hears nothing of that."""

BEHIND: Sequence[Ask] = [
    ("GET", "/api/v2/connections", None),
    ("POST", "/api/v2/variables", {"key": "a", "value": "b"}),
    ("PATCH", "/api/v2/dags?dag_id_pattern=~", {"is_paused": True}),
]
"""What would lead behind the roles: the ledger's address, and all DAGs at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """Airflow's web server, and the tokens that it gave to people, by name."""

    client: TestClient
    tokens: Mapping[str, str]

    def __call__(self, user: str | None, method: str, path: str, body: Any = None) -> Response:
        """Ask for this as the user, or as nobody."""
        headers = {"Authorization": f"Bearer {self.tokens[user]}"} if user else {}
        return self.client.request(method, path, json=body, headers=headers)

    def may(self, user: str | None, dag_id: str, word: str) -> bool:
        """Whether the user may do all that the word stands for; what is neither all nor nothing fails."""
        found = {}
        for method, path, body in ASKS[word]:
            status = self(user, method, f"/api/v2/dags/{dag_id}{path}", body).status_code
            assert status in (200, 201, 401, 403, 404), f"{user}: {method} {dag_id}{path}: {status}"
            found[f"{method} {path}"] = status not in (401, 403)
        assert len(set(found.values())) == 1, f"{user}: {dag_id}: {word}: {found}"
        return any(found.values())

    def trigger(self, user: str) -> str:
        """Ask for the flip of New Zealand. Returns the run's id."""
        answer = self(user, "POST", f"{FLIP}/dagRuns", REQUEST)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["dag_run_id"])

    def answer(self, user: str, run_id: str, option: str = "Approve") -> int:
        """Say yes to it, or no. Returns the status."""
        path = f"{FLIP}/dagRuns/{run_id}/taskInstances/country.approve/0/hitlDetails"
        return self(user, "PATCH", path, YES | {"chosen_options": [option]}).status_code

    def mark(self, user: str, run_id: str) -> int:
        """Mark the question green instead."""
        path = f"{FLIP}/dagRuns/{run_id}/taskInstances/country.approve/0"
        return self(user, "PATCH", path, {"new_state": "success"}).status_code

    def mark_among_others(self, user: str, run_id: str) -> int:
        """The same by the call that takes tasks of any DAG, whose answer has a status for each."""
        task = {"dag_id": "billing_flip", "dag_run_id": run_id, "task_id": "country.approve", "map_index": 0}
        body = {"actions": [{"action": "update", "entities": [task | {"new_state": "success"}]}]}
        answer = self(user, "PATCH", "/api/v2/dags/~/dagRuns/~/taskInstances", body)
        return answer.json()["update"]["errors"][0]["status_code"] if answer.status_code == 200 else answer.status_code


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The migration file, with a rehearsal: it has all DAGs that there are."""
    path = tmp_path_factory.mktemp("rehearsed") / "billing.yaml"
    path.write_text(f"{FILE.read_text()}rehearsal: {{connection: billing_test, command: run}}\n")
    return path


@contextmanager
def server(passwords: Mapping[str, str], rehearsed: Path, **environment: str) -> Iterator[Web]:
    """The web server with this environment, and with these people logged in."""
    dags = rehearsed.with_name("dags")
    dags.mkdir(exist_ok=True)
    for path in (rehearsed, FILE.with_name("chinook.yaml")):
        made = f"from fishladder_airflow.dags import build\n\n# airflow DAG\nglobals().update(build({str(path)!r}))\n"
        (dags / f"{path.stem}.py").write_text(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DAGS_FOLDER", str(dags))
        for variable, value in environment.items():
            patch.setenv(variable, value)
        purge_cached_app()
        with TestClient(create_app(apps="core")) as client:
            airflow("airflow dags reserialize")
            yield Web(client=client, tokens={name: log_in(client, name, word) for name, word in passwords.items()})
        purge_cached_app()


def log_in(client: TestClient, name: str, password: str) -> str:
    answer = client.post("/auth/token", json={"username": name, "password": password})
    assert answer.status_code == 201, answer.text
    client.cookies.clear()
    return str(answer.json()["access_token"])


def airflow(line: str) -> None:
    """Run a line of Airflow's own command line, in this process: starting one takes seconds."""
    from airflow.cli.cli_parser import get_parser

    program, *arguments = shlex.split(line)
    assert program == "airflow"
    options = get_parser().parse_args(arguments)
    options.func(options)


def work(run_id: str) -> dict[str, str]:
    """What a scheduler and a worker do for a run of billing_flip until only people can go on: the states of its tasks.

    As ``DAG.test`` does it, which would wait for an answer.
    """
    dag = build(FILE)["billing_flip"]
    with create_session() as session:
        run = session.scalars(select(DagRun).where(DagRun.run_id == run_id)).one()
        run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        run.state = DagRunState.RUNNING
        while True:
            session.expire_all()
            ready, _ = run.update_state(session=session)
            for task in ready:
                task.try_number += 1
                task.state = TaskInstanceState.SCHEDULED
            session.commit()
            tasks = run.get_task_instances(session=session)
            scheduled = [task for task in tasks if task.state == TaskInstanceState.SCHEDULED]
            if not scheduled:
                return {task.task_id: str(task.state) for task in tasks}
            for task in scheduled:
                _run_task(ti=task, task=dag.task_dict[task.task_id])


def matrix(heading: str, steps: Sequence[str]) -> list[tuple[str, str, set[str]]]:
    """The page's first table below the heading: DAG, role, and the words of what the role may do with it."""
    below = PAGE.split(heading, 1)[1]
    lines = re.search(r"(?:^\|.*\|\n)+", below, re.M)
    assert lines is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [
        (dag_id, role, {word.strip() for word in cell.split(",")})
        for dags, *cells in rows
        for dag_id in ([name.replace("<m>", "billing") for name in re.findall("`(.+?)`", dags)] or steps)
        for role, cell in zip(head[1:], cells, strict=True)
    ]


def check(web: Web, heading: str, people: Mapping[str, str], rehearsed: Path) -> None:
    """That everybody may do what the page says, and nothing else."""
    steps = list(build(rehearsed))
    said = matrix(heading, steps)
    assert {dag_id for dag_id, _, _ in said} == set(steps) and {role for _, role, _ in said} <= people.keys()
    for dag_id, role, words in said:
        assert words <= ASKS.keys()
        assert {word for word in ASKS if word and web.may(people[role], dag_id, word)} == words, f"{role}: {dag_id}"


def approved(made: Desk) -> list[str]:
    return [event.actor for event in made.ledger.events() if event.event == "approved"]


# The simple auth manager -------------------------------------------------------------------------------------------

SIMPLE = {"viewer": "vera", "user": "una", "op": "otto", "admin": "ada"}


@pytest.fixture(scope="module")
def simple(airflow_database: None, rehearsed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    passwords = {name: secrets.token_hex() for name in SIMPLE.values()}
    file = tmp_path_factory.mktemp("simple") / "passwords.json"
    file.write_text(json.dumps(passwords))
    users = ",".join(f"{name}:{role}" for role, name in SIMPLE.items())
    with server(
        passwords,
        rehearsed,
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=users,
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(file),
    ) as web:
        yield web


def test_the_roles_of_the_simple_auth_manager(simple: Web, rehearsed: Path) -> None:
    check(simple, "## With the simple auth manager", SIMPLE, rehearsed)


def test_nobody_may_do_anything(simple: Web) -> None:
    dags = [(method, f"/api/v2/dags/billing_flip{path}", body) for asks in ASKS.values() for method, path, body in asks]
    evidence = ("GET", "/fishladder/billing_prepare/evidence/none", None)
    for method, path, body in (*dags, *BEHIND, evidence):
        assert simple(None, method, path, body).status_code == 401, f"{method} {path}"


def test_connections_and_variables_are_for_op_and_admin(simple: Web) -> None:
    for method, path, body in BEHIND[:2]:
        statuses = {name: simple(name, method, path, body).status_code for name in ("vera", "una")}
        assert statuses == {"vera": 403, "una": 403}, path
        assert simple("otto", method, path, body).status_code in (200, 201), path


def test_a_viewer_answers_nothing_and_a_user_no_request_of_their_own(simple: Web, prepared: Desk) -> None:
    """Airflow takes what the latter says and marks; fishladder does not."""
    make_evidence(prepared)
    run = simple.trigger("una")
    assert work(run)["country.approve"] == "awaiting_input"
    assert simple.answer("vera", run) == simple.mark("vera", run) == 403

    assert simple.answer("una", run) == 200
    assert work(run)["country.cutover"] == "None" and approved(prepared) == []
    assert simple.mark("una", run) == 200
    states = work(run)
    assert {task: states[f"country.{task}"] for task in ("approve", "verify", "cutover")} == {
        "approve": "success",
        "verify": "success",
        "cutover": "failed",
    }
    (attempt,) = prepared.ledger.attempts()
    assert attempt.actor == "una" and "0 of 1 approvals hold" in str(attempt.error)
    assert approved(prepared) == [] and prepared.ledger.route("NZ").owner == "source"


def test_who_clears_the_run_of_another_asks_for_nothing(simple: Web, prepared: Desk) -> None:
    """Or one person alone could say no, clear, and say yes to what is asked in the other's name."""
    make_evidence(prepared)
    run = simple.trigger("una")
    work(run)
    assert simple.answer("otto", run, "Reject") == 200
    work(run)
    assert simple("otto", "POST", f"{FLIP}/dagRuns/{run}/clear", {"dry_run": False}).status_code == 200
    assert work(run)["ask"] == "failed"
    (attempt,) = prepared.ledger.attempts()
    assert (attempt.actor, attempt.error) == ("una", "rejected by otto")


# A question that is asked again -------------------------------------------------------------------------------------


def clear(web: Web, run: str, *tasks: str) -> None:
    body = {"dag_run_id": run, "dry_run": False, "task_ids": list(tasks), "only_failed": False, "reset_dag_runs": True}
    assert web("una", "POST", f"{FLIP}/clearTaskInstances", body).status_code == 200


def test_no_yes_is_taken_for_other_evidence_than_airflow_shows(simple: Web, prepared: Desk) -> None:
    """Of a task that is run again Airflow keeps the text that it asked first."""
    make_evidence(prepared)
    run = simple.trigger("una")
    assert work(run)["country.approve"] == "awaiting_input"
    clear(simple, run, "country.approve")
    assert work(run)["country.approve"] == "awaiting_input"  # the same evidence, the same text
    clear(simple, run, "country.gates", "country.approve")
    assert work(run)["country.approve"] == "failed"
    assert prepared.ledger.route("NZ").owner == "source" and approved(prepared) == []


def test_a_yes_to_one_country_moves_no_other(simple: Web, prepared: Desk) -> None:
    """With the simple auth manager una may edit XComs; otto says yes to the country that he sees."""
    make_evidence(prepared)
    run = simple.trigger("una")
    assert work(run)["country.approve"] == "awaiting_input"
    (other,) = prepared.ledger.begin_attempts({"AU": {}}, "flip", actor="una", reason="", deadline=60, approvals=1)
    open_gates(prepared, other.id)
    path = f"{FLIP}/dagRuns/{run}/taskInstances/ask/xcomEntries/return_value"
    changed = {"value": [{"attempt": other.id, "cohort": "NZ"}], "map_index": -1}
    assert simple("una", "PATCH", path, changed).status_code == 200
    clear(simple, run, "country.approve")
    assert work(run)["country.approve"] == "failed"
    assert approved(prepared) == []


def overtaken(run_id: str) -> str:
    """What the scheduler does with an answer that came before it has heard of the end of the process that asked.

    It has put the question into the queue again, to go on with the answer; then it hears of that end, and takes it for
    the end of what goes on. Returns the state of the question.
    """
    with create_session() as session:
        mine = TaskInstance.run_id == run_id, TaskInstance.task_id == "country.approve"
        question = session.scalars(select(TaskInstance).where(*mine)).one()
        assert (str(question.state), question.next_method) == ("scheduled", "answered")
        question.state = TaskInstanceState.QUEUED
        session.commit()
        executor = BaseExecutor()
        executor.success(question.key)
        SchedulerJobRunner.process_executor_events(executor, None, DBDagBag(), session)
        question.end_date -= timedelta(seconds=1)  # until it is tried again
        return str(question.state)


def test_a_yes_in_the_first_seconds_is_no_yes_and_asked_for_again(simple: Web, prepared: Desk) -> None:
    """By otto, who may approve. Airflow fails it, not fishladder; what was said then counts for nothing."""
    make_evidence(prepared)
    run = simple.trigger("una")
    assert work(run)["country.approve"] == "awaiting_input"
    assert simple.answer("otto", run) == 200
    assert overtaken(run) == "up_for_retry"
    states = work(run)
    assert (states["country.approve"], states["country.cutover"]) == ("awaiting_input", "None")
    (attempt,) = prepared.ledger.attempts()
    assert (attempt.outcome, approved(prepared), prepared.ledger.route("NZ").owner) == (None, [], "source")

    assert simple.answer("otto", run) == 200
    assert work(run)["country.cutover"] == "success"
    assert approved(prepared) == ["otto"] and prepared.ledger.route("NZ").owner == "target"


# The FAB auth manager ----------------------------------------------------------------------------------------------

ROLES = {"look": "vera", "operate": "otto", "ask": "ann", "approve": "ben"}
PEOPLE = {
    "vera": ["billing_look"],
    "otto": ["billing_look", "billing_operate"],
    "ann": ["Public"],  # the page's last commands give her what she needs
    "ben": ["billing_look", "billing_approve"],
    "amy": ["billing_look", "billing_ask", "chinook_approve"],
    "una": ["User"],
    "chloe": ["chinook_look"],
    "clara": ["billing_dag"],
}
OTHERS = """\
airflow roles create chinook_look chinook_approve billing_dag
airflow roles add-perms billing_dag -a can_read -r DAG:billing_prepare
airflow roles add-perms chinook_look -a can_read -r "Task Logs" DAG:chinook_prepare
airflow roles add-perms chinook_approve -a can_edit -r "HITL Detail" DAG:chinook_flip
"""


@pytest.fixture(scope="module")
def fab(airflow_database: None, rehearsed: Path) -> Iterator[Web]:
    commands = re.findall(r"^airflow .*$", PAGE, re.M)
    assert [command.split()[1] for command in commands] == ["roles"] * 10 + ["users"] * 2
    with server({}, rehearsed, AIRFLOW__CORE__AUTH_MANAGER=FAB) as web:
        for line in (*commands[:10], *OTHERS.splitlines()):
            airflow(line)
        passwords = {name: secrets.token_hex() for name in ("root", *PEOPLE)}
        airflow(f"airflow users create -u root -f R -l R -e root@example.com -r Admin -p {passwords['root']}")
        root = Web(client=web.client, tokens={"root": log_in(web.client, "root", passwords["root"])})
        for name, roles in PEOPLE.items():
            person: dict[str, Any] = dict.fromkeys(("username", "first_name", "last_name"), name)
            person |= {
                "email": f"{name}@example.com",
                "password": passwords[name],
                "roles": [{"name": role} for role in roles],
            }
            answer = root("root", "POST", "/auth/fab/v1/users", person)
            assert answer.status_code == 200, answer.text
        for line in commands[10:]:
            airflow(line)
        yield Web(client=web.client, tokens={name: log_in(web.client, name, passwords[name]) for name in PEOPLE})


@pytest.mark.slow
def test_the_roles_of_the_fab_auth_manager(fab: Web, rehearsed: Path) -> None:
    check(fab, "# Who may do what", ROLES, rehearsed)


@pytest.mark.parametrize("user", ROLES.values())
def test_no_role_leads_behind_the_roles(fab: Web, rehearsed: Path, user: str) -> None:
    assert not any(fab.may(user, dag_id, "") for dag_id in build(rehearsed))
    for method, path, body in BEHIND:
        assert fab(user, method, path, body).status_code == 403, f"{method} {path}"


def test_an_approver_answers_an_operator_does_not_and_a_viewer_does_nothing(fab: Web, prepared: Desk) -> None:
    make_evidence(prepared)
    run = fab.trigger("ann")
    assert work(run)["country.approve"] == "awaiting_input"
    for user in ("vera", "otto", "ann"):
        assert fab.answer(user, run) == 403, user
    for user in ("vera", "otto", "ben"):
        assert fab.mark(user, run) == fab.mark_among_others(user, run) == 403, user
    assert work(run)["country.approve"] == "awaiting_input" and approved(prepared) == []

    assert fab.answer("ben", run) == 200
    assert work(run)["country.cutover"] == "success"
    assert approved(prepared) == ["ben"] and prepared.ledger.route("NZ").owner == "target"


def test_the_right_to_answer_is_for_every_dag_that_one_may_edit(fab: Web) -> None:
    """Roles add up, and FAB's own may edit all."""
    assert fab.may("amy", "billing_flip", "answer") and not fab.may("amy", "billing_load", "answer")
    assert fab.may("una", "billing_flip", "answer") and fab.may("una", "billing_flip", "run")


def test_evidence_is_for_those_who_may_read_the_log(fab: Web, prepared: Desk) -> None:
    digest = prepared.ledger.record_evidence("preflight", "billing", {"findings": []}, True, prepared.clock.now())
    of_billing, of_chinook = (f"/fishladder/{name}_prepare/evidence/{digest}" for name in ("billing", "chinook"))
    statuses = {user: fab(user, "GET", of_billing).status_code for user in (None, "chloe", "clara", *ROLES.values())}
    assert statuses == {None: 401, "chloe": 403, "clara": 403} | dict.fromkeys(ROLES.values(), 200)
    assert fab("chloe", "GET", of_chinook).status_code == 404, "she may look there, but it is not there"
