"""Rejects, dirty keys, checks and mismatches, coverage, evidence, control and counters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest
from sqlalchemy import text

from fishladder.errors import LedgerError, StaleError
from fishladder.ledger import CheckResult, Control, DirtyKey, Ledger, Mismatch, Reject, checks, open_ledger
from fishladder.ledger.checks import Streak

HOUR = timedelta(hours=1)


class Clock(Protocol):
    now: datetime


def reject(key: bytes, *, table: str = "invoice", error: str = "too long", cohort: str = "NZ") -> Reject:
    return Reject(table=table, key=key, entity=b"1:7", cohort=cohort, column="total", error=error)


def dirty(key: bytes, *, table: str = "invoice", cohort: str = "NZ") -> DirtyKey:
    return DirtyKey(table=table, key=key, entity=b"1:7", cohort=cohort, origin="write")


def mismatch(key: bytes, kind: Any = "differs", cohort: str = "NZ") -> Mismatch:
    return Mismatch(table="invoice", key=key, entity=b"1:7", cohort=cohort, kind=kind)


def result(**found: Any) -> CheckResult:
    return CheckResult(**{"compared": 10, "coverage": "c1", "by_cohort": {}, **found})


def checked(ledger: Ledger, **found: Any) -> bool:
    return ledger.finish_check(ledger.begin_check("invoice", "c1"), result(**found))


def open_keys(ledger: Ledger) -> list[bytes]:
    return [found.key for found in ledger.open_rejects()]


# Rejects ------------------------------------------------------------------------------------------------


def test_a_reject_counts_its_attempts_until_it_is_written(ledger: Ledger, clock: Clock) -> None:
    ledger.record_rejects([reject(b"1"), reject(b"2")])
    clock.now += HOUR
    ledger.record_rejects([reject(b"1", error="no parent")])
    oldest, newest = ledger.open_rejects()
    assert (oldest.key, oldest.attempts, oldest.error) == (b"2", 1, "too long")
    assert (newest.key, newest.attempts, newest.error, newest.at) == (b"1", 2, "no parent", clock.now)
    assert (newest.entity, newest.cohort, newest.column) == (b"1:7", "NZ", "total")
    ledger.close_rejects("invoice", [b"1", b"3"])
    ledger.close_rejects("customer", [b"2"])
    assert open_keys(ledger) == [b"2"]
    assert ledger.rejected_keys("invoice", [b"1", b"2", b"3"]) == {b"2"}
    ledger.record_rejects([reject(b"1")])
    assert {found.key: found.attempts for found in ledger.open_rejects("invoice")} == {b"1": 3, b"2": 1}
    assert ledger.open_rejects("customer") == []
    assert len(ledger.open_rejects(limit=1)) == 1


def test_rejects_are_counted_by_table_and_cohort(ledger: Ledger) -> None:
    ledger.record_rejects([reject(b"1"), reject(b"2", cohort="AU"), reject(b"1", table="customer")])
    assert ledger.count_rejects() == 3
    assert ledger.count_rejects(table="invoice") == ledger.count_rejects(cohort="NZ") == 2
    assert ledger.count_rejects(table="invoice", cohort="NZ") == 1


def loaded(ledger: Ledger) -> int:
    """The token of chunk 1, the only one of ``invoice``."""
    ledger.cut("invoice", ledger.start_table("invoice"), [(None, None)])
    chunk = ledger.claim("invoice", 1, "a", HOUR)
    assert chunk is not None
    return chunk.token


def again(ledger: Ledger) -> int:
    chunk = ledger.claim("invoice", 1, "a", HOUR)
    assert chunk is not None
    return chunk.token


def test_a_finished_chunk_keeps_only_its_own_rejects(ledger: Ledger) -> None:
    first = loaded(ledger)
    ledger.record_rejects([reject(b"1"), reject(b"2")], chunk=1, token=first)
    ledger.record_rejects([reject(b"8")])
    ledger.record_rejects([reject(b"9", table="customer")])
    second = again(ledger)
    ledger.record_rejects([reject(b"2"), reject(b"3")], chunk=1, token=second)
    assert not ledger.finish_chunk("invoice", 1, first, 10)
    assert ledger.finish_chunk("invoice", 1, second, 10)
    assert ledger.rejected_keys("invoice", [b"1", b"2", b"3", b"8"]) == {b"2", b"3", b"8"}
    assert ledger.rejected_keys("customer", [b"9"]) == {b"9"}
    assert ledger.progress("invoice").rejects == 3
    assert ledger.progress().rejects == 4


def test_a_chunk_done_in_the_target_under_an_older_token_keeps_those_rejects(ledger: Ledger) -> None:
    first = loaded(ledger)
    ledger.record_rejects([reject(b"1")], chunk=1, token=first)
    # The target commits; the process dies before it says so here, and the next one finds the chunk done.
    second = again(ledger)
    assert ledger.finish_chunk("invoice", 1, second, 10, done_under=first)
    assert open_keys(ledger) == [b"1"]


def test_a_zombie_cannot_record_rejects(ledger: Ledger) -> None:
    zombie = loaded(ledger)
    owner = again(ledger)
    with pytest.raises(StaleError, match="chunk 1 was taken over"):
        ledger.record_rejects([reject(b"1")], chunk=1, token=zombie)
    assert ledger.finish_chunk("invoice", 1, owner, 10)
    assert open_keys(ledger) == []


def test_retried_rejects_are_dirty_and_stay_open(ledger: Ledger) -> None:
    rejects = [
        reject(b"1", error="100% of 'x' is too long"),
        reject(b"2", error="100 of 'x' is too long"),
        reject(b"3", table="customer", error="100% wrong"),
        reject(b"4", error="100% settled"),
    ]
    ledger.record_rejects(rejects)
    ledger.close_rejects("invoice", [b"4"])
    assert ledger.retry_rejects("invoice", "100%", actor="ada") == 1
    (entry,) = ledger.dirty(10)
    assert (entry.table, entry.key, entry.entity, entry.cohort, entry.origin) == (
        "invoice",
        b"1",
        b"1:7",
        "NZ",
        "retry",
    )
    assert ledger.retry_rejects() == 3
    assert ledger.count_dirty() == 4
    assert ledger.count_rejects() == 3
    assert ledger.retry_rejects(error="nothing like it") == 0
    latest, first = ledger.events()
    assert (first.actor, first.body) == ("ada", {"rejects": {"invoice": 1}, "by_error": True})
    assert latest.body == {"rejects": {"customer": 1, "invoice": 2}, "by_error": False}


# Dirty keys ---------------------------------------------------------------------------------------------


def test_a_key_marked_twice_is_forgotten_twice(ledger: Ledger) -> None:
    ledger.mark_dirty([dirty(b"1")])
    (read,) = ledger.dirty(10)
    ledger.mark_dirty([dirty(b"1")])
    ledger.forget([read.id])
    (later,) = ledger.dirty(10)
    assert (later.key, later.entity, later.cohort, later.origin) == (b"1", b"1:7", "NZ", "write")
    assert later.id > read.id


def test_a_forgotten_id_is_never_given_again(ledger: Ledger) -> None:
    ledger.mark_dirty([dirty(b"1"), dirty(b"2")])
    ids = [entry.id for entry in ledger.dirty(10)]
    ledger.forget(ids)
    ledger.mark_dirty([dirty(b"3")])
    ledger.forget(ids)  # repeated after an ambiguous answer
    assert [entry.key for entry in ledger.dirty(10)] == [b"3"]


def test_exactly_the_ids_are_forgotten(ledger: Ledger) -> None:
    ledger.mark_dirty([dirty(b"%d" % number) for number in range(2600)])
    entries = ledger.dirty(5000)
    assert [entry.key for entry in entries] == [b"%d" % number for number in range(2600)]
    ledger.forget([entry.id for entry in entries if entry.id % 5])
    left = [entry for entry in entries if entry.id % 5 == 0]
    assert ledger.dirty(5000) == left
    assert ledger.dirty(2, after_id=left[10].id) == left[11:13]
    every_key = [entry.key for entry in entries]
    assert ledger.dirty_keys("invoice", every_key) == {entry.key for entry in left}
    assert ledger.dirty_keys("customer", every_key) == set()
    ledger.forget([])
    assert ledger.count_dirty() == len(left)


def test_no_mark_is_lost_while_another_is_forgotten(ledger: Ledger) -> None:
    marked, done = 30, threading.Event()

    def mark() -> None:
        for _ in range(marked):
            ledger.mark_dirty([dirty(b"1")])

    def forget() -> int:
        forgotten = 0
        while True:
            last_round = done.is_set()
            ids = [entry.id for entry in ledger.dirty(7)]
            ledger.forget(ids)
            forgotten += len(ids)
            if last_round and not ids:
                return forgotten

    with ThreadPoolExecutor(5) as pool:
        forgetting = pool.submit(forget)
        for marking in [pool.submit(mark) for _ in range(4)]:
            marking.result()
        done.set()
        assert forgetting.result() == 4 * marked


def test_dirty_keys_are_counted_by_cohort(ledger: Ledger) -> None:
    assert ledger.dirty_by_cohort() == {}
    ledger.mark_dirty([dirty(b"1"), dirty(b"1"), dirty(b"2", cohort="AU"), dirty(b"3", cohort="nz")])
    assert ledger.dirty_by_cohort() == {"AU": 1, "NZ": 2, "nz": 1}
    assert (ledger.count_dirty(), ledger.count_dirty("NZ"), ledger.count_dirty("IE")) == (4, 2, 0)


# Checks -------------------------------------------------------------------------------------------------


def test_a_clean_check(ledger: Ledger, clock: Clock) -> None:
    check = ledger.begin_check("invoice", "c1")
    started = clock.now
    clock.now += HOUR
    ledger.note_compared(check, 10, 9)
    ledger.note_compared(check, 1, 2)
    assert ledger.clean_passes("invoice") == 0
    assert ledger.finish_check(check, result())
    (found,) = ledger.checks("invoice")
    assert (found.id, found.started_at, found.finished_at) == (check, started, clock.now)
    assert (found.rows_source, found.rows_target, found.clean, found.void) == (11, 11, True, None)
    assert found.result == result()
    assert ledger.clean_passes("invoice") == 1
    assert ledger.finish_check(check, result(missing=1)), "finishing again changes nothing"
    assert ledger.clean_passes("invoice") == 1
    with pytest.raises(StaleError, match="is finished"):
        ledger.note_compared(check, 1, 1)
    with pytest.raises(LedgerError, match=f"check {check + 1} of billing"):
        ledger.finish_check(check + 1, result())
    (finished,) = ledger.events()
    assert finished.event == "check finished"
    assert finished.body["rejected"] == 0


@pytest.mark.parametrize(
    "found",
    [
        {"missing": 1},
        {"extra": 1},
        {"differs": 1},
        {"deferred": 1, "differs": 1},
        {"rejected": 1},
        {"orphans": 1},
        {"duplicates": 1},
        {"by_cohort": {"NZ": 1}},
        {"coverage": "c2"},
        {"coverage": None},
    ],
    ids=str,
)
def test_what_makes_a_check_unclean(ledger: Ledger, found: dict[str, Any]) -> None:
    assert checked(ledger)
    assert not checked(ledger, **found)
    assert ledger.clean_passes("invoice") == 0
    assert checked(ledger)
    assert checked(ledger)
    assert ledger.clean_passes("invoice") == 2
    assert ledger.clean_passes("customer") == 0


def test_clean_checks_are_counted_for_each_migration(ledger: Ledger, url: str, clock: Clock) -> None:
    assert checked(ledger)
    began = clock.now
    with open_ledger(url, migration="other", clock=lambda: clock.now) as other:
        assert (other.streaks(), other.clean_passes("invoice")) == ({}, 0)
        clock.now += HOUR
        assert not checked(other, missing=1)
        assert other.streaks() == {}
        assert checked(other)
        assert checked(other)
        assert other.streaks() == {"invoice": Streak(2, clock.now)}
    assert ledger.streaks() == {"invoice": Streak(1, began)}


def test_a_check_that_met_keys_too_busy_to_judge_breaks_no_row(ledger: Ledger) -> None:
    assert checked(ledger)
    assert not checked(ledger, deferred=1)
    assert ledger.clean_passes("invoice") == 1
    assert ledger.checks("invoice")[0].clean is None
    assert not ledger.finish_check(ledger.checks("invoice")[0].id, result()), "finishing again changes nothing"
    assert checked(ledger)
    assert ledger.clean_passes("invoice") == 2


def test_a_check_that_died(ledger: Ledger) -> None:
    assert checked(ledger)
    ledger.begin_check("invoice", "c1")
    assert ledger.clean_passes("invoice") == 1, "it says nothing"
    ledger.record_mismatches(ledger.begin_check("invoice", "c1"), "source", [mismatch(b"1")])
    assert ledger.clean_passes("invoice") == 0, "it has found something"


def test_a_check_with_a_recorded_mismatch_cannot_end_clean(ledger: Ledger) -> None:
    check = ledger.begin_check("invoice", "c1")
    ledger.record_mismatches(check, "source", [mismatch(b"1")])
    assert not ledger.finish_check(check, result())


def test_voided_checks_do_not_count(ledger: Ledger) -> None:
    assert checked(ledger)
    running = ledger.begin_check("invoice", "c1")
    other = ledger.begin_check("customer", "c1")
    assert ledger.void_checks(["invoice", "plan"], "invoice was truncated") == 2
    assert ledger.clean_passes("invoice") == 0
    assert not ledger.finish_check(running, result()), "it began before"
    assert ledger.finish_check(other, result())
    assert [check.void for check in ledger.checks("invoice")] == ["invoice was truncated"] * 2
    assert ledger.void_checks(["invoice"], "again") == 0
    voided = [line.body for line in ledger.events() if line.event == "checks voided"]
    assert voided == [{"tables": ["invoice", "plan"], "why": "invoice was truncated", "checks": 2}]
    assert checked(ledger)
    assert ledger.clean_passes("invoice") == 1


def test_mismatches_are_dirty_until_they_are_settled(ledger: Ledger) -> None:
    check = ledger.begin_check("invoice", "c1")
    found = [mismatch(b"1", "missing"), mismatch(b"2"), mismatch(b"3", cohort="AU")]
    ledger.record_mismatches(check, "source", found)
    ledger.record_mismatches(check, "source", found[:1])
    ledger.record_mismatches(check, "source", [])
    assert [(line.key, line.kind, line.check) for line in ledger.open_mismatches()] == [
        (b"1", "missing", check),
        (b"2", "differs", check),
        (b"3", "differs", check),
    ]
    assert {(entry.key, entry.origin) for entry in ledger.dirty(10)} == {(line.key, "mismatch") for line in found}
    assert (ledger.count_mismatches(), ledger.count_mismatches("AU")) == (3, 1)
    second = ledger.begin_check("invoice", "c1")
    ledger.record_mismatches(second, "source", [mismatch(b"1", "extra")])
    ledger.settle_mismatches("customer", [b"1", b"2"])
    assert ledger.count_mismatches() == 4
    ledger.settle_mismatches("invoice", [b"1", b"2"])
    assert [line.key for line in ledger.open_mismatches("invoice")] == [b"3"]
    assert ledger.open_mismatches("customer") == []
    bodies = [line.body for line in ledger.events() if line.event == "mismatches recorded"]
    assert bodies[-1] == {"check": check, "table": "invoice", "found": {"missing": 1, "differs": 2}}


# Coverage, evidence, control ------------------------------------------------------------------------------


def test_coverage_is_an_event_when_it_changes(ledger: Ledger) -> None:
    assert ledger.coverage("source") == {}
    ledger.record_coverage("source", {"invoice": "d1", "customer": "d1"})
    ledger.record_coverage("source", {"invoice": "d1"})
    ledger.record_coverage("target", {"invoice": "d7"})
    ledger.record_coverage("source", {"invoice": "d2"})
    assert ledger.coverage("source") == {"customer": "d1", "invoice": "d2"}
    assert ledger.coverage("target") == {"invoice": "d7"}
    assert [(line.event, line.body["tables"]) for line in ledger.events()] == [
        ("coverage changed", {"invoice": "d2"}),
        ("coverage recorded", {"invoice": "d7"}),
        ("coverage recorded", {"customer": "d1", "invoice": "d1"}),
    ]


def test_the_latest_evidence(ledger: Ledger, clock: Clock) -> None:
    began = datetime(2026, 1, 30, 1, 2, 3, 4, tzinfo=UTC)
    first = ledger.record_evidence("report", "revenue", {"b": [1, None], "a": "é"}, True, began)
    assert ledger.record_evidence("report", "revenue", {"a": "é", "b": [1, None]}, True, began) == first
    found = ledger.latest_evidence("report")
    assert found is not None
    assert (found.kind, found.subject, found.passed, found.digest) == ("report", "revenue", True, first)
    assert (found.body, found.began, found.at) == ({"a": "é", "b": [1, None]}, began, clock.now)
    others = [
        ledger.record_evidence("report", "revenue", {"a": "é", "b": [1, None]}, False, began),
        ledger.record_evidence("report", "revenue", {"a": "é", "b": [1, None]}, True, clock.now),
        ledger.record_evidence("report", "refunds", {"a": "é", "b": [1, None]}, True, began),
    ]
    assert len({first, *others}) == 4
    for subject, digest in ((None, others[2]), ("revenue", others[1])):
        latest = ledger.latest_evidence("report", subject)
        assert latest is not None
        assert latest.digest == digest
    assert ledger.latest_evidence("preflight") is ledger.latest_evidence("report", "costs") is None
    with pytest.raises(ValueError, match="JSON"):
        ledger.record_evidence("report", "revenue", {"a": float("nan")}, True, began)


def test_evidence_is_found_with_what_was_found_with_it(ledger: Ledger, url: str) -> None:
    began = datetime(2026, 1, 30, 1, 2, 3, 4, tzinfo=UTC)
    together = [
        ledger.record_evidence("report", "revenue NZ", {}, True, began),
        ledger.record_evidence("report", "revenue AU", {}, False, began),
    ]
    ledger.record_evidence("report", "revenue NZ", {}, True, began + timedelta(microseconds=1))
    ledger.record_evidence("totals", "billing", {}, True, began)
    with open_ledger(url, migration="other") as other:
        others = other.record_evidence("report", "revenue NZ", {}, True, began)
        assert [found.digest for found in other.evidence(others)] == [others]
        assert other.evidence(together[0]) == []
    for digest in together:
        assert [found.digest for found in ledger.evidence(digest)] == together
    assert [found.passed for found in ledger.evidence(together[0])] == [True, False]
    assert ledger.evidence(others) == ledger.evidence("none") == []


def test_evidence_of_a_time_that_is_what_was_recorded(ledger: Ledger, url: str) -> None:
    since, second = datetime(2026, 1, 30, 1, 2, 3, 4, tzinfo=UTC), timedelta(seconds=1)
    moments = [since - timedelta(microseconds=1), since + 2 * second, since, since + second, since + 3 * second]
    for number, began in enumerate(moments):
        ledger.record_evidence("monitor", "debts", {"value": number}, True, began)
    ledger.record_evidence("monitor", "Debts", {}, True, since)
    ledger.record_evidence("report", "debts", {}, True, since)
    with open_ledger(url, migration="other") as other:
        other.record_evidence("monitor", "debts", {}, True, since)
    found = ledger.evidence_between("monitor", "debts", since, since + 2 * second)
    assert [one.body["value"] for one in found] == [2, 3, 1]
    with ledger.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_evidence SET body = replace(body, '3', '9')"))
    found = ledger.evidence_between("monitor", "debts", since, since + 2 * second)
    assert [one.body["value"] for one in found] == [2, 1]


def test_control_changes_what_is_given(ledger: Ledger) -> None:
    assert ledger.control() == Control(paused=False, rows_per_second=None)
    assert ledger.set_control(rows_per_second=500, actor="ada") == Control(paused=False, rows_per_second=500)
    assert ledger.set_control(paused=True, actor="bob") == Control(paused=True, rows_per_second=500)
    assert ledger.set_control(paused=True, actor="bob") == ledger.control()
    assert ledger.set_control(paused=False, rows_per_second=0, actor="ada") == Control()
    assert ledger.set_control(running_threads=8, replica_lag=3, actor="ada") == Control(
        running_threads=8, replica_lag=3
    )
    with pytest.raises(ValueError, match="replica lag must be 1 or more, or 0 to lift the limit; not -1"):
        ledger.set_control(replica_lag=-1, actor="ada")
    assert [(line.actor, line.body) for line in ledger.events()] == [
        ("ada", {"replica_lag": 3, "running_threads": 8}),
        ("ada", {"paused": False, "rows_per_second": None}),
        ("bob", {"paused": True}),
        ("ada", {"rows_per_second": 500}),
    ]


def test_a_status_is_the_last_value(ledger: Ledger, clock: Clock) -> None:
    assert ledger.status("lag") is None
    ledger.note("lag", {"seconds": 3})
    clock.now += HOUR
    ledger.note("lag", {"seconds": 1.5})
    found = ledger.status("lag")
    assert found is not None
    assert (found.data, found.at) == ({"seconds": 1.5}, clock.now)


def test_counters_add_up_from_many_threads(ledger: Ledger) -> None:
    adds: list[Callable[[], None]] = [
        lambda: ledger.add_counts("applied", {"rows": 2, "batches": 1}),
        lambda: ledger.add_counts("applied", {"batches": 1, "rows": 3}),
    ]
    with ThreadPoolExecutor(4) as pool:
        for added in [pool.submit(add) for add in adds * 10]:
            added.result()
    assert ledger.counts("applied") == {"batches": 20, "rows": 50}
    assert ledger.counts("lag") == {}


def test_a_switch_sees_the_doubt_that_is_being_recorded(ledger: Ledger, url: str) -> None:
    """It waits for whoever records one, and counts only then."""
    ledger.ensure_routes(["NZ"], "ada")
    at = ledger.begin_attempt("NZ", "flip", actor="ada", reason="", deadline=600)
    ledger.prove(at, "verified", {})
    at = ledger.drained(ledger.queue_attempt(ledger.fence_attempt(at, {})))
    ledger.prove(at, "compared", {})
    check = ledger.begin_check("invoice", "c1")
    with open_ledger(url, migration="billing") as other, ThreadPoolExecutor(1) as pool:
        with ledger._write() as tx:
            checks.record_mismatches(tx, check, "source", [mismatch(b"1:1")])
            switching = pool.submit(other.switch, at, {})
            wait([switching], timeout=1)  # too short only weakens the test
        with pytest.raises(LedgerError, match="NZ: no switch while there are"):
            switching.result(60)
    assert ledger.route("NZ").owner == "source"


def test_a_doubt_that_comes_after_the_switch_is_refused(ledger: Ledger) -> None:
    """It would be repaired from the new owner, which may have the wrong row."""
    ledger.ensure_routes(["NZ", "AU"], "ada")
    at = ledger.begin_attempt("NZ", "flip", actor="ada", reason="", deadline=600)
    ledger.prove(at, "verified", {})
    at = ledger.drained(ledger.queue_attempt(ledger.fence_attempt(at, {})))
    ledger.prove(at, "compared", {})
    check = ledger.begin_check("invoice", "c1")
    ledger.switch(at, {})
    with pytest.raises(
        StaleError, match=r"NZ: the source was the owner when 1 rows were .*: invoice 1:1; look at them"
    ):
        ledger.record_mismatches(check, "source", [mismatch(b"1:1"), replace(mismatch(b"1:2"), cohort="AU")])
    assert (ledger.open_mismatches(), ledger.count_dirty()) == ([], 0)
    ledger.record_mismatches(check, "target", [mismatch(b"1:1")])
    ledger.record_mismatches(check, "source", [replace(mismatch(b"1:2"), cohort="AU")])
    assert [found.key for found in ledger.open_mismatches()] == [b"1:1", b"1:2"]
