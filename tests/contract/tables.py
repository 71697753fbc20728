"""Small tables for the tests of rows and types, created by the store under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fishladder.cells import Cell, LogicalType, Row, parse_type
from fishladder.stores.base import Column, EntityPath, Field, Relation, TableInfo


def column(name: str, type_: str, **more: Any) -> Column:
    return Column(name=name, native="", type=parse_type(type_), **more)


def table(name: str, key: Sequence[str], *columns: Column, **more: Any) -> TableInfo:
    return TableInfo(name=name, key=tuple(key), columns=columns, **more)


def field(column: Column, type_: LogicalType | None = None) -> Field:
    assert column.type is not None
    return Field(
        column=column.name,
        type=type_ or column.type,
        native=column.type,
        checked=not column.enforced,
        bytewise=column.bytewise,
        canonical=column.canonical,
        characters=column.characters,
    )


def relation(store: Any, name: str, *, entity: str | None = None, types: dict[str, str] | None = None) -> Relation:
    """A table as the store describes it; ``types``: logical types of its columns that differ from the store's."""
    info = store.describe()[name]
    given = {column: parse_type(type_) for column, type_ in (types or {}).items()}
    fields = tuple(field(column, given.get(column.name)) for column in info.columns)
    names = [column.name for column in info.columns]
    return Relation(
        table=name,
        name=name,
        fields=fields,
        key=tuple(names.index(column) for column in info.key),
        entity=EntityPath(column=entity, field=fields[names.index(entity)]) if entity else None,
        uniques=tuple(tuple(names.index(column) for column in unique) for unique in info.uniques),
        foreign_keys=info.foreign_keys,
    )


def row(*cells: object) -> Row:
    """Cells from texts and numbers; None is NULL."""
    found: list[Cell] = [None if cell is None else str(cell).encode() for cell in cells]
    return tuple(found)


def write(store: Any, relation: Relation, *rows: Row) -> None:
    with store.begin() as transaction:
        transaction.insert(relation, rows)
        transaction.commit()


def read(store: Any, relation: Relation) -> list[Row]:
    with store.read() as reader:
        found: list[Row] = reader.rows(relation, None, None)
    return found


def chunks(store: Any, relation: Relation, rows: int) -> list[list[Row]]:
    ends = store.chunk_ends(relation, rows)
    with store.read() as reader:
        return [reader.rows(relation, a, b) for a, b in zip([None, *ends], [*ends, None], strict=True)]
