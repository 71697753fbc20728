"""A folder for an auditor: whole, it says so; changed anywhere, it says so too."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fishladder import export_verify, tasks
from fishladder.cli import main
from fishladder.errors import InputError
from fishladder.export import export
from fishladder.export_verify import check
from fishladder.ledger import canonical
from tests.approving import approve
from tests.unit import flips as moving
from tests.unit import small as smalls
from tests.unit.small import SPEC, Small
from tests.unit.test_approvals import GATES, Case, with_evidence

AUTOMATIC = GATES.replace("approvals: 2,", "approvals: 2, automatic_rollback: true,")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = with_evidence(tmp_path_factory.mktemp("behind"))
    smalls.close([small])
    return small.folder


@pytest.fixture
def case(behind: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    """``request``: other gates than usual."""
    small = smalls.reopen(shutil.copytree(behind, tmp_path / "case"), spec=SPEC + getattr(request, "param", GATES))
    with moving.flips(small) as flips:
        yield Case(flips, small)
    smalls.close([small])


def flip(case: Case) -> None:
    approve(case.desk, case.attempt, "ben", "cleo")
    case.verify()
    assert case.ends().outcome == "done"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Case, Path, str]]:
    """A flip that two people approved, and its digest."""
    folder = tmp_path_factory.mktemp("exported")
    small = with_evidence(folder)
    with moving.flips(small) as flips:
        case = Case(flips, small)
        flip(case)
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


def test_a_person_reads_the_figures_of_both_sides(exported: tuple[Case, Path, str]) -> None:
    _, folder, _ = exported
    page = (folder / "page.html").read_text()
    assert "<tr><td>amounts NZ</td>" in page and "<td>equal</td><td></td></tr><tr><td></td><td></td><td>5</td>" in page
    assert "<tr><td>amounts AU" not in page, "another cohort's are in evidence.jsonl"


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
        (
            "attempt.json",
            lambda lines: [line.replace('"ann"', '"ben"') for line in lines],
            "its actor is not",
        ),
        (
            "attempt.json",
            lambda lines: [line.replace(": 2,", ": 1,") for line in lines],
            "its approvals is not",
        ),
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
    attempt = small.ledger.begin_attempt("NZ", "flip", actor="ann", reason="", deadline=60, approvals=1)
    said = main(["audit", "show", "--migration", "small"])
    assert said == 0 and "ann" in (shown := capsys.readouterr().out) and "flip asked for" in shown
    assert main(["audit", "show", "--migration", "small", "--limit", "1", "--json"]) == 0
    assert [event["event"] for event in json.loads(capsys.readouterr().out)] == ["flip asked for"]
    into = small.folder / "out"
    assert main(["audit", "export", str(attempt.id), "--migration", "small", "--into", str(into)]) == 0
    digest = capsys.readouterr().out.split()[-1]
    assert main(["audit", "check", str(into), digest]) == 0
    assert capsys.readouterr().out == "whole\n"
    assert main(["audit", "check", str(into / "nowhere"), digest]) == 1
    assert "cannot be read" in capsys.readouterr().out


# Who answers ------------------------------------------------------------------------------------------


@pytest.fixture
def copied(exported: tuple[Case, Path, str], tmp_path: Path) -> tuple[Path, str]:
    """To change as one likes."""
    _, folder, digest = exported
    return shutil.copytree(folder, tmp_path / "copied"), digest


@pytest.mark.parametrize("listed", [False, True])
def test_a_file_beside_the_verifier_does_not_answer_for_it(copied: tuple[Path, str], listed: bool) -> None:
    folder, digest = copied
    lie = "print('whole'); raise SystemExit(0)"
    (folder / "json.py").write_text(lie)
    if listed:
        _rewrite(folder, "json.py", lie)
    for flags, words in (["-I"], "json.py: was changed, is missing, or does not belong here"), ([], "python -I"):
        command = [sys.executable, *flags, str(folder / "verify.py"), digest]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and words in done.stdout + done.stderr


def test_the_verifier_of_the_folder_is_not_believed(
    copied: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, digest = copied
    _rewrite(folder, "page.html", "<h1>approved by everybody</h1>")
    _rewrite(folder, "verify.py", "print('whole')")
    assert main(["audit", "check", str(folder), digest]) == 1
    assert "manifest.json is not the one that was exported" in capsys.readouterr().out
    own = [sys.executable, "-I", export_verify.__file__, digest, str(folder)]
    assert "manifest.json is not the one" in subprocess.run(own, capture_output=True, text=True, check=False).stdout


def test_the_page_says_how_to_check_it(exported: tuple[Case, Path, str]) -> None:
    _, folder, _ = exported
    page = (folder / "page.html").read_text()
    assert "python -m fishladder audit check" in page and "python -I verify.py" in page


# Stories that are true --------------------------------------------------------------------------------


def test_who_approved_is_known_whatever_came_after(case: Case) -> None:
    flip(case)
    for number in range(101):
        case.small.ledger.set_control(rows_per_second=number, actor="otto")
    assert sorted(tasks.summary(case.desk, case.attempt.id)["approved_by"]) == ["ben", "cleo"]


def test_gates_that_were_cleared_between_two_approvals(case: Case, tmp_path: Path) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    case.say_yes("ben")
    tasks.open_gates(case.desk, case.attempt.id)
    case.say_yes("ben")
    case.say_yes("cleo")
    case.verify()
    assert case.ends().outcome == "done"
    digest = export(case.small.ledger, case.attempt.id, tmp_path / "out", actor="auditor")
    assert check(tmp_path / "out", digest) == []


def test_a_completion_whose_gates_were_cleared_while_it_was_under_way(case: Case, tmp_path: Path) -> None:
    flip(case)
    case.observed()
    (case.attempt,) = tasks.ask(case.desk, "complete", ["NZ"], actor="ann", reason="")
    approve(case.desk, case.attempt, "ben", "cleo")
    assert case.cutover().advance(case.attempt.id).step == "free"
    with pytest.raises(InputError, match="is free already"):
        tasks.open_gates(case.desk, case.attempt.id)
    assert case.ends().outcome == "done"
    digest = export(case.small.ledger, case.attempt.id, tmp_path / "out", actor="auditor")
    assert check(tmp_path / "out", digest) == []


def test_an_attempt_that_nobody_approved_and_that_was_given_up(case: Case, tmp_path: Path) -> None:
    tasks.open_gates(case.desk, case.attempt.id)
    case.verify()
    case.aborts("0 of 2 approvals hold")
    digest = export(case.small.ledger, case.attempt.id, tmp_path / "out", actor="auditor")
    assert check(tmp_path / "out", digest) == []


@pytest.mark.parametrize("case", [AUTOMATIC], indirect=True)
def test_a_rollback_of_its_own_names_the_evidence(case: Case, tmp_path: Path) -> None:
    flip(case)
    case.small.application("UPDATE item SET amount = -1 WHERE id = 10", store="target")
    with pytest.raises(InputError, match="is not quiet"):
        tasks.watch(case.desk, case.attempt.id)
    back = tasks.send_back(case.desk, case.attempt.id)
    assert back is not None and back.outcome == "done"
    out = tmp_path / "out"
    digest = export(case.small.ledger, back.id, out, actor="auditor")
    assert check(out, digest) == []
    _rewrite(out, "evidence.jsonl", _without(out / "evidence.jsonl", '"kind":"observed"'))
    assert "nobody had to approve it, and no evidence says why" in check(out)


def _without(file: Path, words: str) -> str:
    return "".join(line for line in file.read_text().splitlines(keepends=True) if words not in line)


def test_nobodys_words_are_markup(case: Case, tmp_path: Path) -> None:
    tasks.abort(case.desk, case.attempt.id, "again", actor="test")
    (case.attempt,) = tasks.ask(case.desk, "flip", ["NZ"], actor="<b>ann</b>", reason="<script>alert(1)</script>")
    export(case.small.ledger, case.attempt.id, tmp_path / "out", actor="auditor")
    page = (tmp_path / "out" / "page.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page and "<b>" not in page


# Stories that are not ---------------------------------------------------------------------------------

Story = list[dict[str, Any]]
Facts = dict[str, Any]


def _forge(folder: Path, change: Callable[[Story, Facts], None]) -> list[str]:
    """Events changed and chained anew: as a ledger that lets such things happen would export them."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    facts = json.loads((folder / "attempt.json").read_text())
    for event in events:
        event["body"] = json.loads(event["body"])
    change(events, facts)
    previous = "0" * 64
    for number, event in enumerate(events, 1):
        event |= {"sequence": number, "previous": previous, "body": canonical(event["body"])}
        del event["digest"]
        previous = event["digest"] = hashlib.sha256(canonical(event).encode()).hexdigest()
    facts["head"] = previous
    _rewrite(folder, "events.jsonl", "".join(canonical(event) + "\n" for event in events))
    _rewrite(folder, "attempt.json", json.dumps(facts))
    return check(folder)


