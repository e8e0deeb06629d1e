from dataclasses import replace

import pytest
import torch

from onelora_vision.adapters.file import read_adapter, save_adapter, write_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import fingerprint
from onelora_vision.backbones.dit import DiTBase, dit_adaptation
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method


@pytest.fixture(scope="module", params=[False, True], ids=["split", "fused"])
def adapter(request, dit_folder, tmp_path_factory):
    """A trained-looking adapter for three new classes of the tiny pipeline folder, and the model it was saved from."""
    base = DiTBase.load(dit_folder)
    whole = dit_adaptation(base.model).whole_modules
    mark = fingerprint(base.model, whole)
    base.model.set_classes(["pie", "sushi", "waffles"], generator=torch.Generator().manual_seed(0))
    if request.param:
        base.model.fuse_qkv()
    model = apply_method(base.model, "onelora", dit_adaptation(base.model))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    info = AdapterInfo(
        task="generation",
        method="onelora",
        base=str(dit_folder),
        base_fingerprint=mark,
        class_names=["pie", "sushi", "waffles"],
        null_class=3,
        extra={
            "fuse_qkv": request.param,
            "sampling": {"sampler": "ddim", "steps": 3, "guidance_interval": [0.0, 0.9]},
        },
    )
    return save_adapter(model, tmp_path_factory.mktemp("adapter") / "a", info)


def test_loads_with_its_base_classes_and_settings(adapter):
    generator = load_adapted(adapter)
    assert generator.class_names == ["pie", "sushi", "waffles"]
    assert generator.settings == SamplingSettings(sampler="ddim", steps=3, guidance_interval=(0.0, 0.9))
    images = generator.sample(["sushi", "pie"], seeds=[1, 2])
    assert images.shape == (2, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(generator.sample(["pie"], seeds=[2]), generator.sample([0], seeds=[2]))
    assert not torch.allclose(generator.sample(["pie"], seeds=[2], adapted=False), images[1:], atol=1e-3)


def test_the_base_guides_the_adapter_and_its_own_pictures_as_ever(adapter):
    generator, own = load_adapted(adapter), SamplingSettings("ddim", 3, 2.5)
    from_base = replace(own, guidance_base=True)
    images = generator.sample(["pie", "sushi"], [1, 2], from_base)
    assert not torch.allclose(images, generator.sample(["pie", "sushi"], [1, 2], own), atol=1e-2)
    alone = (generator.sample(["pie", "sushi"], [1, 2], settings, adapted=False) for settings in (from_base, own))
    torch.testing.assert_close(*alone)
    torch.testing.assert_close(generator.sample(["pie", "sushi"], [1, 2], from_base), images)
    generator.model.merge_adapter()
    with pytest.raises(InputError, match="merged into its weights"):
        generator.sample(["pie"], [1], from_base)


def test_an_adapter_trained_towards_guidance_is_not_guided_again(adapter, tmp_path):
    trained = read_adapter(adapter)
    trained.info.extra |= {"training": {"guidance_distillation": 1.5}, "sampling": {"guidance_scale": 4.0, "steps": 2}}
    place = write_adapter(trained.config, trained.tensors, trained.info, tmp_path / "a")
    generator = load_adapted(place)
    assert generator.settings == SamplingSettings("dpm++", guidance_scale=1.0, steps=2)
    assert generator.sample(["pie"], [1]).shape == (1, 3, 16, 16)
    for change in ({"guidance_scale": 2.0}, {"guidance_base": True}):
        with pytest.raises(InputError, match="with guidance_distillation 1"):
            generator.sample(["pie"], [1], replace(generator.settings, **change))
    assert len(generator.sample(["pie"], [1], SamplingSettings(steps=2), adapted=False)) == 1


def test_the_single_file_is_enough(adapter, dit_folder, tmp_path):
    alone = tmp_path / "one.safetensors"
    alone.write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    expected = load_adapted(adapter).sample(["waffles"], seeds=[3])
    assert torch.equal(load_adapted(alone, base=dit_folder).sample(["waffles"], seeds=[3]), expected)


def test_a_velocity_base_draws_by_its_own_sampler_and_an_adapter_stays_with_its_objective(sit_folder, tmp_path):
    from onelora_vision.backbones.dit import save_pipeline
    from onelora_vision.backbones.dit_original import ORIGINALS

    base = DiTBase.load(sit_folder).fit(["pie", "sushi"])
    extra = {"objective": str(base.objective)}
    info = AdapterInfo("generation", "onelora", str(sit_folder), base.fingerprint(), ["pie", "sushi"], 2, extra=extra)
    model = apply_method(base.model, "onelora", base.adaptation())
    adapter = save_adapter(model, tmp_path / "a", info)
    generator = load_adapted(adapter, device="cpu")
    assert generator.settings.sampler == "heun"
    images = generator.sample(["pie"], seeds=[2], settings=SamplingSettings(steps=3))
    assert torch.equal(images, generator.sample(["pie"], seeds=[2], settings=SamplingSettings("heun", steps=3)))
    with pytest.raises(InputError, match="'ddim' is not for this base"):
        generator.sample(["pie"], seeds=[2], settings=SamplingSettings("ddim", steps=3))
    for original, predicts in {"dit": "epsilon", "repa": "velocity, image at t=0"}.items():
        other = DiTBase.load(sit_folder)  # the same weights, as another checkpoint
        other.scheduler = ORIGINALS[original].scheduler()
        save_pipeline(other, tmp_path / original)
        with pytest.raises(InputError, match=f"trained to predict velocity, image at t=1, but .* predicts {predicts}"):
            load_adapted(adapter, base=tmp_path / original, device="cpu")


def test_another_base_is_refused(adapter, dit_folder, tmp_path):
    from onelora_vision.backbones.dit import save_pipeline

    base = DiTBase.load(dit_folder)
    with torch.no_grad():
        base.model.proj_out_2.bias += 1
    save_pipeline(base, tmp_path / "other")
    with pytest.raises(InputError, match="another base"):
        load_adapted(adapter, base=tmp_path / "other")
    for wrong in ([], "pie"):
        with pytest.raises(InputError, match="sample takes a list of classes"):
            load_adapted(adapter, device="cpu").sample(wrong, [])
    with pytest.raises(InputError, match="no class 'pizza'"):
        load_adapted(adapter).sample(["pizza"], seeds=[0])
