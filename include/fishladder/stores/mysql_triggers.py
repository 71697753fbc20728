"""The triggers that MySQL gets: home, fence and journal, in that order (design §5)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from fishladder.cells import HOMELESS, NO_HOME, SHARED
from fishladder.stores.base import HOME_TABLE, Cascade, Relation, Triggers
from fishladder.stores.mysql_types import MySqlDialect
from fishladder.stores.sql import NOT_OWN, ROOT_FIRST

KEY = "VARBINARY(2048)"
"""A key or an entity. With a name of 255 bytes on each side it still fits an index."""
NAME = "VARBINARY(255)"


def _string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def trigger_texts(dialect: MySqlDialect, table: Triggers, user: str) -> Iterator[tuple[str, str, str]]:
    """Name, moment and body of each trigger of a table. ``user``: the copier's account, which they let pass."""
    relation = table.relation
    new_key, old_key = dialect.key_sql(relation, "NEW"), dialect.key_sql(relation, "OLD")

    insert = _Body(dialect, relation, user)
    insert.entity("new", "NEW")
    if relation.root_cohort is not None:
        insert.birth()
    insert.home("new")
    insert.refuse("new")
    insert.journal("new", new_key)
    if relation.root_cohort is not None:
        # Also when it had a home already: an entry too many costs a comparison.
        insert.journal("new", dialect.key_piece("e_new"), table=HOME_TABLE)
    yield trigger_name(relation, "insert"), "AFTER INSERT", insert.text()

    delete = _Body(dialect, relation, user)
    delete.entity("old", "OLD")
    delete.home("old")
    delete.refuse("old")
    delete.descendants("old", table.cascades, "OLD")
    delete.journal("old", old_key)
    yield trigger_name(relation, "delete"), "BEFORE DELETE", delete.text()

    update = _Body(dialect, relation, user)
    update.entity("new", "NEW")
    rekeyed = f"CAST({new_key} AS BINARY) <> CAST({old_key} AS BINARY)"
    if relation.entity is None:
        update.home("new")
        update.refuse("new")
        update.journal("new", new_key)
        update.journal("new", old_key, when=rekeyed)
    else:
        update.entity("old", "OLD")
        update.lines.append("IF e_old <=> e_new THEN")
        update.home("new")
        update.lines.append("SET c_old = c_new, w_old = w_new; ELSE")
        if relation.root_cohort is not None:
            update.birth()  # another key is another entity
        update.both_homes()
        update.lines.append("END IF;")
        update.refuse("old")
        update.refuse("new", also="NOT (w_old <=> w_new)")
        update.journal("new", new_key)
        update.journal("old", old_key, when=f"({rekeyed} OR NOT (e_old <=> e_new))")
        if relation.root_cohort is not None:
            update.journal("new", dialect.key_piece("e_new"), table=HOME_TABLE, when="NOT (e_old <=> e_new)")
    update.descendants("new", table.cascades, "NEW", when=rekeyed)
    if relation.entity is not None:  # what follows by cascade leaves the old entity, whose copies still have it
        update.descendants("old", table.cascades, "NEW", when=f"{rekeyed} AND NOT (e_old <=> e_new)")
    yield trigger_name(relation, "update"), "AFTER UPDATE", update.text()


def trigger_name(relation: Relation, event: str) -> str:
    name = f"fishladder_{relation.name}_{event}"
    if len(name) <= 64:
        return name
    return f"fishladder_{hashlib.sha256(relation.name.encode()).hexdigest()[:20]}_{event}"


