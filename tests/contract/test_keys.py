"""Keys of every kind: loaded, followed, reconciled and found byte for byte, and cut into even chunks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from billing.database import Database, connect
from fishladder.cells import Row, key_text, row_key
from fishladder.stores.base import Relation
from tests.contract.move import Move, Mover, moving
from tests.contract.stores import STORES, Place
from tests.contract.tables import chunks, column, read, relation, table, write

PAIRS = [
    *((kind, kind) for kind in STORES if kind != "oracle"),
    ("sqlite", "mysql"),
    ("mysql", "sqlite"),
    ("oracle", "mysql"),
    pytest.param(("oracle", "oracle"), marks=pytest.mark.slow),  # minutes on the wire emulator
]

TEXTS = ["", " ", "a", "A", "a ", "A ", "a  ", " a", "a\t", "á", "a\u0301", "Á", "ａ", "é", "e\u0301", "ß", "ss", "SS",
         "ı", "i", "İ", "ﬁ", "fi", "10", "9", "日本", "🎬", "🎬 ", "a1", "A1", "%", "_", "'", "\\"]  # fmt: skip
PIECES = ["", "a", "ab", "abc", "b", "bc", "c", "1:a", ":", " "]
NUMBERS = [-(2**63), -10, -9, -1, 0, 1, 9, 10, 2**53, 2**53 + 1, 2**63 - 1]
UUIDS = [UUID(int=number) for number in (0, 1, 0x20, 0x2000, 2**64, 2**127, 2**128 - 1, *range(0x41, 2**32, 2**28))]

KEYS: dict[str, tuple[list[str], list[tuple[str, ...]]]] = {
    "number": (["integer(19)"], [(str(number),) for number in NUMBERS]),
    "two numbers": (["integer(19)"] * 2, [(str(a), str(b)) for a in NUMBERS[::3] for b in NUMBERS]),
    "text": (["string(40)"], [(text,) for text in TEXTS]),
    "two texts": (["string(40)"] * 2, [(a, b) for a in PIECES for b in PIECES]),
    "text and number": (["string(40)", "integer(19)"], [(a, str(b)) for a in TEXTS[:12] for b in (-1, 9, 10)]),
    "number, text and bytes": (
        ["integer(19)", "string(40)", "bytes(4)"],
        [(str(a), b, c) for a in (-1, 9, 10) for b in ("a", "A", "a ") for c in ("", "00", "20")],
    ),
    "decimal": (
        ["decimal(30,6)"],
        [(f"{sign}{whole}.{part:06}",) for whole in (0, 9, 10, 10**15, 10**24 - 1) for part in (0, 1, 10, 500000)
         for sign in ("", "-") if sign < "-" or whole + part],
    ),
    "uuid": (["uuid"], [(str(uuid),) for uuid in UUIDS]),
    "raw": (["bytes(16)"], [(uuid.hex,) for uuid in UUIDS]),
    "bytes": (["bytes(8)"], [(cell,) for cell in ("", "00", "0000", "20", "2020", "41", "4120", "61", "6120", "6100",
                                                  "5c", "27", "c3", "c3a9", "7f", "80", "ff", "ff00")]),
}  # fmt: skip


def refused(kind: str, origin: str, destination: str) -> bool:
    """SQLite keeps several texts for one number and for one uuid, so neither is a key there; MySQL's uuids are text."""
    return (kind == "decimal" and "sqlite" in (origin, destination)) or (kind == "uuid" and origin == "sqlite")


def value(cell: str, type_: str) -> Any:
    """A cell as the application's driver takes it."""
    if type_.startswith("integer"):
        return int(cell)
    if type_.startswith("decimal"):
        return Decimal(cell)
    return bytes.fromhex(cell) if type_.startswith("bytes") else cell


