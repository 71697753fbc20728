"""The names of a migration file as its two stores write them: the same, or else the one that differs in case only.

Oracle keeps CustomerId as CUSTOMERID, MySQL and SQLite as it was written. One file serves them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fishladder.spec import Migration, TableSpec
from fishladder.stores.base import TableInfo


def own_name(name: str, names: Collection[str]) -> str:
    """The one of ``names`` that is meant; ``name`` itself where none or several could be."""
    if name in names:
        return name
    close = [other for other in names if other.casefold() == name.casefold()]
    return close[0] if len(close) == 1 else name


def settle(
    spec: Migration, source: Mapping[str, TableInfo], target: Mapping[str, TableInfo]
) -> tuple[Migration, dict[str, TableInfo], dict[str, TableInfo]]:
    """The migration with its columns as the stores write them, and the stores' tables, by the file's names as well.

    Columns of the target that are written differently become a ``rename``. What cannot be found stays as it is, for
    the plan to say so. The file's names of tables never change: the ledger keeps everything under them.
    """
    ours, theirs = dict(source), dict(target)
    tables = {}
    for name, table in spec.tables.items():
        _also(name, ours)
        _also(table.target or name, theirs)
        tables[name] = _settled(table, ours.get(name), theirs.get(table.target or name))
    root = ours.get(spec.cohort.root)
    column = own_name(spec.cohort.column, _columns(root))
    settled = spec.model_copy(update={"tables": tables, "cohort": spec.cohort.model_copy(update={"column": column})})
    return settled, ours, theirs


def _also(name: str, infos: dict[str, TableInfo]) -> None:
    """Let the table be found under this name, too."""
    found = own_name(name, infos)
    if found in infos:
        infos[name] = infos[found]


def _settled(table: TableSpec, ours: TableInfo | None, theirs: TableInfo | None) -> TableSpec:
    mine, others = _columns(ours), _columns(theirs)
    drop = tuple(own_name(column, mine) for column in table.drop)
    rename = {own_name(column, mine): own_name(other, others) for column, other in table.rename.items()}
    for column in mine:
        if column not in rename and column not in drop and (other := own_name(column, others)) != column:
            rename[column] = other
    return table.model_copy(
        update={
            "entity": table.entity and own_name(table.entity, mine),
            "rename": rename,
            "types": {own_name(column, mine): type_ for column, type_ in table.types.items()},
            "zone": {own_name(column, mine): zone for column, zone in table.zone.items()},
            "drop": drop,
        }
    )


def _columns(info: TableInfo | None) -> list[str]:
    return [column.name for column in info.columns] if info else []
