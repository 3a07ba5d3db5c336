"""`python -m benchmarks.generate`: the same model asked over HTTP by 1, 4, 16 and 64 clients at a time.

Contenders: `ours`, the whole of `finetuned up`, asked through `/v1/completions` with its database, key check
and event stream as a user would; `serve` and `serve_cb`, `transformers serve` without and with continuous
batching; `vllm` where it is installed. Same weights, same prompts, same lengths, greedy, float32 on a CPU,
one after the other, `--rounds` times around; speeds are tokens over seconds of all rounds. A sample of our
answers is compared, letter by letter, with `model.generate` alone. Beside them stands what memory and
arithmetic allow. The last line is one JSON document.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import which
from typing import Any

import torch

from benchmarks import servers
from benchmarks.crowd import Question, Reply, ask, crowd
from benchmarks.train import EXAMPLES, fastest

LEVELS = (1, 4, 16, 64)
SAMPLE = 24  # answers compared with `model.generate`
CONTENDERS: dict[str, Callable[[Path], AbstractContextManager[servers.Running]]] = {
    "ours": servers.ours,
    "serve": servers.serve,
    "serve_cb": lambda model: servers.serve(model, "--continuous-batching"),
    "vllm": servers.vllm,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="model folder; default: GPT-2 of 6 x 256 built on the spot"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, help="clients at a time")
    parser.add_argument("--only", choices=list(CONTENDERS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        if asked.model:
            model.symlink_to(asked.model.resolve())
        else:
            servers.build(model)
        compare(asked, model)


def compare(asked: argparse.Namespace, model: Path) -> None:
    """Runs all contenders and prints the table and the document."""
    found: dict[str, dict[int, list[Measured]]] = {}
    memory: dict[str, int] = {}
    firsts: dict[str, float] = {}
    names = asked.only or [name for name in CONTENDERS if name != "vllm" or which("vllm")]
    for round_ in range(asked.rounds):
        for name in names:
            with CONTENDERS[name](model) as running:
                began = asyncio.run(ask(running.server, Question("A", 8)))
                if name == "ours" and not firsts:
                    firsts = {"after_cold_load": began.first, "after_succeeded": train(running)}
                for level in asked.levels:
                    questions = draw(level, asked.seed + round_, 1 if name == "serve" else 3)
                    measured = asyncio.run(measure(running, questions, level))
                    found.setdefault(name, {}).setdefault(level, []).append(measured)
                    print(f"{name:9} {level:3} clients  {measured.line()}", flush=True)
                memory[name] = max(memory.get(name, 0), running.memory())
    document = summarize(asked, found, memory)
    document["seconds_to_first_token"] = firsts
    if "ours" in found:
        document["exact"] = check(model, [each for level in found["ours"].values() for each in level])
    document["limits"] = limits(model, asked.levels, found.get("ours", {}))
    table(document)
    print(json.dumps(document))


def train(running: servers.Running) -> float:
    """Seconds from the moment a job is seen as `succeeded` to the first piece of its model's first answer."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{running.url}/v1", api_key=running.key)
    file = client.files.create(file=EXAMPLES, purpose="fine-tune")
    options = {"hyperparameters": {"max_steps": 1, "total_train_batch_size": 4}}
    job = client.fine_tuning.jobs.create(model="bench", training_file=file.id, extra_body=options)
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.05)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.fine_tuned_model is None:
        raise RuntimeError(f"the job {job.status}: {job.error}")
    reply = asyncio.run(ask(running.server, Question("A", 8, {"model": job.fine_tuned_model})))
    return reply.first


def draw(level: int, seed: int, each: int) -> list[Question]:
    """Beginnings of recipes, 5 to 80 characters, to be continued by 16 to 96 tokens; `each` a client.

    One for `serve`, which answers one request after the other: 64 clients wait for it long enough.
    """
    random_ = random.Random(seed)
    texts = [json.loads(line)["text"] for line in EXAMPLES.read_text().splitlines()]
    return [
        Question(random_.choice(texts)[: random_.randint(5, 80)], random_.randint(16, 96))
        for _ in range(max(12, each * level))
    ]


class Measured:
    """One contender at one level in one round."""

    def __init__(
        self, questions: Sequence[Question], replies: Sequence[Reply], seconds: float, processor: float
    ) -> None:
        self.questions, self.replies, self.seconds = questions, replies, seconds
        self.processor = processor  # seconds, of all that serves
        self.tokens = sum(reply.tokens for reply in replies)

    def line(self) -> str:
        said = figures([self])
        return (
            f"{said['tokens_per_second']:8,.0f} tokens/s, first {said['first_token_p50'] * 1e3:6.0f} ms,"
            f" a token {said['token_p50'] * 1e3:6.1f} ms (p99 {said['token_p99'] * 1e3:6.1f}),"
            f" processor {said['processor_seconds_per_token'] * 1e3:5.2f} ms"
        )


