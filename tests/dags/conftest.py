"""An Airflow of one's own for these tests: its home is a temporary folder, set before airflow is imported."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from billing import schema
from billing.seed import seed
from fishladder import tasks
from fishladder.tasks import Desk
from tests import ledgers
from tests.scenario.worker import desk

if TYPE_CHECKING:
    from airflow.sdk import DAG

ROOT = Path(__file__).parents[2]
FILE = ROOT / "include/migrations/billing.yaml"
_HOME = tempfile.TemporaryDirectory(prefix="fishladder-airflow-")
ENVIRONMENT = {
    "AIRFLOW_HOME": _HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME.name}/airflow.db",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins", ROOT))),
}
os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def airflow_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Airflow's own tables, made by one process of pytest-xdist and copied by the others."""
    ours, folder = Path(_HOME.name) / "airflow.db", tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "airflow.db"
        if made.exists():
            shutil.copy(made, ours)
            return
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        shutil.copy(ours, made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    source: str
    target: str
    ledger: str


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    return make_stores(tmp_path, monkeypatch)


def make_stores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """A source with customers, an empty target and a ledger, known to Airflow."""
    made = Stores(**{name: f"sqlite:///{folder / name}.db" for name in ("source", "target", "ledger")})
    schema.create(made.source)
    seed(made.source, customers=40, seed=5)
    ledgers.create(made.ledger)
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_SOURCE", made.source)
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_TARGET", made.target)
    monkeypatch.setenv("FISHLADDER_LEDGER", made.ledger)
    return made


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the billing migration, loaded and followed, for each test to copy: it takes seconds to make."""
    folder = tmp_path_factory.mktemp("behind")
    environment = in_folder(folder)
    ledgers.create(environment["FISHLADDER_LEDGER"])
    schema.create(environment["FISHLADDER_BILLING_SOURCE"])
    seed(environment["FISHLADDER_BILLING_SOURCE"], customers=40, seed=7)
    made = desk(FILE, environment)
    tasks.prepare(made, actor="test")
    for table in tasks.cut(made):
        tasks.load_table(made, table, "1")
        tasks.close_table(made, table)
    made.ledger.close()
    return folder


@pytest.fixture
def prepared(behind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The billing migration, loaded and followed, with nothing behind it yet."""
    environment = in_folder(shutil.copytree(behind, tmp_path / "billing"))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    made = desk(FILE, environment)
    tasks.replicate(made, seconds=30, until_idle=True)
    return made


def in_folder(folder: Path) -> dict[str, str]:
    """Where ledger and stores are."""
    environment = {"FISHLADDER_LEDGER": f"sqlite:///{folder}/ledger.db"}
    for name in ("billing_source", "billing_target", "billing_source_app", "billing_target_app"):
        url = f"sqlite:///{folder}/{name.removesuffix('_app')}.db"
        environment |= {f"FISHLADDER_{name.upper()}": url, f"AIRFLOW_CONN_{name.upper()}": url}
    return environment


@pytest.fixture(scope="module")
def dags(airflow_database: None) -> dict[str, DAG]:
    """The DAGs of the billing example, by id."""
    from fishladder_airflow.dags import build

    made = build(FILE)
    for dag in made.values():
        for task in dag.tasks:
            task.retries = 0  # a failure shows at once
    return made


def triggered_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dag.test()`` runs as if this person had triggered it."""
    from airflow.models import dagrun

    real = dagrun.get_or_create_dagrun
    monkeypatch.setattr(dagrun, "get_or_create_dagrun", lambda **given: real(**given | {"triggering_user_name": name}))
