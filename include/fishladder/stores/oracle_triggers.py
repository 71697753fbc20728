"""The triggers that Oracle gets: home, fence and journal, in that order (design §5).

What Oracle does otherwise than MySQL:

- No row is read with a shared lock. A fence is an empty table that writers lock IN ROW SHARE MODE and who raises the
  fence IN EXCLUSIVE MODE; ``fishladder_fenced`` takes that lock, then reads the fence. A row's parent is locked FOR
  UPDATE: while its entity is being changed, nobody adds a row to it.
- A SERIALIZABLE transaction sees nothing that came after its beginning, not even a raised fence: fences, and homes that
  it does not see, are read in a transaction of their own (PRAGMA AUTONOMOUS_TRANSACTION).
- Its cascades fire the children's triggers, which may not look at the parent (ORA-04091), so that it leaves its entity
  in ``fishladder_cascade`` for as long as its statement lasts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from fishladder.cells import HOMELESS, NO_HOME, OWN_COHORTS, SHARED
from fishladder.stores.base import HOME_TABLE, Relation, Triggers
from fishladder.stores.oracle_types import OracleDialect
from fishladder.stores.sql import ROOT_FIRST

KEY = "VARCHAR2(2000)"
"""A key or an entity."""
NAME = "VARCHAR2(255)"
FENCED = "fishladder_fenced"
WRITER = "fishladder_writer"
COHORT = "fishladder_cohort"
LONGEST_NAME = 128
"""Of Oracle 12.2 and later."""
_MUTATING = -4091
_THERE_ALREADY = -1


def string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def lock_name(kind: str, name: str) -> str:
    """The empty table that stands for a cohort's fence, or for a table's load, when it is locked."""
    readable = "".join(letter for letter in name.lower() if letter in "abcdefghijklmnopqrstuvwxyz0123456789")[:30]
    return f"fishladder_lock_{kind}_{readable}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def fenced_text(cohorts: Iterable[str]) -> str:
    """The function that holds a cohort's fence until the transaction ends, and returns who may write."""
    branches = [
        f"IF c = {string(cohort)} THEN LOCK TABLE {lock_name('fence', cohort)} IN ROW SHARE MODE;" for cohort in cohorts
    ]
    # Whom nobody can lock, nobody holds back: no fence.
    chain = f"{' ELS'.join(branches)} ELSE RETURN NULL; END IF;" if branches else "RETURN NULL;"
    return (
        f"CREATE OR REPLACE FUNCTION {FENCED} (c IN VARCHAR2) RETURN VARCHAR2 IS w {NAME};"
        f" BEGIN {chain} w := {WRITER}(c); RETURN w; END;"
    )


READERS = {
    WRITER: f"CREATE OR REPLACE FUNCTION {WRITER} (c IN VARCHAR2) RETURN VARCHAR2 IS PRAGMA AUTONOMOUS_TRANSACTION;"
    f" w {NAME}; BEGIN SELECT MAX(writer) INTO w FROM fishladder_fence WHERE cohort = c; RETURN w; END;",
    COHORT: f"CREATE OR REPLACE FUNCTION {COHORT} (e IN VARCHAR2) RETURN VARCHAR2 IS PRAGMA AUTONOMOUS_TRANSACTION;"
    f" c {NAME}; BEGIN SELECT MAX(cohort) INTO c FROM fishladder_home WHERE entity = e; RETURN c; END;",
}
"""What is committed at this moment: who may write a cohort, and the home of an entity."""


