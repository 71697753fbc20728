from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from fishladder.errors import SpecError
from fishladder.spec import Migration, TableSpec, changes, digest, json_schema, load, loads, nearest

BILLING = """\
migration: billing
strategy: replicate
source: {kind: oracle, connection: billing_oracle}
target: {kind: mysql, connection: billing_mysql}
application: {source: billing_oracle_app, target: billing_mysql_app}
rehearsal: {connection: billing_test_mysql, command: "python -m billing.rehearse"}
cohort: {label: country, root: customer, column: country_code, waves: [[NZ], [AU, IE], ["*"]]}
tables:
  plan: shared
  customer: root
  subscription: {entity: customer_id}
  invoice: {entity: customer_id, rename: {inv_dt: invoiced_at}, types: {total: "decimal(12,2)"}}
  invoice_line: {via: invoice}            # entity through its parent's foreign key
reports:
  revenue_by_month: {source: "select … where h.cohort = :cohort and …", target: "…"}
monitors:
  negative_balance: {must_be: zero, target: "select count(*) from …"}
  invoices_last_hour: {must_be: positive, target: "…"}
gates: {clean_passes: 3, max_age: 26h, max_lag: 5s, rehearsal_days: 14, approvals: 2}
"""

SMALL = """\
migration: small
strategy: replicate
source: {kind: sqlite, connection: small_source}
target: {kind: sqlite, connection: small_target}
application: {source: small_source_app, target: small_target_app}
cohort: {root: customer, column: country, waves: [["*"]]}
tables:
  customer: root
  invoice: {entity: customer_id}
  line: {via: invoice}
"""

SCHEMA = Path(__file__).parents[2] / "include/migrations/schema.json"


def read(text: str, environment: Mapping[str, str] | None = None) -> Migration:
    return loads(text, name="billing.yaml", environment=environment or {})


def billing(before: str = "", after: str = "") -> Migration:
    assert before in BILLING
    return read(BILLING.replace(before, after, 1))


