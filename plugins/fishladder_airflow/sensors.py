"""Sensors that wait for the state of a migration. They fail closed: what is missing or stale is not reached."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, Context

from fishladder import tasks, verdict
from fishladder.gates import closed
from fishladder_airflow.connections import open_desk


class CleanPasses(BaseSensorOperator):
    """Waits until ``tables`` (or all) have ``passes`` clean passes in a row (or as many as the gate asks for)."""

    template_fields: Sequence[str] = ("tables",)

    def __init__(
        self,
        *,
        migration_file: str,
        tables: Sequence[str] = (),
        passes: int | None = None,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.migration_file = migration_file
        self.tables = tables
        self.passes = passes

    def poke(self, context: Context) -> bool:
        with open_desk(self.migration_file, self.log.info) as desk:
            passes = desk.spec.gates.clean_passes if self.passes is None else self.passes
            return verdict.clean(desk.spec, desk.ledger, passes=passes, tables=self.tables)


class CaughtUp(BaseSensorOperator):
    """Waits until the applier runs and is behind by at most ``max_lag`` (or what the gate asks for)."""

    def __init__(
        self, *, migration_file: str, max_lag: timedelta | None = None, mode: str = "reschedule", **kwargs: Any
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.migration_file = migration_file
        self.max_lag = max_lag

    def poke(self, context: Context) -> bool:
        with open_desk(self.migration_file, self.log.info) as desk:
            max_lag = desk.spec.gates.max_lag if self.max_lag is None else self.max_lag
            return verdict.caught_up(desk.ledger, desk.clock.now(), max_lag)


class GatesOpen(BaseSensorOperator):
    """Waits until every gate of an attempt is open; its log says which ones are not, and what opens them."""

    template_fields: Sequence[str] = ("attempt",)

    def __init__(self, *, migration_file: str, attempt: int | str, mode: str = "reschedule", **kwargs: Any) -> None:
        super().__init__(mode=mode, **kwargs)
        self.migration_file = migration_file
        self.attempt = attempt

    def poke(self, context: Context) -> bool:
        with open_desk(self.migration_file, self.log.info) as desk:
            problems = closed(desk.evaluate(desk.ledger.attempt(int(self.attempt))))
        for problem in problems:
            self.log.info(problem)
        return not problems


class Observe(BaseSensorOperator):
    """Asks every monitor until a cohort that has flipped was quiet for long enough. Fails when one is not."""

    template_fields: Sequence[str] = ("attempt",)

    def __init__(self, *, migration_file: str, attempt: Any, mode: str = "reschedule", **kwargs: Any) -> None:
        super().__init__(mode=mode, map_index_template="{{ task.attempt['cohort'] }}", **kwargs)
        self.migration_file = migration_file
        self.attempt = attempt

    def poke(self, context: Context) -> bool:
        with open_desk(self.migration_file, self.log.info) as desk:
            return tasks.watch(desk, self.attempt["attempt"])
