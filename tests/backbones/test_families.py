"""Families of image classifiers in timm and transformers: each trains, saves, reloads and merges, or is refused in one line.

``python tests/backbones/test_families.py`` prints the table of all of them.
"""

import copy
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from onelora_vision.adapters.file import read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.vit import ViTBase, vit_adaptation
from onelora_vision.backbones.vit_heads import classifier_names, logits_of
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method
from onelora_vision.tuners import probe_gradients

CLASSES = ["a", "b", "c"]


# One variant of each module of timm that has linear layers to adapt, made small where its arguments allow. A module that is
# not here is taken by its shortest name.
PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY = {"embed_dim": 64, "depth": 2, "num_heads": 2}
WINDOWS = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
FOUR = {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2)}
TIMM = {
    "beit": ("beit_base_patch16_224", PLAIN),
    "cait": ("cait_xxs24_224", PLAIN),
    "coat": ("coat_tiny", {"img_size": 64, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1}),
    "convit": ("convit_tiny", {**PLAIN, "num_heads": 4, "local_up_to_layer": 1}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "davit": ("davit_tiny", FOUR),
    "deepseek_vit": ("deepseek_vit_412m", {**TINY, "img_size": 56}),
    "deit": ("deit_tiny_distilled_patch16_224", PLAIN),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "eva": ("eva02_tiny_patch14_224", PLAIN),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m_enc", TINY),
    "hiera": ("hiera_tiny_224", {"stages": (1, 1, 1, 1), "embed_dim": 16}),
    "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "inception_next": ("inception_next_atto", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_maxvit", {}),
    "metaformer": ("caformer_s18", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", TINY),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "pit": ("pit_ti_224", {"img_size": 64}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", TINY),
    "sequencer": ("sequencer2d_s", {"img_size": 56}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", WINDOWS),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", WINDOWS),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {**FOUR, "img_size": 64, "embed_dims": None}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_patch16_224", {"img_size": 32, "depth": 2}),
    "twins": ("twins_svt_small", {**FOUR, "img_size": 64}),
    "vision_transformer": ("test_vit", {"img_size": 32}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {**TINY, "img_size": 64}),
    "vision_transformer_relpos": ("test_vit_relpos", {"img_size": 32}),
    "vision_transformer_sam": ("samvit_base_patch16_224", PLAIN),
    "visformer": ("visformer_tiny", {"img_size": 64}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "xcit": ("xcit_nano_12_p16_224", {"img_size": 32, "depth": 2, "cls_attn_layers": 1}),
}
TIMM["swin_transformer_v2_cr"][1].pop("embed_dims")

# Bases of timm that come without a head.
HEADLESS = {
    "DINOv2": ("vit_small_patch14_dinov2", PLAIN),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", PLAIN),
    "DINOv3": ("vit_small_patch16_dinov3", {**PLAIN, "embed_dim": 48}),
    "SigLIP": ("vit_base_patch16_siglip_224", PLAIN),
    "EVA-02 MIM": ("eva02_tiny_patch14_224", PLAIN),
}

# Configs of transformers' image classifiers. Types that are not here have their defaults.
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZE = {"image_size": 32, "patch_size": 8}
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
TOWER = {"vision_config": {**LAYERS, **SIZE}, "text_config": {**LAYERS, "vocab_size": 10}}
PYRAMID = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
TRANSFORMERS = {
    "beit": {**LAYERS, **SIZE},
    "clip": TOWER,
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "cvt": {"embed_dim": [8, 8, 16], "depth": [1, 2, 3], "num_heads": [1, 1, 2]},
    "data2vec-vision": {**LAYERS, **SIZE},
    "deit": {**LAYERS, **SIZE},
    "dinov2": {**LAYERS, **SIZE},
    "dinov2_with_registers": {**LAYERS, **SIZE},
    "donut-swin": {**STAGES, "image_size": 32, "patch_size": 4, "window_size": 4},
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "image_size": 32, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "hiera": {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1,
              "mlp_ratio": 2.0, "masked_unit_size": [2, 2]},
    "ijepa": {**LAYERS, **SIZE},
    "imagegpt": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 8},
    "levit": {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [1, 1, 1], "depths": [1, 1, 1],
              "key_dim": [4, 4, 4]},
    "metaclip_2": TOWER,
    "mobilevit": {"image_size": 128, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]},
    "mobilevitv2": {"image_size": 64},
    "perceiver": {"num_latents": 4, "d_latents": 16, "num_blocks": 1, "num_self_attends_per_block": 1,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": 16},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "pvt": {**PYRAMID, "image_size": 64},
    "pvt_v2": {**PYRAMID, "image_size": 64},
    "segformer": PYRAMID,
    "shieldgemma2": {"vision_config": {**LAYERS, **SIZE}, "text_config": {**LAYERS, "vocab_size": 10}},
    "siglip": TOWER,
    "siglip2": {"vision_config": {**LAYERS, "patch_size": 8}, "text_config": {**LAYERS, "vocab_size": 10}},
    "swiftformer": {"image_size": 64},
    "swin": {**STAGES, "image_size": 32, "patch_size": 4, "window_size": 4},
    "swinv2": {**STAGES, "image_size": 32, "patch_size": 4, "window_size": 4},
    "timm_wrapper": {"architecture": "test_vit", "model_args": {"img_size": 32}},
    "vit": {**LAYERS, **SIZE},
    "vit_msn": {**LAYERS, **SIZE},
}  # fmt: skip


