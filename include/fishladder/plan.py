"""The plan: a migration file matched with the tables that the two stores really have.

Everything that can be read from the schema is not asked for; everything that does not fit is a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fishladder.cells import HOMELESS, NO_HOME, SHARDS, SHARED, LogicalType, holds, key_text, meet, parse_type, shard
from fishladder.errors import InputError
from fishladder.names import settle
from fishladder.spec import Migration, TableSpec, nearest
from fishladder.stores.base import (
    APPLIED_TABLE,
    HOME_TABLE,
    Cascade,
    Column,
    EntityPath,
    Field,
    Finding,
    ForeignKey,
    Relation,
    Step,
    TableInfo,
    Triggers,
)

Side = Literal["source", "target"]
SIDES: tuple[Side, Side] = ("source", "target")
_NUMBERS = ("integer", "boolean", "decimal")
_KEY_KINDS = {"integer": _NUMBERS, "boolean": _NUMBERS, "float": (), "double": (), "json": ()}
"""What a key column may be declared as for its logical kind, if not only as just that."""
_SHARD = tuple(frozenset({number}) for number in range(SHARDS))
_EVERY_SHARD = frozenset(range(SHARDS))
KEY_BYTES = 2_000
"""The longest key text that the journal of every store takes."""


def other_side(side: Side) -> Side:
    return "target" if side == "source" else "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTable:
    """One migrated table at both ends. ``fields`` of the two relations stand in the same order.

    ``serial``: it has secondary unique keys, so one copier at a time. ``alike``: both stores order its keys alike.
    """

    name: str
    source: Relation
    target: Relation
    serial: bool
    alike: bool
    internal: bool = False
    rewrite: Literal["row", "entity"] = "row"

    def at(self, side: Side) -> Relation:
        return self.source if side == "source" else self.target

    @property
    def shared(self) -> bool:
        return self.source.entity is None

    def cohort(self, entity: bytes | None, homes: Mapping[bytes, str]) -> str:
        """The cohort that a row of this entity belongs to, by home."""
        if self.shared:
            return SHARED
        return homes.get(entity, HOMELESS) if entity is not None else NO_HOME


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is migrated, parents before children; fishladder's own travelling tables come first."""

    migration: str
    tables: tuple[PlanTable, ...]
    cascades: Mapping[Side, Mapping[str, tuple[Cascade, ...]]]
    tied: Mapping[Side, Mapping[str, str]]
    """By the side that is written, tables that share one shard, and the name of that."""
    by_name: Mapping[str, PlanTable] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {table.name: table for table in self.tables})

    def table(self, name: str) -> PlanTable:
        found = self.by_name.get(name)
        if found is None:
            raise InputError(f"{self.migration} migrates no table {name}{nearest(name, list(self.by_name))}")
        return found

    @property
    def root(self) -> PlanTable:
        return next(table for table in self.tables if table.source.root_cohort is not None)

    def relations(self, side: Side) -> list[Relation]:
        return [table.at(side) for table in self.tables]

    def triggers(self, side: Side) -> list[Triggers]:
        """What to install: every table but homes, which the root's trigger writes."""
        return [
            Triggers(relation=table.at(side), cascades=self.cascades[side].get(table.name, ()))
            for table in self.tables
            if table.name != HOME_TABLE
        ]

    def shards(self, table: str, key: bytes, entity: bytes | None, into: Side) -> frozenset[int]:
        """The units of exclusion that a copier of this key holds in the store that it writes.

        All of them when the entity is not known.
        """
        found = self.table(table)
        if one := self.tied[into].get(table):
            return _SHARD[shard(one.encode())]
        if found.serial:
            return _SHARD[shard(table.encode())]
        if found.shared:
            return _SHARD[shard(key_text((table.encode(), key)))]
        return _SHARD[shard(entity)] if entity is not None else _EVERY_SHARD


def resolve(spec: Migration, source: Mapping[str, TableInfo], target: Mapping[str, TableInfo]) -> Plan:
    """The plan of a migration. Raises InputError with every finding that fails, a line each."""
    findings, plan = examine(spec, source, target)
    if plan is None:
        raise InputError("\n".join(f"{f.where}: {f.message}" for f in findings if f.level == "fail"))
    return plan


def examine(
    spec: Migration, source: Mapping[str, TableInfo], target: Mapping[str, TableInfo], *, folds: bool = False
) -> tuple[list[Finding], Plan | None]:
    """All findings, and the plan if none of them fails.

    ``folds``: tables that the target still lacks will be one there if their names differ in case only.
    """
    return _Examination(*settle(spec, source, target), folds).run()


