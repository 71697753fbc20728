"""Homes (design §5): a customer who changes country while cohorts flip, and whom two stores must not both own.

Cohort A belongs to the source at first, B to the target: it is live. The customer has a root row with a country, and a
child row. The application tries everything in both stores, as the stalest of routers would; only
the triggers decide. They look for the customer's home; rows of who has none are refused. (The code does so from the
first flip on, which closes their fence in the source; before it, nobody can be born in the target.)

What a batch does inside, and a flip, is in the models of those; here each is one step, or a few.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from tests.model.checker import Rule
from tests.model.flip import NAMES, SOURCE, TARGET, put


class HomeRule(Rule):
    HOME_DECIDES = "a trigger asks for the home, and not for the country that the row has or gets"
    ENTRY_BY_HOME = "a journal entry names the home, and not the country that the row has"
    COMPARED_BY_HOME = "drain and compare take the rows by home, and not by country"
    HOME_IN_BOTH = "homes are loaded and copied as they are: no store makes its own"
    HOME_FIRST = "a home is copied before the rows, or with them"
    HOME_KEPT = "a home outlives its root: who is deleted and created again has the one from before"
    NO_HOME_NO_ROWS = "a row whose customer has no home is refused: it is not the source's for want of one"
    BORN_ONCE = "a new root's key is claimed in one place, so that nobody is born in both stores"
    HOMES_UNTIL_ALL_COMPLETE = "homes stay until every cohort is complete"


COHORTS = ("A", "B")


@dataclass(frozen=True, slots=True)
class Root:
    country: str
    write: int


@dataclass(frozen=True, slots=True)
class Rows:
    """A customer's, in a store. ``child``: the number of the write that made it, None if there is none."""

    root: Root | None = None
    child: int | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """``fences``: the writers in source and target; ``step``: of the flip, None if there is none."""

    owner: int
    fences: tuple[str, str]
    flips: int = 0
    step: str | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """How often it may still happen."""

    moves: int
    children: int
    deletes: int
    births: int
    completions: int


@dataclass(frozen=True, slots=True)
class State:
    """``entries``: (home, root or child; cohort); ``told``: what the application was told last; ``claim``: a home."""

    left: Left
    cohorts: tuple[Cohort, Cohort]
    rows: tuple[Rows, Rows] = (Rows(), Rows())
    homes: tuple[str | None, str | None] = (None, None)
    entries: frozenset[tuple[str, str]] = frozenset()
    told: Rows = Rows()
    claim: str | None = None
    writes: int = 1

    def fences(self, cohort: str) -> tuple[str, str]:
        return self.cohorts[COHORTS.index(cohort)].fences if cohort in COHORTS else ("application", "copier")


