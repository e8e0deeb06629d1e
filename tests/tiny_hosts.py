"""Tiny models of the real hosts with adapters on them, for the tests of adapter files."""

import copy
import warnings
from functools import cache

import torch

from onelora_vision.adapters.file import Adapter, read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import Adaptation
from onelora_vision.methods.apply import apply_method

HOSTS = ("timm", "diffusers", "transformers")


@cache
def _vit():
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=3, pretrained=False
    ).eval()


@cache
def _dit():
    from diffusers import DiTTransformer2DModel

    from onelora_vision.backbones.dit_network import DiT

    torch.manual_seed(0)
    stock = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=3,
    ).eval()
    embedder = stock.transformer_blocks[0].norm1.emb.state_dict()
    for block in stock.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder)
    return DiT.from_stock(stock)


@cache
def _depth():
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=24,
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=4,
        head_hidden_size=4,
        depth_estimation_type="metric",
        max_depth=10,
    )
    model = DepthAnythingForDepthEstimation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the library's own initialisation hardly lets anything through
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def tiny_base(host):
    """A new copy of the host's tiny model, as a base."""
    from onelora_vision.backbones.depth_anything import DepthAnythingBase
    from onelora_vision.backbones.dit import DiTBase
    from onelora_vision.backbones.vit import ViTBase

    if host == "timm":
        return ViTBase(model=copy.deepcopy(_vit()), data_config={"input_size": (3, 32, 32)})
    if host == "diffusers":
        return DiTBase(model=copy.deepcopy(_dit()))
    return DepthAnythingBase(model=copy.deepcopy(_depth()))


def fresh(host):
    """A new copy of the host's tiny model and what is adapted in it."""
    base = tiny_base(host)
    return base.model, base.adaptation()


def example(host):
    generator = torch.Generator().manual_seed(7)
    if host == "timm":
        return {"x": torch.randn(2, 3, 32, 32, generator=generator)}
    if host == "diffusers":
        x = torch.randn(2, 4, 8, 8, generator=generator)
        return {"hidden_states": x, "timestep": torch.tensor([100, 700]), "class_labels": torch.tensor([0, 2])}
    return {"pixel_values": torch.randn(2, 3, 28, 28, generator=generator)}


INFO = {
    "timm": {"task": "classification", "class_names": ["a", "b", "c"]},
    "diffusers": {"task": "generation", "class_names": ["a", "b", "c"], "null_class": 3},
    "transformers": {"task": "depth"},
}


def make_adapter(
    folder, host="timm", method="onelora", seed=1, *, size=0.1, whole=True, base_fingerprint="f", **options
) -> Adapter:
    """Save an adapter with random values on the host's tiny model and read it back."""
    model, adaptation = fresh(host)
    if not whole:
        adaptation = Adaptation(adaptation.target_modules, adaptation.norm_modules)
    adapted = apply_method(model, method, adaptation, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    info = AdapterInfo(method=method, base=f"tiny/{host}", base_fingerprint=base_fingerprint, **INFO[host])
    return read_adapter(save_adapter(adapted, folder, info, overwrite=True))


def save_base(host, folder):
    """The tiny model in its host's own format, as users have bases; returns where it is."""
    if host == "timm":
        import timm

        timm.models.save_for_hf(_vit(), folder, safe_serialization=True)
    elif host == "transformers":
        _depth().save_pretrained(folder)
    else:
        from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(4,),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
            sample_size=8,
        )
        DiTPipeline(_dit().to_stock(), vae, DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return str(folder)


def trained_on(
    base, host, folder, method="onelora", seed=1, *, class_names=("x", "y"), size=0.1, extra=None, **options
):
    """An adapter for new classes on a saved base, as the training scripts make them."""
    from onelora_vision.adapters.bases import load_base

    info = AdapterInfo(method=method, base=base, **{**INFO[host], "extra": extra or {}})
    if info.class_names:
        info.class_names = list(class_names)
        info.null_class = len(class_names) if host == "diffusers" else None
    loaded = load_base(info)
    info.base_fingerprint = loaded.fingerprint()
    adapted = apply_method(loaded.model, method, loaded.adaptation(), **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return read_adapter(save_adapter(adapted, folder, info, overwrite=True))


def build(host, method, dtype=torch.float32, **options):
    """A fresh tiny host with a method on it, in eval mode."""
    model, adaptation = fresh(host)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return apply_method(model.to(dtype), method, adaptation, **options).eval()


def shake(model, seed=0, size=0.05):
    """The model with random values added to everything trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def output(model, host, **kwargs):
    """The model's output for `example`."""
    result = model(**example(host), **kwargs)
    return result if isinstance(result, torch.Tensor) else result[0]


def close(a, b, tolerance=1e-4):
    """Assert that two outputs agree, relative to the largest value."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())
