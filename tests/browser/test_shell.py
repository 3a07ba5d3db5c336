"""The dashboard's shell: the key, the pages, the themes."""

import httpx2
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, NewPage, check_accessible, check_fits
from tests.flow.stack import Stack

PAGES = ("jobs", "new", "compare", "playground", "models", "files", "machines", "keys", "webhooks")


def test_the_key_of_the_address_is_kept_for_the_tab_and_gone_from_the_address(
    new_page: NewPage, stack: Stack
) -> None:
    page = new_page()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    assert stack.key not in page.url
    assert page.evaluate("sessionStorage.getItem('key')") == stack.key
    assert page.evaluate("localStorage.getItem('key')") is None
    page.reload()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()


def test_without_a_key_it_is_asked_for_and_a_wrong_one_is_told(new_page: NewPage, stack: Stack) -> None:
    page = new_page(key=None, allow=("401",))
    field = page.get_by_label("API key", exact=True)
    expect(page.get_by_role("button", name="Forget key")).to_be_hidden()
    field.fill("ft-wrong")
    page.get_by_label("Remember it on this machine").check()
    page.get_by_role("button", name="Open the dashboard").click()
    page.get_by_text("unknown, expired or revoked").wait_for()
    assert field.get_attribute("aria-invalid") == "true"
    assert field.input_value() == "ft-wrong", "what was typed can be mended"
    check_accessible(page)
    field.fill(stack.key)
    page.get_by_role("button", name="Open the dashboard").click()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    assert page.evaluate("localStorage.getItem('key')") == stack.key
    page.get_by_role("button", name="Forget key").click()
    field.wait_for()
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_link_with_another_key_exchanges_nothing_unasked(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.url}/#key=ft_somebody_elses")
    box = page.get_by_role("dialog")
    box.get_by_text("another API key").wait_for()
    assert "somebody" not in page.url
    box.get_by_role("button", name="Keep it as it is").click()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    assert page.evaluate("sessionStorage.getItem('key')") == stack.key


def test_a_page_that_polls_leaves_no_listeners_behind(page: Page) -> None:
    left = page.evaluate(
        """async () => {
            const { poll } = await import('/dashboard/js/stream.js');
            const leaving = new AbortController();
            let [left, looks] = [0, 0];
            for (const [name, one] of [['addEventListener', 1], ['removeEventListener', -1]]) {
                const own = leaving.signal[name].bind(leaving.signal);
                leaving.signal[name] = (...said) => { left += one; own(...said); };
            }
            await poll(() => { looks += 1; if (looks === 20) leaving.abort(); }, 1, leaving.signal);
            return left;
        }"""
    )
    assert left <= 1, "that of the last round"


def test_every_page_opens(page: Page) -> None:
    for name in PAGES:
        page.locator(f"#nav a[href='#/{name}']").click()
        page.locator(f"#nav a[aria-current=page][href='#/{name}']").wait_for()
        page.locator("main h1").wait_for()
    page.evaluate("location.hash = '#/nothing/here'")
    page.get_by_role("alert").get_by_text("no such page").wait_for()
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_a_page_that_is_left_does_not_call_the_reader_back(page: Page) -> None:
    """Pages write their state into the address; that of a page chosen a moment ago outlives it."""
    page.locator("main .filters button").first.wait_for()
    page.evaluate("location.hash = '#/files'; document.querySelector('main .filters button').click()")
    page.locator("#nav a[aria-current=page][href='#/files']").wait_for()
    page.get_by_role("heading", name="Files", exact=True).wait_for()


def test_the_theme_is_chosen_and_stays(new_page: NewPage) -> None:
    page = new_page()
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ground) != light


def test_the_skip_link_leads_past_the_navigation(new_page: NewPage) -> None:
    page = new_page()
    page.locator("main h1").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.url.endswith("#/jobs")


def test_the_shell_fits_a_phone(new_page: NewPage) -> None:
    """Its pages lie on a line that scrolls sideways: that which is open is in sight."""
    page = new_page(size=PHONE, at="#/webhooks")
    page.locator("main h1").wait_for()
    check_fits(page)
    expect(page.locator("#nav a[aria-current=page]")).to_be_in_viewport(ratio=0.9)


def test_the_files_are_static_packed_and_checked_by_their_tag(stack: Stack) -> None:
    answer = httpx2.get(f"{stack.url}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    script = httpx2.get(f"{stack.url}/dashboard/plotly.min.js", headers={"accept-encoding": "gzip"})
    assert script.headers["content-encoding"] == "gzip"
    assert int(script.headers["content-length"]) < 2_000_000
    again = httpx2.get(
        f"{stack.url}/dashboard/plotly.min.js", headers={"if-none-match": script.headers["etag"]}
    )
    assert again.status_code == 304
    assert again.content == b""
    assert httpx2.get(f"{stack.url}/dashboard/files.py").status_code == 401
