"""Prepare: target tables, fishladder's tables, fences, the source's triggers, homes (design §5, §13)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fishladder.cells import HOMELESS, NO_HOME, OWN_COHORTS, SHARDS, SHARED, LogicalType, cohort_entity, key_text
from fishladder.coverage import install_triggers, note_changed_coverage
from fishladder.errors import FatalError, InputError, TransientError
from fishladder.ledger import DirtyKey, Ledger
from fishladder.names import own_name, settle
from fishladder.plan import Plan
from fishladder.spec import Migration
from fishladder.spec_parts import OTHERS
from fishladder.stores.base import HOME_TABLE, Column, Fenced, ForeignKey, Store, TableInfo

BACKFILL_ROWS = 5_000
GENERATED, UNSIGNED = LogicalType(kind="integer", size=19), 20
"""What a new table has for ids that an Oracle generates as a bare NUMBER, of which MySQL generates none; and the digits
of the longest that MySQL does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The cohorts that have fences now, and roots that have none: NULL or unknown cohorts never flip."""

    cohorts: tuple[str, ...]
    homeless: int


def create_target_tables(spec: Migration, source: Store, target: Store) -> list[str]:
    """Create the target's missing tables after the source's. Returns their names, parents first."""
    assert isinstance(target, Fenced)
    spec, ours, there = settle(spec, source.describe(), target.describe())
    missing = [name for name, table in spec.tables.items() if (table.target or name) not in there and name in ours]
    created: list[str] = []
    while missing:
        parents = {
            name: {own_name(fk.parent, spec.tables) for fk in ours[name].foreign_keys} - {name} for name in missing
        }
        name = next((name for name in missing if not parents[name] & set(missing)), missing[0])
        wanted = _translated(spec, ours, name)
        try:
            target.create_table(wanted)
        except FatalError as error:
            if wanted.name in target.describe():  # by another prepare
                raise TransientError(f"{name}: somebody has just created it in the target: repeat") from error
            raise
        missing.remove(name)
        created.append(name)
    return created


def imagined_tables(spec: Migration, ours: Mapping[str, TableInfo], names: Iterable[str]) -> dict[str, TableInfo]:
    """The target's tables as ``create_target_tables`` would make them, by name, for preflight."""
    return {info.name: info for info in (_translated(spec, ours, name) for name in names)}


