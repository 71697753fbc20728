"""What an auditor takes along: one attempt with all that decided it, to be read by people and checked by machines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from fishladder import export_verify, reports
from fishladder.cells import SHARED
from fishladder.errors import InputError
from fishladder.ledger import Attempt, Event, Evidence, Ledger, canonical
from fishladder.ledger.approvals import APPROVED, GATES, subject

STYLE = "body{font:15px/1.5 sans-serif;margin:2rem}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
CHECKED = (
    "Check it with <code>python -m fishladder audit check FOLDER DIGEST</code>. Or see that <code>sha256sum"
    " manifest.json verify.py</code> says the digest and what the manifest lists; then run"
    " <code>python -I verify.py DIGEST</code>."
)
DECIDED = ("switched", "completing")
"""The events after which there is no way but forward."""
DIGEST = re.compile("[0-9a-f]{64}")


def export(ledger: Ledger, number: int, folder: Path, *, actor: str) -> str:
    """Write the folder, which must not be there yet. Returns the digest with which it can be checked.

    The digest is an event of the audit, too. Raises InputError.
    """
    attempt = ledger.attempt(number)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error}); choose a folder that is not there yet") from error
    events = sorted(ledger.events(limit=10**9), key=lambda event: event.sequence)
    own = [event for event in events if event.body.get("attempt") == number]
    evidence = _evidence(ledger, attempt, own)
    head = events[-1].digest if events else "0" * 64
    file = _file(ledger, own, evidence)
    facts = {name: _plain(value) for name, value in asdict(attempt).items()} | {"head": head, "file": file}
    files = {
        "attempt.json": json.dumps(facts, indent=2, ensure_ascii=False),
        "events.jsonl": "".join(_event_line(ledger.migration, event) for event in events),
        "evidence.jsonl": "".join(_evidence_line(ledger.migration, one) for one in evidence),
        "page.html": _page(ledger.migration, attempt, own, evidence, file),
        "verify.py": Path(export_verify.__file__).read_text("utf-8"),
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    listed = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    (folder / "manifest.json").write_text(json.dumps(listed, indent=2), "utf-8")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    ledger.record_event("exported", {"attempt": number, "digest": digest}, actor=actor)
    return digest


def _evidence(ledger: Ledger, attempt: Attempt, own: Sequence[Event]) -> list[Evidence]:
    """What was known when it was decided, and all that an approval or the reason names."""
    decided = [event.at for event in own if event.event in DECIDED]
    moment = decided[-1] if decided else attempt.ended_at or ledger.now()
    found = [one for one in ledger.evidence_as_of(moment) if one.kind != GATES]
    named = {event.body["evidence"] for event in own if event.event == APPROVED}
    newest = ledger.latest_evidence(GATES, subject(attempt.id))
    if newest is not None and not named:
        named = {newest.digest}
    named = (named | {*DIGEST.findall(attempt.reason)}) - {one.digest for one in found}
    return found + [one for digest in sorted(named) for one in ledger.evidence(digest) if one.digest == digest]


def _file(ledger: Ledger, own: Sequence[Event], evidence: Sequence[Evidence]) -> str | None:
    """The text of the migration file that was approved, or else judged; its SHA-256 is what an approval has as spec."""
    judged = [one.body["runs"]["spec"] for one in evidence if one.kind == GATES and one.genuine and "runs" in one.body]
    digests = judged + [event.body["spec"] for event in own if event.event == APPROVED]
    record = ledger.spec(digests[-1]) if digests else None
    whole = record is not None and hashlib.sha256(record.spec.encode()).hexdigest() == record.digest
    return record.spec if record is not None and whole else None


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _event_line(migration: str, event: Event) -> str:
    """As it was digested: the body is text."""
    at = event.at.astimezone(UTC).isoformat(timespec="microseconds")
    fields = asdict(event) | {"migration": migration, "at": at, "body": canonical(event.body)}
    return canonical(fields) + "\n"


def _evidence_line(migration: str, one: Evidence) -> str:
    began = one.began.astimezone(UTC).isoformat(timespec="microseconds")
    names = ("kind", "subject", "body", "passed", "digest")
    return canonical({name: getattr(one, name) for name in names} | {"migration": migration, "began": began}) + "\n"


def _page(
    migration: str, attempt: Attempt, own: Sequence[Event], evidence: Sequence[Evidence], file: str | None
) -> str:
    shown = [one for one in evidence if one.kind == GATES and one.genuine]
    gates = [(gate["name"], gate["found"], one.digest) for one in shown for gate in one.body["gates"]]
    title = f"{migration}: {attempt.kind} of {attempt.cohort}, no. {attempt.id}: {attempt.outcome or attempt.step}"
    asked = f"Asked for by {attempt.actor}: {attempt.reason or '(no reason given)'}"
    approvals = [(event.actor, _when(event.at), event.body["evidence"]) for event in own if event.event == APPROVED]
    steps = [(event.sequence, _when(event.at), event.actor, event.event, event.body.get("error", "")) for event in own]
    observed = [one for one in evidence if one.kind == "monitor" and one.genuine]
    monitors = [
        (one.subject, one.body["must_be"], _sides(one.body["values"]), _sides(one.body.get("before", {})))
        for one in observed
    ]
    said = json.loads(file)["gates"].items() if file is not None else ()
    seen = [(one.kind, one.subject, "passed" if one.passed else "failed", _when(one.began)) for one in evidence]
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
            f"<h1>{escape(title)}</h1><p>{escape(asked)}</p>",
            _table("Who approved", ("account", "when", "evidence"), approvals),
            _table("Gates, as they were shown", ("gate", "found", "evidence"), gates),
            _table("What the migration file asked for", ("gates.", "value"), said),
            _table("What the reports said", ("report", "as of", "source", "target"), _reports(attempt, evidence)),
            _table("What the monitors said", ("monitor", "must be", "value", "before"), monitors),
            _table("What happened", ("event", "when", "who", "what", "why"), steps),
            _table("Evidence at that time", ("kind", "about", "result", "as of"), seen),
            f"<p>{CHECKED}</p></html>",
        ]
    )


def _reports(attempt: Attempt, evidence: Sequence[Evidence]) -> Iterator[tuple[str, ...]]:
    """Every line of the cohort's reports on both sides; of shared tables, of all cohorts."""
    for one in evidence:
        name, _, cohort = one.subject.partition(" ")
        if one.kind != "report" or not one.genuine or attempt.cohort not in (cohort, SHARED):
            continue
        result = reports.result_of(name, cohort, one.body)
        yield one.subject, _when(one.began), result.in_short(), ""
        yield from (("", "", *map(reports.words, pair)) for pair in result.pairs())


def _sides(found: Mapping[str, str]) -> str:
    return ", ".join(f"{side} {text}" for side, text in found.items())


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _table(title: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>"
