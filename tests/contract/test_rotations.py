"""Values that change places between rows, and rows that point at each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from billing.database import Database
from fishladder import apply
from fishladder.apply import Ends, apply_batch, read_dirty
from fishladder.clock import SystemClock
from fishladder.fence import set_fence
from fishladder.load import cut, load_chunk
from fishladder.stores.base import ForeignKey, TableInfo
from tests.contract.move import Mover, moving
from tests.contract.stores import STORES
from tests.contract.tables import column, table

PAIRS = [
    *((kind, kind) for kind in STORES if kind != "oracle"),
    pytest.param(("oracle", "mysql"), marks=pytest.mark.slow),  # minutes on the wire emulator; a few tests ask for it
    pytest.param(("oracle", "oracle"), marks=pytest.mark.slow),
]
FROM_ORACLE = pytest.mark.parametrize("mover", [("oracle", "mysql")], indirect=True, ids="-".join)


@pytest.fixture(params=PAIRS, ids="-".join)
def mover(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mover]:
    with moving(request, tmp_path, *request.param) as found:
        yield found


@pytest.fixture(params=PAIRS, ids="-".join)
def circular(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mover]:
    """For tables that refer to each other."""
    with moving(request, tmp_path, *request.param, needs_there=["rows in a circle"]) as found:
        yield found


# Secondary unique values -----------------------------------------------------------------------------------------

SEAT = table(
    "seat",
    ["id"],
    column("id", "integer(19)", nullable=False),
    column("customer_id", "integer(19)"),
    column("code", "string(20)"),
    column("deck", "integer(19)"),
    column("place", "integer(19)"),
    uniques=(("code",), ("deck", "place")),
)
SEATS = [
    (1, 1, "a", 1, 1),
    (2, 1, "b", 1, 2),
    (3, 2, "A", 2, 1),
    (4, 2, "a ", 2, 2),
    (5, 3, "é", 3, 1),
    (6, 3, None, 3, 2),
]


def seats(db: Database) -> None:
    for seat in SEATS:
        db.execute("INSERT INTO seat (id, customer_id, code, deck, place) VALUES (?, ?, ?, ?, ?)", seat)


def rotate(db: Database, *numbers: int) -> None:
    """Each seat gets the code of the next, the last one that of the first: through NULL, as applications do it."""
    codes = dict(db.rows("SELECT id, code FROM seat"))
    db.execute(f"UPDATE seat SET code = NULL WHERE id IN ({', '.join('?' * len(numbers))})", numbers)
    for number, giver in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
        db.execute("UPDATE seat SET code = ? WHERE id = ?", (codes[giver], number))


def change_places(db: Database, one: int, other: int) -> None:
    """Two seats exchange a unique value of two columns."""
    ((deck, place),) = db.rows("SELECT deck, place FROM seat WHERE id = ?", (one,))
    ((their_deck, their_place),) = db.rows("SELECT deck, place FROM seat WHERE id = ?", (other,))
    db.execute("UPDATE seat SET deck = -1 WHERE id = ?", (one,))
    db.execute("UPDATE seat SET deck = ?, place = ? WHERE id = ?", (deck, place, other))
    db.execute("UPDATE seat SET deck = ?, place = ? WHERE id = ?", (their_deck, their_place, one))


def take_over(db: Database) -> None:
    """The value of a row that is deleted goes to a new one, whose own goes on to an old one."""
    db.execute("DELETE FROM seat WHERE id = 1")
    db.execute("INSERT INTO seat (id, customer_id, code, deck, place) VALUES (0, 3, 'a', 1, 1)")
    db.execute("UPDATE seat SET code = 'new' WHERE id = 0")
    db.execute("UPDATE seat SET code = 'a' WHERE id = 6")


def be_born_again(db: Database) -> None:
    """Two rows are deleted and come back with each other's keys, and in the other's hands."""
    db.execute("DELETE FROM seat WHERE id IN (1, 3)")
    db.execute("INSERT INTO seat (id, customer_id, code, deck, place) VALUES (1, 2, 'A', 2, 1), (3, 1, 'a', 1, 1)")


ROTATIONS: dict[str, Callable[[Database], Any]] = {
    "swap": lambda db: rotate(db, 1, 2),
    "swap of look-alikes": lambda db: rotate(db, 1, 4),
    "rotation": lambda db: rotate(db, 1, 2, 5),
    "rotation across entities": lambda db: rotate(db, 1, 3, 5),
    "rotation of all": lambda db: rotate(db, 5, 4, 3, 2, 1),
    "rotation with a NULL": lambda db: rotate(db, 1, 6, 3),
    "two columns": lambda db: change_places(db, 1, 4),
    "two rotations at once": lambda db: (rotate(db, 1, 2, 3), change_places(db, 3, 1)),
    "born again": be_born_again,
    "taken over": take_over,
}


@pytest.mark.parametrize("limit", [1, pytest.param(2, marks=pytest.mark.slow), 100])
def test_unique_values_that_change_places(mover: Mover, limit: int) -> None:
    """``limit``: so few entries are applied at a time that the rows which change places come in different batches."""
    change_all_places(mover, limit, ROTATIONS)


@FROM_ORACLE
def test_unique_values_that_change_places_in_an_oracle(mover: Mover) -> None:
    change_all_places(mover, 1, ["swap of look-alikes", "rotation across entities", "two rotations at once"])


def change_all_places(mover: Mover, limit: int, names: Iterable[str]) -> None:
    move = mover({"seat": "{entity: customer_id}"}, [SEAT])
    move.install(seats)
    move.load(lanes=2, chunk_rows=2)
    for name in names:
        move.application(lambda db: db.execute("DELETE FROM seat"))
        move.application(seats)
        move.follow()
        before = move.there("seat")
        move.application(ROTATIONS[name])
        move.follow_in_pieces(limit)
        assert move.there("seat") != before, name
        assert move.problems() == [], name
    move.reconcile("seat")
    assert move.ledger.clean_passes("seat") == 1


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unique_values_in_any_order(mover: Mover, seed: int) -> None:
    """Rows come, go and permute their unique values, several times before anything of it is applied."""
    rng = random.Random(seed)
    move = mover({"seat": "{entity: customer_id}"}, [SEAT])
    move.install(seats)
    move.load()
    for round_ in range(4):
        for _ in range(rng.randint(1, 4)):
            numbers = [number for (number,) in move.ours.as_user(lambda db: db.rows("SELECT id FROM seat"))]
            chosen = rng.sample(numbers, rng.randint(2, len(numbers)))

            new = 100 * round_ + rng.randint(7, 99)

            def work(db: Database, chosen: list[int] = chosen, new: int = new, numbers: list[int] = numbers) -> None:
                rotate(db, *chosen)
                change_places(db, chosen[0], chosen[1])
                ((customer, code, deck, place),) = db.rows(
                    "SELECT customer_id, code, deck, place FROM seat WHERE id = ?", (chosen[0],)
                )
                if new not in numbers:
                    db.execute("DELETE FROM seat WHERE id = ?", (chosen[0],))
                    sql = "INSERT INTO seat (id, customer_id, code, deck, place) VALUES (?, ?, ?, ?, ?)"
                    db.execute(sql, (new, customer % 3 + 1, code, deck, place))

            move.application(work)
        move.follow_in_pieces(rng.randint(1, 5))
        assert move.problems() == []


def test_values_that_change_places_between_two_chunks(mover: Mover) -> None:
    """The second chunk is read when the first one's values have moved into it: what clashes is made right later."""
    move = mover({"seat": "{entity: customer_id}"}, [SEAT])
    move.install(seats)
    seat = move.plan.table("seat")
    cut(move.plan, move.source, move.ledger, 3)
    for other in move.plan.tables:
        if other != seat:
            move.load_table(other)
    generation = move.ledger.start_table("seat")
    while chunk := move.ledger.claim("seat", generation, "1", timedelta(minutes=10)):
        move.target.raise_token("seat", chunk.no, chunk.generation, chunk.token)
        load_chunk(seat, move.source, move.target, move.ledger, chunk)
        if chunk.no == 1:
            move.application(lambda db: rotate(db, 1, 2, 5))
    assert move.ledger.count_rejects(table="seat") > 0
    move.close_load()
    move.follow()
    assert move.problems() == []


