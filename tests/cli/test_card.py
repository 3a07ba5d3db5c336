"""Model cards as Trainer of several versions writes them, read as recipes that the API takes."""

import pytest

from app import card
from app.recipe import Recipe

HEAD = """---
license: mit
base_model: gpt2
tags:
- generated_from_trainer
model-index:
- name: soup-writer
  results: []
---

# soup-writer

This model is a fine-tuned version of [gpt2](https://example.com/gpt2) on an unknown dataset.

## Training procedure

### Training hyperparameters

The following hyperparameters were used during training:
"""
TAIL = """
### Training results

| Training Loss | Epoch | Step | Validation Loss |
|:-------------:|:-----:|:----:|:---------------:|
| 3.1           | 1.0   | 500  | 2.9             |
- learning_rate: 99

### Framework versions

- Transformers 4.30.2
"""
OLD = """- learning_rate: 0.0005
- train_batch_size: 64
- eval_batch_size: 64
- seed: 42
- gradient_accumulation_steps: 8
- total_train_batch_size: 512
- optimizer: Adam with betas=(0.9,0.999) and epsilon=1e-08
- lr_scheduler_type: cosine
- lr_scheduler_warmup_steps: 1000
- num_epochs: 20
- mixed_precision_training: Native AMP
"""
NEW = """- learning_rate: 5e-05
- train_batch_size: 4
- eval_batch_size: 8
- seed: 1337
- distributed_type: multi-GPU
- num_devices: 8
- gradient_accumulation_steps: 2
- total_train_batch_size: 64
- total_eval_batch_size: 64
- optimizer: Use OptimizerNames.ADAMW_TORCH with betas=(0.9,0.95) and epsilon=1e-06 and optimizer_args=No additional optimizer arguments
- lr_scheduler_type: cosine_with_restarts
- lr_scheduler_warmup_ratio: 0.03
- training_steps: 10000
"""  # noqa: E501
NEWEST = """- learning_rate: 0.0002
- train_batch_size: 16
- eval_batch_size: 16
- seed: 0
- optimizer: Use adamw_torch_fused with betas=(0.9,0.999) and epsilon=1e-08 and optimizer_args=No additional optimizer arguments
- lr_scheduler_type: linear
- lr_scheduler_warmup_steps: 0.1
- num_epochs: 3.0
- label_smoothing_factor: 0.1
"""  # noqa: E501
ADAFACTOR = """* **learning_rate:** 1e-3
* **train_batch_size:** 8
* **optimizer:** Use OptimizerNames.ADAFACTOR and the args are:
No additional optimizer arguments
* **lr_scheduler_type:** SchedulerType.CONSTANT
* **lr_scheduler_warmup_steps:** 100
* **num_epochs:** 1
* **mixed_precision_training:** Apex, opt level O1
"""


def remarked(found: card.Card, *, changes: bool) -> list[str]:
    return [remark.name for remark in found.remarks if remark.changes is changes]


def test_the_card_of_an_older_trainer_is_taken_line_by_line() -> None:
    found = card.read(HEAD + OLD + TAIL)
    assert found.base_model == "gpt2"
    assert found.hyperparameters == {
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
    }
    assert found.remarks == []


def test_a_card_of_several_devices_trains_as_many_examples_a_step_on_one() -> None:
    found = card.read(HEAD + NEW + TAIL)
    recipe = Recipe.from_request(found.hyperparameters)
    assert recipe.batch(10_000, 100, 4096).total == 64
    assert (recipe.adam_beta2, recipe.adam_epsilon, recipe.max_steps) == (0.95, 1e-6, 10_000)
    assert (recipe.lr_scheduler_type, recipe.lr_scheduler_warmup_ratio) == ("cosine_with_restarts", 0.03)
    assert remarked(found, changes=False) == ["distributed_type", "total_eval_batch_size", "num_devices"]
    assert remarked(found, changes=True) == []


def test_the_total_follows_from_the_devices_where_it_is_left_out() -> None:
    block = NEW.replace("- total_train_batch_size: 64\n", "")
    assert card.read(HEAD + block).hyperparameters["total_train_batch_size"] == 64


def test_a_warm_up_below_one_is_a_share_and_what_is_not_ours_is_said() -> None:
    found = card.read(HEAD + NEWEST + TAIL)
    assert found.hyperparameters["lr_scheduler_warmup_ratio"] == 0.1
    assert "lr_scheduler_warmup_steps" not in found.hyperparameters
    assert found.hyperparameters["optimizer"] == "adamw"
    assert remarked(found, changes=True) == ["label_smoothing_factor"]
    Recipe.from_request(found.hyperparameters)


def test_bold_names_stars_and_enumerations_are_read_too() -> None:
    found = card.read("# A model\n## training hyper-parameters\n\n" + ADAFACTOR)
    assert found.hyperparameters == {
        "learning_rate": 0.001,
        "train_batch_size": 8,
        "optimizer": "adafactor",
        "lr_scheduler_type": "constant",
        "num_epochs": 1.0,
        "mixed_precision_training": "fp16",
    }
    assert remarked(found, changes=False) == ["lr_scheduler_warmup_steps"]
    assert remarked(found, changes=True) == ["mixed_precision_training"]


@pytest.mark.parametrize(
    ("line", "taken", "said"),
    [
        ("paged_adamw_8bit with betas=(0.9,0.98) and epsilon=1e-09", "adamw", ["optimizer"]),
        ("Use lion_32bit and the args are:", "adamw", ["optimizer"]),
        ("Use adamw_torch with betas=(0.9,0.99) and optimizer_args=amsgrad=1", "adamw", ["optimizer_args"]),
        ("SGD", "sgd", []),
    ],
)  # fmt: skip
def test_an_optimizer_that_is_not_ours_is_said(line: str, taken: str, said: list[str]) -> None:
    found = card.read(f"## Training hyperparameters\n- optimizer: {line}\n")
    assert found.hyperparameters["optimizer"] == taken
    assert remarked(found, changes=True) == said


def test_what_is_said_twice_is_told_and_the_last_is_taken() -> None:
    found = card.read("# Training hyperparameters\n- seed: 1\n- seed: 2\n")
    assert found.hyperparameters == {"seed": 2}
    assert remarked(found, changes=True) == ["seed"]


def test_a_broken_line_harms_no_other() -> None:
    found = card.read(
        "## Training hyperparameters\n- optimizer: Adam with betas=(1.2.3,0)\n- seed: 3\n-:\n- : 1\n"
    )
    assert (found.hyperparameters, found.ignored) == ({"seed": 3}, ["optimizer"])
