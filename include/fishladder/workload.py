"""The test workload of a rehearsal: a command of the service's own, run alone and never left behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

TAIL_BYTES, TAIL_LINES = 16_384, 20
"""Of what the command printed, this much of its end is logged."""
OURS = ("AIRFLOW", "FISHLADDER_")
"""How variables begin that lead to a migration's stores, to its ledger and to Airflow itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended: its exit code (None: it never did by itself), seconds, and what is wrong with that."""

    exit_code: int | None
    seconds: float
    problem: str | None


def environment_for(environment: Mapping[str, str], connections: Collection[str], ledger: str | None) -> dict[str, str]:
    """The worker's environment without whatever leads to a store, a ledger or Airflow, but for these connections.

    ``ledger``: the URL that stands in ``FISHLADDER_LEDGER`` instead.
    """
    kept = {f"AIRFLOW_CONN_{name.upper()}" for name in connections}
    kept |= {"FISHLADDER_" + "".join(c if c.isalnum() else "_" for c in name).upper() for name in connections}
    found = {name: value for name, value in environment.items() if name in kept or not name.startswith(OURS)}
    return found | ({"FISHLADDER_LEDGER": ledger} if ledger is not None else {})


def run(command: str, *, patience: float, environment: Mapping[str, str], say: Callable[[str], None]) -> Ran:
    """Run a command without a shell, for ``patience`` seconds at most. It and all that it has begun end with this call.

    Its last lines go to ``say`` alone: they may hold values.
    """
    began = time.monotonic()

    def ran(exit_code: int | None, problem: str | None) -> Ran:
        return Ran(exit_code=exit_code, seconds=round(time.monotonic() - began, 3), problem=problem)

    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # with what it begins it is one group, which can be ended as a whole
            )
        except OSError as error:
            return ran(None, f"the command cannot be run on this worker: {error.strerror}")
        try:
            exit_code = process.wait(patience)
        except subprocess.TimeoutExpired:
            return ran(None, f"the command took longer than {patience:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _say_end(output, say)
    return ran(exit_code, f"the command ended with exit code {exit_code}" if exit_code else None)


def _say_end(output: IO[bytes], say: Callable[[str], None]) -> None:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - TAIL_BYTES))
    for line in output.read().decode(errors="replace").splitlines()[-TAIL_LINES:]:
        say(f"command: {line}")
