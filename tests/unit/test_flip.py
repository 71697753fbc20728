"""A cohort moves from one SQLite file to the other and back, step by step, with a router in between."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from fishladder import apply, install, reconcile, tasks
from fishladder.cells import SHARDS
from fishladder.cli import main
from fishladder.clock import SystemClock
from fishladder.errors import InputError, LedgerError, StaleError
from fishladder.fence import set_fence
from fishladder.flip import Stalled, check_ids, wave_needs
from fishladder.ledger import Attempt, DirtyKey, Mismatch, Queued, Reject, Route, open_ledger
from fishladder.serving import Refused, Replayer
from fishladder.serving.replay import TURN
from fishladder.spec import loads
from fishladder.stores.application import Application
from fishladder.stores.sqlite import SqliteTransaction
from fishladder.tasks import Desk
from tests.unit.flips import Flips
from tests.unit.small import SPEC
from tests.unit.test_approvals import desk_of

# The way there and back --------------------------------------------------------------------------------------------


def test_a_cohort_moves_and_the_way_back_stays_open(flips: Flips) -> None:
    flips.small.application("UPDATE item SET amount = amount + 1")
    attempt = flips.move()
    assert (attempt.outcome, attempt.error) == ("done", None)
    assert flips.small.ledger.route("NZ") == Route(stage="live", owner="target", epoch=3)
    assert flips.fences() == [("copier", 3), ("application", 3)]
    assert flips.fences("AU") == [("application", 1), ("copier", 1)]
    router = flips.router()
    assert router.write("pay", {"item": 10, "amount": 7}, key="a", entity=1).state == "done"
    assert router.write("pay", {"item": 20, "amount": 7}, key="b", entity=2).state == "done"
    assert (flips.amount(10, "source"), flips.amount(10, "target")) == (6, 13)
    flips.small.follow()
    assert flips.amount(10, "source") == 13 and flips.same()

    back = flips.move("rollback")
    assert back.outcome == "done"
    assert flips.small.ledger.route("NZ") == Route(stage="off", owner="source", epoch=5)
    assert flips.fences() == [("application", 5), ("copier", 5)]
    router.write("pay", {"item": 10, "amount": 1}, key="c", entity=1)
    flips.small.follow()
    assert flips.amount(10, "source") == 14 and flips.same()


def test_a_completed_cohort_is_the_targets_for_good(flips: Flips) -> None:
    flips.move()
    router = flips.router()
    router.write("pay", {"item": 10, "amount": 7}, key="a", entity=1)
    done = flips.cutover.run(flips.ask("complete").id)
    assert done.outcome == "done"
    assert flips.small.ledger.route("NZ").stage == "complete"
    assert [writer for writer, _ in flips.fences()] == ["nobody", "free"]
    assert flips.small.rows("target", "SELECT * FROM fishladder_journal WHERE cohort = 'NZ'") == []
    router.write("pay", {"item": 10, "amount": 7}, key="b", entity=1)
    assert flips.amount(10, "target") == 19
    assert flips.small.rows("target", "SELECT * FROM fishladder_journal") == []
    with pytest.raises(InputError, match="complete"):
        flips.ask("rollback")


def test_every_step_may_be_repeated_by_another_at_any_time(flips: Flips) -> None:
    number = flips.verified()
    seen = []
    while True:
        before = flips.small.ledger.attempt(number)
        flips.cutover.advance(number)
        seen.append(before.step)
        if flips.small.ledger.attempt(number) != before:
            ledger = flips.small.ledger
            for late in (ledger.queue_attempt, ledger.end_replay):
                with pytest.raises((StaleError, LedgerError)):
                    late(before)
            for late in (ledger.complete_attempt, ledger.fence_attempt, ledger.switch):
                with pytest.raises((StaleError, LedgerError)):
                    late(before, {})
            with pytest.raises(StaleError):
                ledger.advance(before, "replay")
            with pytest.raises(StaleError):
                ledger.prove(before, "compared", {})
        if flips.small.ledger.attempt(number).outcome:
            break
    assert seen == ["verify", "fence", "drain", "compare", "open", "close", "replay"]
    assert flips.cutover.advance(number).outcome == "done"


def test_who_slept_until_others_were_done_freezes_nothing(flips: Flips) -> None:
    """It finds fences of an epoch that is newer than the one in which it went to sleep."""
    number = flips.verified()
    flips.until(number, "compare")

    def sleeps(attempt: Attempt, fenced: bool) -> Sequence[str]:
        flips.cutover.run(number)
        return ()

    assert replace(flips.cutover, gates=sleeps).advance(number).outcome == "done"
    assert flips.fences() == [("copier", 3), ("application", 3)]


# What waits, and what aborts ---------------------------------------------------------------------------------------


def test_writes_queue_while_nobody_may_write_and_are_replayed_in_order(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    for key, amount in (("a", 1), ("b", 2), ("a", 1)):
        assert router.write("pay", {"item": 10, "amount": amount}, key=key, entity=1).state == "queued"
    answer = router.read("amount", {"item": 10}, entity=1)
    assert (answer.value, [pending.key for pending in answer.pending]) == (5, ["a", "b"])
    assert flips.promised == ["a", "b"]
    assert flips.cutover.run(number).outcome == "done"
    assert flips.amount(10, "target") == 8
    again = router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    assert (again.state, again.repeated, again.result) == ("done", True, {"amount": 1})
    answer = router.read("amount", {"item": 10}, entity=1)
    assert (answer.value, answer.pending) == (8, ())


def test_an_aborted_flip_replays_to_where_it_was(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    flips.small.ledger.abort(flips.small.ledger.attempt(number), "somebody said so", actor="ann")
    ended = flips.cutover.run(number)
    assert (ended.outcome, ended.error) == ("aborted", "somebody said so")
    assert flips.small.ledger.route("NZ") == Route(stage="off", owner="source", epoch=3)
    assert flips.fences() == [("application", 3), ("copier", 3)]
    assert flips.amount(10, "source") == 6
    flips.small.follow()
    assert flips.same()
    assert flips.move().outcome == "done"


def test_past_its_deadline_it_is_aborted(flips: Flips) -> None:
    number = flips.verified(deadline=0)
    flips.cutover.advance(number)
    ended = flips.cutover.run(number)
    assert ended.outcome == "aborted" and "0 s of fencing" in str(ended.error)


def test_the_switch_itself_asks_for_proofs(flips: Flips) -> None:
    attempt = flips.ask()
    with pytest.raises(LedgerError, match="has not compared its rows yet"):
        flips.small.ledger.fence_attempt(attempt, {})
    number = flips.verified(cohort="AU")
    at = flips.until(number, "drain")
    at = flips.small.ledger.drained(at)
    with pytest.raises(LedgerError, match="no switch without proof: compared"):
        flips.small.ledger.switch(at, {})


def test_the_switch_asks_for_proofs_of_its_own_attempt(flips: Flips) -> None:
    """Those of one that was given up just before its switch say nothing of what was written since, nor of others."""
    ledger, cutover = flips.small.ledger, flips.cutover
    given_up = flips.until(flips.verified(), "compare")
    cutover._compare(given_up)
    ledger.abort(given_up, "not today")
    assert cutover.run(given_up.id).outcome == "aborted"

    for cohort, epoch in (("NZ", 4), ("AU", given_up.epoch)):
        at = flips.until(flips.verified(cohort=cohort), "compare")
        assert at.epoch == epoch
        with pytest.raises(LedgerError, match=f"{cohort}: no switch without proof: compared"):
            ledger.switch(at, cutover.runs)
        assert (ledger.attempt(at.id), ledger.route(cohort).owner) == (at, "source")


@pytest.mark.parametrize("doubt", ["dirty keys", "open rejects", "mismatches"])
def test_the_switch_itself_asks_for_doubts_of_the_cohort(flips: Flips, doubt: str) -> None:
    """Such as come after the rows were compared."""
    ledger, cutover = flips.small.ledger, flips.cutover
    at = flips.until(flips.verified(), "compare")
    cutover._compare(at)

    row: dict[str, Any] = {"table": "item", "key": b"1:10", "entity": None, "cohort": "NZ"}
    if doubt == "dirty keys":
        ledger.mark_dirty([DirtyKey(**row, origin="retry")])
    elif doubt == "open rejects":
        ledger.record_rejects([Reject(**row, column=None, error="too long")])
    else:
        ledger.record_mismatches(ledger.begin_check("item", "c"), "source", [Mismatch(**row, kind="differs")])
        ledger.forget([entry.id for entry in ledger.dirty_of("item", [row["key"]])])  # raised with it
    with pytest.raises(LedgerError, match=f"NZ: no switch while there are {doubt}"):
        ledger.switch(at, cutover.runs)


def test_a_fence_that_its_store_has_lost_is_noticed_before_the_switch(flips: Flips) -> None:
    """It crashed, and did not flush what it had committed: the application may have gone on writing there."""
    number = flips.verified()
    flips.until(number, "compare")
    with closing(sqlite3.connect(flips.small.folder / "source.db")) as source:
        source.execute("UPDATE fishladder_fence SET writer = 'application', epoch = 1 WHERE cohort = 'NZ'")
        source.commit()
    ended = flips.cutover.run(number)
    assert ended.outcome == "aborted"
    assert "NZ: the source's fence says application in epoch 1, and was raised for nobody in epoch 2" in str(
        ended.error
    )
    assert flips.small.ledger.route("NZ").owner == "source"


def test_the_switch_itself_leaves_others_their_doubts(flips: Flips) -> None:
    ledger, cutover = flips.small.ledger, flips.cutover
    at = flips.until(flips.verified(), "compare")
    cutover._compare(at)
    ledger.mark_dirty([DirtyKey(table="item", key=b"AU", entity=None, cohort="AU", origin="retry")])
    assert ledger.switch(at, cutover.runs).step == "open"


def test_the_switch_itself_looks_at_the_clock(flips: Flips) -> None:
    """Its caller may have stalled since it did."""
    at = flips.until(flips.verified(), "compare")
    flips.cutover._compare(at)
    later = open_ledger(
        flips.small.url("ledger"), migration="small", clock=lambda: datetime.now(UTC) + timedelta(seconds=61)
    )
    with closing(later), pytest.raises(StaleError, match="its deadline of 60 s has passed; it can only be aborted"):
        later.switch(at, flips.cutover.runs)
    assert flips.small.ledger.route("NZ").owner == "source"


def test_a_difference_stops_it_before_anything_is_fenced(flips: Flips) -> None:
    flips.small.damage("UPDATE item SET amount = 99 WHERE id = 10")
    attempt = flips.ask()
    assert not flips.cutover.verify(attempt)
    assert flips.fences() == [("application", 1), ("copier", 1)]


def test_a_touched_row_that_differs_aborts_under_the_fence(flips: Flips) -> None:
    number = flips.verified()
    flips.small.application("UPDATE item SET amount = 6 WHERE id = 10")
    flips.small.follow()
    flips.small.damage("UPDATE item SET amount = 99 WHERE id = 10")
    ended = flips.cutover.run(number)
    assert ended.outcome == "aborted" and "1 rows of item differ" in str(ended.error)
    assert flips.fences() == [("application", 3), ("copier", 3)]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_copied_during_the_pass_is_compared_before_the_fence(
    flips: Flips, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """So little is left for the fence; what is not right yet is left for it."""
    small, real = flips.small, reconcile.reconcile_table
    changes = iter((["UPDATE item SET amount = 50 WHERE id = 10", "UPDATE line SET text = 'new' WHERE item_id = 10"],))

    def busy(plan: Any, table: Any, ends: Any, ledger: Any) -> Any:
        found = real(plan, table, ends, ledger)
        if table.name == "line":
            small.application(*next(changes))
            apply.apply_round(small.plan, [small.ends], small.ledger)
            if damaged:
                small.damage("UPDATE item SET amount = 1 WHERE id = 10")
        return found

    monkeypatch.setattr(reconcile, "reconcile_table", busy)
    number = flips.verified()
    with small.target.read() as there:
        assert there.touched(str(number)) == ([("item", b"2:10")] if damaged else [])
    ended = flips.cutover.run(number)
    assert ended.outcome == ("aborted" if damaged else "done")
    assert not damaged or "1 rows of item differ under the fence" in str(ended.error)


def test_copiers_wait_while_what_they_copied_is_compared(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a key that is copied again after it was compared would be forgotten."""
    attempt, done = flips.ask(), list[Any]()
    for name in ("lock_shards", "touched", "forget_touched", "commit"):
        real = getattr(SqliteTransaction, name)

        def spy(self: Any, *arguments: Any, name: str = name, real: Any = real) -> Any:
            done.append((name, *map(list, arguments[:1])) if name == "lock_shards" else name)
            return real(self, *arguments)

        monkeypatch.setattr(SqliteTransaction, name, spy)
    flips.cutover._settle_touched(attempt)
    assert done == [("lock_shards", list(range(SHARDS))), "touched", "forget_touched", "commit"]