def test_a_rotation_waits_for_a_fence_that_is_closed(mover: Mover) -> None:
    """One of three rows belongs to a cohort that the copier may not write: nothing is lost, and it ends well."""
    move = mover({"seat": "{entity: customer_id}"}, [SEAT])
    move.install(seats)
    move.load()
    set_fence(move.target, SystemClock(), "AU", "nobody", 2, deadline=30.0)
    before = move.there("seat")
    move.application(lambda db: rotate(db, 1, 3, 5))
    move.follow()
    assert move.there("seat")[2] == before[2]
    assert move.ledger.open_rejects() == []
    set_fence(move.target, SystemClock(), "AU", "copier", 3, deadline=30.0)
    move.follow()
    assert move.problems() == []


# Foreign keys ----------------------------------------------------------------------------------------------------


def reference(name: str, parent: str, **more: Any) -> ForeignKey:
    return ForeignKey(columns=(name,), parent=parent, parent_columns=("id",), **more)


def office(**more: Any) -> list[TableInfo]:
    number = column("id", "integer(19)", nullable=False)
    return [
        table(
            "department", ["id"], number, column("head", "integer(19)"), foreign_keys=(reference("head", "employee"),)
        ),
        table(
            "employee",
            ["id"],
            number,
            column("customer_id", "integer(19)"),
            column("department", "integer(19)", nullable=False),
            column("manager_id", "integer(19)"),
            foreign_keys=(reference("department", "department"), reference("manager_id", "employee", **more)),
        ),
    ]


