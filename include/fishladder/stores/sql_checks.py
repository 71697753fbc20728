"""What relational stores share: reads over whole tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fishladder.cells import HOMELESS, NO_HOME, SHARED, key_text
from fishladder.stores.base import Elsewhere, Fence, ForeignKey, LoadState, Orphan, Relation
from fishladder.stores.sql import KEYS_PER_STATEMENT, Session, load_state, range_parameters, read_fences, slices

WORDS = "fishladder_rehearsal"
"""The table in which a rehearsal leaves words, by which it knows a store again."""
MIGRATION = "fishladder_migration"
"""The table that says whose installation a store holds."""


def words_last(names: Iterable[str]) -> list[str]:
    """In the order in which tables are dropped: whoever dies on the way is still known for what it is."""
    return sorted(names, key=lambda name: (name.casefold() == WORDS, name.casefold() == MIGRATION, name))


class Checks:
    """Chunk ends, counts, orphans, duplicates; and homes for the roots that were there before the triggers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.dialect = session.dialect

    def fences(self) -> dict[str, Fence]:
        return read_fences(self.session.run("SELECT cohort, writer, epoch FROM fishladder_fence ORDER BY cohort", []))

    def anchors(self) -> dict[str, str]:
        sql = "SELECT cohort, audit_head FROM fishladder_fence WHERE audit_head IS NOT NULL"
        return {cohort.decode(): head.decode() for cohort, head in self.session.run(sql, [])}

    def load_states(self) -> dict[str, LoadState]:
        found = self.session.run("SELECT table_name, generation, is_open FROM fishladder_load", [])
        return {table.decode(): load_state(generation, is_open) for table, generation, is_open in found}

    def migration(self) -> str | None:
        found = self.session.run(f"SELECT name FROM {MIGRATION}", [])
        return found[0][0].decode() if found else None

    def heard(self) -> tuple[int, str]:
        ((number, word),) = self.session.run("SELECT no, word FROM fishladder_ledger", [])
        return int(number), word.decode()

    def hear(self, number: int, word: str) -> None:
        self.session.run("UPDATE fishladder_ledger SET no = ?, word = ? WHERE no < ?", [number, word, number])

    def words(self) -> set[str]:
        return {word.decode() for (word,) in self.session.run(f"SELECT word FROM {WORDS}", [])}

    def write_word(self, word: str) -> None:
        self.session.run(f"INSERT INTO {WORDS} (word) VALUES (?)", [word])

    def erase_word(self, word: str) -> None:
        self.session.run(f"DELETE FROM {WORDS} WHERE word = ?", [word])

    def drop_words(self) -> None:
        self.session.run(f"DROP TABLE {WORDS}", [])

    def chunk_ends(self, relation: Relation, rows: int, above: bytes | None = None) -> list[bytes]:
        ends: list[bytes] = []
        end = self._chunk_end(relation, rows, above)
        while end is not None:
            ends.append(end)
            end = self._chunk_end(relation, rows, end)
        return ends

    def _chunk_end(self, relation: Relation, rows: int, above: bytes | None) -> bytes | None:
        columns = self.session.key_columns(relation, "t.")
        fields = [relation.fields[position] for position in relation.key]
        texts = ", ".join(self.dialect.text(column, field) for column, field in zip(columns, fields, strict=True))
        head = f"SELECT {texts} FROM {self.dialect.quote(relation.name)} t"
        tail = f" ORDER BY {', '.join(columns)}{self.dialect.nth}"
        if above is None:
            found = self.session.run(head + tail, [rows - 1])
            return key_text(found[0]) if found else None
        last = self.session.key_parameters(relation, above)
        # First among the keys that share most with the last end: a range over all its columns would, in most
        # stores, walk once more through every key that has the same first column.
        for same in reversed(range(len(columns))):
            alike = "".join(f"{column} = ? AND " for column in columns[:same])
            where = f" WHERE {alike}{self.dialect.after(columns[same:])}"
            parameters = [*last[:same], *range_parameters(last[same:]), rows - 1]
            found = self.session.run(head + where + tail, parameters)
            if found:
                return key_text(found[0])
        return None

    def backfill_homes(
        self, root: Relation, after: bytes | None, limit: int, *, elsewhere: Elsewhere | None = None
    ) -> bytes | None:
        """Homes for a slice of roots. Its end is read first: a root that goes meanwhile must not shift the next."""
        assert root.entity is not None and root.root_cohort is not None
        dialect, session = self.dialect, self.session
        column = session.key_columns(root, "t.")[0]
        above, parameters = "1 = 1", list[Any]()
        if after is not None:
            above, parameters = dialect.after([column]), session.key_parameters(root, after)
        table, key = f"{dialect.quote(root.name)} t", dialect.key_sql(root, "t")
        slice_ = f"SELECT t.* FROM {table} WHERE {above} ORDER BY {column}{dialect.limit}"
        sql = f"SELECT {key} FROM ({slice_}) t ORDER BY {column} DESC{dialect.limit}"
        found = session.run(sql, [*parameters, limit, 1])
        if not found:
            return None
        last: bytes = found[0][0]
        entity = dialect.entity_sql(root.entity, "t")
        cohort = dialect.known_cohort(root, "t.")
        root_key = dialect.plain_text(column, root.fields[root.key[0]])
        within = f"{above} AND {dialect.up_to([column])}"
        parameters = [*parameters, *session.key_parameters(root, last)]
        if elsewhere is None:
            sql = dialect.insert_homes(entity, cohort, root_key, f"FROM {table} WHERE {within}")
            session.run(sql, parameters)
            return last
        sql = (
            f"SELECT {entity} FROM {table} LEFT JOIN fishladder_home h ON h.entity = {entity}"
            f" WHERE {within} AND h.entity IS NULL"
        )
        homeless = [found for (found,) in session.run(sql, parameters)]
        known, by_home = elsewhere(homeless), dict[str | None, list[bytes]]()
        for found in homeless:
            by_home.setdefault(known.get(found), []).append(found)
        for home, wanted in by_home.items():
            # Those alone that were asked for: another may have come with a home that is not copied yet.
            for some in slices(wanted, KEYS_PER_STATEMENT):
                where = f"{within} AND {entity} IN ({', '.join('?' * len(some))})"
                sql = dialect.insert_homes(
                    entity, cohort if home is None else "?", root_key, f"FROM {table} WHERE {where}"
                )
                first = [] if home is None else [home]
                session.run(sql, [*first, *parameters, *map(session.key, some)])
        return last

    def is_empty(self, relation: Relation) -> bool:
        return not self.session.run(f"SELECT 1 FROM {self.dialect.quote(relation.name)}{self.dialect.limit}", [1])

    def count(self, relation: Relation) -> dict[str, int]:
        table = f"{self.dialect.quote(relation.name)} t"
        if relation.entity is None:
            return {SHARED: int(self.session.run(f"SELECT count(*) FROM {table}", [])[0][0])}
        entity = self.dialect.entity_sql(relation.entity, "t")
        source = f"FROM {table} LEFT JOIN fishladder_home h ON h.entity = {entity}"
        known = f"count(CASE WHEN h.cohort IS NULL THEN {entity} END)"
        found = self.session.run(f"SELECT h.cohort, count(*), {known} {source} GROUP BY h.cohort", [])
        counts: Counter[str] = Counter()
        for cohort, count, homeless in found:
            counts[HOMELESS] += int(homeless)
            counts[NO_HOME if cohort is None else cohort.decode()] += int(count) - int(homeless)
        return {cohort: count for cohort, count in counts.items() if count}

    def orphans(self, child: Relation, foreign_key: ForeignKey, limit: int) -> list[Orphan]:
        quote, fields = self.dialect.quote, {field.column: field for field in child.fields}
        names = ", ".join(quote(column) for column in foreign_key.columns)
        points = " AND ".join(f"c.{quote(column)} IS NOT NULL" for column in foreign_key.columns)
        there = self.dialect.on("c", foreign_key.columns, "p", foreign_key.parent_columns)
        lost = f"{points} AND NOT EXISTS (SELECT 1 FROM {quote(foreign_key.parent)} p WHERE {there})"
        if all(fields[column].native.kind == "integer" for column in foreign_key.columns):  # no two are one
            # Asked of every parent once at first, however many children it has: mostly there is nothing to find.
            pointed = f"(SELECT DISTINCT {names} FROM {quote(child.name)}) c"
            if not self.session.run(f"SELECT 1 FROM {pointed} WHERE {lost}{self.dialect.limit}", [1]):
                return []
        pieces = [self.dialect.key_piece(self.dialect.text(f"c.{quote(c)}", fields[c])) for c in foreign_key.columns]
        parent = pieces[0] if len(pieces) == 1 else self.dialect.concat(pieces)
        sql = f"SELECT {self.dialect.key_sql(child, 'c')}, {parent} FROM {quote(child.name)} c WHERE {lost}"
        sql += self.dialect.limit
        return [Orphan(key=key, parent_key=parent_key) for key, parent_key in self.session.run(sql, [limit])]

    def duplicates(self, relation: Relation, unique: Sequence[int], limit: int) -> int:
        columns = [self.dialect.quote(relation.fields[at].column) for at in unique]
        known = " AND ".join(f"{column} IS NOT NULL" for column in columns)
        sql = (
            f"SELECT 1 FROM {self.dialect.quote(relation.name)} WHERE {known}"
            f" GROUP BY {', '.join(columns)} HAVING count(*) > 1{self.dialect.limit}"
        )
        return len(self.session.run(sql, [limit]))


