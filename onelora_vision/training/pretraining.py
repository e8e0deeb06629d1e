"""The loop that trains the small embedded bases from scratch on a CPU."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.files import atomic_file, torch_save


def fit(
    model: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    ema_decay: float = 0.0,
    checkpoint: Path | None = None,
) -> nn.Module:
    """Minimise ``loss_at(step)`` with AdamW.

    The learning rate warms up, stays constant, then falls linearly to zero over the last 40 % of the steps.

    Args:
        checkpoint: file for the state, written every 1,000 steps; if it exists, training resumes from it.

    Returns the exponential moving average of the model, or the model itself if ``ema_decay`` is 0.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    average = copy.deepcopy(model) if ema_decay else model
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first, shown = 0, None
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state.pop("step")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    bar = progress_bar(steps, unit="step", initial=first)
    for step in range(first, steps):
        rate = learning_rate * min(1.0, (step + 1) / 200, (steps - step) / (0.4 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        # With so few tokens, the flash kernel's backward pass would take longer than everything else.
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()),
            sdpa_kernel(SDPBackend.MATH),
        ):
            loss = loss_at(step)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if ema_decay:
            # Average over a short window at first, or the random start would persist for a long time.
            decay = min(ema_decay, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        shown = loss.item() if shown is None else 0.98 * shown + 0.02 * loss.item()
        bar.set_postfix(loss=f"{shown:.4f}", lr=f"{rate:.1e}", refresh=False)
        bar.update()
        if checkpoint and (step + 1) % 1000 == 0:
            with atomic_file(checkpoint) as temporary:
                torch_save({"step": step + 1, **{k: part.state_dict() for k, part in parts.items()}}, temporary)
    bar.close()
    return average
