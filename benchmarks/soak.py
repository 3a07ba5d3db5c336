"""`python -m benchmarks.soak`: the service under everything at once, for ten minutes.

Some two dozen clients ask three models, of which memory holds two, for short and long texts, at once and as
streams, with and without options; a third of them hang up in the middle or before the first word, some ask
for what cannot be done. Memory must stay flat, no request may hang, and every error must be a clean one: a
4xx or 503 in OpenAI's shape, or an error event in a stream. The last line is one JSON document; the exit code
is 1 where something of this does not hold.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import servers
from benchmarks.crowd import Question, Reply, ask

CLIENTS = 24
MODELS = ("one", "two", "three")
STUCK = 90.0  # seconds; longer than the 30 s a model waits for room
CLEAN = {400, 404, 429, 503}
GROWTH = 1.1  # memory of the last quarter over that of the second


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        shelf = scratch / "models"
        for name in MODELS:
            servers.build(shelf / name, layers=2)
        size = (shelf / "one" / "model.safetensors").stat().st_size
        # On a CPU a model takes two and a quarter times its file: room for two of the three.
        memory = {"FINETUNED_GENERATOR_MEMORY_BYTES": str(5 * size)}
        with servers.service(scratch, shelf, memory) as running:
            soak = Soak(running, asked.seed)
            asyncio.run(soak.run(asked.seconds))
            left = answering(scratch / "home")
        unloaded = (scratch / "home" / "logs" / "generator.log").read_text().count("unloaded ")
    document = {
        "seconds": asked.seconds,
        **soak.findings(),
        "unloaded": unloaded,
        "answering_afterwards": left,
    }
    held = not document["stuck"] and not document["unclean"] and not left
    document["held"] = held and document["memory_growth"] < GROWTH
    print(json.dumps(document))
    sys.exit(not document["held"])


class Soak:
    """The clients and what they saw."""

    def __init__(self, running: servers.Running, seed: int) -> None:
        self._running = running
        self._random = random.Random(seed)
        self._seen: Counter[str] = Counter()
        self._unclean: list[str] = []
        self._memory: list[int] = []

    async def run(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        await asyncio.gather(self._watch(), *(self._client() for _ in range(CLIENTS)))
        await asyncio.sleep(2)  # those who hung up last are noticed with the next step

    def findings(self) -> dict[str, Any]:
        quarter = max(1, len(self._memory) // 4)
        early = statistics.median(self._memory[quarter : 2 * quarter] or self._memory)
        late = statistics.median(self._memory[-quarter:])
        return {
            "requests": sum(self._seen.values()),
            "by_outcome": dict(sorted(self._seen.items())),
            "stuck": self._seen["stuck"],
            "unclean": self._unclean[:20],
            "memory_bytes": {"second_quarter": early, "last_quarter": late, "most": max(self._memory)},
            "memory_growth": late / early,
        }

    async def _watch(self) -> None:
        while time.monotonic() < self._ends:
            self._memory.append(self._running.memory())
            if len(self._memory) % 10 == 0:
                print(f"{self._memory[-1] / 2**20:6.0f} MB  {dict(self._seen)}", flush=True)
            await asyncio.sleep(3)

    async def _client(self) -> None:
        while time.monotonic() < self._ends:
            draw = self._random
            question = self._question()
            leaves = draw.choice([0, 1, 2, 5]) if draw.random() < 1 / 3 else None
            try:
                reply = await ask(self._running.server, question, leaves, STUCK)
            except TimeoutError:
                self._seen["stuck"] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                self._seen["broken"] += 1
                self._unclean.append(repr(error))
            else:
                self._seen["left" if leaves is not None else str(reply.status)] += 1
                if leaves is None and (trouble := unclean(reply, question)):
                    self._unclean.append(trouble)

    def _question(self) -> Question:
        draw = self._random
        options: dict[str, Any] = {"model": draw.choice(MODELS), "temperature": draw.choice([0, 0.8, 1.2])}
        if draw.random() < 0.3:
            options |= {"stream": False, "stream_options": {}}
        options |= draw.choice(
            [{}, {}, {"top_p": 0.9}, {"n": 3}, {"logprobs": 5, "echo": True}, {"stop": ["a", "zz"]}]
        )
        options |= {"model": "nobody"} if draw.random() < 0.02 else {}
        most = 4_000 if draw.random() < 0.02 else draw.choice([1, 8, 32, 150])
        return Question("Serve cold. " * draw.choice([0, 1, 5, 40]), most, options)


def unclean(reply: Reply, question: Question) -> str | None:
    """What is wrong with an answer, if anything is."""
    shown = f"{reply.status} {reply.body[-200:]!r} to {question.options}"
    if reply.status == 200:
        if question.options.get("stream", True):
            return None if b"data: [DONE]" in reply.body[-40:] or b'"error"' in reply.body[-400:] else shown
        return None if b'"usage"' in reply.body else shown
    try:
        error = json.loads(reply.body)["error"]
    except (ValueError, KeyError):
        return shown
    return None if reply.status in CLEAN and {"message", "type", "param", "code"} <= error.keys() else shown


def answering(home: Path) -> int:
    """Requests that the generator is still at, by its own count."""
    path = Path((home / "sockets").read_text().strip()) / "generator.sock"
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))) as client:
        return int(client.get("http://generator/health").json()["answering"])


if __name__ == "__main__":
    main()
