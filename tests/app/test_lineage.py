"""Going on from what was trained here: a checkpoint by job and step, a model by its name."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.database import WorkerDatabase
from app.lifecycle import claims
from app.tables import Checkpoint, Job, Model
from tests.app.conftest import Api
from worker import retention
from worker.rows import Rows
from worker.training.events import Saved

LEASE = timedelta(minutes=5)
KEYED = {"integrations": [{"type": "wandb", "wandb": {"project": "p", "key": "secret"}}]}
PATHS = {"integrations": [{"type": "hub", "hub": {"repo_id": "../x"}}]}
WANDB = {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}
Make = Callable[..., Any]


@pytest.fixture
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()


@pytest.fixture
def make(client: OpenAI, rows: Path) -> Make:
    file = client.files.create(file=rows, purpose="fine-tune").id
    return lambda **named: client.fine_tuning.jobs.create(
        **{"model": "tiny-gpt2", "training_file": file, **named}
    )


@pytest.fixture
def trained(api: Api, database: WorkerDatabase, make: Make) -> tuple[str, str]:
    """A job that saved step 5 and succeeded: its id and its model's name."""
    job_id = make(suffix="soup").id
    with database.transaction() as session:
        held = claims.claim(session, job_id, "w", LEASE)
        assert held is not None
        rows = Rows(api.settings, held)
        name = f"ft:tiny-gpt2:finetuned:soup:{job_id[-8:]}"
        rows.model_name, rows.keep = name, 2
        assert rows.write(session, [rows.hear(Saved(5, "/x", "00", 1, {}, False, True))])
        assert claims.succeed(session, held, name, 9)
        session.add(
            Model(
                id=f"model-{job_id}", owner="finetuned", name=name, base="tiny-gpt2", job_id=job_id,
                key=f"models/{job_id}-e1", manifest={}, bytes=1,
            )
        )  # fmt: skip
    return job_id, name


def source(database: WorkerDatabase, job_id: str) -> str:
    with database.transaction() as session:
        return session.get_one(Job, job_id).source


def test_a_job_goes_on_from_a_checkpoint_by_job_and_step(
    make: Make, trained: tuple[str, str], database: WorkerDatabase
) -> None:
    job_id, name = trained
    for model in ("tiny-gpt2", f"{name}:ckpt-step-5"):
        job = make(model=model, extra_body={"from_checkpoint": f"{job_id}:5"})
        assert job.model == f"{name}:ckpt-step-5"
        assert source(database, job.id) == f"store:jobs/{job_id}/e1/checkpoints/step-5"


def test_a_job_goes_on_from_a_model_by_its_name(
    make: Make, trained: tuple[str, str], database: WorkerDatabase, client: OpenAI
) -> None:
    job_id, name = trained
    job = make(model=name)
    assert (job.model, source(database, job.id)) == (name, f"store:models/{job_id}-e1")
    with pytest.raises(openai.BadRequestError) as refused:
        client.models.delete(name)
    assert refused.value.code == "model_in_use"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"from_checkpoint": "{job}:6"}, "from_checkpoint", "checkpoint_not_found"),
        ({"from_checkpoint": "ftjob-000000000000000000000000:5"}, "from_checkpoint", "checkpoint_not_found"),
        ({"from_checkpoint": "{job}"}, "from_checkpoint", "invalid_value"),
        ({"from_checkpoint": "{job}:99999999999999999999"}, "from_checkpoint", "invalid_value"),
        ({"from_checkpoint": "{job}:5", "model": "gpt2"}, "model", "contradictory_value"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations.0.wandb.project", None),
        ({"integrations": [{"type": "mlfloww"}]}, "integrations.0.type", "invalid_value"),
        ({"integrations": [{"type": "mlflow"}]}, "integrations.0", "invalid_value"),
        (PATHS, "integrations.0.hub.repo_id", "invalid_value"),
        (KEYED, "integrations.0.wandb.key", "unknown_parameter"),
        (WANDB, "integrations.0.type", "unsupported_integration"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_from_is_refused_by_name(
    make: Make, trained: tuple[str, str], change: dict[str, Any], param: str, code: str | None
) -> None:
    change = {k: v.format(job=trained[0]) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(openai.BadRequestError) as refused:
        make(extra_body=change)
    assert (refused.value.param, refused.value.code) == (param, code or "missing_required_parameter")


def test_nobody_goes_on_from_somebody_elses_checkpoint(
    api: Api, trained: tuple[str, str], rows: Path
) -> None:
    with api.client(api.stranger_key) as stranger:
        file = stranger.files.create(file=rows, purpose="fine-tune")
        with pytest.raises(openai.BadRequestError) as refused:
            stranger.fine_tuning.jobs.create(
                model="tiny-gpt2", training_file=file.id, extra_body={"from_checkpoint": f"{trained[0]}:5"}
            )
    assert refused.value.code == "checkpoint_not_found"


def test_a_checkpoint_that_a_job_goes_on_from_is_kept(
    api: Api, make: Make, trained: tuple[str, str], database: WorkerDatabase
) -> None:
    """Retention of the first job would take step 5 away, now that there are three newer ones."""
    job_id, _ = trained
    make(extra_body={"from_checkpoint": f"{job_id}:5"})
    with database.transaction() as session:
        for step in (6, 7, 8):
            session.add(
                Checkpoint(
                    id=f"ftckpt_{job_id}{step}", job_id=job_id, step=step, epoch=1, key=f"k{job_id}{step}",
                    name=f"n{job_id}{step}", manifest_sha256="", bytes=1, metrics={},
                )
            )  # fmt: skip
        session.flush()
        retention.retire(session, job_id, 2)
        kept = select(Checkpoint.step).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        assert sorted(session.scalars(kept)) == [5, 7, 8]
