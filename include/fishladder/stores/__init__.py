"""Stores, opened by kind; the drivers are imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from fishladder.errors import FatalError, FishladderError, InputError
from fishladder.stores.application import Application
from fishladder.stores.base import Connect, Store

_STORES = {
    "sqlite": ("fishladder.stores.sqlite", "SqliteStore"),
    "mysql": ("fishladder.stores.mysql", "MySqlStore"),
    "oracle": ("fishladder.stores.oracle", "OracleStore"),
}

_APPLICATIONS = {"sqlite": "SqliteApplication", "mysql": "MySqlApplication", "oracle": "OracleApplication"}

QUOTING = "percent-encode what is special in user, password and path: % is %25, : is %3A, @ is %40, / is %2F, # is %23"


def open_store(kind: str, connect: Connect, *, name: str = "") -> Store:
    """The store of this kind; ``connect`` opens a new DB-API connection. Connects when it is first used.

    ``name``: of the connection, for the errors of connecting. Raises InputError for a kind that cannot be opened.
    """
    if kind not in _STORES:
        raise InputError(f"a store of kind {kind} cannot be opened yet; there are {', '.join(_STORES)}")
    path, class_name = _STORES[kind]
    module = import_module(path)
    store: Store = getattr(module, class_name)(_named(connect, name, module) if name else connect)
    return store


def open_application(kind: str, connect: Connect) -> Application:
    """The application's way into a store of this kind. Raises InputError for a kind that has no transactions."""
    if kind not in _APPLICATIONS:
        raise InputError(f"a store of kind {kind} has no transactions to serve from; {', '.join(_APPLICATIONS)} have")
    application: type[Application] = getattr(import_module(_STORES[kind][0]), _APPLICATIONS[kind])
    return application(connect)


def _named(connect: Connect, name: str, module: Any) -> Connect:
    """Connects as ``connect`` does; an error says which connection it is about."""

    def connected() -> Any:
        try:
            with module.translated():
                return connect()
        except FishladderError as error:
            todo = ": mend the connection, or let the server admit it" if isinstance(error, FatalError) else ""
            raise type(error)(f"connection {name}: {error}{todo}") from error

    return connected


def patience(kind: str) -> Mapping[str, Any]:
    """How long the kind's driver waits for a server that has gone silent, in the driver's own words for connecting."""
    found: Mapping[str, Any] = import_module(_STORES[kind][0]).PATIENCE
    return found


def connect_url(url: str, *, loads: bool = True) -> tuple[str, Connect]:
    """The kind of store that a URL names, and what opens a connection to it.

    ``sqlite:////absolute/path.db``, ``mysql://user:password@host:port/schema`` or
    ``oracle://user:password@host:port/service``, with ``?schema=OWNER`` where the tables are not the user's own;
    special characters in the password percent-encoded. ``loads``: rows are loaded into this store, for which MySQL may
    ask this process for files. Raises InputError; the message never holds the password.
    """
    parts = _split(url)
    if parts.scheme == "sqlite":
        path = unquote(parts.path)[1:]
        if not path:
            raise InputError("a sqlite URL needs a path: sqlite:////absolute/path.db")
        if parts.query or parts.fragment:
            raise InputError("a sqlite URL is a path alone; write %3F for its ? and %23 for its #")
        return "sqlite", lambda: import_module("fishladder.stores.sqlite").connect(path)
    if parts.scheme == "mysql":
        schema = unquote(parts.path).lstrip("/")
        if not parts.hostname or not schema:
            raise InputError(
                f"a mysql URL needs a host and a schema: mysql://user:password@host:3306/schema; {QUOTING}"
            )
        options = {
            "host": parts.hostname,
            "port": parts.port or 3306,
            "user": unquote(parts.username or ""),
            "passwd": unquote(parts.password or ""),
            "db": schema,
            "local_infile": loads,
        }
        return "mysql", lambda: import_module("fishladder.stores.mysql").connect(**options)
    if parts.scheme == "oracle":
        service = unquote(parts.path).lstrip("/")
        if not parts.hostname or not service:
            raise InputError(
                f"an oracle URL needs a host and a service: oracle://user:password@host:1521/service; {QUOTING}"
            )
        account = {"user": unquote(parts.username or ""), "password": unquote(parts.password or "")}
        where = {"host": parts.hostname, "port": parts.port or 1521, "service_name": service}
        owner = parse_qs(parts.query).get("schema", [None])[0]
        return "oracle", lambda: import_module("fishladder.stores.oracle").connect(schema=owner, **account, **where)
    raise InputError(
        f"{parts.scheme or 'nothing'} is no kind of store URL; write sqlite:////path,"
        " mysql://user:password@host/schema or oracle://user:password@host/service"
    )


def _split(url: str) -> SplitResult:
    """The URL's parts. Raises InputError without urllib's own words, in which a password may be taken for a port."""
    try:
        parts = urlsplit(url)
        readable = parts.port is None or parts.port > 0
    except ValueError:
        readable = False
    if not readable or "\0" in unquote(url):
        raise InputError(f"the URL cannot be read: its port must be a number, and it must hold no NUL; {QUOTING}")
    if parts.scheme != "sqlite" and "@" in parts.path + parts.query + parts.fragment:
        raise InputError(f"the URL cannot be read: its password ends too early; {QUOTING}")
    return parts


def connect_environment(connection: str, environment: Mapping[str, str], *, loads: bool = False) -> tuple[str, Connect]:
    """The same for a connection id, from ``FISHLADDER_<CONNECTION>``. Raises InputError when it is not set."""
    name = "FISHLADDER_" + "".join(letter if letter.isalnum() else "_" for letter in connection).upper()
    url = environment.get(name)
    if not url:
        raise InputError(f"connection {connection}: set {name} to its URL, for example sqlite:////path or mysql://…")
    try:
        return connect_url(url, loads=loads)
    except InputError as error:
        raise InputError(f"connection {connection}: {name}: {error}") from error
