"""What an application sees of the router: keys, refusals, outages, threads, asyncio, comparison, numbers."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from billing.operations import operations
from fishladder.clock import SystemClock
from fishladder.errors import FatalError, InputError, TransientError
from fishladder.fence import set_fence
from fishladder.ledger import Ledger, Queued, Route
from fishladder.serving import AsyncRouter, Metrics, Observation, OpenTelemetry, Operations, Replayer, Router, Shadow
from fishladder.serving.operations import load_operations
from fishladder.serving.replay import MOST_ATTEMPTS, TURN
from fishladder.serving.router import DOWN_SECONDS
from fishladder.stores.sqlite import SqliteApplication
from tests.unit.flips import Declined, Flips

PAY = {"item": 10, "amount": 1}


class Away:
    """A ledger, or a store, that nobody reaches from the moment that ``away`` is set. ``asked``: how often since."""

    def __init__(self, real: Any, error: type[Exception] = TransientError) -> None:
        self.real, self.away, self.asked, self.error = real, False, 0, error

    def __getattr__(self, name: str) -> Any:
        if self.away:
            self.asked += 1
            raise self.error("it is away: repeat")
        return getattr(self.real, name)


def router_of(flips: Flips, *, metrics: Metrics | None = None, shadow: Shadow | None = None) -> Router:
    source, target = flips.stores["source"], flips.stores["target"]
    return Router(flips.small.ledger, flips.operations, source=source, target=target, metrics=metrics, shadow=shadow)


@pytest.mark.parametrize("error", [TransientError, FatalError, InputError], ids=["away", "another one", "empty"])
def test_an_outage_of_the_ledger_stops_no_cohort_that_is_not_moving(flips: Flips, error: type[Exception]) -> None:
    """Nor does it slow one down: a host that is silent takes a while to fail, so it is asked once a minute."""
    router = flips.router()
    router.ledger = away = Away(flips.small.ledger, error)  # type: ignore[assignment]

    def all_routes_are_old() -> None:
        router._routes = {cohort: (route, -100.0) for cohort, (route, _) in router._routes.items()}

    router.write("pay", PAY, key="a", entity=1)
    router.write("pay", {"item": 20, "amount": 1}, key="a", entity=2)
    away.away = True
    all_routes_are_old()
    assert router.write("pay", PAY, key="b", entity=1).state == "done"
    assert router.read("amount", {"item": 10}, entity=1).value == 7
    assert router.write("pay", {"item": 20, "amount": 1}, key="b", entity=2).state == "done"
    assert away.asked == 1
    for asked in (1, 2):  # half a minute later, and then
        assert router._ledger.since is not None
        router._ledger.since -= DOWN_SECONDS / 2
        assert router.read("amount", {"item": 10}, entity=1).value == 7
        assert away.asked == asked
    away.away = False
    number = flips.verified()
    flips.until(number, "drain")
    assert router.write("pay", PAY, key="c", entity=1).state == "queued"  # the fence says that the route is old
    all_routes_are_old()
    away.away = True
    assert router.read("amount", {"item": 20}, entity=2).value == 8
    assert away.asked == 3


def test_an_outage_of_the_ledger_stops_no_cohort_that_has_moved(flips: Flips) -> None:
    """A router that was there before the flip is led by the fences to the ledger, and one that came after knows."""
    before = flips.router()
    assert before.write("pay", PAY, key="a", entity=1).state == "done"
    flips.small.follow()
    flips.move()
    after = flips.router()
    for router in (before, after):
        assert router.read("amount", {"item": 10}, entity=1).value == 6
        router.ledger = away = Away(flips.small.ledger)  # type: ignore[assignment]
        away.away = True
        router._routes = {cohort: (route, -100.0) for cohort, (route, _) in router._routes.items()}
    for key, router in (("b", before), ("c", after)):
        assert router.write("pay", PAY, key=key, entity=1).state == "done"
    assert [flips.amount(10, store) for store in ("source", "target")] == [6, 8]
    assert after.read("amount", {"item": 10}, entity=1).value == 8


def test_an_application_that_embeds_the_router_needs_no_airflow() -> None:
    """Nor any store's driver but its own."""
    code = "import sys, fishladder.serving; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"airflow", "flask", "fastapi", "MySQLdb", "oracledb", "cassandra", "opentelemetry"}.isdisjoint(found)
    assert {"fishladder", "sqlalchemy"} <= {*found}


