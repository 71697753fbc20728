"""``python -m fishladder``: what a person does without Airflow, or beside it."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fishladder import tasks
from fishladder.draft import End, draft
from fishladder.errors import FishladderError, InputError, SpecError
from fishladder.export import export
from fishladder.export_verify import check
from fishladder.ledger import Ledger, open_ledger, upgrade, verify
from fishladder.spec import Migration, json_schema, load
from fishladder.stores import connect_environment, open_application, open_store
from fishladder.stores.application import Application
from fishladder.stores.base import Store

LEDGER = "FISHLADDER_LEDGER"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 well, 1 something was found, 2 the input was wrong."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except FishladderError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fishladder", description="What a person does without Airflow, or beside it."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run: object, text: str, *, file: bool = True, among: Any = commands
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = among.add_parser(name, help=text, description=text)
        if file:
            added.add_argument("file", type=Path, help="the migration file")
            added.add_argument("--json", action="store_true", help="for machines")
        added.set_defaults(run=run)
        return added

    drafted = command("draft", _draft, "write a migration file from what two stores declare", file=False)
    drafted.add_argument("--json", action="store_true", help="for machines")
    for end in ("source", "target"):
        drafted.add_argument(
            f"--{end}", required=True, metavar="CONNECTION", help=f"the copier's connection to the {end}"
        )
    drafted.add_argument("--name", help="of the migration; the source's connection without _source otherwise")
    drafted.add_argument("--root", metavar="TABLE", help="whose key is the entity, where the guess is wrong")
    drafted.add_argument("--cohort", metavar="COLUMN", help="of the root, where the guess is wrong")
    command("preflight", _preflight, "find what would go wrong, and change nothing")
    command("status", _status, "where the migration stands, from the ledger")
    rejects = command("rejects", _rejects, "list the rows that the target refused, or have them tried again")
    rejects.add_argument("--table", help="only of this table")
    rejects.add_argument("--retry", action="store_true", help="mark their keys dirty: the applier tries them again")
    queue = command("queue", _queue, "list the writes that wait for a flip's end, or say what becomes of one")
    what = queue.add_mutually_exclusive_group()
    what.add_argument("--retry", type=int, metavar="NUMBER", help="try this parked write again")
    what.add_argument("--give-up", type=int, metavar="NUMBER", help="refuse it: its customer has to be told")
    queue.add_argument("--reason", help="why it is given up, for the audit trail")
    abort = command("abort", _abort, "bring a flip or rollback back to where it began, before its switch")
    abort.add_argument("attempt", type=int, help="its number, as status shows it")
    abort.add_argument("--reason", required=True, help="for the audit trail")
    command("schema", _schema, "print the JSON schema of migration files, for editors", file=False)
    ledger = commands.add_parser("ledger", help="the control database").add_subparsers(required=True, metavar="command")
    command("upgrade", _upgrade, "create or upgrade the ledger's tables", file=False, among=ledger)
    added = command(
        "adopt", _adopt, "go on after a backup was restored, of the ledger or of a store", file=False, among=ledger
    )
    added.add_argument("file", type=Path, help="the migration file")
    audit = commands.add_parser("audit", help="the audit trail").add_subparsers(required=True, metavar="command")
    added = command("verify", _verify, "check that no event was edited, cut or swapped", file=False, among=audit)
    added.add_argument("file", type=Path, nargs="?", help="a migration file: its stores' fences are asked, too")
    added.add_argument("--migration", help="only this one; otherwise all")
    added.add_argument("--json", action="store_true", help="for machines")
    added = command("show", _show, "list the newest events", file=False, among=audit)
    added.add_argument("--migration", required=True)
    added.add_argument("--limit", type=int, default=100, help="so many at most; 100 otherwise")
    added.add_argument("--json", action="store_true", help="for machines")
    text = "write a flip, with all that decided it, into a folder of its own"
    added = command("export", _export, text, file=False, among=audit)
    added.add_argument("attempt", type=int, help="its number, as status shows it")
    added.add_argument("--migration", required=True)
    added.add_argument("--into", type=Path, required=True, help="a folder that is not there yet")
    text = "check such a folder, with this verifier and not the folder's"
    added = command("check", _check, text, file=False, among=audit)
    added.add_argument("folder", type=Path, help="what was exported")
    added.add_argument("digest", help="what the export printed; the ledger's event exported has it, too")
    return parser


def _ledger_url() -> str:
    url = os.environ.get(LEDGER)
    if not url:
        raise InputError(f"set {LEDGER} to the ledger's URL, for example sqlite:////path/ledger.db or postgresql://…")
    return url


def _ledger(migration: str) -> Ledger:
    ledger = open_ledger(_ledger_url(), migration=migration)
    ledger.check_version()
    return ledger


def _desk(spec: Migration) -> tasks.Desk:
    kinds = spec.kinds()

    def open_(connection: str) -> Store:
        kind, connect = connect_environment(connection, os.environ, loads=spec.is_loaded(connection))
        if kind != kinds[connection]:
            raise InputError(
                f"connection {connection} is a {kind} URL, but the migration file says {kinds[connection]}"
            )
        return open_store(kind, connect, name=connection)

    def serve(connection: str) -> Application:
        return open_application(*connect_environment(connection, os.environ))

    return tasks.Desk(
        spec=spec,
        ledger=_ledger(spec.migration),
        open=open_,
        serve=serve,
        say=lambda line: print(line, file=sys.stderr),
    )


def _draft(options: argparse.Namespace) -> int:
    opened = [(name, *connect_environment(name, os.environ)) for name in (options.source, options.target)]
    stores = [open_store(kind, connect, name=name) for name, kind, connect in opened]
    try:
        source, target = (store.describe() for store in stores)
    finally:
        for store in stores:
            store.close()
    if not source:
        raise InputError(f"{options.source} holds no tables that its account sees: is it the right connection?")
    ends = [End(kind=kind, connection=name) for name, kind, _ in opened]
    name = options.name or options.source.removesuffix("_source")
    try:
        text = draft(name, (ends[0], ends[1]), source, target, root=options.root, column=options.cohort)
    except SpecError as error:
        raise InputError(f"this makes no migration file; --name gives it another name:\n{error}") from error
    if options.json:
        remarks = [line.lstrip(" #") for line in text.splitlines() if line.lstrip().startswith("#")]
        text = json.dumps({"file": text, "remarks": remarks}, indent=2) + "\n"
    sys.stdout.write(text)
    return 0


def _preflight(options: argparse.Namespace) -> int:
    findings = tasks.check(_desk(load(options.file)))
    if options.json:
        print(json.dumps([{"level": f.level, "where": f.where, "message": f.message} for f in findings], indent=2))
    else:
        print(tasks.findings_table(findings))
    return int(any(finding.level == "fail" for finding in findings))


def _status(options: argparse.Namespace) -> int:
    spec = load(options.file)
    found = tasks.status(tasks.Desk(spec=spec, ledger=_ledger(spec.migration), open=_no_store))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    applier = found["applier"]
    print(f"{found['migration']}{' (paused)' if found['paused'] else ''}: {found['dirty']} dirty keys in the ledger,")
    if not found["applier_at_work"]:
        follows = f"no applier at work since {applier['at']}" if applier else "no applier has been at work yet"
    else:
        follows = f"lag of the applier {applier['lag'] or 0:.1f} s"
    print(f"  {found['mismatches']} open mismatches, {follows}")
    if found["limits"]:
        limits = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found["limits"].items())
        print(f"  slowed down to {limits}")
    stages: dict[str, list[str]] = {}
    for cohort, route in found["cohorts"].items():
        stages.setdefault(route["stage"], []).append(cohort)
    print("".join(f"  {stage}: {', '.join(cohorts)}\n" for stage, cohorts in stages.items()), end="")
    for attempt in found["attempts"]:
        if attempt["outcome"] is None:
            print(f"  {attempt['kind']} no. {attempt['number']} of {attempt['cohort']} is at {attempt['step']}")
            for line in attempt.get("closed_gates", ()):
                print(f"    closed: {line}")
            if attempt.get("approvals"):
                people = ", ".join(attempt["approved_by"]) or "nobody"
                print(f"    approved by {people}; it takes {attempt['approvals']}")
    print(f"{'table':<24}{'phase':<10}{'chunks':>10}{'rows':>12}{'rejects':>9}{'clean passes':>14}")
    for name, table in found["tables"].items():
        chunks = f"{table['done']}/{table['chunks']}"
        line = f"{name:<24}{table['phase']:<10}{chunks:>10}{table['rows']:>12,}{table['rejects']:>9}"
        print(f"{line}{table['clean_passes']:>14}")
    return 0


def _rejects(options: argparse.Namespace) -> int:
    spec = load(options.file)
    tasks.check_names(spec, [options.table] if options.table else [])
    with _ledger(spec.migration) as ledger:
        found = ledger.open_rejects(options.table)
        if options.retry:
            count = ledger.retry_rejects(options.table, actor=getpass.getuser())
            print(f"{count} rejects are marked dirty; the applier tries them again", file=sys.stderr)
    if options.json:
        keys = ("table", "cohort", "column", "error", "attempts")
        print(json.dumps([{"key": r.key.decode(), **{key: getattr(r, key) for key in keys}} for r in found], indent=2))
        return 0
    for reject in found:
        column = f".{reject.column}" if reject.column else ""
        which = f"{reject.table}{column} key {reject.key.decode()} ({reject.cohort}, {reject.attempts} tries)"
        print(f"{which}: {reject.error}")
    return 0


def _queue(options: argparse.Namespace) -> int:
    spec = load(options.file)
    if (options.give_up is None) is not (options.reason is None):
        raise InputError("--give-up and --reason go together")
    with _ledger(spec.migration) as ledger:
        if options.retry is not None:
            ledger.release_queued(options.retry, actor=getpass.getuser())
        if options.give_up is not None:
            ledger.drop_queued(options.give_up, options.reason, actor=getpass.getuser())
        found = ledger.waiting()
    if options.json:
        keys = ("id", "cohort", "operation", "key", "state", "attempts", "reason")
        print(json.dumps([{key: getattr(queued, key) for key in keys} for queued in found], indent=2))
        return 0
    for queued in found:
        why = f": {queued.reason}" if queued.reason else ""
        print(
            f"{queued.id} {queued.cohort} {queued.operation} {queued.key} {queued.state}, {queued.attempts} tries{why}"
        )
    return 0


def _abort(options: argparse.Namespace) -> int:
    spec = load(options.file)
    attempt = tasks.abort_by_hand(_desk(spec), options.attempt, options.reason, actor=getpass.getuser())
    if options.json:
        print(json.dumps({"attempt": attempt.id, "step": attempt.step, "outcome": attempt.outcome}))
    elif attempt.outcome is None:
        print(f"{attempt.cohort} goes back to where it was; {spec.migration}_replicate brings it there")
    else:
        print(f"{attempt.cohort} is where it was; nothing had been fenced")
    return 0


def _no_store(connection: str) -> Store:
    raise InputError(f"status reads the ledger alone, not {connection}")


def _schema(_: argparse.Namespace) -> int:
    sys.stdout.write(json_schema())
    return 0


def _upgrade(_: argparse.Namespace) -> int:
    upgrade(_ledger_url())
    print("the ledger's tables are those of this version")
    return 0


def _adopt(options: argparse.Namespace) -> int:
    spec = load(options.file)
    again = tasks.adopt_ledger(_desk(spec), actor=getpass.getuser())
    print(f"the ledger goes on; all clean passes are void: run {spec.migration}_reconcile")
    if again:
        print(f"{', '.join(again)}: their load had not ended, they are empty now; run {spec.migration}_load")
    return 0


def _verify(options: argparse.Namespace) -> int:
    spec = None if options.file is None else load(options.file)
    migration = spec.migration if spec is not None else options.migration
    with _ledger(migration or "") as ledger:
        problems = verify(ledger.engine, migration)
    if spec is not None:
        problems += tasks.ask_stores(_desk(spec))
    if options.json:
        print(json.dumps({"whole": not problems, "problems": problems}, indent=2))
        return int(bool(problems))
    for problem in problems:
        print(problem)
    print("the audit chain is broken" if problems else "the audit chain is whole")
    return int(bool(problems))


def _show(options: argparse.Namespace) -> int:
    with _ledger(options.migration) as ledger:
        events = ledger.events(limit=options.limit)
    if options.json:
        print(json.dumps([asdict(event) | {"at": event.at.isoformat()} for event in events], indent=2))
        return 0
    for event in events:
        said = ", ".join(f"{name} {value}" for name, value in event.body.items())
        print(f"{event.sequence:>7}  {event.at:%Y-%m-%d %H:%M:%S}  {event.actor:<16}  {event.event}: {said}")
    return 0


def _export(options: argparse.Namespace) -> int:
    with _ledger(options.migration) as ledger:
        digest = export(ledger, options.attempt, options.into, actor=getpass.getuser())
    print(f"{options.into}: check it with python -m fishladder audit check {options.into} {digest}")
    print(f"or, with nothing but Python, python -I {options.into / 'verify.py'} {digest}")
    return 0


def _check(options: argparse.Namespace) -> int:
    problems = check(options.folder, options.digest)
    print("\n".join(problems) or "whole")
    return int(bool(problems))
