"""What an application registers: its operations, each in the legacy and the new implementation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from fishladder.cells import key_text
from fishladder.errors import InputError
from fishladder.ledger import canonical

Payload: TypeAlias = Mapping[str, Any]
"""What an operation is called with: JSON."""
Implementation: TypeAlias = Callable[[Any, Payload], Any]
"""Takes a DB-API connection with a transaction open, which it must not end, and the payload; returns JSON.

It may run again under the same key: what it did in that transaction is undone then, what it did elsewhere is not.
"""
Promise: TypeAlias = Callable[[Payload, str], None]
"""Takes the payload and a key under which it takes effect once, however often it is called."""
Entity: TypeAlias = str | int | tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """``legacy`` runs on the source, ``new`` on the target.

    ``refusals``: exceptions by which the business says no; a queued write that meets one is refused, not repeated.
    ``optimistic``: done at once when a write is queued (such as releasing a hold), and ``undo``, under the key with
    ``:undo``, when the business refuses that write later.
    ``ignore``: of a read whose two answers differ, why that is no mismatch; None if it is one.
    """

    name: str
    legacy: Implementation
    new: Implementation
    refusals: tuple[type[Exception], ...] = ()
    optimistic: Promise | None = None
    undo: Promise | None = None
    ignore: Callable[[Payload, Any, Any], str | None] = lambda payload, ours, theirs: None

    def on(self, owner: str) -> Implementation:
        return self.legacy if owner == "source" else self.new


class Operations:
    """By name. ``connected``: told of each new connection and whose it is, ``source`` or ``target``, to set it up."""

    def __init__(self, *, connected: Callable[[Any, str], None] = lambda connection, side: None) -> None:
        self._connected = connected
        self._known: dict[str, Operation] = {}

    def add(self, name: str, legacy: Implementation, new: Implementation | None = None, **more: Any) -> Operation:
        """Register an operation; without ``new`` both stores run ``legacy``. Raises InputError for a name twice."""
        if name in self._known:
            raise InputError(f"the operation {name} is registered already")
        self._known[name] = Operation(name=name, legacy=legacy, new=new or legacy, **more)
        return self._known[name]

    def for_side(self, side: str) -> Callable[[Any], None]:
        """What sets up a new connection to this store."""
        return lambda connection: self._connected(connection, side)

    def __getitem__(self, name: str) -> Operation:
        if name not in self._known:
            raise InputError(f"there is no operation {name}; registered are {', '.join(sorted(self._known)) or 'none'}")
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)


def load_operations(entry_point: str) -> Operations:
    """The operations at ``package.module:name``. Raises InputError when there are none."""
    module, _, name = entry_point.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # the application's own module may raise anything
        why = f"{type(error).__name__}: {error}"
        raise InputError(
            f"application.operations: {entry_point}: {why}; the code must be importable where tasks run"
        ) from error
    if not isinstance(found, Operations):
        raise InputError(f"application.operations: {entry_point} is no fishladder.serving.Operations")
    return found


def entity_text(entity: Entity) -> bytes:
    """The entity as fishladder's tables have it."""
    cells = entity if isinstance(entity, tuple) else (entity,)
    return key_text(str(cell).encode() for cell in cells)


def payload_text(payload: Payload) -> tuple[str, str]:
    """A payload as one JSON text, and its digest. Raises InputError for what is no JSON."""
    try:
        text = canonical(dict(payload))
    except (TypeError, ValueError) as error:
        raise InputError(f"a payload is JSON: {error}; write amounts and dates as texts") from error
    return text, hashlib.sha256(text.encode()).hexdigest()
