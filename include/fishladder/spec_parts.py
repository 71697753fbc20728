"""The parts of a migration file, and the words that each of them knows."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from fishladder.cells import parse_type
from fishladder.errors import InputError
from fishladder.yaml_lines import shown

OTHERS = "*"
"""In the last wave: every cohort that no other wave names."""

MAX_WINDOW = timedelta(days=90)
"""How far back a monitor looks at most: at one value in five minutes that is 26,000 of them."""

MAX_DURATION = timedelta(days=3660)
"""Ten years. Time has an end (in the year 9999, or 1), and a gate that cannot count back so far is not a gate."""

_NAME = r"^[a-z][a-z0-9_]{0,39}$"
_CONNECTION = r"^[A-Za-z0-9_.\-]{1,200}$"
_WORD = r"^[^\x00-\x1f\x7f]+$"
_ENTRY_POINT = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_PATH = r"^/([!-.0-~][!-~]*)?$"
_METRIC = r"^[A-Za-z_:][A-Za-z0-9_:]*$"
_DURATION = r"^[1-9][0-9]{0,5}(ms|s|m|h|d)$"
PATTERNS = {
    _NAME: "must start with a small letter, then small letters, digits or _; at most 40 in all",
    _CONNECTION: "must be the id of a connection (letters, digits, _ . -), not a URL",
    _ENTRY_POINT: "must be package.module:name, the place of an Operations in Python code",
    _PATH: "must be a path such as /metrics; where the server is, its connection says",
    _METRIC: "must be a metric's name alone, such as payments_failed_total; write labels: {…} for its labels",
    _WORD: "must not be empty nor hold control characters",
}
_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}


def identity(account: str) -> str:
    """One text for all spellings of a name."""
    return " ".join(unicodedata.normalize("NFKC", account).casefold().split())


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    found = re.match(_DURATION, value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a duration such as 200ms, 5s, 90m, 26h or 14d")
    duration = int(found[0][: found.start(1)]) * _UNITS[found[1]]
    if duration > MAX_DURATION:
        raise ValueError(f"is longer than ten years; write at most {duration_text(MAX_DURATION)}")
    return duration


def duration_text(value: timedelta) -> str:
    return next(f"{value // size}{unit}" for unit, size in _UNITS.items() if not value % size)


def _type_text(text: str) -> str:
    try:
        parse_type(text)
    except InputError as error:
        raise ValueError(str(error)) from error
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{shown(text)!r} is no time zone; write a name such as UTC or Europe/Berlin") from error
    return text


def _command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError("must be a command as a shell reads it: a quotation mark is not closed") from error
    if not words:
        raise ValueError("must be a program and its arguments")
    return text


def _not_ours(name: str) -> str:
    if name.rpartition(".")[2].casefold().startswith("fishladder_"):
        raise ValueError("names that start with fishladder_ are fishladder's own; choose another")
    return name


Word = Annotated[str, StringConstraints(pattern=_WORD, max_length=255)]
Name = Annotated[str, StringConstraints(pattern=_NAME), AfterValidator(_not_ours)]
Connection = Annotated[str, StringConstraints(pattern=_CONNECTION)]
EntryPoint = Annotated[str, StringConstraints(pattern=_ENTRY_POINT)]
Table = Annotated[Word, AfterValidator(_not_ours)]
Text = Annotated[str, StringConstraints(min_length=1)]
Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION}),
]
Strategy = Literal["replicate", "dual_write", "coexist", "reshape"]
Kind = Literal["oracle", "mysql", "cassandra", "sqlite"]


class SpecModel(BaseModel):
    # The docstrings of the fields become the descriptions that an editor shows.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class End(SpecModel):
    """One end of the migration: a store."""

    kind: Kind
    connection: Connection
    """The copier's connection."""

    @property
    def pool(self) -> str:
        """The pool that bounds the work on this store, whichever migrations use it."""
        return f"fishladder_{self.connection}"


class Target(End):
    """Where the state goes."""

    replicas: tuple[Connection, ...] = ()
    """Connections to its replicas: a throttle looks there how far they are behind."""


class Application(SpecModel):
    """The application's own connections, for replay; never the copier's."""

    source: Connection
    target: Connection
    operations: EntryPoint | None = None
    """Where its operations are: ``package.module:name`` of an ``Operations``. Needed to replay queued writes."""


