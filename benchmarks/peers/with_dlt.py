"""Load the invoices with dlt. Reads {"source", "target"} from its input, MySQL URLs; prints {"seconds"}."""

from __future__ import annotations

import json
import sys
import tempfile
import time

import dlt  # type: ignore[import-not-found]
from dlt.sources.sql_database import sql_database  # type: ignore[import-not-found]

given = json.load(sys.stdin)
source, target = (
    f"{given[end].replace('mysql:', 'mysql+mysqldb:', 1)}?charset=utf8mb4" for end in ("source", "target")
)
with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    pipeline = dlt.pipeline(
        "bench",
        pipelines_dir=folder,
        destination=dlt.destinations.sqlalchemy(target),
        dataset_name=target.partition("?")[0].rpartition("/")[2],
    )
    # The target's table is there already, and dlt adds two columns of its own to it.
    pipeline.run(sql_database(source, table_names=["invoice"], reflection_level="full_with_precision"))
    print(json.dumps({"seconds": time.perf_counter() - began}))
