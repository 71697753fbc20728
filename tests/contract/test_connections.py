"""Connections that end: nothing half-done is taken for done, and the next call works again."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fishladder.errors import AmbiguousError, FatalError, TransientError
from fishladder.ledger import open_ledger
from fishladder.serving import Operations, Router
from fishladder.stores import connect_url, open_application, open_store
from tests import ledgers
from tests.contract.shop import Shop, key
from tests.contract.stores import PATIENCE


def kill(shop: Shop, connection: Any) -> None:
    kill = (
        f"ALTER SYSTEM KILL SESSION '{connection.session_id},{connection.serial_num}'"
        if (shop.place.kind == "oracle")
        else f"KILL {connection.thread_id()}"
    )
    shop.place.administrator().execute(kill)


def test_a_reader_whose_connection_ends(shop: Shop) -> None:
    shop.place.needs("connection")
    for call in (
        shop.store.fences,
        lambda: shop.store.query("SELECT count(*) FROM plan", {}),
        lambda: shop.store.count(shop.relation("plan")),
    ):
        kill(shop, shop.store.connection())
        with pytest.raises(TransientError):
            call()
        assert call()
    with shop.store.read() as reader:
        kill(shop, shop.store.connection())
        with pytest.raises(TransientError):
            reader.homes([key(1)])
        assert reader.homes([key(1)]) == {key(1): "NZ"}


def test_a_connection_that_the_driver_closed(shop: Shop) -> None:
    shop.place.needs("connection")
    shop.store.connection().close()
    with pytest.raises(TransientError):
        shop.store.fences()
    assert shop.store.fences()


def test_a_transaction_whose_connection_ends(shop: Shop) -> None:
    shop.place.needs("connection")
    subscriptions = shop.relation("subscription")
    with shop.store.begin() as transaction:
        transaction.delete(subscriptions, [key(1)])
        kill(shop, transaction.connection)
        with pytest.raises(TransientError):
            transaction.lock_shards([1])
    with shop.store.begin() as transaction:
        assert key(1) in transaction.rows_by_key(subscriptions, [key(1)])
        transaction.commit()
        idle = transaction.connection
    kill(shop, idle)
    with pytest.raises(TransientError), shop.store.begin():
        pytest.fail("the connection is gone, and nobody noticed")
    with shop.store.begin() as transaction:
        transaction.lock_shards([1])


def test_a_router_whose_connections_end(shop: Shop, tmp_path: Path) -> None:
    """It has several by then. A customer whom it has not met notices nothing, nor one whom it has met."""
    shop.place.needs("connection")
    ledgers.create(url := f"sqlite:///{tmp_path}/ledger.db")
    with (
        open_ledger(url, migration="billing") as ledger,
        closing(open_application(*connect_url(shop.place.application))) as store,
    ):
        ledger.ensure_routes(["NZ", "AU"], "test")
        operations = Operations()
        operations.add("look", lambda connection, payload: 1)
        router = Router(ledger, operations, source=store, target=store, patience=PATIENCE)

        def end_all() -> None:
            with ExitStack() as stack:
                sessions = [stack.enter_context(store.transaction()) for _ in range(3)]
                for session in sessions:
                    session.fence("NZ", hold=False)
                    session.commit()
            for session in sessions:
                kill(shop, session.connection)

        for entities in ((1,), (1,), (2, 1)):
            end_all()
            for entity in entities:
                assert router.write("look", {}, key=secrets.token_hex(8), entity=entity).state == "done"
                assert router.read("look", {}, entity=entity).value == 1
        end_all()
        with pytest.raises(TransientError), store.transaction() as session:
            session.home(key(1))
        with store.transaction() as session:  # the other two were given up, too
            assert session.home(key(1)) == "NZ"


def test_a_routers_connection_asks_whether_the_other_end_is_there(shop: Shop) -> None:
    if shop.place.kind != "mysql":
        pytest.skip("a file has no connection, and Oracle's driver asks by itself")
    with (
        closing(open_application(*connect_url(shop.place.application))) as store,
        store.transaction() as session,
        socket.socket(fileno=os.dup(session.connection.fileno())) as end,
    ):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_schema_told_as_airflow_tells_it_leaves_transactions_whole(shop: Shop) -> None:
    """By the driver's own word, which it sends along with calls (OracleHook): the emulator took it for DDL."""
    if shop.place.kind != "oracle":
        pytest.skip("only Oracle's driver has one")
    kind, connect = connect_url(shop.place.copier)
    (schema,) = parse_qs(urlsplit(shop.place.copier).query)["schema"]

    def hooked() -> Any:
        connection = connect()
        connection.current_schema = schema
        return connection

    store, subscriptions = open_store(kind, hooked), shop.relation("subscription")
    with closing(store), store.begin() as transaction:
        transaction.delete(subscriptions, [key(1)])
        assert key(1) not in transaction.rows_by_key(subscriptions, [key(1)])
    with shop.store.read() as reader:
        assert key(1) in reader.rows_by_key(subscriptions, [key(1)])


def test_a_commit_whose_connection_ends_is_ambiguous(shop: Shop) -> None:
    shop.place.needs("connection")
    with shop.store.begin() as transaction:
        transaction.delete(shop.relation("fishladder_home"), [key("1:1")])
        kill(shop, transaction.connection)
        with pytest.raises(AmbiguousError):
            transaction.commit()
    assert shop.homes(1) == {1: "NZ"}


def test_a_lock_that_does_not_come_is_transient(shop: Shop) -> None:
    shop.place.needs("row locks")
    other = shop.place.open()
    with shop.store.begin(wait=1) as one, other.begin(wait=1) as two:
        one.lock_shards([1])
        two.lock_shards([2])
        with pytest.raises(TransientError):  # after a second
            two.lock_shards([1])
    with shop.store.begin(wait=0) as one:
        one.lock_shards([1, 2])


def test_a_server_that_is_not_there(shop: Shop) -> None:
    shop.place.needs("connection")
    from fishladder.stores.mysql import connect

    nobody = open_store("mysql", lambda: connect(host="127.0.0.1", port=1, user="u", passwd="secret", db="d"))
    with pytest.raises(TransientError) as caught:
        nobody.describe()
    assert "secret" not in str(caught.value)


def test_a_store_that_was_closed_opens_again(shop: Shop) -> None:
    shop.store.close()
    assert shop.store.fences()
    shop.store.close()
    with shop.store.begin() as transaction:
        assert transaction.homes([key(1)])
    shop.store.close()
    shop.store.close()


def test_a_statement_that_is_wrong_is_fatal(shop: Shop) -> None:
    with pytest.raises(FatalError):
        shop.store.query("SELECT nothing FROM nowhere", {})
    assert shop.store.fences()


_COPY = """
import os, signal, sys
from fishladder.stores import connect_url, open_store
store = open_store(*connect_url(sys.argv[1]))
with store.begin() as transaction:
    transaction.run("UPDATE fishladder_fence SET epoch = 99", [])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_copier_that_dies_leaves_nothing(shop: Shop) -> None:
    died = subprocess.run(
        [sys.executable, "-c", _COPY, shop.place.copier],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert {fence.epoch for fence in shop.store.fences().values()} == {1}
    shop.user.execute("UPDATE customer SET name = 'x' WHERE id = 1")
    assert len(shop.journal()) == 1  # nor the mark that would hide the application's writes
