"""Those who answer in `benchmarks.generate`, started as their own documentation says, and what they serve."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.crowd import Question, Server, ask

START_LIMIT = 180.0  # seconds
END = "<|endoftext|>"


@dataclass
class Running:
    """A server that answers: where, and which processes do it."""

    server: Server
    processes: list[int]
    url: str
    key: str = ""

    def memory(self) -> int:
        """Bytes of all its processes; memory that they share counts once."""
        return sum(proportional(pid) for pid in self.processes)

    def processor(self) -> float:
        """Seconds of a processor that its processes have taken so far."""
        return sum(processor(pid) for pid in self.processes)


def build(folder: Path, layers: int = 6, width: int = 256, positions: int = 512) -> Path:
    """GPT-2 with random weights and 50,257 tokens, each of them one to three printable characters.

    The weights are wider than GPT-2's: with 0.02 the model repeats its last token for ever.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [chr(code) for code in range(33, 127)]
    pairs = [(a, b) for a in letters for b in letters]
    triples = ((a + b, c) for a, b in pairs for c in letters)
    merges = [*pairs]
    while len(merges) < 50_256 - len(alphabet):
        merges.append(next(triples))
    words = {END: 0} | {word: place for place, word in enumerate([*alphabet, *(a + b for a, b in merges)], 1)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words),
        n_layer=layers,
        n_embd=width,
        n_head=width // 64,
        n_positions=positions,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@contextmanager
def ours(model: Path) -> Iterator[Running]:
    """`finetuned up` with this one model."""
    shelf = model.parent / "models"
    shelf.mkdir(exist_ok=True)
    (shelf / "bench").unlink(missing_ok=True)
    (shelf / "bench").symlink_to(model.resolve())
    with service(model.parent, shelf) as running:
        yield running


@contextmanager
def service(scratch: Path, shelf: Path, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`finetuned up` in a home of its own: API, database, queue, generator, and a worker without a job.

    Offers the model folders on `shelf`; asks for `bench` unless the question names another.
    """
    home = scratch / "home"
    settings = {
        "FINETUNED_HOME": str(home),
        "FINETUNED_PORT": "0",
        "FINETUNED_BASE_MODELS": str(shelf),
        "FINETUNED_MIN_FREE_BYTES": "0",
        **(environment or {}),
    }
    with program([sys.executable, "-m", "app.cli", "up"], settings, scratch / "ours.log") as started:
        url = until(lambda: (home / "address").read_text().strip(), started)
        key = (home / "key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        options = {"model": "bench", "stream_options": {"include_usage": True}}
        until(lambda: generates(Server(url, headers, {"model": "tiny-gpt2"})), started)
        serving = [*named(started.pid, "worker.generation"), *named(started.pid, "app.embedded.api")]
        yield Running(Server(url, headers, options), serving, url, key)


@contextmanager
def serve(model: Path, *options: str) -> Iterator[Running]:
    """`transformers serve FOLDER`, in float32 as its folder is."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model.resolve())]
    command += ["--port", str(port), *options]
    with program(command, {"HF_HUB_OFFLINE": "1"}, model.parent / "serve.log") as started:
        until(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), started)
        url = f"http://127.0.0.1:{port}"
        yield Running(Server(url, {}, {"model": str(model.resolve())}), [started.pid], url)


@contextmanager
def vllm(model: Path) -> Iterator[Running]:
    """`vllm serve FOLDER`, in float32, or bfloat16 on a card, as ours is."""
    import torch

    port = free_port()
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    command = [shutil.which("vllm") or "vllm", "serve", str(model), "--port", str(port), "--dtype", dtype]
    with program(command, {"HF_HUB_OFFLINE": "1"}, model.parent / "vllm.log") as started:
        url = f"http://127.0.0.1:{port}"
        until(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), started)
        options = {"model": str(model), "ignore_eos": True, "stream_options": {"include_usage": True}}
        yield Running(Server(url, {}, options), [started.pid], url)


@contextmanager
def program(
    command: list[str], environment: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Started in a session of its own, ended with everything it started."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield started
        finally:
            started.send_signal(signal.SIGINT)
            try:
                started.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


def until(attempt: Any, started: "subprocess.Popen[bytes]") -> Any:
    """The outcome of `attempt` once it raises nothing. Raises RuntimeError where the program ends."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if started.poll() is not None:
            raise RuntimeError(f"{started.args!r} ended with {started.returncode}")
        try:
            return attempt()
        except (OSError, IndexError):
            time.sleep(0.1)
    raise TimeoutError(f"{started.args!r} does not answer")


def generates(server: Server) -> None:
    """Raises ConnectionError while the generator is starting."""
    if asyncio.run(ask(server, Question("A", 1))).status != 200:
        raise ConnectionError


def named(parent: int, module: str) -> list[int]:
    """Processes below `parent` that run this module."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if above == parent and module.encode() in words:
            found.append(int(folder.name))
    return found


def proportional(pid: int) -> int:
    """Bytes of memory, shared pages divided among those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def processor(pid: int) -> float:
    """Seconds, in the program and in the kernel for it."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