def trigger_texts(dialect: OracleDialect, table: Triggers, user: str) -> Iterator[tuple[str, str, str]]:
    """Name, moment and body of each trigger of a table. ``user``: the copier's account, which they let pass."""
    relation = table.relation
    new_key, old_key = dialect.key_sql(relation, ":new"), dialect.key_sql(relation, ":old")

    insert = _Body(dialect, relation, user)
    insert.entity("new")
    if relation.root_cohort is not None:
        insert.birth()
    insert.home("new")
    insert.refuse("new")
    insert.journal("new", new_key)
    if relation.root_cohort is not None:
        # Also when it had a home already: an entry too many costs a comparison.
        insert.journal("new", dialect.key_piece("e_new"), table=HOME_TABLE)
    yield trigger_name(relation, "insert"), "AFTER INSERT", insert.text()

    left = list(_left_behind(table))
    delete = _Body(dialect, relation, user)
    delete.entity("old")
    delete.home("old")
    delete.refuse("old")
    for columns in left:
        delete.lines.append(f"DELETE FROM fishladder_cascade WHERE {delete.link(relation.name, columns)};")
        delete.lines.append(
            "INSERT INTO fishladder_cascade (table_name, row_key, entity)"
            f" SELECT {string(relation.name)}, {delete.piece(columns)}, e_old FROM dual WHERE e_old IS NOT NULL;"
        )
    delete.journal("old", old_key)
    yield trigger_name(relation, "delete"), "BEFORE DELETE", delete.text()
    if left:
        deleted = _Body(dialect, relation, user)
        for columns in left:
            deleted.lines.append(f"DELETE FROM fishladder_cascade WHERE {deleted.link(relation.name, columns)};")
        yield trigger_name(relation, "deleted"), "AFTER DELETE", deleted.text()

    update = _Body(dialect, relation, user)
    update.entity("new")
    rekeyed = f"{new_key} <> {old_key}"
    if relation.entity is None:
        update.home("new")
        update.refuse("new")
        update.journal("new", new_key)
        update.journal("new", old_key, when=rekeyed)
    else:
        update.entity("old")
        if relation.entity.steps:
            # The parent is going, and the row stays with no parent: it is still its entity's.
            update.lines.append("IF e_new IS NULL AND cascading THEN e_new := e_old; END IF;")
        same = "(e_old = e_new OR (e_old IS NULL AND e_new IS NULL))"
        update.lines.append(f"IF {same} THEN")
        update.home("new")
        update.lines.append("c_old := c_new; w_old := w_new; ELSE")
        if relation.root_cohort is not None:
            update.birth()  # another key is another entity
        update.both_homes()
        update.lines.append("END IF;")
        update.refuse("old")
        update.refuse("new", also="COALESCE(w_old, '-') <> COALESCE(w_new, '-')")
        update.journal("new", new_key)
        update.journal("old", old_key, when=f"({rekeyed} OR NOT {same})")
        if relation.root_cohort is not None:
            update.journal("new", dialect.key_piece("e_new"), table=HOME_TABLE, when=f"NOT {same}")
    yield trigger_name(relation, "update"), "AFTER UPDATE", update.text()


def trigger_name(relation: Relation, event: str) -> str:
    name = f"fishladder_{relation.name}_{event}"
    # A quoted name keeps its case, and would not be found among FISHLADDER_….
    if len(name.encode()) <= LONGEST_NAME and name == name.lower() and relation.name.replace("_", "").isalnum():
        return name
    return f"fishladder_{hashlib.sha256(relation.name.encode()).hexdigest()[:20]}_{event}"


def _left_behind(table: Triggers) -> Iterator[tuple[str, ...]]:
    """The columns by which children find this row's entity when a cascade takes them with it."""
    found = set()
    for cascade in table.cascades:
        path = cascade.relation.entity
        if path is not None and path.steps and path.steps[0].parent == table.relation.name:
            found.add(path.steps[0].parent_columns)
    yield from sorted(found)


