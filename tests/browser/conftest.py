"""The dashboard in the system's Chromium, against one real service for all of these files.

stack     the service: Postgres, Valkey, API, worker, generator (the session's; `stack.client()` is the SDK)
browser   Chromium (module: Playwright's loop must not run while other files' asynchronous tests do)
page      a page with the key, on a wide screen; fails its test on any error on the console, any script that
          breaks, and any request that leaves the machine
new_page  makes more of them: other sizes, themes, with or without a key
file_id   a training file of 24 rows, `rows`; `jobs` are two of it that have ended, of different recipes
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.flow.stack import Stack, wait_for_end

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE = (1280, 860)
PHONE = (375, 740)
PATIENCE = 60_000  # ms for what takes a moment on an idle machine
ROWS = [
    {"text": f"Stir the rice {word} and serve it with {word} beans."} for word in ("gently", "twice", "warm")
] * 8

NewPage = Callable[..., Page]
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def stack(shared_stack: Stack) -> Stack:
    return shared_stack


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def file_id(stack: Stack, rows: Path) -> str:
    return upload(stack, rows)


@pytest.fixture(scope="session")
def jobs(stack: Stack, file_id: str) -> list[str]:
    client = stack.client()
    made = [
        client.fine_tuning.jobs.create(
            model="tiny-gpt2",
            training_file=file_id,
            suffix=suffix,
            extra_body={"hyperparameters": {"max_steps": 3, "learning_rate": rate}},
        ).id
        for suffix, rate in (("low" + "w" * 61, 1e-4), ("high", 2e-3))
    ]
    for job_id in made:
        wait_for_end(client, job_id)
    return made


def chromium() -> str:
    """The system's browser. Skips where there is none, but never in continuous integration."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on this machine")
    assert found, "continuous integration needs a Chromium"
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    with sync_playwright() as playwright:
        # Chromium will not sandbox for root; --disable-gpu: software drawing needs no second process.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=[*options, "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser, stack: Stack) -> Iterator[NewPage]:
    """new_page(size=PHONE, theme="dark", key=None, at="#/jobs", allow=(…)): an open page.

    `allow` are parts of console errors that the test means to see: a browser writes one for every 4xx.
    """
    contexts, wrong = [], []

    def make(
        size: tuple[int, int] = WIDE,
        theme: Any = "light",
        key: str | None = "the first",
        at: str = "#/jobs",
        allow: tuple[str, ...] = (),
    ) -> Page:
        phone = size[0] < 600
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=theme,
            has_touch=phone,
            is_mobile=phone,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)

        def said(kind: str, text: str) -> None:
            if not any(part in text for part in allow):
                wrong.append(f"{kind}: {text}")

        page.on(
            "console",
            lambda message: (
                said(message.type, message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: said("script", str(error)))
        page.on(
            "request",
            lambda request: None if _is_ours(request.url, stack.url) else said("request", request.url),
        )
        if key is not None:
            page.goto(f"{stack.url}/#key={stack.key if key == 'the first' else key}")
            page.wait_for_url("**/#/jobs")
        page.goto(f"{stack.url}/{at}")
        return page

    yield make
    for context in contexts:
        context.close()
    assert not wrong, wrong


def _is_ours(url: str, service: str) -> bool:
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).netloc == urlsplit(service).netloc


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


def check_accessible(page: Page) -> None:
    """Raises AssertionError with what axe finds: WCAG 2 A and AA, and its best practices."""
    found = Axe().run(page).response["violations"]
    assert not found, "\n".join(
        f"{rule['id']}: {rule['help']}\n  {node['html'][:200]}\n  {node.get('failureSummary', '')}"
        for rule in found
        for node in rule["nodes"][:3]
    )


def check_fits(page: Page) -> None:
    """Raises AssertionError where the page is wider than the screen."""
    sizes = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert sizes[0] <= sizes[1], f"{sizes[0]} px on a screen of {sizes[1]}"


def upload(stack: Stack, path: Path) -> str:
    """A training file's id."""
    with path.open("rb") as file:
        return stack.client().files.create(file=file, purpose="fine-tune").id