async def measure(running: servers.Running, questions: Sequence[Question], level: int) -> Measured:
    if len(questions) > level:
        await crowd(running.server, questions[:level], level)  # not counted: buffers grow, code warms up
    began, before = time.monotonic(), running.processor()
    replies = await crowd(running.server, questions, level)
    return Measured(questions, replies, time.monotonic() - began, running.processor() - before)


def figures(rounds: Sequence[Measured]) -> dict[str, float]:
    replies = [reply for each in rounds for reply in each.replies]
    written = sum(each.tokens for each in rounds)
    firsts, tokens = [reply.first for reply in replies], [reply.per_token for reply in replies]
    return {
        "tokens_per_second": written / sum(each.seconds for each in rounds),
        # What a busy machine changes least.
        "processor_seconds_per_token": sum(each.processor for each in rounds) / written,
        "first_token_p50": statistics.median(firsts),
        "first_token_p99": percentile(firsts, 0.99),
        "token_p50": statistics.median(tokens),
        "token_p99": percentile(tokens, 0.99),
        "longest_silence_p50": statistics.median([reply.silence for reply in replies]),
    }


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summarize(
    asked: argparse.Namespace, found: dict[str, dict[int, list[Measured]]], memory: dict[str, int]
) -> dict[str, Any]:
    said = {
        name: {level: figures(rounds) for level, rounds in levels.items()} for name, levels in found.items()
    }
    ratios = {}
    peers = [said[name] for name in ("serve", "serve_cb") if name in said]
    for level in asked.levels:
        if "ours" in said and peers:
            best = max(peer[level]["tokens_per_second"] for peer in peers)
            ratios[str(level)] = said["ours"][level]["tokens_per_second"] / best
    return {
        "contenders": {
            name: {"memory_bytes": memory[name], **{str(level): each for level, each in levels.items()}}
            for name, levels in said.items()
        },
        "vs_transformers_serve": ratios,
    }


def check(model: Path, measured: Sequence[Measured]) -> dict[str, int]:
    """A sample of answers, drawn from all levels, beside `model.generate` alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    alone: Any = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    pairs = [
        (question, reply)
        for each in measured
        for question, reply in zip(each.questions, each.replies, strict=True)
    ]
    same = 0
    sample = random.Random(0).sample(pairs, min(SAMPLE, len(pairs)))
    for question, reply in sample:
        ids = words(question.prompt, return_tensors="pt")
        written = alone.generate(**ids, max_new_tokens=question.max_tokens, do_sample=False, pad_token_id=0)
        text = words.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        same += text == reply.text
    return {"compared": len(sample), "identical": same}


def limits(model: Path, levels: Sequence[int], ours: dict[int, list[Measured]]) -> dict[str, Any]:
    """What a step must cost at least: all weights read once, every weight multiplied once a row."""
    from safetensors import safe_open

    cuda = torch.cuda.is_available()
    kind, device = (torch.bfloat16, "cuda") if cuda else (torch.float32, "cpu")
    a, b = (torch.randn(2048, 2048, dtype=kind, device=device) for _ in range(2))
    rate = 2 * 2048**3 / fastest(lambda: a @ b)
    block = torch.ones(2**26, dtype=kind, device=device)
    bandwidth = block.nbytes / fastest(block.sum)
    config = json.loads((model / "config.json").read_text())
    with safe_open(model / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    weights = sum(
        shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name
    )
    if "n_positions" in config:
        weights -= config["n_positions"] * config["n_embd"]  # looked up, not multiplied
    size = torch.finfo(kind).bits // 8
    bound = {}
    for level in levels:
        bound[str(level)] = level / max(weights * size / bandwidth, 2 * weights * level / rate)
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        "matmul_flops": rate,
        "bytes_per_second": bandwidth,
        "tokens_per_second": bound,
        "ours_of_limit": {
            str(level): figures(rounds)["tokens_per_second"] / bound[str(level)]
            for level, rounds in ours.items()
        },
    }


def table(document: dict[str, Any]) -> None:
    print(f"\n{'':9} clients  tokens/s  first p50    p99  token p50    p99  (ms)     memory")
    for name, said in document["contenders"].items():
        for level, each in said.items():
            if level == "memory_bytes":
                continue
            times = [
                each[key] * 1e3 for key in ("first_token_p50", "first_token_p99", "token_p50", "token_p99")
            ]
            print(
                f"{name:9} {level:>7} {each['tokens_per_second']:9,.0f} {times[0]:10,.0f} {times[1]:6,.0f}"
                f" {times[2]:10,.1f} {times[3]:6,.1f} {said['memory_bytes'] / 2**20:10,.0f} MB"
            )
    print(f"limit (tokens/s): {document['limits']['tokens_per_second']}")
    print(f"ours is identical to model.generate in {document.get('exact')}", flush=True)


if __name__ == "__main__":
    main()
