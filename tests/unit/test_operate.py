"""What operators do to a migration under way: pauses, throttles, restarts, doubts."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from fishladder import load, operate, tasks
from fishladder.errors import FatalError, InputError, StaleError
from fishladder.ledger import Control, Ledger, Reject
from fishladder.operate import Order
from fishladder.pace import Pace
from fishladder.spec import loads
from fishladder.stores import connect_url, open_store
from fishladder.stores.base import LoadState
from tests import independent
from tests.unit.small import SCHEMA, SPEC, Small, close, reopen

TABLES = ["price", "customer", "item", "line"]


@dataclass
class Hands:
    """A clock that moves only when somebody sleeps, and calls ``watch`` then."""

    time: float = 0.0
    slept: list[float] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.time, UTC)

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.slept.append(seconds)
        self.watch()


@pytest.fixture
def desk(small: Small) -> tasks.Desk:
    def open_(connection: str):  # type: ignore[no-untyped-def]
        return open_store(*connect_url(small.url(connection)))

    small.ledger.record_spec(small.spec.to_json(), "", "", "test")
    return tasks.Desk(spec=small.spec, ledger=small.ledger, open=open_)


def events(small: Small, name: str) -> list[tuple[str, dict[str, object]]]:
    return [(event.actor, event.body) for event in small.ledger.events() if event.event == name]


# Pace -----------------------------------------------------------------------------------------------------


def test_a_rate_is_kept_and_may_be_lifted_live(small: Small) -> None:
    clock, said = Hands(), list[str]()
    pace = Pace(small.ledger, clock, small.target, say=said.append)
    small.ledger.set_control(rows_per_second=10, actor="ada")
    pace.wait(25)
    assert clock.time == pytest.approx(2.5)
    pace.wait(5)
    assert clock.time == pytest.approx(3.0)
    clock.watch = lambda: small.ledger.set_control(rows_per_second=0, actor="ada") and None
    pace.wait(1_000)
    assert clock.time == pytest.approx(4.0)  # it looked again after a second
    assert said == ["at most 10 rows a second", "no limit of rows a second any more"]


def test_an_applier_whose_plan_is_no_longer_the_installed_one_ends(desk: tasks.Desk, small: Small) -> None:
    """Else it would reject rows for a column's old length long after the column was widened, and prepare run again."""
    small.load()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tasks.replicate, desk, seconds=300.0)
        small.application("UPDATE item SET amount = 8 WHERE id = 10")
        end = time.monotonic() + 60
        while small.rows("target", "SELECT amount FROM item WHERE id = 10") != [(8,)]:
            assert time.monotonic() < end, "the applier does nothing"
        small.ledger.record_coverage("target", {"item": "of another table"})
        assert running.result(60).applied >= 1


def test_an_applier_ends_when_the_load_of_a_table_does_that_was_altered_after_it_began(
    desk: tasks.Desk, small: Small
) -> None:
    """A row too long in mid-load, ALTER TABLE, prepare: by its old plan it would reject the row once more."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tasks.replicate, desk, seconds=300.0)
        end = time.monotonic() + 60
        while small.ledger.status("applier") is None:
            assert time.monotonic() < end, "the applier does nothing"
        for wider in ("DROP TABLE line", SCHEMA[SCHEMA.index("CREATE TABLE line") :].split(";")[0].replace("20", "40")):
            small.application(wider, store="target")
        altered = reopen(small.folder)
        altered.load_tables("fishladder_home", "fishladder_applied", "price", "customer", "item")
        small.application("UPDATE item SET amount = 9 WHERE id = 10")
        while small.rows("target", "SELECT amount FROM item WHERE id = 10") != [(9,)]:
            assert time.monotonic() < end and not running.done(), "the applier has ended"
        altered.load_tables("line")
        assert running.result(60).applied >= 1
        close([altered])


def test_a_load_of_an_altered_table_that_ends_between_two_looks_of_the_applier(
    desk: tasks.Desk, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen that its plan is right, and sees then that the table is closed: the plan is not right any more."""
    line = SCHEMA[SCHEMA.index("CREATE TABLE line") :].split(";")[0]
    small.application("DROP TABLE line", line.replace("20", "2"), store="target")
    small.load_tables("fishladder_home", "fishladder_applied", "price", "customer", "item")
    small.application("UPDATE line SET text = 'long'")
    real, first = small.ledger.control, iter([True])

    def control() -> Control:
        if next(first, False):
            small.application("DROP TABLE line", line, store="target")
            altered = reopen(small.folder)
            altered.load_tables("line")
            close([altered])
        return real()

    monkeypatch.setattr(small.ledger, "control", control)
    tasks.replicate(desk, seconds=30.0)
    assert small.ledger.open_rejects() == []
    assert small.rows("source", "SELECT DISTINCT table_name FROM fishladder_journal") == [("line",)]
    tasks.replicate(desk, seconds=30.0, until_idle=True)
    assert small.rows("target", "SELECT DISTINCT text FROM line") == [("long",)]


