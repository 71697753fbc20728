"""Preflight: everything that would go wrong later, found before anything is touched (design §13)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fishladder.ledger import Ledger
from fishladder.plan import Plan, examine
from fishladder.spec import Migration, changes
from fishladder.stores.base import Fenced, Finding, Store, TableInfo


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
) -> tuple[list[Finding], Plan | None]:
    """Findings for tables, columns, settings and cohorts, and the plan if none fails. Changes nothing.

    ``ours`` and ``theirs``: the two stores' tables, the target's with the ``missing`` ones that prepare will create.
    ``accounts``: the application's account at ``source`` and ``target``, where it is known; None: not to be checked.
    """
    findings, plan = examine(spec, ours, theirs)
    findings += _unsupported(spec)
    findings += _settings(source, target, accounts)
    findings += _midway(spec, ledger)
    if plan is not None:
        findings += _contents(spec, plan, source, target, ledger, theirs, missing)
    if any(finding.level == "fail" for finding in findings):
        plan = None
    return findings, plan


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
    found = changes(Migration.from_json(record.spec), spec)
    findings = [Finding(level="fail", where="migration file", message=message) for message in found.refused]
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
        message = f"{counts[None]} rows have no {spec.cohort.label}: they are copied and followed, but never flip"
        findings.append(Finding(level="warn", where=where, message=message))
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
    first = spec.ids.target_from if spec.ids is not None else None
    if first is None:
        message = "both stores generate ids: give the target a range of its own with ids: {target_from: …}"
        return [Finding(level="warn", where=name, message=message)]
    if ours >= first:
        message = f"the source already generates ids from {ours}, above ids.target_from {first}: raise that"
        return [Finding(level="fail", where=name, message=message)]
    return [Finding(level="pass", where=name, message=f"ids: the source from {ours}, the target from {first}")]
