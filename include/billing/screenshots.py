"""``make screenshots``: docs/images, taken in a real browser of the demo's DAGs at work.

A migration on SQLite files is played to the moments that are worth a picture: a preflight that fails, a load that is
slow enough to be seen, a reconciliation that finds what was planted.
"""

from __future__ import annotations

from contextlib import closing

from playwright.sync_api import Browser

from billing.airflow import Airflow, DemoError
from billing.browser import WIDTH, Person, chromium
from billing.database import connect
from billing.demo import ROOT, Demo, alone, say
from fishladder.ledger import open_ledger

IMAGES = ROOT / "docs" / "images"
SCALE = 1280 / WIDTH
"""The images shall be 1280 wide."""
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


class Camera(Person):
    """Whoever takes the pictures."""

    def __init__(self, browser: Browser, airflow: Airflow, user: str = "admin") -> None:
        super().__init__(browser, airflow, user, scale=SCALE)
        self.times = True  # are shown in logs

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
        with chromium() as browser:
            camera = Camera(browser, self.airflow)
            self.preflight(self.airflow, camera)
            self.throttle(camera)
            self.load(self.airflow, camera)
            self.reconcile(self.airflow, camera)
            self.flip(self.airflow, camera, Camera(browser, self.airflow, "approver"))

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
        form = camera.form("billing_operate")
        form.get_by_role("combobox").first.fill("throttle")
        camera.page.keyboard.press("Enter")
        form.get_by_role("button", name="For throttle").click()
        form.get_by_label("Rows per second").fill(str(SLOW))
        camera.shoot("form", 1080)
        camera.send(form)
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
        camera.shoot("dags", 1480)

    def flip(self, airflow: Airflow, camera: Camera, approver: Camera) -> None:
        """A person asks, another one reads and answers, and a country has moved; then two at once."""
        airflow.wait_for_dag("billing_flip")
        self.start_routed("IE")
        self._expect("billing_monitor", "success")
        form = camera.form("billing_flip")
        camera.fill_cohorts(form, ["NZ"], "the first wave")
        camera.shoot("flip-form", 900)
        run = camera.send(form)
        self._wait("somebody to be asked", lambda: self._asked(airflow, run) == 1)
        task = f"/dags/billing_flip/runs/{run}/tasks/country.approve/mapped/0"
        approver.look(f"{task}/required_actions", "Asked for by")
        approver.shoot("approve", 1200)
        approver.page.get_by_role("button", name="Approve", exact=True).scroll_into_view_if_needed()
        approver.shoot("answer", 1200)  # another height would scroll it away
        self._answered(airflow, run)
        self._expect("billing_reconcile", "success")  # by rows that have moved
        self._expect("billing_monitor", "success")
        form = camera.form("billing_flip")
        camera.fill_cohorts(form, ["AU", "IE"], "the second wave")
        run = camera.send(form)
        self._wait("somebody to be asked", lambda: self._asked(airflow, run) == 2)
        self._answered(airflow, run)
        camera.look(f"/dags/billing_flip/runs/{run}/tasks/group/country", "IE")
        camera.shoot("flip", 1250)
        camera.look_at_log(f"/dags/billing_flip/runs/{run}/tasks/country.done/mapped/1", "writes queued")
        camera.shoot("summary", 640)
        camera.look("/fishladder/billing_flip/cohorts", "live")
        camera.shoot("cohorts", 560)

    def _answered(self, airflow: Airflow, run: str) -> None:
        airflow.approve("billing_flip", run, "country.approve", 0.0)
        if airflow.ended("billing_flip", run) != "success":
            raise DemoError("billing_flip failed; its log says why")

    def _asked(self, airflow: Airflow, run: str) -> int:
        """How many answers are awaited."""
        states = [task["state"] for task in airflow.tasks("billing_flip", run) if task["task_id"] == "country.approve"]
        return sum(state in ("deferred", "awaiting_input") for state in states)


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
