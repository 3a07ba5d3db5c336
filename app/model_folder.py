"""What a folder must be before anything reads it as a model. Pure: the trainer asks too, in its own process.

Libraries believe what a folder says of itself: a config may name code to run, another folder to read, or a
vocabulary of 10^12 that is allocated before anybody counts. So whatever comes from outside is looked at here
first, and what is stated there is held against what the files hold.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import weights
from app.weights import Tensor

Json = dict[str, Any]
MOST_ENTRIES = 1000
# Bytes of a file at most, by its name; of any other JSON file the last. Vocabularies of 256,000 take 35 MB.
LARGEST = {"tokenizer.json": 64 << 20, "vocab.json": 64 << 20, "merges.txt": 64 << 20, "vocab.txt": 64 << 20}
LARGEST |= {"chat_template.jinja": 400_000, "config.json": 1 << 20, "tokenizer_config.json": 16 << 20}
LARGEST_JSON = 32 << 20
UNSCANNED = frozenset({"tokenizer.json", "vocab.json"})  # their keys are words of a vocabulary
# Keys that make libraries run what a folder names, wherever in its JSON they stand.
CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "use_kernels", "kernel_config"})
ATTENTION = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
TOKENIZERS = frozenset(
    f"{name}{fast}"
    for name in (
        "GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizer",
        "CodeLlamaTokenizer", "TokenizersBackend",
    )
    for fast in ("", "Fast")
)  # fmt: skip
LARGEST_NUMBER = 10**11  # rotary bases go up to 10^9 or so
MOST_LABELS = 10_000  # transformers makes a dictionary of them
MOST_POSITIONS = 1 << 27


class UnusableModel(Exception):
    """A folder is there, but is not a model we run; the message says why and what to do."""


@dataclass(frozen=True)
class Architecture:
    """A kind of model: `layers` is where its layers are numbered, `shapes` what its tensors' sizes must be,
    by the end of a tensor's name, in the words of `_measures`."""

    model_type: str
    layers: str
    shapes: Mapping[str, tuple[str, ...]]


LLAMA_SHAPES = {
    "embed_tokens.weight": ("vocabulary", "width"),
    "layers.0.self_attn.q_proj.weight": ("queries", "width"),
    "layers.0.self_attn.k_proj.weight": ("keys", "width"),
    "layers.0.mlp.gate_proj.weight": ("inner", "width"),
}
# Causal language models whose packed rows, LoRA targets and generation the training tests cover or whose
# shape is theirs; a model of any other kind, or one that wants its own code run, is refused.
ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture(
        "gpt2",
        "h",
        {
            "wte.weight": ("vocabulary", "width"),
            "wpe.weight": ("positions", "width"),
            "h.0.attn.c_attn.weight": ("width", "triple"),
            "h.0.mlp.c_fc.weight": ("width", "inner"),
        },
    ),
    "GPTNeoXForCausalLM": Architecture(
        "gpt_neox",
        "layers",
        {
            "embed_in.weight": ("vocabulary", "width"),
            "layers.0.attention.query_key_value.weight": ("triple", "width"),
            "layers.0.mlp.dense_h_to_4h.weight": ("inner", "width"),
        },
    ),
    "LlamaForCausalLM": Architecture("llama", "layers", LLAMA_SHAPES),
    "MistralForCausalLM": Architecture("mistral", "layers", LLAMA_SHAPES),
    "Qwen2ForCausalLM": Architecture("qwen2", "layers", LLAMA_SHAPES),
    "Qwen3ForCausalLM": Architecture("qwen3", "layers", LLAMA_SHAPES),
}
_Stamp = tuple[tuple[str, int, int, int], ...]
_passed: dict[Path, _Stamp] = {}  # folders that were looked at, with what they were then