class Homes:
    """``begin``: where the customer is at first; ``flips``: how often each cohort flips; the rest are ``Left``'s."""

    def __init__(
        self,
        without: frozenset[Rule] = frozenset(),
        *,
        begin: tuple[str, ...] = ("copied", "moved", "not copied", "unborn"),
        flips: int = 1,
        moves: int = 1,
        children: int = 1,
        deletes: int = 1,
        births: int = 1,
        completions: int = 0,
    ) -> None:
        self.rules = frozenset(HomeRule) - without
        self.begin = begin
        self.left = Left(moves, children, deletes, births, completions)
        of_the_source = Cohort(SOURCE, ("application", "copier"), flips)
        self.cohorts = of_the_source, Cohort(TARGET, ("copier", "application"), flips)

    def starts(self) -> Iterator[tuple[str, State]]:
        from_a, moved = Rows(Root("A", 0), 0), Rows(Root("B", 0), 0)
        unborn = State(self.left, self.cohorts)
        copied = replace(unborn, rows=(from_a, from_a), homes=("A", "A"), told=from_a, claim="A")
        if "unborn" in self.begin:
            yield "the customer is not born", replace(unborn, left=replace(self.left, births=self.left.births + 1))
        if "copied" in self.begin:
            yield "the customer is from A, source and target agree", copied
        if "moved" in self.begin:
            homes = ("A", "A" if HomeRule.HOME_IN_BOTH in self.rules else "B")
            after = replace(copied, rows=(moved, moved), homes=homes, told=moved)
            yield "the customer moved from A to B, and then all was loaded", after
        if "not copied" in self.begin:
            entries = frozenset((key, "A") for key in ("home", "root", "child"))
            after = replace(copied, rows=(from_a, Rows()), homes=("A", None), entries=entries)
            yield "the customer is from A, and new in the source", after

    # What must hold

    def wrong(self, state: State) -> str | None:
        known = [rows != Rows() or home is not None for rows, home in zip(state.rows, state.homes, strict=True)]
        writable = [known[store] and self._may_write(state, store) for store in (SOURCE, TARGET)]
        if all(writable):
            return "both stores let the application write this customer"
        for store in (SOURCE, TARGET):
            if writable[store] and state.rows[store] != state.told:
                return f"the {NAMES[store]} owns the customer, and lacks an acknowledged write"
        for name, cohort in zip(COHORTS, state.cohorts, strict=True):
            drained = not any(of == name for _, of in state.entries)
            if cohort.step == "drain" and drained and self._differ(state, name):
                return f"{name} is drained, and its rows differ: it cannot flip"
        if not state.entries and not self._equal(state):
            return "the copies differ, and nothing says so"
        if state.told.root and not any(writable) and not any(cohort.step for cohort in state.cohorts):
            return "nothing flips, and the application can write this customer nowhere"
        return None

    def settled(self, state: State) -> bool:
        return not (state.entries or any(cohort.step for cohort in state.cohorts))

    def same_as(self, state: State) -> Hashable:
        return state

    def _may_write(self, state: State, store: int, country: str | None = None) -> bool:
        return state.fences(self._cohort(state, store, country))[store] in ("application", "free")

    def _cohort(self, state: State, store: int, country: str | None = None) -> str:
        """For the trigger. ``country``: the one that the root gets."""
        root = state.rows[store].root
        if HomeRule.HOME_DECIDES not in self.rules and (column := country or (root and root.country)):
            return column
        return state.homes[store] or "*"

    def _differ(self, state: State, cohort: str) -> bool:
        if HomeRule.COMPARED_BY_HOME in self.rules:
            its = cohort in state.homes
        else:
            its = any(rows.root is not None and rows.root.country == cohort for rows in state.rows)
        return its and state.rows[SOURCE] != state.rows[TARGET]

    def _equal(self, state: State) -> bool:
        if any(cohort.complete for cohort in state.cohorts):
            return True  # it is not copied back any more
        return state.rows[SOURCE] == state.rows[TARGET] and state.homes[SOURCE] == state.homes[TARGET]

    # Who acts

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        for store in (SOURCE, TARGET):
            for did, after in self._application(state, store):
                yield f"application: {did} in the {NAMES[store]}", after
        for name in (*COHORTS, "*"):
            yield from self._applier(state, name)
        for at, cohort in enumerate(state.cohorts):
            for did, after, then in self._flip(state, COHORTS[at], cohort):
                yield f"cohort {COHORTS[at]}: {did}", replace(after, cohorts=put(after.cohorts, at, then))
        if HomeRule.HOMES_UNTIL_ALL_COMPLETE not in self.rules:
            for name, cohort in zip(COHORTS, state.cohorts, strict=True):
                if cohort.complete and name in state.homes:
                    source, target = (None if home == name else home for home in state.homes)
                    yield f"cohort {name}: its homes are dropped", replace(state, homes=(source, target))

    def _application(self, state: State, store: int) -> Iterator[tuple[str, State]]:
        left, rows = state.left, state.rows[store]
        country = rows.root.country if rows.root else None
        known = state.homes[store] is not None
        if HomeRule.NO_HOME_NO_ROWS not in self.rules:
            known = state.claim is not None  # the customer exists, be it elsewhere
        if left.children and known and self._may_write(state, store):
            after = self._written(state, store, "child", replace(rows, child=state.writes), country)
            yield "writes the child", replace(after, left=replace(left, children=left.children - 1))
        if rows.root is None:
            if left.births:
                yield from self._birth(replace(state, left=replace(left, births=left.births - 1)), store)
            return
        moved = "B" if rows.root.country == "A" else "A"
        if left.moves and self._may_write(state, store, moved):
            root = Root(moved, state.writes)
            after = self._written(state, store, "root", replace(rows, root=root), moved)
            yield f"the customer moves to {moved}", replace(after, left=replace(left, moves=left.moves - 1))
        if left.deletes and self._may_write(state, store):
            after = self._written(state, store, "root", Rows(None, None), country)
            after = self._entered(after, store, "child", country)
            if HomeRule.HOME_KEPT not in self.rules:
                after = self._entered(after, store, "home", country)
                after = replace(after, homes=put(after.homes, store, None), claim=None)
            yield "deletes the customer", replace(after, left=replace(left, deletes=left.deletes - 1))

    def _birth(self, state: State, store: int) -> Iterator[tuple[str, State]]:
        for country in COHORTS:
            home = state.homes[store] or country
            claimed = state.claim not in (None, home) and HomeRule.BORN_ONCE in self.rules
            if claimed or state.fences(home)[store] not in ("application", "free"):
                continue
            born = replace(state, homes=put(state.homes, store, home), claim=home)
            if state.homes[store] is None:
                born = self._entered(born, store, "home", country)
            rows = replace(state.rows[store], root=Root(country, state.writes))
            after = self._written(born, store, "root", rows, country)
            yield f"creates the customer with country {country}", after

    def _written(self, state: State, store: int, key: str, rows: Rows, country: str | None) -> State:
        state = self._entered(state, store, key, country)
        return replace(state, rows=put(state.rows, store, rows), told=rows, writes=state.writes + 1)

    def _entered(self, state: State, store: int, key: str, country: str | None) -> State:
        home = self._cohort(state, store)
        cohort = home if HomeRule.ENTRY_BY_HOME in self.rules else country or home
        if state.fences(cohort)[store] == "free":
            return state
        return replace(state, entries=state.entries | {(key, cohort)})

    def _applier(self, state: State, cohort: str) -> Iterator[tuple[str, State]]:
        """Copies all that is dirty of a cohort into the store whose fence says copier."""
        keys = {key for key, of in state.entries if of == cohort}
        for into in (SOURCE, TARGET):
            if not keys or state.fences(cohort)[into] != "copier":
                continue
            batches = [keys]
            if "home" in keys and HomeRule.HOME_FIRST not in self.rules:
                batches = [{"home"}, keys - {"home"}]
            for batch in filter(None, batches):
                after = self._copied(state, into, batch)
                said = " and ".join(key for key in ("home", "root", "child") if key in batch)
                forgotten = state.entries - {(key, cohort) for key in batch}
                yield f"applier of {cohort}: copies {said} to the {NAMES[into]}", replace(after, entries=forgotten)

    def _copied(self, state: State, into: int, keys: set[str]) -> State:
        there, rows = state.rows[1 - into], state.rows[into]
        rows = Rows(there.root if "root" in keys else rows.root, there.child if "child" in keys else rows.child)
        home = state.homes[into]
        if HomeRule.HOME_IN_BOTH in self.rules:
            home = state.homes[1 - into] if "home" in keys else home
        elif home is None and rows.root is not None:
            home = rows.root.country
        return replace(state, rows=put(state.rows, into, rows), homes=put(state.homes, into, home))

    def _flip(self, state: State, name: str, cohort: Cohort) -> Iterator[tuple[str, State, Cohort]]:
        """What is done, the state then, and the cohort then."""
        owner, drained = cohort.owner, not any(of == name for _, of in state.entries)
        if cohort.step is None and cohort.flips and not cohort.complete:
            fenced = replace(cohort, fences=put(cohort.fences, owner, "nobody"), step="drain", flips=cohort.flips - 1)
            yield f"the {NAMES[owner]} is fenced", state, fenced
        elif cohort.step == "drain" and drained and not self._differ(state, name):
            fences = put(cohort.fences, 1 - owner, "application")
            opened = replace(cohort, fences=fences, step="close", owner=1 - owner)
            yield f"drained, equal, now the {NAMES[1 - owner]}'s", state, opened
        elif cohort.step == "close":
            closed = replace(cohort, fences=put(cohort.fences, 1 - owner, "copier"), step=None)
            yield f"the {NAMES[1 - owner]} becomes the copy", state, closed
        at_rest = cohort.step is None and owner == TARGET and drained and not cohort.complete
        if at_rest and state.left.completions:
            left = replace(state.left, completions=state.left.completions - 1)
            yield "is complete", replace(state, left=left), replace(cohort, complete=True, fences=("nobody", "free"))
