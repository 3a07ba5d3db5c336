"""`python -m benchmarks.train`: the same model on the same rows, by us and by what people run otherwise.

Contenders, each in a process of its own: `ours`; `trainer`, Hugging Face's Trainer as the reference card has
it (dynamic padding); `grouped`, the same grouped by length; `sft`, TRL's packed SFTTrainer. What is counted
is real tokens a second: padding is not work done. The last line is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers

EXAMPLES = Path(__file__).parent.parent / "examples" / "dishes.jsonl"
NEEDS = {"ours": "transformers", "trainer": "accelerate", "grouped": "accelerate", "sft": "trl"}
# Dense bf16 without sparsity, from the makers' data sheets.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--data", type=Path, default=EXAMPLES, help="JSONL of {text}; default: the examples")
    parser.add_argument(
        "--model", type=Path, help="model folder; default: GPT-2 of 4 x 256 built on the spot"
    )
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16, help="examples per micro-step, for every contender")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=150, help="of measured training per contender")
    parser.add_argument("--only", choices=list(NEEDS), action="append")
    parser.add_argument("--contender", choices=list(NEEDS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    if asked.contender:
        print(json.dumps(RUNNERS[asked.contender](asked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        asked.model = asked.model or peers.build(Path(folder) / "model", asked.max_length)
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """Runs the contenders one after the other and prints the table and the document."""
    limit = machine(asked)
    found: dict[str, dict[str, Any]] = {}
    for name in asked.only or NEEDS:
        if find_spec(NEEDS[name]) is None:
            found[name] = {"skipped": f"{NEEDS[name]} is not installed"}
        else:
            found[name] = alone(name, asked)
        print(row(name, found[name]), flush=True)
    speeds = {name: said["tokens_per_second"] for name, said in found.items() if "tokens_per_second" in said}
    ours = speeds.get("ours")
    others = [speed for name, speed in speeds.items() if name != "ours"]
    ratios = {
        "vs_trainer": ours / speeds["trainer"] if ours and "trainer" in speeds else None,
        "vs_best_peer": ours / max(others) if ours and others else None,
        "of_limit": ours / limit["tokens_per_second"] if ours else None,
        # Model FLOPs utilisation: against the maker's figure, which no matrix product reaches.
        "mfu": ours * limit["flops_per_token"] / limit["peak_flops"]
        if ours and limit["peak_flops"]
        else None,
    }
    print(f"arithmetic limit: {limit['tokens_per_second']:,.0f} tokens/s", flush=True)
    print(json.dumps({"contenders": found, "machine": limit, **ratios}))


def alone(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One contender in its own process, so that none inherits another's memory or threads."""
    command = [sys.executable, "-m", "benchmarks.train", "--contender", name, "--data", str(asked.data)]
    command += ["--model", str(asked.model), "--max-length", str(asked.max_length)]
    command += ["--batch", str(asked.batch), "--accumulation", str(asked.accumulation)]
    done = subprocess.run([*command, "--seconds", str(asked.seconds)], capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def row(name: str, said: dict[str, Any]) -> str:
    if "tokens_per_second" not in said:
        return f"{name:8} {said}"
    memory = said["memory_bytes"] / 2**20
    return (
        f"{name:8} {said['tokens_per_second']:10,.0f} tokens/s {memory:8,.0f} MB  {said['tokens']:,} tokens"
    )


def machine(asked: argparse.Namespace) -> dict[str, Any]:
    """What the hardware could do: its matrix-product rate over the FLOPs of a trained token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, size = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    a, b = (torch.randn(size, size, dtype=kind, device=device) for _ in range(2))
    rate = 2 * size**3 / fastest(lambda: a @ b)
    flops = peers.flops_per_token(asked.model, asked.max_length)
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    return {
        "device": name,
        "matmul_flops": rate,
        "flops_per_token": flops,
        "tokens_per_second": rate / flops,
        "peak_flops": peak,
    }


def fastest(work: Callable[[], object], times: int = 8) -> float:
    """Seconds of the best of several runs."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def ours(asked: argparse.Namespace) -> dict[str, Any]:
    """Our trainer by its own door, read by its events; the first step is left out as warm-up."""
    from worker.training import events
    from worker.training.events import Step

    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.json"
        recipe.write_text(json.dumps(reference(asked)))
        command = [sys.executable, "-m", "worker.training", str(recipe), "--data", str(asked.data)]
        command += ["--model", str(asked.model), "--out", f"{folder}/out", "--format", "jsonl"]
        trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
        steps: list[Step] = []
        began = ended = 0.0
        for line in trainer.stdout or ():
            event = events.parse(line)
            if not isinstance(event, Step):
                continue
            steps.append(event)
            ended = time.perf_counter()
            began = began or ended
            if ended - began > asked.seconds:
                break
        trainer.terminate()
        trainer.wait()
    tokens = sum(step.tokens for step in steps[1:])
    return {
        "tokens_per_second": tokens / (ended - began),
        "tokens": tokens,
        "memory_bytes": steps[-1].memory_bytes,
        "reporting_share": saying(steps[1:]) / (ended - began),
        "first_losses": [step.loss for step in steps[:5]],
    }


def saying(steps: list[Any]) -> float:
    """Seconds that the trainer's own speaker needs to say these events into a pipe that somebody empties."""
    from worker.training.run import Speaker

    source, sink = os.pipe()
    listener = subprocess.Popen(["cat"], stdin=source, stdout=subprocess.DEVNULL)
    os.close(source)
    with os.fdopen(sink, "w") as stream:
        speaker = Speaker(stream)
        began = time.perf_counter()
        for step in steps:
            speaker.say(step)
        seconds = time.perf_counter() - began
    listener.wait()
    return seconds


def reference(asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "learning_rate": 5e-4,
        "train_batch_size": asked.batch,
        "gradient_accumulation_steps": asked.accumulation,
        "lr_scheduler_type": "cosine",
        "lr_scheduler_warmup_steps": 100,
        "num_epochs": 20,
        "max_length": asked.max_length,
        "mixed_precision_training": "auto",
        "save_steps": 1_000_000,
    }


RUNNERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "trainer": lambda asked: peers.trainer(asked, grouped=False),
    "grouped": lambda asked: peers.trainer(asked, grouped=True),
    "sft": peers.sft,
}

if __name__ == "__main__":
    main()
