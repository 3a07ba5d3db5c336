"""A generator that its model has taken over reads models, and nothing that is worth having."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from app.settings import Settings
from worker.generation import confinement

SCRIPT = """
import json, sys
from pathlib import Path
from app.settings import Settings
from tests.stand_ins.prisoner import pry
from worker.generation import confinement

settings, targets, own = Settings(), json.loads(sys.argv[1]), Path(sys.argv[2])
print(json.dumps(pry(targets, own)))
confinement.enter(settings)
print(json.dumps(pry(targets, own)))
"""


def test_it_reads_models_and_reaches_no_secret(tmp_path: Path) -> None:
    home, bases = tmp_path / "home", tmp_path / "bases"
    allowed = [home / "storage" / "models" / "m", bases / "b"]
    secrets = [home / "key", home / "valkey" / "valkey.password", home / "postgres" / "finetuned.password"]
    for file in [*allowed, *secrets]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not for everybody")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        targets: dict[str, list[Any]] = {
            "read": [*map(str, [*allowed, *secrets]), f"/proc/{os.getpid()}/environ"],
            "write": [str(home / "storage" / "models" / "m"), str(home / "planted")],
            "tcp": [f"127.0.0.1:{listener.getsockname()[1]}"],
        }
        environment = {**os.environ, "FINETUNED_HOME": str(home), "FINETUNED_BASE_MODELS": str(bases)}
        command = [sys.executable, "-c", SCRIPT, json.dumps(targets), str(tmp_path / "own")]
        environment["FINETUNED_TRAINER_CELL"] = "required"
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert done.returncode == 0, done.stderr
    free, held = map(json.loads, done.stdout.splitlines())
    assert set(free.values()) == {"reached"}, "else it shows nothing"
    reached = {name for name, outcome in held.items() if outcome == "reached"}
    assert reached == {f"read {path}" for path in allowed}


@pytest.mark.parametrize(
    "refusal", [OSError(95, "Operation not supported"), AttributeError("undefined symbol: prctl")]
)
def test_without_the_kernels_help_it_says_so_or_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    """The kernel's refusal is made up: this one has Landlock."""

    def lacking(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr("worker.training.cell.drop_privileges", lacking)
    monkeypatch.setattr("os.environ", dict(os.environ))
    with structlog.testing.capture_logs() as said:
        confinement.enter(Settings(home=tmp_path))
    assert [line["event"] for line in said] == ["generator_not_confined"]
    with pytest.raises(SystemExit, match="is `required`"):
        confinement.enter(Settings(home=tmp_path, trainer_cell="required"))
