"""Compares two databases by plain SQL, without a line of fishladder: the witness of the scenario tests.

`compare` looks at every row, `acknowledged` at what clients were told. Both return problems in words; none is good.
Tables of fishladder's own (`fishladder_…`) are not looked at.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import MySQLdb
import MySQLdb.cursors
import oracledb

NAMED = 5  # how many keys a problem names


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A table as the database describes it, names in small letters.

    `columns`: name → number, time, date, bytes or text; what Oracle calls a date is either.
    """

    columns: Mapping[str, str]
    key: tuple[str, ...]
    unique: frozenset[tuple[str, ...]]
    foreign_keys: frozenset[ForeignKey]


class Reader(Protocol):
    #: '' is NULL there.
    blank_is_null: bool

    def quoted(self, name: str) -> str: ...

    def bytewise(self, column: str) -> str:
        """An expression of a quoted column that no collation takes for another, so that 'a1' is not 'A1'."""
        ...

    def tables(self) -> list[str]: ...

    def shape(self, table: str) -> Shape: ...

    def rows(self, statement: str) -> Iterator[tuple[Any, ...]]: ...

    def close(self) -> None: ...


def compare(source_url: str, target_url: str, tables: Sequence[str] | None = None) -> list[str]:
    """Every row of `tables` (default: all tables of the source) in both databases, one line per problem.

    Tables and columns are matched by name, values by what they mean: 1.50 is 1.5, a time is text with microseconds,
    'a1' is not 'A1', '' is not NULL unless an Oracle is among the two. Holds a digest per row of one table in memory.
    """
    problems: list[str] = []
    with ExitStack() as stack:
        source = stack.enter_context(closing(_open(source_url)))
        target = stack.enter_context(closing(_open(target_url)))
        chosen = list(tables) if tables is not None else source.tables()
        for table in chosen:
            if table.startswith("fishladder_"):
                continue
            absent = [side for side, reader in _sides(source, target) if _own_name(table, reader) is None]
            if absent:
                problems.append(f"{table}: the {' and the '.join(absent)} has no such table")
                continue
            problems += _compare_rows(table, source, target)
            # Each side is held to what either schema promises: a target may have been created without a key.
            shapes = source.shape(table), target.shape(table)
            for side, reader in _sides(source, target):
                columns = reader.shape(table).columns
                for unique in sorted(shapes[0].unique | shapes[1].unique | {shapes[0].key}):
                    if unique and set(unique) <= set(columns):
                        problems += _duplicates(side, table, unique, reader)
                for foreign_key in sorted(shapes[0].foreign_keys | shapes[1].foreign_keys, key=lambda key: key.columns):
                    if set(foreign_key.columns) <= set(columns) and _own_name(foreign_key.parent, reader):
                        problems += _orphans(side, table, foreign_key, reader)
        if {"customer", "invoice", "payment"} <= set(chosen) and not problems:
            problems += _compare_totals(source, target)
    return problems


