"""Whose predictions guide, by plain forward passes of a base and of a model with an adapter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_hosts import build, close, example, fresh, shake

from onelora_vision.compressions import COMPRESSIONS
from onelora_vision.diffusion.guidance import GuidedModel, base_alone, base_prediction, distilled_target, require_base
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.methods.names import METHODS

NULL = 3  # of the tiny DiT's three classes
FROM_BASE = SamplingSettings(guidance_scale=2.5, guidance_base=True)
ONE_PASS = {"onelora", "onelora_norms", "bitfit", "difffit", "mora1", "mora6", "head", "full"}


def inputs():
    given = example("diffusers")
    return given["hidden_states"], torch.tensor(300), given["class_labels"]


def predict(model, x, t, labels):
    with torch.no_grad():
        return model(x, timestep=t.expand(len(x)), class_labels=labels).sample


def expected(model, base, scale=2.5):
    """Noise and variance of latents guided away from ``base``, from two forward passes."""
    x, t, labels = inputs()
    given, without = predict(model, x, t, labels), predict(base, x, t, torch.full_like(labels, NULL))
    return torch.cat([without[:, :4] + scale * (given[:, :4] - without[:, :4]), given[:, 4:]], 1)


def count_passes(model):
    seen = []
    model.get_base_model().register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


@torch.no_grad()
def guided(*args):
    return GuidedModel(*args)(*inputs())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ln_tuning"])  # DiT's norms have no parameters
def test_the_base_guides_every_method(method):
    model, base = shake(build("diffusers", method)).requires_grad_(False), fresh("diffusers")[0]
    passes = count_passes(model)
    before = predict(model, *inputs())
    found = guided(model, FROM_BASE)
    assert passes[1:] == ([4] if method in ONE_PASS else [2, 2])
    close(found, expected(model, base))
    assert not torch.allclose(found, guided(model, SamplingSettings(guidance_scale=2.5)), rtol=1e-3, atol=1e-3)
    assert torch.equal(predict(model, *inputs()), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "sum"])
def test_the_base_guides_every_compression_in_one_pass(compression):
    model, base = shake(build("diffusers", "onelora", compression=compression)), fresh("diffusers")[0]
    passes = count_passes(model)
    found = guided(model, FROM_BASE)
    assert passes == [4]
    close(found, expected(model, base))


def test_a_base_at_hand_is_asked_and_the_model_only_called():
    model, base = shake(build("diffusers", "lora")), fresh("diffusers")[0]
    with torch.no_grad():
        base.proj_out_2.bias += 1  # another one than the model's own
    passes = count_passes(model)
    found = guided(model, FROM_BASE, base)
    assert passes == [2]
    close(found, expected(model, base))
    assert torch.equal(guided(base, FROM_BASE, base), guided(base, SamplingSettings(guidance_scale=2.5)))


def test_several_active_adapters_are_switched_off_together():
    model, base = shake(build("diffusers", "onelora")), fresh("diffusers")[0]
    config = build("diffusers", "onelora").peft_config["default"]
    config.modules_to_save, config.init_weights = None, False
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    passes, alone = count_passes(model), shake(build("diffusers", "onelora"))
    found = guided(model, FROM_BASE)
    assert passes == [2, 2]
    close(found, expected(model, base))
    assert not torch.allclose(found, expected(alone, base), atol=1e-3)


@pytest.mark.parametrize("method", ["onelora", "lora"])
def test_a_model_whose_adapter_is_switched_off_guides_itself(method):
    model, base = shake(build("diffusers", method)), fresh("diffusers")[0]
    with model.disable_adapter():
        passes = count_passes(model)
        found = guided(model, FROM_BASE)
        assert passes == [4] and torch.equal(found, guided(model, SamplingSettings(guidance_scale=2.5)))
        assert torch.equal(predict(model, *inputs()), predict(base, *inputs()))
    close(found, expected(base, base))
    assert not torch.allclose(predict(model, *inputs()), predict(base, *inputs()), atol=1e-3)


def test_a_scale_of_one_and_steps_outside_the_interval_are_one_plain_pass():
    model = shake(build("diffusers", "lora"))
    plain, passes = predict(model, *inputs()), count_passes(model)
    assert torch.equal(guided(model, SamplingSettings(guidance_scale=1.0, guidance_base=True)), plain)
    with torch.no_grad():
        assert torch.equal(GuidedModel(model, FROM_BASE)(*inputs(), guided=False), plain)
    assert passes == [2, 2]


def test_of_guided_channels_the_others_are_those_of_the_class():
    model, base = shake(build("diffusers", "onelora")), fresh("diffusers")[0]
    settings = SamplingSettings(guidance_scale=2.5, guidance_base=True, guidance_channels=3)
    found, given = guided(model, settings), predict(model, *inputs())
    close(found[:, :3], expected(model, base)[:, :3])
    close(found[:, 3:], given[:, 3:])


@pytest.mark.parametrize("method", ["onelora", "lora", "full"])
def test_the_base_alone_leaves_what_is_trained_as_it_is(method):
    model, base = shake(build("diffusers", method)), fresh("diffusers")[0]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    x, t, labels = inputs()
    found = base_prediction(model, x, t.expand(2))
    assert not found.requires_grad
    close(found, predict(base, x, t, torch.full_like(labels, NULL)), 1e-6)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    frozen = model.requires_grad_(False)
    with pytest.raises(KeyError), base_alone(frozen):
        raise KeyError
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def merged():
    model = shake(build("diffusers", "onelora"))
    model.merge_adapter()
    return model


def of_peft(**fields):
    return build("diffusers", "lora", peft_fields={"peft_type": "LORA", "r": 1, **fields})


def with_biases():
    return get_peft_model(fresh("diffusers")[0], LoraConfig(r=1, target_modules=["to_q"], bias="all"))


def without_null_class():
    model = build("diffusers", "onelora")
    table = model.get_base_model().label_table.original_module
    table.weight = torch.nn.Parameter(table.weight[:-1], requires_grad=False)
    model.base_model.disable_adapter_layers()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fresh("diffusers")[0], "no adapter that can be switched off"),
        (lambda: merged().merge_and_unload(), "no adapter that can be switched off"),
        (merged, "the adapter is merged into its weights: call unmerge_adapter"),
        (lambda: of_peft(init_lora_weights="pissa"), "init_lora_weights=pissa takes its first values out of the base"),
        (lambda: of_peft(init_lora_weights="olora"), "init_lora_weights=olora"),
        (with_biases, "bias=all trains the base's own biases"),
    ],
)
def test_a_base_that_cannot_be_had_is_one_line(make, message):
    model = make()
    with pytest.raises(InputError, match=message) as caught:
        require_base(model)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        GuidedModel(model, FROM_BASE)
    GuidedModel(model, SamplingSettings(guidance_scale=2.5))  # by its own null class it can be guided


def test_a_model_without_a_null_class_is_not_guided():
    for settings in (FROM_BASE, SamplingSettings(guidance_scale=2.5)):
        with pytest.raises(InputError, match="guidance needs a null class"):
            GuidedModel(without_null_class(), settings)
    GuidedModel(without_null_class(), SamplingSettings(guidance_scale=1.0))


def test_an_adapter_of_stock_peft_is_switched_off_too():
    base = fresh("diffusers")[0]
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    model = get_peft_model(fresh("diffusers")[0], config).eval()
    close(guided(model, FROM_BASE), expected(model, base))


def test_the_distilled_target_is_the_papers():
    noise, conditional, unconditional = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    conditional.requires_grad_()
    applies = torch.tensor([True, False])
    target = distilled_target(noise, conditional, unconditional, 1.5, 3, applies)
    assert not target.requires_grad
    torch.testing.assert_close(target[0, :3], (noise + 0.5 * (conditional - unconditional))[0, :3])
    assert torch.equal(target[0, 3:], noise[0, 3:]) and torch.equal(target[1], noise[1])
    variances = torch.randn(2, 4, 3, 3)
    both = (torch.cat([value, variances], 1) for value in (conditional, unconditional))
    assert torch.equal(distilled_target(noise, *both, 1.5, 3, applies), target)


@pytest.mark.parametrize("scale", [1.25, 1.5])
def test_training_towards_the_distilled_target_ends_at_guidance_from_the_base(scale):
    """The noise of the data is 0.3 on average and the base says -0.2: plain training would end at 0.3."""
    base, prediction = torch.full((1, 1, 1, 1), -0.2), torch.zeros(1, 1, 1, 1, requires_grad=True)
    optimizer = torch.optim.SGD([prediction], 0.2)
    for step in range(200):
        noise = torch.full_like(base, 0.3 + (0.1 if step % 2 else -0.1))
        target = distilled_target(noise, prediction, base, scale, None, torch.tensor([True]))
        (prediction - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert prediction.item() == pytest.approx(-0.2 + 0.5 / (2 - scale), abs=0.05)
