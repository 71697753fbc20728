"""One error tree; stores translate their driver's errors into it once.

FishladderError
├── InputError            what a person wrote is wrong: says what, where and what to do
│   └── SpecError         in a migration file, with its line
├── TransientError        nothing is half-done: repeat
├── AmbiguousError        may have been done: read again, never assume
└── FatalError            repeating will not help
    ├── RowError          one row cannot be written: it becomes a reject
    ├── FenceError        a fence refused a write: this store is not open to this writer
    ├── CoverageError     changes may have gone unrecorded: a trigger or a table is not what it was
    ├── StaleError        somebody else did it, or is doing it now: stop
    └── LedgerError       the ledger is missing, older or newer than the code, or its audit chain is broken
"""

from __future__ import annotations


class FishladderError(Exception):
    """The root of every error that fishladder raises on purpose."""


class InputError(FishladderError):
    """What a person wrote is wrong. The message says what, where and what to do."""


class SpecError(InputError):
    """A migration file is wrong. The message starts with ``file:line``."""


class TransientError(FishladderError):
    """Nothing is half-done; the same call may be repeated."""


class AmbiguousError(FishladderError):
    """The call may have taken effect: read again before doing anything else."""


class FatalError(FishladderError):
    """Repeating will not help; a person has to act."""


class RowError(FatalError):
    """A row that the store refuses.

    ``column`` is the store's name of the offending column where the database says it, else None.
    ``unique`` is True when another row holds one of its unique values, ``orphan`` when a row that it refers to is not
    there.
    """

    def __init__(self, message: str, *, column: str | None = None, unique: bool = False, orphan: bool = False) -> None:
        super().__init__(message)
        self.column = column
        self.unique = unique
        self.orphan = orphan


class FenceError(FatalError):
    """A fence says that this store is not open to this writer for this cohort."""


class CoverageError(FatalError):
    """A change may have gone unrecorded: a table or a trigger is not what it was when it was installed."""


class StaleError(FatalError):
    """The work was taken over by somebody else; nothing was written."""


class LedgerError(FatalError):
    """The ledger is missing, of another version than the code, or not what was written to it."""
