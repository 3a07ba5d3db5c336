"""The list of jobs and the page of one, against jobs that really train."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PHONE, NewPage, check_accessible, check_fits, upload
from tests.embedded.test_up import command, descendants
from tests.flow.stack import ENDED, Stack, wait_for_end

ROWS = Path(__file__).parents[2] / "examples" / "dishes.jsonl"
LOSS = "document.querySelector('[data-chart=loss] .plot')?.data?.[0]?.y ?? []"
# They are drawn one after another, that of the loss first.
DRAWN = "!document.querySelector('.charts .plot:not(.js-plotly-plot)')"
# Of the plot among the charts: a diagnosis that has come meanwhile stands above them.
PLACE = """() => {
  const [plot, charts] = ['[data-chart=loss] .plot', '.charts'].map(
    (at) => document.querySelector(at).getBoundingClientRect());
  return [plot.x, plot.width, plot.height, plot.y - charts.y];
}"""
HANDED = """() => {
  const set = Storage.prototype.setItem;
  Storage.prototype.setItem = function (key, value) {
    if (key === 'new-job') window.handed = value;
    set.call(this, key, value);
  };
}"""


@pytest.fixture(scope="module")
def file_id(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "dishes.jsonl"
    path.write_text("".join(ROWS.open().readlines()[:40]))
    return upload(stack, path)


def submit(stack: Stack, file_id: str, suffix: str, **hyperparameters: Any) -> str:
    given = {"max_length": 32, "total_train_batch_size": 8, **hyperparameters}
    job = stack.client().fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file_id, suffix=suffix, extra_body={"hyperparameters": given}
    )
    return job.id


@pytest.fixture(scope="module")
def done(stack: Stack, file_id: str) -> str:
    """A job that has succeeded, with samples, evaluations, checkpoints, and too few steps."""
    job_id = submit(
        stack, file_id, "short", max_steps=8, eval_steps=4, validation_split=0.2, sample_prompts=["Title:"],
        sample_max_tokens=8,
    )  # fmt: skip
    assert wait_for_end(stack.client(), job_id).status == "succeeded"
    return job_id


@pytest.fixture
def endless(stack: Stack, file_id: str) -> Iterator[str]:
    """A job that trains until it is cancelled, at the latest when its test has ended."""
    # Some ten steps a second: of more than 1,200 a page is given a choice, without the first five.
    job_id = submit(
        stack, file_id, "endless", max_steps=1_000_000, save_steps=100_000, total_train_batch_size=64
    )
    yield job_id
    jobs = stack.client().fine_tuning.jobs
    if jobs.retrieve(job_id).status not in ENDED:
        jobs.cancel(job_id)
        wait_for_end(stack.client(), job_id)


@pytest.fixture(scope="module")
def failed(stack: Stack, file_id: str) -> str:
    job_id = submit(stack, file_id, "hurried", max_steps=1_000_000, max_runtime=1)
    assert wait_for_end(stack.client(), job_id).status == "failed"
    return job_id


def wait_until(page: Page, condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(100)


def api_process(stack: Stack) -> int:
    return next(n for n in descendants(stack.process.pid) if b"app.embedded.api" in command(n))


def test_a_job_is_followed_while_it_trains_reloaded_and_cancelled(
    new_page: NewPage, stack: Stack, endless: str
) -> None:
    """Curves grow without a reload, a reload and a new API process show the same numbers and go on."""
    page = new_page(
        at=f"#/jobs/{endless}",
        allow=("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONTENT_LENGTH", "ERR_CONNECTION"),
    )
    badge = page.locator(".head .badge")
    expect(badge).to_have_text("running", timeout=60_000)
    wait_until(page, lambda: len(page.evaluate(LOSS)) > 5, "a curve")
    seen = page.evaluate(LOSS)
    wait_until(page, lambda: len(page.evaluate(LOSS)) > len(seen), "a curve that grows")
    place = page.evaluate(PLACE)

    page.reload()
    wait_until(page, lambda: len(page.evaluate(LOSS)) > len(seen), "the curve after a reload")
    thinned = stack.get(f"/v1/fine_tuning/jobs/{endless}/metrics", params={"before": 6}).json()["data"]
    assert page.evaluate(LOSS)[: len(thinned)] == seen[: len(thinned)] == [row["loss"] for row in thinned]
    assert page.evaluate(PLACE) == place, "the page has moved"

    os.kill(api_process(stack), signal.SIGKILL)
    seen = page.evaluate(LOSS)
    wait_until(page, lambda: page.evaluate(LOSS)[-1] != seen[-1], "the curve after a restart of the API")
    assert page.evaluate(LOSS)[:5] == seen[:5]

    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(badge).to_have_text("cancelled", timeout=60_000)
    page.get_by_role("button", name="Retry").wait_for()
    page.get_by_text("the last checkpoint is kept").wait_for()


def test_a_finished_job_shows_all_that_it_made(new_page: NewPage, done: str) -> None:
    page = new_page(at=f"#/jobs/{done}")
    expect(page.locator(".head .badge")).to_have_text("succeeded")
    page.locator("#panel-samples").get_by_text("Step 8").wait_for()
    page.get_by_role("tab", name="Checkpoints").click()
    row = page.locator("#panel-checkpoints tbody tr").first
    assert row.locator("td").first.inner_text() == "8"
    assert "ckpt-step-8" in str(row.get_by_role("link", name="Try").get_attribute("href"))
    page.get_by_role("tab", name="Recipe").click()
    cells = page.locator("#panel-recipe tr", has_text="max_steps").locator("td")
    assert cells.all_inner_texts() == ["max_steps", "8", "8"]
    page.get_by_role("tab", name="Model card").click()
    page.locator("#panel-card").get_by_text("Training hyperparameters").wait_for()
    page.get_by_role("tab", name="History").click()
    page.locator("#panel-history").get_by_text("finished").wait_for()
    assert "tab=history" in page.url


def test_zoom_smoothing_scale_and_axis(new_page: NewPage, done: str) -> None:
    page = new_page(at=f"#/jobs/{done}")
    wait_until(page, lambda: len(page.evaluate(LOSS)) == 8 and page.evaluate(DRAWN), "the curves")
    layout = "document.querySelector('[data-chart=loss] .plot').layout"
    page.get_by_label("Log scale").check()
    assert page.evaluate(f"{layout}.yaxis.type") == "log"
    assert (
        page.evaluate("document.querySelector('[data-chart=learning_rate] .plot').layout.yaxis.type")
        == "linear"
    )
    raw = page.evaluate(LOSS)
    page.get_by_label("Smoothing").fill("0.9")
    assert page.evaluate("document.querySelector('[data-chart=loss] .plot').data[1].y") != raw
    page.get_by_label("Smoothing").fill("0")
    box = page.locator("[data-chart=loss] .nsewdrag").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Show all").wait_for()
    low, high = page.evaluate("document.querySelector('[data-chart=grad_norm] .plot').layout.xaxis.range")
    assert 3 < low < high < 8, "the other charts follow"
    page.get_by_role("button", name="Show all").click()
    assert len(page.evaluate(LOSS)) == 8
    page.get_by_role("button", name="Time").click()
    assert page.evaluate("document.querySelector('[data-chart=loss] .plot').data[0].x[0]") == 0


class Fingers:
    """Playwright has a tap alone; the protocol below it has every finger."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)

    def __call__(self, kind: str, *fingers: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(fingers)]
        self._session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