def problems(text: str, environment: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(SpecError) as refused:
        read(text, environment)
    return str(refused.value).split("\n")


def problem(before: str, after: str) -> str:
    """The only problem of the billing file with ``before`` replaced."""
    assert before in BILLING
    found = problems(BILLING.replace(before, after, 1))
    assert len(found) == 1, found
    return found[0]


def test_the_design_s_file_loads() -> None:
    migration = read(BILLING)
    assert (migration.source.kind, migration.target.connection) == ("oracle", "billing_mysql")
    assert migration.target.pool == "fishladder_billing_mysql"
    assert migration.cohort.waves == (("NZ",), ("AU", "IE"), ("*",))
    assert list(migration.tables) == ["plan", "customer", "subscription", "invoice", "invoice_line"]
    assert [table.role for table in migration.tables.values()] == ["shared", "root", "entity", "entity", "via"]
    assert migration.tables["invoice"].rename == {"inv_dt": "invoiced_at"}
    assert migration.tables["invoice_line"].via == "invoice"
    assert migration.monitors["negative_balance"].source is None
    assert not migration.reports["revenue_by_month"].at_cutover
    assert migration.gates.max_age == timedelta(hours=26)
    assert migration.gates.max_lag == timedelta(seconds=5)
    assert (migration.lanes, migration.chunk_rows, migration.ids) == (2, None, None)


def test_what_a_file_leaves_out() -> None:
    migration = read(SMALL)
    assert migration.cohort.label == "country"
    assert migration.gates.clean_passes == 3
    assert migration.gates.max_age == timedelta(hours=26)
    assert migration.gates.approvals == 1
    assert migration.tables["customer"] == TableSpec(role="root")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("root", TableSpec(role="root")),
        ("{role: root, rename: {nm: name}}", TableSpec(role="root", rename={"nm": "name"})),
        ("{role: root, target: client, drop: [photo]}", TableSpec(role="root", target="client", drop=("photo",))),
    ],
)
def test_the_forms_of_a_table(text: str, expected: TableSpec) -> None:
    assert read(SMALL.replace("customer: root\n", f"customer: {text}\n")).tables["customer"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200ms", timedelta(milliseconds=200)),
        ("5s", timedelta(seconds=5)),
        ("90m", timedelta(minutes=90)),
        ("26h", timedelta(hours=26)),
        ("14d", timedelta(days=14)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    migration = billing("26h", text)
    assert migration.gates.max_age == expected
    assert json.loads(migration.to_json())["gates"]["max_age"] == text


def test_a_scalar_is_text() -> None:
    """Norway is not false, and no number loses its zeros."""
    assert billing("[AU, IE]", "[NO, 01, 1_0, null, 2026-01-31]").cohort.waves[1] == (
        "NO",
        "01",
        "1_0",
        "null",
        "2026-01-31",
    )


def test_values_come_from_the_environment() -> None:
    text = SMALL.replace("connection: small_source}", 'connection: "${SOURCE}_${ROLE:-copier}"}')
    text += "lanes: ${LANES:-4}\n"
    migration = read(text, {"SOURCE": "old", "LANES": ""})
    assert migration.source.connection == "old_copier"
    assert migration.lanes == 4
    assert read(text, {"SOURCE": "${HOME}", "LANES": "3", "ROLE": "x"} | {"SOURCE": "new"}).lanes == 3


def test_the_environment_s_values_are_not_read_again() -> None:
    text = SMALL + "reports: {r: {source: '${SQL}', target: x}}\n"
    assert read(text, {"SQL": "${HOME}: *a"}).reports["r"].source == "${HOME}: *a"


# Every problem, with its line


SHAPE = [
    ("migration: billing", "migration: Billing", "1: migration: must start with a small letter"),
    ("migration: billing", "migration: fishladder_x", "1: migration: names that start with fishladder_ are"),
    (
        "strategy: replicate",
        "strategy: replicat",
        "2: strategy: must be 'replicate', 'dual_write', 'coexist' or 'reshape', not 'replicat' "
        "(did you mean 'replicate'?)",
    ),
    ("strategy: replicate\n", "", "1: strategy: is missing"),
    ("kind: oracle, ", "", "3: source.kind: is missing"),
    (
        "kind: oracle",
        "kind: oracel",
        "3: source.kind: must be 'oracle', 'mysql', 'cassandra' or 'sqlite', not 'oracel'",
    ),
    ("{kind: mysql, connection: billing_mysql}", "mysql", "4: target: must be a mapping"),
    (
        "connection: billing_mysql",
        "conection: billing_mysql",
        "4: target.conection: unknown word; did you mean 'connect",
    ),
    (
        "connection: billing_mysql",
        "connection: 'mysql://u:p@h/d'",
        "4: target.connection: must be the id of a connecti",
    ),
    ("source: billing_oracle_app", "source: [a]", "5: application.source: must be a text"),
    ('[[NZ], [AU, IE], ["*"]]', "NZ", "7: cohort.waves: must be a list"),
    ('[[NZ], [AU, IE], ["*"]]', "[]", "7: cohort.waves: must not be empty"),
    ("[NZ]", "[]", "7: cohort.waves.0: must not be empty"),
    ("column: country_code", 'column: "a\\tb"', "7: cohort.column: must not be empty nor hold control characters"),
    (
        "plan: shared",
        "plan: sharde",
        "9: tables.plan: must be shared, root, {entity: column} or {via: table}, not 'sha",
    ),
    ("plan: shared", "plan:", "9: tables.plan: must be shared, root, {entity: column} or {via: table}, not ''"),
    ("plan: shared", "plan: [shared]", "9: tables.plan: must be a mapping"),
    ("plan: shared", "plan: {}", "9: tables.plan: must say role: root, role: shared, entity: <column> or via: <table>"),
    (
        "plan: shared",
        "plan: {role: via}",
        "9: tables.plan: role: via is not enough; write {entity: column} or {via: ta",
    ),
    ("plan: shared", "plan: {role: shared, via: invoice}", "9: tables.plan: shared and via contradict each other"),
    ("plan: shared", "plan: {entity: a, via: invoice}", "9: tables.plan: entity and via contradict each other"),
    (
        "plan: shared",
        "plan: {role: boss}",
        "9: tables.plan.role: must be 'root', 'shared', 'entity' or 'via', not 'boss'",
    ),
    (
        "plan: shared",
        "fishladder_plan: shared",
        "9: tables.fishladder_plan: names that start with fishladder_ are fish",
    ),
    ("plan: shared", "X.FISHLADDER_HOME: shared", "9: tables.X.FISHLADDER_HOME: names that start with fishladder_"),
    (
        "{entity: customer_id, rename",
        "{entitty: customer_id, rename",
        "12: tables.invoice.entitty: unknown word; did you ",
    ),
    ("decimal(12,2)", "decimal(12;2)", "12: tables.invoice.types.total: 'decimal(12;2)'"),
    (
        'types: {total: "decimal(12,2)"}',
        "zone: {at: Mars}",
        "12: tables.invoice.zone.at: 'Mars' is no time zone; write",
    ),
    ('types: {total: "decimal(12,2)"}', "rewrite: all", "12: tables.invoice.rewrite: must be 'row' or 'entity'"),
    ('{source: "select', '{sorce: "select', "15: reports.revenue_by_month.sorce: unknown word; did you mean 'source'?"),
    (
        "revenue_by_month: {",
        "revenue_by_month: {at_cutover: maybe, ",
        "15: reports.revenue_by_month.at_cutover: must be tr",
    ),
    ("revenue_by_month:", "Revenue:", "15: reports.Revenue: must start with a small letter"),
    (
        "must_be: zero",
        "must_be: none",
        "17: monitors.negative_balance.must_be: must be 'zero', 'positive', 'no_more_than_before' or",
    ),
    (', target: "select count(*) from …"', "", "17: monitors.negative_balance: asks nothing; write source: or target:"),
    ("clean_passes: 3", "clean_passes: three", "19: gates.clean_passes: must be a whole number"),
    ("clean_passes: 3", "clean_passes: 0", "19: gates.clean_passes: must be greater than or equal to 1"),
    (
        "clean_passes: 3",
        "xyzzy: 3",
        "19: gates.xyzzy: unknown word; known: clean_passes, max_age, max_lag, rehearsal_days",
    ),
    ("26h", "26", "19: gates.max_age: must be a duration such as 200ms, 5s, 90m, 26h or 14d"),
    ("26h", "999999d", "19: gates.max_age: is longer than ten years; write at most 3660d"),
    ("26h", "87841h", "19: gates.max_age: is longer than ten years; write at most 3660d"),
    ("5s", "0s", "19: gates.max_lag: must be a duration such as"),
    ("gates:", "lanes: 65\ngates:", "19: lanes: must be less than or equal to 64"),
    ("gates:", "chunk_rows: 99\ngates:", "19: chunk_rows: must be greater than or equal to 100"),
    ("gates:", "ids: {target_from: -1}\ngates:", "19: ids.target_from: must be greater than or equal to 1"),
    ("gates:", "gate: {}\ngates:", "19: gate: unknown word; did you mean 'gates'?"),
]

CROSS = [
    ("billing_mysql}", "billing_oracle}", "4: target.connection: is the same as source.connection"),
    (
        "billing_oracle_app",
        "billing_oracle",
        "5: application.source: is the same as source.connection; each needs an ac",
    ),
    ("billing_mysql_app", "billing_oracle_app", "5: application.target: is the same as application.source"),
    (
        "billing_test_mysql",
        "billing_mysql",
        "6: rehearsal.connection: is the same as target.connection; each needs a st",
    ),
    ("billing_test_mysql", "billing_mysql_app", "6: rehearsal.connection: is the same as application.target"),
    (
        "billing_mysql}",
        "billing_mysql, replicas: [a, billing_test_mysql]}",
        "6: rehearsal.connection: is the same as ta",
    ),
    ("billing_test_mysql", "a, source: a", "6: rehearsal.source: is the same as rehearsal.connection"),
    ("billing_test_mysql", "a, source: billing_oracle", "6: rehearsal.source: is the same as source.connection"),
    (
        '"python -m billing.rehearse"',
        "it's",
        "6: rehearsal.command: must be a command as a shell reads it: a quotation",
    ),
    ('"python -m billing.rehearse"', '" "', "6: rehearsal.command: must be a program and its arguments"),
    ("[NZ]", "[NZ, '*']", "7: cohort.waves.0.1: '*' means all others: it stands alone, in the last wave"),
    ("[NZ]", "['*']", "7: cohort.waves.0.0: '*' means all others: it stands alone, in the last wave"),
    ("IE]", "NZ]", "7: cohort.waves.1.1: 'NZ' is in wave 1 already; keep one"),
    ("root: customer", "root: custmer", "7: cohort.root: is not in tables (did you mean 'customer'?)"),
    ("root: customer", "root: plan", "7: cohort.root: is 'plan', but the table marked root is 'customer'"),
    ("customer: root", "customer: shared", "8: tables: one table must be the root: <table>: root"),
    ("plan: shared", "plan: {entity: id, target: invoice}", "12: tables.invoice: would go to the target's table 'invo"),
    (
        "subscription: {entity: customer_id}",
        "subscription: root",
        "11: tables.subscription: is a second root; customer ",
    ),
    (
        "via: invoice",
        "via: invoices",
        "13: tables.invoice_line.via: 'invoices' is not in tables (did you mean 'invoice'?)",
    ),
    (
        "via: invoice",
        "via: plan",
        "13: tables.invoice_line.via: 'plan' is shared and has no entity; share this table too",
    ),
    ("via: invoice", "via: invoice_line", "13: tables.invoice_line.via: goes in a circle: invoice_line → invoice_line"),
    (
        "{entity: customer_id, rename",
        "{via: invoice_line, rename",
        "12: tables.invoice.via: goes in a circle: invoice → invoice_line → invoice; one of them needs entity:",
    ),
    (
        "rename: {inv_dt:",
        "rename: {a: invoiced_at, inv_dt:",
        "12: tables.invoice.rename.inv_dt: 'a' is renamed to 'invoi",
    ),
    ("rename:", "drop: [inv_dt], rename:", "12: tables.invoice.rename.inv_dt: is dropped; keep the one or the other"),
    ("{entity: customer_id}", "{entity: cid, drop: [cid]}", "11: tables.subscription.drop: names the column of the en"),
    ("plan: shared", "plan: {role: shared, rewrite: entity}", "9: tables.plan.rewrite: a shared table has no entity"),
    (
        'rehearsal: {connection: billing_test_mysql, command: "python -m billing.rehearse"}\n',
        "\n",
        "19: gates.rehearsal_days: nothing rehearses, so it could not open; add rehearsal:",
    ),
]

FORM = [
    (
        "plan: shared",
        "plan: shared\n  plan: shared",
        "10: tables.plan: written twice, first in line 9; keep one of them",
    ),
    ("gates:", "lanes: 1\nlanes: 2\ngates:", "20: lanes: written twice, first in line 19; keep one of them"),
    ("plan: shared", "plan: &plan shared", "9: tables.plan: anchors (&) and aliases (*) are not read"),
    ("plan: shared", "&plan plan: shared", "9: tables.plan: anchors (&) and aliases (*) are not read"),
    (
        "plan: shared",
        "plan: *shared",
        "9: tables.plan: anchors (&) and aliases (*) are not read; write it out, or quote",
    ),
    ("plan: shared", "plan: !!python/object:os.system x", "9: tables.plan: tags (!) are not read"),
    ("plan: shared", "<<: {plan: shared}", "9: tables.<<.plan: unknown word"),
    ("plan: shared", "[plan]: shared", "9: a key must be a plain word"),
    ("plan: shared", "? {a: b}\n  : shared", "9: a key must be a plain word"),
    ("plan: shared", "plan: {shared", "10: not YAML: expected ',' or '}', but got ':'"),
    ("plan: shared", "plan: \x07", "9: holds a character that YAML does not allow"),
    ("plan: shared", 'plan: "\\UFFFFFFFF"', "9: not YAML: a number here or just after it is out of range"),
    ("country_code", '"\\uD800"', "7: cohort.column: holds a character that is not Unicode text"),
    ("plan: shared", 'plan: "${KIND}"', "9: tables.plan: KIND is not set in the environment; set it or write ${KIND:-"),
    ("plan: shared", 'plan: "${KI ND}"', "9: tables.plan: ${KI ND} is neither ${NAME} nor ${NAME:-default}"),
    ("plan: shared", 'plan: "${KIND"', "9: tables.plan: ${KIND is neither ${NAME} nor ${NAME:-default}"),
    ("{entity: customer_id}", "{entity: ${E}}", "not YAML: "),
    ("gates:", "---\ngates:", "19: a second document starts here; write one migration in a file"),
    ("plan: shared", "plan: " + "[" * 30 + "]" * 30, "9: nested deeper than 20 levels"),
]


@pytest.mark.parametrize(("before", "after", "expected"), [*SHAPE, *CROSS, *FORM])
def test_a_problem_says_where_and_what(before: str, after: str, expected: str) -> None:
    found = problem(before, after)
    assert found.startswith("billing.yaml:")
    assert expected in found


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "word\n", "[]\n", "--- \n"])
def test_a_file_is_a_mapping(text: str) -> None:
    (found,) = problems(text)
    assert re.fullmatch(r"billing.yaml:\d+: must be a mapping that starts with 'migration: <name>'", found)