class _Examination:
    def __init__(
        self, spec: Migration, source: Mapping[str, TableInfo], target: Mapping[str, TableInfo], folds: bool
    ) -> None:
        self.spec = spec
        self.folds = folds
        self.infos: dict[Side, Mapping[str, TableInfo]] = {"source": source, "target": target}
        self.findings: list[Finding] = []
        self.fields: dict[str, tuple[tuple[Field, ...], tuple[Field, ...]]] = {}

    def note(self, level: Literal["pass", "warn", "fail"], where: str, message: str) -> None:
        self.findings.append(Finding(level=level, where=where, message=message))

    def fail(self, where: str, message: str, path: str | None = None) -> None:
        """``path``: where in the migration file the reason stands."""
        self.note("fail", where, f"{message} ({self.spec.where(path)})" if path else message)

    def run(self) -> tuple[list[Finding], Plan | None]:
        for name, table in self.spec.tables.items():
            self._match(name, table)
        self._tell_apart()
        if self._failed():
            return self.findings, None
        tables = [self._table(name, table) for name, table in self.spec.tables.items()]
        if self._failed():
            return self.findings, None
        ordered = self._ordered([table for table in tables if table is not None])
        for side in SIDES:
            self._checked_circles(side, ordered)
        cascades = {side: self._cascades(side, ordered) for side in SIDES}
        for side in SIDES:
            self._outside_cascades(side, ordered)
        if self._failed():
            return self.findings, None
        return self.findings, Plan(
            migration=self.spec.migration,
            tables=(*_travelling_tables(), *ordered),
            cascades=cascades,
            tied={side: _tied(side, ordered) for side in SIDES},
        )

    def _failed(self) -> bool:
        return any(finding.level == "fail" for finding in self.findings)

    # Columns

    def _info(self, side: Side, name: str) -> TableInfo | None:
        wanted = name if side == "source" else self.spec.tables[name].target or name
        found = self.infos[side].get(wanted)
        if found is None:
            self.fail(
                name, f"the {side} has no table {wanted}{nearest(wanted, list(self.infos[side]))}", f"tables.{name}"
            )
        return found

    def _tell_apart(self) -> None:
        """Two tables of the source, such as MySQL's Item and item, are never one of the target."""
        known: dict[str, str] = {}
        for name, table in self.spec.tables.items():
            info = self.infos["target"].get(table.target or name)
            if info is None:
                continue
            other = known.setdefault(info.name.casefold() if self.folds else info.name, name)
            if other != name:
                self.fail(
                    name,
                    f"it and {other} would be one table in the target, where names that differ in case only are the"
                    " same: give one of them another name there with target:",
                    f"tables.{name}",
                )

    def _match(self, name: str, table: TableSpec) -> None:
        """Find both ends of every column, and its logical type."""
        source, target = self._info("source", name), self._info("target", name)
        if source is None or target is None:
            return
        words = [column.name for column in source.columns]
        for group in ("rename", "types", "zone", "drop"):
            for column in getattr(table, group):
                if column not in words:
                    self.fail(f"{name}.{column}", f"no such column{nearest(column, words)}", f"tables.{name}.{group}")
        pairs: list[tuple[Field, Field]] = []
        for column in source.columns:
            if column.name in table.drop or column.computed:
                continue
            other = target.column(table.rename.get(column.name, column.name))
            if other is None or other.computed:
                wanted = table.rename.get(column.name, column.name)
                close = nearest(wanted, [c.name for c in target.columns])
                self.fail(
                    f"{name}.{column.name}",
                    f"the target has no column {wanted}{close}; use rename: or drop:",
                    f"tables.{name}",
                )
                continue
            type_ = self._type(name, table, column, other)
            if type_ is not None:
                blank = type_.kind in ("string", "bytes") and (column.blank_is_null or other.blank_is_null)
                blank = blank and column.name not in source.key
                pairs.append((_field(column, type_, blank), _field(other, type_, blank)))
        known = {pair[1].column for pair in pairs}
        for other in target.columns:
            if other.name not in known and not other.nullable and not other.generated and not other.computed:
                self.note(
                    "warn",
                    f"{name}.{other.name}",
                    "is NOT NULL in the target and not in the source: it needs a default",
                )
        self.fields[name] = (tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))

    def _type(self, name: str, table: TableSpec, column: Column, other: Column) -> LogicalType | None:
        where = f"{name}.{column.name}"
        if column.type is None or other.type is None:
            odd, side = (column, "source") if column.type is None else (other, "target")
            self.fail(
                where, f"{odd.native or 'an undeclared type'} in the {side} is no type that can be carried; drop: it"
            )
            return None
        if {column.type.kind, other.type.kind} == {"timestamp", "timestamptz"}:
            # Whatever types: says, nobody has said which zone the one without is in.
            message = (
                f"{column.native} and {other.native}: one has a zone and the other has not; give both the same kind"
            )
            self.fail(where, message, f"tables.{name}")
            return None
        given = table.types.get(column.name)
        type_ = parse_type(given) if given else meet(column.type, other.type)
        if type_ is None:
            self.fail(
                where,
                f"{column.native} and {other.native} have no values in common; give the type with types:",
                f"tables.{name}",
            )
            return None
        if not holds(type_, column.type):
            self.note("warn", where, f"{column.native} can hold more than {type_}: such values become rejects")
        elif not other.nullable and column.nullable:
            self.note("warn", where, "can be NULL in the source but not in the target: such rows become rejects")
        else:
            self.note("pass", where, f"{column.native} → {other.native} as {type_}")
        return type_

    # Tables

    def _table(self, name: str, table: TableSpec) -> PlanTable | None:
        source, target = self.infos["source"][name], self.infos["target"][table.target or name]
        fields = self.fields[name]
        if not source.key:
            self.fail(name, "has no primary key in the source: rows cannot be told apart; give it one or leave it out")
            return None
        columns = [field.column for field in fields[0]]
        if tuple(table.rename.get(column, column) for column in source.key) != target.key:
            self.fail(
                name,
                f"its primary key is ({', '.join(source.key)}) in the source, ({', '.join(target.key)}) in the target;"
                " give the target the same one",
            )
            return None
        for side, info in (("source", source), ("target", target)):
            for index in info.unrecorded:
                self.fail(
                    name,
                    f"the {side}'s unique index {index} is partial, over an expression or folds case:"
                    " rows that a REPLACE deletes through it could not be recorded",
                )
        key = tuple(columns.index(column) for column in source.key)
        for position in key:
            for end in fields:
                type_, native = end[position].type, end[position].native.kind
                if native not in _KEY_KINDS.get(type_.kind, (type_.kind,)):
                    # Rows are enumerated by canonical text and found again by what is stored: the two must be one.
                    self.fail(f"{name}.{columns[position]}", f"a {native} column taken as {type_} cannot be a key")
                    break
            if not fields[1][position].bytewise:
                self.fail(
                    f"{name}.{columns[position]}",
                    "a string key must be compared byte for byte and without padding in the target"
                    " (MySQL: COLLATE utf8mb4_0900_bin), or two keys could become one",
                )
        if sum(_key_bytes(fields[0][position].type) for position in key) > KEY_BYTES:
            self.note(
                "warn", name, f"keys can be longer than {KEY_BYTES} bytes: the application could not write such a row"
            )
        paths = [self._entity(side, name, table) for side in SIDES]
        relations = [
            Relation(
                table=name,
                name=info.name,
                fields=fields[at],
                key=key,
                entity=paths[at],
                root_cohort=self._root_cohort(name, table, at),
                uniques=_uniques(info, fields[at]),
                foreign_keys=tuple(fk for fk in info.foreign_keys if set(fk.columns) <= {f.column for f in fields[at]}),
            )
            for at, info in enumerate((source, target))
        ]
        return PlanTable(
            name=name,
            source=relations[0],
            target=relations[1],
            serial=bool(relations[0].uniques or relations[1].uniques),
            alike=all(_ordered_alike(fields[0][at], fields[1][at]) for at in key),
            rewrite=table.rewrite,
        )

    def _root_cohort(self, name: str, table: TableSpec, at: int) -> str | None:
        if table.role != "root":
            return None
        column = self.spec.cohort.column
        words = [field.column for field in self.fields[name][0]]
        if column not in words:
            self.fail(name, f"the cohort column {column} is not migrated{nearest(column, words)}", "cohort.column")
            return None
        if len(self.infos["source"][name].key) != 1:
            self.fail(name, "the root's primary key must be one column: it is the entity", "cohort.root")
        return self.fields[name][at][words.index(column)].column

    def _entity(self, side: Side, name: str, table: TableSpec) -> EntityPath | None:
        at = SIDES.index(side)
        if table.role == "shared":
            return None
        if table.role == "via":
            assert table.via is not None
            step = self._step(side, name, table.via)
            above = self._entity(side, table.via, self.spec.tables[table.via])
            if step is None or above is None:
                if above is None:
                    self.fail(name, f"{table.via} is shared: it has no entity to give", f"tables.{name}.via")
                return None
            return EntityPath(column=above.column, field=above.field, steps=(step, *above.steps))
        words = [field.column for field in self.fields[name][0]]
        column = table.entity if table.role == "entity" else self.infos["source"][name].key[0]
        if column not in words:
            self.fail(
                name,
                f"the entity column {column} is not migrated{nearest(column or '', words)}",
                f"tables.{name}.entity",
            )
            return None
        field = self.fields[name][at][words.index(column)]
        return EntityPath(column=field.column, field=field)

    def _step(self, side: Side, name: str, via: str) -> Step | None:
        info = self._info(side, name)
        parent = self.infos[side].get(via if side == "source" else self.spec.tables[via].target or via)
        keys = [fk for fk in info.foreign_keys if parent and fk.parent == parent.name] if info else []
        if not keys and side == "target" and info and parent:
            # A target without foreign keys: follow the columns that the source's foreign key uses.
            above = self._step("source", name, via)
            if above is not None:
                down, up = self.spec.tables[name].rename, self.spec.tables[via].rename
                return Step(
                    columns=tuple(down.get(column, column) for column in above.columns),
                    parent=parent.name,
                    parent_columns=tuple(up.get(column, column) for column in above.parent_columns),
                )
        if len(keys) != 1:
            many = "several foreign keys" if keys else "no foreign key"
            self.fail(name, f"has {many} to {via} in the {side}: via: needs exactly one", f"tables.{name}.via")
            return None
        return Step(columns=keys[0].columns, parent=keys[0].parent, parent_columns=keys[0].parent_columns)

    # Order and cascades

    def _ordered(self, tables: list[PlanTable]) -> list[PlanTable]:
        """Parents before children where foreign keys form no cycle; the file's order otherwise."""
        left, ordered = list(tables), []
        while left:
            waiting = {side: {table.at(side).name for table in left} for side in SIDES}
            ready = next(
                (t for t in left if not any(self._parents(t, side) & waiting[side] for side in SIDES)), left[0]
            )
            left.remove(ready)
            ordered.append(ready)
        return ordered

    @staticmethod
    def _parents(table: PlanTable, side: Side) -> set[str]:
        relation = table.at(side)
        return {fk.parent for fk in relation.foreign_keys} - {relation.name}

    def _checked_circles(self, side: Side, tables: list[PlanTable]) -> None:
        """Rows that refer to each other can be written one after the other only where nobody checks that."""
        above = {t.at(side).name: {fk.parent for fk in t.at(side).foreign_keys if fk.checked} for t in tables}
        back = "on the way back: " if side == "source" else ""
        for table in tables:
            for fk in table.at(side).foreign_keys:
                seen, todo = set[str](), [fk.parent] if fk.checked else []
                while todo:
                    seen.add(name := todo.pop())
                    todo += above.get(name, set()) - seen
                if table.at(side).name in seen:
                    self.note(
                        "warn",
                        f"{table.name} ({', '.join(fk.columns)})",
                        f"{back}its foreign key to {fk.parent} closes a circle in the {side}, which checks each row:"
                        " rows that refer to each other would never be written; disable the constraint there until"
                        " the end",
                    )

    def _cascades(self, side: Side, tables: list[PlanTable]) -> dict[str, tuple[Cascade, ...]]:
        """Per table, the rows below it that the database changes by itself when one of its rows goes."""
        return {table.name: tuple(self._below(side, table, table, (), tables)) for table in tables}

    def _below(
        self, side: Side, top: PlanTable, table: PlanTable, path: tuple[Step, ...], tables: list[PlanTable]
    ) -> Iterator[Cascade]:
        for child in tables:
            relation = child.at(side)
            for fk in relation.foreign_keys:
                if fk.parent != table.at(side).name or _passive(fk):
                    continue
                where = f"{child.name} ({', '.join(fk.columns)})"
                if relation.name in {top.at(side).name, table.at(side).name, *(step.parent for step in path)}:
                    self.fail(
                        where,
                        f"its cascade in the {side} runs in a circle, which no trigger can record: make it NO ACTION",
                    )
                    continue
                if not self._same_entity(side, table, child, fk):
                    self.fail(
                        where,
                        f"its cascade from {table.name} in the {side} can reach rows of other entities,"
                        " whose fences would not be asked: make it NO ACTION",
                    )
                if not self._recordable_update(side, table, relation, fk):
                    self.fail(where, f"ON UPDATE {fk.on_update} in the {side} cannot be recorded: make it NO ACTION")
                step = Step(columns=fk.columns, parent=fk.parent, parent_columns=fk.parent_columns)
                yield Cascade(relation=relation, path=(step, *path))
                if fk.on_delete == "CASCADE":
                    yield from self._below(side, top, child, (step, *path), tables)

    @staticmethod
    def _recordable_update(side: Side, table: PlanTable, child: Relation, fk: ForeignKey) -> bool:
        """Only a changed key of the parent is looked for, and only in children that follow it and keep their own."""
        if fk.on_update in ("NO ACTION", "RESTRICT"):
            return True
        follows = fk.on_update == fk.on_delete == "CASCADE" and fk.parent_columns == table.at(side).key_columns
        return follows and not set(fk.columns) & set(child.key_columns)

    def _outside_cascades(self, side: Side, tables: list[PlanTable]) -> None:
        """A cascade that begins in a table without fishladder's triggers passes every fence, unrecorded."""
        migrated = {table.at(side).name for table in tables}
        for table in tables:
            relation = table.at(side)
            for fk in self.infos[side][relation.name].foreign_keys:
                if not _passive(fk) and (fk.parent not in migrated or fk not in relation.foreign_keys):
                    self.fail(
                        f"{table.name} ({', '.join(fk.columns)})",
                        f"its cascade from {fk.parent} in the {side} cannot be recorded:"
                        " migrate that table and this column, or make it NO ACTION",
                    )

    def _same_entity(self, side: Side, table: PlanTable, child: PlanTable, fk: ForeignKey) -> bool:
        above, below = table.at(side).entity, child.at(side).entity
        if above is None or below is None:
            return above is None and below is None
        if below.steps:
            return (below.steps[0].columns, below.steps[0].parent) == (fk.columns, fk.parent)
        return table.at(side).root_cohort is not None and fk.columns == (below.column,)


