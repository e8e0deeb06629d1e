"""Guidance: combining predictions of a model at each step of sampling, or in training.

Classifier-free guidance (arXiv 2207.12598) combines two predictions of a model, for the class y and the null class ∅:

    ε = ε_θ(x, ∅) + s (ε_θ(x, y) - ε_θ(x, ∅))

Guidance from the base (Domain Guidance, arXiv 2504.01521) takes the second one from the frozen base, which has seen
more images than the few that the adapter was trained on:

    ε = ε_base(x, ∅) + s (ε_θ(x, y) - ε_base(x, ∅))

The base is the model without its adapter. Modules that the adapter trains whole, such as the label table, are those of
the base, and ∅ is the base's own null class. `distilled_target` moves this guidance into the training loss.
"""

import contextlib
from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError


class GuidedModel:
    """A model with guidance, which samplers call for predictions.

    With guidance from the base, both predictions need only one forward pass if all layers of the adapter support mixed
    batches, as in 1LoRA: b is 0 for the base's half. With other methods, the adapter is switched off for a second pass.
    This changes the model temporarily, so no other thread may use it meanwhile.

    Args:
        model: a `DiT`, or a PEFT model around one.
        settings: settings with the scale, channels and ``guidance_base``.
        base: the frozen base, fitted to the same classes, if it is available as a separate model; ``model`` is then
            only called. Not used without ``settings.guidance_base``.

    Raises:
        InputError: there is no null class for guidance, or the base cannot be separated (see `require_base`).
    """

    def __init__(self, model: nn.Module, settings: SamplingSettings, base: nn.Module | None = None):
        self.model, self.settings, self.base = model, settings, base
        self._predict_both = self._own
        if settings.guidance_scale != 1:
            require_null_class(model)
        if not settings.uses_base or base is model or _is_switched_off(model):  # the model is the base
            return
        if base is not None:
            require_null_class(base)
            self._predict_both = self._with_other
            return
        require_base(model)
        is_mixed = getattr(model.base_model, "takes_mixed_batches", False) and len(model.active_adapters) == 1
        self._predict_both = self._mixed if is_mixed else self._switching

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, guided: bool = True) -> Tensor:
        """Predict for latents (N, C, H, W) at the timestep ``t`` (scalar) with ``labels`` (N,): (N, C or 2C, H, W).

        Only the first ``guidance_channels`` of the C channels are guided. A learned variance is the one for the class.

        Args:
            guided: if False, return the prediction for the class without guidance.
        """
        if not guided or self.settings.guidance_scale == 1:
            return self.model(x, timestep=t.expand(len(x)), class_labels=labels).sample
        conditional, unconditional = self._predict_both(x, t.expand(len(x)), labels)
        channels, scale = self.settings.guidance_channels or x.shape[1], self.settings.guidance_scale
        offset = conditional[:, :channels] - unconditional[:, :channels]
        return torch.cat([unconditional[:, :channels] + scale * offset, conditional[:, channels:]], dim=1)

    def _own(self, x: Tensor, timesteps: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
        null = torch.full_like(labels, self.model.null_class)
        output = self.model(
            torch.cat([x, x]),
            timestep=torch.cat([timesteps, timesteps]),
            class_labels=torch.cat([labels, null]),
            **options,
        ).sample
        return output.chunk(2)

    def _mixed(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        names = [self.model.active_adapters[0]] * len(x) + ["__base__"] * len(x)  # PEFT's name for no adapter
        return self._own(x, timesteps, labels, adapter_names=names)

    def _switching(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        conditional = self.model(x, timestep=timesteps, class_labels=labels).sample
        return conditional, base_prediction(self.model, x, timesteps)

    def _with_other(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        null = torch.full_like(labels, self.base.null_class)
        both = (self.model, labels), (self.base, null)
        return tuple(model(x, timestep=timesteps, class_labels=y).sample for model, y in both)


@torch.no_grad()
def base_prediction(model: PeftModel, x: Tensor, timesteps: Tensor) -> Tensor:
    """Predict with the frozen base for latents (N, C, H, W) at ``timesteps`` (N,), with its null class."""
    null = torch.full(timesteps.shape, model.null_class, dtype=torch.long, device=x.device)
    with base_alone(model):
        return model(x, timestep=timesteps, class_labels=null).sample


@contextlib.contextmanager
def base_alone(model: PeftModel) -> Iterator[None]:
    """Context manager that disables the adapter.

    PEFT's ``disable_adapter`` also freezes the adapter and makes it trainable again afterwards. That takes several
    times as long, at each step. Here, only the flag that the layers read is changed.
    """
    before = [(layer, layer.disable_adapters) for layer in _switches(model)]
    try:
        for layer, _ in before:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_off in before:
            layer._disable_adapters = was_off


def _switches(model: nn.Module) -> list[nn.Module]:
    """The adapted layers, and the modules trained whole."""
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _is_switched_off(model: nn.Module) -> bool:
    layers = _switches(model)
    return bool(layers) and all(layer.disable_adapters for layer in layers)


def require_base(model: nn.Module) -> None:
    """Check that disabling the adapter of a model gives its base.

    Raises:
        InputError: there is no adapter, it is merged into the weights, its method has changed the base, or the model
            has no null class.
    """
    where = "guidance from the base needs the base without the adapter, but"
    if not isinstance(model, PeftModel):
        raise InputError(
            f"{where} this model has no adapter that can be switched off: attach one instead of merging it"
        )
    if any(isinstance(layer, BaseTunerLayer) and layer.merged for layer in _switches(model)):
        raise InputError(f"{where} the adapter is merged into its weights: call unmerge_adapter() first")
    if getattr(model, "initial_values", None):
        init = model.active_peft_config.init_lora_weights
        raise InputError(
            f"{where} init_lora_weights={init} takes its first values out of the base while it trains: sample the saved "
            "adapter, a plain LoRA, with guidance from the base instead"
        )
    bias = getattr(model.active_peft_config, "bias", "none")
    if bias != "none":
        raise InputError(f"{where} bias={bias} trains the base's own biases: use an adapter with bias none")
    require_null_class(model)


def require_null_class(model: nn.Module) -> None:
    """Check that a model has a null class.

    Raises:
        InputError: its label table has no row after those of the classes.
    """
    null, table = (getattr(model, name, None) for name in ("null_class", "label_table"))
    rows = getattr(table, "weight", None)  # None for a bank, whose adapters have their own tables
    if null is None or (rows is not None and len(rows) <= null):
        raise InputError(
            "guidance needs a null class, which this model's label table does not have: use guidance_scale 1"
        )


def distilled_target(
    noise: Tensor, conditional: Tensor, unconditional: Tensor, scale: float, channels: int | None, applies: Tensor
) -> Tensor:
    """Training target that distills guidance from the base into the prediction (DogFit, arXiv 2508.05685).

    For the guided samples and channels, the target is

        ε* = ε + (s - 1) sg(ε_θ(x_t, y) - ε_base(x_t, ∅))

    where sg stops the gradient. At the optimum of this loss, ε_θ = E[ε*], which is guidance from the base at the scale
    1 / (2 - s). For example, s = 1.5 leads to a scale of 2. For s >= 2, there is no optimum: the target runs away from
    the model.

    In the authors' code, ε_θ in the offset comes from the running average of the weights; here, it is the prediction
    being trained. The average lags behind, which affects the path to the optimum, but not the optimum.

    Args:
        noise: (N, C, H, W), the ε that was added.
        conditional, unconditional: ε_θ(x_t, y) and ε_base(x_t, ∅), (N, C or 2C, H, W).
        scale: s.
        channels: number of guided channels among the C; None for all.
        applies: (N,) bool, the samples that are guided; for the others, the target is the noise.
    """
    channels = channels or noise.shape[1]
    offset = (conditional[:, :channels] - unconditional[:, :channels]).detach().to(noise.dtype)
    weights = (scale - 1) * applies.to(noise.device, noise.dtype).view(-1, *[1] * (noise.ndim - 1))
    return torch.cat([noise[:, :channels] + weights * offset, noise[:, channels:]], dim=1)
