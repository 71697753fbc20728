"""Load the invoices with Airflow's GenericTransfer. Reads {"source", "target", "columns"} from its input;
prints {"seconds"}."""

from __future__ import annotations

import json
import os
import sys
import time

given = json.load(sys.stdin)
# Airflow reads connections from the environment.
os.environ["AIRFLOW_CONN_BENCH_SOURCE"] = given["source"] + "?charset=utf8mb4"
os.environ["AIRFLOW_CONN_BENCH_TARGET"] = given["target"] + "?charset=utf8mb4"

from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer  # noqa: E402

columns = given["columns"]
transfer = GenericTransfer(
    task_id="transfer",
    sql=f"SELECT {', '.join(columns)} FROM invoice",
    source_conn_id="bench_source",
    destination_table="invoice",
    destination_conn_id="bench_target",
    insert_args={"target_fields": columns, "executemany": True, "commit_every": 5_000},
)
began = time.perf_counter()
transfer.execute({})
print(json.dumps({"seconds": time.perf_counter() - began}))
