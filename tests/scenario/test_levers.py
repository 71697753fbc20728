"""An operator's levers, pulled while lanes and the applier are at work: what each does is counted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing import schema
from fishladder import tasks
from fishladder.errors import InputError
from fishladder.operate import Order
from fishladder_airflow.operators import FORM, _order
from tests.scenario.migration import DEADLINE, Billing, migration, until
from tests.servers import mysql

LANES = ("1", "2")
LOADED = ("fishladder_home", "fishladder_applied", "plan", "customer", "subscription")
"""Whose load ends before the levers are pulled that the applier obeys."""
ODD = "born_on IS NOT NULL AND DAY(born_on) = 7"
"""Customers that the target refuses for a while."""


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


def at_invoices(billing: Billing) -> list[subprocess.Popen[bytes]]:
    """Two lanes, each with a chunk of invoices done and ten seconds to wait; what comes before invoices is loaded."""
    billing.prepare()
    billing.load(*LOADED)
    pull(billing, action="throttle", rows_per_second=10)
    lanes = [billing.worker("lane", lane) for lane in LANES]
    until(lambda: all(f"invoice lane {lane}: chunk" in billing.worker_log() for lane in LANES), "both at invoices")
    return lanes


def both_say(billing: Billing, lanes: list[subprocess.Popen[bytes]], words: str, times: int = 1) -> None:
    """Until each lane has said so as often; none has ended."""
    until(lambda: billing.worker_log().count(words) >= times * len(LANES) or not waiting(lanes), words)
    assert waiting(lanes), billing.worker_log()


HALTS = "waiting: the target runs more"


def test_a_busy_target_is_left_alone(billing: Billing) -> None:
    """By lanes that run already, until the limit is lifted; then, by the same limit, until it is busy no more."""
    lanes = at_invoices(billing)
    with busy(billing, 8):
        pull(billing, action="throttle", running_threads=8)
        both_say(billing, lanes, HALTS)
        stopped = chunks(billing)
        pull(billing, action="throttle", rows_per_second=0)
        both_say(billing, lanes, "no limit of rows")  # when it looks again
        pull(billing, action="throttle", rows_per_second=100)
        both_say(billing, lanes, "at most 100 rows")  # and again
        assert (billing.worker_log().count(HALTS), chunks(billing)) == (len(LANES), stopped)
        pull(billing, action="throttle", running_threads=0, rows_per_second=50)
        both_say(billing, lanes, "at most 50 rows")
        pull(billing, action="throttle", running_threads=8)
        both_say(billing, lanes, HALTS, times=2)
        assert chunks(billing) >= stopped + len(LANES)
    pull(billing, action="throttle", rows_per_second=0)
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


INVOICES = ("invoice", "invoice_line", "payment")
"""A table and whatever refers to it."""


def held(billing: Billing, *tables: str) -> list[int]:
    """Rows that the target has of each of these."""
    return [billing.rows("target", f"SELECT count(*) FROM {table}")[0][0] for table in tables]


def test_a_table_is_restarted_while_lanes_load_it_and_customers_are_at_work(billing: Billing) -> None:
    """Its lanes lose it and end; what comes next loads it from the beginning, and nothing else again."""
    lanes = at_invoices(billing)
    with billing.traffic(rate=20) as customers, ThreadPoolExecutor(1) as pool:
        until(lambda: customers.acknowledged.total() > 5, "customers")
        with pytest.raises(InputError, match="restart invoice, invoice_line, payment together"):
            pull(billing, action="restart tables", tables=("invoice",))
        kept = held(billing, *LOADED)
        assert held(billing, "invoice") > [0] and waiting(lanes)
        restart = pool.submit(pull, billing, action="restart tables", tables=INVOICES)
        until(lambda: billing.desk().ledger.table_state("invoice").phase == "cleaning", "the restart")
        pull(billing, action="throttle", rows_per_second=0)
        assert restart.result() == {"tables": len(INVOICES)}
        assert [lane.wait(DEADLINE) for lane in lanes] == [1, 1] and "StaleError" in billing.worker_log()
        assert (held(billing, *INVOICES), held(billing, *LOADED)) == ([0, 0, 0], kept)
        billing.load(*INVOICES)
        assert min(held(billing, *INVOICES)) > 100
    assert not customers.failed and not customers.refused and not customers.unknown
    ended(billing, [])
    events = billing.desk().ledger.events()
    restarts = [(event.actor, event.body) for event in events if event.event == "table restarted"]
    assert sorted(restarts, key=str) == [("ada", {"table": table, "generation": 2}) for table in INVOICES]


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


@pytest.fixture
def crowded(mysql_server: str, tmp_path: Path) -> Iterator[Billing]:
    """With rows for minutes, if the lanes are slow."""
    with migration(tmp_path, mysql_server, mysql_server, customers=600) as made:
        yield made


def under_way(billing: Billing) -> list[subprocess.Popen[bytes]]:
    """Two lanes and the applier at work, slowly; some tables are followed already, and some customers are rejected."""
    billing.prepare()
    billing.rows("target", f"ALTER TABLE customer ADD CONSTRAINT odd CHECK (NOT ({ODD}))")
    billing.load(*LOADED)
    pull(billing, action="throttle", rows_per_second=40)
    lanes = [billing.worker("lane", lane) for lane in LANES]
    billing.worker("applier", "600")
    until(lambda: billing.desk().ledger.progress("invoice").done > 0, "a chunk of invoices")
    return lanes


FOLLOWED = f"FROM fishladder_journal WHERE table_name IN {LOADED}"


def followed(billing: Billing) -> int:
    """Entries of the source's journal that the applier may take: of the other tables it takes none yet."""
    return int(billing.rows("source", f"SELECT count(*) {FOLLOWED}")[0][0])


