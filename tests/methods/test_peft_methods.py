"""Every method of PEFT's own on every host, by one table of checks; a new row of `PEFT_METHODS` joins by itself."""

import copy
from functools import partial

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_hosts import HOSTS, build, close, example, fresh, output, shake

from onelora_vision.adapters.file import read_adapter, require_readable, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import KINDS
from onelora_vision.adapters.layout import layout_of
from onelora_vision.adapters.lowrank import low_rank
from onelora_vision.errors import InputError
from onelora_vision.methods import apply
from onelora_vision.methods.apply import trainable_parameters
from onelora_vision.methods.peft_config import read_peft_config
from onelora_vision.methods.peft_methods import PEFT_METHODS
from onelora_vision.methods.residual import base_restored
from onelora_vision.training.config import TrainingConfig

ROWS = {row.name: row for row in PEFT_METHODS}
# DiT's norms have no parameters
CASES = [(host, name) for host in HOSTS for name in ROWS if (host, name) != ("diffusers", "ln_tuning")]
#: What PEFT registers besides: prompts, routers among adapters, parts of LLMs, and rows of embeddings.
NOT_FOR_LINEAR_LAYERS = {
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING",
    "P_TUNING", "SHADOW", "TRAINABLE_TOKENS", "XLORA",
}  # fmt: skip
CANNOT_MERGE = {"lily"}


def test_every_type_of_peft_is_a_method_or_known_not_to_be_for_linear_layers():
    known = {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    ours = {"ONELORA", "MORA", "LORA", "VERA"}
    assert known - ours == {row.kind for row in PEFT_METHODS} - ours | NOT_FOR_LINEAR_LAYERS
    for row in PEFT_METHODS:
        assert PEFT_TYPE_TO_PREFIX_MAPPING[row.kind].startswith(KINDS[row.kind].marker[1:])


@pytest.mark.parametrize(("host", "method"), CASES)
def test_trains_saves_loads_and_merges(host, method, tmp_path):
    model, base = build(host, method), output(fresh(host)[0], host)
    if ROWS[method].off_base:
        assert (output(model, host) - base).abs().max() < 0.2 * base.abs().max()
    else:
        close(output(model, host), base)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output(model.train(), host).square().sum().backward()
    assert trained and any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    expected = output(shake(model.eval(), size=0.02), host)
    assert not torch.allclose(expected, base, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        close(output(model, host), base)
    save_adapter(model, tmp_path / "adapter", AdapterInfo("classification", method, "tiny"))
    loaded = read_adapter(tmp_path / "adapter").attach(fresh(host)[0]).eval()
    close(output(loaded, host), expected, 1e-6)
    assert trainable_parameters(loaded) == 0
    if method in CANNOT_MERGE:
        with pytest.raises(NotImplementedError):
            loaded.merge_and_unload()
    else:
        close(output(loaded.merge_and_unload(), host), expected, 1e-3)


@pytest.mark.parametrize("method", [name for name in ROWS if name != "ln_tuning"])
def test_the_seed_makes_what_is_not_in_a_checkpoint(method):
    first, again = (build("diffusers", method, seed=5).state_dict() for _ in range(2))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("method", ROWS)
def test_what_is_trained_is_fp32_on_a_bf16_base(method):
    model = build("timm", method, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        output_of = model(example("timm")["x"].bfloat16())
    output_of.float().sum().backward()


@pytest.mark.parametrize("method", [row.name for row in PEFT_METHODS if KINDS[row.kind].low_rank])
def test_what_peft_converts_is_exported_as_lora(method, tmp_path):
    model = shake(build("timm", method), size=0.02)
    save_adapter(model, tmp_path / "adapter", AdapterInfo("classification", method, "tiny"))
    adapter, base = read_adapter(tmp_path / "adapter"), fresh("timm")[0]
    before = copy.deepcopy(base.state_dict())
    changes = low_rank(adapter, layout_of(adapter.config, adapter.tensors), base)
    assert before.keys() == base.state_dict().keys()
    merged = model.merge_and_unload()
    for module, change in changes.items():
        weight = merged.get_submodule(module).weight
        close(before[f"{module}.weight"] + change.up @ change.down, weight, 1e-3)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ia3", {"rank": 2}, "rank does not apply to method ia3; it is for lora, dora, vera"),
        ("gralora", {"rank": 3}, "method gralora cannot be applied to this model"),
        ("lokrr", {}, "unknown method 'lokrr'; did you mean 'lokr'"),
    ],
)
def test_what_does_not_fit_is_one_line(method, options, message):
    with pytest.raises(InputError, match=message) as caught:
        build("timm", method, **options)
    assert "\n" not in str(caught.value)


def fields_of(tmp_path, text, name="method.yaml"):
    (tmp_path / name).write_text(text)
    config = TrainingConfig(peft_config=str(tmp_path / name))
    return config.method, config.method_options


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("peft_type: LORA\nr: 2\nlora_alpha: 4\nuse_rslora: true\n", "lora"),
        ('{"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa"}', "lora"),
        ('{"peft_type": "LORA", "r": 2, "use_rslora": true, "init_lora_weights": "olora"}', "lora"),
        ('{"peft_type": "LORA", "r": 2, "init_lora_weights": "orthogonal"}', "lora"),
        ("peft_type: lokr\nr: 2\nalpha: 2\ntarget_modules: [fc1]\n", "lokr"),
        ("peft_type: VERA\nr: 4\n", "vera"),
        ("peft_type: ONELORA\nuse_bias: true\n", "onelora"),
    ],
)
def test_a_config_file_is_a_method(tmp_path, text, method):
    name, options = fields_of(tmp_path, text)
    assert name == method
    model = build("timm", name, **options)
    require_readable(model.active_peft_config)
    base = output(fresh("timm")[0], "timm")
    close(output(model, "timm"), base)
    expected = output(shake(model, size=0.02), "timm")
    with base_restored(model):
        close(output(model, "timm"), base)
    close(output(model, "timm"), expected)
    save_adapter(model, tmp_path / "adapter", AdapterInfo("classification", name, "tiny"))
    loaded = read_adapter(tmp_path / "adapter").attach(fresh("timm")[0]).eval()
    close(output(loaded, "timm"), expected)
    layers = [n for n, m in loaded.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)]
    assert len(layers) == (2 if "fc1" in text else 8)
    again = read_peft_config(tmp_path / "adapter" / "adapter_config.json")
    build("timm", name, **{**options, "peft_fields": again})  # what was written is a config file too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r: 2\n", "among them peft_type"),
        ("[1, 2", "neither JSON nor YAML"),
        ("peft_type: PREFIX_TUNING\n", "'PREFIX_TUNING' does not adapt linear layers"),
        ("peft_type: LORRA\n", "did you mean 'lora'"),
        ("peft_type: LORA\nrank: 2\n", "rank is not a field of LORA"),
        ("peft_type: LORA\ninit_lora_weights: eva\n", "reads the training data before training"),
        ("peft_type: LORA\ninit_lora_weights: loftq\n", "quantises the base"),
        (
            "peft_type: LORA\ntarget_modules: [fc9]\n",
            "target_modules: 'fc9' is not a module of this model; did you mean",
        ),
        ("peft_type: LORA\ntarget_modules: [qkv, fc9]\n", "target_modules: 'fc9' is not a module of this model"),
        ("peft_type: LORA\nmodules_to_save: [fc9]\n", "modules_to_save: 'fc9' is not a module"),
        ("peft_type: LORA\nrank_pattern: {fc9: 8}\n", "rank_pattern: 'fc9' matches no module"),
        ("peft_type: LORA\nbias: all\n", "bias=all trains the base's own biases"),
        ("peft_type: LORA\nr: four\n", "r is 'four', but must be a number"),
        ("peft_type: LORA\nuse_rslora: 1\n", "use_rslora is 1, but must be true or false"),
        ("peft_type: LORA\nlora_alpha: [1]\n", r"lora_alpha is \[1\], but must be a number"),
        ("peft_type: LORA\nr: 0\n", "cannot be applied to this model"),
        ("peft_type: LORA\ninit_lora_weights: pissa\nuse_dora: true\n", "cannot be combined with DoRA"),
        (
            "peft_type: LORA\nlayer_replication: [[0, 1], [0, 1]]\n",
            "cannot be applied to this model: Could not locate",
        ),
    ],
)
def test_a_config_file_that_cannot_be_used_is_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        name, options = fields_of(tmp_path, text)
        require_readable(build("timm", name, **options).active_peft_config)
    assert "\n" not in str(caught.value)


