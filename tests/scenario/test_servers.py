"""Store servers in trouble: killed and started again, full, or with somebody else's locks in the way."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from billing.traffic import Summary
from fishladder import tasks
from fishladder.errors import AmbiguousError, FatalError, TransientError
from tests.conftest import not_tested
from tests.scenario.migration import Billing, migration, until
from tests.scenario.proxy import COMMIT, At, Proxy, in_turn, saying
from tests.servers import Unavailable, mysql

ONLY_MORE = {"sign_up": 2, "charge": 3, "buy_gift_card": 1}
"""What customers do while the source dies: what nobody knows the end of changes nothing that somebody was told."""


class Victim(mysql.MysqlServer):
    """A server of its own, so that killing it harms nobody."""

    def kill(self) -> None:
        """Does nothing to a dead one."""
        if (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGKILL)
            until(lambda: self.pid() is None, "the server's death")

    def set(self, **variables: int) -> None:
        with closing(mysql.connect(self.start())) as connection, connection.cursor() as cursor:
            for name, value in variables.items():
                cursor.execute(f"SET GLOBAL {name} = {value}")


@pytest.fixture(scope="module")
def victim(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    server = Victim(home=tmp_path_factory.mktemp("victim") / "mysql")
    try:
        server.start()
    except Unavailable as reason:
        not_tested(pytestconfig, "MySQL of its own", reason)
    yield server
    server.stop()


@pytest.fixture
def onto_victim(victim: Victim, mysql_server: str, tmp_path: Path) -> Iterator[Billing]:
    """From the tests' server to the victim."""
    with migration(tmp_path, mysql_server, victim.start()) as made:
        yield made


@pytest.fixture
def from_victim(victim: Victim, mysql_server: str, tmp_path: Path) -> Iterator[Billing]:
    with migration(tmp_path, victim.start(), mysql_server) as made:
        yield made


# Killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [
        "in a chunk",
        pytest.param("before a commit", marks=pytest.mark.slow),
        pytest.param("after a commit", marks=pytest.mark.slow),
    ],
)
def test_the_target_is_killed_during_the_load(onto_victim: Billing, victim: Victim, moment: str) -> None:
    billing = onto_victim
    billing.prepare()

    def killed(at: At) -> At:
        """It is killed just before it gets this packet."""

        def kill(connection: int, packet: bytes) -> bool:
            found = at(connection, packet)
            if found:
                victim.kill()
            return found

        return kill

    into = saying(b"INTO TABLE `invoice`")
    ways = {
        "in a chunk": in_turn(into, killed(lambda _, packet: len(packet) > 1_000)),
        "before a commit": in_turn(into, killed(COMMIT)),
        "after a commit": in_turn(into, COMMIT, killed(lambda *_: True)),
    }
    with Proxy(billing.target.copier) as proxy:
        billing.by_way_of(target=proxy.url)
        proxy.cut(ways[moment], answer=None)
        with pytest.raises((TransientError, AmbiguousError)):
            billing.load()
        assert victim.pid() is None
        with pytest.raises(TransientError):
            billing.load()  # it is still away
        assert billing.target.admin.startswith(victim.start())
        ((there,),) = billing.rows("target", "SELECT count(*) FROM invoice")
        assert (there > 0) == (moment == "after a commit")
        billing.load()
        billing.ends_equal()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the rows", "after the rows"])
def test_the_source_is_killed_during_the_load(from_victim: Billing, victim: Victim, moment: str) -> None:
    """With customers at work: what one was told is in the source when it is back, and in the end in the target."""
    billing = from_victim
    billing.prepare()
    tasks.cut(billing.desk())
    side, reached = {
        "before the rows": ("source", saying(b"FROM `invoice` t")),
        "after the rows": ("target", in_turn(saying(b"INTO TABLE `invoice`"), COMMIT)),
    }[moment]

    def kill(connection: int, packet: bytes) -> bool:
        if reached(connection, packet):
            victim.kill()
        return False

    with Proxy(getattr(billing, side).copier) as proxy, billing.traffic(rate=20, weights=ONLY_MORE) as summary:
        billing.by_way_of(**{side: proxy.url})
        proxy.cut(kill)
        with pytest.raises(TransientError):
            billing.load()
        assert victim.pid() is None
        with pytest.raises(TransientError):
            billing.load()  # it is still away
        ((there,),) = billing.rows("target", "SELECT count(*) FROM invoice")
        done = billing.desk().ledger.progress("invoice").done
        assert (there > 0, done) == ((True, 1) if moment == "after the rows" else (False, 0))
        proxy.spare()
        victim.start()
        served(summary, 5)
        billing.load()
        assert not summary.failed and not summary.refused
    billing.by_way_of(**{side: getattr(billing, side).copier})
    billing.ends_equal()


@pytest.mark.slow
def test_the_target_is_killed_while_changes_are_applied(onto_victim: Billing, victim: Victim) -> None:
    """The applier is one process all the time; the customers notice nothing."""
    billing = onto_victim
    billing.prepare()
    billing.load()
    applier = billing.worker("applier", "600")
    with billing.traffic() as summary:
        for _ in range(3):
            billing.await_changes()
            victim.kill()
            served(summary, 20)
            victim.start()
    assert not summary.failed and not summary.refused and not summary.unknown
    assert applier.poll() is None, billing.worker_log()
    applier.kill()
    billing.ends_equal()


def served(summary: Summary, more: int) -> None:
    """Until so many more operations of the customers were acknowledged."""
    wanted = summary.acknowledged.total() + more
    until(lambda: summary.acknowledged.total() >= wanted, "customers")


