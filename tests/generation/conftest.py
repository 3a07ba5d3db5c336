"""The tiny model as a folder, as the generator holds it and as transformers does, and an engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.generation.tinymodel import make_model
from worker.generation.engine import Stepper
from worker.generation.model import Model, load


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return load(folder, "tiny", torch.device("cpu"))


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The same folder as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()


@pytest.fixture(scope="module")
def engine() -> Iterator[Stepper]:
    engine = Stepper()
    yield engine
    engine.close()
