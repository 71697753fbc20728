"""``make screenshots``: docs/images, taken in a real browser of the demo's DAGs at work.

A migration on SQLite files is played to the moments that are worth a picture: a preflight that fails, a load that is
slow enough to be seen, a reconciliation that finds what was planted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from billing.airflow import Airflow, DemoError
from billing.database import connect
from billing.demo import ROOT, Demo, alone, say
from fishladder.ledger import open_ledger

IMAGES = ROOT / "docs" / "images"
WIDTH = 1500
SCALE = 1280 / WIDTH
"""Airflow's pages need this width, and the images shall be 1280 wide."""
SLOW = 250
"""Rows per second of a lane while the load is looked at."""
STRANGERS = (
    "CREATE TABLE plan (id INTEGER PRIMARY KEY, code VARCHAR(10) NOT NULL, name VARCHAR(40) NOT NULL,"
    " monthly_price DECIMAL_TEXT(8,2) NOT NULL, yearly_price DECIMAL_TEXT(12,2) NOT NULL, on_sale BOOLEAN NOT NULL,"
    " updated_at DATETIME(6) NOT NULL, region VARCHAR(2) NOT NULL)",
    "INSERT INTO plan VALUES (1, 'OLD', 'Of an attempt last year', '1.00', '10.00', 0, '2026-01-01 00:00:00', 'EU')",
    "CREATE TRIGGER plan_of_last_year BEFORE DELETE ON plan BEGIN SELECT RAISE(IGNORE); END",
)
"""What preflight finds in the target: a table that does not fit, a row and a trigger."""


class Camera:
    """A browser that is signed in."""

    def __init__(self, page: Page, airflow: Airflow) -> None:
        self.page, self.airflow = page, airflow
        self.times = True  # are shown in logs
        page.goto(airflow.url)
        page.fill('input[name="username"]', "admin")
        page.fill('input[name="password"]', airflow.passwords["admin"])
        page.click('button[type="submit"]')
        page.get_by_text("Pool Slots").first.wait_for()

    def look(self, path: str, *texts: str) -> None:
        """Open a page and wait until all of these can be read."""
        self.page.goto(self.airflow.url + path)
        for text in texts:
            self.page.get_by_text(text).first.wait_for()

    def look_at_log(self, path: str, *texts: str) -> None:
        """The same of a task's log, from its beginning and without times: the tables in it need the room."""
        self.look(path, "Post Execute")
        if self.times:
            self.page.keyboard.press("t")
            self.times = False
        self.page.keyboard.press("Control+ArrowUp")
        for text in ("Pre Execute", *texts):
            self.page.get_by_text(text).first.wait_for()

    def shoot(self, name: str, height: int = 640) -> None:
        self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.wait_for_load_state("networkidle")
        self.page.screenshot(path=IMAGES / f"{name}.png", animations="disabled", caret="hide")
        say(f"docs/images/{name}.png")


