"""The end of a migration: nothing of fishladder is left in either store, and every row is as it was."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from fishladder import install, tasks
from fishladder.errors import InputError
from fishladder.ledger import open_ledger
from fishladder.spec import Migration
from tests.unit.flips import Flips
from tests.unit.test_approvals import desk_of

TABLES = ("price", "customer", "item", "line")
STORES = ("source", "target")


@pytest.fixture
def desk(flips: Flips) -> tasks.Desk:
    flips.small.ledger.record_spec(flips.small.spec.to_json(), "", "", "test")
    return desk_of(flips.small)


def complete(flips: Flips, *cohorts: str) -> None:
    for cohort in cohorts:
        assert flips.move("flip", cohort).outcome == "done"
    for cohort in cohorts:
        assert flips.cutover.run(flips.ask("complete", cohort).id).outcome == "done"


def things(flips: Flips, store: str) -> list[str]:
    """What is in a store besides rows, as it was made."""
    found = flips.small.rows(store, "SELECT type || ' ' || name || ': ' || coalesce(sql, '') FROM sqlite_master")
    return sorted(text for (text,) in found)


def left(flips: Flips) -> list[str]:
    return [thing for store in STORES for thing in things(flips, store) if "fishladder" in thing.lower()]


def rows(flips: Flips) -> list[object]:
    return [flips.small.rows(store, f"SELECT * FROM {table} ORDER BY 1, 2") for store in STORES for table in TABLES]


def finished(flips: Flips) -> list[str]:
    return [event.actor for event in flips.small.ledger.events() if event.event == "finished"]


def test_nothing_is_left_in_the_stores_but_their_rows(flips: Flips, desk: tasks.Desk) -> None:
    complete(flips, "NZ", "AU", "shared")
    flips.small.application("UPDATE item SET amount = 99 WHERE id = 10", store="target")
    flips.small.follow()
    before = rows(flips)
    assert left(flips)
    assert tasks.finish(desk, actor="ann")
    assert left(flips) == []
    assert (rows(flips), finished(flips)) == (before, ["ann"])
    assert tasks.ask_stores(desk) == []  # an auditor may come years later
    for store in STORES:  # nobody is refused any more, nor journaled
        flips.small.application("UPDATE item SET amount = amount + 1", "DELETE FROM customer WHERE id = 3", store=store)


def test_before_the_last_is_complete_nothing_is_removed(flips: Flips, desk: tasks.Desk) -> None:
    complete(flips, "NZ", "AU")
    assert flips.move("flip", "shared").outcome == "done"
    said: list[str] = []
    before = [things(flips, store) for store in STORES], rows(flips)
    assert not tasks.finish(replace(desk, say=said.append), actor="ann")
    assert said == ["not complete yet: shared; both stores stay as they are"]
    assert ([things(flips, store) for store in STORES], rows(flips)) == before
    assert finished(flips) == []


def test_a_task_that_is_run_again_finds_nothing_to_do(flips: Flips, desk: tasks.Desk) -> None:
    complete(flips, "NZ", "AU", "shared")
    assert tasks.finish(desk, actor="ann")
    before = [things(flips, store) for store in STORES], rows(flips)
    assert tasks.finish(desk, actor="ann")
    assert ([things(flips, store) for store in STORES], rows(flips)) == before


def test_who_died_between_the_stores_goes_on(flips: Flips, desk: tasks.Desk) -> None:
    complete(flips, "NZ", "AU", "shared")
    flips.small.source.uninstall()
    assert left(flips)
    assert tasks.finish(desk, actor="ann")
    assert left(flips) == []


@pytest.mark.parametrize("ended", [True, False])
def test_a_store_that_is_another_migrations_by_now_is_left_alone(flips: Flips, desk: tasks.Desk, ended: bool) -> None:
    """A red task is cleared late, or one that had ended; meanwhile the next migration begins where this one was."""
    complete(flips, "NZ", "AU", "shared")
    small = flips.small
    if ended:
        assert tasks.finish(desk, actor="ann")
    else:
        small.source.uninstall()
    small.source.install_tables()
    small.source.install_name("next")
    small.source.install_fences(["NZ"], "application")
    before = things(flips, "source")
    assert tasks.finish(desk, actor="ann")
    assert things(flips, "source") == before
    assert [thing for thing in things(flips, "target") if "fishladder" in thing.lower()] == []


def test_nothing_is_prepared_once_all_are_complete(flips: Flips, desk: tasks.Desk) -> None:
    """Half of it may be uninstalled already, and what prepare finds missing it would make as in the beginning."""
    complete(flips, "NZ", "AU", "shared")
    with pytest.raises(InputError, match="every cohort is complete: nothing to prepare; run small_finish"):
        tasks.prepare(desk, actor="ann")


def test_another_file_than_the_one_that_was_prepared_finishes_nothing(flips: Flips, desk: tasks.Desk) -> None:
    complete(flips, "NZ", "AU", "shared")
    flips.small.ledger.record_spec(flips.small.spec.to_json().replace('"line"', '"lines"'), "another", "", "test")
    with pytest.raises(InputError, match="its file changed since prepare ran"):
        tasks.finish(desk, actor="ann")
    assert left(flips)


def test_who_is_on_the_way_to_complete_is_waited_for(flips: Flips, desk: tasks.Desk) -> None:
    """Without fences its attempt would never end."""
    complete(flips, "NZ", "AU")
    assert flips.move("flip", "shared").outcome == "done"
    number = flips.ask("complete", "shared").id
    flips.until(number, "free")  # and its worker dies
    assert not tasks.finish(desk, actor="ann")
    assert flips.cutover.run(number).outcome == "done"
    assert tasks.finish(desk, actor="ann")


def test_what_is_finished_is_not_prepared_again(flips: Flips, desk: tasks.Desk) -> None:
    """The target's triggers would refuse its customers, and the source would be open."""
    complete(flips, "NZ", "AU", "shared")
    assert tasks.finish(desk, actor="ann")
    with pytest.raises(InputError, match="is finished"):
        tasks.prepare(desk, actor="ann")
    assert left(flips) == []