def test_quotes_are_advised_where_braces_meet() -> None:
    (found,) = problems("migration: a\nsource: {kind: ${KIND}}\n")
    assert found.startswith("billing.yaml:2: not YAML: ")
    assert found.endswith('write "${NAME}" with its quotes')


def test_all_problems_are_told_at_once_by_line() -> None:
    found = problems(
        BILLING.replace("migration: billing", "migration: Billing")
        .replace("billing_mysql_app", "billing_mysql")
        .replace("entity: customer_id, rename", "entitty: customer_id, rename")
        .replace("via: invoice", "via: invoce")
        .replace("max_age: 26h", "max_age: soon")
    )
    assert [tuple(line.split(":")[1:3]) for line in found] == [
        ("1", " migration"),
        ("5", " application.target"),
        ("12", " tables.invoice.entitty"),
        ("13", " tables.invoice_line.via"),
        ("19", " gates.max_age"),
    ]


def test_a_list_of_problems_ends() -> None:
    found = problems(BILLING + "".join(f"word{number}: x\n" for number in range(80)))
    assert len(found) == 51
    assert found[-1] == "billing.yaml: and more; repair these first"


# Reading files


def test_load_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "billing.yaml"
    path.write_text("\ufeff" + BILLING.replace("\n", "\r\n"), encoding="utf-8")
    migration = load(path, {})
    assert migration.where("tables.invoice.entity") == f"{path}:12"
    assert migration.where("tables.invoice.rename.inv_dt.no.such") == f"{path}:12"
    assert migration.where("ids.target_from") == f"{path}:1"
    assert Migration.from_json(migration.to_json()).where("tables") == "billing"


