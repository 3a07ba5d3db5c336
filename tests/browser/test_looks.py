"""The other pages in both themes, for eyes that see little, on a phone, and without anything in them."""

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import PHONE, NewPage, check_accessible, check_fits
from tests.browser.test_pages import file_id, jobs, rows
from tests.flow.stack import Stack

__all__ = ["file_id", "jobs", "rows"]
# For each page what must be there before it is looked at.
PAGES = {
    "new?file={file}": "aside .notice, aside dd:text-is('24')",
    "compare?jobs={jobs}": ".big-chart .scatterlayer .trace",
    "playground": ".writer",
    "models": "tbody tr",
    "files": "tbody tr",
    "machines": "article",
    "keys": "tbody tr",
    "webhooks": "h1",
}


def opened(new_page: NewPage, at: str, file: str, both: list[str], **named: object) -> Page:
    page = new_page(at="#/" + at.format(file=file, jobs=",".join(both)), allow=("inline style",), **named)
    page.locator(PAGES[at]).first.wait_for()
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(new_page: NewPage, theme: str, file_id: str, jobs: list[str]) -> None:
    for at in PAGES:
        page = opened(new_page, at, file_id, jobs, theme=theme)
        check_accessible(page)
        page.context.close()


def test_dialogs_and_drawers_are_accessible(new_page: NewPage, jobs: list[str], file_id: str) -> None:
    for at, open_, there in (
        ("files", "tbody button.link", "dialog .sample"),
        ("models", "tbody button.link", "dialog tbody tr"),
        ("keys", "main button.primary", "dialog form"),
        ("webhooks", "main button.primary", "dialog form"),
        ("new?file={file}", "main .head button", "dialog textarea"),
    ):
        page = opened(new_page, at, file_id, jobs, theme="dark")
        page.locator(open_).last.click() if at == "files" else page.locator(open_).first.click()
        page.locator(there).first.wait_for()
        check_accessible(page)
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        page.context.close()


def test_they_fit_a_phone(new_page: NewPage, file_id: str, jobs: list[str]) -> None:
    for at in PAGES:
        page = opened(new_page, at, file_id, jobs, size=PHONE)
        check_fits(page)
        page.context.close()


def test_what_is_empty_says_what_to_do(new_page: NewPage, stack: Stack) -> None:
    made = stack.client().post("/api_keys", body={"name": "newcomer", "owner": "newcomer"}, cast_to=object)
    page = new_page(key=made["value"], at="#/files")  # type: ignore[index]
    for at, text in (
        ("files", "No files yet"),
        ("models", "No model yet"),
        ("compare", "No job yet"),
        ("webhooks", "Nobody is told yet"),
    ):
        page.locator(f"#nav a[href='#/{at}']").click()
        page.get_by_text(text).wait_for()
        check_accessible(page)
