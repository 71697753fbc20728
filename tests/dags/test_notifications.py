"""Airflow's own callbacks, given to ``build``: whoever they tell can say what is wrong, where, and what to do."""

from __future__ import annotations

import email
import email.policy
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing
from email.message import EmailMessage
from queue import Queue
from typing import Any

import pytest
from airflow.sdk import Context

from billing.database import connect
from fishladder_airflow.dags import PATIENCE, RETRIES, build
from tests.dags.conftest import FILE, ROOT, Stores


class Mailbox(socketserver.ThreadingTCPServer):
    """A mail server of a few words of SMTP that keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.letters: Queue[EmailMessage] = Queue()


class Conversation(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.say("220 at your service")
        for line in self.rfile:
            match line.split()[0].upper():
                case b"DATA":
                    self.say("354 go on")
                    lines = iter(self.rfile.readline, b".\r\n")
                    letter = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                    assert isinstance(letter, EmailMessage)
                    self.server.letters.put(letter)
                case b"QUIT":
                    return self.say("221 bye")
            self.say("250 well")
        return None

    def say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """A mail server that Airflow's ``smtp_default`` is a connection to."""
    with Mailbox() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        options = "disable_ssl=true&disable_tls=true&from_email=airflow@example.com"
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", f"smtp://{address}/?{options}")
        yield server
        server.shutdown()


def documented(to: str) -> dict[str, Any]:
    """The DAG file of the documents that sends mail to this address."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/dags.md").read_text("utf-8"), re.M | re.S)
    (text,) = (block for block in blocks if to in block)
    names: dict[str, Any] = {"__file__": str(ROOT / "dags/billing.py")}
    exec(text, names)
    return names


def test_the_documented_notifier_says_what_where_and_what_to_do(
    airflow_database: None, stores: Stores, mailbox: Mailbox
) -> None:
    with closing(connect(stores.target)) as db:
        db.execute("CREATE TABLE plan (id INTEGER PRIMARY KEY, code VARCHAR(20))")
    run = documented("oncall@")["billing_prepare"].test()
    letter = mailbox.letters.get(timeout=30)
    assert (letter["To"], letter["Subject"]) == ("oncall@example.com", "billing_prepare.preflight failed")
    body = letter.get_body(("html",))
    assert body is not None
    said = body.get_content()
    assert "plan.name" in said and "the target has no column name; use rename: or drop:" in said
    assert f"/dags/billing_prepare/runs/{run.run_id}"[:30] in said
    assert mailbox.letters.empty()  # one for what failed, none for the tasks after it


def test_the_documented_pager_hears_of_loud_monitors_and_of_nothing_else(
    airflow_database: None, stores: Stores, mailbox: Mailbox
) -> None:
    with closing(connect(stores.target)) as db:
        db.execute("CREATE TABLE customer (balance DECIMAL_TEXT(12,2))")
        db.execute("CREATE TABLE gift_card (remaining_amount DECIMAL_TEXT(12,2))")
        db.execute("CREATE TABLE subscription (active INTEGER)")
        db.execute("INSERT INTO customer VALUES ('-1.00')")
    made = documented("pager@")
    made["billing_monitor"].test()
    letter = mailbox.letters.get(timeout=30)
    assert (letter["To"], letter["Subject"]) == ("pager@example.com", "billing_monitor")
    body = letter.get_body(("html",))
    assert body is not None
    said = body.get_content()
    assert "negative_balance must be zero: target 1" in said
    assert "active_subscriptions must be positive: target 0" in said and "overdrawn_gift_cards" not in said
    assert mailbox.letters.empty()
    dags = {name: dag for name, dag in made.items() if name.startswith("billing_")}
    assert len(dags) == 9
    assert [name for name, dag in dags.items() if any(task.on_failure_callback for task in dag.tasks)] == [
        "billing_monitor"
    ]


def silent(context: Context) -> None:
    pass


def test_every_task_has_what_the_dag_file_gives_and_keeps_the_rest() -> None:
    given = {"on_failure_callback": silent, "queue": "near_the_target"}
    for dag in build(FILE, default_args=given).values():
        for task in dag.tasks:
            assert list(task.on_failure_callback) == [silent] and task.queue == "near_the_target", task.task_id
            if task.label not in ("operate", "approve"):
                assert task.retries in (RETRIES, PATIENCE), task.task_id
    for dag in build(FILE).values():
        assert not any(task.on_failure_callback for task in dag.tasks)
