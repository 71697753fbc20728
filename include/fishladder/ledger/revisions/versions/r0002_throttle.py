"""Two more ways to slow a migration down."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # One by one, if not there: MySQL commits each by itself, and a revision that was cut short is run again.
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("ledger_control")}
    for name in ("running_threads", "replica_lag"):
        if name not in there:
            op.add_column("ledger_control", sa.Column(name, NUMBER))
