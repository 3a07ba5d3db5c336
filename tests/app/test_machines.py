"""Workers, storage and the recipe's form, as the dashboard asks for them."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import update

from app import card
from app.database import WorkerDatabase
from app.presets import PARTS, PRESETS
from app.recipe import Recipe
from app.tables import Job, Worker, now
from tests.app.conftest import Api
from tests.security.things import ROW, good, make_file, make_job, make_model

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
GPU = {"name": "A card", "memory_bytes": 2**34, "used_bytes": 2**20}


@pytest.fixture(scope="module")
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()


def test_a_worker_shows_its_devices_and_only_ones_own_jobs(api: Api, database: WorkerDatabase) -> None:
    with api.http() as owner, api.http(api.stranger_key) as stranger:
        mine, theirs = make_job(stranger)["id"], make_job(owner)["id"]
        with database.transaction() as session:
            session.add(Worker(id="w-1", host="h", slots=2, busy=2, version="1", devices=[GPU]))
            session.add(Worker(id="w-0", host="h", slots=1, busy=0, version="0", seen_at=now - HOUR))
            session.execute(
                update(Job)
                .where(Job.id.in_([mine, theirs]))
                .values(status="running", worker="w-1", lease_expires_at=now + HOUR, epoch=1, attempt=1)
            )
        seen, admins = (good(client.get("/v1/workers"))["data"] for client in (stranger, owner))
    assert [(row["id"], row["alive"]) for row in seen] == [("w-1", True), ("w-0", False)]
    assert seen[0]["devices"] == [GPU]
    assert seen[1]["devices"] is None
    assert (seen[0]["slots"], seen[0]["busy"]) == (2, 2)
    assert seen[0]["jobs"] == [mine]
    assert admins[0]["jobs"] == [mine, theirs]
    assert isinstance(seen[0]["seen_at"], int)


def test_storage_is_summed_by_kind_and_owner(api: Api) -> None:
    with api.http() as owner, api.http(api.stranger_key) as stranger:
        before = good(stranger.get("/v1/storage"))
        make_file(stranger)
        gone = make_file(stranger)
        good(stranger.delete(f"/v1/files/{gone}"))
        make_model(api.settings, "stranger", make_job(stranger)["id"], "ft:stored")
        after, all_of_it = (good(client.get("/v1/storage")) for client in (stranger, owner))
    assert after["files"]["count"] == before["files"]["count"] + 2  # the job's too
    assert after["files"]["bytes"] == before["files"]["bytes"] + 2 * len(ROW)
    assert after["models"] == {"count": 1, "bytes": 2}
    assert after["checkpoints"] == {"count": 1, "bytes": 2}
    assert after["bytes"] == sum(after[kind]["bytes"] for kind in ("files", "checkpoints", "models"))
    assert after["key"] == {"used_bytes": after["bytes"], "limit_bytes": None}
    assert 0 < after["disk"]["free_bytes"] < after["disk"]["total_bytes"]
    assert "owners" not in after
    shown = {row.pop("owner"): row for row in all_of_it["owners"]}
    assert shown["stranger"]["bytes"] == after["bytes"]


def test_the_form_has_every_field_once_and_its_presets_are_recipes(http: httpx2.Client) -> None:
    form = good(http.get("/v1/fine_tuning/recipe"))
    assert [name for part in form["parts"] for name in part["fields"]] == list(Recipe.model_fields)
    assert [part["title"] for part in form["parts"]] == [title for title, _ in PARTS]
    assert form["schema"]["properties"]["save_total_limit"]["minimum"] == 1
    assert all(field["description"] for field in form["schema"]["properties"].values())
    assert form["aliases"]["n_epochs"] == "num_epochs"
    for preset in PRESETS:
        Recipe.from_request(preset.hyperparameters, preset.method)
    given = json.loads((ROOT / "examples/reference-card.json").read_text())["hyperparameters"]
    card_preset = next(preset for preset in PRESETS if preset.id == "reference-card")
    assert Recipe.from_request(given) == Recipe.from_request(card_preset.hyperparameters)


CARD = """
# a model
learning_rate: 9
## Training procedure

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.0005
- train_batch_size: 64
- distributed_type: multi-GPU
- optimizer: Adam with betas=(0.9,0.95) and epsilon=1e-08
- lr_scheduler_type: cosine
* num_epochs: 20.0
- mixed_precision_training: Native AMP
- packing: True
- lora_targets: ['q_proj', 'v_proj']

### Framework versions
- seed: 7
"""


def test_a_card_is_read(http: httpx2.Client) -> None:
    read = good(http.post("/v1/fine_tuning/recipe/card", json={"card": CARD}))
    assert read["hyperparameters"] == {
        "learning_rate": 0.0005,
        "train_batch_size": 64,
        "optimizer": "adamw",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-08,
        "lr_scheduler_type": "cosine",
        "num_epochs": 20.0,
        "mixed_precision_training": "Native AMP",
        "packing": True,
        "lora_targets": ["q_proj", "v_proj"],
    }
    assert read["ignored"] == ["distributed_type"]
    Recipe.from_request({k: v for k, v in read["hyperparameters"].items() if k != "lora_targets"})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("learning_rate: 5e-05", {"learning_rate": 5e-05}),
        ("- training_steps: 100", {"max_steps": 100}),
        ("learning_rate: nan", {"learning_rate": "nan"}),
        ("learning_rate: 1e999", {"learning_rate": "1e999"}),
        ("learning_rate: " + "9" * 5000, {"learning_rate": int("9" * 1000)}),
        ("optimizer: Adam with betas=(0.9.9,1)", {}),
        ("lora_targets: " + "[" * 5000, {"lora_targets": "[" * 1000}),
        (" " * 500_000 + "x", {}),
        ("a:" * 200_000, {}),
    ],
)
def test_whatever_is_pasted_is_read_or_left(line: str, found: dict[str, object]) -> None:
    assert card.read(line).hyperparameters == found
