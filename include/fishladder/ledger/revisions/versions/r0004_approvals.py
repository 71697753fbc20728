"""How many people have to approve an attempt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # If not there: MySQL commits it by itself, and a revision that was cut short is run again.
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("ledger_attempt")}
    if "approvals" not in there:
        op.add_column("ledger_attempt", sa.Column("approvals", NUMBER, nullable=False, server_default="1"))