def acknowledged(url: str, logs: Sequence[Path]) -> list[str]:
    """What billing's clients were told, against what the database holds, one line per lost or altered operation.

    `logs` are those of `billing.traffic --log`, of all clients, put in order by their times. That is exact for one
    client at a time; two at once may have touched the same row in the other order than they logged it.
    """
    lines = sorted(
        (json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()),
        key=lambda line: line["at"],
    )
    payments: dict[str, tuple[str, int, str]] = {}  # key → kind, invoice, amount
    entries: dict[int, tuple[int, str, str]] = {}  # id → customer, code, amount
    cards: dict[str, tuple[int, str]] = {}  # code → customer, initial amount
    owners: dict[int, int] = {}  # invoice → customer
    countries: dict[int, str | None] = {}
    emails: dict[int, str | None] = {}
    plans: dict[int, tuple[str, str]] = {}
    subscriptions: dict[int, int] = {}  # id → customer
    deleted: set[int] = set()
    for line in lines:
        customer = line.get("customer_id")
        match line["operation"]:
            case "sign_up" | "sign_up_again":
                deleted.discard(customer)
                countries[customer], emails[customer] = line["country"], line["email"]
                subscriptions[line["subscription_id"]] = customer
            case "charge" | "refund" as kind:
                payments[line["key"]] = (kind, line["invoice_id"], line["amount"])
                owners[line["invoice_id"]] = customer
            case "transfer_invoice":
                owners[line["invoice_id"]] = customer
            case "buy_gift_card":
                cards[line["code"]] = (customer, line["amount"])
            case "redeem":
                entries[line["entry_id"]] = (customer, line["code"], line["amount"])
            case "move_country":
                countries[customer] = line["country"]
            case "change_plan":
                subscriptions[line["subscription_id"]] = customer
            case "change_price":
                plans[line["plan_id"]] = (line["monthly"], line["yearly"])
            case "swap_emails":
                emails[line["first"]], emails[line["second"]] = line["first_email"], line["second_email"]
            case "delete_customer":
                deleted.add(customer)
                countries.pop(customer, None)
                emails.pop(customer, None)
                gone = {invoice for invoice, owner in owners.items() if owner == customer}
                owners = {invoice: owner for invoice, owner in owners.items() if invoice not in gone}
                payments = {key: payment for key, payment in payments.items() if payment[1] not in gone}
                cards = {code: card for code, card in cards.items() if card[0] != customer}
                entries = {number: entry for number, entry in entries.items() if entry[0] != customer}
                subscriptions = {number: owner for number, owner in subscriptions.items() if owner != customer}
    with closing(_open(url)) as reader:
        found = {name: _found(reader, statement) for name, statement in _FOUND.items()}
    problems = [
        f"{what} {key}: " + ("lost" if key not in found[what] else "altered")
        for what, expected in (
            ("payment", {key: (kind, invoice, Decimal(amount)) for key, (kind, invoice, amount) in payments.items()}),
            ("invoice", owners),
            ("gift_card", {code: (owner, Decimal(amount)) for code, (owner, amount) in cards.items()}),
            ("gift_card_entry", {number: (code, Decimal(sum_)) for number, (_, code, sum_) in entries.items()}),
            ("country of customer", countries),
            ("email of customer", emails),
            ("subscription", subscriptions),
            ("price of plan", {plan: (Decimal(month), Decimal(year)) for plan, (month, year) in plans.items()}),
        )
        for key, value in expected.items()
        if found[what].get(key, _NOTHING) != value
    ]
    problems += [
        f"customer {each}: deleted, and here again" for each in deleted if each in found["country of customer"]
    ]
    return problems


_NOTHING = object()
_FOUND = {
    "payment": "select idempotency_key, kind, invoice_id, amount from payment",
    "invoice": "select id, customer_id from invoice",
    "gift_card": "select code, customer_id, initial_amount from gift_card",
    "gift_card_entry": "select id, gift_card_code, amount from gift_card_entry",
    "country of customer": "select id, country_code from customer",
    "email of customer": "select id, email from customer",
    "subscription": "select id, customer_id from subscription",
    "price of plan": "select id, monthly_price, yearly_price from plan",
}