@pytest.mark.slow
def test_the_source_is_killed_while_changes_are_applied(from_victim: Billing, victim: Victim) -> None:
    """What a customer was told is in the source when it is back, and then in the target."""
    billing = from_victim
    billing.prepare()
    billing.load()
    applier = billing.worker("applier", "600")
    with billing.traffic(weights=ONLY_MORE) as summary:
        for _ in range(3):
            billing.await_changes()
            victim.kill()
            victim.start()
    assert not summary.failed and not summary.refused
    assert applier.poll() is None, billing.worker_log()
    applier.kill()
    billing.ends_equal()


# Full -------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(config: pytest.Config, folder: Path, size: str) -> Iterator[None]:
    """Mount a disk of this size over a folder; leaves the test out where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode != 0:
        not_tested(config, "full disk", f"none can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    ballast, room = folder / "ballast", os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    return ballast


def test_the_target_is_full(onto_victim: Billing, victim: Victim, pytestconfig: pytest.Config) -> None:
    """The task says which table and what to do; when there is room again, it goes on where it was."""
    billing = onto_victim
    folder = victim.data / billing.target.name
    with small_disk(pytestconfig, folder, "200M"):
        billing.prepare()
        ballast = fill(folder)
        with pytest.raises(FatalError, match=r"'\w+' is full.*make room") as caught:
            billing.load()
        assert type(caught.value) is FatalError  # no row is to blame
        assert billing.desk().ledger.count_rejects() == 0
        ballast.unlink()
        billing.load()
        ballast = fill(folder)
        billing.customers(1).run(operations=500)
        with pytest.raises(FatalError, match=r"'\w+' is full.*make room"):
            billing.follow()
        ballast.unlink()
        billing.ends_equal()
        drop_tables(billing)  # while their files are there


def drop_tables(billing: Billing) -> None:
    found = billing.rows("target", "SHOW TABLES")
    with closing(mysql.connect(billing.target.admin)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SET SESSION foreign_key_checks = 0")
        cursor.execute(f"DROP TABLE {', '.join(name for (name,) in found)}")


# Locked -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(victim: Victim) -> Iterator[None]:
    """Locks are waited for for a second, as short as can be."""
    victim.set(innodb_lock_wait_timeout=1)
    yield
    victim.set(innodb_lock_wait_timeout=50)


@contextmanager
def holding(url: str, *statements: str) -> Iterator[Callable[[str], None]]:
    """A session that has run these statements in one transaction, and holds what they locked. Gives its execute."""
    with closing(mysql.connect(url)) as connection, closing(connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
            cursor.fetchall()
        yield cursor.execute
        connection.rollback()


LOCKS = {
    "a row": "SELECT * FROM customer FOR UPDATE",
    "a gap": "SELECT * FROM invoice WHERE id > 100000 FOR UPDATE",
    "a shard": "SELECT * FROM fishladder_shard FOR UPDATE",
    "a fence": "SELECT * FROM fishladder_fence FOR UPDATE",
}


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_somebody_holds_a_lock_in_the_target(onto_victim: Billing) -> None:
    """Neither load nor applier loses anything: they end when their time is up, and go on when it is free."""
    billing = onto_victim
    billing.prepare()
    with holding(billing.target.admin, "SELECT * FROM plan FOR UPDATE"), pytest.raises(TransientError, match="1205"):
        billing.load()
    billing.load()
    client = billing.customers(1)
    for what, statement in LOCKS.items():
        client.run(operations=50)
        with holding(billing.target.admin, statement), pytest.raises(TransientError, match="1205"):
            tasks.replicate(billing.desk(), seconds=1.5, until_idle=True)
        billing.follow()
        assert billing.problems() == [], what
    billing.ends_equal()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_somebody_holds_the_journal(from_victim: Billing) -> None:
    """What was applied and could not be forgotten is applied again."""
    billing = from_victim
    billing.prepare()
    billing.load()
    billing.customers(1).run(operations=50)
    with holding(billing.source.admin, "SELECT * FROM fishladder_journal FOR UPDATE"):
        with pytest.raises(TransientError, match="1205"):
            tasks.replicate(billing.desk(), seconds=1.5, until_idle=True)
        assert billing.problems() == []
    assert billing.rows("source", "SELECT count(*) FROM fishladder_journal") != [(0,)]
    billing.ends_equal()


def test_a_deadlock(billing: Billing) -> None:
    """The applier is the victim, for the other one has done more; it begins again."""
    billing.prepare()
    billing.load()
    billing.rows("target", "CREATE TABLE more (id INT PRIMARY KEY)")
    for customer in (1, 2):
        billing.rows("source", f"UPDATE customer SET note = 'new' WHERE id = {customer}")
    more = f"INSERT INTO more VALUES {', '.join(f'({number})' for number in range(1_000))}"
    lock = "SELECT * FROM customer WHERE id = {} FOR UPDATE"
    with holding(billing.target.admin, more, lock.format(2)) as execute, ThreadPoolExecutor(1) as pool:
        applier = pool.submit(billing.follow)
        waiting = (
            "SELECT 1 FROM performance_schema.data_locks WHERE lock_status = 'WAITING' AND object_name = 'customer'"
            f" AND object_schema = '{billing.target.name}'"
        )
        until(lambda: bool(billing.rows("target", waiting)), "the applier at the second customer")
        execute(lock.format(1))
        execute("ROLLBACK")
        assert applier.result() == 1
    billing.ends_equal()