def oldest(billing: Billing) -> int | None:
    ((entry,),) = billing.rows("source", f"SELECT min(id) {FOLLOWED}")
    return entry


def newest(billing: Billing) -> int:
    ((entry,),) = billing.rows("source", f"SELECT max(id) {FOLLOWED}")
    return int(entry)


def stands(billing: Billing) -> bool:
    """Whether the applier has taken nothing for a second, though there is something to take."""
    before = oldest(billing)
    time.sleep(1.0)
    return before is not None and oldest(billing) == before


def copied(billing: Billing) -> list[tuple[Any, ...]]:
    """What the target has, of all tables."""
    return billing.rows("target", f"CHECKSUM TABLE {', '.join(schema.TABLES)}")


def doings(billing: Billing, since: int) -> list[tuple[str, str]]:
    """Each event after the first ``since`` ones that no machine did, and who did it."""
    events = sorted(billing.desk().ledger.events(limit=10_000), key=lambda event: event.sequence)[since:]
    return [(event.actor, event.event) for event in events if event.actor != "fishladder"]


@pytest.mark.slow
def test_levers_in_the_middle_of_a_load_with_customers_at_work(crowded: Billing, tmp_path: Path) -> None:
    lanes = under_way(crowded)
    with crowded.traffic(rate=20) as customers:
        pull_each(crowded, lanes, tmp_path / "keys.csv")
    assert customers.acknowledged.total() > 100
    assert not customers.failed and not customers.refused and not customers.unknown
    pull(crowded, action="throttle", rows_per_second=0)
    ended(crowded, lanes)


