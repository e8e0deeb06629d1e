"""An evaluation of many samples is interrupted and resumed; the picture of a run."""

import contextlib

import pytest
import torch
from accelerate import Accelerator

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.metrics import parts
from onelora_vision.metrics.generative import Features, FeatureSet
from onelora_vision.metrics.parts import KeptParts
from onelora_vision.tasks import sample_evaluation
from onelora_vision.tasks.sample_evaluation import ImageSampler, Reference, SampleEvaluator, SamplePicture


class Means(Features):
    name, weights_hash, dim = "means", "none", 3

    def __init__(self):
        self.model = torch.nn.Linear(1, 1)

    def __call__(self, images):
        return FeatureSet(images.mean((2, 3)))


class Drawn(ImageSampler):
    """Draws noise instead of sampling; ends, if told to, like a process that is killed."""

    left = None
    drawn = 0

    def __call__(self, model, labels, seeds, autocast=None):
        for seed in seeds:
            if Drawn.left == 0:
                raise KeyboardInterrupt
            Drawn.left = None if Drawn.left is None else Drawn.left - 1
            Drawn.drawn += 1
            yield torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def evaluator(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (parts, sample_evaluation):
        monkeypatch.setattr(module, "SIZE", 10)
    monkeypatch.setattr(Drawn, "left", None)
    monkeypatch.setattr(Drawn, "drawn", 0)
    sampler = Drawn(torch.nn.Linear(1, 1), {"beta_schedule": "linear"}, SamplingSettings(), 1)
    reference = Reference(FeatureSet(torch.rand(20, 3, generator=torch.Generator().manual_seed(0))), "set/test")
    return SampleEvaluator(sampler, ["a", "b"], Means(), reference, 35)


def test_an_interrupted_evaluation_draws_only_what_is_missing(evaluator, tmp_path):
    model, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    whole = evaluator(model, accelerator)
    assert Drawn.drawn == 35 and not list(tmp_path.rglob("*.safetensors"))
    Drawn.left = 23
    with pytest.raises(KeyboardInterrupt):
        evaluator(model, accelerator)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    Drawn.left, Drawn.drawn = None, 0
    assert evaluator(model, accelerator) == whole
    assert Drawn.drawn == 15 and not list(tmp_path.rglob("*.safetensors"))


def test_parts_of_another_model_are_not_taken(evaluator):
    model, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    Drawn.left = 23
    with pytest.raises(KeyboardInterrupt):
        evaluator(model, accelerator)
    Drawn.left, Drawn.drawn = None, 0
    with torch.no_grad():
        model.bias += 1
    evaluator(model, accelerator)
    assert Drawn.drawn == 35


def test_a_damaged_part_is_drawn_again(evaluator, tmp_path):
    model, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    Drawn.left = 23
    with pytest.raises(KeyboardInterrupt):
        evaluator(model, accelerator)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"damaged")
    Drawn.left, Drawn.drawn = None, 0
    evaluator(model, accelerator)
    assert Drawn.drawn == 25


def test_processes_share_out_each_part(evaluator):
    shares = [list(KeptParts("", rank, 3).shares(25)) for rank in range(3)]
    assert [len(share) for share in shares[0]] == [4, 3, 2]
    assert sorted(i for own in shares for share in own for i in share) == list(range(25))
    assert all(i % 3 == rank for rank, own in enumerate(shares) for share in own for i in share)


class Switched(torch.nn.Module):
    """A model that says whether its adapter is off."""

    is_off = False

    @contextlib.contextmanager
    def disable_adapter(self):
        self.is_off = True
        yield
        self.is_off = False


def test_the_picture_guides_the_base_where_the_adapter_was_trained_to_do_without(monkeypatch, tmp_path):
    calls, shown = [], {}

    class Recorded(Drawn):
        def __call__(self, model, labels, seeds, autocast=None):
            calls.append((model.is_off, self.settings.guidance_scale, tuple(seeds)))
            return super().__call__(model, labels, seeds)

    def save(path, panels, names, caption):
        shown.update(path=path, panels=[*panels], caption=caption)

    monkeypatch.setattr(sample_evaluation, "save_comparison", save)
    plain, guided = (
        Recorded(torch.nn.Linear(1, 1), {"beta_schedule": "linear"}, SamplingSettings(guidance_scale=scale))
        for scale in (1.0, 4.0)
    )
    for own, title in ((guided, "base, guidance 4"), (None, "base")):
        calls.clear()
        SamplePicture(plain, ["a"], [0], 2, base_sampler=own).draw(tmp_path / "samples.png", Switched(), "lora")
        (_, adapted, seeds), (is_off, base, same) = calls
        assert shown["panels"] == [title, "lora"] and shown["caption"].endswith("guidance 1") and same == seeds
        assert is_off and (adapted, base) == (1, 4 if own else 1)
