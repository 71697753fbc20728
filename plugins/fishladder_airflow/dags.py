"""The DAGs of a migration, made of its file. Nothing is connected to when they are made.

A file in the DAG folder needs one line: ``globals().update(build(path))``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, TaskGroup, task_group

from fishladder.cells import SHARED
from fishladder.ledger import Kind
from fishladder.operate import ACTIONS
from fishladder.spec import OTHERS, Migration, load
from fishladder.verdict import tables_of
from fishladder_airflow import texts
from fishladder_airflow.links import cohorts_path, link_to
from fishladder_airflow.operators import (
    ApplyChanges,
    ApproveFlip,
    AskFor,
    CloseLoad,
    CutChunks,
    Cutover,
    EvaluateGates,
    Finish,
    GiveUp,
    Install,
    LoadTable,
    Monitor,
    Operate,
    Outcome,
    Preflight,
    Reconcile,
    Rehearse,
    Report,
    SendBack,
    Summary,
    Totals,
    VerifyCohort,
)
from fishladder_airflow.sensors import Observe

POOLS = "FISHLADDER_POOLS"
"""Set once the pools exist (``python -m fishladder_airflow.pools``): tasks then run in their target's own pool."""
RETRIES = 3
PATIENCE = 12
"""Retries of what runs for hours: a store may be away for one of them."""
OBSERVE_EVERY = timedelta(seconds=30)
REPLICATE_SECONDS = 1800
FROM_NOW = timedelta()
"""How old a missed run may be that is made up for when a DAG is switched on; for Airflow, False is a tenth of a day."""
FAILED_RUNS = 3
"""Failed runs in a row after which Airflow pauses a continuous DAG, rather than starting one every two seconds."""


def build(path: str | Path, *, default_args: Mapping[str, Any] | None = None) -> dict[str, DAG]:
    """The DAGs of the migration file at ``path``, by id.

    ``default_args``: what all their tasks shall have besides, or instead, as in any DAG: ``on_failure_callback``, a
    Celery ``queue``, another ``owner``. Raises SpecError, which Airflow shows as an import error.
    """
    made = _Factory(Path(path).resolve(), default_args or {})
    dags = (
        *(made.prepare(), made.load(), made.replicate(), made.reconcile(), made.monitor(), made.operate()),
        *(made.move("flip"), made.move("rollback"), made.finish()),
        *([made.rehearse()] if made.spec.rehearsal is not None else []),
    )
    return {dag.dag_id: dag for dag in dags}


def _group_ids(tables: Iterable[str]) -> dict[str, str]:
    """Tables by an id that Airflow takes and no task of the DAG has: a table may be called "report" or "a b"."""
    groups: dict[str, str] = {}
    for table in tables:
        group_id = re.sub(r"[^\w-]", "_", table)
        while group_id in groups or group_id in texts.TASKS:
            group_id += "_"
        groups[group_id] = table
    return groups


