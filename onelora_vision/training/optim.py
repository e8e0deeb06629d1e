"""AdamW for the trained parameters, with a separate learning rate for the task's head, and their schedule."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.methods.apply import head_parameters
from onelora_vision.training.config import TrainingConfig


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by full name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def to_fp32(model: nn.Module) -> None:
    """Convert the trained parameters to fp32: at common learning rates, bf16 rounding loses most updates."""
    for parameter in trained_parameters(model).values():
        parameter.data = parameter.data.float()


class FactoredAdamW(torch.optim.AdamW):
    """AdamW with a learning rate factor for each parameter, in its group's list ``factors``.

    All parameters are in one group and are therefore updated in one fused step. The factors are part of the optimizer's
    state.
    """

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        before = [[p.clone() for p in group["params"]] if "factors" in group else [] for group in self.param_groups]
        result = super().step(closure)
        for group, old in zip(self.param_groups, before):
            if old:
                torch._foreach_sub_(group["params"], old)
                torch._foreach_mul_(group["params"], group["factors"])
                torch._foreach_add_(group["params"], old)
        return result


def build_optimizer(
    model: nn.Module, config: TrainingConfig, num_processes: int = 1, factors: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW with the groups "vectors" (what the method trains) and "head" (`methods.apply.head_parameters`).

    Weight decay applies to all of them equally. With ``scale_lr`` the learning rates are multiplied by the samples per
    optimizer step, as in diffusers. ``factors`` multiply the learning rates of individual vectors, by name.

    Raises:
        InputError: nothing in the model requires a gradient.
    """
    head = head_parameters(model)
    vectors = {name: parameter for name, parameter in trained_parameters(model).items() if name not in head}
    groups = {"vectors": list(vectors.values()), "head": list(head.values())}
    if not any(groups.values()):
        raise InputError(f"--method {config.method} trains nothing in this model: no parameter requires a gradient")
    factor = samples_per_step(config, num_processes) if config.scale_lr else 1
    rates = {"vectors": config.learning_rate, "head": config.head_learning_rate or config.learning_rate}
    rows = [{"name": name, "params": group, "lr": rates[name] * factor} for name, group in groups.items() if group]
    if factors:
        rows[0]["factors"] = [factors.get(name, 1.0) for name in vectors]
    return (FactoredAdamW if factors else torch.optim.AdamW)(
        rows,
        lr=config.learning_rate * factor,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """diffusers' schedule over ``num_steps`` optimizer steps; call its ``step`` once per optimizer step.

    Do not pass it to ``accelerator.prepare``, which would step it once per process.
    """
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=min(config.lr_warmup_steps, num_steps),  # a short trial run consists of warm-up only
        num_training_steps=num_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def samples_per_step(config: TrainingConfig, num_processes: int) -> int:
    """Number of samples in one optimizer step, over all processes."""
    return config.train_batch_size * config.gradient_accumulation_steps * num_processes


def total_steps(config: TrainingConfig, num_samples: int, num_processes: int = 1) -> int:
    """Optimizer steps of the run: ``max_train_steps``, or enough for ``num_train_epochs``."""
    if config.max_train_steps is not None:
        return config.max_train_steps
    return -(-config.num_train_epochs * num_samples // samples_per_step(config, num_processes))
