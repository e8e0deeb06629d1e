"""What the training loop knows of a task: a model, a loss per batch, and figures on held-out data."""

from typing import Protocol

import torch
from torch import nn


class Task(Protocol):
    """One kind of training job. The loop trains what in ``model`` requires gradients, and asks for nothing else.

    Attributes:
        model: the network with its adapters; the only thing that accelerate wraps and that a checkpoint holds. A
            frozen VAE, a teacher or a feature extractor belongs to the task, not to its model.
    """

    model: nn.Module

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """``{"loss": scalar, …}`` for a batch on the model's device: the mean over its samples, with gradient.

        Other scalars in the dictionary are logged beside the loss. Everything random is drawn from ``batch["seed"]``
        (B,) with `onelora_vision.seeding`, or from torch's global generator, which the loop seeds at each step.
        """

    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """Figures on held-out data, the same on every process; ``loader`` may be None for a task that needs none.

        The loop calls it on all processes, with the model in eval mode, without gradients, and with the averaged
        weights in place if there are any.
        """
