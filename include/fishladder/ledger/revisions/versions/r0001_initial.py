"""The ledger's first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A revision never changes, so it has types of its own.
BINARY = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
LONG = sa.Text().with_variant(mysql.LONGTEXT(**BINARY), "mysql")
KEY = sa.LargeBinary().with_variant(mysql.VARBINARY(767), "mysql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")


def _text(length: int) -> Any:
    return sa.String(length).with_variant(mysql.VARCHAR(length, **BINARY), "mysql")


MIGRATION, TABLE, COHORT, WORD, NAME, ACTOR, DIGEST = map(_text, (64, 128, 64, 32, 128, 255, 64))


def _column(name: str, type_: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False)


def _create(name: str, *columns: sa.Column[Any] | sa.Constraint, key: tuple[str, ...] = ()) -> None:
    """A table with this primary key; without one its rows are numbered by ``id``."""
    items: list[Any] = [*columns, sa.PrimaryKeyConstraint(*key)] if key else list(columns)
    if not key:
        items.insert(0, sa.Column("id", NUMBER, primary_key=True, autoincrement=True))
    # if_not_exists: MySQL commits each table by itself, and a revision that was cut short is run again.
    op.create_table(f"ledger_{name}", *items, sqlite_autoincrement=not key, if_not_exists=True)


def _unique(name: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=f"ledger_{name}")


def upgrade() -> None:
    _create(
        "spec",
        _column("migration", MIGRATION),
        _column("spec", LONG),
        _column("digest", DIGEST),
        _column("code_digest", DIGEST),
        _column("actor", ACTOR),
        _column("at", MOMENT),
        _unique("spec_latest", "migration", "id"),
    )
    _create(
        "route",
        _column("migration", MIGRATION),
        _column("cohort", COHORT),
        _column("stage", WORD),
        _column("owner", WORD),
        _column("epoch", NUMBER),
        _column("at", MOMENT),
        key=("migration", "cohort"),
    )
    _create(
        "table",
        _column("migration", MIGRATION),
        _column("table", TABLE),
        _column("generation", NUMBER),
        _column("phase", WORD),
        _column("at", MOMENT),
        key=("migration", "table"),
    )
    _create(
        "chunk",
        _column("migration", MIGRATION),
        _column("table", TABLE),
        _column("generation", NUMBER),
        _column("no", NUMBER),
        sa.Column("lower", KEY),
        sa.Column("upper", KEY),
        _column("state", WORD),
        _column("token", NUMBER),
        sa.Column("lane", NAME),
        sa.Column("claimed_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        _column("rows", NUMBER),
        _unique("chunk_state", "migration", "table", "generation", "state", "no"),
        key=("migration", "table", "generation", "no"),
    )
    _create(
        "reject",
        _column("migration", MIGRATION),
        _column("table", TABLE),
        _column("key", KEY),
        sa.Column("entity", KEY),
        _column("cohort", COHORT),
        sa.Column("column", NAME),
        _column("error", LONG),
        _column("at", MOMENT),
        _column("attempts", NUMBER),
        sa.Column("chunk", NUMBER),
        sa.Column("token", NUMBER),
        _column("state", WORD),
        _unique("reject_chunk", "migration", "table", "chunk", "key"),
        key=("migration", "table", "key"),
    )
    _create(
        "dirty",
        _column("migration", MIGRATION),
        _column("table", TABLE),
        _column("key", KEY),
        sa.Column("entity", KEY),
        _column("cohort", COHORT),
        _column("origin", WORD),
        _column("at", MOMENT),
        _unique("dirty_oldest", "migration", "id"),
        _unique("dirty_key", "migration", "table", "key", "id"),
        _unique("dirty_cohort", "migration", "cohort", "id"),
    )
    _create(
        "check",
        _column("migration", MIGRATION),
        _column("table", TABLE),
        _column("coverage", LONG),
        _column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        _column("rows_source", NUMBER),
        _column("rows_target", NUMBER),
        sa.Column("result", LONG),
        sa.Column("clean", sa.Boolean()),
        sa.Column("void", LONG),
        _unique("check_table", "migration", "table", "id"),
    )
    _create(
        "mismatch",
        _column("migration", MIGRATION),
        _column("check", NUMBER),
        _column("table", TABLE),
        _column("key", KEY),
        sa.Column("entity", KEY),
        _column("cohort", COHORT),
        _column("kind", WORD),
        _column("state", WORD),
        _column("at", MOMENT),
        _unique("mismatch_key", "migration", "table", "key", "check"),
        key=("migration", "check", "table", "key"),
    )
    _create(
        "coverage",
        _column("migration", MIGRATION),
        _column("store", WORD),
        _column("table", TABLE),
        _column("digest", LONG),
        _column("at", MOMENT),
        key=("migration", "store", "table"),
    )
    _create(
        "evidence",
        _column("migration", MIGRATION),
        _column("kind", WORD),
        _column("subject", NAME),
        _column("body", LONG),
        _column("passed", sa.Boolean()),
        _column("began", MOMENT),
        _column("at", MOMENT),
        _column("digest", DIGEST),
        _unique("evidence_digest", "migration", "digest"),
        _unique("evidence_latest", "migration", "kind", "subject", "id"),
    )
    _create(
        "control",
        _column("migration", MIGRATION),
        _column("paused", sa.Boolean()),
        sa.Column("rows_per_second", NUMBER),
        key=("migration",),
    )
    _create(
        "status",
        _column("migration", MIGRATION),
        _column("kind", NAME),
        _column("data", LONG),
        _column("at", MOMENT),
        key=("migration", "kind"),
    )
    _create(
        "counter",
        _column("migration", MIGRATION),
        _column("kind", NAME),
        _column("name", NAME),
        _column("value", NUMBER),
        key=("migration", "kind", "name"),
    )
    _create(
        "audit",
        _column("migration", MIGRATION),
        _column("sequence", NUMBER),
        _column("at", WORD),
        _column("actor", ACTOR),
        _column("event", NAME),
        _column("body", LONG),
        _column("previous", DIGEST),
        _column("digest", DIGEST),
        key=("migration", "sequence"),
    )
    _create(
        "audit_head",
        _column("migration", MIGRATION),
        _column("sequence", NUMBER),
        _column("digest", DIGEST),
        key=("migration",),
    )
