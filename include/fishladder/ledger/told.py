"""What the target was told of the ledger: a ledger that does not know it has been restored from a backup (ADR 7).

A telling is a number, which only grows, and a word that nobody could guess. The target keeps the last one it heard.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select

from fishladder.errors import LedgerError
from fishladder.ledger import audit, tables
from fishladder.ledger.database import Transaction

KIND = "told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """``number`` 0: nothing yet."""

    number: int
    word: str


def tell(tx: Transaction, heard: Told, *, adopting: bool = False) -> Told:
    """A new telling, with a number above all others; what is older than ``heard`` is forgotten.

    Raises LedgerError when more was heard than was ever told here, unless that is being adopted.
    """
    audit.head(tx, lock=True)  # two who tell at once take turns
    columns = tables.counter.c
    mine = (columns.migration == tx.migration, columns.kind == KIND)
    last = tx.connection.scalar(select(func.max(columns.value)).where(*mine)) or 0
    if heard.number > last and not adopting:
        raise LedgerError(
            f"the ledger of {tx.migration} does not know what it told the target last: it was restored from a backup,"
            " or is another one. Have it adopted: python -m fishladder ledger adopt FILE"
        )
    told = Told(number=max(last, heard.number) + 1, word=secrets.token_hex(16))
    row = {"migration": tx.migration, "kind": KIND, "name": told.word, "value": told.number}
    tx.connection.execute(insert(tables.counter).values(row))
    tx.connection.execute(delete(tables.counter).where(*mine, columns.value < heard.number))
    return told


def knows(tx: Transaction, told: Told) -> bool:
    columns = tables.counter.c
    query = select(columns.value).where(
        columns.migration == tx.migration, columns.kind == KIND, columns.name == told.word
    )
    return told.number == 0 or tx.connection.scalar(query) == told.number
