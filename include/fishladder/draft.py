"""A first migration file, written from what the two stores declare. A person reads it, and sets the waves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fishladder import install
from fishladder.errors import InputError
from fishladder.plan import examine
from fishladder.spec import Migration, loads, nearest
from fishladder.stores.base import Finding, ForeignKey, TableInfo

PEOPLE = (
    "customer",
    "subscriber",
    "account",
    "member",
    "client",
    "user",
    "tenant",
    "person",
    "organisation",
    "company",
)
"""What the root table of a system is usually called, in the order in which they are believed."""
PLACES = ("country", "market", "region", "tenant", "territory")
"""What the column of a cohort is usually called."""

Tables = Mapping[str, TableInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    kind: str
    connection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A table whose key may be the entity, and its column that may be the cohort."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a table's rows find their entity. ``doubts``: what a person should look at."""

    words: dict[str, str]
    doubts: tuple[str, ...] = ()


def draft(
    name: str,
    ends: tuple[End, End],
    source: Tables,
    target: Tables,
    *,
    root: str | None = None,
    column: str | None = None,
) -> str:
    """The text of a migration file for all tables of the source. ``root`` and ``column``: where guessing goes wrong.

    Its comments say what was guessed and what preflight finds in the tables as they are. Raises InputError when no
    root can be found.
    """
    chosen, others = _choose(source, root, column)
    ways = _ways(source, chosen.table)
    renamed = {table: found for table in source if (found := _target_name(table, target)) != table}
    tables = {table: _table(source[table], ways[table], target, renamed) for table in _ordered(source, ways)}
    head = _head(name, ends, chosen)
    spec = loads("\n".join([*head, "tables:", *_lines(tables, {})]) + "\n", name=name, environment={})
    comments = _comments(_findings(spec, source, target), ways)
    guessed = [f"# Guessed: one {chosen.table} is an entity, and its {chosen.column} the cohort."]
    if others:
        guessed.append(f"# It could also be {', '.join(map(str, others))}: draft again with --root and --cohort.")
    if missing := _missing(spec, target):
        guessed.append(f"# The target lacks {', '.join(missing)}: prepare creates them.")
    general = [f"# {line}" for line in comments.pop("", [])]
    return "\n".join([*guessed, *general, *head, "tables:", *_lines(tables, comments), *_ids(source)]) + "\n"


# The root --------------------------------------------------------------------------------------------------------


def _choose(source: Tables, root: str | None, column: str | None) -> tuple[Root, list[Root]]:
    if root is not None and root not in source:
        raise InputError(f"--root {root}: the source has no such table{nearest(root, list(source))}")
    tables = [source[root]] if root is not None else list(source.values())
    found = [Root(table=info.name, column=c) for info in tables if len(info.key) == 1 for c in _places(info, column)]
    if root is not None and column is not None and not found:
        words = [c.name for c in source[root].columns]
        raise InputError(f"--cohort {column}: {root} has no such column, or no key of one{nearest(column, words)}")
    if not found and column is not None:
        words = [c.name for info in source.values() for c in info.columns]
        raise InputError(f"--cohort {column}: no table with a key of one column has it{nearest(column, words)}")
    if not found:
        raise InputError(
            "no table looks like the root, with a key of one column and a column for its country: name them with"
            " --root TABLE --cohort COLUMN"
        )
    found.sort(key=lambda one: _likelihood(source, one))
    return found[0], found[1:]


def _places(info: TableInfo, column: str | None) -> list[str]:
    if column is not None:
        return [column] if info.column(column) else []
    names = [c.name for c in info.columns if c.name not in info.key and not c.computed]
    found = [(at, name) for name in names for at, place in enumerate(PLACES) if place in name.lower()]
    return [name for _, name in sorted(found)[:1]]


def _likelihood(source: Tables, root: Root) -> tuple[int, int, str]:
    folded = root.table.lower().rstrip("s")
    name = next((at for at, word in enumerate(PEOPLE) if folded == word), None)
    if name is None:
        name = next((at + len(PEOPLE) for at, word in enumerate(PEOPLE) if word in folded), 2 * len(PEOPLE))
    below = sum(way.words != {"role": "shared"} for way in _ways(source, root.table).values())
    return name, -below, root.table


# How tables find their entity ------------------------------------------------------------------------------------


def _ways(source: Tables, root: str) -> dict[str, Way]:
    """Foreign keys followed to the root, the shortest way first; tables that do not reach it are shared."""
    ways = {root: Way(words={"role": "root"})}
    while found := {
        table: way for table in source if table not in ways if (way := _way(source[table], root, ways)) is not None
    }:
        ways |= found
    shared = Way(words={"role": "shared"})
    return {table: ways.get(table, shared) for table in source}


def _way(info: TableInfo, root: str, ways: Mapping[str, Way]) -> Way | None:
    to_root = [fk for fk in info.foreign_keys if fk.parent == root and len(fk.columns) == 1]
    if to_root:
        first = _surest(info, to_root)
        return Way(words={"entity": first.columns[0]}, doubts=_doubts(info, first, to_root))
    parents = [fk for fk in info.foreign_keys if fk.parent in ways and fk.parent != info.name]
    # via: follows the one foreign key to the parent, so there must be one only.
    alone = [fk for fk in parents if sum(other.parent == fk.parent for other in info.foreign_keys) == 1]
    if not alone:
        return None
    first = _surest(info, alone)
    return Way(words={"via": first.parent}, doubts=_doubts(info, first, alone))


