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

from billing.demo import ORACLE_COPIER
from fishladder.errors import RowError
from fishladder.stores import connect_url, open_store
from fishladder.stores.base import Fence, Finding
from fishladder.stores.oracle import OracleStore
from fishladder.stores.oracle_triggers import fenced_text
from tests.contract.stores import STORES, Place
from tests.contract.tables import relation, row
from tests.servers import oracle
from tests.servers.oracle import COPIER

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


def test_what_no_trigger_sees_is_told(place: Place) -> None:
    place.administrator().execute("CREATE TABLE note (id NUMBER(19) PRIMARY KEY, body CLOB, more VARCHAR2(9))")
    store = place.open()
    store.install_tables()  # whose own large texts are written by INSERT and UPDATE
    (found,) = (finding for finding in store.inspect() if "locator" in finding.message)
    assert (found.level, found.where) == ("warn", "note.body")


@pytest.mark.parametrize(
    ("view", "exempt"),
    [("all_policies", "EXEMPT ACCESS POLICY"), ("redaction_columns", "EXEMPT REDACTION POLICY")],
)
def test_policies_that_keep_something_from_the_copier_are_refused(
    place: Place, newcomer: str, system: Callable[[str], None], view: str, exempt: str
) -> None:
    if oracle.is_real():
        pytest.skip("an Oracle's policies are not made by writing into its dictionary")
    owner, account = urlsplit(place.admin).username, urlsplit(newcomer).username
    more = (", enable", ", 'YES'") if view == "all_policies" else ("", "")
    system(f"INSERT INTO sys.{view} (object_owner, object_name{more[0]}) VALUES ('{owner}', 'SALARY'{more[1]})")
    system("COMMIT")

    def said() -> list[tuple[str, str]]:
        return [(f.level, f.where) for f in opened(place, newcomer).inspect() if "a policy" in f.message]

    assert said() == [("fail", "salary")]
    system(f"GRANT {exempt} TO {account}")
    assert said() == []


def test_rows_that_were_archived_would_not_be_copied(place: Place) -> None:
    archival = "ROW ARCHIVAL" if oracle.is_real() else ""
    column = "" if oracle.is_real() else ", ora_archive_state VARCHAR2(9)"  # an Oracle adds it by itself, unseen
    place.administrator().execute(f"CREATE TABLE note (id NUMBER(19) PRIMARY KEY{column}) {archival}")
    (found,) = (finding for finding in place.open().inspect() if "ARCHIVAL" in finding.message)
    assert (found.level, found.where) == ("fail", "note") and "ALTER TABLE NOTE NO ROW ARCHIVAL" in found.message


def test_columns_that_a_star_does_not_show_are_columns(place: Place) -> None:
    place.administrator().execute("CREATE TABLE t (id NUMBER(19) PRIMARY KEY, a VARCHAR2(9), b VARCHAR2(9) INVISIBLE)")
    assert [column.name for column in place.open().describe()["t"].columns] == ["id", "a", "b"]


def test_only_fishladders_own_tables_are_removed_at_the_end(place: Place) -> None:
    place.administrator().execute("CREATE TABLE fishladders (id NUMBER(19) PRIMARY KEY)")
    store = place.open()
    store.install_tables()
    store.uninstall()
    assert set(store.describe()) == {"fishladders"}


def test_a_fence_that_nobody_can_lock_is_closed(place: Place) -> None:
    """Two that install at once may leave one of their cohorts out of the function that locks."""
    store = place.open()
    store.install_tables()
    store.install_fences(["AU", "NZ"], "application")
    store.run(fenced_text(["AU"]))
    assert [store.run("SELECT fishladder_fenced(?) FROM dual", [cohort]) for cohort in ("AU", "NZ")] == [
        [(b"application",)],
        [(None,)],
    ]


def test_what_a_row_breaks_is_said_when_it_is_written(place: Place) -> None:
    """Not by the commit of a whole batch, of which nobody would know whose row it was."""
    place.needs("deferred constraints")
    db = place.administrator()
    db.execute("CREATE TABLE parent (id NUMBER(19) PRIMARY KEY)")
    db.execute(
        "CREATE TABLE child (id NUMBER(19) PRIMARY KEY, up NUMBER(19) REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
    )
    store = place.open()
    with pytest.raises(RowError), store.begin() as copy:
        copy.insert(relation(store, "child"), [row(1, 1)])


def test_the_page_grants_what_the_account_of_the_tests_has() -> None:
    page = (Path(__file__).parents[2] / "docs" / "oracle.md").read_text("utf-8")
    (granted,) = re.findall(r"GRANT ([A-Z ,\n]+?) TO copier;", page)
    assert {right.strip() for right in granted.split(",")} == {right.strip() for right in COPIER.split(",")}
    assert {right.strip() for right in ORACLE_COPIER.split(",")} == {right.strip() for right in COPIER.split(",")}


def test_two_prepares_at_once_tell_of_every_fence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that locks fences has their names; the one that stood still would leave out the other's."""
    first, late = place.open(), place.open()
    first.install_tables()
    fences, asked = late.fences, list[bool]()

    def from_before() -> dict[str, Fence]:
        if not asked:
            asked.append(True)
            first.install_fences(["AU", "FR", "NZ"], "application")
            return {}
        return fences()

    monkeypatch.setattr(late, "fences", from_before)
    late.install_fences(["NZ"], "application")
    told = [late.run("SELECT fishladder_fenced(?) FROM dual", [cohort]) for cohort in ("AU", "FR", "NZ")]
    assert told == [[(b"application",)]] * 3
