"""Compare the invoices with Google's data-validation. Reads {"source", "target"} from its input; prints
{"seconds", "keys"}, the keys that differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

given = json.load(sys.stdin)
with tempfile.TemporaryDirectory() as folder:
    for end in ("source", "target"):
        url = urlsplit(given[end])
        connection = {
            "source_type": "MySQL",
            "host": url.hostname,
            "port": url.port,
            "user": url.username,
            "password": url.password,
            "database": url.path[1:],
        }
        (Path(folder) / f"{end}.connection.json").write_text(json.dumps(connection), encoding="utf-8")
    tables = "=".join(f"{given[end].rpartition('/')[2]}.invoice" for end in ("source", "target"))
    began = time.perf_counter()
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("data-validation"), "validate", "row", "-sc", "source", "-tc", "target"),
            *("-tbls", tables, "--primary-keys", given["columns"][0], "--hash", "*", "--filter-status", "fail"),
            *("--format", "json"),
        ],
        env={**os.environ, "PSO_DV_CONN_HOME": folder},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    took = time.perf_counter() - began
rows = json.loads(done.stdout or "{}").values()
keys = {int(json.loads(row["group_by_columns"])[given["columns"][0]]) for row in rows}
print(json.dumps({"seconds": took, "keys": sorted(keys)}))
