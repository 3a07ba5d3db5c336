"""What must be true when the dust has settled, besides a clean history."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.chaos.world import ENDED, World
from worker.training import manifest


def expected_state(row: str, steps: int) -> str:
    """The weights that an undisturbed stand-in trainer ends with."""
    state = hashlib.sha256(row.encode()).hexdigest()
    for step in range(1, steps + 1):
        state = hashlib.sha256(f"{state}{step}".encode()).hexdigest()
    return state


def complaints(world: World, accepted: set[str], complete: bool = True) -> list[str]:
    """`complete`: nothing else made jobs here."""
    store = world.settings.storage_folder
    found: list[str] = []
    jobs = world.rows(
        "SELECT j.*, f.key AS file_key, m.key AS model_key, m.name AS model_name FROM jobs j"
        " JOIN files f ON f.id = j.training_file LEFT JOIN models m ON m.job_id = j.id"
    )
    ids = {job["id"] for job in jobs}
    found += [f"{job_id} was accepted and is gone" for job_id in accepted - ids]
    if complete:
        found += [f"{job_id} exists and was never accepted" for job_id in ids - accepted]
    for job in jobs:
        if job["status"] not in ENDED:
            found.append(f"{job['id']} is {job['status']}")
        if (job["model_key"] is not None) != (job["status"] == "succeeded"):
            found.append(f"{job['id']} is {job['status']} and its model is {job['model_key']}")
        if job["model_key"] is not None:
            found += _check_model(store, job)
    for row in world.rows("SELECT * FROM checkpoints WHERE deleted_at IS NULL"):
        try:
            digest = manifest.verify(store / row["key"])
        except manifest.Damaged as error:
            found.append(f"checkpoint {row['name']} is listed and damaged: {error}")
        else:
            if digest != row["manifest_sha256"]:
                found.append(f"checkpoint {row['name']} is not the one that was recorded")
    return found


def _check_model(store: Path, job: dict[str, Any]) -> list[str]:
    folder = store / job["model_key"]
    try:
        manifest.verify(folder)
    except manifest.Damaged as error:
        return [f"{job['id']}: its model is damaged: {error}"]
    row = (store / job["file_key"]).read_text().splitlines()[0]
    script = json.loads(json.loads(row)["text"])
    state = (folder / "model.safetensors").read_bytes()[:64].decode()
    if state != expected_state(row, script["steps"]):
        return [f"{job['id']}: its weights are not those of an undisturbed run"]
    return []
