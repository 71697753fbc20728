"""Other tools on the same rows, servers and accounts: how fast they load and compare, and what they change or miss.

Each is a script beside this file, run by the Python of a virtual environment of its own under ``.stores/peers``. It
reads JSON from its input (``source``, ``target``: URLs; ``columns``) and prints JSON as its last line.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import MySQLdb

from benchmarks.ground import COLUMNS, LANES, Address, Bench, Ground, create_tables, database
from benchmarks.lanes import run_lanes
from benchmarks.results import REPEATS, Result, not_available, result, seconds
from billing.database import connect
from fishladder import tasks
from tests.servers import STORES, mysql

ROWS = 100_000
LONGEST = 300.0
"""Seconds that a tool gets for one run."""
HERE = Path(__file__).parent
REQUIREMENTS = {"tools": "peers.txt", "data-validation": "peers-data-validation.txt"}
"""What each virtual environment holds: the last needs older versions of what the others need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A tool. ``venv``: None is the project's own; ``without``: columns that it cannot write, so that it need not."""

    name: str
    script: str
    venv: str | None
    without: tuple[str, ...] = ()


LOADERS = (
    Peer(name="dlt", script="with_dlt.py", venv="tools"),
    # It makes a column VARBINARY without a length of a BINARY one, which MySQL refuses.
    Peer(name="sling", script="with_sling.py", venv="tools", without=("external_id",)),
    Peer(name="GenericTransfer", script="with_generic_transfer.py", venv=None),
)
RELADIFF = Peer(name="reladiff", script="with_reladiff.py", venv="tools")
DATA_VALIDATION = Peer(name="data-validation", script="with_data_validation.py", venv="data-validation")


class PeerError(Exception):
    """A tool could not be installed, or failed. The message says which, and its last words."""


def peers(ground: Ground) -> Iterator[Result]:
    """Load and compare beside the other tools, on 100 thousand rows at most."""
    bench = ground.bench(ROWS)
    with ready(ground.server):
        yield from _loads(bench, ground.folder)
        yield from _comparisons(bench, ground.folder)


def _loads(bench: Bench, folder: Path) -> Iterator[Result]:
    ours: list[float] = []
    wrong: list[tuple[float, float]] = []
    speeds: dict[Peer, list[float]] = {peer: [] for peer in LOADERS}
    theirs: dict[Peer, list[tuple[float, float]]] = {peer: [] for peer in LOADERS}
    failed: dict[Peer, str] = {}
    for _ in range(REPEATS):
        with bench.migration() as migration:
            ours.append(bench.invoices / run_lanes(migration, LANES).seconds)
            wrong.append((wrong_rows(bench.source, migration.target), bench.invoices))
        for peer in (peer for peer in LOADERS if peer not in failed):
            with _empty_target(bench, peer) as target:
                try:
                    took = run(peer, bench.source, target, folder)["seconds"]
                except PeerError as error:
                    failed[peer] = str(error)
                    continue
                speeds[peer].append(bench.invoices / took)
                theirs[peer].append((wrong_rows(bench.source, target, peer.without), bench.invoices))
    yield result("peers", f"{bench.label}, rows changed or missed by fishladder / all", "rows", wrong, goal=0.0)
    for peer in LOADERS:
        name = f"{peer.name} (without {', '.join(peer.without)})" if peer.without else peer.name
        if peer in failed:
            yield not_available("peers", f"{bench.label}, load / {name}", failed[peer])
            continue
        rounds = list(zip(ours, speeds[peer], strict=True))
        yield result("peers", f"{bench.label}, load / {name}", "rows/s", rounds)
        yield result("peers", f"{bench.label}, rows changed or missed by {name} / all", "rows", theirs[peer])
    if failed:
        reason = f"{', '.join(peer.name for peer in failed)} did not run"
        yield not_available("peers", f"{bench.label}, load / the fastest of them", reason, goal=5.0)
    else:
        fastest = [(mine, max(rates)) for mine, *rates in zip(ours, *speeds.values(), strict=True)]
        yield result("peers", f"{bench.label}, load / the fastest of them", "rows/s", fastest, goal=5.0)


def _comparisons(bench: Bench, folder: Path) -> Iterator[Result]:
    from benchmarks.reconcile import plant, unnoticed

    migration = bench.loaded
    times: dict[Peer, list[tuple[float, float]]] = {RELADIFF: [], DATA_VALIDATION: []}
    missed: dict[Peer, list[tuple[float, float]]] = {RELADIFF: [], DATA_VALIDATION: []}
    own: list[tuple[float, float]] = []
    failed: dict[Peer, str] = {}
    with migration.desk() as desk:
        for number in range(REPEATS):
            planted = plant(bench, migration, random.Random(f"peers {number}"))
            found = {}
            for peer in (peer for peer in times if peer not in failed):
                try:
                    found[peer] = run(peer, migration.source, migration.target, folder)
                except PeerError as error:
                    failed[peer] = str(error)
            took = seconds(tasks.reconcile_table, desk, "invoice")
            own.append((len(unnoticed(desk, planted)), len(planted)))
            for peer, said in found.items():
                times[peer].append((took, said["seconds"]))
                missed[peer].append((len(planted.keys() - set(said["keys"])), len(planted)))
            migration.settle(desk)
    yield result("peers", f"{bench.label}, differences missed by fishladder / planted", "keys", own, goal=0.0)
    for peer in times:
        if peer in failed:
            yield not_available("peers", f"{bench.label}, compare / {peer.name}", failed[peer])
            continue
        yield result("peers", f"{bench.label}, compare / {peer.name}", "s", times[peer])
        yield result("peers", f"{bench.label}, differences missed by {peer.name} / planted", "keys", missed[peer])