_PAYMENT = (
    "payment",
    {"idempotency_key": "key"},
    {"kind": "operation", "customer_id": "customer_id", "invoice_id": "invoice_id", "amount": "amount"},
)
#: Operation → the table of the row that it makes, the columns by which a client knows that row, and what else it was
#: told of it: column → word of the log. Of one that was queued the log says less: only what its client had asked for.
_MAKES: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "sign_up": ("customer", {"email": "email"}, {"id": "customer_id", "created_at": "at"}),
    "charge": _PAYMENT,
    "refund": _PAYMENT,
    "buy_gift_card": ("gift_card", {"code": "code"}, {"customer_id": "customer_id", "initial_amount": "amount"}),
    "redeem": (
        "gift_card_entry",
        {"gift_card_code": "code", "created_at": "at"},
        {"id": "entry_id", "amount": "amount"},
    ),
    "change_plan": (
        "subscription",
        {"customer_id": "customer_id", "started_at": "at"},
        {"id": "subscription_id", "plan_id": "plan_id", "billing_cycle": "billing_cycle"},
    ),
}
#: Of what else they make a row.
_MAKES_TOO = {"sign_up": "subscription", "charge": "invoice"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A line of a log; `over`: when its client asked for the next, so that it had been answered. None for the last."""

    said: Mapping[str, Any]
    log: Path
    number: int
    over: datetime | None

    @property
    def at(self) -> datetime:
        return datetime.fromisoformat(self.said["at"])

    def precedes(self, other: _Told) -> bool:
        """Whether it was over for certain when the other one was asked for."""
        if self.log == other.log:
            return self.number < other.number
        return self.over is not None and self.over <= other.at


def counts(url: str) -> dict[str, int]:
    """How many rows there are in the tables of which operations make rows."""
    found = {}
    with closing(_open(url)) as reader:
        for table in sorted({table for table, _, _ in _MAKES.values()} | set(_MAKES_TOO.values())):
            ((found[table],),) = reader.rows(f"select count(*) from {table}")
    return found


def accepted(
    url: str,
    logs: Sequence[Path],
    *,
    before: Mapping[str, int],
    refused: Set[str] = frozenset(),
    beside: Sequence[Path] = (),
) -> list[str]:
    """What the router accepted, done at once or queued, against the owner: each is there once and as it was told,
    nothing else is, and the order in which each customer's were accepted was kept.

    `logs` are those of `billing.routed`, of one client at a time each, and `beside` those of `billing.traffic` by
    others meanwhile, of which no order is known. `before`: the counts of then. `refused`: the keys of queued writes
    that the business refused when they were replayed.
    """
    told = [each for log in logs for each in _read(log) if not _is_refused(each.said, refused)]
    with closing(_open(url)) as reader:
        problems = _once(reader, told) + _last_changes(reader, told) + _plans_in_order(reader, told)
        problems += _rows_in_order(reader, told)
    done = [*(each.said for each in told), *(line for log in beside for line in _lines(log))]
    made = Counter(_MAKES[said["operation"]][0] for said in done if said["operation"] in _MAKES)
    made.update(_MAKES_TOO[said["operation"]] for said in done if said["operation"] in _MAKES_TOO)
    problems += [
        f"{table}: {number - before[table]} row(s) more than before, and clients were told of {made[table]}"
        for table, number in counts(url).items()
        if number - before[table] != made[table]
    ]
    return problems


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _read(log: Path) -> list[_Told]:
    said = [{**line, **line["payload"], "key": line["key"]} for line in _lines(log)]
    over = [*(datetime.fromisoformat(each["at"]) for each in said[1:]), None]
    return [_Told(said=each, log=log, number=n, over=at) for n, (each, at) in enumerate(zip(said, over, strict=False))]


def _is_refused(said: Mapping[str, Any], refused: Set[str]) -> bool:
    return said["state"] == "queued" and said["key"] in refused


def _once(reader: Reader, told: Sequence[_Told]) -> list[str]:
    problems = []
    for operation, (table, known_by, more) in _MAKES.items():
        wanted = [each.said for each in told if each.said["operation"] == operation]
        if not wanted:
            continue
        meanings = reader.shape(table).columns
        words = {**known_by, **more}
        there: dict[tuple[str | None, ...], list[dict[str, str | None]]] = defaultdict(list)
        for row in reader.rows(f"select {', '.join(words)} from {table}"):
            found = {column: _normal(value, meanings[column]) for column, value in zip(words, row, strict=True)}
            there[tuple(found[column] for column in known_by)].append(found)
        for said in wanted:
            expected = {column: _normal(said[word], meanings[column]) for column, word in words.items() if word in said}
            name = tuple(expected[column] for column in known_by)
            rows = there[name]
            problems += [
                f"{operation} {_name([name])}: {problem}"
                for problem, is_so in (
                    ("accepted, and not there", not rows),
                    (f"there {len(rows)} times", len(rows) > 1),
                    *(
                        (f"another {column} than was told", any(row[column] != value for row in rows))
                        for column, value in expected.items()
                    ),
                )
                if is_so
            ]
    return problems


def _by(told: Sequence[_Told], operations: Set[str], word: str) -> dict[Any, list[_Told]]:
    """By whom or what they are about; nobody knows the customer of a sign_up that was queued."""
    found: dict[Any, list[_Told]] = defaultdict(list)
    for each in told:
        if each.said["operation"] in operations and word in each.said:
            found[each.said[word]].append(each)
    return found


def _last_changes(reader: Reader, told: Sequence[_Told]) -> list[str]:
    """What is there was said by a change that no other one followed for certain."""
    problems = []
    for what, operations, word, value in (
        ("country of customer", {"sign_up", "move_country"}, "customer_id", lambda said: said["country"]),
        (
            "price of plan",
            {"change_price"},
            "plan_id",
            lambda said: (Decimal(said["monthly"]), Decimal(said["yearly"])),
        ),
    ):
        there = _found(reader, _FOUND[what])
        for key, changes in _by(told, operations, word).items():
            last = [value(each.said) for each in changes if not any(each.precedes(other) for other in changes)]
            if there.get(key, _NOTHING) not in last:
                problems.append(f"{what} {key}: not what the last change said")
    return problems


def _plans_in_order(reader: Reader, told: Sequence[_Told]) -> list[str]:
    """A customer's next plan ends the one before at the moment that it began itself: so they tell their order."""
    problems = []
    ends: dict[int, dict[str | None, str | None]] = defaultdict(dict)
    for customer, began, ended in reader.rows("select customer_id, started_at, ended_at from subscription"):
        ends[customer][_normal(began, "time")] = _normal(ended, "time")
    for customer, changes in _by(told, {"sign_up", "change_plan"}, "customer_id").items():
        following = {each.at: _following(_normal(each.at, "time"), ends[customer]) for each in changes}
        if any(
            each.precedes(other) and _normal(other.at, "time") not in following[each.at]
            for each in changes
            for other in changes
        ):
            problems.append(f"plans of customer {customer}: not in the order in which they were accepted")
    return problems


#: What numbered rows of a customer tell → the operations that make them, where they are, and whose.
_NUMBERED = {
    "payments": (("charge", "refund"), "payment t", "t.customer_id"),
    "gift card entries": (
        ("redeem",),
        "gift_card_entry t join gift_card g on g.code = t.gift_card_code",
        "g.customer_id",
    ),
}


def _rows_in_order(reader: Reader, told: Sequence[_Told]) -> list[str]:
    """Each store gives ids that rise, one of them the odd ones and the other the even ones: so of two rows of one
    customer that the same store has made, the ids tell the order. Of two stores' rows they tell none.
    """
    problems = []
    for what, (operations, where, whose) in _NUMBERED.items():
        table, known_by, _ = _MAKES[operations[0]]
        meanings = [reader.shape(table).columns[column] for column in known_by]
        made = {
            tuple(map(_normal, name, meanings)): (int(number), customer)
            for number, customer, *name in reader.rows(
                f"select t.id, {whose}, {', '.join(f't.{column}' for column in known_by)} from {where}"
            )
        }
        rows: dict[tuple[Any, int], list[tuple[int, _Told]]] = defaultdict(list)
        for each in (each for each in told if each.said["operation"] in operations):
            name = tuple(map(_normal, (each.said[word] for word in known_by.values()), meanings))
            if name in made:
                number, customer = made[name]
                rows[customer, number % 2].append((number, each))
        problems += [
            f"{what} of customer {customer}: not in the order in which they were accepted"
            for (customer, _), some in rows.items()
            if any(one > other and each.precedes(later) for one, each in some for other, later in some)
        ]
    return problems


def _following(began: str | None, ends: Mapping[str | None, str | None]) -> list[str]:
    """When the plans began that took the place of this one, one after the other."""
    found: list[str] = []
    while (began := ends.get(began)) and began not in found:
        found.append(began)
    return found


def _found(reader: Reader, statement: str) -> dict[Any, Any]:
    """First column → the other one, or a tuple of the others, money as Decimal."""
    money = {
        number
        for number, name in enumerate(statement.split(" from ")[0].split(", "))
        if re.search("amount|price", name)
    }
    found: dict[Any, Any] = {}
    for row in reader.rows(statement):
        values = [Decimal(str(value)) if number in money else value for number, value in enumerate(row)]
        found[values[0]] = values[1] if len(values) == 2 else tuple(values[1:])
    return found


def _sides(source: Reader, target: Reader) -> tuple[tuple[str, Reader], tuple[str, Reader]]:
    return ("source", source), ("target", target)


def _own_name(table: str, reader: Reader) -> str | None:
    """The table's name as this database writes it."""
    return next((name for name in reader.tables() if name.lower() == table.lower()), None)


def _quoted(table: str, reader: Reader) -> str:
    return reader.quoted(_own_name(table, reader) or table)


#: What Oracle calls a date, and what it can be elsewhere.
_EITHER = ({"date or time", "date"}, {"date or time", "time"})


def _compare_rows(table: str, source: Reader, target: Reader) -> list[str]:
    shape, other = source.shape(table), target.shape(table)
    if set(shape.columns) != set(other.columns):
        return [
            f"{table}: only one side has the column(s) {', '.join(sorted(set(shape.columns) ^ set(other.columns)))}"
        ]
    problems = [
        f"{table}.{column}: {meaning} in the source, {other.columns[column]} in the target"
        for column, meaning in shape.columns.items()
        if meaning != other.columns[column] and {meaning, other.columns[column]} not in _EITHER
    ]
    if problems:
        return problems
    meanings = {
        column: other.columns[column] if meaning == "date or time" else meaning
        for column, meaning in shape.columns.items()
    }
    blank_is_null = source.blank_is_null or target.blank_is_null
    digests: dict[tuple[str | None, ...], bytes] = {}
    in_source = in_target = 0
    for key, digest in _digests(table, shape.key, meanings, source, blank_is_null):
        in_source += 1
        digests[key] = digest
    extra, different = [], []
    for key, digest in _digests(table, shape.key, meanings, target, blank_is_null):
        in_target += 1
        there = digests.pop(key, None)
        if there is None:
            extra.append(key)
        elif there != digest:
            different.append(key)
    if in_source != in_target:
        problems.append(f"{table}: {in_source} row(s) in the source, {in_target} in the target")
    for word, keys in (("missing", list(digests)), ("extra", extra), ("different", different)):
        if keys:
            problems.append(f"{table}: {len(keys)} row(s) {word} in the target: {_name(keys)}")
    return problems


def _digests(
    table: str, key: tuple[str, ...], meanings: Mapping[str, str], reader: Reader, blank_is_null: bool
) -> Iterator[tuple[tuple[str | None, ...], bytes]]:
    """(key, digest of the row) for each row."""
    columns = sorted(meanings)
    key_at = [columns.index(column) for column in key or columns]
    selected = ", ".join(reader.quoted(column) for column in columns)
    for row in reader.rows(f"select {selected} from {_quoted(table, reader)}"):
        values = [_normal(value, meanings[column]) for value, column in zip(row, columns, strict=True)]
        if blank_is_null:
            values = [value or None for value in values]
        digest = hashlib.sha256()
        for value in values:
            encoded = b"-" if value is None else value.encode("utf-8", "surrogatepass")
            # NULL has no length; everything else is preceded by its own.
            digest.update(b"N" if value is None else b"%d:%b" % (len(encoded), encoded))
        yield tuple(values[at] for at in key_at), digest.digest()


def _normal(value: Any, meaning: str) -> str | None:
    """One text per value, whatever driver it came through. What is not what its column says stays as it is, marked."""
    if value is None:
        return None
    try:
        match meaning:
            case "number":
                # A float is what SQLite makes of a NUMERIC column: its shortest text is the number that was meant.
                number = Decimal(repr(value) if isinstance(value, float) else value)
                text = format(number, "f")  # normalize() would round to 28 digits
                return "0" if number == 0 else text.rstrip("0").rstrip(".") if "." in text else text
            case "time" | "date or time":
                at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
                return at.isoformat(sep=" ", timespec="microseconds")
            case "date":
                if isinstance(value, datetime):
                    # From Oracle, whose dates have a time: any but midnight is a difference.
                    return (value.date() if value.time() == time() else value).isoformat()
                return (value if isinstance(value, date) else date.fromisoformat(value)).isoformat()
            case "bytes":
                return bytes(value).hex()
            case _:
                return value.decode() if isinstance(value, bytes) else str(value)
    except (ArithmeticError, TypeError, ValueError):
        return f"no {meaning}: {value!r}"


def _name(keys: Sequence[tuple[str | None, ...]]) -> str:
    """The first few of these keys, numbers by size."""
    ordered = sorted(keys, key=lambda key: [(len(part or ""), part or "") for part in key])
    named = ", ".join("/".join(part or "NULL" for part in key) for key in ordered[:NAMED])
    return named + (", …" if len(keys) > NAMED else "")


def _duplicates(side: str, table: str, unique: tuple[str, ...], reader: Reader) -> list[str]:
    texts = {column for column, meaning in reader.shape(table).columns.items() if meaning == "text"}
    quoted = [reader.quoted(column) for column in unique]
    grouped = ", ".join(
        reader.bytewise(name) if column in texts else name for column, name in zip(unique, quoted, strict=True)
    )
    present = " and ".join(f"{name} is not null" for name in quoted)
    ((count,),) = reader.rows(
        f"select count(*) from (select 1 as x from {_quoted(table, reader)} where {present} group by {grouped}"
        " having count(*) > 1) d"
    )
    return [f"{table}: {count} value(s) of {', '.join(unique)} occur more than once in the {side}"] if count else []


def _orphans(side: str, table: str, foreign_key: ForeignKey, reader: Reader) -> list[str]:
    children = [f"c.{reader.quoted(column)}" for column in foreign_key.columns]
    parents = [f"p.{reader.quoted(column)}" for column in foreign_key.parent_columns]
    joined = " and ".join(f"{parent} = {child}" for child, parent in zip(children, parents, strict=True))
    present = " and ".join(f"{child} is not null" for child in children)
    ((count,),) = reader.rows(
        f"select count(*) from {_quoted(table, reader)} c where {present}"
        f" and not exists (select 1 from {_quoted(foreign_key.parent, reader)} p where {joined})"
    )
    columns = ", ".join(foreign_key.columns)
    return (
        [f"{table}: {count} row(s) in the {side} name a {foreign_key.parent} that is not there ({columns})"]
        if count
        else []
    )


def _compare_totals(source: Reader, target: Reader) -> list[str]:
    """Billing's money per country, to the cent: what a person would look at first."""
    problems = []
    for table, column in (("invoice", "total"), ("payment", "amount"), ("gift_card", "remaining_amount")):
        statement = f"select c.country_code, x.{column} from {table} x join customer c on c.id = x.customer_id"
        sums = []
        for reader in (source, target):
            by_country: dict[str, Decimal] = defaultdict(Decimal)
            for country, amount in reader.rows(statement):
                by_country[country or "no country"] += Decimal(amount)
            sums.append(by_country)
        problems += [
            f"{table}: {country} adds up to {sums[0][country]} in the source, {sums[1][country]} in the target"
            for country in sorted(set(sums[0]) | set(sums[1]))
            if sums[0][country] != sums[1][country]
        ]
    return problems


def _meaning(declared: str) -> str:
    declared = declared.lower()
    for pattern, meaning in (
        (r"blob|binary|raw", "bytes"),
        (r"datetime|timestamp", "time"),
        (r"date", "date"),
        (r"int|decimal|numeric|number|bool|real|float|double", "number"),
    ):
        if re.search(pattern, declared):
            return meaning
    return "text"


class _Sqlite:
    blank_is_null = False

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=60)
        self._connection.execute("begin")  # one moment, whatever is written meanwhile

    def quoted(self, name: str) -> str:
        return f'"{name}"'

    def bytewise(self, column: str) -> str:
        return f"hex({column})"

    def tables(self) -> list[str]:
        return [
            name
            for (name,) in self.rows("select name from sqlite_master where type = 'table' order by name")
            if not name.startswith(("sqlite_", "fishladder_"))
        ]

    def shape(self, table: str) -> Shape:
        columns = list(self.rows(f'pragma table_info("{table}")'))
        unique = {
            tuple(column.lower() for _, _, column in self.rows(f'pragma index_info("{name}")'))
            for _, name, is_unique, *_ in list(self.rows(f'pragma index_list("{table}")'))
            if is_unique
        }
        references: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        for row in self.rows(f'pragma foreign_key_list("{table}")'):
            references[row[0]].append(row)
        return Shape(
            columns={name.lower(): _meaning(declared) for _, name, declared, *_ in columns},
            key=tuple(row[1].lower() for row in sorted(columns, key=lambda row: row[5]) if row[5]),
            unique=frozenset(unique),
            foreign_keys=frozenset(
                ForeignKey(
                    columns=tuple(row[3].lower() for row in rows),
                    parent=rows[0][2].lower(),
                    parent_columns=tuple((row[4] or self.shape(row[2]).key[row[1]]).lower() for row in rows),
                )
                for rows in references.values()
            ),
        )

    def rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        return self._connection.execute(statement)

    def close(self) -> None:
        self._connection.close()