def test_a_trigger_that_was_dropped_after_the_pass_aborts_it(flips: Flips) -> None:
    """Somebody drops it, writes, and makes it again: no journal tells."""
    number = flips.verified()
    flips.small.application("DROP TRIGGER fishladder_item_update", "UPDATE item SET amount = 50 WHERE id = 10")
    ended = flips.cutover.run(number)
    assert ended.outcome == "aborted" and "not what prepare installed" in str(ended.error)
    small = flips.small
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    again = flips.ask()
    assert not flips.cutover.verify(again)


def test_triggers_that_were_installed_again_after_the_pass_abort_it(flips: Flips) -> None:
    number = flips.verified()
    small = flips.small
    small.application("CREATE UNIQUE INDEX item_more ON item (customer_id, amount, id)")
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    ended = flips.cutover.run(number)
    assert ended.outcome == "aborted" and "installed again since its rows were compared" in str(ended.error)


def test_a_transaction_that_stays_open_makes_it_wait_then_abort(flips: Flips) -> None:
    number = flips.verified(deadline=1)
    with closing(sqlite3.connect(flips.small.folder / "source.db", isolation_level=None)) as open_:
        open_.execute("BEGIN IMMEDIATE")
        flips.small.source.lock_wait = 0.1
        until = time.monotonic() + 30
        while (attempt := flips.cutover.advance(number)).step in ("verify", "fence"):
            assert time.monotonic() < until
        assert attempt.error and "not ready within 1 s" in attempt.error
        open_.execute("ROLLBACK")
    assert flips.cutover.run(number).outcome == "aborted"
    assert flips.router().write("pay", {"item": 10, "amount": 1}, key="a", entity=1).state == "done"


