"""A TCP proxy in front of a MySQL server, which cuts a connection at a chosen packet, or lets it fall silent there.

It parts what clients send into MySQL's packets, so that a test says where by what is said, never by the time.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

At = Callable[[int, bytes], bool]
"""Given the number of a connection and a packet of its client's (without the header): whether this is the one.

It may block: then the connection stands still.
"""

HEADER = 4
SO_ATTACH_FILTER = 26
"""Linux's, for a program that says which packets a socket gets."""


@dataclass(slots=True, eq=False)
class _Link:
    """A client's connection. ``left``: bytes of the answer that still get through before it is cut; None: all."""

    number: int
    client: socket.socket
    server: socket.socket
    left: int | None = None

    def cut(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):  # it ended by itself
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Stands in front of the server of a ``mysql://`` URL; ``url`` is the same one by way of the proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 3306)
        self._listening = socket.create_server(("127.0.0.1", 0))
        account = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{self._listening.getsockname()[1]}"))
        self._lock = threading.Lock()
        self._at: At | None = None
        self._answer: int | None = None
        self._silent: bool | None = None
        self._ended = threading.Event()
        self._links: set[_Link] = set()
        self._opened = count()
        self.packets = 0
        """How many clients have sent so far."""

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._ended.set()
        for link in list(self._links):
            link.cut()

    def cut(self, at: At, *, answer: int | None = 0) -> None:
        """Cut the connection of the next packet that ``at`` says yes to, once.

        ``answer``: how many bytes of the server's answer its client still gets, when the server has done what the
        packet asks for. None: the server does not even get the packet.
        """
        with self._lock:
            self._at, self._answer, self._silent = at, answer, None

    def silence(self, at: At, *, dropped: bool) -> None:
        """Nothing passes any more from the packet on that ``at`` says yes to, on its connection; no end is told.

        ``dropped``: the client's packets are not even acknowledged, as behind a firewall that drops them.
        """
        with self._lock:
            self._at, self._silent = at, dropped

    def drop(self) -> None:
        """What clients send on connections that are open now is not even acknowledged any more."""
        for link in list(self._links):
            _drop_all(link.client)

    def spare(self) -> bool:
        """Cut nothing more. Returns whether nothing was cut since ``cut``."""
        with self._lock:
            waiting, self._at = self._at is not None, None
            return waiting

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()  # as the server would refuse it
                continue
            link = _Link(next(self._opened), client, server)
            self._links.add(link)
            for work in (self._ask, self._answer_to):
                threading.Thread(target=self._carry, args=(work, link), daemon=True).start()

    def _carry(self, work: Callable[[_Link], None], link: _Link) -> None:
        try:
            work(link)
        except OSError:
            pass  # one end is gone, so the other one goes
        finally:
            link.cut()
            self._links.discard(link)

    def _ask(self, link: _Link) -> None:
        for packet in self._packets(link):
            if self._is_it(link.number, packet[HEADER:]):
                if self._silent is not None:
                    if self._silent:
                        _drop_all(link.client)
                    self._ended.wait()
                    return
                if self._answer is None:
                    return
                link.left = self._answer
            link.server.sendall(packet)

    def _packets(self, link: _Link) -> Iterator[bytes]:
        """What the client sends, in packets with their headers."""
        waiting = b""
        while more := link.client.recv(1 << 16):
            waiting += more
            while len(waiting) >= HEADER:
                end = HEADER + int.from_bytes(waiting[:3], "little")
                if len(waiting) < end:
                    break
                packet, waiting = waiting[:end], waiting[end:]
                yield packet

    def _is_it(self, connection: int, packet: bytes) -> bool:
        at = self._at
        with self._lock:
            self.packets += 1
        if at is None or not at(connection, packet):
            return False
        with self._lock:
            mine, self._at = self._at is at, None
            return mine

    def _answer_to(self, link: _Link) -> None:
        while data := link.server.recv(1 << 16):
            if link.left is None:
                link.client.sendall(data)
                continue
            link.client.sendall(data[: link.left])
            link.left -= len(data)
            if link.left <= 0:
                return


class PlainProxy(Proxy):
    """In front of a server that does not speak MySQL's words: its packets are whatever comes at once."""

    def _packets(self, link: _Link) -> Iterator[bytes]:
        while more := link.client.recv(1 << 16):
            yield more


def _drop_all(end: socket.socket) -> None:
    """Have the kernel drop whatever is sent to this socket, before it acknowledges it."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # return 0: of the packet, nothing
    end.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def saying(words: bytes) -> At:
    """The packet that has these words in it."""
    return lambda _, packet: words in packet


def number(wanted: int) -> At:
    """The packet with this number from now on, beginning with 0, whatever it says."""
    counted = iter(range(wanted + 1))
    lock = threading.Lock()

    def at(*_: object) -> bool:
        with lock:
            return next(counted, None) == wanted

    return at


def in_turn(*steps: At) -> At:
    """The packet of the last step, after packets of all the others on the same connection, in this order."""
    reached: dict[int, int] = {}

    def at(connection: int, packet: bytes) -> bool:
        step = reached.get(connection, 0)
        if not steps[step](connection, packet):
            return False
        reached[connection] = min(step + 1, len(steps) - 1)
        return step == len(steps) - 1

    return at


COMMIT = saying(b"\x03COMMIT")
"""The command COM_QUERY and its words."""
