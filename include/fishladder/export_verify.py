"""Checks an exported attempt, with nothing but Python: ``python verify.py [DIGEST]``.

DIGEST is what the export printed, and what the ledger's event "exported" says. Without it only what belongs together
is compared: whoever changes everything at once goes unnoticed.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("migration", "sequence", "at", "actor", "event", "body", "previous")
EVIDENCE = ("migration", "kind", "subject", "body", "passed", "began")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def check(folder: Path, digest: str = "") -> list[str]:
    """What is wrong, a line each; empty if nothing is."""
    try:
        return [*_files(folder, digest), *_chain(folder), *_evidence(folder), *_approvals(folder)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _files(folder: Path, digest: str) -> list[str]:
    text = (folder / "manifest.json").read_bytes()
    wrong = ["manifest.json is not the one that was exported"] if digest and sha256(text) != digest else []
    listed = json.loads(text)
    found = {path.name for path in folder.iterdir()} - {"manifest.json"}
    wrong += [f"{name}: not listed, or missing" for name in sorted(found ^ listed.keys())]
    return wrong + [
        f"{name}: changed" for name in found & listed.keys() if sha256((folder / name).read_bytes()) != listed[name]
    ]


def _chain(folder: Path) -> list[str]:
    wrong, previous = [], "0" * 64
    events = _lines(folder / "events.jsonl")
    for number, event in enumerate(events, 1):
        fields = {name: event[name] for name in COLUMNS}
        if event["sequence"] != number or event["previous"] != previous:
            wrong.append(f"event {number}: does not follow the one before it")
        if sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()) != event["digest"]:
            wrong.append(f"event {number}: is not what was written")
        previous = event["digest"]
    if previous != json.loads((folder / "attempt.json").read_text("utf-8"))["head"]:
        wrong.append("the chain was cut: its last event is not the head")
    return wrong


def _evidence(folder: Path) -> list[str]:
    return [
        f"evidence {one['digest']}: is not what was recorded"
        for one in _lines(folder / "evidence.jsonl")
        if sha256(canonical({name: one[name] for name in EVIDENCE})) != one["digest"]
    ]


def _approvals(folder: Path) -> list[str]:
    attempt = json.loads((folder / "attempt.json").read_text("utf-8"))
    passed = {one["digest"] for one in _lines(folder / "evidence.jsonl") if one["passed"]}
    people, wrong = set(), []
    for event in _lines(folder / "events.jsonl"):
        body = json.loads(event["body"])
        if body.get("attempt") != attempt["id"]:
            continue
        if event["event"] == "approved":
            if body["evidence"] not in passed or body["person"] == attempt["actor"].casefold():
                wrong.append(f"event {event['sequence']}: approves what did not pass, or what its own person asked for")
            if event["at"] < body["expires_at"]:
                people.add(body["person"])
        elif event["event"] in ("fencing", "completing") and len(people) < attempt["approvals"]:
            wrong.append(f"event {event['sequence']}: {len(people)} of {attempt['approvals']} people had approved")
    return wrong


if __name__ == "__main__":
    problems = check(Path(__file__).parent, *sys.argv[1:2])
    print("\n".join(problems) or "whole")
    raise SystemExit(bool(problems))