def test_where_finds_a_table_with_a_dot() -> None:
    assert billing("plan:", "ref.plan:").where("tables.ref.plan") == "billing.yaml:9"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"migration: \xff\n", ":1: not UTF-8 text"),
        (b"#" * (1 << 20) + b"\n", ":1: larger than 1048576 characters"),
        (None, ": cannot be read: No such file or directory"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=re.escape(f"{path}{expected}")):
        load(path)


def test_a_broken_file_is_nothing_but_a_spec_error() -> None:
    seed = random.Random(20261121)
    alphabet = "{}[]:,-?&*!|>'\"%@`#~$\\\n\t \x00\x85\u2028\ud800\ufeffaé…0"
    lines = BILLING.splitlines(keepends=True)
    texts = []
    for _ in range(300):
        text = list(BILLING)
        for _ in range(seed.randrange(1, 6)):
            start = seed.randrange(len(text))
            match seed.randrange(5):
                case 0:
                    del text[start : start + seed.randrange(1, 30)]
                case 1:
                    text[start:start] = seed.choices(alphabet, k=seed.randrange(1, 5))
                case 2:
                    text[start] = seed.choice(alphabet)
                case 3:
                    text[start:start] = seed.choice(lines)
                case 4:
                    text[start:start] = seed.choice(
                        ["${X", "${HOME}", "!!int 1", "\\UFFFFFFFF", "&a", "*a", "? ", "- "]
                    )
        texts.append("".join(text))
    texts += ["".join(seed.choices(alphabet, k=200)) for _ in range(100)]
    printable = "".join(seed.choices([chr(code) for code in range(32, 127)], k=1 << 20))
    texts += [
        printable,
        "migration: " + printable,
        "[" * (1 << 20),
        "a: {" * (1 << 18),
        "&a " * (1 << 18),
        "%" * (1 << 20),
    ]
    texts += [f"%YAML {'9' * 5000}.1\n---\n{BILLING}", "x" * ((1 << 20) + 1)]
    told = [text for text in map(told_problems, texts) if text]
    assert len(told) > len(texts) // 2
    assert all(line.startswith("billing.yaml:") for text in told for line in text.split("\n"))


