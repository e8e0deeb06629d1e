"""Subjects of the benchmarks: models of real sizes with random weights, methods on them, and their steps."""

import random
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from onelora_vision.backbones.base import Adaptation, block_list, shared_copy
from onelora_vision.backbones.catalogue import describe
from onelora_vision.budget.memory import PRECISIONS, training_loss
from onelora_vision.methods.apply import apply_method
from onelora_vision.methods.names import METHODS
from onelora_vision.sweep.arms import Arm

FROZEN = "frozen"
"""The reference: nothing in the blocks is trained, but the gradient flows through all of them."""


@dataclass(frozen=True)
class Subject:
    """A base model in memory, the modules that methods adapt, and a function for the inputs of a batch size."""

    name: str
    model: nn.Module
    adaptation: Adaptation
    inputs: Callable[[int], dict[str, torch.Tensor]]
    precision: str


def make_subject(
    name: str, precision: str = "fp32", *, blocks: int | None = None, side: int | None = None, num_classes: int = 100
) -> Subject:
    """Build a backbone of the catalogue with random weights, on the GPU if there is one.

    Args:
        blocks: keep only this many transformer blocks (not for Depth Anything, whose head reads four of them).
        side: side of the images in pixels, for models that take any size.
    """
    base = describe(name, num_classes)
    adaptation = base.adaptation()
    if blocks is not None:
        adaptation = _shorten(base.model, adaptation, blocks)
    inputs = base.example
    if side is not None:
        inputs = _resized(inputs, side)
    model = materialize(base.model, default_device(), PRECISIONS[precision][0])
    return Subject(name, model, adaptation, inputs, precision)


def _shorten(model: nn.Module, adaptation: Adaptation, blocks: int) -> Adaptation:
    """Keep the first ``blocks`` of the model's blocks, and the adapted modules in them."""
    name = block_list(model)
    model.set_submodule(name, model.get_submodule(name)[:blocks])
    kept = {module for module, _ in model.named_modules()}
    return Adaptation(*([n for n in names if n in kept] for names in vars(adaptation).values()))


def _resized(inputs: Callable, side: int) -> Callable:
    def make(batch: int) -> dict[str, torch.Tensor]:
        return {name: value.new_zeros(batch, value.shape[1], side, side) for name, value in inputs(1).items()}

    return make


def materialize(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Fill a model on the meta device with small random matrices, neutral norms and zero biases."""
    model = nn.Module.to(model, dtype).to_empty(device=device)  # diffusers' own `to` would give pointless warnings
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim > 1 and tensor.is_floating_point():
                tensor.normal_(0, 0.02)
            else:
                tensor.fill_(1 if tensor.is_floating_point() and "norm" in name and name.endswith("weight") else 0)
    return model


def adapted(subject: Subject, method: str) -> nn.Module:
    """A model with a method, in training mode; all such models of a subject share the frozen base's memory.

    ``method`` may have options of `apply_method`, like the arms of a sweep: ``onelora:compression=subspace``.
    """
    base = shared_copy(subject.model)
    if method == FROZEN:
        return _frozen(base, subject.adaptation)
    arm = Arm.parse(method)
    options = {name: int(value) if value.isdigit() else value for name, value in arm.flags}
    return apply_method(base, arm.method, subject.adaptation, **options).train()


def _frozen(model: nn.Module, adaptation: Adaptation) -> nn.Module:
    """The head or label table is trained, as in every method; the first adapted layer's output requires a gradient."""
    first = model.get_submodule(adaptation.target_modules[0])
    model = apply_method(model, "head", adaptation) if adaptation.whole_modules else model.requires_grad_(False)
    first.register_forward_hook(_ask_for_gradient)
    return model.train()


def _ask_for_gradient(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output.detach().requires_grad_()


def random_inputs(subject: Subject, batch: int) -> dict[str, torch.Tensor]:
    """Inputs of a batch, random if they are images or latents, in the weights' precision."""
    dtype, generator = PRECISIONS[subject.precision][0], torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(value.shape, generator=generator).to(default_device(), dtype)
            if value.is_floating_point()
            else value.to(default_device())
        )
        for name, value in subject.inputs(batch).items()
    }


def training_step(model: nn.Module, arguments: dict[str, torch.Tensor], precision: str) -> Callable[[], None]:
    """One step: forward, backward, AdamW on the trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        training_loss(model, arguments, PRECISIONS[precision][1]).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def interleaved(
    actions: dict[str, Callable[[], object]],
    seconds: float,
    warmup: int = 1,
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each action, run one after another in rounds for about ``seconds`` (at least ``least`` rounds).

    With rounds, a temporary slowdown of the machine affects all actions, and ratios within a round remain valid. Each
    round has a different order, so no action always finds the caches and free memory left by the same other one.
    ``clock``: `time.process_time` counts this process's CPU seconds, for a machine with other work.
    """
    for _ in range(warmup):
        for action in actions.values():
            action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    started = time.perf_counter()
    rounds, order = 0, random.Random(0)
    while rounds < least or time.perf_counter() - started < seconds:
        for name, action in order.sample(list(actions.items()), len(actions)):
            synchronize()
            start = clock()
            action()
            synchronize()
            times[name].append(clock() - start)
        rounds += 1
    return times


def ratios(times: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of each action's time relative to the reference's in the same round."""
    return {name: spread([a / b for a, b in zip(row, times[reference])]) for name, row in times.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(row: dict[str, float], digits: int = 3) -> str:
    """A spread for a table: ``1.020 (1.011-1.034)``."""
    return f"{row['median']:.{digits}f} ({row['min']:.{digits}f}–{row['max']:.{digits}f})"


def saved_bytes(step_loss: Callable[[], torch.Tensor], owned: Sequence[torch.Tensor]) -> int:
    """Bytes of storages that autograd saves for the backward pass, not counting those of ``owned`` tensors."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Kept:
        packed = _Kept(tensor.detach())  # an operation's output would hold the operation, and thus itself
        kept.add(packed)
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        loss = step_loss()
    # Tensors of parts of the graph that have been dropped, such as DoRA's detached norm, are no longer in the set.
    storages = [packed.tensor.untyped_storage() for packed in kept]
    del loss
    known = {tensor.untyped_storage().data_ptr() for tensor in owned}
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in known}.values())


class _Kept:
    """A tensor saved by autograd."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def all_methods(text: str) -> list[str]:
    """The methods of a flag: comma-separated names, or ``all``."""
    return list(METHODS) if text == "all" else text.split(",")
