"""The recipe: every hyperparameter a job may ask for, declared once.

Names are those of a Hugging Face model card, so the "Training hyperparameters" block of a card is a recipe.
"auto" means that the trainer chooses by the rule in the field's description and reports what it chose.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.contradictions import refuse_contradictions
from app.hyperparameters import RecipeError as RecipeError  # callers catch it from here
from app.hyperparameters import canonical, check_openai_range, first_problem, understood

Auto = Literal["auto"]
Method = Literal["supervised", "dpo"]
Positive = Annotated[int, Field(ge=1, le=10_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Prompt = Annotated[str, Field(min_length=1, max_length=4096)]


class Batch(NamedTuple):
    """How the examples of one step are cut: `micro` per device and micro-step, `total` per step."""

    micro: int
    accumulation: int
    total: int


class Recipe(BaseModel):
    """What a user asks for. Frozen; unknown keys are refused; contradictions are refused with what to do."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # How long
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] | Auto = Field(
        "auto", description="Passes over the training examples; fractions count. auto: 3."
    )
    max_steps: Positive | None = Field(
        None,
        description="Steps to take, instead of num_epochs; the schedule is as long.",
    )
    max_runtime: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Seconds of training after which the job saves a checkpoint and ends as failed."
    )
    max_step_time: Annotated[int, Field(ge=1)] = Field(
        1800,
        description="Seconds without a finished micro-step before a job fails as stalled.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        42,
        description="Seeds the order of examples, dropout, validation split, new weights.",
    )

    # Batches
    train_batch_size: Positive | Auto = Field(
        "auto",
        description="Examples per device and micro-step: speed and memory, not the result. auto: for "
        "micro-steps of about 4,096 tokens on a CPU and 32,768 on a GPU; halved when memory runs out.",
    )
    gradient_accumulation_steps: Positive | Auto = Field(
        "auto",
        description="Micro-steps per step. auto: what total_train_batch_size needs.",
    )
    total_train_batch_size: Positive | Auto = Field(
        "auto",
        description="Examples per step. auto: train_batch_size x accumulation x devices, else 0.2 % "
        "of the examples rounded up to a power of two, at least 8 and at most 64.",
    )
    eval_batch_size: Positive | Auto = Field(
        "auto", description="Validation examples per device and micro-step. auto: as train_batch_size."
    )
    num_devices: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Devices that share the job, one process each."
    )
    sharding: Literal["auto", "none", "full"] = Field(
        "auto",
        description="none: each device holds the whole model. full: each holds a part of all weights, "
        "gradients and optimizer state. auto: full where those would fill over 80 % of a device's memory.",
    )

    # Optimizer and schedule
    learning_rate: Annotated[float, Field(gt=0, le=10)] | Auto = Field(
        "auto",
        description="Peak learning rate. auto: 5e-5 x sqrt(124M / parameters), between 1e-5 and 1e-3; for "
        "LoRA ten times that, for preference pairs a tenth; times learning_rate_multiplier.",
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = Field(
        "auto", description="Factor on the automatic learning rate. auto: 1."
    )
    optimizer: Literal["adamw", "adafactor", "sgd"] = Field(
        "adamw", description="AdamW (what a card calls Adam: decoupled weight decay), Adafactor or plain SGD."
    )
    adam_beta1: Fraction = Field(0.9, description="Decay of AdamW's mean of gradients.")
    adam_beta2: Fraction = Field(0.999, description="Decay of AdamW's mean of squared gradients.")
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = Field(1e-8, description="AdamW's denominator term.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Decoupled weight decay, on matrices only, not on biases and norms."
    )
    max_grad_norm: Finite = Field(
        1.0, description="Larger gradients (global L2 norm) are scaled down. 0: never."
    )
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = Field("linear", description="Course of the learning rate, as in transformers' schedules.")
    lr_scheduler_warmup_steps: Annotated[int, Field(ge=0)] | Auto = Field(
        0, description="Steps of linear rise from 0 to the peak. auto: 5 % of all steps."
    )
    lr_scheduler_warmup_ratio: Fraction | None = Field(
        None,
        description="Warm-up as a share of all steps, rounded up.",
    )
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="End of cosine_with_min_lr as a share of the peak."
    )

    # Numbers
    mixed_precision_training: Literal["auto", "no", "fp16", "bf16", "Native AMP"] = Field(
        "auto",
        description="fp16 and 'Native AMP': torch.amp autocast with a GradScaler (CUDA only); bf16: without; "
        "no: fp32. auto: bf16 where the device is fast at it, else fp16 on CUDA, else fp32.",
    )
    tf32: bool = Field(True, description="Let CUDA multiply fp32 matrices in TF32.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, slower."
    )
    torch_compile: bool = Field(False, description="Compile the body; pays on long jobs on a GPU.")
    dropout: Fraction | Auto = Field(
        "auto", description="Dropout in the model. auto: as its config says; for preference pairs none."
    )

    # Text
    max_length: Annotated[int, Field(ge=2, le=1_048_576)] | Auto = Field(
        "auto", description="Tokens per example at most. auto: what the model can attend to, at most 1,024."
    )
    excess_length: Literal["split", "truncate", "drop", "error"] = Field(
        "split",
        description="What becomes of a longer example. split: windows that overlap by one token, so that "
        "every token is trained once. A preference pair is never split, but by default truncated: its prompt "
        "loses its beginning, then its answers their ends. What was done is counted and reported.",
    )
    packing: bool = Field(
        True,
        description="Lay examples into one row, isolated: no padding, same numbers.",
    )
    train_on_inputs: bool = Field(
        False, description="Also learn the prompts and the others' messages, not only answers."
    )

    # Preference pairs
    beta: Annotated[float, Field(gt=0, le=2)] | Auto | None = Field(
        None,
        description="With method dpo alone: how strongly the model is held to what it was, as the factor of "
        "the log-ratios in the loss. auto: 0.1.",
    )

    # Validation and samples
    validation_split: Fraction = Field(
        0.0,
        description="Share of the examples held out when there is no validation file.",
    )
    eval_steps: Positive | Auto = Field("auto", description="Steps between evaluations. auto: once an epoch.")
    load_best_model_at_end: bool = Field(
        False, description="Publish the checkpoint of the lowest validation loss."
    )
    early_stopping_patience: Positive | None = Field(
        None,
        description="Stop after so many evaluations without improvement; keeps the best.",
    )
    early_stopping_min_delta: Finite = Field(0.0, description="Least fall of the loss that counts.")
    early_stopping_warmup: Annotated[int, Field(ge=0)] = Field(
        0, description="First evaluations that early stopping does not count."
    )
    sample_prompts: Annotated[tuple[Prompt, ...], Field(max_length=16, strict=False)] = Field(
        (), description="Prompts completed greedily at every evaluation."
    )
    sample_max_tokens: Annotated[int, Field(ge=1, le=1024)] = Field(
        64, description="Tokens of a sample at most."
    )

    # Checkpoints
    save_steps: Positive | Auto = Field("auto", description="Steps between checkpoints. auto: once an epoch.")
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        2, description="Newest checkpoints kept; the best one is kept besides."
    )

    # LoRA
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Rank of the LoRA matrices. None: all weights are trained."
    )
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | Auto = Field(
        "auto", description="Scale of the LoRA update is alpha / rank. auto: twice the rank."
    )
    lora_dropout: Fraction = Field(0.0, description="Dropout before the LoRA matrices.")
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | Auto = Field(
        "auto", description="Names of the layers to adapt. auto: every linear layer but the head."
    )

    @classmethod
    def from_request(cls, hyperparameters: Mapping[str, object], method: Method = "supervised") -> Self:
        """Build a recipe from what a job's body says: OpenAI's names, card names, or both.

        Raises RecipeError naming the field as the caller wrote it.
        """
        written: dict[str, str] = {}
        values: dict[str, object] = {}
        for key, value in hyperparameters.items():
            name = canonical(key, cls.model_fields)
            if name in values and values[name] != value:
                message = f"'{written[name]}' and '{key}' say the same thing differently; give one of them."
                raise RecipeError(key, message, "contradictory_value")
            check_openai_range(key, value)
            written[name], values[name] = key, value
        if method == "dpo" and values.get("beta") is None:
            values["beta"] = "auto"
        if method != "dpo" and values.get("beta") is not None:
            message = "'beta' is for preference pairs only: set method.type to 'dpo', or leave it out."
            raise RecipeError("beta", message, "contradictory_value")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise first_problem(error, written) from None

    @property
    def method(self) -> Method:
        """What is trained; a recipe has `beta` exactly when it is preference pairs."""
        return "supervised" if self.beta is None else "dpo"

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        return understood(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        refuse_contradictions(self)
        return self

    def batch(self, examples: int, tokens_per_example: float, tokens_per_micro_step: int) -> Batch:
        """Resolve the batch sizes for so many examples of so many tokens on average."""
        given_micro = None if self.train_batch_size == "auto" else self.train_batch_size
        given_steps = None if self.gradient_accumulation_steps == "auto" else self.gradient_accumulation_steps
        total = self._total(examples, given_micro, given_steps)
        share = -(-total // self.num_devices)
        if given_micro is not None:
            micro = given_micro
        elif given_steps is not None:
            micro = -(-share // given_steps)
        else:
            fitting = max(1, int(tokens_per_micro_step / max(1.0, tokens_per_example)))
            micro = next(size for size in range(min(share, fitting), 0, -1) if share % size == 0)
        return Batch(micro, -(-share // micro), total)

    def _total(self, examples: int, micro: int | None, steps: int | None) -> int:
        if self.total_train_batch_size != "auto":
            return self.total_train_batch_size
        unit = self.num_devices * (steps or 1)
        if micro is not None:
            return micro * unit
        wanted = min(64, max(8, 1 << (-(-examples // 500) - 1).bit_length()))
        return -(-wanted // unit) * unit
