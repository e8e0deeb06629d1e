"""Steps of a small ViT on two processes over gloo, its base whole or sharded; run by `test_sharding` in each process.

Takes the names of methods, which are the keys of `CASES`. Prints, on the first process, one JSON line per case.
"""

import json
import sys

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.functional import cross_entropy

from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.backbones.vit import vit_adaptation
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method
from onelora_vision.seeding import seed_all
from onelora_vision.training.compilation import compile_blocks
from onelora_vision.training.sharding import ShardedBlocks, leave_frozen_to_us

# Method: whether activations are recomputed, and whether blocks are compiled.
CASES = {"onelora": (False, False), "difffit": (True, False), "lora": (False, True), "mora6": (True, True)}


def make_model(method: str, checkpointing: bool = False):
    seed_all(0)
    vit = timm.create_model("test_vit", num_classes=3, img_size=32)
    if checkpointing:
        enable_gradient_checkpointing(vit)
    return apply_method(vit, method, vit_adaptation(vit)).train()


def batch(accelerator: Accelerator, step: int):
    generator = torch.Generator().manual_seed(10 * step + accelerator.process_index)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(3, (4,), generator=generator)


def values_held(model) -> int:
    """Frozen values that this process holds."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.device.type != "meta"]
    return sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in frozen)


def train(accelerator: Accelerator, method: str, sharded: bool, checkpointing: bool, compiled: bool) -> dict:
    model = make_model(method, checkpointing)
    if compiled:
        compile_blocks(model, backend="aot_eager")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    if sharded:
        leave_frozen_to_us(model)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    blocks = ShardedBlocks(model, accelerator) if sharded else None
    found = {"held": values_held(model), "losses": []}

    def step(number: int) -> None:
        images, labels = batch(accelerator, number)
        loss = cross_entropy(wrapped(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(loss.item())

    step(0)
    step(1)
    if blocks:
        with blocks.whole(), torch.no_grad():
            found["held whole"] = values_held(model)
            if accelerator.is_main_process:  # alone, as a picture is drawn
                model.eval()(batch(accelerator, 2)[0])
                model.train()
        found["held again"] = values_held(model)
    step(2)
    if blocks:
        blocks.dissolve()
    found["held at the end"] = values_held(model)
    with torch.no_grad():
        found["outputs"] = model.eval()(batch(accelerator, 3)[0]).flatten().tolist()
    found["keys"] = sorted(model.state_dict())
    return found


def main() -> None:
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    for method in sys.argv[1:]:
        checkpointing, compiled = CASES[method]
        whole = train(accelerator, method, False, checkpointing, False)  # compiling takes most of the time
        sharded = train(accelerator, method, True, checkpointing, compiled)
        accelerator.print(json.dumps({"method": method, "whole": whole, "sharded": sharded}))
    try:
        ShardedBlocks(torch.nn.Linear(2, 2), accelerator)
    except InputError as error:
        accelerator.print(json.dumps({"method": "no blocks", "error": str(error)}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
