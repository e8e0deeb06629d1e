"""What fine-tuning has lost: how well the network still does what the base was trained for.

The base's own parts, which training replaces for new classes or depths (head, label table), are put back as they were
loaded; all else stays as it is trained: adapters, biases, norms, and with ``full`` every layer. What is measured then is
the base's own task on its old data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from onelora_vision.backbones.base import Base, OwnParts
from onelora_vision.backbones.class_names import match_classes
from onelora_vision.errors import InputError, listed
from onelora_vision.metrics.direction import RETENTION

#: Of the choice of old images and of samples: the same in every run.
SEED = 0


@dataclass(frozen=True)
class Retention:
    """A measurement of the base's old data, which `training.job.run_job` takes before and after the training.

    Attributes:
        base: whose network is trained. own: its parts before `Base.fit`.
        protocol: what is measured, in a line. identity: a hash of the old data.
        evaluate: the metrics by their usual names, of the network as it is when this is called.
    """

    base: Base
    own: OwnParts
    protocol: str
    identity: str
    evaluate: Callable[[Accelerator], dict[str, float]]

    def __call__(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics, under names that begin with `metrics.direction.RETENTION`; on all processes."""
        with self.base.with_own_parts(self.own):
            found = self.evaluate(accelerator)
        return {f"{RETENTION}{name}": value for name, value in found.items()}


def own_rows(names: Sequence[str], own_names: Sequence[str] | None, outputs: int) -> list[int]:
    """The base's own classes that the classes of its old data are, by their names.

    Where no name is known, as with the numbers of ImageNet's folders, but there are as many classes, it is by their order.

    Raises:
        InputError: the base has no such classes.
    """
    if not outputs:
        raise InputError(
            "--retention: this base has no head, so it knows no classes that it could forget; leave it out"
        )
    found = match_classes(names, own_names or []).rows
    if not found and len(names) == outputs:
        return list(range(outputs))
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"--retention: the base's {outputs:,} classes do not include {listed(missing)}; give data that has its classes"
        )
    return [found[name] for name in names]
