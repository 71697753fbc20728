"""What is wrong with a real MySQL is said, nothing is lost, and the same command goes on once it is mended.

The list of all bad input, with the tests that show each, is in ``tests/unit/test_bad_input.py``.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL, make_url

from fishladder import load, tasks
from fishladder.cli import main
from fishladder.errors import FatalError, InputError
from fishladder.ledger import open_ledger
from fishladder.spec import loads
from fishladder.stores import connect_url, open_store
from fishladder.stores.base import Fenced, Finding, Store
from fishladder.tasks import Desk
from tests import independent, ledgers
from tests.conftest import not_tested
from tests.servers import Unavailable, mysql, oracle, postgres

SPEC = """
migration: odd
strategy: replicate
source: {kind: mysql, connection: old}
target: {kind: mysql, connection: new}
application: {source: old_app, target: new_app}
cohort: {label: country, root: customer, column: country, waves: [["*"]]}
chunk_rows: 100
tables:
  customer: root
  item: {entity: customer_id}
"""
DDL = (
    "CREATE TABLE customer (id BIGINT PRIMARY KEY, country VARCHAR(2), name VARCHAR(40) NOT NULL, born DATE)",
    "CREATE TABLE item (id BIGINT PRIMARY KEY, customer_id BIGINT NOT NULL, amount INT NOT NULL)",
)
TABLES = ["customer", "item"]
PASSWORD = string.punctuation + " äß€😀%41" + string.ascii_letters + string.digits
"""Every special character, some that are not ASCII, and what looks encoded."""


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A migration from one schema of a MySQL to another, with 250 customers of one item each."""

    folder: Path
    source: mysql.Database
    target: mysql.Database
    text: str = SPEC

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.folder}/ledger.db"

    def desk(self, **urls: str) -> Desk:
        """What a new process has. ``urls``: other ones for ``old`` or ``new``."""
        known = {"old": self.source.copier, "new": self.target.copier} | urls

        def open_(name: str) -> Store:
            return open_store(*connect_url(known[name]), name=name)

        spec = loads(self.text, name="odd.yaml", environment={})
        return Desk(spec=spec, ledger=open_ledger(self.ledger_url, migration="odd"), open=open_)

    def run(self, end: str, *statements: str, mode: str | None = None) -> list[tuple[Any, ...]]:
        """Statements of an administrator; ``mode``: the session's sql_mode. Returns the last one's rows."""
        with closing(mysql.connect(getattr(self, end).admin)) as connection, connection.cursor() as cursor:
            if mode is not None:
                cursor.execute(f"SET SESSION sql_mode = '{mode}'")
            for statement in statements:
                cursor.execute(statement)
            connection.commit()
            return list(cursor.fetchall())

    def whole(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that is in the two: how it is declared, and rows."""
        found = {f"triggers of the {end}": self.run(end, "SHOW TRIGGERS") for end in ("source", "target")}
        for end in ("source", "target"):
            for (table,) in self.run(end, "SHOW TABLES"):
                found[f"{end}.{table}"] = self.run(end, f"SHOW CREATE TABLE {table}")
                found[f"{end}.{table}"] += self.run(end, f"SELECT * FROM {table}")
        return found

    def load(self) -> None:
        desk = self.desk()
        for table in tasks.cut(desk):
            tasks.load_table(desk, table, "1")
            tasks.close_table(desk, table)

    def follow(self) -> None:
        tasks.replicate(self.desk(), seconds=30, until_idle=True)

    def differences(self) -> list[str]:
        return independent.compare(self.source.admin, self.target.admin, TABLES)


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own: settings of the whole server are changed here, and other tests run meanwhile."""
    own = mysql.MysqlServer(home=tmp_path_factory.mktemp("server") / "mysql")
    try:
        dsn = own.start()
    except Unavailable as reason:
        not_tested(pytestconfig, "MySQL of its own", reason)
    yield dsn
    own.stop()


@pytest.fixture
def odd(server: str, tmp_path: Path) -> Iterator[Odd]:
    with ExitStack() as stack:
        source, target = (stack.enter_context(mysql.database(server)) for _ in range(2))
        made = Odd(folder=tmp_path, source=source, target=target)
        ledgers.create(made.ledger_url)
        rows = ", ".join(f"({no}, 'NZ', 'somebody', NULL)" for no in range(1, 251))
        items = ", ".join(f"({no}, {no}, 5)" for no in range(1, 251))
        made.run("source", *DDL, f"INSERT INTO customer VALUES {rows}", f"INSERT INTO item VALUES {items}")
        yield made


@pytest.fixture
def setting(server: str) -> Iterator[Callable[[str, str], None]]:
    """Changes a setting of the whole server, until the end of the test."""
    with closing(mysql.connect(server)) as connection, connection.cursor() as cursor, ExitStack() as stack:

        def change(name: str, value: str) -> None:
            cursor.execute(f"SELECT @@GLOBAL.{name}")
            ((old,),) = cursor.fetchall()
            stack.callback(cursor.execute, f"SET GLOBAL {name} = %s", (old,))
            cursor.execute(f"SET GLOBAL {name} = %s", (int(value) if value.isdigit() else value,))

        yield change


def said(found: list[Finding], where: str) -> tuple[str, str]:
    (one,) = [f for f in found if f.where == where]
    return one.level, one.message


# Tables


NO_KEY = r"item +has no primary key in the source: rows cannot be told apart; give it one or leave it out"


@pytest.mark.parametrize(
    ("wrong", "words", "mended"),
    [
        (
            {"source": ["ALTER TABLE item DROP PRIMARY KEY"]},
            NO_KEY,
            {"source": ["ALTER TABLE item ADD PRIMARY KEY (id)"]},
        ),
        ({"source": ["ALTER TABLE item DROP PRIMARY KEY"]}, NO_KEY, {"text": ["  item: {entity: customer_id}\n", ""]}),
        (
            {"target": [*DDL, "ALTER TABLE item DROP PRIMARY KEY"]},
            r"item +its primary key is \(id\) in the source, \(\) in the target",
            {"target": ["ALTER TABLE item ADD PRIMARY KEY (id)"]},
        ),
        (
            {"target": [*DDL, "ALTER TABLE item MODIFY amount DATE NOT NULL"]},
            r"item.amount +int and date have no values in common; give the type with types: \(odd.yaml:11\)",
            {"target": ["ALTER TABLE item MODIFY amount INT NOT NULL"]},
        ),
        (
            {"target": [*DDL, "ALTER TABLE customer MODIFY born VARCHAR(20)"]},
            r"customer.born +date and varchar\(20\) have no values in common; give the type with types: .odd.yaml:10",
            {"text": ["customer: root", "customer: {role: root, types: {born: date}}"]},
        ),
    ],
    ids=["no key", "left out", "no key in the target", "type", "type in the file"],
)
def test_what_does_not_fit_leaves_all_as_it_is_until_it_is_mended(
    odd: Odd, wrong: dict[str, list[str]], words: str, mended: dict[str, list[str]]
) -> None:
    odd.run("source", "UPDATE customer SET born = '2000-02-29' WHERE id < 200")
    for end, statements in wrong.items():
        odd.run(end, *statements)
    held = odd.whole()
    assert [finding.where for finding in tasks.check(odd.desk()) if finding.level == "fail"] == [words.split(" +")[0]]
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            tasks.prepare(odd.desk(), actor="ada")
    assert odd.whole() == held
    tables = TABLES
    for end, statements in mended.items():
        if end == "text":
            odd = replace(odd, text=SPEC.replace(*statements))
            tables = list(odd.desk().spec.tables)
        else:
            odd.run(end, *statements)
    tasks.prepare(odd.desk(), actor="ada")
    odd.load()
    for table in tables:
        copies = [odd.run(end, f"SELECT * FROM {table} ORDER BY id") for end in ("source", "target")]
        ours, theirs = ([[str(cell) for cell in row] for row in rows] for rows in copies)
        assert len(ours) == 250 and ours == theirs
    assert odd.desk().ledger.open_rejects() == []


def test_a_column_that_is_too_small_is_widened(odd: Odd) -> None:
    """What it cannot hold stays in the source, with its reason, and the rest is there."""
    odd.run("target", *DDL, "ALTER TABLE item MODIFY amount TINYINT NOT NULL")
    odd.run("source", "UPDATE item SET amount = 300 WHERE id = 9")
    desk = odd.desk()
    level, message = said(tasks.check(desk), "item.amount")
    assert (level, message) == ("warn", "int can hold more than integer(3): such values become rejects")
    tasks.prepare(desk, actor="ada")
    odd.load()
    (reject,) = desk.ledger.open_rejects()
    assert (reject.table, reject.key, reject.column) == ("item", b"1:9", "amount")
    assert odd.run("target", "SELECT count(*), sum(amount) FROM item") == [(249, 249 * 5)]
    odd.run("target", "ALTER TABLE item MODIFY amount INT NOT NULL")
    tasks.prepare(desk, actor="ada")  # the table is another now
    desk.ledger.retry_rejects(actor="ada")
    odd.follow()
    assert desk.ledger.open_rejects() == [] and odd.differences() == []


# Settings of the server


def test_a_server_that_is_not_strict_changes_nothing(odd: Odd, setting: Callable[[str, str], None]) -> None:
    setting("sql_mode", "")
    for end in ("source", "target"):
        level, message = said(tasks.check(odd.desk()), f"{end}: sql_mode")
        assert level == "warn" and "add STRICT_TRANS_TABLES" in message
    odd.run("source", "INSERT INTO customer VALUES (300, 'NZ', 'early', '0000-00-00')", mode="")
    odd.run("target", *(DDL[0].replace("VARCHAR(40)", "VARCHAR(5)"), DDL[1]))
    odd.run("source", "UPDATE customer SET name = 'short'", "UPDATE customer SET name = 'longer' WHERE id = 7")
    desk = odd.desk()
    tasks.prepare(desk, actor="ada")
    odd.load()
    (reject,) = desk.ledger.open_rejects()
    assert (reject.key, reject.column, reject.error) == (b"1:7", "name", "the value is longer than 5 characters")
    zero = "SELECT CAST(born AS CHAR), name FROM customer WHERE id = 300"
    assert odd.run("target", zero) == odd.run("source", zero) == [("0000-00-00", "short")]
    assert odd.run("target", "SELECT count(*) FROM customer") == [(250,)]
    odd.run("source", "UPDATE customer SET name = 'fits' WHERE id = 7")
    odd.follow()
    assert desk.ledger.open_rejects() == [] and odd.differences() == []


def test_local_infile_that_is_switched_off_while_a_lane_loads(odd: Odd, setting: Callable[[str, str], None]) -> None:
    desk = odd.desk()
    tasks.prepare(desk, actor="ada")
    tasks.cut(desk)
    chunks = 0

    def off(_: load.LaneReport) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 1:
            setting("local_infile", "0")

    with desk.ends() as (plan, (ends,)):
        load.load_lane(plan.table("customer"), ends.origin, ends.destination, desk.ledger, lane="1", progress=off)
    assert chunks == 3
    level, message = said(tasks.check(odd.desk()), "target: local_infile")
    assert level == "warn" and "SET GLOBAL local_infile = ON" in message
    odd.load()  # the rest, by a new process
    assert odd.differences() == [] and desk.ledger.open_rejects() == []


# Accounts


def test_a_right_that_is_taken_away_in_mid_load(odd: Odd) -> None:
    desk = odd.desk()
    tasks.prepare(desk, actor="ada")
    tasks.cut(desk)
    tasks.load_table(desk, "customer", "1")
    odd.run("target", f"GRANT SELECT, UPDATE, DELETE, CREATE, TRIGGER ON `{odd.target.name}`.* TO copier@'%'")
    odd.run("target", f"REVOKE INSERT ON `{odd.target.name}`.* FROM copier@'%'")
    with pytest.raises(FatalError, match=r"INSERT command denied.*preflight names the GRANT"):
        tasks.load_table(odd.desk(), "item", "1")
    level, message = said(tasks.check(odd.desk()), "target: privilege INSERT")
    assert level == "fail"
    assert desk.ledger.open_rejects() == []  # a missing right is nobody's row
    odd.run("target", message[message.index("GRANT") :])
    odd.load()
    assert odd.differences() == []


def test_a_right_without_which_coverage_cannot_be_told(odd: Odd) -> None:
    tasks.prepare(odd.desk(), actor="ada")
    odd.run("source", "REVOKE PROCESS ON *.* FROM copier@'%'")
    found = tasks.check(odd.desk())
    level, message = said(found, "source: coverage")
    assert level == "fail" and message.startswith("cannot be told: ")
    _, message = said(found, "source: privilege PROCESS")
    odd.run("source", message[message.index("GRANT") :])
    level, message = said(tasks.check(odd.desk()), "source: coverage")
    assert (level, message) == ("pass", "tables and triggers are as they were installed")


def test_copier_and_application_by_the_same_account(odd: Odd) -> None:
    both = {"source": "copier", "target": "application"}
    with pytest.raises(InputError, match="both log in as copier; fences cannot tell them apart: give the copier its"):
        tasks.prepare(odd.desk(), actor="ada", accounts=both)
    assert odd.run("source", "SHOW TABLES LIKE 'fishladder%'") == []
    tasks.prepare(odd.desk(), actor="ada", accounts={"source": "application", "target": "application"})


def test_source_and_target_are_one_database_by_two_names(odd: Odd) -> None:
    other = odd.source.admin
    with pytest.raises(InputError, match=r"target +is the source's own database: give new another \(odd.yaml:5\)"):
        tasks.prepare(odd.desk(new=other), actor="ada")
    assert odd.run("source", "SHOW TABLES LIKE 'fishladder%'") == []
    tasks.prepare(odd.desk(), actor="ada")  # another schema of the same server


def test_a_target_that_holds_rows_keeps_them(odd: Odd) -> None:
    odd.run("target", *DDL, "INSERT INTO item VALUES (7, 7, 7)")
    with pytest.raises(InputError, match=r"item +the target's table already holds rows, .* empty it first"):
        tasks.prepare(odd.desk(), actor="ada")
    assert odd.run("target", "SELECT * FROM item") == [(7, 7, 7)]
    odd.run("target", "DELETE FROM item")
    tasks.prepare(odd.desk(), actor="ada")
    odd.load()
    assert odd.differences() == []


@contextmanager
def account(odd: Odd, password: str) -> Iterator[str]:
    """A copier with this password; yields its name."""
    name = f"odd_{odd.source.name}"
    with closing(mysql.connect(odd.source.admin)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (name, password))
        try:
            cursor.execute("GRANT PROCESS ON *.* TO %s@'%%'", (name,))
            for database in (odd.source, odd.target):
                cursor.execute(f"GRANT ALL ON {database.name}.* TO %s@'%%'", (name,))
            yield name
        finally:
            cursor.execute("DROP USER %s@'%%'", (name,))


def test_a_password_of_every_special_character_is_told_to_nobody(
    odd: Odd, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of the stores and, in the target's schema, of the ledger. Then it is wrong."""
    file = odd.folder / "odd.yaml"
    file.write_text(SPEC)
    address = urlsplit(odd.source.admin)
    secrets = {PASSWORD, quote(PASSWORD, safe=""), json.dumps(PASSWORD)[1:-1], "wrong!pass/word"}

    def use(name: str, password: str) -> None:
        login = f"mysql://{name}:{quote(password, safe='')}@{address.hostname}:{address.port}"
        monkeypatch.setenv("FISHLADDER_OLD", f"{login}/{odd.source.name}")
        monkeypatch.setenv("FISHLADDER_NEW", f"{login}/{odd.target.name}")
        monkeypatch.setenv("FISHLADDER_LEDGER", f"{login}/{odd.target.name}")

    with account(odd, PASSWORD) as name, caplog.at_level("DEBUG"):
        use(name, PASSWORD)
        assert main(["ledger", "upgrade"]) == 0
        assert main(["preflight", str(file)]) == 0
        assert main(["draft", "--source", "old", "--target", "new"]) == 0
        assert main(["status", str(file)]) == 0
        kept = str(odd.run("target", "SELECT body FROM ledger_evidence")) + str(
            odd.run("target", "SELECT body FROM ledger_audit")
        )
        use(name, "wrong!pass/word")
        assert main(["draft", "--source", "old", "--target", "new"]) == 1
        assert main(["status", str(file)]) == 1
        told = capfd.readouterr()
    assert f"connection old: MySQL 1045: Access denied for user '{name}'" in told.err
    assert "the ledger's database refused" in told.err and f"{name}:***@" in told.err
    for text in (told.out, told.err, caplog.text, kept):
        assert not [secret for secret in secrets if secret in text]


@contextmanager
def postgres_account(server: str, password: str) -> Iterator[URL]:
    """A fresh database of an account with this password; its address, without that."""
    with postgres.database(server) as database:
        at = make_url(database)
        name = f"odd_{at.database}"
        with psycopg.connect(database, autocommit=True) as admin:
            role = sql.Identifier(name)
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
            try:
                admin.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(role))
                yield at.set(username=name, password=None)
            finally:
                admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
                admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_ledger_s_password_of_every_special_character(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On PostgreSQL; on MySQL above. Percent-encoded whole, and only what docs/cli.md names."""
    try:
        server = postgres.dsn()
    except Unavailable as reason:
        not_tested(pytestconfig, "PostgreSQL", reason)
    named = "".join(quote(one, safe="") if one in "%:@/#?" else one for one in PASSWORD)
    with postgres_account(server, PASSWORD) as at:

        def use(password: str) -> None:
            address = at.render_as_string(hide_password=False)
            monkeypatch.setenv("FISHLADDER_LEDGER", address.replace(f"{at.username}@", f"{at.username}:{password}@", 1))

        for written in (quote(PASSWORD, safe=""), named):
            use(written)
            assert main(["ledger", "upgrade"]) == 0
            assert main(["audit", "verify", "--migration", "odd"]) == 2  # it is reached, and empty
            assert "the ledger knows no migration odd" in capfd.readouterr().err
        use("wrong!pass")
        assert main(["ledger", "upgrade"]) == 1
    told = capfd.readouterr()
    assert "the ledger's database refused" in told.err and f"{at.username}:***@" in told.err
    assert not [one for one in (PASSWORD, quote(PASSWORD, safe=""), named, "wrong!pass") if one in told.out + told.err]


def test_an_oracle_s_password_of_every_special_character(oracle_database: oracle.Database) -> None:
    """But for the one that Oracle takes in none."""
    password, name = string.punctuation.replace('"', ""), f"ODD{oracle_database.name}"
    at = urlsplit(oracle_database.copier)

    def store(secret: str) -> Store:
        login = f"oracle://{name}:{quote(secret, safe='')}@{at.hostname}:{at.port}{at.path}"
        return open_store(*connect_url(login), name="old")

    with closing(oracle.connect(oracle.dsn())) as system, closing(system.cursor()) as cursor:
        cursor.execute(f'CREATE USER {name} IDENTIFIED BY "{password}"')
        try:
            cursor.execute(f"GRANT CREATE SESSION TO {name}")
            with closing(store(password)) as opened:
                assert isinstance(opened, Fenced) and opened.account().upper() == name
            with pytest.raises(FatalError, match="connection old: Oracle: ORA-01017") as refused:
                store("wr^ng").describe()
        finally:
            cursor.execute(f"DROP USER {name} CASCADE")
    assert "wr^ng" not in str(refused.value) and password not in str(refused.value)


# Values


def test_a_character_that_the_target_s_column_has_not(odd: Odd) -> None:
    odd.run("target", DDL[0].replace("NOT NULL, born", "CHARACTER SET latin1 NOT NULL, born"), DDL[1])
    odd.run("source", "UPDATE customer SET name = '日本' WHERE id = 9")
    desk = odd.desk()
    level, message = next(
        (f.level, f.message) for f in tasks.check(desk) if f.where == "customer.name" and f.level != "pass"
    )
    assert level == "warn" and "latin1 cannot hold every character" in message
    tasks.prepare(desk, actor="ada")
    odd.load()
    assert [(reject.key, reject.column) for reject in desk.ledger.open_rejects()] == [(b"1:9", "name")]
    odd.run("target", "ALTER TABLE customer MODIFY name VARCHAR(40) CHARACTER SET utf8mb4 NOT NULL")
    tasks.prepare(desk, actor="ada")  # the table is another now
    desk.ledger.retry_rejects(actor="ada")
    odd.follow()
    assert desk.ledger.open_rejects() == [] and odd.differences() == []


def test_a_time_with_a_zone_and_one_without(odd: Odd) -> None:
    odd.run("source", "ALTER TABLE item ADD seen TIMESTAMP(6) NULL")
    odd.run("target", *DDL, "ALTER TABLE item ADD seen DATETIME(6) NULL")
    text = SPEC.replace("{entity: customer_id}", "{entity: customer_id, types: {seen: timestamp(6)}}")
    for words in (SPEC, text):
        at = replace(odd.desk(), spec=loads(words, name="odd.yaml", environment={}))
        with pytest.raises(
            InputError, match=r"item.seen +timestamp\(6\) and datetime\(6\): one has a zone and .*; give"
        ):
            tasks.prepare(at, actor="ada")
    odd.run("target", "ALTER TABLE item MODIFY seen TIMESTAMP(6) NULL")
    tasks.prepare(odd.desk(), actor="ada")
    odd.run("source", "SET time_zone = '+12:00'", "UPDATE item SET seen = '2026-01-31 12:00:00.5' WHERE id = 3")
    odd.load()
    seen = odd.run("target", "SET time_zone = '+00:00'", "SELECT seen FROM item WHERE id = 3")
    assert [str(value) for (value,) in seen] == ["2026-01-31 00:00:00.500000"]
    assert odd.differences() == []


def test_a_source_whose_own_zone_is_another(
    odd: Odd, setting: Callable[[str, str], None], mysql_database: mysql.Database
) -> None:
    """Than the target's. A moment is the same one in both; what has no zone is copied as it was written."""
    setting("time_zone", "+12:00")
    odd = replace(odd, target=mysql_database)
    odd.run(
        "source",
        "ALTER TABLE item ADD seen TIMESTAMP(6) NULL, ADD noted DATETIME(6) NULL",
        "UPDATE item SET seen = '2026-01-31 12:00:00.5', noted = seen WHERE id < 200",
    )
    level, message = said(tasks.check(odd.desk()), "source: time_zone")
    assert level == "pass" and message.startswith("+12:00 (the system's is ")
    tasks.prepare(odd.desk(), actor="ada")
    odd.load()
    odd.run(
        "source",
        "UPDATE item SET seen = seen + INTERVAL 1 DAY, noted = noted + INTERVAL 1 DAY WHERE id = 3",
        "INSERT INTO item VALUES (251, 1, 5, '2026-03-29 02:30:00', '2026-03-29 02:30:00')",
        "DELETE FROM item WHERE id = 4",
    )
    odd.follow()
    times = "SELECT id, CAST(seen AS CHAR), CAST(noted AS CHAR) FROM item WHERE id IN (2, 3, 4, 250, 251) ORDER BY id"
    assert odd.run("target", "SET time_zone = '+00:00'", times) == [
        (2, "2026-01-31 00:00:00.500000", "2026-01-31 12:00:00.500000"),
        (3, "2026-02-01 00:00:00.500000", "2026-02-01 12:00:00.500000"),
        (250, None, None),
        (251, "2026-03-28 14:30:00.000000", "2026-03-29 02:30:00.000000"),
    ]
    assert odd.desk().ledger.open_rejects() == [] and odd.differences() == []
