"""The stores that a rehearsal uses up: proved to be its own, emptied, filled from the migration's target (ADR 9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

from fishladder.cells import parse_type
from fishladder.errors import FatalError, InputError
from fishladder.load import Refusal, insert_all_that_fit
from fishladder.pace import Pace
from fishladder.plan import PlanTable, Side
from fishladder.spec import Migration
from fishladder.stores.base import Column, Fenced, Relation, Store, TableInfo

WORDS = TableInfo(
    name="fishladder_rehearsal",
    key=("word",),
    columns=(Column(name="word", native="", type=parse_type("string(64)"), nullable=False),),
)
"""The table in which a rehearsal leaves words in its own stores."""
ROWS = 2_000
"""Rows that are deleted in one transaction."""
TRIES = 2
"""So often a table is copied of which rows are refused: what changed under the first copy fits together in the next."""


@runtime_checkable
class Marked(Protocol):
    """A store in which words can be left. It does not have to hold any table of fishladder's."""

    def own_tables(self) -> list[str]:
        """The names of fishladder's tables here, in small letters."""
        ...

    def words(self) -> set[str]:
        """What ``fishladder_rehearsal`` holds, which must be there; as must it for the next two."""
        ...

    def write_word(self, word: str) -> None: ...

    def erase_word(self, word: str) -> None: ...

    def drop_words(self) -> None:
        """Drop that table."""
        ...


@dataclass(slots=True, kw_only=True)
class Copied:
    """By table: rows that were copied; rows left out because their parent was not there; why others did not fit."""

    rows: dict[str, int] = field(default_factory=dict)
    orphans: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)


# Whose a store is -----------------------------------------------------------------------------------------


def check_apart(rehearsing: Mapping[str, Store], others: Mapping[str, Store], word: str) -> None:
    """Prove that no store of a rehearsal is another one of these, whatever the connections say.

    A new ``word`` that is written through one of them must not be found through another. Stores by connection id.
    Raises InputError that names the two; then nothing was deleted, and the word is gone again.
    """
    everyone = {**others, **rehearsing}
    for name, store in rehearsing.items():
        with _holding(store, word):
            same = [other for other, its in everyone.items() if other != name and word in words_in(its)]
        if same:
            raise InputError(
                f"{name} and {' and '.join(same)} are one database, and a rehearsal deletes every row of its stores:"
                " give it one of its own. Nothing was deleted"
            )


def words_in(store: Store) -> set[str]:
    """The words that were left in a store."""
    assert isinstance(store, Marked)
    return store.words() if WORDS.name in store.own_tables() else set()


@contextmanager
def _holding(store: Store, word: str) -> Iterator[None]:
    """With the word in the store, which is afterwards as it was."""
    assert isinstance(store, Marked)
    made = _make_words(store)
    store.write_word(word)
    try:
        yield
    finally:
        store.erase_word(word)
        if made:
            store.drop_words()


def _make_words(store: Store) -> bool:
    """Create the table of words, unless there is one."""
    assert isinstance(store, Marked) and isinstance(store, Fenced)
    if WORDS.name in store.own_tables():
        return False
    store.create_table(WORDS)
    return True


def is_end(store: Store) -> bool:
    """Whether fishladder's tables are installed in a store."""
    assert isinstance(store, Marked)
    return any(table != WORDS.name for table in store.own_tables())


def check_owned(name: str, store: Store, owner: str) -> bool:
    """Whether an earlier rehearsal has left the word ``owner`` here; otherwise it must be nobody's.

    Raises InputError when fishladder's tables are here, and not that word: it is an end of a migration, or a copy of
    one, or another migration rehearses here.
    """
    if owner in words_in(store):
        return True
    if is_end(store):
        raise InputError(
            f"{name} holds tables of fishladder that no rehearsal of this migration made: it"
            " belongs to a migration, or is a copy of such a store. Nothing was deleted; if it is a test store, drop"
            " its tables fishladder_…, and empty those that are migrated"
        )
    return False


def check_empty(name: str, store: Store, relations: Sequence[Relation]) -> None:
    """Raises InputError when the tables of a store that is not known yet hold rows."""
    if full := [relation.name for relation in relations if not store.is_empty(relation)]:
        raise InputError(
            f"{name} holds rows of {', '.join(full)} that no rehearsal put there, and it would delete them. Nothing was"
            " deleted; if it is a test store, empty these tables"
        )


def reset(store: Store, relations: Sequence[Relation], words: Sequence[str], *, owned: bool) -> None:
    """Delete every row of these tables (parents first) and all of fishladder's, then begin anew with these ``words``.

    Cut short anywhere, the store is known by its word still, or is empty and nobody's. ``owned``: as ``check_owned``
    said; otherwise there is nothing to delete.
    """
    assert isinstance(store, Marked) and isinstance(store, Fenced)
    if owned:
        store.install_tables()  # some may be missing where an earlier call was cut short
        for relation in reversed(relations):
            empty(store, relation)
        store.uninstall()
    _make_words(store)
    for word in words:
        store.write_word(word)
    store.install_tables()


