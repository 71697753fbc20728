"""Connections that are cut while something is on its way: in a chunk, in a batch, in a commit, anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle

import pytest

from fishladder import tasks
from fishladder.errors import AmbiguousError, TransientError
from fishladder.operate import Order
from tests.scenario.migration import Billing, again
from tests.scenario.proxy import COMMIT, At, Proxy, in_turn, number, saying


class Cut:
    """A billing migration whose copier reaches both stores by way of a proxy."""

    def __init__(self, billing: Billing, source: Proxy, target: Proxy) -> None:
        self.billing = billing
        self.proxies = {"source": source, "target": target}
        billing.by_way_of(source=source.url, target=target.url)


@pytest.fixture(scope="module")
def cut(loaded: Billing) -> Iterator[Cut]:
    """Every test leaves it equal."""
    with ExitStack() as stack:
        yield Cut(loaded, *(stack.enter_context(Proxy(end.copier)) for end in (loaded.source, loaded.target)))


INTO = saying(b"INTO TABLE `payment`")
IN_A_CHUNK: dict[str, tuple[str, At, int | None, type[Exception]]] = {
    "the source in the middle of its rows": ("source", saying(b"FROM `payment` t"), 5_000, TransientError),
    "the target before the rows": ("target", INTO, None, TransientError),
    "the target in the middle of the rows": (
        "target",
        in_turn(INTO, lambda _, packet: len(packet) > 1_000),
        None,
        TransientError,
    ),
    "the target after the rows": ("target", in_turn(INTO, lambda _, packet: packet == b""), 0, TransientError),
    "the target before the commit": ("target", in_turn(INTO, COMMIT), None, AmbiguousError),
    "the target after the commit": ("target", in_turn(INTO, COMMIT), 0, AmbiguousError),
}


def test_cut_in_a_chunk(cut: Cut) -> None:
    """The task fails, and when it is repeated every row is there once, whether the commit had happened or not."""
    billing = cut.billing
    desk = billing.desk()
    for where, (side, at, answer, error) in IN_A_CHUNK.items():
        tasks.operate(desk, Order(action="restart tables", tables=("payment",)), actor="test")
        tasks.cut(desk)
        cut.proxies[side].cut(at, answer=answer)
        with pytest.raises(error):
            tasks.load_table(desk, "payment", "1")
        assert not cut.proxies[side].spare(), where
        ((there,),) = billing.rows("target", "SELECT count(*) FROM payment")
        assert (there > 0) == (where == "the target after the commit"), where
        assert desk.ledger.progress("payment").done == 0
        billing.load("payment")
        assert billing.problems() == [], where
    billing.ends_equal()


WRITTEN = saying(b"INSERT INTO `invoice`")
FORGOTTEN = saying(b"FROM fishladder_journal WHERE id IN")
IN_A_BATCH: dict[str, tuple[str, At, int | None]] = {
    "the source in the middle of its entries": ("source", saying(b"FROM fishladder_journal"), 300),
    "the source in the middle of its rows": ("source", saying(b"FROM `invoice` t"), 300),
    "the target before a write": ("target", WRITTEN, None),
    "the target after a write": ("target", WRITTEN, 0),
    "the target before the commit": ("target", in_turn(WRITTEN, COMMIT), None),
    "the target after the commit": ("target", in_turn(WRITTEN, COMMIT), 0),
    "the source before it forgets": ("source", FORGOTTEN, None),
    "the source before it commits that": ("source", in_turn(FORGOTTEN, COMMIT), None),
    "the source after it committed that": ("source", in_turn(FORGOTTEN, COMMIT), 0),
}


def test_cut_in_a_batch(cut: Cut) -> None:
    """The applier goes on by itself."""
    client = cut.billing.customers(1)
    for where, (side, at, answer) in IN_A_BATCH.items():
        client.run(operations=20)
        cut.proxies[side].cut(at, answer=answer)
        assert cut.billing.follow() == 1, where
        assert not cut.proxies[side].spare(), where
        assert cut.billing.problems() == [], where
    cut.billing.ends_equal()


def test_cut_in_a_pass(cut: Cut) -> None:
    """A pass that ends early says nothing; the next one is as good as any."""
    desk = cut.billing.desk()
    before = desk.ledger.clean_passes("payment")
    for proxy in cut.proxies.values():
        proxy.cut(saying(b"FROM `payment` t"), answer=2_000)
        with pytest.raises(TransientError):
            tasks.reconcile_table(desk, "payment")
        assert not proxy.spare()
    assert desk.ledger.clean_passes("payment") == before
    cut.billing.ends_equal()
    assert desk.ledger.clean_passes("payment") == before + 1


ANSWERS = (None, 0, 5)
"""The packet does not arrive; it arrives and the answer does not; five bytes of the answer do."""


def sweep(cut: Cut, step: Callable[[], None], points: int) -> None:
    """Repeat ``step``, cut at packets that lie evenly over the way that it goes undisturbed."""
    before = {side: proxy.packets for side, proxy in cut.proxies.items()}
    step()
    packets = {side: proxy.packets - before[side] for side, proxy in cut.proxies.items()}
    answers, cuts = cycle(ANSWERS), 0
    for side, proxy in cut.proxies.items():
        for point in range(points):
            at, answer = point * packets[side] // points, next(answers)
            proxy.cut(number(at), answer=answer)
            step()
            cuts += not proxy.spare()
            assert cut.billing.problems() == [], (side, at, answer)
    assert cuts > points  # what is done is not the same each time, so a few may come too late
    cut.billing.ends_equal()


def changes(cut: Cut) -> Callable[[], None]:
    client = cut.billing.customers(2)

    def step() -> None:
        client.run(operations=10)
        again(cut.billing.follow)

    return step


def restarts(cut: Cut, *tables: str) -> Callable[[], None]:
    order = Order(action="restart tables", tables=tables)

    def step() -> None:
        again(lambda: tasks.operate(cut.billing.desk(), order, actor="test"))
        again(lambda: cut.billing.load(*tables))

    return step


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cut_everywhere_between_changes(cut: Cut) -> None:
    sweep(cut, changes(cut), 50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cut_everywhere_in_a_restart_and_a_load(cut: Cut) -> None:
    sweep(cut, restarts(cut, "invoice", "invoice_line", "payment"), 50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cut_everywhere_while_it_is_prepared(cut: Cut) -> None:
    """Again and again: what stands is left as it is."""

    def step() -> None:
        cut.billing.rows("source", "DROP TRIGGER IF EXISTS fishladder_customer_update")
        again(cut.billing.prepare)
        cut.billing.customers(3).run(operations=10)
        again(cut.billing.follow)

    sweep(cut, step, 50)