class Things:
    """What the application does to a table ``thing`` with such a key."""

    def __init__(self, types: Sequence[str]) -> None:
        self.types = types
        self.names = [f"k{number}" for number in range(len(types))]
        self.where = " AND ".join(f"{name} = ?" for name in self.names)

    def values(self, key: Sequence[str]) -> list[Any]:
        return [value(cell, type_) for cell, type_ in zip(key, self.types, strict=True)]

    def info(self) -> Any:
        keys = [column(name, type_, nullable=False) for name, type_ in zip(self.names, self.types, strict=True)]
        return table("thing", self.names, *keys, column("customer_id", "integer(19)"), column("v", "string(20)"))

    def insert(self, db: Database, key: Sequence[str], number: int) -> None:
        columns = ", ".join([*self.names, "customer_id", "v"])
        sql = f"INSERT INTO thing ({columns}) VALUES ({', '.join('?' * (len(self.names) + 2))})"
        db.execute(sql, [*self.values(key), number % 3 + 1, f"v{number}"])

    def change(self, db: Database, key: Sequence[str]) -> None:
        assert db.execute(f"UPDATE thing SET v = 'changed' WHERE {self.where}", self.values(key)) == 1

    def respell(self, db: Database, old: Sequence[str], new: Sequence[str]) -> None:
        changes = ", ".join(f"{name} = ?" for name in self.names)
        sql = f"UPDATE thing SET {changes} WHERE {self.where}"
        assert db.execute(sql, [*self.values(new), *self.values(old)]) == 1

    def delete(self, db: Database, key: Sequence[str]) -> None:
        assert db.execute(f"DELETE FROM thing WHERE {self.where}", self.values(key)) == 1


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def mover(request: pytest.FixtureRequest, tmp_path: Path, pair: tuple[str, str]) -> Iterator[Mover]:
    with moving(request, tmp_path, *pair) as found:
        yield found


def text_of(key: Sequence[str]) -> bytes:
    return key_text(cell.encode() for cell in key)


SOON = {"oracle": ("text", "decimal"), "mariadb": ("text", "raw")}
"""Of a few seconds each; the others are with make scenario."""


def slow(pair: tuple[str, str], kind: str) -> bool:
    return pair == ("oracle", "oracle") or any(kind not in SOON.get(end, KEYS) for end in pair)


MOVES = [
    pytest.param(pair, kind, marks=[pytest.mark.slow] if slow(pair, kind) else [], id=f"{'-'.join(pair)}-{kind}")
    for pair in [*PAIRS[:-1], ("oracle", "oracle")]
    for kind in KEYS
]


