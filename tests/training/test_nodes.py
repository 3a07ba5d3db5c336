"""One job on two nodes: an agent of torchrun for each, which meet as they would over a network."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import EXACT, Train, sentences, write_rows
from worker.training import events, manifest

RECIPE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "total_train_batch_size": 12,
    "train_batch_size": 3,
    "max_steps": 4,
    "save_steps": 2,
    **EXACT,
}


def agents(job: Path, logs: Path) -> list[subprocess.Popen[str]]:
    """Two nodes' agents, as docs/training.md starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job"]
    command += ["--max-restarts", "0", "-m", "worker.training", "--job", str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = []
    for node in (0, 1):
        with (logs / f"node-{node}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                    start_new_session=True,
                )
            )
    return started


def end(started: list[subprocess.Popen[str]]) -> None:
    for agent in started:
        if agent.poll() is None:
            agent.kill()
        agent.wait()
        if agent.stdout:
            agent.stdout.close()


@pytest.fixture
def line(tmp_path: Path, gpt2: Path) -> dict[str, Any]:
    data = write_rows(tmp_path / "data.jsonl", [{"text": text} for text in sentences(60, 1)])
    return {
        "model": str(gpt2),
        "data": str(data),
        "recipe": {**RECIPE, "num_devices": 2},
        "out": str(tmp_path / "nodes"),
        "cache": str(tmp_path / "cache"),
    }


def test_two_nodes_train_to_the_losses_of_one(line: dict[str, Any], train: Train, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(line))
    started = agents(file, tmp_path)
    try:
        said = [agent.communicate(timeout=240)[0] for agent in started]
    finally:
        end(started)
    logs = (tmp_path / "node-0.log").read_text()[-3000:]
    assert [agent.returncode for agent in started] == [0, 0], logs
    heard = [events.parse(row) for text in said for row in text.splitlines()]
    assert sum(not text.strip() for text in said) == 1, "one of them speaks for both"
    steps = [event for event in heard if isinstance(event, events.Step)]
    whole = train(data=Path(line["data"]), **RECIPE)
    assert [step.loss for step in steps] == pytest.approx(whole.losses, rel=2e-5)
    assert isinstance(heard[-1], events.Finished)
    assert manifest.verify(tmp_path / "nodes/model")


def test_when_a_node_goes_the_other_ends_too(line: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**line, "recipe": {**line["recipe"], "max_steps": 100_000}}))
    started = agents(file, tmp_path)
    try:
        speaker = next_that_speaks(started)
        other = next(agent for agent in started if agent is not speaker)
        os.killpg(other.pid, signal.SIGKILL)  # the machine is gone
        assert speaker.wait(120) != 0
    finally:
        end(started)
    saved = sorted((tmp_path / "nodes/checkpoints").glob("step-*"))
    assert saved, "what was saved before stays, to go on from"
    assert manifest.verify(saved[-1])


def next_that_speaks(started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """The agent of the first process, once a checkpoint is saved."""
    with selectors.DefaultSelector() as ready:
        for agent in started:
            assert agent.stdout is not None
            ready.register(agent.stdout, selectors.EVENT_READ, agent)
        while chosen := ready.select(200):
            agent = chosen[0][0].data
            said = agent.stdout.readline()
            assert said, "it ended"
            if isinstance(events.parse(said), events.Saved):
                found: subprocess.Popen[str] = agent
                return found
    raise AssertionError("nobody says anything")
