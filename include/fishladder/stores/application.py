"""A store as the application uses it, through its own account and its own driver connection (design §9).

What the router adds to an operation's transaction: the fence, held shared, before it, and the applied key after it.
The operation itself runs on the same DB-API connection, inside that transaction. Nothing is read there before it but by
a locking read: else what the operation reads would be of that moment (MySQL, REPEATABLE READ), and not of when it has
got the locks that it waited for.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from fishladder.errors import AmbiguousError, FenceError, FishladderError, RowError, TransientError
from fishladder.stores.base import Connect, Fence, Writer

_REFUSED = "refused "
"""Stands before the digest of what was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An operation that took effect under its idempotency key. ``result`` is JSON.

    ``refused``: one that the business said no to when it was replayed, and never takes effect; for ``result``, a text.
    """

    digest: str
    result: str | None
    refused: bool = False


class Application:
    """The application's transactions in one store. Threads may share it: each transaction has a connection."""

    begin: ClassVar[str] = "START TRANSACTION"
    begin_reading: ClassVar[str] = "START TRANSACTION"
    """Empty where a transaction begins by itself."""
    shared = " FOR SHARE"
    errors: Callable[..., AbstractContextManager[None]]
    """The store's own translation of its driver's errors."""

    def __init__(self, connect: Connect) -> None:
        self.connected: Callable[[Any], None] = lambda connection: None
        """What the application does to each new connection of its own."""
        self._connect = connect
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def prepare(self, connection: Any) -> None:
        """Set a new connection up: nothing is committed but by ``commit``."""

    def marked(self, sql: str) -> str:
        """The statement with the driver's own marks for parameters, instead of ``?``."""
        return sql.replace("?", "%s")

    def hold(self, session: Session, cohort: str) -> None:
        """What has to be locked, shared, before a fence is read, where its row cannot be."""

    def is_passing(self, error: Exception) -> bool:
        """Whether the driver says that the same transaction may succeed when it is repeated on a new connection."""
        try:
            with type(self).errors():
                raise error
        except (TransientError, AmbiguousError):
            return True
        except Exception:  # noqa: BLE001 - whatever else it is, it is the application's own, and goes to its caller
            return False

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Iterator[Session]:
        """Ends with ``commit()``; without it everything is undone. Raises TransientError and FatalError."""
        connection = self._take()
        session = Session(self, connection)
        broken = True
        try:
            if begin := self.begin_reading if reading else self.begin:
                session.run(begin)
            yield session
            broken = False
        finally:
            if session.committed:
                self._put(connection)
            else:
                self._undo(connection, broken=broken)

    def try_out(self, cohort: str) -> None:
        """Do what the router does around an operation, and undo it. Raises FatalError when a right is missing."""
        nobody, key = b"0:", secrets.token_hex(16)
        with self.transaction() as session:
            session.fence(cohort, hold=True)
            session.home(nobody)
            session.applied("try", nobody, key)
            with suppress(FenceError):  # rights are asked for before a trigger says no
                session.record("try", nobody, key, Applied(digest="try", result=None))

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            with suppress(FishladderError), type(self).errors():
                connection.close()

    def _take(self) -> Any:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        with type(self).errors():
            connection = self._connect()
            try:
                self.prepare(connection)
                self.connected(connection)
                connection.commit()  # what the application asked there is no part of the transaction
            except BaseException:
                with suppress(Exception):  # of a connection that is lost already
                    connection.close()
                raise
        return connection

    def _put(self, connection: Any) -> None:
        with self._lock:
            self._idle.append(connection)

    def _undo(self, connection: Any, *, broken: bool) -> None:
        """After an error the connection is given up with its transaction, for nobody knows in what state it is."""
        try:
            with type(self).errors():
                connection.rollback()
                if not broken:
                    self._put(connection)
                    return
                connection.close()
        except FishladderError:
            self.close()  # it is gone, and its transaction with it; whoever ended it has ended the idle ones, too


class Session:
    """One transaction of the application."""

    def __init__(self, application: Application, connection: Any) -> None:
        self.connection = connection
        self.committed = False
        self._application = application

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with type(self._application).errors():
            cursor = self.connection.cursor()
            try:
                cursor.execute(self._application.marked(sql), *([list(parameters)] if parameters else []))
                return list(cursor.fetchall()) if cursor.description else []
            finally:
                cursor.close()

    def fence(self, cohort: str, *, hold: bool) -> Fence | None:
        """``hold``: nobody raises it before this transaction ends."""
        if hold:
            self._application.hold(self, cohort)
        lock = self._application.shared if hold else ""
        found = self.run(f"SELECT writer, epoch FROM fishladder_fence WHERE cohort = ?{lock}", [cohort])
        return _fence(found[0]) if found else None

    def home(self, entity: bytes) -> str | None:
        """The cohort of an entity, for ever."""
        found = self.run("SELECT cohort FROM fishladder_home WHERE entity = ?", [entity.decode()])
        return _text(found[0][0]) if found else None

    def applied(self, operation: str, entity: bytes, key: str) -> Applied | None:
        """What was recorded under this key, here or in the other store before it came here."""
        sql = "SELECT digest, result FROM fishladder_applied WHERE operation = ? AND entity = ? AND idempotency_key = ?"
        found = self.run(sql, [operation, entity.decode(), key])
        if not found:
            return None
        digest, result = found[0]
        return Applied(
            digest=_text(digest).removeprefix(_REFUSED),
            result=None if result is None else _text(result),
            refused=_text(digest).startswith(_REFUSED),
        )

    def record(self, operation: str, entity: bytes, key: str, applied: Applied) -> bool:
        """Whether nobody has recorded the key; else this transaction must not commit."""
        sql = (
            "INSERT INTO fishladder_applied (operation, entity, idempotency_key, digest, result) VALUES (?, ?, ?, ?, ?)"
        )
        digest = _REFUSED + applied.digest if applied.refused else applied.digest
        try:
            self.run(sql, [operation, entity.decode(), key, digest, applied.result])
        except RowError as error:
            if not error.unique:
                raise
            return False
        return True

    def commit(self) -> None:
        """Raises AmbiguousError when it may have happened."""
        with type(self._application).errors(committing=True):
            self.connection.commit()
        self.committed = True


def _fence(row: tuple[Any, ...]) -> Fence:
    writer: Writer = _text(row[0])  # type: ignore[assignment]
    return Fence(writer=writer, epoch=int(row[1]))


def _text(value: Any) -> str:
    if hasattr(value, "read"):  # a large object of Oracle's
        value = value.read()
    return value.decode() if isinstance(value, bytes) else str(value)