def test_two_fingers_zoom_one_moves_and_two_taps_show_all(new_page: NewPage, done: str) -> None:
    page = new_page(size=PHONE, at=f"#/jobs/{done}")
    wait_until(page, lambda: len(page.evaluate(LOSS)) == 8 and page.evaluate(DRAWN), "the curves")
    touch = Fingers(page)
    plot = page.locator("[data-chart=loss] .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2

    def at(share: float) -> tuple[float, float]:
        return box["x"] + 60 + share * (box["width"] - 72), y

    def shown(chart: str) -> list[float]:
        found = page.evaluate(f"document.querySelector('[data-chart={chart}] .plot').layout.xaxis.range")
        return [round(float(end), 1) for end in found]

    whole = shown("loss")
    middle, quarter = (whole[0] + whole[1]) / 2, (whole[1] - whole[0]) / 8
    scrolled = page.evaluate("scrollY")
    touch("Start", at(0.4))
    touch("Start", at(0.4), at(0.6))
    for spread in (0.1, 0.2, 0.3, 0.4):
        touch("Move", at(0.5 - spread), at(0.5 + spread))
    between = [middle - quarter, middle + quarter]
    assert shown("loss") == pytest.approx(between, abs=0.1), "what was between the fingers fills the chart"
    touch("End")
    page.get_by_role("button", name="Show all").wait_for()
    assert shown("grad_norm") == shown("loss"), "the other charts follow"
    low, high = shown("loss")
    touch("Start", at(0.2))
    for share in (0.4, 0.6):
        touch("Move", at(share))
    touch("End")
    moved = shown("grad_norm")
    assert moved[0] < low
    assert moved[1] - moved[0] == pytest.approx(high - low, abs=0.2)
    assert page.evaluate("scrollY") == scrolled

    def tapped_twice() -> bool:
        """Again where the machine was too slow for two taps in a third of a second."""
        for _ in range(2):
            touch("Start", at(0.5))
            touch("End")
        return shown("loss") == whole

    wait_until(page, tapped_twice, "all of it")
    touch("Start", at(0.5))
    for up in (20, 60, 120):
        touch("Move", (at(0.5)[0], y - up))
    touch("End")
    wait_until(page, lambda: page.evaluate("scrollY") > scrolled, "a page that scrolls under one finger")


def test_a_diagnosis_is_drawn_and_begins_a_new_job_with_the_change(new_page: NewPage, done: str) -> None:
    page = new_page(at=f"#/jobs/{done}")
    card = page.locator(".diagnosis")
    card.get_by_text("Too few steps").wait_for()
    shapes = "document.querySelector('[data-chart=loss] .plot').layout?.shapes?.length ?? 0"
    wait_until(page, lambda: page.evaluate(shapes) > 0, "the evidence on the chart")
    page.evaluate(HANDED)
    card.get_by_role("button", name="New job with this").first.click()
    page.wait_for_url("**/#/new*")
    body = json.loads(page.evaluate("window.handed"))
    given = body["method"]["supervised"]["hyperparameters"]
    assert body["model"] == "tiny-gpt2"
    assert given["total_train_batch_size"] in (4, 8)
    assert given != {"max_length": 32, "total_train_batch_size": 8}


def test_a_failure_says_what_to_do(new_page: NewPage, failed: str) -> None:
    page = new_page(at=f"#/jobs/{failed}")
    card = page.locator(".failure")
    card.get_by_text("Failed: max runtime exceeded").wait_for()
    page.evaluate(HANDED)
    card.get_by_role("button", name="New job with this").click()
    given = json.loads(page.evaluate("window.handed"))["method"]["supervised"]["hyperparameters"]
    assert given["max_runtime"] == 2
    assert given["max_steps"] == 1_000_000


def test_a_checkpoint_is_kept_and_shared(new_page: NewPage, stack: Stack, done: str) -> None:
    page = new_page(at=f"#/jobs/{done}?tab=checkpoints", allow=("400",))
    where = f"/v1/fine_tuning/jobs/{done}/checkpoints"
    row = page.locator("#panel-checkpoints tbody tr").first
    row.get_by_role("button", name="Pin", exact=True).click()
    expect(row.locator(".badge", has_text="pinned")).to_be_visible()
    assert stack.get(where).json()["data"][0]["pinned"]
    row.get_by_role("button", name="Unpin").click()
    expect(row.locator(".badge", has_text="pinned")).to_have_count(0)
    row.get_by_role("button", name="Share").click()
    box = page.get_by_role("dialog", name="Who may use it")
    box.get_by_text("Nobody but you").wait_for()
    box.get_by_role("button", name="Permit").click()
    expect(box.locator(".field-error")).to_be_visible()
    box.get_by_label("Owner").fill("research")
    box.get_by_role("button", name="Permit").click()
    box.get_by_role("row", name="research").wait_for()
    check_accessible(page)
    name = stack.get(where).json()["data"][0]["fine_tuned_model_checkpoint"]
    [permission] = stack.get(f"/v1/fine_tuning/checkpoints/{name}/permissions").json()["data"]
    assert permission["project_id"] == "research"
    box.get_by_title("Take it back from research").click()
    box.get_by_text("Nobody but you").wait_for()


def test_an_answer_that_was_overtaken_is_not_drawn(page: Page, done: str) -> None:
    """A list that was asked for before a click may come after the one that was asked for because of it."""
    held: list[Route] = []

    def answer(route: Route) -> None:
        held.append(route)
        if len(held) == 2:
            route.fulfill(response=route.fetch())
            held[0].fulfill(json={"data": []})

    page.route("**/checkpoints?*", answer)
    drawn = page.evaluate(
        """async (id) => {
            const { makeCheckpoints } = await import('/dashboard/js/job/checkpoints.js');
            const made = makeCheckpoints(id, new AbortController().signal);
            await Promise.all([made.load(), made.load()]);
            return made.element.textContent;
        }""",
        done,
    )
    assert "ckpt-step-8" in drawn


def test_a_job_from_a_checkpoint_is_retried_and_duplicated(
    new_page: NewPage, stack: Stack, file_id: str, done: str
) -> None:
    client = stack.client()
    checkpoint = stack.get(f"/v1/fine_tuning/jobs/{done}/checkpoints").json()["data"][0]
    name = checkpoint["fine_tuned_model_checkpoint"]
    begun = client.fine_tuning.jobs.create(
        model="tiny-gpt2",
        training_file=file_id,
        suffix="onward",
        extra_body={
            "from_checkpoint": f"{done}:{checkpoint['step_number']}",
            "hyperparameters": {"max_steps": 1, "max_length": 32},
        },
    )
    wait_for_end(client, begun.id)
    page = new_page(at=f"#/jobs/{begun.id}")
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: "#/jobs/ftjob-" in url and begun.id not in url)
    again = wait_for_end(client, page.url.rpartition("/")[2])
    assert (again.status, again.model, begun.model) == ("succeeded", name, name), again.error
    page.get_by_role("button", name="Duplicate").click()
    expect(page.get_by_label("Base model")).to_have_value(name)
    expect(page.get_by_label("Suffix")).to_have_value("onward")
    expect(page.locator("aside dt:text-is('Steps') + dd")).to_contain_text("1 ·")
    expect(page.locator(".field-error", has_text="not")).to_have_count(0)