class Tour(Demo):
    """The demo, stopped where there is something to see."""

    def play(self) -> None:
        self.prepare_stores()
        self.start_traffic()
        self.start_airflow()
        assert self.airflow is not None
        self.airflow.wait_for_dag("billing_operate")
        with _browser() as page:
            camera = Camera(page, self.airflow)
            self.preflight(self.airflow, camera)
            self.throttle(camera)
            self.load(self.airflow, camera)
            self.reconcile(self.airflow, camera)
            self.flip(self.airflow, camera)

    def preflight(self, airflow: Airflow, camera: Camera) -> None:
        with closing(connect(self.target)) as db:
            for statement in STRANGERS:
                db.execute(statement)
        run = airflow.trigger("billing_prepare")
        airflow.ended("billing_prepare", run)
        task = f"/dags/billing_prepare/runs/{run}/tasks/preflight"
        camera.look_at_log(task, "empty it first")
        camera.shoot("preflight", 760)
        camera.look(f"{task}/details", "Extra Links")
        camera.shoot("link", 640)
        camera.page.get_by_role("link", name="Evidence", exact=True).click()
        camera.page.get_by_role("heading", name="billing_prepare: preflight").wait_for()
        camera.shoot("evidence", 640)
        with closing(connect(self.target)) as db:
            db.drop("plan")
        self._expect("billing_prepare", "success")

    def throttle(self, camera: Camera) -> None:
        """Make the load slow, by the form."""
        camera.look("/dags/billing_operate", "billing_operate")
        camera.page.get_by_role("button", name="Trigger").first.click()
        form = camera.page.get_by_role("dialog")
        form.get_by_role("combobox").first.fill("throttle")
        camera.page.keyboard.press("Enter")
        form.get_by_role("button", name="For throttle").click()
        form.get_by_label("Rows per second").fill(str(SLOW))
        camera.shoot("form", 1080)
        form.get_by_role("button", name="Trigger", exact=True).click()
        self._wait("the throttle", self._throttled)

    def _throttled(self) -> bool:
        with open_ledger(self.ledger, migration="billing") as ledger:
            return ledger.control().rows_per_second == SLOW

    def load(self, airflow: Airflow, camera: Camera) -> None:
        airflow.unpause("billing_replicate")
        run = airflow.trigger("billing_load")
        self._wait("the lanes of invoice", lambda: self._lanes(airflow, run) == 2)
        camera.look(f"/dags/billing_load/runs/{run}/tasks/invoice.load/mapped", "invoice · lane 1", "invoice · lane 2")
        camera.shoot("load", 600)
        airflow.run("billing_operate", {"action": "throttle", "rows_per_second": 0})
        if airflow.ended("billing_load", run) != "success":
            raise DemoError("billing_load failed; its log says why")

    def _lanes(self, airflow: Airflow, run: str) -> int:
        tasks = airflow.tasks("billing_load", run)
        return sum((task["task_id"], task["state"]) == ("invoice.load", "running") for task in tasks)

    def reconcile(self, airflow: Airflow, camera: Camera) -> None:
        self._plant()
        run = airflow.trigger("billing_reconcile")
        airflow.ended("billing_reconcile", run)
        camera.look_at_log(f"/dags/billing_reconcile/runs/{run}/tasks/outcome", "not clean")
        camera.shoot("outcome", 700)  # what follows is Airflow's own stack
        self._wait("the applier to repair them", lambda: not self._status()["mismatches"])
        self._expect("billing_reconcile", "success")
        camera.look("/dags?tags=billing", "billing_replicate", "billing_operate")
        camera.shoot("dags", 960)

    def flip(self, airflow: Airflow, camera: Camera) -> None:
        """A person is asked, answers, and two countries have moved."""
        airflow.wait_for_dag("billing_flip")
        self._expect("billing_monitor", "success")
        run = airflow.trigger("billing_flip", {"cohorts": ["NZ"], "reason": "the first wave"})
        self._wait("somebody to be asked", lambda: self._asked(airflow, run))
        task = f"/dags/billing_flip/runs/{run}/tasks/country.approve/mapped/0"
        camera.look(f"{task}/required_actions", "Asked for by", "audit chain")
        camera.shoot("approve", 980)
        airflow.approve("billing_flip", run, "country.approve", 0.0)
        if airflow.ended("billing_flip", run) != "success":
            raise DemoError("billing_flip failed; its log says why")
        camera.look(f"/dags/billing_flip/runs/{run}", "cutover")
        camera.shoot("flip", 640)

    def _asked(self, airflow: Airflow, run: str) -> bool:
        tasks = airflow.tasks("billing_flip", run)
        states = {task["state"] for task in tasks if task["task_id"] == "country.approve"}
        return bool(states & {"deferred", "awaiting_input"})


@contextmanager
def _browser() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise DemoError("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(chromium), args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(device_scale_factor=SCALE, locale="en-GB", timezone_id="UTC")
        context.set_default_timeout(60_000)
        yield context.new_page()
        browser.close()


def main() -> int:
    IMAGES.mkdir(exist_ok=True)
    try:
        with alone():
            tour = Tour(real=False, customers=3000, automatic=True)
            try:
                tour.play()
            finally:
                tour.stop()
    except DemoError as error:
        say(f"make screenshots: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
