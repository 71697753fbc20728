"""When a queued write that failed may be tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fishladder.ledger.revisions.versions.r0001_initial import MOMENT

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # If not there: MySQL commits it by itself, and a revision that was cut short is run again.
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("ledger_queue")}
    if "due_at" not in there:
        op.add_column("ledger_queue", sa.Column("due_at", MOMENT))
