"""The triggers that SQLite gets (design §5). Its single writer is the lock on homes and fences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fishladder.cells import HOMELESS, NO_HOME, SHARED
from fishladder.stores.base import HOME_TABLE, Cascade, Relation, Triggers
from fishladder.stores.sql import ROOT_FIRST
from fishladder.stores.sqlite_types import SqliteDialect

_NOT_COPYING = "WHEN NOT EXISTS (SELECT 1 FROM fishladder_copying)"
_CASCADING = "EXISTS (SELECT 1 FROM fishladder_cascade)"


def _cohort(entity: str | None) -> str:
    if entity is None:
        return f"'{SHARED}'"
    none = f"CASE WHEN {entity} IS NULL THEN '{NO_HOME}' ELSE '{HOMELESS}' END"
    return f"coalesce((SELECT h.cohort FROM fishladder_home h WHERE h.entity = {entity}), {none})"


def _writer(cohort: str) -> str:
    return f"(SELECT f.writer FROM fishladder_fence f WHERE f.cohort = {cohort})"


def _refuse(relation: Relation, where: str) -> str:
    words = f"fishladder: {relation.table} is not open to the application here for this cohort".replace("'", "''")
    return f"SELECT RAISE(ABORT, '{words}') WHERE {where};"


def _refuse_homeless(relation: Relation, *entities: str | None) -> Iterator[str]:
    """Before the refusal that says less."""
    for entity in entities:
        if entity is not None:
            where = f"{_cohort(entity)} = '{HOMELESS}' AND {_closed(entity)}"
            words = f"fishladder: {relation.table} is not open to the application here{ROOT_FIRST}".replace("'", "''")
            yield f"SELECT RAISE(ABORT, '{words}') WHERE {where};"


def _journal(table: str, key: str, entity: str | None, source: str = "") -> str:
    cohort = _cohort(entity)
    name = table.replace("'", "''")
    where = f"{_writer(cohort)} = 'application'"
    where = f"{source} AND {where}" if " WHERE " in source else f"{source} WHERE {where}"
    return (
        f"INSERT INTO fishladder_journal (table_name, row_key, entity, cohort)"
        f" SELECT '{name}', {key}, {entity or 'NULL'}, {cohort}{where};"
    )


def _closed(entity: str | None) -> str:
    return f"coalesce({_writer(_cohort(entity))}, 'nobody') NOT IN ('application', 'free')"


def trigger_texts(
    dialect: SqliteDialect, table: Triggers, uniques: Sequence[tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    """Name and text of each trigger of a table. ``uniques``: columns of its unique keys, migrated or not."""
    relation = table.relation
    name, quoted = f"fishladder_{relation.name}", dialect.quote(relation.name)
    new_key, old_key = dialect.key_sql(relation, "NEW"), dialect.key_sql(relation, "OLD")
    new = dialect.entity_sql(relation.entity, "NEW") if relation.entity else None
    old = dialect.entity_sql(relation.entity, "OLD") if relation.entity else None
    via = relation.entity is not None and bool(relation.entity.steps)
    # The database changes this row because of its parent, which is gone, has been journaled and was not refused.
    orphaned = f"({old} IS NULL AND {_CASCADING})" if via else "FALSE"
    adrift = f"({orphaned} AND {new} IS NULL)" if via else "FALSE"

    def trigger(event: str, when: str, lines: Iterable[str]) -> tuple[str, str]:
        return f"{name}_{event}", f"{when} ON {quoted} {_NOT_COPYING} BEGIN {' '.join(lines)} END"

    # REPLACE deletes the holders of the new unique values without firing anything: journal them first.
    yield trigger("displace", "BEFORE INSERT", _displaced(dialect, relation, uniques, None))
    yield trigger("replace", "BEFORE UPDATE", _displaced(dialect, relation, uniques, old_key))

    born = list(_birth(dialect, relation)) if relation.root_cohort is not None else []
    yield trigger(
        "insert",
        "AFTER INSERT",
        [
            *born,
            *_refuse_homeless(relation, new),
            _refuse(relation, _closed(new)),
            _journal(relation.table, new_key, new),
        ],
    )
    begin = ["INSERT INTO fishladder_cascade (level) VALUES (NULL);"] if table.cascades else []
    yield trigger(
        "delete",
        "BEFORE DELETE",
        [
            *begin,
            *_refuse_homeless(relation, old),
            _refuse(relation, f"{_closed(old)} AND NOT {orphaned}"),
            *_descendants(dialect, table.cascades, "OLD", old),
            _journal(relation.table, old_key, old, f" WHERE NOT {orphaned}"),
        ],
    )
    if table.cascades:
        last = "(SELECT max(level) FROM fishladder_cascade)"
        yield trigger("deleted", "AFTER DELETE", [f"DELETE FROM fishladder_cascade WHERE level = {last};"])
    moved = rekeyed = f"{old_key} <> {new_key}"
    left: list[str] = []
    refusals = [*_refuse_homeless(relation, new, old), _refuse(relation, f"{_closed(new)} AND NOT {adrift}")]
    if old is not None and new is not None:
        moved = f"({moved} OR {old} IS NOT {new})"
        apart = f"{_writer(_cohort(old))} IS NOT {_writer(_cohort(new))}"
        refusals.append(_refuse(relation, f"{old} IS NOT {new} AND ({_closed(old)} OR {apart})"))
        # What follows by cascade leaves the old entity, whose copies still have it.
        left += _descendants(dialect, table.cascades, "NEW", old, f"{rekeyed} AND {old} IS NOT {new}")
    yield trigger(
        "update",
        "AFTER UPDATE",
        [
            *born,  # another key of a root is another entity
            *refusals,
            _journal(relation.table, new_key, new, f" WHERE NOT {adrift}"),
            _journal(relation.table, old_key, old, f" WHERE {moved}"),
            *_descendants(dialect, table.cascades, "NEW", new, rekeyed),
            *left,
        ],
    )


def _birth(dialect: SqliteDialect, root: Relation) -> Iterator[str]:
    """A new root gets its home, once: a root that is deleted and created again keeps the one it had."""
    assert root.entity is not None and root.root_cohort is not None
    entity = dialect.entity_sql(root.entity, "NEW")
    plain = dialect.plain_text(f"NEW.{dialect.quote(root.key_columns[0])}", root.fields[root.key[0]])
    cohort = dialect.known_cohort(root, "NEW.")
    unborn = f"WHERE NOT EXISTS (SELECT 1 FROM fishladder_home h WHERE h.entity = {entity})"
    yield (
        f"INSERT INTO fishladder_journal (table_name, row_key, entity, cohort)"
        f" SELECT '{HOME_TABLE}', {dialect.key_piece(entity)}, {entity}, {cohort} {unborn}"
        f" AND {_writer(cohort)} = 'application';"  # who is born into a complete cohort is copied nowhere
    )
    yield f"INSERT INTO fishladder_home (entity, cohort, root_key) SELECT {entity}, {cohort}, {plain} {unborn};"


def _displaced(
    dialect: SqliteDialect, relation: Relation, uniques: Sequence[tuple[str, ...]], old_key: str | None
) -> Iterator[str]:
    key = dialect.key_sql(relation, "t")
    entity = dialect.entity_sql(relation.entity, "t") if relation.entity else None
    for unique in (relation.key_columns, *uniques):
        columns = [dialect.quote(column) for column in unique]
        same = " AND ".join(f"t.{column} = NEW.{column}" for column in columns)
        if old_key is not None:
            same += f" AND {key} <> {old_key}"
        held = f"FROM {dialect.quote(relation.name)} t WHERE {same}"
        yield _refuse(relation, f"EXISTS (SELECT 1 {held} AND {_closed(entity)})")
        yield _journal(relation.table, key, entity, f" {held}")


def _descendants(
    dialect: SqliteDialect, cascades: Iterable[Cascade], parent: str, entity: str | None, when: str = ""
) -> Iterator[str]:
    """Journal the rows that the database changes by itself below the row that ``parent`` names."""
    for cascade in cascades:
        source = dialect.below(cascade, parent)
        if when:
            source += f" AND {when}"
        yield _journal(cascade.relation.table, dialect.key_sql(cascade.relation, "t"), entity, source)
