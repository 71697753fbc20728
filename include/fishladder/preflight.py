"""Preflight: everything that would go wrong later, found before anything is touched (design §13)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal, Protocol, runtime_checkable

from fishladder.capacity import Size, capacity
from fishladder.cells import holds
from fishladder.coverage import changed_coverage
from fishladder.errors import FatalError, FishladderError
from fishladder.ledger import Ledger
from fishladder.names import settle
from fishladder.plan import SIDES, Plan, PlanTable, examine
from fishladder.spec import OTHERS, Migration, changes, nearest
from fishladder.stores.base import Column, Fenced, Field, Finding, Store, TableInfo

BACK = "on the way back:"
"""Begins what matters only to changes that are made in the target, after a flip."""


@runtime_checkable
class Recognisable(Protocol):
    """A store that knows its own database behind another connection."""

    def is_behind(self, other: Store) -> bool:
        """Whether ``other``, of the same kind, leads to this store's own database."""
        ...


@runtime_checkable
class Accounts(Protocol):
    """A store that knows what other accounts may do in it."""

    def may_write(self, account: str) -> bool | None:
        """Whether an account may write rows here; None where the copier does not see the rights of others."""
        ...


def preflight(
    spec: Migration,
    source: Store,
    target: Store,
    ledger: Ledger,
    *,
    ours: Mapping[str, TableInfo],
    theirs: Mapping[str, TableInfo],
    missing: Collection[str] = (),
    accounts: Mapping[str, str] | None = None,
    sizes: Mapping[str, Size] | None = None,
    open: Callable[[str], Store] | None = None,
) -> tuple[list[Finding], Plan | None]:
    """Findings for tables, columns, settings and cohorts, and the plan if none fails. Changes nothing.

    ``ours`` and ``theirs``: the two stores' tables, the target's with the ``missing`` ones that prepare will create.
    ``accounts``: the application's account at ``source`` and ``target``, where it is known; None: not to be checked.
    ``sizes``: as ``capacity.measure`` found them. ``open`` opens a replica by its connection id. Without them, neither
    capacity nor replicas are looked at.
    """
    findings, plan = examine(spec, ours, theirs, folds=target.folds_names)
    if plan is not None:
        settled = settle(spec, ours, theirs)[0]
        for table in plan.tables:
            if not table.internal:
                findings += _table(settled, plan, table, ours[table.source.name], theirs[table.target.name])
    findings += _unsupported(spec)
    if source.kind == target.kind and isinstance(source, Recognisable) and source.is_behind(target):
        message = f"is the source's own database: give {spec.target.connection} another ({spec.where('target')})"
        findings.append(Finding(level="fail", where="target", message=message))
    settings = _settings(source, target, accounts)
    findings += settings
    findings += _rights(spec, target, ledger, accounts)
    findings += _midway(spec, ledger)
    if spec.application.operations is None:
        message = (
            "is missing: what routers queue during a flip could not be replayed after its switch; say where the"
            f" application's operations are ({spec.where('application')})"
        )
        findings.append(Finding(level="warn", where="application.operations", message=message))
    readable = not any(f.level == "fail" and f.where.endswith("privilege SELECT") for f in settings)
    if plan is not None and readable:
        findings += _contents(spec, plan, source, target, ledger, theirs, missing)
        findings += _coverage(plan, source, target, ledger)
    if sizes is not None:
        there = [
            theirs[name] for name in {t.target or n for n, t in spec.tables.items()} - set(missing) & theirs.keys()
        ]
        findings += capacity(spec, sizes, source, target, ledger, there=there)
    if open is not None:
        findings += _replicas(spec, open)
    if any(finding.level == "fail" for finding in findings):
        plan = None
    return findings, plan