class _Mysql:
    blank_is_null = False

    def __init__(self, **login: Any) -> None:
        self._connection = MySQLdb.connect(charset="utf8mb4", **login)
        self._connection.cursor().execute("set time_zone = '+00:00'")
        self._connection.cursor().execute("start transaction with consistent snapshot")

    def quoted(self, name: str) -> str:
        return f"`{name}`"

    def bytewise(self, column: str) -> str:
        return f"hex({column})"

    def tables(self) -> list[str]:
        return [
            name
            for (name,) in self.rows(
                "select table_name from information_schema.tables"
                " where table_schema = database() and table_type = 'BASE TABLE' order by table_name"
            )
            if not name.startswith("fishladder_")
        ]

    def shape(self, table: str) -> Shape:
        here = f"table_schema = database() and table_name = '{_own_name(table, self)}'"
        indexes: dict[str, list[str]] = defaultdict(list)
        for name, column in self.rows(
            f"select index_name, column_name from information_schema.statistics where {here} and non_unique = 0"
            " order by index_name, seq_in_index"
        ):
            indexes[name].append(column.lower())
        references: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for name, *row in self.rows(
            "select constraint_name, column_name, referenced_table_name, referenced_column_name"
            f" from information_schema.key_column_usage where {here} and referenced_table_name is not null"
            " order by constraint_name, ordinal_position"
        ):
            references[name].append((row[0].lower(), row[1].lower(), row[2].lower()))
        return Shape(
            columns={
                name.lower(): _meaning(declared)
                for name, declared in self.rows(
                    f"select column_name, data_type from information_schema.columns where {here}"
                    " order by ordinal_position"
                )
            },
            key=tuple(indexes.get("PRIMARY", ())),
            unique=frozenset(tuple(columns) for name, columns in indexes.items() if name != "PRIMARY"),
            foreign_keys=frozenset(
                ForeignKey(
                    columns=tuple(column for column, _, _ in rows),
                    parent=rows[0][1],
                    parent_columns=tuple(parent for _, _, parent in rows),
                )
                for rows in references.values()
            ),
        )

    def rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        # Unbuffered: one row at a time from the server. Read to the end before the next statement.
        with closing(self._connection.cursor(MySQLdb.cursors.SSCursor)) as cursor:
            cursor.execute(statement)
            yield from cursor

    def close(self) -> None:
        self._connection.close()


