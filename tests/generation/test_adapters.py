"""LoRA models that share their base: what they write and weigh, and when they are loaded whole instead."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.recipe import Recipe
from tests.generation.tinymodel import CONTEXT, Told, answers, make_model, make_tokenizer
from worker.generation import loaded
from worker.generation.engine import Stepper
from worker.generation.loaded import LoadedModels
from worker.generation.model import Model, load, weigh
from worker.generation.request import Ask
from worker.generation.sampling import Sampling
from worker.training import lora
from worker.training.folder import copy_tokenizer

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (9,), (20, 30, 40, 50, 60), (3, 3)]


def make_llama(folder: Path) -> Path:
    make_tokenizer().save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def publish(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA model as a job leaves it behind: merged weights, and the adapter beside them."""
    network: Any = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    adapted = lora.adapt(network, Recipe(lora_rank=4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if ".lora_B." in name:  # zero before the first step
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    network.save_pretrained(folder, state_dict=lora.merged(network))
    lora.write(adapted, lora.adapter_state(adapted), folder, "base")
    save_file({"state.0": torch.zeros(4)}, folder / "optimizer.safetensors")  # as a checkpoint has
    copy_tokenizer(base, folder, "{{ messages[-1].content }}" if seed == 2 else None)
    return folder


@pytest.fixture(scope="module", params=[make_model, make_llama], ids=["Conv1D", "Linear"])
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three LoRA models of it, with GPT-2's layers and with Llama's."""
    folder = tmp_path_factory.mktemp("shelf")
    make: Callable[[Path], Path] = request.param
    make(folder / "base")
    for seed in (1, 2, 3):
        publish(folder / "base", folder / f"tuned{seed}", seed)
    return folder


@pytest.fixture
def models(shelf: Path) -> Iterator[LoadedModels]:
    models = LoadedModels(lambda source: shelf / source, 2**30, CPU)
    yield models
    models.close()


def asks(model: Model, **options: Any) -> list[Ask]:
    return [
        Ask(
            prompt,
            40,
            sampling=Sampling(**options),
            logprobs=1,
            prompt_logprobs=place == 2,
            adapter=model.adapter,
        )
        for place, prompt in enumerate(PROMPTS)
    ]


def logprobs(told: Told) -> list[float]:
    scored = [*told.prompt[1:], *told.choices.get(0, [])]
    return [each.logprob for each in scored if each.logprob is not None]


def held(models: LoadedModels) -> dict[object, Any]:
    return {each["source"]: each["bytes"] for each in models.listed()}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5}], ids=["greedy", "seeded"])
async def test_in_one_batch_each_writes_what_its_merged_weights_write(
    shelf: Path, models: LoadedModels, engine: Stepper, options: dict[str, Any]
) -> None:
    names = ["base", "tuned1", "tuned2", "tuned3"]
    async with AsyncExitStack() as stack:
        shared = [
            await stack.enter_async_context(models.borrow(name, name, None if name == "base" else "base"))
            for name in names
        ]
        assert len({id(model.weights) for model in shared}) == 1
        mine = [asks(model, **options) for model in shared]
        by_model = [ask for each in mine for ask in each]  # those of one are read together
        by_prompt = [ask for each in zip(*mine, strict=True) for ask in each]  # all are read alone
        told = answers(engine, shared[2], *by_model, *by_prompt)
        expected = []
        for name in names:
            whole = load(shelf / name, name, CPU)
            expected.append(answers(engine, whole, *asks(whole, **options)))
    once = [each for alone in expected for each in alone]
    again = [each for alone in zip(*expected, strict=True) for each in alone]
    for got, alone in zip(told, once + again, strict=True):
        assert got.tokens() == alone.tokens()
        assert got.reasons == alone.reasons
        assert logprobs(got) == pytest.approx(logprobs(alone), abs=1e-4)
    assert len({tuple(alone[0].tokens()) for alone in expected}) == len(names), "the updates change nothing"


async def test_the_base_is_counted_once_and_its_models_by_their_updates(
    shelf: Path, models: LoadedModels
) -> None:
    for name in ("tuned1", "tuned2", "tuned1"):
        async with models.borrow(name, name, "base") as model:
            assert model.name == name
    sizes = held(models)
    assert list(sizes) == ["base + tuned2", "base", "base + tuned1"]
    whole = load(shelf / "base", "base", CPU).size
    assert sizes["base"] == whole
    adapter = (shelf / "tuned1" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert sizes["base + tuned1"] <= adapter < whole / 2


async def test_a_template_that_training_brought_is_the_models_own(models: LoadedModels) -> None:
    async with models.borrow("tuned1", "tuned1", "base") as one, models.borrow("tuned2", "t", "base") as two:
        assert [getattr(each.encoder, "has_template", None) for each in (one, two)] == [False, True]


async def test_the_base_may_leave_while_its_models_are_idle(shelf: Path, engine: Stepper) -> None:
    shutil.copytree(shelf / "tuned1", shelf / "other", dirs_exist_ok=True)
    shutil.rmtree(shelf / "other" / "adapter")
    base = load(shelf / "base", "base", CPU).size
    small = LoadedModels(lambda source: shelf / source, base + weigh(shelf / "base", CPU) // 2, CPU)
    texts = []
    for name, of in (("tuned1", "base"), ("other", None), ("tuned1", "base")):
        async with small.borrow(name, name, of) as model:
            texts.append([told.tokens() for told in answers(engine, model, *asks(model, temperature=0))])
            assert ("base" in held(small)) == (name == "tuned1")
    assert texts[0] == texts[1] == texts[2]
    small.close()


async def seen(models: LoadedModels, source: str) -> None:
    while source not in held(models):  # noqa: ASYNC110  it has no event to tell of it
        await asyncio.sleep(0)


async def test_one_whose_update_is_to_be_read_does_not_wait_for_who_waits_for_its_base(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one: the second waits for the base of the first, whose update is not read yet."""
    queued = threading.Event()

    def late(folder: Path, *how: Any) -> Model:
        assert queued.wait(20)
        return load(folder, *how)

    monkeypatch.setattr(loaded, "load", late)
    monkeypatch.setattr(loaded, "ROOM_TIMEOUT", 5)
    small = LoadedModels(lambda source: shelf / source, 1, CPU)

    async def use(name: str, base: str | None) -> None:
        async with small.borrow(name, name, base):
            pass

    first = asyncio.create_task(use("tuned1", "base"))
    await seen(small, "base")
    second = asyncio.create_task(use("tuned2", None))
    await seen(small, "tuned2")
    queued.set()
    await asyncio.gather(first, second)
    small.close()


async def test_in_int8_each_is_loaded_whole(shelf: Path) -> None:
    packed = LoadedModels(lambda source: shelf / source, 2**30, CPU, "int8")
    async with packed.borrow("tuned1", "tuned1", "base") as model:
        assert model.adapter is None
        assert list(held(packed)) == ["tuned1"]
    packed.close()


def reworked(shelf: Path, name: str, work: Callable[[Path], None]) -> None:
    shutil.copytree(shelf / "base", shelf / name, dirs_exist_ok=True)
    work(shelf / name)


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = max(tensors, key=lambda each: tensors[each].numel())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[7] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_words(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|end|>"))


def other_end(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"eos_token_id": 0', '"eos_token_id": 1'))


@pytest.mark.parametrize("work", [other_weights, other_words, other_end, shutil.rmtree])
async def test_of_another_base_or_none_the_model_is_loaded_whole(
    shelf: Path, models: LoadedModels, work: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    reworked(shelf, "changed", work)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        async with models.borrow("tuned1", "tuned1", "changed") as model:
            assert model.adapter is None
            assert "tuned1" in held(models)
    assert len([record for record in caplog.records if "loaded whole" in record.message]) <= 1
    shutil.rmtree(shelf / "changed", ignore_errors=True)
