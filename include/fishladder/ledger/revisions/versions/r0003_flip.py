"""Attempts, their proofs, and the queue of writes that wait for a flip."""

from __future__ import annotations

import sqlalchemy as sa

from fishladder.ledger.revisions.versions.r0001_initial import (
    ACTOR,
    COHORT,
    DIGEST,
    KEY,
    LONG,
    MIGRATION,
    MOMENT,
    NAME,
    NUMBER,
    WORD,
    _column,
    _create,
    _unique,
)

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create(
        "attempt",
        _column("migration", MIGRATION),
        _column("cohort", COHORT),
        _column("kind", WORD),
        _column("step", WORD),
        _column("epoch", NUMBER),
        sa.Column("open", NUMBER),
        _column("actor", ACTOR),
        _column("reason", LONG),
        _column("request", ACTOR),
        _column("deadline", NUMBER),
        _column("opened_at", MOMENT),
        sa.Column("fenced_at", MOMENT),
        sa.Column("switched_at", MOMENT),
        sa.Column("ended_at", MOMENT),
        sa.Column("outcome", WORD),
        sa.Column("error", LONG),
        _unique("attempt_open", "migration", "cohort", "open"),
        _unique("attempt_latest", "migration", "id"),
    )
    _create(
        "proof",
        _column("migration", MIGRATION),
        _column("attempt", NUMBER),
        _column("epoch", NUMBER),
        _column("kind", WORD),
        _column("body", LONG),
        _column("at", MOMENT),
        key=("migration", "attempt", "epoch", "kind"),
    )
    _create(
        "queue",
        _column("migration", MIGRATION),
        _column("cohort", COHORT),
        _column("entity", KEY),
        _column("operation", NAME),
        _column("idempotency_key", NAME),
        _column("digest", DIGEST),
        _column("payload", LONG),
        _column("state", WORD),
        sa.Column("result", LONG),
        sa.Column("reason", LONG),
        _column("attempts", NUMBER),
        sa.Column("optimistic", WORD),
        _column("at", MOMENT),
        sa.Column("finished_at", MOMENT),
        _unique("queue_key", "migration", "operation", "entity", "idempotency_key"),
        _unique("queue_cohort", "migration", "cohort", "state", "id"),
        _unique("queue_entity", "migration", "entity", "state", "id"),
    )
