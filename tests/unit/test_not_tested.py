"""A store that cannot be had is named at the end of a run, and is a failure where every store is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import os
from tests.conftest import *  # its hooks and fixtures
from tests.conftest import mysql, oracle, Unavailable

def given(name):
    if name not in os.environ:
        raise Unavailable(f"no package of {name}")
    return os.environ[name]

mysql.dsn = lambda: given("MYSQL_DSN")
mysql.version = lambda dsn: dsn
oracle.dsn = lambda: given("EMULATOR")
oracle.is_real = lambda: False
"""
TESTS = """
def test_on_mysql(mysql_server): assert mysql_server
def test_on_mysql_again(mysql_server): assert mysql_server
def test_on_oracle(oracle_server): assert oracle_server
def test_on_nothing(): pass
"""
ALL = {"MYSQL_DSN": "9.7.4-2", "EMULATOR": "one"}
EMULATED = "Oracle: not verified on Oracle: the Oracle wire emulator took its place"
CASES = {
    "all there": (ALL, "4 passed", [EMULATED]),
    "all there, required": (ALL | {"REQUIRE_STORES": "1"}, "4 passed", [EMULATED]),
    "no MySQL": ({"EMULATOR": "one"}, "2 passed, 2 skipped", ["MySQL: no package of MYSQL_DSN", EMULATED]),
    "no MySQL, required": (
        {"EMULATOR": "one", "REQUIRE_STORES": "1"},
        "2 passed, 2 errors",
        ["MySQL: no package of MYSQL_DSN", "REQUIRE_STORES=1, and there is no MySQL: no package of MYSQL_DSN"],
    ),
    "MariaDB for MySQL": (
        ALL | {"MYSQL_DSN": "10.11.14-MariaDB"},
        "4 passed",
        ["MySQL: 10.11.14-MariaDB took its place", EMULATED],
    ),
    "MariaDB for MySQL, required": (
        ALL | {"MYSQL_DSN": "10.11.14-MariaDB", "REQUIRE_STORES": "1"},
        "2 passed, 2 errors",
        ["MySQL: 10.11.14-MariaDB took its place", "and there is no MySQL: 10.11.14-MariaDB took its place"],
    ),
    "no Oracle": ({"MYSQL_DSN": "9.7.4-2"}, "3 passed, 1 skipped", ["Oracle wire emulator: no package of EMULATOR"]),
    "nothing": ({}, "1 passed, 3 skipped", ["MySQL: no package of", "Oracle wire emulator: no package of"]),
}


@pytest.mark.parametrize(
    ("environment", "counts", "lines", "processes"),
    [*((*case, "0") for case in CASES.values()), (*CASES["nothing"], "2"), (*CASES["no MySQL, required"], "2")],
    ids=[*CASES, "nothing, two processes", "no MySQL, required, two processes"],
)
def test_what_cannot_be_had_is_named(
    tmp_path: Path, environment: dict[str, str], counts: str, lines: list[str], processes: str
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_stores.py").write_text(TESTS)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "include", ROOT / "plugins")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", processes, tmp_path],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert counts in done.stdout, done.stdout + done.stderr
    assert done.returncode == ("error" in counts)
    head, _, named = done.stdout.partition("STORES NOT TESTED")
    assert named, done.stdout
    for line in lines:
        assert line in (head if line.startswith(("REQUIRE", "and there")) else named), done.stdout
