"""Models in memory: who stays, who leaves, and what happens when a folder changes or is gone."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from app import seal
from app.errors import NotFound, ServiceError, Unavailable
from tests.generation.tinymodel import make_model
from worker.generation import loaded, model
from worker.generation.head import Head
from worker.generation.loaded import LoadedModels
from worker.generation.model import Model
from worker.training import manifest

CPU = torch.device("cpu")
Loads = list[str]


@pytest.fixture
def shelf(tmp_path: Path, folder: Path) -> Path:
    """Four models in a folder: a, b, c, d."""
    for name in "abcd":
        shutil.copytree(folder, tmp_path / name)
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """The names of the models that were read, in order."""
    names: Loads = []

    def watched(folder: Path, name: str, *how: Any) -> Model:
        names.append(name)
        return model.load(folder, name, *how)

    monkeypatch.setattr(loaded, "load", watched)
    return names


def room_for(count: int, shelf: Path) -> int:
    return model.load(shelf / "a", "a", CPU).size * count + model.weigh(shelf / "a", CPU) // 2


def models(shelf: Path, memory: int) -> LoadedModels:
    return LoadedModels(lambda source: shelf / source, memory, CPU)


async def use(models: LoadedModels, *names: str) -> None:
    for name in names:
        async with models.borrow(name, name):
            pass


def held(models: LoadedModels) -> list[object]:
    return [each["source"] for each in models.listed()]


async def test_the_least_recently_used_leaves(shelf: Path, loads: Loads) -> None:
    kept = models(shelf, room_for(3, shelf))
    await use(kept, "a", "b", "c", "a", "d")
    assert held(kept) == ["c", "a", "d"]
    await use(kept, "c", "a", "b")
    assert loads == ["a", "b", "c", "d", "b"]
    kept.close()


async def test_a_folder_with_another_manifest_than_the_recorded_one_is_not_loaded(
    shelf: Path, loads: Loads
) -> None:
    """As where somebody who may write to the bucket has put another model there, manifest and all."""
    digest, _ = manifest.seal(shelf / "a")
    files = json.loads((shelf / "a" / manifest.NAME).read_bytes())["files"]
    kept = models(shelf, room_for(3, shelf))
    good = [seal.of_bytes(digest), seal.of_files(files)]
    for seal_of in good:
        async with kept.borrow("a", "a", None, seal_of):
            pass
    (shelf / "a" / "config.json").write_text((shelf / "a" / "config.json").read_text() + " ")
    manifest.seal(shelf / "a")
    for seal_of in [*good, "", "files:", "manifest:00"]:
        with pytest.raises(ServiceError) as refused:
            async with kept.borrow("a", "a", None, seal_of):
                pass
        assert refused.value.code == "model_not_loadable"
    assert loads == ["a"]
    kept.close()


async def test_a_model_in_use_stays(shelf: Path, loads: Loads) -> None:
    kept = models(shelf, room_for(2, shelf))
    async with kept.borrow("a", "a"):
        await use(kept, "b", "c", "d")
        assert held(kept) == ["a", "d"]
    kept.close()


async def test_a_model_larger_than_all_the_room_is_let_in_alone(shelf: Path, loads: Loads) -> None:
    kept = models(shelf, 1)
    await use(kept, "a", "b")
    assert held(kept) == ["b"]
    kept.close()


async def test_when_all_room_is_in_use_one_waits_and_is_told_after_a_while(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = models(shelf, 1)
    async with AsyncExitStack() as leaving:
        await leaving.enter_async_context(kept.borrow("a", "a"))
        monkeypatch.setattr(loaded, "ROOM_TIMEOUT", 0.2)
        with pytest.raises(Unavailable):
            await use(kept, "b")
        monkeypatch.setattr(loaded, "ROOM_TIMEOUT", 20)
        waiting = asyncio.create_task(use(kept, "b"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    await waiting
    assert held(kept) == ["b"]
    kept.close()


async def test_those_who_come_while_it_loads_share_it(shelf: Path, loads: Loads) -> None:
    kept = models(shelf, 2**30)
    await asyncio.gather(*[use(kept, "a") for _ in range(8)])
    assert loads == ["a"]
    kept.close()


async def test_one_who_leaves_does_not_stop_the_load_for_the_others(
    shelf: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Event()

    def load_late(*how: Any) -> Model:
        loads.append("a")
        begin.wait(30)
        return model.load(*how)

    monkeypatch.setattr(loaded, "load", load_late)
    kept = models(shelf, 2**30)
    first, second = (asyncio.create_task(use(kept, "a")) for _ in range(2))
    while not any(each["users"] == 2 for each in kept.listed()):  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    begin.set()
    await second
    assert loads == ["a"]
    kept.close()


async def test_a_folder_written_anew_is_another_model(shelf: Path, loads: Loads) -> None:
    kept = models(shelf, 2**30)
    async with kept.borrow("a", "a") as before:
        shutil.rmtree(shelf / "a")
        make_model(shelf / "a", seed=2)
        async with kept.borrow("a", "a") as after:
            assert before is not after
            first, second = (next(iter(each.weights.parameters())) for each in (before, after))
            assert not torch.equal(first, second)
    assert loads == ["a", "a"]
    kept.close()


async def test_a_folder_that_is_gone_is_404_and_runs_on_where_it_is_in_use(shelf: Path) -> None:
    kept = models(shelf, 2**30)
    async with kept.borrow("a", "a") as borrowed:
        shutil.rmtree(shelf / "a")
        with pytest.raises(NotFound) as refused:
            await use(kept, "a")
        assert refused.value.code == "model_not_found"
        cache = DynamicCache()
        assert borrowed.forward(torch.tensor([[1]]), torch.tensor([[0]]), cache).shape[-1] == borrowed.tokens
    kept.close()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _remove_weights(path: Path) -> None:
    path.rename(path.with_suffix(".bin"))


@pytest.mark.parametrize("damage", [_truncate, _remove_weights])
async def test_a_damaged_folder_is_a_clean_error_and_can_be_mended(
    shelf: Path, damage: Callable[[Path], None]
) -> None:
    kept = models(shelf, 2**30)
    damage(shelf / "a" / "model.safetensors")
    for _ in range(2):
        with pytest.raises(ServiceError) as refused:
            await use(kept, "a")
        assert refused.value.code == "model_not_loadable"
        assert held(kept) == []
    shutil.copy(shelf / "b" / "model.safetensors", shelf / "a" / "model.safetensors")
    await use(kept, "a")
    kept.close()


async def test_loading_does_not_keep_the_loop_from_serving_others(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, read = models(shelf, 2**30), threading.Event()
    await use(kept, "a")

    def slow(folder: Path, name: str, *how: Any) -> Model:
        read.wait(20)
        return model.load(folder, name, *how)

    monkeypatch.setattr(loaded, "load", slow)
    waiting = asyncio.create_task(use(kept, "b"))
    await asyncio.wait_for(use(kept, "a", "a"), 5)
    assert not waiting.done()
    read.set()
    await waiting
    kept.close()


def test_the_head_gives_the_logits_of_the_plain_product() -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        linear = torch.nn.Linear(16, 300, bias=bias)
        head = Head(linear)
        for shape in ((1, 1, 16), (5, 1, 16), (1, 7, 16), (3, 4, 16)):
            hidden = torch.randn(shape)
            assert torch.allclose(head(hidden), linear(hidden), atol=1e-5)


def test_weights_are_our_own_whatever_becomes_of_the_file(shelf: Path) -> None:
    """A mapped file that is cut short ends the process that reads it."""
    held = model.load(shelf / "a", "a", CPU)
    tokens = torch.tensor([[1, 2, 3]])
    before = held.forward(tokens, torch.arange(3)[None], DynamicCache())
    (shelf / "a" / "model.safetensors").write_bytes(b"")
    assert torch.equal(held.forward(tokens, torch.arange(3)[None], DynamicCache()), before)


def test_int8_is_near_the_exact_model(folder: Path) -> None:
    exact, packed = model.load(folder, "a", CPU), model.load(folder, "a", CPU, "int8")
    tokens = torch.randint(1, 350, (1, 60), generator=torch.Generator().manual_seed(0))
    places = torch.arange(60)[None]
    with torch.inference_mode():
        a, b = (each.forward(tokens, places, DynamicCache(), keep=0)[0] for each in (exact, packed))
    assert packed.decoder is not None
    assert not torch.equal(a, b)
    assert (a.log_softmax(-1) - b.log_softmax(-1)).abs().mean() < 0.2
    assert (a.argmax(-1) == b.argmax(-1)).float().mean() > 0.8
