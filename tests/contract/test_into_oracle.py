"""What only an Oracle does: foreign keys that are always checked, '' that is NULL, names, triggers that can be off.

On the Oracle wire emulator, unless ``ORACLE_DSN`` names an Oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.database import Database
from fishladder import install
from fishladder.apply import Ends, apply_batch, read_dirty
from fishladder.clock import SystemClock
from fishladder.errors import CoverageError
from fishladder.fence import set_fence
from fishladder.ledger import DirtyKey
from fishladder.load import cut
from fishladder.stores.base import ForeignKey
from tests.contract.move import Move, Mover, moving
from tests.contract.tables import column, row, table

WORDS = {"item": "{entity: customer_id}", "part": "{via: item}"}
NUMBER = column("id", "integer(19)", nullable=False)
NOTE = column("note", "string(20)")
ITEM = table("item", ["id"], NUMBER, column("customer_id", "integer(19)"), NOTE)
PART = table(
    "part",
    ["id"],
    NUMBER,
    column("item_id", "integer(19)", nullable=False),
    NOTE,
    foreign_keys=(ForeignKey(columns=("item_id",), parent="item", parent_columns=("id",)),),
)


@pytest.fixture
def mover(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mover]:
    with moving(request, tmp_path, "sqlite", "oracle") as made:
        yield made


@pytest.fixture
def move(mover: Mover) -> Move:
    """Items and their parts, from a SQLite, which lets orphans be."""
    return mover(WORDS, [ITEM, PART])


def item(db: Database, number: int, note: str | None = None) -> None:
    db.execute("INSERT INTO item (id, customer_id, note) VALUES (?, ?, ?)", (number, number % 3 + 1, note))


def part(db: Database, number: int, item_id: int) -> None:
    db.execute("INSERT INTO part (id, item_id, note) VALUES (?, ?, 'x')", (number, item_id))


# Foreign keys that are always checked --------------------------------------------------------------------------


def test_a_row_waits_for_its_parent(move: Move) -> None:
    """The child's entry is applied without the parent's: it stays dirty, is no reject, and is written after it."""
    move.install()
    move.load()
    move.application(lambda db: (item(db, 1), part(db, 10, 1), part(db, 11, 1)))
    dirty = read_dirty(move.plan, move.ends, move.ledger)
    children = [line for line in dirty if line.table == "part"]
    applied = apply_batch(move.plan, move.ends, move.ledger, children)
    assert (applied.forgotten, applied.rejected, len(applied.left), applied.woken) == (0, 0, 2, 1)
    assert move.ledger.dirty_keys("item", [b"1:1"]) == {b"1:1"}
    assert (move.there("part"), move.ledger.open_rejects()) == ([], [])
    move.follow()
    assert move.problems() == []


def test_a_row_waits_until_who_has_its_unique_value_can_go(mover: Mover) -> None:
    """Who had it is deleted with its children, whose turn comes later: it is no reject."""
    code = column("code", "integer(19)", nullable=False)  # a value that could be NULL would be, until then
    coded = table("item", ["id"], NUMBER, column("customer_id", "integer(19)"), code, uniques=(("code",),))
    move = mover(WORDS, [coded, PART])

    def born(db: Database, number: int) -> None:
        db.execute("INSERT INTO item (id, customer_id, code) VALUES (?, ?, 7)", (number, number % 3 + 1))
        part(db, 10 * number, number)

    def replaced(db: Database) -> None:
        for name in ("part", "item"):
            db.execute(f"DELETE FROM {name}")
        born(db, 2)

    move.install(lambda db: born(db, 1))
    move.load()
    move.application(replaced)
    new = [line for line in read_dirty(move.plan, move.ends, move.ledger) if line.key in (b"1:2", b"2:20")]
    applied = apply_batch(move.plan, move.ends, move.ledger, new)
    assert (applied.written, applied.rejected, len(applied.left)) == (0, 0, 2)
    move.follow()
    assert move.problems() == []


def test_a_parent_that_nobody_else_doubts_is_written_for_its_child(move: Move) -> None:
    """It went from the target behind everybody's back."""
    move.install(lambda db: item(db, 1))
    move.load()
    with move.target.begin() as copy:
        copy.delete(move.plan.table("item").target, [b"1:1"])
        copy.commit()
    move.application(lambda db: part(db, 10, 1))
    move.follow()
    assert move.problems() == []


def test_rows_that_are_loaded_before_their_parents_are_dirty(move: Move) -> None:
    move.install(lambda db: (item(db, 1), part(db, 10, 1)))
    cut(move.plan, move.source, move.ledger, 5)
    for table_ in reversed(move.plan.tables):
        move.load_table(table_)
    assert move.there("part") == []
    assert move.ledger.open_rejects() == []
    move.close_load()
    move.follow()
    assert move.problems() == []


