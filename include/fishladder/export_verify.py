"""Checks an exported attempt: ``python -I verify.py [DIGEST [FOLDER]]``; the export printed its digest."""

import sys

if __name__ == "__main__" and not sys.flags.isolated:
    raise SystemExit("run it with python -I: without it a file beside this one may answer instead")

import hashlib
import json
import unicodedata
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

FILES = {"attempt.json", "events.jsonl", "evidence.jsonl", "page.html", "verify.py"}
MOVES = {"fencing": 1, "completing": 1, "switched": 2}  # how much higher the epoch is than the approvals'


def check(folder: Path, digest: str = "") -> list[str]:
    """What is wrong, a line each. Without the digest, whoever has changed everything at once goes unnoticed."""
    try:
        attempt, texts = json.loads((folder / "attempt.json").read_text("utf-8")), ("events.jsonl", "evidence.jsonl")
        events, evidence = ([*map(json.loads, (folder / name).read_text("utf-8").splitlines())] for name in texts)
        wrong = _files(folder, digest) + _chain(events, attempt["head"]) + _decisions(attempt, events, evidence)
        return wrong + [f"evidence {e['digest']}: not what was recorded" for e in evidence if _digest(e) != e["digest"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]


def _files(folder: Path, digest: str) -> list[str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    wrong = ["manifest.json is not the one that was exported"] if digest not in ("", found["manifest.json"]) else []
    listed = json.loads((folder / "manifest.json").read_text("utf-8"))
    whole = {name for name in FILES & found.keys() if found[name] == listed.get(name)} | {"manifest.json"}
    odd = sorted((FILES | found.keys() | listed.keys()) - whole)
    return wrong + [f"{name}: was changed, is missing, or does not belong here" for name in odd]


def _digest(record: dict[str, Any]) -> str:
    fields = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _chain(events: list[dict[str, Any]], head: str) -> list[str]:
    wrong, previous = [], "0" * 64
    for number, event in enumerate(events, 1):
        if (event["sequence"], event["previous"]) != (number, previous):
            wrong.append(f"event {number}: does not follow the one before it")
        if _digest(event) != event["digest"]:
            wrong.append(f"event {number}: is not what was written")
        previous = event["digest"]
    return wrong if previous == head else [*wrong, "the chain was cut: its last event is not the head"]


def _decisions(attempt: dict[str, Any], events: list[dict[str, Any]], evidence: list[dict[str, Any]]) -> list[str]:
    own = [e for event in events if (e := json.loads(event["body"]) | event).get("attempt") == attempt["id"]]
    happened = [event["event"] for event in own]
    if not own or [name for name in happened if name.endswith(" asked for")] != happened[:1]:
        return [f"attempt {attempt['id']}: was not asked for once, before all else"]
    asked, kind, outcome = own[0], own[0]["kind"], attempt["outcome"]
    asker, names = _identity(asked["actor"]), ("cohort", "kind", "actor", "reason", "approvals")
    wrong = [f"attempt.json: its {name} is not what was asked for" for name in names if attempt[name] != asked[name]]
    moves = {"completing"} if kind == "complete" else {"fencing", "switched"}
    if outcome and not {f"{kind} {outcome}", *(moves if outcome == "done" else ())} <= {*happened}:
        wrong.append(f"attempt.json: it says {outcome}, and that is not what happened")
    loud = {one["digest"] for one in evidence if one["kind"] == "observed" and not one["passed"]}
    itself = (asked["actor"], kind) == ("fishladder", "rollback") and any(one in asked["reason"] for one in loud)
    if asked["approvals"] < 1 and not itself:
        wrong.append("nobody had to approve it, and no evidence says why")
    about, approved = ("gates", f"attempt {attempt['id']}", True), []
    passed = {one["digest"] for one in evidence if (one["kind"], one["subject"], one["passed"]) == about}
    for event in own:
        if event["event"] == "approved":
            approved.append(event)
            if event["evidence"] not in passed or asker in map(_identity, (event["person"], event["actor"])):
                wrong.append(f"event {event['sequence']}: approves what did not pass, or what its own person asked for")
        elif event["event"] in MOVES and (most := _hold(approved, event)) < asked["approvals"]:
            wrong.append(f"event {event['sequence']}: {most} of {asked['approvals']} people had approved")
    return wrong


def _hold(approved: list[dict[str, Any]], move: dict[str, Any]) -> int:
    votes = set()
    for yes in approved:
        began, now, ends = map(datetime.fromisoformat, (yes["at"], move["at"], yes["expires_at"]))
        if began <= now < ends and yes["epoch"] == move["epoch"] - MOVES[move["event"]]:
            votes.add((yes["spec"], yes["code"], yes["evidence"], _identity(yes["person"])))
    return max(Counter(vote[:3] for vote in votes).values(), default=0)


def _identity(account: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", account).casefold().split())


if __name__ == "__main__":
    problems = check(Path(sys.argv[2]) if sys.argv[2:] else Path(__file__).parent, *sys.argv[1:2])
    print("\n".join(problems) or "whole")
    raise SystemExit(bool(problems))
