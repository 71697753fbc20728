"""A copier, or a server, of which nothing is heard any more: nobody waits for it without an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from fishladder import silence, tasks
from fishladder.errors import AmbiguousError, TransientError
from fishladder.ledger import open_ledger
from fishladder.operate import Order
from fishladder.stores import connect_url, open_application, open_store
from fishladder.stores import mysql as store
from fishladder.stores.mysql import MySqlStore
from tests import ledgers
from tests.scenario.migration import DEADLINE, Billing, again, until
from tests.scenario.proxy import COMMIT, Proxy, in_turn, saying
from tests.servers import mysql


def opened(url: str) -> MySqlStore:
    found = open_store(*connect_url(url))
    assert isinstance(found, MySqlStore)
    return found


@pytest.fixture
def two(mysql_database: mysql.Database) -> Iterator[tuple[MySqlStore, MySqlStore]]:
    with closing(opened(mysql_database.copier)) as one, closing(opened(mysql_database.copier)) as other:
        one.install_tables()
        yield one, other


def session(of: MySqlStore, url: str) -> list[tuple[object, ...]]:
    """The session that writes, if the server still has it."""
    assert of._writing is not None
    with closing(mysql.connect(url)) as connection, closing(connection.cursor()) as cursor:
        sql = "SELECT processlist_id FROM performance_schema.threads WHERE processlist_id = %s"
        cursor.execute(sql, (of._writing.thread_id(),))
        return list(cursor.fetchall())


def test_a_writer_may_stand_still_for_minutes_and_a_reader_for_hours(two: tuple[MySqlStore, MySqlStore]) -> None:
    one, _ = two
    ((usual,),) = one.run("SELECT @@global.wait_timeout")
    assert one.run("SELECT @@wait_timeout") == [(usual,)]
    with one.begin() as copy:
        assert copy.run("SELECT @@wait_timeout", []) == [(str(store.IDLE_SECONDS).encode(),)]
    assert 60 <= store.IDLE_SECONDS < int(usual)


def test_a_transaction_that_stands_still_is_ended(
    two: tuple[MySqlStore, MySqlStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has its locks then; it finds out itself, and goes on with a session of its own."""
    monkeypatch.setattr(store, "IDLE_SECONDS", 2)
    one, other = two
    with one.begin() as copy:
        copy.lock_shards([1])
        with other.begin() as waiting:
            waiting.lock_shards([1])
        with pytest.raises(TransientError):
            copy.lock_shards([2])
    with one.begin() as copy:
        copy.lock_shards([1])
        copy.commit()


