"""The other pages in both themes, for eyes that see little, on a phone, and without anything in them."""

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import PHONE, NewPage, check_accessible, check_fits
from tests.flow.stack import Stack

# For each page what must be there before it is looked at.
PAGES = {
    "new?file={file}": "aside dd:text-is('24')",
    "compare?jobs={jobs}": ".big-chart .scatterlayer .trace",
    "playground": ".writer",
    "models": "tbody tr",
    "files": "tbody tr",
    "machines": "article",
    "keys": "tbody tr",
    "webhooks": ".state",
}
# Page, what opens a dialog on it, what is to be in that.
DIALOGS = (
    ("files", "tbody tr:last-child button.link", ".sample"),
    ("models", "tbody button.link", "tbody tr"),
    ("keys", ".head button.primary", "form"),
    ("webhooks", ".head button.primary", "form"),
    ("new?file={file}", ".head button", "textarea"),
)


def turn_to(page: Page, at: str, file: str, both: list[str]) -> None:
    page.evaluate("at => { location.hash = at; }", f"#/{at.format(file=file, jobs=','.join(both))}")
    page.locator(f"#nav a[aria-current=page][href='#/{at.partition('?')[0]}']").wait_for()
    page.locator(PAGES[at]).first.wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(new_page: NewPage, theme: str, file_id: str, jobs: list[str]) -> None:
    page = new_page(theme=theme)
    for at in PAGES:
        turn_to(page, at, file_id, jobs)
        check_accessible(page)


def test_nor_in_dialogs(new_page: NewPage, jobs: list[str], file_id: str) -> None:
    page = new_page(theme="dark")
    for at, opener, there in DIALOGS:
        turn_to(page, at, file_id, jobs)
        page.locator(f"main {opener}").first.click()
        page.locator(f"dialog {there}").first.wait_for()
        check_accessible(page)
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")


def test_they_fit_a_phone(new_page: NewPage, file_id: str, jobs: list[str]) -> None:
    page = new_page(size=PHONE)
    for at in PAGES:
        turn_to(page, at, file_id, jobs)
        check_fits(page)
    page.evaluate(f"location.hash = '#/jobs/{jobs[0]}?tab=card'")  # its name is as long as names may be
    page.locator("#panel-card li").first.wait_for()
    check_fits(page)


def test_what_is_empty_says_what_to_do(new_page: NewPage, stack: Stack) -> None:
    made = stack.client().post("/api_keys", body={"name": "newcomer", "owner": "newcomer"}, cast_to=object)
    page = new_page(key=made["value"])  # type: ignore[index]
    for at, text in (
        ("files", "No files yet"),
        ("models", "No model yet"),
        ("compare", "No job yet"),
        ("webhooks", "Nobody is told yet"),
    ):
        page.locator(f"#nav a[href='#/{at}']").click()
        page.get_by_text(text).wait_for()
