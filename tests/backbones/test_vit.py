import copy
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.backbones.vit import ViTBase, predict_classes, vit_adaptation
from onelora_vision.backbones.vit_heads import classifier_names, logits_of
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method
from onelora_vision.tuners import probe_gradients

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
NAMES = ["ant", "bee", "cat"]


def tiny_timm(**options):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY, **options)
    nn.init.normal_(model.head.weight)
    return model.eval()


@pytest.fixture
def timm_folder(tmp_path):
    """A folder as timm's hub repositories are, with fp16 weights."""
    folder = tmp_path / "tiny-timm"
    folder.mkdir()
    weights = {name: value.half() for name, value in tiny_timm().state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    pretrained = {"input_size": [3, 16, 16], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "crop_pct": 0.9}
    pretrained |= {"interpolation": "bicubic", "num_classes": 3, "classifier": "head", "label_names": NAMES}
    pretrained |= {"fixed_input_size": True, "first_conv": "patch_embed.proj", "custom_load": False}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": TINY,
        "pretrained_cfg": pretrained,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tiny_transformers(labels=3):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=labels)
    config.id2label = dict(enumerate(NAMES[:labels]))
    return ViTForImageClassification(config).eval()


@pytest.fixture
def transformers_folder(tmp_path):
    tiny_transformers().save_pretrained(tmp_path / "tiny-hf")
    processor = {
        "image_mean": [0.4] * 3,
        "image_std": [0.2] * 3,
        "resample": 3,
        "size": {"height": 16, "width": 16},
        "image_processor_type": "ViTImageProcessor",
    }
    (tmp_path / "tiny-hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "tiny-hf"


def images(count=2):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_timm_folder(timm_folder):
    vit = ViTBase.load(str(timm_folder))
    assert vit.class_names == NAMES and vit.source == str(timm_folder)
    assert {p.dtype for p in vit.model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_of(vit.model.eval(), images()), tiny_timm()(images()), atol=5e-3, rtol=5e-3)
    config = vit.data_config
    assert tuple(config["input_size"]) == (3, 16, 16) and tuple(config["mean"]) == (0.1, 0.2, 0.3)
    white = vit.transform(Image.new("RGB", (40, 20), "white"))
    torch.testing.assert_close(white[:, 3, 3], torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))


def test_transformers_folder(transformers_folder):
    vit = ViTBase.load(str(transformers_folder))
    assert vit.class_names == NAMES
    assert torch.equal(logits_of(vit.model.eval(), images()), tiny_transformers()(images()).logits)
    assert vit.data_config["mean"] == (0.4,) * 3 and vit.data_config["interpolation"] == "bicubic"
    assert vit.transform(Image.new("RGB", (40, 20))).shape == (3, 16, 16)


def test_transformers_backbone_without_a_classifier_has_no_classes(tmp_path):
    tiny_transformers().vit.save_pretrained(tmp_path / "backbone")
    vit = ViTBase.load(str(tmp_path / "backbone"))
    assert vit.class_names is None
    vit = vit.fit([*"abcde"])
    assert logits_of(vit.model, images()).shape == (2, 5) and vit.model.config.id2label[4] == "e"


