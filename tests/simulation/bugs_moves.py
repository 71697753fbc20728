"""A planted bug for each rule of design §9 and §10 but those in ELSEWHERE, as in ``bugs``: a cohort moves without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from sqlalchemy import select

from fishladder import flip
from fishladder.errors import AmbiguousError, TransientError
from fishladder.flip import Cutover
from fishladder.ledger import attempts, queue, tables
from fishladder.serving import replay, router
from fishladder.serving.replay import Replayer
from fishladder.stores import sql
from fishladder.stores.application import Session
from fishladder.stores.base import APPLIED_TABLE, Fence
from fishladder.stores.sqlite import SqliteStore
from tests.simulation import run
from tests.simulation.bugs import Bug, Plant
from tests.simulation.company import Kind

BUGS: dict[str, Bug] = {}


def planted(shows_in: Callable[[Kind], bool] = lambda kind: True) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        rule = (plant.__doc__ or "").strip()
        BUGS[plant.__name__] = Bug(rule=rule, plant=plant, shows_in=lambda kind: kind.moves and shows_in(kind))
        return plant

    return register


def instead_of_step(**steps: Callable[[Cutover, Any], Any]) -> AbstractContextManager[Any]:
    """Some steps of an attempt, done otherwise."""
    real = Cutover._step

    def broken(self: Cutover, attempt: Any) -> Any:
        return steps[attempt.step](self, attempt) if attempt.step in steps else real(self, attempt)

    return patch.object(Cutover, "_step", broken)


# Fences --------------------------------------------------------------------------------------------------------


@planted()
def fenced_for_copiers() -> AbstractContextManager[Any]:
    """A fence that closes says nobody: not even a copier may write before the switch."""
    real = Cutover._order

    def broken(self: Cutover, attempt: Any, side: Any, writer: Any) -> None:
        real(self, attempt, side, "copier" if writer == "nobody" else writer)

    return patch.object(Cutover, "_order", broken)


@planted()
def queue_before_the_fence() -> AbstractContextManager[Any]:
    """The owner's fence is closed before writes may queue."""

    def fence(self: Cutover, attempt: Any) -> Any:
        queued = self.ledger.queue_attempt(attempt)
        self._order(queued, attempt.loser, "nobody")
        return queued

    return instead_of_step(fence=fence)


@planted()
def order_not_read_back() -> AbstractContextManager[Any]:
    """An order to a fence is repeated until it is read back: one that got no answer may not have been heard."""
    real = flip.set_fence

    def broken(store: Any, clock: Any, cohort: str, writer: Any, epoch: int, **_: Any) -> Fence:
        with suppress(TransientError, AmbiguousError):
            real(store, clock, cohort, writer, epoch, deadline=0)
        return Fence(writer=writer, epoch=epoch)

    return patch.object(flip, "set_fence", broken)


@planted()
def an_epoch_may_fall() -> AbstractContextManager[Any]:
    """A fence only ever gets a higher epoch: an order of long ago that is repeated changes nothing."""
    real = sql.Session.lock_fences

    def broken(self: Any, cohorts: Any, *, exclusive: bool = False) -> Any:
        found = real(self, cohorts, exclusive=exclusive)
        return {cohort: replace(fence, epoch=-1) for cohort, fence in found.items()} if exclusive else found

    return patch.object(sql.Session, "lock_fences", broken)


@planted()
def closed_before_the_other_opens() -> AbstractContextManager[Any]:
    """The winner opens before the loser takes copies: until then the winner is the copy, and so are both."""
    return instead_of_step(
        open=lambda self, attempt: (
            self._order(attempt, attempt.loser, "copier"),
            self.ledger.advance(attempt, "close"),
        )[1],
        close=lambda self, attempt: (
            self._order(attempt, attempt.winner, "application"),
            self.ledger.advance(attempt, "replay"),
        )[1],
    )


# Drain, compare, switch --------------------------------------------------------------------------------------


@planted()
def entries_dropped_at_the_fence() -> AbstractContextManager[Any]:
    """A flip drops no journal entries."""
    real = Cutover._step

    def fence(self: Cutover, attempt: Any) -> Any:
        with self.stores[attempt.loser].begin() as origin:  # type: ignore[index]
            origin.forget_cohort(attempt.cohort)
            origin.commit()
        return real(self, attempt)

    return instead_of_step(fence=fence)