@pytest.mark.parametrize(("pair", "kind"), MOVES, indirect=["pair"])
def test_rows_move_by_such_keys(mover: Mover, pair: tuple[str, str], kind: str) -> None:
    """Many of the keys are look-alikes of each other: half are loaded, some come later, some are never there."""
    types, keys = KEYS[kind]
    things = Things(types)
    move = mover({"thing": "{entity: customer_id}"}, [things.info()])
    if refused(kind, *pair):
        assert all(failure.startswith("thing.k0: ") for failure in move.failures)
        assert "is no type that can be carried" in move.failures[0]
        return
    keys = possible(move, keys)
    random.Random(kind).shuffle(keys)
    half = len(keys) // 2
    loaded, late, absent = keys[:half], keys[half : half + half // 2], keys[half + half // 2 :]
    move.install(lambda db: [things.insert(db, key, number) for number, key in enumerate(loaded)])
    reports = move.load(lanes=3)
    assert sum(report.rows for report in reports) == half
    assert (
        sum(report.chunks for report in reports) == len(move.ledger.chunks("thing")) == half // 3 + 1
    )  # the last is open-ended
    assert move.problems() == []

    def day(db: Database) -> None:
        for number, key in enumerate(late):
            things.insert(db, key, number)
        things.change(db, loaded[0])
        things.change(db, late[0])
        things.delete(db, loaded[1])
        things.delete(db, late[1])
        things.respell(db, loaded[2], absent[0])

    move.application(day)
    move.follow()
    assert move.problems() == []
    present = [*loaded[3:], loaded[0], late[0], *late[2:], absent[0]]
    gone = [loaded[1], loaded[2], late[1], *absent[1:]]
    assert len(move.there("thing")) == len(present)
    for store, there in (
        (move.source, move.plan.table("thing").source),
        (move.target, move.plan.table("thing").target),
    ):
        with store.read() as reader:
            assert set(reader.rows_by_key(there, [text_of(key) for key in keys])) == {text_of(key) for key in present}
            for key in gone:
                assert reader.rows_by_key(there, [text_of(key)]) == {}

    move.reconcile("thing")
    assert move.ledger.clean_passes("thing") == 1
    planted = plant(move, missing=present[0], extra=gone[0], differs=present[1])
    move.reconcile("thing")
    assert {(found.kind, found.key) for found in move.ledger.open_mismatches("thing")} == planted
    move.follow()
    assert move.problems() == []
    move.reconcile("thing")
    assert move.ledger.clean_passes("thing") == 1


def possible(move: Move, keys: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without empty cells, where a store takes them for NULL, which no key can be."""
    infos = move.source.describe()["thing"], move.target.describe()["thing"]
    blank_is_null = any(column.blank_is_null for info in infos for column in info.columns)
    return [key for key in keys if all(key) or not blank_is_null]


def plant(
    move: Move, *, missing: Sequence[str], extra: Sequence[str], differs: Sequence[str]
) -> set[tuple[str, bytes]]:
    """Change the target behind everybody's back. Returns what there is to find."""
    thing = move.plan.table("thing").target
    with move.target.begin() as copy:
        copy.delete(thing, [text_of(missing)])
        copy.insert(thing, [(*(cell.encode() for cell in extra), b"1", b"extra")])
        copy.update(thing, [(*(cell.encode() for cell in differs), b"1", b"differs")])
        copy.commit()
    return {("missing", text_of(missing)), ("extra", text_of(extra)), ("differs", text_of(differs))}


# Keys that fold, and keys that are refused ---------------------------------------------------------------------

FOLDING = {"sqlite": "VARCHAR(40) COLLATE NOCASE", "mysql": "VARCHAR(40) COLLATE utf8mb4_general_ci"}


def folding_table(place: Place) -> str:
    if place.kind not in FOLDING:
        pytest.skip(f"{place.kind} has no column that folds case")
    return f"CREATE TABLE thing (k0 {FOLDING[place.kind]} NOT NULL PRIMARY KEY, customer_id BIGINT, v VARCHAR(20))"


def test_a_key_that_folds_case_in_the_source(mover: Mover) -> None:
    """There 'a1' and 'A1' are one key; its spelling is followed, and what only looks like it is found."""
    things = Things(["string(40)"])
    move = mover({"thing": "{entity: customer_id}"}, source_sql=folding_table)
    assert not move.plan.table("thing").alike
    move.install(
        lambda db: [things.insert(db, [key], number) for number, key in enumerate(("a1", "B2", "é", "z", "日本"))]
    )
    move.load(lanes=2, chunk_rows=2)
    assert move.problems() == []

    def day(db: Database) -> None:
        things.respell(db, ["a1"], ["A1"])
        things.delete(db, ["B2"])
        things.insert(db, ["b2"], 7)
        things.change(db, ["Z"])

    move.application(day)
    move.follow()
    assert move.problems() == []
    assert {line[0] for line in move.there("thing")} == {b"A1", b"b2", "é".encode(), b"z", "日本".encode()}
    move.reconcile("thing")
    assert move.ledger.clean_passes("thing") == 1
    planted = plant(move, missing=["é"], extra=["a1"], differs=["b2"])
    move.reconcile("thing")
    assert {(found.kind, found.key) for found in move.ledger.open_mismatches("thing")} == planted
    move.follow()
    assert move.problems() == []


def test_a_key_that_folds_case_in_the_target_is_refused(mover: Mover) -> None:
    move = mover({"thing": "shared"}, [Things(["string(40)"]).info()], target_sql=folding_table)
    (failure,) = move.failures
    assert failure.startswith("thing.k0: a string key must be compared byte for byte")


@pytest.mark.parametrize("type_", ["uuid", "decimal(12,2)", "integer", "date"])
def test_a_text_taken_for_something_else_is_no_key(mover: Mover, type_: str) -> None:
    """Several texts would be one value."""
    things = Things(["string(36)"])
    move = mover({"thing": f"{{role: shared, types: {{k0: '{type_}'}}}}"}, [things.info()])
    assert move.failures[0] == f"thing.k0: a string column taken as {type_} cannot be a key"


def test_decimal_keys_of_different_scales(mover: Mover, pair: tuple[str, str]) -> None:
    """1.2300 here is 1.23 there; what has more digits is rejected, not rounded into another row."""
    if refused("decimal", *pair):
        pytest.skip("no decimal keys here")
    things = Things(["decimal(20,4)"])
    narrow = "CREATE TABLE thing (k0 DECIMAL(20,2) NOT NULL PRIMARY KEY, customer_id BIGINT, v VARCHAR(20))"
    move = mover({"thing": "{entity: customer_id}"}, [things.info()], target_sql=lambda place: narrow)
    of_different_scales(move, things)


@pytest.mark.parametrize("pair", [("oracle", "mysql")], ids="-".join, indirect=True)
def test_a_number_of_any_scale_is_a_key_of_one_of_two_digits(mover: Mover) -> None:
    things = Things(["decimal(20,4)"])
    declared = "NUMBER NOT NULL PRIMARY KEY, customer_id NUMBER(19), v VARCHAR2(20)"
    narrow = "DECIMAL(20,2) NOT NULL PRIMARY KEY, customer_id BIGINT, v VARCHAR(20)"
    move = mover(
        {"thing": "{entity: customer_id}"},
        source_sql=lambda place: f"CREATE TABLE thing (k0 {declared})",
        target_sql=lambda place: f"CREATE TABLE thing (k0 {narrow})",
    )
    of_different_scales(move, things)


def of_different_scales(move: Move, things: Things) -> None:
    keys = [["1.2300"], ["1.2345"], ["-0.5000"], ["10.0000"], ["9.0000"]]
    move.install(lambda db: [things.insert(db, key, number) for number, key in enumerate(keys)])
    move.load(chunk_rows=2)
    assert {line[0] for line in move.there("thing")} == {b"1.23", b"-0.50", b"10.00", b"9.00"}
    assert [reject.key for reject in move.ledger.open_rejects()] == [b"6:1.2345"]

    def day(db: Database) -> None:
        things.respell(db, ["1.2345"], ["1.2400"])
        things.change(db, ["1.2300"])
        things.delete(db, ["-0.5000"])

    move.application(day)
    move.follow()
    assert move.problems() == []
    move.reconcile("thing")
    assert move.ledger.clean_passes("thing") == 1


# Chunks ----------------------------------------------------------------------------------------------------------


Keyed = Callable[[Sequence[str], Sequence[Row]], Relation]


@pytest.fixture
def keyed(shared_place: Place, shared_store: Any) -> Iterator[Keyed]:
    """Makes a table for the test, with a key of these types and a column ``v``, filled in no order."""

    def make(types: Sequence[str], rows: Sequence[Row]) -> Relation:
        names = [f"k{number}" for number in range(len(types))]
        columns = [column(word, type_, nullable=False) for word, type_ in zip(names, types, strict=True)]
        shared_store.create_table(table("t", names, *columns, column("v", "string(200)")))
        found = relation(shared_store, "t")
        write(shared_store, found, *random.Random(1).sample(rows, len(rows)))
        return found

    yield make
    with closing(connect(shared_place.admin)) as db:
        db.drop("t")


LETTERS = "aAáéß 🎬b0'\\%"


def random_cell(rng: random.Random, type_: str) -> bytes:
    match type_.partition("(")[0]:
        case "integer":
            return str(rng.choice([rng.randint(-9, 9), rng.randint(-(2**63), 2**63 - 1)])).encode()
        case "decimal":
            return f"{rng.choice([rng.randint(-9, 9), rng.randint(1, 10**15)])}.{rng.randint(1, 99):04}".encode()
        case "bytes":
            return bytes(rng.choice(b"\x00 aA\xff") for _ in range(rng.randint(1, 4))).hex().encode()
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 4))).encode()


