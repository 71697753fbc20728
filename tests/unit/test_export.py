"""A folder for an auditor: whole, it says so; changed anywhere, it says so too."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fishladder.cli import main
from fishladder.errors import InputError
from fishladder.export import export
from fishladder.export_verify import check
from tests.approving import approve
from tests.unit import flips as moving
from tests.unit import small as smalls
from tests.unit.small import Small
from tests.unit.test_approvals import Case, with_evidence


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Case, Path, str]]:
    """A flip that two people approved, and its digest."""
    folder = tmp_path_factory.mktemp("exported")
    small = with_evidence(folder)
    with moving.flips(small) as flips:
        case = Case(flips, small)
        approve(case.desk, case.attempt, "ben", "cleo")
        case.verify()
        assert case.ends().outcome == "done"
        digest = export(small.ledger, case.attempt.id, folder / "export", actor="auditor")
        yield case, folder / "export", digest
    smalls.close([small])


def test_it_is_whole_for_whoever_has_only_python(exported: tuple[Case, Path, str]) -> None:
    case, folder, digest = exported
    command = [sys.executable, "-I", str(folder / "verify.py"), digest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n")
    assert len((folder / "verify.py").read_text().splitlines()) < 100
    newest = case.small.ledger.events(limit=1)[0]
    assert (newest.event, newest.body["digest"]) == ("exported", digest)


def test_a_person_reads_who_decided_what(exported: tuple[Case, Path, str]) -> None:
    _, folder, _ = exported
    page = (folder / "page.html").read_text()
    for words in ("flip of NZ, no. 1: done", "Asked for by ann: it is time", "ben", "cleo", "audit chain", "switched"):
        assert words in page, words


def test_any_byte_that_is_changed_is_found(exported: tuple[Case, Path, str]) -> None:
    _, folder, digest = exported
    rng = random.Random(7)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for at in rng.sample(range(len(whole)), min(60, len(whole))):
            other = bytes([whole[at] ^ (1 << rng.randrange(8))])
            file.write_bytes(whole[:at] + other + whole[at + 1 :])
            assert check(folder, digest), f"{file.name}, byte {at}"
        file.write_bytes(whole)
    assert check(folder, digest) == []


def _rewrite(folder: Path, name: str, text: str) -> None:
    """By somebody who also mends the manifest."""
    import hashlib

    (folder / name).write_text(text)
    listed = json.loads((folder / "manifest.json").read_text())
    listed[name] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(listed, indent=2))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("events.jsonl", lambda lines: lines[:-1], "the chain was cut"),
        ("events.jsonl", lambda lines: [lines[1], lines[0], *lines[2:]], "does not follow the one before it"),
        ("events.jsonl", lambda lines: lines[:3] + lines[4:], "does not follow the one before it"),
        ("events.jsonl", lambda lines: [line.replace("cleo", "dora") for line in lines], "is not what was written"),
        ("evidence.jsonl", lambda lines: [line.replace("0 open", "1 open") for line in lines], "not what was recorded"),
        (
            "evidence.jsonl",
            lambda lines: [line for line in lines if '"gates"' not in line],
            "approves what did not pass",
        ),
        ("attempt.json", lambda lines: [line.replace('"ann"', '"ben"') for line in lines], "what its own person asked"),
        ("attempt.json", lambda lines: [line.replace(": 2,", ": 3,") for line in lines], "2 of 3 people had approved"),
    ],
)
def test_what_was_changed_together_with_the_manifest(
    exported: tuple[Case, Path, str], name: str, change: Callable[[list[str]], list[str]], words: str
) -> None:
    _, folder, digest = exported
    before = {file: file.read_text() for file in folder.iterdir()}
    _rewrite(folder, name, "".join(change((folder / name).read_text().splitlines(keepends=True))))
    assert words in "\n".join(check(folder)), check(folder)
    assert "manifest.json is not the one that was exported" in check(folder, digest)
    for file, text in before.items():
        file.write_text(text)
    assert check(folder, digest) == []


@pytest.mark.parametrize("file", ["manifest.json", "events.jsonl", "page.html"])
def test_a_file_that_is_missing(exported: tuple[Case, Path, str], file: str) -> None:
    _, folder, digest = exported
    text = (folder / file).read_text()
    (folder / file).unlink()
    assert check(folder, digest)
    (folder / file).write_text(text)


def test_a_folder_that_is_there_is_left_alone(exported: tuple[Case, Path, str]) -> None:
    case, folder, _ = exported
    with pytest.raises(InputError, match="choose a folder that is not there yet"):
        export(case.small.ledger, 1, folder, actor="auditor")
    with pytest.raises(InputError, match=r"no attempt no\. 9"):
        export(case.small.ledger, 9, folder.with_name("other"), actor="auditor")
    assert not folder.with_name("other").exists()


def test_on_the_command_line(small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{small.folder / 'ledger.db'}")
    attempt = small.ledger.begin_attempt("NZ", "flip", actor="ann", reason="", deadline=60)
    said = main(["audit", "show", "--migration", "small"])
    assert said == 0 and "ann" in (shown := capsys.readouterr().out) and "flip asked for" in shown
    assert main(["audit", "show", "--migration", "small", "--limit", "1", "--json"]) == 0
    assert [event["event"] for event in json.loads(capsys.readouterr().out)] == ["flip asked for"]
    into = small.folder / "out"
    assert main(["audit", "export", str(attempt.id), "--migration", "small", "--into", str(into)]) == 0
    digest = capsys.readouterr().out.split()[-1]
    assert check(into, digest) == []
