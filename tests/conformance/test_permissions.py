"""Checkpoint permissions by either client of the SDK; what they allow: tests/app/test_permissions.py."""

from collections.abc import Callable

import openai
import pytest

from tests.conformance.conftest import Client
from tests.stand_ins.reporter import Reporter

PERMISSIONS = "fine_tuning.checkpoints.permissions"


@pytest.fixture
def checkpoint(call: Client, file_id: str, work: Callable[[str], Reporter]) -> str:
    job = call("fine_tuning.jobs.create", model="tiny-gpt2", training_file=file_id)
    worker = work(job.id)
    worker.steps(1)
    worker.save(1)
    name: str = call("fine_tuning.jobs.checkpoints.list", job.id).data[0].fine_tuned_model_checkpoint
    return name


def test_permissions_are_given_listed_and_taken_back(call: Client, checkpoint: str) -> None:
    projects = ["ann", "team b/é"]
    made = call(f"{PERMISSIONS}.create", checkpoint, project_ids=projects)
    assert [row.project_id for row in made.data] == projects
    assert [row.id for row in call(f"{PERMISSIONS}.list", checkpoint).data] == [row.id for row in made.data][
        ::-1
    ]
    assert [row.project_id for row in call.every(f"{PERMISSIONS}.list", checkpoint, limit=1)] == projects[
        ::-1
    ]
    found = call(f"{PERMISSIONS}.list", checkpoint, project_id="ann", order="ascending").data
    assert [row.project_id for row in found] == ["ann"]
    for row in made.data:
        named = {"fine_tuned_model_checkpoint": checkpoint}
        assert call(f"{PERMISSIONS}.delete", row.id, **named).deleted
        with pytest.raises(openai.NotFoundError):
            call(f"{PERMISSIONS}.delete", row.id, **named)
    assert call(f"{PERMISSIONS}.list", checkpoint).data == []


def test_a_checkpoint_that_is_not_there_is_not_found(call: Client) -> None:
    with pytest.raises(openai.NotFoundError):
        call(f"{PERMISSIONS}.create", "ft:none", project_ids=["ann"])
    with pytest.raises(openai.NotFoundError):
        call(f"{PERMISSIONS}.list", "ft:none")
