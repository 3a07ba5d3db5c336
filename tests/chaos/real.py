"""13, 19: the real trainer in the whole service, killed ten times: the same weights, bit for bit."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

from tests.chaos.promises import Faults, all_succeed, holder, next_claim, until
from tests.chaos.world import World

KILLS = 10
STEPS = 420  # on fast cores a step takes 20 ms, the row is 0.3 s behind, and the tenth kill must meet a run
RECIPE = {
    "max_steps": STEPS,
    "save_steps": 5,
    "learning_rate": 0.001,
    "train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "num_epochs": 2000,
    "eval_steps": 50,
    "validation_split": 0.1,
}
ROWS = [
    {"text": f"Stir the {what} for {minutes} minutes. Serve it warm."}
    for what in ("soup", "sauce", "tea", "stew")
    for minutes in range(1, 21)
]


def run(folder: Path, faults: Faults, seed: int) -> None:
    # A lease that a trainer's import, which takes both cores for seconds, does not outlast.
    world = World(folder, 1, 2, "worker.main", FINETUNED_LEASE="3")
    try:
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        answer = world.client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", text)}
        )
        file_id = answer.raise_for_status().json()["id"]
        calm, rough = (
            world.create(file_id, hyperparameters=RECIPE, suffix=name) for name in ("calm", "rough")
        )
        hurt(world, rough, faults, random.Random(seed))
        all_succeed(world, [calm, rough], 150)
        first, second = weights(world, calm), weights(world, rough)
        faults.expect(first == second, f"weights differ: {first} undisturbed, {second} killed {KILLS} times")
        for job_id in (calm, rough):
            steps = world.rows("SELECT step FROM metrics WHERE job_id = %s ORDER BY step", job_id)
            faults.expect([row["step"] for row in steps] == list(range(1, STEPS + 1)), f"gaps in {job_id}")
        losses = "SELECT step, loss, learning_rate, valid_loss FROM metrics WHERE job_id = %s ORDER BY step"
        faults.expect(world.rows(losses, calm) == world.rows(losses, rough), "a step's numbers differ")
        attempts = len(world.rows("SELECT 1 FROM attempts WHERE job_id = %s", rough))
        faults.expect(attempts > KILLS, f"only {attempts} attempts: kills missed")
    finally:
        world.close()


def hurt(world: World, job_id: str, faults: Faults, rng: random.Random) -> None:
    """Kills once a few more steps are done, so that every kill meets a run that has got further."""
    for _ in range(KILLS):
        target = world.step(job_id) + rng.randint(1, 8)
        until(world, job_id, lambda job, step=target: job["step"] >= step, f"step {target}")  # type: ignore[misc]
        name, epoch = holder(world, job_id), world.epoch(job_id)
        time.sleep(rng.random() * 0.1)
        if rng.random() < 0.3:
            world.kill(name)
        else:
            for pid in world.trainers(name):
                os.kill(pid, signal.SIGKILL)
        faults.count += 1
        # What the dead one had still said arrives after its death: by the row alone, the next kill would come
        # before the next attempt.
        next_claim(world, job_id, epoch)


def weights(world: World, job_id: str) -> str:
    key = world.rows("SELECT key FROM models WHERE job_id = %s", job_id)[0]["key"]
    with (world.settings.storage_folder / key / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
