"""The built-in model: a GPT-2 as transformers knows it, made without torch, however many ask for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from app import model_folder
from app.dataset import Checker
from app.recipe import Recipe
from app.tiny import model as tiny
from app.tiny import vocabulary, weights
from examples.demo import PROMPTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.ensure(tmp_path_factory.mktemp("models") / tiny.NAME)


def test_transformers_loads_it_whole_as_a_gpt2_of_a_million_parameters(folder: Path) -> None:
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, output_loading_info=True
    )
    model, loaded = found
    assert isinstance(model, GPT2LMHeadModel)
    assert model.num_parameters() == 1_088_256
    assert not any(loaded.values()), "a weight is missing, left over or of another shape"
    model_folder.check(folder)


def test_its_weights_are_drawn_as_those_of_gpt2_before_training(folder: Path) -> None:
    """Compared with what transformers draws for the same config."""
    model = GPT2LMHeadModel.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(1)
    ours, drawn = model.state_dict(), GPT2LMHeadModel(model.config).state_dict()
    assert ours.keys() == drawn.keys()
    for name, weight in drawn.items():
        assert ours[name].std().item() == pytest.approx(weight.std().item(), rel=0.05), name
        assert ours[name].mean().item() == pytest.approx(weight.mean().item(), abs=0.002), name


def test_its_tokenizer_gives_every_text_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("Serves 4.\n\n- 1 cup flour", " two  spaces\tand tab ", "naïve 日本 🍲 \x00", "<html>"):
        ids = tokenizer(text)["input_ids"]
        assert ids == fast.encode(text).ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == tiny.VOCABULARY


def test_one_token_ends_a_text_and_none_pads(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert tokenizer("<|endoftext|>")["input_ids"] == [tiny.END_OF_TEXT_ID]
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tiny.END_OF_TEXT_ID
    assert tokenizer.pad_token is None


def test_the_committed_tokenizer_is_what_its_texts_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = (vocabulary.FOLDER / "tokenizer.json").read_bytes()
    (tmp_path / "english.txt").write_bytes((vocabulary.FOLDER / "english.txt").read_bytes())
    monkeypatch.setattr(vocabulary, "FOLDER", tmp_path)
    vocabulary.main()
    assert (tmp_path / "tokenizer.json").read_bytes() == committed


def test_a_second_call_writes_nothing(tmp_path: Path) -> None:
    folder = tiny.ensure(tmp_path / "tiny")
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert tiny.ensure(folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_folder_that_lost_a_file_is_made_whole_again(tmp_path: Path) -> None:
    folder = tiny.ensure(tmp_path / "tiny")
    (folder / "config.json").unlink()
    tiny.ensure(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == tiny.VOCABULARY
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_writer_that_dies_leaves_no_folder_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write", die)
        with pytest.raises(OSError, match="No space"):
            tiny.ensure(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_processes_that_ask_at_once_all_find_one_whole_folder(tmp_path: Path) -> None:
    code = "import pathlib, sys; from app.tiny import model; model.ensure(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "tiny")]
    asking = [subprocess.Popen(command, cwd=EXAMPLES.parent) for _ in range(4)]
    assert [process.wait(60) for process in asking] == [0, 0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert tiny.complete(tmp_path / "tiny")


@pytest.mark.parametrize(("name", "least"), [("dishes.jsonl", 1000), ("dishes.valid.jsonl", 100)])
def test_the_cards_are_a_training_file_without_a_problem(name: str, least: int) -> None:
    checker = Checker("jsonl")
    checker.feed((EXAMPLES / name).read_bytes())
    report = checker.finish()
    assert not report.problems
    assert report.rows >= least


def test_no_card_to_judge_by_is_one_to_learn_from() -> None:
    titles = [
        {json.loads(line)["text"].splitlines()[0] for line in (EXAMPLES / name).read_text().splitlines()}
        for name in ("dishes.jsonl", "dishes.valid.jsonl")
    ]
    assert titles[0].isdisjoint(titles[1])


def test_the_demo_asks_for_cards_that_were_held_back() -> None:
    held_back = (json.loads(line)["text"] for line in (EXAMPLES / "dishes.valid.jsonl").open())
    assert set(PROMPTS) <= {f"{text.splitlines()[0]}\n" for text in held_back}


def test_every_card_fits_the_models_context(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in (EXAMPLES / "dishes.jsonl").read_text().splitlines()]
    assert max(len(tokenizer.encode(text).ids) for text in texts) < tiny.POSITIONS / 2, "two to a packed row"


def test_the_reference_card_is_a_recipe() -> None:
    body = json.loads((EXAMPLES / "reference-card.json").read_text())
    recipe = Recipe.from_request(body["hyperparameters"])
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (recipe.train_batch_size, recipe.gradient_accumulation_steps) == (64, 8)
    assert recipe.total_train_batch_size == 512
    assert recipe.mixed_precision_training == "Native AMP"