def test_an_applier_whose_file_is_not_the_prepared_one_any_more_ends_and_waits(desk: tasks.Desk, small: Small) -> None:
    """Gates and the like may change without prepare; what rows become may not."""
    small.load()
    spec, item = desk.spec, desk.spec.tables["item"]
    gates = spec.model_copy(update={"gates": spec.gates.model_copy(update={"clean_passes": 9})})
    data = spec.model_copy(update={"tables": {**spec.tables, "item": item.model_copy(update={"drop": ("amount",)})}})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tasks.replicate, desk, seconds=300.0)
        small.ledger.record_spec(gates.to_json(), "gates", "code", "ada")
        small.application("UPDATE item SET amount = 8 WHERE id = 10")
        end = time.monotonic() + 60
        while small.rows("target", "SELECT amount FROM item WHERE id = 10") != [(8,)]:
            assert time.monotonic() < end and not running.done(), "the applier has ended"
        small.ledger.record_spec(data.to_json(), "data", "code", "ada")
        assert running.result(60).applied >= 1
    assert tasks.await_prepare(replace(desk, clock=Hands()), 30.0) == 0.0
    assert tasks.await_prepare(replace(desk, spec=data), 30.0) > 0


def test_a_pause_ends_the_waiting(small: Small) -> None:
    clock = Hands()
    clock.watch = lambda: small.ledger.set_control(paused=True, actor="ada") and None
    small.ledger.set_control(rows_per_second=1, actor="ada")
    Pace(small.ledger, clock, small.target).wait(1_000)
    assert clock.slept == [1.0]


class Busy:
    """A store that says how busy it is: first that, then nothing."""

    def __init__(self, small: Small, threads: list[int | None], lags: list[float | None]) -> None:
        self.threads, self.lags = threads, lags
        self._store = small.target

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def running_threads(self) -> int | None:
        return self.threads.pop(0)

    def replica_lag(self) -> float | None:
        return self.lags.pop(0)


def test_a_busy_target_and_a_late_or_broken_replica_are_waited_for(small: Small) -> None:
    clock, said = Hands(), list[str]()
    small.ledger.set_control(running_threads=8, replica_lag=5, actor="ada")
    target, replica = Busy(small, [9, 8, 8, 8], []), Busy(small, [], [7.0, None, 5.0])
    Pace(small.ledger, clock, target, [("copy", replica)], said.append).wait(1)  # type: ignore[arg-type, list-item]
    assert clock.slept == [1.0, 1.0, 1.0]
    assert said == [
        "waiting: the target runs more than 8 threads",
        "waiting: the replica copy is more than 5 s behind",
        "waiting: the replica copy does not follow the target",
    ]


def test_a_load_obeys_the_rate_between_chunks(small: Small) -> None:
    clock = Hands()
    small.ledger.set_control(rows_per_second=1, actor="ada")
    load.cut(small.plan, small.source, small.ledger, 2)
    pace = Pace(small.ledger, clock, small.target)
    done = load.load_lane(small.plan.table("item"), small.source, small.target, small.ledger, lane="1", pace=pace.wait)
    assert (done.rows, clock.time) == (3, pytest.approx(3.0))


