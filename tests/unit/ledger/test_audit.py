"""The audit chain: whole with the change it describes, and every tampering found."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Row, delete, insert, select, text, update

from fishladder.errors import FatalError, InputError, LedgerError, StaleError, TransientError
from fishladder.ledger import (
    MACHINE,
    Attempt,
    CheckResult,
    Control,
    Ledger,
    Mismatch,
    Reject,
    TableState,
    canonical,
    open_engine,
    open_ledger,
    tables,
    verify,
)

AUDIT, HEAD = tables.audit, tables.audit_head


@pytest.fixture
def chain(ledger: Ledger) -> Ledger:
    """A ledger with six events: two of them of another migration."""
    ledger.record_spec("{}", "d1", "c1", "ada")
    with open_ledger(ledger.engine.url.render_as_string(hide_password=False), migration="balance") as other:
        other.record_spec("{}", "d1", "c1", "ada")
        other.start_table("account")
    ledger.ensure_routes(["NZ", "AU"], "bob")
    ledger.start_table("invoice")
    ledger.set_control(paused=True, rows_per_second=7, actor="ada")
    assert verify(ledger.engine) == []
    return ledger


def rows(ledger: Ledger, of: Any = AUDIT) -> Sequence[Row[Any]]:
    with ledger.engine.connect() as connection:
        return connection.execute(select(of).where(of.c.migration == "billing").order_by(of.c.sequence)).all()


@contextmanager
def tampered(ledger: Ledger, *statements: Any) -> Iterator[None]:
    """Somebody with the right to write changes the tables; afterwards they are as before."""
    with ledger.engine.begin() as connection:
        before = {of: connection.execute(select(of)).all() for of in (AUDIT, HEAD)}
        for statement in statements:
            connection.execute(statement)
    yield
    with ledger.engine.begin() as connection:
        for of, lines in before.items():
            connection.execute(delete(of))
            connection.execute(insert(of), [line._asdict() for line in lines])


def event(sequence: int, of: Any = AUDIT) -> Any:
    return (of.c.migration == "billing") & (of.c.sequence == sequence)


# Written with the change ----------------------------------------------------------------------------------


def test_events_name_who_did_what_in_a_chain(chain: Ledger) -> None:
    lines = chain.events()
    before = {"digest_before": None, "code_digest_before": None}
    assert [(line.sequence, line.actor, line.event, line.body) for line in lines] == [
        (4, "ada", "control changed", {"paused": True, "rows_per_second": 7}),
        (3, MACHINE, "table started", {"table": "invoice", "generation": 1}),
        (2, "bob", "routes added", {"cohorts": ["AU", "NZ"]}),
        (1, "ada", "spec recorded", {"digest": "d1", "code_digest": "c1"} | before),
    ]
    assert [line.previous for line in lines] == [*(line.digest for line in lines[1:]), "0" * 64]
    assert lines[0].at.utcoffset() == timedelta(0)
    assert lines[0].at.microsecond == 123456
    head = chain.audit_head()
    assert (head.sequence, head.digest) == (4, lines[0].digest)
    assert chain.events(1) == lines[:1]


def test_an_empty_chain(ledger: Ledger) -> None:
    assert ledger.events() == []
    assert ledger.audit_head().sequence == 0
    assert verify(ledger.engine) == []


def test_what_is_repeated_is_no_event(chain: Ledger) -> None:
    head = chain.audit_head()
    chain.record_spec("{}", "d1", "c1", "eve")
    chain.ensure_routes(["NZ"], "eve")
    chain.start_table("invoice")
    chain.set_control(paused=True, actor="eve")
    assert chain.audit_head() == head


def test_chunks_keys_and_values_are_no_events(chain: Ledger) -> None:
    head = chain.audit_head()
    chain.cut("invoice", 1, [(None, None)])
    chunk = chain.claim("invoice", 1, "a", timedelta(hours=1))
    assert chunk is not None
    secret = Reject(table="invoice", key=b"key", entity=b"entity", cohort="NZ", column=None, error="Duplicate 'value'")
    chain.record_rejects([secret], chunk=1, token=chunk.token)
    chain.finish_chunk("invoice", 1, chunk.token, 1)
    assert chain.audit_head() == head
    chain.retry_rejects(error="'value'")
    found = Mismatch(table="invoice", key=b"key", entity=b"entity", cohort="NZ", kind="extra")
    check = chain.begin_check("invoice", "c1")
    chain.record_mismatches(check, "source", [found])
    chain.finish_check(check, CheckResult(compared=1, extra=1, coverage="c1", by_cohort={"NZ": 1}))
    chain.close_table("invoice", 1)
    latest = chain.events(4)
    names = ["table closed", "check finished", "mismatches recorded", "rejects retried"]
    assert [line.event for line in latest] == names
    assert not any(word in canonical(line.body) for line in latest for word in ("key", "entity", "value"))


def changes(ledger: Ledger) -> list[tuple[Callable[[], object], Callable[[], object], object]]:
    """(what changes something, what reads it, what that says as long as nothing has changed)"""
    check = ledger.begin_check("invoice", "c1")
    finished = ledger.begin_check("invoice", "c1")
    ledger.finish_check(finished, CheckResult(compared=1, coverage="c1", by_cohort={}))
    ledger.record_rejects([Reject(table="plan", key=b"1", entity=None, cohort="NZ", column=None, error="e")])
    loading = ledger.start_table("plan")
    ledger.cut("plan", loading, [(None, None)])
    chunk = ledger.claim("plan", loading, "a", timedelta(0))
    assert chunk is not None
    assert ledger.finish_chunk("plan", 1, chunk.token, 1)
    found = Mismatch(table="invoice", key=b"1", entity=None, cohort="NZ", kind="extra")
    result = CheckResult(compared=1, coverage="c1", by_cohort={})
    return [
        (lambda: ledger.record_spec("{}", "d1", "c1", "ada"), ledger.spec, None),
        (lambda: ledger.ensure_routes(["NZ"], "ada"), ledger.routes, {}),
        (lambda: ledger.start_table("x"), lambda: ledger.table_state("x"), TableState(generation=0, phase="new")),
        (lambda: ledger.close_table("plan", 1), lambda: ledger.table_state("plan").phase, "loading"),
        (ledger.retry_rejects, ledger.count_dirty, 0),
        (lambda: ledger.record_mismatches(check, "source", [found]), ledger.open_mismatches, []),
        (lambda: ledger.record_mismatches(check, "source", [found]), ledger.count_dirty, 0),
        (lambda: ledger.finish_check(check, result), lambda: ledger.checks()[-1].finished_at, None),
        (lambda: ledger.void_checks(["invoice"], "why"), lambda: ledger.clean_passes("invoice"), 1),
        (lambda: ledger.record_coverage("source", {"x": "d"}), lambda: ledger.coverage("source"), {}),
        (lambda: ledger.set_control(paused=True, actor="ada"), ledger.control, Control()),
    ]


@pytest.mark.parametrize("part", ["ledger_audit", "ledger_audit_head"])
def test_without_its_event_no_change_happens(ledger: Ledger, part: str) -> None:
    cases = changes(ledger)
    ledger.check_version()
    head = ledger.audit_head()
    # A column that is gone fails the event's insert, or the head's update that follows it.
    quote = ledger.engine.dialect.identifier_preparer.quote_identifier
    columns = (quote("digest"), quote("digest_gone"))
    rename(ledger, part, *columns)
    for change, _, _ in cases:
        with pytest.raises(FatalError):
            change()
    rename(ledger, part, *reversed(columns))
    for _, read, unchanged in cases:
        assert read() == unchanged
    assert ledger.audit_head() == head
    assert verify(ledger.engine) == []


def rename(ledger: Ledger, part: str, old: str, new: str) -> None:
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {part} RENAME COLUMN {old} TO {new}")


def test_eight_threads_make_one_chain(ledger: Ledger) -> None:
    def work(thread: int) -> None:
        for number in range(10):
            ledger.ensure_routes([f"{thread}-{number}"], f"thread {thread}")
            ledger.record_coverage("source", {f"t{thread}": f"d{number}"})

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()
    lines = ledger.events(1000)
    assert [line.sequence for line in lines] == list(range(160, 0, -1))
    assert len(ledger.routes()) == 80
    assert verify(ledger.engine) == []


def test_of_eight_runs_at_once_one_opens_an_attempt(ledger: Ledger) -> None:
    ledger.ensure_routes(["NZ"], "ada")

    def ask(run: int) -> str | None:
        try:
            ledger.begin_attempt("NZ", "flip", actor=f"ann {run}", reason="", deadline=60, request=f"run {run}")
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, range(8)))
    assert said.count(None) == 1 and all("is still open" in why for why in said if why is not None)
    (attempt,) = ledger.attempts()
    assert [event.actor for event in ledger.events() if event.event == "flip asked for"] == [attempt.actor]


def test_of_eight_who_take_a_step_at_once_one_does(ledger: Ledger, url: str) -> None:
    """Each with a ledger of its own, and what all have read before."""
    ledger.ensure_routes(["NZ"], "ada")
    at = ledger.begin_attempt("NZ", "flip", actor="ada", reason="", deadline=600)
    ledger.prove(at, "verified", {})
    ready = threading.Barrier(8)

    def take(step: Callable[[Ledger, Attempt], Attempt | None]) -> Attempt | None:
        with open_ledger(url, migration="billing", clock=ledger.now) as mine:
            read = mine.attempt(at.id)
            ready.wait(60)
            while True:
                try:
                    return step(mine, read)
                except StaleError:
                    return None
                except TransientError:
                    continue

    steps: list[tuple[Callable[[Ledger, Attempt], Attempt | None], str, str, int]] = [
        (lambda mine, read: mine.fence_attempt(read, {}), "fence", "fencing", 2),
        (Ledger.queue_attempt, "drain", "queue", 2),
        (Ledger.drained, "compare", "queue", 2),
        (lambda mine, read: mine.switch(read, {}), "open", "replay", 3),
        (lambda mine, read: mine.advance(read, "close"), "close", "replay", 3),
        (lambda mine, read: mine.advance(read, "replay"), "replay", "replay", 3),
        (Ledger.end_replay, "done", "live", 3),
    ]
    with ThreadPoolExecutor(8) as pool:
        for step, reached, stage, epoch in steps:
            if reached == "open":
                ledger.prove(at, "compared", {})
            (at,) = [taken for taken in pool.map(take, [step] * 8) if taken is not None]
            route = ledger.route("NZ")
            assert (at.step, at.epoch, route.stage, route.epoch) == (reached, epoch, stage, epoch)
    told = ["fencing", "queueing", "switched", "flip done"]
    assert [event.event for event in reversed(ledger.events()) if event.body.get("attempt") == at.id][1:] == told
    assert verify(ledger.engine) == []


def test_what_eight_threads_do_at_once_happens_once(ledger: Ledger) -> None:
    def work(_thread: int) -> bool:
        ledger.ensure_routes(["NZ"], "ada")
        ledger.record_coverage("source", {"invoice": "d"})
        ledger.set_control(paused=True, actor="ada")
        assert ledger.start_table("invoice") == 1
        return ledger.record_spec("{}", "d1", "c1", "ada")

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == [False] * 7 + [True]
    names = ["control changed", "coverage recorded", "routes added", "spec recorded", "table started"]
    assert sorted(line.event for line in ledger.events()) == names


# Tampering ----------------------------------------------------------------------------------------------


def altered(value: Any, step: int) -> Iterator[Any]:
    """The value with one byte changed, for every ``step``-th byte."""
    if isinstance(value, int):
        yield value + 1000
        yield -value
        return
    for at in range(0, len(value), step):
        changed = "x" if value[at] != "x" else "y"
        yield value[:at] + changed + value[at + 1 :]
    yield value[:-1]


def test_any_changed_byte_is_found(chain: Ledger) -> None:
    # Each costs a round trip or ten, so servers get a sample.
    step = 1 if chain.engine.dialect.name == "sqlite" else 29
    tried = 0
    for of in (AUDIT, HEAD):
        for row in rows(chain, of):
            for name in row._fields:
                for value in altered(getattr(row, name), step):
                    changed = update(of).where(event(row.sequence, of)).values({name: value})
                    with tampered(chain, changed):
                        assert verify(chain.engine), f"{of.name} {row.sequence}: {name} = {value!r}"
                    tried += 1
    assert tried > (900 if step == 1 else 90)
    assert verify(chain.engine) == []


def test_a_missing_event_is_found(chain: Ledger) -> None:
    for sequence in (1, 2, 3):
        with tampered(chain, delete(AUDIT).where(event(sequence))):
            problems = verify(chain.engine, "billing")
            assert problems[0] == f"billing: event {sequence} is missing before event {sequence + 1}"
            assert verify(chain.engine, "balance") == []


def test_a_cut_tail_is_found(chain: Ledger) -> None:
    for first in (4, 3, 1):
        cut = delete(AUDIT).where(AUDIT.c.migration == "billing", AUDIT.c.sequence >= first)
        with tampered(chain, cut):
            (problem,) = verify(chain.engine)
            assert problem.startswith(f"billing: the audit ends at event {first - 1}, its head says 4")
    with tampered(chain, delete(AUDIT).where(event(4)), delete(HEAD).where(event(4, HEAD))):
        assert verify(chain.engine) == ["billing: the audit has no head"]


def test_a_chain_removed_as_a_whole_is_found(chain: Ledger) -> None:
    gone = [delete(of).where(of.c.migration == "billing") for of in (AUDIT, HEAD)]
    with tampered(chain, *gone):
        assert verify(chain.engine) == ["billing: the audit has no head"]


def test_exchanged_events_are_found(chain: Ledger) -> None:
    swap = [update(AUDIT).where(event(old)).values(sequence=new) for old, new in ((2, 99), (3, 2), (99, 3))]
    with tampered(chain, *swap):
        assert len(verify(chain.engine)) >= 2
    with tampered(chain, update(AUDIT).where(event(3)).values(migration="balance")):
        assert {problem.split(":")[0] for problem in verify(chain.engine)} == {"balance", "billing"}


def test_an_added_event_is_found(chain: Ledger) -> None:
    last = rows(chain)[-1]._asdict()
    forged = {**last, "sequence": 5, "previous": last["digest"]}
    with tampered(chain, insert(AUDIT).values(forged)):
        assert any("event 5 is not what was written" in problem for problem in verify(chain.engine))


def test_an_event_rewritten_with_a_matching_digest_is_found(chain: Ledger) -> None:
    fields = {**rows(chain)[1]._asdict(), "actor": "eve"}
    del fields["digest"]
    digest = hashlib.sha256(canonical(fields).encode()).hexdigest()
    with tampered(chain, update(AUDIT).where(event(2)).values(actor="eve", digest=digest)):
        assert verify(chain.engine) == ["billing: event 3 does not follow the event before it"]


@pytest.mark.parametrize("since", [2, 3, 4])
def test_what_is_before_the_first_event_that_is_looked_at_is_believed(chain: Ledger, since: int) -> None:
    for sequence in (1, 2, 3, 4):
        with tampered(chain, update(AUDIT).where(event(sequence)).values(actor="eve")):
            found = verify(chain.engine, "billing", since=since)
            said = [f"billing: event {sequence} is not what was written"]
            assert found == (said if sequence >= since else [])
        with tampered(chain, delete(AUDIT).where(event(sequence))):
            assert bool(verify(chain.engine, "billing", since=since)) == (sequence >= since)
    with tampered(chain, update(AUDIT).where(event(since)).values(previous="0" * 64)):
        assert verify(chain.engine, "billing", since=since) == [f"billing: event {since} is not what was written"]
    assert verify(chain.engine, "billing", since=since) == []


def test_bytes_that_are_no_text_do_not_pass(chain: Ledger) -> None:
    if chain.engine.dialect.name != "sqlite":
        pytest.skip("the server refuses them")
    for value in ("CAST(x'ff' AS TEXT)", "x'61'"):
        with tampered(chain, text(f"UPDATE ledger_audit SET body = {value} WHERE sequence = 2")):
            assert verify(chain.engine)


def test_no_ledger_is_no_intact_chain(url: str) -> None:
    engine = open_engine(url)
    with pytest.raises(LedgerError, match="ledger upgrade"):
        verify(engine)
    engine.dispose()