def test_a_store_ahead_of_the_ledger_freezes_the_cohort(flips: Flips) -> None:
    number = flips.verified()
    flips.cutover.advance(number)
    set_fence(flips.small.source, SystemClock(), "NZ", "application", 9)
    with pytest.raises(LedgerError, match="restored from a backup"):
        flips.cutover.run(number)
    assert flips.small.ledger.attempt(number).step == "fence"


@pytest.mark.usefixtures("no_rest")
def test_a_poison_write_parks_its_entity_only(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    flips.small.ledger.enqueue("NZ", b"@NZ", "pay", "other", "d", '{"amount": 1, "item": 10}')
    router.write("pay", {"item": 10, "amount": 666}, key="poison", entity=1)
    router.write("pay", {"item": 10, "amount": 3}, key="after", entity=1)
    for _ in range(20):
        flips.cutover.advance(number)
    assert flips.small.ledger.attempt(number).step == "replay"
    assert flips.amount(10, "target") == 6
    parked, waiting = flips.small.ledger.waiting()
    assert (parked.state, parked.reason) == ("parked", "RuntimeError: a bug in this operation")
    assert waiting.key == "after"
    assert router.write("pay", {"item": 10, "amount": 4}, key="later", entity=1).state == "queued"
    flips.small.ledger.drop_queued(parked.id, "a bug; the customer was told", actor="ann")
    assert flips.cutover.run(number).outcome == "done"
    assert flips.amount(10, "target") == 13
    assert flips.promised.count("poison:undo") == 1
    with pytest.raises(Refused, match="a bug; the customer was told"):
        router.write("pay", {"item": 10, "amount": 666}, key="poison", entity=1)


@pytest.mark.usefixtures("no_rest")
def test_a_queued_write_of_another_cohorts_rows_is_parked_until_somebody_gives_it_up(flips: Flips) -> None:
    """Whose rows it writes is seen when it is replayed, in a store where those are a copy."""
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    assert router.write("pay", {"item": 20, "amount": 1}, key="wrong", entity=1).state == "queued"
    router.write("pay", {"item": 10, "amount": 3}, key="after", entity=1)
    for _ in range(20):
        flips.cutover.advance(number)
    assert flips.small.ledger.attempt(number).step == "replay"
    parked, waiting = flips.small.ledger.waiting()
    assert (parked.key, parked.state, waiting.key, waiting.state) == ("wrong", "parked", "after", "pending")
    assert "fishladder: item is not open to the application here" in (parked.reason or "")
    flips.small.ledger.drop_queued(parked.id, "not theirs", actor="ann")
    assert flips.cutover.run(number).outcome == "done"
    assert flips.small.ledger.route("NZ").stage == "live"
    assert flips.small.ledger.count_queue() == {"done": 1, "refused": 1}
    assert flips.promised == ["wrong", "after", "wrong:undo"]
    assert (flips.amount(20, "source"), flips.amount(20, "target"), flips.amount(10, "target")) == (6, 6, 8)
    with pytest.raises(Refused, match="not theirs"):
        router.write("pay", {"item": 20, "amount": 1}, key="wrong", entity=1)


def test_a_write_that_took_effect_before_it_was_given_up_is_done(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    flips.router().write("pay", {"item": 10, "amount": 3}, key="a", entity=1)
    flips.until(number, "replay")
    (queued,) = flips.small.ledger.waiting()
    replayer = Replayer(flips.small.ledger, flips.operations, flips.stores)
    assert replayer._decide(flips.operations["pay"], flips.stores["target"], queued, flips.small.ledger.route("NZ"))
    flips.small.ledger.drop_queued(queued.id, "too late", actor="ann")
    assert flips.cutover.run(number).outcome == "done"
    assert flips.small.ledger.count_queue() == {"done": 1}
    assert flips.amount(10, "target") == 8


@pytest.mark.usefixtures("no_rest")
def test_a_write_of_an_operation_that_nobody_knows_any_more_can_be_given_up(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    flips.small.ledger.enqueue("NZ", b"1:1", "forgotten", "a", "d", "{}")
    for _ in range(20):
        flips.cutover.advance(number)
    (parked,) = flips.small.ledger.waiting()
    assert parked.state == "parked" and "there is no operation forgotten" in (parked.reason or "")
    flips.small.ledger.drop_queued(parked.id, "it was renamed", actor="ann")
    assert flips.cutover.run(number).outcome == "done"
    assert flips.small.ledger.count_queue() == {"refused": 1}


def test_a_business_refusal_undoes_what_was_promised(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("pay", {"item": 10, "amount": -1}, key="a", entity=1)
    flips.until(number, "replay")
    flips.cutover.advance(number)
    assert flips.promised == ["a", "a:undo"]
    assert flips.small.ledger.count_queue() == {"refused": 1}
    assert flips.small.ledger.route("NZ").stage == "live"


def test_a_refused_write_says_so_when_it_is_asked_for_again(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("pay", {"item": 10, "amount": -1}, key="a", entity=1)
    router.write("pay", {"item": 10, "amount": 666}, key="stays", entity=1)
    flips.until(number, "replay")
    for _ in range(20):
        flips.cutover.advance(number)
    with pytest.raises(Refused, match="no negative amounts"):
        router.write("pay", {"item": 10, "amount": -1}, key="a", entity=1)


@pytest.mark.usefixtures("no_rest")
def test_a_person_looks_at_the_queue_and_decides(
    flips: Flips, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = flips.small.folder / "small.yaml"
    file.write_text(SPEC)
    for name in ("ledger", "source", "target"):
        monkeypatch.setenv(f"FISHLADDER_{name.upper()}", flips.small.url(name))
    number = flips.verified()
    flips.until(number, "drain")
    for key, amount in (("bad", 666), ("good", 2)):
        flips.router().write("pay", {"item": 10, "amount": amount}, key=key, entity=1)
    assert main(["abort", str(file), str(number), "--reason", "not today"]) == 0
    for _ in range(20):
        flips.cutover.advance(number)
    assert main(["abort", str(file), str(number), "--reason", "not today"]) == 1
    said = capsys.readouterr()
    assert "NZ goes back to where it was" in said.out and "completes forward" in said.err
    assert main(["queue", str(file)]) == 0
    parked, pending = capsys.readouterr().out.splitlines()
    assert parked == "1 NZ pay bad parked, 5 tries: RuntimeError: a bug in this operation"
    assert pending == "2 NZ pay good pending, 0 tries"
    assert main(["queue", str(file), "--retry", "1"]) == 0
    assert "bad pending, 0 tries" in capsys.readouterr().out
    assert main(["queue", str(file), "--retry", "1"]) == 1
    assert main(["queue", str(file), "--give-up", "1"]) == 2
    assert main(["queue", str(file), "--give-up", "1", "--reason", "a bug", "--json"]) == 0
    given_up, _ = json.loads(capsys.readouterr().out)
    assert (given_up["key"], given_up["state"], given_up["reason"]) == ("bad", "unwanted", "a bug")
    assert main(["queue", str(file), "--give-up", "1", "--reason", "a bug"]) == 1
    ended = flips.cutover.run(number)
    assert (ended.outcome, ended.error, flips.amount(10, "source")) == ("aborted", "not today", 7)


# Who may go --------------------------------------------------------------------------------------------------------


def test_stages_and_fences_are_those_of_the_table(flips: Flips) -> None:
    """Of docs/flip.md, step by step, there and back; while it moves, nobody can ask for another attempt."""
    for kind, (here, there) in (("flip", ("source", "target")), ("rollback", ("target", "source"))):
        flips.small.follow()
        number, seen = flips.verified(kind), []
        while (attempt := flips.cutover.advance(number)).outcome is None:
            route, fences = flips.small.ledger.route("NZ"), dict(zip(("source", "target"), flips.fences(), strict=True))
            seen.append((attempt.step, route.stage, route.owner, fences[here][0], fences[there][0]))
            for another in ("flip", "rollback", "complete"):
                with pytest.raises(InputError, match=rf"its {kind} no\. {number} of test is still open"):
                    flips.ask(another)
        assert seen == [
            ("fence", "fencing", here, "application", "copier"),
            ("drain", "queue", here, "nobody", "copier"),
            ("compare", "queue", here, "nobody", "copier"),
            ("open", "replay", there, "nobody", "copier"),
            ("close", "replay", there, "nobody", "application"),
            ("replay", "replay", there, "copier", "application"),
        ]


def test_two_attempts_for_one_cohort(flips: Flips) -> None:
    flips.ask()
    with pytest.raises(InputError, match=r"its flip no\. 1 of test is still open"):
        flips.ask()
    flips.ask(cohort="AU")


@pytest.mark.parametrize(
    ("kind", "cohort", "words"),
    [
        ("flip", "XX", "'XX' cannot flip: it is no cohort of small; there are AU, NZ"),
        ("flip", "*", r"'\*' cannot flip"),
        ("flip", "?", r"'\?' cannot flip: it is no cohort of small; there are AU, NZ"),
        ("rollback", "NZ", "a rollback starts from live; the cohort is off"),
        ("complete", "NZ", "a complete starts from live"),
    ],
)
def test_who_cannot_go(flips: Flips, kind: Any, cohort: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        flips.ask(kind, cohort)


def test_a_cohort_that_is_live_does_not_flip_again(flips: Flips) -> None:
    flips.move()
    with pytest.raises(InputError, match="NZ: a flip starts from off or shadow; the cohort is live"):
        flips.ask()
    assert (flips.small.ledger.route("NZ").stage, flips.small.ledger.attempts(only_open=True)) == ("live", [])


def test_stores_that_would_generate_the_same_ids(flips: Flips) -> None:
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    desk = desk_of(flips.small)
    with pytest.raises(InputError, match=r"price: both stores generate its ids, .* ids: \{interleaved: true\}, run"):
        tasks.ask(desk, "flip", ["NZ"], actor="ann", reason="")
    assert flips.small.ledger.attempts() == []
    apart = loads(SPEC + "ids: {interleaved: true}\n", name="small.yaml", environment={})
    with desk.ends() as (plan, (ends,)):
        check_ids(apart, plan, ends.origin, ends.destination)


def test_waves_and_shared_tables_keep_their_order(flips: Flips) -> None:
    spec, cohorts = flips.small.spec, ["AU", "NZ", "*", "shared"]
    assert wave_needs(spec, "NZ", "flip", cohorts) == {}
    assert wave_needs(spec, "AU", "flip", cohorts) == {"NZ": ("live", "complete")}
    assert wave_needs(spec, "shared", "flip", cohorts) == dict.fromkeys(["AU", "NZ"], ("live", "complete"))
    assert wave_needs(spec, "NZ", "rollback", cohorts) == {"shared": ("off", "shadow")}
    assert wave_needs(spec, "NZ", "complete", cohorts) == {}
    assert wave_needs(spec, "shared", "complete", cohorts) == dict.fromkeys(["AU", "NZ"], ("complete",))
    needs = wave_needs(spec, "AU", "flip", cohorts)
    with pytest.raises(InputError, match="AU: NZ comes first; it is off and has to be complete or live"):
        flips.small.ledger.begin_attempt("AU", "flip", actor="t", reason="", deadline=1, needs=needs)


# Routers -----------------------------------------------------------------------------------------------------------


def test_a_stale_router_is_refused_by_the_fence(flips: Flips) -> None:
    router = flips.router()
    router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    flips.move()
    assert router.write("pay", {"item": 10, "amount": 1}, key="b", entity=1).state == "done"
    assert flips.amount(10, "target") == 7
    flips.move("rollback")
    assert router.read("amount", {"item": 10}, entity=1).value == 7
    router.write("pay", {"item": 10, "amount": 1}, key="c", entity=1)
    assert flips.amount(10, "source") == 8


def test_a_stale_router_overtakes_no_write_that_waits_where_it_may_write_again(
    flips: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept through a flip that was aborted: its source is open to the application, as it was, in a newer epoch."""

    def change(connection: Any, payload: Any) -> None:
        connection.execute("UPDATE item SET amount = ? WHERE id = 10", (payload["amount"],))

    monkeypatch.setattr("fishladder.serving.router.ROUTE_SECONDS", 60)
    flips.operations.add("set", change)
    old = flips.router()
    assert old.read("amount", {"item": 10}, entity=1).value == 5
    number = flips.verified()
    flips.until(number, "drain")
    assert flips.router().write("set", {"amount": 1}, key="a", entity=1).state == "queued"
    flips.small.ledger.abort(flips.small.ledger.attempt(number), "not today")
    flips.until(number, "replay")
    assert flips.fences() == [("application", 3), ("copier", 3)]
    assert old.write("set", {"amount": 2}, key="b", entity=1).state == "queued"
    assert [queued.key for queued in flips.small.ledger.waiting()] == ["a", "b"]
    assert flips.cutover.run(number).outcome == "aborted"
    assert flips.amount(10, "source") == 2


def test_a_key_that_was_used_in_one_store_is_known_in_the_other(flips: Flips) -> None:
    router = flips.router()
    router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    flips.small.follow()
    flips.move()
    again = router.write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    assert (again.repeated, flips.amount(10, "target")) == (True, 6)
    with pytest.raises(InputError, match="used before, with another payload"):
        router.write("pay", {"item": 10, "amount": 2}, key="a", entity=1)


def test_a_birth_is_kept_under_its_cohort(flips: Flips) -> None:
    router = flips.router()
    flips.move()
    for _ in range(2):
        router.write("join", {"id": 50, "country": "NZ"}, key="j", cohort="NZ")
    assert flips.small.rows("target", "SELECT count(*) FROM customer WHERE id = 50") == [(1,)]
    assert router.write("pay", {"item": 10, "amount": 1}, key="x", entity=50).state == "done"
    flips.small.follow()
    assert flips.same()


class Hands:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_an_attempt_that_goes_on_is_left_to_its_task(flips: Flips) -> None:
    clock, ledger = Hands(), flips.small.ledger
    number = flips.verified()
    stalled = Stalled(ledger, clock)
    for step in ("drain", "compare", "open"):  # it takes a step just before each look
        assert not stalled.has(flips.until(number, step))
        clock.sleep(0.4)
        assert not stalled.has(ledger.attempt(number))
        clock.sleep(0.4)
    assert stalled.has(ledger.attempt(number))
    stalled.moved(flips.cutover.advance(number))
    assert stalled.has(ledger.attempt(number))  # whoever took it on goes on at once
    assert not stalled.has(flips.until(number, "replay"))  # but its task lives


def test_a_replay_that_goes_on_is_left_to_its_task(flips: Flips) -> None:
    clock, ledger, router = Hands(), flips.small.ledger, flips.router()
    number = flips.verified()
    flips.until(number, "drain")
    for key in range(3):
        router.write("pay", {"item": 10, "amount": 1}, key=f"k{key}", entity=1)
    attempt, stalled = flips.until(number, "replay"), Stalled(ledger, clock)
    for _ in range(3):
        assert not stalled.has(attempt)
        clock.sleep(1.0)
        ledger.finish_queued({ledger.next_queued("NZ", 1)[0]: None})
    assert not stalled.has(attempt)
    clock.sleep(1.0)
    assert stalled.has(attempt)


def test_an_attempt_whose_task_has_died_is_ended_by_replicate(flips: Flips) -> None:
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    attempt, desk = flips.until(flips.verified(), "open"), desk_of(flips.small)
    assert tasks.advance_attempts(desk, Stalled(desk.ledger, desk.clock)) == 1
    assert flips.small.ledger.attempt(attempt.id) == attempt
    tasks.replicate(desk, seconds=3)
    assert flips.small.ledger.attempt(attempt.id).outcome == "done"


def test_operations_that_cannot_be_loaded_are_found_before_anything_moves(flips: Flips) -> None:
    """Past the switch nobody could replay what was queued, and there is no way back."""
    text = SPEC.replace("target: target_app}", "target: target_app, operations: 'nowhere:operations'}")
    spec = loads(text, name="small.yaml", environment={})
    flips.small.ledger.record_spec(spec.to_json(), "", "", "test")
    with pytest.raises(InputError, match=r"application\.operations: nowhere:operations: ModuleNotFoundError"):
        tasks.ask(replace(desk_of(flips.small), spec=spec), "flip", ["NZ"], actor="ann", reason="")
    assert flips.small.ledger.attempts() == []
    with pytest.raises(InputError, match="both stores generate its ids"):  # to complete, none is needed
        tasks.ask(replace(desk_of(flips.small), spec=spec), "complete", ["NZ"], actor="ann", reason="")


def test_an_application_that_cannot_do_what_its_router_does_is_found_before_anything_moves(flips: Flips) -> None:
    """Here for want of a table, elsewhere of a right: its customers would find out in the middle of a flip."""
    text = SPEC.replace("target: target_app}", "target: target_app, operations: 'billing.operations:operations'}")
    spec = loads(text, name="small.yaml", environment={})
    flips.small.ledger.record_spec(spec.to_json(), "", "", "test")
    desk = replace(desk_of(flips.small), spec=spec, serve=lambda name: flips.stores[name.removesuffix("_app")])
    applied = flips.small.rows("target", "SELECT * FROM fishladder_applied")
    flips.small.application("ALTER TABLE fishladder_applied RENAME TO elsewhere", store="target")
    with pytest.raises(InputError, match=r"account \(target_app\) cannot do in the target.*docs/router\.md names"):
        tasks.ask(desk, "flip", ["NZ"], actor="ann", reason="")
    assert flips.small.ledger.attempts() == []
    flips.small.application("ALTER TABLE elsewhere RENAME TO fishladder_applied", store="target")
    flips.small.application("ALTER TABLE fishladder_applied RENAME TO elsewhere", store="source")
    with pytest.raises(InputError, match=r"account \(source_app\) cannot do in the source"):  # into which it may abort
        tasks.ask(desk, "flip", ["NZ"], actor="ann", reason="")
    flips.small.application("ALTER TABLE elsewhere RENAME TO fishladder_applied", store="source")
    with pytest.raises(InputError, match="both stores generate its ids"):  # what is asked next
        tasks.ask(desk, "flip", ["NZ"], actor="ann", reason="")
    flips.small.application("ALTER TABLE fishladder_applied RENAME TO elsewhere", store="target")
    with pytest.raises(InputError, match="both stores generate its ids"):  # customers have to leave such a target
        tasks.ask(desk, "rollback", ["NZ"], actor="ann", reason="")
    flips.small.application("ALTER TABLE elsewhere RENAME TO fishladder_applied", store="target")
    assert flips.small.rows("target", "SELECT * FROM fishladder_applied") == applied


def test_a_replay_without_operations_stops_nobody_else(flips: Flips) -> None:
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    number = flips.verified()
    flips.until(number, "drain")
    flips.router().write("pay", {"item": 10, "amount": 1}, key="a", entity=1)
    flips.until(number, "open")
    said: list[str] = []
    desk = replace(desk_of(flips.small), say=said.append)
    tasks.advance_attempts(desk)
    tasks.advance_attempts(desk)
    assert flips.small.ledger.attempt(number).step == "replay"
    assert tasks.advance_attempts(desk) == 1
    assert any(f"attempt no. {number} cannot go on: NZ: writes are queued" in line for line in said)


def replaying(flips: Flips, entities: Sequence[int], serve: Callable[[str], Application]) -> tuple[int, Desk]:
    """A flip of NZ that has to replay a write of each, of an operation that billing's module does not know."""
    text = SPEC.replace("target: target_app}", "target: target_app, operations: 'billing.operations:operations'}")
    spec = loads(text, name="small.yaml", environment={})
    flips.small.ledger.record_spec(spec.to_json(), "", "", "test")
    number = flips.verified()
    flips.until(number, "drain")
    for entity in entities:
        flips.small.ledger.enqueue("NZ", f"1:{entity}".encode(), "pay", "key", "digest", "{}")
    flips.until(number, "replay")
    return number, replace(desk_of(flips.small), spec=spec, serve=serve)


def test_a_replay_that_is_taken_up_again_and_again_opens_its_connections_once(flips: Flips) -> None:
    opened: list[str] = []

    def serve(connection: str) -> Application:
        opened.append(connection)
        return flips.stores[connection.removesuffix("_app")]

    number, desk = replaying(flips, [1], serve)
    with desk.cutover() as cutover:
        for _ in range(3):
            assert cutover.advance(number).step == "replay"
    assert opened == ["target_app"]


def test_a_replay_that_is_taken_up_again_goes_on_where_it_was(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ``replicate``, which opens the stores anew each time: what takes a turn each must not hide what is behind."""
    tried: list[bytes] = []

    class Slow(Replayer):
        def _one(self, queued: Queued, route: Route) -> None:
            tried.append(queued.entity)
            now[0] += 2 * TURN

    now = [0.0]
    monkeypatch.setattr(tasks, "Replayer", Slow)
    monkeypatch.setattr("fishladder.serving.replay.time", SimpleNamespace(monotonic=lambda: now[0]))
    _, desk = replaying(flips, [1, 2, 3], lambda name: flips.stores[name.removesuffix("_app")])
    for _ in range(3):
        tasks.advance_attempts(desk)
    assert tried == [b"1:1", b"1:2", b"1:3"]