def test_a_config_file_stands_alone(tmp_path):
    (tmp_path / "a.json").write_text('{"peft_type": "LORA"}')
    for flags, message in (({"method": "dora"}, "give one of them"), ({"rank": 2}, "set it in")):
        with pytest.raises(InputError, match=message):
            TrainingConfig(peft_config=str(tmp_path / "a.json"), **flags)


@pytest.mark.parametrize("host", HOSTS)
def test_1lora_is_miss_of_rank_1(host):
    ours, theirs = (build(host, method) for method in ("onelora", "miss"))
    steps = []
    for model in (ours, theirs):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, found = torch.optim.SGD(trained, 1e-3), []
        for _ in range(4):
            result = output(model, host)
            result.square().mean().backward()
            found.append((result, [p.grad.clone().flatten() for p in trained]))
            optimizer.step()
            optimizer.zero_grad()
        steps.append(found)
    for (mine, my_gradients), (other, other_gradients) in zip(*steps):
        close(mine, other, 1e-5)
        assert sum(g.numel() for g in my_gradients) == sum(g.numel() for g in other_gradients)
        close(torch.cat(my_gradients), torch.cat(other_gradients), 1e-4)


@pytest.mark.parametrize(
    ("text", "method"), [("peft_type: MORA\n", "mora6"), ("peft_type: MORA\nmora_type: 1\n", "mora1")]
)
def test_a_config_of_mora_is_the_method_of_its_type(tmp_path, text, method):
    name, options = fields_of(tmp_path, text)
    assert name == method
    expected = build("timm", method).peft_config["default"].mora_type
    assert build("timm", name, **options).peft_config["default"].mora_type == expected


@pytest.mark.parametrize("method", ["lokr", "lora"])
def test_want_of_memory_is_not_bad_input_and_a_fault_of_ours_keeps_its_traceback(method, monkeypatch):
    def fails(*args, error, **kwargs):
        raise error

    monkeypatch.setattr(apply, "get_peft_model", partial(fails, error=torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        build("timm", method)
    monkeypatch.setattr(apply, "get_peft_model", partial(fails, error=TypeError("no such argument")))
    with pytest.raises(InputError if method == "lokr" else TypeError, match="no such argument"):
        build("timm", method)