def timm_modules():
    """The registry's modules of timm, with the variant and the arguments that stand for each."""
    from timm.models._registry import _module_to_models

    return {m: TIMM.get(m) or (min(_module_to_models[m], key=len), {}) for m in sorted(_module_to_models)}


def transformers_types():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return {kind: TRANSFORMERS.get(kind, {}) for kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}


def build_timm(name, options, device="cpu", classes=3):
    """A timm model and the size of its images (3, H, W)."""
    import timm

    with torch.device(device):
        model = timm.create_model(name, num_classes=classes, **options)
    size = model.pretrained_cfg["input_size"]
    side = options.get("img_size") or min(size[-1], 256)
    return model, (3, side, side)


def build_transformers(kind, options):
    """A saved and loaded classifier of transformers by the type of its model, and the size of its images (3, H, W)."""
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    config, classes = AutoConfig.for_model(kind, **options), MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[kind]
    config.num_labels, config.architectures = 3, [classes if isinstance(classes, str) else classes[0]]
    with tempfile.TemporaryDirectory() as place:
        try:
            AutoModelForImageClassification.from_config(config).save_pretrained(place)
        except ImportError:  # a package is missing: loading says which
            config.save_pretrained(place)
            save_file({}, Path(place) / "model.safetensors", {"format": "pt"})
        vit = ViTBase.load(place)
    return vit.model, vit.data_config["input_size"]


