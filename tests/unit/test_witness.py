"""The stores' fences remember what the ledger has ordered: what was restored or rewritten shows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import text

from fishladder import operate, tasks
from fishladder.errors import InputError
from fishladder.ledger import Attempt, verify
from fishladder.ledger.audit import _digest
from fishladder.plan import Side
from fishladder.stores.base import Fenced
from fishladder.witness import contradictions
from tests.unit.flips import Flips
from tests.unit.test_approvals import desk_of


def said(flips: Flips) -> list[str]:
    stores: dict[Side, object] = {"source": flips.small.source, "target": flips.small.target}
    return contradictions(flips.small.ledger, stores)  # type: ignore[arg-type]


def test_they_agree_at_every_step_of_the_way(flips: Flips) -> None:
    assert said(flips) == []
    number = flips.verified()
    while flips.cutover.advance(number).outcome is None:
        assert said(flips) == []
    for kind in ("rollback", "flip", "complete"):
        assert (flips.move(kind) if kind != "complete" else flips.cutover.run(flips.ask(kind).id)).outcome == "done"
        assert said(flips) == []


def test_each_order_leaves_where_the_chain_ended(flips: Flips) -> None:
    flips.move()
    ours, theirs = flips.small.source, flips.small.target
    assert isinstance(ours, Fenced) and isinstance(theirs, Fenced)
    chain = {f"{event.sequence} {event.digest}": event.event for event in flips.small.ledger.events()}
    assert set(ours.anchors()) == {"NZ", "?"} and set(theirs.anchors()) == {"NZ"}
    assert chain[theirs.anchors()["NZ"]] == chain[ours.anchors()["NZ"]] == "switched"
    assert chain[ours.anchors()["?"]] == "fencing"


def rewritten(flips: Flips, edit: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    """By somebody who may write the ledger's database, and knows how digests are made."""
    with flips.small.ledger.engine.begin() as connection:
        columns = "migration, sequence, at, actor, event, body, previous, digest"
        rows = connection.execute(text(f"SELECT {columns} FROM ledger_audit ORDER BY sequence")).mappings()
        made, previous = [], "0" * 64
        for number, row in enumerate(edit([dict(row) for row in rows]), start=1):
            made.append(row | {"sequence": number, "previous": previous})
            previous = made[-1]["digest"] = _digest(made[-1])
        connection.execute(text("DELETE FROM ledger_audit"))
        values = ", ".join(f":{name.strip()}" for name in columns.split(","))
        connection.execute(text(f"INSERT INTO ledger_audit ({columns}) VALUES ({values})"), made)
        head = {"sequence": len(made), "digest": previous}
        connection.execute(text("UPDATE ledger_audit_head SET sequence = :sequence, digest = :digest"), head)


