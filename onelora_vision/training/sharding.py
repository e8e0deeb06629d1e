"""One copy of the frozen base across all processes: each keeps a part of every block, gathered to compute the block.

FSDP2 (``torch.distributed.fsdp.fully_shard``) only manages the frozen weights. Trained parameters stay whole on every
process, and DDP handles their gradients as usual: optimizer, average, checkpoints and adapter files are unaffected.
"""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from onelora_vision.backbones.base import block_list, shared_copy
from onelora_vision.errors import InputError

ONE_PROCESS = "--shard_base shards the base across processes, but there is only one: start several, or leave it out"


def leave_frozen_to_us(model: nn.Module) -> None:
    """Make DDP, before it wraps ``model``, hold no references to frozen parameters, so that they can be freed."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)


class ShardedBlocks:
    """The blocks of ``model`` with their frozen weights sharded; replaces the blocks in ``model``.

    Args:
        model: with adapters; its largest list of similar modules is sharded, the rest stays whole.
        accelerator: with at least two processes, all of which must create this at the same time.

    Raises:
        InputError: there is only one process, or the model has no list of blocks.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        name = block_list(model)
        if accelerator.num_processes == 1:
            raise InputError(ONE_PROCESS)
        if name is None:
            raise InputError("--shard_base: this model has no list of similar blocks to shard")
        self._list = model.get_submodule(name)
        trained = {parameter for parameter in self._list.parameters() if parameter.requires_grad}
        self._plain = [shared_copy(block) for block in self._list]
        self._empty()
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for block in self._list:
            fully_shard(block, mesh=mesh, ignored_params=trained)
        self._sharded = list(self._list)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Use plain blocks with all weights inside ``with``, for forward passes that differ between processes."""
        self.dissolve()
        try:
            yield
        finally:
            self._put(self._sharded)
            self._empty()

    def dissolve(self) -> None:
        """Replace the blocks in the model by plain ones with all weights."""
        for plain, sharded in zip(self._plain, self._sharded):
            sharded.unshard()
            values = dict(sharded.named_parameters())
            for name, module, key in _frozen(plain):
                module._parameters[key] = nn.Parameter(values[name].detach().clone(), requires_grad=False)
            sharded.reshard()
        self._put(self._plain)

    def _empty(self) -> None:
        """Free the frozen weights of the plain blocks while they are not in the model; trained parameters stay."""
        for module, key in ((module, key) for block in self._plain for _, module, key in _frozen(block)):
            empty = torch.empty_like(module._parameters[key], device="meta")
            module._parameters[key] = nn.Parameter(empty, requires_grad=False)

    def _put(self, blocks: list[nn.Module]) -> None:
        for index, block in enumerate(blocks):
            self._list[index] = block


def _frozen(block: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """The places of frozen parameters: full name, module, and the parameter's name in the module."""
    return [
        (f"{prefix}.{key}" if prefix else key, module, key)
        for prefix, module in block.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad
    ]
