"""The ledger's tables.

Every table has the column ``migration``: one ledger serves many. Names, texts and keys compare byte for byte on every
database. Indexes other than the primary key are unique constraints that end in it, because those are created in the
same statement as their table, and MySQL cannot roll back the first of two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

VERSION_TABLE = "ledger_version"
KEY_BYTES = 767
"""The longest key or entity text: what InnoDB can index in every row format."""


class Moment(TypeDecorator[datetime]):
    """An aware datetime, stored in UTC with microseconds and without a zone."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(mysql.DATETIME(fsp=6) if dialect.name == "mysql" else DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the ledger takes datetimes with a zone only")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def _text(length: int) -> TypeEngine[str]:
    # MySQL's default collations hold 'nz' and 'NZ' to be one cohort.
    return String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql")


MIGRATION = _text(64)
TABLE = _text(128)
COHORT = _text(64)
WORD = _text(32)
NAME = _text(128)
ACTOR = _text(255)
DIGEST = _text(64)
LONG = Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql")
KEY = LargeBinary().with_variant(mysql.VARBINARY(KEY_BYTES), "mysql")
NUMBER = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData()


def _table(name: str, *items: Column[Any] | UniqueConstraint) -> Table:
    # Without AUTOINCREMENT SQLite gives the number of a deleted last row to the next one, and a repeated
    # `forget` would delete an entry that nobody has read.
    numbered = any(isinstance(item, Column) and item.autoincrement is True for item in items)
    return Table(f"ledger_{name}", metadata, *items, sqlite_autoincrement=numbered)


def _id() -> Column[int]:
    return Column("id", NUMBER, primary_key=True, autoincrement=True)


def _migration(*, primary_key: bool = True) -> Column[str]:
    return Column("migration", MIGRATION, primary_key=primary_key, nullable=False)


