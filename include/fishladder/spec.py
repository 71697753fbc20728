"""A migration file, and what of it may change while the migration runs.

The words of its parts are in ``spec_parts``, what can be wrong with it in ``spec_checks``. A table is ``shared``,
``root``, ``{entity: column}`` or ``{via: parent table}``; a shared or root table with options is written
``{role: root, rename: {…}}``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from fishladder.errors import SpecError
from fishladder.spec_checks import cross_check, in_own_words, nearest
from fishladder.spec_parts import (
    OTHERS,
    Application,
    Cohort,
    End,
    Gates,
    Ids,
    Kind,
    Monitor,
    Name,
    Rehearsal,
    Report,
    SpecModel,
    Strategy,
    Table,
    TableSpec,
    Target,
    duration_text,
)
from fishladder.yaml_lines import MAX_PROBLEMS, MAX_SIZE, Origin, read

__all__ = [
    "OTHERS",
    "Application",
    "Changes",
    "Cohort",
    "End",
    "Gates",
    "Ids",
    "Migration",
    "Monitor",
    "Rehearsal",
    "Report",
    "TableSpec",
    "Target",
    "changes",
    "digest",
    "json_schema",
    "load",
    "loads",
    "nearest",
]


class Migration(SpecModel):
    """A fact sheet about one migration: stores, tables, cohorts, gates; never code."""

    # Made by load, loads and from_json. Only the first two check the parts against each other.

    migration: Name
    strategy: Strategy
    source: End
    target: Target
    application: Application
    rehearsal: Rehearsal | None = None
    cohort: Cohort
    tables: Mapping[Table, TableSpec] = Field(min_length=1)
    """The migrated tables by their names in the source."""
    reports: Mapping[Name, Report] = {}
    monitors: Mapping[Name, Monitor] = {}
    gates: Gates = Gates()
    ids: Ids | None = None
    lanes: int = Field(default=2, ge=1, le=64)
    """Parallel workers."""
    chunk_rows: int | None = Field(default=None, ge=100, le=1_000_000)
    """Rows in a chunk, where the store's own choice is not right."""

    _origin: Origin = PrivateAttr(default_factory=lambda: Origin(name=""))

    def where(self, path: str) -> str:
        """``billing.yaml:12`` for ``tables.invoice.entity``, or the line of the nearest thing around it."""
        return self._origin.where(path)

    def kinds(self) -> dict[str, Kind]:
        """The kind of store behind each of the copier's connections."""
        ends = {end.connection: end.kind for end in (self.source, self.target)}
        ends |= dict.fromkeys(self.target.replicas, self.target.kind)
        if self.rehearsal is not None:
            ends[self.rehearsal.connection] = self.target.kind
            if self.rehearsal.source is not None:
                ends[self.rehearsal.source] = self.source.kind
        return ends

    def is_loaded(self, connection: str) -> bool:
        """Whether rows are loaded into the store behind it."""
        rehearsing = self.rehearsal.connections if self.rehearsal is not None else ()
        return connection in (self.target.connection, *rehearsing)

    def application_kinds(self) -> dict[str, Kind]:
        """The same for the application's connections."""
        return {self.application.source: self.source.kind, self.application.target: self.target.kind}

    def data_part(self) -> dict[str, Any]:
        """What decides which rows go where, and as what. Defaults are left out, so that a new option changes none."""
        end = {"kind": True, "connection": True}
        part: dict[str, Any] = self.model_dump(mode="json", include={"strategy": True, "source": end, "target": end})
        part["cohort"] = {"label": self.cohort.label, "root": self.cohort.root, "column": self.cohort.column}
        part["tables"] = {name: table.model_dump(exclude_defaults=True) for name, table in self.tables.items()}
        return part

    def to_json(self) -> str:
        """The whole migration with the environment's values in it, for the ledger."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Migration:
        """The inverse of ``to_json``, without lines. Raises SpecError."""
        origin = Origin(name="recorded migration")
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise origin.error(in_own_words(error, Migration)) from error
        found._origin = Origin(name=found.migration)
        return found


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Migration:
    """Read and check a migration file. Raises SpecError with a line ``file:line: place: problem`` for each problem."""
    try:
        with path.open("rb") as file:
            # One byte more than allowed, so that loads sees that it is too much.
            text = file.read(MAX_SIZE + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = bytes(error.object).count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    return loads(text, name=str(path), environment=environment)


def loads(text: str, *, name: str, environment: Mapping[str, str] = os.environ) -> Migration:
    """Like ``load``, for the text of a file called ``name``."""
    document = read(text, name=name, environment=environment)
    problems = list(document.problems)
    found = None
    try:
        found = Migration.model_validate(document.value)
    except ValidationError as error:
        problems += in_own_words(error, Migration)
    problems += islice(cross_check(document.value), MAX_PROBLEMS + 1)
    if found is None or problems:
        raise document.origin.error(problems)
    found._origin = document.origin
    return found


def digest(part: Mapping[str, Any]) -> str:
    """SHA-256 of ``part`` as canonical JSON (keys sorted, no blanks), in hex."""
    return hashlib.sha256(json.dumps(part, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a changed file means for a migration that runs."""

    allowed: tuple[str, ...] = ()
    """Places that prepare takes over, such as ``gates`` and ``tables.credit_note``."""
    restart: tuple[str, ...] = ()
    """Tables that must be restarted."""
    refused: tuple[str, ...] = ()
    """Sentences for a person; while there is one, nothing of the file is taken."""