def test_a_ledger_that_never_answers_has_one_call_wait(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server hangs, and its kernel says that it is there: whoever asks hears nothing, not even of an error."""
    router, real = flips.router(), flips.small.ledger.route
    asked, answer = threading.Event(), threading.Event()

    def route(cohort: str) -> Route:
        asked.set()
        assert answer.wait(60)
        return real(cohort)

    router.read("amount", {"item": 10}, entity=1)
    monkeypatch.setattr("fishladder.serving.router.ROUTE_SECONDS", 0.0)
    monkeypatch.setattr(flips.small.ledger, "route", route)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(router.read, "amount", {"item": 10}, entity=1)
        assert asked.wait(60)
        assert router.read("amount", {"item": 10}, entity=1).value == 5
        assert router.write("pay", PAY, key="a", entity=1).state == "done"
        assert not waits.done()
        answer.set()
        assert waits.result(60).value == 6


@pytest.mark.parametrize("call", ["write", "read"])
def test_a_call_that_stood_still_for_longer_than_its_patience_is_tried_once_more(flips: Flips, call: str) -> None:
    """Its cohort has moved meanwhile, and nothing is in the way."""
    router = flips.router()
    assert router.read("amount", {"item": 10}, entity=1).value == 5
    router._patience = -1
    flips.move()
    if call == "write":
        assert router.write("pay", PAY, key="a", entity=1).state == "done"
    assert router.read("amount", {"item": 10}, entity=1).value == (6 if call == "write" else 5)


def test_a_call_that_failed_for_longer_than_its_patience_is_not_tried_again(flips: Flips) -> None:
    """It may have waited for a lock that somebody holds, and held the fence meanwhile."""
    tried: list[Any] = []

    def waits(connection: Any, payload: Any) -> None:
        tried.append(payload)
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    flips.operations.add("waits", waits)
    router = flips.router()
    router.read("amount", {"item": 10}, entity=1)
    router._patience = -1
    with pytest.raises(TransientError, match=r"For 0 s: NZ is in stage off; database is locked"):
        router.write("waits", {}, key="a", entity=1)
    with pytest.raises(TransientError, match=r"For 0 s: NZ is in stage off; database is locked"):
        router.read("waits", {}, entity=1)
    assert len(tried) == 2


@pytest.mark.parametrize("who", ["source", "target", "ledger"])
def test_the_first_call_waits_for_who_is_away_for_a_moment(flips: Flips, who: str) -> None:
    """A fresh router knows neither the customer's home nor where the cohort is."""

    class Back(Away):
        """After a few calls."""

        calls = 0

        def __getattr__(self, name: str) -> Any:
            self.calls += 1
            self.away = self.calls <= 3
            return super().__getattr__(name)

    for call in (
        lambda router: router.write("pay", PAY, key="a", entity=1).state == "done",
        lambda router: router.read("amount", {"item": 10}, entity=1).value == 6,
    ):
        router = flips.router()
        if who == "ledger":
            router.ledger = away = Back(router.ledger)  # type: ignore[assignment]
        else:
            away = Back(router.stores[who])
            router.stores = {**router.stores, who: away}
        assert call(router)
        assert away.calls > 3 or who == "target"


def test_who_has_moved_is_served_while_the_source_is_down(flips: Flips) -> None:
    """By a router that has met nobody; of whom the target does not know, nobody says that there is no such customer."""
    flips.move()
    router = flips.router()
    router._patience = 0.2
    away = Away(router.stores["source"])
    router.stores = {**router.stores, "source": away}
    away.away = True
    assert router.read("amount", {"item": 10}, entity=1).value == 5
    assert router.write("pay", PAY, key="a", entity=1).state == "done"
    for entity, why in ((2, "AU is in stage off"), (99, "it is away")):
        with pytest.raises(TransientError, match=f"pay could not be written.*{why}"):
            router.write("pay", PAY, key="b", entity=entity)
    away.away = False
    assert router.write("pay", {"item": 20, "amount": 1}, key="b", entity=2).state == "done"


def test_a_source_that_is_gone_for_good_is_asked_last(flips: Flips) -> None:
    """Its name is known no more, its password has changed: no passing error, and none of those who have moved."""
    flips.move()
    router, asked = flips.router(), list[str]()

    class Gone:
        def transaction(self, **options: Any) -> Any:
            asked.append("source")
            raise FatalError("there is no such host")

    source = router.stores["source"]
    router.stores = {"source": Gone(), "target": router.stores["target"]}  # type: ignore[dict-item]
    assert router.write("pay", PAY, key="a", entity=1).state == "done"
    assert router.write("pay", PAY, key="b", entity=1).state == "done"
    assert asked == ["source"]
    with pytest.raises(FatalError, match="there is no such host"):
        router.read("amount", {"item": 10}, entity=99)
    target = away = Away(router.stores["target"])
    router.stores = {**router.stores, "target": target}
    away.away = True
    with pytest.raises(TransientError, match="it is away"):  # of two reasons the one that passes
        router.read("amount", {"item": 10}, entity=1)
    away.away = False
    router.stores = {**router.stores, "source": source}
    assert router._source.since is not None
    router._source.since -= DOWN_SECONDS
    assert router.write("pay", {"item": 20, "amount": 1}, key="c", entity=2).state == "done"


def test_each_store_has_an_implementation_of_its_own(flips: Flips) -> None:
    """Reads, writes and the replay take the owner's: before, while and after its cohort moves, and when it is back."""

    def wears(mark: str) -> Callable[[Any, Any], str]:
        def run(connection: Any, payload: Any) -> str:
            connection.execute("UPDATE customer SET email = ? WHERE id = 1", (f"{payload['key']} by {mark}",))
            return mark

        return run

    flips.operations.add("wear", wears("legacy"), wears("new"))
    flips.operations.add("read", lambda connection, payload: "legacy", lambda connection, payload: "new")
    router = flips.router()

    def wear(key: str) -> Any:
        written = router.write("wear", {"key": key}, key=key, entity=1)
        return written.result if written.state == "done" else written.state

    def read() -> Any:
        return router.read("read", {}, entity=1).value

    def email(store: str) -> Any:
        return flips.small.rows(store, "SELECT email FROM customer WHERE id = 1")[0][0]

    assert (wear("a"), read()) == ("legacy", "legacy")
    number = flips.verified()
    flips.until(number, "drain")
    assert (wear("b"), read()) == ("queued", "legacy")
    flips.cutover.run(number)
    assert (email("target"), read(), wear("c")) == ("b by new", "new", "new")
    number = flips.verified("rollback")
    flips.until(number, "drain")
    assert (wear("d"), read()) == ("queued", "new")
    flips.cutover.run(number)
    assert (email("source"), read(), wear("e")) == ("d by legacy", "legacy", "legacy")


def test_an_outage_of_the_ledger_stops_no_cohort_that_was_not_asked_for_before(flips: Flips) -> None:
    router = flips.router()
    router.ledger = away = Away(flips.small.ledger)  # type: ignore[assignment]
    router.write("pay", PAY, key="a", entity=1)
    away.away = True
    assert router.write("pay", {"item": 20, "amount": 1}, key="b", entity=2).state == "done"


@pytest.mark.parametrize("error", [TransientError, FatalError, InputError], ids=["away", "another one", "empty"])
def test_a_moving_cohort_is_read_while_the_ledger_is_away(flips: Flips, error: type[Exception]) -> None:
    """Nobody knows what is pending then, and the answer says so; a write waits."""
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router._patience = 0.2
    router.ledger = away = Away(flips.small.ledger, error)  # type: ignore[assignment]
    assert router.write("pay", PAY, key="a", entity=1).state == "queued"
    away.away = True
    answer = router.read("amount", {"item": 10}, entity=1)
    assert (answer.value, answer.pending, answer.pending_known) == (5, (), False)
    with pytest.raises(TransientError, match=r"repeat it with the same key\. .*NZ is in stage queue; it is away"):
        router.write("pay", PAY, key="b", entity=1)
    away.away = False
    answer = router.read("amount", {"item": 10}, entity=1)
    assert ([pending.key for pending in answer.pending], answer.pending_known) == (["a"], True)


def test_a_write_waits_for_the_ledger_while_its_cohorts_queue_is_replayed(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "replay")
    router = flips.router()
    router.ledger = away = Away(flips.small.ledger)  # type: ignore[assignment]
    router.read("amount", {"item": 10}, entity=1)
    away.away = True
    router._patience = 0.2
    with pytest.raises(TransientError, match="repeat it with the same key"):
        router.write("pay", PAY, key="a", entity=1)
    away.away = False
    assert router.write("pay", PAY, key="a", entity=1).state == "done"


def test_a_moved_cohort_is_not_served_from_its_copy_even_without_the_ledger(flips: Flips) -> None:
    router = flips.router()
    router._patience = 0.2
    router.ledger = away = Away(flips.small.ledger)  # type: ignore[assignment]
    assert router.read("amount", {"item": 10}, entity=1).value == 5
    flips.move()
    away.away = True
    with pytest.raises(TransientError, match="repeat it"):
        router.read("amount", {"item": 10}, entity=1)
    with pytest.raises(TransientError, match="repeat it"):
        router.write("pay", PAY, key="a", entity=1)
    away.away = False
    assert router.read("amount", {"item": 10}, entity=1).value == 5


def test_the_business_says_no(flips: Flips) -> None:
    router = flips.router()
    with pytest.raises(Declined):
        router.write("pay", {"item": 10, "amount": -1}, key="a", entity=1)
    with pytest.raises(RuntimeError, match="a bug"):
        router.write("pay", {"item": 10, "amount": 666}, key="a", entity=1)
    assert router.write("pay", PAY, key="a", entity=1).state == "done"
    assert flips.amount(10, "source") == 6


def test_one_key_used_by_many_at_once_takes_effect_once(flips: Flips) -> None:
    routers = [flips.router() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda router: router.write("pay", PAY, key="a", entity=1), routers * 5))
    assert flips.amount(10, "source") == 6
    assert Counter(written.repeated for written in found) == {False: 1, True: 19}