spec = _table(
    "spec",
    _id(),
    _migration(primary_key=False),
    Column("spec", LONG, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("code_digest", DIGEST, nullable=False),
    Column("actor", ACTOR, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("migration", "id", name="ledger_spec_latest"),
)

route = _table(
    "route",
    _migration(),
    Column("cohort", COHORT, primary_key=True),
    Column("stage", WORD, nullable=False),
    Column("owner", WORD, nullable=False),
    Column("epoch", NUMBER, nullable=False),
    Column("at", Moment, nullable=False),
)

table = _table(
    "table",
    _migration(),
    Column("table", TABLE, primary_key=True),
    Column("generation", NUMBER, nullable=False),
    Column("phase", WORD, nullable=False),
    Column("at", Moment, nullable=False),
)

chunk = _table(
    "chunk",
    _migration(),
    Column("table", TABLE, primary_key=True),
    Column("generation", NUMBER, primary_key=True, autoincrement=False),
    Column("no", NUMBER, primary_key=True, autoincrement=False),
    Column("lower", KEY),
    Column("upper", KEY),
    Column("state", WORD, nullable=False),
    Column("token", NUMBER, nullable=False),
    Column("lane", NAME),
    Column("claimed_at", Moment),
    Column("finished_at", Moment),
    Column("rows", NUMBER, nullable=False),
    UniqueConstraint("migration", "table", "generation", "state", "no", name="ledger_chunk_state"),
)

reject = _table(
    "reject",
    _migration(),
    Column("table", TABLE, primary_key=True),
    Column("key", KEY, primary_key=True),
    Column("entity", KEY),
    Column("cohort", COHORT, nullable=False),
    Column("column", NAME),
    Column("error", LONG, nullable=False),
    Column("at", Moment, nullable=False),
    Column("attempts", NUMBER, nullable=False),
    Column("chunk", NUMBER),
    Column("token", NUMBER),
    Column("state", WORD, nullable=False),
    UniqueConstraint("migration", "table", "chunk", "key", name="ledger_reject_chunk"),
)

dirty = _table(
    "dirty",
    _id(),
    _migration(primary_key=False),
    Column("table", TABLE, nullable=False),
    Column("key", KEY, nullable=False),
    Column("entity", KEY),
    Column("cohort", COHORT, nullable=False),
    Column("origin", WORD, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("migration", "id", name="ledger_dirty_oldest"),
    UniqueConstraint("migration", "table", "key", "id", name="ledger_dirty_key"),
    UniqueConstraint("migration", "cohort", "id", name="ledger_dirty_cohort"),
)

check = _table(
    "check",
    _id(),
    _migration(primary_key=False),
    Column("table", TABLE, nullable=False),
    Column("coverage", LONG, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("finished_at", Moment),
    Column("rows_source", NUMBER, nullable=False),
    Column("rows_target", NUMBER, nullable=False),
    Column("result", LONG),
    Column("clean", Boolean),
    Column("void", LONG),
    UniqueConstraint("migration", "table", "id", name="ledger_check_table"),
)

mismatch = _table(
    "mismatch",
    _migration(),
    Column("check", NUMBER, primary_key=True, autoincrement=False),
    Column("table", TABLE, primary_key=True),
    Column("key", KEY, primary_key=True),
    Column("entity", KEY),
    Column("cohort", COHORT, nullable=False),
    Column("kind", WORD, nullable=False),
    Column("state", WORD, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("migration", "table", "key", "check", name="ledger_mismatch_key"),
)

coverage = _table(
    "coverage",
    _migration(),
    Column("store", WORD, primary_key=True),
    Column("table", TABLE, primary_key=True),
    Column("digest", LONG, nullable=False),
    Column("at", Moment, nullable=False),
)

evidence = _table(
    "evidence",
    _id(),
    _migration(primary_key=False),
    Column("kind", WORD, nullable=False),
    Column("subject", NAME, nullable=False),
    Column("body", LONG, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("began", Moment, nullable=False),
    Column("at", Moment, nullable=False),
    Column("digest", DIGEST, nullable=False),
    UniqueConstraint("migration", "digest", name="ledger_evidence_digest"),
    UniqueConstraint("migration", "kind", "subject", "id", name="ledger_evidence_latest"),
)

control = _table(
    "control",
    _migration(),
    Column("paused", Boolean, nullable=False),
    Column("rows_per_second", NUMBER),
    Column("running_threads", NUMBER),
    Column("replica_lag", NUMBER),
)

status = _table(
    "status",
    _migration(),
    Column("kind", NAME, primary_key=True),
    Column("data", LONG, nullable=False),
    Column("at", Moment, nullable=False),
)

counter = _table(
    "counter",
    _migration(),
    Column("kind", NAME, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("value", NUMBER, nullable=False),
)

# `open` is 1 while the attempt is, then NULL: so a cohort has at most one that is open.
attempt = _table(
    "attempt",
    _id(),
    _migration(primary_key=False),
    Column("cohort", COHORT, nullable=False),
    Column("kind", WORD, nullable=False),
    Column("step", WORD, nullable=False),
    Column("epoch", NUMBER, nullable=False),
    Column("open", NUMBER),
    Column("actor", ACTOR, nullable=False),
    Column("reason", LONG, nullable=False),
    Column("request", ACTOR, nullable=False),
    Column("deadline", NUMBER, nullable=False),
    Column("approvals", NUMBER, nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("fenced_at", Moment),
    Column("switched_at", Moment),
    Column("ended_at", Moment),
    Column("outcome", WORD),
    Column("error", LONG),
    UniqueConstraint("migration", "cohort", "open", name="ledger_attempt_open"),
    UniqueConstraint("migration", "id", name="ledger_attempt_latest"),
)

proof = _table(
    "proof",
    _migration(),
    Column("attempt", NUMBER, primary_key=True, autoincrement=False),
    Column("epoch", NUMBER, primary_key=True, autoincrement=False),
    Column("kind", WORD, primary_key=True),
    Column("body", LONG, nullable=False),
    Column("at", Moment, nullable=False),
)

queue = _table(
    "queue",
    _id(),
    _migration(primary_key=False),
    Column("cohort", COHORT, nullable=False),
    Column("entity", KEY, nullable=False),
    Column("operation", NAME, nullable=False),
    Column("idempotency_key", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("payload", LONG, nullable=False),
    Column("state", WORD, nullable=False),
    Column("result", LONG),
    Column("reason", LONG),
    Column("attempts", NUMBER, nullable=False),
    Column("optimistic", WORD),
    Column("at", Moment, nullable=False),
    Column("due_at", Moment),
    Column("finished_at", Moment),
    UniqueConstraint("migration", "operation", "entity", "idempotency_key", name="ledger_queue_key"),
    UniqueConstraint("migration", "cohort", "state", "id", name="ledger_queue_cohort"),
    UniqueConstraint("migration", "entity", "state", "id", name="ledger_queue_entity"),
)

# `at` is text here: an event is digested as it is stored, so it must come back exactly as it went in.
audit = _table(
    "audit",
    _migration(),
    Column("sequence", NUMBER, primary_key=True, autoincrement=False),
    Column("at", WORD, nullable=False),
    Column("actor", ACTOR, nullable=False),
    Column("event", NAME, nullable=False),
    Column("body", LONG, nullable=False),
    Column("previous", DIGEST, nullable=False),
    Column("digest", DIGEST, nullable=False),
)

audit_head = _table(
    "audit_head",
    _migration(),
    Column("sequence", NUMBER, nullable=False),
    Column("digest", DIGEST, nullable=False),
)
