"""What people get wrong. Each message says what, where and what to do; nothing is lost, and the next run goes on.

Shown by (a test's file alone where several of its tests do; ``contract/`` and ``dags/`` are beside this folder):

unknown or misspelt words, duplicate tables
    test_spec.py: test_a_problem_says_where_and_what; of a form: dags/test_operators.py: test_the_form_…
unknown tables and columns, a table without a key, types that do not fit
    test_plan.py: test_what_does_not_fit_is_named; contract/test_bad_input.py: test_what_does_not_fit_leaves_all_…
types that fit one way only
    test_preflight.py: test_what_does_not_fit_on_the_way_back_is_a_warning
    contract/test_bad_input.py: test_a_column_that_is_too_small_is_widened
strict mode off
    contract/test_bad_input.py: test_a_server_that_is_not_strict_changes_nothing
``local_infile`` off
    contract/test_bad_input.py: test_local_infile_that_is_switched_off_while_a_lane_loads
missing privileges
    contract/test_preflight.py; contract/test_bad_input.py: test_a_right_…
a wrong zone
    contract/test_bad_input.py: test_a_time_with_a_zone_and_one_without, test_a_source_whose_own_zone_is_another
a wrong character set
    contract/test_bad_input.py: test_a_character_that_the_target_s_column_has_not
target not empty
    contract/test_bad_input.py: test_a_target_that_holds_rows_keeps_them
source and target the same database
    here, for files; contract/test_bad_input.py: test_source_and_target_are_one_database_by_two_names
copier and application the same account
    contract/test_bad_input.py, dags/test_operators.py: test_copier_and_application_by_the_same_account
a megabyte of garbage
    here: test_hard_files_…; test_spec.py: test_a_broken_file_is_nothing_but_a_spec_error
a connection that does not exist
    here; Airflow's: dags/test_operators.py: test_a_connection_that_is_missing_or_of_another_kind_is_named
a password of every special character
    contract/test_bad_input.py: test_…_password_of_every_special_character; dags/test_operators.py: test_a_password_…;
    in URLs that cannot be read: here
a cohort that is NULL or unknown, a changed YAML in mid-load, wrong arguments, files, ledgers and orders
    here
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from fishladder import tasks
from fishladder.cli import main
from fishladder.errors import InputError
from fishladder.ledger import open_engine, open_ledger
from fishladder.operate import Order
from fishladder.spec import load
from fishladder.stores import connect_environment, connect_url, open_store
from fishladder.tasks import Desk
from tests import independent
from tests.unit.small import SCHEMA, SPEC

TABLES = ["price", "customer", "item", "line"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A migration file whose stores and ledger are set in the environment."""
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection:
        connection.executescript(SCHEMA)
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    for name in ("source", "target"):
        monkeypatch.setenv(f"FISHLADDER_{name.upper()}", f"sqlite:///{tmp_path}/{name}.db")
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    assert main(["ledger", "upgrade"]) == 0
    return path


def desk(file: Path) -> Desk:
    """What a new process has."""
    spec = load(file)
    ledger = open_ledger(os.environ["FISHLADDER_LEDGER"], migration=spec.migration)
    return Desk(spec=spec, ledger=ledger, open=lambda name: open_store(*connect_environment(name, os.environ)))


