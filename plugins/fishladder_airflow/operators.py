"""One operator for each task of a migration: it opens a desk, calls the core, and returns counts for XCom.

Every one may be run twice. What repeating would not mend fails at once; anything else is retried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskAwaitingInput

from fishladder import tasks
from fishladder.errors import InputError
from fishladder.gates import closed
from fishladder.ledger import Kind
from fishladder.operate import Order
from fishladder.rehearsal import rehearse
from fishladder.spec import nearest
from fishladder_airflow.connections import accounts, open_desk
from fishladder_airflow.links import EvidenceLink

ASKED_AGAIN = 50
"""How often at most a question is asked again after an answer that did not count."""


def _who(context: Context) -> str:
    """Who triggered the run."""
    return context["dag_run"].triggering_user_name or tasks.NOBODY


class MigrationOperator(BaseOperator):
    """Works on the migration that ``migration_file`` describes."""

    def __init__(self, *, migration_file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.migration_file = migration_file


class TableOperator(MigrationOperator):
    """Works on one table, named as in the source."""

    template_fields: Sequence[str] = ("table",)

    def __init__(self, *, table: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table


class EvidenceOperator(MigrationOperator):
    """Keeps evidence in the ledger, to which Airflow's page of the task then has a link."""

    operator_extra_links = (EvidenceLink(),)

    evidence = ""
    """The digest of what this try kept last."""

    @contextmanager
    def desk(self) -> Iterator[tasks.Desk]:
        self.evidence = ""
        with open_desk(self.migration_file, self.log.info, kept=self._kept) as desk:
            yield desk

    def _kept(self, digest: str) -> None:
        self.evidence = digest


class Preflight(EvidenceOperator):
    """Look for everything that would go wrong later, and change nothing. Fails if there is something."""

    def execute(self, context: Context) -> dict[str, int]:
        with self.desk() as desk:
            findings = tasks.check(desk, accounts(desk.spec))
        for line in tasks.findings_table(findings).splitlines():
            self.log.info(line)
        failed = [finding for finding in findings if finding.level == "fail"]
        if failed:
            raise AirflowFailException(f"{len(failed)} of {len(findings)} checks fail:\n{tasks.findings_table(failed)}")
        return dict(Counter(finding.level for finding in findings))


class Install(EvidenceOperator):
    """Create what the target lacks, then fishladder's tables, fences, triggers and homes; take the migration file."""

    def execute(self, context: Context) -> dict[str, int]:
        actor = _who(context)
        with self.desk() as desk:
            installed = tasks.prepare(desk, actor=actor, accounts=accounts(desk.spec))
        return {"cohorts": len(installed.cohorts), "homeless": installed.homeless}


class Operate(MigrationOperator):
    """Do what a person asked for in the form, under that person's name in the audit trail."""

    def execute(self, context: Context) -> dict[str, int]:
        actor = _who(context)
        with open_desk(self.migration_file, self.log.info) as desk:
            order = _order(context["params"])
            done = tasks.operate(desk, order, actor=actor)
        self.log.info("%s, asked for by %s: %s", order.action, actor, done or "done")
        return done


FORM = (
    *("action", "rows_per_second", "running_threads", "replica_lag", "tables", "error", "entities", "keys"),
    "keys_file",
)
"""The words of ``_operate``'s form."""


def _order(form: Mapping[str, Any]) -> Order:
    """The form's words as an order. Raises InputError."""
    # Whoever triggers by API or command line can write any word; Airflow drops none.
    for word in form.keys() - set(FORM):
        raise InputError(f"the form has no {word!r}{nearest(word, FORM)}; nothing was done")
    if form["keys"] and form["keys_file"]:
        raise InputError("give keys or keys_file, not both: the lines of one list are counted")
    keys = form["keys"] or ""
    if form["keys_file"]:
        try:
            keys = Path(form["keys_file"]).read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            raise InputError(f"{form['keys_file']!r} cannot be read on this worker: {error}") from error
        if not keys.strip():
            raise InputError(f"{form['keys_file']!r} holds no keys")
    return Order(
        action=form["action"],
        rows_per_second=form["rows_per_second"],
        running_threads=form["running_threads"],
        replica_lag=form["replica_lag"],
        tables=tuple(form["tables"] or ()),
        error=form["error"] or "",
        entities=tuple(line for line in _lines(form["entities"] or "") if line.strip()),
        keys=_lines(keys) if keys.strip() else (),
    )