def test_embedded_base_is_small_and_knows_printed_characters():
    from onelora_vision import embedded
    from onelora_vision.data.synthetic.glyphs import render_glyphs

    assert sum(file.stat().st_size for file in embedded.VIT.iterdir()) <= 2e6
    vit = ViTBase.load()
    labels = torch.arange(144) % 36
    mean, std = (torch.tensor(vit.data_config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = vit.model.eval()((render_glyphs(labels, range(144)) - mean) / std)
    assert (logits.argmax(1) == labels).float().mean() > 0.7
    assert vit.class_names[10] == "A"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoint_file_with_its_architecture(tmp_path, suffix):
    model = timm.create_model("test_vit", num_classes=7)
    file = tmp_path / f"weights{suffix}"
    save_file(model.state_dict(), file) if suffix == ".safetensors" else torch.save(model.state_dict(), file)
    vit = ViTBase.load(str(file), architecture="test_vit")
    assert vit.model.num_classes == 7 and vit.class_names is None
    assert torch.equal(vit.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(InputError, match="--architecture"):
        ViTBase.load(str(file))
    with pytest.raises(InputError, match="not a checkpoint of vit_tiny"):
        ViTBase.load(str(file), architecture="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_244", "did you mean 'vit_base_patch16_224"),
        ("/no/such/folder", "no timm name, file, folder"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(InputError, match=message):
        ViTBase.load(name)


def test_folders_that_hold_no_model(tmp_path, timm_folder):
    with pytest.raises(InputError, match=r"no config\.json"):
        ViTBase.load(str(tmp_path))
    (timm_folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="tiny-timm: cannot be loaded"):
        ViTBase.load(str(timm_folder))


def test_adaptation_is_every_linear_but_the_classifier():
    model = tiny_timm()
    adaptation = vit_adaptation(model)
    assert [n for n in adaptation.target_modules if n.startswith("blocks.1.")] == [
        f"blocks.1.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert len(adaptation.target_modules) == 8 and adaptation.whole_modules == ["head"]
    assert set(adaptation.norm_modules) == {"norm", *(f"blocks.{k}.norm{n}" for k in (0, 1) for n in (1, 2))}
    separate = vit_adaptation(tiny_transformers())
    assert len(separate.target_modules) == 12 and separate.whole_modules == ["classifier"]
    assert not any("classifier" in name for name in separate.target_modules)
    with pytest.raises(InputError, match="no classification head: give the number of classes"):
        vit_adaptation(timm.create_model("test_vit", num_classes=0))


def test_a_timm_folder_without_a_head_gets_the_one_of_its_family(timm_folder):
    """As DINOv2 and SigLIP come from timm."""
    config = json.loads((timm_folder / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
    del config["pretrained_cfg"]["label_names"]
    (timm_folder / "config.json").write_text(json.dumps(config))
    weights = {name: value for name, value in tiny_timm().state_dict().items() if not name.startswith("head.")}
    save_file(weights, timm_folder / "model.safetensors")
    vit = ViTBase.load(str(timm_folder))
    assert vit.class_names is None and vit.model.num_classes == 0
    vit = vit.fit(["x", "y"])
    assert vit_adaptation(vit.model).whole_modules == ["head"] and vit.model.num_classes == 2
    torch.testing.assert_close(vit.model.eval().forward_features(images()), tiny_timm().forward_features(images()))
    assert logits_of(vit.model, images()).shape == (2, 2)


def test_distilled_models_have_two_heads():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **TINY)
    vit = ViTBase(model=model, data_config={}).fit(["a", "b"])
    assert classifier_names(model) == vit_adaptation(model).whole_modules == ["head", "head_dist"]
    assert logits_of(vit.model.eval(), images()).shape == (2, 2)


def test_a_head_for_known_classes_keeps_their_rows(timm_folder):
    old = ViTBase.load(str(timm_folder))
    before = logits_of(old.model.eval(), images())
    new = old.fit(["cat", "ant"])
    assert torch.equal(logits_of(new.model, images()), before[:, [2, 0]])
    assert new.class_names == ["cat", "ant"]


def test_a_head_for_other_classes_is_drawn_by_the_seed(timm_folder):
    weights = [
        ViTBase.load(str(timm_folder)).fit(names, seed=seed, fresh=fresh).model.head.weight
        for names, seed, fresh in ((["cat", "dog"], 0, False), (["x", "y"], 0, False), (["cat", "ant"], 1, True))
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert 0.01 < weights[0].std() < 0.03 and weights[0].abs().max() <= 0.04


@pytest.mark.parametrize("method", ["onelora", "onelora_norms", "lora", "head"])
@pytest.mark.parametrize("host", ["timm", "transformers"])
def test_methods_train_what_they_should_and_start_from_the_base(host, method):
    model = tiny_timm() if host == "timm" else tiny_transformers()
    expected = logits_of(model, images())
    adapted = apply_method(model, method, vit_adaptation(model)).eval()
    torch.testing.assert_close(logits_of(adapted, images()), expected)
    logits_of(adapted, images()).square().sum().backward()
    probe_gradients(adapted)
    trained = {
        name.split(".")[-2] if "modules_to_save" in name else "vector"
        for name, p in adapted.named_parameters()
        if p.grad is not None
    }
    assert trained == {"head": {"default"}}.get(method, {"default", "vector"})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("beit_base_patch16_224", {**TINY, "depth": 1}),
        ("eva02_tiny_patch14_224", {**TINY, "embed_dim": 16, "depth": 1}),
        (
            "swinv2_tiny_window8_256",
            {
                "img_size": 32,
                "patch_size": 4,
                "window_size": 4,
                "embed_dim": 12,
                "depths": (1, 1),
                "num_heads": (2, 2),
            },
        ),
    ],
)
@pytest.mark.parametrize("method", ["onelora", "bitfit", "lora", "mora1"])
def test_attention_that_reads_the_weight_of_qkv_calls_the_adapted_layer(name, sizes, method):
    """timm's BEiT, EVA and Swin-V2 have a bias for q and v next to a qkv layer without one."""
    model = timm.create_model(name, num_classes=3, **sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    x, names = torch.randn(2, 3, sizes["img_size"], sizes["img_size"]), set(model.state_dict())
    expected = logits_of(model, x)
    adapted = apply_method(model, method, vit_adaptation(model)).eval()
    torch.testing.assert_close(logits_of(adapted, x), expected)
    logits_of(adapted.train(), x).square().sum().backward()
    probe_gradients(adapted)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if parameter.requires_grad and ".qkv." in key:
                parameter.normal_()
        trained = logits_of(adapted.eval(), x)
        assert not torch.allclose(trained, expected)
        plain = copy.deepcopy(adapted).unload()
        assert set(plain.state_dict()) == names
        torch.testing.assert_close(logits_of(plain, x), expected)
        torch.testing.assert_close(logits_of(adapted.merge_and_unload(), x), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("host", ["timm", "transformers"])
def test_gradient_checkpointing_changes_no_gradient(host):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_timm() if host == "timm" else tiny_transformers()
        if checkpointing:
            enable_gradient_checkpointing(model)
        adapted = apply_method(model, "onelora", vit_adaptation(model)).train()
        logits_of(adapted, images()).square().sum().backward()
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert len(gradients[0]) > 8
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_resolution_and_drop_path_reach_timm(timm_folder, transformers_folder):
    vit = ViTBase.load(str(timm_folder), resolution=32, drop_path=0.2)
    assert vit.model.pos_embed.shape[1] == 17 and tuple(vit.data_config["input_size"]) == (3, 32, 32)
    assert vit.model.blocks[1].drop_path1.drop_prob == pytest.approx(0.2)
    with pytest.raises(InputError, match="transformers'"):
        ViTBase.load(str(transformers_folder), drop_path=0.2)


def test_predictions_are_named_and_ordered(timm_folder):
    vit = ViTBase.load(str(timm_folder))
    pictures = [Image.new("RGB", (20, 20), color) for color in ("red", "green", "blue")]
    found = predict_classes(vit, pictures, top=2, batch_size=2)
    expected = vit.model(torch.stack([vit.transform(p) for p in pictures])).softmax(1)
    for prediction, row in zip(found, expected):
        assert [name for name, _ in prediction] == [NAMES[k] for k in row.argsort(descending=True)[:2]]
        assert prediction[0][1] == pytest.approx(row.max().item(), abs=1e-5)
    assert len(predict_classes(vit, pictures, top=5)[0]) == 3


def test_a_host_without_gradient_checkpointing_is_refused():
    for model in (nn.Linear(2, 2), timm.create_model("resnet18", num_classes=2).layer1):
        with pytest.raises(InputError, match=r"--gradient_checkpointing: \w+ does not support it"):
            enable_gradient_checkpointing(model)


def test_a_family_of_any_size_has_no_resolution_to_change():
    with pytest.raises(InputError, match="not built for one size, so --resolution cannot change it"):
        ViTBase.load("resnet10t", resolution=64, pretrained=False)
