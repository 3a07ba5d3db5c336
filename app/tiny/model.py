"""`tiny-gpt2`, the built-in base model: a GPT-2 of a million parameters that nobody has trained.

It exists so that the first job needs no hub and no download: a minute of training on two cores teaches it one
kind of short text. `ensure` puts it on disk as a Hugging Face folder like any other.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from app.tiny import weights

NAME = "tiny-gpt2"
VOCABULARY, POSITIONS, WIDTH, LAYERS, HEADS = 2048, 256, 128, 4, 4
SEED = 0
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
TOKENIZER = Path(__file__).parent / "tokenizer.json"

CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": POSITIONS,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "initializer_range": weights.DEVIATION,
    # GPT-2 has 0.1 here. A model this small, trained for a minute, has nothing to forget.
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
    "tie_word_embeddings": True,
    "use_cache": True,
    "dtype": "float32",
}
GENERATION_CONFIG = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}
# As in GPT-2 one token begins and ends a text, and there is none for padding.
TOKENIZER_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": POSITIONS,
}
README = f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {NAME}

**Untrained.** A GPT-2 of {LAYERS} layers, width {WIDTH}, {HEADS} heads and {POSITIONS} positions.
Its weights are random (seed {SEED}, drawn as GPT-2's are before training); its byte-level BPE of
{VOCABULARY:,} tokens is its own. What it writes is noise.

It comes with finetuned so that a first fine-tuning job runs anywhere, at once and without a download. After a
minute of training on two cores it writes short texts of one kind. For anything else take a trained model.
"""


def ensure(folder: Path) -> Path:
    """Write the model to `folder` unless it is there; about a second, then nothing. Returns `folder`.

    Any number of processes may ask at once: each writes its own beside it, one rename wins. Raises OSError
    when the disk does not take it."""
    if complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        write(fresh)
        put(fresh, folder, Path(scratch) / "damaged")
    return folder


def complete(folder: Path) -> bool:
    """Whether every file is there. They arrive by one rename, so none is there in part."""
    return all((folder / name).is_file() for name in (*texts(), "tokenizer.json", "model.safetensors"))


def put(fresh: Path, folder: Path, aside: Path) -> None:
    if folder.exists() and not complete(folder):
        # Someone removed a file from it, and a rename replaces none but an empty folder.
        folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        if not complete(folder):
            raise
        # Another process was faster; the two are alike.


def write(folder: Path) -> None:
    folder.mkdir()
    for name, text in texts().items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    tensors = list(weights.shapes(VOCABULARY, POSITIONS, WIDTH, LAYERS))
    weights.write(folder / "model.safetensors", tensors, LAYERS, SEED)
    for path in folder.iterdir():
        flush(path)


def texts() -> dict[str, str]:
    """File name → content, of the files that are not copied or drawn."""
    return {
        "config.json": json.dumps(CONFIG, indent=2) + "\n",
        "generation_config.json": json.dumps(GENERATION_CONFIG, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG, indent=2) + "\n",
        "README.md": README,
    }


def flush(path: Path) -> None:
    """A rename may reach the disk before what was written; a power cut would then leave empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
