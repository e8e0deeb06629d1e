"""Checkpoints of the original DiT (facebookresearch/DiT) to and from `backbones.dit_network.DiT`, value for value.

The original joins q, k and v into one layer and stores its positions; everything else is a matter of names
(`backbones.dit_names`).
"""

import math
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file

from onelora_vision.backbones.dit import DiTBase
from onelora_vision.backbones.dit_names import facebook_module
from onelora_vision.backbones.dit_network import DiT
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.storage.files import torch_save
from onelora_vision.storage.outputs import file_output, mark_zip
from onelora_vision.storage.weights import read_weights

POSITIONS = "pos_embed"
#: Heads of DiT-XL, L, B and S by (blocks, width): a checkpoint's shapes do not tell them.
HEADS = {(28, 1152): 16, (24, 1024): 16, (12, 768): 12, (12, 384): 6}
_TABLE, _PATCHES, _LAST = "y_embedder.embedding_table.weight", "x_embedder.proj.weight", "final_layer.linear.weight"
_DIMENSIONS = {_PATCHES: 4, POSITIONS: 3, _TABLE: 2, _LAST: 2}
_MAX_BLOCKS = 512


def read_original(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of an original checkpoint: ``.safetensors``, or ``.pt`` read without running what it may hold.

    Of a training checkpoint the averaged weights are taken, as the original's sampling does.

    Raises:
        InputError: it cannot be read, or is no DiT.
    """
    state = read_weights(path, inside=("ema",))
    if not {_PATCHES, _TABLE, POSITIONS} <= state.keys():
        raise InputError(f"{path}: not an original DiT checkpoint: it has no x_embedder, y_embedder and pos_embed")
    return state


def from_original(state: dict[str, torch.Tensor], num_heads: int | None = None) -> DiT:
    """The model of an original state dict, in fp32; it takes over the tensors that are fp32 already.

    Raises:
        InputError: the number of heads is needed and not given, or the tensors are not those of a DiT.
    """
    state = dict(state)
    config = _config(state, num_heads)
    positions = state.pop(POSITIONS)
    with init_empty_weights(include_buffers=False):
        model = DiT(**config).fuse_qkv()
    own = {key: state.pop(_original_key(key), None) for key in model.state_dict()}
    wrong = sorted([_original_key(key) for key, value in own.items() if value is None] + list(state))
    if wrong:
        raise InputError(f"not an original DiT: {listed(wrong, 4)} missing or unknown ({len(wrong)} in all)")
    whole = sorted(_original_key(key) for key, value in own.items() if not value.is_floating_point())
    if whole or not positions.is_floating_point():
        raise InputError(f"not an original DiT: {listed(whole or [POSITIONS], 4)} without floating-point values")
    try:
        model.load_state_dict({key: value.float() for key, value in own.items()}, assign=True)
    except RuntimeError as error:
        raise InputError(f"not an original DiT: {one_line(error, 300)}") from error
    rounding = max(1e-5, torch.finfo(positions.dtype).eps)
    if not torch.allclose(model.pos_embed.pos_embed, positions.float(), atol=rounding):
        raise InputError(
            "its pos_embed is not DiT's table of sines and cosines: such a checkpoint cannot be converted"
        )
    return model.unfuse_qkv().eval()


def to_original(model: DiT) -> dict[str, torch.Tensor]:
    """The original's state dict of a model, positions included; the model is left as it was."""
    is_fused = hasattr(model.transformer_blocks[0].attn1, "to_qkv")
    model.fuse_qkv()
    state = {_original_key(key): value.detach().clone() for key, value in model.state_dict().items()}
    if not is_fused:
        model.unfuse_qkv()
    return {POSITIONS: model.pos_embed.pos_embed.detach().clone(), **state}


def save_original(state: dict[str, torch.Tensor], path: str | Path, *, overwrite: bool = False) -> None:
    """Write an original state dict as ``.safetensors`` or ``.pt``.

    Raises:
        InputError: another ending, or the place is taken (see `outputs`).
    """
    path = check_original_name(path)
    with file_output(path, overwrite=overwrite) as temporary:
        if path.suffix == ".pt":
            torch_save(state, temporary)
            mark_zip(temporary)
        else:
            save_file({key: value.contiguous() for key, value in state.items()}, temporary, {"onelora.kind": "DiT"})


def check_original_name(path: str | Path) -> Path:
    """Refuse a file name that does not say how a checkpoint is to be written."""
    if Path(path).suffix not in (".safetensors", ".pt"):
        raise InputError(f"{path}: an original checkpoint is named NAME.pt or NAME.safetensors")
    return Path(path)


def original_base(path: str | Path, vae: str | Path, class_names: list[str] | None, num_heads: int | None) -> DiTBase:
    """An original checkpoint with an autoencoder, as a base that can be saved as a pipeline and fine-tuned.

    Args:
        vae: folder (or hub id) of an ``AutoencoderKL``, such as stabilityai/sd-vae-ft-ema.
        class_names: one for each class; by default ImageNet's for 1000 classes, else numbers.

    Raises:
        InputError: the checkpoint, the autoencoder or the number of names is wrong.
    """
    model = from_original(read_original(path), num_heads)
    names = class_names or _default_names(model.num_classes)
    if len(names) != model.num_classes:
        raise InputError(f"{len(names)} class names for the {model.num_classes} classes of {path}")
    expect_hub(vae)
    try:
        autoencoder = AutoencoderKL.from_pretrained(vae)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--vae {vae}: no autoencoder there ({one_line(error)})") from error
    # DiT's schedule: 1000 linear steps (arXiv 2212.09748, section 4).
    scheduler = DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return DiTBase(model=model, vae=autoencoder, scheduler=scheduler, class_names=names, source=str(path))


def _original_key(key: str) -> str:
    module, kind = key.rsplit(".", 1)
    return f"{facebook_module(module)}.{kind}"


def _config(state: dict[str, torch.Tensor], num_heads: int | None) -> dict:
    """The constructor's arguments, read off the shapes."""
    for name, dimensions in _DIMENSIONS.items():
        if name not in state:
            raise InputError(f"not an original DiT: {name} is missing")
        if state[name].ndim != dimensions or 0 in state[name].shape:
            raise InputError(f"not an original DiT: {name} has shape {tuple(state[name].shape)[:8]}")
    if len(state[_TABLE]) < 2:
        raise InputError(f"not an original DiT: {_TABLE} has one row, which is no class")
    width, in_channels, patch, _ = state[_PATCHES].shape
    side = math.isqrt(state[POSITIONS].shape[1])
    if state[POSITIONS].shape != (1, side**2, width):
        shape = tuple(state[POSITIONS].shape)
        raise InputError(f"its pos_embed has shape {shape}: converted are square grids, (1, side², {width})")
    depth = sum(key.endswith("attn.qkv.weight") for key in state)
    if depth > _MAX_BLOCKS:
        raise InputError(f"not an original DiT: {depth:,} blocks")
    if num_heads is not None and num_heads < 1:
        raise InputError(f"--num_heads is {num_heads}: give a whole number from 1")
    heads = num_heads or HEADS.get((depth, width))
    if heads is None:
        raise InputError(f"{depth} blocks of width {width} are none of DiT-XL, L, B, S: give --num_heads")
    if width % heads:
        raise InputError(f"--num_heads is {heads}, which does not divide the width {width}")
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": len(state[_LAST]) // patch**2,
        "num_layers": depth,
        "sample_size": side * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(state[_TABLE]) - 1,
    }


def _default_names(count: int) -> list[str]:
    if count != 1000:
        return [str(index) for index in range(count)]
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_descriptions()