def test_a_session_that_nobody_used_is_not_used_again(
    two: tuple[MySqlStore, MySqlStore], mysql_database: mysql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that was paused finds the server's end of its session closed, and has no failure of it."""
    monkeypatch.setattr(store, "IDLE_SECONDS", 1)
    one, _ = two
    with one.begin() as copy:
        copy.commit()
    until(lambda: not session(one, mysql_database.admin), "the end of a session that does nothing")
    with one.begin() as copy:
        copy.lock_shards([1])
        copy.commit()


def test_who_waits_in_vain_is_told_for_whom(two: tuple[MySqlStore, MySqlStore], mysql_database: mysql.Database) -> None:
    one, other = two
    with one.begin() as copy:
        copy.lock_shards([1])
        assert one._writing is not None
        who = rf"1205.*session {one._writing.thread_id()} of ({one.account()}|\?)"
        with other.begin(wait=1) as waiting, pytest.raises(TransientError, match=who):
            waiting.lock_shards([1])


def test_triggers_are_installed_by_a_session_that_may_not_stand_still(two: tuple[MySqlStore, MySqlStore]) -> None:
    """Customers wait while it has the table; afterwards it may again."""
    one, _ = two
    one.run("CREATE TABLE seen (seconds BIGINT)")
    one._alone_with(["seen"], ["INSERT INTO seen VALUES (@@wait_timeout)"])
    assert one.run("SELECT seconds FROM seen") == [(str(store.ALONE_SECONDS).encode(),)]
    assert one.run("SELECT @@wait_timeout = @@global.wait_timeout") == [(b"1",)]


def test_a_lane_that_hangs_in_a_chunk_loses_it(loaded: Billing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server ends its session; whoever was repeated meanwhile loads the chunk."""
    monkeypatch.setattr(store, "IDLE_SECONDS", 5)
    tasks.operate(loaded.desk(), Order(action="restart tables", tables=("payment",)), actor="test")
    tasks.cut(loaded.desk())
    reached, released = threading.Event(), threading.Event()
    stands_at = in_turn(saying(b"INTO TABLE `payment`"), COMMIT)

    def hold(connection: int, packet: bytes) -> bool:
        if stands_at(connection, packet):
            reached.set()
            released.wait(DEADLINE)
        return False

    with Proxy(loaded.target.copier) as proxy, ThreadPoolExecutor(1) as pool:
        proxy.cut(hold)
        loaded.by_way_of(target=proxy.url)
        lane = pool.submit(tasks.load_table, loaded.desk(), "payment", "1")
        try:
            assert reached.wait(DEADLINE)
            loaded.by_way_of(target=loaded.target.copier)
            again(lambda: loaded.load("payment"))
            assert loaded.problems() == []
        finally:
            released.set()
        with pytest.raises((TransientError, AmbiguousError)):
            lane.result()
    loaded.ends_equal()


@pytest.mark.parametrize("dropped", [True, False], ids=["the network", "the server"])
def test_a_connection_falls_silent(loaded: Billing, dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a batch. The applier gives it up and goes on by itself, and so does the server."""
    monkeypatch.setattr(store, "IDLE_SECONDS", 2)
    if dropped:
        for name, seconds in (("ASK_AFTER", 1), ("ASK_EVERY", 1), ("ASK_TIMES", 2)):
            monkeypatch.setattr(silence, name, seconds)
    else:
        monkeypatch.setitem(store.PATIENCE, "read_timeout", 3)
    loaded.customers(1).run(operations=20)
    for side, words in (("target", b"INSERT INTO `invoice`"), ("source", b"FROM `invoice` t")):
        with Proxy(getattr(loaded, side).copier) as proxy:
            loaded.by_way_of(**{side: proxy.url})
            proxy.silence(saying(words), dropped=dropped)
            assert loaded.follow() >= 1
            assert not proxy.spare()
            loaded.by_way_of(**{side: getattr(loaded, side).copier})
        assert loaded.problems() == []
        loaded.customers(2).run(operations=20)
    loaded.ends_equal()


def test_a_ledger_falls_silent(mysql_database: mysql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A customer's call finds that out soon, whether an answer is missing or what it sends is not even taken."""
    monkeypatch.setattr(silence, "SOON", 2)
    ledgers.create(mysql_database.copier)
    with Proxy(mysql_database.copier) as proxy, open_ledger(proxy.url, migration="silent") as ledger:
        ledger.ensure_routes(["NZ"], "ada")
        proxy.drop()
        assert ledger.route("NZ").stage == "off"  # on another connection
        proxy.silence(saying(b"ledger_route"), dropped=True)
        with pytest.raises(TransientError, match="lost"):
            ledger.route("NZ")
        assert ledger.route("NZ").stage == "off"


def test_an_application_falls_silent(
    two: tuple[MySqlStore, MySqlStore], mysql_database: mysql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever calls next takes a connection of the pool, hears of it soon, and then gets a new one."""
    monkeypatch.setattr(silence, "SOON", 2)
    with Proxy(mysql_database.admin) as proxy, closing(open_application(*connect_url(proxy.url))) as store:
        with store.transaction() as session:
            assert session.home(b"0:") is None
        proxy.drop()
        with pytest.raises(TransientError), store.transaction() as session:
            session.home(b"0:")
        with store.transaction() as session:
            assert session.home(b"0:") is None
