"""Hostile models, built by code: each begins as a sound GPT-2 and is spoilt in one way.

What would run writes the file named in CANARY, below the specimen's own folder's parent.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANARY = "canary"
Spoil = Callable[[Path], None]


class _Bomb:
    """A pickle that runs a command when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(said | changes))


def _config(**changes: Any) -> Spoil:
    return lambda folder: edit(folder, "config.json", **changes)


def _settings(**changes: Any) -> Spoil:
    return lambda folder: edit(folder, "tokenizer_config.json", **changes)


def pickle_beside(folder: Path) -> None:
    """Not hostile to who reads safetensors only."""
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(folder.parent / CANARY)))


def _pickled_only(folder: Path) -> None:
    pickle_beside(folder)
    (folder / "model.safetensors").unlink()


def _code(folder: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\n")


def _auto_map(folder: Path) -> None:
    _code(folder)
    auto = {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}
    edit(folder, "config.json", auto_map=auto)


def _linked(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return spoil


def _pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _large(name: str, size: int) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size)  # a hole: no disk is filled

    return spoil


def header(folder: Path) -> tuple[dict[str, Any], bytes]:
    whole = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def write_header(folder: Path, entries: dict[str, Any] | bytes, numbers: bytes) -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def _tensor(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Changes what the header says of the first tensor."""

    def spoil(folder: Path) -> None:
        entries, numbers = header(folder)
        change(next(facts for name, facts in entries.items() if name != "__metadata__"))
        write_header(folder, entries, numbers)

    return spoil


def _overlapping(folder: Path) -> None:
    entries, numbers = header(folder)
    one, other = [facts for facts in entries.values() if facts.get("shape") == [128]][:2]
    other["data_offsets"] = one["data_offsets"]
    write_header(folder, entries, numbers)


def _trailing(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"#!/bin/sh\n")


def _twice(folder: Path) -> None:
    entries, numbers = header(folder)
    text = json.dumps(entries)
    first = json.dumps({"transformer.wpe.weight": entries["transformer.wpe.weight"]})[1:-1]
    write_header(folder, f"{text[:-1]}, {first}}}".encode(), numbers)


def _long_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}")


def _padded_header(folder: Path) -> None:
    entries, numbers = header(folder)
    write_header(folder, json.dumps(entries).encode() + b" " * 26_000_000, numbers)


def _deep_header(folder: Path) -> None:
    _, numbers = header(folder)
    write_header(folder, b"[" * 200_000 + b"]" * 200_000, numbers)


def _index_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    place = {"transformer.wte.weight": "../elsewhere.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))


def _layer_missing(folder: Path) -> None:
    edit(folder, "config.json", n_layer=5)


def _adapter(folder: Path) -> None:
    said = {"peft_type": "LORA", "base_model_name_or_path": "/somewhere/else", "r": 1}
    edit(folder, "adapter_config.json", **said)


# Name → how it is spoilt, and a word of the refusal.
SPECIMENS: dict[str, tuple[Spoil, str]] = {
    "pickled weights alone": (_pickled_only, "never loaded"),
    "code beside the weights": (_code, "never run"),
    "auto_map": (_auto_map, "never run"),
    "auto_map of the tokenizer": (_settings(auto_map={"AutoTokenizer": ["t.T", None]}), "never run"),
    "auto_map, nested": (_config(text_config={"inner": [{"auto_map": {}}]}), "never run"),
    "trust_remote_code, nested": (_config(decoder={"trust_remote_code": True}), "never run"),
    "trust_remote_code": (_config(trust_remote_code=True), "never run"),
    "attention from the hub": (_config(attn_implementation="someone/kernels"), "never run"),
    "kernels": (_config(use_kernels=True), "never run"),
    "an adapter of another model": (_adapter, "an adapter"),
    "another model's type": (_config(model_type="bert"), "model_type"),
    "no type": (_config(model_type=None), "model_type"),
    "an unknown architecture": (_config(architectures=["EvilLM"]), "EvilLM"),
    "two architectures": (_config(architectures=["GPT2LMHeadModel", "EvilLM"]), "architecture"),
    "architectures of no list": (_config(architectures={"GPT2LMHeadModel": 1}), "not stated"),
    "an unknown tokenizer": (_settings(tokenizer_class="TransfoXLTokenizer"), "TransfoXLTokenizer"),
    "a vocabulary elsewhere": (_settings(vocab_file="/etc/passwd"), "vocab_file"),
    "quantized": (_config(quantization_config={"quant_method": "gptq"}), "quantized"),
    "weights by a link": (_linked("model.safetensors"), "a link"),
    "a config by a link": (_linked("config.json"), "a link"),
    "a config that is a pipe": (_pipe, "neither a file"),
    "an index that leads elsewhere": (_index_elsewhere, "elsewhere.safetensors"),
    "a header of a terabyte": (_long_header, "header of 1,000,000,000,000"),
    "a header of 26 MB": (_padded_header, "header of 26,"),
    "a header without end": (_deep_header, "without end"),
    "one tensor over another": (_overlapping, "does not begin where"),
    "a gap between tensors": (_tensor(lambda t: t.update(data_offsets=[8, 8])), "is no tensor"),
    "offsets beyond the file": (
        _tensor(lambda t: t.update(data_offsets=[10**12, 10**12 + 4], shape=[1])),
        "does not begin where",
    ),
    "negative sizes": (_tensor(lambda t: t.update(shape=[-1, -1], data_offsets=[0, 4])), "is no tensor"),
    "sizes that are no numbers": (_tensor(lambda t: t.update(shape=["2048", 128])), "is no tensor"),
    "another type of number": (_tensor(lambda t: t.update(dtype="F8_E4M3")), "is no tensor"),
    "bytes after the tensors": (_trailing, "its header says"),
    "a tensor twice": (_twice, "stands twice"),
    "a huge tokenizer.json": (_large("tokenizer.json", 65 << 20), "are the most"),
    "a huge config.json": (_large("config.json", 2 << 20), "are the most"),
    "a huge template": (_large("chat_template.jinja", 1 << 20), "are the most"),
    "a vocabulary of 10^12": (_config(vocab_size=10**12), "which no model has"),
    "a vocabulary of 10^9": (_config(vocab_size=10**9), "its weights say otherwise"),
    "10^8 layers": (_config(n_layer=10**8), "states 100,000,000 layers"),
    "10^8 layers by another name": (_config(num_hidden_layers=10**8), "once"),
    "a width of 10^8 by another name": (_config(hidden_size=10**8), "once"),
    "an inner width of 10^8": (_config(n_inner=10**8), "its weights say otherwise"),
    "10^11 positions": (_config(n_positions=10**11), "positions"),
    "10^9 labels": (_config(num_labels=10**9), "num_labels"),
    "a number that is none": (_config(layer_norm_epsilon=float("nan")), "which no model has"),
    "a layer that is missing": (_layer_missing, "5 layers"),
    "a pad token beyond the vocabulary": (_config(pad_token_id=10**9), "pad_token_id"),
    "a config that is a list": (lambda folder: _write(folder, "[]"), "no JSON object"),
    "a config without end": (lambda folder: _write(folder, "[" * 100_000), "cannot be read"),
}  # fmt: skip


def _write(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def build(sound: Path, folder: Path, spoil: Spoil) -> Path:
    """A copy of the sound model, spoilt."""
    shutil.copytree(sound, folder)
    spoil(folder)
    return folder
