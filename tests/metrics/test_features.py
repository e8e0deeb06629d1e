from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from random_inception import write_inception
from safetensors.torch import save_file

from onelora_vision.errors import InputError
from onelora_vision.metrics.dinov2 import DinoFeatures
from onelora_vision.metrics.features import cached_features, open_features
from onelora_vision.metrics.frechet import frechet_distance
from onelora_vision.metrics.generative import FeatureSet, collect, compare
from onelora_vision.metrics.inception import InceptionFeatures


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("weights") / "inception.pth", ("2048",))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of eight pictures, of different kinds, and the pictures as tensors in [0, 1]."""
    root, tensors = tmp_path_factory.mktemp("pictures"), {}
    for number, kind in enumerate(("real", "made")):
        noise = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(number))
        smooth = torch.nn.functional.interpolate(noise ** (1 + number), (48, 48), mode="bilinear")
        tensors[kind] = (smooth * 255).round() / 255
        (root / kind).mkdir()
        for index, image in enumerate(tensors[kind]):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(root / kind / f"{index:02d}.png")
    return root, tensors


@pytest.mark.parametrize("layer", ["192", pytest.param("2048", marks=pytest.mark.slow)])
def test_agrees_with_torch_fidelity_on_the_same_folders(inception_file, folders, layer):
    from torch_fidelity import calculate_metrics

    root, tensors = folders
    theirs = calculate_metrics(
        input1=str(root / "made"), input2=str(root / "real"), cuda=False, fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_file),
        feature_layer_fid=layer, feature_layer_kid=layer, feature_layer_prc=layer, kid_subset_size=8, batch_size=4,
        verbose=False, cache=False, num_workers=0, save_cpu_ram=True,
    )  # fmt: skip
    features = InceptionFeatures(inception_file, layer)
    real, made = (collect(features, tensors[kind].split(4)) for kind in ("real", "made"))
    figures = compare(made, real, "inception")
    assert figures["fd_inception"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert figures["kid_inception"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert figures["precision_inception"] == pytest.approx(theirs["precision"])
    assert figures["recall_inception"] == pytest.approx(theirs["recall"])


def test_inception_loads_safely_and_says_what_is_missing(inception_file, tmp_path, monkeypatch):
    as_safetensors = tmp_path / "inception.safetensors"
    save_file(torch.load(inception_file, weights_only=True), as_safetensors)
    images = torch.rand(1, 3, 20, 20)
    first, second = InceptionFeatures(inception_file, "64"), open_features("inception", as_safetensors)
    assert first.weights_hash == second.weights_hash and (first.dim, second.dim) == (64, 2048)
    assert first(images).features.shape == (1, 64)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"hub/checkpoints/weights-inception.*download https"):
        open_features("inception")
    fetched = []

    def fetch(url, path, hash_prefix):
        fetched.append(url)
        torch.save(torch.load(inception_file, weights_only=True), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        assert open_features("inception", "download").weights_hash == first.weights_hash
    assert len(fetched) == 1
    torch.save({"a": print}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        InceptionFeatures(tmp_path / "evil.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not the weights of FID's InceptionV3"):
        InceptionFeatures(tmp_path / "other.pth")


def test_dinov2_is_timms_with_its_own_preprocessing(tmp_path, folders):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, img_size=224, global_pool="token").eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    features = open_features("dinov2", tmp_path / "model.safetensors", "test_vit")
    assert (features.name, features.dim) == ("dinov2", 64)
    images = folders[1]["real"]
    pixels = torch.nn.functional.interpolate(images[:2], (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((pixels - mean) / std)
    torch.testing.assert_close(features(images[:2]).features, expected)
    with pytest.raises(InputError, match=r"fid_weights None.*huggingface.co/timm"):
        DinoFeatures()
    with pytest.raises(InputError, match="cannot be loaded into timm's test_vit2"):
        DinoFeatures(tmp_path / "model.safetensors", "test_vit2")
    with pytest.raises(InputError, match="did you mean 'inception'"):
        open_features("inceptoin")


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A cache in ``tmp_path``, a function that computes features, and how often it was called."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def compute():
        calls.append(1)
        return FeatureSet(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)))

    return compute, calls


def test_reference_features_are_computed_once(counted, tmp_path):
    compute, calls, model = *counted, SimpleNamespace(name="colour", weights_hash="1")
    cached_features(["a"], model, compute, write=False)
    assert not (tmp_path / "cache").exists()
    first, second = cached_features(["a"], model, compute), cached_features(["a"], model, compute)
    assert len(calls) == 2 and frechet_distance(first.statistics, second.statistics) < 1e-12
    cached_features(["b"], model, compute)
    cached_features(["a"], SimpleNamespace(name="colour", weights_hash="2"), compute)
    assert len(calls) == 4


def test_a_damaged_cache_is_a_warning_and_replaced(counted, tmp_path, caplog):
    compute, calls, model = *counted, SimpleNamespace(name="colour", weights_hash="1")
    cached_features(["a"], model, compute)
    (kept,) = (tmp_path / "cache").rglob("*.safetensors")
    kept.write_bytes(b"nothing")
    assert len(cached_features(["a"], model, compute)) == 9
    assert len(caplog.messages) == 1 and f"{kept} is damaged" in caplog.messages[0]
    cached_features(["a"], model, compute)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_costs_no_features(counted, tmp_path, caplog):
    compute, calls, model = *counted, SimpleNamespace(name="colour", weights_hash="1")
    (tmp_path / "cache").touch()  # a file in the place of the folder
    assert len(cached_features(["a"], model, compute)) == 9 and len(calls) == 1
    assert len(caplog.messages) == 1 and "could not write" in caplog.messages[0]