def _of(events: Story, name: str) -> Story:
    return [event for event in events if event["event"] == name]


def expired(events: Story, _: Facts) -> None:
    for yes in _of(events, "approved"):
        yes["at"], yes["body"]["expires_at"] = "2020-01-01T00:00:00.000000+00:00", "2020-01-01T08:00:00+00:00"


def expired_before_the_switch(events: Story, _: Facts) -> None:
    for yes in _of(events, "approved"):
        yes["body"]["expires_at"] = _of(events, "switched")[0]["at"]


def approved_later(events: Story, _: Facts) -> None:
    for yes in _of(events, "approved"):
        yes["at"] = events[-1]["at"]


def approved_after_it_moved(events: Story, _: Facts) -> None:
    approved = _of(events, "approved")
    events[:] = [event for event in events if event not in approved] + approved


def another_file(events: Story, _: Facts) -> None:
    _of(events, "approved")[0]["body"]["spec"] = "f" * 64


def another_epoch(events: Story, _: Facts) -> None:
    _of(events, "approved")[0]["body"]["epoch"] = 77


def one_person_twice(events: Story, _: Facts) -> None:
    for yes, person in zip(_of(events, "approved"), ("ben", "Ｂｅｎ "), strict=True):
        yes["body"]["person"] = person


def asked_for_by_an_approver(events: Story, facts: Facts) -> None:
    _of(events, "flip asked for")[0]["actor"] = facts["actor"] = "Ｂｅｎ "