@planted()
def switched_before_it_is_drained() -> AbstractContextManager[Any]:
    """Nobody switches before every change of the cohort is in the other store."""
    return patch.object(Cutover, "_drained", lambda self, attempt: True)


@planted()
def switch_believes_who_asks() -> AbstractContextManager[Any]:
    """The switch itself looks for the proofs, whatever a task or a person says."""
    return patch.object(attempts, "proofs", lambda *_: {"verified", "drained", "compared"})


@planted()
def proofs_of_another_attempt() -> AbstractContextManager[Any]:
    """Proofs count for the attempt and the epoch that they were made in."""

    def broken(tx: Any, attempt: int, epoch: int | None = None) -> set[str]:
        return set(tx.connection.scalars(select(tables.proof.c.kind)))

    return patch.object(attempts, "proofs", broken)


@planted()
def aborted_without_a_replay() -> AbstractContextManager[Any]:
    """An abort goes back through replay: its fence opens, and what was queued is done."""
    real = attempts.abort

    def broken(tx: Any, attempt: Any, error: str, actor: str) -> Any:
        if attempt.step not in attempts.BEFORE_SWITCH or attempt.step == "verify":
            return real(tx, attempt, error, actor)
        moved = attempts._move(tx, attempt, "done", stage=attempts.STABLE[attempt.loser], raised=True)
        return attempts._end(tx, moved, "aborted", error, actor)

    return patch.object(attempts, "abort", broken)


# Router ------------------------------------------------------------------------------------------------------


@planted()
@contextmanager
def epochs_not_compared() -> Iterator[None]:
    """A router whose route is older than the fence asks again: it may not know that writes wait.

    Routers believe for longer in what they know, and what waits is replayed slowly, so that it shows within few worlds.
    """
    with (
        patch.object(router, "_is_open", lambda fence, route: fence.writer in ("application", "free")),
        patch.object(run, "ROUTE_SECONDS", 60.0),
        patch.object(replay, "TURN", 1e-6),
    ):
        yield


@planted()
def overtakes_what_waits() -> AbstractContextManager[Any]:
    """During replay a write waits behind those of its entity."""

    def broken(self: Any, wanted: Any, route: Any) -> Any:
        return self._queue(wanted, route) if route.stage == "queue" else self._do(wanted, route)

    return patch.object(router.Router, "_try", broken)


@planted()
def queued_at_any_stage() -> AbstractContextManager[Any]:
    """A write is queued only while somebody will replay it."""
    return patch.object(queue, "QUEUEING", ("off", "shadow", "fencing", "queue", "replay", "live"))


@planted()
def keys_not_kept() -> AbstractContextManager[Any]:
    """What took effect is kept under its key, with its effect: who asks again is answered."""
    return patch.multiple(Session, record=lambda *_: None, applied=lambda *_: None)


@planted()
def applied_keys_stay_behind() -> AbstractContextManager[Any]:
    """Applied keys travel with the rows."""
    real = SqliteStore.install_triggers

    def broken(self: Any, found: Any) -> None:
        real(self, [table for table in found if table.relation.table != APPLIED_TABLE])

    return patch.multiple(SqliteStore, install_triggers=broken, has_triggers=lambda *_: True)


@planted()
def reads_hide_what_waits() -> AbstractContextManager[Any]:
    """A read names the writes of its entity that are accepted and not done yet."""
    return patch.object(router, "MOVING", ())


@planted()
def reads_ask_no_fence() -> AbstractContextManager[Any]:
    """A read sees by the fence that its store is a copy by now."""
    real = Session.fence
    return patch.object(Session, "fence", lambda self, cohort, *, hold: real(self, cohort, hold=True) if hold else None)


# Replay ------------------------------------------------------------------------------------------------------


@planted()
def replayed_the_newest_first() -> AbstractContextManager[Any]:
    """Oldest first for each entity."""
    real = queue.oldest
    return patch.object(queue, "oldest", lambda *arguments: real(*arguments)[::-1])


