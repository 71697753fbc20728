"""The bulk load: exactly once, and a row that does not fit is a reject, not a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fishladder import load, tasks
from fishladder.clock import SystemClock
from fishladder.errors import FenceError, InputError, StaleError, TransientError
from fishladder.fence import set_fence
from fishladder.spec import digest
from fishladder.stores.base import LoadState
from fishladder.tasks import code_digest
from tests import independent
from tests.unit.small import SCHEMA, Small
from tests.unit.test_approvals import Watch, desk_of

TABLES = ["price", "customer", "item", "line"]


def test_every_row_arrives(small: Small) -> None:
    small.load()
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []
    assert small.rows("target", "SELECT entity, cohort, root_key FROM fishladder_home ORDER BY 1") == [
        ("1:1", "NZ", "1"),
        ("1:2", "AU", "2"),
        ("1:3", "*", "3"),  # no country: nobody's
        *((f"@{cohort}", cohort, f"@{cohort}") for cohort in ("*", "AU", "NZ", "shared")),  # for writes that have none
    ]


def _claim(small: Small, table: str, lane: str) -> load.Chunk:
    generation = small.ledger.start_table(table)
    chunk = small.ledger.claim(table, generation, lane, timedelta(0))
    assert chunk is not None
    small.target.raise_token(table, chunk.no, chunk.generation, chunk.token)
    return chunk


class Still(Watch):
    """Time passes only when somebody sleeps."""

    def monotonic(self) -> float:
        return self.later.total_seconds()


def test_a_lane_says_how_far_all_have_come_and_how_long_it_will_take(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows in chunks of one, and the end. Each takes ten seconds; the other lane does one meanwhile."""
    small.ledger.record_spec(small.spec.to_json(), digest(small.spec.data_part()), code_digest(), "test")
    load.cut(small.plan, small.source, small.ledger, 1)
    real, others, said, clock = load.load_chunk, [_claim(small, "item", "2")], list[str](), Still()

    def slow(*arguments: Any) -> tuple[int, int]:
        if small.ledger.progress("item").done == 1:
            real(*arguments[:-1], others.pop())
        clock.sleep(10)
        return real(*arguments)

    monkeypatch.setattr(load, "load_chunk", slow)
    tasks.load_table(replace(desk_of(small, clock), say=said.append), "item", "1")
    assert said == [
        "item lane 1: chunk 1 of 4, 1 rows here, 0 rows/s, about 30 s left, 0 rejects",
        "item lane 1: chunk 3 of 4, 2 rows here, 0 rows/s, about 7 s left, 0 rejects",
        "item lane 1: chunk 4 of 4, 2 rows here, 0 rows/s, about 0 s left, 0 rejects",
    ]


def test_a_zombie_lane_writes_nothing(small: Small) -> None:
    load.cut(small.plan, small.source, small.ledger, 100)
    zombie = _claim(small, "item", "1")
    later = _claim(small, "item", "2")
    assert (later.no, later.token > zombie.token) == (zombie.no, True)
    table = small.plan.table("item")
    with pytest.raises(StaleError):
        load.load_chunk(table, small.source, small.target, small.ledger, zombie)
    assert small.rows("target", "SELECT * FROM item") == []
    assert load.load_chunk(table, small.source, small.target, small.ledger, later) == (3, 0)


def test_a_lane_that_died_after_the_commit_is_not_repeated(small: Small) -> None:
    """The target says that the chunk is done, the ledger does not know: the next claim only tells it."""
    load.cut(small.plan, small.source, small.ledger, 100)
    chunk = _claim(small, "item", "1")
    table = small.plan.table("item")
    finish = small.ledger.finish_chunk
    small.ledger.finish_chunk = lambda *_, **__: False  # type: ignore[method-assign]  # it dies on this line
    load.load_chunk(table, small.source, small.target, small.ledger, chunk)
    small.ledger.finish_chunk = finish  # type: ignore[method-assign]
    small.application("UPDATE item SET amount = 99")
    again = _claim(small, "item", "2")
    assert load.load_chunk(table, small.source, small.target, small.ledger, again) == (3, 0)
    assert small.rows("target", "SELECT DISTINCT amount FROM item ORDER BY 1") == [(5,), (6,), (7,)]
    assert small.ledger.unfinished("item", 1) == 0
    assert small.ledger.progress("item").rows == 3


def test_no_chunk_is_loaded_once_the_load_is_closed(small: Small) -> None:
    load.cut(small.plan, small.source, small.ledger, 100)
    chunk = _claim(small, "item", "1")
    with small.target.begin() as copy:
        copy.write_load("item", LoadState(generation=1, open=False))
        copy.commit()
    with pytest.raises(StaleError):
        load.load_chunk(small.plan.table("item"), small.source, small.target, small.ledger, chunk)


