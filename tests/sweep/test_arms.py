import pytest

from onelora_vision.errors import InputError
from onelora_vision.sweep.arms import Arm, parse_arms
from onelora_vision.sweep.sweep_file import read_sweep_file


@pytest.mark.parametrize(
    "text", ["lora", "lora:rank=4", "lora:target_modules=attn@lora", "sum+bias@onelora:few_shot=5"]
)
def test_an_arms_name_is_read_as_it_is_written(text):
    assert Arm.parse(text).name == text and Arm.parse(Arm.parse(text).name) == Arm.parse(text)


def test_what_an_arm_is():
    assert Arm.parse(" norms+sum : --target-modules = attn ") == Arm("onelora_norms", (("target_modules", "attn"),))
    assert Arm.parse("lora:rank=4:peft_config=a/b.json").folder == "lora,rank=4,peft_config=a%2Fb.json"
    assert Arm.parse("lora@lora:rank=4").rate_of == "lora:rank=4"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["lorra:rank=4"], "did you mean 'lora'"),
        (["lora:rank"], "lora:rank: expected METHOD:FLAG=VALUE"),
        (["lora:=4"], "'=4' is not FLAG=VALUE"),
        (["lora", "lora"], "a method is given twice: lora"),
        (["lora@onelora"], "takes the learning rate of onelora, which this sweep does not search for"),
        (
            ["onelora", "lora@onelora", "full@lora@onelora"],
            "full@lora@onelora: takes the learning rate of lora@onelora",
        ),
    ],
)
def test_arms_that_make_no_sweep_are_refused(texts, message):
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        parse_arms(texts)


def test_a_sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "seeds: [0, 1]\ndownload: true\nmax-train-steps: 5\nmethods:\n  A: [onelora, lora]\n  B: [onelora]\n"
    )
    found = read_sweep_file(path, {"seeds", "methods"})
    assert found.own == {"seeds": "0,1", "methods": "onelora,lora"}
    assert found.flags == ["--download=true", "--max_train_steps=5"]
    assert found.sections == {"A": ["onelora", "lora"], "B": ["onelora"]}
    path.write_text("methods: [onelora, 'lora:rank=4']")
    assert read_sweep_file(path, {"methods"}) == ({"methods": "onelora,lora:rank=4"}, [], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a", "expected names of flags"), ("a: [", "is not YAML"), ("seeds: {a: 1}", "seeds: expected text"),
     ("methods: {A: 3}", "methods: A: expected a list")],
)  # fmt: skip
def test_a_sweep_file_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_sweep_file(path, {"seeds", "methods"})
    with pytest.raises(InputError, match="cannot be read"):
        read_sweep_file(tmp_path / "missing.yaml", set())
