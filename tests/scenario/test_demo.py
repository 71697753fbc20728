"""``make demo``, which is what people try first: it ends well, says what it did, and leaves nothing running."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import not_tested
from tests.servers import Unavailable
from tests.servers.mysql import MysqlServer
from tests.servers.oracle import OracleEmulator

ROOT = Path(__file__).parents[2]
CUSTOMERS = 100
PLANTED = 5
GONE = r"(, (?P<moot>\d) went with their customers)?"
SUMMARY = rf"""billing: {CUSTOMERS} customers from {{way}}, \d+ s in all
  rows moved         (?P<moved>[\d,]+) by the load in \d+ s, [\d,]+ rows/s with Airflow's own time
  differences        {PLANTED} planted, (?P<found>\d+) found and repaired{GONE}; the next pass was clean
  customers          [\d,]+ operations before the flip, 0 failed, longest \d+ ms
  NZ moved           flip [\d.]+ s from fence to switch, rollback [\d.]+ s from fence to switch
  what they felt     (?P<reads>[\d,]+) reads and (?P<writes>[\d,]+) writes served, \d+ writes queued.+, 0 failed
  changes followed   (?P<followed>[\d,]+), lag [\d.]+ s at the end
  compared           every row, by code that shares nothing with fishladder: equal, totals per country too
  answers            (?P<told>[\d,]+) writes were told done or queued: each is there once, in its customer's order
  audit              the chain is whole
"""
#: What other tests of the same run, and whoever runs them, have set for themselves.
NOT_OURS = ("AIRFLOW", "BILLING_", "FISHLADDER_", "MYSQL_DSN", "ORACLE_DSN", "PYTEST_")

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(2400)]


@pytest.fixture
def checkout(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of this one: the demo works in the folder that its code is in, where somebody may play another one.

    When the test fails it stays: Airflow's logs are in it.
    """
    folder = Path(tempfile.mkdtemp(prefix="fishladder-demo-"))
    folder.chmod(0o755)  # the emulator's PostgreSQL is nobody, if we are root
    for name in ("dags", "include", "plugins", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    downloads = ROOT / ".stores/cache"
    downloads.mkdir(parents=True, exist_ok=True)
    (folder / ".stores").mkdir()
    (folder / ".stores/cache").symlink_to(downloads)
    failed = request.session.testsfailed
    yield folder
    if request.session.testsfailed == failed:
        shutil.rmtree(folder)


def play(checkout: Path, way: str, stores: str = "") -> None:
    """``AUTO=1 make demo`` in this checkout, which must tell of a good end and leave no process behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    environment |= {"AUTO": "1", "CUSTOMERS": str(CUSTOMERS), "STORES": stores}
    environment["PYTHONPATH"] = os.pathsep.join(str(checkout / name) for name in ("include", "plugins"))
    command = [sys.executable, "-m", "billing.demo"]
    log = checkout / "demo.log"  # no pipe: what it left running would keep that open
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=checkout, env=environment, stdout=output, stderr=output) as demo,
    ):
        try:
            code = demo.wait()
        finally:
            demo.terminate()  # when the test has taken too long: it ends what it has started
    said = log.read_text()
    assert code == 0, said
    assert at_work_in(checkout) == []
    told = re.search(SUMMARY.format(way=way), said)
    assert told, said
    numbers = {name: int((value or "0").replace(",", "")) for name, value in told.groupdict().items()}
    assert numbers["found"] + numbers.pop("moot") >= PLANTED, said
    assert min(numbers.values()) > 0, said


def at_work_in(folder: Path) -> list[str]:
    """The commands of the processes whose working directory is in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or somebody else's
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_the_demo_can_be_played_again_and_again(checkout: Path) -> None:
    for _ in range(2):
        play(checkout, way="SQLite to SQLite")


def test_the_demo_on_real_servers(checkout: Path, pytestconfig: pytest.Config) -> None:
    """On servers that it starts and stops: other tests, and other demos, have theirs."""
    stores = checkout / ".stores"
    for name, server in {
        "MySQL": MysqlServer(stores / "mysql"),
        "Oracle wire emulator": OracleEmulator(stores / "oracle"),
    }.items():
        try:
            server.start()
        except Unavailable as reason:
            not_tested(pytestconfig, name, reason)
        finally:
            server.stop()
    play(checkout, way="the Oracle wire emulator to MySQL", stores="real")