def change(file: Path, *statements: str, store: str = "source") -> None:
    with closing(sqlite3.connect(file.parent / f"{store}.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def rows(file: Path, query: str, store: str = "source") -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file.parent / f"{store}.db")) as connection:
        return connection.execute(query).fetchall()


def load_rest(file: Path) -> None:
    at = desk(file)
    for table in tasks.cut(at):
        tasks.load_table(at, table, "1")
        tasks.close_table(at, table)
    tasks.replicate(at, seconds=20, until_idle=True)


def differences(file: Path, *more: str) -> list[str]:
    source, target = (f"sqlite:///{file.parent}/{name}.db" for name in ("source", "target"))
    return independent.compare(source, target, [*TABLES, *more])


# Files ----------------------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000


def hard_files() -> dict[str, tuple[bytes, str]]:
    """Contents by what they are called, each with words of what is said about it."""
    seed = random.Random(5)
    laughs = "a: &a [x, x]\n"
    for one, two in pairwise("abcdefghi"):
        laughs += f"{two}: &{two} [{f'*{one}, ' * 9}]\n"
    return {
        "random bytes": (seed.randbytes(MEGABYTE), "not UTF-8 text; save the file as UTF-8"),
        "random letters": ("".join(seed.choices("abc: \n-", k=MEGABYTE)).encode(), ""),
        "a billion laughs": (laughs.encode(), "anchors (&) and aliases (*) are not read; write it out"),
        "aliases alone": ((SPEC + "reports: " + "[*a, " * 200_000).encode(), "nested deeper than 20 levels"),
        "brackets": (b"[" * MEGABYTE, "must be a mapping that starts with"),
        "braces in braces": (b"a: " + b"{a: " * 200_000, "nested deeper than 20 levels"),
        "lists in lists": (b"a:\n" + b"- " * 400_000, "nested deeper than 20 levels"),
        "deeper and deeper": (
            "".join(f"{' ' * depth}a:\n" for depth in range(1_400)).encode(),
            "nested deeper than 20",
        ),
        "keys of keys": (b"? " * 500_000, "a key must be a plain word"),
        "a text without end": (b'a: "' + b"x\n" * 400_000, "not YAML: found unexpected end of stream"),
        "NUL bytes": (SPEC.encode() + b"\0" * 1000, "YAML does not allow (U+0000); delete it"),
        "UTF-16 with a mark": (SPEC.encode("utf-16"), ":1: not UTF-8 text; save the file as UTF-8"),
        "UTF-16 without": (SPEC.encode("utf-16-le"), "or save it as UTF-8"),
        "Latin 1": (
            SPEC.replace("label: country", "label: pays").encode() + "# été".encode("latin-1"),
            ":13: not UTF-8 ",
        ),
        "tabs": (
            SPEC.replace("  ", "\t").encode(),
            ":9: not YAML: found character '\\t' that cannot start any token; ind",
        ),
        "a number of 5,000 digits": ((SPEC + f"lanes: {'9' * 5000}\n").encode(), ":13: lanes: must be a whole number"),
        "a size of 5,000 digits": (
            SPEC.replace("{via: item}", "{via: item, types: {no: 'integer(" + "9" * 5000 + ")'}}").encode(),
            "types.no: 'integer(9999",
        ),
        "an id beyond any": (
            (SPEC + f"ids: {{target_from: {2**63}}}\n").encode(),
            ":13: ids.target_from: must be less tha",
        ),
        "an endless time": ((SPEC + f"gates: {{max_age: {'9' * 9}d}}\n").encode(), "gates.max_age: must be a duration"),
        "unknown words": (
            (SPEC + "".join(f"word{no}: x\n" for no in range(25_000))).encode(),
            "and more; repair these",
        ),
        "one table, often": (
            (SPEC + "  price: shared\n" * 25_000).encode(),
            "written twice, first in line 9; keep one",
        ),
        "many wrong tables": (
            (SPEC + "".join(f"  t{no}: sharde\n" for no in range(20_000))).encode(),
            "and more; repair",
        ),
        "many lost parents": (
            (SPEC + "".join(f"  t{no}: {{via: q{no}}}\n" for no in range(12_000))).encode(),
            "and more; repair these first",
        ),
        "variables in variables": (b"a: '" + b"${A:-" * 150_000 + b"'", "is neither ${NAME} nor ${NAME:-default}"),
    }


_READ_ALL = """
import json, sys
from pathlib import Path
from fishladder.errors import SpecError
from fishladder.spec import load

told = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load(path, {})
    except SpecError as error:
        told[path.name] = str(error)
print(json.dumps(told))
"""


def test_hard_files_are_spec_errors_in_little_memory(tmp_path: Path) -> None:
    """All of them by one process that may have 600 MB and two minutes of a processor."""
    files = hard_files()
    for number, (content, _) in enumerate(files.values()):
        (tmp_path / f"{number:02}").write_bytes(content)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

    done = subprocess.run(
        [sys.executable, "-c", _READ_ALL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert len(told) == len(files)
    wrong = {}
    for number, (name, (_, words)) in enumerate(files.items()):
        message = told[f"{number:02}"]
        placed = all(line.startswith(f"{tmp_path}/{number:02}:") for line in message.split("\n"))
        if words not in message or not placed or len(message) > 20_000:
            wrong[name] = message[-500:]
    assert wrong == {}


@pytest.mark.parametrize("store", ["source", "target"])
def test_a_connection_that_does_not_exist(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    url = os.environ[f"FISHLADDER_{store.upper()}"]
    monkeypatch.delenv(f"FISHLADDER_{store.upper()}")
    assert main(["preflight", str(file)]) == 2
    assert f"connection {store}: set FISHLADDER_{store.upper()} to its URL" in capsys.readouterr().err
    monkeypatch.setenv(f"FISHLADDER_{store.upper()}", "sqlite:////nowhere/at/all.db")
    assert main(["preflight", str(file)]) == 1
    assert f"connection {store}: SQLite: unable to open database file: mend the connection" in capsys.readouterr().err
    monkeypatch.setenv(f"FISHLADDER_{store.upper()}", f"sqlite:///{file}")
    assert main(["preflight", str(file)]) == 1
    assert f"connection {store}: SQLite: file is not a database: mend the connection" in capsys.readouterr().err
    monkeypatch.setenv(f"FISHLADDER_{store.upper()}", "mysql://me:secret@127.0.0.1:1/shop")
    assert main(["preflight", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"connection {store} is a mysql URL, but the migration file says sqlite" in said and "secret" not in said
    monkeypatch.setenv(f"FISHLADDER_{store.upper()}", url)
    assert main(["preflight", str(file)]) == 0


SECRETS = [
    "pa/ss",
    "pa#ss",
    "pa?ss",
    "pa[ss",
    "pa]ss",
    "p:a/ss",
    "12#ss",
    "12/ss",
    "12?ss",
    "a@b/ss",
    "pa%00ss",
]
"""Passwords as nobody should write them into a URL."""


@pytest.mark.parametrize("kind", ["mysql", "oracle"])
@pytest.mark.parametrize("password", SECRETS)
def test_a_url_with_a_bare_password_is_refused_and_never_told(kind: str, password: str) -> None:
    with pytest.raises(InputError, match="percent-encode") as refused:
        connect_url(f"{kind}://me:{password}@host/shop")
    assert not {"pa", "ss", "12", "host"} & set(re.findall(r"\w+", str(refused.value)))
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize("password", [*SECRETS, "zzz"])
def test_a_ledger_s_url_is_never_told(password: str) -> None:
    for url in (f"postgresql://me:{password}@127.0.0.1:1x/ledger", f"mysql+pymysql://me:{password}@host/ledger"):
        with pytest.raises(InputError) as refused:
            open_engine(url)
        assert password not in str(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_path_of_odd_characters_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#?é'\"&+;=@:.db"
    store = open_store(*connect_url(f"sqlite:///{quote(str(path))}"))
    assert store.describe() == {}
    store.close()
    assert path in set(tmp_path.iterdir())
    for bare in (f"sqlite:///{tmp_path}/a#b.db", f"sqlite:///{tmp_path}/a?b.db"):
        with pytest.raises(InputError, match="write %3F for its \\? and %23 for its #"):
            connect_url(bare)
    with pytest.raises(InputError, match="a path alone, without a \\?"):
        open_engine(f"sqlite:///{tmp_path}/a?b.db")
    assert not (tmp_path / "a").exists()


def test_source_and_target_are_one_file_by_two_names(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "other.db").symlink_to(file.parent / "source.db")
    target = os.environ["FISHLADDER_TARGET"]
    monkeypatch.setenv("FISHLADDER_TARGET", f"sqlite:///{file.parent}/other.db")
    assert main(["preflight", str(file)]) == 1
    assert "is the source's own database: give target another" in capsys.readouterr().out
    with pytest.raises(InputError, match="own database"):
        tasks.prepare(desk(file), actor="ada")
    assert rows(file, "SELECT name FROM sqlite_master WHERE name LIKE 'fishladder%'") == []
    monkeypatch.setenv("FISHLADDER_TARGET", target)
    tasks.prepare(desk(file), actor="ada")


@pytest.mark.parametrize(
    ("before", "after", "in_a_task", "in_prepare"),
    [
        (
            "item: {entity: customer_id}",
            "item: {entity: customer_id, drop: [amount]}",
            "small: its file changed since prepare ran; run small_prepare",
            "item +its part of the migration file changed since it was prepared: undo that",
        ),
        ("  price: shared\n", "", "its file changed", r"small.yaml:8: tables.price: is gone.* put it back"),
        ("column: country", "column: email", "its file changed", "cohort: differs from what the rows were copied by"),
        ("migration: small", "migration: smal", "smal: run smal_prepare first", "price.*already holds rows"),
        ("line: {via", "line: via", r"small.yaml:12: not YAML", r"small.yaml:12: not YAML"),
    ],
)
def test_a_file_that_changes_in_mid_load(file: Path, before: str, after: str, in_a_task: str, in_prepare: str) -> None:
    at = desk(file)
    tasks.prepare(at, actor="ada")
    tasks.cut(at)
    tasks.load_table(at, "price", "1")
    tasks.load_table(at, "customer", "1")
    held = rows(file, "SELECT * FROM customer", "target")
    assert len(held) == 3
    assert before in SPEC
    file.write_text(SPEC.replace(before, after))
    with pytest.raises(InputError, match=in_a_task):
        tasks.load_table(desk(file), "item", "1")
    with pytest.raises(InputError, match=in_a_task):
        tasks.replicate(desk(file), seconds=1)
    with pytest.raises(InputError, match=in_prepare):
        tasks.prepare(desk(file), actor="ada")
    assert rows(file, "SELECT * FROM customer", "target") == held
    assert rows(file, "SELECT count(*) FROM item", "target") == [(0,)]
    file.write_text(SPEC)
    load_rest(file)
    assert differences(file) == []


NOTES = "note: {entity: customer_id}\n"


@pytest.mark.parametrize(
    ("after", "refused"),
    [
        pytest.param("chunk_rows: 200\nlanes: 2\n", None, id="of no rows"),
        pytest.param(f"  {NOTES}chunk_rows: 100\n", None, id="another table"),
        pytest.param("chunk_rows: 100\n", "item +its part of the migration file changed", id="a table's columns"),
    ],
)
def test_a_file_that_changes_and_is_prepared_while_a_lane_runs(file: Path, after: str, refused: str | None) -> None:
    """The lane ends its table as it began it; the next run takes the file that was prepared, and goes on."""
    file.write_text(old := f"{SPEC}chunk_rows: 100\n")
    new = SPEC + after if refused is None else old.replace("customer_id}", "customer_id, drop: [amount]}")
    change(
        file,
        "WITH RECURSIVE more (id) AS (SELECT 4 UNION ALL SELECT id + 1 FROM more WHERE id < 250)"
        " INSERT INTO customer SELECT id, 'AU', 'no. ' || id FROM more",
        "CREATE TABLE note (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, text VARCHAR(9))",
        "INSERT INTO note VALUES (1, 1, 'a'), (2, 2, 'b')",
    )
    at, said = desk(file), list[str]()
    tasks.prepare(at, actor="ada")
    tasks.cut(at)

    def say(line: str) -> None:
        said.append(line)
        if len(said) > 1:
            return
        file.write_text(new)  # after its first chunk
        assert main(["preflight", str(file)]) == (0 if refused is None else 1)
        if refused is None:
            tasks.prepare(desk(file), actor="ada")
        else:
            with pytest.raises(InputError, match=refused):
                tasks.prepare(desk(file), actor="ada")
        for customer in (20, 120, 220):
            change(file, f"UPDATE customer SET email = 'new {customer}' WHERE id = {customer}")
            change(file, f"DELETE FROM customer WHERE id = {customer + 1}")
        change(file, "INSERT INTO customer VALUES (300, 'NZ', 'late')", "UPDATE note SET text = 'c' WHERE id = 1")

    assert tasks.load_table(replace(at, say=say), "customer", "1").chunks == 3 == len(said)
    if NOTES in after:
        with pytest.raises(InputError, match="small: its file changed since prepare ran; run small_prepare"):
            tasks.load_table(at, "item", "1")  # by the old file
    if refused is not None:
        with pytest.raises(InputError, match="small: its file changed since prepare ran; run small_prepare"):
            load_rest(file)
        file.write_text(old)
    load_rest(file)
    assert differences(file, *(["note"] if NOTES in after else [])) == []
    assert len(at.ledger.chunks("customer")) == 3  # loaded once


# Cohorts ----------------------------------------------------------------------------------------------------------


def test_cohorts_that_are_null_or_in_no_wave_or_in_a_wave_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SPEC.replace('[[NZ], ["*"]]', "[[NZL], [BE]]"))
    assert main(["preflight", str(file), "--json"]) == 0
    found = {f["message"] for f in json.loads(capsys.readouterr().out) if f["where"] == "customer.country"}
    assert found >= {
        "1 rows have no country: they are copied and followed, but never flip; give them one before prepare if they"
        " shall",
        f"no row has the country 'NZL' of wave 1 (did you mean 'NZ'?): mend it, or wait for one ({file}:7)",
        f"no row has the country 'BE' of wave 2: mend it, or wait for one ({file}:7)",
        f"AU, NZ: in no wave, so never flipped; add them, or a last wave ['*'] ({file}:7)",
    }
    change(file, "UPDATE customer SET country = 'NZ' WHERE id = 3")
    file.write_text(SPEC)
    assert main(["preflight", str(file), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert not [f for f in findings if f["where"] == "customer.country" and f["level"] == "warn"]


def test_a_cohort_that_is_null_or_turns_up_later_is_copied_and_followed(file: Path) -> None:
    assert tasks.prepare(desk(file), actor="ada").homeless == 1
    change(file, "INSERT INTO customer VALUES (4, 'XX', 'd')", "INSERT INTO item VALUES (40, 4, 1)")
    load_rest(file)
    change(file, "UPDATE customer SET country = 'AU' WHERE id = 3", "INSERT INTO customer VALUES (5, 'XX', NULL)")
    change(file, "UPDATE item SET amount = 9 WHERE customer_id IN (3, 4)", "INSERT INTO customer VALUES (6, NULL, 'f')")
    tasks.replicate(desk(file), seconds=20, until_idle=True)
    assert differences(file) == []
    assert set(rows(file, "SELECT cohort FROM fishladder_home WHERE entity IN ('1:3', '1:4', '1:5', '1:6')")) == {
        ("*",)
    }
    assert "XX" in tasks.prepare(desk(file), actor="ada").cohorts  # it has a fence from now on
    change(file, "INSERT INTO customer VALUES (7, 'XX', 'g')")
    tasks.replicate(desk(file), seconds=20, until_idle=True)
    assert differences(file) == []
    assert rows(file, "SELECT cohort FROM fishladder_home WHERE entity = '1:7'", "target") == [("XX",)]


# The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prefligt", "x.yaml"],
        ["preflight"],
        ["status", "--jsn", "x.yaml"],
        ["draft", "--source", "a"],
        ["audit"],
        ["audit", "verify", "x.yaml", "y.yaml"],
        ["ledger", "upgrad"],
    ],
)
def test_wrong_arguments_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("usage: python -m fishladder") and "error: " in said.err and not said.out


@pytest.mark.parametrize("command", [["preflight"], ["status"], ["rejects"], ["ledger", "adopt"]])
def test_a_file_that_cannot_be_read(command: list[str], file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for path, words in (
        (file.parent / "none.yaml", "cannot be read: No such file or directory"),
        (file.parent, "cannot be read: Is a directory"),
        (file.parent / "source.db", "not UTF-8 text; save the file as UTF-8"),
    ):
        assert main([*command, str(path)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"{path}:") and words in said.err and not said.out


COMMANDS: list[Callable[[Path], list[str]]] = [
    lambda file: ["preflight", str(file)],
    lambda file: ["status", str(file)],
    lambda file: ["rejects", str(file)],
    lambda file: ["audit", "verify"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=["preflight", "status", "rejects", "audit"])
def test_a_ledger_that_is_missing_or_of_another_version(
    command: Callable[[Path], list[str]],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(expected: int) -> str:
        capsys.readouterr()
        assert main(command(file)) == expected
        said = capsys.readouterr()
        assert not said.out
        return said.err

    url = os.environ["FISHLADDER_LEDGER"]
    monkeypatch.delenv("FISHLADDER_LEDGER")
    assert "set FISHLADDER_LEDGER to the ledger's URL, for example sqlite:////path/ledger.db" in told(2)
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{file.parent}/none/ledger.db")
    assert f"unable to open database file; see that sqlite+pysqlite:///{file.parent}/none/ledger.db is" in told(1)
    monkeypatch.setenv("FISHLADDER_LEDGER", f"sqlite:///{file.parent}/other.db")
    assert "there is no ledger in" in (said := told(1)) and "run `python -m fishladder ledger upgrade`" in said
    monkeypatch.setenv("FISHLADDER_LEDGER", url)
    with closing(sqlite3.connect(file.parent / "ledger.db")) as connection:
        ((table, version),) = connection.execute(
            "SELECT m.name, '' FROM sqlite_master m JOIN pragma_table_info(m.name) c ON c.name = 'version_num'"
        ).fetchall()
        ((version,),) = connection.execute(f"SELECT version_num FROM {table}").fetchall()
        for other, words in (("0001", "is older (0001) than this code"), ("9999", "is newer (9999) than this code")):
            connection.execute(f"UPDATE {table} SET version_num = ?", (other,))
            connection.commit()
            assert words in (said := told(1)) and "ledger upgrade" in said
        connection.execute(f"UPDATE {table} SET version_num = ?", (version,))
        connection.commit()
    assert main(command(file)) == 0


def test_every_command_has_an_output_for_machines(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()

    def answer(*arguments: str) -> object:
        assert main([*arguments, "--json"]) == 0
        found: object = json.loads(capsys.readouterr().out)
        return found

    drafted = answer("draft", "--source", "source", "--target", "target")
    assert isinstance(drafted, dict)
    assert "\n  price: shared\n" in drafted["file"]
    assert any(remark.startswith("The target lacks customer") for remark in drafted["remarks"])
    assert isinstance(answer("preflight", str(file)), list)
    assert isinstance(answer("status", str(file)), dict)
    assert answer("rejects", str(file)) == []
    assert answer("audit", "verify") == {"whole": True, "problems": []}


def test_an_audit_of_a_migration_that_nobody_knows_is_not_whole(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.prepare(desk(file), actor="ada")
    capsys.readouterr()
    assert main(["audit", "verify", "--migration", "smal"]) == 2
    said = capsys.readouterr()
    assert "the ledger knows no migration smal" in said.err and not said.out
    assert main(["audit", "verify", "--migration", "small"]) == 0


def test_a_draft_doubts_what_it_is_given(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draft", "--source", "target", "--target", "source"]) == 2
    assert "target holds no tables that its account sees: is it the right connection?" in capsys.readouterr().err
    both = ["draft", "--source", "source", "--target"]
    for arguments, words in (
        ([*both, "source"], "target.connection: is the same as source.connection"),
        (
            [*both, "target", "--name", "My Shop"],
            "--name gives it another name:\nMy Shop:1: migration: must start with",
        ),
        ([*both, "target", "--cohort", "contry"], "--cohort contry: no table with a key of one column has it (did you"),
        ([*both, "target", "--root", "custmer"], "--root custmer: the source has no such table (did you mean 'cust"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


# What operators ask for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["rows_per_second", "running_threads", "replica_lag"])
@pytest.mark.parametrize("limit", [-1, 10**30])
def test_a_limit_that_cannot_be_is_refused(word: str, limit: int) -> None:
    with pytest.raises(InputError, match=rf"{word} must be 0, which lifts the limit, to 1000000000; not {limit}"):
        Order(action="throttle", **{word: limit})  # type: ignore[arg-type]


WRONG = [
    (Order(action="restart tables", tables=("lines",)), "migrates no table lines .did you mean 'line'"),
    (Order(action="restart tables", tables=("line", "items")), "migrates no table items .did you mean 'item'"),
    (Order(action="retry rejects", tables=("lin",)), "migrates no table lin .did you mean 'line'.*nothing was done"),
    (Order(action="rewrite entities", entities=("1", "one")), "an entity.id: what is given is not an integer"),
    (Order(action="rewrite entities", entities=("\ud800",)), "an entity.id: what is given is not Unicode text"),
    (Order(action="mark keys dirty", keys=("line,10,1", "", "line,\ud800,1")), "line 3: line.item_id: .* not Unicode"),
    (Order(action="mark keys dirty", keys=("\0\x01,1",)), "line 1: small migrates no table"),
    (
        Order(action="mark keys dirty", keys=("line" + "," * 200_000,)),
        "line 1: line has the key item_id, no, and 2000",
    ),
    (Order(action="mark keys dirty", keys=("line,10,1" * 50_000,)), "line 1: "),
    (Order(action="mark keys dirty", keys=("item," + "9" * 5000,)), "item.id: what is given is a number of more than"),
]


@pytest.mark.parametrize(("order", "words"), WRONG)
def test_an_order_is_refused_before_anything_is_changed(file: Path, order: Order, words: str) -> None:
    at = desk(file)
    tasks.prepare(at, actor="ada")
    load_rest(file)
    events, held = len(at.ledger.events()), rows(file, "SELECT * FROM line", "target")
    with pytest.raises(InputError, match=words):
        tasks.operate(at, order, actor="ada")
    assert (len(at.ledger.events()), at.ledger.count_dirty()) == (events, 0)
    assert rows(file, "SELECT * FROM line", "target") == held
    tasks.operate(at, Order(action="mark keys dirty", keys=("line,10,1",)), actor="ada")
    assert at.ledger.count_dirty() == 1


def test_keys_that_neither_store_has_are_counted(file: Path) -> None:
    said: list[str] = []
    at = replace(desk(file), say=said.append)
    tasks.prepare(at, actor="ada")
    load_rest(file)
    change(file, "INSERT INTO price VALUES (9, '1.00')")
    keys = ("price,9", "price,8", "line,10,1", "line,10,7")
    assert tasks.operate(at, Order(action="mark keys dirty", keys=keys), actor="ada") == {"keys": 4}
    assert said[-1] == "2 of the 4 keys are in neither store: see that they are what you mean"


@pytest.mark.parametrize(
    "order",
    [
        Order(action="pause"),
        Order(action="throttle", rows_per_second=100_000),
        Order(action="restart tables", tables=("line",)),
        Order(action="retry rejects"),
        Order(action="rewrite entities", entities=("1",)),
        Order(action="mark keys dirty", keys=("line,10,1", "item,77")),
    ],
    ids=lambda order: order.action,
)
def test_an_order_that_is_given_twice_does_no_harm(file: Path, order: Order) -> None:
    at = desk(file)
    tasks.prepare(at, actor="ada")
    load_rest(file)
    first, second = (tasks.operate(at, order, actor="ada") for _ in range(2))
    assert first == second
    tasks.operate(at, Order(action="resume"), actor="ada")
    load_rest(file)
    assert differences(file) == [] and at.ledger.count_dirty() == 0
