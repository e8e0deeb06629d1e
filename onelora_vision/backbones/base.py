"""What a backbone tells the methods: which layers are adapted, which norms may be trained, what is trained whole."""

import copy
from dataclasses import dataclass, field

from torch import nn

from onelora_vision.errors import InputError, one_line


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


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass, by the host's own switch.

    Raises:
        InputError: the host has no such switch, or refuses.
    """
    try:
        if hasattr(model, "set_grad_checkpointing"):  # timm
            model.set_grad_checkpointing(True)
        elif hasattr(model, "gradient_checkpointing_enable"):  # transformers
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.enable_gradient_checkpointing()  # diffusers
    except (AttributeError, AssertionError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"--gradient_checkpointing: {type(model).__name__} does not support it ({one_line(error)}); leave it out"
        ) from error


def block_list(model: nn.Module) -> str | None:
    """Name of the largest list of at least two modules of one class: a transformer's blocks. None if there is none."""
    lists = {name: list(m) for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    alike = {n: blocks for n, blocks in lists.items() if len(blocks) > 1 and len({type(b) for b in blocks}) == 1}
    return max(alike, key=lambda n: sum(p.numel() for b in alike[n] for p in b.parameters()), default=None)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree over the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})
