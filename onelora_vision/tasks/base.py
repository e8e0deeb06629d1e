"""What the training loop knows of a task: a model, a loss per batch, metrics on held-out data, and what to write."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo

#: Folder of a report with the versions of its pictures that the adapter's card shows, where these are others.
FOR_THE_CARD = "card"
#: A report's file of questions with their answers before and after: a list of ``{"query", "truth", "before": {"answer",
#: "right"}, "after": the same}``.
EXAMPLES = "examples.json"


class Task(ABC):
    """One kind of training job. The loop trains what in ``model`` requires gradients, and asks for nothing else.

    Attributes:
        model: the network with its adapters; the only thing that accelerate wraps and that a checkpoint holds. A frozen
            VAE, a teacher or a feature extractor belongs to the task, not to its model.
        adapted: the same network, never wrapped.
        info: what the adapter's files say about it.
        details: of the last `evaluate`, tensors that `report` needs again; kept with the run's files.
    """

    def __init__(self, model: PeftModel, info: AdapterInfo | None = None):
        self.model: nn.Module = model
        self.adapted = model
        self.info = info or AdapterInfo("", "", "")
        self.details: dict[str, torch.Tensor] = {}

    @abstractmethod
    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """``{"loss": scalar, …}`` for a batch on the model's device: the mean over its samples, with gradient.

        Other scalars in the dictionary are logged next to the loss. Everything random is drawn from ``batch["seed"]``
        (B,) with `onelora_vision.seeding`, or from torch's global generator, which the loop seeds at each step.
        """

    @abstractmethod
    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """Metrics on held-out data, the same on every process; ``loader`` may be None for a task that needs none.

        The loop calls it on all processes, with the model in eval mode, without gradients, and with the averaged
        weights in place if there are any.
        """

    def validation_loss(self, batch: dict) -> torch.Tensor:
        """The loss of a held-out batch, a function of the batch and the model alone: by default that of `forward`.

        Called with the model in eval mode and without gradients. What `forward` varies to train better, such as dropped
        classes or mixed images, a task leaves out here.
        """
        return self.forward(batch)["loss"]

    def weight(self, batch: dict) -> int:
        """What the batch's loss weighs in a mean over several batches: the number of items that it is a mean over, by default
        its samples.

        A task whose batches differ in it overrides this. A step's loss is then the mean over the items of all its batches,
        however many processes and accumulated batches share them.
        """
        return len(batch["seed"])

    def identity(self) -> dict[str, str]:
        """Hashes of what a resumed run must share with the interrupted one, in addition to settings and data."""
        return {"weights of the base": self.info.base_fingerprint}

    def save(self, folder: Path, pictures: tuple[Path, ...] = ()) -> None:
        """Write the adapter as it is now into ``folder``, in place of one that this run wrote there before."""
        save_adapter(self.adapted, folder, self.info, pictures=pictures, overwrite=True)

    def draw(self, path: Path, step: int) -> None:  # noqa: B027 - optional
        """Write a picture of what the model does after ``step`` as a PNG; optional.

        Called on the main process after each evaluation during training.
        """

    def report(  # noqa: B027 - optional
        self, folder: Path, step: int, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], accelerator
    ) -> None:
        """Write the run's pictures and tables into ``folder``.

        Called on all processes, so that they can share work; the main one's files are kept.

        Args:
            step: number of the last step.
            before, after: `details` of the first and of the last evaluation.
        """