@torch.no_grad()
def awaken(model):
    """Random values for everything, so that no gate of the initialisation is closed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model.train().eval()  # some keep what they computed from the old values until they train


def check(model, size):
    """Train a step, save, reload and merge; the number of adapted layers."""
    torch.manual_seed(0)
    model = ViTBase(model=model, data_config={}).fit(CLASSES).model
    for module in model.modules():
        if hasattr(module, "drop_prob"):  # stochastic depth, which skips whole blocks
            module.drop_prob = 0.0
    adaptation = vit_adaptation(model)
    base = copy.deepcopy(awaken(model))
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = logits_of(base, images)
    assert expected.shape == (2, 3)
    adapted = apply_method(model, "onelora", adaptation)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(adapted.eval(), images), expected, atol=1e-4, rtol=1e-4)
    logits_of(adapted.train(), images).square().sum().backward()
    probe_gradients(adapted)
    vectors = {name: p for name, p in adapted.named_parameters() if "onelora_" in name}
    still = [name for name, vector in vectors.items() if not vector.grad.abs().max() > 0]
    assert len(vectors) == len(adaptation.target_modules) and not still, still
    # the step in training mode has moved the running statistics of batch norms, which are the base's
    base.load_state_dict({k: v for k, v in plain_state(adapted).items() if k in base.state_dict()}, strict=False)
    with torch.no_grad():
        for vector in vectors.values():
            vector.uniform_(-0.01, 0.01)
        trained = logits_of(adapted.eval(), images)
        assert not torch.allclose(trained, expected)
        with tempfile.TemporaryDirectory() as place:
            save_adapter(adapted, Path(place) / "adapter", AdapterInfo("classification", "onelora", "base"))
            again = read_adapter(Path(place) / "adapter").attach(base).eval()
        assert torch.equal(logits_of(again, images), trained)
        merged = adapted.merge_and_unload().eval()
        torch.testing.assert_close(logits_of(merged, images), trained, atol=1e-3, rtol=1e-3)
    return len(vectors)


def plain_state(adapted):
    return {key.replace(".base_layer", ""): value for key, value in adapted.get_base_model().state_dict().items()}


def outcome(build, *arguments):
    """``works (n layers)`` or ``refused: reason`` for one family."""
    try:
        return f"works ({check(*build(*arguments))} layers)"
    except InputError as error:
        assert "\n" not in str(error)
        return f"refused: {error}"


def timm_outcome(name, options):
    """`outcome` for a variant of timm; what has no linear layers to adapt is found out without weights."""
    try:
        if not vit_adaptation(build_timm(name, options, "meta")[0]).target_modules:
            return f"refused: {name} has no linear layer but its classifier"
    except InputError as error:
        return f"refused: {error}"
    return outcome(build_timm, name, options)


def walk(timm_families, transformers_families):
    """(library, family, outcome) of families, one at a time."""
    for module, (name, options) in timm_families.items():
        yield "timm", f"{module} ({name})", timm_outcome(name, options)
    for kind, options in transformers_families.items():
        yield "transformers", kind, outcome(build_transformers, kind, options)


QUICK = ["beit", "cait", "convit", "convnext", "davit", "deit", "eva", "hiera", "mambaout", "swin_transformer"]
QUICK += ["swin_transformer_v2", "twins", "vision_transformer", "vision_transformer_sam", "xcit"]
LINEAR = ["beit", "clip", "convnext", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "hiera"]
LINEAR += [
    "ijepa",
    "levit",
    "metaclip_2",
    "pvt",
    "segformer",
    "siglip",
    "swin",
    "swinv2",
    "timm_wrapper",
    "vit",
    "vit_msn",
]


@pytest.mark.parametrize("module", QUICK)
def test_families_of_timm(module):
    assert timm_outcome(*TIMM[module]).startswith("works")


@pytest.mark.parametrize("kind", LINEAR)
def test_families_of_transformers(kind):
    assert outcome(build_transformers, kind, TRANSFORMERS[kind]).startswith("works")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dinat", "cannot be loaded .DinatForImageClassification requires the natten library"),
        ("imagegpt", "does not classify images of 224 x 224 pixels"),
        ("mobilenet_v2", "no linear layer to adapt"),
        ("perceiver", "no Linear classification layer"),
        ("pp_lcnet", "does not classify images"),
        ("siglip2", "does not classify images"),
    ],
)
def test_families_that_are_refused_say_why(kind, reason):
    assert re.match(f"refused: .*{reason}", outcome(build_transformers, kind, TRANSFORMERS.get(kind, {})))


@pytest.mark.parametrize("family", HEADLESS)
def test_bases_of_timm_without_a_head_get_one(family):
    name, options = HEADLESS[family]
    model, size = build_timm(name, options, classes=0)
    assert model.num_classes == 0 and classifier_names(model) == []
    with pytest.raises(InputError, match="no classification head: give the number of classes"):
        vit_adaptation(model)
    assert check(model, size) >= 8 and model.num_classes == 3 and classifier_names(model) == ["head"]


@pytest.mark.slow
def test_every_family_works_or_is_refused():
    """No family fails in another way; the counts are those of docs/classification.md."""
    rows = list(walk(timm_modules(), transformers_types()))
    assert len(rows) > 130
    for library, family, what in rows:
        assert what.startswith(("works", "refused: ")), (library, family, what)
        assert "gradient" not in what, (library, family, what)


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:]
    families = timm_modules(), transformers_types()
    if chosen:
        families = tuple({key: value for key, value in part.items() if key in chosen} for part in families)
    counts = Counter()
    for row in walk(*families):
        counts[row[0], row[2].split()[0].rstrip(":")] += 1
        print(f"{row[0]:12} {row[1]:58} {row[2]}", flush=True)
    for (library, what), count in sorted(counts.items()):
        print(f"{library}: {count} {what}")