def _surest(info: TableInfo, keys: Sequence[ForeignKey]) -> ForeignKey:
    return min(keys, key=lambda fk: _may_be_null(info, fk))


def _may_be_null(info: TableInfo, fk: ForeignKey) -> bool:
    return any((column := info.column(name)) is None or column.nullable for name in fk.columns)


def _doubts(info: TableInfo, chosen: ForeignKey, keys: Sequence[ForeignKey]) -> tuple[str, ...]:
    columns = ", ".join(chosen.columns)
    doubts = [f"{columns} can be NULL: such rows belong to no cohort, and never flip"] * _may_be_null(info, chosen)
    others = [f"{', '.join(fk.columns)} → {fk.parent}" for fk in keys if fk is not chosen]
    if others:
        doubts.append(f"its entity could also be found by {' or '.join(others)}")
    return tuple(doubts)


def _ordered(source: Tables, ways: Mapping[str, Way]) -> list[str]:
    """Parents before children; in a cycle, in the store's order."""
    left, ordered = list(ways), list[str]()
    while left:
        waiting = set(left)
        ready = next((t for t in left if not {fk.parent for fk in source[t].foreign_keys} - {t} & waiting), None)
        ready = ready or next((t for t in left if ways[t].words.get("via") not in waiting), left[0])
        left.remove(ready)
        ordered.append(ready)
    return ordered


# What is written -------------------------------------------------------------------------------------------------


def _target_name(table: str, target: Tables) -> str:
    """The target's table of this name, however it is capitalised; the same name if it has none."""
    return table if table in target else next((name for name in target if name.lower() == table.lower()), table)


def _table(info: TableInfo, way: Way, target: Tables, renamed: Mapping[str, str]) -> dict[str, object]:
    words: dict[str, object] = dict(way.words)
    if info.name in renamed:
        words["target"] = renamed[info.name]
    there = target.get(renamed.get(info.name, info.name))
    if there is not None:
        names = {column.name.lower(): column.name for column in there.columns}
        rename = {
            column.name: names[column.name.lower()]
            for column in info.columns
            if there.column(column.name) is None and column.name.lower() in names
        }
        words |= {"rename": rename} if rename else {}
    return words


def _head(name: str, ends: tuple[End, End], root: Root) -> list[str]:
    source, target = ends
    return [
        f"migration: {name}",
        "strategy: replicate",
        f"source: {{kind: {source.kind}, connection: {source.connection}}}",
        f"target: {{kind: {target.kind}, connection: {target.connection}}}",
        f"application: {{source: {source.connection}_app, target: {target.connection}_app}}",
        f"cohort: {{label: {_label(root.column)}, root: {_yaml(root.table)}, column: {_yaml(root.column)},"
        ' waves: [["*"]]}',
    ]


def _label(column: str) -> str:
    return next((place for place in PLACES if place in column.lower()), "cohort")


def _lines(tables: Mapping[str, Mapping[str, object]], comments: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for table, words in tables.items():
        yield from (f"  # {comment}" for comment in comments.get(table, ()))
        role = words.get("role")
        if role and len(words) == 1:
            yield f"  {_yaml(table)}: {role}"
        else:
            inside = ", ".join(f"{word}: {_yaml(value)}" for word, value in words.items())
            yield f"  {_yaml(table)}: {{{inside}}}"


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""What YAML takes for something else than text."""


def _yaml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False).replace("$", "\\x24")


def _ids(source: Tables) -> list[str]:
    generated = [info.name for info in source.values() if any(column.generated for column in info.columns)]
    if not generated:
        return []
    return [
        "# After the first flip both stores generate ids: odd ones here and even ones there, which the application's",
        "# sessions have to see to.",
        "ids: {interleaved: true}",
    ]


# What preflight would say -----------------------------------------------------------------------------------------


def _missing(spec: Migration, target: Tables) -> list[str]:
    return [name for name, table in spec.tables.items() if (table.target or name) not in target]


def _findings(spec: Migration, source: Tables, target: Tables) -> list[Finding]:
    made = install.imagined_tables(spec, source, _missing(spec, target))
    return [found for found in examine(spec, source, {**target, **made})[0] if found.level != "pass"]


def _comments(findings: Iterable[Finding], ways: Mapping[str, Way]) -> dict[str, list[str]]:
    """Per table, what its lines in the file have above them; under ``''`` what belongs to none."""
    comments: dict[str, list[str]] = {table: list(way.doubts) for table, way in ways.items()}
    for finding in findings:
        table, _, column = finding.where.partition(".")
        # The place in the file is the line below.
        message = re.sub(r" \([^()]*:\d+[^()]*\)$", "", finding.message)
        where = f"{column}: " if column else ""
        comments.setdefault(table if table in ways else "", []).append(f"{finding.level}: {where}{message}")
    return comments


__all__ = ["End", "draft"]