def empty(store: Store, relation: Relation) -> None:
    """Delete every row of a table, in batches."""
    last: list[bytes] = []
    while True:
        with store.begin() as copy:
            keys = copy.first_keys(relation, ROWS)
            copy.delete(relation, keys)
            copy.commit()
        if not keys:
            return
        if keys == last:
            raise FatalError(f"{relation.name}: rows that cannot be found by their keys; empty this table by hand")
        last = keys


# What is put there ------------------------------------------------------------------------------------------


def alone(spec: Migration, side: Side, tables: Mapping[str, TableInfo]) -> Migration:
    """A migration of one side's tables as they are, from that store to another of its kind.

    ``spec``: with its columns as the stores write them. ``tables``: what that store declares.
    """
    if side == "source":
        kept: dict[str, Any] = {"target": None, "rename": {}, "types": {}, "zone": {}}
        return spec.model_copy(update={"tables": {n: t.model_copy(update=kept) for n, t in spec.tables.items()}})
    names = {name: table.target or name for name, table in spec.tables.items()}
    made = {}
    for name, table in spec.tables.items():
        info = tables.get(names[name])
        odd = tuple(column.name for column in info.columns if column.type is None) if info else ()
        update: dict[str, Any] = {
            "target": None,
            "rename": {},
            "types": {},
            "zone": {},
            "drop": odd,  # what the migration does not carry either
            "entity": table.entity and table.rename.get(table.entity, table.entity),
            "via": table.via and names[table.via],
        }
        made[names[name]] = table.model_copy(update=update)
    root, column = spec.cohort.root, spec.cohort.column
    cohort = {"root": names[root], "column": spec.tables[root].rename.get(column, column)}
    return spec.model_copy(update={"tables": made, "cohort": spec.cohort.model_copy(update=cohort)})


def copy_tables(tables: Sequence[PlanTable], origin: Store, store: Store, pace: Pace) -> Copied:
    """Copy these tables (parents first) from a live store into an emptied one, as a load does, chunk by chunk.

    Nothing is locked or written in ``origin``. Each chunk is of one moment, so a child may come without its parent:
    such rows are left out, and counted.
    """
    copied = Copied()
    for table in tables:
        for again in range(TRIES):
            if again:
                empty(store, table.target)
            rows, orphans, refused = _copy_table(table, origin, store, pace)
            if not refused:
                break
        copied.rows[table.name] = rows
        copied.orphans[table.name] += orphans
        if refused:
            first = refused[0]
            column = f"{first.column}: " if first.column else ""
            copied.refused[table.name] = f"{len(refused)} rows do not fit, one of them because: {column}{first.error}"
    _leave_out_orphans(tables, store, copied)
    return copied


def _copy_table(table: PlanTable, origin: Store, store: Store, pace: Pace) -> tuple[int, int, list[Refusal]]:
    """Rows that were copied, rows refused for want of a parent, and those that do not fit."""
    total, orphans, refused = 0, 0, list[Refusal]()
    ends = origin.chunk_ends(table.source, origin.chunk_rows)
    for lower, upper in zip([None, *ends], [*ends, None], strict=True):
        pace.resumed()
        with store.begin() as copy:
            with origin.read() as reader:
                rows, wrong = insert_all_that_fit(copy, table, partial(reader.stream, table.source, lower, upper))
            copy.commit()
        total += rows
        orphans += sum(refusal.orphan for refusal in wrong)
        refused += [refusal for refusal in wrong if not refusal.orphan]
        pace.wait(rows)
    return total, orphans, refused


def _leave_out_orphans(tables: Sequence[PlanTable], store: Store, copied: Copied) -> None:
    """Delete rows whose parents are not there, and then theirs, until there is none."""
    assert isinstance(store, Fenced)
    names = {table.target.name for table in tables}
    pairs = [(table, fk) for table in tables for fk in table.target.foreign_keys if fk.parent in names]
    found = True
    while found:
        found = False
        for table, foreign_key in pairs:
            last: list[bytes] = []
            while lost := [orphan.key for orphan in store.orphans(table.target, foreign_key, ROWS)]:
                if lost == last:
                    raise FatalError(f"{table.name}: rows without a parent that cannot be found by their keys")
                with store.begin() as copy:
                    copy.delete(table.target, lost)
                    copy.commit()
                copied.orphans[table.name] += len(lost)
                copied.rows[table.name] -= len(lost)
                found, last = True, lost
