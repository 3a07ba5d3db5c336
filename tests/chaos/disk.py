"""21: a disk of 96 MB that fills up, or, where we may not mount one, files that may not grow."""

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from tests.chaos import verdict
from tests.chaos.promises import Faults, make, start, until
from tests.chaos.world import World

# What is free must look like enough before the first step (39 MB by the built-in model's real size), also
# beside the two checkpoints that the failed job keeps.
SIZE = 96 * 1024**2
LEAST_FREE = 2 * 1024**2
CHECKPOINT = 26 * 1024**2


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system there; False where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def run(folder: Path, faults: Faults) -> None:
    with small_disk(folder / "home" / "storage") as mounted:
        least = LEAST_FREE if mounted else 0
        world = World(folder, 1, 1, "tests.chaos.worker", FINETUNED_MIN_FREE_BYTES=str(least))
        try:
            fill(world, faults, mounted)
            faults.found += verdict.complaints(world, set(), complete=False)
        finally:
            world.close()


def fill(world: World, faults: Faults, mounted: bool) -> None:
    """One checkpoint fits, a few do not: that job fails and says why, and nothing else is hurt."""
    if mounted:
        (job_id,) = make(world, 1, steps=50, save=1, size=CHECKPOINT, pause=0.02)
    else:
        (job_id,) = start(world)
        for pid in world.trainers():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (500, 500))
    faults.count += 1
    until(world, job_id, lambda job: job["status"] == "failed", "its failure")
    error = world.rows("SELECT error_code FROM jobs WHERE id = %s", job_id)[0]["error_code"]
    faults.expect(error == "disk_full", f"the job's error is {error}")
    kept = world.rows("SELECT 1 FROM checkpoints WHERE job_id = %s AND deleted_at IS NULL", job_id)
    faults.expect(bool(kept), "no checkpoint was kept")
    faults.expect(world.get("/v1/fine_tuning/jobs").status_code == 200, "the API is down")
    if not mounted:
        return
    left = [path.name for path in world.settings.storage_folder.rglob(".saving*")]
    faults.expect(not left, f"left behind: {left}")
    ballast = world.settings.storage_folder / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(bytes(SIZE))
    faults.count += 1
    asks: list[Callable[[], str]] = [lambda: world.upload(steps=1), lambda: world.create("file-x")]
    for ask in asks:
        try:
            ask()
            faults.found.append("something was accepted on a full disk")
        except httpx2.HTTPStatusError as error:
            told = (error.response.status_code, error.response.headers.get("x-should-retry"))
            faults.expect(told == (507, "false"), f"a full disk is answered with {told}")
    ballast.unlink()
    time.sleep(1.5)  # checkpoints that were retired are removed
    (again,) = make(world, 1, steps=2, pause=0)
    until(world, again, lambda job: job["status"] == "succeeded", "a small job's success")
