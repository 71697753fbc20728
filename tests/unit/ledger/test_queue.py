"""The queue on every database that the ledger can live in; what happens around it is told in test_flip.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from fishladder.errors import InputError
from fishladder.ledger import Attempt, Ledger, Queued, Route, Waiting, attempts, open_ledger, queue
from fishladder.serving.router import KEY_BYTES
from tests.unit.ledger.conftest import Clock

CUSTOMER = b"1:\xc5\x8d\x00"
PAYLOAD = '{"note": "%s :where \u014d"}'
WRITE = ("NZ", CUSTOMER, "charge", "a", "digest", PAYLOAD)


def enqueue(ledger: Ledger, key: str, entity: bytes = CUSTOMER) -> Queued:
    queued = ledger.enqueue("NZ", entity, "charge", key, "digest", PAYLOAD, optimistic=True, epoch=1)
    assert isinstance(queued, Queued)
    return queued


def place(ledger: Ledger, stage: str, epoch: int = 1) -> None:
    with ledger.engine.begin() as connection:
        where = {"stage": stage, "epoch": epoch}
        connection.execute(text("UPDATE ledger_route SET stage = :stage, epoch = :epoch WHERE cohort = 'NZ'"), where)


@pytest.fixture
def queueing(ledger: Ledger) -> Ledger:
    ledger.ensure_routes(["NZ", "AU"], "ada")
    place(ledger, "queue")
    return ledger


def test_what_is_queued_is_as_it_will_be_read(queueing: Ledger) -> None:
    first, second = (enqueue(queueing, key) for key in ("a", "k" * KEY_BYTES))
    assert queueing.waiting() == queueing.next_queued("NZ") == [first, second]
    assert enqueue(queueing, "a") == queueing.queued("charge", CUSTOMER, "a") == first


def test_a_stage_in_which_nothing_waits_takes_nothing(queueing: Ledger) -> None:
    """It answers where the cohort is; what was accepted before is known for ever."""
    queued = enqueue(queueing, "a")
    for stage in ("off", "shadow", "fencing", "live", "complete"):
        place(queueing, stage)
        answer = queueing.enqueue("NZ", CUSTOMER, "charge", "b", "digest", PAYLOAD, epoch=1)
        assert answer == Route(stage=stage, owner="source", epoch=1)
        assert enqueue(queueing, "a") == queued
    assert queueing.waiting() == [queued]
    place(queueing, "replay")
    assert [queued, enqueue(queueing, "b")] == queueing.waiting()


def test_a_ledger_from_before_what_the_router_knows_takes_nothing(queueing: Ledger) -> None:
    """It was restored; one that has gone on meanwhile takes the write, at the stage that it has now."""
    for stage in ("queue", "replay"):
        place(queueing, stage, epoch=3)
        answer = queueing.enqueue("NZ", CUSTOMER, "charge", "a", "digest", PAYLOAD, epoch=4)
        assert answer == Route(stage=stage, owner="source", epoch=3)
    assert queueing.waiting() == []
    for epoch in (3, 2):
        accepted = queueing.enqueue("NZ", CUSTOMER, "charge", f"{epoch}", "digest", PAYLOAD, epoch=epoch)
        assert isinstance(accepted, Queued)


def test_a_replayer_from_before_a_restore_settles_no_other_write(queueing: Ledger) -> None:
    """A ledger that was restored gives the number of a write that it has lost to another one."""
    queued = enqueue(queueing, "a")
    for lost in (replace(queued, key="lost"), replace(queued, entity=b"2:22"), replace(queued, operation="refund")):
        queueing.refuse_queued(lost, "no")
        queueing.finish_queued({lost: None})
        queueing.note_optimistic(lost, "undone")
        assert queueing.note_failed_replay(lost, "why", 1) == "pending"
        assert queueing.waiting() == [queued]


def test_where_a_cohort_stands_and_what_waits(queueing: Ledger) -> None:
    standing = Route(stage="queue", owner="source", epoch=1)
    assert queueing.standing("NZ", CUSTOMER) == (standing, [])
    first, second = (enqueue(queueing, key) for key in ("a", "b"))
    enqueue(queueing, "a", entity=b"2:22")
    assert queueing.note_failed_replay(second, "why", 1) == "parked"
    waiting = [Waiting(operation="charge", key=key, payload=PAYLOAD) for key in ("a", "b")]
    assert queueing.standing("NZ", CUSTOMER) == (standing, waiting)
    queueing.finish_queued({first: '"done"', second: None})
    assert queueing.standing("NZ", CUSTOMER) == (standing, [])
    assert queueing.standing("AU", CUSTOMER) == (Route(stage="off", owner="source", epoch=1), [])
    with pytest.raises(InputError, match="no cohort 'XX'; run prepare"):
        queueing.standing("XX", CUSTOMER)


def test_a_write_that_failed_rests_and_holds_up_its_entity_only(queueing: Ledger, clock: Clock) -> None:
    """Twice as long each time, until it is parked; by a clock that has jumped it is not held up for as long."""
    first, second = (enqueue(queueing, key) for key in ("a", "b"))
    other = enqueue(queueing, "a", entity=b"2:22")
    for rest in (1, 2, 4, 8):
        assert queueing.next_queued("NZ")[0].key == first.key
        assert queueing.note_failed_replay(first, "the bank is away", 5) == "pending"
        clock.now += timedelta(seconds=rest - 0.001)
        assert queueing.next_queued("NZ") == [other]
        clock.now += timedelta(seconds=0.001)
    assert [queued.key for queued in queueing.next_queued("NZ")] == ["a", "b", "a"]
    assert queueing.note_failed_replay(second, "the bank is away", 5) == "pending"
    clock.now -= timedelta(hours=1)
    assert len(queueing.next_queued("NZ")) == 3
    clock.now += timedelta(hours=1)
    assert queueing.next_queued("NZ") == [other]
    assert queueing.note_failed_replay(first, "the bank is away", 5) == "parked"
    queueing.release_queued(first.id, actor="ann")
    clock.now += timedelta(seconds=1)
    assert [queued.attempts for queued in queueing.next_queued("NZ")] == [0, 1, 0]


def test_a_write_that_was_given_up_rests_too_and_keeps_its_reason(queueing: Ledger, clock: Clock) -> None:
    """What was promised cannot be undone just now: it is tried again for ever, and never parked."""
    queued, rests = enqueue(queueing, "a"), [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    queueing.drop_queued(queued.id, "the customer was told", actor="ann")
    for rest in rests:
        assert queueing.note_failed_replay(queued, "the bank is away", 5) == "pending"
        clock.now += timedelta(seconds=rest - 0.001)
        assert queueing.next_queued("NZ") == []
        clock.now += timedelta(seconds=0.001)
        (found,) = queueing.next_queued("NZ")
        assert (found.state, found.reason) == ("unwanted", "the customer was told")
    assert found.attempts == len(rests)


def test_something_passing_is_rested_for_and_not_counted(queueing: Ledger, clock: Clock) -> None:
    first, second = enqueue(queueing, "a"), enqueue(queueing, "a", entity=b"2:22")
    queueing.rest_queued(first)
    assert queueing.next_queued("NZ") == [second]
    clock.now += timedelta(seconds=1)
    assert queueing.next_queued("NZ") == [first, second]


def test_nothing_overtakes_what_has_rested_before_the_number_that_is_asked_from(queueing: Ledger, clock: Clock) -> None:
    """Who goes through the queue in parts may come by when the oldest write of an entity is due again."""
    first, other, second = enqueue(queueing, "a"), enqueue(queueing, "a", entity=b"2:22"), enqueue(queueing, "b")
    queueing.rest_queued(first)
    assert queueing.next_queued("NZ", 1) == [other]
    clock.now += timedelta(seconds=1)
    assert queueing.next_queued("NZ", after=other.id) == []
    assert queueing.next_queued("NZ") == [first, other, second]


def test_a_router_goes_on_with_a_ledger_of_the_version_before(queueing: Ledger) -> None:
    """Airflow and applications are upgraded one after the other; customers of a moving cohort must not see it."""
    with queueing.engine.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_queue DROP COLUMN due_at"))
    queued = enqueue(queueing, "a")
    assert enqueue(queueing, "a") == queueing.queued("charge", CUSTOMER, "a") == queued
    assert queueing.standing("NZ", CUSTOMER)[1] == [Waiting(operation="charge", key="a", payload=PAYLOAD)]
    queueing.note_optimistic(queued, "done")


# Two at once -------------------------------------------------------------------------------------------------------


def replaying(ledger: Ledger) -> Attempt:
    """A flip of NZ, in epoch 3, whose queue is about to be seen empty."""
    ledger.ensure_routes(["NZ"], "ada")
    at = ledger.begin_attempt("NZ", "flip", actor="ada", reason="", deadline=600)
    ledger.prove(at, "verified", {})
    at = ledger.drained(ledger.queue_attempt(ledger.fence_attempt(at, {})))
    ledger.prove(at, "compared", {})
    return ledger.advance(ledger.advance(ledger.switch(at, {}), "close"), "replay")


def test_the_end_of_a_replay_sees_the_write_that_is_being_accepted(ledger: Ledger, url: str) -> None:
    """Nobody would replay it; the customer was told that it is accepted."""
    at = replaying(ledger)
    with open_ledger(url, migration="billing") as other, ThreadPoolExecutor(1) as pool:
        with ledger._write() as tx:
            accepted = queue.enqueue(tx, *WRITE, optimistic=False, epoch=3)
            ending = pool.submit(other.end_replay, at)
            wait([ending], timeout=1)  # too short only weakens the test
        assert ending.result(60) is None
    assert ledger.waiting() == [accepted]
    assert (ledger.attempt(at.id), ledger.route("NZ").stage) == (at, "replay")


def test_a_write_that_comes_while_a_replay_ends_is_not_queued(ledger: Ledger, url: str) -> None:
    at, live = replaying(ledger), Route(stage="live", owner="target", epoch=3)
    with open_ledger(url, migration="billing") as other, ThreadPoolExecutor(1) as pool:
        with ledger._write() as tx:
            assert attempts.end_replay(tx, at).outcome == "done"
            writing = pool.submit(other.enqueue, *WRITE, epoch=3)
            wait([writing], timeout=1)  # too short only weakens the test
        assert writing.result(60) == ledger.route("NZ") == live
    assert ledger.waiting() == []


def test_two_writes_at_once_have_numbers_in_the_order_in_which_they_are_accepted(queueing: Ledger, url: str) -> None:
    """Else the second one is there to be replayed before the first."""
    with open_ledger(url, migration="billing") as other, ThreadPoolExecutor(1) as pool:
        with queueing._write() as tx:
            first = queue.enqueue(tx, *WRITE, optimistic=True, epoch=1)
            accepting = pool.submit(enqueue, other, "b")
            wait([accepting], timeout=1)  # too short only weakens the test
            assert other.waiting() == []
        second = accepting.result(60)
    assert queueing.waiting() == queueing.next_queued("NZ") == [first, second]
