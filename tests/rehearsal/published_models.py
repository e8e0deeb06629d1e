"""The base models that the recipes and the documentation name, with random weights, as they are published.

Files have the published names, formats and configs; the hub's are in a cache folder as the hub's client keeps it. Each
row of `MODELS` writes one of them; to add one, write a function and its row.
"""

import hashlib
import json
import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from random_inception import write_inception
from recipe_steps import LLAMA_7B, LLAMA_13B, SMALL_HEADS, timm_name

INCEPTION = "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
HUB = "huggingface/hub"
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def to_hub(stage: Path, repository: str, write: Callable[[Path], None]) -> None:
    """Put what ``write`` writes into a folder into the hub's cache, as the only revision of a repository.

    Contents are in ``blobs``, by the hash that the hub answers (SHA-256 of large files, git's of others), and are linked
    from ``snapshots/REVISION``, which ``refs/main`` names.
    """
    folder = stage / HUB / f"models--{repository.replace('/', '--')}"
    revision = hashlib.sha1(repository.encode()).hexdigest()
    snapshot = folder / "snapshots" / revision
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=stage) as temporary:
        write(Path(temporary))
        for path in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
            link = snapshot / path.relative_to(temporary)
            blob = folder / "blobs" / _blob_name(path)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs" / "main").write_text(revision)


