"""The rights at the ledger that the router's page asks for are enough for an application, and for nothing else."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from fishladder.ledger import Ledger, Queued, open_ledger, upgrade
from tests.servers import mysql
from tests.unit.ledger.test_queue import PAYLOAD

PAGE = Path(__file__).parents[3] / "docs/router.md"
GRANTS = re.findall(r"^GRANT [^;]* ledger_[^;]*;", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def owner(url: str) -> Iterator[Ledger]:
    """Whoever has all rights: here writes may be queued for NZ."""
    if url.startswith("sqlite"):
        pytest.skip("whoever opens the file may do everything")
    upgrade(url)
    with open_ledger(url, migration="billing") as ledger:
        ledger.ensure_routes(["NZ", "AU"], "ada")
        with ledger.engine.begin() as connection:
            connection.execute(text("UPDATE ledger_route SET stage = 'queue' WHERE cohort = 'NZ'"))
        yield ledger


@pytest.fixture
def application(url: str, owner: Ledger, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """An account with what the page says, and no more."""
    name, password, address = f"app{secrets.token_hex(4)}", secrets.token_hex(16), make_url(url)
    mine = address.set(username=name, password=password).render_as_string(hide_password=False)
    if url.startswith("mysql"):
        grants = [grant.replace(" ON ", f" ON {address.database}.") for grant in GRANTS if "SEQUENCE" not in grant]
        with (
            closing(mysql.connect(request.getfixturevalue("mysql_server"))) as admin,
            closing(admin.cursor()) as cursor,
        ):
            cursor.execute(f"CREATE USER {name}@'%' IDENTIFIED BY '{password}'")
            for grant in grants:
                cursor.execute(grant.replace(" TO app;", f" TO {name}@'%'"))
            with open_ledger(mine, migration="billing") as ledger:
                yield ledger
            cursor.execute(f"DROP USER {name}@'%'")
        return
    engine = create_engine(address.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with closing(engine.connect()) as admin_:
        admin_.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'"))
        for grant in GRANTS:
            admin_.execute(text(grant.replace(" TO app;", f" TO {name}")))
        with open_ledger(mine, migration="billing") as ledger:
            yield ledger
        admin_.execute(text(f"DROP OWNED BY {name}"))
        admin_.execute(text(f"DROP ROLE {name}"))
    engine.dispose()


def test_a_router_has_what_it_needs(owner: Ledger, application: Ledger) -> None:
    assert application.routes() == owner.routes()
    queued = application.enqueue("NZ", b"1:7", "charge", "a", "digest", PAYLOAD, optimistic=True, epoch=1)
    assert isinstance(queued, Queued)
    application.note_optimistic(queued, "done")
    route, waiting = application.standing("NZ", b"1:7")
    assert (route, [found.key for found in waiting]) == (owner.route("NZ"), ["a"])
    (found,) = owner.waiting()
    assert (found.key, found.optimistic) == ("a", "done")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_route SET owner = 'target'",
        "UPDATE ledger_queue SET state = 'done'",
        "DELETE FROM ledger_queue",
        "INSERT INTO ledger_audit (migration) VALUES ('billing')",
        "DELETE FROM ledger_audit",
    ],
)
def test_it_can_forge_nothing(application: Ledger, statement: str) -> None:
    with pytest.raises(DBAPIError, match="denied"), application.engine.begin() as connection:
        connection.execute(text(statement))