def test_a_write_that_did_not_hear_of_its_commit_is_found_by_its_key(flips: Flips) -> None:
    """The connection is lost in the commit: it took effect, and the router repeats it."""

    class Deaf(sqlite3.Connection):
        deaf = True

        def commit(self) -> None:
            writing = self.in_transaction
            super().commit()
            if writing and Deaf.deaf:
                Deaf.deaf = False
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error

    path = str(flips.small.folder / "source.db")
    source = SqliteApplication(lambda: sqlite3.connect(path, factory=Deaf, check_same_thread=False))
    router = Router(flips.small.ledger, flips.operations, source=source, target=flips.stores["target"], patience=5)
    written = router.write("pay", PAY, key="a", entity=1)
    assert (written.repeated, flips.amount(10, "source")) == (True, 6)
    source.close()


def test_a_write_of_another_customers_rows_is_refused_by_their_fence(flips: Flips) -> None:
    flips.move()
    with pytest.raises(sqlite3.IntegrityError, match="fishladder:"):
        flips.router().write("pay", {"item": 20, "amount": 1}, key="a", entity=1)
    assert flips.amount(20, "source") == flips.amount(20, "target") == 6


def test_a_write_of_another_customers_rows_passes_while_both_are_in_one_store(flips: Flips) -> None:
    """It is refused while one of them is elsewhere."""
    router, wrong = flips.router(), {"item": 20, "amount": 1}
    assert router.write("pay", wrong, key="a", entity=1).state == "done"
    flips.small.follow()
    flips.move()
    with pytest.raises(sqlite3.IntegrityError, match="fishladder:"):
        router.write("pay", wrong, key="b", entity=1)
    flips.move(cohort="AU")
    assert router.write("pay", wrong, key="c", entity=1).state == "done"
    assert [flips.amount(20, store) for store in ("source", "target")] == [7, 8]


