"""Attacks on a flip, each of which lost, doubled, hid or stranded something once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from fishladder import apply, operate, reconcile
from fishladder.apply import Ends
from fishladder.clock import SystemClock
from fishladder.errors import InputError
from fishladder.pace import Pace
from fishladder.serving import OpenTelemetry, Replayer
from fishladder.serving.router import Refused
from fishladder.stores.base import LoadState
from tests.unit.flips import Declined, Flips


def test_a_table_that_is_loaded_again_after_the_pass_aborts_it(flips: Flips) -> None:
    number = flips.verified()
    small = flips.small
    pace = Pace(small.ledger, SystemClock(), small.target, [], lambda line: None)
    with pytest.raises(InputError, match="NZ is about to move"):
        operate.restart(small.plan, ["item", "line"], small.target, small.ledger, pace, actor="t")
    with small.target.begin() as copy:  # one that had looked before the attempt was open
        copy.lock_load("item", exclusive=True)
        copy.write_load("item", LoadState(generation=2, open=True, cleaning=True))
        copy.commit()
    ended = flips.cutover.run(number)
    assert ended.outcome == "aborted" and "loaded again since its rows were compared" in str(ended.error)


def test_a_completed_cohort_is_read(flips: Flips) -> None:
    flips.move()
    flips.cutover.run(flips.ask("complete").id)
    router = flips.router()
    router._patience = 0.5
    assert router.read("amount", {"item": 10}, entity=1).value == 5


def test_a_key_is_kept_under_the_entity_or_under_the_cohort_never_either(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("join", {"id": 50, "country": "NZ"}, key="j", cohort="NZ")

    def buy(connection: Any, payload: Any) -> None:
        connection.execute("INSERT INTO item (customer_id, amount) VALUES (50, 1)")

    flips.operations.add("buy", buy)
    router.write("buy", {}, key="p", cohort="NZ")
    with pytest.raises(InputError, match="not both"):
        router.write("buy", {}, key="p", entity=50, cohort="NZ")
    flips.cutover.run(number)
    router.write("buy", {}, key="p", cohort="NZ")
    assert flips.small.rows("target", "SELECT count(*) FROM item WHERE customer_id = 50") == [(1,)]


def test_a_queued_write_is_pending_for_a_router_that_believes_in_the_stage_before(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "fence")
    old, new = flips.router(), flips.router()
    old.read("amount", {"item": 10}, entity=1)
    flips.until(number, "drain")
    new.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    answer = old.read("amount", {"item": 10}, entity=1)
    assert (answer.value, [p.key for p in answer.pending]) == (5, ["a"])


def test_a_write_that_is_replayed_during_a_read_is_in_the_answer(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    flips.until(number, "replay")

    def slow(connection: Any, payload: Any) -> int:
        value = int(connection.execute("SELECT amount FROM item WHERE id = 10").fetchone()[0])
        Replayer(flips.small.ledger, flips.operations, flips.stores).replay("NZ")
        return value

    flips.operations.add("slow", slow)
    answer = router.read("slow", {}, entity=1)
    assert answer.value == 6 or [p.key for p in answer.pending] == ["a"]


def test_a_refusal_holds_for_a_replayer_that_comes_later(flips: Flips) -> None:
    def take(connection: Any, payload: Any) -> None:
        if connection.execute("SELECT amount FROM item WHERE id = 10").fetchone()[0] < payload["amount"]:
            raise Declined("not enough")
        connection.execute("UPDATE item SET amount = amount - ? WHERE id = 10", (payload["amount"],))

    flips.operations.add("take", take, refusals=(Declined,))
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("take", {"amount": 7}, key="take", entity=1)
    router.write("pay", {"item": 10, "amount": 10}, key="pay", entity=1)
    flips.until(number, "replay")
    ledger = flips.small.ledger
    slow = Replayer(ledger, flips.operations, flips.stores)
    route, batch = ledger.route("NZ"), ledger.next_queued("NZ")
    flips.cutover.run(number)
    assert flips.amount(10, "target") == 15
    for queued in batch:
        slow._one(queued, route)
    assert flips.amount(10, "target") == 15


def test_a_write_is_accepted_though_its_promise_cannot_be_kept_at_once(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    failures = [RuntimeError("the bank is closed")]

    def promise(payload: Any, key: str) -> None:
        if failures:
            raise failures.pop()
        flips.promised.append(key)

    flips.operations._known["pay"] = dataclasses.replace(flips.operations["pay"], optimistic=promise)
    reader = InMemoryMetricReader()
    router = flips.router()
    router.metrics = OpenTelemetry(MeterProvider([reader]).get_meter("test"))
    assert router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1).state == "queued"
    assert '"fishladder.promises"' in str(reader.get_metrics_data().to_json())
    assert flips.promised == []
    assert flips.cutover.run(number).outcome == "done"
    assert flips.promised == ["a"]


def test_a_promise_that_cannot_be_kept_stops_its_entity_only(flips: Flips) -> None:
    def broken(payload: Any, key: str) -> None:
        raise ConnectionError("the service is away")

    flips.operations.add("hold", lambda c, p: None, optimistic=broken)
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    flips.small.ledger.enqueue("NZ", b"1:7", "hold", "h", "d", "{}", optimistic=True)
    router.write("pay", {"item": 10, "amount": 10}, key="pay", entity=1)
    flips.until(number, "replay")
    for _ in range(10):
        flips.cutover.advance(number)
    assert flips.amount(10, "target") == 15


def test_a_row_that_went_to_a_cohort_that_has_moved_leaves_nothing_behind(flips: Flips) -> None:
    number = flips.verified()
    flips.small.application("UPDATE item SET customer_id = 1 WHERE id = 20")
    assert flips.cutover.run(number).outcome == "done"
    flips.small.follow()
    assert flips.small.rows("source", "SELECT * FROM fishladder_journal") == []


def test_a_customer_who_was_born_in_both_stores_destroys_no_one(flips: Flips) -> None:
    flips.move()
    flips.small.application("INSERT INTO customer VALUES (50, 'AU', 'au')")
    flips.router().write("join", {"id": 50, "country": "NZ"}, key="j", cohort="NZ")
    flips.small.follow()
    for store, country in (("source", "AU"), ("target", "NZ")):
        for table, column in (("customer", "country"), ("fishladder_home", "cohort")):
            where = "id = 50" if table == "customer" else "entity = '2:50'"
            assert flips.small.rows(store, f"SELECT {column} FROM {table} WHERE {where}") == [(country,)]
    attempt = flips.ask(cohort="AU")
    assert not flips.cutover.verify(attempt)


def test_who_must_come_first_must_not_be_moving(flips: Flips) -> None:
    ledger = flips.small.ledger
    flips.move()
    flips.move(cohort="AU")
    flips.ask(cohort="shared")
    with pytest.raises(InputError):
        ledger.begin_attempt("NZ", "rollback", actor="t", reason="", deadline=60, needs={"shared": ("off", "shadow")})


def test_a_key_that_was_applied_is_not_queued_for_another_payload(flips: Flips) -> None:
    router = flips.router()
    router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    number = flips.verified()
    flips.until(number, "drain")
    with pytest.raises(InputError):
        router.write("pay", {"item": 10, "amount": 2}, key="a", entity=1)


def test_a_refused_write_stays_refused_when_its_cohort_is_live(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("pay", {"item": 10, "amount": -1}, key="a", entity=1)
    flips.cutover.run(number)
    known = flips.operations._known
    known["pay"] = dataclasses.replace(known["pay"], legacy=lambda c, p: None, new=lambda c, p: None)
    with pytest.raises(Refused, match="no negative amounts"):  # whatever the business would say by now
        flips.router().write("pay", {"item": 10, "amount": -1}, key="a", entity=1)


@pytest.mark.parametrize("key", ["", "k" * 129])
def test_a_key_that_a_store_would_change_is_none(flips: Flips, key: str) -> None:
    with pytest.raises(InputError, match="1 to 128 bytes"):
        flips.router().write("pay", {"item": 10, "amount": 1}, key=key, entity=1)


def test_a_completed_cohorts_fences_are_not_ahead_of_the_ledger(flips: Flips) -> None:
    """Else no restored ledger could ever be adopted after a completion."""
    flips.move()
    flips.cutover.run(flips.ask("complete").id)
    epoch = flips.small.ledger.route("NZ").epoch
    assert flips.fences() == [("nobody", epoch), ("free", epoch)]


def test_rows_whose_parents_are_gone_in_the_copy_follow_them(flips: Flips) -> None:
    """The way back deletes a parent in one batch and its children in the next, when nothing says whose they are."""
    flips.move()
    small = flips.small
    small.application("DELETE FROM customer WHERE id = 1", store="target")
    back = Ends(owner="target", origin=small.target, destination=small.source)
    dirty = apply.read_dirty(small.plan, back, small.ledger)
    parents = [line for line in dirty if line.table in ("customer", "item")]
    apply.apply_batch(small.plan, back, small.ledger, parents)
    assert small.rows("source", "SELECT no FROM line WHERE item_id = 10") == [(1,), (2,)]
    apply.apply_round(small.plan, [back], small.ledger)
    assert small.rows("source", "SELECT no FROM line WHERE item_id = 10") == []
    assert apply.read_dirty(small.plan, back, small.ledger) == []


def test_a_pass_knows_whose_rows_are_whose_parents_are_gone_in_the_copy(flips: Flips) -> None:
    """Taken for nobody's they would be the source's, be missing in the target, and come back to life there."""
    flips.move()
    small = flips.small
    small.application("DELETE FROM customer WHERE id = 1", store="target")
    back = Ends(owner="target", origin=small.target, destination=small.source)
    dirty = apply.read_dirty(small.plan, back, small.ledger)
    apply.apply_batch(small.plan, back, small.ledger, [line for line in dirty if line.table in ("customer", "item")])
    found = reconcile.reconcile_table(small.plan, small.plan.table("line"), small.ends, small.ledger)
    assert (found.missing, found.extra, found.differs, found.deferred) == (0, 0, 0, 0)
    assert small.rows("source", "SELECT no FROM line WHERE item_id = 10") == []
    assert small.rows("target", "SELECT no FROM line WHERE item_id = 10") == []


def test_who_is_born_into_a_completed_cohort_is_journaled_no_more(flips: Flips) -> None:
    flips.move()
    flips.cutover.run(flips.ask("complete").id)
    flips.small.application("INSERT INTO customer VALUES (9, 'NZ', 'i')", store="target")
    assert flips.small.rows("target", "SELECT cohort FROM fishladder_home WHERE root_key = '9'") == [("NZ",)]
    assert flips.small.rows("target", "SELECT * FROM fishladder_journal") == []


def test_a_holder_that_is_displaced_is_compared_under_the_fence(flips: Flips) -> None:
    """Two customers swap a unique value after the pass: whoever has to give way is a key that was touched, too."""
    small = flips.small
    small.application("INSERT INTO customer VALUES (5, 'NZ', 'e')")
    apply.apply_round(small.plan, [small.ends], small.ledger)
    number = flips.verified()
    small.application(
        "UPDATE customer SET email = 'between' WHERE id = 1",
        "UPDATE customer SET email = 'a' WHERE id = 5",
        "UPDATE customer SET email = 'e' WHERE id = 1",
    )
    (one,) = [line for line in apply.read_dirty(small.plan, small.ends, small.ledger) if line.key == b"1:1"][:1]
    apply.apply_batch(small.plan, small.ends, small.ledger, [one], every_shard=True)
    with small.target.read() as there:
        assert {("customer", b"1:1"), ("customer", b"1:5")} <= set(there.touched(str(number)))


def test_what_was_noted_for_an_attempt_that_is_over_is_forgotten_by_the_next(flips: Flips) -> None:
    small = flips.small
    first = flips.verified()
    small.application("UPDATE item SET amount = 50 WHERE id = 10")
    apply.apply_round(small.plan, [small.ends], small.ledger)
    small.ledger.abort(small.ledger.attempt(first), "not today")
    with small.target.read() as there:
        assert there.touching() == {str(first)}
    second = flips.verified()
    small.application("UPDATE item SET amount = 51 WHERE id = 10")
    apply.apply_round(small.plan, [small.ends], small.ledger)
    with small.target.read() as there:
        assert there.touching() == {str(second)}
        assert there.touched(str(second)) == [("item", b"2:10")]


def test_all_cohorts_of_a_request_or_none(flips: Flips) -> None:
    """A completion cannot be taken back: so nobody's has begun when another cohort is refused."""
    flips.move()
    ledger = flips.small.ledger
    with pytest.raises(InputError, match="AU: a complete starts from live"):
        ledger.begin_attempts({"NZ": {}, "AU": {}}, "complete", actor="ann", reason="", deadline=60, approvals=0)
    assert ledger.attempts(only_open=True) == []
    assert (ledger.route("NZ").stage, flips.fences()[1][0]) == ("live", "application")


def test_a_call_that_is_refused_because_it_has_just_been_done_is_answered(flips: Flips) -> None:
    """Its customer repeats a call that hangs; the first one commits, and the business refuses to do it twice."""
    router, calls = flips.router(), list[str]()

    def charge(connection: Any, payload: Any) -> dict[str, Any]:
        calls.append("charge")
        if len(calls) == 1:
            connection.execute("ROLLBACK")
            first = flips.router().write("charge", payload, key="a", entity=1)
            assert (first.state, first.repeated) == ("done", False)
            connection.execute("BEGIN IMMEDIATE")
            raise Declined("charged already")
        connection.execute("UPDATE item SET amount = amount + 1 WHERE id = 10")
        return {"done": True}

    flips.operations.add("charge", charge, refusals=(Declined,))
    again = router.write("charge", {}, key="a", entity=1)
    assert (again.state, again.result, again.repeated) == ("done", {"done": True}, True)
    assert flips.amount(10, "source") == 6
