"""What a store says about its tables, and tables that it creates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billing import schema
from fishladder.cells import parse_type
from fishladder.errors import FatalError
from fishladder.stores.base import ForeignKey, TableInfo
from tests.contract.stores import Place
from tests.contract.tables import column, table


def test_the_billing_tables(place: Place) -> None:
    schema.create(place.admin)
    tables = place.open().describe()
    assert set(tables) == set(schema.TABLES)
    invoice: TableInfo = tables["invoice"]
    assert invoice.key == ("id",)
    assert invoice.uniques == (("customer_id", "period"),)
    (up,) = invoice.foreign_keys
    assert (up.columns, up.parent, up.parent_columns) == (("customer_id",), "customer", ("id",))
    assert up.on_delete == "CASCADE"
    assert up.on_update in ("NO ACTION", "RESTRICT")
    assert {c.name: str(c.type) for c in invoice.columns} == {
        "id": "integer(19)",
        "customer_id": "integer(19)",
        "period": "string(7)",
        "status": "string(10)",
        "total": "decimal(12,2)",
        "credit_used": "decimal(12,2)",
        "document_digest": "bytes",
        "created_at": "timestamp(6)",
    }
    assert [c.name for c in invoice.columns if c.generated] == ["id"]
    assert [c.name for c in invoice.columns if c.nullable] == ["document_digest"]
    customer = {c.name: c for c in tables["customer"].columns}
    oracle = place.kind == "oracle"
    assert str(customer["newsletter"].type) == ("integer(1)" if oracle else "boolean")
    assert str(customer["born_on"].type) == ("timestamp(0)" if oracle else "date")
    assert customer["email"].bytewise
    assert len(tables["payment"].foreign_keys) == 2
    assert tables["gift_card"].key == ("code",)
    assert tables["gift_card"].foreign_keys[0].on_delete in ("NO ACTION", "RESTRICT")


ODD = {
    "sqlite": """
        CREATE TABLE odd (a INTEGER, b INTEGER NOT NULL, double_b INTEGER GENERATED ALWAYS AS (b * 2),
            name VARCHAR(9) COLLATE NOCASE, whatever, at DATETIME(3), PRIMARY KEY (b, a));
        CREATE TABLE child (id INTEGER PRIMARY KEY, b INTEGER, a INTEGER,
            FOREIGN KEY (b, a) REFERENCES odd (b, a) ON DELETE SET NULL ON UPDATE CASCADE);
        CREATE TABLE keyless (a INTEGER);
        CREATE TABLE dated (at DATETIME(6) NOT NULL PRIMARY KEY)
    """,
    "mysql": """
        CREATE TABLE odd (a INT NOT NULL, b INT NOT NULL, double_b INT GENERATED ALWAYS AS (b * 2) STORED,
            name VARCHAR(9) COLLATE utf8mb4_general_ci, whatever POINT, at DATETIME(3), KEY (a),
            PRIMARY KEY (b, a));
        CREATE TABLE child (id INT PRIMARY KEY, b INT, a INT,
            FOREIGN KEY (b, a) REFERENCES odd (b, a) ON DELETE SET NULL ON UPDATE CASCADE);
        CREATE TABLE keyless (a INT);
        CREATE TABLE dated (at ENUM('b', 'a') NOT NULL PRIMARY KEY)
    """,
    "oracle": """
        CREATE TABLE odd (a NUMBER(10) NOT NULL, b NUMBER(10) NOT NULL, name CHAR(9),
            whatever INTERVAL DAY TO SECOND, at TIMESTAMP(3), PRIMARY KEY (b, a));
        CREATE TABLE child (id NUMBER(10) PRIMARY KEY, b NUMBER(10), a NUMBER(10),
            FOREIGN KEY (b, a) REFERENCES odd (b, a) ON DELETE SET NULL);
        CREATE TABLE keyless (a NUMBER(10));
        CREATE TABLE dated (at NVARCHAR2(9) NOT NULL PRIMARY KEY)
    """,
}


def test_odd_tables(place: Place) -> None:
    place.administrator().script(ODD[place.kind])
    store = place.open()
    store.install_tables()
    tables = store.describe()
    assert set(tables) == {"odd", "child", "keyless", "dated"}  # none of fishladder's own
    odd = {c.name: c for c in tables["odd"].columns}
    assert tables["odd"].key == ("b", "a")
    if place.kind != "oracle":  # the wire emulator has no virtual columns: not verified on Oracle
        assert [name for name, c in odd.items() if c.computed] == ["double_b"]
    assert [name for name, c in odd.items() if not c.bytewise] == ["name"]
    assert odd["whatever"].type is None
    assert odd["at"].type == parse_type("timestamp(3)")
    follows = "NO ACTION" if place.kind == "oracle" else "CASCADE"
    assert tables["child"].foreign_keys == (
        ForeignKey(
            columns=("b", "a"), parent="odd", parent_columns=("b", "a"), on_delete="SET NULL", on_update=follows
        ),
    )
    assert tables["keyless"].key == ()
    assert tables["dated"].columns[0].type is None  # as a key it could not be told apart, or not be cut


def test_a_created_table_is_what_was_asked_for(place: Place) -> None:
    store = place.open()
    parent = table("parent", ["id"], column("id", "integer(19)", nullable=False, generated=True))
    columns = [
        column("id", "integer(19)", nullable=False),
        column("code", "string(20)", nullable=False),
        column("parent_id", "integer(19)"),
        column("amount", "decimal(12,2)"),
        column("free", "string"),
        column("body", "bytes"),
        column("flag", "boolean", nullable=False),
        column("day", "date"),
        column("at", "timestamp(3)"),
        column("ratio", "double"),
    ]
    up = ForeignKey(columns=("parent_id",), parent="parent", parent_columns=("id",), on_delete="CASCADE")
    child = table("child", ["code", "id"], *columns, uniques=(("parent_id", "day"),), foreign_keys=(up,))
    for one in (parent, child):
        store.create_table(one)
    found = store.describe()["child"]
    words = {"boolean": "integer(1)", "date": "timestamp(0)"} if place.kind == "oracle" else {}
    wanted = [(c.name, words.get(str(c.type), str(c.type)), c.nullable) for c in columns]
    assert [(c.name, str(c.type), c.nullable) for c in found.columns] == wanted
    assert (found.key, found.uniques, found.foreign_keys) == (child.key, child.uniques, child.foreign_keys)
    assert all(c.bytewise for c in found.columns if c.name == "code")
    assert store.describe()["parent"].columns[0].generated
    # Once more from what was read back: what one store says, another can be asked for.
    store.create_table(replace(found, name="again", foreign_keys=()))
    assert [c.type for c in store.describe()["again"].columns] == [c.type for c in found.columns]


def test_a_type_that_cannot_be_carried_is_refused(place: Place) -> None:
    store = place.open()
    odd = replace(column("v", "string"), type=None, native="geometry")
    with pytest.raises(FatalError, match=r"t\.v: geometry has no type here"):
        store.create_table(table("t", ["id"], column("id", "integer(19)", nullable=False), odd))


def test_the_estimate_follows_the_rows(place: Place) -> None:
    place.needs("estimates")
    db, store = place.administrator(), place.open()
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    assert store.describe()["t"].rows == 0
    db.insert_many("INSERT INTO t VALUES (?)", [(number,) for number in range(1000)])
    if place.kind != "sqlite":
        db.execute("ANALYZE TABLE t" + (" COMPUTE STATISTICS" if place.kind == "oracle" else ""))
    assert 500 <= store.describe()["t"].rows <= 2000


def test_the_bytes_of_a_table_grow_with_its_rows(place: Place) -> None:
    """As preflight's capacity adds them up. A store that takes no statistics says 0; SQLite knows its file's size."""
    db, store = place.administrator(), place.open()
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body VARCHAR(200))")
    in_file = place.kind == "sqlite"
    tells = not in_file and "estimates" not in place.lacks

    def size() -> int:
        if tells:
            db.execute("ANALYZE TABLE t" + (" COMPUTE STATISTICS" if place.kind == "oracle" else ""))
            return int(store.describe()["t"].bytes)
        assert store.describe()["t"].bytes == 0
        return int(store.disk()[0]) if in_file else 0

    empty = size()
    for start in range(0, 3_000, 1_000):
        db.insert_many("INSERT INTO t VALUES (?, ?)", [(start + number, "x" * 200) for number in range(1_000)])
    low, high = (600_000, 3_000_000) if tells or in_file else (0, 0)
    assert low <= size() - empty <= high


def test_whether_names_are_told_apart_by_case(place: Place) -> None:
    store = place.open()
    one, other = (table(name, ["id"], column("id", "integer(19)", nullable=False)) for name in ("item", "Item"))
    store.create_table(one)
    if store.folds_names:
        with pytest.raises(FatalError):
            store.create_table(other)
    else:
        store.create_table(other)
        assert set(store.describe()) == {"item", "Item"}


def test_preflight_finds_nothing_wrong_here(place: Place) -> None:
    assert [finding.where for finding in place.open().inspect() if finding.level != "pass"] == []


def test_preflight_names_triggers_of_others(place: Place) -> None:
    place.needs("accounts")
    place.administrator().execute("CREATE TABLE t (id INT PRIMARY KEY)")
    does = "BEGIN NULL; END;" if place.kind == "oracle" else "SET @x = 1"
    place.administrator().execute(f"CREATE TRIGGER theirs AFTER INSERT ON t FOR EACH ROW {does}")
    assert any(f.level == "warn" and f.where == "t" and "theirs" in f.message for f in place.open().inspect())


def test_accounts_differ(place: Place) -> None:
    place.needs("accounts")
    assert place.open().account() == "copier"
