"""The same work done twice: by two runs at once, or by a process that was taken for dead and wakes up late."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fishladder import tasks
from fishladder.cells import key_text
from fishladder.ledger import Reject
from fishladder.operate import Order
from tests.scenario.migration import DEADLINE, Billing, until
from tests.scenario.proxy import COMMIT, At, Proxy, in_turn, saying


def restart(billing: Billing) -> None:
    """The payments are gone from the target, and to be loaded again."""
    tasks.operate(billing.desk(), Order(action="restart tables", tables=("payment",)), actor="test")


def test_the_same_load_twice_at_once(loaded: Billing) -> None:
    """Two runs of all lanes, with customers at work."""
    restart(loaded)
    with loaded.traffic(rate=15):
        lanes = [loaded.worker("lane", lane) for lane in ("1", "2", "1", "2")]
        for lane in lanes:
            assert lane.wait(DEADLINE) == 0, loaded.worker_log()
        tasks.close_table(loaded.desk(), "payment")
    loaded.ends_equal()


def at_once(billing: Billing, *work: str) -> None:
    """Two processes begin the same work in the same moment. Both do it, or one says why not, and does it afterwards."""
    for file in (*billing.folder.glob("here.*"), billing.folder / "begin", billing.folder / "worker.log"):
        file.unlink(missing_ok=True)
    both = [billing.worker("together", *work) for _ in range(2)]
    until(lambda: len(list(billing.folder.glob("here.*"))) == 2, "both")
    (billing.folder / "begin").touch()
    codes = sorted(process.wait(DEADLINE) for process in both)
    assert codes in ([0, 0], [0, 1]), billing.worker_log()
    if 1 in codes:
        assert re.search(r"^fishladder\.errors\.(?!Fatal)\w+Error: \w+", billing.worker_log(), re.M), (
            billing.worker_log()
        )
        assert billing.worker(*work).wait(DEADLINE) == 0, billing.worker_log()


@pytest.mark.slow
def test_the_first_prepare_twice_at_once(billing: Billing) -> None:
    """Both would create the target's tables."""
    with billing.traffic(rate=15) as summary:
        at_once(billing, "prepare")
        billing.load()
    assert not summary.failed and not summary.refused
    billing.ends_equal()


def test_prepare_twice_at_once(loaded: Billing) -> None:
    """It runs again for a migration under way, with customers at work."""
    with loaded.traffic(rate=15) as summary:
        at_once(loaded, "prepare")
    assert not summary.failed and not summary.refused
    loaded.ends_equal()


@pytest.mark.slow
def test_every_reconciliation_twice_at_once(loaded: Billing) -> None:
    """What both find is repaired."""
    loaded.damage("DELETE FROM payment WHERE id % 7 = 0")
    loaded.damage("UPDATE customer SET name = 'mad' WHERE id % 7 = 1")
    with loaded.traffic(rate=15) as summary:
        at_once(loaded, "reconcile")
    assert not summary.failed and not summary.refused
    loaded.ends_equal()


@pytest.mark.parametrize("order", [("restart tables", "payment"), ("retry rejects",)], ids=lambda order: order[0])
def test_an_order_twice_at_once(loaded: Billing, order: tuple[str, ...]) -> None:
    (key,) = loaded.rows("source", "SELECT min(id) FROM payment")[0]
    reject = Reject(table="payment", key=key_text([b"%d" % key]), entity=None, cohort="NZ", column=None, error="late")
    loaded.desk().ledger.record_rejects([reject])
    with loaded.traffic(rate=15) as summary:
        at_once(loaded, *order)
        loaded.load("payment")
    assert not summary.failed and not summary.refused
    loaded.ends_equal()


@pytest.mark.slow
def test_two_appliers_at_once(loaded: Billing) -> None:
    with loaded.traffic() as summary:
        appliers = [loaded.worker("applier", "600") for _ in range(2)]
        loaded.await_changes(300)
    assert not summary.failed and not summary.refused
    assert [applier.poll() for applier in appliers] == [None, None], loaded.worker_log()
    loaded.follow()  # a third one
    for applier in appliers:
        applier.kill()
        applier.wait()
    loaded.ends_equal()