def _table(spec: Migration, plan: Plan, table: PlanTable, ours: TableInfo, theirs: TableInfo) -> Iterator[Finding]:
    """What there is to say of tables that can be migrated: keys, cascades, and which values do not fit where."""

    def note(level: Literal["pass", "warn"], message: str, column: str | None = None) -> Finding:
        return Finding(level=level, where=table.name if column is None else f"{table.name}.{column}", message=message)

    uniques = "; ".join(f"({', '.join(unique)})" for unique in ours.uniques)
    held = f"key ({', '.join(ours.key)}){f', unique keys {uniques}: one copier at a time' if uniques else ''}"
    yield note("pass", held)
    for side in SIDES:
        below = sorted({cascade.relation.table for cascade in plan.cascades[side].get(table.name, ())})
        if below:
            yield note("pass", f"a row that goes in the {side} takes rows of {', '.join(below)} with it: recorded")

    pairs = list(zip(table.source.fields, table.target.fields, strict=True))
    for end, other in pairs:
        one, two = ours.column(end.column), theirs.column(other.column)
        assert one is not None and two is not None
        for level, message in _column(one, two, other):
            yield note(level, message, end.column)
    known = {other.column for _, other in pairs}
    for column in theirs.columns:
        if column.name not in known and not column.computed:
            yield note("warn", f"{BACK} the source has no such column: what is written there stays behind", column.name)
    for name in spec.tables[table.name].drop:
        dropped = ours.column(name)
        if dropped is not None and not (dropped.nullable or dropped.generated or dropped.computed):
            yield note("warn", f"{BACK} is NOT NULL in the source and comes from nowhere: it needs a default", name)
    for message in _uniques(pairs, ours, theirs):
        yield note("warn", message)


def _column(ours: Column, theirs: Column, field: Field) -> Iterator[tuple[Literal["warn"], str]]:
    if theirs.characters and theirs.characters != ours.characters:
        yield "warn", f"the target's {theirs.characters} cannot hold every character: rows with others become rejects"
    if ours.characters and theirs.characters != ours.characters:
        yield (
            "warn",
            f"{BACK} the source's {ours.characters} cannot hold every character: rows with others become rejects",
        )
    if not holds(field.type, field.native):
        yield "warn", f"{BACK} {theirs.native} can hold more than {field.type}: such values become rejects"
    if theirs.nullable and not ours.nullable:
        yield "warn", f"{BACK} can be NULL in the target but not in the source: such rows become rejects"


def _uniques(pairs: list[tuple[Field, Field]], ours: TableInfo, theirs: TableInfo) -> Iterator[str]:
    """Unique keys that only one end has, or that the two ends compare differently."""
    names = {end.column: other.column for end, other in pairs}
    mine = {frozenset(names[column] for column in unique) for unique in ours.uniques if set(unique) <= names.keys()}
    others = {frozenset(unique) for unique in theirs.uniques}
    keys = {frozenset(theirs.key)}
    for unique in sorted(map(sorted, others - mine - keys)):
        what = f"the target's unique key ({', '.join(unique)})"
        yield f"{what} is none in the source: rows that share a value become rejects"
    for unique in sorted(map(sorted, mine - others - keys)):
        what = f"the source's unique key ({', '.join(unique)})"
        yield f"{BACK} {what} is none in the target: rows that share a value become rejects"
    for end, other in pairs:
        if not any(other.column in unique for unique in mine & others):
            continue
        one, two = ours.column(end.column), theirs.column(other.column)
        assert one is not None and two is not None
        how = f"{end.column} is unique by {_compared(one)} in the source and by {_compared(two)} in the target"
        if one.bytewise and not two.bytewise:
            yield f"{how}: rows that differ there by case or accents alone become rejects"
        elif two.bytewise and not one.bytewise:
            yield f"{BACK} {how}: rows that differ there by case or accents alone become rejects"
        elif not one.bytewise and one.collation != two.collation:
            yield f"{how}: rows that one of them takes for the same become rejects; give both the same collation"


def _compared(column: Column) -> str:
    return column.collation or ("its bytes" if column.bytewise else "a folding collation")


def _rights(spec: Migration, target: Store, ledger: Ledger, accounts: Mapping[str, str] | None) -> list[Finding]:
    """Until the target has its triggers nothing but rights keeps the application from writing there."""
    account = (accounts or {}).get("target")
    if not account or not isinstance(target, Fenced) or not target.account():
        return []
    if all(ledger.table_state(name).phase == "closed" for name in spec.tables):
        return []
    may, where = target.may_write(account) if isinstance(target, Accounts) else None, "target: application"
    if may is None:
        message = (
            f"the copier does not see the rights of {account}: see that it may not write here before the load has ended"
        )
        return [Finding(level="warn", where=where, message=message)]
    if may:
        message = f"{account} may write here, and nothing refuses it before the load has ended: revoke that until then"
        return [Finding(level="warn", where=where, message=message)]
    return [Finding(level="pass", where=where, message=f"{account} may not write here before the load has ended")]