def _translated(spec: Migration, ours: Mapping[str, TableInfo], name: str) -> TableInfo:
    """The source's table in the target's names; foreign keys to tables that are not migrated stay behind."""
    info, table = ours[name], spec.tables[name]

    def renamed(parent: str, columns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(spec.tables[parent].rename.get(column, column) for column in columns)

    columns = tuple(
        Column(
            name=table.rename.get(column.name, column.name),
            native=column.native,
            type=_new_type(spec, ours, name, column.name),
            nullable=column.nullable,
            generated=column.generated,
        )
        for column in info.columns
        if column.name not in table.drop and not column.computed
    )
    return TableInfo(
        name=table.target or name,
        columns=columns,
        key=renamed(name, info.key),
        uniques=tuple(renamed(name, unique) for unique in info.uniques if not set(unique) & set(table.drop)),
        foreign_keys=tuple(
            ForeignKey(
                columns=renamed(name, fk.columns),
                parent=spec.tables[parent].target or parent,
                parent_columns=renamed(parent, fk.parent_columns),
                on_delete=fk.on_delete,
                on_update=fk.on_update,
            )
            for fk in info.foreign_keys
            if (parent := own_name(fk.parent, spec.tables)) in spec.tables and not set(fk.columns) & set(table.drop)
        ),
    )


def _new_type(
    spec: Migration,
    ours: Mapping[str, TableInfo],
    table: str,
    name: str,
    below: frozenset[tuple[str, str]] = frozenset(),
) -> LogicalType | None:
    """An id that the database generates is of a type that MySQL generates, and a number that refers to an integer of
    that one's type."""
    info = ours[table]
    column = info.column(name)
    own = column.type if column is not None else None
    if column is None or own is None or own.kind not in ("integer", "decimal"):
        return own
    seen = below | {(table, name)}
    for fk in info.foreign_keys:
        parent = own_name(fk.parent, spec.tables)
        for child, up in zip(fk.columns, fk.parent_columns, strict=True):
            if child == name and parent in ours and (parent, up) not in seen:
                above = _new_type(spec, ours, parent, up, seen)
                if above is not None and above.kind == "integer":
                    return above
    fits = own.kind == "integer" and own.size is not None and own.size <= UNSIGNED
    return GENERATED if column.generated and info.key == (name,) and not fits else own


def check_installed(migration: str, source: Store, target: Store) -> None:
    """Raises InputError where a store is installed for another migration: they would take each other's changes."""
    for side, store in (("source", source), ("target", target)):
        assert isinstance(store, Fenced)
        other = store.installed_for()
        if other not in (None, migration):
            raise InputError(
                f"the {side} is installed for {other}: two migrations would take each other's changes from its journal;"
                f" end that one with {other}_finish, or, while no cohort of it has moved, take fishladder out of both"
                f" stores as docs/disaster-recovery.md says, or give {migration} another {side}"
            )


def install(spec: Migration, plan: Plan, source: Store, target: Store, ledger: Ledger, *, actor: str) -> Installed:
    """Install everything but the target's triggers (the load comes first). Repeatable; changes nothing that stands.

    Where an earlier installation is not there any more, changes may have gone unrecorded: its clean passes are void,
    and the first pass after this finds whatever was missed, for it believes no journal.
    """
    assert isinstance(source, Fenced) and isinstance(target, Fenced)
    check_installed(spec.migration, source, target)
    for side, store in (("source", source), ("target", target)):
        new = store.installed_for() is None
        store.install_tables()
        if new and store.fences() and ledger.spec() is None:
            raise InputError(
                f"the {side} has fences of fishladder, and this ledger knows of no {spec.migration} that has set them:"
                " look whose they are; if it is nobody's any more, drop its triggers and tables fishladder_…"
            )
        store.install_name(spec.migration)
    check_installed(spec.migration, source, target)
    found = source.cohorts(plan.root.source)
    named = {cohort for wave in spec.cohort.waves for cohort in wave if cohort != OTHERS}
    cohorts = sorted({cohort for cohort in found if cohort is not None} | named)
    odd = set(OWN_COHORTS) & set(cohorts)
    if odd:
        raise InputError(
            f"{plan.root.name}.{spec.cohort.column}: {sorted(odd)[0]!r} is fishladder's own word for rows without a"
            f" {spec.cohort.label}; it cannot be one"
        )
    routes = ledger.routes()  # who has a home in a cohort keeps it, though no row may be of that cohort any more
    everyone = [*sorted({*cohorts, *routes} - {NO_HOME, SHARED}), NO_HOME, SHARED]
    moved = [cohort for cohort, route in routes.items() if route.owner == "target"]
    complete = {cohort for cohort, route in routes.items() if route.stage == "complete"}
    source.install_fences(moved, "nobody")  # of a store that was made anew; those that are there stay as they are
    source.install_fences(everyone, "application")
    # Prepared again by newer code after a flip: who has no home in the source may be born in the target.
    source.install_fences([HOMELESS], "nobody" if moved else "application")
    # A completed cohort has no copy any more that could be copied here: without its fence nobody writes.
    target.install_fences([cohort for cohort in (*everyone, HOMELESS) if cohort not in complete], "copier")
    names = [table.name for table in plan.tables]
    source.install_load(names, open=False)
    target.install_load(names, open=True)
    note_changed_coverage(plan, source, "source", ledger)
    install_triggers(plan.triggers("source"), plan.relations("source"), source, "source", ledger)
    _backfill(plan, source, target, ledger)
    _install_cohort_homes(plan, source, target, ledger, everyone)
    if spec.ids is not None and spec.ids.target_from is not None:
        for table in plan.tables:
            if not table.internal and target.generated_from(table.target) is not None:
                target.generate_from(table.target, spec.ids.target_from)
    ledger.ensure_routes(everyone, actor)
    loaded = [table for table in plan.tables if ledger.table_state(table.name).phase == "closed"]
    if loaded:
        names = [table.name for table in loaded]
        note_changed_coverage(plan, target, "target", ledger)
        triggers = [found for found in plan.triggers("target") if found.relation.table in names]
        install_triggers(triggers, [table.target for table in loaded], target, "target", ledger)
    return Installed(cohorts=tuple(cohorts), homeless=found.get(None, 0))


def _backfill(plan: Plan, source: Fenced, target: Store, ledger: Ledger) -> None:
    """A home is written by the trigger from here on; everybody who was there before gets one now.

    Once cohorts have begun to move, the target is asked first: who was born there, or had a home in a source that has
    been made anew since, keeps it, and the column may say otherwise by now.
    """

    def known(entities: Collection[bytes]) -> Mapping[bytes, str]:
        with target.read() as there:
            return there.homes(entities)

    after: bytes | None = None
    while True:
        elsewhere = known if ledger.attempts(limit=1) else None
        after = source.backfill_homes(plan.root.source, after, BACKFILL_ROWS, elsewhere=elsewhere)
        if after is None:
            return


def _install_cohort_homes(plan: Plan, source: Store, target: Store, ledger: Ledger, cohorts: Iterable[str]) -> None:
    """Each cohort is the home of one entity more, under which keys of writes are kept that have none of their own."""
    table = plan.table(HOME_TABLE)
    wanted = {cohort_entity(cohort): cohort for cohort in cohorts}
    with target.begin() as copy, source.begin() as transaction:
        known = transaction.homes(wanted)
        new = {entity: cohort for entity, cohort in wanted.items() if entity not in known}
        if not new:
            return
        copy.lock_shards(range(SHARDS))  # an applier between the doubt and the row would find none, and forget it
        # The copier's own writes are not journaled. First, so that whoever dies in between leaves a doubt too many.
        ledger.mark_dirty(
            [
                DirtyKey(table=HOME_TABLE, key=key_text([entity]), entity=entity, cohort=cohort, origin="prepare")
                for entity, cohort in new.items()
                if ledger.table_state(HOME_TABLE).phase != "new"
            ]
        )
        transaction.insert(table.source, [(entity, cohort.encode(), entity) for entity, cohort in new.items()])
        transaction.commit()
