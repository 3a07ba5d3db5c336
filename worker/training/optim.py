"""Optimizer and schedule, from torch and transformers, configured by the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from app.recipe import Recipe
from app.resolution import warmup
from worker.training.schedule import get_scheduler

if TYPE_CHECKING:
    from worker.training.sharding import Shards


class Optimization:
    """Weights, their optimizer, schedule and gradient scaler: everything that an update touches."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        recipe: Recipe,
        peak: float,
        total_steps: int,
        scaler: Any,
        shards: Shards | None = None,
    ) -> None:
        """`shards`: whose part `parameters` are, where other processes hold the rest."""
        self.parameters, self.scaler, self.shards = parameters, scaler, shards
        self._optimizer = _optimizer(parameters, recipe, peak)
        self._max_norm = recipe.max_grad_norm or math.inf
        specific = (
            {"min_lr_rate": recipe.min_lr_ratio} if recipe.lr_scheduler_type == "cosine_with_min_lr" else {}
        )
        self._schedule: LambdaLR = get_scheduler(
            recipe.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=warmup(recipe, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=specific,
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the coming update."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def scale(self) -> float:
        """What losses are multiplied by before the backward pass."""
        # Not get_scale(): the scaler comes to life at its first scale(), and unscale_ insists on that.
        return float(self.scaler.scale(torch.ones((), device=self.parameters[0].device)))

    def clip(self) -> float:
        """Clips the gradients to the recipe's norm; returns the norm before, not finite after an overflow."""
        if self.shards is not None and self.scaler.is_enabled():
            self.shards.share_overflow()
        self.scaler.unscale_(self._optimizer)
        if self.shards is None:
            return float(nn.utils.clip_grad_norm_(self.parameters, self._max_norm, foreach=True))
        norm = self.shards.norm()
        nn.utils.clip_grads_with_norm_(self.parameters, self._max_norm, norm, foreach=True)
        return float(norm)

    def update(self) -> bool:
        """One update; False when the scaler skipped it, in which case the schedule waits too."""
        before = self.scale
        self.scaler.step(self._optimizer)
        self.scaler.update()
        skipped = self.scale < before
        if not skipped:
            self._schedule.step()
        return not skipped

    def clear(self) -> None:
        """Forgets the gradients but keeps their memory."""
        if self.shards is not None:
            self.shards.clear()
        else:
            self._optimizer.zero_grad(set_to_none=False)

    def gradients(self) -> list[Tensor]:
        """Those of all parameters; zeros where a parameter took no part."""
        if self.shards is not None:
            return self.shards.gradients()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.parameters if p.grad is not None]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what JSON can say. Of parts held here, distributed tensors."""
        tensors = {
            f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
            for index, slots in self._optimizer.state_dict()["state"].items()
            for name, value in slots.items()
            if value is not None
        }
        if self.shards is not None:
            order = self._order()
            tensors = {key: self.shards.join(order[_index(key)], value) for key, value in tensors.items()}
        return tensors, {"schedule_step": self._schedule.last_epoch, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        slots: dict[int, dict[str, Tensor]] = {}
        order = self._order()
        for key, tensor in tensors.items():
            index, name = _index(key), key.split(".", 1)[1]
            slots.setdefault(index, {})[name] = (
                self.shards.cut(order[index], tensor) if self.shards else tensor
            )
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self._schedule.last_epoch = facts["schedule_step"]
        for group, base, shape in zip(
            self._optimizer.param_groups, self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * shape(facts["schedule_step"])
        self.scaler.load_state_dict(facts["scaler"]) if facts["scaler"] else None

    def _order(self) -> list[nn.Parameter]:
        """The parameters as the optimizer counts them."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]


def _index(key: str) -> int:
    return int(key.split(".", 1)[0])


def _optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe, peak: float) -> Optimizer:
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p in parameters:
        (matrices if p.ndim >= 2 else vectors).append(p)
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=peak)
    if recipe.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=peak)
    betas = (recipe.adam_beta1, recipe.adam_beta2)
    return torch.optim.AdamW(groups, lr=peak, betas=betas, eps=recipe.adam_epsilon, fused=True)