class Rehearsal(SpecModel):
    """A test environment in which the service runs on the target's kind of store alone."""

    connection: Connection
    """The copier's, to a test store of the target's kind. Every rehearsal deletes its rows."""
    source: Connection | None = None
    """To a test store of the source's kind: then the whole migration is rehearsed, and its way back."""
    command: Annotated[str, AfterValidator(_command)]
    """Runs the test workload, without a shell; any exit code but 0 is a dirty day."""
    patience: Duration = timedelta(hours=1)
    """How long it may take."""

    @property
    def connections(self) -> tuple[str, ...]:
        return (self.connection, *([self.source] if self.source is not None else []))


class Cohort(SpecModel):
    """What flips together."""

    label: Name = "country"
    """The word for a cohort in task names and pages."""
    root: Table
    """The table whose key is the entity."""
    column: Word
    """The root's column that holds the cohort."""
    waves: tuple[Annotated[tuple[Word, ...], Field(min_length=1)], ...] = Field(min_length=1)
    """Cohorts by wave, in order; ["*"] as the last wave means all others."""


def _table_schema(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    del mapping["required"]
    schema.clear()
    schema["anyOf"] = [{"enum": ["shared", "root"]}, mapping]


class TableSpec(SpecModel):
    """How one table's rows find their entity, and how its columns change on the way."""

    model_config = ConfigDict(json_schema_extra=_table_schema)

    role: Literal["root", "shared", "entity", "via"]
    """Needed only for a root or shared table with options; entity: and via: say it themselves."""
    entity: Word | None = None
    """The column that holds the root's key."""
    via: Table | None = None
    """The parent table whose entity this row has, through the foreign key to it."""
    target: Table | None = None
    """The table's name in the target, where it differs."""
    rename: Mapping[Word, Word] = {}
    """Source column: target column."""
    types: Mapping[Word, Annotated[str, AfterValidator(_type_text)]] = {}
    """Source column: logical type, such as decimal(12,2), where the meet of the two columns is not what is meant."""
    zone: Mapping[Word, Annotated[str, AfterValidator(_zone)]] = {}
    """Source column without a time zone: the zone that its values are in."""
    drop: tuple[Word, ...] = ()
    """Source columns that are deliberately not migrated."""
    rewrite: Literal["row", "entity"] = "row"
    """What a mismatch makes dirty: its row, or all rows of its entity."""

    @model_validator(mode="before")
    @classmethod
    def _with_role(cls, raw: object) -> object:
        if isinstance(raw, str):
            if raw not in ("root", "shared"):
                raise ValueError(f"must be shared, root, {{entity: column}} or {{via: table}}, not {shown(raw)!r}")
            return {"role": raw}
        if not isinstance(raw, Mapping):
            return raw
        ways = [word for word in ("entity", "via") if raw.get(word) is not None]
        said = {*ways, *(raw[word] for word in ["role"] if isinstance(raw.get(word), str))}
        if len(said) > 1:
            raise ValueError(f"{' and '.join(sorted(said))} contradict each other; keep one")
        if said & {"entity", "via"} and not ways:
            raise ValueError(f"role: {said.pop()} is not enough; write {{entity: column}} or {{via: table}}")
        unknown = raw.keys() - cls.model_fields.keys()
        if not said and "role" not in raw and not unknown:
            raise ValueError("must say role: root, role: shared, entity: <column> or via: <table>")
        # An unknown word is reported alone, for it is probably the missing one, misspelt.
        return raw if "role" in raw else {**raw, "role": said.pop() if said else "shared"}


class Report(SpecModel):
    """A control total: two queries that must return the same rows."""

    source: Text
    target: Text
    at_cutover: bool = False
    """Also run under the fence; it lengthens the window."""


class Metric(SpecModel):
    """One number out of a page of metrics in Prometheus' text format, or out of Prometheus itself."""

    connection: Connection
    """Of type http: where, and with which account."""
    path: Annotated[str, StringConstraints(pattern=_PATH)] = "/metrics"
    """The page of metrics."""
    name: Annotated[str, StringConstraints(pattern=_METRIC)] | None = None
    """Of the samples that are added up."""
    labels: Mapping[Word, Word] = {}
    """Only samples with these labels, whatever others they have."""
    query: Text | None = None
    """Instead of a name: what Prometheus' query API is asked, in PromQL."""

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Metric:
        if (self.name is None) is (self.query is None):
            raise ValueError("write either name: with a metric's name, or query: with what Prometheus shall be asked")
        if self.query is not None and (self.labels or self.path != "/metrics"):
            raise ValueError("path: and labels: belong to name:; a query: says its labels itself")
        return self


class Monitor(SpecModel):
    """A number that must be so, on one side or both, or out of the application's metrics."""

    must_be: Literal["zero", "positive", "no_more_than_before", "no_less_than_before"]
    source: Text | None = None
    target: Text | None = None
    metric: Metric | None = None
    """Asked instead of the stores."""
    within: Annotated[float, Field(ge=1, le=1000)] | None = None
    """So many times as much as before the last flip is not more; so many times less is not less."""
    window: Duration = timedelta(days=7)
    """How far back "before" goes."""

    @model_validator(mode="after")
    def _asks_somewhere(self) -> Monitor:
        if self.source is None and self.target is None and self.metric is None:
            raise ValueError("asks nothing; write source: or target: with a query, or metric:")
        if self.metric is not None and (self.source is not None or self.target is not None):
            raise ValueError("asks a metric and a store; make two monitors of it")
        if self.compares and self.within is None:
            raise ValueError(f"{self.must_be} needs within:, such as 1.5: how many times as much, or less, may be")
        if not self.compares and (self.within is not None or self.window != timedelta(days=7)):
            raise ValueError("within: and window: belong to no_more_than_before and no_less_than_before")
        if self.window > MAX_WINDOW:
            raise ValueError(f"window: goes back further than {duration_text(MAX_WINDOW)}")
        return self

    @property
    def compares(self) -> bool:
        """Whether it is measured against its own past."""
        return self.must_be not in ("zero", "positive")


class Gates(SpecModel):
    """What a flip must have behind it."""

    clean_passes: int = Field(default=3, ge=1)
    """Reconciliations in a row that found nothing."""
    max_age: Duration = timedelta(hours=26)
    """The newest of them began at most so long ago."""
    max_lag: Duration = timedelta(seconds=5)
    rehearsal_days: int = Field(default=0, ge=0, le=366)
    """Clean days of rehearsal in a row, the last one today or yesterday."""
    monitor_age: Duration = timedelta(minutes=15)
    """Every monitor was quiet at most so long ago."""
    approvals: int = Field(default=1, ge=1)
    """Different people who must approve, none of them who asked."""
    approval_expires: Duration = timedelta(hours=8)
    """How long an approval holds."""
    manual: tuple[Word, ...] = ()
    """What nothing here can check: whoever approves a flip confirms it."""
    people: Mapping[Word, tuple[Word, ...]] = {}
    """Person: other accounts of theirs. All together have one say."""
    service_accounts: tuple[Word, ...] = ()
    """Accounts that are nobody's, and approve nothing."""
    observe: Duration = timedelta(minutes=15)
    """So long after a flip every monitor must be quiet, and no row of the cohort differ or be rejected, before the next
    wave may go."""
    automatic_rollback: bool = False
    """A cohort goes back by itself when a monitor is not quiet in that time, or a row of it differs or is rejected. Who
    approves the flip approves this."""
    deadline: Duration = timedelta(seconds=60)
    """From the fence to the switch; past it the attempt is aborted, and nothing has moved."""

    @model_validator(mode="after")
    def _one_person_each(self) -> Gates:
        whose: dict[str, str] = {}
        for person, accounts in self.people.items():
            for account in (person, *accounts):
                other = whose.setdefault(identity(account), person)
                if other != person:
                    raise ValueError(
                        f"{shown(account)} is an account of {shown(other)} and of {shown(person)}; keep one"
                    )
        return self


class Ids(SpecModel):
    """Generated ids, disjoint from before the first flip."""

    target_from: int | None = Field(default=None, ge=1, lt=2**63)
    """The first id that the target generates; the source stays below it. For a source whose ids come from sequences:
    a counter of MySQL or SQLite follows the rows that are copied back, into the target's range."""
    interleaved: bool = False
    """Each store generates every second id, odd ones and even ones; the application's sessions see to it."""

    @model_validator(mode="after")
    def _one_way(self) -> Ids:
        if (self.target_from is None) is not self.interleaved:
            raise ValueError("write either target_from: with the target's first id, or interleaved: true")
        return self
