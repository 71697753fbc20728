"""What is wrong with a migration file: pydantic's errors in the file's own words, and checks across its parts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from fishladder.spec_parts import OTHERS, PATTERNS, Cohort, Gates, TableSpec
from fishladder.yaml_lines import Place, Problem, shown

MANY_WORDS = 1000
"""A word is compared with no more than so many: a file of nothing but wrong words must be answered, too."""


def nearest(word: str, words: Iterable[str]) -> str:
    """`` (did you mean 'customer_id'?)`` for a word that resembles one of ``words``, else nothing."""
    close = _closest(word, words)
    return f" (did you mean {close!r}?)" if close else ""


def _closest(word: str, words: Iterable[str]) -> str | None:
    folded = {other.casefold(): other for other in islice(words, MANY_WORDS)}
    close = difflib.get_close_matches(word.casefold()[:80], folded, n=1)
    return folded[close[0]] if close else None


def in_own_words(error: ValidationError, whole: type[BaseModel]) -> Iterator[Problem]:
    """pydantic's errors in this file's words."""
    meant: set[Place] = set()
    # Unknown words first: what one of them means by a slip is not missing.
    for one in sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"):
        place = tuple(str(part) for part in one["loc"] if part != "[key]")
        context = one.get("ctx", {})
        match one["type"]:
            case "extra_forbidden":
                words = _model_at(place, whole).model_fields
                close = _closest(place[-1], words)
                meant.add((*place[:-1], close or ""))
                text = f"unknown word; did you mean {close!r}?" if close else f"unknown word; known: {', '.join(words)}"
            case "missing":
                if place in meant:
                    continue
                text = "is missing"
            case "literal_error":
                given = one["input"]
                text = f"must be {context['expected']}, not {shown(str(given))!r}"
                if isinstance(given, str):
                    text += nearest(given, re.findall(r"'(\w+)'", context["expected"]))
            case "string_pattern_mismatch":
                text = PATTERNS[context["pattern"]]
            case "model_type" | "dict_type" | "mapping_type":
                text = "must be a mapping (word: value)"
            case "tuple_type" | "list_type":
                text = "must be a list ([…])"
            case "string_type":
                text = "must be a text"
            case "too_short":
                text = "must not be empty"
            case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
                text = "must be a whole number"
            case "float_parsing" | "float_type":
                text = "must be a number"
            case "bool_parsing" | "bool_type":
                text = "must be true or false"
            case _:
                text = re.sub(r"^(Value error, |(Input|String|Value) should (?=be|have))", "", one["msg"])
                text = text if one["type"] == "value_error" else f"must {text}"
        yield Problem(place=place, text=text)


def _model_at(place: Place, whole: type[BaseModel]) -> type[BaseModel]:
    """The model whose words may stand at the end of ``place``."""
    model = whole
    for part in place[:-1]:
        if part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


M = TypeVar("M", bound=BaseModel)


def _valid(model: type[M], raw: object) -> M | None:
    try:
        return model.model_validate(raw)
    except ValidationError:
        return None


def cross_check(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What one part of a file says about another, for the parts that are right in themselves."""
    connections: dict[str, str] = {}
    for place, connection in _connections(raw):
        first = connections.setdefault(connection, ".".join(place))
        if first != ".".join(place) and place[1] != "replicas":
            need = "a store" if place[0] == "rehearsal" else "an account"
            yield Problem(place=place, text=f"is the same as {first}; each needs {need} of its own")

    gates = _valid(Gates, raw.get("gates"))
    if gates and gates.rehearsal_days and "rehearsal" not in raw:
        yield Problem(place=("gates", "rehearsal_days"), text="nothing rehearses, so it could not open; add rehearsal:")

    cohort = _valid(Cohort, raw.get("cohort"))
    if cohort:
        yield from _check_waves(cohort.waves)
    if isinstance(raw.get("tables"), Mapping):
        tables = {name: _valid(TableSpec, table) for name, table in raw["tables"].items()}
        yield from _check_roots(tables, cohort)
        yield from _check_ways(tables)
        yield from _check_columns(tables)