def asker_in_wide_letters(_: Story, facts: Facts) -> None:
    facts["actor"] = "Ｂｅｎ "


def asker_in_the_trail(events: Story, _: Facts) -> None:
    _of(events, "flip asked for")[0]["actor"] = "ben"


def another_attempt(_: Story, facts: Facts) -> None:
    facts["id"] = 99


def another_cohort(_: Story, facts: Facts) -> None:
    facts["cohort"] = "AU"


def asked_for_twice(events: Story, _: Facts) -> None:
    events.append({**_of(events, "flip asked for")[0]})


def without_approvals(events: Story, facts: Facts) -> None:
    facts["approvals"] = 0
    events[:] = [event for event in events if event["event"] != "approved"]


def nobody_had_to_approve(events: Story, facts: Facts) -> None:
    without_approvals(events, facts)
    _of(events, "flip asked for")[0]["body"]["approvals"] = 0


def by_the_machine(events: Story, facts: Facts) -> None:
    nobody_had_to_approve(events, facts)
    _of(events, "flip asked for")[0]["actor"] = facts["actor"] = "fishladder"


def not_fenced(events: Story, _: Facts) -> None:
    events[:] = [event for event in events if event["event"] not in ("approved", "fencing")]


def not_moved(events: Story, _: Facts) -> None:
    events[:] = [event for event in events if event["event"] not in ("approved", "fencing", "switched")]


def aborted(_: Story, facts: Facts) -> None:
    facts["outcome"] = "aborted"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (expired, "0 of 2 people had approved"),
        (expired_before_the_switch, "0 of 2 people had approved"),
        (approved_later, "0 of 2 people had approved"),
        (approved_after_it_moved, "0 of 2 people had approved"),
        (another_file, "1 of 2 people had approved"),
        (another_epoch, "1 of 2 people had approved"),
        (one_person_twice, "1 of 2 people had approved"),
        (asked_for_by_an_approver, "what its own person asked for"),
        (asker_in_wide_letters, "its actor is not what was asked for"),
        (asker_in_the_trail, "its actor is not what was asked for"),
        (another_attempt, "was not asked for once"),
        (another_cohort, "its cohort is not what was asked for"),
        (asked_for_twice, "was not asked for once"),
        (without_approvals, "its approvals is not what was asked for"),
        (nobody_had_to_approve, "nobody had to approve it"),
        (by_the_machine, "nobody had to approve it"),
        (not_fenced, "0 of 2 people had approved"),
        (not_moved, "it says done, and that is not what happened"),
        (aborted, "it says aborted, and that is not what happened"),
    ],
)
def test_a_false_story(copied: tuple[Path, str], change: Callable[[Story, Facts], None], words: str) -> None:
    folder, _ = copied
    assert _forge(folder, lambda events, facts: None) == []
    assert words in "\n".join(_forge(folder, change)), check(folder)