def _coverage(plan: Plan, source: Store, target: Store, ledger: Ledger) -> Iterator[Finding]:
    """Whether tables and triggers are what an earlier prepare installed."""
    for side in SIDES:
        store, where = source if side == "source" else target, f"{side}: coverage"
        if not ledger.coverage(side):
            when = "prepare does that" if side == "source" else "the end of each table's load does that"
            yield Finding(level="pass", where=where, message=f"no triggers are installed yet: {when}")
            continue
        try:
            changed = changed_coverage(plan, store, side, ledger)
        except FatalError as error:
            yield Finding(level="fail", where=where, message=f"cannot be told: {error}")
            continue
        for table in changed:
            message = (
                "its table or its triggers changed since they were installed: prepare installs them again and voids"
                " its clean passes; reconcile after that"
            )
            yield Finding(level="warn", where=f"{where} of {table}", message=message)
        if not changed:
            yield Finding(level="pass", where=where, message="tables and triggers are as they were installed")


def _replicas(spec: Migration, open: Callable[[str], Store]) -> Iterator[Finding]:
    for name in spec.target.replicas:
        where = f"replica {name}"
        try:
            replica = open(name)
            try:
                behind = replica.replica_lag() if isinstance(replica, Fenced) else None
            finally:
                replica.close()
        except FishladderError as error:
            message = (
                f"cannot be asked: {error}; mend the connection, or give the copier the right to ask there"
                " (MySQL: GRANT REPLICATION CLIENT ON *.* TO its account, MariaDB: GRANT REPLICA MONITOR ON *.*),"
                " or take it out of replicas:"
            )
            yield Finding(level="fail", where=where, message=message)
            continue
        if behind is None:
            message = "follows nothing, or has stopped: a load with a limit to its lag would wait for ever; start it"
            yield Finding(level="warn", where=where, message=message)
        else:
            yield Finding(level="pass", where=where, message=f"is {behind:.0f} s behind the target")


def _unsupported(spec: Migration) -> list[Finding]:
    """Words that a migration file knows and that nothing acts on yet: better refused than ignored."""
    findings = []
    if spec.strategy != "replicate":
        message = f"{spec.strategy} cannot run yet; replicate can ({spec.where('strategy')})"
        findings.append(Finding(level="fail", where="strategy", message=message))
    for name, table in spec.tables.items():
        if table.zone:
            message = f"zone: cannot be used yet; give both columns the same kind ({spec.where(f'tables.{name}.zone')})"
            findings.append(Finding(level="fail", where=name, message=message))
    return findings


def _settings(source: Store, target: Store, accounts: Mapping[str, str] | None) -> list[Finding]:
    findings = []
    for side, store in (("source", source), ("target", target)):
        if not isinstance(store, Fenced):
            findings.append(
                Finding(level="fail", where=side, message=f"{store.kind} keeps no fences; replicate needs them")
            )
            continue
        for found in store.inspect():
            findings.append(Finding(level=found.level, where=f"{side}: {found.where}", message=found.message))
        account = store.account()
        if not account or accounts is None:
            continue
        if side not in accounts:
            message = "the application's login is not known here: not checked that it differs from the copier's"
            findings.append(Finding(level="warn", where=f"{side}: account", message=message))
        elif accounts[side] == account:
            message = f"the copier and the application both log in as {account}; fences cannot tell them apart"
            findings.append(
                Finding(level="fail", where=f"{side}: account", message=f"{message}: give the copier its own")
            )
    return findings


def _midway(spec: Migration, ledger: Ledger) -> list[Finding]:
    """What a changed migration file may not change any more."""
    record = ledger.spec()
    if record is None:
        return []
    before = Migration.from_json(record.spec)
    found = changes(before, spec)
    moved = {cohort for cohort, route in ledger.routes().items() if route.stage != "off"}
    moved |= {attempt.cohort for attempt in ledger.attempts(only_open=True)}
    message = (
        f"cannot be added while {', '.join(sorted(moved))} has moved or is about to: it could not be loaded, and nobody"
        " could go back; take it out again, and add it when all are back, or to a migration of its own"
    )
    late = sorted(spec.tables.keys() - before.tables.keys()) if moved else []
    findings = [Finding(level="fail", where=name, message=message) for name in late]
    findings += [Finding(level="fail", where="migration file", message=message) for message in found.refused]
    findings += [
        Finding(
            level="fail", where=table, message="its part of the migration file changed since it was prepared: undo that"
        )
        for table in found.restart
    ]
    return findings + [Finding(level="pass", where="migration file", message=message) for message in found.allowed]


