"""``make demo``: a billing database with live traffic moves to another store inside Airflow, every row accounted for.

Both are SQLite files. ``STORES=real``: from the Oracle wire emulator, or the Oracle that ``ORACLE_DSN`` names, to a
real MySQL. ``AUTO=1`` ends by itself, ``CUSTOMERS=n`` sets the size. The demo is a user of fishladder: it triggers DAGs
by Airflow's REST API and believes only its own comparison.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import MySQLdb
import oracledb

from billing import invariants, schema
from billing.airflow import Airflow, DemoError
from billing.database import DatabaseError, connect
from fishladder.ledger import open_ledger
from tests import independent

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".demo"
DATABASE = "fishladder_demo"
#: What the copier's account needs to install its tables and triggers in another account's schema, and to watch them.
ORACLE_COPIER = (
    "CREATE SESSION, SELECT ANY TABLE, INSERT ANY TABLE, UPDATE ANY TABLE, DELETE ANY TABLE, LOCK ANY TABLE,"
    " CREATE ANY TABLE, ALTER ANY TABLE, DROP ANY TABLE, CREATE ANY INDEX, CREATE ANY TRIGGER, ALTER ANY TRIGGER,"
    " DROP ANY TRIGGER, CREATE ANY SEQUENCE, ALTER ANY SEQUENCE, DROP ANY SEQUENCE, SELECT ANY SEQUENCE,"
    " CREATE ANY PROCEDURE, DROP ANY PROCEDURE, SELECT ANY DICTIONARY"
)
NO_SUCH_USER = 1918
ORACLE_APPLICATION = (
    "CREATE SESSION, SELECT ANY TABLE, INSERT ANY TABLE, UPDATE ANY TABLE, DELETE ANY TABLE, LOCK ANY TABLE"
)
TRAFFIC_RATE = 25
TRAFFIC_SECONDS = 3600
DRAIN_SECONDS = 120.0
PERSON_SECONDS = 120.0
"""How long the demo waits for somebody to approve a flip in Airflow's pages, before it does so itself."""


