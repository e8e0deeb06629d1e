"""Names and expressions of configs mean what they mean to PEFT, and no expression can run for ever."""

import copy
import re

import pytest
from peft import LoraConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from tiny_hosts import fresh

from onelora_vision import OneLoraConfig
from onelora_vision.errors import InputError
from onelora_vision.tuners.matching import Targets, exact_pattern, resolve, resolve_whole
from onelora_vision.tuners.model import own_modules

NAMES = ["head", "x.head", "fc", "a.fc", "x.a.fc", "h.0", "h.0.attn.c_attn", "h.1.mlp.fc1", "h.11.mlp.fc1", "model.layers.3.q_proj",
         "model.layers.3.experts.0.q_proj", "encoder.layer.2.attention.query", "embed_tokens", "lm_head", "blocks.2.fc",
         "patch_embed.proj", "h.layers.1.blocks.2.fc"]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["fc"]},
        {"target_modules": ["a.fc", "q_proj", "head"], "exclude_modules": ["x.head"]},
        {"target_modules": r".*\.(fc1|fc|q_proj)", "exclude_modules": r".*experts.*"},
        {"target_modules": r"h\.[0-9]{1,2}\.(?:mlp\.fc\d|attn\.\w+)"},
        {"target_modules": r"(?i).*HEAD|^fc$"},
        {"target_modules": r".*?q[_-]proj", "exclude_modules": ["experts.0.q_proj"]},
        {"target_modules": ["fc1", "q_proj", "fc", "fc"], "layers_to_transform": [1, 2, 3]},
        {"target_modules": ["fc1", "query"], "layers_to_transform": 11},
        {"target_modules": ["fc1", "model.layers.3.q_proj"], "layers_to_transform": [0]},
        {"target_modules": ["fc1", "fc", "q_proj"], "layers_to_transform": [1, 2, 3], "layers_pattern": ["blocks", "layers"]},
        {"target_modules": ["fc1", "fc", "q_proj"], "layers_to_transform": [0, 1, 2], "layers_pattern": "h|blocks"},
        {"target_modules": ["query"], "layers_to_transform": [2], "layers_pattern": r"lay\w+"},
        {"target_modules": ["fc"], "layers_to_transform": []},
        {"target_modules": "", "exclude_modules": ""},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [LoraConfig, OneLoraConfig, VeraConfig])
def test_the_rules_are_those_of_peft(kind, fields):
    if (kind is VeraConfig and "exclude_modules" in fields) or (
        kind is OneLoraConfig and fields["target_modules"] == ""
    ):
        pytest.skip("not a config of this method")
    config = kind(**fields)
    targets = Targets(config)
    for name in NAMES:
        expected, found = check_target_module_exists(config, name), targets.check(name)
        assert bool(found) == bool(expected) and isinstance(found, _ExcludedModule) == isinstance(
            expected, _ExcludedModule
        )
    if any(targets.check(name) for name in NAMES):
        means = resolve(copy.deepcopy(config), NAMES, "x")
        assert [bool(check_target_module_exists(means, name)) for name in NAMES] == [
            bool(check_target_module_exists(config, name)) for name in NAMES
        ]
    else:
        with pytest.raises(InputError, match="x: no module matches its target_modules"):
            resolve(config, NAMES, "x")


@pytest.mark.parametrize(
    "patterns",
    [
        {"fc": 2, "q_proj": 3},
        {"a.fc": 2, "fc": 3, r"h\.\d+\..*": 4, ".*": 5},
        {"^fc": 2, "^h.11.mlp.fc1": 2, "head|lm_head": 7},
        {"(a)|(fc)": 2, "nothing": 9},
    ],
)
def test_ranks_by_name_are_those_of_peft(patterns):
    config = LoraConfig(target_modules=".*", rank_pattern=patterns, alpha_pattern=patterns)
    means = resolve(copy.deepcopy(config), NAMES, "x")
    for name in NAMES:
        expected = patterns.get(get_pattern_key(patterns.keys(), name))
        assert means.rank_pattern.get(get_pattern_key(means.rank_pattern.keys(), name)) == expected
        assert means.alpha_pattern.get(get_pattern_key(means.alpha_pattern.keys(), name)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"], "rank_pattern": {"qkv": 2}, "alpha_pattern": {"0.mlp.fc1": 3}},
        {"target_modules": r".*(qkv|proj|fc\d)", "exclude_modules": ["patch_embed.proj"], "modules_to_save": ["head", "score"]},
        {"target_modules": ["fc1"], "layers_to_transform": [1], "layers_pattern": "blocks"},
        {"target_modules": "all-linear", "exclude_modules": r".*qkv"},
    ],
)  # fmt: skip
def test_peft_adapts_the_same_layers_of_a_resolved_config(fields):
    model = fresh("timm")[0]
    names = [name for name, _ in own_modules(model)]
    config = LoraConfig(r=1, **fields)
    means = resolve(copy.deepcopy(config), names, "x")
    if means.modules_to_save:
        means = resolve_whole(means, names)
        assert means.modules_to_save == ["head"]
    shapes = [
        {key: value.shape for key, value in get_peft_model(copy.deepcopy(model), c).state_dict().items()}
        for c in (config, means)
    ]
    assert shapes[0] == shapes[1]


def test_our_own_tuners_match_without_python_s_engine(monkeypatch):
    bad = r"(?:\w?){45}!|.*qkv"
    seen, compile_ = [], re._compile
    monkeypatch.setattr(re, "_compile", lambda pattern, flags: seen.append(pattern) or compile_(pattern, flags))
    model = get_peft_model(fresh("timm")[0], OneLoraConfig(target_modules=bad, exclude_modules=r"(?:\w?){45}!"))
    assert len([key for key in model.state_dict() if "onelora_b" in key]) == 2
    assert not [known for known in seen if "{45}" in str(known)]


@pytest.mark.parametrize(
    "names",
    [
        ["fc"],
        ["fc", "inner.fc"],
        ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.11.attn.qkv", "blocks.1.mlp.fc1"],
        ["a.0.b.1.c", "a.0.b.2.c", "a.1.b.1.c", "head", "x.net.0", "x.net.2.proj", "0", "1.fc"],
        ["we+ird.0.n(a)me"],
    ],
)
def test_exact_pattern_matches_exactly(names):
    pattern = exact_pattern(names)
    assert all(re.fullmatch(pattern, name) for name in names)
    near = {f"x.{name}" for name in names} | {f"{name}.x" for name in names} | {f"{name}1" for name in names}
    near |= {re.sub(r"\d", "7", name) for name in names} | {"blocks.0.mlp.fc1", "a.1.b.2.c", "", "blocks.1"}
    assert not [name for name in near - set(names) if re.fullmatch(pattern, name)]


def test_exact_pattern_is_short_for_many_alike_layers():
    pattern = exact_pattern(f"blocks.{i}.{name}" for i in range(24) for name in ("attn.qkv", "mlp.fc1", "mlp.fc2"))
    assert len(pattern) < 150 and pattern.startswith(r"blocks\.(?:0|1|2|")
