"""Exact conversion of original DiT (facebookresearch/DiT), SiT and REPA checkpoints to and from `dit_network.DiT`.

The original joins q, k and v into one layer and stores its positions; otherwise, only names differ
(`backbones.dit_names`). SiT (arXiv 2401.08740) and REPA (arXiv 2410.06940, 2504.10483) have the same tensors. They
differ in what the network was trained to predict, which their files do not record (see `Original`).
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from safetensors.torch import save_file

from onelora_vision.backbones.dit import DiTBase, quiet_diffusers
from onelora_vision.backbones.dit_names import facebook_module
from onelora_vision.backbones.dit_network import DiT
from onelora_vision.diffusion.flow import Flow
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.storage.files import torch_save
from onelora_vision.storage.outputs import file_output, mark_zip
from onelora_vision.storage.safetensors_file import SafetensorsFile
from onelora_vision.storage.weights import read_weights

POSITIONS = "pos_embed"
#: Number of heads of DiT-XL, L, B and S by (blocks, width), which a checkpoint's shapes do not reveal.
HEADS = {(28, 1152): 16, (24, 1024): 16, (12, 768): 12, (12, 384): 6}
_TABLE, _PATCHES, _LAST = "y_embedder.embedding_table.weight", "x_embedder.proj.weight", "final_layer.linear.weight"
_DIMENSIONS = {_PATCHES: 4, POSITIONS: 3, _TABLE: 2, _LAST: 2}
_MAX_BLOCKS = 512
_KIND = "onelora.kind"  # key of a safetensors header
#: Heads that align features, used in REPA's training only.
_PROJECTORS = "projectors."
#: REPA-E normalises latents by the running statistics of a BatchNorm2d.
_MEAN, _VARIANCE, _BATCHES = "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"


class Original(NamedTuple):
    """An original implementation.

    Attributes:
        title: its name.
        scheduler: function that makes the scheduler for its objective.
    """

    title: str
    scheduler: Callable[[], SchedulerMixin]


def _noise_schedule() -> SchedulerMixin:
    """DiT's noise schedule: 1000 linear steps (arXiv 2212.09748, section 4)."""
    return DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)


def _flow(*, ends_at_image: bool) -> SchedulerMixin:
    """A straight flow whose time, from 0 to 1, is passed to the network unchanged as its timestep."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, invert_sigmas=ends_at_image)


#: Keys are the values of ``onelora convert --model``. Time starts at the noise in SiT, and at the image in REPA.
ORIGINALS = {
    "dit": Original("DiT", _noise_schedule),
    "sit": Original("SiT", lambda: _flow(ends_at_image=True)),
    "repa": Original("REPA", lambda: _flow(ends_at_image=False)),
}


def read_original(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of an original checkpoint: ``.safetensors``, or ``.pt`` without executing code in it.

    From a training checkpoint, the averaged weights are used if there are any, as in the original's sampling.

    Raises:
        InputError: the file cannot be read or is not a DiT.
    """
    state = read_weights(path, inside=("ema", "model"))
    if not {_PATCHES, _TABLE, POSITIONS} <= state.keys():
        raise InputError(f"{path}: not an original DiT checkpoint: it has no x_embedder, y_embedder and pos_embed")
    return state


def original_of(path: str | Path, state: dict[str, torch.Tensor], wanted: str | None = None) -> str:
    """Determine the original that a checkpoint belongs to (a key of `ORIGINALS`): as ``wanted``, as recorded, or DiT.

    Raises:
        InputError: ``wanted`` contradicts the file's tensors or header, or only the file name suggests that it is not
            DiT.
    """
    title = SafetensorsFile(str(path)).strings.get(_KIND) if Path(path).suffix == ".safetensors" else None
    written = next((name for name, original in ORIGINALS.items() if original.title == title), None)
    if written and wanted not in (None, written):
        raise InputError(f"{path}: --model {wanted}, but its header says {written}: leave --model out")
    is_repa = any(key.startswith((_PROJECTORS, "bn.")) for key in state)
    if is_repa and wanted == "dit":
        raise InputError(f"{path}: holds tensors that only REPA's checkpoints have: leave --model out, or give repa")
    if wanted or is_repa:
        return wanted or "repa"
    if written:
        return written
    if re.search(r"(?<![a-z])(sit|repa)(?![a-z])", Path(path).name.lower()):
        raise InputError(
            f"{path}: the tensors of DiT, SiT and REPA are the same, and its name does not suggest DiT: choose one "
            "with --model sit, repa or dit"
        )
    return "dit"


def from_original(state: dict[str, torch.Tensor], num_heads: int | None = None) -> DiT:
    """Build the model of an original state dict, in fp32. Tensors that are already fp32 are not copied.

    REPA's projectors and statistics are left out.

    Raises:
        InputError: the number of heads is needed but not given, or the tensors are not those of a DiT.
    """
    state = {key: value for key, value in state.items() if not key.startswith((_PROJECTORS, "bn."))}
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
    """The original state dict of a model, including positions. The model is left unchanged."""
    is_fused = hasattr(model.transformer_blocks[0].attn1, "to_qkv")
    model.fuse_qkv()
    state = {_original_key(key): value.detach().clone() for key, value in model.state_dict().items()}
    if not is_fused:
        model.unfuse_qkv()
    return {POSITIONS: model.pos_embed.pos_embed.detach().clone(), **state}