def _tied(side: Side, tables: Iterable[PlanTable]) -> dict[str, str]:
    """The tables that share one shard, because the store checks their foreign keys whoever writes; by one's name.

    A row waits there for whoever is writing its parent. Were the two in different shards, two copiers would wait for
    each other's rows. They are in one by themselves where both go by entity and no unique key makes one serial.
    """
    groups = {table.at(side).name: {table.name} for table in tables}
    loose = {table.name for table in tables if not table.serial and not table.shared}
    for table in tables:
        for fk in table.at(side).foreign_keys:
            if fk.checked and fk.parent in groups:
                merged = groups[table.at(side).name] | groups[fk.parent]
                groups |= {name: merged for name, group in groups.items() if group & merged}
    return {name: min(group) for group in groups.values() if len(group) > 1 and not group <= loose for name in group}


def _key_bytes(type_: LogicalType) -> int:
    """How long the text of such a key column can be; what has no limit counts as short."""
    widest = {"string": 4, "bytes": 2}
    return (type_.size or 0) * widest.get(type_.kind, 1)


def _passive(fk: ForeignKey) -> bool:
    return fk.on_delete in ("NO ACTION", "RESTRICT") and fk.on_update in ("NO ACTION", "RESTRICT")


def _field(column: Column, type_: LogicalType, blank_is_null: bool) -> Field:
    assert column.type is not None
    return Field(
        column=column.name,
        type=type_,
        native=column.type,
        checked=not (column.enforced and holds(type_, column.type)),
        bytewise=column.bytewise,
        blank_is_null=blank_is_null,
        canonical=column.canonical,
        characters=column.characters,
    )


