"""Where the numbers are worked out: device, precision, memory, and the other processes of the job."""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from app import machine
from app.recipe import Recipe
from app.resolution import TOKENS_PER_MICRO_STEP
from worker.training.failure import Failure

Precision = Literal["fp32", "bf16", "fp16"]
# How long a process waits for another: one may encode a large file or write a large checkpoint. What hangs is
# found out by max_step_time and by the supervisor.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Device:
    """One process's share of the job. `rank` 0 speaks, saves and samples."""

    place: torch.device
    precision: Precision
    refused: str | None  # why the precision asked for could not be had
    rank: int = 0
    world: int = 1
    sharded: bool = False  # each process holds a part of every weight, so all must compute in step

    @property
    def name(self) -> str:
        """For people: the GPU's product name, or cpu with its threads."""
        if self.place.type == "cuda":
            return torch.cuda.get_device_name(self.place)
        return f"cpu ({torch.get_num_threads()} threads)"

    @property
    def tokens_per_micro_step(self) -> int:
        return TOKENS_PER_MICRO_STEP["cuda" if self.place.type == "cuda" else "cpu"]

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision for the model's body; does nothing in fp32."""
        enabled, cache = self.precision != "fp32", not self.sharded  # copies of all weights would not fit
        return torch.autocast(self.place.type, self.dtype, enabled=enabled, cache_enabled=cache)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """fp32 products in full, for comparing: TF32 alone moves states by more than a leak's threshold."""
        was = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = was

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small fp16 gradients from vanishing; does nothing in bf16 and fp32."""
        return torch.amp.GradScaler(self.place.type, enabled=self.precision == "fp16")

    def rounds(self, count: int, size: int) -> int:
        """In how many batches of at most `size` this process computes its share of `count` examples.

        Where weights are in parts all take as many, some perhaps of nothing, for each batch gathers them.
        """
        share = -(-count // self.world) if self.sharded else len(range(self.rank, count, self.world))
        return -(-share // size)

    def memory(self) -> int:
        """Peak bytes so far: allocated on the GPU, or resident on a CPU."""
        if self.place.type == "cuda":
            return torch.cuda.max_memory_allocated(self.place)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def capacity(self) -> int:
        """Bytes of memory of the device, or of the machine on a CPU."""
        if self.place.type == "cuda":
            return int(torch.cuda.get_device_properties(self.place).total_memory)
        return machine.memory_bytes()

    def seed(self, *numbers: int) -> None:
        """Seeds what dropout draws from. Keyed by step and rank, so no generator's state needs saving."""
        torch.manual_seed(_mix(*numbers, self.rank))

    def free(self) -> None:
        """Gives cached memory back after running out of it."""
        if self.place.type == "cuda":
            torch.cuda.empty_cache()

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.world == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.place)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def agree(self, value: float) -> float:
        """The mean over all processes, so that all of them decide alike."""
        return self.total([value])[0] / self.world

    def add_up(self, gradients: Sequence[torch.Tensor]) -> None:
        """Sums gradients over all processes in place, in buckets of 64 MB.

        Once a step and not once a micro-step, which is what a wrapper around the model would have to be told.
        """
        if self.world == 1 or self.sharded:  # then FSDP2 has summed them
            return
        bucket: list[torch.Tensor] = []
        for last, gradient in [*((False, g) for g in gradients), (True, None)]:
            if gradient is not None:
                bucket.append(gradient)
            if bucket and (last or sum(g.numel() for g in bucket) > 16_000_000):
                flat = torch.cat([g.reshape(-1) for g in bucket])
                dist.all_reduce(flat)
                for g, summed in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                    g.copy_(summed.view_as(g))
                bucket = []

    def barrier(self, tick: Callable[[], None]) -> None:
        """Waits for all processes, however long one of them works; `tick` is called meanwhile."""
        if self.world == 1:
            return
        work = dist.barrier(async_op=True)
        while work is not None and not work.is_completed():
            tick()
            time.sleep(0.02)
        if work is not None:
            work.wait()


def choose(recipe: Recipe) -> Device:
    """The best device here, in the precision asked for; joins its siblings when torchrun started us."""
    cuda = torch.cuda.is_available()
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    local = dist.get_node_local_rank(0) if world > 1 else 0
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        if local >= torch.cuda.device_count():
            message = f"{world} devices asked for, {torch.cuda.device_count()} are here; ask for fewer."
            raise Failure("devices_unavailable", message, param="num_devices")
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = recipe.tf32
        torch.backends.cudnn.allow_tf32 = recipe.tf32
    precision, refused = _precision(recipe.mixed_precision_training, cuda)
    return Device(device, precision, refused, rank, world)


def _precision(asked: str, cuda: bool) -> tuple[Precision, str | None]:
    if asked == "no":
        return "fp32", None
    if asked in ("fp16", "Native AMP"):
        return ("fp16", None) if cuda else ("fp32", f"{asked} needs a CUDA device; training in fp32")
    fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_has_bf16()
    if asked == "bf16":
        return ("bf16", None) if fast_bf16 or not cuda else ("fp32", "this GPU has no bf16; training in fp32")
    if fast_bf16:
        return "bf16", None
    return ("fp16" if cuda else "fp32"), None


def _cpu_has_bf16() -> bool:
    """AVX2 alone emulates bf16, slower than fp32."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def _mix(*numbers: int) -> int:
    """A 63-bit seed from small numbers: neighbours must not give neighbouring streams (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
