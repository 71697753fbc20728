"""What must hold at every moment, judged by plain SQL that the core has no part in."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

Keys = set[tuple[str, str]]

TABLES = {
    "fishladder_home": "SELECT entity, cohort, root_key FROM fishladder_home",
    "price": "SELECT id, cents, after FROM price",
    "customer": "SELECT id, country, email, balance FROM customer",
    "item": "SELECT id, customer_id, amount FROM item",
    "line": "SELECT item_id, no, amount FROM line",
}
LOOKS_AFTER = ("commit", "forget", "record_outcome", "close_table", "restart_table", "finish_chunk")
BATCHES_AFTER_A_PAUSE = 2
"""A round of the applier that had begun is two batches; and a lane's chunk is one."""


class Violation(AssertionError):
    """The world is not as it must be."""


def _key(table: str, row: tuple[Any, ...]) -> str:
    cells = row[: {"line": 2, "fishladder_applied": 3}.get(table, 1)]
    return "".join(f"{len(str(cell))}:{cell}" for cell in cells)


class Auditor:
    """Looks at the three databases from outside, at a moment when nobody else runs.

    ``damaged``: keys that were changed behind everybody's back, and that only a pass can find. ``dropped``: a trigger
    and its table, until prepare has been run again. ``_doubtful``: passes that began before that trigger was back.
    ``_blind``: by actor, the table whose trigger was gone when its pass read the source.
    ``_to_be_found``: by pass, what was damaged at some moment since it began; it may be mended before the pass says so.
    """

    tables = TABLES

    def __init__(self, folder: Path, *, strict: bool) -> None:
        self.strict = strict
        self.prepared = False
        self.damaged: Keys = set()
        self.dropped: tuple[str, str] | None = None
        self._gaps: set[str] = set()
        self.paused = False
        self.writes: Counter[str] = Counter()
        self._passes: dict[int, tuple[str, Keys, int]] = {}
        self._blind: dict[str, str] = {}
        self._to_be_found: dict[int, Keys] = {}
        self._doubtful: set[int] | None = None
        self._writing: set[str] = set()
        self._homes: dict[str, tuple[Any, ...]] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._known: tuple[Any, ...] = ()
        self._compared: tuple[Any, ...] = ()
        self._differences: Keys = set()
        self._databases = {
            name: sqlite3.connect(folder / f"{name}.db", timeout=0, isolation_level=None)
            for name in ("source", "target", "ledger")
        }

    def close(self) -> None:
        for connection in self._databases.values():
            connection.close()

    def ask(self, database: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._databases[database].execute(sql, parameters).fetchall()

    def _versions(self, *databases: str) -> tuple[Any, ...]:
        """Other ones whenever somebody has committed."""
        return tuple(self.ask(name, "PRAGMA data_version")[0][0] for name in databases)

    def homes(self, database: str) -> dict[str, tuple[Any, ...]]:
        return {home[0]: home for home in self.ask(database, TABLES["fishladder_home"])}

    # What holds at every moment

    def look(self) -> None:
        """Every difference is known, homes never change, and no fence goes back."""
        versions = self._versions(*self._databases)
        if not self.prepared or versions == self._known:
            return
        self._known = versions
        for table in sorted(self._gaps):
            self.damaged |= {key for key in self.unknown() if key[0] == table}
            if self.closed(table):
                self._gaps.remove(table)
        lost = {(table, key) for table, key in self.unknown() - self.damaged if not self._unrecorded(table)}
        if lost:
            raise Violation(f"these differ and nobody knows: {sorted(lost)}")
        for damaged in self._to_be_found.values():
            damaged |= self.damaged
        self.damaged &= self.different()
        self._look_at_homes()
        self._look_at_fences()
        counting = self.ask(
            "ledger",
            'SELECT c."table" FROM ledger_check c JOIN ledger_table t ON t."table" = c."table"'
            " WHERE t.phase <> 'closed' AND c.clean AND c.void IS NULL",
        )
        loads = self.loads()
        void = {table for (table,) in counting if loads[table][1]}
        if void:
            raise Violation(f"passes over a table that is loaded again still count: {void}")

    def _look_at_homes(self) -> None:
        homes = self.homes("source")
        changed = {entity for entity, home in self._homes.items() if homes.get(entity) != home}
        if changed:
            raise Violation(f"homes that changed: {sorted(changed)}")
        self._homes = homes
        foreign = [entity for entity, home in self.homes("target").items() if homes.get(entity) != home]
        if foreign:
            raise Violation(f"homes that only the target has: {foreign}")
        homeless = self.ask(
            "source",
            "SELECT id FROM customer WHERE length(id) || ':' || id NOT IN (SELECT entity FROM fishladder_home)",
        )
        if homeless:
            raise Violation(f"customers without a home: {homeless}")

    def _look_at_fences(self) -> None:
        for store in ("source", "target"):
            for cohort, epoch in self.ask(store, "SELECT cohort, epoch FROM fishladder_fence"):
                if epoch < self._epochs.get((store, cohort), 0):
                    raise Violation(f"the {store}'s fence of {cohort} went back to epoch {epoch}")
                self._epochs[store, cohort] = epoch

    def _unrecorded(self, table: str) -> bool:
        return self.dropped is not None and self.dropped[1] == table

    def uncovered(self) -> str | None:
        """The table whose trigger is gone now."""
        if self.dropped is None or self.ask("source", "SELECT 1 FROM sqlite_master WHERE name = ?", self.dropped[0]):
            return None
        return self.dropped[1]

    def loads(self) -> dict[str, tuple[int, int]]:
        """Of each table, generation and whether its load is open."""
        found = self.ask("target", "SELECT table_name, generation, is_open FROM fishladder_load")
        return {table: (generation, is_open) for table, generation, is_open in found}

    def closed(self, table: str | None = None) -> bool:
        """Whether the load of this table, or of all, is over."""
        if not self.prepared:
            return False
        loads = self.loads()
        phases = dict(self.ask("ledger", 'SELECT "table", phase FROM ledger_table'))
        return all(not loads[name][1] and phases.get(name) == "closed" for name in ([table] if table else loads))

    def different(self) -> Keys:
        """Keys whose two copies differ, of the tables whose load is closed."""
        versions = self._versions("source", "target")
        if versions != self._compared:
            self._compared, self._differences = versions, self._compare()
        return set(self._differences)

    def _compare(self) -> Keys:
        found: Keys = set()
        for table, (_, is_open) in self.loads().items():
            if is_open or table not in self.tables:
                continue
            ours, theirs = (set(self.ask(name, self.tables[table])) for name in ("source", "target"))
            found |= {(table, _key(table, row)) for row in ours ^ theirs}
        return found

    def unknown(self) -> Keys:
        """Of those, the keys that nobody has marked dirty, nor rejected."""
        found = self.different()
        return found - self.dirty() - self.rejected() if found else found

    def dirty(self) -> Keys:
        """Keys that an entry of the journal, or of the ledger, doubts."""
        found = set(self.ask("source", "SELECT table_name, row_key FROM fishladder_journal"))
        return found | set(self.ask("ledger", 'SELECT "table", CAST("key" AS TEXT) FROM ledger_dirty'))

    def rejected(self) -> Keys:
        return set(self.ask("ledger", 'SELECT "table", CAST("key" AS TEXT) FROM ledger_reject WHERE state = \'open\''))

    def quiet(self) -> bool:
        """Nothing is dirty and every load is closed."""
        if not self.prepared:
            return False
        dirty = self.ask("source", "SELECT count(*) FROM fishladder_journal")[0][0]
        dirty += self.ask("ledger", "SELECT count(*) FROM ledger_dirty")[0][0]
        return not dirty and self.closed()

    def rows_of(self, store: str, cohort: str) -> list[str]:
        """The rows of a cohort, by home."""
        home = "SELECT root_key FROM fishladder_home WHERE cohort = ?"
        rows = self.ask(store, f"SELECT 'c', * FROM customer WHERE id IN ({home})", cohort)
        rows += self.ask(store, f"SELECT 'i', * FROM item WHERE customer_id IN ({home})", cohort)
        return sorted(map(repr, rows))

    # Told of every call that was done

    def after(self, actor: str, label: str, arguments: tuple[Any, ...], result: Any) -> None:
        name = label.rpartition(".")[2]
        if label == "ledger.begin_check":
            table = arguments[0]
            self._passes[result] = (table, self._to_find(table), self.loads()[table][0])
            self._to_be_found[result] = set(self.damaged)
            self._blind.pop(actor, None)
        elif label == "source.read.stream" and (gone := self.uncovered()):
            self._blind[actor] = gone
        elif label == "source.install_triggers" and self._doubtful is None and self.dropped and not self.uncovered():
            # A pass that begins from now on, while prepare goes on, is as good as any.
            self._doubtful = {check for check, (table, _, _) in self._passes.items() if self._unrecorded(table)}
        elif label == "ledger.finish_check" and result:
            self._clean_pass(arguments[0], actor)
        elif label == "ledger.record_mismatches":
            self._mismatches(arguments[0], arguments[2])
        if label == "target.begin.lock_load":
            self._writing.discard(actor)
        elif label in ("target.begin.insert", "target.begin.update", "target.begin.upsert") and arguments[1]:
            self._writing.add(actor)
        elif label == "target.begin.commit" and actor in self._writing:
            self._writing.remove(actor)
            self.writes[actor] += self.paused
            if self.writes[actor] > BATCHES_AFTER_A_PAUSE and actor.startswith(("lane", "replicate")):
                raise Violation(f"{actor} goes on writing while the migration is paused")
        if name in LOOKS_AFTER:
            self.look()

    def _to_find(self, table: str) -> Keys:
        """What makes a pass over this table unclean, whatever the application does meanwhile."""
        found = {(name, key) for name, key in self.damaged & self.different() if name == table}
        found -= {key for key in found if key not in self.unknown()}
        if table == "price":
            orphan = self.ask("target", "SELECT 1 FROM price WHERE id = 91 AND after = 999")
            if orphan and ("price", "2:91") not in self.dirty():
                found.add(("price", "an orphan"))
            if ("price", "2:92") in self.rejected():
                found.add(("price", "a reject"))
        return found

    def _clean_pass(self, check: int, actor: str) -> None:
        table, wanted, generation = self._passes[check]
        if self._blind.get(actor) == table or check in (self._doubtful or ()):
            raise Violation(f"{table}: a pass is clean although the table's trigger was gone")
        if self.loads()[table] != (generation, 0):
            return
        elsewhere = self.ask(
            "ledger", 'SELECT "table", CAST("key" AS TEXT) FROM ledger_mismatch WHERE "check" <> ?', check
        )
        wanted = wanted - set(elsewhere)  # another pass has found it meanwhile
        mended = {key for key in wanted if not key[1][0].isdigit()} - self._to_find(table)
        if wanted - mended:
            raise Violation(f"{table}: a pass is clean that began when {sorted(wanted)} was wrong")

    def _mismatches(self, check: int, found: Any) -> None:
        table, _, generation = self._passes[check]
        invented = {(m.table, m.key.decode()) for m in found} - self._to_be_found[check] - self.damaged
        if invented and not self._unrecorded(table) and self.loads()[table] == (generation, 0):
            raise Violation(f"{table}: a pass found what nobody damaged: {sorted(invented)}")

    def written_again(self, table: str, key: str) -> None:
        """The application has written a damaged row: that copies it, and no pass has to find the damage any more."""
        for wanted in (wanted for name, wanted, _ in self._passes.values() if name == table):
            wanted.discard((table, key))

    def covered_again(self) -> None:
        """Prepare was run: whatever changed meanwhile is for the next pass to find, and no old pass counts."""
        assert self.dropped is not None
        (_, table), self.dropped = self.dropped, None
        self._gaps.add(table)
        self._known = ()
        self.look()
        if counts := {check for (check,) in self.counting(table)} & (self._doubtful or set()):
            raise Violation(f"{table}: passes from before its trigger was gone still count: {counts}")

    def counting(self, table: str) -> list[tuple[Any, ...]]:
        """The clean passes of a table that count."""
        return self.ask("ledger", 'SELECT id FROM ledger_check WHERE "table" = ? AND clean AND void IS NULL', table)

    # At the end

    def check(self) -> None:
        """Nothing is dirty: so both sides are equal but for the rows that the target refuses."""
        different, rejected, bad = self.different(), self.rejected(), self.refused_rows()
        if different - rejected:
            raise Violation(f"nothing is dirty and the copies differ: {sorted(different - rejected)}")
        if rejected != bad:
            raise Violation(f"rejects {sorted(rejected - bad)} are open, {sorted(bad - rejected)} are not")

    def refused_rows(self) -> Keys:
        """Rows that the target's own rules refuse now."""
        if not self.strict or self.ask("target", "SELECT 1 FROM tolerant"):
            return set()
        dear = self.ask("source", "SELECT id FROM price WHERE cents >= 500")
        odd = self.ask("source", "SELECT id FROM item WHERE amount % 4 = 3")
        return {("price", _key("price", row)) for row in dear} | {("item", _key("item", row)) for row in odd}
