"""Another owner may use what they were permitted, and nothing more; the SDK asks for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning.checkpoints import (
    PermissionCreateResponse,
    PermissionDeleteResponse,
    PermissionRetrieveResponse,
)
from sqlalchemy import update

from app import catalogue
from app.database import WorkerDatabase
from app.tables import Checkpoint, Job, Model
from tests.app.conftest import Api

# As a model of a hub's base is called: with a slash, which the SDK sends as %2F.
NAME = "ft:org/base:finetuned:mine:abcdefgh"
SAVED = f"{NAME}:ckpt-step-5"


@pytest.fixture(scope="module")
def trained(api: Api) -> Iterator[WorkerDatabase]:
    """A published model and a checkpoint of the first owner; `other` is a model of the stranger."""
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        file = client.files.create(file=("rows.jsonl", b'{"text": "one"}\n'), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    with database.transaction() as session:
        owner = session.get_one(Job, job.id).owner
        saved = {"manifest_sha256": "", "bytes": 1, "metrics": {}, "epoch": 1, "job_id": job.id}
        session.add(Checkpoint(id="ftckpt_1", step=5, key=f"jobs/{job.id}/e1/c5", name=SAVED, **saved))
        model: dict[str, Any] = {"base": "tiny-gpt2", "manifest": {"files": {}}, "bytes": 1}
        session.add(Model(id="model-1", owner=owner, name=NAME, key="models/m1", **model))
        session.add(Model(id="model-2", owner="stranger", name="ft:other", key="models/m2", **model))
    yield database
    database.close()


@pytest.fixture
def stranger(api: Api) -> Iterator[OpenAI]:
    with api.client(api.stranger_key) as client:
        yield client


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", [NAME, SAVED])
def test_permissions_are_given_listed_and_taken_back(client: OpenAI, name: str) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    projects = [f"team {number}/é" for number in range(5)]
    made = permissions.create(name, project_ids=projects)
    assert [row.project_id for row in made] == projects
    for row in made:
        assert PermissionCreateResponse.model_validate(row.to_dict(), strict=True) == row
    ids = [row.id for row in made]
    again = permissions.create(name, project_ids=[projects[3], "new", projects[3]])
    old, new = again.data
    assert old.id == ids[3]
    ids.append(new.id)
    assert [row.id for row in permissions.list(name)] == ids[::-1]
    assert [row.id for row in permissions.list(name, limit=2, order="ascending")] == ids, "page by page"
    assert [row.id for row in permissions.list(name, project_id=projects[1])] == [ids[1]]
    with pytest.warns(DeprecationWarning, match="list"):
        raw = permissions.with_raw_response.retrieve(name, limit=2)
    whole = PermissionRetrieveResponse.model_validate_json(raw.http_response.content, strict=True)
    assert (whole.first_id, whole.last_id, whole.has_more) == (ids[5], ids[4], True)
    for each in ids:
        gone = permissions.delete(each, fine_tuned_model_checkpoint=name)
        assert gone == PermissionDeleteResponse(id=each, object="checkpoint.permission", deleted=True)
    with pytest.raises(openai.NotFoundError):
        permissions.delete(ids[0], fine_tuned_model_checkpoint=name)
    assert list(permissions.list(name)) == []


@pytest.mark.parametrize("name", [NAME, SAVED])
def test_who_is_permitted_uses_the_model_and_only_uses_it(
    api: Api, client: OpenAI, stranger: OpenAI, trained: WorkerDatabase, rows: Path, name: str
) -> None:
    file = stranger.files.create(file=rows, purpose="fine-tune").id
    body: dict[str, Any] = {"model": name, "training_file": file}
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(name)
    with pytest.raises(openai.BadRequestError, match="model"):
        stranger.fine_tuning.jobs.create(**body)
    permissions = client.fine_tuning.checkpoints.permissions
    (permission,) = permissions.create(name, project_ids=["stranger"])
    assert stranger.models.retrieve(name).owned_by == "finetuned"
    assert name in [model.id for model in stranger.models.list()]
    assert [model.id for model in client.models.list()].count(NAME) == 1
    # A generator is not there, but the model was found: it is asked.
    with pytest.raises(openai.InternalServerError) as away:
        stranger.completions.create(model=name, prompt="x")
    assert away.value.code == "generator_unavailable"
    with trained.transaction() as session:
        source = catalogue.find(session, name, "stranger", api.settings).source
    job = stranger.fine_tuning.jobs.create(**body)
    with trained.transaction() as session:
        assert session.get_one(Job, job.id).source == source
    # To look at is not to have: no download, no deletion, no sharing further.
    with pytest.raises(openai.NotFoundError):
        stranger.models.delete(name)
    with api.http(api.stranger_key) as http:
        for what in ("files", "download", "files/config.json"):
            assert http.get(f"/v1/models/{name}/{what}").status_code == 404
    theirs = stranger.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.NotFoundError):
        theirs.list(name)
    with pytest.raises(openai.NotFoundError):
        theirs.create(name, project_ids=["third"])
    with pytest.raises(openai.NotFoundError):
        theirs.delete(permission.id, fine_tuned_model_checkpoint=name)
    permissions.delete(permission.id, fine_tuned_model_checkpoint=name)
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(name)
    assert name not in [model.id for model in stranger.models.list()]
    assert stranger.fine_tuning.jobs.retrieve(job.id).status == "queued", "what was queued before goes on"
    stranger.fine_tuning.jobs.cancel(job.id)


@pytest.mark.usefixtures("trained")
def test_a_permission_for_one_name_is_none_for_another(client: OpenAI, stranger: OpenAI) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    (permission,) = permissions.create(SAVED, project_ids=["stranger"])
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(NAME)
    with pytest.raises(openai.NotFoundError):
        permissions.delete(permission.id, fine_tuned_model_checkpoint=NAME)
    permissions.delete(permission.id, fine_tuned_model_checkpoint=SAVED)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", [NAME, SAVED])
def test_a_permission_for_one_owner_is_none_for_another(client: OpenAI, stranger: OpenAI, name: str) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    (permission,) = permissions.create(name, project_ids=["stranger too"])
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(name)
    assert name not in [model.id for model in stranger.models.list()]
    permissions.delete(permission.id, fine_tuned_model_checkpoint=name)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["ft:other", "ft:nobody", "tiny-gpt2", "ftckpt_1"])
def test_only_ones_own_can_be_shared(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.checkpoints.permissions.create(name, project_ids=["a"])


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "project_ids"),
        ({"project_ids": []}, "project_ids"),
        ({"project_ids": [""]}, "project_ids.0"),
        ({"project_ids": "a"}, "project_ids"),
        ({"project_ids": ["a"], "role": "x"}, "role"),
    ],
)
def test_a_bad_permission_is_refused_by_its_field(api: Api, body: Any, param: str) -> None:
    with api.http() as http:
        answer = http.post(f"/v1/fine_tuning/checkpoints/{NAME}/permissions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_another_owners_job_holds_the_model_and_is_not_named(
    client: OpenAI, stranger: OpenAI, trained: WorkerDatabase, rows: Path
) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    permissions.create(NAME, project_ids=["stranger"])
    file = stranger.files.create(file=rows, purpose="fine-tune").id
    job = stranger.fine_tuning.jobs.create(model=NAME, training_file=file)
    with pytest.raises(openai.BadRequestError) as refused:
        client.models.delete(NAME)
    assert refused.value.code == "model_in_use"
    assert job.id not in refused.value.message
    stranger.fine_tuning.jobs.cancel(job.id)
    assert client.models.delete(NAME).deleted
    # Were the name there again, the permission would not be.
    with trained.transaction() as session:
        session.execute(update(Model).where(Model.name == NAME).values(deleted_at=None))
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(NAME)
