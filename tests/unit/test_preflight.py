"""What preflight says of tables that fit one way only, of earlier installations, of sizes, time and replicas."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fishladder import load, tasks
from fishladder.capacity import bytes_text, duration
from fishladder.clock import Clock, SystemClock
from fishladder.errors import FatalError, TransientError
from fishladder.spec import loads
from fishladder.stores import oracle_schema
from fishladder.stores.base import Finding, Store, TableInfo
from fishladder.stores.mysql_schema import privileges
from fishladder.stores.sqlite import SqliteStore, connect
from tests.unit.flips import Flips
from tests.unit.small import SCHEMA, SPEC, Small


def findings(small: Small, *, lost: str = "", clock: Clock | None = None) -> list[Finding]:
    """What preflight finds; the connection ``lost`` cannot be opened."""

    def store(name: str) -> Store:
        if name == lost:
            raise TransientError("nobody listens there")
        return SqliteStore(lambda: connect(str(small.folder / f"{name}.db")))

    return tasks.check(tasks.Desk(spec=small.spec, ledger=small.ledger, open=store, clock=clock or SystemClock()))


def said(found: list[Finding], where: str, level: str | None = None) -> str:
    return "\n".join(f.message for f in found if f.where == where and (level is None or f.level == level))


def widened(*changes: tuple[str, str]) -> str:
    """The target's tables: the source's without rows, changed."""
    schema = "".join(part + ";" for part in SCHEMA.split(";") if "INSERT" not in part and part.strip())
    for old, new in changes:
        assert old in schema
        schema = schema.replace(old, new)
    return schema


def test_nothing_is_said_of_the_way_back_where_both_ends_are_alike(make_small: Callable[..., Small]) -> None:
    assert not [f for f in findings(make_small(target=widened())) if "way back" in f.message]


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        (("VARCHAR(40)", "VARCHAR(80)"), "customer.email", "VARCHAR(80) can hold more than string(40)"),
        (("amount INTEGER NOT NULL", "amount INTEGER"), "item.amount", "can be NULL in the target but not in the"),
        (("text VARCHAR(20)", "text VARCHAR(20), note VARCHAR(9)"), "line.note", "the source has no such column"),
        (("email VARCHAR(40) UNIQUE", "email VARCHAR(40)"), "customer", "the source's unique key (email) is none in"),
    ],
)
def test_what_does_not_fit_on_the_way_back_is_a_warning(
    make_small: Callable[..., Small], change: tuple[str, str], where: str, words: str
) -> None:
    found = findings(make_small(target=widened(change)))
    assert f"on the way back: {words}" in said(found, where, "warn")
    assert not any(f.level == "fail" for f in found)


def test_a_dropped_column_needs_a_default_on_the_way_back(make_small: Callable[..., Small]) -> None:
    spec = SPEC.replace("{entity: customer_id}", "{entity: customer_id, drop: [amount]}")
    found = findings(make_small(spec=spec))
    assert "on the way back: is NOT NULL in the source and comes from nowhere" in said(found, "item.amount", "warn")


def test_unique_keys_that_only_the_target_has(make_small: Callable[..., Small]) -> None:
    found = findings(make_small(target=widened(("country VARCHAR(2)", "country VARCHAR(2) UNIQUE"))))
    assert "the target's unique key (country) is none in the source" in said(found, "customer", "warn")


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("", " COLLATE NOCASE", "email is unique by its bytes in the source and by a folding collation in the target"),
        (" COLLATE NOCASE", "", "on the way back: email is unique by a folding collation in the source"),
    ],
)
def test_unique_keys_that_the_ends_compare_differently(
    make_small: Callable[..., Small], ours: str, theirs: str, words: str
) -> None:
    schema = SCHEMA.replace("VARCHAR(40)", f"VARCHAR(40){ours}")
    small = make_small(schema=schema, target=widened(("VARCHAR(40)", f"VARCHAR(40){theirs}")))
    assert words in said(findings(small), "customer", "warn")


def test_keys_and_cascades_are_listed(small: Small) -> None:
    told = said(findings(small), "customer", "pass")
    assert "key (id), unique keys (email): one copier at a time" in told
    assert "a row that goes in the source takes rows of item, line with it" in told


def test_a_lost_trigger_shows_and_prepare_may_still_run(small: Small) -> None:
    found = findings(small)
    assert "as they were installed" in said(found, "source: coverage", "pass")
    assert "no triggers are installed yet" in said(found, "target: coverage", "pass")
    small.application("DROP TRIGGER fishladder_item_update")
    found = findings(small)
    assert "prepare installs them again" in said(found, "source: coverage of item", "warn")
    assert not any(f.level == "fail" for f in found)


def test_a_cohort_that_no_fence_can_be_named_after_fails(small: Small) -> None:
    small.application(f"UPDATE customer SET country = '{64 * 'x'}' WHERE id = 1")
    assert said(findings(small), "customer.country", "fail") == ""
    small.application(f"UPDATE customer SET country = '{65 * 'x'}' WHERE id = 1")
    words = "a country of 65 characters is longer than the 64 that a fence's name can have"
    assert said(findings(small), "customer.country", "fail") == words


# Capacity


@dataclass
class Calendar:
    """A clock that is moved by hand."""

    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def test_growth_is_measured_from_the_first_preflight(small: Small) -> None:
    calendar = Calendar()
    assert "3 rows in the source; its growth is known from a preflight" in said(findings(small, clock=calendar), "item")
    small.application("INSERT INTO item VALUES (40, 1, 8)")
    calendar.sleep(3600)
    assert "4 rows in the source; its growth is known from" in said(findings(small, clock=calendar), "item")
    calendar.sleep(10 * 86_400 - 3600)
    found = findings(small, clock=calendar)
    assert "4 rows in the source; 36 rows more in a year, as it grew in 10 days" in said(found, "item")
    assert "2 rows in the source; 0 rows more in a year" in said(found, "price")
    assert "more in a year" in said(found, "target: space", "pass")
    evidence = small.ledger.latest_evidence("preflight", "small")
    assert evidence is not None
    assert evidence.body["sizes"]["item"]["first"] == {"rows": 3, "bytes": 0, "at": "2026-01-01T00:00:00+00:00"}
    assert "target: space" in {finding["where"] for finding in evidence.body["findings"]}


def test_the_time_of_the_load_comes_from_the_chunks_that_are_done(small: Small) -> None:
    assert "unknown until the first chunks are loaded; 11 rows are to be loaded" in said(findings(small), "load: time")
    small.load()
    assert "all is loaded, at " in said(findings(small), "load: time", "pass")


def test_the_time_that_the_load_still_takes(small: Small) -> None:
    calendar = Calendar()
    small.ledger._clock = calendar.now
    load.cut(small.plan, small.source, small.ledger, 2)
    generation = small.ledger.start_table("item")
    chunk = small.ledger.claim("item", generation, "1", timedelta(0))
    assert chunk is not None
    small.target.raise_token("item", chunk.no, chunk.generation, chunk.token)
    calendar.sleep(1)
    load.load_chunk(small.plan.table("item"), small.source, small.target, small.ledger, chunk)
    found = said(findings(small, clock=calendar), "load: time", "pass")
    assert found == "9 rows are left: about 2 s at the measured speed of 2 rows/s in each of 2 lanes"


def test_a_disk_that_is_full_within_a_year_is_warned_of(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    calendar = Calendar()
    monkeypatch.setattr(SqliteStore, "disk", lambda store: (1_200_000, 3_000_000))
    findings(small, clock=calendar)
    small.application("INSERT INTO item VALUES (40, 1, 8)")  # 36 of them in a year, as big as the twelve rows
    calendar.sleep(10 * 86_400)
    found = said(findings(small, clock=calendar), "target: space", "warn")
    assert found == "3.0 MB are free, too little for a year: 1.2 MB now and 3.6 MB more in a year"


@pytest.fixture
def heavy(small: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    """A store that knows the bytes of its tables, as a server does: a megabyte in each row."""
    real = SqliteStore.describe

    def describe(store: SqliteStore) -> dict[str, TableInfo]:
        return {name: replace(info, bytes=info.rows * 1_000_000) for name, info in real(store).items()}

    monkeypatch.setattr(SqliteStore, "describe", describe)
    return small


def test_bytes_and_their_growth_are_told_of_each_table(heavy: Small) -> None:
    calendar = Calendar()
    first = said(findings(heavy, clock=calendar), "item", "pass")
    assert "3 rows, 3.0 MB in the source; its growth is known from a preflight" in first
    heavy.application("INSERT INTO item VALUES (40, 1, 8)", "DELETE FROM line WHERE item_id = 10")
    calendar.sleep(10 * 86_400)
    found = findings(heavy, clock=calendar)
    more = "4 rows, 4.0 MB in the source; 36 rows, 36.5 MB more in a year, as it grew in 10 days"
    assert more in said(found, "item", "pass").splitlines()
    assert "1 rows, 1.0 MB in the source; 0 rows, 0 B more in a year" in said(found, "line")


@pytest.mark.parametrize(
    ("free", "level", "words"),
    [
        (60_000_000, "pass", "60.0 MB are free, enough for 10.0 MB now and 36.5 MB more in a year"),
        (46_000_000, "warn", "46.0 MB are free, too little for a year: 10.0 MB now and 36.5 MB more in a year"),
        (9_000_000, "fail", "9.0 MB are free, too little for 10.0 MB now and 36.5 MB more in a year: make room"),
        (None, "warn", "the target does not tell how much is free: see that there is room for 10.0 MB now and 36.5 MB"),
    ],
)
def test_space_is_needed_for_the_bytes_of_all_tables_and_what_grows(
    heavy: Small, monkeypatch: pytest.MonkeyPatch, free: int | None, level: str, words: str
) -> None:
    """What shrinks makes no room for what grows."""
    monkeypatch.setattr(SqliteStore, "disk", lambda store: None if free is None else (77_000_000, free))
    calendar = Calendar()
    assert "11.0 MB now, and growth that is not known yet" in said(findings(heavy, clock=calendar), "target: space")
    heavy.application("INSERT INTO item VALUES (40, 1, 8)", "DELETE FROM line WHERE item_id = 10")
    calendar.sleep(10 * 86_400)
    assert said(findings(heavy, clock=calendar), "target: space", level).startswith(words)


@pytest.mark.parametrize(
    ("ids", "follow", "level", "words"),
    [
        ("", True, "warn", "both stores generate ids: keep them apart before the first flip, with ids: {interleaved"),
        ("ids: {interleaved: true}", True, "pass", "each store is to generate every second one; not checked here"),
        ("ids: {target_from: 1000}", True, "warn", "raises the source's own counter above ids.target_from"),
        ("ids: {target_from: 2}", False, "fail", "the source already generates ids from 3, above ids.target_from 2"),
        ("ids: {target_from: 1000}", False, "pass", "ids: the source from 3, the target from "),
    ],
)
def test_ids_that_both_stores_generate(
    make_small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch, ids: str, follow: bool, level: str, words: str
) -> None:
    """``follow``: the source's counter follows the rows that are copied back, as no sequence of an Oracle does."""
    monkeypatch.setattr(SqliteStore, "ids_follow_rows", follow)
    small = make_small(spec=f"{SPEC}{ids}\n")
    assert words in said(findings(small), "price", level)