def check(folder: Path) -> None:
    """Raises UnusableModel for a folder that is no model of a known kind, or that would make who reads it
    run code, read elsewhere or allocate without measure. Milliseconds; microseconds the second time."""
    entries = list(_entries(folder))
    seen = tuple((entry.name, s.st_size, s.st_mtime_ns, s.st_ino) for entry, s in entries)
    if _passed.get(folder) == seen:
        return
    for entry, status in entries:
        _check_entry(folder, entry, status)
    config = _config(folder)
    name = _architecture(config)
    for path in sorted(folder.glob("*.json")):
        if path.name not in UNSCANNED:
            _refuse_code(path.name, _json(path))
    _check_tokenizer(_json(folder / "tokenizer_config.json"))
    _check_numbers(config)
    _check_sizes(ARCHITECTURES[name], config, _tensors(folder))
    if len(_passed) > 256:
        _passed.clear()
    _passed[folder] = seen


def check_config(folder: Path) -> None:
    """The part that needs config.json alone, before gigabytes are fetched. Raises UnusableModel."""
    config = _config(folder)
    _architecture(config)
    _refuse_code("config.json", config)
    _check_numbers(config)


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    try:
        with os.scandir(folder) as found:
            for number, entry in enumerate(sorted(found, key=lambda entry: entry.name)):
                if number == MOST_ENTRIES:
                    raise UnusableModel(f"its folder holds more than {MOST_ENTRIES:,} files.")
                yield entry, entry.stat()
    except OSError as error:
        raise UnusableModel(f"its folder cannot be read ({error.strerror}).") from None


def _check_entry(folder: Path, entry: os.DirEntry[str], status: os.stat_result) -> None:
    name = entry.name
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(folder.resolve()):
        raise UnusableModel(f"{name[:100]} is a link that leads out of its folder; put a copy there.")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise UnusableModel(f"{name[:100]} is neither a file nor a folder.")
    if name.endswith((".py", ".so", ".pyc")):
        raise UnusableModel("it brings code of its own, which is never run here.")
    most = LARGEST.get(name, LARGEST_JSON if name.endswith(".json") else None)
    if most is not None and status.st_size > most:
        raise UnusableModel(f"{name} has {status.st_size:,} bytes; {most:,} are the most.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableModel(f"its {path.name} cannot be read ({type(error).__name__}).") from None


def _config(folder: Path) -> Json:
    path = folder / "config.json"
    try:
        if path.stat().st_size > LARGEST["config.json"]:
            raise UnusableModel("its config.json is too large.")
    except OSError as error:
        raise UnusableModel(f"its config.json cannot be read ({error.strerror}).") from None
    config = _json(path)
    if not isinstance(config, dict):
        raise UnusableModel("its config.json is no JSON object.")
    return config


def _architecture(config: Json) -> str:
    named = config.get("architectures")
    names = [str(name)[:100] for name in named] if isinstance(named, list) else []
    found = [name for name in names if name in ARCHITECTURES]
    if not found or len(names) > 1:
        raise UnusableModel(
            f"its architecture is {', '.join(names[:5]) or 'not stated'};"
            f" supported are {', '.join(sorted(ARCHITECTURES))}."
        )
    # The type is what transformers goes by, whatever the architecture's name says.
    kind = config.get("model_type")
    if kind != ARCHITECTURES[found[0]].model_type:
        raise UnusableModel(f"its model_type is {str(kind)[:100]!r}, which is no {found[0]}.")
    return found[0]


def _pairs(value: object) -> Iterator[tuple[str, object]]:
    """Every key and value of a JSON document, however deep."""
    left = [value]
    while left:
        at = left.pop()
        if isinstance(at, dict):
            yield from at.items()
            left.extend(at.values())
        elif isinstance(at, list):
            left.extend(at)


def _refuse_code(name: str, document: object) -> None:
    for key, value in _pairs(document):
        if key in CODE_KEYS:
            raise UnusableModel(f"it brings code of its own ({key} in {name}), which is never run here.")
        if key.lstrip("_") == "attn_implementation" and value is not None and value not in ATTENTION:
            raise UnusableModel(f"{name} wants attention code from elsewhere, which is never run here.")
        if key == "quantization_config":
            raise UnusableModel("its weights are quantized; take the model that they were made from.")
    if name == "adapter_config.json":
        # transformers would go and read the model that it names, wherever that lies.
        raise UnusableModel("it is an adapter, not a model: merge it into its base and use that.")


def _check_tokenizer(settings: object) -> None:
    if not isinstance(settings, dict):
        raise UnusableModel("its tokenizer_config.json is no JSON object.")
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in TOKENIZERS:
        raise UnusableModel(f"its tokenizer is {str(kind)[:100]!r}; supported are {_listed(TOKENIZERS)}.")
    for key in ("vocab_file", "merges_file", "tokenizer_file"):
        if settings.get(key) is not None:
            raise UnusableModel(f"its tokenizer_config.json names a file to read ({key}); leave that out.")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(name for name in names if not name.endswith("Fast")))


