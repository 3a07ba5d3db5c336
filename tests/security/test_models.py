"""No byte that comes with a model is run, and none makes us allocate what it only claims (S3, S4)."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app import model_folder
from app.errors import InvalidRequest
from app.model_folder import UnusableModel
from app.settings import Settings
from app.storage import open_store
from app.tiny import model as tiny
from tests.app.conftest import Api
from tests.security import zoo
from worker.generation.__main__ import locate_checked
from worker.generation.model import load as load_for_generation
from worker.training.failure import Failure
from worker.training.job import Job
from worker.training.model import load as load_for_training
from worker.training.pulse import Pulse

ROOT = Path(__file__).resolve().parents[2]
NAMES = {name: f"specimen-{number}" for number, name in enumerate(zoo.SPECIMENS)}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.ensure(tmp_path_factory.mktemp("sound") / tiny.NAME)


@pytest.fixture(scope="session")
def cages(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All specimens, side by side, as an operator's folder of base models."""
    folder = tmp_path_factory.mktemp("cages")
    for name, (spoil, _) in zoo.SPECIMENS.items():
        zoo.build(sound, folder / NAMES[name], spoil)
    zoo.build(sound, folder / "harmless", zoo.pickle_beside)
    return folder


@pytest.fixture(scope="module")
def more_settings(cages: Path) -> dict[str, Any]:
    return {"base_models": cages}


@pytest.fixture(autouse=True)
def _nothing_ran(cages: Path) -> Any:
    yield
    assert not (cages / zoo.CANARY).exists()


def resident() -> int:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("name", zoo.SPECIMENS)
def test_a_hostile_folder_is_refused_before_anything_reads_it(cages: Path, name: str) -> None:
    with pytest.raises(UnusableModel, match=zoo.SPECIMENS[name][1]):
        model_folder.check(cages / NAMES[name])


def test_no_specimen_makes_us_allocate_what_it_claims(cages: Path) -> None:
    before = resident()
    for name in NAMES.values():
        with pytest.raises(UnusableModel):
            model_folder.check(cages / name)
    assert resident() - before < 100


def test_training_refuses_all_of_them(cages: Path, rows: Path, tmp_path: Path) -> None:
    from app.recipe import Recipe
    from worker.training import loop

    for name in NAMES.values():
        job = Job(Recipe(), rows, "jsonl", cages / name, tmp_path / "out", base_name="b", name="n")
        with pytest.raises(Failure) as refused:
            list(loop.train(job, Pulse()))
        assert (refused.value.code, refused.value.exit_status) == ("invalid_model", 78), name


def test_generation_refuses_all_of_them(cages: Path) -> None:
    settings = Settings(base_models=cages)
    store = open_store(settings)
    for name in NAMES.values():
        with pytest.raises((InvalidRequest, FileNotFoundError)) as refused:
            locate_checked(f"folder:{name}", settings, store)
        if isinstance(refused.value, InvalidRequest):
            assert refused.value.code == "model_not_supported", name


def test_what_refuses_them_is_there_without_asserts_too(cages: Path) -> None:
    """A check that is an `assert` is gone under `python -O`, as somebody may run it."""
    script = (
        "import sys; from pathlib import Path; from app import model_folder\n"
        "for name in sys.argv[2:]:\n"
        "    try: model_folder.check(Path(sys.argv[1]) / name)\n"
        "    except model_folder.UnusableModel: continue\n"
        "    sys.exit(f'{name} passed')\n"
    )
    command = [sys.executable, "-OO", "-c", script, str(cages), *NAMES.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def file_id(api: Api) -> str:
    with api.client() as client:
        return client.files.create(file=("f.jsonl", b'{"text": "one two"}\n'), purpose="fine-tune").id


Ask = Callable[[httpx2.Client, str, str], httpx2.Response]
ASKED: dict[str, Ask] = {
    "job": lambda http, model, file: http.post(
        "/v1/fine_tuning/jobs", json={"model": model, "training_file": file}
    ),
    "dry run": lambda http, model, file: http.post(
        "/v1/fine_tuning/jobs", json={"model": model, "training_file": file, "dry_run": True}
    ),
}


@pytest.mark.parametrize("way", ASKED)
def test_the_api_refuses_all_of_them(http: httpx2.Client, file_id: str, way: str) -> None:
    for specimen, name in NAMES.items():
        answer = ASKED[way](http, name, file_id)
        assert answer.status_code == 400, (specimen, answer.text)
        error = answer.json()["error"]
        # A pipe has no config.json that is a file, so no such model is even listed.
        expected = "model_not_found" if "pipe" in specimen else "model_not_supported"
        assert (error["param"], error["code"]) == ("model", expected), specimen


def test_a_pickle_beside_sound_weights_is_not_read(cages: Path) -> None:
    import torch

    from app.recipe import Recipe
    from worker.training import device

    folder = cages / "harmless"
    model_folder.check(folder)
    load_for_training(folder, Recipe(), device.choose(Recipe()))
    load_for_generation(folder, "harmless", torch.device("cpu"))


def test_a_folder_is_looked_at_again_when_it_changes(sound: Path, tmp_path: Path) -> None:
    folder = zoo.build(sound, tmp_path / "model", lambda _: None)
    model_folder.check(folder)
    model_folder.check(folder)
    zoo.edit(folder, "config.json", auto_map={})
    with pytest.raises(UnusableModel, match="never run"):
        model_folder.check(folder)


def test_every_architecture_of_the_table_is_held_against_its_weights(tmp_path: Path) -> None:
    """A model of each, as transformers writes it, passes; with one number changed it does not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    grouped = {"num_key_value_heads": 2, "head_dim": 16}
    for name, kind in model_folder.ARCHITECTURES.items():
        given = dict(small)
        if kind.model_type in ("llama", "mistral", "qwen3"):
            given |= grouped
        elif kind.model_type == "qwen2":
            given |= {"num_key_value_heads": 2}
        elif kind.model_type == "gpt2":
            given["n_inner"] = given.pop("intermediate_size")
        config = AutoConfig.for_model(kind.model_type, **given)
        folder = tmp_path / name
        with torch.random.fork_rng():
            made: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            made.save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["architectures"] == [name]
        model_folder.check(folder)
        said = (folder / "config.json").read_text()
        for change in (
            {"vocab_size": 65},
            {"n_inner" if kind.model_type == "gpt2" else "intermediate_size": 49},
        ):
            zoo.edit(folder, "config.json", **change)
            with pytest.raises(UnusableModel, match="otherwise"):
                model_folder.check(folder)
            (folder / "config.json").write_text(said)
