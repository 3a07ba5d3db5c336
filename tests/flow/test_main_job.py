"""The main job, end to end, on real parts: upload, create, poll, events, checkpoints, download, generate."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import BadRequestError, OpenAI
from openai.types.fine_tuning import FineTuningJob
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.flow import secrets
from tests.flow.stack import Stack, wait_for, wait_for_end

ROWS = "".join(
    json.dumps({"text": f"Stir the {what} for {minutes} minutes. Serve it warm."}) + "\n"
    for what in ("soup", "sauce", "tea", "stew")
    for minutes in range(1, 21)
)
BASES = ("tiny-gpt2", "small-gpt2")
SCRIPT = re.compile(r"<!-- script: (\w+) -->\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return stack.client()


@pytest.fixture(scope="module", params=BASES)
def job(request: pytest.FixtureRequest, client: OpenAI) -> FineTuningJob:
    """One finished job for each base model."""
    train = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    valid = client.files.create(
        file=("valid.jsonl", ROWS[:800].rsplit("\n", 1)[0].encode()), purpose="fine-tune"
    )
    made = client.fine_tuning.jobs.create(
        model=request.param,
        training_file=train.id,
        validation_file=valid.id,
        suffix="soup",
        extra_body={
            "hyperparameters": {
                "num_epochs": 3,
                "total_train_batch_size": 8,
                "learning_rate": 2e-3,
                "lr_scheduler_type": "cosine",
                "lr_scheduler_warmup_steps": 3,
                "sample_prompts": ["Stir the"],
            }
        },
    )
    ended = wait_for_end(client, made.id)
    assert ended.status == "succeeded", ended.error
    return ended


def test_the_job_tells_what_it_did(job: FineTuningJob) -> None:
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{job.model}:")
    assert ":soup:" in job.fine_tuned_model
    assert job.trained_tokens is not None
    assert job.trained_tokens > 0
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 8)
    assert job.error is None
    FineTuningJob.model_validate_json(job.model_dump_json(), strict=True)


def test_the_loss_falls_and_every_step_is_there(stack: Stack, job: FineTuningJob) -> None:
    metrics = stack.get(f"/v1/fine_tuning/jobs/{job.id}/metrics").json()["data"]
    assert [row["step"] for row in metrics if row["loss"] is not None] == list(range(1, 31))
    assert metrics[-1]["loss"] < metrics[0]["loss"] * 0.7
    assert all(row["grad_norm"] > 0 and row["tokens_per_second"] > 0 for row in metrics)
    assert max(row["learning_rate"] for row in metrics) == pytest.approx(2e-3)
    evaluated = [row for row in metrics if "valid_loss" in row]
    assert evaluated[-1]["valid_loss"] < evaluated[0]["valid_loss"]


def test_the_history_tells_it_in_order(client: OpenAI, job: FineTuningJob) -> None:
    codes = [event.data["code"] for event in client.fine_tuning.jobs.list_events(job.id, limit=10)]  # type: ignore[index]
    codes.reverse()
    assert codes[:3] == ["created", "claimed", "prepared"]
    assert codes[-1] == "succeeded"
    assert {"step", "evaluated", "sampled", "checkpoint"} <= set(codes)


def test_each_checkpoint_can_be_asked_at_once(client: OpenAI, job: FineTuningJob) -> None:
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints[0].step_number == 30
    assert checkpoints[0].metrics.train_loss is not None
    answer = client.completions.create(
        model=checkpoints[-1].fine_tuned_model_checkpoint, prompt="Stir", max_tokens=3, temperature=0
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_the_downloaded_model_writes_what_the_service_writes(
    stack: Stack, client: OpenAI, job: FineTuningJob, tmp_path: Path
) -> None:
    name = job.fine_tuned_model or ""
    archive = zipfile.ZipFile(io.BytesIO(stack.get(f"/v1/models/{name}/download").content))
    assert archive.testzip() is None
    archive.extractall(tmp_path)
    folder = next(tmp_path.iterdir())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "README.md",
        "model.safetensors",
        "generation_config.json",
        "manifest.json",
    } <= files
    for fact in stack.get(f"/v1/models/{name}/files").json()["data"]:
        assert hashlib.sha256((folder / fact["path"]).read_bytes()).hexdigest() == fact["sha256"]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    prompt = tokenizer("Stir the", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    wanted = tokenizer.decode(written, skip_special_tokens=True)
    asked: dict[str, Any] = {"model": name, "prompt": "Stir the", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text == wanted
    streamed = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == wanted


def test_one_file_of_a_model_comes_in_ranges_under_its_hash(stack: Stack, job: FineTuningJob) -> None:
    path = f"/v1/models/{job.fine_tuned_model}/files/model.safetensors"
    whole = stack.get(path)
    etag = whole.headers["etag"]
    assert etag == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    half = len(whole.content) // 2
    first = stack.get(path, headers={"range": f"bytes=0-{half - 1}", "if-range": etag})
    rest = stack.get(path, headers={"range": f"bytes={half}-", "if-range": etag})
    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.content + rest.content == whole.content
    assert stack.get(path, headers={"if-none-match": etag}).status_code == 304
    for wrong in ("../../key", "manifest.json/../../../key", "nothing"):
        assert stack.get(f"/v1/models/{job.fine_tuned_model}/files/{wrong}").status_code == 404


def test_the_card_has_the_form_of_the_reference_card(stack: Stack, job: FineTuningJob) -> None:
    card = stack.get(f"/v1/models/{job.fine_tuned_model}/files/README.md").text
    assert "### Training hyperparameters" in card
    assert "- learning_rate: 0.002" in card
    assert "- total_train_batch_size: 8" in card
    assert "- lr_scheduler_type: cosine" in card
    assert "### Training results" in card
    assert "| Training Loss | Epoch" in card


def test_a_tuned_model_is_listed_trained_on_and_deleted(client: OpenAI, job: FineTuningJob) -> None:
    name = job.fine_tuned_model or ""
    assert name in [model.id for model in client.models.list()]
    again = client.fine_tuning.jobs.create(
        model=name,
        training_file=job.training_file,
        extra_body={"hyperparameters": {"max_steps": 2, "total_train_batch_size": 8}},
    )
    with pytest.raises(openai.BadRequestError) as refused:
        client.models.delete(name)
    assert refused.value.code == "model_in_use"
    ended = wait_for_end(client, again.id)
    assert ended.status == "succeeded", ended.error
    assert (ended.fine_tuned_model or "").startswith(f"ft:{job.model}:")
    assert client.models.delete(ended.fine_tuned_model or "").deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(ended.fine_tuned_model or "")


def test_a_hub_out_of_reach_fails_the_job_and_says_what_to_do(client: OpenAI) -> None:
    file = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(model="nobody/nothing", training_file=file.id)
    ended = wait_for_end(client, made.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == "model_unavailable"
    assert "FINETUNED_BASE_MODELS" in ended.error.message


def test_a_running_job_pauses_resumes_and_is_cancelled(client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    made = jobs.create(
        model="tiny-gpt2", training_file=file.id, extra_body={"hyperparameters": {"max_steps": 100_000}}
    )

    def step() -> int:
        progress: dict[str, int] = jobs.retrieve(made.id).progress  # type: ignore[attr-defined]
        return progress["step"]

    wait_for(lambda: step() > 2, "the first steps")
    jobs.pause(made.id)
    wait_for(lambda: str(jobs.retrieve(made.id).status) == "paused", "the pause")
    saved = jobs.checkpoints.list(made.id).data[0].step_number
    assert saved == step()
    jobs.resume(made.id)
    wait_for(lambda: step() > saved, "a step beyond the checkpoint")
    jobs.cancel(made.id)
    wait_for(lambda: jobs.retrieve(made.id).status == "cancelled", "the end")
    assert jobs.checkpoints.list(made.id).data[0].step_number > saved
    with pytest.raises(openai.BadRequestError):
        jobs.cancel(made.id)


def test_an_urgent_job_takes_the_place_of_one_that_comes_back_by_itself(stack: Stack, client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    recipe = {"total_train_batch_size": 16, "save_steps": 50, "lr_scheduler_type": "constant"}

    def make(priority: str, steps: int) -> str:
        body = {"hyperparameters": {**recipe, "max_steps": steps}, "priority": priority}
        return jobs.create(model="tiny-gpt2", training_file=file.id, extra_body=body).id

    def status(job_id: str) -> str:
        return str(jobs.retrieve(job_id).status)

    def step(job_id: str) -> int:
        progress: dict[str, int] = jobs.retrieve(job_id).progress  # type: ignore[attr-defined]
        return progress["step"]

    def losses(job_id: str) -> list[float]:
        rows = stack.get(f"/v1/fine_tuning/jobs/{job_id}/metrics?limit=1000").json()["data"]
        return [row["loss"] for row in rows]

    rough = make("normal", 100_000)
    wait_for(lambda: step(rough) > 5, "the first steps")
    urgent = make("high", 100_000)
    wait_for(lambda: status(urgent) == "running", "the urgent one's turn")
    assert status(rough) == "queued"
    left_at = step(rough)
    jobs.cancel(urgent)
    wait_for(lambda: step(rough) >= left_at + 10, "steps beyond the interruption")
    assert jobs.retrieve(rough).attempt == 1  # type: ignore[attr-defined]
    jobs.cancel(rough)
    calm = make("normal", left_at + 10)
    codes = [dict(event.data)["code"] for event in jobs.list_events(rough, limit=100)]  # type: ignore[call-overload]
    assert codes.count("preempted") == 1, codes
    assert wait_for_end(client, calm).status == "succeeded"
    assert len(losses(calm)) == left_at + 10
    assert losses(rough)[: left_at + 10] == losses(calm), "as if nobody had interrupted it"


def test_preference_pairs_are_trained_measured_and_served(stack: Stack, client: OpenAI) -> None:
    def pairs(words: tuple[str, ...]) -> bytes:
        rows = [
            {
                "input": {"messages": [{"role": "user", "content": f"How long for the {what}?"}]},
                "preferred_output": [{"role": "assistant", "content": f"Stir it for {n} minutes."}],
                "non_preferred_output": [{"role": "assistant", "content": f"minutes {n} for it Stir"}],
            }
            for what in words
            for n in range(1, 13)
        ]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    files = client.files
    train = files.create(file=("train.jsonl", pairs(("soup", "tea", "stew"))), purpose="fine-tune")
    valid = files.create(file=("valid.jsonl", pairs(("sauce",))), purpose="fine-tune")
    jobs = client.fine_tuning.jobs
    made = jobs.create(
        model="tiny-gpt2",
        training_file=train.id,
        validation_file=valid.id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": 6}}},
        extra_body={"hyperparameters": {"learning_rate": 1e-3}},
    )
    ended = wait_for_end(client, made.id)
    assert ended.status == "succeeded", ended.error
    assert ended.method is not None
    assert ended.method.type == "dpo"
    assert ended.method.dpo is not None
    assert ended.method.dpo.hyperparameters is not None
    said = ended.method.dpo.hyperparameters
    assert (said.beta, said.n_epochs, said.batch_size) == (0.2, 2, 6)
    FineTuningJob.model_validate_json(ended.model_dump_json(), strict=True)
    metrics = stack.get(f"/v1/fine_tuning/jobs/{made.id}/metrics").json()["data"]
    assert [row["step"] for row in metrics] == list(range(1, 13))
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert metrics[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    last = metrics[-1]
    assert last["loss"] < 0.6
    assert last["reward_margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-6)
    assert last["valid_reward_accuracy"] > 0.8
    assert last["valid_accuracy"] is None
    newest = jobs.checkpoints.list(made.id).data[0]
    assert newest.metrics.full_valid_loss == last["valid_loss"]
    assert newest.metrics.model_extra["full_valid_reward_margin"] == last["valid_reward_margin"]  # type: ignore[index]
    answer = client.completions.create(model=ended.fine_tuned_model or "", prompt="User: How", max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0

    plain = files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    dpo: Any = {"type": "dpo"}
    refusals: list[tuple[dict[str, Any], Any, str]] = [
        ({"training_file": plain.id}, dpo, "training_file"),
        ({"training_file": train.id, "validation_file": plain.id}, dpo, "validation_file"),
        ({"training_file": train.id}, {"type": "supervised"}, "training_file"),
    ]
    for wrong, method, param in refusals:
        with pytest.raises(openai.BadRequestError) as refused:
            jobs.create(**{"model": "tiny-gpt2", "method": method, **wrong})
        assert (refused.value.param, refused.value.code) == (param, f"invalid_{param}")
        assert "dpo" in refused.value.message


def test_plain_text_is_trained_on(client: OpenAI) -> None:
    file = client.files.create(
        file=("book.txt", b"Stir the soup for ten minutes.\n" * 200), purpose="fine-tune"
    )
    made = client.fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file.id, extra_body={"hyperparameters": {"max_steps": 3}}
    )
    ended = wait_for_end(client, made.id)
    assert ended.status == "succeeded", ended.error


def networks(home: Path) -> set[str]:
    """Those of the processes that torchrun has started for this service's jobs."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            # Not their launchers, whose command ends with the same words.
            if words[1:3] == ["-u", "-m"] and words[-3:-2] == ["--job"] and words[-2].startswith(str(home)):
                found.add(os.readlink(process / "ns" / "net"))
    return found


