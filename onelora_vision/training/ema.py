"""An exponential moving average of the trained parameters, kept in fp32."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from onelora_vision.training.optim import trained_parameters


class EMA:
    """Average of the trained parameters of ``model``, updated once per optimizer step.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so the start does not dominate the average
    of a short run.

    Attributes:
        average: parameter name -> its fp32 average.
        updates: number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self.updates = 0
        self.average = {n: p.detach().float().clone() for n, p in trained_parameters(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters' current values."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = trained_parameters(self.model)
        for name, average in self.average.items():
            average.lerp_(parameters[name].float(), 1 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Permanently replace the trained parameters by the average."""
        parameters = trained_parameters(self.model)
        for name, average in self.average.items():
            parameters[name].copy_(average)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block with the average in the model, then restore the trained parameters.

        Meanwhile ``average`` holds the trained parameters: in full fine-tuning, a copy of them would be as large as the
        model.
        """
        parameters = trained_parameters(self.model)
        rounded = {n: average.clone() for n, average in self.average.items() if parameters[n].dtype != average.dtype}
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            self.average.update(rounded)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in trained_parameters(self.model).items():
            trained = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(trained)
