"""What a backbone tells the methods: which layers are adapted, which norms may be trained, what is trained whole."""

from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Adaptation:
    """The places of one model that the methods act on, as full module names.

    Attributes:
        target_modules: the Linear layers that get an adapter (the paper: every linear except the classifier).
        norm_modules: normalisation layers that have parameters, for the methods that train norms.
        whole_modules: modules trained whole with every method: a new classification head, DiT's label table.
    """

    target_modules: list[str]
    norm_modules: list[str] = field(default_factory=list)
    whole_modules: list[str] = field(default_factory=list)


def norms_with_parameters(model: nn.Module, prefix: str = "") -> list[str]:
    """Names of the normalisation layers under ``prefix`` that own at least one parameter."""
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters(recurse=False))
    ]