def test_a_job_in_parts_on_two_devices_trains_in_its_cell_as_on_one_and_pauses(
    client: OpenAI, stack: Stack
) -> None:
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    ended = []
    met_in: set[str] = set()

    def has_saved(job_id: str) -> bool:
        met_in.update(networks(stack.home))
        return bool(jobs.checkpoints.list(job_id).data)

    for devices in (1, 2):
        asked: dict[str, Any] = {
            "max_steps": 6,
            "total_train_batch_size": 8,
            "num_devices": devices,
            "save_steps": 2,
        }
        asked |= {"sharding": "full"} if devices == 2 else {}
        made = jobs.create(
            model="small-gpt2",
            training_file=file.id,
            extra_body={"hyperparameters": {**asked, "dropout": 0.0}},
        )
        if devices == 2:
            wait_for(lambda id_=made.id: has_saved(id_), "a checkpoint")  # type: ignore[misc]
            with suppress(BadRequestError):  # it has just succeeded
                jobs.pause(made.id)
            wait_for(lambda id_=made.id: jobs.retrieve(id_).status != "running", "the pause")  # type: ignore[misc]
            if str(jobs.retrieve(made.id).status) == "paused":
                jobs.resume(made.id)
        ended.append(wait_for_end(client, made.id))
    assert [job.status for job in ended] == ["succeeded", "succeeded"], [job.error for job in ended]
    alone, together = (jobs.checkpoints.list(job.id).data[0].metrics.train_loss for job in ended)
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(met_in) == 1
    assert met_in != {os.readlink("/proc/self/ns/net")}, "they had no network but a loopback of their own"


