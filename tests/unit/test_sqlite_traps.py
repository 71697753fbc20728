"""What SQLite does in silence, and preflight or coverage must not let pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fishladder.errors import CoverageError, InputError
from tests import independent
from tests.unit.small import SCHEMA, Small

TABLES = ["price", "customer", "item", "line"]


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX odd ON item (amount) WHERE amount > 100",
        "CREATE UNIQUE INDEX odd ON line (text COLLATE NOCASE)",
        "CREATE UNIQUE INDEX odd ON line (lower(text))",
    ],
)
def test_unique_indexes_that_no_trigger_can_follow_fail_preflight(make_small: Callable[..., Small], index: str) -> None:
    with pytest.raises(InputError, match="unique index odd"):
        make_small(schema=SCHEMA + index + ";", target=SCHEMA.partition("INSERT INTO")[0])


def test_a_unique_index_created_later_is_seen(small: Small) -> None:
    small.load()
    small.application("CREATE INDEX harmless ON item (amount)")
    small.follow()
    small.application("CREATE UNIQUE INDEX later ON line (text)")
    with pytest.raises(CoverageError, match="line"):
        small.follow()


def test_a_trigger_that_ignores_deletes_fails_preflight(small: Small) -> None:
    assert [finding.level for finding in small.source.inspect()] == ["pass"]
    small.application("CREATE TRIGGER soft BEFORE DELETE ON item BEGIN SELECT RAISE(IGNORE); END")
    assert "RAISE(IGNORE)" in small.source.inspect()[-1].message


def test_a_root_with_a_new_key_is_another_entity_with_a_home(small: Small) -> None:
    small.load()
    small.application("DELETE FROM item WHERE customer_id = 2", "UPDATE customer SET id = 9 WHERE id = 2")
    small.follow()
    homes = "SELECT entity, cohort FROM fishladder_home ORDER BY 1"
    assert small.rows("source", homes) == small.rows("target", homes)
    assert ("1:9", "AU") in small.rows("target", homes)
    assert independent.compare(small.url("source"), small.url("target"), TABLES) == []