def test_no_table_is_added_while_a_cohort_has_moved(flips: Flips) -> None:
    """It could not be loaded, and nobody goes back while a table is not."""
    small = flips.small
    kept = {name: table for name, table in small.spec.tables.items() if name != "line"}
    small.ledger.record_spec(small.spec.model_copy(update={"tables": kept}).to_json(), "", "", "test")
    assert said(findings(small), "line", "fail") == ""
    flips.move()
    assert "cannot be added while NZ has moved or is about to" in said(findings(small), "line", "fail")
    flips.move("rollback")
    assert said(findings(small), "line", "fail") == ""
    flips.ask()
    assert "cannot be added while NZ has moved or is about to" in said(findings(small), "line", "fail")


def test_a_file_without_operations_is_warned_of(make_small: Callable[..., Small]) -> None:
    """A flip would go past its switch, and what customers wrote meanwhile would wait there."""
    small, where = make_small(), "application.operations"
    assert "could not be replayed after its switch" in said(findings(small), where, "warn")
    text = SPEC.replace("target: target_app}", "target: target_app, operations: 'billing.operations:operations'}")
    assert said(findings(replace(small, spec=loads(text, name="small.yaml", environment={}))), where) == ""


def test_a_full_disk_fails(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqliteStore, "disk", lambda store: (100_000, 10))
    assert "10 B are free, too little for 100.0 kB now" in said(findings(small), "target: space", "fail")


