"""`python -m benchmarks.precision --model FOLDER --data FILE`: what int8 gains and what it costs.

Perplexity of the texts (JSONL of {text}) under the exact model and under the same one in int8, how often
their likeliest next token is the same, and how fast each writes, 1 and 16 sequences at a time, in process.
The last line is one JSON document.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, get_args

import torch
from transformers.cache_utils import DynamicCache

from worker.generation.batch import Batch, Capacity
from worker.generation.model import Model, Precision, load
from worker.generation.request import Ask, Ticket
from worker.generation.sampling import Sampling

STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=300)
    asked = parser.parse_args()
    texts = [json.loads(line)["text"] for line in asked.data.read_text().splitlines()[: asked.texts]]
    found: dict[str, Any] = {}
    best: dict[str, list[int]] = {}
    for precision in get_args(Precision):
        model = load(asked.model, "it", torch.device("cpu"), precision)
        perplexity, best[precision] = read(model, texts)
        found[precision] = {
            "perplexity": perplexity,
            "tokens_per_second": {str(rows): write(model, rows) for rows in (1, 16)},
        }
        print(precision, found[precision], flush=True)
    pairs = list(zip(best["auto"], best["int8"], strict=True))
    found["same_likeliest_token"] = sum(a == b for a, b in pairs) / len(pairs)
    print(json.dumps(found))


@torch.inference_mode()
def read(model: Model, texts: list[str]) -> tuple[float, list[int]]:
    """Perplexity of a token, the first of each text apart, and the likeliest token at each place."""
    lost, count = 0.0, 0
    best: list[int] = []
    for text in texts:
        ids = [model.start, *model.vocabulary.encode(text)][: model.context]
        tokens = torch.tensor([ids])
        logits = model.forward(tokens, torch.arange(len(ids))[None], DynamicCache(), keep=0)[0, :-1]
        lost -= float(logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).sum())
        count += len(ids) - 1
        best += logits.argmax(-1).tolist()
    return math.exp(lost / count), best


@torch.inference_mode()
def write(model: Model, rows: int) -> float:
    """Tokens a second of greedy sequences that never end."""
    batch = Batch(model, Capacity())
    calm = Sampling(temperature=0, bias=dict.fromkeys(model.ends, -100.0))
    for row in range(rows):
        batch.waiting.append(Ticket(Ask((row + 1, 2, 3), 2 * STEPS, sampling=calm), lambda _: None))
    for _ in range(STEPS // 2):
        batch.turn()
    began = time.perf_counter()
    for _ in range(STEPS):
        batch.turn()
    return rows * STEPS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