def pull_each(billing: Billing, lanes: list[subprocess.Popen[bytes]], listed: Path) -> None:
    """Each is proved by what the stores have before the load is over. ``listed``: a file to write keys into."""
    ledger = billing.desk().ledger
    began = len(ledger.events(limit=10_000))

    # Pause: nothing is applied while the source's journal grows.
    pull(billing, action="pause")
    until(lambda: billing.worker_log().count("paused; it goes on") == len(LANES), "both lanes to say so")
    until(lambda: stands(billing), "the applier to stand still")
    before, kept = copied(billing), followed(billing)
    until(lambda: followed(billing) >= kept + 40, "customers to change more")
    assert copied(billing) == before

    # Retry rejects: after the cause is mended, and not before the pause is over.
    rejected = ledger.count_rejects(table="customer")
    assert rejected >= 5
    billing.rows("target", "ALTER TABLE customer DROP CHECK odd")
    billing.prepare()
    assert pull(billing, action="retry rejects", tables=("plan",)) == {"rejects": 0}
    assert pull(billing, action="retry rejects", tables=("customer",)) == {"rejects": rejected}
    assert ledger.count_rejects() == rejected
    assert billing.rows("target", f"SELECT count(*) FROM customer WHERE {ODD}") == [(0,)]
    pull(billing, action="resume")
    until(lambda: ledger.count_rejects() == 0, "the rejects to be closed")
    assert billing.rows("target", f"SELECT count(*) FROM customer WHERE {ODD}")[0][0] >= rejected - 2
    assert loading(billing, lanes)

    # Rewrite an entity
    ((customer, subscriptions),) = billing.rows(
        "source", "SELECT customer_id, count(*) FROM subscription GROUP BY customer_id ORDER BY customer_id LIMIT 1"
    )
    billing.damage(f"UPDATE customer SET note = 'damaged' WHERE id = {customer}")
    billing.damage(f"DELETE FROM subscription WHERE customer_id = {customer}")
    invoices = billing.rows("source", f"SELECT count(*) FROM invoice WHERE customer_id = {customer}")[0][0]
    marked = pull(billing, action="rewrite entities", entities=(str(customer),))["keys"]
    assert marked >= 1 + subscriptions + invoices
    wrong = (
        f"SELECT (SELECT count(*) FROM customer WHERE id = {customer} AND note = 'damaged'),"
        f" (SELECT count(*) FROM subscription WHERE customer_id = {customer}) < {subscriptions}"
    )
    until(lambda: billing.rows("target", wrong) == [(0, 0)], "the customer to be written again")
    assert loading(billing, lanes)

    # Mark keys dirty, from a file as another program writes it
    plans = [key for (key,) in billing.rows("source", "SELECT id FROM plan")]
    billing.damage("UPDATE plan SET code = concat('x-', code)")
    listed.write_text("".join(f"plan,{key}\r\n" for key in plans), encoding="utf-8-sig", newline="")
    form = dict.fromkeys(FORM) | {"action": "mark keys dirty", "keys_file": str(listed)}
    assert tasks.operate(billing.desk(), _order(form), actor="ada") == {"keys": len(plans)}
    until(
        lambda: billing.rows("target", "SELECT count(*) FROM plan WHERE code LIKE 'x-%'") == [(0,)], "the plans' codes"
    )
    assert loading(billing, lanes)

    # Throttle: at a row per second nothing follows the next batch for as many seconds as it has entries, until the
    # limit is lifted, which is felt within two.
    pull(billing, action="pause")
    until(lambda: followed(billing) >= 40, "a batch that is large enough")
    last = newest(billing)
    pull(billing, action="throttle", rows_per_second=1)
    pull(billing, action="resume")
    until(lambda: (oldest(billing) or 0) > last, "this batch")
    behind = oldest(billing)
    until(lambda: followed(billing) >= 40, "the applier to fall behind")
    assert oldest(billing) == behind
    pull(billing, action="throttle", rows_per_second=200)
    lifted = time.monotonic()
    until(lambda: oldest(billing) != behind, "the applier to go on")
    assert time.monotonic() - lifted < 5
    until(lambda: followed(billing) < 20, "the applier to catch up")
    assert loading(billing, lanes)

    assert [event for actor, event in doings(billing, began) if actor == "ada"] == [
        *("control changed", "rejects retried", "control changed", "keys marked dirty", "keys marked dirty"),
        *("control changed", "control changed", "control changed", "control changed"),
    ]


def loading(billing: Billing, lanes: list[subprocess.Popen[bytes]]) -> bool:
    """Whether both lanes are still at work on chunks."""
    progress = [billing.desk().ledger.progress(table) for table in schema.TABLES]
    return waiting(lanes) and sum(each.done for each in progress) < sum(each.chunks for each in progress)
