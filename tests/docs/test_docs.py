"""The documents say what the code says: every word, error, command, operator and link, and every command runs."""

from __future__ import annotations

import argparse
import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fishladder import cli, errors
from fishladder.errors import SpecError
from fishladder.spec import Migration, changes, loads
from fishladder.spec_parts import duration_text

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted([README, *DOCS.glob("*.md"), *(ROOT / "include/fishladder/adr").glob("*.md")])
PLUGIN = ROOT / "plugins/fishladder_airflow"
MIGRATION_FILE = DOCS / "migration-file.md"

MADE = {".venv", ".demo", ".stores", "benchmarks/results.jsonl", "pools.json"}
"""What the documents mention and the targets make."""


def ids(path: object) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page that are in this language."""
    return [text for found, text in _fences(page) if found == language]


def practice() -> list[str]:
    """What operating.md says to type while practising a reject: the environment and the status, then four lines."""
    found = [text.strip() for text in blocks(DOCS / "operating.md", "sh")]
    return found[next(no for no, text in enumerate(found) if text.startswith(". ")) :][:4]


def _fences(page: Path) -> list[tuple[str, str]]:
    """Also inside lists."""
    return re.findall(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text("utf-8"), re.M | re.S)


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)


# Words of the migration file ----------------------------------------------------------------------------


def words(model: type[BaseModel] = Migration, before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every word with the way to it, such as ``tables.<table>.entity``."""
    for name, field in model.model_fields.items():
        below = list(models_in(field.annotation))
        if not below:
            yield before + name, field
        elif get_origin(field.annotation) is Mapping:
            yield from words(below[0], f"{before}{name}.<{'table' if name == 'tables' else 'name'}>.")
        else:
            yield from words(below[0], f"{before}{name}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def documented() -> dict[str, list[str]]:
    """The rows of the tables of words: default and what may change, by word."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", MIGRATION_FILE.read_text("utf-8"), re.M)
    return {word: [cell.strip() for cell in rest.split(" | ")] for word, rest in rows}


def default_text(field: FieldInfo) -> str:
    default = field.default
    if field.is_required():
        return "required"
    if isinstance(default, timedelta):
        return f"`{duration_text(default)}`"
    if default in (None, {}, ()):
        return "—"
    return f"`{str(default).lower()}`"


def test_every_word_is_documented_and_no_other() -> None:
    known = sorted(word for word, _ in words())
    assert sorted(documented()) == known
    assert sorted([*EDITED, "tables.<table>.role", *(f"tables.<table>.{word}" for word in TABLE_WORDS)]) == known


@pytest.mark.parametrize(("word", "field"), list(words()), ids=lambda value: value if isinstance(value, str) else "")
def test_the_default_is_the_one_that_is_documented(word: str, field: FieldInfo) -> None:
    assert documented()[word][1] == default_text(field)


EDITED = {
    "migration": "migration: shop2",
    "strategy": "strategy: reshape",
    "source.kind": "source: {kind: sqlite, connection: shop_old}",
    "source.connection": "source: {kind: mysql, connection: other}",
    "target.kind": "target: {kind: sqlite, connection: shop_new}",
    "target.connection": "target: {kind: mysql, connection: other}",
    "target.replicas": "target: {kind: mysql, connection: shop_new, replicas: [shop_copy]}",
    "application.source": "application: {source: other, target: shop_new_app}",
    "application.target": "application: {source: shop_old_app, target: other}",
    "application.operations": 'application: {source: shop_old_app, target: shop_new_app, operations: "a.b:c"}',
    "rehearsal.connection": "rehearsal: {connection: other, command: run}",
    "rehearsal.source": "rehearsal: {connection: other, source: another, command: run}",
    "rehearsal.command": "rehearsal: {connection: other, command: run}",
    "rehearsal.patience": "rehearsal: {connection: other, command: run, patience: 5m}",
    "cohort.label": 'cohort: {label: land, root: customer, column: country, waves: [[NZ], [AU, IE], ["*"]]}',
    "cohort.root": 'cohort: {root: user, column: country, waves: [[NZ], [AU, IE], ["*"]]}',
    "cohort.column": 'cohort: {root: customer, column: land, waves: [[NZ], [AU, IE], ["*"]]}',
    "cohort.waves": 'cohort: {root: customer, column: country, waves: [["*"]]}',
    "reports.<name>.source": "reports: {money: {source: select 1, target: select 1}}",
    "reports.<name>.target": "reports: {money: {source: select 1, target: select 1}}",
    "reports.<name>.at_cutover": "reports: {money: {source: select 1, target: select 1, at_cutover: true}}",
    "monitors.<name>.must_be": "monitors: {debts: {must_be: zero, source: select 1}}",
    "monitors.<name>.source": "monitors: {debts: {must_be: zero, source: select 1}}",
    "monitors.<name>.target": "monitors: {debts: {must_be: zero, target: select 1}}",
    "monitors.<name>.metric.connection": "monitors: {debts: {must_be: zero, metric: {connection: m, name: x}}}",
    "monitors.<name>.metric.path": "monitors: {debts: {must_be: zero, metric: {connection: m, name: x, path: /x}}}",
    "monitors.<name>.metric.name": "monitors: {debts: {must_be: zero, metric: {connection: m, name: x}}}",
    "monitors.<name>.metric.labels": "monitors: {a: {must_be: zero, metric: {connection: m, name: x, labels: {a: b}}}}",
    "monitors.<name>.metric.query": "monitors: {debts: {must_be: zero, metric: {connection: m, query: x}}}",
    "monitors.<name>.within": "monitors: {debts: {must_be: no_more_than_before, within: 2, source: select 1}}",
    "monitors.<name>.window": "monitors: {debt: {must_be: no_less_than_before, within: 2, window: 1d, target: x}}",
    "gates.clean_passes": "gates: {clean_passes: 1}",
    "gates.max_age": "gates: {max_age: 1h}",
    "gates.max_lag": "gates: {max_lag: 1s}",
    "gates.rehearsal_days": "gates: {rehearsal_days: 2}\nrehearsal: {connection: other, command: run}",
    "gates.monitor_age": "gates: {monitor_age: 1h}",
    "gates.approvals": "gates: {approvals: 2}",
    "gates.approval_expires": "gates: {approval_expires: 1h}",
    "gates.manual": "gates: {manual: [the service desk knows the date]}",
    "gates.people": "gates: {people: {ann: [ann.admin]}}",
    "gates.service_accounts": "gates: {service_accounts: [ci]}",
    "gates.deadline": "gates: {deadline: 10s}",
    "gates.observe": "gates: {observe: 1h}",
    "gates.automatic_rollback": "gates: {automatic_rollback: true}",
    "ids.target_from": "ids: {target_from: 1000}",
    "ids.interleaved": "ids: {interleaved: true}",
    "lanes": "lanes: 5",
    "chunk_rows": "chunk_rows: 500",
}
TABLE_WORDS = {
    "entity": "invoice: {entity: payer_id}",
    "via": "invoice: {via: customer}",
    "target": "invoice: {entity: customer_id, target: bill}",
    "rename": "invoice: {entity: customer_id, rename: {a: b}}",
    "types": 'invoice: {entity: customer_id, types: {a: "decimal(12,2)"}}',
    "zone": "invoice: {entity: customer_id, zone: {a: UTC}}",
    "drop": "invoice: {entity: customer_id, drop: [a]}",
    "rewrite": "invoice: {entity: customer_id, rewrite: entity}",
}


@pytest.mark.parametrize("word", sorted(EDITED))
def test_what_may_change_is_what_is_documented(word: str) -> None:
    """Of the words outside ``tables``. Whether prepare is needed, too, is not asked here."""
    tables = "tables:\n  plan: shared\n  customer: root\n  invoice: {entity: customer_id}\n"
    if word == "cohort.root":
        tables = tables.replace("customer: root", "user: root")
    new = loads(edited(*EDITED[word].splitlines(), tables), name="shop.yaml", environment={})
    found = changes(loads(blocks(MIGRATION_FILE, "yaml")[0], name="shop.yaml", environment={}), new)
    never = any(f": {word.partition('.')[0]}: " in sentence for sentence in found.refused)
    assert documented()[word][2] == "never" if never else documented()[word][2] in ("now", "prepare")


@pytest.mark.parametrize("word", sorted(TABLE_WORDS))
def test_a_changed_table_must_be_restarted(word: str) -> None:
    name, _, part = TABLE_WORDS[word].partition(": ")
    old = loads(blocks(MIGRATION_FILE, "yaml")[0], name="shop.yaml", environment={})
    new = loads(
        re.sub(rf"(?m)^  {name}: .*$", f"  {name}: {part}", blocks(MIGRATION_FILE, "yaml")[0]),
        name="shop.yaml",
        environment={},
    )
    assert name in changes(old, new).restart
    assert documented()[f"tables.<table>.{word}"][2] == "restart"


# Examples ----------------------------------------------------------------------------------------------


def edited(*parts: str) -> str:
    """The small file of the page with these top-level parts in place of its own."""
    found = dict(re.findall(r"^(\w+):(.*(?:\n .*)*)", blocks(MIGRATION_FILE, "yaml")[0], re.M))
    for part in parts:
        word, _, rest = part.strip().partition(":")
        found[word] = rest
    return "".join(f"{word}:{rest}\n" for word, rest in found.items())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=ids)
def test_the_migration_files_load(page: Path) -> None:
    whole = [text for text in blocks(page, "yaml") if text.startswith("migration:")]
    assert whole
    for text in whole:
        loads(text, name=page.name, environment={})


def test_the_parts_of_a_migration_file_load() -> None:
    (monitors,) = (part for part in blocks(MIGRATION_FILE, "yaml") if part.startswith("monitors:"))
    assert len(loads(edited(monitors), name="shop.yaml", environment={}).monitors) == 4


def test_the_messages_about_wrong_files_are_the_real_ones() -> None:
    fences = _fences(MIGRATION_FILE)
    pairs = [(first[1], second[1]) for first, second in pairwise(fences) if (first[0], second[0]) == ("yaml", "text")]
    assert len(pairs) >= 9
    for part, said in pairs:
        with pytest.raises(SpecError) as error:
            loads(edited(part), name="shop.yaml", environment={})
        for line in said.splitlines():
            assert re.search(rf"^shop\.yaml:\d+: {re.escape(line)}$", str(error.value), re.M), str(error.value)


# Errors, commands, operators -----------------------------------------------------------------------------


def test_every_error_class_is_documented_and_no_other() -> None:
    defined = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)}
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", (DOCS / "errors.md").read_text("utf-8"), re.M)) == defined


def commands(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, found in action.choices.items():
            yield from commands(found, (*before, name))
    if not below:
        yield before


COMMANDS = list(commands(cli._parser()))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_documented_and_helps(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"## `{' '.join(command)}`" in (DOCS / "cli.md").read_text("utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: python -m fishladder" in capsys.readouterr().out


def test_no_command_is_documented_that_is_not_there() -> None:
    found = re.findall(r"^## `(.+)`$", (DOCS / "cli.md").read_text("utf-8"), re.M)
    assert sorted(tuple(name.split()) for name in found) == sorted(COMMANDS)


def classes(path: Path) -> list[str]:
    """The operators and sensors of a module: public classes with ``execute`` or ``poke``."""
    tree = ast.parse(path.read_text("utf-8"))
    return [
        found.name
        for found in tree.body
        if isinstance(found, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name in ("execute", "poke") for part in found.body)
    ]


def dag_suffixes() -> list[str]:
    """What DAG ids end in: the first argument of each ``_dag("…", …)`` in the factory."""
    calls = (
        node for node in ast.walk(ast.parse((PLUGIN / "dags.py").read_text("utf-8"))) if isinstance(node, ast.Call)
    )
    return [
        str(call.args[0].value)
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "_dag" and isinstance(call.args[0], ast.Constant)
    ]


def test_every_operator_sensor_and_dag_is_documented() -> None:
    text = (DOCS / "dags.md").read_text("utf-8")
    operators, sensors, suffixes = classes(PLUGIN / "operators.py"), classes(PLUGIN / "sensors.py"), dag_suffixes()
    assert operators and sensors and len(suffixes) >= 4
    missing = [name for name in operators + sensors if f"`{name}`" not in text]
    missing += [name for name in suffixes if not re.search(rf"`[\w<>]+_{name}`", text)]
    assert missing == []


def texts() -> str:
    """Every text in the core's code, as it is written there, with f-strings in pieces."""
    trees = (ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "include/fishladder").rglob("*.py")))
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\0".join(re.sub("[;:]", "", value) for value in constants if isinstance(value, str))