def test_an_orphan_of_the_owner_is_a_reject(move: Move) -> None:
    """It would wait for ever. So would a row whose parent is refused itself, until that is mended."""
    move.install()
    move.ours.as_user(lambda db: (db.execute("PRAGMA foreign_keys = OFF"), part(db, 10, 7)))
    move.load()
    assert move.ledger.open_rejects() == []
    move.theirs.administrator().execute("ALTER TABLE item ADD CONSTRAINT notes CHECK (note <> 'no')")
    move.application(lambda db: (item(db, 2, "no"), part(db, 20, 2), item(db, 3), part(db, 30, 3)))
    move.follow()
    rejects = {(reject.table, reject.key): reject.error for reject in move.ledger.open_rejects()}
    assert set(rejects) == {("item", b"1:2"), ("part", b"2:10"), ("part", b"2:20")}
    assert "a foreign key's parent is not there" in rejects["part", b"2:10"]
    assert move.there("part") == [row(30, 3, "x")]
    assert move.ledger.count_dirty() == 0

    move.application(lambda db: (db.execute("UPDATE item SET note = 'yes' WHERE id = 2"), item(db, 7)))
    move.follow()
    move.ledger.retry_rejects(actor="test")
    move.follow()
    assert move.problems() == []


def test_a_delete_that_is_refused_stays_alone(move: Move) -> None:
    """A row of a table that is not migrated refers to one of the rows that go: all else of the batch is done."""
    move.install(lambda db: [item(db, number) for number in range(1, 6)])
    move.load()
    admin = move.theirs.administrator()
    admin.execute("CREATE TABLE other (item_id NUMBER(19) REFERENCES item (id))")
    admin.execute("INSERT INTO other (item_id) VALUES (2)")
    move.application(lambda db: (db.execute("DELETE FROM item WHERE id <= 4"), item(db, 6), part(db, 60, 6)))
    dirty = read_dirty(move.plan, move.ends, move.ledger)
    applied = apply_batch(move.plan, move.ends, move.ledger, dirty)
    assert (applied.deleted, applied.written, applied.rejected) == (3, 2, 0)
    assert {line.key for line in applied.left} == {b"1:2"}
    assert [cells[0] for cells in move.there("item")] == [b"2", b"5", b"6"]
    admin.execute("DELETE FROM other")
    admin.execute("DROP TABLE other")
    move.follow()
    assert move.problems() == []


def test_a_circle_is_told_before_it_stops_anything(mover: Mover) -> None:
    staff = table("staff", ["id"], NUMBER, column("customer_id", "integer(19)"), column("boss", "integer(19)"),
                  foreign_keys=(ForeignKey(columns=("boss",), parent="staff", parent_columns=("id",)),))  # fmt: skip
    found = mover({"staff": "{entity: customer_id}"}, [staff])
    (warning,) = [finding for finding in found.findings if finding.where == "staff (boss)"]
    assert warning.level == "warn" and "closes a circle in the target" in warning.message


def test_unique_values_change_places_above_children(mover: Mover) -> None:
    """Rows that others refer to cannot be deleted for a moment. One of the places is left by a row that goes."""
    code = column("code", "string(9)")
    seat = table("seat", ["id"], NUMBER, column("customer_id", "integer(19)"), code, uniques=(("code",),))
    up = ForeignKey(columns=("seat_id",), parent="seat", parent_columns=("id",))
    guest = table("guest", ["id"], NUMBER, column("seat_id", "integer(19)"), foreign_keys=(up,))
    move = mover({"seat": "{entity: customer_id}", "guest": "{via: seat}"}, [seat, guest])

    def come(db: Database) -> None:
        for number, text in enumerate("abcd", start=1):
            db.execute("INSERT INTO seat (id, customer_id, code) VALUES (?, ?, ?)", (number, 1, text))
            db.execute("INSERT INTO guest (id, seat_id) VALUES (?, ?)", (number, number))

    def change(db: Database) -> None:
        db.execute("UPDATE seat SET code = NULL WHERE id = 1")
        db.execute("UPDATE seat SET code = 'a' WHERE id = 2")
        db.execute("UPDATE seat SET code = 'b' WHERE id = 3")
        db.execute("UPDATE seat SET code = 'c' WHERE id = 1")
        db.execute("UPDATE seat SET code = NULL WHERE id = 4")
        db.execute("INSERT INTO seat (id, customer_id, code) VALUES (5, 1, 'd')")
        db.execute("DELETE FROM guest WHERE id = 4")
        db.execute("DELETE FROM seat WHERE id = 4")

    move.install(come)
    move.load()
    move.application(change)
    move.follow_in_pieces(2)
    assert move.problems() == []


# '' is NULL ------------------------------------------------------------------------------------------------------