def _blob_name(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256() if size > 10 * 2**20 else hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


# Diffusion transformers and their autoencoder.


def _autoencoder(folder: Path, small: bool) -> None:
    """sd-vae-ft-ema by diffusers 0.4: a pickle in which the attention's layers have their old names."""
    from diffusers import AutoencoderKL

    config = {
        "act_fn": "silu",
        "block_out_channels": [4, 4, 8, 8] if small else [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1 if small else 2,
        "norm_num_groups": 4 if small else 32,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    torch.manual_seed(2)
    state = AutoencoderKL(**config).state_dict()
    _write_json(folder / "config.json", {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", **config})
    torch.save({_old_name(key): value for key, value in state.items()}, folder / "diffusion_pytorch_model.bin")


def _old_name(key: str) -> str:
    for new, old in _OLD_ATTENTION.items() if ".attentions." in key else ():
        key = key.replace(f".{new}.", f".{old}.")
    return key


def _transformer(small: bool, out_channels: int = 8):
    """The network of DiT-XL/2 and SiT-XL/2 at 256 pixels, or two blocks of width 32, in diffusers' class."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(1)
    model = DiTTransformer2DModel(
        num_attention_heads=SMALL_HEADS if small else 16,
        attention_head_dim=16 if small else 72,
        num_layers=2 if small else 28,
        in_channels=4,
        out_channels=out_channels,
        sample_size=32,
        num_embeds_ada_norm=1000,
    )
    embedders = [block.norm1.emb for block in model.transformer_blocks]
    for embedder in embedders[1:]:  # every block has a copy of the same embedders
        embedder.load_state_dict(embedders[0].state_dict())
    return model


def _dit(stage: Path, small: bool) -> None:
    """facebook/DiT-XL-2-256: a pipeline of diffusers 0.12, pickled, whose network's class has another name today."""

    def write(folder: Path) -> None:
        from timm.data import ImageNetInfo

        model = _transformer(small)
        config = {
            "_class_name": "Transformer2DModel",
            "_diffusers_version": "0.12.0.dev0",
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "attention_head_dim": model.config.attention_head_dim,
            "cross_attention_dim": None,
            "dropout": 0.0,
            "in_channels": 4,
            "norm_elementwise_affine": False,
            "norm_num_groups": 32,
            "norm_type": "ada_norm_zero",
            "num_attention_heads": model.config.num_attention_heads,
            "num_embeds_ada_norm": 1000,
            "num_layers": model.config.num_layers,
            "num_vector_embeds": None,
            "only_cross_attention": False,
            "out_channels": 8,
            "patch_size": 2,
            "sample_size": 32,
            "upcast_attention": False,
            "use_linear_projection": False,
        }
        scheduler = {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.12.0.dev0",
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "trained_betas": None,
        }
        names = ImageNetInfo("imagenet-1k").label_descriptions()
        index = {
            "_class_name": "DiTPipeline",
            "_diffusers_version": "0.12.0.dev0",
            "id2label": {str(number): name for number, name in enumerate(names)},
            "scheduler": ["diffusers", "DDIMScheduler"],
            "transformer": ["diffusers", "Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        _write_json(folder / "model_index.json", index)
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(folder / "transformer" / "config.json", config)
        torch.save(model.state_dict(), folder / "transformer" / "diffusion_pytorch_model.bin")
        _autoencoder(folder / "vae", small)

    to_hub(stage, "facebook/DiT-XL-2-256", write)


def _vae(stage: Path, small: bool) -> None:
    to_hub(stage, "stabilityai/sd-vae-ft-ema", lambda folder: _autoencoder(folder, small))


def _original(stage: Path, small: bool, name: str, out_channels: int = 8) -> dict[str, torch.Tensor]:
    """A checkpoint of the original code: pickled, q, k, v joined, the embedders once."""
    from onelora_vision.backbones.dit_network import DiT
    from onelora_vision.backbones.dit_original import to_original

    state = to_original(DiT.from_stock(_transformer(small, out_channels)))
    torch.save(state, stage / name)
    return state


def _repa(stage: Path, small: bool) -> None:
    """A training checkpoint: the average beside the weights, with the projectors that only training needs."""
    name, width = "REPA-SiT-XL-2.pt", 32 if small else 1152
    state = _original(stage, small, name, out_channels=4)
    projectors = {f"projectors.0.{layer}.weight": torch.randn(8, width) for layer in (0, 2, 4)}
    torch.save({"ema": {**state, **projectors}, "args": Namespace(enc_type="dinov2-vit-b"), "steps": 4}, stage / name)


# Image classifiers and features.


def _vit_in21k(stage: Path, small: bool) -> None:
    """google/vit-base-patch16-224-in21k: a ViT without a head, with the image processor's config."""

    def write(folder: Path) -> None:
        from transformers import ViTConfig, ViTModel

        sizes = {
            "hidden_size": 32 if small else 768,
            "intermediate_size": 64 if small else 3072,
            "num_attention_heads": 2 if small else 12,
            "num_hidden_layers": 2 if small else 12,
        }
        torch.manual_seed(3)
        ViTModel(ViTConfig(**sizes)).save_pretrained(folder)
        config = {
            "_name_or_path": "google/vit-base-patch16-224-in21k",
            "architectures": ["ViTModel"],
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "image_size": 224,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "model_type": "vit",
            "num_channels": 3,
            "patch_size": 16,
            "qkv_bias": True,
            "transformers_version": "4.13.0.dev0",
            **sizes,
        }
        processor = {
            "do_normalize": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "size": 224,
        }
        _write_json(folder / "config.json", config)
        _write_json(folder / "preprocessor_config.json", processor)

    to_hub(stage, "google/vit-base-patch16-224-in21k", write)


def _timm(name: str) -> Callable[[Path, bool], None]:
    """A model of timm's collection on the hub."""

    def add(stage: Path, small: bool) -> None:
        import timm
        from timm.models import save_for_hf

        chosen = timm_name(name, small)
        torch.manual_seed(4)
        model = timm.create_model(chosen)
        to_hub(stage, f"timm/{chosen}", lambda folder: save_for_hf(model, folder, safe_serialization=True))

    return add


def _inception(stage: Path, small: bool) -> None:
    write_inception(stage / INCEPTION)


# Depth.


def _depth_anything(repository: str, max_depth: int) -> Callable[[Path, bool], None]:
    """A metric Depth Anything v2 in transformers' format, with the image processor's config."""

    def write(folder: Path, small: bool) -> None:
        from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

        width, stages = (32, [1, 2, 3, 4]) if small else (1024, [5, 12, 18, 24])
        config = {
            "architectures": ["DepthAnythingForDepthEstimation"],
            "backbone": None,
            "backbone_config": {
                "architectures": ["Dinov2Model"],
                "hidden_size": width,
                "image_size": 518,
                "model_type": "dinov2",
                "num_attention_heads": 2 if small else 16,
                "num_hidden_layers": stages[-1],
                "out_features": [f"stage{number}" for number in stages],
                "out_indices": stages,
                "patch_size": 14,
                "reshape_hidden_states": False,
                "torch_dtype": "float32",
            },
            "depth_estimation_type": "metric",
            "fusion_hidden_size": 8 if small else 256,
            "head_hidden_size": 4 if small else 32,
            "head_in_index": -1,
            "initializer_range": 0.02,
            "max_depth": max_depth,
            "model_type": "depth_anything",
            "neck_hidden_sizes": [4, 8, 8, 8] if small else [256, 512, 1024, 1024],
            "patch_size": 14,
            "reassemble_factors": [4, 2, 1, 0.5],
            "reassemble_hidden_size": width,
            "torch_dtype": "float32",
            "transformers_version": "4.42.0.dev0",
            "use_pretrained_backbone": False,
        }
        processor = {
            "do_normalize": True,
            "do_pad": False,
            "do_rescale": True,
            "do_resize": True,
            "ensure_multiple_of": 14,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "DPTImageProcessor",
            "image_std": [0.229, 0.224, 0.225],
            "keep_aspect_ratio": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": 518, "width": 518},
            "size_divisor": None,
        }
        torch.manual_seed(5)
        model = DepthAnythingForDepthEstimation(DepthAnythingConfig.from_dict(config))
        for parameter in model.parameters():  # transformers' std of 0.02 would hardly let a signal through
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        model.save_pretrained(folder)
        _write_json(folder / "config.json", config)
        _write_json(folder / "preprocessor_config.json", processor)

    return lambda stage, small: to_hub(stage, repository, lambda folder: write(folder, small))


# Language models.


def _llama_tokenizer(size: int):
    """A tokenizer of ``size`` tokens built like LLaMA-2's: byte pairs over characters, bytes for all others, spaces as "▁"."""
    from itertools import product

    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    letters = ["▁", *map(chr, range(33, 127))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), *letters]
    merges: list[tuple[str, str]] = []
    for length in (1, 2):
        stems = ["".join(stem) for stem in product(letters, repeat=length)]
        merges += product(stems, letters)
    merges = merges[: size - len(tokens)]
    vocabulary = {token: number for number, token in enumerate([*tokens, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    kinds = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence([*kinds])
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _llama2(repository: str, width: int, inner: int, heads: int, shards: int) -> Callable[[Path, bool], None]:
    """A LLaMA-2 with 2 of its layers: half precision in several files, and a tokenizer without a padding token."""

    def write(folder: Path, small: bool) -> None:
        from safetensors.torch import save_file
        from transformers import LlamaConfig, LlamaForCausalLM

        config = {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 32 if small else width,
            "initializer_range": 0.02,
            "intermediate_size": 64 if small else inner,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_attention_heads": 2 if small else heads,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2 if small else heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.31.0.dev0",
            "use_cache": True,
            "vocab_size": 1000 if small else 32000,
        }
        generation = {"bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0,
                      "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.31.0.dev0"}  # fmt: skip
        token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        tokenizer = {
            "add_bos_token": True,
            "add_eos_token": False,
            **{f"{kind}_token": {**token, "content": text} for kind, text in _SPECIALS.items()},
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": None,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
        }
        torch.manual_seed(6)
        torch.set_default_dtype(torch.float16)
        try:
            state = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
        finally:
            torch.set_default_dtype(torch.float32)
        head = config["hidden_size"] // config["num_attention_heads"]
        frequencies = 1 / 10000 ** (torch.arange(0, head, 2) / head)
        state |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone() for layer in range(2)}
        names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
        places = {key: names[number * shards // len(state)] for number, key in enumerate(state)}
        for name in names:
            part = {key: value for key, value in state.items() if places[key] == name}
            save_file(part, folder / name, {"format": "pt"})
        total = sum(value.nbytes for value in state.values())
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", generation)
        _write_json(folder / "tokenizer_config.json", tokenizer)
        _write_json(folder / "special_tokens_map.json", {f"{kind}_token": text for kind, text in _SPECIALS.items()})
        _llama_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))

    return lambda stage, small: to_hub(stage, repository, lambda folder: write(folder, small))


_SPECIALS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_DEPTH = "depth-anything/Depth-Anything-V2-Metric-{}-Large-hf"
#: By what the recipes call it: called with the folder of the rehearsal, and whether it is a small one.
MODELS: dict[str, Callable[[Path, bool], None]] = {
    "facebook/DiT-XL-2-256": _dit,
    "stabilityai/sd-vae-ft-ema": _vae,
    "DiT-XL-2-256x256.pt": lambda stage, small: _original(stage, small, "DiT-XL-2-256x256.pt"),
    "SiT-XL-2-256.pt": lambda stage, small: _original(stage, small, "SiT-XL-2-256.pt"),
    "REPA-SiT-XL-2.pt": _repa,
    "google/vit-base-patch16-224-in21k": _vit_in21k,
    "vit_base_patch16_224.augreg_in21k": _timm("vit_base_patch16_224.augreg_in21k"),
    "vit_large_patch14_dinov2.lvd142m": _timm("vit_large_patch14_dinov2.lvd142m"),
    _DEPTH.format("Indoor"): _depth_anything(_DEPTH.format("Indoor"), 20),
    _DEPTH.format("Outdoor"): _depth_anything(_DEPTH.format("Outdoor"), 80),
    "inception": _inception,
    LLAMA_7B: _llama2(LLAMA_7B, width=4096, inner=11008, heads=32, shards=2),
    LLAMA_13B: _llama2(LLAMA_13B, width=5120, inner=13824, heads=40, shards=3),
}
