"""alembic runs this file; ``fishladder.ledger.version`` gives it the connection, with a transaction begun."""

from __future__ import annotations

from alembic import context

from fishladder.ledger.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
