"""Compare the invoices with reladiff. Reads {"source", "target", "columns"} from its input; prints {"seconds", "keys"},
the keys that differ."""

from __future__ import annotations

import json
import sys
import time

from reladiff import connect_to_table, diff_tables  # type: ignore[import-not-found]

given = json.load(sys.stdin)
key, *others = given["columns"]
began = time.perf_counter()
tables = [connect_to_table(given[end], "invoice", key, thread_count=2) for end in ("source", "target")]
keys = {row[0] for _, row in diff_tables(*tables, extra_columns=tuple(others))}
print(json.dumps({"seconds": time.perf_counter() - began, "keys": sorted(map(int, keys))}))