class WholeTables(ABC):
    """A relational store's reads over whole tables, and over fishladder's own."""

    @abstractmethod
    def _checks(self) -> Checks: ...

    def chunk_ends(self, relation: Relation, rows: int, above: bytes | None = None) -> list[bytes]:
        return self._checks().chunk_ends(relation, rows, above)

    def is_empty(self, relation: Relation) -> bool:
        return self._checks().is_empty(relation)

    def count(self, relation: Relation) -> dict[str, int]:
        return self._checks().count(relation)

    def orphans(self, child: Relation, foreign_key: ForeignKey, limit: int) -> list[Orphan]:
        return self._checks().orphans(child, foreign_key, limit)

    def duplicates(self, relation: Relation, unique: Sequence[int], limit: int) -> int:
        return self._checks().duplicates(relation, unique, limit)

    def fences(self) -> dict[str, Fence]:
        return self._checks().fences()

    def anchors(self) -> dict[str, str]:
        return self._checks().anchors()

    def load_states(self) -> dict[str, LoadState]:
        return self._checks().load_states()

    def heard(self) -> tuple[int, str]:
        return self._checks().heard()

    def hear(self, number: int, word: str) -> None:
        self._checks().hear(number, word)

    def words(self) -> set[str]:
        return self._checks().words()

    def write_word(self, word: str) -> None:
        self._checks().write_word(word)

    def erase_word(self, word: str) -> None:
        self._checks().erase_word(word)

    def drop_words(self) -> None:
        self._checks().drop_words()