OFFICE = {"department": "shared", "employee": "{entity: customer_id}"}


def hire(db: Database, number: int, department: int, manager: int | None) -> None:
    sql = "INSERT INTO employee (id, customer_id, department, manager_id) VALUES (?, ?, ?, ?)"
    db.execute(sql, (number, number % 3 + 1, department, manager))


def open_office(db: Database) -> None:
    """Ten people: managers have higher numbers, so that they are loaded later; among them the departments' heads."""
    for department in (1, 2):
        db.execute("INSERT INTO department (id) VALUES (?)", (department,))
    for number in range(10, 0, -1):
        hire(db, number, number % 2 + 1, number + 1 + number % 3 if number < 7 else None)
    db.execute("UPDATE department SET head = id")


def reorganise(db: Database) -> None:
    """The lowest manages the highest, everyone is new at the top, and two manage each other."""
    db.execute("UPDATE employee SET manager_id = 1 WHERE id = 10")
    db.execute("INSERT INTO department (id) VALUES (3)")
    hire(db, 12, 3, None)
    hire(db, 11, 3, 12)
    db.execute("UPDATE employee SET manager_id = 11 WHERE id = 12")
    db.execute("UPDATE department SET head = 12 WHERE id = 3")
    db.execute("UPDATE employee SET manager_id = id WHERE id = 9")  # her own manager
    db.execute("UPDATE employee SET department = 3, manager_id = 11 WHERE id = 2")


def close_department(db: Database) -> None:
    db.execute("UPDATE department SET head = NULL WHERE id = 3")
    db.execute("UPDATE employee SET department = 1, manager_id = NULL WHERE id = 2")
    db.execute("UPDATE employee SET manager_id = NULL WHERE id IN (11, 12)")
    db.execute("DELETE FROM employee WHERE id IN (11, 12)")
    db.execute("DELETE FROM department WHERE id = 3")