class _Oracle:
    """Names are taken for such as need no quotes: capital letters there, small ones here."""

    blank_is_null = True

    def __init__(self, *, schema: str | None, **login: Any) -> None:
        self._connection = oracledb.connect(**login)
        self._connection.outputtypehandler = self._exact
        with closing(self._connection.cursor()) as cursor:
            if schema:
                cursor.execute(f"alter session set current_schema = {schema}")
            cursor.execute("set transaction read only")  # one moment; the emulator shows each statement its own
        self._tables: list[str] = []
        self._shapes: dict[str, Shape] = {}

    @staticmethod
    def _exact(cursor: Any, column: Any) -> Any:
        """No number becomes a float, and what is large comes at once."""
        match column.type_code:
            case oracledb.DB_TYPE_NUMBER:
                return cursor.var(str, arraysize=cursor.arraysize, outconverter=_whole_or_decimal)
            case oracledb.DB_TYPE_BLOB:
                return cursor.var(oracledb.DB_TYPE_LONG_RAW, arraysize=cursor.arraysize)
            case oracledb.DB_TYPE_CLOB:
                return cursor.var(oracledb.DB_TYPE_LONG, arraysize=cursor.arraysize)
        return None

    def quoted(self, name: str) -> str:
        return name

    def bytewise(self, column: str) -> str:
        return column  # so it compares by itself

    def tables(self) -> list[str]:
        self._tables = self._tables or [
            name.lower()
            for (name,) in self.rows(
                "select table_name from all_tables where owner = sys_context('userenv', 'current_schema')"
                " order by table_name"
            )
            if not name.startswith("FISHLADDER_")
        ]
        return self._tables

    def shape(self, table: str) -> Shape:
        """Asked for several times; the dictionary takes a fifth of a second for each answer."""
        if table not in self._shapes:
            self._shapes[table] = self._shape(table)
        return self._shapes[table]

    def _shape(self, table: str) -> Shape:
        here = f"owner = sys_context('userenv', 'current_schema') and table_name = '{table.upper()}'"
        constraints = {
            name: (kind, parent)
            for name, kind, parent in self.rows(
                f"select constraint_name, constraint_type, r_constraint_name from all_constraints where {here}"
                " and constraint_type in ('P', 'U', 'R')"
            )
        }
        columns = {name: self._columns(name) for name in constraints}
        keys = [columns[name][1] for name, (kind, _) in constraints.items() if kind == "P"]
        indexes: dict[str, list[str]] = defaultdict(list)
        for name, column in self.rows(
            "select c.index_name, lower(c.column_name) from all_ind_columns c join all_indexes i"
            " on i.owner = c.index_owner and i.index_name = c.index_name"
            f" where i.{here.replace(' and ', ' and i.')} and i.uniqueness = 'UNIQUE'"
            " order by c.index_name, c.column_position"
        ):
            indexes[name].append(column)
        above = {parent: self._columns(parent) for kind, parent in constraints.values() if kind == "R"}
        return Shape(
            columns={
                name: "date or time" if declared == "DATE" else _meaning(declared)
                for name, declared in self.rows(
                    f"select lower(column_name), data_type from all_tab_columns where {here} order by column_id"
                )
            },
            key=keys[0] if keys else (),
            unique=frozenset(tuple(index) for index in indexes.values() if tuple(index) not in keys),
            foreign_keys=frozenset(
                ForeignKey(columns=columns[name][1], parent=above[parent][0], parent_columns=above[parent][1])
                for name, (kind, parent) in constraints.items()
                if kind == "R"
            ),
        )

    def _columns(self, constraint: str) -> tuple[str, tuple[str, ...]]:
        """The table of a constraint and its columns in order."""
        found = list(
            self.rows(
                "select lower(table_name), lower(column_name) from all_cons_columns"
                f" where owner = sys_context('userenv', 'current_schema') and constraint_name = '{constraint}'"
                " order by position"
            )
        )
        return found[0][0], tuple(column for _, column in found)

    def rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor:
            cursor.arraysize = 1000
            cursor.execute(statement)
            yield from cursor

    def close(self) -> None:
        self._connection.close()


def _whole_or_decimal(text: str) -> int | Decimal:
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else number


def _open(url: str) -> Reader:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return _Sqlite(unquote(parts.path[1:]))
    if parts.scheme == "oracle":
        return _Oracle(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 1521,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            service_name=unquote(parts.path[1:]),
            schema=parse_qs(parts.query).get("schema", [None])[0],
        )
    return _Mysql(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=unquote(parts.path[1:]),
    )


def main() -> int:
    """``python -m tests.independent SOURCE TARGET``: print what differs; exit 1 if anything does."""
    problems = compare(*sys.argv[1:3])
    print("\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
