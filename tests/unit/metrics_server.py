"""An application's page of metrics, on a port of its own, that a test makes behave in any way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SILENCE = "silence"
"""The status of a page that never answers."""
TRICKLE = "trickle"
"""Of one that answers, a byte at a time, and never ends."""


@dataclass
class Pages:
    """``at``: status, headers and body by path; any other path is 404. ``asked``: what came, in order."""

    url: str
    at: dict[str, tuple[int | str, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, Message]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def say(
        self,
        body: str | bytes,
        *,
        path: str = "/metrics",
        status: int | str = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.at[path] = (status, headers or {}, body.encode() if isinstance(body, str) else body)


@contextmanager
def pages() -> Iterator[Pages]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers))
            status, headers, body = found.at.get(self.path.partition("?")[0], (404, {}, b""))
            if status == SILENCE:
                found.over.wait()
                return
            if status == TRICKLE:
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
                with suppress(OSError):
                    while not found.over.wait(0.02):
                        self.wfile.write(b"x")
                return
            assert isinstance(status, int)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # whoever asked has read enough
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        found = Pages(url=f"http://127.0.0.1:{server.server_address[1]}")
        yield found
        found.over.set()
        server.shutdown()