def test_a_source_that_was_made_anew_stays_closed_to_who_has_left_it(flips: Flips) -> None:
    complete(flips, "NZ")
    assert flips.move("flip", "AU").outcome == "done"
    small = flips.small
    small.source.uninstall()  # as a finish that died
    install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")
    fences = small.source.fences()
    assert [fences[cohort].writer for cohort in ("NZ", "AU", "?", "shared")] == [*["nobody"] * 3, "application"]


def test_a_store_is_installed_for_one_migration_at_a_time(flips: Flips, desk: tasks.Desk) -> None:
    """Each would take changes out of the journal that the other has not seen."""
    small, other = flips.small, flips.small.spec.model_copy(update={"migration": "other"})
    url = f"sqlite:///{small.folder / 'ledger.db'}"

    def prepare(migration: Migration) -> None:
        with closing(open_ledger(url, migration=migration.migration)) as ledger:
            install.install(migration, small.plan, small.source, small.target, ledger, actor="test")

    for name, store in (("source", small.source), ("target", small.target)):
        before = things(flips, "source"), things(flips, "target")
        with pytest.raises(InputError, match=f"the {name} is installed for small: .*small_finish"):
            prepare(other)
        assert (things(flips, "source"), things(flips, "target")) == before
        store.uninstall()
    prepare(other)
    for task in (lambda: prepare(small.spec), lambda: tasks.cut(desk), lambda: tasks.replicate(desk, seconds=1)):
        with pytest.raises(InputError, match="the source is installed for other"):
            task()


def test_whose_installation_a_store_of_the_version_before_holds_is_the_ledgers_to_say(flips: Flips) -> None:
    small = flips.small
    for store in STORES:
        small.application("DROP TABLE fishladder_migration", store=store)

    def prepare() -> None:
        install.install(small.spec, small.plan, small.source, small.target, small.ledger, actor="test")

    with pytest.raises(InputError, match="the source has fences of fishladder, and this ledger knows of no small that"):
        prepare()
    assert small.source.installed_for() is None
    small.ledger.record_spec(small.spec.to_json(), "", "", "test")
    prepare()
    assert small.source.installed_for() == small.target.installed_for() == "small"
