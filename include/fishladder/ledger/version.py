"""Creating and upgrading the ledger's tables (alembic, in ``revisions``), and telling whether they fit the code.

Alembic is imported where it is used: whoever parses a DAG file imports the ledger, and must not wait for that.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from fishladder.errors import LedgerError
from fishladder.ledger.database import UPGRADE, open_engine, transaction, upgrading
from fishladder.ledger.tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

# alembic keeps the upgrade under way in module globals, so two threads must not be in it.
_ALEMBIC = threading.Lock()


def upgrade(url: str) -> None:
    """Bring the ledger's tables to this code's version; does nothing if they are. Several may do it at once.

    Raises InputError, LedgerError (the ledger is newer than the code), TransientError, FatalError.
    """
    from alembic import command
    from alembic.util import CommandError

    engine = open_engine(url)
    try:
        with _ALEMBIC, upgrading(engine) as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise LedgerError(f"the ledger is not one that this code can upgrade ({error}): install newer code") from error
    finally:
        engine.dispose()


def check_version(engine: Engine) -> None:
    """Raises LedgerError unless the ledger's tables are those of this code; else TransientError, FatalError."""
    from alembic.script import ScriptDirectory

    found = None
    with transaction(engine, writing=False) as connection:
        if inspect(connection).has_table(VERSION_TABLE):
            found = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    scripts = ScriptDirectory.from_config(_config())
    newest = scripts.get_current_head()
    if found == newest:
        return
    where = engine.url.render_as_string(hide_password=True)
    if found is None:
        raise LedgerError(f"there is no ledger in {where}; run `{UPGRADE}`")
    if found in {script.revision for script in scripts.walk_revisions()}:
        raise LedgerError(f"the ledger in {where} is older ({found}) than this code ({newest}); run `{UPGRADE}`")
    raise LedgerError(
        f"the ledger in {where} is newer ({found}) than this code ({newest}); "
        f"install the code whose `{UPGRADE}` made it so"
    )


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "revisions").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