def test_before_the_first_step_there_are_no_axes(new_page: NewPage, stack: Stack, file_id: str) -> None:
    client = stack.client()
    job = client.fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file_id, extra_body={"requires": {"labels": ["nowhere"]}}
    )
    page = new_page(at=f"#/jobs/{job.id}")
    expect(page.get_by_text("Drawn from the first step on.")).to_have_count(5)
    expect(page.locator(".js-plotly-plot")).to_have_count(0)
    client.fine_tuning.jobs.cancel(job.id)


def test_a_job_of_nobody_is_an_error_that_is_designed(new_page: NewPage) -> None:
    page = new_page(at="#/jobs/ftjob-000000000000000000000000", allow=("404",))
    page.get_by_role("alert").get_by_text("Not found").wait_for()
    page.get_by_role("button", name="Try again").wait_for()


def test_the_list_is_filtered_searched_and_says_when_nothing_fits(page: Page, done: str, failed: str) -> None:
    page.get_by_role("link", name="short", exact=True).wait_for()
    page.get_by_role("button", name="Failed").click()
    page.get_by_role("link", name="hurried", exact=True).wait_for()
    expect(page.get_by_role("link", name="short", exact=True)).to_have_count(0)
    assert "status=failed" in page.url
    page.get_by_role("button", name="All", exact=True).click()
    page.keyboard.press("Escape")
    page.locator("main h1").click()
    page.keyboard.press("/")
    page.keyboard.type(done)
    page.get_by_role("link", name="short", exact=True).wait_for()
    expect(page.locator(".jobs tbody tr")).to_have_count(1)
    page.get_by_label("Search jobs").fill("nothing has this name")
    page.get_by_role("heading", name="No such job").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("link", name="short", exact=True).wait_for()


