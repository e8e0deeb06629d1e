"""``torch.compile`` for the repeated part of a network: one compilation serves all its blocks."""

from torch import nn

from onelora_vision.backbones.base import block_list
from onelora_vision.errors import InputError


def compile_blocks(model: nn.Module, backend: str = "inductor") -> list[nn.Module]:
    """Compile each block of the model's largest list of similar modules, in place; returns the blocks.

    Names and parameters do not change (no ``_orig_mod.``), so checkpoints and adapters are the same with and without
    compilation. Gradient checkpointing still works around the compiled blocks.

    Raises:
        InputError: the model has no list of at least two modules of the same class.
    """
    name = block_list(model)
    if name is None:
        raise InputError("--torch_compile: this model has no list of similar blocks to compile")
    blocks = list(model.get_submodule(name))
    for block in blocks:
        block.compile(backend=backend)
    return blocks
