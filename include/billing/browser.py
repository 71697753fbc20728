"""A person at Airflow's pages: a browser of their own, signed in, that clicks what they would click."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from billing.airflow import TRIES, Airflow, DemoError

WIDTH = 1500
"""Airflow's pages need this."""
PATIENCE = 60_000
"""Milliseconds to wait for what must appear."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's own. Raises DemoError where there is none."""
    found = shutil.which("chromium")
    if found is None:
        raise DemoError("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(found), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """Signed in under one of Airflow's users. ``scale``: of the screenshots."""

    def __init__(self, browser: Browser, airflow: Airflow, user: str, *, scale: float = 1.0) -> None:
        self.airflow = airflow
        context = browser.new_context(
            device_scale_factor=scale,
            locale="en-GB",
            timezone_id="UTC",
            viewport={"width": WIDTH, "height": 900},
        )
        context.set_default_timeout(PATIENCE)
        self.page: Page = context.new_page()
        self.page.goto(airflow.url)
        self.page.fill('input[name="username"]', user)
        self.page.fill('input[name="password"]', airflow.passwords[user])
        self.page.click('button[type="submit"]')
        self.page.get_by_text("Pool Slots").first.wait_for()

    def look(self, path: str, *texts: str) -> None:
        """Open a page and wait until all of these can be read."""
        self.page.goto(self.airflow.url + path)
        for text in texts:
            self.page.get_by_text(text).first.wait_for()

    def switch_on(self, dag: str) -> None:
        """Of a DAG's page; clicked again where Airflow fails it. Raises DemoError when it fails every time."""
        self.look(f"/dags/{dag}", dag)
        switch = self.page.locator('[data-scope="switch"][data-part="control"]').first
        switch.wait_for()
        for _ in range(TRIES):
            if switch.get_attribute("data-state") == "checked":
                return
            with self.page.expect_response(lambda answer: answer.request.method == "PATCH") as sent:
                switch.click()
            if sent.value.ok:
                return
        raise DemoError(f"Airflow does not switch {dag} on; its log is in {self.airflow.home}")

    def form(self, dag: str) -> Locator:
        """Switch the DAG on and open the form that starts a run."""
        self.switch_on(dag)
        self.page.get_by_role("button", name="Trigger").first.click()
        form = self.page.get_by_role("dialog")
        form.get_by_role("button", name="Trigger", exact=True).wait_for()
        return form

    def send(self, form: Locator) -> str:
        """Start the run, with a second click where Airflow fails the first. Returns its id."""
        button = form.get_by_role("button", name="Trigger", exact=True)
        with self.page.expect_response(lambda answer: answer.request.method == "POST") as first:
            button.click()
        if not first.value.ok:
            button.click()
        self.page.wait_for_url("**/runs/**")
        run = self.page.url.partition("/runs/")[2].partition("?")[0]
        self.page.goto("about:blank")  # the page of a run that goes on keeps a processor busy
        return run

    def fill_cohorts(self, form: Locator, cohorts: Sequence[str], reason: str) -> None:
        form.locator("#element_cohorts").fill("\n".join(cohorts))
        form.locator("#element_reason").fill(reason)

    def answer(self, dag: str, run: str, word: str) -> None:
        """Find what a run asks among the required actions, read it, and answer with one of its buttons.

        Raises Playwright's TimeoutError when it is not asked, or not answered, in time.
        """
        link = self.page.locator(f'a[href*="/dags/{dag}/runs/{run}/tasks/"]')
        self.look("/required_actions", "Required Action")
        for _ in range(PATIENCE // 2000):  # the page does not look again by itself
            if link.count():
                break
            self.page.wait_for_timeout(2000)
            self.page.reload()
        link.first.click()
        self.page.get_by_text("Evidence as of").wait_for()
        self.page.get_by_role("button", name=word, exact=True).click()
        self.page.get_by_text("response successful").wait_for()