def test_the_list_is_live_and_a_job_is_cancelled_from_it(page: Page, endless: str) -> None:
    row = page.locator(".jobs tbody tr", has_text=endless)
    expect(row.locator(".badge")).to_have_text("running", timeout=60_000)
    wait_until(page, lambda: row.locator(".spark path").get_attribute("d"), "a curve in the row")
    far = row.locator(".far").inner_text()
    wait_until(page, lambda: row.locator(".far").inner_text() != far, "progress")
    row.get_by_role("button", name="Actions for endless").click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(row.locator(".badge")).to_have_text("cancelled", timeout=60_000)


@pytest.mark.parametrize(
    ("at", "asked", "there"),
    [("jobs", "fine_tuning/jobs?*", ".jobs tbody tr"), ("machines", "workers", "article")],
)
def test_a_list_that_does_not_come_can_be_asked_for_again(
    new_page: NewPage, done: str, at: str, asked: str, there: str
) -> None:
    """The answer is made up: a database that is away for the length of one request is hard to order."""
    page = new_page(at="#/models", allow=("503",))
    page.clock.install()  # it asks every three seconds by itself: that is not what is looked at
    page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=1))
    body = {"error": {"message": "The database cannot be reached right now.", "type": "server_error"}}
    page.route(f"**/v1/{asked}", lambda route: route.fulfill(status=503, json=body))
    page.locator(f"#nav a[href='#/{at}']").click()
    page.get_by_role("alert").get_by_text("cannot be reached right now").wait_for()
    page.unroute(f"**/v1/{asked}")
    page.get_by_role("button", name="Try again").click()
    page.locator(there).first.wait_for()


