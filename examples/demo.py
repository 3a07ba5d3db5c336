"""The main job from end to end, as a user would do it: upload, train, watch, download, generate.

    make demo        (or: python examples/demo.py)

It starts a service of its own in a home that is thrown away, and talks to it only through the public API: by
the official `openai` SDK, and by plain HTTP for the endpoints that OpenAI does not have.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai.types.fine_tuning import FineTuningJob
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

EXAMPLES = Path(__file__).resolve().parent
BASE = "tiny-gpt2"
# Titles of the validation file: the model has seen every word of them, and neither card.
PROMPTS = ("Lemon Bean and Potato Stew\n", "Honey Apple and Walnut Muffins\n")
LENGTH = 140  # tokens; the longest card has 119
# Chosen for two cores: in about half a minute the titles' words come back in ingredients and steps.
RECIPE: dict[str, Any] = {
    "learning_rate": 0.006,
    "adam_beta2": 0.99,
    "total_train_batch_size": 6,
    "num_epochs": 1.5,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 20,
    "seed": 42,
}
START_LIMIT = 120  # seconds
STOP_LIMIT = 60  # seconds; a job that runs may take 30 to save a checkpoint
POLL = 0.5  # seconds

screen = Console(highlight=False)


class DemoFailed(Exception):
    """What went wrong, in a sentence for the person who watches."""


def main() -> int:
    # Without this a SIGTERM would end us and leave the service running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))
    began = time.monotonic()
    with throw_away_home() as home:
        try:
            with service(home) as (address, key):
                demonstrate(address, key, home)
        except (DemoFailed, openai.OpenAIError, httpx2.HTTPError, zipfile.BadZipFile) as error:
            say(last_words(home), style="dim")
            say(f"The demo failed: {error}", style="bold red")
            return 1
        except KeyboardInterrupt:
            say("Stopped.")
            return 130
    say(f"Everything is stopped and removed again. It took {time.monotonic() - began:.0f} seconds.")
    return 0


def demonstrate(address: str, key: str, home: Path) -> None:
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key=key) as client,
        # For the endpoints that OpenAI does not have.
        httpx2.Client(base_url=f"{address}/v1", headers={"Authorization": f"Bearer {key}"}) as http,
    ):
        headline(f"The service is up at {address}")
        job = create_job(client)
        job = watch(client, http, job)
        show_checkpoints(client, job)
        model = str(job.fine_tuned_model)
        written = [complete(client, model, prompt) for prompt in PROMPTS]
        show_difference(client, written)
        folder = download(http, model, home)
        compare_with_transformers(folder, written)


def create_job(client: openai.OpenAI) -> FineTuningJob:
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, "dishes.jsonl"),
        validation_file=upload(client, "dishes.valid.jsonl"),
        suffix="dishes",
        # Our own hyperparameters stand beside OpenAI's; the SDK's types know only the latter.
        extra_body={"hyperparameters": RECIPE},
    )
    say(f"Created {job.id}: fine-tune {BASE}, which nobody has trained before")
    return job


def upload(client: openai.OpenAI, name: str) -> str:
    with (EXAMPLES / name).open("rb") as cards:
        file = client.files.create(file=cards, purpose="fine-tune")
    if file.status == "error":
        raise DemoFailed(f"The upload was refused: {file.status_details}")
    say(f"Uploaded {file.filename} ({file.bytes:,} bytes) as {file.id}")
    return file.id


def watch(client: openai.OpenAI, http: httpx2.Client, job: FineTuningJob) -> FineTuningJob:
    """Show the job until it ends. Raises DemoFailed unless it succeeds."""
    told: set[str] = set()
    step = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps{task.fields[facts]}  left"),
        TimeRemainingColumn(),
        console=screen,
    ) as progress:
        bar = progress.add_task("Training", total=1, facts="")
        while job.status in ("validating_files", "queued", "running"):
            time.sleep(POLL)
            job = client.fine_tuning.jobs.retrieve(job.id)
            tell_news(client, job, told)
            answer = http.get(f"/fine_tuning/jobs/{job.id}/metrics", params={"after": step})
            answer.raise_for_status()
            if rows := answer.json()["data"]:
                step = rows[-1]["step"]
                facts = f"  loss {rows[-1]['loss']:.3f}  {rows[-1]['tokens_per_second']:,.0f} tokens/s"
                progress.update(bar, completed=step, total=total_steps(job), facts=facts)
        tell_news(client, job, told)
    if job.status != "succeeded":
        raise DemoFailed(f"The job {job.status}: {job.error.message if job.error else 'no reason given'}")
    return job


def total_steps(job: FineTuningJob) -> int | None:
    """One of our own fields: the SDK keeps what it does not know as extras."""
    progress: dict[str, int | None] = (job.model_extra or {}).get("progress") or {}
    return progress.get("total_steps")


def tell_news(client: openai.OpenAI, job: FineTuningJob, told: set[str]) -> None:
    """Print what has happened since the last time, oldest first."""
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=50).data):
        if event.id not in told and event.type != "metrics":
            say(f"  {event.message}", style="yellow" if event.level == "warn" else "dim")
        told.add(event.id)


def show_checkpoints(client: openai.OpenAI, job: FineTuningJob) -> None:
    table = Table("step", "loss", "validation", Column("checkpoint, usable as a model", no_wrap=True))
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        losses = (checkpoint.metrics.train_loss, checkpoint.metrics.full_valid_loss)
        table.add_row(
            str(checkpoint.step_number),
            *("" if loss is None else f"{loss:.3f}" for loss in losses),
            checkpoint.fine_tuned_model_checkpoint,
        )
    if not table.row_count:
        raise DemoFailed("The job has succeeded without a checkpoint.")
    screen.print(table)


def complete(client: openai.OpenAI, model: str, prompt: str, length: int = LENGTH) -> str:
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=length, temperature=0)
    return answer.choices[0].text


def show_difference(client: openai.OpenAI, written: list[str]) -> None:
    width = min(52, screen.width // 2 - 1)
    for prompt, card in zip(PROMPTS, written, strict=True):
        # Noise is mostly line breaks and repetition: a few words of it will do.
        noise = " ".join(complete(client, BASE, prompt, length=40).split())
        panels = [
            Panel(Text(prompt, style="bold", overflow="fold") + Text(text), title=title, width=width)
            for title, text in (("before training", noise), ("after", card))
        ]
        screen.print(Columns(panels))


def download(http: httpx2.Client, model: str, home: Path) -> Path:
    """The model as a zip, unpacked. Gives the folder that holds its `config.json`."""
    archive, target = home / "model.zip", home / "downloaded"
    with http.stream("GET", f"/models/{model}/download") as answer:
        if answer.is_error:
            raise DemoFailed(f"The download was refused: {answer.read().decode(errors='replace')}")
        with archive.open("wb") as file:
            for chunk in answer.iter_bytes():
                file.write(chunk)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(target)
    [config] = target.rglob("config.json")
    say(f"Downloaded {model} ({archive.stat().st_size:,} bytes, one zip)")
    return config.parent


def compare_with_transformers(folder: Path, written: list[str]) -> None:
    """Raises DemoFailed where the downloaded weights do not write what the service wrote."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    for prompt, expected in zip(PROMPTS, written, strict=True):
        asked = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            answer = model.generate(**asked, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        if text != expected:
            raise DemoFailed(f"transformers writes another text:\n{text}\n--- than the service:\n{expected}")
    count = model.num_parameters()
    headline(f"transformers loads the folder ({count:,} parameters) and writes the same cards")


def say(text: str, style: str = "") -> None:
    """A line of its own, neither cut to the terminal's width nor read as markup."""
    screen.print(text, style=style, markup=False, soft_wrap=True)


def headline(sentence: str) -> None:
    say(sentence, style="bold green")


@contextlib.contextmanager
def throw_away_home() -> Iterator[Path]:
    """A private folder; a file that appears while it is being removed does not matter."""
    with tempfile.TemporaryDirectory(prefix="finetuned-demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def service(home: Path) -> Iterator[tuple[str, str]]:
    """Start everything in `home`; gives the address and an API key. Whatever happens, it is stopped again."""
    command = [sys.executable, "-m", "app.cli", "up", "--home", str(home), "--port", "0"]
    with (home / "up.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=EXAMPLES.parent,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield wait(child, home)
    finally:
        stop(child)


def environment() -> dict[str, str]:
    """Ours without the user's settings: a demo must not reach for the database of a service in use."""
    customary = ("DATABASE_URL", "REDIS_URL", "GENERATOR_URL")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in customary and not name.startswith("FINETUNED_")
    }


def wait(child: subprocess.Popen[bytes], home: Path) -> tuple[str, str]:
    """The address and the key, once `up` has written them. Raises DemoFailed when it does not."""
    deadline = time.monotonic() + START_LIMIT
    with screen.status("Starting the service"):
        while not (home / "address").exists():
            if child.poll() is not None:
                raise DemoFailed(f"`finetuned up` ended before it was ready, exit code {child.returncode}.")
            if time.monotonic() > deadline:
                raise DemoFailed(f"`finetuned up` was not ready after {START_LIMIT} seconds.")
            time.sleep(0.1)
    return (home / "address").read_text().strip(), (home / "key").read_text().strip()


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and wait; a Ctrl-C reaches it by itself, and asking twice would mean haste."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def last_words(home: Path, lines: int = 12) -> str:
    """The end of every log that says anything."""
    said = {log.name: log.read_text(errors="replace").splitlines() for log in sorted(home.rglob("*.log"))}
    return "\n".join(f"--- {name}\n" + "\n".join(log[-lines:]) for name, log in said.items() if log)


if __name__ == "__main__":
    sys.exit(main())