class Sleeper:
    """A lane that stops on its way, at the packet to the target that a test names."""

    def __init__(self, billing: Billing, proxy: Proxy, at: At) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        self.billing = billing

        def hold(connection: int, packet: bytes) -> bool:
            if at(connection, packet):
                self.reached.set()
                self.released.wait(DEADLINE)
                proxy.spare()
            return False

        proxy.cut(hold)
        billing.by_way_of(target=proxy.url)
        self.process: subprocess.Popen[bytes] = billing.worker("lane", "1")
        billing.by_way_of(target=billing.target.copier)  # all others
        assert self.reached.wait(DEADLINE), billing.worker_log()
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> int:
        self.released.set()
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(DEADLINE)


@pytest.fixture
def proxy(loaded: Billing) -> Iterator[Proxy]:
    with Proxy(loaded.target.copier) as found:
        yield found


BEFORE_A_CHUNK = saying(b"UPDATE fishladder_chunk SET done = 0")


def in_a_chunk() -> At:
    """Its rows are there, and nobody sees them yet."""
    return in_turn(saying(b"INTO TABLE `payment`"), COMMIT)


def payments(billing: Billing) -> int:
    ((found,),) = billing.rows("target", "SELECT count(*) FROM payment")
    return int(found)


@pytest.mark.slow
def test_it_sleeps_before_a_chunk_and_another_loads_the_table(loaded: Billing, proxy: Proxy) -> None:
    restart(loaded)
    sleeper = Sleeper(loaded, proxy, BEFORE_A_CHUNK)
    loaded.load("payment")
    assert loaded.problems() == []
    loaded.customers(1).run(operations=100)
    sleeper.wake()
    loaded.ends_equal()


def test_it_sleeps_before_a_chunk_and_the_table_is_restarted(loaded: Billing, proxy: Proxy) -> None:
    """Its token belongs to a generation that is over: it writes nothing into the one that is there."""
    restart(loaded)
    sleeper = Sleeper(loaded, proxy, BEFORE_A_CHUNK)
    loaded.load("payment")
    restart(loaded)
    assert sleeper.wake() == 1
    assert "StaleError" in loaded.worker_log()
    assert payments(loaded) == 0
    loaded.load("payment")
    loaded.ends_equal()


def test_it_sleeps_in_a_chunk_and_is_cut_off(loaded: Billing, proxy: Proxy) -> None:
    """A transaction that stands still keeps others from its chunk, until somebody ends its session."""
    restart(loaded)
    sleeper = Sleeper(loaded, proxy, in_a_chunk())
    ((session,),) = loaded.rows(
        "target",
        "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx JOIN performance_schema.threads"
        f" ON processlist_id = trx_mysql_thread_id WHERE processlist_db = '{loaded.target.name}'",
    )
    loaded.rows("target", f"KILL {session}")
    loaded.load("payment")
    assert loaded.problems() == []
    loaded.customers(1).run(operations=100)
    assert sleeper.wake() == 1
    loaded.ends_equal()


@pytest.mark.slow
def test_it_sleeps_in_a_chunk_and_another_waits_for_it(loaded: Billing, proxy: Proxy) -> None:
    """It is still the one that has the chunk; whoever waited finds that done."""
    restart(loaded)
    sleeper = Sleeper(loaded, proxy, in_a_chunk())
    waiting = (
        "SELECT 1 FROM performance_schema.data_locks WHERE lock_status = 'WAITING' AND"
        f" object_name = 'fishladder_chunk' AND object_schema = '{loaded.target.name}'"
    )
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(loaded.load, "payment")
        until(lambda: bool(loaded.rows("target", waiting)), "the other one at the same chunk")
        assert payments(loaded) == 0
        sleeper.wake()
        other.result()
    loaded.ends_equal()


@pytest.mark.slow
def test_it_sleeps_after_a_commit(loaded: Billing, proxy: Proxy) -> None:
    """Another finds the chunk's rows there and goes on; what the sleeper then tells the ledger is old."""
    restart(loaded)
    sleeper = Sleeper(loaded, proxy, in_a_chunk())
    sleeper.released.set()  # the answer waits for it
    until(lambda: payments(loaded) > 0, "the commit")
    assert loaded.desk().ledger.progress("payment").done == 0
    loaded.load("payment")
    assert loaded.problems() == []
    loaded.customers(1).run(operations=100)
    sleeper.wake()
    loaded.ends_equal()
