"""Memory of a training step, and the largest batch that fits, without weights and without the device.

The step itself (forward and backward pass of the adapted model, on random inputs of the backbone's size) runs on fake
tensors, which have shapes but no values. Every storage is counted when it is allocated and freed, so the peak is the
peak of allocations: tensors saved by autograd, temporary tensors of operations, and gradients as they arrive. AdamW's
moments are added. Not counted: workspaces inside kernels, unused memory held by an allocator, a GPU's context, and an
autoencoder that encodes images during training.
"""

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.backbones.catalogue import describe
from onelora_vision.budget.parameters import ADAM_BYTES_PER_VALUE
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method, trainable_parameters
from onelora_vision.methods.names import find_method

_GROWTH = 4  # factor of the next batch size to try if memory does not grow with it
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
    "pure-bf16": (torch.bfloat16, torch.bfloat16),
}
"""Dtypes of the frozen weights and of autocast: the scripts' --mixed_precision keeps the weights in fp32."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a training step, by purpose.

    Attributes:
        weights: parameters and buffers of the model with its adapter.
        activations: tensors saved for the backward pass, inputs, and temporary tensors of operations.
        gradients: those of trained parameters that exist at the peak. optimizer: AdamW's two moments.
        saved: memory in use between forward and backward pass, in addition to weights and optimizer.
    """

    weights: int
    activations: int
    gradients: int
    optimizer: int
    saved: int

    @property
    def peak(self) -> int:
        return self.weights + self.activations + self.gradients + self.optimizer


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that were allocated inside the block and are still alive: ``now`` and ``peak``."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.now = self.peak = self.gradients = self.gradients_at_peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._watches: dict[int, weakref.ref] = {}  # of storages; weakref.finalize would register for exit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # most calls in a step ask a fake tensor for its device
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._count(result)
        elif result is not None:
            tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._watches[key] = weakref.ref(storage, lambda watch: self._forget(key))
        self.now += self._sizes[key]
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._watches[key]

    def count_gradient(self, parameter: nn.Parameter) -> None:
        """Hook to run after the accumulation of a parameter's gradient."""
        self.gradients += parameter.grad.nbytes


def plan(
    backbone: str,
    method: str = "onelora",
    *,
    batch: int = 32,
    precision: str = "bf16",
    memory: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    fuse_qkv: bool = False,
    rank: int | None = None,
    compression: str = "sum",
    compression_rank: int | None = None,
    max_length: int | None = None,
    quantize: str = "none",
    watch: Callable[[str], None] = lambda step: None,
) -> dict:
    """Memory of a training step, and the largest batch within ``memory`` bytes, without and with checkpointing.

    For several sizes of ``memory``, ``largest_batch`` is a list in the same order. ``rank``, ``compression`` and
    ``compression_rank`` are for methods that have them (see `methods.apply.apply_method`).

    Returns ``{"backbone", "method", "precision", "batch", "memory", "trainable_parameters", "plain": {"weights",
    "activations", "gradients", "optimizer", "saved", "peak", "largest_batch"}, "gradient_checkpointing": the same}``;
    ``largest_batch`` is None without ``memory``, and 0 if not even one sample fits. ``watch`` is called with a
    description before each measured training step: a few for each of the two, more with ``memory``.

    Raises:
        InputError: unknown backbone, method or precision; or ``max_length``, the number of tokens in a language model's
            sample, for another backbone.
    """
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: choose {', '.join(PRECISIONS)}")
    if batch < 1:
        raise InputError(f"--batch is {batch}, but must be at least 1")
    row, found = find_method(method), {}
    options = {"rank": rank} if row.rank else {}
    options |= {"compression": compression, "compression_rank": compression_rank} if row.takes_compression else {}
    options["quantize"] = quantize
    for name, checkpointing in (("plain", False), ("gradient_checkpointing", True)):
        model, inputs = _build(backbone, method, options, num_classes, fuse_qkv, max_length, checkpointing)

        @functools.cache
        def measure(size: int, model=model, inputs=inputs, name=name) -> StepMemory:
            watch(f"{method}, {name.replace('_', ' ')}, batch {size}")
            return fake_step(model, inputs, size, precision)

        measured = measure(batch)
        kept = 0 if checkpointing or precision not in ("bf16", "fp16") else measured.weights // 2
        if memory is None or isinstance(memory, int):
            largest = None if memory is None else _largest_batch(measure, memory, batch, kept)
        else:
            largest = [_largest_batch(measure, size, batch, kept) for size in memory]
        found[name] = {**vars(measured), "peak": measured.peak, "largest_batch": largest}
    fixed = {"backbone": backbone, "method": row.name, "precision": precision, "batch": batch}
    return {**fixed, "memory": memory, "trainable_parameters": trainable_parameters(model), **found}