class _Factory:
    def __init__(self, path: Path, default_args: Mapping[str, Any]) -> None:
        self.spec: Migration = load(path)
        self.default_args = default_args
        # Airflow leaves tasks of a pool that is not there waiting, and says so nowhere in its pages.
        pool = self.spec.target.pool if os.environ.get(POOLS) else "default_pool"
        self.common = {"migration_file": str(path), "pool": pool}

    def prepare(self) -> DAG:
        with self._dag("prepare", texts.PREPARE) as dag:
            preflight = Preflight(**self._task("preflight"))
            preflight >> Install(**self._task("install"))
        return dag

    def load(self) -> DAG:
        with self._dag("load", texts.LOAD) as dag:
            loaded: Any = CutChunks(**self._task("cut"))
            closed: Any = loaded
            for group_id, table in _group_ids(tables_of(self.spec)).items():
                with TaskGroup(group_id, group_display_name=table, tooltip=f"Load {table}"):
                    load = self._load_lanes(table)
                    close = CloseLoad(table=table, **self._task("close"))
                loaded >> load >> close
                closed >> close
                loaded, closed = load, close
            closed >> self._check()
        return dag

    def _load_lanes(self, table: str) -> Any:
        return LoadTable.partial(
            table=table,
            map_index_template="{{ task.table }} · lane {{ task.lane }}",
            retries=PATIENCE,
            **self._task("load"),
        ).expand(lane=[str(lane) for lane in range(1, self.spec.lanes + 1)])

    def replicate(self) -> DAG:
        seconds = Param(
            REPLICATE_SECONDS,
            type="integer",
            minimum=1,
            title="Seconds",
            description="How long this run applies changes before it ends, and the next one begins.",
        )
        with self._dag(
            "replicate",
            texts.REPLICATE,
            schedule="@continuous",
            start_date=datetime(2026, 1, 1, tzinfo=UTC),
            params={"seconds": seconds},
            max_consecutive_failed_dag_runs=FAILED_RUNS,
        ) as dag:
            ApplyChanges(seconds="{{ params.seconds }}", retries=PATIENCE, **self._task("apply"))
        return dag

    def reconcile(self) -> DAG:
        # An hour after midnight: the day that the reports ask for is over, and followed. Switching the DAG on starts no
        # run for the last night.
        schedule = CronTriggerTimetable("0 1 * * *", timezone="UTC", run_immediately=FROM_NOW)
        with self._dag("reconcile", texts.RECONCILE, schedule=schedule) as dag:
            self._check(totals=True)
        return dag

    def monitor(self) -> DAG:
        schedule = CronTriggerTimetable("*/5 * * * *", timezone="UTC", run_immediately=FROM_NOW)
        with self._dag("monitor", texts.MONITOR, schedule=schedule) as dag:
            Monitor(**self._alone("monitor"))
        return dag

    def rehearse(self) -> DAG:
        # After the nightly reconciliation, which reads the same target.
        schedule = CronTriggerTimetable("0 3 * * *", timezone="UTC", run_immediately=FROM_NOW)
        with self._dag("rehearse", texts.REHEARSE, schedule=schedule) as dag:
            Rehearse(**self._alone("rehearse"))
        return dag

    def operate(self) -> DAG:
        with self._dag("operate", texts.OPERATE, params=self._form(), max_active_runs=16) as dag:
            # Not in the target's pool: a pause must not wait for the lanes that it is to stop. No retries: a person
            # looks at it.
            Operate(**self._task("operate") | {"pool": "default_pool", "retries": 0})
        return dag

    def move(self, kind: Kind) -> DAG:
        """A flip or a rollback."""
        with self._dag(kind, texts.MOVES[kind], params=self._cohorts(kind), max_active_runs=16) as dag:
            asked = AskFor(kind=kind, **self._alone("ask"))
            self._each(asked, kind)
        return dag

    def finish(self) -> DAG:
        with self._dag("finish", texts.FINISH, params=self._cohorts("complete")) as dag:
            asked = AskFor(kind="complete", **self._alone("ask"))
            # Where all is well, give_up is skipped: that must not skip this one.
            finish = Finish(trigger_rule="none_failed_min_one_success", **self._alone("uninstall"))
            self._each(asked, "complete") >> finish
        return dag

    def _each(self, asked: Any, kind: Kind) -> Any:
        """What is done for each cohort that was asked for, in a mapped group."""

        @task_group(group_id=self.spec.cohort.label)
        def cohort(attempt: Any) -> None:
            gates = EvaluateGates(attempt=attempt, **self._alone("gates"))
            # One question for each of the people: nobody has to wait for the answer of another.
            approvals = [
                ApproveFlip(attempt=attempt, **self._alone("approve") | {"task_id": f"approve{suffix}"})
                for suffix in ("", *(f"_{number}" for number in range(2, self.spec.gates.approvals + 1)))
            ]
            moved: Any = Cutover(attempt=attempt, **self._alone("cutover"))
            before: list[Any] = [gates, *approvals]
            if kind == "complete":
                gates >> approvals >> moved
            else:
                verified = VerifyCohort(attempt=attempt, **self._task("verify"))
                gates >> approvals >> verified >> moved
                before.append(verified)
            before >> GiveUp(attempt=attempt, trigger_rule="one_failed", **self._alone("give_up"))
            if kind == "flip":
                often = min(OBSERVE_EVERY, self.spec.gates.observe)
                observed = Observe(attempt=attempt, poke_interval=often, **self._alone("observe"))
                moved >> observed >> SendBack(attempt=attempt, trigger_rule="one_failed", **self._alone("send_back"))
                moved = observed
            moved >> Summary(attempt=attempt, **self._alone("done"))

        return cohort.expand(attempt=asked.output)

    def _alone(self, task_id: str) -> dict[str, Any]:
        """A task that must not wait for the lanes of a load: customers do."""
        return self._task(task_id) | {"pool": "default_pool"}

    def _cohorts(self, kind: Kind) -> dict[str, Param]:
        label, waves = self.spec.cohort.label, self.spec.cohort.waves
        named = [cohort for wave in waves for cohort in wave if cohort != OTHERS]
        # With examples Airflow lets people choose among those alone; without, they write one in each line.
        choice: dict[str, Any] = {"examples": [*named, SHARED]} if len(named) == sum(map(len, waves)) else {}
        dag_id = f"{self.spec.migration}_{'finish' if kind == 'complete' else kind}"
        return {
            "cohorts": Param(
                [],
                type="array",
                items={"type": "string"},
                minItems=1,
                title=label.capitalize(),
                description_md=f"Each {label} that shall go, in a line of its own, of one wave at a time; `{SHARED}`"
                " stands for the tables that belong to none, which flip last and go back first."
                f" [Where each {label} is now]({link_to(cohorts_path(dag_id))})",
                **choice,
            ),
            "reason": Param(
                "", type="string", title="Reason", description="For the audit trail, and for whoever approves."
            ),
        }

    def _form(self) -> dict[str, Param]:
        tables = list(self.spec.tables)

        def word(title: str, text: str, **schema: Any) -> Param:
            return Param(None, title=title, description=text, **schema)

        limit: dict[str, Any] = {"type": ["null", "integer"], "minimum": 0, "section": "For throttle"}
        lines: dict[str, Any] = {"type": ["null", "string"], "format": "multiline"}
        of_tables = {"section": "For restart tables, retry rejects"}
        doubts = {"section": "For rewrite entities, mark keys dirty"}
        return {
            "action": Param(  # without a default: no press of a button pauses what nobody meant to pause
                type="string",
                enum=list(ACTIONS),
                title="Action",
                description="What to do. Each looks at its own fields, and refuses others.",
            ),
            "rows_per_second": word("Rows per second", "Of each lane and of the applier. 0 lifts the limit.", **limit),
            "running_threads": word("Running threads", "Wait while the target runs more. 0 lifts the limit.", **limit),
            "replica_lag": word(
                "Replica lag",
                "Seconds; wait while a replica of the target is further behind. 0 lifts the limit.",
                **limit,
            ),
            "tables": word(
                "Tables",
                "To restart (needs some), or whose rejects to retry (empty: all).",
                type=["null", "array"],
                items={"type": "string", "enum": tables},
                examples=tables,
                **of_tables,
            ),
            "error": word(
                "Error", "Retry only rejects whose error has this in it.", type=["null", "string"], **of_tables
            ),
            "entities": word(
                "Entities",
                f"Keys of {self.spec.cohort.root}, one in each line: all their rows are written again.",
                **lines,
                **doubts,
            ),
            "keys": word(
                "Keys", "One in each line: a table, then the cells of its key, with commas between.", **lines, **doubts
            ),
            "keys_file": word(
                "File of keys", "Its path on the worker, with such lines.", type=["null", "string"], **doubts
            ),
        }

    def _check(self, *, totals: bool = False) -> Any:
        """Passes over all tables, then what else is compared, then the judgement. Returns the first of these tasks."""
        passes = Reconcile.partial(
            map_index_template="{{ task.table }}",
            max_active_tis_per_dagrun=self.spec.lanes,
            **self._task("reconcile"),
        ).expand(table=tables_of(self.spec))
        outcome = Outcome(**self._task("outcome"))
        passes >> Report(**self._task("report")) >> outcome
        if totals:
            passes >> Totals(**self._task("totals")) >> outcome
        return passes

    def _task(self, task_id: str) -> dict[str, Any]:
        return {"task_id": task_id, "doc_md": texts.TASKS[task_id], **self.common}

    def _dag(self, name: str, text: str, *, schedule: Any = None, max_active_runs: int = 1, **options: Any) -> DAG:
        spec = self.spec
        words = {
            "migration": spec.migration,
            "source": spec.source.connection,
            "target": spec.target.connection,
            "cohort": spec.cohort.label,
        }
        return DAG(
            f"{spec.migration}_{name}",
            description=texts.SUMMARIES[name].format(**words),
            doc_md=text.format(**words),
            schedule=schedule,
            catchup=False,
            max_active_runs=max_active_runs,
            tags=["fishladder", spec.migration],
            default_args={
                "owner": "fishladder",
                "retries": RETRIES,
                "retry_delay": timedelta(seconds=10),
                "retry_exponential_backoff": 2.0,
                "max_retry_delay": timedelta(minutes=10),
                **self.default_args,
            },
            **options,
        )
