"""The pages beside the jobs': the whole main job done by clicking, and what each page shows and does.

Accessibility, phone width and themes of these pages: test_looks.py.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app.auth import SCOPES
from app.webhooks.event import TYPES
from tests.app.receiver import Receiver, receiving
from tests.browser.conftest import NewPage
from tests.flow.stack import Stack, wait_for, wait_for_end

LINE = "Adam with betas=(0.9,0.95) and epsilon=1e-08"  # as a card has it


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def fact(page: Page, name: str) -> Any:
    """The value beside a name in the dry run."""
    return page.locator(f"aside dt:text-is('{name}') + dd")


def test_the_main_job_by_clicking(new_page: NewPage, stack: Stack, rows: Path, tmp_path: Path) -> None:
    page = new_page(at="#/new")
    page.get_by_label("Drop or choose a training file").set_input_files(rows)
    # What training makes of it: all is learned but the first token, which nothing stands before.
    sample = page.locator(".sample").first
    expect(sample.locator("mark.learned")).to_contain_text("Stir the rice"[3:])
    page.get_by_text("Report", exact=True).click()
    expect(page.get_by_text("Rows that say the same as an earlier one")).to_be_visible()
    expect(fact(page, "Examples")).to_have_text("24")
    page.locator("[data-preset=quick]").click()
    expect(fact(page, "Steps")).to_contain_text("200")
    expect(page.locator("[data-preset=quick]")).to_have_attribute("aria-pressed", "true")
    page.locator("input[name=max_steps]").fill("3")
    expect(page.locator("[data-preset=quick]")).to_have_attribute("aria-pressed", "false")
    expect(fact(page, "Steps")).to_contain_text(re.compile("^3 ·"))
    page.get_by_label("Suffix").fill("clicked")
    page.get_by_role("button", name="Create the job").click()
    page.wait_for_url("**/#/jobs/ftjob-*")
    job = wait_for_end(stack.client(), page.url.rpartition("/")[2])
    assert (job.status, job.model) == ("succeeded", "tiny-gpt2"), job.error
    assert job.fine_tuned_model is not None
    page.goto(f"{stack.url}/#/models")
    page.get_by_role("button", name=job.fine_tuned_model).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("row", name="model.safetensors")).to_be_visible()
    expect(drawer.locator(".markdown")).to_contain_text("Training hyperparameters")
    expect(drawer.get_by_text("Nobody but you")).to_be_visible()
    with page.expect_download() as coming:
        drawer.get_by_role("button", name="Download as zip").click()
    coming.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert any(name.endswith("model.safetensors") for name in archive.namelist())
        assert archive.testzip() is None
    with page.expect_download() as coming:
        drawer.get_by_title("Download config.json", exact=True).click()
    assert json.loads(Path(coming.value.path()).read_text())["model_type"] == "gpt2"
    drawer.get_by_role("link", name="Try it").click()
    expect(page.get_by_role("combobox", name="Model 2")).to_have_value(job.fine_tuned_model)
    write(page, "Stir the")


def write(page: Page, prompt: str) -> None:
    """Have both models of the playground write a little."""
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Colour tokens by probability").check()
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask").click()
    for panel in (0, 1):
        expect(page.locator(".answer").nth(panel).locator(".scored").first).to_be_visible()
        expect(page.locator(".answer-foot").nth(panel)).to_contain_text("reached its limit")


def test_an_answer_is_stopped_and_a_chat_goes_on(new_page: NewPage, jobs: list[str]) -> None:
    page = new_page(at="#/playground?models=tiny-gpt2")
    page.get_by_role("button", name="Remove the last").click()
    page.get_by_role("button", name="Chat").click()
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Tokens at most").fill("5")
    page.get_by_label("Temperature").fill("0")
    for said in ("How long does rice take?", "And beans?"):
        page.get_by_label("Your message").fill(said)
        page.get_by_label("Your message").press("Control+Enter")
        expect(page.get_by_label("Your message")).to_have_value("")
    expect(page.locator(".turn.user")).to_have_text("How long does rice take?")
    page.get_by_role("button", name="Copy as code").click()
    code = page.get_by_role("dialog").locator("pre")
    expect(code).to_contain_text('"content": "And beans?"')
    page.get_by_role("button", name="Python", exact=True).click()
    expect(code).to_contain_text("client.chat.completions.create(")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Completion").click()
    page.get_by_label("Tokens at most").fill("200")
    page.get_by_label("Prompt").fill("Stir")
    # Slow the answer down, so that there is something to stop.
    page.route("**/v1/completions", lambda route: None)
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer-foot")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()


def test_an_error_stands_beside_its_field(new_page: NewPage, stack: Stack, file_id: str) -> None:
    page = new_page(at=f"#/new?file={file_id}", allow=("400",))
    expect(fact(page, "Examples")).to_have_text("24")
    page.locator("input[name=num_epochs]").fill("-1")
    page.get_by_role("button", name="Create the job").click()
    field = page.locator(".field", has=page.locator("input[name=num_epochs]"))
    expect(field.locator(".field-error")).to_contain_text("greater than 0")
    expect(field.locator("input")).to_have_attribute("aria-invalid", "true")
    expect(field.locator("input")).to_be_focused()
    expect(page.locator("aside").get_by_text("greater than 0")).to_be_visible()
    assert "#/new" in page.url
    field.locator("input").fill("1")
    expect(field.locator(".field-error")).to_be_hidden()
    page.get_by_label("Base model").fill("no-such-model")
    expect(
        page.locator(".field", has=page.locator("input[name=model]")).locator(".field-error")
    ).to_contain_text("does not exist")


def test_a_request_as_code_holds_no_key(new_page: NewPage, stack: Stack, file_id: str) -> None:
    page = new_page(at=f"#/new?file={file_id}")
    expect(fact(page, "Examples")).to_have_text("24")
    page.locator("[data-preset=lora]").click()
    page.get_by_role("button", name="Copy as code").click()
    code = page.get_by_role("dialog").locator("pre")
    expect(code).to_contain_text('"lora_rank": 16')
    expect(code).to_contain_text(file_id)
    curl = code.inner_text()
    page.get_by_role("button", name="Python", exact=True).click()
    expect(code).to_contain_text("client.fine_tuning.jobs.create(")
    python = code.inner_text()
    compile(python, "copied", "exec")
    assert stack.key not in curl + python
    assert "$FINETUNED_KEY" in curl


def test_a_card_becomes_a_recipe(new_page: NewPage, file_id: str) -> None:
    page = new_page(at=f"#/new?file={file_id}")
    page.get_by_role("button", name="From a model card").click()
    lines = ("### Training hyperparameters", "- learning_rate: 5e-4", "- num_epochs: 2", "- world: 2")
    card = "\n".join(lines)
    page.get_by_role("dialog").locator("textarea").fill(card)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#toasts")).to_contain_text("left out: world")  # first: it goes by itself
    expect(page.locator("input[name=num_epochs]")).to_have_value("2")
    expect(fact(page, "Learning rate")).to_have_text("5e-4")


def test_another_jobs_values_are_handed_over(page: Page, stack: Stack, file_id: str) -> None:
    body = {
        "model": "tiny-gpt2",
        "training_file": file_id,
        "suffix": "again",
        "priority": "low",
        "metadata": {"a": "b"},
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 7, "packing": False, "optimizer": LINE}},
        },
    }
    page.evaluate("body => sessionStorage.setItem('new-job', body)", json.dumps(body))
    page.locator("#nav a[href='#/new']").click()
    expect(page.locator("input[name=num_epochs]")).to_have_value("7")
    expect(page.locator("select[name=packing]")).to_have_value("false")
    expect(page.locator("select[name=optimizer]")).to_have_value(LINE)
    expect(page.get_by_label("Suffix")).to_have_value("again")
    expect(page.get_by_label("Priority")).to_have_value("low")
    expect(fact(page, "Steps")).to_contain_text("21")
    page.get_by_role("button", name="Copy as code").click()
    expect(page.get_by_role("dialog").locator("pre")).to_contain_text('"a": "b"')
    assert page.evaluate("sessionStorage.getItem('new-job')") is None


def test_without_a_model_there_is_nobody_to_ask(new_page: NewPage, stack: Stack) -> None:
    made = stack.client().post("/api_keys", body={"name": "writer", "scopes": ["generate"]}, cast_to=object)
    page = new_page(key=made["value"], at="#/playground", allow=("403",))  # type: ignore[index]
    page.get_by_label("Prompt").fill("Stir the")
    page.get_by_role("button", name="Ask").click()
    model = page.get_by_role("combobox", name="Model 1")
    expect(page.get_by_text("Name a model to ask.")).to_be_visible()
    expect(model).to_be_focused()
    model.fill("tiny-gpt2")
    expect(page.get_by_text("Name a model to ask.")).to_be_hidden()


def test_two_jobs_are_compared(new_page: NewPage, jobs: list[str]) -> None:
    page = new_page(at=f"#/compare?jobs={jobs[0]}")
    page.locator("select[name=add]").select_option(jobs[1])
    lines = page.locator(".big-chart .scatterlayer .trace")
    expect(lines).to_have_count(2)
    differing = page.locator("tr.differs")
    expect(differing).to_have_count(1)
    expect(differing).to_contain_text("learning_rate")
    expect(differing).to_contain_text("1e-4")
    expect(differing).to_contain_text("0.002")
    page.get_by_label("Equal values too").check()
    expect(page.get_by_role("row", name="max_steps")).to_be_visible()
    assert "".join(jobs) in page.url.replace("%2C", "")
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Tokens at most").fill("4")
    page.get_by_label("Temperature").fill("0")  # drawn by chance, an answer may end at once
    page.get_by_label("Prompt").fill("Stir the")
    page.get_by_role("button", name="Ask").click()
    for panel in (0, 1):
        expect(page.locator(".answer-foot").nth(panel)).to_contain_text("4 tokens")
    page.get_by_role("button", name=re.compile("Leave out")).first.click()
    expect(lines).to_have_count(1)


def test_a_key_is_made_shown_once_changed_and_revoked(new_page: NewPage, stack: Stack) -> None:
    page = new_page(at="#/keys", allow=("400",))
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("dialog")
    form.wait_for()
    offered = {
        value
        for value in form.locator("select[name^=scope-] option").evaluate_all(
            "all => all.map(one => one.value)"
        )
        if value
    }
    assert offered == set(SCOPES)
    form.get_by_label("Name").fill("bad/name")
    form.get_by_label("All keys").select_option("see")
    form.get_by_role("button", name="Make the key").click()
    expect(form.locator(".field-error").first).to_be_visible()
    form.get_by_label("Name").fill("laptop")
    form.get_by_label("Ends").select_option("in a week")
    form.get_by_label("Requests a minute").fill("600")
    form.get_by_label("Storage in GB").fill("2")
    form.get_by_role("button", name="Make the key").click()
    shown = page.get_by_role("dialog", name="The key “laptop”")
    value = shown.locator("input").input_value()
    shown.get_by_role("button", name="Close").click()
    mine = stack.get("/v1/api_keys/me", headers={"authorization": f"Bearer {value}"}).json()
    assert mine["limits"] == {"requests_per_minute": 600, "running_jobs": None, "storage_bytes": 2 * 1024**3}
    assert "admin:read" in mine["scopes"]
    row = page.get_by_role("row", name="laptop")
    expect(row).to_contain_text("until")
    assert value not in page.content()
    row.get_by_role("button", name="Change").click()
    page.get_by_label("Webhooks").select_option("nothing")
    page.get_by_role("button", name="Change the key").click()
    expect(row).not_to_contain_text("webhooks")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(row).to_have_count(0)
    page.get_by_label("Revoked ones too").check()
    expect(row).to_contain_text("revoked")


def test_a_webhook_is_made_tested_and_sent_again(
    new_page: NewPage, stack: Stack, receiver: Receiver, file_id: str
) -> None:
    page = new_page(at="#/webhooks", allow=("400",))
    page.get_by_role("button", name="New endpoint").first.click()
    form = page.get_by_role("dialog")
    assert form.locator("input[type=checkbox]").evaluate_all("all => all.map(one => one.name)") == list(TYPES)
    expect(form.get_by_label("Name")).to_be_focused()
    form.get_by_label("Name").fill("ci")
    form.get_by_label("URL").fill("http://169.254.169.254/")
    form.get_by_role("button", name="Make the endpoint").click()
    expect(form.locator(".field-error", has_text=re.compile("."))).to_be_visible()
    form.get_by_label("URL").fill(f"{receiver.url}/hook")
    form.get_by_role("button", name="Make the endpoint").click()
    secret = page.get_by_role("dialog", name="The secret of ci")
    assert secret.locator("input").input_value().startswith("whsec_")
    secret.get_by_role("button", name="Close").click()
    card = page.get_by_role("article", name="ci")
    card.get_by_role("button", name="Send a test").click()
    expect(card.get_by_text("The receiver answered 200")).to_be_visible()
    client = stack.client()
    job = client.fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file_id, extra_body={"hyperparameters": {"max_steps": 1}}
    )
    wait_for_end(client, job.id)
    receiver.wait("/hook", 2)
    # What has arrived is not yet noted; one that is under way would not be sent again.
    [endpoint] = stack.get("/v1/webhook_endpoints").json()["data"]
    where = f"/v1/webhook_endpoints/{endpoint['id']}/deliveries"
    wait_for(lambda: stack.get(where).json()["data"][0]["status"] == "delivered", "the note of it")
    card.get_by_text("Deliveries").click()
    row = card.locator("tbody tr")
    expect(row).to_contain_text(job.id)
    row.get_by_role("button", name="Send again").click()
    receiver.wait("/hook", 3)
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the endpoint").click()
    expect(page.get_by_text("Nobody is told yet")).to_be_visible()


def test_machines_show_the_worker_and_the_disk(new_page: NewPage, file_id: str) -> None:
    page = new_page(at="#/machines")
    worker = page.locator("article").first
    expect(worker).to_contain_text("of 1 taken")
    expect(worker).to_contain_text("just now")
    expect(page.get_by_role("region", name="Storage by owner").locator("tbody tr")).to_have_count(1)
    expect(page.get_by_text(re.compile(r"[\d.]+ [GT]B free of"))).to_be_visible()


def test_a_key_that_may_little_sees_what_it_may(new_page: NewPage, stack: Stack) -> None:
    made = stack.client().post("/api_keys", body={"name": "reader", "scopes": ["jobs:read"]}, cast_to=object)
    key = made["value"]  # type: ignore[index]
    page = new_page(key=key, at="#/machines", allow=("403",))
    expect(page.locator("article").first).to_contain_text("of 1 taken")
    expect(page.get_by_role("alert")).to_contain_text("files:read")
    page.locator("#nav a[href='#/keys']").click()
    expect(page.get_by_text("Others are not shown")).to_be_visible()
    page.locator("#nav a[href='#/files']").click()
    expect(page.get_by_role("alert")).to_contain_text("files:read")
