"""An operator's levers, pulled while lanes and the applier are at work: what each does is counted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from billing import schema
from fishladder import tasks
from fishladder.operate import Order
from tests.scenario.migration import DEADLINE, Billing, until
from tests.servers import mysql

LANES = ("1", "2")


def pull(billing: Billing, **words: object) -> dict[str, int]:
    return tasks.operate(billing.desk(), Order(**words), actor="ada")  # type: ignore[arg-type]


def chunks(billing: Billing) -> int:
    """How many chunks are loaded, those of fishladder's own tables among them."""
    return sum(table["done"] for table in tasks.status(billing.desk())["tables"].values())


def start(billing: Billing) -> list[subprocess.Popen[bytes]]:
    """Two lanes at work, a few chunks of many done."""
    billing.prepare()
    tasks.cut(billing.desk())
    lanes = [billing.worker("lane", lane) for lane in LANES]
    until(lambda: chunks(billing) > 2, "the first chunks")
    return lanes


def ended(billing: Billing, lanes: list[subprocess.Popen[bytes]]) -> None:
    for lane in lanes:
        assert lane.wait(DEADLINE) == 0, billing.worker_log()
    billing.load()  # closes the tables
    billing.ends_equal()


def loaded_rows(billing: Billing) -> int:
    at = billing.desk()
    return sum(at.ledger.progress(table).rows for table in schema.TABLES)


def there(billing: Billing) -> int:
    counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in schema.TABLES)
    ((found,),) = billing.rows("target", f"SELECT {counts}")
    return int(found)


def actors(billing: Billing) -> list[str]:
    """Who changed what all obey."""
    return [event.actor for event in billing.desk().ledger.events() if event.event == "control changed"]


def test_a_paused_lane_ends_the_chunk_it_is_in_and_a_rate_is_kept_from_the_next_one_on(billing: Billing) -> None:
    """At a row per second the next chunk of each lane is its last for minutes, until the rate is lifted."""
    billing.prepare()
    pull(billing, action="throttle", rows_per_second=400)
    lanes = start(billing)
    pull(billing, action="pause")
    before = chunks(billing)
    until(lambda: billing.worker_log().count("paused; it goes on") == len(LANES), "both lanes to say so")
    paused = chunks(billing)
    assert before <= paused <= before + len(LANES)
    assert there(billing) == loaded_rows(billing)
    pull(billing, action="throttle", rows_per_second=1)
    pull(billing, action="resume")
    until(lambda: chunks(billing) >= paused + len(LANES) or not waiting(lanes), "a chunk of each lane")
    assert waiting(lanes)
    assert chunks(billing) <= paused + 2 * len(LANES)  # the first may have been a small one
    pull(billing, action="throttle", rows_per_second=0)
    ended(billing, lanes)
    assert actors(billing) == ["ada"] * 5


def waiting(lanes: list[subprocess.Popen[bytes]]) -> bool:
    return all(lane.poll() is None for lane in lanes)


@contextmanager
def busy(billing: Billing, threads: int) -> Iterator[None]:
    """So many sessions of the target that run something."""
    running = "SELECT processlist_id FROM performance_schema.threads WHERE processlist_info = 'DO SLEEP(600)'"
    with ExitStack() as kept, ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            connection = kept.enter_context(closing(mysql.connect(billing.target.admin)))
            pool.submit(connection.cursor().execute, "DO SLEEP(600)")
        try:
            until(lambda: len(billing.rows("target", running)) == threads, "the busy sessions")
            yield
        finally:
            for (session,) in billing.rows("target", running):
                billing.rows("target", f"KILL {session}")


def test_a_busy_target_is_left_alone(billing: Billing) -> None:
    with busy(billing, 8):
        billing.prepare()
        pull(billing, action="throttle", running_threads=8)
        tasks.cut(billing.desk())
        lanes = [billing.worker("lane", lane) for lane in LANES]
        until(lambda: billing.worker_log().count("waiting: the target runs more") == len(LANES), "both lanes to wait")
        assert chunks(billing) == len(LANES)  # after the first of each
    ended(billing, lanes)


class Replica(mysql.MysqlServer):
    """A server of its own that follows another one from now on."""

    def follow(self, server: str) -> None:
        with closing(mysql.connect(server)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("CREATE USER IF NOT EXISTS replica@'%' IDENTIFIED BY 'replica'")
            cursor.execute("GRANT REPLICATION SLAVE ON *.* TO replica@'%'")
            cursor.execute("SHOW BINARY LOG STATUS")
            file, position = cursor.fetchall()[0][:2]
        self.run(
            "SET GLOBAL server_id = 2",
            # It reads all and writes nothing: other tests change the same server, in databases that it has not.
            "CHANGE REPLICATION FILTER REPLICATE_DO_DB = (fishladder_none)",
            f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {urlsplit(server).port},"
            " SOURCE_USER = 'replica', SOURCE_PASSWORD = 'replica', GET_SOURCE_PUBLIC_KEY = 1,"
            f" SOURCE_LOG_FILE = '{file}', SOURCE_LOG_POS = {position}",
            "START REPLICA",
        )

    def run(self, *statements: str) -> None:
        with closing(mysql.connect(self.start())) as connection, closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)


@pytest.fixture
def replica(mysql_server: str, tmp_path: Path) -> Iterator[Replica]:
    server = Replica(home=tmp_path / "replica" / "mysql")
    try:
        server.follow(mysql_server)
        yield server
    finally:
        server.stop()


@pytest.mark.slow
def test_a_replica_is_waited_for(replica: Replica, billing: Billing) -> None:
    text = billing.file.read_text()
    billing.file.write_text(
        text.replace("connection: billing_target}", "connection: billing_target, replicas: [billing_replica]}")
    )
    billing.environment["FISHLADDER_BILLING_REPLICA"] = f"{replica.start()}/mysql"
    billing.prepare()
    pull(billing, action="throttle", replica_lag=1)
    replica.run("STOP REPLICA")
    tasks.cut(billing.desk())
    lanes = [billing.worker("lane", lane) for lane in LANES]
    waits = "waiting: the replica billing_replica"
    until(lambda: billing.worker_log().count(f"{waits} does not follow") == len(LANES), "both lanes to wait")
    replica.run("CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 3600", "START REPLICA")
    until(lambda: billing.worker_log().count(f"{waits} is more than 1 s behind") == len(LANES), "the lag to be seen")
    assert chunks(billing) == len(LANES)  # after the first of each
    replica.run("STOP REPLICA", "CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 0", "START REPLICA")
    ended(billing, lanes)


def test_doubts_are_put_right_while_customers_are_at_work(loaded: Billing) -> None:
    ((customer,),) = loaded.rows("source", "SELECT min(id) FROM customer")
    items = f"SELECT id FROM invoice WHERE customer_id = {customer}"
    with loaded.traffic(rate=15):
        loaded.damage("UPDATE plan SET name = 'damaged'")
        plans = [f"plan,{key}" for (key,) in loaded.rows("source", "SELECT id FROM plan")]
        assert pull(loaded, action="mark keys dirty", keys=tuple(plans)) == {"keys": len(plans)}
        loaded.damage(f"UPDATE invoice SET status = 'void' WHERE customer_id = {customer}")
        found = pull(loaded, action="rewrite entities", entities=(str(customer),))["keys"]
        assert found >= 1 + len(loaded.rows("source", items))
        loaded.follow()
        assert loaded.rows("target", "SELECT count(*) FROM plan WHERE name = 'damaged'") == [(0,)]
    loaded.ends_equal()