def test_the_findings_of_preflight_are_the_real_ones() -> None:
    rows = re.findall(r"^\| (.+) \| (?:pass|warn|fail) \|", (DOCS / "preflight.md").read_text("utf-8"), re.M)
    assert len(rows) > 30
    said = texts()
    for row in rows:
        spoken = row.replace(";", "").replace(":", "").split()
        runs = (" ".join(spoken[at : at + 3]) for at in range(len(spoken) - 2))
        assert any(run in said for run in runs), row


# What the pages mention -----------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(goal), f"{page.name}: {link}"


def test_pictures_are_shown_and_small() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in re.findall(r"!\[.+?\]\((.+?)\)", prose(page))}
    assert shown == set((DOCS / "images").iterdir())
    for picture in shown:
        content = picture.read_bytes()
        # A PNG begins with its signature, the length and name of its first part, and its width.
        assert (content[1:4], int.from_bytes(content[16:20], "big")) == (b"PNG", 1280), picture.name
        assert len(content) < 200_000, picture.name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_are_mentioned_exist(page: Path) -> None:
    for name in re.findall(r"`([\w.\-]+(?:/[\w.\-*]*)*)`", prose(page)):
        first = name.split("/")[0]
        known = ("/" in name and (ROOT / first).is_dir()) or re.search(r"\.(md|ya?ml|py|txt|toml|jsonl?)$", name)
        if known and not {name.rstrip("/"), first} & MADE:
            assert (ROOT / name).exists() or any(ROOT.glob(f"**/migrations/{name}")), f"{page.name}: {name}"


