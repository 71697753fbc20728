"""What a store is to the rest: tables described, rows read and written as cells, and fishladder's own tables.

A store contributes SQL, never the order of events. One instance serves one thread; lanes open their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from fishladder.cells import LogicalType, Row

Connect = Callable[[], Any]
"""Opens a new DB-API connection; called again whenever one was lost."""
Elsewhere = Callable[[Collection[bytes]], Mapping[bytes, str]]
"""The homes that these entities have in the other store; one without is absent."""

Writer = Literal["application", "copier", "nobody", "free"]
"""Who may write a cohort's rows in a store. ``free``: the application, unrecorded."""

HOME_TABLE = "fishladder_home"
APPLIED_TABLE = "fishladder_applied"


# What a store says about its tables -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column as the store declares it. ``type`` None: a type fishladder cannot carry.

    ``bytewise``: the column's equality and order are those of its bytes (no case folding, no padding).
    ``enforced``: the store refuses values beyond the declared type. ``blank_is_null``: it cannot tell ``''`` from
    NULL (Oracle). ``canonical``: a query without any function gives numbers as the cells of ``type``.
    ``collation`` and ``characters``: how it compares, and the character set if that lacks some of Unicode, by the
    store's own names; empty: nothing to tell.
    """

    name: str
    native: str
    type: LogicalType | None
    nullable: bool = True
    generated: bool = False
    computed: bool = False
    bytewise: bool = True
    enforced: bool = True
    blank_is_null: bool = False
    canonical: bool = False
    collation: str = ""
    characters: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """``checked``: also what the copier writes, for no session can leave it unchecked (Oracle)."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str = "NO ACTION"
    on_update: str = "NO ACTION"
    checked: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """A table as the store declares it; ``rows`` and ``bytes`` are the store's own estimates.

    ``unrecorded``: indexes through which the store changes rows that no trigger can name.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    uniques: tuple[tuple[str, ...], ...] = ()
    unrecorded: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    rows: int = 0
    bytes: int = 0

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


# A table as one migration sees it in one store -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column of this store and the migration's logical type of it.

    ``native`` is the type this store declares; ``checked``: the store can hold more than the field.
    ``blank_is_null``: one of the two stores cannot tell ``''`` from NULL, so here both are read as NULL.
    ``canonical`` and ``characters``: as the column's.
    """

    column: str
    type: LogicalType
    native: LogicalType
    checked: bool
    bytewise: bool = True
    blank_is_null: bool = False
    canonical: bool = False
    characters: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One hop from a row to its parent: ``columns`` of the child are ``parent_columns`` of ``parent``."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityPath:
    """How the entity of a row is found: up the ``steps``, then the column there.

    ``text``: the column already holds an entity text (fishladder's own tables).
    """

    column: str
    field: Field
    steps: tuple[Step, ...] = ()
    text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A migrated table in one store. ``table`` is its name in the migration file, the journal and the ledger."""

    table: str
    name: str
    fields: tuple[Field, ...]
    key: tuple[int, ...]
    entity: EntityPath | None
    root_cohort: str | None = None
    """Only for the root: the column that says which cohort a new entity belongs to."""
    uniques: tuple[tuple[int, ...], ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()

    @property
    def key_columns(self) -> tuple[str, ...]:
        return tuple(self.fields[position].column for position in self.key)

    @property
    def has_parent(self) -> bool:
        """Whether its rows find their entity through another table's."""
        return self.entity is not None and bool(self.entity.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """Rows of ``relation`` that the database itself changes when a row of the table above them goes.

    ``path`` leads from ``relation`` up to that table.
    """

    relation: Relation
    path: tuple[Step, ...]


# What is read: named tuples where there is one per change, for frozen dataclasses take three times as long --------


class Found(NamedTuple):
    """A row and the entity it belongs to now (None: none, or a shared table)."""

    row: Row
    entity: bytes | None


class Entry(NamedTuple):
    """One line of a journal: this key changed."""

    id: int
    table: str
    key: bytes
    entity: bytes | None
    cohort: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """``head``: where the ledger's audit chain ended when this order was given (written, and read by ``anchors``)."""

    writer: Writer
    epoch: int
    head: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """Of a table in the target. ``open``: the applier may not touch it; ``cleaning``: nor may the loader, yet."""

    generation: int
    open: bool
    cleaning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedChunk:
    """A chunk that is done: by which claim, and how many rows it wrote."""

    token: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A row whose parent is not there: its key and the parent's, as the foreign key has it."""

    key: bytes
    parent_key: bytes


# What a store does ---------------------------------------------------------------------------------------


class Reader(Protocol):
    """Reads; every call sees what is committed at that moment."""

    def stream(self, relation: Relation, lower: bytes | None, upper: bytes | None) -> Generator[list[Row], None, None]:
        """The rows of a chunk in key order, in batches: keys above ``lower``, up to and with ``upper``.

        All as of one moment, no more than a batch in memory; other calls may be made meanwhile. Raises
        TransientError when the connection is lost on the way: rows are never left out in silence. Close it if you
        leave it before its end.
        """
        ...

    def rows(self, relation: Relation, lower: bytes | None, upper: bytes | None) -> list[Row]:
        """The same all at once."""
        ...

    def rows_by_key(self, relation: Relation, keys: Sequence[bytes], *, lock: bool = False) -> dict[bytes, Found]:
        """The rows that have exactly these keys, byte for byte; ``lock``: nobody changes them before the end."""
        ...

    def first_keys(self, relation: Relation, limit: int) -> list[bytes]:
        """The keys of some rows, at most ``limit``; none when the table is empty."""
        ...

    def keys_of_entity(self, relation: Relation, entity: bytes) -> list[bytes]:
        """The keys of the rows that belong to an entity now."""
        ...

    def entries(self, tables: Sequence[str], limit: int, cohorts: Sequence[str] | None = None) -> list[Entry]:
        """The oldest entries of these tables (and cohorts) in the journal."""
        ...

    def count_entries(self, cohort: str) -> int:
        """Entries that may be about rows of this cohort: its own, and those whose entity nobody knows."""
        ...

    def touching(self) -> set[str]:
        """The attempts for which anything was noted as touched."""
        ...

    def touched(self, attempt: str) -> list[tuple[str, bytes]]:
        """Table and key of what copiers wrote here while this attempt was open."""
        ...

    def entries_of(self, table: str, keys: Sequence[bytes]) -> list[Entry]:
        """All entries of these keys."""
        ...

    def homes(self, entities: Iterable[bytes]) -> dict[bytes, str]:
        """The cohorts of these entities; one without a home is absent."""
        ...


class Transaction(Reader, Protocol):
    """One transaction of the copier. It ends with ``commit()``; without it everything is undone."""

    def lock_load(self, table: str, *, exclusive: bool = False) -> LoadState | None: ...

    def write_load(self, table: str, state: LoadState) -> None: ...

    def take_chunk(self, table: str, no: int, generation: int, token: int) -> LoadedChunk | None:
        """Lock the chunk's row. None: it is this claim's to load. Raises StaleError if a later claim has it."""
        ...

    def finish_chunk(self, table: str, no: int, rows: int) -> None: ...

    def lock_shards(self, numbers: Iterable[int]) -> None: ...

    def lock_fences(self, cohorts: Iterable[str] | None, *, exclusive: bool = False) -> dict[str, Fence]: ...

    def write_fence(self, cohort: str, fence: Fence) -> None: ...

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo what was done inside when a RowError leaves the block; the transaction goes on."""
        ...

    def insert(self, relation: Relation, rows: Sequence[Row]) -> None:
        """Insert rows that are not there yet. Raises RowError; a savepoint around it undoes what was inserted."""
        ...

    def update(self, relation: Relation, rows: Sequence[Row], columns: Sequence[int] | None = None) -> None:
        """Overwrite rows that are there, by key. Raises RowError, with some of them perhaps written: as above."""
        ...

    def upsert(self, relation: Relation, rows: Sequence[Row], there: Mapping[bytes, Found]) -> None:
        """Write rows, in few statements, whether they are there or not; ``there`` is what this transaction found.

        Raises RowError: as above.
        """
        ...

    def delete(self, relation: Relation, keys: Sequence[bytes]) -> None: ...

    def replace(self, relation: Relation, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        """Write these rows where unique values change places with those that have these keys, all of them there.

        Of the latter, one that is not written again goes, or stays without its unique values until its own turn comes.
        No cascade fires. Raises RowError: as above.
        """
        ...

    def holders(self, relation: Relation, rows: Sequence[Row]) -> set[bytes]:
        """The keys of rows that hold a secondary unique value of one of these rows."""
        ...

    def touch(self, entries: Iterable[tuple[str, bytes, str]], attempt: str) -> None: ...

    def forget(self, ids: Sequence[int]) -> None:
        """Delete exactly these journal entries."""
        ...

    def forget_touched(self, attempt: str, keys: Mapping[str, Sequence[bytes]] | None = None) -> None:
        """All that was noted for an attempt, or these keys of these tables."""
        ...

    def forget_cohort(self, cohort: str) -> None:
        """Delete all journal entries of a cohort that will never be copied again."""
        ...

    def commit(self) -> None:
        """Raises AmbiguousError when it may have happened."""
        ...


@runtime_checkable
class BulkLoader(Protocol):
    """A transaction with a fast way to insert, for rows that fit as they are."""

    def load(self, relation: Relation, batches: Iterable[Sequence[Row]]) -> int:
        """Insert rows that are not there yet, with cells of their fields' types. Returns how many there were.

        Raises RowError unless every one of them went in and was not changed; a savepoint around it undoes what was
        inserted, and ``insert`` finds out which row it is.
        """
        ...


class Store(Protocol):
    """One database at one end of a migration. ``chunk_rows``: how many rows make a chunk."""

    kind: str
    chunk_rows: int

    @property
    def folds_names(self) -> bool:
        """Whether two names that differ in case only are one table here."""
        ...

    def describe(self) -> dict[str, TableInfo]:
        """Every table that is not fishladder's, by name."""
        ...

    def read(self) -> AbstractContextManager[Reader]: ...

    def begin(self, *, wait: float | None = None) -> AbstractContextManager[Transaction]:
        """A transaction of the copier. ``wait``: seconds to wait for a lock, 0 not at all, None the default."""
        ...

    def chunk_ends(self, relation: Relation, rows: int, above: bytes | None = None) -> list[bytes]:
        """The keys that end chunks of about ``rows`` rows, in the store's own order, of all rows or those ``above``."""
        ...

    def is_empty(self, relation: Relation) -> bool: ...

    def count(self, relation: Relation) -> dict[str, int]:
        """Rows per cohort, by home."""
        ...

    def query(self, sql: str, parameters: Mapping[str, object]) -> list[tuple[str | None, ...]]:
        """A report's rows as canonical text, numbers by value. ``:name`` stands for a parameter."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of preflight: ``where`` is a table, ``table.column`` or a setting of the store."""

    level: Literal["pass", "warn", "fail"]
    where: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggers:
    """What is installed on one migrated table."""

    relation: Relation
    cascades: tuple[Cascade, ...] = field(default=())


@runtime_checkable
class Fenced(Protocol):
    """A transactional store: it keeps fishladder's tables and triggers (design §5)."""

    ids_follow_rows: bool
    """Whether an id that is written moves the counter from which the next one is generated."""

    def account(self) -> str:
        """The account that this connection belongs to."""
        ...

    def inspect(self) -> list[Finding]:
        """Modes, privileges and limits that a migration depends on."""
        ...

    def install_tables(self) -> None:
        """Create fishladder's tables; those that exist stay as they are."""
        ...

    def installed_for(self) -> str | None:
        """The migration that this store is installed for. None: none, or one of a version that did not say so."""
        ...

    def install_name(self, migration: str) -> None:
        """Note whose installation this is, unless it is somebody's already."""
        ...

    def install_fences(self, cohorts: Iterable[str], writer: Writer) -> None: ...

    def install_load(self, tables: Iterable[str], *, open: bool) -> None:
        """A load row per table, open for the loader or closed for good; those that exist stay as they are."""
        ...

    def install_triggers(self, tables: Sequence[Triggers]) -> None:
        """Replace the triggers of these tables; nobody queues behind it for longer than a second."""
        ...

    def has_triggers(self, tables: Sequence[Triggers]) -> bool:
        """Whether all of them are there at this moment, as ``install_triggers`` makes them."""
        ...

    def backfill_homes(
        self, root: Relation, after: bytes | None, limit: int, *, elsewhere: Elsewhere | None = None
    ) -> bytes | None:
        """Give the next ``limit`` roots above ``after`` a home: theirs ``elsewhere``, or their column's.

        Returns the last key, or None at the end.
        """
        ...

    def cohorts(self, root: Relation) -> dict[str | None, int]:
        """The values of the cohort column and how many roots have each."""
        ...

    def raise_token(self, table: str, no: int, generation: int, token: int) -> None:
        """Make a claim known in the chunk's row, before its transaction begins."""
        ...

    def coverage(self, tables: Sequence[Relation]) -> dict[str, str]:
        """Per migrated table, a digest of its identity and its triggers."""
        ...

    def fences(self) -> dict[str, Fence]: ...

    def anchors(self) -> dict[str, str]:
        """By cohort, where the audit chain ended at the last order to its fence; without those that never had one."""
        ...

    def load_states(self) -> dict[str, LoadState]: ...

    def lag(self) -> float | None:
        """Seconds, by the store's own clock, since the oldest journal entry; None without any."""
        ...

    def orphans(self, child: Relation, foreign_key: ForeignKey, limit: int) -> list[Orphan]: ...

    def duplicates(self, relation: Relation, unique: Sequence[int], limit: int) -> int:
        """How many values of these columns more than one row has."""
        ...

    def generated_from(self, relation: Relation) -> int | None:
        """The next id that the table generates; None if it generates none."""
        ...

    def generate_from(self, relation: Relation, first: int) -> None:
        """Let generated ids begin here, never lower than now."""
        ...

    def create_table(self, table: TableInfo) -> None:
        """Create the table with this store's types for its logical types, its keys and foreign keys."""
        ...

    def running_threads(self) -> int | None:
        """Statements at work in the server; None where nobody counts them."""
        ...

    def replica_lag(self) -> float | None:
        """Seconds that this store is behind the one it replicates; None if it does not replicate."""
        ...

    def heard(self) -> tuple[int, str]:
        """What the ledger told this store last: a number, 0 if it never did, and a word."""
        ...

    def hear(self, number: int, word: str) -> None:
        """Remember this, unless a higher number was heard before."""
        ...

    def uninstall(self) -> None:
        """Remove fishladder's triggers and tables."""
        ...