def told_problems(text: str) -> str:
    try:
        read(text, {"HOME": "\udcff"})
    except SpecError as error:
        return str(error)
    return ""


# What may change


def test_a_migration_survives_the_ledger() -> None:
    migration = billing("gates:", "ids: {target_from: 1000000000000}\nchunk_rows: 500\ngates:")
    again = Migration.from_json(migration.to_json())
    assert again == migration
    assert list(again.tables) == list(migration.tables)
    assert digest(again.data_part()) == digest(migration.data_part())


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"migration": "x", "new_word": 1}'])
def test_a_damaged_record_is_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError, match="recorded migration"):
        Migration.from_json(text)


def test_the_digest_is_of_what_decides_where_rows_go() -> None:
    same = digest(billing().data_part())
    assert same == digest(
        billing("  plan: shared\n  customer: root\n", "  customer: root\n  plan: {role: shared}\n").data_part()
    )
    assert same == digest(billing("[AU, IE]", "[AU], [IE]").data_part())
    assert same == digest(billing("26h", "27h").data_part())
    assert same == digest(billing("{entity: customer_id}", "{entity: customer_id, rewrite: row}").data_part())
    others = {
        digest(billing(before, after).data_part())
        for before, after in [
            ("kind: oracle", "kind: sqlite"),
            ("connection: billing_mysql}", "connection: other}"),
            ("strategy: replicate", "strategy: coexist"),
            ("country_code", "region"),
            ("decimal(12,2)", "decimal(12,3)"),
            ("inv_dt", "inv_date"),
            ("plan: shared", "plan: {entity: id}"),
        ]
    }
    assert len(others | {same}) == 8


