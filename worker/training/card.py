"""The model card, in the form that Hugging Face's Trainer gives it."""

import json
from importlib.metadata import version
from typing import Any

# As TRL's cards call them.
REWARDS = {
    "Rewards/chosen": "reward_chosen",
    "Rewards/rejected": "reward_rejected",
    "Rewards/accuracies": "reward_accuracy",
    "Rewards/margins": "reward_margin",
}
FRAMEWORKS = {"PEFT": "peft", "Transformers": "transformers", "Pytorch": "torch", "Tokenizers": "tokenizers"}


def write(
    name: str, base: str, hyperparameters: dict[str, Any], evaluations: list[dict[str, Any]], lora: bool
) -> str:
    """The text of README.md."""
    last = next((row for row in reversed(evaluations) if "loss" in row), None)
    results = ""
    if last:
        told = {"Loss": "loss", "Perplexity": "perplexity", "Accuracy": "accuracy", **REWARDS}
        known = {title: last[key] for title, key in told.items() if last.get(key) is not None}
        lines = "\n".join(f"- {key}: {_number(value)}" for key, value in known.items())
        results = f"It achieves the following results on the evaluation set:\n{lines}\n"
    listed = "\n".join(f"- {key}: {value}" for key, value in hyperparameters.items())
    frameworks = [(title, package) for title, package in FRAMEWORKS.items() if lora or package != "peft"]
    versions = "\n".join(f"- {title} {version(package)}" for title, package in frameworks)
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
base_model: {json.dumps(base)}
tags:
- finetuned
model-index:
- name: {json.dumps(name)}
  results: []
---

# {_plain(name)}

This model is a fine-tuned version of {_plain(base)}{_by(hyperparameters)}.
{results}
## Training procedure

### Training hyperparameters

The following hyperparameters were used during training:
{listed}

### Training results

{_table(evaluations)}

### Framework versions

{versions}
"""


def hyperparameters(recipe: dict[str, Any], precision: str, world: int) -> dict[str, Any]:
    """The lines of the card, as the Trainer names them, from a resolved recipe."""
    lines: dict[str, Any] = {
        "learning_rate": recipe["learning_rate"],
        "train_batch_size": recipe["train_batch_size"],
        "eval_batch_size": recipe["eval_batch_size"],
        "seed": recipe["seed"],
    }
    if world > 1:
        lines |= {"distributed_type": "multi-GPU", "num_devices": world}
    lines |= {
        "gradient_accumulation_steps": recipe["gradient_accumulation_steps"],
        "total_train_batch_size": recipe["total_train_batch_size"],
        "optimizer": _optimizer(recipe),
        "lr_scheduler_type": recipe["lr_scheduler_type"],
        "lr_scheduler_warmup_steps": recipe["lr_scheduler_warmup_steps"],
    }
    lines |= (
        {"training_steps": recipe["max_steps"]}
        if recipe["max_steps"]
        else {"num_epochs": recipe["num_epochs"]}
    )
    mixed = {"fp16": "Native AMP", "bf16": "bf16"}.get(precision)
    lines |= {"mixed_precision_training": mixed} if mixed else {}
    rest = {
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "dropout": "auto",
        "lora_rank": None,
        "max_length": None,
        "beta": None,
    }
    lines |= {key: recipe[key] for key, usual in rest.items() if recipe[key] != usual}
    return lines | ({"lora_alpha": recipe["lora_alpha"]} if recipe["lora_rank"] else {})


def _by(hyperparameters: dict[str, Any]) -> str:
    if "beta" not in hyperparameters:
        return ""
    return ", trained on preference pairs by direct preference optimization (DPO, Rafailov et al. 2023)"


def _optimizer(recipe: dict[str, Any]) -> str:
    if recipe["optimizer"] != "adamw":
        return str(recipe["optimizer"])
    betas = f"({recipe['adam_beta1']},{recipe['adam_beta2']})"
    return f"Adam with betas={betas} and epsilon={recipe['adam_epsilon']}"


def _table(evaluations: list[dict[str, Any]]) -> str:
    columns = {"Training Loss": "training_loss", "Epoch": "epoch", "Step": "step"}
    if any("loss" in row for row in evaluations):
        columns |= {"Validation Loss": "loss"}
        if any(row.get("accuracy") is not None for row in evaluations):
            columns |= {"Accuracy": "accuracy"}
        if any("reward_margin" in row for row in evaluations):
            columns |= REWARDS
    rows = [[_number(row.get(key)) for key in columns.values()] for row in evaluations]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = [
        " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in [list(columns), *rows]
    ]
    rule = "|".join(f":{'-' * width}:" for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "No log" if value is None else str(value)


def _plain(name: str) -> str:
    """A name is a caller's: no markup of its own, no new line."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in " ".join(name.split()))