def state_of(base: DiTBase) -> tuple[str, dict[str, torch.Tensor]]:
    """Convert a base back to an original checkpoint, and return its key in `ORIGINALS` and its tensors.

    For REPA-E, the tensors include the statistics of its latents.

    Raises:
        InputError: the time of its scheduler is neither SiT's nor REPA's.
    """
    state, name = to_original(base.model), "dit"
    if isinstance(base.objective, Flow):
        if base.objective.scale != 1:
            raise InputError(f"{base.source}: predicts {base.objective}; the time of SiT and REPA is from 0 to 1")
        name = "sit" if base.objective.data_at else "repa"
    mean, std = base.vae.config.latents_mean, base.vae.config.latents_std
    if name == "repa" and mean is not None and std is not None:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        state[_MEAN], state[_VARIANCE] = mean.float(), (std / base.vae.config.scaling_factor).square().float()
        state[_BATCHES] = torch.zeros((), dtype=torch.int64)
    return name, state


def save_original(
    state: dict[str, torch.Tensor], path: str | Path, *, title: str = "DiT", overwrite: bool = False
) -> None:
    """Write an original state dict as ``.pt``, or as ``.safetensors`` with its `Original`'s ``title`` in the header.

    Raises:
        InputError: the file has another extension, or the place is taken (see `outputs`).
    """
    path = check_original_name(path)
    with file_output(path, overwrite=overwrite) as temporary:
        if path.suffix == ".pt":
            torch_save(state, temporary)
            mark_zip(temporary)
        else:
            save_file({key: value.contiguous() for key, value in state.items()}, temporary, {_KIND: title})


def check_original_name(path: str | Path) -> Path:
    """Raise an `InputError` if the file extension is not a checkpoint's."""
    if Path(path).suffix not in (".safetensors", ".pt"):
        raise InputError(f"{path}: an original checkpoint is named NAME.pt or NAME.safetensors")
    return Path(path)


def original_base(
    path: str | Path,
    vae: str | Path,
    class_names: list[str] | None,
    num_heads: int | None,
    original: str | None = None,
) -> DiTBase:
    """Load an original checkpoint with an autoencoder, as a base that can be saved as a pipeline and fine-tuned.

    Args:
        original: the original that it belongs to, a key of `ORIGINALS` (default: see `original_of`).
        vae: folder or hub id of an ``AutoencoderKL``, such as stabilityai/sd-vae-ft-ema.
        class_names: one name per class; by default, those of ImageNet for 1000 classes, else numbers.

    Raises:
        InputError: the checkpoint, the autoencoder or the number of names is wrong.
    """
    state = read_original(path)
    original = original_of(path, state, original)
    model = from_original(state, num_heads)
    names = class_names or _default_names(model.num_classes)
    if len(names) != model.num_classes:
        raise InputError(f"{len(names)} class names for the {model.num_classes} classes of {path}")
    expect_hub(vae)
    try:
        with quiet_diffusers():
            autoencoder = AutoencoderKL.from_pretrained(vae)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--vae {vae}: no autoencoder there ({one_line(error)})") from error
    if autoencoder.config.latent_channels != model.config.in_channels:
        raise InputError(
            f"--vae {vae}: its latents have {autoencoder.config.latent_channels} channels, but {path} needs "
            f"{model.config.in_channels}"
        )
    _set_statistics(autoencoder, state, path)
    scheduler = ORIGINALS[original].scheduler()
    return DiTBase(model=model, vae=autoencoder, scheduler=scheduler, class_names=names, source=str(path))


def _set_statistics(vae: AutoencoderKL, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Copy the statistics that normalise the latents of REPA-E to the autoencoder, if the checkpoint has them."""
    mean, variance = state.get(_MEAN), state.get(_VARIANCE)
    if mean is None and variance is None:
        return
    channels = vae.config.latent_channels
    if any(v is None or v.shape != (channels,) or not v.is_floating_point() for v in (mean, variance)):
        raise InputError(
            f"{path}: its statistics of the latents ({_MEAN}, {_VARIANCE}) are not of {channels} channels"
        )
    if variance.min() <= 0:
        raise InputError(f"{path}: {_VARIANCE} holds a variance that is not above 0")
    mean, std = mean.double().tolist(), variance.double().sqrt().tolist()
    vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=1.0)


def _original_key(key: str) -> str:
    module, kind = key.rsplit(".", 1)
    return f"{facebook_module(module)}.{kind}"


def _config(state: dict[str, torch.Tensor], num_heads: int | None) -> dict:
    """The constructor's arguments, derived from the shapes."""
    for name, dimensions in _DIMENSIONS.items():
        if name not in state:
            raise InputError(f"not an original DiT: {name} is missing")
        if state[name].ndim != dimensions or 0 in state[name].shape:
            raise InputError(f"not an original DiT: {name} has shape {tuple(state[name].shape)[:8]}")
    if len(state[_TABLE]) < 2:
        raise InputError(f"not an original DiT: {_TABLE} has one row, so it has no classes")
    width, in_channels, patch, _ = state[_PATCHES].shape
    side = math.isqrt(state[POSITIONS].shape[1])
    if state[POSITIONS].shape != (1, side**2, width):
        shape = tuple(state[POSITIONS].shape)
        raise InputError(f"its pos_embed has shape {shape}, expected a square grid (1, side², {width})")
    depth = sum(key.endswith("attn.qkv.weight") for key in state)
    if depth > _MAX_BLOCKS:
        raise InputError(f"not an original DiT: {depth:,} blocks")
    if num_heads is not None and num_heads < 1:
        raise InputError(f"--num_heads is {num_heads}: give a whole number from 1")
    heads = num_heads or HEADS.get((depth, width))
    if heads is None:
        raise InputError(f"{depth} blocks of width {width} match none of DiT-XL, L, B, S: give --num_heads")
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