@pytest.mark.parametrize(
    ("before", "after", "allowed"),
    [
        ("26h", "26h", ()),
        ("plan: shared", "plan: shared\n  credit_note: {via: invoice}", ("tables.credit_note",)),
        ("[AU, IE]", "[AU], [IE]", ("cohort.waves",)),
        ("approvals: 2", "approvals: 3", ("gates",)),
        ("revenue_by_month", "revenue", ("reports",)),
        ("must_be: zero", "must_be: positive", ("monitors",)),
        ("gates:", "lanes: 8\nchunk_rows: 1000\ngates:", ("lanes", "chunk_rows")),
        ("billing_mysql_app", "billing_mysql_app2", ("application",)),
    ],
)
def test_allowed_changes(before: str, after: str, allowed: tuple[str, ...]) -> None:
    found = changes(billing(), billing(before, after))
    assert (found.allowed, found.restart, found.refused) == (allowed, (), ())


@pytest.mark.parametrize(
    ("before", "after", "restart"),
    [
        ("decimal(12,2)", "decimal(12,3)", ("invoice",)),
        ("customer: root", "customer: {role: root, drop: [photo]}", ("customer",)),
        ("invoice: {entity: customer_id,", "invoice: {entity: payer_id,", ("invoice", "invoice_line")),
        ("{via: invoice}", "{via: subscription}", ("invoice_line",)),
    ],
)
def test_changes_that_restart_tables(before: str, after: str, restart: tuple[str, ...]) -> None:
    found = changes(billing(), billing(before, after))
    assert (found.allowed, found.restart, found.refused) == ((), restart, ())


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("migration: billing", "migration: billing2", "billing.yaml:1: migration: was 'billing'"),
        (
            "strategy: replicate",
            "strategy: coexist",
            "billing.yaml:2: strategy: differs from what the rows were copied",
        ),
        ("connection: billing_oracle}", "connection: old}", "billing.yaml:3: source: differs"),
        ("kind: mysql", "kind: sqlite", "billing.yaml:4: target: differs"),
        ("country_code", "region", "billing.yaml:7: cohort: differs"),
        ("  plan: shared\n", "", "billing.yaml:8: tables.plan: is gone, but its triggers and rows are still there"),
    ],
)
def test_refused_changes(before: str, after: str, refused: str) -> None:
    found = changes(billing(), billing(before, after))
    assert [sentence[: len(refused)] for sentence in found.refused] == [refused]


def test_another_root_is_refused() -> None:
    new = read(
        BILLING.replace("root: customer", "root: subscription")
        .replace("customer: root", "customer: shared")
        .replace("subscription: {entity: customer_id}", "subscription: root")
    )
    assert any("cohort: differs" in sentence for sentence in changes(billing(), new).refused)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("custmer_id", " (did you mean 'customer_id'?)"),
        ("CUSTOMER_ID", " (did you mean 'customer_id'?)"),
        ("zebra", ""),
        ("", ""),
    ],
)
def test_nearest(word: str, expected: str) -> None:
    assert nearest(word, ["invoice_id", "customer_id"]) == expected


# The editor's schema


def test_the_committed_schema_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), "run: python -m fishladder schema > " + str(SCHEMA)


@pytest.mark.parametrize("text", [BILLING, SMALL])
def test_the_schema_accepts_what_loads(text: str) -> None:
    jsonschema.Draft202012Validator(json.loads(json_schema())).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("entity: customer_id, rename", "entitty: x, rename"),
        ("plan: shared", "plan: sharde"),
        ("26h", "26"),
        ("zero", "no"),
    ],
)
def test_the_schema_refuses_what_does_not(before: str, after: str) -> None:
    problem(before, after)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json.loads(json_schema())).validate(
            yaml.safe_load(BILLING.replace(before, after, 1))
        )