def _check_numbers(config: Json) -> None:
    for key, value in _pairs(config):
        if isinstance(value, int | float) and not abs(value) < LARGEST_NUMBER:
            raise UnusableModel(f"its config.json has {value:,} as {key[:100]}, which no model has.")
    if not 0 <= _number(config, "num_labels", 0) <= MOST_LABELS:
        raise UnusableModel(f"its config.json has a num_labels of more than {MOST_LABELS:,}.")


def _number(config: Json, names: str, otherwise: int | None = None) -> int:
    """The value under any of these names, which must agree: transformers takes each for the same."""
    found = {config[name] for name in names.split() if isinstance(config.get(name), int | float | str)}
    if not found and otherwise is not None:
        return otherwise
    if len(found) != 1 or not isinstance(value := found.pop(), int) or value < 0:
        raise UnusableModel(f"its config.json must state {names.split()[0]}, once, as a whole number.")
    return value


def _measures(config: Json) -> dict[str, int]:
    width, heads = (_number(config, names) for names in ("n_embd hidden_size", "n_head num_attention_heads"))
    head = _number(config, "head_dim", width // max(1, heads))
    return {
        "vocabulary": _number(config, "vocab_size"),
        "width": width,
        "triple": 3 * width,
        "positions": _number(config, "n_positions max_position_embeddings", 0),
        "inner": _number(config, "n_inner intermediate_size", 4 * width),
        "queries": heads * head,
        "keys": _number(config, "num_key_value_heads", heads) * head,
    }


def _check_sizes(kind: Architecture, config: Json, tensors: dict[str, Tensor]) -> None:
    measures, layers = _measures(config), _number(config, "n_layer num_hidden_layers")
    if measures["positions"] > MOST_POSITIONS:
        raise UnusableModel(f"its config.json states {measures['positions']:,} positions.")
    if _number(config, "pad_token_id", 0) >= measures["vocabulary"] and config.get("pad_token_id") != -1:
        raise UnusableModel("its config.json has a pad_token_id beyond its vocabulary.")
    numbered = re.compile(rf"(?:^|\.){kind.layers}\.(\d{{1,9}})\.")
    held = {int(found[1]) for name in tensors if (found := numbered.search(name))}
    if (len(held), max(held, default=-1)) != (layers, layers - 1):
        raise UnusableModel(f"its config.json states {layers:,} layers, its weights hold {len(held):,}.")
    for end, sizes in kind.shapes.items():
        stated = tuple(measures[size] for size in sizes)
        found_ = [t.shape for name, t in tensors.items() if name == end or name.endswith(f".{end}")]
        if found_ != [stated]:
            said = " x ".join(f"{size:,}" for size in stated)
            raise UnusableModel(f"by its config.json {end} is {said}; its weights say otherwise.")


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = {}
        left = weights.LONGEST_HEADER  # for all of them together
        for path in weights.files(folder):
            tensors, length = weights.header(path, left)
            left -= length
            for tensor in tensors:
                if tensor.name in found:
                    raise UnusableModel(f"the tensor {tensor.name[:100]} stands in two of its files.")
                found[tensor.name] = tensor
    except FileNotFoundError:
        raise UnusableModel(
            "it has no model.safetensors weights; pickled ones (.bin) are never loaded."
        ) from None
    except (OSError, ValueError) as error:
        raise UnusableModel(f"its weights cannot be read: {error}.") from None
    return found