@pytest.mark.parametrize("limit", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_rows_that_point_at_each_other(circular: Mover, limit: int) -> None:
    point_at_each_other(circular, limit)


@pytest.mark.slow
@FROM_ORACLE
def test_rows_that_point_at_each_other_in_an_oracle(mover: Mover) -> None:
    point_at_each_other(mover, 1)


def point_at_each_other(mover: Mover, limit: int) -> None:
    move = mover(OFFICE, office())
    there = move.target.describe()
    assert {fk.parent for fk in there["department"].foreign_keys} == {"employee"}
    assert {fk.parent for fk in there["employee"].foreign_keys} == {"department", "employee"}
    move.install(open_office)
    move.load(lanes=2)
    assert move.problems() == []
    for work in (reorganise, close_department):
        move.application(work)
        move.follow_in_pieces(limit)
        assert move.problems() == []
    for name in OFFICE:
        assert move.reconcile(name).orphans == 0
        assert move.ledger.clean_passes(name) == 1


def test_an_orphan_in_a_circle_is_found(circular: Mover) -> None:
    """A manager goes from the target behind everybody's back: who pointed at her is an orphan."""
    move = circular(OFFICE, office())
    move.install(open_office)
    move.load()
    with move.target.begin() as copy:
        copy.delete(move.plan.table("employee").target, [b"2:10"])
        copy.commit()
    found = move.reconcile("employee")
    assert (found.missing, found.extra, found.differs) == (1, 0, 0)
    move.follow()
    assert move.problems() == []
    assert move.reconcile("employee").orphans == 0


def test_parents_are_written_first_and_deleted_last(mover: Mover) -> None:
    """As the target itself sees it: its own triggers write down what comes and goes, and when."""
    parent = table("parent", ["id"], column("id", "integer(19)", nullable=False))
    child = table("child", ["id"], column("id", "integer(19)", nullable=False), column("up", "integer(19)"),
                  foreign_keys=(reference("up", "parent"),))  # fmt: skip
    number = column("no", "integer(19)", nullable=False, generated=True)
    move = mover({"child": "shared", "parent": "shared"}, [parent, child])
    move.target.create_table(table("seen", ["no"], number, column("what", "string(20)")))
    admin = move.theirs.administrator()
    for name in ("parent", "child"):
        for event in ("INSERT", "DELETE"):
            words = f"BEGIN INSERT INTO seen (what) VALUES ('{event.lower()} {name}'); END"
            admin.execute(f"CREATE TRIGGER seen_{name}_{event.lower()} AFTER {event} ON {name} FOR EACH ROW {words}")
    move.install()
    move.load()

    def come(db: Database) -> None:
        for number in (1, 2):
            db.execute("INSERT INTO parent (id) VALUES (?)", (number,))
            db.execute("INSERT INTO child (id, up) VALUES (?, ?)", (number, number))

    def go(db: Database) -> None:
        db.execute("DELETE FROM child")
        db.execute("DELETE FROM parent")

    for work in (come, go):
        move.application(work)
        move.follow()
        assert move.problems() == []
    seen = [what for (what,) in admin.rows("SELECT what FROM seen ORDER BY no")]
    assert seen == [
        f"{what}" for what in ("insert parent", "insert child", "delete child", "delete parent") for _ in "12"
    ]


@pytest.mark.parametrize("rule", ["CASCADE", "SET NULL"])
def test_a_circle_of_cascades_is_refused(circular: Mover, rule: str) -> None:
    move = circular(OFFICE, office(on_delete=rule))
    assert "employee (manager_id): its cascade in the source runs in a circle" in move.failures[0]


# Rows that change hands -------------------------------------------------------------------------------------------


def test_a_row_that_came_meanwhile_for_another_entity_is_not_overwritten(
    mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copier read that it was not there, and stalled; by then it is another's, whose cohort may have moved."""
    mine = table("item", ["id"], *(column(name, "integer(19)", nullable=False) for name in ("id", "customer_id", "v")))
    move = mover({"item": "{entity: customer_id}"}, [mine])
    move.theirs.needs("row locks")
    move.install()
    move.load()
    move.application(lambda db: db.execute("INSERT INTO item (id, customer_id, v) VALUES (7, 1, 1)"))
    stale, real, done = read_dirty(move.plan, move.ends, move.ledger), apply._Batch.write, list[int]()
    other = Ends(owner="source", origin=move.ours.open(), destination=move.theirs.open())

    def late(batch: Any, copy: Any) -> None:
        if not done:
            done.append(1)
            move.application(lambda db: db.execute("UPDATE item SET customer_id = 2, v = 2 WHERE id = 7"))
            hers = [line for line in read_dirty(move.plan, other, move.ledger) if line.entity == b"1:2"]
            assert apply_batch(move.plan, other, move.ledger, hers).written == 1  # as the drain of her cohort does
        real(batch, copy)

    monkeypatch.setattr(apply._Batch, "write", late)
    applied = apply_batch(move.plan, move.ends, move.ledger, stale)
    assert ([line.key for line in applied.wide], applied.written, applied.rejected) == ([b"1:7"], 0, 0)
    assert move.there("item") == [(b"7", b"2", b"2")]
    move.follow()
    assert move.problems() == []