def shell_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in map(str.strip, block.splitlines()):
                if line.strip():
                    yield page.name, line
        for line in re.findall(r"`((?:\w+=\S+ )*(?:make|python -m) [^`]+)`", prose(page)):
            yield page.name, line


@functools.cache
def ran(*command: str) -> subprocess.CompletedProcess[str]:
    """Once, though many pages name it."""
    folders = os.pathsep.join(str(ROOT / name) for name in ("include", "plugins", "."))
    environment = {**os.environ, "PYTHONPATH": folders}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("page", "line"), sorted(set(shell_lines())))
def test_commands_run(page: str, line: str) -> None:
    """Targets by ``make -n``, modules and their subcommands by ``--help``; of other programs only the name."""
    arguments = [word for word in shlex.split(line.partition(">")[0], comments=True) if word != "FILE"]
    while re.fullmatch(r"\w+=.*", arguments[0]):
        arguments.pop(0)
    if arguments[0] == "make":
        done = ran("make", "-n", *arguments[1:])
    elif arguments[:2] == ["python", "-m"]:
        files = [word for word in arguments[3:] if word.endswith(".yaml")]
        assert all((ROOT / file).exists() or "shop" in file for file in files)
        if arguments[2] == "fishladder":
            with pytest.raises(SystemExit) as ended:
                cli.main([*arguments[3:], "--help"])
            assert not ended.value.code, f"{page}: {line}"
            return
        done = ran(sys.executable, "-m", *arguments[2:], "--help")
    else:
        known = ("airflow", "apt-get", "cp", "export", "kill", "pgrep")
        # The former are run as they are written by test_practice.py, the latter by test_ledger_restored.py.
        assert arguments[0] in (*known, "pg_dump", "pg_restore") or line in "".join(practice())
        assert arguments[0] != "cp" or (ROOT / arguments[1]).is_file()
        return
    assert done.returncode == 0, f"{page}: {line}: {done.stdout}{done.stderr}"


def test_make_alone_lists_the_targets_that_the_readme_names() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    for target in set(re.findall(r"`?make ([a-z\-]+)", README.read_text("utf-8"))) - {"alone"}:
        assert re.search(rf"make {target}\s", listed), target


def test_decisions_end_with_what_violates_them() -> None:
    records = sorted((ROOT / "include/fishladder/adr").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        last = record.read_text("utf-8").strip().split("\n\n")[-1]
        assert last.startswith("A change violates this when it "), record.name


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200
