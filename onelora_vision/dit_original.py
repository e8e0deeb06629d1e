"""Checkpoints of the original DiT (facebookresearch/DiT) to and from `backbones.dit.DiT`, value for value.

The original joins q, k and v into one layer and stores its positions; everything else is a matter of names
(`adapters.dit_names`).
"""

import argparse
import pickle
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onelora_vision.adapters.dit_names import facebook_module
from onelora_vision.backbones.dit import DiT, DiTBase
from onelora_vision.errors import InputError
from onelora_vision.files import torch_save
from onelora_vision.outputs import file_output, mark_zip

POSITIONS = "pos_embed"
#: Heads of DiT-XL, L, B and S by (blocks, width): a checkpoint's shapes do not tell them.
HEADS = {(28, 1152): 16, (24, 1024): 16, (12, 768): 12, (12, 384): 6}


def read_original(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of an original checkpoint: ``.safetensors``, or ``.pt`` read without running what it may hold.

    Of a training checkpoint the averaged weights are taken, as the original's sampling does.

    Raises:
        InputError: it cannot be read, or is no DiT.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the original keeps its arguments
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read as a checkpoint ({' '.join(str(error).split())[:200]})") from error
    state = state.get("ema", state) if isinstance(state, dict) else {}
    if not {"x_embedder.proj.weight", "y_embedder.embedding_table.weight", POSITIONS} <= state.keys():
        raise InputError(f"{path}: not an original DiT checkpoint: it has no x_embedder, y_embedder and pos_embed")
    return state


def from_original(state: dict[str, torch.Tensor], num_heads: int | None = None) -> DiT:
    """The model of an original state dict, whose tensors it takes over.

    Raises:
        InputError: the number of heads is needed and not given, or the tensors are not those of a DiT.
    """
    state = dict(state)
    positions = state.pop(POSITIONS)
    with init_empty_weights(include_buffers=False):
        model = DiT(**_config(state, positions, num_heads)).fuse_qkv()
    own = {key: state.pop(_original_key(key), None) for key in model.state_dict()}
    wrong = sorted([_original_key(key) for key, value in own.items() if value is None] + list(state))
    if wrong:
        raise InputError(f"not an original DiT: {', '.join(wrong[:4])} missing or unknown ({len(wrong)} in all)")
    try:
        model.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise InputError(f"not an original DiT: {' '.join(str(error).split())[:300]}") from error
    if not torch.allclose(model.pos_embed.pos_embed, positions.float(), atol=1e-5):
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
    try:
        autoencoder = AutoencoderKL.from_pretrained(vae)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--vae {vae}: no autoencoder there ({' '.join(str(error).split())[:200]})") from error
    # DiT's schedule: 1000 linear steps (arXiv 2212.09748, section 4).
    scheduler = DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return DiTBase(model, autoencoder, scheduler, names, str(path))


def _original_key(key: str) -> str:
    module, kind = key.rsplit(".", 1)
    return f"{facebook_module(module)}.{kind}"


def _config(state: dict[str, torch.Tensor], positions: torch.Tensor, num_heads: int | None) -> dict:
    """The constructor's arguments, read off the shapes."""
    width, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = sum(key.endswith("attn.qkv.weight") for key in state)
    heads = num_heads or HEADS.get((depth, width))
    if heads is None:
        raise InputError(f"{depth} blocks of width {width} are none of DiT-XL, L, B, S: give --num_heads")
    if width % heads:
        raise InputError(f"--num_heads is {heads}, which does not divide the width {width}")
    final = state.get("final_layer.linear.weight")
    if final is None:
        raise InputError("not an original DiT: final_layer.linear.weight is missing")
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": len(final) // patch**2,
        "num_layers": depth,
        "sample_size": round(positions.shape[1] ** 0.5) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(state["y_embedder.embedding_table.weight"]) - 1,
    }


def _default_names(count: int) -> list[str]:
    if count != 1000:
        return [str(index) for index in range(count)]
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_descriptions()