def _contents(
    spec: Migration,
    plan: Plan,
    source: Store,
    target: Store,
    ledger: Ledger,
    theirs: Mapping[str, TableInfo],
    missing: Collection[str],
) -> list[Finding]:
    assert isinstance(source, Fenced) and isinstance(target, Fenced)
    findings = []
    counts = source.cohorts(plan.root.source)
    where = f"{plan.root.name}.{spec.cohort.column}"
    if counts.get(None):
        message = (
            f"{counts[None]} rows have no {spec.cohort.label}: they are copied and followed, but never flip; give them"
            " one before prepare if they shall"
        )
        findings.append(Finding(level="warn", where=where, message=message))
    findings += _waves(spec, where, [cohort for cohort in counts if cohort is not None])
    longest = max((len(cohort) for cohort in counts if cohort is not None), default=0)
    if longest > 64:
        message = f"a {spec.cohort.label} of {longest} characters is longer than the 64 that a fence's name can have"
        findings.append(Finding(level="fail", where=where, message=message))
    for table in plan.tables:
        if table.internal or table.name in missing:
            continue
        if not ledger.chunks(table.name) and not target.is_empty(table.target):
            message = "the target's table already holds rows, and no load of it is known: empty it first"
            findings.append(Finding(level="fail", where=table.name, message=message))
        findings += _ids(spec, table.name, theirs[table.target.name], plan, source, target)
    return findings


def _waves(spec: Migration, where: str, found: Collection[str]) -> Iterator[Finding]:
    """Cohorts that a wave names and no row has, and those that no wave has."""
    waves = spec.cohort.waves
    named = {cohort for wave in waves for cohort in wave}
    left = sorted(set(found) - named)
    for number, wave in enumerate(waves):
        for position, cohort in enumerate(wave):
            if cohort not in found and cohort != OTHERS:
                line = spec.where(f"cohort.waves.{number}.{position}")
                message = f"no row has the {spec.cohort.label} {cohort!r} of wave {number + 1}{nearest(cohort, left)}"
                yield Finding(level="warn", where=where, message=f"{message}: mend it, or wait for one ({line})")
    if left and OTHERS not in named:
        some = ", ".join(left[:10]) + (", …" if len(left) > 10 else "")
        message = f"{some}: in no wave, so never flipped; add them, or a last wave ['*'] ({spec.where('cohort.waves')})"
        yield Finding(level="warn", where=where, message=message)


def _ids(spec: Migration, name: str, info: TableInfo, plan: Plan, source: Store, target: Store) -> list[Finding]:
    """Both stores generate ids after the first flip: their ranges must not meet."""
    assert isinstance(source, Fenced) and isinstance(target, Fenced)
    table = plan.table(name)
    ours, theirs = source.generated_from(table.source), target.generated_from(table.target)
    generated = any(column.generated for column in info.columns)
    if generated and theirs is None:
        message = (
            "the target generates ids, and not from a range of its own (SQLite: AUTOINCREMENT); insert with ids only"
        )
        return [Finding(level="warn", where=name, message=message)]
    if ours is None or theirs is None:
        return []
    if spec.ids is None:
        message = "both stores generate ids: keep them apart before the first flip, with ids: {interleaved: true}"
        return [Finding(level="warn", where=name, message=message)]
    first = spec.ids.target_from
    if first is None:
        message = (
            "ids: each store is to generate every second one; not checked here: the application's sessions see to it"
            " (MySQL: auto_increment_increment 2, auto_increment_offset 1 at the source and 2 at the target)"
        )
        return [Finding(level="pass", where=name, message=message)]
    if source.ids_follow_rows:
        message = (
            "what is copied back after a flip raises the source's own counter above ids.target_from, and then both"
            " stores generate the same ids: no cohort can flip; use ids: {interleaved: true}"
        )
        return [Finding(level="warn", where=name, message=message)]
    if ours >= first:
        message = f"the source already generates ids from {ours}, above ids.target_from {first}: raise that"
        return [Finding(level="fail", where=name, message=message)]
    return [Finding(level="pass", where=name, message=f"ids: the source from {ours}, the target from {first}")]
