"""A causal language model from a Hugging Face folder, taken apart into a body and a head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation

from app import model_folder
from app.recipe import Recipe
from worker.training import attention, dropout, lookup, objective
from worker.training.batches import Batch, Layout, lay
from worker.training.data import Unit
from worker.training.device import Device
from worker.training.failure import Failure
from worker.training.head import GatheredHead, Head, WholeHead
from worker.training.preference import likelihoods

DROPOUTS = (
    "dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "embd_pdrop", "attn_pdrop",
    "resid_pdrop", "embed_dropout", "resid_dropout", "ffn_dropout",
)  # fmt: skip
# fp32 against itself in another layout: 1.8e-7 on GPT-2 and Llama. A leak shows as 1e-2 and more.
SAME = 1e-4


class Model:
    """The network, where it runs and how its output layer is computed."""

    def __init__(self, network: PreTrainedModel, device: Device, recipe: Recipe) -> None:
        self.network, self.device = network, device
        self.positions = longest(network.config)
        self.end = 0
        self.layout: Layout = "apart"
        self._attention = network.config._attn_implementation
        self.objective = objective.choose(recipe)
        self._body: Any = network.states if device.sharded else network.base_model
        self._output: Any = network.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._head: Head | WholeHead = WholeHead(self._output)

    def prepare(self, recipe: Recipe) -> list[str]:
        """Picks the fast paths that give this model's own numbers; returns those that do not."""
        if recipe.gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
        unusual = []
        if type(self._output) is nn.Linear and getattr(self._output, "bias", None) is None:
            if self.device.sharded:
                self._head = GatheredHead(self._output, self.device.dtype)
            else:
                self._head = Head(cast(nn.Parameter, self._output.weight), self.device.dtype)
        if not self._head_agrees():
            raise Failure(
                "invalid_model", "This model's output layer is not a plain one; it cannot be trained here."
            )
        if recipe.packing and not any(self._lays_exactly(layout) for layout in self._layouts(recipe)):
            self._choose("apart")
            unusual.append("packing")
        if recipe.torch_compile and self.device.sharded:
            unusual.append("torch_compile")
        elif recipe.torch_compile:
            self._body = torch.compile(self._body, dynamic=True)
        return unusual

    @property
    def packing(self) -> bool:
        """Whether examples share a row."""
        return self.layout != "apart"

    def _choose(self, layout: Layout) -> None:
        self.layout = layout
        # Only a line comes with its documents: anything else would get no mask from our attention.
        self.network.set_attn_implementation(attention.NAME if layout == "line" else self._attention)

    def _layouts(self, recipe: Recipe) -> list[Layout]:
        """Packed layouts to try, the fastest first."""
        slow = (
            self.device.place.type == "cuda" or recipe.torch_compile
        )  # a kernel, or a program, for each text
        return ["rows"] if slow or not attention.suits(self.network) else ["line", "rows"]

    def lay(self, units: Sequence[Unit], max_length: int) -> Batch:
        """The units as one batch, on the device."""
        examples = [example for unit in units for example in unit.examples]
        reference = [value for unit in units for value in unit.reference]
        return lay(examples, self.layout, max_length, self.end, reference).to(self.device.place)

    def learn(self, batch: Batch, scale: float) -> Tensor:
        """Forward and backward of scale x the summed loss; returns the objective's unscaled sums."""
        return self.objective.learn(self._head, self._hidden(batch), batch, scale)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """The objective's sums of a batch, in evaluation mode."""
        with self.resting():
            return self.objective.score(self._head, self._hidden(batch), batch)

    @torch.no_grad()
    def likelihoods(self, batch: Batch, examples: int) -> Tensor:
        """The log-likelihood of the targets of each example, fp64, in evaluation mode."""
        with self.resting():
            losses = self._head.losses(self._hidden(batch), batch.targets)
        return likelihoods(losses, batch.owners, examples)

    @torch.no_grad()
    def write(self, prompt: list[int], most: int) -> list[int]:
        """Greedy continuation, with the end token if it came. Of a long prompt the end is read."""
        prompt = prompt[-max(self.positions - most, self.positions // 2) :] or [self.end]
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=min(most, self.positions - len(prompt)),
            do_sample=False,
            use_cache=True,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        ids = torch.tensor([prompt], device=self.device.place)
        with self.resting(), self.device.autocast():
            found: Any = self.network.generate(  # type: ignore[operator]
                ids,
                generation_config=settings,
                attention_mask=torch.ones_like(ids),
                synced_gpus=self.device.sharded,
            )
        return [int(token) for token in found[0, len(prompt) :]]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Without dropout, and back as it was."""
        was = self.network.training
        self.network.train(False)
        try:
            yield
        finally:
            self.network.train(was)

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def size(self) -> int:
        """All parameters, shared ones once."""
        return sum(p.numel() for p in self.network.parameters())

    def logits(self, ids: Tensor) -> Tensor:
        """The network's own logits, rows x width x vocabulary, for comparing."""
        with torch.no_grad(), self.resting(), self.device.exact():
            found: Tensor = self.network(input_ids=ids, use_cache=False).logits.float()
        return found

    def _hidden(self, batch: Batch) -> Tensor:
        with self.device.autocast():
            return self._states(batch)

    def _states(self, batch: Batch) -> Tensor:
        """The body's states at the places that predict something."""
        # use_cache=False is what makes restarting positions isolate packed examples; with a cache they leak.
        more = {} if batch.documents is None else {"documents": batch.documents}
        out = self._body(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **more)
        states: Tensor = out.last_hidden_state
        return states.reshape(-1, states.shape[-1]).index_select(0, batch.sources)

    def _probe(self, layout: Layout, lengths: tuple[int, ...]) -> Batch:
        random = np.random.default_rng(0)
        vocabulary = self.network.config.get_text_config().vocab_size
        examples = [
            (random.integers(0, vocabulary, n).astype(np.uint32), np.arange(n) > 0)
            for n in (min(n, self.positions) for n in lengths)
        ]
        return lay(examples, layout, min(self.positions, sum(lengths)), 0).to(self.device.place)

    @torch.no_grad()
    def _head_agrees(self) -> bool:
        batch = self._probe("apart", lengths=(9,))
        own = self.logits(batch.ids).reshape(-1, self.network.config.get_text_config().vocab_size)
        loss = nn.functional.cross_entropy(own[batch.sources], batch.targets, reduction="sum")
        tolerance = SAME if self.device.precision == "fp32" else 0.05
        with self.device.exact():
            difference = -float(self.likelihoods(batch, 1)) - float(loss)
        return abs(difference) <= tolerance * max(1.0, abs(float(loss)))

    @torch.no_grad()
    def _lays_exactly(self, layout: Layout) -> bool:
        """Packed examples must give what they give apart, whatever the architecture makes of positions."""
        lengths = (7, 6, 5)  # packing keeps this order
        with self.resting(), self.device.exact(), torch.autocast(self.device.place.type, enabled=False):
            self._choose("apart")
            apart = self._states(self._probe("apart", lengths))
            self._choose(layout)
            together = self._states(self._probe(layout, lengths))
        return float((together - apart).abs().max()) <= SAME * float(apart.abs().max())


def longest(config: PretrainedConfig) -> int:
    """Tokens the model can attend to."""
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(found or 1024)


def config_of(folder: Path) -> PretrainedConfig:
    """The folder's config, without its code."""
    found: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return found


def inspect(folder: Path) -> None:
    """Refuses a folder that is not what we run, before transformers sees it. Raises Failure."""
    try:
        model_folder.check(folder)
    except model_folder.UnusableModel as error:
        raise Failure("invalid_model", f"The base model cannot be used: {error}") from None


def _quicken(network: PreTrainedModel, device: Device) -> None:
    """Parts that compute the same, faster."""
    _fuse_activations(network)
    if device.place.type == "cpu":
        dropout.replace(network)
        lookup.replace(network)


def _fuse_activations(network: nn.Module) -> None:
    """GPT-2's GELU is written out in eight operations; torch has the same function as one."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def load(folder: Path, recipe: Recipe, device: Device, stay: bool = False) -> PreTrainedModel:
    """The network in fp32, ready to train, on the device; `stay`: still in the machine's memory.

    Raises Failure for a folder that cannot be used.
    """
    inspect(folder)
    try:
        config = config_of(folder)
        if recipe.dropout != "auto":
            for name in DROPOUTS:
                if isinstance(getattr(config, name, None), int | float):
                    setattr(config, name, recipe.dropout)
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise Failure("invalid_model", f"The base model cannot be loaded: {str(error)[:300]}") from None
    # Kernels may round otherwise on other alignments: memory of torch's own, not the file's mapping.
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    _quicken(network, device)
    network.train()
    return network if stay else network.to(device.place)  # type: ignore[arg-type]
