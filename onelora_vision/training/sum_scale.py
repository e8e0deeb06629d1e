"""One learning rate for layers whose sums differ in size: each b's rate is divided by the size of its layer's sums.

b multiplies Σx, which grows with the layer's width and with what its inputs have in common, so equal steps of b move
the outputs of some layers much further than those of others. Dividing the rate by the rms of the sums equalises this,
as if b were reparametrised by that constant under AdamW. b itself is trained and saved as usual.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from onelora_vision.errors import InputError
from onelora_vision.tasks.base import Task
from onelora_vision.tuners.onelora.compression import compress
from onelora_vision.tuners.onelora.layer import OneLoraLayer

_NOTHING = 0.01
"""Sums smaller than this fraction of |x| are rounding errors, as behind a LayerNorm that removes the mean, and count as
|x|: AdamW takes full-size steps even on noise, and b would only grow."""


@torch.no_grad()
def rates_by_sums(task: Task, batch: dict, accelerator: Accelerator) -> dict[str, float]:
    """Learning rate factor of each trained b, by parameter name: 1 / rms of its layer's sums in ``batch``.

    Padding, where ``batch["attention_mask"]`` (B, T) is 0, does not count for layer inputs of matching shape, (B, T,
    k).

    Each process passes its own batch, and all get the same factors.

    Raises:
        InputError: no b is trained.
    """
    layers = {
        f"{path}.onelora_b.{adapter}": (module, adapter)
        for path, module in task.model.named_modules()
        if isinstance(module, OneLoraLayer)
        for adapter, b in module.onelora_b.items()
        if b.requires_grad
    }
    if not layers:
        raise InputError("--sum_scale rms is for methods with sum: nothing in this model multiplies a sum")
    batch = send_to_device(batch, accelerator.device, skip_keys="seed")
    mask = batch.get("attention_mask")
    totals = torch.zeros(len(layers), 3, device=accelerator.device, dtype=torch.float64)
    was_training = task.model.training
    task.model.eval()
    with ExitStack() as hooks, accelerator.autocast():
        for row, (layer, adapter) in zip(totals, layers.values()):
            hooks.callback(layer.register_forward_pre_hook(_adding_to(row, adapter, mask)).remove)
        task.forward(batch)
    task.model.train(was_training)
    sums, inputs, tokens = accelerator.reduce(totals, "sum").T
    sizes, lengths = (sums / tokens).sqrt(), (inputs / tokens).sqrt()
    sizes = torch.where(sizes < _NOTHING * lengths, lengths, sizes)
    # A layer that saw no tokens, or only zeros, keeps the plain rate.
    return dict(zip(layers, torch.where(sizes > 0, 1 / sizes, 1.0).tolist()))


def _adding_to(row: Tensor, adapter: str, mask: Tensor | None) -> Callable[[nn.Module, tuple], None]:
    """A hook that adds up a layer's squared sums, squared inputs and tokens, for inputs (..., k), in ``row``.

    If there are several sums per token, their squares are averaged.
    """

    def add(layer: OneLoraLayer, args: tuple) -> None:
        x = args[0].float()
        if mask is not None and x.shape[:-1] == mask.shape:
            x = x[mask.bool()]
        s = compress(x, layer.vectors(adapter).v)
        row.add_(torch.stack([s.square().mean(-1).sum(), x.square().sum(), s.new_tensor(s[..., 0].numel())]))

    return add
