"""What fine-tuning has lost: how well the network still does what the base was trained for.

The base's own parts that training replaces for new classes or depths (head, label table) are restored as loaded.
Everything else stays as trained: adapters, biases, norms, and with ``full`` every layer. This network is then evaluated
on the base's own task and old data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from onelora_vision.backbones.base import Base, OwnParts
from onelora_vision.backbones.class_names import match_classes
from onelora_vision.errors import InputError, listed
from onelora_vision.metrics.direction import RETENTION

#: For choosing old images and for samples: the same in every run.
SEED = 0


@dataclass(frozen=True)
class Retention:
    """An evaluation on the base's old data, which `training.job.run_job` runs before and after training.

    Attributes:
        base: whose network is trained. own: its parts before `Base.fit`.
        protocol: one line on what is evaluated. identity: a hash of the old data.
        evaluate: computes the metrics, by their usual names, of the network in its current state.
    """

    base: Base
    own: OwnParts
    protocol: str
    identity: str
    evaluate: Callable[[Accelerator], dict[str, float]]

    def __call__(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics, with names that begin with `metrics.direction.RETENTION`; call it on all processes."""
        with self.base.with_own_parts(self.own):
            found = self.evaluate(accelerator)
        return {f"{RETENTION}{name}": value for name, value in found.items()}


def own_rows(names: Sequence[str], own_names: Sequence[str] | None, outputs: int) -> list[int]:
    """The base's classes that correspond to the classes of its old data, by name.

    If no name is known, as with ImageNet's folder numbers, but the number of classes is the same, they are matched by
    order.

    Raises:
        InputError: the base has no such classes.
    """
    if not outputs:
        raise InputError("--retention: this base has no head, so it has no classes to forget; leave it out")
    found = match_classes(names, own_names or []).rows
    if not found and len(names) == outputs:
        return list(range(outputs))
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"--retention: the base's {outputs:,} classes do not include {listed(missing)}; give data with its classes"
        )
    return [found[name] for name in names]
