"""A model in parts: each device holds a share of every weight, gradient and optimizer slot, by torch's FSDP2.

A layer's weights are gathered from all devices just before it computes and let go right after; gradients are
summed over the devices and cut up again as soon as a layer's backward is done. Embeddings, output layer and
last norm are one such group, the root: gathered from the forward pass to the end of the backward pass, so
that the output layer (worker.training.head) finds a plain weight there and leaves a plain gradient.
"""

import warnings
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.training.device import Device

_NOTHING = torch.empty(0)
BODY = "states"  # under which name the network computes hidden states
# Nothing here changes hidden states in place, which is what it warns of.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


class Shards:
    """This process's parts of a network's parameters: plain tensors that share memory with FSDP2's, so that
    optimizer, clipping and scaler need not know. All processes must do the same in the same order.
    """

    def __init__(self, network: PreTrainedModel, device: Device) -> None:
        """Cuts the network up, layer by layer, and moves the parts to the device."""
        mesh = init_device_mesh(device.place.type, (device.world,))
        for layer in [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]:
            fully_shard(layer, mesh=mesh)
        # The body is called by itself, past the network's own forward.
        setattr(network, BODY, partial(network.base_model))
        fully_shard(network, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(network, BODY)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                # Sums, not means: each process scales by the tokens of all.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        network.to(device.place)  # type: ignore[arg-type]
        self._first = device.rank == 0
        self._whole = [cast(DTensor, p) for p in network.parameters() if p.requires_grad]
        self.parameters = [nn.Parameter(part(p)) for p in self._whole]

    def gradients(self) -> list[Tensor]:
        """Our parts of the gradients, summed over all processes."""
        for mine, whole in zip(self.parameters, self._whole, strict=True):
            mine.grad = torch.zeros_like(mine) if whole.grad is None else part(whole.grad)
        return [p.grad for p in self.parameters if p.grad is not None]

    def clear(self) -> None:
        """Forgets the gradients."""
        for p in (*self.parameters, *self._whole):
            p.grad = None

    def norm(self) -> Tensor:
        """The L2 norm of all gradients on all devices, the same on each."""
        square = nn.utils.get_total_norm(self.gradients(), foreach=True).square()
        dist.all_reduce(square)
        return square.sqrt()

    def share_overflow(self) -> None:
        """Where one process's part overflowed, all do: each has a GradScaler, which sees its own part alone.

        FSDP's ShardedGradScaler would ask the others, but its answer has a shape that fused AdamW refuses.
        """
        if not self.norm().isfinite():
            for gradient in self.gradients():
                gradient.fill_(torch.inf)

    def join(self, parameter: nn.Parameter, mine: Tensor) -> Tensor:
        """A slot of one of our parameters, of which this process has `mine`, as one distributed tensor."""
        whole = self._whole_of(parameter)
        if mine.shape != part(whole).shape:
            return mine  # a count of steps
        return DTensor.from_local(
            mine,
            whole.device_mesh,
            whole.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )

    def copy_to_host(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the host of the first process, one at a time; nothing elsewhere.

        A tensor under two names stays one.
        """
        copies: dict[int, Tensor] = {}
        found = {}
        for name, tensor in tensors.items():
            if id(tensor) not in copies:
                whole = tensor.detach()
                whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
                copies[id(tensor)] = whole.to("cpu", copy=True).contiguous() if self._first else _NOTHING
            found[name] = copies[id(tensor)]
        return found if self._first else {}

    def cut(self, parameter: nn.Parameter, slot: Tensor) -> Tensor:
        """Our part of a whole slot of one of our parameters."""
        whole = self._whole_of(parameter)
        if slot.shape != whole.shape:
            return slot
        mesh = whole.device_mesh
        parts = slot.chunk(mesh.size())  # of few rows fewer parts
        rank = mesh.get_local_rank()
        return parts[rank].clone() if rank < len(parts) else slot[:0].clone()

    def _whole_of(self, parameter: nn.Parameter) -> DTensor:
        return next(
            whole for mine, whole in zip(self.parameters, self._whole, strict=True) if mine is parameter
        )


def part(tensor: Tensor) -> Tensor:
    """What of a distributed tensor lies here, sharing its memory."""
    return cast(DTensor, tensor).to_local().detach()
