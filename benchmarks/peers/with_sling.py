"""Load the invoices with sling. Reads {"source", "target"} from its input, MySQL URLs; prints {"seconds"}."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sling_linux_amd64  # type: ignore[import-not-found]

given = json.load(sys.stdin)
# The package's program itself: the wrapper `sling` looks for another version elsewhere.
program = Path(sling_linux_amd64.__file__).parent / "bin" / "sling-linux-amd64"
program.chmod(0o755)
with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    subprocess.run(
        [
            *(program, "run", "--src-conn", "BENCH_SOURCE", "--tgt-conn", "BENCH_TARGET", "--mode", "truncate"),
            *("--src-stream", f"{given['source'].rpartition('/')[2]}.invoice"),
            *("--select", "-external_id"),
            *("--tgt-object", f"{given['target'].rpartition('/')[2]}.invoice"),
        ],
        env={
            **os.environ,
            "HOME": folder,
            "BENCH_SOURCE": given["source"],
            "BENCH_TARGET": given["target"],
            "SLING_DISABLE_TELEMETRY": "true",
        },
        stdout=sys.stderr,
        check=True,
    )
    print(json.dumps({"seconds": time.perf_counter() - began}))