def test_whoever_belongs_nowhere_stays_where_they_are(flips: Flips) -> None:
    flips.move()
    assert flips.router().write("pay", {"item": 30, "amount": 1}, key="a", entity=3).state == "done"
    assert flips.amount(30, "source") == 8


@pytest.mark.parametrize(
    ("operation", "payload", "where", "words"),
    [
        ("nope", {}, {"entity": 1}, "there is no operation nope; registered are"),
        ("pay", {"at": object()}, {"entity": 1}, "a payload is JSON"),
        ("pay", {}, {}, "names its entity, or its cohort"),
        ("join", {}, {"cohort": "XX"}, "has no cohort 'XX'; run prepare"),
    ],
    ids=["operation", "payload", "nowhere", "cohort"],
)
def test_bad_calls(flips: Flips, operation: str, payload: Any, where: Any, words: str) -> None:
    router = flips.router()
    with pytest.raises(InputError, match=words):
        router.write(operation, payload, key="a", **where)
    assert router._ledger.since is None  # a ledger that knows no such cohort is not away


def test_operations_whose_module_does_not_even_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_shop.py").write_text("operations = 1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"broken_shop:operations: ZeroDivisionError.*where tasks run"):
        load_operations("broken_shop:operations")


@pytest.mark.parametrize(
    ("entry_point", "words"),
    [
        ("no.such.module:operations", "No module named 'no'"),
        ("billing.operations:nothing", "has no attribute 'nothing'"),
        ("billing.operations:service", "is no fishladder.serving.Operations"),
    ],
)
def test_operations_that_are_not_there(entry_point: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_operations(entry_point)
    assert load_operations("billing.operations:operations") is operations


def test_an_operation_is_registered_once() -> None:
    found = Operations()
    found.add("pay", lambda connection, payload: None)
    with pytest.raises(InputError, match="pay is registered already"):
        found.add("pay", lambda connection, payload: None)


def test_asyncio(flips: Flips) -> None:
    router = AsyncRouter(flips.router())

    async def calls() -> Any:
        await asyncio.gather(*(router.write("pay", PAY, key=f"k{number}", entity=1) for number in range(5)))
        return (await router.read("amount", {"item": 10}, entity=1)).value

    assert asyncio.run(calls()) == 10


def test_numbers_for_opentelemetry(flips: Flips) -> None:
    reader = InMemoryMetricReader()
    router = router_of(flips, metrics=OpenTelemetry(MeterProvider([reader]).get_meter("test")))
    for key in ("a", "a", "b"):
        router.write("pay", PAY, key=key, entity=1)
    router.read("amount", {"item": 10}, entity=1)
    router.ledger = away = Away(router.ledger)  # type: ignore[assignment]
    away.away = True
    router._route("NZ", fresh=True)
    data: Any = reader.get_metrics_data()
    found = {metric.name: metric.data.data_points for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    writes = {point.attributes["outcome"]: point.value for point in found["fishladder.writes"]}
    assert writes == {"done": 2, "repeated": 1}
    assert [dict(point.attributes) for point in found["fishladder.outages"]] == [
        {"of": "ledger", "error": "TransientError"}
    ]
    assert [found[f"fishladder.{name}"][0].count for name in ("write", "read")] == [3, 1]


def test_reads_are_compared_off_the_customers_path(flips: Flips) -> None:
    seen: list[Observation] = []
    wait = threading.Event()

    def new(connection: Any, payload: Any) -> int:
        assert wait.wait(10)
        if payload["item"] == 30:
            raise RuntimeError("not built yet")
        return int(connection.execute("SELECT amount FROM item WHERE id = ?", (payload["item"],)).fetchone()[0])

    def because(payload: Any, ours: Any, theirs: Any) -> str | None:
        return "rounded" if payload["item"] == 20 else None

    flips.operations.add("both", flips.operations["amount"].legacy, new, ignore=because)
    flips.small.damage("UPDATE item SET amount = 99 WHERE id = 20")
    shadow = Shadow(observed=seen.append, waiting=3)
    router = router_of(flips, shadow=shadow)
    values = [router.read("both", {"item": item}, entity=entity).value for item, entity in ((10, 1), (20, 2), (30, 3))]
    assert (values, seen) == ([5, 6, 7], [])  # the customer did not wait
    router.read("both", {"item": 10}, entity=1)  # one too many: left out
    wait.set()
    shadow.close()
    assert [(one.outcome, one.reason) for one in seen] == [
        ("match", None),
        ("ignored", "rounded"),
        ("failed", "RuntimeError"),
    ]


def test_a_difference_that_stays_is_a_mismatch(flips: Flips) -> None:
    seen: list[Observation] = []
    flips.small.damage("UPDATE item SET amount = 99 WHERE id = 10")
    shadow = Shadow(observed=seen.append, settle=0)
    assert router_of(flips, shadow=shadow).read("amount", {"item": 10}, entity=1).value == 5
    shadow.close()
    assert [(one.outcome, one.reason) for one in seen] == [("mismatch", None)]


def test_a_copy_that_was_only_a_moment_behind_is_a_match(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Observation] = []
    flips.small.application("UPDATE item SET amount = 50 WHERE id = 10")
    monkeypatch.setattr("fishladder.serving.shadow.time", SimpleNamespace(sleep=lambda seconds: flips.small.follow()))
    shadow = Shadow(observed=seen.append)
    assert router_of(flips, shadow=shadow).read("amount", {"item": 10}, entity=1).value == 50
    shadow.close()
    assert [one.outcome for one in seen] == ["match"]


def test_what_the_target_owns_is_not_compared(flips: Flips) -> None:
    assert flips.move().outcome == "done"
    seen: list[Observation] = []
    shadow = Shadow(observed=seen.append)
    router_of(flips, shadow=shadow).read("amount", {"item": 10}, entity=1)
    shadow.close()
    assert seen == []


def test_a_sample_of_none_compares_nothing(flips: Flips) -> None:
    seen: list[Observation] = []
    shadow = Shadow(sample=0.0, observed=seen.append)
    router = router_of(flips, shadow=shadow)
    router._routes["NZ"] = (Route(stage="shadow", owner="source", epoch=1), 1e12)
    router.read("amount", {"item": 10}, entity=1)
    shadow.close()
    assert seen == []


def test_a_sample_of_a_quarter_compares_about_as_many(flips: Flips) -> None:
    seen: list[Observation] = []
    shadow = Shadow(sample=0.25, waiting=400, observed=seen.append, rng=random.Random(1))
    router = router_of(flips, shadow=shadow)
    assert {router.read("amount", {"item": 10}, entity=1).value for _ in range(400)} == {5}
    shadow.close()
    assert {one.outcome for one in seen} == {"match"} and 80 <= len(seen) <= 120


def test_replay_by_three_at_once_does_each_write_once(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    for key in range(10):
        assert router.write("pay", PAY, key=f"k{key}", entity=1).state == "queued"
    flips.until(number, "replay")
    replayers = [Replayer(flips.small.ledger, flips.operations, flips.stores) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda replayer: replayer.replay("NZ"), replayers))
    replayers[0].replay("NZ")
    assert flips.amount(10, "target") == 15
    assert flips.small.ledger.count_queue() == {"done": 10}


def test_a_replay_whose_ledger_fails_between_two_batches_goes_on_there(
    flips: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []

    class Replays(Replayer):
        def _one(self, queued: Queued, route: Route) -> None:
            tried.append(queued.entity)

    def fails(cohort: str, limit: int, after: int) -> list[Queued]:
        if len(tried) == 2:
            raise TransientError("the ledger is away")
        return real(cohort, limit, after=after)

    monkeypatch.setattr("fishladder.serving.replay.BATCH", 1)
    number, ledger = flips.verified(), flips.small.ledger
    flips.until(number, "drain")
    entities = [f"1:{entity}".encode() for entity in range(4)]
    for entity in entities:
        ledger.enqueue("NZ", entity, "pay", "a", "d", "{}")
    flips.until(number, "replay")
    replayer, real = Replays(ledger, flips.operations, flips.stores), ledger.next_queued
    with monkeypatch.context() as once:
        once.setattr(ledger, "next_queued", fails)
        with pytest.raises(TransientError):
            replayer.replay("NZ")
    replayer.replay("NZ")
    assert tried[:4] == entities


def test_a_replay_that_dies_before_the_ledger_hears_of_it_repeats_nothing(
    flips: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, router = flips.verified(), flips.router()
    flips.until(number, "drain")
    for key in range(3):
        router.write("pay", PAY, key=f"k{key}", entity=1)
    flips.until(number, "replay")
    told: list[list[int]] = []

    def away(ledger: Ledger, results: dict[Queued, str | None]) -> None:
        told.append([queued.id for queued in results])
        raise TransientError("the ledger is away: repeat")

    replayer = Replayer(flips.small.ledger, flips.operations, flips.stores)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "finish_queued", away)
        with pytest.raises(TransientError):
            replayer.replay("NZ")
    assert [len(some) for some in told] == [3]  # of all of them at once
    assert (flips.amount(10, "target"), flips.small.ledger.count_queue()) == (8, {"pending": 3})
    assert [p.key for p in router.read("amount", {"item": 10}, entity=1).pending] == ["k0", "k1", "k2"]
    assert router.write("pay", PAY, key="k1", entity=1).repeated
    assert (replayer.replay("NZ"), replayer.replay("NZ")) == (3, 0)
    assert (flips.amount(10, "target"), flips.small.ledger.count_queue()) == (8, {"done": 3})


def test_a_replay_that_cannot_go_on_tells_the_ledger_what_it_did(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    number, router = flips.verified(), flips.router()
    flips.until(number, "drain")
    for key, amount in enumerate((1, -1, 666, 1)):  # done, refused, a bug
        router.write("pay", {"item": 10, "amount": amount}, key=f"k{key}", entity=1)
    flips.until(number, "replay")

    def away(ledger: Ledger, *_: object) -> None:
        raise TransientError("the ledger is away: repeat")

    replayer = Replayer(flips.small.ledger, flips.operations, flips.stores)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "note_failed_replay", away)
        with pytest.raises(TransientError):
            replayer.replay("NZ")
    assert flips.small.ledger.count_queue() == {"done": 1, "refused": 1, "pending": 2}
    assert flips.amount(10, "target") == 6


def test_a_ledger_that_was_restored_meanwhile_is_not_told_of_another_write(flips: Flips) -> None:
    """It gives a number that it has given before."""
    number, router = flips.verified(), flips.router()
    flips.until(number, "drain")
    router.write("pay", PAY, key="a", entity=1)
    (queued,) = flips.small.ledger.waiting()
    flips.small.ledger.finish_queued({replace(queued, key="before"): None})
    assert flips.small.ledger.count_queue() == {"pending": 1}


def test_nobody_waits_for_others_whose_promise_cannot_be_kept_just_now(
    flips: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as a replayer takes at once, and more; each is tried once in a while, and none is counted as failed."""
    tried: list[str] = []

    def promise(payload: Any, key: str) -> None:
        tried.append(key)
        raise TransientError("the bank is away")

    monkeypatch.setattr("fishladder.serving.replay.BATCH", 2)
    monkeypatch.setattr("fishladder.ledger.queue.REST", 20.0)
    flips.operations.add("hold", lambda connection, payload: None, optimistic=promise)
    number, ledger = flips.verified(), flips.small.ledger
    flips.until(number, "drain")
    for entity in range(2, 7):
        for key in ("first", "second"):
            ledger.enqueue("NZ", f"1:{entity}".encode(), "hold", key, "d", "{}", optimistic=True)
    assert flips.router().write("pay", PAY, key="a", entity=1).state == "queued"
    flips.until(number, "replay")
    replayer = Replayer(ledger, flips.operations, flips.stores)
    assert replayer.replay("NZ") == 1
    assert (flips.amount(10, "target"), tried) == (6, ["first"] * 5)
    assert replayer.replay("NZ") == 0
    assert tried == ["first"] * 5
    assert {queued.attempts for queued in ledger.waiting()} == {0}


def test_a_replay_takes_its_turn_and_goes_on_from_there(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it done has others to look after; what takes long each time keeps nobody from being tried."""
    tried: list[bytes] = []

    class Replays(Replayer):
        def _one(self, queued: Queued, route: Route) -> None:
            tried.append(queued.entity)
            now[0] += 3.0
            ledger.rest_queued(queued)

    now = [0.0]
    monkeypatch.setattr("fishladder.serving.replay.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("fishladder.ledger.queue.REST", 0.0)
    number, ledger = flips.verified(), flips.small.ledger
    flips.until(number, "drain")
    entities = [f"1:{entity}".encode() for entity in range(5)]
    for entity in entities:
        for key in ("first", "second"):
            ledger.enqueue("NZ", entity, "pay", key, "d", "{}")
    flips.until(number, "replay")
    replayer, turns = Replays(ledger, flips.operations, flips.stores), []
    for _ in range(4):
        assert replayer.replay("NZ") == 0
        turns.append(tried.copy())
        tried.clear()
    assert turns == [entities[:2], entities[2:4], [entities[4], entities[0]], entities[1:3]]

    def slowly(*given: Any, **named: Any) -> list[Queued]:
        now[0] += 2 * TURN
        return real(*given, **named)

    real = ledger.next_queued
    monkeypatch.setattr(ledger, "next_queued", slowly)
    assert replayer.replay("NZ") == 0
    assert tried == [entities[3]]  # each turn goes on by one

    def lost(queued: Queued, route: Route) -> None:
        tried.append(queued.entity)
        raise TransientError("the ledger is away")

    with monkeypatch.context() as once:
        once.setattr(replayer, "_one", lost)
        with pytest.raises(TransientError):
            replayer.replay("NZ")
    assert [replayer.replay("NZ") for _ in range(2)] == [0, 0]  # the first one finds out that it was at the end
    assert tried == [entities[3], entities[4], entities[0]]


@pytest.mark.usefixtures("no_rest")
def test_a_write_whose_error_is_no_text_is_parked(flips: Flips) -> None:
    def broken(connection: Any, payload: Any) -> None:
        raise RuntimeError("\0 \ud800")

    flips.operations.add("break", broken)
    number, router = flips.verified(), flips.router()
    flips.until(number, "drain")
    router.write("break", {}, key="a", entity=1)
    flips.until(number, "replay")
    replayer = Replayer(flips.small.ledger, flips.operations, flips.stores)
    for _ in range(MOST_ATTEMPTS):
        replayer.replay("NZ")
    (parked,) = flips.small.ledger.waiting()
    assert (parked.state, parked.reason) == ("parked", "RuntimeError: \\0 \\ud800")


def test_a_queued_write_whose_caller_never_heard_of_it_is_accepted_once(flips: Flips) -> None:
    number = flips.verified()
    flips.until(number, "drain")
    router = flips.router()
    router.write("pay", PAY, key="a", entity=1)
    again = flips.router().write("pay", PAY, key="a", entity=1)  # another router, for the same customer
    assert again.state == "queued"
    with pytest.raises(InputError, match="with another payload"):
        router.write("pay", {"item": 10, "amount": 2}, key="a", entity=1)
    flips.cutover.run(number)
    assert flips.amount(10, "target") == 6


def test_a_ledger_that_a_router_is_ahead_of_queues_nothing(flips: Flips) -> None:
    """The fences may not be: the router saw the switch before the ledger's newest commits were lost."""
    number = flips.verified()
    flips.until(number, "drain")
    file = flips.small.folder / "ledger.db"
    router = flips.router()
    router._patience = 0.2
    assert router.write("pay", PAY, key="a", entity=1).state == "queued"
    _copy(file, backup := file.with_name("backup.db"))
    flips.until(number, "replay")
    router._route("NZ", fresh=True)
    _copy(backup, file)
    with pytest.raises(TransientError, match="repeat it with the same key"):
        router.write("pay", PAY, key="b", entity=1)
    assert [queued.key for queued in flips.small.ledger.waiting()] == ["a"]


@pytest.mark.parametrize("stage", ["drain", "replay"])
def test_a_ledger_that_a_fence_is_ahead_of_queues_nothing(flips: Flips, stage: str) -> None:
    """It was restored from a backup: whatever it accepts is forgotten with it, and who knows better does not see it."""
    number = flips.verified()
    flips.until(number, stage)
    knows, file = flips.router(), flips.small.folder / "ledger.db"
    if stage == "replay":
        flips.small.ledger.enqueue("NZ", b"1:1", "pay", "waits", "digest", '{"item": 10, "amount": 1}')
    _copy(file, backup := file.with_name("backup.db"))
    flips.cutover.run(number)
    flips.move("rollback")
    assert knows.write("pay", PAY, key="a", entity=1).state == "done"
    _copy(backup, file)
    waiting = flips.small.ledger.waiting()
    assert len(waiting) == (stage == "replay")
    starts = flips.router()
    starts._patience = 0.2
    with pytest.raises(TransientError, match="repeat it with the same key"):
        starts.write("pay", PAY, key="b", entity=1)
    assert flips.small.ledger.waiting() == waiting
    assert knows.write("pay", PAY, key="b", entity=1).state == "done"


def _copy(here: Path, there: Path) -> None:
    with closing(sqlite3.connect(here)) as one, closing(sqlite3.connect(there)) as other:
        one.backup(other)


def test_a_read_that_asks_what_is_pending_learns_where_its_cohort_stands(
    flips: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is not turned away after the switch, and stops asking once the move is over."""
    number, router = flips.verified(), flips.router()
    flips.until(number, "drain")
    asked: list[tuple[str, str]] = []
    real, away = router._ask, Away(flips.small.ledger)
    router.ledger = away  # type: ignore[assignment]

    def ask(operation: Any, payload: Any, cohort: str, route: Route) -> Any:
        asked.append((route.stage, route.owner))
        return real(operation, payload, cohort, route)

    monkeypatch.setattr(router, "_ask", ask)
    for step in ("compare", "close", "replay"):
        router.read("amount", {"item": 10}, entity=1)
        flips.until(number, step)
    router.read("amount", {"item": 10}, entity=1)
    flips.cutover.run(number)
    router.read("amount", {"item": 10}, entity=1)
    assert asked == [("queue", "source")] * 2 + [("replay", "target")] * 2 + [("live", "target")]
    away.away = True
    assert router.read("amount", {"item": 10}, entity=1).pending_known


@pytest.mark.parametrize("meanwhile", ["nothing", "the switch", "an abort"])
def test_a_fence_that_has_just_closed_keeps_no_read_waiting(
    flips: Flips, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """What the store had when it closed is the answer, with what waits since; unless the attempt has gone on, for then
    what is replayed might be in neither.
    """
    monkeypatch.setattr("fishladder.serving.router.ROUTE_SECONDS", 60)
    number, router = flips.verified(), flips.router()
    assert router.read("amount", {"item": 10}, entity=1).value == 5
    flips.until(number, "drain")
    assert flips.router().write("pay", PAY, key="a", entity=1).state == "queued"
    asked = []
    real = router._is_owner

    def is_owner(cohort: str, route: Route) -> bool:
        asked.append(route.stage)
        answer = real(cohort, route)
        if meanwhile == "an abort":
            flips.small.ledger.abort(flips.small.ledger.attempt(number), "a test")
        if meanwhile != "nothing":
            flips.cutover.run(number)
        return answer

    monkeypatch.setattr(router, "_is_owner", is_owner)
    answer = router.read("amount", {"item": 10}, entity=1)
    wanted = (5, ["a"]) if meanwhile == "nothing" else (6, [])
    assert (answer.value, [pending.key for pending in answer.pending]) == wanted
    assert asked == ["off"]


def test_a_refusal_by_a_store_that_has_just_closed_is_asked_again(
    flips: Flips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have closed long ago: who is looked for in vain may live in the other one."""
    monkeypatch.setattr("fishladder.serving.router.ROUTE_SECONDS", 60)
    router = flips.router()
    router.operations.add("found", _found, refusals=(Declined,))
    assert router.read("found", {"id": 1}, entity=1).value
    flips.move()
    flips.router().write("join", {"id": 5, "country": "NZ"}, key="a", cohort="NZ")
    set_fence(flips.small.source, SystemClock(), "NZ", "nobody", flips.small.ledger.route("NZ").epoch + 1, deadline=5)
    assert router.read("found", {"id": 5}, cohort="NZ").value


@pytest.mark.parametrize("alone", [False, True], ids=["the other store is there", "it is away too"])
def test_a_read_between_two_owners_is_of_the_one_that_is_open(flips: Flips, alone: bool) -> None:
    """The loser's fence says nobody until the winner's is open, and for a moment longer: as long as the ledger is away,
    where it is when the winner has opened.
    """
    number = flips.verified()
    flips.until(number, "compare")
    reader, others = flips.router(), flips.router()
    reader._patience = 0.2
    reader.ledger = ledger = Away(flips.small.ledger)  # type: ignore[assignment]
    target = Away(reader.stores["target"])
    reader.stores = {**reader.stores, "target": target}  # type: ignore[dict-item]
    reader.operations.add("found", _found, refusals=(Declined,))
    assert reader.read("amount", {"item": 10}, entity=1).value == 5
    flips.until(number, "close")
    assert flips.fences() == [("nobody", 2), ("application", 3)]
    assert others.write("pay", PAY, key="a", entity=1).state == "done"
    assert others.write("join", {"id": 5, "country": "NZ"}, key="b", cohort="NZ").state == "done"
    ledger.away, target.away = True, alone
    with pytest.raises(TransientError, match="could not be read"):
        reader.read("amount", {"item": 10}, entity=1)
    with pytest.raises(TransientError, match="could not be read"):
        reader.read("found", {"id": 5}, cohort="NZ")
    ledger.away = target.away = False
    assert reader.read("amount", {"item": 10}, entity=1).value == 6
    assert reader.read("found", {"id": 5}, cohort="NZ").value


def test_a_ledger_of_yesterday_does_not_know_what_is_pending(flips: Flips) -> None:
    file, router = flips.small.folder / "ledger.db", flips.router()
    number = flips.verified()
    _copy(file, backup := file.with_name("backup.db"))
    flips.until(number, "drain")
    assert router.write("pay", PAY, key="a", entity=1).state == "queued"
    assert [pending.key for pending in router.read("amount", {"item": 10}, entity=1).pending] == ["a"]
    _copy(backup, file)
    answer = router.read("amount", {"item": 10}, entity=1)
    assert (answer.value, answer.pending, answer.pending_known) == (5, (), False)


def test_a_key_that_is_done_is_answered_though_its_operation_cannot_be_repeated(flips: Flips) -> None:
    """Not even passing errors of its own keep the answer back."""
    answers = iter([{"paid": 1}])

    def once(connection: Any, payload: Any) -> Any:
        for answer in answers:
            return answer
        raise TransientError("a service that the operation asks is away")

    flips.operations.add("once", once)
    router = flips.router()
    router._patience = 0.2
    assert router.write("once", {}, key="a", entity=1).result == {"paid": 1}
    again = router.write("once", {}, key="a", entity=1)
    assert (again.result, again.repeated) == ({"paid": 1}, True)
    with pytest.raises(TransientError, match="repeat it with the same key"):
        router.write("once", {}, key="b", entity=1)


def _found(connection: Any, payload: Any) -> bool:
    if not connection.execute("SELECT 1 FROM customer WHERE id = ?", (payload["id"],)).fetchall():
        raise Declined("there is no such customer")
    return True


def test_asyncio_holds_no_thread_while_a_write_waits(flips: Flips) -> None:
    """One thread of each kind: neither reads nor other customers' writes wait for those that nobody may do yet."""
    number = flips.verified()
    flips.until(number, "fence")
    router = AsyncRouter(flips.router(), threads=1)
    set_fence(flips.small.source, SystemClock(), "NZ", "nobody", flips.small.ledger.route("NZ").epoch, deadline=5)

    async def calls() -> None:
        waiting = [asyncio.create_task(router.write("pay", PAY, key=f"k{n}", entity=1)) for n in range(3)]
        assert (await router.read("amount", {"item": 10}, entity=1)).value == 5
        assert (await router.write("pay", {"item": 20, "amount": 1}, key="other", entity=2)).state == "done"
        assert not any(task.done() for task in waiting)
        flips.until(number, "drain")
        assert {(await task).state for task in waiting} == {"queued"}

    asyncio.run(calls())
    router.close()


def test_asyncio_cancelled_and_repeated(flips: Flips) -> None:
    """The operation runs in the caller's context, keeps no read waiting, and takes effect once though cancelled."""
    who: ContextVar[str] = ContextVar("who")
    began, go, seen = threading.Event(), threading.Event(), list[str]()

    def pay_slowly(connection: Any, payload: Any) -> None:
        seen.append(who.get())
        began.set()
        assert go.wait(10)
        connection.execute("UPDATE item SET amount = amount + 1 WHERE id = 10")

    flips.operations.add("pay slowly", pay_slowly)
    router = AsyncRouter(flips.router(), threads=1)

    async def calls() -> Any:
        who.set("ours")
        task = asyncio.create_task(router.write("pay slowly", {}, key="a", entity=1))
        assert await asyncio.to_thread(began.wait, 10)
        assert (await router.read("amount", {"item": 10}, entity=1)).value == 5
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await router.write("pay slowly", {}, key="a", entity=1)
        return (await router.read("amount", {"item": 10}, entity=1)).value

    assert asyncio.run(calls()) == 6
    assert set(seen) == {"ours"}
    router.close()
