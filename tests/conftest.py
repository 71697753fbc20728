"""Fixtures on real servers. A server that cannot be had is named at the end of the run, never left out in silence.

``REQUIRE_STORES=1`` (as in CI) makes its tests fail instead of being skipped.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

pytest.register_assert_rewrite("tests.contract", "tests.dags", "tests.scenario", "tests.unit")

from tests.servers import Unavailable, mysql, oracle  # noqa: E402  (what helpers assert is to tell what it saw, too)

UNTESTED = pytest.StashKey[dict[str, str]]()
LONG = (
    "tests/simulation/",
    "tests/unit/ledger/",
    *(f"tests/unit/test_{name}.py" for name in ("rehearsal", "billing", "serving", "ground", "bad_input", "approvals")),
)
"""Files of minutes begin first: the last one of a run would have a processor to itself, and the others none."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[UNTESTED] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: the garbage collector need not look at it thousands of times


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:  # in a process of pytest-xdist
        output["untested"] = session.config.stash[UNTESTED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[UNTESTED].update(getattr(node, "workeroutput", {}).get("untested", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if untested := config.stash[UNTESTED]:
        terminalreporter.section("STORES NOT TESTED", sep="!", red=True, bold=True)
        for store, reason in untested.items():
            terminalreporter.line(f"{store}: {reason}", red=True)


def is_required() -> bool:
    """Whether a test whose store cannot be had fails."""
    return os.environ.get("REQUIRE_STORES") == "1"


def not_tested(config: pytest.Config, store: str, reason: object) -> NoReturn:
    """Leave out a test because a store cannot be had: it is named at the end of the run."""
    config.stash[UNTESTED][store] = str(reason)
    if is_required():
        pytest.fail(f"REQUIRE_STORES=1, and there is no {store}: {reason}", pytrace=False)
    pytest.skip(f"no {store}: {reason}")


@pytest.fixture(scope="session")
def mysql_server(pytestconfig: pytest.Config) -> str:
    """The DSN of a MySQL, as an account that may create databases and accounts."""
    try:
        dsn = mysql.dsn()
    except Unavailable as error:
        not_tested(pytestconfig, "MySQL", error)
    if "MariaDB" in (version := mysql.version(dsn)):
        pytestconfig.stash[UNTESTED]["MySQL"] = reason = f"{version} took its place"
        if is_required():
            not_tested(pytestconfig, "MySQL", reason)
    return dsn


@pytest.fixture
def mysql_database(mysql_server: str) -> Iterator[mysql.Database]:
    """A fresh, empty database for one test."""
    with mysql.database(mysql_server) as database:
        yield database


@pytest.fixture(scope="session")
def oracle_server(pytestconfig: pytest.Config) -> str:
    """The DSN of an Oracle that was given, else of the Oracle wire emulator, which is none."""
    try:
        dsn = oracle.dsn()
    except Unavailable as reason:
        not_tested(pytestconfig, "Oracle wire emulator", reason)
    if not oracle.is_real():
        pytestconfig.stash[UNTESTED]["Oracle"] = "not verified on Oracle: the Oracle wire emulator took its place"
    return dsn


@pytest.fixture
def oracle_database(oracle_server: str) -> Iterator[oracle.Database]:
    """A fresh, empty schema for one test."""
    with oracle.database(oracle_server) as database:
        yield database
