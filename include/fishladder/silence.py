"""Servers that have gone silent: a firewall that drops packets, a machine that is gone, a server that hangs.

A statement may rightly take long, so nobody can tell from a missing answer that none will come. The kernels can: they
ask each other, whatever the server is at. Only a server that hangs while its kernel answers takes ``SILENT_SECONDS``.
"""

from __future__ import annotations

import os
import socket

CONNECT_SECONDS = 30
SILENT_SECONDS = 7_200
"""How long no byte may come from a server that owes an answer, or be taken by it: longer than any one statement."""
ASK_AFTER, ASK_EVERY, ASK_TIMES = 60, 10, 6
"""Seconds of silence before the other end's kernel is asked, between the questions, and how many go unanswered."""
SOON = 15
"""How long customers wait, in seconds, for the kernel of a server that is gone."""


def keep_asking(descriptor: int) -> None:
    """Have the connection behind a file descriptor end, with an error, two minutes after the other end's kernel has."""
    with socket.socket(fileno=os.dup(descriptor)) as end:
        if end.family in (socket.AF_INET, socket.AF_INET6):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ASK_AFTER)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASK_EVERY)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, ASK_TIMES)


def end_soon(descriptor: int) -> None:
    """Have it end ``SOON`` after the other end's kernel has, or has taken nothing of what was sent.

    Not for a copier: a server that is long at a statement may take nothing more of what belongs to it meanwhile.
    """
    with socket.socket(fileno=os.dup(descriptor)) as end:
        if end.family in (socket.AF_INET, socket.AF_INET6):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(SOON // 3, 1))
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(SOON // 3, 1))
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SOON * 1000)