TABS = ("History", "Samples", "Checkpoints", "Recipe", "Model card")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_pages_are_accessible(new_page: NewPage, done: str, failed: str, theme: str) -> None:
    page = new_page(theme=theme)
    page.locator(".jobs tbody tr").first.wait_for()
    check_accessible(page)
    page.evaluate(f"location.hash = '#/jobs/{done}'")
    wait_until(page, lambda: page.evaluate(LOSS), "the curve")
    page.locator("#panel-card li").first.wait_for(state="attached")
    # What is hidden is not looked at: all tabs at once.
    page.evaluate(
        "document.querySelectorAll('[role=tabpanel]').forEach((panel) => { panel.hidden = false; })"
    )
    check_accessible(page)
    page.evaluate(f"location.hash = '#/jobs/{failed}'")
    page.locator(".failure").wait_for()
    check_accessible(page)


def test_both_pages_fit_a_phone(new_page: NewPage, done: str, failed: str) -> None:
    page = new_page(size=PHONE)
    page.locator(".jobs tbody tr").first.wait_for()
    check_fits(page)
    page.evaluate(f"location.hash = '#/jobs/{done}'")
    wait_until(page, lambda: page.evaluate(LOSS), "the curve")
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        check_fits(page)
    page.evaluate(f"location.hash = '#/jobs/{failed}'")
    page.locator(".failure").wait_for()
    check_fits(page)