@planted()
def done_before_its_effect() -> AbstractContextManager[Any]:
    """A queued write is done when its effect is committed."""
    real = Replayer._one

    def broken(self: Any, queued: Any, route: Any) -> Any:
        self.ledger.finish_queued({queued: None})
        return real(self, queued, route)

    return patch.object(Replayer, "_one", broken)


@planted()
def live_while_writes_wait() -> AbstractContextManager[Any]:
    """Replay ends in the transaction that sees the queue empty."""
    return patch.object(queue, "count_waiting", lambda *_: 0)


@planted()
def replays_until_it_is_told() -> AbstractContextManager[Any]:
    """Replay records the key in the owner: two replayers do not do the same twice."""
    return patch.object(Session, "record", lambda *_: None)


@planted()
def promise_left_to_the_router() -> AbstractContextManager[Any]:
    """What was promised with a queued write is done by the replay where the router died before it."""
    real = Replayer._one
    return patch.object(
        Replayer, "_one", lambda self, queued, route: real(self, replace(queued, optimistic=None), route)
    )


@planted()
def promise_not_undone() -> AbstractContextManager[Any]:
    """A refused write's promise is undone."""

    def broken(self: Any, operation: Any, queued: Any, reason: str) -> None:
        self.ledger.refuse_queued(queued, reason)

    return patch.object(Replayer, "_refuse", broken)


@planted()
def refusal_not_recorded() -> AbstractContextManager[Any]:
    """A refusal holds for everybody: the business may have changed its mind when the next one asks."""

    real = Session.record

    def broken(self: Any, operation: str, entity: bytes, key: str, applied: Any) -> None:
        if not applied.refused:
            real(self, operation, entity, key, applied)

    return patch.object(Session, "record", broken)


# What shows no wrong in this world, or has a rare cause, and the test that shows it -------------------------------