def _lines(text: str) -> tuple[str, ...]:
    """Parted at the ends of lines alone: a key may hold what else Unicode takes for one."""
    return tuple(line.removesuffix("\r") for line in text.split("\n"))


class AskFor(MigrationOperator):
    """Open an attempt for each cohort of the form, in the name of whoever triggered the run."""

    def __init__(self, *, kind: Kind, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind

    def execute(self, context: Context) -> list[dict[str, Any]]:
        run, form = context["dag_run"], context["params"]
        with open_desk(self.migration_file, self.log.info) as desk:
            attempts = tasks.ask(
                desk,
                self.kind,
                form["cohorts"],
                actor=_who(context),
                reason=form["reason"],
                request=f"{run.dag_id} {run.run_id}",
            )
        return [{"attempt": attempt.id, "cohort": attempt.cohort} for attempt in attempts]


class AttemptOperator(MigrationOperator):
    """Works on one attempt: ``{"attempt": number, "cohort": name}``."""

    template_fields: Sequence[str] = ("attempt",)

    def __init__(self, *, attempt: Any, **kwargs: Any) -> None:
        super().__init__(map_index_template="{{ task.attempt['cohort'] }}", **kwargs)
        self.attempt = attempt


class EvaluateGates(AttemptOperator, EvidenceOperator):
    """Judge what the attempt has behind it, and keep that as evidence. Fails while a gate is closed."""

    def execute(self, context: Context) -> dict[str, str]:
        with self.desk() as desk:
            found = tasks.open_gates(desk, self.attempt["attempt"], actor=_who(context))
        for gate in found:
            self.log.info("%s: %s: %s", "open" if gate.open else "closed", gate.name, gate.found)
        if problems := closed(found):
            raise AirflowFailException("closed:\n" + "\n".join(problems))
        return {gate.name: gate.found for gate in found}


class ApproveFlip(ApprovalOperator):
    """Ask a person, and record a yes in the ledger, for exactly the evidence that was shown.

    Who may not approve, or answers too soon for Airflow, is asked again: that is what the retries are for.
    """

    template_fields = (*ApprovalOperator.template_fields, "attempt")

    def __init__(self, *, migration_file: str, attempt: Any, **kwargs: Any) -> None:
        super().__init__(
            subject="may it go?",
            fail_on_reject=True,
            map_index_template="{{ task.attempt['cohort'] }}",
            retries=ASKED_AGAIN,
            retry_delay=timedelta(seconds=1),
            retry_exponential_backoff=0,
            **kwargs,
        )
        self.migration_file = migration_file
        self.attempt = attempt

    def execute(self, context: Context) -> None:
        with open_desk(self.migration_file, self.log.info) as desk:
            self.body, shown = tasks.what_will_happen(desk, self.attempt["attempt"])
            cohort = desk.ledger.attempt(self.attempt["attempt"]).cohort
            self.subject = f"{desk.spec.migration}: {cohort}: may it go?"
        # What was shown stays with Airflow's server until the answer comes: no XCom, which others may edit.
        if self.body != self._asked(context):
            raise AirflowFailException(
                "Airflow still shows what this task asked before, and a yes would be to that: trigger the DAG again"
            )
        for notifier in self.notifiers:
            notifier(context)
        raise TaskAwaitingInput(method_name="answered", kwargs={"shown": shown}, timeout=self.response_timeout)

    def _asked(self, context: Context) -> str | None:
        """Ask, and return the text that people see: of a task that has asked before Airflow keeps the earlier one."""
        from airflow.sdk.execution_time import task_runner  # not while DAG files are parsed
        from airflow.sdk.execution_time.comms import CreateHITLDetailPayload, HITLDetailRequestResult

        question = CreateHITLDetailPayload(
            ti_id=context["ti"].id,
            options=self.options,
            subject=self.subject,
            body=self.body,
            defaults=None,
            params={},
            assigned_users=[],
        )
        asked = task_runner.SUPERVISOR_COMMS.send(question)
        assert isinstance(asked, HITLDetailRequestResult)
        return asked.body

    def answered(self, context: Context, event: dict[str, Any], shown: str) -> None:
        """A person has, or Airflow says why nobody did. ``shown``: the digest of the evidence."""
        account = (event.get("responded_by_user") or {}).get("name") or ""
        number, ti = self.attempt["attempt"], context["ti"]
        request = f"{ti.dag_id} {ti.run_id} {ti.task_id} {ti.map_index}"
        try:
            with open_desk(self.migration_file, self.log.info) as desk:
                if event.get("chosen_options") == [self.APPROVE]:
                    tasks.approve(desk, number, account=account, shown=shown, request=request)
                elif "error" not in event:
                    tasks.abort(desk, number, f"rejected by {account}", actor=account)
        except AirflowFailException as error:
            raise AirflowException(str(error)) from error  # the next try asks again
        self.execute_complete(context, event)


class VerifyCohort(AttemptOperator):
    """Compare every row once more, with traffic on. Fails when the cohort differs; nothing is fenced then."""

    def execute(self, context: Context) -> str:
        with open_desk(self.migration_file, self.log.info) as desk:
            attempt = tasks.verify_cohort(desk, self.attempt["attempt"])
        if attempt.outcome == "aborted":
            raise AirflowFailException(f"{attempt.cohort}: {attempt.error}")
        return attempt.step


class Cutover(AttemptOperator):
    """Fence, drain, compare, switch, replay. Fails when the attempt was aborted: the cohort is where it was."""

    def execute(self, context: Context) -> str:
        with open_desk(self.migration_file, self.log.info) as desk:
            attempt = tasks.cut_over(desk, self.attempt["attempt"], actor=_who(context))
        if attempt.outcome == "aborted":
            raise AirflowFailException(f"{attempt.cohort}: aborted, and back where it was: {attempt.error}")
        return attempt.step


class GiveUp(AttemptOperator):
    """End an attempt whose gates are closed, that was not approved, or whose rows differ; nothing was fenced yet."""

    def execute(self, context: Context) -> str:
        why = "its gates were closed, it was not approved, or its rows differ"
        with open_desk(self.migration_file, self.log.info) as desk:
            attempt = tasks.abort(desk, self.attempt["attempt"], why, actor="airflow")
        return attempt.outcome or attempt.step


class SendBack(AttemptOperator):
    """Roll a flip back that was not quiet, if the migration file says so; skipped otherwise."""

    def execute(self, context: Context) -> str:
        with open_desk(self.migration_file, self.log.info) as desk:
            attempt = tasks.send_back(desk, self.attempt["attempt"])
        if attempt is None:
            raise AirflowSkipException("it stays where it is")
        if attempt.outcome == "aborted":
            raise AirflowFailException(f"{attempt.cohort}: could not go back: {attempt.error}")
        return attempt.step


class Summary(AttemptOperator, EvidenceOperator):
    """What an attempt came to, kept as evidence."""

    def execute(self, context: Context) -> dict[str, Any]:
        with self.desk() as desk:
            told = tasks.summary(desk, self.attempt["attempt"])
        for name, value in told.items():
            if value is not None:
                self.log.info("%s: %s", name.replace("_", " "), _said(value))
        return told


def _said(value: Any) -> str:
    """Numbers with a point are seconds."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nobody"
    return f"{value:.2f} s" if isinstance(value, float) else str(value)


class Finish(MigrationOperator):
    """Remove fishladder from both stores once every cohort is complete; skipped before."""

    def execute(self, context: Context) -> None:
        actor = _who(context)
        with open_desk(self.migration_file, self.log.info) as desk:
            if not tasks.finish(desk, actor=actor):
                raise AirflowSkipException("some cohorts are not complete yet")


class CutChunks(MigrationOperator):
    """Cut every table into chunks, once."""

    def execute(self, context: Context) -> dict[str, int]:
        with open_desk(self.migration_file, self.log.info) as desk:
            return tasks.cut(desk)


class LoadTable(TableOperator):
    """One lane of a table's load: claim chunks and copy them until none is left."""

    template_fields = ("table", "lane")

    def __init__(self, *, lane: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lane = lane

    def execute(self, context: Context) -> dict[str, int]:
        with open_desk(self.migration_file, self.log.info) as desk:
            return asdict(tasks.load_table(desk, self.table, self.lane))


class CloseLoad(TableOperator):
    """End a table's load: install the target's triggers and hand the table to the applier."""

    def execute(self, context: Context) -> dict[str, int]:
        with open_desk(self.migration_file, self.log.info) as desk:
            tasks.close_table(desk, self.table)
            return asdict(desk.ledger.progress(self.table))


class ApplyChanges(MigrationOperator):
    """Make dirty keys right for ``seconds``. Skipped if nobody prepares the migration in this time.

    Fails if its file was changed, and nobody has it prepared again in this time.
    """

    template_fields: Sequence[str] = ("seconds",)

    def __init__(self, *, seconds: float | str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def execute(self, context: Context) -> dict[str, Any]:
        with open_desk(self.migration_file, self.log.info) as desk:
            left = tasks.await_prepare(desk, float(self.seconds))
            if left <= 0 and desk.ledger.spec() is None:
                raise AirflowSkipException(f"{desk.spec.migration} is not prepared: run {desk.spec.migration}_prepare")
            return asdict(tasks.replicate(desk, seconds=left))


class Reconcile(TableOperator, EvidenceOperator):
    """One pass over a table. What it finds is recorded and marked dirty; judging it is another task's."""

    def execute(self, context: Context) -> dict[str, int]:
        with self.desk() as desk:
            result = tasks.reconcile_table(desk, self.table)
        counts = {name: value for name, value in asdict(result).items() if isinstance(value, int)}
        self.log.info("%s: %s", self.table, ", ".join(f"{value} {name}" for name, value in counts.items()))
        return counts


class Report(EvidenceOperator):
    """Ask both stores every financial report of every cohort, and keep the answers as evidence.

    Fails when one could not be asked. That some differ is for another task to judge.
    """

    def execute(self, context: Context) -> dict[str, int]:
        with self.desk() as desk:
            results = tasks.report(desk)
        for result in results:
            self.log.info("%s %s: %s", result.name, result.cohort, "equal" if result.equal else "not equal")
            for line in () if result.equal else result.differences():
                self.log.info("  %s", line)
        failed = [f"{one.name} {one.cohort} {one.in_short()}" for one in results if one.problem is not None]
        if failed:
            raise AirflowFailException("\n".join(failed))
        equal = sum(result.equal for result in results)
        return {"equal": equal, "different": len(results) - equal}


class Totals(EvidenceOperator):
    """Count the rows of every table and cohort in both stores. Equal only when nothing is on its way."""

    def execute(self, context: Context) -> dict[str, int]:
        with self.desk() as desk:
            found = tasks.totals(desk)
        for table, counts in found.items():
            for cohort, (source, target) in counts.items():
                self.log.info("%s %s: %d rows in the source, %d in the target", table, cohort, source, target)
        equal = sum(source == target for counts in found.values() for source, target in counts.values())
        return {"equal": equal, "different": sum(map(len, found.values())) - equal}


class Monitor(EvidenceOperator):
    """Ask every monitor. Fails unless all are quiet; no data is not."""

    def execute(self, context: Context) -> dict[str, int]:
        with self.desk() as desk:
            found = tasks.observe(desk)
        for one in found:
            self.log.info("%s: %s", one, "quiet" if one.quiet else "not quiet")
        loud = [str(one) for one in found if not one.quiet]
        if loud:
            raise AirflowFailException("not quiet:\n" + "\n".join(loud))
        return {"quiet": len(found)}


class Rehearse(EvidenceOperator):
    """Rehearse once on the test stores. Fails on a dirty day, which repeating would not make clean."""

    def execute(self, context: Context) -> dict[str, float]:
        with self.desk() as desk:
            rehearsed = rehearse(desk)
        for step in rehearsed.steps:
            self.log.info("%s: %.1f s", step.step, step.seconds)
        if rehearsed.problem is not None:
            raise AirflowFailException(f"a dirty day: {rehearsed.problem}")
        return {step.step: step.seconds for step in rehearsed.steps}

    def on_kill(self) -> None:
        """Airflow ends the task, and waits for that: raised where it stands, this ends the command, too."""
        raise AirflowException("the rehearsal was ended before its time")


class Outcome(EvidenceOperator):
    """Show every table's newest pass and the reports; fails unless all are clean."""

    def execute(self, context: Context) -> dict[str, int]:
        with self.desk() as desk:
            verdict = tasks.outcome(desk)
        for line in verdict.lines:
            self.log.info(line)
        if verdict.problems:
            raise AirflowFailException("not clean:\n" + "\n".join(verdict.problems))
        return {"lines": len(verdict.lines)}