def test_numbers_are_told_in_fitting_units() -> None:
    cases = {1: "1 s", 119: "119 s", 600: "10 min", 7200: "2.0 h", 86_400 * 3: "3.0 days"}
    assert {seconds: duration(seconds) for seconds in cases} == cases
    assert [bytes_text(size) for size in (0, 999, 1500, 2_000_000_000_000)] == ["0 B", "999 B", "1.5 kB", "2.0 TB"]


# Replicas


def test_replicas_are_asked(make_small: Callable[..., Small]) -> None:
    spec = SPEC.replace("connection: target}", "connection: target, replicas: [copy, lost]}")
    found = findings(make_small(spec=spec), lost="lost")
    assert "follows nothing, or has stopped" in said(found, "replica copy", "warn")
    assert "cannot be asked: nobody listens there" in said(found, "replica lost", "fail")


def test_a_replica_that_follows_tells_how_far_behind_it_is(
    make_small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC.replace("connection: target}", "connection: target, replicas: [copy]}")
    monkeypatch.setattr(SqliteStore, "replica_lag", lambda store: 7.0)
    assert said(findings(make_small(spec=spec)), "replica copy", "pass") == "is 7 s behind the target"


# Stores


def test_a_file_whose_readers_would_block_fails(small: Small) -> None:
    """The store asks for WAL by itself: somebody took it back."""
    (words,) = small.source.run("PRAGMA journal_mode = DELETE")
    assert words == (b"delete",)
    found = {f.where: (f.level, f.message) for f in small.source.inspect()}
    assert found["journal_mode"] == ("fail", "is delete; readers would block: PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("place", ["source.db", ""], ids=["file", "folder"])
def test_a_file_that_the_copier_may_not_write_fails(small: Small, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """As the system answers any account but root's."""
    kept, real = small.folder / place, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK if path == kept else real(path, mode))
    words = "the copier may not write source.db or its folder: chmod u+w both"
    assert said(findings(small), "source: privilege write", "fail").startswith(words)
    assert bool(said(findings(small), "target: privilege write")) == (place == "")


def test_a_file_knows_its_size(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    store = SqliteStore(lambda: connect(str(path)))
    try:
        assert not [f for f in store.inspect() if f.level == "fail"]
        used = store.disk()
        assert used is not None and used[0] >= path.stat().st_size and used[1] > 0
    finally:
        store.close()


GRANTS = """
GRANT SELECT, INSERT, PROCESS ON *.* TO `copier`@`%`
GRANT BINLOG_ADMIN ON *.* TO `copier`@`%`
REVOKE INSERT ON `shop_new`.* FROM `copier`@`%`
GRANT TRIGGER, LOCK TABLES ON `shop\\_new`.* TO `copier`@`%`
GRANT CREATE ON `shop%`.* TO `copier`@`%`
GRANT DROP ON `shop\\_old`.* TO `copier`@`%`
GRANT SELECT (`a`, `b, c`), UPDATE ON `shop_new`.`item` TO `copier`@`%`
GRANT `reader`@`%` TO `copier`@`%`
"""


def test_grants_are_read_with_patterns_single_tables_and_partial_revokes() -> None:
    """Of which the last needs a setting of the whole server."""

    def run(sql: str, _: Sequence[object] = ()) -> list[tuple[bytes]]:
        return [(b"shop_new",)] if "DATABASE()" in sql else [(line.encode(),) for line in GRANTS.split("\n") if line]

    everywhere, here, single = privileges(run)
    assert everywhere == {"SELECT", "PROCESS", "BINLOG_ADMIN"}
    assert here == {"TRIGGER", "LOCK TABLES", "CREATE"}
    assert single == {"SELECT", "UPDATE"}


# Of an Oracle's dictionary


Dictionary = dict[str, list[tuple[bytes, ...]] | None]


def asked(dictionary: Dictionary) -> oracle_schema.Run:
    """Answers what is asked of each view; of None, that it is not the copier's to read."""

    def run(sql: str, _: Sequence[object] = ()) -> list[tuple[bytes, ...]]:
        found = next((rows for words, rows in dictionary.items() if words in sql), [])
        if found is None:
            raise FatalError("ORA-00942: table or view does not exist")
        return found

    return run


@pytest.mark.parametrize(
    ("dictionary", "level", "words"),
    [
        ({"dba_sys_privs": [(b"1",)]}, "pass", "unlimited in every tablespace"),
        ({"dba_users": [(b"USERS", b"70", b"-1")]}, "pass", "unlimited in USERS"),
        ({"dba_users": [(b"USERS", b"70", b"1000")]}, "pass", "930 bytes are left of 1,000 in USERS"),
        ({"dba_users": [(b"USERS", b"1000", b"1000")]}, "fail", "SHOP may use no more of USERS: ALTER USER SHOP QUOTA"),
        ({"dba_users": [(b"USERS", b"0", b"0")]}, "fail", "QUOTA UNLIMITED ON USERS"),
        ({"dba_sys_privs": None}, "warn", "cannot be seen: see that SHOP may grow, or GRANT SELECT ANY DICTIONARY"),
        ({"dba_users": None}, "warn", "cannot be seen: see that SHOP may grow"),
    ],
)
def test_a_schema_that_cannot_grow_is_told(dictionary: Dictionary, level: str, words: str) -> None:
    found = oracle_schema._quota(asked(dictionary), "SHOP")
    assert (found.where, found.level) == ("tablespace quota", level) and words in found.message


def test_a_table_whose_truncation_nobody_would_notice_is_told() -> None:
    (found,) = oracle_schema._unseen(asked({"iot_type = 'IOT'": [(b"CODES",)]}))
    assert found == Finding(
        level="warn", where="codes", message="is index-organized: a TRUNCATE of it would not be noticed"
    )