def test_the_load_asks_the_targets_fences(small: Small) -> None:
    set_fence(small.target, SystemClock(), "NZ", "nobody", 2)
    with pytest.raises(FenceError, match="NZ"):
        small.load()
    assert small.rows("target", "SELECT * FROM customer") == []


def test_an_applier_can_see_what_was_closed_before_it_may_have_it(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it planned with may have been altered meanwhile; killed in between, the load is closed once more."""
    seen: list[bool] = []
    real = small.target.begin

    def begin(**options: Any) -> Any:
        seen.append("price" in small.ledger.coverage("target"))
        if len(seen) == 1:
            raise TransientError("the task dies here")
        return real(**options)

    price = small.plan.table("price")
    load.cut(small.plan, small.source, small.ledger, 10)
    load.load_lane(price, small.source, small.target, small.ledger, lane="1")
    monkeypatch.setattr(small.target, "begin", begin)
    with pytest.raises(TransientError):
        load.close_load(small.plan, price, small.target, small.ledger)
    assert small.ledger.table_state("price").phase == "loading"
    load.close_load(small.plan, price, small.target, small.ledger)
    assert seen == [True, True]
    assert small.ledger.table_state("price").phase == "closed"


def test_the_load_is_not_closed_with_chunks_missing(small: Small) -> None:
    load.cut(small.plan, small.source, small.ledger, 1)
    with pytest.raises(InputError, match="4 chunks are not loaded"):
        load.close_load(small.plan, small.plan.table("item"), small.target, small.ledger)


def test_rows_that_do_not_fit_become_rejects(make_small: Callable[..., Small]) -> None:
    """One bad row among good ones: found by halving, named by column, without its value."""
    narrow = (
        SCHEMA.partition("INSERT INTO")[0]
        .replace("email VARCHAR(40) UNIQUE", "email VARCHAR(40) UNIQUE CHECK (email <> 'b')")
        .replace("(10,4)", "(10,2)")
    )
    small = make_small(target=narrow)
    small.application("UPDATE price SET amount = '2.2575' WHERE id = 2")
    small.load()
    rejects = {(reject.table, reject.key): reject for reject in small.ledger.open_rejects()}
    assert set(rejects) == {("price", b"1:2"), ("customer", b"1:2")}
    assert rejects["price", b"1:2"].column == "amount"
    assert "2 fraction digits" in rejects["price", b"1:2"].error
    assert "2.2575" not in rejects["price", b"1:2"].error
    assert rejects["customer", b"1:2"].cohort == "AU"
    assert small.rows("target", "SELECT id FROM customer ORDER BY 1") == [(1,), (3,)]
    assert small.rows("target", "SELECT id, amount FROM price") == [(1, "1.50")]

    small.follow()
    small.application("UPDATE price SET amount = '2.25' WHERE id = 2", "UPDATE customer SET email = 'bb' WHERE id = 2")
    small.follow()
    assert small.ledger.open_rejects() == []
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []


def test_a_text_that_is_not_utf8_becomes_a_reject(small: Small) -> None:
    """As clients leave it behind that told an Oracle the wrong character set. It must not end lane or applier."""
    spoil = "UPDATE customer SET email = CAST(x'{}' AS TEXT) WHERE id = {}"
    small.application(spoil.format("ff" * 50, 2))
    small.load()
    small.application(spoil.format("fe" * 50, 3), "UPDATE customer SET email = 'new' WHERE id = 1")
    small.follow()
    assert small.rows("target", "SELECT id, email FROM customer ORDER BY id") == [(1, "new"), (3, "c")]
    rejects = {reject.key: (reject.column, reject.error) for reject in small.ledger.open_rejects("customer")}
    assert rejects == dict.fromkeys((b"1:2", b"1:3"), ("email", "the value is not UTF-8"))


def test_a_retry_after_the_fix_closes_the_reject(make_small: Callable[..., Small]) -> None:
    narrow = SCHEMA.partition("INSERT INTO")[0].replace("UNIQUE", "UNIQUE CHECK (email <> 'b')")
    small = make_small(target=narrow)
    small.load()
    assert len(small.ledger.open_rejects()) == 1
    small.ledger.retry_rejects(actor="operator")
    small.follow()
    assert len(small.ledger.open_rejects()) == 1  # nothing was fixed yet
    small.application("PRAGMA ignore_check_constraints = ON", store="target")
    small.target.run("PRAGMA ignore_check_constraints = ON")
    small.ledger.retry_rejects(actor="operator")
    small.follow()
    assert small.ledger.open_rejects() == []
    assert independent.compare(small.url("source"), small.url("target"), ["customer"]) == []