def test_the_script_of_the_migration_page_runs_with_three_values_changed(
    stack: Stack, tmp_path: Path
) -> None:
    """It is taken from docs/migrate-from-openai.md, where it stands twice."""
    page = (Path(__file__).parents[2] / "docs/migrate-from-openai.md").read_text()
    scripts = dict(SCRIPT.findall(page))
    changed = [
        after
        for before, after in zip(scripts["before"].splitlines(), scripts["after"].splitlines(), strict=True)
        if before != after
    ]
    assert [line.partition(" = ")[0] for line in changed] == ["MODEL", "client"]
    row = json.dumps({"prompt": "How long does the soup cook?", "completion": " Ten minutes."}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 8)
    (tmp_path / "valid.jsonl").write_text(row * 4)
    here = scripts["after"].replace("ft_...", stack.key).replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run(
        [sys.executable, "-c", here], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "is ready" in done.stdout
    assert (tmp_path / "results.csv").read_text().startswith("step,")


def test_no_secret_is_in_an_argument_list_a_log_or_where_models_run(stack: Stack) -> None:
    """After all of the above, at the level `debug`: every process of the service, every file of its home."""
    known = secrets.of(stack.home)
    assert all(len(secret) > 10 for secret in known.values())
    wait_for(
        lambda: any("worker.training" in words for words, _ in secrets.processes(stack.process.pid).values()),
        "the warm trainer",
    )
    running = secrets.processes(stack.process.pid)
    arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert [name for name, secret in known.items() for said in arguments if secret in said] == []
    seen: dict[str, int] = {}
    for words, environment in running.values():
        kind = next(
            (kind for kind in secrets.TOLD_NOTHING if any(kind in word for word in words[:4])), "ours"
        )
        seen[kind] = seen.get(kind, 0) + 1
        if kind != "ours":
            assert [name for name, secret in known.items() if secret in environment] == [], words
    assert set(seen) == {*secrets.TOLD_NOTHING, "ours"}, seen
    assert list(secrets.leaks(stack.home, known)) == []
    # Nor does what people train on and ask get into a log, or through the queue.
    trained = {"a text": b"Serve it warm", "a prompt": b"Stir the", "a pair": b"Stir it for"}
    for folder in ("logs", "valkey"):
        assert list(secrets.leaks(stack.home / folder, trained)) == []
    for name in secrets.KEPT:
        assert (stack.home / name).stat().st_mode & 0o077 == 0, name
    assert any(known["valkey/valkey.password"] in told for _, told in running.values()), "the worker knows it"
    [generator] = [pid for pid, (words, _) in running.items() if "worker.generation" in words]
    assert "NoNewPrivs:\t1" in Path(f"/proc/{generator}/status").read_text(), "it has confined itself"


def test_every_line_of_a_log_is_a_json_object(stack: Stack, client: OpenAI) -> None:
    """For whoever collects them: uvicorn's, Celery's and torch's are none of ours, and in the same form."""
    patient = client.with_options(max_retries=10)  # the generator may still be starting
    assert patient.completions.create(model="tiny-gpt2", prompt="", max_tokens=1).choices
    for program in ("api", "generator", "worker"):
        lines = (stack.home / "logs" / f"{program}.log").read_text().splitlines()
        if program == "worker":  # what Celery prints before it begins, and what it warns of
            lines = lines[next(place for place, line in enumerate(lines) if '"worker_ready"' in line) :]
        assert lines
        assert [line for line in lines if not line.startswith("{")] == [], program
        assert all({"event", "level", "timestamp"} <= set(json.loads(line)) for line in lines)
