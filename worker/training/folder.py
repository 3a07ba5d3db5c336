"""A trained network as a Hugging Face folder: in a checkpoint, and as the job's result."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from worker.training import lora, manifest
from worker.training.checkpoint import OPTIMIZER, PROGRESS, Snapshot, copy_to_host, save_optimization
from worker.training.failure import Failure
from worker.training.job import Job
from worker.training.model import Model, load
from worker.training.optim import Optimization

if TYPE_CHECKING:
    from peft import PeftModel

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
CARD, TEMPLATE = "README.md", "chat_template.jinja"
# fp32: the update is rounded once more when it is added to the weight.
MERGE_TOLERANCE = 1e-3


def snapshot(
    network: PreTrainedModel,
    adapted: PeftModel | None,
    optimization: Optimization,
    template: str | None,
    job: Job,
) -> Snapshot:
    """Copies all that a checkpoint needs to the host; what is returned writes it, at leisure."""
    copied = optimization.shards.copy_to_host if optimization.shards else copy_to_host
    weights = copied(lora.merged(network) if adapted else network.state_dict(keep_vars=True))
    adapter = copied(lora.adapter_state(adapted)) if adapted else {}
    slots, facts = optimization.state()
    slots = copied(slots)

    def write(folder: Path) -> None:
        network.save_pretrained(folder, state_dict=weights)
        if adapted:
            lora.write(adapted, adapter, folder, job.base_name)
        save_optimization(folder, slots, facts)
        copy_tokenizer(job.model, folder, template)

    return write


def copy_tokenizer(base: Path, folder: Path, template: str | None) -> None:
    """The base model's tokenizer files as they are, and the chat template if training brought its own."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")


def publish(checkpoint: Path, out: Path, card: str) -> tuple[Path, str]:
    """The checkpoint without its training state, with a card and a manifest; returns folder and SHA-256."""
    temporary, final = out / ".publishing-model", out / "model"
    shutil.rmtree(temporary, ignore_errors=True)
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        if path.name in (OPTIMIZER, PROGRESS, manifest.NAME):
            continue
        target = temporary / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(path, target)
    (temporary / CARD).write_text(card, encoding="utf-8")
    digest, _ = manifest.seal(temporary)
    manifest.commit(temporary, final)
    return final, digest


def check_merge(model: Model, adapted: PeftModel, checkpoint: Path, job: Job) -> float:
    """How far the merged folder's logits are from the adapter's, as a share of the largest logit.

    Raises Failure when it is more than rounding.
    """
    lora.restore(adapted, checkpoint)
    again = load(checkpoint, job.recipe, model.device)
    random = torch.Generator().manual_seed(0)
    width = min(64, model.positions)
    ids = torch.randint(again.config.get_text_config().vocab_size, (2, width), generator=random)
    ids = ids.to(model.device.place)
    mine, theirs = model.logits(ids), Model(again, model.device, job.recipe).logits(ids)
    difference = float((mine - theirs).abs().max() / mine.abs().max())
    if not difference <= MERGE_TOLERANCE:
        message = f"The merged model differs from the adapter by {difference:.2g} of the largest logit."
        raise Failure("merge_mismatch", message, exit_status=1)
    return difference


def _link(source: Path, target: Path) -> None:
    """A hard link costs no space; both folders are never written to again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