def without_reason(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    for row in rows:
        if row["event"] == "flip asked for":
            row["body"] = json.dumps(json.loads(str(row["body"])) | {"reason": "somebody else wanted it"})
    return rows


EDITS = {
    "cut before the flip": lambda rows: [
        row for row in rows if row["event"] not in ("fencing", "queueing", "switched")
    ],
    "another reason": without_reason,
    "somebody else's": lambda rows: [row | {"actor": "ben"} for row in rows],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_chain_that_was_written_anew(
    flips: Flips, edit: Callable[[list[dict[str, object]]], list[dict[str, object]]]
) -> None:
    flips.move()
    rewritten(flips, edit)
    assert verify(flips.small.ledger.engine) == []  # by itself it is whole
    problems = said(flips)
    assert len(problems) == 3 and all("which is not in it any more" in problem for problem in problems)
    assert problems[0].startswith("the source's fence of ?") or problems[0].startswith("the source's fence of NZ")


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_store_that_was_restored_from_before_a_flip(flips: Flips, side: str) -> None:
    """Then both stores take the cohort's writes, or neither does."""
    before = flips.small.rows(side, "SELECT writer, epoch FROM fishladder_fence WHERE cohort = 'NZ'")[0]
    flips.move()
    sql = f"UPDATE fishladder_fence SET writer = '{before[0]}', epoch = {before[1]} WHERE cohort = 'NZ'"
    flips.small.application(sql, store=side)
    (problem,) = said(flips)
    assert problem.startswith(
        f"NZ is live in epoch 3, and the {side}'s fence says {before[0]} in epoch 1: the {side} or"
    )


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_fence_that_somebody_has_deleted(flips: Flips, side: str) -> None:
    with closing(sqlite3.connect(flips.small.folder / f"{side}.db")) as connection, connection:
        connection.execute("DELETE FROM fishladder_fence WHERE cohort = 'NZ'")
    (found,) = said(flips)
    assert f"NZ is off in epoch 1, and the {side} has no fence of it" in found and found.endswith("; run prepare")
    tasks.prepare(desk_of(flips.small), actor="ada")
    assert said(flips) == []


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_fence_of_a_moved_cohort_is_not_made_anew(flips: Flips, side: str) -> None:
    """An old copy would be taken for the truth, and what is newer deleted."""
    flips.move()
    assert flips.cutover.run(flips.ask("complete").id).outcome == "done"
    with closing(sqlite3.connect(flips.small.folder / f"{side}.db")) as connection, connection:
        connection.execute("DELETE FROM fishladder_fence WHERE cohort = 'NZ'")
    (found,) = said(flips)
    assert found.endswith("; put it back before prepare runs again")
    tasks.prepare(desk_of(flips.small), actor="ada")
    stores = {"source": flips.small.source, "target": flips.small.target}
    fence = stores[side].fences().get("NZ")  # type: ignore[attr-defined]
    assert len(said(flips)) == 1 and (fence is None or fence.writer == "nobody")


def test_an_anchor_that_somebody_has_edited(flips: Flips) -> None:
    flips.move()
    for nonsense in ("x", "57", f"1 {hashlib.sha256().hexdigest()}", " "):
        flips.small.application(f"UPDATE fishladder_fence SET audit_head = '{nonsense}' WHERE cohort = 'NZ'")
        assert ["which is not in it any more" in problem for problem in said(flips)] == [True]


# What the gate makes of it ----------------------------------------------------------------------------------------


def gate(flips: Flips, attempt: Attempt) -> tuple[bool, str]:
    (found,) = (one for one in desk_of(flips.small).evaluate(attempt) if one.name == "fences")
    return found.open, found.found


def restored(flips: Flips, side: str, *cohorts: str) -> None:
    """From before their flips."""
    writer = {"source": "application", "target": "copier"}[side]
    for cohort in cohorts:
        sql = f"UPDATE fishladder_fence SET writer = '{writer}', epoch = 1, audit_head = NULL WHERE cohort = '{cohort}'"
        flips.small.application(sql, store=side)


@pytest.mark.parametrize("kind", ["complete", "rollback"])
def test_who_waits_for_a_yes_is_looked_at(flips: Flips, kind: str) -> None:
    """Both stores take its writes; completed, it would lose those of the source."""
    flips.move()
    attempt = flips.ask(kind)
    assert gate(flips, attempt) == (True, "as the ledger has them")
    restored(flips, "source", "NZ")
    is_open, found = gate(flips, attempt)
    assert not is_open and "NZ is live in epoch 3, and the source's fence says application in epoch 1" in found
    assert tasks.ask_stores(desk_of(flips.small)) == said(flips) != []


def test_a_target_from_before_all_flips_lets_all_go_back(loose: Flips) -> None:
    """Shared tables go first, before anybody else can be asked for: nobody waits for another for ever."""
    for cohort in ("NZ", "AU", "shared"):
        assert loose.move(cohort=cohort).outcome == "done"
    restored(loose, "target", "NZ", "AU", "shared")
    assert len(said(loose)) == 3
    for cohort in ("shared", "NZ", "AU"):
        attempt = loose.ask("rollback", cohort)
        assert gate(loose, attempt) == (True, "as the ledger has them")
        assert loose.cutover.verify(attempt) and loose.cutover.run(attempt.id).outcome == "done"
    assert said(loose) == []


def test_a_target_from_before_an_aborted_flip_lets_all_move(flips: Flips) -> None:
    """Its fence says what it should, with a number that nobody would raise again but a flip, whose gate it closes."""
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    flips.small.follow()
    flips.move()
    aborted = flips.verified(cohort="AU")
    flips.until(aborted, "drain")
    flips.small.ledger.abort(flips.small.ledger.attempt(aborted), "no")
    assert flips.cutover.run(aborted).outcome == "aborted"
    flips.small.follow()
    restored(flips, "target", "NZ", "AU")
    assert gate(flips, flips.ask("rollback"))[0] and not gate(flips, flips.ask(cohort="AU"))[0]
    flips.small.application("UPDATE fishladder_ledger SET word = 'of yesterday'", store="target")
    assert tasks.adopt_ledger(desk_of(flips.small), actor="ada") == []
    assert ["NZ is live in epoch 3" in problem for problem in said(flips)] == [True]
    assert flips.move("rollback").outcome == "done" and said(flips) == []
    assert gate(flips, flips.ask(cohort="AU"))[0]


def test_events_that_were_lost_when_the_ledger_failed_over_are_forgiven(flips: Flips) -> None:
    """The target knows nothing that the ledger does not, and a fence remembers another cohort's event."""
    small = flips.small
    small.ledger.record_spec(small.spec.to_json(), "", "", "test")
    small.follow()
    number = flips.verified()
    flips.until(number, "open")
    backup, ledger = small.folder / "backup.db", small.folder / "ledger.db"
    with closing(sqlite3.connect(ledger)) as old, closing(sqlite3.connect(backup)) as new:
        old.backup(new)
    small.ledger.record_event("another cohort's", {}, actor="eve")
    flips.until(number, "replay")
    small.ledger.close()
    with closing(sqlite3.connect(backup)) as old, closing(sqlite3.connect(ledger)) as new:
        old.backup(new)
    assert flips.cutover.run(number).outcome == "done"
    assert ["which is not in it any more" in problem for problem in said(flips)] == [True, True]
    assert not gate(flips, flips.ask("rollback"))[0]
    assert tasks.adopt_ledger(desk_of(small), actor="ada") == []
    assert said(flips) == [] and gate(flips, flips.ask("rollback"))[0]
    with pytest.raises(InputError, match="nothing to adopt"):
        tasks.adopt_ledger(desk_of(small), actor="ada")


# A store that was restored is closed again ---------------------------------------------------------------------------


def adopt(flips: Flips) -> None:
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    assert tasks.adopt_ledger(desk_of(flips.small), actor="ada") == []


def test_a_source_from_before_a_flip_is_closed_again(flips: Flips) -> None:
    flips.move()
    flips.small.follow()
    restored(flips, "source", "NZ", "?")
    assert len(said(flips)) == 2 and "rows without a home (?) says application" in said(flips)[1]
    adopt(flips)
    assert said(flips) == [] and flips.fences() == [("copier", 3), ("application", 3)]
    with pytest.raises(sqlite3.IntegrityError, match="is not open to the application here"):
        flips.small.application("UPDATE item SET amount = 1 WHERE id = 10")
    with pytest.raises(InputError, match="nothing to adopt"):
        tasks.adopt_ledger(desk_of(flips.small), actor="ada")


def test_an_adoption_that_died_can_be_repeated(flips: Flips, monkeypatch: pytest.MonkeyPatch) -> None:
    flips.move()
    flips.small.follow()
    restored(flips, "source", "NZ", "?")
    for owner, step in ((type(flips.small.ledger), "finish_adoption"), (operate, "set_fence")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                adopt(flips)
    adopt(flips)
    assert said(flips) == [] and flips.fences() == [("copier", 3), ("application", 3)]


def test_a_target_from_before_a_rollback_is_closed_again(flips: Flips) -> None:
    flips.move()
    flips.small.follow()
    flips.move("rollback")
    flips.small.follow()
    flips.small.application(
        "UPDATE fishladder_fence SET writer = 'application', epoch = 3 WHERE cohort = 'NZ'", store="target"
    )
    assert len(said(flips)) == 1
    adopt(flips)
    assert said(flips) == [] and flips.fences() == [("application", 5), ("copier", 5)]


def test_no_store_is_opened_whose_rows_may_be_of_yesterday(flips: Flips) -> None:
    flips.move()
    flips.small.follow()
    restored(flips, "target", "NZ")
    attempt = flips.ask(cohort="AU")
    with pytest.raises(InputError, match="nothing to adopt"):
        adopt(flips)
    assert flips.fences()[1] == ("copier", 1)
    assert flips.small.ledger.attempt(attempt.id).outcome is None  # nothing was adopted: nobody has to ask again
