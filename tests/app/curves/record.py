"""`python -m tests.app.curves.record`: trains the built-in model into each trouble, and keeps the curves.

The files beside this one are what it wrote; `tests/app/test_diagnosis.py` judges them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.tiny import model as tiny
from worker.training import events

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
USUAL: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 5,
    "total_train_batch_size": 32,
    "sample_prompts": ["Title:"],
    "sample_max_tokens": 400,
}
# name: rows of the training file, hyperparameters
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "healthy": (1500, {"num_epochs": 4}),
    "overfitting": (16, {"num_epochs": 200, "learning_rate": 3e-3, "eval_steps": 10, "sample_prompts": [],
                         "total_train_batch_size": 16, "lr_scheduler_type": "constant_with_warmup"}),
    "underfitting": (1500, {"num_epochs": 2, "learning_rate": 5e-6, "eval_steps": 10}),
    "still_falling": (1500, {"num_epochs": 1, "learning_rate": 4e-4, "lr_scheduler_type": "linear",
                             "lr_scheduler_warmup_steps": 0, "eval_steps": 5}),
    "diverging": (1500, {"num_epochs": 1, "learning_rate": 0.3, "max_grad_norm": 0,
                         "lr_scheduler_type": "constant", "lr_scheduler_warmup_steps": 0}),
    "warmup_longer_than_run": (1500, {"num_epochs": 1, "lr_scheduler_warmup_steps": 1000}),
    "too_few_steps": (200, {"num_epochs": 1, "lr_scheduler_warmup_steps": 0}),
    "slow_training": (300, {"num_epochs": 4, "train_batch_size": 1}),
    "never_stops": (1500, {"max_steps": 30, "eval_steps": 10}),
}  # fmt: skip
KEPT = 200  # steps of a curve
FACTS = ("total_tokens", "examples", "device", "precision", "parameters")


def record(rows: int, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The facts that a diagnosis sees, of one real run."""
    data, recipe = folder / "rows.jsonl", folder / "recipe.json"
    data.write_text("".join((EXAMPLES / "dishes.jsonl").open().readlines()[:rows]))
    recipe.write_text(json.dumps(USUAL | changes))
    command = [
        sys.executable,
        "-m",
        "worker.training",
        str(recipe),
        "--data",
        str(data),
        "--out",
        f"{folder}/out",
    ]
    command += ["--validation", str(EXAMPLES / "dishes.valid.jsonl"), "--keep", "1"]
    done = subprocess.run(
        [*command, "--model", str(tiny.ensure(folder / "tiny"))], capture_output=True, text=True
    )
    said = [events.parse(line) for line in done.stdout.splitlines()]
    found: dict[str, Any] = {
        "loss": [],
        "valid_loss": [],
        "speed": [],
        "ended_shares": [],
        "error_code": None,
    }
    for event in said:
        match event:
            case events.Prepared():
                facts = {k: v for k, v in vars(event).items() if k in FACTS}
                found |= {"recipe": event.recipe, "total_steps": event.total_steps, "prepared": facts}
            case events.Step() if event.loss is not None:
                found["loss"].append((event.step, round(event.loss, 4)))
                found["speed"].append((event.step, round(event.tokens_per_second)))
            case events.Evaluated() if event.loss is not None:
                found["valid_loss"].append((event.step, round(event.loss, 4)))
            case events.Sampled():
                found["ended_shares"].append((event.step, event.ended_share))
            case events.Failed():
                found["error_code"] = event.code
            case _:
                pass
    every = -(-len(found["loss"]) // KEPT) or 1
    found |= {name: found[name][::every] for name in ("loss", "speed")}
    return found | {"finished": isinstance(said[-1], events.Finished)}


def main() -> None:
    for name in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found = record(*RUNS[name], Path(folder))
        (HERE / f"{name}.json").write_text(json.dumps(found) + "\n")
        ends = [found[key][-1:] for key in ("loss", "valid_loss", "ended_shares")]
        print(name, found["total_steps"], found["finished"], found["error_code"], *ends, flush=True)


if __name__ == "__main__":
    main()