class _Body:
    """The body of one trigger. All that it reads it reads with a shared lock: a plain SELECT would see the snapshot
    of the application's transaction, in which a fence may still be open and a child not yet there.
    """

    def __init__(self, dialect: MySqlDialect, relation: Relation, user: str) -> None:
        self.dialect = dialect
        self.relation = relation
        self.lines: list[str] = []
        # USER() is the caller, CURRENT_USER() would be the definer. Names of accounts are compared byte for byte.
        caller = f"CONCAT({_string(user + '@')}, SUBSTRING_INDEX(USER(), '@', -1))"
        self.open = f"IF CAST(USER() AS BINARY) <> CAST({caller} AS BINARY) THEN"

    def entity(self, which: str, row: str) -> None:
        path = self.relation.entity
        if path is None:
            return
        text, source = self.dialect.entity_parts(path, row)
        if source:
            self.lines.append(f"SELECT {text} INTO e_{which} {source}{self.dialect.share};")
        else:
            self.lines.append(f"SET e_{which} = {text};")

    def birth(self) -> None:
        """A new root gets its home, once: a root that is deleted and created again keeps the one it had.

        The home is inserted before it is read: reading a home that is not there would lock the gap, and two new
        roots would wait for each other.
        """
        root = self.relation
        plain = self.dialect.plain_text(f"NEW.{self.dialect.quote(root.key_columns[0])}", root.fields[root.key[0]])
        cohort = self.dialect.cohort_text(root, "NEW.")
        self.lines += [
            f"SELECT cohort INTO c_new FROM fishladder_fence WHERE cohort = {cohort}"
            f" AND {NOT_OWN}{self.dialect.share};",
            f"INSERT IGNORE INTO fishladder_home (entity, cohort, root_key)"
            f" VALUES (e_new, COALESCE(c_new, '{NO_HOME}'), {plain});",
            "SET c_new = NULL;",
        ]

    def home(self, which: str) -> None:
        """The cohort and its fence in one statement."""
        if self.relation.entity is None:
            self.lines.append(f"SET c_{which} = '{SHARED}';")
        else:
            self.lines.append(
                f"SELECT f.cohort, f.writer INTO c_{which}, w_{which} FROM fishladder_home h JOIN fishladder_fence f"
                f" ON f.cohort = h.cohort WHERE h.entity = e_{which}{self.dialect.share};"
            )
            self.lines.append(self._homeless(which))
        self.lines.append(f"IF w_{which} IS NULL THEN {self._fence(which)} END IF;")

    def _homeless(self, which: str) -> str:
        none = f"IF(e_{which} IS NULL, '{NO_HOME}', '{HOMELESS}')"
        return f"IF c_{which} IS NULL THEN SET c_{which} = {none}; END IF;"

    def both_homes(self) -> None:
        """An entity changes: find both cohorts without touching a fence, then lock both fences in name order."""
        for which in ("old", "new"):
            self.lines.append(
                f"SELECT cohort INTO c_{which} FROM fishladder_home WHERE entity = e_{which}{self.dialect.share};"
            )
            self.lines.append(self._homeless(which))
        old_first, new_first = self._fence("old") + self._fence("new"), self._fence("new") + self._fence("old")
        self.lines.append(f"IF c_old <= c_new THEN {old_first} ELSE {new_first} END IF;")

    def _fence(self, which: str) -> str:
        return f"SELECT writer INTO w_{which} FROM fishladder_fence WHERE cohort = c_{which}{self.dialect.share};"

    def refuse(self, which: str, also: str = "FALSE") -> None:
        shut = f"COALESCE(w_{which}, 'nobody') NOT IN ('application', 'free') OR {also}"
        first = f"IF(c_{which} = '{HOMELESS}', '{ROOT_FIRST}', '')"
        reason = f"' is not open to the application here (', COALESCE(w_{which}, 'no fence'), ')', {first}"
        words = f"LEFT(CONCAT('fishladder: ', c_{which}, {reason}), 120)"
        signal = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = said;"
        self.lines.append(f"IF {shut} THEN SET said = {words}; {signal} END IF;")

    def journal(self, which: str, key: str, source: str = "", table: str | None = None, when: str = "TRUE") -> None:
        entity = f"e_{which}" if self.relation.entity is not None else "NULL"
        self.lines.append(
            f"IF w_{which} = 'application' AND {when} THEN"
            " INSERT INTO fishladder_journal (table_name, row_key, entity, cohort, at)"
            f" SELECT {_string(table or self.relation.table)}, {key}, {entity}, c_{which}, UTC_TIMESTAMP(6){source};"
            " END IF;"
        )

    def descendants(self, which: str, cascades: Iterable[Cascade], parent: str, when: str = "TRUE") -> None:
        for cascade in cascades:
            # Not FOR UPDATE: a trigger may not lock a table like this that the customer's own statement reads (1442).
            source = self.dialect.below(cascade, parent) + self.dialect.share
            self.journal(which, self.dialect.key_sql(cascade.relation, "t"), source, cascade.relation.table, when)

    def text(self) -> str:
        declared = (
            f"DECLARE c_old, c_new, w_old, w_new {NAME}; DECLARE e_old, e_new {KEY}; DECLARE said VARCHAR(120);"
            " DECLARE CONTINUE HANDLER FOR NOT FOUND BEGIN END;"
        )
        return f"BEGIN {declared} {self.open} {' '.join(self.lines)} END IF; END"
