"""`python -m tests.browser.screenshots [NAME …]`: takes the pictures in docs/images/ anew, light and dark.

Trains the built-in model on examples/dishes.jsonl meanwhile: one job that learns well, one that learns too
few texts by heart, some in other states. Takes a few minutes.
"""

import base64
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import chromium, upload
from tests.flow.stack import ENDED, QUICK, Stack, running, wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
IMAGES = ROOT / "docs" / "images"
PATIENCE = 1800.0  # seconds for what takes a minute on an idle machine
LARGEST = 150_000  # bytes of a picture
# Name: address and the height of the screen. `{learned}` and `{by_heart}` are jobs.
PICTURES = {
    "jobs": ("#/jobs", 640),
    "job": ("#/jobs/{by_heart}", 1360),
    "new": ("#/new?file={file}", 1240),
    "playground": ("#/playground?models=tiny-gpt2,{model}", 800),
    "compare": ("#/compare?jobs={learned},{by_heart}", 1240),
    "models": ("#/models?id={model}", 860),
    "files": ("#/files?id={file}", 1000),
    "machines": ("#/machines", 640),
    "keys": ("#/keys", 640),
    "webhooks": ("#/webhooks", 640),
}
USUAL: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 5,
    "total_train_batch_size": 32,
    "save_steps": 1000,
    "sample_prompts": ["Title:", "Ingredients:"],
    "sample_max_tokens": 60,
}
# The browser is the encoder at hand: it draws the PNG and says it as WebP.
PACK = """async (png) => {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext('2d').drawImage(image, 0, 0);
  const blob = await canvas.convertToBlob({type: 'image/webp', quality: 0.82});
  return Array.from(new Uint8Array(await blob.arrayBuffer()), (b) => String.fromCharCode(b)).join("");
}"""


def make_jobs(stack: Stack, folder: Path) -> dict[str, str]:
    """Jobs worth looking at."""
    few = folder / "few.jsonl"
    few.write_text("".join((EXAMPLES / "dishes.jsonl").open().readlines()[:16]))
    files = {path.stem: upload(stack, path) for path in (EXAMPLES / "dishes.jsonl", few)}
    held_out = upload(stack, EXAMPLES / "dishes.valid.jsonl")
    client = stack.client()

    def submit(suffix: str, file: str, **more: Any) -> str:
        job = client.fine_tuning.jobs.create(
            model="tiny-gpt2",
            training_file=files[file],
            validation_file=held_out,
            suffix=suffix,
            extra_body={"hyperparameters": {**USUAL, **more}},
        )
        return job.id

    by_heart = submit(
        "by-heart", "few", num_epochs=100, learning_rate=3e-3, eval_steps=10, total_train_batch_size=16,
        lr_scheduler_type="constant_with_warmup",
    )  # fmt: skip
    learned = submit("dishes", "dishes", num_epochs=3, eval_steps=15)
    submit("too-fast", "dishes", max_steps=30, learning_rate=0.3, max_grad_norm=0, sample_prompts=[])
    hurried = submit("short-of-time", "dishes", num_epochs=20, max_runtime=5)
    jobs = client.fine_tuning.jobs
    waited_for = {by_heart, learned, hurried}
    wait_for(lambda: all(jobs.retrieve(job_id).status in ENDED for job_id in waited_for), "ends", PATIENCE)
    jobs.cancel(submit("given-up", "dishes"))
    running = submit("all-dishes", "dishes", num_epochs=40, eval_steps=100)
    jobs.pause(submit("set-aside", "dishes"))
    submit("dishes-lora", "dishes", lora_rank=8)
    submit("no-samples", "dishes", sample_prompts=[])
    wait_for(lambda: jobs.retrieve(running).model_dump()["progress"]["step"] > 60, "a curve", PATIENCE)
    make_others(stack)
    return {
        "by_heart": by_heart,
        "learned": learned,
        "file": files["dishes"],
        "model": str(jobs.retrieve(learned).fine_tuned_model),
    }


def make_others(stack: Stack) -> None:
    """Keys and webhooks worth looking at."""
    client = stack.client()
    for name, owner, scopes in (
        ("laptop", "ann", ["files:write", "jobs:write", "models:read", "generate"]),
        ("nightly", "ci", ["jobs:write", "files:read"]),
    ):
        limits = {"requests_per_minute": 600, "running_jobs": 2, "storage_bytes": 50 * 1024**3}
        body = {"name": name, "owner": owner, "scopes": scopes, "limits": limits}
        client.post("/api_keys", body=body, cast_to=object)
    for name, kinds in (("On call", ["failed"]), ("Release", ["succeeded", "failed"])):
        kinds = [f"fine_tuning.job.{kind}" for kind in kinds]
        url = f"https://hooks.example/{name.lower().replace(' ', '-')}"
        body = {"name": name, "url": url, "event_types": kinds}
        client.post("/webhook_endpoints", body=body, cast_to=object)


def ask(page: Page) -> None:
    """Both models write, and what they were sure of is seen."""
    page.get_by_label("Colour tokens by probability").check()
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Seed").fill("2")
    page.get_by_label("Prompt").fill("Tomato and Basil Soup")
    page.get_by_role("button", name="Ask").click()
    page.locator(".answer-foot", has_text="token").nth(1).wait_for()
    page.get_by_text("Sampling", exact=True).click()


def choose_preset(page: Page) -> None:
    page.locator("[data-preset=careful]").click()
    page.wait_for_timeout(3000)
    page.evaluate("scrollTo(0, 0)")


# What is done on a page before its picture is taken.
BEFORE: dict[str, Callable[[Page], None]] = {"playground": ask, "new": choose_preset}


def take(browser: Browser, stack: Stack, name: str, fragment: str, height: int, theme: Any) -> None:
    context = browser.new_context(
        viewport={"width": 1280, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(f"{stack.url}/#key={stack.key}")
    page.goto(f"{stack.url}/{fragment}")
    page.locator("main h1").wait_for()
    BEFORE.get(name, lambda _: None)(page)
    page.wait_for_timeout(4000)  # charts are drawn, pictures of what is live need no better moment
    png = base64.b64encode(page.screenshot()).decode()
    page.goto("about:blank")
    packed = page.evaluate(PACK, png).encode("latin-1")
    assert len(packed) < LARGEST, f"{name}: {len(packed)} bytes"
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"{name}-{theme}.webp").write_bytes(packed)
    context.close()


def main(names: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "home", dict(QUICK)) as stack,
        sync_playwright() as playwright,
    ):
        jobs = make_jobs(stack, Path(folder))
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        for name in names or PICTURES:
            fragment, height = PICTURES[name]
            for theme in ("light", "dark"):
                take(browser, stack, name, fragment.format(**jobs), height, theme)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
