"""Privileges and character sets on real servers: what is missing is named, and the statement that is named mends it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing.database import Database
from fishladder import install
from fishladder.errors import FatalError
from fishladder.ledger import open_ledger
from fishladder.preflight import preflight
from fishladder.spec import loads
from fishladder.stores import connect_url, open_application, open_store
from fishladder.stores.base import Finding, Store
from fishladder.stores.mysql import MySqlStore
from fishladder.stores.mysql_schema import inspect
from tests import ledgers
from tests.contract.shop import open_shop
from tests.contract.stores import STORES, Place

SPEC = """
migration: fits
strategy: replicate
source: {kind: mysql, connection: source}
target: {kind: mysql, connection: target}
application: {source: source_app, target: target_app}
cohort: {label: country, root: customer, column: country, waves: [["*"]]}
tables:
  customer: root
"""


@pytest.fixture(params=["mysql", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        found = stack.enter_context(STORES[request.param](request, tmp_path))
        stack.callback(found.close)
        yield found


@pytest.fixture
def newcomer(place: Place) -> Iterator[tuple[Place, str]]:
    """A server and the URL of an account that has no more than the right to read the schema."""
    name, password, admin = f"fl_new_{secrets.token_hex(4)}", secrets.token_hex(8), place.administrator()
    address = urlsplit(place.admin)
    admin.execute(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{password}'")
    try:
        admin.execute(f"GRANT SELECT ON `{address.path[1:]}`.* TO '{name}'@'%'")
        yield place, f"mysql://{name}:{password}@{address.hostname}:{address.port}{address.path}"
    finally:
        admin.execute(f"DROP USER '{name}'@'%'")


def missing(url: str) -> list[Finding]:
    """What the account lacks, as a new session sees it."""
    store = open_store(*connect_url(url))
    assert isinstance(store, MySqlStore)
    try:
        return [f for f in store.inspect() if f.where.startswith("privilege") and f.level != "pass"]
    finally:
        store.close()


def test_each_missing_privilege_names_the_statement_that_grants_it(newcomer: tuple[Place, str]) -> None:
    place, url = newcomer
    found = missing(url)
    fails = {f.where.removeprefix("privilege ") for f in found if f.level == "fail"}
    assert fails == {"INSERT", "UPDATE", "DELETE", "TRIGGER", "CREATE", "LOCK TABLES", "PROCESS"}
    assert {f.where for f in found if f.level == "warn"} == {f"privilege {w}" for w in ("ALTER", "REFERENCES", "DROP")}
    admin = place.administrator()
    for finding in found:
        statement = re.search(r"GRANT .+ ON \S+ TO '\w+'@'%'$", finding.message)
        assert statement is not None, finding.message
        admin.execute(statement[0])
        assert finding.where not in {f.where for f in missing(url)}
    assert missing(url) == []


def test_a_privilege_on_single_tables_is_not_enough(newcomer: tuple[Place, str]) -> None:
    place, url = newcomer
    admin = place.administrator()
    admin.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    admin.execute(f"GRANT INSERT, UPDATE ON t TO '{urlsplit(url).username}'@'%'")
    levels = {f.where: (f.level, f.message) for f in missing(url)}
    assert levels["privilege INSERT"][0] == "warn"
    assert "granted for single tables only; is needed to write rows" in levels["privilege INSERT"][1]


def test_a_role_and_a_pattern_count(newcomer: tuple[Place, str]) -> None:
    place, url = newcomer
    admin, user, role = place.administrator(), urlsplit(url).username, f"fl_role_{secrets.token_hex(4)}"
    schema = urlsplit(url).path[1:]
    admin.execute(f"CREATE ROLE {role}")
    try:
        admin.execute(f"GRANT INSERT, UPDATE ON `{schema[:-1]}_`.* TO {role}")
        admin.execute(f"GRANT {role} TO '{user}'@'%'")
        admin.execute(f"SET DEFAULT ROLE {role} {'FOR' if 'Mar' in type(place).__name__ else 'TO'} '{user}'@'%'")
        assert not {f.where for f in missing(url)} & {"privilege INSERT", "privilege UPDATE"}
    finally:
        admin.execute(f"DROP ROLE {role}")


def test_whether_the_application_may_write_is_told_where_it_can_be_seen(newcomer: tuple[Place, str]) -> None:
    place, url = newcomer
    user, schema = urlsplit(url).username or "", urlsplit(url).path[1:]
    admin, store = place.administrator(), open_store(*connect_url(url))
    assert isinstance(store, MySqlStore)
    place.opened.append(store)
    assert store.may_write("application") is None
    admin.execute(f"GRANT SELECT ON mysql.* TO '{user}'@'%'")
    assert store.may_write("application") is True
    admin.execute(f"REVOKE INSERT, UPDATE, DELETE ON `{schema}`.* FROM application@'%'")
    assert store.may_write("application") is False


def router_rights() -> list[tuple[str, str]]:
    """Right and table, of what docs/router.md grants the application in a store."""
    page = (Path(__file__).parents[2] / "docs" / "router.md").read_text()
    grants = re.findall(r"^GRANT (.+) ON (fishladder_\w+) TO app;", page, re.M)
    return [(right, table) for rights, table in grants for right in rights.split(", ")]


def test_an_application_needs_the_rights_that_are_documented_for_its_router_and_no_more(
    newcomer: tuple[Place, str],
) -> None:
    place, url = newcomer
    grants = router_rights()
    assert len(grants) == 4
    user, schema = urlsplit(url).username or "", urlsplit(url).path[1:]
    admin = place.administrator()
    open_shop(place)
    admin.execute(f"REVOKE SELECT ON `{schema}`.* FROM '{user}'@'%'")
    for right, table in grants:
        admin.execute(f"GRANT {right} ON {table} TO '{user}'@'%'")
    with closing(open_application(*connect_url(url))) as application:
        application.try_out("NZ")
    for right, table in grants:
        admin.execute(f"REVOKE {right} ON {table} FROM '{user}'@'%'")
        with (
            closing(open_application(*connect_url(url))) as application,
            pytest.raises(FatalError, match=f"(?i){right} command denied.*{table}"),
        ):
            application.try_out("NZ")
        admin.execute(f"GRANT {right} ON {table} TO '{user}'@'%'")
    assert admin.rows("SELECT * FROM fishladder_applied") == []


def test_a_replica_that_may_not_be_asked_names_the_right(newcomer: tuple[Place, str], tmp_path: Path) -> None:
    place, url = newcomer
    text = SPEC.replace("connection: target}", "connection: target, replicas: [copy]}")
    spec = loads(text, name="fits.yaml", environment={})
    place.administrator().execute(TABLE.format("utf8mb4", ""))

    def replica() -> Finding:
        source, target = place.open(), place.open()
        tables = source.describe()
        ledgers.create(f"sqlite:///{tmp_path}/ledger.db")
        with open_ledger(f"sqlite:///{tmp_path}/ledger.db", migration="fits") as ledger:
            found, _ = preflight(
                spec, source, target, ledger, ours=tables, theirs=tables, open=lambda _: open_store(*connect_url(url))
            )
        return next(f for f in found if f.where == "replica copy")

    found, right = replica(), "REPLICA MONITOR" if "Mar" in type(place).__name__ else "REPLICATION CLIENT"
    assert found.level == "fail" and f"GRANT {right} ON *.*" in found.message
    place.administrator().execute(f"GRANT {right} ON *.* TO '{urlsplit(url).username}'@'%'")
    assert (replica().level, "follows nothing" in replica().message) == ("warn", True)


# Both ends

TABLE = "CREATE TABLE customer (id BIGINT PRIMARY KEY, country VARCHAR(2) CHARACTER SET {}, name VARCHAR(9) {} UNIQUE)"


@pytest.fixture
def ends(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    kind = "mariadb" if "Mar" in type(place).__name__ else "mysql"
    with STORES[kind](request, tmp_path) as other:
        yield place, other
        other.close()


def told(ends: tuple[Place, Place], tmp_path: Path, ours: str, theirs: str, **known: str) -> list[Finding]:
    for place, text in zip(ends, (ours, theirs), strict=True):
        db: Database = place.administrator()
        if text:
            db.execute(text)
    source, target = (place.open() for place in ends)
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledgers.create(url)
    with open_ledger(url, migration="fits") as ledger:
        spec = loads(SPEC, name="fits.yaml", environment={})
        tables = source.describe(), target.describe()
        missing = [] if theirs else ["customer"]
        there = {**tables[1], **install.imagined_tables(spec, tables[0], missing)}
        found, _ = preflight(
            spec, source, target, ledger, ours=tables[0], theirs=there, missing=missing, accounts=known or None
        )
    return found


def test_character_sets_and_collations_of_unique_keys(ends: tuple[Place, Place], tmp_path: Path) -> None:
    ours = TABLE.format("utf8mb4", "COLLATE utf8mb4_unicode_ci")
    theirs = TABLE.format("latin1", "COLLATE utf8mb4_general_ci")
    found = {(f.where, f.level, f.message) for f in told(ends, tmp_path, ours, theirs)}
    assert any(w == "customer.country" and "the target's latin1 cannot hold every character" in m for w, _, m in found)
    words = "name is unique by utf8mb4_unicode_ci in the source and by utf8mb4_general_ci in the target"
    assert any(w == "customer" and level == "warn" and words in m for w, level, m in found)


def test_a_character_set_matters_on_the_way_back(ends: tuple[Place, Place], tmp_path: Path) -> None:
    ours, theirs = TABLE.format("latin1", ""), TABLE.format("utf8mb4", "")
    messages = [f.message for f in told(ends, tmp_path, ours, theirs) if f.where == "customer.country"]
    assert any(m.startswith("on the way back: the source's latin1 cannot hold every character") for m in messages)


def test_rights_that_the_copier_cannot_see_are_left_to_a_person(ends: tuple[Place, Place], tmp_path: Path) -> None:
    found = told(ends, tmp_path, TABLE.format("utf8mb4", ""), "", source="application", target="application")
    (rights,) = [f for f in found if f.where == "target: application"]
    assert rights.level == "warn"
    assert "the copier does not see the rights of application" in rights.message


def test_an_application_that_may_write_before_the_load_has_ended_is_told(
    newcomer: tuple[Place, str], ends: tuple[Place, Place], tmp_path: Path
) -> None:
    """To a copier that sees the rights of others."""
    place, url = newcomer
    target, admin = replace(place, copier=url), place.administrator()
    admin.execute(f"GRANT SELECT ON mysql.* TO '{urlsplit(url).username}'@'%'")

    def rights(ours: str = "") -> tuple[str, str]:
        found = told((ends[1], target), tmp_path, ours, "", source="application", target="application")
        (one,) = [f for f in found if f.where == "target: application"]
        return one.level, one.message

    words = "application may write here, and nothing refuses it before the load has ended: revoke that until then"
    assert rights(TABLE.format("utf8mb4", "")) == ("warn", words)
    admin.execute(f"REVOKE INSERT, UPDATE, DELETE ON `{urlsplit(url).path[1:]}`.* FROM application@'%'")
    assert rights() == ("pass", "application may not write here before the load has ended")


def test_time_zones_and_character_sets_of_the_server_are_told(place: Place) -> None:
    store: Store = place.open()
    assert isinstance(store, MySqlStore)
    found = {f.where: f for f in store.inspect()}
    ((zone,),) = place.administrator().rows("SELECT @@GLOBAL.time_zone")
    assert found["time_zone"].message.startswith(f"{zone} (the system's is ")
    assert found["character_set_connection"].level == "pass"
    assert found["character_set_database"].level == "pass"
    schema = urlsplit(place.admin).path[1:]
    place.administrator().execute(f"ALTER DATABASE `{schema}` CHARACTER SET latin1")
    changed = {f.where: f for f in place.open().inspect()}["character_set_database"]
    assert changed.level == "warn" and "is latin1" in changed.message


def set_to(place: Place, name: bytes, setting: bytes, **others: bytes) -> Finding:
    """Not on the server, where other tests are at work. ``others``: settings that matter to the same finding."""
    real = place.open().run

    def run(sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        rows = real(sql, parameters)
        changed = {other.encode(): value for other, value in others.items()} | {name: setting}
        return list((dict(rows) | changed).items()) if sql == "SHOW VARIABLES" else rows

    return {finding.where: finding for finding in inspect(run)}[name.decode()]


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        (b"innodb_native_foreign_keys", b"ON", "must be OFF: it has not been shown that cascades are journaled"),
        (b"explicit_defaults_for_timestamp", b"OFF", "must be ON: a NULL would become the current time"),
        (b"character_set_connection", b"latin1", "is latin1: texts would be changed on their way; let init_connect"),
    ],
)
def test_settings_that_change_or_hide_what_is_written_fail(
    place: Place, name: bytes, setting: bytes, words: str
) -> None:
    assert [f.level for f in place.open().inspect() if f.where.encode() == name] == ["pass"]
    found = set_to(place, name, setting)
    assert found.level == "fail" and found.message.startswith(words)


def test_a_binary_log_without_trust_is_told_to_who_has_no_right_to_all(place: Place) -> None:
    def told(trust: bytes, *, log: bytes = b"ON", account: str = place.copier) -> Finding:
        return set_to(replace(place, copier=account), b"log_bin_trust_function_creators", trust, log_bin=log)

    assert told(b"OFF").level == "fail"
    assert "SET GLOBAL log_bin_trust_function_creators = ON" in told(b"OFF").message
    assert (told(b"ON").level, told(b"OFF", log=b"OFF").level) == ("pass", "pass")
    assert told(b"OFF", account=place.admin).level == "pass"  # who has SUPER


def test_servers_where_several_may_write_are_told(place: Place) -> None:
    """Their locks, and so the fences, hold within one of them."""
    group, galera = b"group_replication_single_primary_mode", b"wsrep_on"
    assert [f.level for f in place.open().inspect() if f.where.encode() in (group, galera)] == ["pass", "pass"]
    assert (set_to(place, group, b"OFF").level, set_to(place, galera, b"ON").level) == ("fail", "warn")


def test_a_server_whose_commits_a_crash_takes_back_is_told(place: Place) -> None:
    def told(setting: bytes) -> Finding:
        return set_to(place, b"innodb_flush_log_at_trx_commit", setting)

    assert told(b"0").level == "fail" and "is 0: a crash of the server takes back copies" in told(b"0").message
    assert told(b"2").level == "warn" and "is 2: a crash of the machine takes back copies" in told(b"2").message
    assert told(b"1").level == "pass"
