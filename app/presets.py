"""Recipes to begin with, and how a form lays the recipe out. `app.recipe` says what each field means."""

from dataclasses import dataclass
from typing import Any

from app.recipe import Method

# Title of each part, and the first of its fields: the rest follow in the recipe's own order.
PARTS = (
    ("How long", "num_epochs"),
    ("Batches", "train_batch_size"),
    ("Optimizer and schedule", "learning_rate"),
    ("Numbers", "mixed_precision_training"),
    ("Text", "max_length"),
    ("Preference pairs", "beta"),
    ("Validation and samples", "validation_split"),
    ("Checkpoints", "save_steps"),
    ("LoRA", "lora_rank"),
)


@dataclass(frozen=True)
class Preset:
    """Hyperparameters that go together; what they leave out is as the recipe has it."""

    id: str
    title: str
    says: str
    hyperparameters: dict[str, Any]
    method: Method = "supervised"


PRESETS = (
    Preset("automatic", "Automatic", "Everything as the trainer chooses it for model and file.", {}),
    Preset(
        "quick",
        "Small and quick",
        "At most 200 steps of short examples: to see within minutes that all of it works.",
        {"max_steps": 200, "max_length": 256, "total_train_batch_size": 8, "eval_steps": 50},
    ),
    Preset(
        "lora",
        "LoRA",
        "Only small matrices beside the weights are trained: little memory, small checkpoints.",
        {"lora_rank": 16, "num_epochs": 3},
    ),
    Preset(
        "careful",
        "Careful",
        "A tenth is held out, training stops when that gets no better, and the best checkpoint is published.",
        {
            "num_epochs": 10,
            "validation_split": 0.1,
            "early_stopping_patience": 3,
            "load_best_model_at_end": True,
        },
    ),
    Preset(
        "reference-card",
        "Reference card",
        "As the card of model_output_original_subreddit-cmu_1 says: 20 epochs of 512 examples a step.",
        {
            "learning_rate": 0.0005,
            "train_batch_size": 64,
            "eval_batch_size": 64,
            "seed": 42,
            "gradient_accumulation_steps": 8,
            "total_train_batch_size": 512,
            "optimizer": "adamw",
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-08,
            "lr_scheduler_type": "cosine",
            "lr_scheduler_warmup_steps": 1000,
            "num_epochs": 20,
            "mixed_precision_training": "Native AMP",
        },
    ),
    Preset(
        "preference",
        "Preference pairs (DPO)",
        "For files of preferred and other answers: one careful pass.",
        {"beta": 0.1, "num_epochs": 1},
        method="dpo",
    ),
)