def wrong_rows(source: Address, target: Address, without: tuple[str, ...] = ()) -> int:
    """Rows that the target lacks, has otherwise, or has besides: by plain SQL, byte by byte, by nobody's code here."""
    same = " AND ".join(f"CAST(s.{c} AS BINARY) <=> CAST(t.{c} AS BINARY)" for c in COLUMNS if c not in without)
    ours, theirs = f"{source.name}.invoice", f"{target.name}.invoice"
    with closing(connect(target.copier)) as db:
        ((wrong,),) = db.rows(f"SELECT COUNT(*) FROM {ours} s LEFT JOIN {theirs} t USING (id) WHERE NOT ({same})")
        ((extra,),) = db.rows(f"SELECT COUNT(*) FROM {theirs} t LEFT JOIN {ours} s USING (id) WHERE s.id IS NULL")
        ((all_,),) = db.rows(f"SELECT COUNT(*) FROM {theirs}")
        ((different,),) = db.rows(f"SELECT COUNT(DISTINCT id) FROM {theirs}")
    return int(wrong + extra + all_ - different)


@contextmanager
def _empty_target(bench: Bench, peer: Peer) -> Iterator[Address]:
    """A database with the same empty table of invoices, its indexes and keys, but for the foreign one: fishladder loads
    without checking it, and no tool is to pay for it."""
    with database(bench.server) as target:
        create_tables(target.admin)
        with closing(connect(target.copier)) as db:
            db.execute("ALTER TABLE invoice DROP FOREIGN KEY invoice_ibfk_1")
            for column in peer.without:
                db.execute(f"ALTER TABLE invoice ALTER {column} SET DEFAULT ''")
        yield target


def run(peer: Peer, source: Address, target: Address, folder: Path) -> Mapping[str, Any]:
    """What the tool's script says: ``seconds`` and, if it compares, the ``keys`` that differ. Raises PeerError."""
    given = {"source": source.copier, "target": target.copier, "columns": COLUMNS}
    try:
        done = subprocess.run(
            [_python(peer.venv) if peer.venv else sys.executable, str(HERE / peer.script)],
            input=json.dumps(given),
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "HOME": str(folder),  # they keep notes there
                "AIRFLOW_HOME": str(folder / "airflow"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            },
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{peer.name} took more than {LONGEST:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{peer.name} failed: {_last_line(error.stderr)}") from error
    said: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _python(venv: str) -> Path:
    """The Python of a virtual environment, made if it is not there or its pins have changed. Raises PeerError."""
    home, pins = STORES / "peers" / venv, HERE.parent / REQUIREMENTS[venv]
    python, stamp = home / "bin" / "python", home / "ready"
    if not stamp.exists() or stamp.stat().st_mtime < pins.stat().st_mtime:
        uv = [sys.executable, "-m", "uv"]
        for command in (
            [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
            [*uv, "pip", "sync", "--quiet", "--python", str(python), str(pins)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise PeerError(f"{pins.name} cannot be installed: {_last_line(done.stderr)}")
        stamp.touch()
    return python


def _last_line(text: str) -> str:
    """Short enough for a table, and without the statement that a driver adds."""
    lines = [line.strip() for line in text.splitlines() if "rror" in line]
    return lines[-1][:200] if lines else "it does not say why"


@contextmanager
def ready(server: str) -> Iterator[None]:
    """The server has what the tools need and MySQL 9 does not bring along: MD5(), and a time zone called UTC."""
    # Last, so that it is undone while there is still a connection.
    with closing(mysql.connect(server)) as admin, closing(admin.cursor()) as cursor, ExitStack() as undo:
        try:
            cursor.execute("SELECT MD5('')")
        except MySQLdb.Error:
            cursor.execute("INSTALL COMPONENT 'file://component_classic_hashing'")
            undo.callback(cursor.execute, "UNINSTALL COMPONENT 'file://component_classic_hashing'")
        try:
            cursor.execute("SET time_zone = 'UTC'")
        except MySQLdb.Error:
            cursor.execute("INSERT INTO mysql.time_zone (Use_leap_seconds) VALUES ('N')")
            zone = cursor.lastrowid
            cursor.execute("INSERT INTO mysql.time_zone_name VALUES ('UTC', %s)", (zone,))
            cursor.execute("INSERT INTO mysql.time_zone_transition_type VALUES (%s, 0, 0, 0, 'UTC')", (zone,))
            admin.commit()
            undo.callback(admin.commit)
            for table in ("time_zone_transition_type", "time_zone_name", "time_zone"):
                undo.callback(cursor.execute, f"DELETE FROM mysql.{table} WHERE Time_zone_id = %s", (zone,))
        yield
