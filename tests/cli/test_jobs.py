"""Jobs on the command line: made, listed, shown, wished for; ids as people type them."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from app.database import WorkerDatabase
from app.job_request import JobRequest
from app.terminal.recipe import BODY
from tests.app.conftest import Api
from tests.cli.conftest import Run
from tests.cli.test_card import HEAD, NEWEST, TAIL
from tests.stand_ins.reporter import Reporter


def ids(run: Run, *filters: str) -> list[str]:
    return [row["id"] for row in json.loads(run("jobs", "--json", *filters).out)["data"]]


def make(run: Run, rows: Path, *more: str) -> Any:
    made = run("submit", str(rows), "--json", *more)
    assert made.code == 0, made.err
    return json.loads(made.out)


def test_a_file_is_sent_once_and_a_job_made_of_it(run: Run, rows: Path, client: OpenAI) -> None:
    said = run(
        "submit", str(rows), "--suffix", "soup", "--name", "first", "--metadata", "team=a", "--seed", "7"
    )
    assert (said.code, "is queued: tiny-gpt2 on file-" in said.out) == (0, True), said
    job_id = said.out.split()[0]
    assert f"finetuned watch {job_id}" in said.err
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.seed, job.metadata) == (7, {"name": "first", "team": "a"})
    assert (job.model_extra or {})["suffix"] == "soup"
    again = make(run, rows)
    assert again["training_file"] == job.training_file
    assert len(client.files.list().data) == 1


def test_flags_and_set_are_hyperparameters_by_their_own_name(run: Run, rows: Path) -> None:
    made = make(
        run, rows, "--learning-rate", "2e-3", "--set", "weight_decay=1e-2", "--set", "packing=false",
        "--set", 'sample_prompts=["Stir"]', "--set", "lr_scheduler_type=cosine", "--batch-size", "4",
    )  # fmt: skip
    assert (
        made["recipe"]
        | {
            "learning_rate": 0.002,
            "weight_decay": 0.01,
            "packing": False,
            "sample_prompts": ["Stir"],
            "lr_scheduler_type": "cosine",
            "total_train_batch_size": 4,
        }
        == made["recipe"]
    )


def test_a_recipe_file_may_hold_every_field_of_a_request() -> None:
    assert set(JobRequest.model_fields) - {"dry_run"} == BODY


def test_a_job_asks_for_its_turn_and_its_worker(run: Run, rows: Path) -> None:
    made = make(run, rows, "--priority", "low", "--require-label", "h100", "--require-memory", "1000")
    assert made["priority"] == "low"
    assert made["requires"] == {"labels": ["h100"], "memory_bytes": 1000}
    again = json.loads(run("submit", "--like", made["id"], "--json").out)
    assert (again["priority"], again["requires"]["labels"]) == ("low", ["h100"])
    assert json.loads(run("workers", "--json").out)["object"] == "list"
    assert "No workers" in run("workers").err


def test_a_wrong_hyperparameter_is_named_with_what_to_do(run: Run, rows: Path) -> None:
    wrong = run("submit", str(rows), "--set", "epochs=3")
    assert wrong.code == 1
    assert "finetuned: hyperparameters.epochs: Unknown hyperparameter 'epochs'." in wrong.err
    assert "'num_epochs'" in wrong.err
    bounds = run("submit", str(rows), "--set", "learning_rate=-1")
    assert (bounds.code, bounds.err.endswith("Set it by --set learning_rate=….\n")) == (1, True)
    twice = run("submit", str(rows), "--set", "n_epochs=3", "--num-epochs", "2")
    assert (twice.code, "--set n_epochs and --num-epochs" in twice.err) == (2, True)


def test_a_bad_file_is_told_line_by_line_and_no_job_is_made(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "one"}\n{"text": 2}\nnot json\n')
    before = ids(run)
    said = run("submit", str(bad))
    assert said.code == 1
    assert 'bad.jsonl: line 2: text: "text" must be a string' in said.err
    assert "bad.jsonl: line 3" in said.err
    assert "mend it" in said.err
    assert ids(run) == before


def test_a_dry_run_makes_no_job(run: Run, rows: Path) -> None:
    before = ids(run)
    said = run("submit", str(rows), "--dry-run", "--max-steps", "5")
    assert said.code == 0, said.err
    assert "5, " in next(line for line in said.out.splitlines() if line.startswith("steps"))
    assert "No job was made" in said.err
    found = json.loads(run("submit", str(rows), "--dry-run", "--json").out)
    assert found["object"] == "fine_tuning.job.dry_run"
    assert ids(run) == before


def test_a_recipe_file_may_be_json_or_yaml_and_flags_overrule_it(
    run: Run, rows: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "recipe.yaml"
    whole.write_text("suffix: dishes\nhyperparameters:\n  learning_rate: 2e-3\n  n_epochs: 4\n")
    made = make(run, rows, "--recipe", str(whole), "--num-epochs", "2")
    assert (made["suffix"], made["recipe"]["learning_rate"], made["recipe"]["num_epochs"]) == (
        "dishes",
        0.002,
        2,
    )
    bare = tmp_path / "recipe.json"
    bare.write_text('{"learning_rate": 0.001, "seed": 5}')
    made = make(run, rows, "--recipe", str(bare))
    assert (made["recipe"]["learning_rate"], made["seed"]) == (0.001, 5)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("r.json", '{"seed": 1, "seed": 2}', "'seed' twice"),
        ("r.yaml", "seed: 1\nseed: 2\n", "'seed' twice"),
        ("r.yaml", "!!python/object/apply:os.getcwd []", "not YAML"),
        ("r.yaml", "- 1\n", "no names with values"),
        ("r.json", '{"model": "gpt2", "learning_rate": 1}', "'learning_rate' is no field"),
        ("r.json", "[" * 100_000, "not JSON"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(
    run: Run, rows: Path, tmp_path: Path, name: str, text: str, why: str
) -> None:
    (tmp_path / name).write_text(text)
    said = run("submit", str(rows), "--recipe", str(tmp_path / name))
    assert said.code == 2
    assert why in said.err


def test_a_job_like_another_has_its_files_and_recipe_but_for_the_change(run: Run, rows: Path) -> None:
    first = make(run, rows, "--learning-rate", "1e-3", "--num-epochs", "1.5", "--set", "weight_decay=0.1")
    again = run("submit", "--like", "last", "--max-steps", "7", "--json")
    assert again.code == 0, again.err
    made = json.loads(again.out)
    assert made["training_file"] == first["training_file"]
    assert made["recipe"] == first["recipe"] | {"num_epochs": "auto", "max_steps": 7}


def test_jobs_are_listed_filtered_and_given_as_the_api_gives_them(
    run: Run, rows: Path, client: OpenAI
) -> None:
    marked = make(run, rows, "--metadata", "mark=yes")["id"]
    assert ids(run, "--metadata", "mark=yes") == [marked]
    assert ids(run, "--status", "paused") == []
    assert ids(run, "--model", "tiny", "--limit", "1") == [marked]
    assert ids(run, "--model", "other") == []
    assert ids(run, "--search", marked[-9:]) == [marked]
    assert ids(run, "--model", marked[-9:]) == [], "an id is no model"
    assert ids(run, "--search", marked[-9:], "--model", "tiny") == [marked]
    page = json.loads(run("jobs", "--json", "--limit", "2").out)
    assert (len(page["data"]), page["has_more"], page["last_id"]) == (2, True, page["data"][1]["id"])
    assert page["data"][0] == json.loads(client.fine_tuning.jobs.with_raw_response.retrieve(marked).text)
    table = run("jobs", "--limit", "1")
    assert marked in table.out
    assert "\x1b" not in table.out
    assert "There are more" in table.err
    assert run("jobs", "--status", "sleeping").code == 2


def test_ids_are_taken_whole_by_their_beginning_and_as_last(run: Run, rows: Path) -> None:
    job_id = make(run, rows)["id"]
    for given in (job_id, job_id[:-4], job_id.removeprefix("ftjob-")[:12], "last"):
        assert json.loads(run("job", given, "--json").out)["id"] == job_id
    several = run("job", "ftjob-")
    assert (several.code, "more than one job" in several.err) == (1, True)
    nothing = run("job", "nosuch")
    assert (nothing.code, "finetuned jobs" in nothing.err) == (1, True)
    assert run("cancel", "").code == 2
    gone = run("job", "ftjob-" + 24 * "0")
    assert (gone.code, "ftjob-000" in gone.err) == (1, True)


def test_a_job_is_paused_resumed_and_cancelled_and_its_log_tells_so(run: Run, rows: Path) -> None:
    job_id = make(run, rows)["id"]
    assert run("pause", job_id).out == f"{job_id} is paused.\n"
    assert run("resume", job_id).out == f"{job_id} is queued.\n"
    assert json.loads(run("cancel", "last", "--json").out)["status"] == "cancelled"
    refused = run("cancel", job_id)
    assert (refused.code, "cannot be cancelled" in refused.err) == (1, True)
    told = run("logs", job_id).out.splitlines()
    assert ["Created" in told[0], "ancelled" in told[-1]] == [True, True]
    page = json.loads(run("logs", job_id, "--json", "--tail", "2").out)
    assert (len(page["data"]), page["has_more"]) == (2, True)
    followed = run("logs", job_id, "--follow", "--json", "--tail", "2")
    assert followed.code == 0, followed.err
    assert [json.loads(line)["data"]["code"] for line in followed.out.splitlines()][-1] == "cancelled"


def test_one_job_is_shown_with_recipe_history_and_checkpoints(run: Run, rows: Path, api: Api) -> None:
    job_id = make(run, rows, "--learning-rate", "1e-3")["id"]
    database = WorkerDatabase(api.settings)
    reporter = Reporter(api.settings, database, job_id)
    reporter.prepare()
    reporter.steps(1, 2, 3)
    reporter.save(3)
    reporter.fail()
    database.close()
    said = run("job", job_id)
    assert said.code == 0
    for part in ("failed", "It went wrong. (bad)", "30% of 10", "ckpt-step-3", "0.6000", "learning_rate"):
        assert part in said.out, part


def test_submit_takes_a_card_and_says_what_it_left_out(run: Run, rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(HEAD + NEWEST + "- neftune_noise_alpha: 5\n" + TAIL)
    said = run("submit", str(rows), "--card", str(path), "--num-epochs", "1", "--json")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert (made["model"], made["recipe"]["learning_rate"], made["recipe"]["num_epochs"]) == (
        "gpt2",
        0.0002,
        1,
    )
    assert "README.md: label_smoothing_factor 0.1: is no hyperparameter here" in said.err
    assert "neftune_noise_alpha" in said.err
    path.write_text("Hello")
    refused = run("submit", str(rows), "--card", str(path))
    assert (refused.code, "Training hyperparameters" in refused.err) == (2, True)