def _ordered_alike(one: Field, other: Field) -> bool:
    if one.type.kind in ("integer", "boolean"):
        return one.native.kind == other.native.kind
    if one.type.kind in ("string", "bytes", "uuid"):
        return one.native.kind == other.native.kind and one.bytewise and other.bytewise
    return False


def _uniques(info: TableInfo, fields: Iterable[Field]) -> tuple[tuple[int, ...], ...]:
    columns = [field.column for field in fields]
    return tuple(
        tuple(columns.index(column) for column in unique)
        for unique in info.uniques
        if unique != info.key and set(unique) <= set(columns)
    )


def _travelling_tables() -> tuple[PlanTable, ...]:
    """Homes and applied keys: fishladder's own tables that are migrated and verified like any other."""
    text = LogicalType(kind="string")

    def table(name: str, columns: tuple[str, ...], keys: int) -> PlanTable:
        fields = tuple(Field(column=column, type=text, native=text, checked=False) for column in columns)
        entity = next(field for field in fields if field.column == "entity")
        relation = Relation(
            table=name,
            name=name,
            fields=fields,
            key=tuple(range(keys)),
            entity=EntityPath(column="entity", field=entity, text=True),
        )
        return PlanTable(name=name, source=relation, target=relation, serial=False, alike=True, internal=True)

    return (
        table(HOME_TABLE, ("entity", "cohort", "root_key"), 1),
        table(APPLIED_TABLE, ("operation", "entity", "idempotency_key", "digest", "result"), 3),
    )
