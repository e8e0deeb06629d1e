"""The training loop's view of a task: a model, a loss per batch, metrics on held-out data, and output files."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo

#: Folder of a report with those pictures that need a different version for the adapter's model card.
FOR_THE_CARD = "card"
#: A report's file of questions with their answers before and after training: a list of ``{"query", "truth", "before":
#: {"answer", "right"}, "after": the same}``.
EXAMPLES = "examples.json"


class Task(ABC):
    """One kind of training job. The loop only trains the parameters of ``model`` that require gradients.

    Attributes:
        model: the network with its adapters; the only part that accelerate wraps and that checkpoints contain. A frozen
            VAE, a teacher or a feature extractor belongs to the task, not to its model.
        adapted: the same network, never wrapped.
        info: the description in the adapter's files.
        details: tensors of the last `evaluate` that `report` needs later; saved with the run's files.
    """

    def __init__(self, model: PeftModel, info: AdapterInfo | None = None):
        self.model: nn.Module = model
        self.adapted = model
        self.info = info or AdapterInfo("", "", "")
        self.details: dict[str, torch.Tensor] = {}

    @abstractmethod
    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """``{"loss": scalar, …}`` for a batch on the model's device: the mean over its samples, with gradient.

        Other scalars in the dictionary are logged next to the loss. All randomness is drawn from ``batch["seed"]`` (B,)
        with `onelora_vision.seeding`, or from torch's global generator, which the loop seeds at each step.
        """

    @abstractmethod
    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """Metrics on held-out data, the same on every process; ``loader`` may be None for a task that needs none.

        The loop calls this on all processes, with the model in eval mode, without gradients, and with the averaged
        weights if there are any.
        """

    def validation_loss(self, batch: dict) -> torch.Tensor:
        """The loss of a held-out batch, which only depends on the batch and the model; default: the loss of `forward`.

        Called with the model in eval mode and without gradients. Tasks omit here what `forward` only varies to improve
        training, such as dropped classes or mixed images.
        """
        return self.forward(batch)["loss"]

    def weight(self, batch: dict) -> int:
        """Weight of the batch's loss in a mean over several batches: the number of items it averages, default: samples.

        Tasks whose batches differ in this number override it. A step's loss is then the mean over the items of all its
        batches, however they are distributed over processes and accumulated batches.
        """
        return len(batch["seed"])

    def identity(self) -> dict[str, str]:
        """Hashes that a resumed run must share with the interrupted one, in addition to settings and data."""
        return {"weights of the base": self.info.base_fingerprint}

    def save(self, folder: Path, pictures: tuple[Path, ...] = ()) -> None:
        """Write the current adapter to ``folder``, replacing an earlier one of this run."""
        save_adapter(self.adapted, folder, self.info, pictures=pictures, overwrite=True)

    def draw(self, path: Path, step: int) -> None:  # noqa: B027 - optional
        """Write a PNG that shows what the model does after ``step``; optional.

        Called on the main process after each evaluation during training.
        """

    def report(  # noqa: B027 - optional
        self, folder: Path, step: int, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], accelerator
    ) -> None:
        """Write the run's pictures and tables to ``folder``.

        Called on all processes so that they can share work; only the main process's files are kept.

        Args:
            step: number of the last step.
            before, after: `details` of the first and the last evaluation.
        """