class Demo:
    def __init__(self, *, real: bool, customers: int, automatic: bool) -> None:
        self.real = real
        self.automatic = automatic
        self.customers = customers
        self.began = time.monotonic()
        self.source = f"sqlite:///{HOME / 'source.db'}"
        self.target = f"sqlite:///{HOME / 'target.db'}"
        self.owner = self.source  # whoever the source's tables belong to
        self.applications = {"billing_source_app": self.source, "billing_target_app": self.target}
        self.kinds = ("sqlite", "sqlite")
        self.source_name, self.target_name = "SQLite", "SQLite"
        self.ledger = f"sqlite:///{HOME / 'ledger.db'}"
        self.facts: dict[str, str] = {}
        self.traffic: subprocess.Popen[str] | None = None
        self.before: dict[str, int] = {}  # rows per table when the routed customers came
        self.airflow: Airflow | None = None
        self.servers = ExitStack()

    # Steps

    def prepare_stores(self) -> None:
        """A source with customers, an empty target."""
        if self.real:
            self._create_oracle()
            self._create_mysql()
            self.kinds = ("oracle", "mysql")
        schema.create(self.owner)
        self._python("billing.seed", self.owner, "--customers", str(self.customers), "--seed", "7")
        environment = self._environment()
        self._python("fishladder", "ledger", "upgrade", environment=environment)

    def _create_oracle(self) -> None:
        """A schema of its own, and accounts for the copier and the application that do not own it."""
        dsn = self._server("oracle", "ORACLE_DSN")
        emulator = self._running("ORACLE_DSN", {"ORACLE_DSN": ""})  # whose address may be exported, too
        self.source_name = "the Oracle wire emulator" if dsn == emulator else "Oracle"
        address = urlsplit(dsn)
        password = secrets.token_hex(12)
        system = self.servers.enter_context(
            oracledb.connect(
                host=address.hostname,
                port=address.port or 1521,
                service_name=address.path.strip("/"),
                user=unquote(address.username or ""),
                password=unquote(address.password or ""),
            )
        )
        owner = DATABASE.upper()
        grants = {
            owner: "CONNECT, RESOURCE, UNLIMITED TABLESPACE",
            "DEMO_COPIER": ORACLE_COPIER,
            "DEMO_APP": ORACLE_APPLICATION,
        }

        def drop() -> None:
            for user in reversed(grants):
                try:
                    cursor.execute(f"DROP USER {user} CASCADE")
                except oracledb.DatabaseError as error:
                    if error.args[0].code != NO_SUCH_USER:
                        raise

        cursor = self.servers.enter_context(system.cursor())
        drop()
        for user, rights in grants.items():
            cursor.execute(f'CREATE USER {user} IDENTIFIED BY "{password}"')
            cursor.execute(f"GRANT {rights} TO {user}")
        self.servers.callback(drop)

        def url(user: str) -> str:
            place = f"{address.hostname}:{address.port or 1521}{address.path}"
            return f"oracle://{user}:{password}@{place}?schema={owner}"

        self.owner, self.source = url(owner), url("DEMO_COPIER")
        self.applications["billing_source_app"] = url("DEMO_APP")

    def _create_mysql(self) -> None:
        """A database of its own, with an account for the copier and one for the application."""
        self.target_name = "MySQL"
        address = urlsplit(self._server("mysql", "MYSQL_DSN"))
        root = self.servers.enter_context(
            closing(
                MySQLdb.connect(
                    host=address.hostname,
                    port=address.port or 3306,
                    user=unquote(address.username or ""),
                    passwd=unquote(address.password or ""),
                )
            )
        )
        password = secrets.token_hex(12)
        users = ("demo_copier", "demo_app")

        def drop() -> None:
            cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
            for user in users:
                cursor.execute("DROP USER IF EXISTS %s@'%%'", (user,))

        cursor = self.servers.enter_context(closing(root.cursor()))
        drop()
        cursor.execute(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4")
        for user in users:
            cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (user, password))
        cursor.execute("GRANT PROCESS ON *.* TO demo_copier@'%'")
        cursor.execute(f"GRANT ALL ON {DATABASE}.* TO demo_copier@'%'")
        cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {DATABASE}.* TO demo_app@'%'")
        self.servers.callback(drop)
        place = f"{quote(password)}@{address.hostname}:{address.port or 3306}/{DATABASE}"
        self.target = f"mysql://demo_copier:{place}"
        self.applications["billing_target_app"] = f"mysql://demo_app:{place}"

    def _server(self, name: str, variable: str) -> str:
        """The DSN of a server, which is started unless it runs; then the demo also stops it."""
        if not (dsn := self._running(variable)):
            # First, so that a demo that is ended while the server starts stops it too.
            self.servers.callback(lambda: self._python("tests.servers", "stop", name, check=False))
            self._python("tests.servers", "start", name)
            dsn = self._running(variable)
        return dsn

    def _running(self, variable: str, environment: dict[str, str] | None = None) -> str:
        """The DSN of the server that runs, or nothing."""
        words = shlex.split(self._python("tests.servers", "env", environment=environment))
        return next((word.partition("=")[2] for word in words if word.startswith(f"{variable}=")), "")

    def _environment(self) -> dict[str, str]:
        connections = {"billing_source": self.source, "billing_target": self.target, **self.applications}
        return {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins", ROOT))),
            "FISHLADDER_LEDGER": self.ledger,
            "FISHLADDER_POOLS": "1",
            "BILLING_SOURCE_KIND": self.kinds[0],
            "BILLING_TARGET_KIND": self.kinds[1],
            "BILLING_OBSERVE": "10s",
            **{f"AIRFLOW_CONN_{name.upper()}": _for_airflow(url) for name, url in connections.items()},
            **{f"FISHLADDER_{name.upper()}": url for name, url in connections.items()},
        }

    def write_environment(self) -> Path:
        """For a shell beside the demo: `. .demo/environment`. It has passwords in it, so it is its owner's alone."""
        bin_ = shlex.quote(str(Path(sys.executable).parent))
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self._environment().items()]
        file = HOME / "environment"
        file.touch(mode=0o600)
        file.write_text("\n".join([*lines, f'export PATH={bin_}:"$PATH"', ""]))
        return file

    def start_traffic(self) -> None:
        """Customers: one process that goes on until the demo stops it."""
        url = self.applications["billing_source_app"]
        command = [sys.executable, "-m", "billing.traffic", url, "--rate", str(TRAFFIC_RATE)]
        command += ["--seconds", str(TRAFFIC_SECONDS), "--log", str(HOME / "traffic.jsonl")]
        environment = {**os.environ, **self._environment()}
        self.traffic = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def start_routed(self, busy: str) -> None:
        """Their service embeds the router from here on; half of the calls are for the customers of one country."""
        self._end_traffic()
        self.before = independent.counts(self.source)
        file = ROOT / "include" / "migrations" / "billing.yaml"
        command = [sys.executable, "-m", "billing.routed", str(file), "--rate", str(TRAFFIC_RATE), "--busy", busy]
        command += ["--seconds", str(TRAFFIC_SECONDS), "--log", str(HOME / "routed.jsonl")]
        environment = {**os.environ, **self._environment()}
        self.traffic = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def start_airflow(self) -> None:
        self.airflow = Airflow(HOME / "airflow", ROOT / "dags", self._environment())
        self.airflow.start()
        for step in ("prepare", "load", "replicate", "reconcile", "monitor", "flip", "rollback"):
            self.airflow.wait_for_dag(f"billing_{step}")
        self.airflow.pool("fishladder_billing_target", 8)
        say(f"Airflow is at {self.airflow.url} (user admin, password {self.airflow.passwords['admin']})")

    def migrate(self) -> None:
        """Prepare, load and follow, with traffic on."""
        assert self.airflow is not None
        for step in ("prepare", "load"):
            began = time.monotonic()
            if step == "load":
                self.airflow.unpause("billing_replicate")
            self._expect(f"billing_{step}", "success")
            say(f"billing_{step} took {time.monotonic() - began:.0f} s")
            if step == "load":
                rows = sum(table["rows"] for table in self._status()["tables"].values())
                seconds = time.monotonic() - began
                rate = f"{rows / seconds:,.0f} rows/s"
                self.facts["rows moved"] = f"{rows:,} by the load in {seconds:.0f} s, {rate} with Airflow's own time"

    def plant_and_repair(self) -> None:
        """Damage the target behind everybody's back; reconciliation finds it, the applier repairs it."""
        lines = self._plant()
        self._expect("billing_reconcile", "failed")
        found = self._status()["mismatches_found"]
        with closing(connect(self.source)) as db:
            there = {row[0] for row in db.rows("SELECT id FROM invoice_line")}
        # A customer who closes the account takes a damaged line along, and then there is nothing to find.
        moot = sum(line not in there for line in lines)
        planted = len(lines) + 1
        if found + moot < planted:
            raise DemoError(f"{planted} differences were planted and {found} found ({moot} went with their customers)")
        self._wait("the applier to repair them", lambda: not self._status()["mismatches"])
        self._expect("billing_reconcile", "success")
        said = f", {moot} went with their customers" if moot else ""
        self.facts["differences"] = f"{planted} planted, {found} found and repaired{said}; the next pass was clean"

    def _plant(self) -> list[int]:
        """Two invoice lines less, two that are wrong, and a plan that nobody sells. Returns the lines."""
        rng = random.Random(11)
        with closing(connect(self.target)) as db, db.transaction():
            if not self.real:
                db.execute("INSERT INTO fishladder_copying VALUES (1)")  # as the copier itself would
            lines = [row[0] for row in db.rows("SELECT id FROM invoice_line ORDER BY id LIMIT 200")]
            damaged: list[int] = rng.sample(lines, 4)
            for line in damaged[:2]:
                db.execute("DELETE FROM invoice_line WHERE id = ?", (line,))
            for line in damaged[2:]:
                db.execute("UPDATE invoice_line SET amount = '0.01' WHERE id = ?", (line,))
            db.execute(
                "INSERT INTO plan (id, code, name, monthly_price, yearly_price, on_sale, updated_at)"
                " VALUES (9999, 'GHOST', 'Nobody sells this', '1.00', '10.00', 0, '2026-01-01 00:00:00.000000')"
            )
            if not self.real:
                db.execute("DELETE FROM fishladder_copying")
        return damaged

    def move(self) -> None:
        """New Zealand moves to the target and back, with customers behind the router."""
        self.start_routed("NZ")
        self._expect("billing_monitor", "success")
        asked, moved = datetime.now(UTC), []
        for kind, stage in (("flip", "live"), ("rollback", "off")):
            began = time.monotonic()
            self._approved(f"billing_{kind}", {"cohorts": ["NZ"], "reason": "the demo"})
            found = self._status()["cohorts"]["NZ"]["stage"]
            if found != stage:
                raise DemoError(f"after billing_{kind} NZ is {found}, not {stage}")
            window = self._status()["attempts"][0]["seconds_fenced"]
            moved.append(f"{kind} {window:.1f} s from fence to switch")
            say(f"billing_{kind} took {time.monotonic() - began:.0f} s, approval and a whole pass included")
        felt = self._end_traffic()
        if sum(felt["failed"].values()):
            raise DemoError(f"calls of customers failed: {felt['errors'][:5]}")
        with open_ledger(self.ledger, migration="billing") as ledger:
            waited = ledger.longest_wait("NZ", asked)
        reads = felt["done"].pop("account", 0)
        self.facts["NZ moved"] = ", ".join(moved)
        self.facts["what they felt"] = (
            f"{reads:,} reads and {sum(felt['done'].values()):,} writes served, {sum(felt['queued'].values())} writes"
            f" queued, for {waited or 0:.1f} s at most, and replayed; longest write {felt['longest_write_ms']:.0f} ms,"
            f" longest read {felt['longest_read_ms']:.0f} ms, 0 failed"
        )

    def _approved(self, dag: str, form: dict[str, object]) -> None:
        assert self.airflow is not None
        patience = 0.0 if self.automatic else PERSON_SECONDS
        run = self.airflow.trigger(dag, form)
        if patience:
            say(
                f"{dag} waits for somebody else than admin, who asked: log in at {self.airflow.url}/required_actions as"
                f" approver (password {self.airflow.passwords['approver']}) and approve it, or in {patience:.0f} s I do"
            )
        else:
            say(f"{dag} …")
        self.airflow.approve(dag, run, "country.approve", patience)
        state = self.airflow.ended(dag, run)
        if state != "success":
            failed = ", ".join(self.airflow.failures(dag)) or "no task"
            raise DemoError(f"{dag} ended in {state} (failed: {failed}); its log is in {HOME}/airflow/logs")

    def _end_traffic(self) -> dict[str, Any]:
        """Stop the customers. Returns what they counted."""
        assert self.traffic is not None
        self.traffic.send_signal(signal.SIGTERM)
        printed, _ = self.traffic.communicate(timeout=60)
        if self.traffic.returncode:
            raise DemoError("the customers' process has failed: what it said is above")
        self.traffic = None
        counted: dict[str, Any] = json.loads(printed)
        if "total" in counted:
            failed = sum(sum(counted[kind].values()) for kind in ("failed", "refused", "unknown"))
            self.facts["customers"] = (
                f"{counted['total']:,} operations before the flip, {failed} failed, longest"
                f" {counted['max_latency_ms']:.0f} ms"
            )
        return counted

    def finish(self) -> None:
        """Wait until nothing is on its way, and compare without fishladder."""
        self._wait("the last changes", lambda: not self._journal() and not self._status()["dirty"])
        applied = self._status()["applier"] or {}
        self.facts["changes followed"] = (
            f"{self._status()['changes']:,}, lag {applied.get('lag') or 0:.1f} s at the end"
        )
        problems = independent.compare(self.source, self.target)
        problems += invariants.check(self.source) + invariants.check(self.target)
        if problems:
            raise DemoError("the copies are not what they must be:\n" + "\n".join(problems))
        equal = invariants.totals(self.source) == invariants.totals(self.target)
        if not equal:
            raise DemoError("the totals per country differ")
        self.facts["compared"] = "every row, by code that shares nothing with fishladder: equal, totals per country too"
        self.judge_answers()
        self._python("fishladder", "audit", "verify", environment=self._environment())
        self.facts["audit"] = "the chain is whole"

    def judge_answers(self) -> None:
        """What the router's customers were told, done or queued, against both stores."""
        log = HOME / "routed.jsonl"
        with closing(connect(self.ledger)) as db:
            refused = {row[0] for row in db.rows("SELECT idempotency_key FROM ledger_queue WHERE state = 'refused'")}
        problems = [
            problem
            for url in (self.source, self.target)
            for problem in independent.accepted(url, [log], before=self.before, refused=refused)
        ]
        if problems:
            raise DemoError("customers were told what is not so:\n" + "\n".join(problems))
        told = len(log.read_text(encoding="utf-8").splitlines())
        self.facts["answers"] = f"{told:,} writes were told done or queued: each is there once, in its customer's order"

    # Questions

    def _status(self) -> dict[str, Any]:
        file = str(ROOT / "include" / "migrations" / "billing.yaml")
        found: dict[str, Any] = json.loads(
            self._python("fishladder", "status", file, "--json", environment=self._environment())
        )
        return found

    def _journal(self) -> int:
        count = 0
        for url in (self.source, self.target):
            with closing(connect(url)) as db:
                count += int(db.rows("SELECT count(*) FROM fishladder_journal")[0][0])
        return count

    def _expect(self, dag: str, state: str) -> None:
        assert self.airflow is not None
        say(f"{dag} …")
        found = self.airflow.run(dag)
        if found != state:
            failed = ", ".join(self.airflow.failures(dag)) or "no task"
            raise DemoError(
                f"{dag} ended in {found}, not {state} (failed: {failed}); its log is in {HOME}/airflow/logs"
            )

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        end = time.monotonic() + DRAIN_SECONDS
        while not done():
            if time.monotonic() > end:
                raise DemoError(f"waited {DRAIN_SECONDS:.0f} s for {what}, in vain")
            time.sleep(1.0)

    def _python(
        self, module: str, *arguments: str, environment: dict[str, str] | None = None, check: bool = True
    ) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **self._environment(), **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise DemoError(
                f"python -m {module} {arguments[0] if arguments else ''} failed:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def stop(self) -> None:
        """End everything that the demo started."""
        if self.traffic is not None:
            self.traffic.terminate()
            self.traffic.communicate()
        if self.airflow is not None:
            self.airflow.stop()
        try:
            self.servers.close()
        except DatabaseError as error:
            say(f"the demo's schemas and accounts could not be removed: {error}")

    def summary(self) -> str:
        way = f"from {self.source_name} to {self.target_name}"
        line = f"billing: {self.customers:,} customers {way}, {time.monotonic() - self.began:.0f} s in all"
        return "\n".join([line, *(f"  {name:<18} {fact}" for name, fact in self.facts.items())])


def _for_airflow(url: str) -> str:
    """A connection's URL as Airflow reads it: Oracle's service is an extra there, and its schema the path."""
    parts = urlsplit(url)
    if parts.scheme != "oracle":
        return url
    schema = parts.query.partition("schema=")[2]
    return parts._replace(path=f"/{schema}", query=f"service_name={parts.path[1:]}").geturl()


def say(line: str) -> None:
    print(line, flush=True)


def _choices() -> tuple[bool, bool, int]:
    """AUTO, STORES and CUSTOMERS of the environment. Raises ValueError."""
    auto, stores, customers = (os.environ.get(name, "") for name in ("AUTO", "STORES", "CUSTOMERS"))
    if auto not in ("", "0", "1"):
        raise ValueError(f"AUTO is 1 or nothing, not {auto!r}")
    if stores not in ("", "embedded", "real"):
        raise ValueError(f"STORES is real or nothing, not {stores!r}")
    if customers and not customers.isdigit():
        raise ValueError(f"CUSTOMERS is a number, not {customers!r}")
    return auto == "1", stores == "real", max(100, int(customers or 2000))


def main() -> int:
    try:
        automatic, real, customers = _choices()
    except ValueError as error:
        say(f"make demo: {error}")
        return 2
    try:
        with alone():
            return _play(Demo(real=real, customers=customers, automatic=automatic), automatic)
    except DemoError as error:
        say(f"the demo failed: {error}")
        return 1


@contextmanager
def alone() -> Iterator[None]:
    """``HOME``, empty, and nobody else in it. Raises DemoError while another demo uses it."""
    HOME.mkdir(exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError("another demo is running in this folder; end it first") from error
        for path in HOME.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        yield


def _play(demo: Demo, automatic: bool) -> int:
    finished = False
    try:
        for step in (
            demo.prepare_stores,
            demo.start_traffic,
            demo.start_airflow,
            demo.migrate,
            demo.plant_and_repair,
            demo.move,
            demo.finish,
        ):
            step()
        say("\n" + demo.summary())
        finished = True
        if not automatic:
            assert demo.airflow is not None
            demo.write_environment()
            say(
                f"\nAirflow stays up at {demo.airflow.url}"
                f" (user admin, password {demo.airflow.passwords['admin']}). Ctrl-C ends it.\n"
                "In another shell: . .demo/environment; python -m fishladder status include/migrations/billing.yaml"
            )
            signal.pause()
    except KeyboardInterrupt:
        say("ending")
        return 0 if finished else 130
    finally:
        demo.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
