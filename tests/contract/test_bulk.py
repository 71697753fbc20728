"""Loading the fast way and the general one: the same rows arrive, and the same ones do not."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import MySQLdb
import pytest

from fishladder.cells import Row
from fishladder.errors import RowError, TransientError
from fishladder.load import Refusal, insert_all_that_fit
from fishladder.plan import PlanTable
from fishladder.stores import mysql_bulk, open_store
from fishladder.stores.base import Relation
from tests.contract.stores import Place
from tests.contract.tables import column, read, relation, row, table, write
from tests.contract.test_cells import VALUES

# The others have one way to load, as test_rows.py shows, and other tests take it.
pytestmark = pytest.mark.parametrize("place", ["mysql", "mariadb"], indirect=True)

BATCH = 1_000
MANY = 12_000


@dataclass(frozen=True, kw_only=True)
class Loading:
    """One way to load into one store. ``fast``: it is the one that takes all rows or none."""

    place: Place
    store: Any
    fast: bool

    def load(self, found: Relation, rows: Sequence[Row], *, slow: bool = False) -> tuple[int, list[Refusal]]:
        """Rows written, and those that were not. ``slow``: something in them is not for the fast way."""
        plain = PlanTable(name=found.table, source=found, target=found, serial=False, alike=True)
        with self.store.begin() as copy:
            if self.fast and not slow:
                copy.insert = lambda *_: pytest.fail("the rows went the slow way")
            done = insert_all_that_fit(copy, plain, lambda: batches(rows))
            copy.commit()
        return done


def batches(rows: Sequence[Row]) -> Generator[list[Row], None, None]:
    for start in range(0, len(rows), BATCH):
        yield list(rows[start : start + BATCH])


@pytest.fixture(params=["fast", "general"])
def loading(request: pytest.FixtureRequest, place: Place) -> Loading:
    store = place.open()
    store.install_tables()
    fast = request.param == "fast"
    if not fast:
        store.bulk = False
    return Loading(place=place, store=store, fast=fast)


@pytest.fixture
def notes(loading: Loading) -> Relation:
    """A table of numbers and short texts, the numbers unique."""
    columns = [
        column("id", "integer(19)", nullable=False),
        column("number", "integer(19)"),
        column("text", "string(9)"),
    ]
    loading.store.create_table(table("notes", ["id"], *columns, uniques=(("number",),)))
    return relation(loading.store, "notes")


def many(*others: Row) -> list[Row]:
    """Rows by key, some of which are the given ones."""
    given = {line[0]: line for line in others}
    return [given.get(b"%d" % no) or row(no, no, f"text {no % 7}") for no in range(1, MANY + 1)]


def left(rows: Sequence[Row], *without: int) -> list[Row]:
    return [line for line in rows if int(line[0] or b"") not in without]


def test_every_value_of_every_type(loading: Loading) -> None:
    columns = [column(f"c{at}", type_) for at, type_ in enumerate(VALUES)]
    loading.store.create_table(table("t", ["id"], column("id", "integer(19)", nullable=False), *columns))
    found = relation(loading.store, "t", types={f"c{at}": type_ for at, type_ in enumerate(VALUES)})
    longest = max(map(len, VALUES.values()))
    lacking = "negative zero" in loading.place.lacks
    rows = [
        row(no, *("0.5" if lacking and cell == "-0.0" else cell for cell in cells))
        for no, cells in enumerate(
            [values[no] if no < len(values) else None for values in VALUES.values()] for no in range(longest + 1)
        )
    ]
    assert loading.load(found, rows) == (len(rows), [])
    assert read(loading.store, found) == rows


TEXTS = [
    "", None, " ", "\\", "\\\\", "\\N", "N", "\\\x1f", "\x1f", "\x1e", "\x1d", "\x1e\x1f\x1d\\", "a\x1eb", "\0", "\\0",
    "\n", "\r\n", "\t", "'", '"', "🎬", "ÿ", "NULL", "\x1a", "%s", "/*", "\x1d\\N", "\\\x1d", "\x7f",
]  # fmt: skip


def test_texts_that_look_like_something_else(loading: Loading, notes: Relation) -> None:
    for texts in [
        TEXTS,
        *([text] for text in TEXTS),
        [text for text in TEXTS if text and not set(text) & set("\x1d\x1e\x1f")],
    ]:
        rows = [row(no, None, text) for no, text in enumerate(texts, start=1)]
        assert loading.load(notes, rows) == (len(rows), [])
        assert read(loading.store, notes) == rows
        with loading.store.begin() as transaction:
            transaction.delete(notes, [b"%d:%s" % (len(line[0] or b""), line[0] or b"") for line in rows])
            transaction.commit()


def test_no_rows(loading: Loading, notes: Relation) -> None:
    assert loading.load(notes, []) == (0, [])


def test_one_bad_row_among_many(loading: Loading, notes: Relation) -> None:
    rows = many(row(7_777, 7_777, "much too long"))
    written, refused = loading.load(notes, rows, slow=True)
    assert (written, [(one.row, one.column) for one in refused]) == (MANY - 1, [(rows[7_776], "text")])
    assert "much too long" not in refused[0].error
    assert read(loading.store, notes) == left(rows, 7_777)


def test_a_row_that_takes_anothers_unique_value(loading: Loading, notes: Relation) -> None:
    """The other row stays, whether it came with this load or before."""
    write(loading.store, notes, row(0, 55_555, "before"))
    rows = many(row(5_000, 1_234, "late"), row(9_000, 55_555, "late"))
    written, refused = loading.load(notes, rows, slow=True)
    assert (written, [one.row for one in refused]) == (MANY - 2, [rows[4_999], rows[8_999]])
    assert read(loading.store, notes) == [row(0, 55_555, "before"), *left(rows, 5_000, 9_000)]


def test_a_row_that_is_there_already(loading: Loading, notes: Relation) -> None:
    write(loading.store, notes, row(300, None, "before"))
    written, refused = loading.load(notes, many(), slow=True)
    assert (written, [one.row[0] for one in refused]) == (MANY - 1, [b"300"])
    assert row(300, None, "before") in read(loading.store, notes)


def test_bad_rows_of_many_kinds(loading: Loading) -> None:
    """What is known to be wrong beforehand does not keep the rest from the fast way."""
    columns = [column("id", "integer(19)", nullable=False), column("a", "decimal(5,2)"), column("b", "timestamp(3)")]
    loading.store.create_table(table("t", ["id"], *columns, column("c", "string(3)", nullable=False)))
    found = relation(loading.store, "t")
    checked = Relation(
        table="t",
        name="t",
        fields=tuple(type(f)(column=f.column, type=f.type, native=f.native, checked=True) for f in found.fields),
        key=found.key,
        entity=None,
    )
    good = [row(no, "1.50", "2026-01-31 12:00:00.120", "abc") for no in range(100)]
    bad = [
        row(200, "1000.00", None, "abc"),
        row(201, "1.505", None, "abc"),
        row(202, "rubbish", None, "abc"),
        row(203, None, "2026-01-31 12:00:00.1205", "abc"),
        row(204, None, None, "abcd"),
    ]
    written, refused = loading.load(checked, [*good, *bad])
    assert (written, [one.row for one in refused]) == (100, bad)
    assert [one.column for one in refused] == ["a", "a", "a", "b", "c"]
    written, refused = loading.load(checked, [row(300, None, None, None), *bad, row(301, None, None, "")], slow=True)
    assert (written, [one.row for one in refused]) == (1, [*bad, row(300, None, None, None)])
    assert read(loading.store, found) == [*good, row(301, None, None, "")]


SILENT: dict[str, tuple[str, str, list[str], list[str]]] = {
    # declared, the migration's type, what fits, what the server would change without an error
    "excess scale": ("DECIMAL(12,2)", "decimal(14,4)", ["1.5000", "-0.0100"], ["1.5050", "0.0001"]),
    "seventh digit": ("DATETIME(6)", "timestamp(7)", [], ["2026-01-31 12:00:00.1234567"]),
    "seconds": ("DATETIME", "timestamp(6)", ["2026-01-31 12:00:00.000000"], ["2026-01-31 12:00:00.600000"]),
    "no such day": ("DATE", "date", ["2024-02-29"], ["2026-02-29"]),
    "no such time": ("DATETIME", "timestamp(0)", ["2026-01-31 12:00:00"], ["2026-02-29 12:00:00"]),
    "before 1970": ("TIMESTAMP", "timestamptz(0)", ["2026-01-31 12:00:00"], ["1969-01-31 12:00:00"]),
    "trailing blank": ("CHAR(5)", "string(5)", ["a", " a"], ["a ", " "]),
    "blanks beyond": ("VARCHAR(3)", "string(9)", ["a  "], ["a   ", "    "]),
    "padding": ("BINARY(4)", "bytes(4)", ["00ff00ff"], ["00ff", "00ff0000ff"]),
    "a word that is none": ("ENUM('a','b','2')", "string(1)", ["a", "2"], ["c", "1", ""]),
    "range": ("TINYINT UNSIGNED", "integer(19)", ["0", "255"], ["256", "-1"]),
    "characters": ("VARCHAR(9) CHARACTER SET latin1", "string(9)", ["é", "ÿ"], ["日", "🎬"]),
    "three bytes": ("VARCHAR(9) CHARACTER SET utf8mb3", "string(9)", ["日"], ["🎬"]),
    "bit": ("BIT(1)", "boolean", ["0", "1"], []),
    "json digits": ("JSON", "json", ['{"a":1.5}'], ['{"a":1.23456789012345678901}', "{"]),
    "no number": ("DOUBLE", "double", ["0.5", "1e+300"], ["nan", "inf"]),
    "too large": ("FLOAT", "double", ["0.5"], ["1e+300"]),
}  # fmt: skip


@pytest.mark.parametrize("trap", SILENT)
def test_what_the_server_would_change_is_refused(loading: Loading, trap: str) -> None:
    declared, type_, good, bad = SILENT[trap]
    if trap == "json digits":
        loading.place.needs("JSON")
    loading.place.administrator().execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v {declared}, w INT)")
    found = relation(loading.store, "t", types={"v": type_})
    rows = [row(no, cell, None) for no, cell in enumerate([*good, None])]
    assert loading.load(found, rows) == (len(rows), [])
    assert read(loading.store, found) == rows
    for no, cell in enumerate(bad, start=100):
        others = [row(no * 10, good[0] if good else None, 1), row(no * 10 + 1, cell, 1), row(no * 10 + 2, None, 1)]
        written, refused = loading.load(found, others, slow=True)
        assert (written, [one.row for one in refused]) == (2, [others[1]]), cell
        rows += [others[0], others[2]]
    assert read(loading.store, found) == rows


def test_a_row_longer_than_a_packet(loading: Loading, notes: Relation) -> None:
    with loading.store.begin():
        loading.store.longest_statement = 40
    written, refused = loading.load(notes, [row(1, 1, "x"), row(2, 2, "x" * 21), row(3, 3, "y")], slow=True)
    assert (written, [one.row[0] for one in refused]) == (2, [b"2"])


def test_a_load_of_many_files(loading: Loading, notes: Relation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_bulk, "FILE_BYTES", 30_000)
    rows = many(row(5, None, "\x1e"))
    assert loading.load(notes, rows) == (MANY, [])
    assert read(loading.store, notes) == rows
    written, refused = loading.load(notes, [row(90_001, None, None), rows[11_000], row(90_002, None, None)], slow=True)
    assert (written, refused[0].row) == (2, rows[11_000])


def test_nothing_is_left_of_a_load_that_failed(loading: Loading, notes: Relation) -> None:
    """No rows, no open file; and the store goes on."""

    def broken() -> Generator[list[Row], None, None]:
        yield many()[:500]
        raise TransientError("the source is lost")

    loading.load(notes, [row(0, 0, "there")])
    files = len(os.listdir("/proc/self/fd"))
    plain = PlanTable(name="notes", source=notes, target=notes, serial=False, alike=True)
    with pytest.raises(TransientError, match="the source is lost"), loading.store.begin() as copy:
        insert_all_that_fit(copy, plain, broken)
    assert len(os.listdir("/proc/self/fd")) == files
    assert read(loading.store, notes) == [row(0, 0, "there")]
    assert loading.load(notes, many()) == (MANY, [])


def test_a_target_that_is_lost_in_the_middle(
    loading: Loading, notes: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_bulk, "FILE_BYTES", 30_000)
    plain = PlanTable(name="notes", source=notes, target=notes, serial=False, alike=True)

    def killing() -> Generator[list[Row], None, None]:
        for no, batch in enumerate(batches(many())):
            if no == 5:
                loading.place.administrator().execute(f"KILL {session}")
            yield batch

    with loading.store.begin() as copy:
        session = copy.connection.thread_id()  # a driver's connection serves no two threads at once
        with pytest.raises(TransientError):
            insert_all_that_fit(copy, plain, killing)
    assert read(loading.store, notes) == []
    assert loading.load(notes, many()) == (MANY, [])


def test_what_a_trigger_of_the_table_refuses(loading: Loading, notes: Relation) -> None:
    loading.place.administrator().execute(
        "CREATE TRIGGER theirs BEFORE INSERT ON notes FOR EACH ROW BEGIN"
        " IF NEW.id = 7 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no secret'; END IF; END"
    )
    written, refused = loading.load(notes, many(), slow=True)
    assert (written, [one.row[0] for one in refused]) == (MANY - 1, [b"7"])
    assert "secret" not in refused[0].error


def test_a_client_that_may_not_send_files_loads_all_the_same(place: Place) -> None:
    assert [found.level for found in place.open().inspect() if found.where == "local_infile"] == ["pass"]
    url = urlsplit(place.copier)
    options = {"host": url.hostname, "port": url.port, "user": url.username, "passwd": url.password}
    store: Any = open_store("mysql", lambda: MySQLdb.connect(db=url.path[1:], local_infile=False, **options))
    place.opened.append(store)
    assert [found.level for found in store.inspect() if found.where == "local_infile"] == ["warn"]
    store.install_tables()
    store.create_table(table("t", ["id"], column("id", "integer(19)", nullable=False)))
    found, rows = relation(store, "t"), [row(no) for no in range(10, 90)]
    plain = PlanTable(name="t", source=found, target=found, serial=False, alike=True)
    with store.begin() as copy:
        with pytest.raises(RowError, match="is off"), copy.savepoint():
            copy.load(found, batches(rows))
        assert insert_all_that_fit(copy, plain, lambda: batches(rows)) == (80, [])
        copy.commit()
    assert read(store, found) == rows