def changes(old: Migration, new: Migration) -> Changes:
    """What of ``new`` a migration that was prepared with ``old`` can take."""
    refused = []
    before, after = old.data_part(), new.data_part()
    for part in ("source", "target", "strategy", "cohort"):
        if before[part] != after[part]:
            refused.append(
                f"{new.where(part)}: {part}: differs from what the rows were copied by; put it back, or finish this "
                "migration and start one of another name"
            )
    if old.migration != new.migration:
        refused.append(f"{new.where('migration')}: migration: was {old.migration!r}; another name is another migration")
    for name in old.tables.keys() - new.tables.keys():
        refused.append(
            f"{new.where('tables')}: tables.{name}: is gone, but its triggers and rows are still there; put it back "
            "until the migration is finished"
        )

    kept = [name for name in new.tables if name in old.tables]
    restart = {name for name in kept if before["tables"][name] != after["tables"][name]}
    rerouted = {name for name in restart if _way(old.tables[name]) != _way(new.tables[name])}
    # A table whose parent finds its entity otherwise finds its own otherwise, too.
    while found := {name for name in kept if new.tables[name].via in rerouted} - rerouted:
        rerouted |= found
    restart |= rerouted

    parts = ("application", "rehearsal", "reports", "monitors", "gates", "ids", "lanes", "chunk_rows")
    allowed = [f"tables.{name}" for name in new.tables if name not in old.tables]
    allowed += ["cohort.waves"] if old.cohort.waves != new.cohort.waves else []
    allowed += ["target.replicas"] if old.target.replicas != new.target.replicas else []
    allowed += [part for part in parts if getattr(old, part) != getattr(new, part)]
    return Changes(
        allowed=tuple(allowed),
        restart=tuple(name for name in new.tables if name in restart),
        refused=tuple(sorted(refused)),
    )


def _way(table: TableSpec) -> tuple[str | None, ...]:
    return table.role, table.entity, table.via


class _EditorSchema(GenerateJsonSchema):
    """Says what may be written, where pydantic says what may be passed: no nulls, durations as texts."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        return {word: value for word, value in made.items() if word != "default" or value is not None}

    def encode_default(self, dft: Any) -> Any:
        return duration_text(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def json_schema() -> str:
    """The text of ``migrations/schema.json``, with which an editor completes and checks a migration file."""
    schema = Migration.model_json_schema(schema_generator=_EditorSchema)
    schema = {"$schema": _EditorSchema.schema_dialect, **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