_FLIP, _ATTACKS = "unit/test_flip.py::test_", "unit/test_flip_attacks.py::test_"
_SERVING = "unit/test_serving.py::test_"
_APPROVALS, _COMPLETED = "unit/test_approvals.py::test_", "unit/test_completed.py::test_"
ELSEWHERE: dict[str, str] = {
    "homes are copied before all rows": "unit/test_plan.py::test_parents_come_before_children_and_homes_before_all",
    "one open attempt for each cohort": _FLIP + "two_attempts_for_one_cohort",
    "a flip starts from off or shadow, a rollback from live": _FLIP + "who_cannot_go",
    "waves in their order, shared tables last, first back and completed last": _FLIP
    + "waves_and_shared_tables_keep_their_order",
    "who must come first must not be moving": _ATTACKS + "who_must_come_first_must_not_be_moving",
    "each step compares where its caller believed the attempt": (
        _FLIP + "every_step_may_be_repeated_by_another_at_any_time"
    ),
    "a ledger that a fence is ahead of queues nothing": _SERVING + "a_ledger_that_a_fence_is_ahead_of_queues_nothing",
    "a ledger that a router is ahead of queues nothing": _SERVING + "a_ledger_that_a_router_is_ahead_of_queues_nothing",
    "a store that is ahead of the ledger freezes the cohort": _FLIP + "a_store_ahead_of_the_ledger_freezes_the_cohort",
    "keys touched since the pass are compared under the fence": (
        _FLIP + "a_touched_row_that_differs_aborts_under_the_fence"
    ),
    "what is forgotten before the fence was compared while copiers waited": (
        _FLIP + "copiers_wait_while_what_they_copied_is_compared"
    ),
    "who had to give way is touched, too": _ATTACKS + "a_holder_that_is_displaced_is_compared_under_the_fence",
    "triggers are as they were when the rows were compared": (
        _FLIP + "triggers_that_were_installed_again_after_the_pass_abort_it"
    ),
    "tables are as they were when the rows were compared": (
        _ATTACKS + "a_table_that_is_loaded_again_after_the_pass_aborts_it"
    ),
    "past its deadline an attempt is aborted": _FLIP + "past_its_deadline_it_is_aborted",
    "complete ends journaling, of births too": (_ATTACKS + "who_is_born_into_a_completed_cohort_is_journaled_no_more"),
    "a row whose parents are gone in the copy is whose they were": (
        _ATTACKS + "rows_whose_parents_are_gone_in_the_copy_follow_them"
    ),
    "a pass asks the entries whose such a row was": (
        _ATTACKS + "a_pass_knows_whose_rows_are_whose_parents_are_gone_in_the_copy"
    ),
    "the switch itself asks for doubts of the cohort": _FLIP + "the_switch_itself_asks_for_doubts_of_the_cohort",
    "the switch itself looks at the clock": _FLIP + "the_switch_itself_looks_at_the_clock",
    "what a completed cohort gave away is applied before it is forgotten": (
        _COMPLETED + "what_is_pending_of_a_row_that_it_gave_away_is_not_dropped"
    ),
    "of a completed cohort's copies nobody is asked": _COMPLETED + "a_row_that_moved_a_moment_before_keeps_nobody",
    "a completed cohort's rows in the target are not touched": (
        _COMPLETED + "a_doubt_deletes_no_row_that_is_the_targets_for_good"
    ),
    "rows say more than a doubt about nobody's": _COMPLETED + "a_doubt_about_a_row_that_was_nowhere_goes_with_the_row",
    "a flip takes all that has no home along": (
        _COMPLETED + "all_rows_without_a_home_are_drained_before_one_can_get_it_in_the_target"
    ),
    "nothing overtakes a write that rests": (
        "unit/ledger/test_queue.py::test_nothing_overtakes_what_has_rested_before_the_number_that_is_asked_from"
    ),
    "a write is given up in its owner": _FLIP + "a_write_that_took_effect_before_it_was_given_up_is_done",
    "who is refused because it has just been done is answered": (
        _ATTACKS + "a_call_that_is_refused_because_it_has_just_been_done_is_answered"
    ),
    "a row without a home is nobody's once a cohort has moved": (
        "unit/test_homeless.py::test_who_was_born_in_the_target_gets_no_rows_in_the_source"
    ),
    "copiers ask the destination's fence in their transaction": (
        "contract/test_fences.py::test_raising_waits_for_a_copier_that_looked"
    ),
    "nothing is read in the application's transaction before its operation, but the fence": (
        "contract/test_router.py::test_a_refund_that_waited_for_another_sees_it"
    ),
    "a key says what came of a call, whatever the same call says the second time": (
        "contract/test_router.py::test_what_cannot_be_done_twice_is_done_once"
    ),
    "what was read at a closed fence is an answer while nothing has been replayed": (
        _SERVING + "a_fence_that_has_just_closed_keeps_no_read_waiting"
    ),
    "a store whose fence says nobody is read only while the other one is not open": (
        _SERVING + "a_read_between_two_owners_is_of_the_one_that_is_open"
    ),
    "all cohorts of a request or none": _ATTACKS + "all_cohorts_of_a_request_or_none",
    "nothing is fenced without approvals": _APPROVALS + "without_enough_people_nothing_is_fenced",
    "the switch itself counts approvals": _APPROVALS + "an_approval_that_expires_under_the_fence_does_not_switch",
    "gates are judged again under the fence": _APPROVALS + "gates_that_close_under_the_fence",
    "a completion is approved first": _APPROVALS + "a_completion_changes_nothing_before_it_is_approved",
}
FOUND_AT: dict[str, int] = {
    "aborted_without_a_replay": 1,
    "an_epoch_may_fall": 1,
    "applied_keys_stay_behind": 0,
    "closed_before_the_other_opens": 0,
    "done_before_its_effect": 23,
    "entries_dropped_at_the_fence": 0,
    "epochs_not_compared": 9,
    "fenced_for_copiers": 1,
    "keys_not_kept": 93,
    "live_while_writes_wait": 23,
    "order_not_read_back": 23,
    "overtakes_what_waits": 0,
    "promise_left_to_the_router": 23,
    "promise_not_undone": 23,
    "proofs_of_another_attempt": 3,
    "queue_before_the_fence": 59,
    "queued_at_any_stage": 186,
    "reads_ask_no_fence": 3,
    "reads_hide_what_waits": 23,
    "refusal_not_recorded": 244,
    "replayed_the_newest_first": 0,
    "replays_until_it_is_told": 93,
    "switch_believes_who_asks": 1,
    "switched_before_it_is_drained": 28,
}
"""A seed whose world shows the bug: where the test looks first."""