class _Body:
    """The body of one trigger."""

    def __init__(self, dialect: OracleDialect, relation: Relation, user: str) -> None:
        self.dialect = dialect
        self.relation = relation
        self.lines: list[str] = []
        # A job of the copier's account (DBMS_SCHEDULER) is none of the copier's sessions.
        self.open = (
            f"IF SYS_CONTEXT('USERENV', 'SESSION_USER') <> {string(user)}"
            " OR SYS_CONTEXT('USERENV', 'BG_JOB_ID') IS NOT NULL THEN"
        )

    def entity(self, which: str) -> None:
        path = self.relation.entity
        if path is None:
            return
        text, source = self.dialect.entity_parts(path, f":{which}")
        if not source:
            self.lines.append(f"SELECT {text} INTO e_{which} FROM dual;")
            return
        parent = path.steps[0]
        self.lines.append(
            f"BEGIN SELECT {text} INTO e_{which} {source} FOR UPDATE;"
            " EXCEPTION WHEN NO_DATA_FOUND THEN NULL;"
            f" WHEN OTHERS THEN IF SQLCODE <> {_MUTATING} THEN RAISE; END IF; END;"
            f" IF e_{which} IS NULL THEN SELECT MAX(entity) INTO e_{which} FROM fishladder_cascade"
            f" WHERE {self.link(parent.parent, parent.columns, which)};"
            f" cascading := cascading OR e_{which} IS NOT NULL; END IF;"
        )

    def link(self, table: str, columns: Iterable[str], which: str = "old") -> str:
        return f"table_name = {string(table)} AND row_key = {self.piece(columns, which)}"

    def piece(self, columns: Iterable[str], which: str = "old") -> str:
        """The text of some columns of the row, the same for a parent's as for its child's."""
        fields = {field.column: field for field in self.relation.fields}
        pieces = [
            self.dialect.key_piece(self.dialect.plain_text(f":{which}.{self.dialect.quote(column)}", fields[column]))
            for column in columns
        ]
        return pieces[0] if len(pieces) == 1 else self.dialect.concat(pieces)

    def birth(self) -> None:
        """A new root gets its home, once: a root that is deleted and created again keeps the one it had."""
        root = self.relation
        plain = self.dialect.plain_text(f":new.{self.dialect.quote(root.key_columns[0])}", root.fields[root.key[0]])
        cohort = self.dialect.cohort_text(root, ":new.")
        own = ", ".join(map(string, OWN_COHORTS))
        self.lines.append(
            f"SELECT CASE WHEN LENGTHB({cohort}) <= 255 THEN {cohort} END INTO c_new FROM dual;"
            f" IF c_new IN ({own}) OR {WRITER}(c_new) IS NULL THEN c_new := '{NO_HOME}'; END IF;"
            " BEGIN INSERT INTO fishladder_home (entity, cohort, root_key)"
            f" SELECT e_new, c_new, {plain} FROM dual"
            " WHERE NOT EXISTS (SELECT 1 FROM fishladder_home h WHERE h.entity = e_new);"
            f" EXCEPTION WHEN OTHERS THEN IF SQLCODE <> {_THERE_ALREADY} THEN RAISE; END IF; END;"
        )

    def home(self, which: str) -> None:
        self._cohort(which)
        self.lines.append(f"w_{which} := {FENCED}(c_{which});")

    def both_homes(self) -> None:
        """An entity changes: find both cohorts without touching a fence, then lock both fences in name order."""
        for which in ("old", "new"):
            self._cohort(which)
        old, new = (f"w_{which} := {FENCED}(c_{which});" for which in ("old", "new"))
        self.lines.append(f"IF c_old <= c_new THEN {old} {new} ELSE {new} {old} END IF;")

    def _cohort(self, which: str) -> None:
        if self.relation.entity is None:
            self.lines.append(f"c_{which} := '{SHARED}';")
            return
        none = f"CASE WHEN e_{which} IS NULL THEN '{NO_HOME}' ELSE '{HOMELESS}' END"
        self.lines.append(
            f"SELECT MAX(cohort) INTO c_{which} FROM fishladder_home WHERE entity = e_{which};"
            f" IF c_{which} IS NULL THEN c_{which} := COALESCE({COHORT}(e_{which}), {none}); END IF;"
        )

    def refuse(self, which: str, also: str = "") -> None:
        shut = f"COALESCE(w_{which}, 'nobody') NOT IN ('application', 'free'){f' OR {also}' if also else ''}"
        words = (
            f"SUBSTR('fishladder: ' || c_{which} || ' is not open to the application here ('"
            f" || COALESCE(w_{which}, 'no fence') || ')'"
            f" || CASE WHEN c_{which} = '{HOMELESS}' THEN '{ROOT_FIRST}' ELSE '' END, 1, 120)"
        )
        self.lines.append(f"IF {shut} THEN RAISE_APPLICATION_ERROR(-20001, {words}); END IF;")

    def journal(self, which: str, key: str, table: str | None = None, when: str = "") -> None:
        entity = f"e_{which}" if self.relation.entity is not None else "NULL"
        name = string(table or self.relation.table)
        self.lines.append(
            f"IF w_{which} = 'application' THEN"
            " INSERT INTO fishladder_journal (id, table_name, row_key, entity, cohort, at)"
            f" SELECT fishladder_journal_id.NEXTVAL, {name}, {key}, {entity}, c_{which},"
            f" SYS_EXTRACT_UTC(SYSTIMESTAMP) FROM dual{f' WHERE {when}' if when else ''}; END IF;"
        )

    def text(self) -> str:
        return (
            f"DECLARE c_old {NAME}; c_new {NAME}; w_old {NAME}; w_new {NAME}; e_old {KEY}; e_new {KEY};"
            f" cascading BOOLEAN := FALSE; BEGIN {self.open} {' '.join(self.lines)} END IF; END;"
        )