# The wire emulator takes seconds for each.
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
def test_any_cut_covers_every_row_exactly_once(shared_place: Place, shared_store: Any, keyed: Keyed, seed: int) -> None:
    """Also when the rows at the ends have gone meanwhile, and others have come."""
    rng, place, store = random.Random(seed), shared_place, shared_store
    kinds = ["integer(19)", "string(20)", "bytes(6)", *(["decimal(20,4)"] if place.kind != "sqlite" else [])]
    types = rng.choices(kinds, k=rng.randint(1, 3))
    keys = list({tuple(random_cell(rng, type_) for type_ in types) for _ in range(120)})
    rows: list[Row] = [(*key, b"x") for key in keys]
    first, late = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    found = keyed(types, first)
    ends = {size: store.chunk_ends(found, size) for size in (1, 2, rng.randint(3, 40), 1000)}
    for size, cut in ends.items():
        assert len(cut) == len(first) // size
        for at in range(0, len(cut), 7):
            assert store.chunk_ends(found, size, cut[at]) == cut[at + 1 :]
    gone = set(rng.sample(ends[1], len(ends[1]) // 2))
    with store.begin() as transaction:
        transaction.delete(found, sorted(gone))
        transaction.insert(found, late)
        transaction.commit()
    left = sorted(line for line in rows if row_key(line, found.key) not in gone)
    whole = read(store, found)
    assert sorted(whole) == left
    with store.read() as reader:
        for cut in ends.values():
            pieces = [reader.rows(found, a, b) for a, b in zip([None, *cut], [*cut, None], strict=True)]
            assert [line for piece in pieces for line in piece] == whole
        for _ in range(20):  # any range: of rows that are there, of rows that have gone
            a, b = sorted(rng.sample(range(len(ends[1])), 2))
            some = reader.rows(found, ends[1][a], ends[1][b])
            assert some == whole[whole.index(some[0]) :][: len(some)] if some else True
            assert len(reader.rows(found, None, ends[1][a])) + len(some) == len(reader.rows(found, None, ends[1][b]))


SKEWED: dict[str, tuple[list[str], list[tuple[object, ...]]]] = {
    "most rows in a sliver": (
        ["integer(19)"],
        [(number,) for number in (*range(0, 10**9, 10**7), *range(500_000_001, 500_001_801, 2))],
    ),
    "one huge first part": (
        ["integer(19)"] * 2,
        [*((a, 0) for a in range(50)), *((50, b) for b in range(900)), *((a, 0) for a in range(51, 101))],
    ),
    "huge first parts at both ends": (
        ["string(20)", "integer(19)"],
        [(a, b) for a, many in (("", 0), ("a", 480), ("b", 1), ("c", 1), ("d", 480)) for b in range(many)],
    ),
    "huge first two parts": (
        ["integer(19)", "string(20)", "integer(19)"],
        [(a, b, c) for a in range(3) for b in "xyz" for c in range(900 if (a, b) == (1, "y") else 10)],
    ),
    "long common beginnings": (["string(120)"], [(f"{'x' * 100}{number}",) for number in range(1000)]),
    "parts of a few rows each": (["integer(19)"] * 2, [(a, b) for a in range(330) for b in range(3)]),
}


@pytest.mark.parametrize("skew", SKEWED)
def test_cut_of_skewed_keys_are_even(shared_store: Any, keyed: Keyed, skew: str) -> None:
    types, keys = SKEWED[skew]
    rows: list[Row] = [(*(str(cell).encode() for cell in key), b"x") for key in keys]
    store, found = shared_store, keyed(types, rows)
    for size in (7, 64, 450):
        pieces = chunks(store, found, size)
        assert sorted(line for piece in pieces for line in piece) == sorted(rows)
        assert max(map(len, pieces)) <= 2 * size
        assert min(map(len, pieces[:-1])) >= size / 2


def looked_at(store: Any, run: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]], work: Callable[[], Any]) -> int:
    """What it took the connection that ``run`` uses: rows (MySQL), or steps of its machine (SQLite)."""
    if store.kind == "sqlite":
        steps = count()
        store.connection().set_progress_handler(lambda: bool(next(steps) < 0), 1)
        work()
        store.connection().set_progress_handler(None, 1)
        return next(steps)
    if store.kind != "mysql":
        pytest.skip(f"{store.kind} does not say how many rows it looked at")

    def total() -> int:
        return sum(int(number) for _, number in run("SHOW SESSION STATUS LIKE 'Handler_read%'", []))

    before = total()
    work()
    return total() - before


def test_no_row_is_looked_at_for_many_chunks(shared_store: Any, keyed: Keyed) -> None:
    """Where one first part has nearly all the rows, a chunk of it must not walk through the others."""
    rows: list[Row] = [(b"7", str(number).encode(), b"x") for number in range(6000)]
    store, found = shared_store, keyed(["integer(19)"] * 2, [(b"1", b"1", b"x"), *rows, (b"9", b"1", b"x")])
    with store.begin() as reader:
        whole = looked_at(store, reader.run, lambda: reader.rows(found, None, None))
        assert looked_at(store, store.run, lambda: store.chunk_ends(found, 100)) <= 4 * whole
        ends = store.chunk_ends(found, 100)
        bounds = list(zip([None, *ends], [*ends, None], strict=True))
        assert looked_at(store, reader.run, lambda: [reader.rows(found, a, b) for a, b in bounds]) <= 4 * whole
