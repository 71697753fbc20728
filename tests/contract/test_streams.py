"""Rows as a stream: whole or an error, and nothing else suffers from one that is left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from fishladder.cells import Row
from fishladder.errors import TransientError
from fishladder.stores.base import Relation
from fishladder.stores.sql import slices
from tests.contract.stores import MySqlPlace, Place
from tests.contract.tables import column, read, relation, row, table, write

ROWS = 20_000
AT_ONCE = 200_000
"""Bytes: the Oracle wire emulator loses its place in arrays of half a megabyte."""


@pytest.fixture
def long(place: Place) -> tuple[Any, Relation]:
    """A table of 20 MB: more than the network holds on its own. An Oracle sends no more than it is asked for."""
    return made(place, "string(1000)", [row(no, "x" * (100 if place.kind == "oracle" else 1000)) for no in range(ROWS)])


def made(place: Place, text: str, rows: Sequence[Row]) -> tuple[Any, Relation]:
    store = place.open()
    store.install_tables()
    columns = [column("id", "integer(19)", nullable=False), column("text", text)]
    store.create_table(table("t", ["id"], *columns))
    found = relation(store, "t")
    for some in slices(rows, max(1, AT_ONCE // len(rows[-1][1] or b""))):
        write(store, found, *some)
    return store, found


def test_a_stream_brings_all_rows_in_order(long: tuple[Any, Relation]) -> None:
    store, found = long
    with store.read() as reader:
        lengths = []
        keys = []
        for batch in reader.stream(found, None, None):
            lengths.append(len(batch))
            keys += [int(line[0]) for line in batch]
        assert keys == list(range(ROWS))
        assert max(lengths) <= 5_000
        assert list(reader.stream(found, b"5:19999", None)) == []
        assert sum(map(len, reader.stream(found, b"3:100", b"4:9000"))) == 8_900


def test_of_long_rows_few_come_at_once(place: Place) -> None:
    """Whoever reads a stream holds what it brings: a thousand rows of some megabytes would be gigabytes."""
    store, found = made(place, "string", [row(no, "x" * (400_000 if no else 1)) for no in range(60)])
    with store.read() as reader:
        lengths = [len(batch) for batch in reader.stream(found, None, None)]
    assert sum(lengths) == 60
    assert max(lengths) <= 20


def test_other_calls_during_a_stream(long: tuple[Any, Relation]) -> None:
    """They see the present; the stream stays at its moment."""
    store, found = long
    with store.read() as reader, closing(reader.stream(found, None, None)) as batches:
        seen = list(next(batches))
        with store.begin() as transaction:
            transaction.delete(found, [b"5:19999", b"1:1"])
            transaction.commit()
        assert list(reader.rows_by_key(found, [b"5:19999", b"1:2"])) == [b"1:2"]
        with closing(reader.stream(found, b"5:19990", None)) as others:
            assert sum(map(len, others)) == 8
        for batch in batches:
            seen += batch
    assert len(seen) == ROWS


def test_a_stream_that_is_left_early(long: tuple[Any, Relation]) -> None:
    store, found = long
    with store.read() as reader:
        for _ in range(3):
            with closing(reader.stream(found, None, None)) as batches:
                next(batches)
        assert reader.rows_by_key(found, [b"1:7"])
    write(store, found, row(ROWS, None))
    assert len(read(store, found)) == ROWS + 1


def test_a_stream_whose_connection_ends(place: MySqlPlace, long: tuple[Any, Relation]) -> None:
    """It is not taken for a shorter table."""
    place.needs("connection", "sessions to be ended")
    store, found = long
    with store.read() as reader, closing(reader.stream(found, None, None)) as batches:
        next(batches)
        (session,) = place.running("SELECT%ORDER BY%")
        place.administrator().execute(f"KILL {session}")
        with pytest.raises(TransientError):
            list(batches)
    assert len(read(store, found)) == ROWS
