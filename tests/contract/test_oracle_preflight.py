"""What an Oracle's preflight says of privileges, zones and space, and that the statements it names mend it.

The Oracle wire emulator remembers system privileges that are granted, and enforces none; it has no quotas.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from fishladder.stores import connect_url, open_store
from fishladder.stores.base import Finding
from fishladder.stores.oracle import OracleStore
from tests.contract.stores import STORES, Place
from tests.servers import oracle

ANYWHERE = {
    *(f"{verb} ANY TABLE" for verb in ("SELECT", "INSERT", "UPDATE", "DELETE", "LOCK", "CREATE")),
    *(f"CREATE ANY {kind}" for kind in ("INDEX", "TRIGGER", "SEQUENCE", "PROCEDURE")),
}
AT_THE_END = {
    "ALTER ANY SEQUENCE",
    "SELECT ANY DICTIONARY",
    *(f"DROP ANY {kind}" for kind in ("TRIGGER", "TABLE", "SEQUENCE", "PROCEDURE")),
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with STORES["oracle"](request, tmp_path) as found:
        yield found
        found.close()


@pytest.fixture
def system(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Runs a statement as who administers the server."""
    with closing(oracle.connect(request.getfixturevalue("oracle_server"))) as connection:
        yield lambda sql: connection.cursor().execute(sql)


@pytest.fixture
def newcomer(place: Place, system: Callable[[str], None]) -> Iterator[str]:
    """The URL of an account that may log in, and nothing else, with the schema of the place."""
    name, password, address = f"FL_NEW_{secrets.token_hex(4)}".upper(), secrets.token_hex(8), urlsplit(place.admin)
    system(f'CREATE USER {name} IDENTIFIED BY "{password}"')
    try:
        system(f"GRANT CREATE SESSION TO {name}")
        host = address.netloc.rpartition("@")[2]
        yield urlunsplit(address._replace(netloc=f"{name}:{password}@{host}"))
    finally:
        system(f"DROP USER {name} CASCADE")


def opened(place: Place, url: str) -> OracleStore:
    store = open_store(*connect_url(url))
    assert isinstance(store, OracleStore)
    place.opened.append(store)
    return store


def missing(place: Place, url: str) -> list[Finding]:
    """What the account lacks, as a new session sees it."""
    return [f for f in opened(place, url).inspect() if f.where.startswith("privilege") and f.level != "pass"]


def test_each_missing_privilege_names_the_statement_that_grants_it(
    place: Place, newcomer: str, system: Callable[[str], None]
) -> None:
    found = missing(place, newcomer)
    assert {f.where.removeprefix("privilege ") for f in found if f.level == "fail"} == ANYWHERE
    assert {f.where.removeprefix("privilege ") for f in found if f.level == "warn"} == AT_THE_END
    for finding in found:
        statement = re.search(rf"GRANT [A-Z ]+ TO {urlsplit(newcomer).username}$", finding.message)
        assert statement is not None, finding.message
        system(statement[0])
    assert missing(place, newcomer) == []
    place.close()


def test_in_its_own_schema_an_account_needs_less(place: Place, newcomer: str, system: Callable[[str], None]) -> None:
    name = urlsplit(newcomer).username
    own = urlunsplit(urlsplit(newcomer)._replace(query=f"schema={name}"))
    needed = {f"CREATE {kind}" for kind in ("TABLE", "TRIGGER", "SEQUENCE", "PROCEDURE")}
    assert {f.where.removeprefix("privilege ") for f in missing(place, own) if f.level == "fail"} == needed
    system(f"GRANT {', '.join(sorted(needed))} TO {name}")
    assert [f.level for f in missing(place, own)] == ["warn"]
    place.close()


def test_the_account_of_the_tests_lacks_nothing(place: Place) -> None:
    """It has what docs/oracle.md says."""
    assert missing(place, place.copier) == []


def test_whether_the_application_may_write_is_told(place: Place, newcomer: str, system: Callable[[str], None]) -> None:
    store, name = opened(place, place.copier), urlsplit(newcomer).username or ""
    assert store.may_write(urlsplit(place.admin).username or "") is True  # whose schema it is
    assert store.may_write("application") is True
    assert store.may_write(name) is not True
    system(f"GRANT DELETE ANY TABLE TO {name}")
    assert store.may_write(name.lower()) is True
    place.close()


def test_zones_and_space_are_told(place: Place, system: Callable[[str], None]) -> None:
    store = opened(place, place.copier)
    found = {f.where: f for f in store.inspect()}
    assert (found["NLS_CHARACTERSET"].level, found["time_zone"].level) == ("pass", "pass")
    assert "the copier's own sessions are in UTC" in found["time_zone"].message
    assert (found["tablespace quota"].level, store.disk()) == ("pass", None)
    store.connection().cursor().execute("ALTER SESSION SET TIME_ZONE = '+02:00'")
    system(f"REVOKE UNLIMITED TABLESPACE FROM {urlsplit(place.admin).username}")
    found = {f.where: f for f in store.inspect()}
    assert found["time_zone"].level == "fail" and "+02:00" in found["time_zone"].message
    assert found["tablespace quota"].level != "pass"