@pytest.mark.parametrize(("name", "value"), [("kind", "monitor"), ("subject", "attempt 2"), ("passed", False)])
def test_an_approval_for_other_evidence(copied: tuple[Path, str], name: str, value: object) -> None:
    folder, _ = copied
    evidence = [json.loads(line) for line in (folder / "evidence.jsonl").read_text().splitlines()]
    (gates,) = (one for one in evidence if one["kind"] == "gates")
    gates[name] = value
    del gates["digest"]
    gates["digest"] = hashlib.sha256(canonical(gates).encode()).hexdigest()
    _rewrite(folder, "evidence.jsonl", "".join(canonical(one) + "\n" for one in evidence))

    def change(events: Story, _: Facts) -> None:
        for yes in _of(events, "approved"):
            yes["body"]["evidence"] = gates["digest"]

    assert "approves what did not pass" in "\n".join(_forge(folder, change))


# What nobody but the chain, the head and the approvals can tell -----------------------------------------------------


def test_any_byte_that_is_changed_with_the_manifest_is_found(copied: tuple[Path, str]) -> None:
    """Without the digest of the export: the manifest is made again each time, and says nothing.

    What the verifier cannot know then: the page and its own text, which nothing else repeats; what attempt.json says
    beside ASKED, such as its moments; and blanks and escapes that make the same value in JSON.
    """
    folder, _ = copied
    rng = random.Random(11)
    for name in ("events.jsonl", "evidence.jsonl", "attempt.json"):
        whole = (folder / name).read_bytes()
        for at in rng.sample(range(len(whole)), 250):
            changed = whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
            _rewrite_bytes(folder, name, changed)
            if not check(folder):
                assert _meaning(name, changed) == _meaning(name, whole), f"{name}, byte {at}"
        _rewrite_bytes(folder, name, whole)
    assert check(folder) == []


ASKED = ("id", "cohort", "kind", "actor", "reason", "approvals", "outcome", "head")


def _meaning(name: str, text: bytes) -> Any:
    """What the verifier has to tell from another one."""
    if name == "attempt.json":
        attempt = json.loads(text)
        return {field: attempt[field] for field in ASKED}
    return [json.loads(line) for line in text.decode().splitlines()]


def _rewrite_bytes(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    listed = json.loads((folder / "manifest.json").read_text())
    listed[name] = hashlib.sha256(text).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(listed, indent=2))


def test_an_auditor_reads_what_the_gates_were(case: Case, tmp_path: Path) -> None:
    flip(case)
    other = case.desk.spec.model_copy(update={"gates": case.desk.spec.gates.model_copy(update={"approvals": 1})})
    case.small.ledger.record_spec(other.to_json(), "d", "c", "eve")  # later; not what was approved
    export(case.small.ledger, case.attempt.id, tmp_path / "out", actor="auditor")
    file = json.loads((tmp_path / "out" / "attempt.json").read_text())["file"]
    assert file == case.desk.spec.to_json() and json.loads(file)["gates"]["approvals"] == 2
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    approved = {json.loads(event["body"])["spec"] for event in events if event["event"] == "approved"}
    assert approved == {hashlib.sha256(file.encode()).hexdigest()}
    assert "<tr><td>approval_expires</td><td>1h</td></tr>" in (tmp_path / "out" / "page.html").read_text()


def test_a_file_that_was_changed_in_the_ledger_is_not_passed_on(case: Case, tmp_path: Path) -> None:
    flip(case)
    case.sql("UPDATE ledger_spec SET spec = replace(spec, '\"approvals\"\\:2', '\"approvals\"\\:1')")
    export(case.small.ledger, case.attempt.id, tmp_path / "out", actor="auditor")
    assert json.loads((tmp_path / "out" / "attempt.json").read_text())["file"] is None
