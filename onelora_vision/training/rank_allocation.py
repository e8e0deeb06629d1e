"""AdaLoRA's rank allocation during training (arXiv 2303.10512), with PEFT's allocator.

The least important singular values are set to zero step by step, until an average layer has ``target_r`` of them. They
stay in the file as zeros, so all layers keep the shapes given by the config.
"""

from typing import Any, Self

import torch
from peft import PeftModel
from torch import Tensor, nn

WARM_UP, FINAL = 0.1, 0.3  # fractions of the run before the first and after the last change, unless set in the config
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankAllocation:
    """Call `after_step` between the optimizer's step and ``zero_grad``, and add `penalty` to the loss.

    Args:
        model: with an AdaLoRA adapter.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, model: PeftModel, steps: int):
        self.model: nn.Module = model.base_model.model
        self.allocator = model.base_model.rankallocator
        self.config = model.peft_config[model.active_adapter]
        if self.config.tinit == self.config.tfinal == 0:
            self.config.tinit, self.config.tfinal = int(WARM_UP * steps), int(FINAL * steps)
        self.allocator.set_total_step(steps)
        self.kept: dict | None = None  # the singular values kept in the final part of training

    @classmethod
    def of(cls, model: PeftModel, steps: int) -> Self | None:
        """The allocation of a model whose method has one; otherwise None."""
        return cls(model, steps) if hasattr(getattr(model, "base_model", None), "rankallocator") else None

    def after_step(self, step: int) -> None:
        """Score the singular values by the step's gradients, and set those to zero that the schedule removes.

        Args:
            step: index of the optimizer step, from 0.
        """
        last = self.config.total_step - self.config.tfinal
        if step < last:
            self.allocator.update_and_allocate(self.model, step)
        elif self.kept is None:
            _, self.kept = self.allocator.update_and_allocate(self.model, step, force_mask=True)
        else:
            self.allocator.mask_using_rank_pattern(self.model, self.kept)

    def penalty(self) -> Tensor:
        """Keeps A's rows and B's columns orthogonal: the mean Frobenius norm of ``A Aᵀ - I`` and ``Bᵀ B - I``."""
        norms = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and ("lora_A" in name or "lora_B" in name):
                p = parameter.float()
                products = p @ p.T if "lora_A" in name else p.T @ p
                norms.append((products - torch.eye(len(products), device=p.device)).norm())
        return self.config.orth_reg_weight * torch.stack(norms).mean()

    def state_dict(self) -> dict[str, Any]:
        """The scores and the kept singular values."""
        return {name: dict(getattr(self.allocator, name)) for name in _SCORES} | {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the output of `state_dict`."""
        devices = {name: parameter.device for name, parameter in self.model.named_parameters()}
        for name in _SCORES:
            setattr(self.allocator, name, {key: value.to(devices[key]) for key, value in state[name].items()})
        self.kept = state["kept"]