def _build(
    backbone: str,
    method: str,
    options: dict,
    num_classes: int | None,
    fuse_qkv: bool,
    max_length: int | None,
    checkpointing: bool,
) -> tuple[PeftModel, Callable]:
    base = describe(backbone, num_classes, fuse_qkv)
    if max_length is not None:
        base.set_length(max_length)
    if checkpointing:
        enable_gradient_checkpointing(base.model)
    return apply_method(base.model, method, base.adaptation(), **options), base.example


def fake_step(model: PeftModel, inputs: Callable, batch: int, precision: str = "fp32") -> StepMemory:
    """Memory of one training step of ``batch`` samples; the model may be on the meta device and gets no gradients."""
    weights, autocast = PRECISIONS[precision]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True), _on_fake_cpu(model, weights):
        tensors = [*model.parameters(), *model.buffers()]
        live = LiveBytes(tensors)
        hooks = [
            p.register_post_accumulate_grad_hook(live.count_gradient) for p in model.parameters() if p.requires_grad
        ]
        with live:
            arguments = inputs(batch)  # alive until the end of the step, like a batch
            loss = training_loss(model, arguments, autocast)
            saved = live.now
            loss.backward()
        for hook in hooks:
            hook.remove()
        size = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
    return StepMemory(
        weights=size,
        activations=live.peak - live.gradients_at_peak,
        gradients=live.gradients_at_peak,
        optimizer=ADAM_BYTES_PER_VALUE * sum(parameter.numel() for parameter in trained),
        saved=saved,
    )


def training_loss(model: nn.Module, arguments: dict[str, Tensor], autocast: torch.dtype | None) -> Tensor:
    """A scalar from the model's output, computed as in the scripts: the network under autocast, the loss in fp32."""
    device = next(iter(arguments.values())).device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        output = model(**arguments)
    if not isinstance(output, Tensor):
        output = output[0]
    return output.float().square().mean()


@contextlib.contextmanager
def _on_fake_cpu(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Temporarily replace parameters and buffers by fake tensors on the CPU, with frozen ones in ``dtype``."""
    before = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    before[id(store), name] = (store, tensor)
    fakes: dict[int, Tensor] = {}  # one for each tensor, even if modules share it
    for (_, name), (store, tensor) in before.items():
        if id(tensor) not in fakes:
            casts = tensor.is_floating_point() and not tensor.requires_grad
            fake = torch.empty(tensor.shape, dtype=dtype if casts else tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
        store[name] = fakes[id(tensor)]
    try:
        yield
    finally:
        for (_, name), (store, tensor) in before.items():
            store[name] = tensor


def _largest_batch(measure: Callable[[int], StepMemory], memory: int, batch: int, kept: int = 0) -> int:
    """The largest batch whose peak is within ``memory``.

    A peak is a maximum over sums of tensors, each linear in the batch, so it is convex: beyond two batches that fit, it
    is never below the line through them. Such a line gives the next batch to try, and proves that none beyond it fits.
    Until two batches are known, a step without samples replaces the other one; once one is known that does not fit, the
    line to it is used.

    Args:
        measure: a step of that many samples. memory: bytes. batch: the first to measure.
        kept: approximate memory of a step without samples, other than weights and optimizer, such as autocast's copies
            of the weights.
    """
    first = measure(batch)
    empty = first.weights + first.optimizer
    peaks = {0: empty + kept if empty + kept < min(first.peak, memory) else empty, batch: first.peak}
    while True:
        fitting = sorted(size for size, peak in peaks.items() if peak <= memory)
        if not fitting:
            return 0
        fits = fitting[-1]
        above = min((size for size, peak in peaks.items() if peak > memory), default=None)
        if above == fits + 1:
            return fits
        below = fitting[-2] if len(fitting) > 1 else None
        guess = fits + _room(peaks, memory, below, fits) if below is not None else None
        if guess == fits and below > 0:
            return fits
        if above is not None and (guess is None or guess >= above):
            guess = fits + _room(peaks, memory, fits, above)
        if guess is None:
            guess = _GROWTH * max(fits, 1)
        guess = max(guess, fits + 1) if above is None else min(max(guess, fits + 1), above - 1)
        peaks[guess] = measure(guess).peak


def _room(peaks: dict[int, int], memory: int, first: int, second: int) -> int:
    """How many more samples than the larger fitting one of two batches fit in ``memory``, by the line through them."""
    slope = (peaks[second] - peaks[first]) / (second - first)
    fits = second if peaks[second] <= memory else first
    return math.floor((memory - peaks[fits]) / slope) if slope > 0 else (_GROWTH - 1) * max(fits, 1)