# Orders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"action": "stop"}, "'stop' is no action; there are pause, resume"),
        ({"action": "pause", "tables": ("item",)}, "pause takes no tables"),
        ({"action": "throttle"}, "throttle needs replica_lag or rows_per_second or running_threads"),
        ({"action": "restart tables"}, "restart tables needs tables"),
        ({"action": "rewrite entities", "keys": ("item,1",)}, "rewrite entities takes no keys"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(words: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Order(**words)  # type: ignore[arg-type]


def test_orders_change_what_all_obey_under_a_name(small: Small, desk: tasks.Desk) -> None:
    tasks.operate(desk, Order(action="pause"), actor="ada")
    assert small.ledger.control().paused
    tasks.operate(desk, Order(action="throttle", rows_per_second=7, running_threads=3), actor="bob")
    tasks.operate(desk, Order(action="resume"), actor="ada")
    control = small.ledger.control()
    assert (control.paused, control.rows_per_second, control.running_threads) == (False, 7, 3)
    assert [actor for actor, _ in events(small, "control changed")] == ["ada", "bob", "ada"]


def test_a_lag_without_replicas_is_refused(desk: tasks.Desk) -> None:
    with pytest.raises(InputError, match=r"names no replicas of the target \(small.yaml:5"):
        tasks.operate(desk, Order(action="throttle", replica_lag=5), actor="ada")


def test_rejects_are_retried_by_table_and_by_error(small: Small, desk: tasks.Desk) -> None:
    for number, table in enumerate(("item", "line", "line")):
        key = b"%d" % number
        error = "too long" if number == 2 else "out of range"
        reject = Reject(table=table, key=key, entity=None, cohort="NZ", column=None, error=error)
        small.ledger.record_rejects([reject])
    order = Order(action="retry rejects", tables=("line",), error="long")
    assert tasks.operate(desk, order, actor="ada") == {"rejects": 1}
    assert tasks.operate(desk, Order(action="retry rejects"), actor="ada") == {"rejects": 3}
    with pytest.raises(InputError, match="migrates no table lines"):
        tasks.operate(desk, Order(action="retry rejects", tables=("lines",)), actor="ada")


# Restart ------------------------------------------------------------------------------------------------------


def test_a_restarted_table_is_empty_and_loads_again(loaded: Small, desk: tasks.Desk) -> None:
    loaded.application("UPDATE item SET amount = 6 WHERE id = 10", "INSERT INTO item VALUES (40, 2, 8)")
    loaded.ledger.record_rejects([Reject(table="line", key=b"1", entity=None, cohort="NZ", column=None, error="")])
    check = loaded.ledger.begin_check("item", "coverage")
    order = Order(action="restart tables", tables=("item", "line"))
    assert tasks.operate(desk, order, actor="ada") == {"tables": 2}
    assert loaded.rows("target", "SELECT * FROM item UNION ALL SELECT item_id, no, text FROM line") == []
    assert len(loaded.rows("target", "SELECT * FROM customer")) == 3
    assert loaded.target.load_states()["item"] == LoadState(generation=2, open=True)
    assert loaded.ledger.count_rejects(table="line") == 0
    assert [c.void for c in loaded.ledger.checks("item") if c.id == check] == ["the table was restarted"]
    assert events(loaded, "table restarted") == [
        ("ada", {"table": "line", "generation": 2}),
        ("ada", {"table": "item", "generation": 2}),
    ]
    assert loaded.follow().applied == 0  # the applier leaves it alone until its load is closed
    loaded.load()
    loaded.follow()
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []


def test_a_restart_stops_while_all_is_paused(loaded: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused after its first batch: nothing goes before somebody resumes."""
    clock, left = Hands(), list[int]()
    monkeypatch.setattr(operate, "CLEAN_ROWS", 1)

    def look() -> None:
        left.append(loaded.rows("target", "SELECT count(*) FROM line")[0][0])
        if len(left) == 3:
            loaded.ledger.set_control(paused=False, actor="ada")

    class Pausing(Pace):
        def wait(self, rows: int) -> None:
            if not left:
                loaded.ledger.set_control(paused=True, actor="ada")

    clock.watch = look
    pace = Pausing(loaded.ledger, clock, loaded.target)
    operate.restart(loaded.plan, ["line"], loaded.target, loaded.ledger, pace, actor="bob")
    assert left == [2, 2, 2]
    assert loaded.rows("target", "SELECT * FROM line") == []


def test_a_load_that_was_restarted_meanwhile_is_not_closed(small: Small, desk: tasks.Desk) -> None:
    load.cut(small.plan, small.source, small.ledger, 100)
    table = small.plan.table("line")
    load.load_lane(table, small.source, small.target, small.ledger, lane="1")
    unfinished = type(small.ledger).unfinished

    def restarted(ledger: Ledger, name: str, generation: int) -> int:
        found = unfinished(ledger, name, generation)
        tasks.operate(desk, Order(action="restart tables", tables=("line",)), actor="ada")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(small.ledger), "unfinished", restarted)
        with pytest.raises(StaleError, match="restarted meanwhile"):
            load.close_load(small.plan, table, small.target, small.ledger)
    assert small.target.load_states()["line"] == LoadState(generation=2, open=True)


def test_children_are_named(loaded: Small, desk: tasks.Desk) -> None:
    with pytest.raises(
        InputError, match="line refers to item by foreign keys, directly or not: restart item, line together"
    ):
        tasks.operate(desk, Order(action="restart tables", tables=("item",)), actor="ada")
    assert loaded.target.load_states()["item"] == LoadState(generation=1, open=False)


def test_what_was_never_loaded_or_is_ours_is_not_restarted(small: Small, desk: tasks.Desk) -> None:
    with pytest.raises(InputError, match="price was never loaded"):
        tasks.operate(desk, Order(action="restart tables", tables=("price",)), actor="ada")
    with pytest.raises(InputError, match="fishladder_home is fishladder's own"):
        tasks.operate(desk, Order(action="restart tables", tables=("fishladder_home",)), actor="ada")


class Died(Exception):
    """The process ends on this line."""


@pytest.mark.parametrize(
    "where", ["Ledger.restart_table", "Ledger.finish_cleaning", "operate._clean", "operate._finish", "Pace.wait"]
)
def test_a_restart_that_died_is_resumed(
    loaded: Small, desk: tasks.Desk, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Died

    owner, name = where.split(".")
    place = {"Ledger": type(loaded.ledger), "operate": operate, "Pace": Pace}[owner]
    order = Order(action="restart tables", tables=("line",))
    with monkeypatch.context() as patch:
        patch.setattr(place, name, die)
        with pytest.raises(Died):
            tasks.operate(desk, order, actor="ada")
    if where != "Ledger.finish_cleaning":
        with pytest.raises((InputError, FatalError)):  # it cannot be loaded half cleaned
            loaded.load()
    tasks.operate(desk, order, actor="ada")
    loaded.load()
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []
    assert loaded.target.load_states()["line"] == LoadState(generation=2, open=False)


def test_a_lane_of_the_generation_before_writes_nothing(small: Small, desk: tasks.Desk) -> None:
    load.cut(small.plan, small.source, small.ledger, 2)
    table = small.plan.table("line")
    zombie = small.ledger.claim("line", 1, "1", load.STALE_CLAIM)
    assert zombie is not None
    small.target.raise_token("line", zombie.no, zombie.generation, zombie.token)
    tasks.operate(desk, Order(action="restart tables", tables=("line",)), actor="ada")
    with pytest.raises(StaleError):
        load.load_chunk(table, small.source, small.target, small.ledger, zombie)
    assert small.rows("target", "SELECT * FROM line") == []


def test_a_cleaner_that_wakes_up_late_deletes_nothing(
    loaded: Small, desk: tasks.Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept between two batches while another finished the restart and the table was loaded again."""
    woken = False

    def sleep(pace: Pace, rows: int) -> None:
        nonlocal woken
        if not woken:
            woken = True
            tasks.operate(desk, order, actor="bob")
            loaded.load()

    order = Order(action="restart tables", tables=("line",))
    monkeypatch.setattr(operate, "CLEAN_ROWS", 1)
    monkeypatch.setattr(Pace, "wait", sleep)
    tasks.operate(desk, order, actor="ada")
    assert woken
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []


def test_a_cohort_that_has_begun_to_flip_keeps_its_tables(loaded: Small, desk: tasks.Desk) -> None:
    with loaded.ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE ledger_route SET stage = 'shadow' WHERE cohort = 'NZ'")
    with pytest.raises(InputError, match="line cannot be restarted: NZ left the stage off"):
        tasks.operate(desk, Order(action="restart tables", tables=("line",)), actor="ada")
    assert loaded.target.load_states()["line"] == LoadState(generation=1, open=False)
    assert len(loaded.rows("target", "SELECT * FROM line")) == 3


# Doubts -------------------------------------------------------------------------------------------------------


def test_an_entity_is_rewritten_whole(loaded: Small, desk: tasks.Desk) -> None:
    loaded.damage("UPDATE line SET text = 'wrong' WHERE item_id = 10", "DELETE FROM item WHERE id = 10")
    found = tasks.operate(desk, Order(action="rewrite entities", entities=("1",)), actor="ada")
    assert found == {"keys": 5}  # a customer, a home, an item and two lines
    assert events(loaded, "keys marked dirty")[0][0] == "ada"
    loaded.follow()
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []


@pytest.mark.parametrize(
    ("entity", "problem"),
    [("9", "neither store knows the customer 9"), ("x", "an entity.id: what is given is not an integer")],
)
def test_an_entity_that_nobody_knows_is_an_error(loaded: Small, desk: tasks.Desk, entity: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        tasks.operate(desk, Order(action="rewrite entities", entities=(entity,)), actor="ada")
    assert loaded.ledger.count_dirty() == 0


def test_keys_of_a_list_are_marked_and_applied(loaded: Small, desk: tasks.Desk) -> None:
    loaded.damage(
        "UPDATE line SET text = 'wrong'", "UPDATE price SET amount = '9.9900'", "DELETE FROM item WHERE id = 30"
    )
    keys = ("line,10,1", 'line,"10",2', "line,20,1", "price,1", "price,2", "item,30", "item,77")
    assert tasks.operate(desk, Order(action="mark keys dirty", keys=keys), actor="ada") == {"keys": 7}
    cohorts = {(entry.table, entry.cohort) for entry in loaded.ledger.dirty(100)}
    assert cohorts == {("line", "NZ"), ("line", "AU"), ("price", "shared"), ("item", "*")}
    loaded.follow()
    assert independent.compare(loaded.url("source"), loaded.url("target"), TABLES) == []
    assert loaded.ledger.count_dirty() == 0


def test_a_list_with_one_wrong_line_marks_nothing(loaded: Small, desk: tasks.Desk) -> None:
    keys = ("line,10,1", "lines,1", "line,10", "item,one", '"item,1')
    with pytest.raises(InputError) as raised:
        tasks.operate(desk, Order(action="mark keys dirty", keys=keys), actor="ada")
    assert str(raised.value).splitlines() == [
        "nothing was marked:",
        "line 2: small migrates no table lines (did you mean 'line'?)",
        "line 3: line has the key item_id, no, and 1 cells are given",
        "line 4: item.id: what is given is not an integer",
        "line 5: unexpected end of data",
    ]
    assert loaded.ledger.count_dirty() == 0


def test_replicas_are_no_part_of_the_data(small: Small) -> None:
    text = SPEC.replace("connection: target}", "connection: target, replicas: [copy]}")
    spec = loads(text, name="small.yaml", environment={})
    assert spec.data_part() == small.spec.data_part()
    assert spec.kinds() == {"source": "sqlite", "target": "sqlite", "copy": "sqlite"}
    assert replace(Order(action="throttle", replica_lag=3)).replica_lag == 3
