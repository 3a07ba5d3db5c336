"""`python -m tests.chaos [SEED]`: hurt the real service in every way we know, and look at what it accepted.

Prints a table of promises and, as its last line, one JSON document. Exits with 1 where a promise was broken,
or where the service without its fence was not caught.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.chaos import disk, history, promises, real
from tests.chaos.nth import Sweep
from tests.chaos.promises import Faults
from tests.chaos.storm import Storm
from tests.chaos.verdict import complaints
from tests.chaos.world import World

STRIDE = 4  # every fourth operation of the sweep, beginning at a random one
FENCED, UNFENCED = "tests.chaos.worker", "tests.chaos.unfenced_worker"


class Chaos:
    """The phases, in order; what each did and found."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.table: list[tuple[str, int, int, float]] = []
        self.faults, self.violations, self.unfenced, self.writes = 0, 0, 0, 0
        self.kinds: dict[str, int] = {}

    def run(self) -> None:
        world = World(self.folder / "service", apis=2, workers=2, entry=FENCED)
        try:
            for name, promise in promises.ALL.items():
                self.phase(name, lambda faults, promise=promise: self.promise(world, promise, faults))  # type: ignore[misc]
            self.phase("1-11 each n-th operation", lambda faults: self.sweep(world, faults))
            self.phase("3, 11, 24 their history", lambda faults: self.look(world, faults, set(), False))
        finally:
            world.close()
        self.phase("1-14, 24 the storm", lambda faults: self.storm(faults))
        self.phase("3 frozen workers", lambda faults: self.freeze("frozen", FENCED, faults))
        self.phase("21 a full disk", lambda faults: disk.run(self.folder / "disk", faults))
        self.phase("13, 19 ten kills, same weights", lambda f: real.run(self.folder / "real", f, self.seed))
        unfenced = Faults()
        self.freeze("unfenced", UNFENCED, unfenced)
        # What the checker alone has caught.
        self.unfenced = sum("epoch" in complaint for complaint in unfenced.found)

    def promise(self, world: World, promise: Callable[[World, Faults], None], faults: Faults) -> None:
        """One that fails leaves nothing behind that would fail the next."""
        try:
            promise(world, faults)
        finally:
            world.calm()

    def phase(self, name: str, work: Callable[[Faults], None]) -> None:
        faults, began = Faults(), time.monotonic()
        try:
            work(faults)
        except Exception as error:
            faults.found.append(f"{type(error).__name__}: {error}")
            traceback.print_exc()
        self.faults += faults.count
        self.violations += len(faults.found)
        took = time.monotonic() - began
        print(f"{name:32} {faults.count:7} {len(faults.found):11} {took:7.0f} s", flush=True)
        for complaint in faults.found[:20]:
            print(f"    {complaint}", flush=True)

    def sweep(self, world: World, faults: Faults) -> None:
        sweep = Sweep(world.settings, world.database, self.seed)
        # Its jobs would be taken by the workers.
        workers = [name for name in world.wanted if name.startswith("worker")]
        world.dismiss(*workers)
        sweep.run(STRIDE)
        faults.count += sweep.faults.total()
        faults.found += sweep.found
        world.wanted += workers
        waiting = "SELECT 1 FROM jobs WHERE status IN ('queued', 'running')"
        world.wait(lambda: not world.rows(waiting), "what was only created")

    def look(self, world: World, faults: Faults, accepted: set[str], complete: bool) -> None:
        rows = history.read(world.database)
        self.writes += len(rows)
        faults.found += history.violations(rows) + complaints(world, accepted, complete)

    def storm(self, faults: Faults) -> None:
        world = World(self.folder / "storm", apis=2, workers=3, entry=FENCED)
        try:
            weather = Storm(world, self.seed)
            weather.run(45, jobs=30)
            weather.settle(90)
            self.look(world, faults, weather.accepted, True)
            faults.count += weather.faults.total()
            self.kinds = dict(weather.faults)
        finally:
            world.close()

    def freeze(self, name: str, entry: str, faults: Faults) -> None:
        world = World(self.folder / name, apis=1, workers=2, entry=entry)
        try:
            promises.frozen_workers(world, faults)
        except TimeoutError as error:
            faults.found.append(str(error))
        finally:
            rows = history.read(world.database)
            self.writes += len(rows) if entry == FENCED else 0
            faults.found += history.violations(rows)
            world.close()


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="finetuned-chaos-"))
    print(f"seed {seed}\n{'promises':32} {'faults':>7} {'violations':>11} {'took':>9}", flush=True)
    began = time.monotonic()
    chaos = Chaos(folder, seed)
    chaos.run()
    took = round(time.monotonic() - began)
    caught = chaos.unfenced > 0
    verdict = "caught" if caught else "NOT CAUGHT"
    print(f"{'the same without the fence':32} {'':7} {chaos.unfenced:11}   {verdict}")
    print("the storm:", ", ".join(f"{kind} {count}" for kind, count in sorted(chaos.kinds.items())))
    good = chaos.violations == 0 and caught
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs and data: {folder}")
    document = {
        "seed": seed,
        "seconds": took,
        "faults": chaos.faults,
        "writes_checked": chaos.writes,
        "violations": chaos.violations,
        "unfenced_violations": chaos.unfenced,
    }
    print(json.dumps(document))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