def test_an_empty_text_is_no_difference_either_way(move: Move) -> None:
    """Written into Oracle it is NULL; neither a pass nor the way back takes that for a change."""
    move.install(lambda db: (item(db, 1, ""), item(db, 2, None), item(db, 3, "x")))
    move.load()
    for work in ("UPDATE item SET customer_id = 3 WHERE id = 1", "UPDATE item SET note = '' WHERE id = 3"):
        move.application(lambda db, work=work: db.execute(work))
        move.follow()
        found = move.reconcile("item")
        assert (found.missing, found.extra, found.differs, found.deferred) == (0, 0, 0, 0)
    assert move.there("item") == [row(1, 3, None), row(2, 3, None), row(3, 1, None)]

    clock = SystemClock()
    for store, writer in ((move.source, "copier"), (move.target, "application")):
        for cohort in store.fences():
            set_fence(store, clock, cohort, writer, 2, deadline=30.0)
    back = Ends(owner="target", origin=move.target, destination=move.source)
    admin = move.theirs.administrator()
    admin.execute("UPDATE item SET customer_id = 2 WHERE id = 3")
    keys = [DirtyKey(table="item", key=b"1:%d" % n, entity=None, cohort="NZ", origin="test") for n in (1, 2, 3)]
    move.ledger.mark_dirty(keys)
    dirty = read_dirty(move.plan, back, move.ledger)
    applied = apply_batch(move.plan, back, move.ledger, dirty, every_shard=True)
    assert (applied.written, applied.equal, applied.rejected) == (1, 2, 0)
    texts = move.ours.administrator().rows("SELECT id, customer_id, note FROM item ORDER BY id")
    assert texts == [(1, 3, ""), (2, 3, None), (3, 2, "")]  # what '' was, it still is


# Names in mixed case -----------------------------------------------------------------------------------------------


def test_the_triggers_of_a_table_in_mixed_case_are_known_again(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """As ``"Item"`` they are installed once, counted for coverage, missed when one is gone, and removed at the end."""
    with moving(request, tmp_path, "oracle", "sqlite") as mover:
        move = mover({"Item": "{entity: Owner}"}, [
            table("Item", ["Id"], column("Id", "integer(19)", nullable=False), column("Owner", "integer(19)"))
        ])  # fmt: skip
        move.install(lambda db: db.execute('INSERT INTO "Item" ("Id", "Owner") VALUES (1, 1)'))
        move.load()
        move.application(lambda db: db.execute('INSERT INTO "Item" ("Id", "Owner") VALUES (2, 1)'))
        move.follow()
        assert move.there("Item") == [row(1, 1), row(2, 1)]
        relations, admin = move.plan.relations("source"), move.ours.administrator()
        before = move.source.coverage(relations)
        move.source.install_triggers(move.plan.triggers("source"))
        assert move.source.coverage(relations) == before
        names = [name for (name,) in admin.rows(
            "SELECT trigger_name FROM all_triggers WHERE table_name = 'Item'"
            " AND table_owner = SYS_CONTEXT('USERENV', 'CURRENT_SCHEMA')")]  # fmt: skip
        assert len(names) == 3
        admin.execute(f'DROP TRIGGER "{names[0]}"')
        changed = move.source.coverage(relations)
        assert {name for name in before if before[name] != changed[name]} == {"Item"}
        move.source.uninstall()
        admin.execute('INSERT INTO "Item" ("Id", "Owner") VALUES (3, 1)')


# Triggers that can be off ------------------------------------------------------------------------------------------


def test_a_trigger_that_is_disabled_is_missed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What is written then is in no journal: nothing goes on in silence, and the first pass after prepare finds it."""
    with moving(request, tmp_path, "oracle", "sqlite") as mover:
        move = mover({"item": "{entity: customer_id}"}, [ITEM])
        move.install(lambda db: item(db, 1))
        move.load()
        move.application(lambda db: item(db, 2))
        move.follow()
        move.reconcile("item")
        assert move.ledger.clean_passes("item") == 1
        move.ours.administrator().execute("ALTER TRIGGER fishladder_item_insert DISABLE")
        move.application(lambda db: item(db, 3))
        for attempt in (move.follow, lambda: move.reconcile("item")):
            with pytest.raises(CoverageError, match=r"^item: the source's table or its fishladder triggers are not"):
                attempt()
        assert (move.there("item"), move.ledger.clean_passes("item")) == ([row(1, 2, None), row(2, 3, None)], 0)
        install.install(move.migration, move.plan, move.source, move.target, move.ledger, actor="test")
        found = move.reconcile("item")
        assert (found.missing, found.extra, found.differs) == (1, 0, 0)
        move.application(lambda db: item(db, 4))
        move.follow()
        assert move.there("item") == [row(1, 2, None), row(2, 3, None), row(3, 1, None), row(4, 2, None)]
        assert move.problems() == []
