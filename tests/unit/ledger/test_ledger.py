"""Versions, transactions, specs, routes, tables and chunks."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, text

from fishladder.errors import InputError, LedgerError, StaleError, TransientError
from fishladder.ledger import (
    CheckResult,
    Chunk,
    Control,
    DirtyKey,
    Ledger,
    Mismatch,
    Progress,
    Reject,
    Route,
    TableState,
    open_ledger,
    tables,
    upgrade,
)

HOUR = timedelta(hours=1)
ANY_BYTES = bytes(range(256))
SPAWN = multiprocessing.get_context("spawn")


class Clock(Protocol):
    now: datetime


@pytest.fixture
def loading(ledger: Ledger) -> Ledger:
    """A ledger whose table ``invoice`` is loading in three chunks."""
    cut(ledger, 3)
    return ledger


def cut(ledger: Ledger, chunks: int) -> None:
    edges = [None, *(b"%03d" % no for no in range(1, chunks)), None]
    ledger.cut("invoice", ledger.start_table("invoice"), list(itertools.pairwise(edges)))


def claimed(ledger: Ledger, lane: str, stale: timedelta = HOUR) -> Chunk:
    chunk = ledger.claim("invoice", 1, lane, stale)
    assert chunk is not None
    return chunk


def reject(key: bytes, *, table: str = "invoice", error: str = "too long", cohort: str = "NZ") -> Reject:
    return Reject(table=table, key=key, entity=b"1:7", cohort=cohort, column="total", error=error)


def dirty(key: bytes, *, table: str = "invoice", cohort: str = "NZ") -> DirtyKey:
    return DirtyKey(table=table, key=key, entity=None, cohort=cohort, origin="retry")


def execute(ledger: Ledger, statement: str) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(text(statement))


def quoted(ledger: Ledger, name: str) -> str:
    return ledger.engine.dialect.identifier_preparer.quote_identifier(name)


# Addresses, versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["nonsense", "oracle://a:b@c/d", "sqlite://", "sqlite:///:memory:"])
def test_an_address_that_cannot_hold_a_ledger(address: str) -> None:
    with pytest.raises(InputError, match="sqlite"):
        open_ledger(address, migration="billing")


def test_upgrade_twice_keeps_what_is_there(ledger: Ledger, url: str) -> None:
    ledger.ensure_routes(["NZ"], "ada")
    upgrade(url)
    ledger.check_version()
    assert list(ledger.routes()) == ["NZ"]


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_upgrades_at_once(url: str, pool: str) -> None:
    with executor(pool) as workers:
        list(workers.map(upgrade, [url] * 4))
    with open_ledger(url, migration="billing") as ledger:
        ledger.check_version()


def executor(kind: str, workers: int = 4) -> Executor:
    return ThreadPoolExecutor(workers) if kind == "threads" else ProcessPoolExecutor(workers, mp_context=SPAWN)


def test_an_upgrade_that_was_cut_short_is_completed(ledger: Ledger, url: str) -> None:
    execute(ledger, "DROP TABLE ledger_status")
    execute(ledger, "DELETE FROM ledger_version")
    upgrade(url)
    ledger.check_version()
    assert ledger.status("lag") is None


def test_the_revisions_make_the_tables_that_the_code_uses(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []


def test_no_ledger_yet(url: str) -> None:
    with open_ledger(url, migration="billing") as ledger:
        for call in (ledger.check_version, ledger.routes):
            with pytest.raises(LedgerError, match="python -m fishladder ledger upgrade"):
                call()


@pytest.mark.parametrize(("version", "word"), [("9999", "newer"), (None, "no ledger")])
def test_a_ledger_of_another_version(ledger: Ledger, url: str, version: str | None, word: str) -> None:
    execute(ledger, "DELETE FROM ledger_version")
    if version:
        execute(ledger, f"INSERT INTO ledger_version VALUES ('{version}')")
        with pytest.raises(LedgerError, match="newer"):
            upgrade(url)
    with pytest.raises(LedgerError, match=f"{word}.*`python -m fishladder ledger upgrade`"):
        ledger.check_version()


# One transaction each -----------------------------------------------------------------------------------


def test_every_method_is_one_transaction(loading: Ledger) -> None:
    ends: list[str] = []
    for name in ("commit", "rollback"):
        event.listen(loading.engine, name, lambda _connection, name=name: ends.append(name))
    check = loading.begin_check("invoice", "c1")
    calls: list[Callable[[], object]] = [
        lambda: loading.record_spec("{}", "d", "c", "ada"),
        lambda: loading.ensure_routes(["NZ", "AU"], "ada"),
        lambda: claimed(loading, "a"),
        lambda: loading.record_rejects([reject(b"1")], chunk=1, token=1),
        lambda: loading.finish_chunk("invoice", 1, 1, 10),
        loading.retry_rejects,
        lambda: loading.record_mismatches(
            check, "source", [Mismatch(table="invoice", key=b"1", entity=None, cohort="NZ", kind="extra")]
        ),
        lambda: loading.finish_check(check, CheckResult(compared=10, coverage="c1", by_cohort={})),
        lambda: loading.record_coverage("source", {"invoice": "d"}),
        lambda: loading.record_evidence("report", "revenue", {}, True, datetime.now(UTC)),
        lambda: loading.set_control(paused=True, actor="ada"),
        lambda: loading.forget(range(2500)),
        loading.progress,
        lambda: loading.dirty(10),
    ]
    for call in calls:
        ends.clear()
        call()
        assert ends == ["commit"]


def test_many_keys_are_few_statements(ledger: Ledger) -> None:
    statements: list[str] = []

    @event.listens_for(ledger.engine, "before_cursor_execute")
    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    ledger.mark_dirty([dirty(b"%d" % number) for number in range(1000)])
    assert len([each for each in statements if each.startswith("INSERT")]) == 1
    statements.clear()
    ledger.forget([entry.id for entry in ledger.dirty(2000)])
    assert len([each for each in statements if each.startswith("DELETE")]) == 1


# Names, keys, moments ---------------------------------------------------------------------------------------


def test_cohorts_and_keys_are_told_apart_byte_for_byte(ledger: Ledger) -> None:
    cohorts = ["NZ", "nz", "Ñz", "Nz", "*", "shared", "日本"]
    ledger.ensure_routes(cohorts, "ada")
    assert ledger.routes() == dict.fromkeys(sorted(cohorts), Route(stage="off", owner="source", epoch=1))
    keys = [ANY_BYTES, b"a", b"A", b"a ", b"a\0", b"", b"k" * 767]
    ledger.mark_dirty([dirty(key) for key in keys])
    assert [entry.key for entry in ledger.dirty(10)] == keys
    assert ledger.dirty_keys("invoice", [b"A", b"b", b"a\0"]) == {b"A", b"a\0"}
    ledger.record_rejects([reject(key) for key in keys])
    assert {found.key for found in ledger.open_rejects()} == set(keys)


def test_moments_come_back_in_utc_to_the_microsecond(ledger: Ledger, clock: Clock) -> None:
    ledger.mark_dirty([dirty(b"1")])
    (entry,) = ledger.dirty(1)
    assert entry.at == clock.now
    assert entry.at.utcoffset() == timedelta(0)


def test_migrations_do_not_see_each_other(ledger: Ledger, url: str) -> None:
    with open_ledger(url, migration="balance") as other:
        cut(other, 2)
        other.mark_dirty([dirty(b"1")])
        other.record_rejects([reject(b"1")])
        other.set_control(paused=True, actor="ada")
        entries = [entry.id for entry in other.dirty(10)]
        ledger.forget(entries)
        ledger.close_rejects("invoice", [b"1"])
        assert other.count_dirty() == other.count_rejects() == 1
    assert ledger.count_dirty() == ledger.count_rejects() == 0
    assert ledger.table_state("invoice") == TableState(generation=0, phase="new")
    assert ledger.control() == Control()
    assert ledger.progress() == Progress(chunks=0, done=0, rows=0, rejects=0)


# Spec, routes, tables ---------------------------------------------------------------------------------------


def test_a_spec_is_new_once(ledger: Ledger, clock: Clock) -> None:
    assert ledger.spec() is None
    assert ledger.record_spec('{"a":1}', "d1", "c1", "ada")
    assert not ledger.record_spec('{"a":1}', "d1", "c1", "bob")
    assert ledger.record_spec('{"a":1}', "d1", "c2", "bob")
    assert ledger.record_spec('{"a":1}', "d1", "c1", "ada"), "back to an earlier one is a change"
    latest = ledger.spec()
    assert latest is not None
    assert (latest.spec, latest.digest, latest.code_digest, latest.actor) == ('{"a":1}', "d1", "c1", "ada")
    assert latest.at == clock.now
    first = ledger.spec("d1")
    assert first == latest and ledger.spec("d2") is None
    told = [(line.event, line.actor, *line.body.values()) for line in reversed(ledger.events())]
    # code, code before, file, file before
    assert told == [
        ("spec recorded", "ada", "c1", None, "d1", None),
        ("spec recorded", "bob", "c2", "c1", "d1", "d1"),
        ("spec recorded", "ada", "c1", "c2", "d1", "d1"),
    ]


def test_a_spec_that_another_one_has_overtaken_is_not_recorded(ledger: Ledger) -> None:
    ledger.record_spec("{}", "d1", "c1", "ada")
    known = ledger.spec()
    ledger.record_spec("{}", "d2", "c1", "prepare")
    with pytest.raises(TransientError, match="somebody has recorded another migration file meanwhile"):
        ledger.record_spec("{}", "d3", "c1", "gates", after=known)
    assert not ledger.record_spec("{}", "d2", "c1", "gates", after=known), "two who want the same agree"
    assert len(ledger.events()) == 2


def test_a_table_from_new_to_closed(ledger: Ledger) -> None:
    assert ledger.table_state("invoice") == TableState(generation=0, phase="new")
    assert ledger.start_table("invoice") == ledger.start_table("invoice") == 1
    with pytest.raises(LedgerError, match="cut it first"):
        ledger.close_table("invoice", 1)
    with pytest.raises(LedgerError, match="cut it first"):
        ledger.unfinished("invoice", 1)
    ledger.cut("invoice", 1, [(None, None)])
    assert ledger.unfinished("invoice", 1) == 1
    with pytest.raises(LedgerError, match="1 chunks are not done"):
        ledger.close_table("invoice", 1)
    assert ledger.finish_chunk("invoice", 1, claimed(ledger, "a").token, 5)
    with pytest.raises(StaleError, match="generation 1, not 2"):
        ledger.close_table("invoice", 2)
    ledger.close_table("invoice", 1)
    ledger.close_table("invoice", 1)
    assert ledger.start_table("invoice") == 1
    assert ledger.table_state("invoice") == TableState(generation=1, phase="closed")
    assert [line.event for line in ledger.events()] == ["table closed", "table started"]


# Chunks ---------------------------------------------------------------------------------------------------


def test_cutting_again_changes_nothing(loading: Ledger) -> None:
    before = loading.chunks("invoice")
    assert [(chunk.no, chunk.lower, chunk.upper) for chunk in before] == [
        (1, None, b"001"),
        (2, b"001", b"002"),
        (3, b"002", None),
    ]
    loading.cut("invoice", 1, [(None, None)])
    assert loading.chunks("invoice") == before
    with pytest.raises(StaleError):
        loading.cut("invoice", 2, [(None, None)])


@pytest.mark.parametrize(
    "bounds",
    [
        [],
        [(None, b"1")],
        [(b"1", None)],
        [(None, b"1"), (b"2", None)],
        [(None, None), (None, None)],
    ],
)
def test_chunks_that_miss_keys_are_refused(loading: Ledger, bounds: list[Any]) -> None:
    with pytest.raises(ValueError, match="without a gap"):
        loading.cut("invoice", 1, bounds)


def test_a_lane_gets_its_own_then_pending_then_stale_chunks(loading: Ledger, clock: Clock) -> None:
    assert claimed(loading, "a") == Chunk(no=1, lower=None, upper=b"001", token=1, generation=1)
    assert claimed(loading, "b").no == 2
    again = claimed(loading, "a")
    assert (again.no, again.token) == (1, 2), "its own first, with a new token"
    assert claimed(loading, "c").no == 3
    assert loading.claim("invoice", 1, "d", HOUR) is None
    clock.now += HOUR
    assert loading.claim("invoice", 1, "d", HOUR) is None, "not longer ago than an hour"
    clock.now += timedelta(microseconds=1)
    taken = claimed(loading, "d")
    assert (taken.no, taken.token) == (1, 3)
    with pytest.raises(StaleError):
        loading.claim("invoice", 2, "d", HOUR)


def test_only_the_latest_token_finishes_a_chunk(loading: Ledger) -> None:
    zombie, owner = claimed(loading, "a"), claimed(loading, "a")
    assert not loading.finish_chunk("invoice", zombie.no, zombie.token, 1)
    assert loading.finish_chunk("invoice", owner.no, owner.token, 100)
    assert loading.finish_chunk("invoice", owner.no, owner.token, 100), "repeated after an ambiguous answer"
    assert not loading.finish_chunk("invoice", zombie.no, zombie.token, 1)
    assert not loading.finish_chunk("invoice", 2, 0, 1), "nobody has claimed that one"
    assert loading.progress("invoice") == Progress(chunks=3, done=1, rows=100, rejects=0)
    assert loading.progress() == loading.progress("invoice")
    assert loading.progress("customer").chunks == 0
    assert loading.unfinished("invoice", 1) == 2


def test_tokens_never_repeat_in_another_generation(loading: Ledger) -> None:
    zombie = claimed(loading, "a")
    execute(loading, f"UPDATE {quoted(loading, 'ledger_table')} SET generation = 2")
    loading.cut("invoice", 2, [(None, b"1"), (b"1", None)])
    chunk = loading.claim("invoice", 2, "b", HOUR)
    assert chunk is not None
    assert (chunk.no, chunk.generation) == (zombie.no, 2)
    assert chunk.token > zombie.token
    assert not loading.finish_chunk("invoice", zombie.no, zombie.token, 1)
    assert loading.progress() == Progress(chunks=2, done=0, rows=0, rejects=0)


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_no_chunk_is_given_twice_with_one_token(ledger: Ledger, url: str, pool: str) -> None:
    cut(ledger, 40)
    with executor(pool) as workers:
        claims = [claim for lane in workers.map(_load_all, [url] * 4, "abcd") for claim in lane]
    assert len({(no, token) for no, token, _ in claims}) == len(claims)
    tokens: dict[int, list[int]] = {}
    for no, token, _ in claims:
        tokens.setdefault(no, []).append(token)
    assert all(sorted(given) == list(range(1, len(given) + 1)) for given in tokens.values())
    assert Counter(no for no, _, finished in claims if finished) == Counter(range(1, 41))
    assert ledger.progress() == Progress(chunks=40, done=40, rows=400, rejects=0)


def _load_all(url: str, lane: str) -> list[tuple[int, int, bool]]:
    claims = []
    with open_ledger(url, migration="billing") as ledger:
        # Everything is stale at once, so lanes take each other's chunks all the time.
        while chunk := ledger.claim("invoice", 1, lane, timedelta(0)):
            claims.append((chunk.no, chunk.token, ledger.finish_chunk("invoice", chunk.no, chunk.token, 10)))
    return claims
