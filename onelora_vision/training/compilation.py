"""``torch.compile`` for the part of a network that repeats: one compilation serves all its blocks."""

from torch import nn

from onelora_vision.backbones.base import block_list
from onelora_vision.errors import InputError


def compile_blocks(model: nn.Module, backend: str = "inductor") -> list[nn.Module]:
    """Compile each block of the model's largest list of alike modules, in place; returns the blocks.

    Names and parameters stay as they are (no ``_orig_mod.``), so that checkpoints and adapters do not tell a compiled
    run from another; gradient checkpointing continues around the compiled blocks.

    Raises:
        InputError: the model has no list of at least two modules of one class.
    """
    name = block_list(model)
    if name is None:
        raise InputError("--torch_compile: this model has no list of alike blocks to compile")
    blocks = list(model.get_submodule(name))
    for block in blocks:
        block.compile(backend=backend)
    return blocks