def _connections(raw: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    for place in (
        ("source", "connection"),
        ("target", "connection"),
        ("application", "source"),
        ("application", "target"),
        ("target", "replicas"),
        ("rehearsal", "connection"),
        ("rehearsal", "source"),
    ):
        part = raw.get(place[0])
        found = part.get(place[1]) if isinstance(part, Mapping) else None
        if isinstance(found, str):
            yield place, found
        elif isinstance(found, list):
            yield from (((*place, str(at)), one) for at, one in enumerate(found) if isinstance(one, str))


def _check_waves(waves: tuple[tuple[str, ...], ...]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, wave in enumerate(waves):
        for position, cohort in enumerate(wave):
            place = ("cohort", "waves", str(number), str(position))
            if cohort == OTHERS:
                if len(wave) > 1 or number < len(waves) - 1:
                    yield Problem(place=place, text="'*' means all others: it stands alone, in the last wave")
            elif cohort in seen:
                yield Problem(place=place, text=f"{shown(cohort)!r} is in wave {seen[cohort]} already; keep one")
            else:
                seen[cohort] = number + 1


Tables = Mapping[str, TableSpec | None]
"""The tables of a file; None for one that is wrong in itself, and is not looked into further."""


def _check_roots(tables: Tables, cohort: Cohort | None) -> Iterator[Problem]:
    roots = [name for name, table in tables.items() if table and table.role == "root"]
    if not roots and all(tables.values()):
        yield Problem(place=("tables",), text="one table must be the root: <table>: root")
    for name in roots[1:]:
        yield Problem(place=("tables", name), text=f"is a second root; {shown(roots[0])} is the root already")
    if cohort and cohort.root not in tables:
        yield Problem(place=("cohort", "root"), text=f"is not in tables{nearest(cohort.root, tables)}")
    elif cohort and len(roots) == 1 and cohort.root != roots[0]:
        text = f"is {shown(cohort.root)!r}, but the table marked root is {shown(roots[0])!r}; make them the same"
        yield Problem(place=("cohort", "root"), text=text)


def _check_ways(tables: Tables) -> Iterator[Problem]:
    """Following ``via`` from any table must end at a table that knows its entity itself."""
    parents = {name: table.via for name, table in tables.items() if table and table.via is not None}
    for name, parent in parents.items():
        place = ("tables", name, "via")
        if parent not in tables:
            yield Problem(place=place, text=f"{shown(parent)!r} is not in tables{nearest(parent, tables)}")
        elif (table := tables[parent]) and table.role == "shared":
            yield Problem(place=place, text=f"{shown(parent)!r} is shared and has no entity; share this table too")
    for circle in _circles(parents):
        way = " → ".join(shown(step) for step in (*circle, circle[0]))
        yield Problem(place=("tables", circle[0], "via"), text=f"goes in a circle: {way}; one of them needs entity:")


def _circles(parents: Mapping[str, str]) -> Iterator[list[str]]:
    done: set[str] = set()
    for at in parents:
        way: dict[str, None] = {}
        while at in parents and at not in done and at not in way:
            way[at] = None
            at = parents[at]
        if at in way:
            steps = list(way)
            yield steps[steps.index(at) :]
        done.update(way)


def _check_columns(tables: Tables) -> Iterator[Problem]:
    targets: dict[str, str] = {}
    for name, table in tables.items():
        if table is None:
            continue
        place = ("tables", name)
        first = targets.setdefault(table.target or name, name)
        if first != name:
            text = f"would go to the target's table {shown(table.target or name)!r}, as {shown(first)} does"
            yield Problem(place=(*place, "target") if table.target else place, text=text)
        if table.role == "shared" and table.rewrite == "entity":
            yield Problem(place=(*place, "rewrite"), text="a shared table has no entity to rewrite; leave it out")
        columns: dict[str, str] = {}
        for column, renamed in table.rename.items():
            if columns.setdefault(renamed, column) != column:
                text = f"{shown(columns[renamed])!r} is renamed to {shown(renamed)!r} too"
                yield Problem(place=(*place, "rename", column), text=text)
        for column in table.drop:
            for word in ("rename", "types", "zone"):
                if column in getattr(table, word):
                    yield Problem(place=(*place, word, column), text="is dropped; keep the one or the other")
        if table.entity in table.drop:
            yield Problem(place=(*place, "drop"), text="names the column of the entity, which must be migrated")
