"""What tasks work with, out of Airflow's connections: stores, the ledger, the application's accounts.

Hooks, and with them drivers, are imported when a task opens a store, never when a DAG is parsed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from fishladder import stores
from fishladder.errors import FatalError, InputError
from fishladder.ledger import open_ledger
from fishladder.spec import Migration, load
from fishladder.spec_parts import Metric
from fishladder.stores.base import Connect, Store
from fishladder.tasks import Desk, Report

LEDGER = "FISHLADDER_LEDGER"
LEDGER_CONNECTION = "fishladder_ledger"


@contextmanager
def open_desk(migration_file: str, say: Report, kept: Callable[[str], None] = lambda _: None) -> Iterator[Desk]:
    """What the core's tasks need; ``kept`` is told the digests of evidence.

    Raises AirflowFailException, so no retry, where repeating would not help.
    """
    try:
        spec = load(Path(migration_file))
        kinds, serving = spec.kinds(), spec.application_kinds()
        with open_ledger(ledger_url(), migration=spec.migration) as ledger:
            ledger.check_version()
            yield Desk(
                spec=spec,
                ledger=ledger,
                open=lambda name: open_store(kinds[name], name, loads=spec.is_loaded(name)),
                serve=lambda name: stores.open_application(serving[name], _connect(serving[name], name)),
                measure=measure,
                say=say,
                kept=kept,
            )
    except (InputError, FatalError) as error:
        raise AirflowFailException(str(error)) from error


def ledger_url() -> str:
    """The ledger's URL, from the environment or else from Airflow's connection. Raises InputError."""
    if url := os.environ.get(LEDGER):
        return url
    try:
        connection = BaseHook.get_connection(LEDGER_CONNECTION)
    except AirflowNotFoundException as error:
        message = f"there is no ledger: set {LEDGER} to its URL, or create the connection {LEDGER_CONNECTION}"
        raise InputError(message) from error
    if connection.conn_type == "sqlite":
        return "sqlite:///" + _sqlite_path(connection)
    return connection.get_uri().replace("postgres://", "postgresql://", 1)


def open_store(kind: str, connection_id: str, *, loads: bool = False) -> Store:
    """The store behind a connection id; it connects when it is first used. ``loads``: rows are loaded into it.

    Raises InputError if there is no such connection, or it is to another kind of store.
    """
    return stores.open_store(kind, _connect(kind, connection_id, loads=loads), name=connection_id)


def measure(metric: Metric) -> float:
    """A metric's value now, from its connection. Raises InputError and FatalError, which say why there is none."""
    from fishladder import metrics

    connection = _connection(metric.connection)
    if connection.conn_type not in ("http", "https"):
        raise InputError(
            f"connection {metric.connection}: is of type {connection.conn_type}, and a metric takes one of type http"
        )
    # Read as HttpHook reads it: the host may be a whole URL, and the schema is the protocol.
    host = connection.host or ""
    url = host if "://" in host else f"{connection.schema or connection.conn_type}://{host}"
    if connection.port:
        url += f":{connection.port}"
    account = (connection.login, connection.password or "") if connection.login else None
    authorization = str(connection.extra_dejson.get("Authorization", ""))
    return metrics.read(metrics.endpoint(metric.connection, url, account=account, authorization=authorization), metric)


def _connection(connection_id: str) -> Connection:
    try:
        return BaseHook.get_connection(connection_id)
    except AirflowNotFoundException as error:
        variable = f"AIRFLOW_CONN_{connection_id.upper()}"
        message = f"connection {connection_id}: Airflow has none of this id; create it, or set {variable} to its URL"
        raise InputError(message) from error


def _connect(kind: str, connection_id: str, *, loads: bool = False) -> Connect:
    connection = _connection(connection_id)
    if kind not in _CONNECT or connection.conn_type != kind:
        raise InputError(
            f"connection {connection_id}: is of type {connection.conn_type}, and the migration file says {kind}; "
            f"both must be the same, one of {', '.join(_CONNECT)}"
        )
    return _CONNECT[kind](connection, loads=loads)


def _sqlite(connection: Connection, *, loads: bool) -> Connect:
    # The hook's own connection belongs to the thread that opened it, and it cannot read sqlite:////absolute/path.
    _, connect = stores.connect_url("sqlite:///" + quote(_sqlite_path(connection)))
    return connect


def _sqlite_path(connection: Connection) -> str:
    """The file's absolute path, however the connection was written: as host, schema, or URL of 3 or 4 slashes."""
    from airflow.providers.sqlite.hooks.sqlite import SqliteHook

    uri = SqliteHook(connection.conn_id).get_uri()
    return "/" + uri.partition("?")[0].removeprefix("sqlite:").lstrip("/")


def _mysql(connection: Connection, *, loads: bool) -> Connect:
    from airflow.providers.mysql.hooks.mysql import MySqlHook

    from fishladder.stores import patience

    class Hook(MySqlHook):
        def _get_conn_config_mysql_client(self, conn: Connection) -> dict[str, Any]:
            # The only way to say it: of what an Airflow connection says, the hook takes no timeouts.
            return {**patience("mysql"), **super()._get_conn_config_mysql_client(conn)}

    # The connection is handed over, so that whichever thread opens the store asks Airflow nothing.
    hook = Hook(connection.conn_id, connection=connection, local_infile=loads)
    connect: Callable[[], Any] = hook.get_conn
    return connect


def _oracle(connection: Connection, *, loads: bool) -> Connect:
    from airflow.providers.oracle.hooks.oracle import OracleHook

    from fishladder.stores import patience

    # Of all that, the hook takes one from the connection; a stricter one of the operator's stays.
    extra = {"expire_time": patience("oracle")["expire_time"], **connection.extra_dejson}
    connection = attrs.evolve(connection, extra=json.dumps(extra))

    class Hook(OracleHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Connection:
            # It is known: whichever thread opens the store asks Airflow nothing.
            return connection

    connect: Callable[[], Any] = Hook(connection.conn_id).get_conn
    return connect


_CONNECT: Mapping[str, Callable[..., Connect]] = {"mysql": _mysql, "oracle": _oracle, "sqlite": _sqlite}


def accounts(spec: Migration) -> dict[str, str]:
    """The application's login at ``source`` and ``target``, of those of its connections that Airflow knows."""
    found = {}
    for side, connection_id in (("source", spec.application.source), ("target", spec.application.target)):
        try:
            login = BaseHook.get_connection(connection_id).login
        except AirflowNotFoundException:
            continue
        if login:
            found[side] = login
    return found
