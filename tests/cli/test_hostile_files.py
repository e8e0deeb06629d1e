"""Commands over adapter files that try the terminal, the card and the reader: one line or harmless text, never more."""

import json
import struct

import pytest
import torch
import yaml
from tiny_hosts import make_adapter

from onelora_vision.adapters.card import card
from onelora_vision.adapters.file import read_adapter, serialize
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.inspection import examine
from onelora_vision.adapters.summary import inspect
from onelora_vision.errors import InputError

COMMANDS = (("inspect",), ("doctor",), ("inspect", "--json"), ("doctor", "--json"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("adapter") / "a")


def header_of(adapter):
    config = {key: sorted(v) if isinstance(v, set) else v for key, v in adapter.config.to_dict().items()}
    return {**adapter.info.to_header(), "onelora.config": json.dumps(config)}


def with_header(adapter, file, tensors=None, **header):
    file.write_bytes(serialize(tensors or adapter.tensors, {**header_of(adapter), **header}))
    return file


def is_harmless(text):
    return all(c.isprintable() or c == "\n" for c in text) and max(map(len, text.splitlines()), default=0) < 2500


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\u202ename"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "header",
    [
        {"onelora.extra": json.dumps({ESCAPES: ESCAPES, "b": [ESCAPES] * 10**4, "c" * 10**6: 1})},
        {"onelora.metrics": json.dumps({"before": {ESCAPES: "x" * 10**6}, "after": {ESCAPES: ESCAPES, "b": 2, "c" * 10**6: [1]}})},
        {"onelora.versions": json.dumps({ESCAPES: ESCAPES, "torch": 10**9})},
        {"onelora.class_names": json.dumps(["x" * 900] * 5000)},
        {"onelora.class_names": json.dumps([ESCAPES])},
        {"onelora.base": json.dumps(ESCAPES)},
        {"onelora.metrics": '{"after": {"a": NaN, "b": 1e999}}'},
        {"onelora.metrics": '{"after": {"a": NaN}}'},
        {"onelora.format_version": "9" * 10**6},
        {"onelora.extra": "[" * 10**5},
        {"onelora.extra": '{"resolution": "9x9x9"}'},
        {"onelora.extra": '{"max_depth": "deep", "sampling": 3}'},
        {"onelora.config": '{"peft_type": "ONELORA", "peft_type": "LORA"}'},
        {"onelora.config": '{"peft_type": "LORA", "lora_alpha": NaN}'},
        {"onelora.config": '{"peft_type": "LORA", "lora_dropout": 1e999}'},
        {"onelora.config": json.dumps({"peft_type": "ONELORA", "x" * 10**5: ESCAPES})},
        {"onelora.config": "[" * 10**5},
        {"onelora.config": " " * (2 << 20)},
    ],
    ids=range(18),
)  # fmt: skip
def test_texts_of_a_file_do_nothing_to_the_terminal(onelora, adapter, tmp_path, command, header):
    file = with_header(adapter, tmp_path / "x.safetensors", **header)
    code, out, err = onelora(command[0], file, *command[1:])
    text = json.dumps(out, ensure_ascii=False) if "--json" in command and out else out
    assert code in (0, 2) and err.count("\n") <= 1 and is_harmless(err) and len(err) < 1600
    if "--json" not in command:
        assert is_harmless(text) and len(text) < 20_000
    if err:
        assert err.startswith("error: ") and not out


def test_json_output_has_no_characters_that_a_terminal_obeys(adapter, tmp_path, capsys):
    from onelora_vision.cli import main

    file = with_header(adapter, tmp_path / "x.safetensors", **{"onelora.extra": json.dumps({"a": ESCAPES})})
    with pytest.raises(SystemExit):
        main(["inspect", str(file), "--json"])
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out) and json.loads(out)["extra"]["a"] == ESCAPES


def test_a_tensor_name_of_a_megabyte_is_not_repeated(onelora, adapter, tmp_path):
    header = json.dumps({"a" * (1 << 20): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    code, _, err = onelora("inspect", file)
    assert code == 2 and len(err) < 400 and "is not a valid tensor name" in err
    key = next(iter(adapter.tensors))
    long = "base_model.model." + ".".join(["a" * 60] * 7) + ".onelora_b"
    tensors = {**{k: v for k, v in adapter.tensors.items() if k != key}, long: torch.ones(3)}
    code, _, err = onelora("doctor", with_header(adapter, file, tensors), "--base", "embedded")
    assert code == 2 and err.count("\n") <= 1 and len(err) < 1600


DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.int32, torch.bool, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("command", [("inspect",), ("doctor",), ("import",), ("blend",)])
def test_values_of_unusual_types_end_in_one_line(onelora, adapter, tmp_path, command, dtype):
    tensors = {key: value.to(dtype) if key.endswith("onelora_b") else value for key, value in adapter.tensors.items()}
    file = with_header(adapter, tmp_path / "x.safetensors", tensors)
    options = {"import": ["--base", "embedded", "-o", tmp_path / "o"], "blend": ["-o", tmp_path / "o"]}.get(
        command[0], []
    )
    code, out, err = onelora(*command, file, *options)
    said = err if err else out.splitlines()[0]
    assert (
        code == 2
        and (command == ("import",) or str(dtype).removeprefix("torch.") in said + out)
        and (err.count("\n") == 1) == bool(err)
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.float16])
def test_values_of_whole_modules_are_measured_or_refused(adapter, tmp_path, dtype):
    tensors = {key: value.to(dtype) if "head" in key else value for key, value in adapter.tensors.items()}
    file = with_header(adapter, tmp_path / "x.safetensors", tensors)
    if dtype == torch.float8_e4m3fn:
        with pytest.raises(InputError, match="is float8_e4m3fn; readable are"):
            inspect(file)
        assert [finding["check"] for finding in examine(file)] == ["file"]
    else:
        assert inspect(file)["whole"][0]["norm"] >= 0


def test_a_copy_of_the_config_that_is_none_is_a_finding(adapter, tmp_path):
    for text, message in {"[1]": "is not a config", "{": "is not JSON", '{"a": 1}': "differ in "}.items():
        folder = tmp_path / str(len(text))
        folder.mkdir()
        (folder / "adapter_config.json").write_text(header_of(adapter)["onelora.config"])
        with_header(adapter, folder / "adapter_model.safetensors", **{"onelora.config": text})
        assert any(message in finding["text"] for finding in examine(folder) if finding["check"] == "config")


def test_the_card_shows_texts_of_a_file_and_does_nothing_else():
    evil = '`](http://evil) <img src=x onerror=alert(1)> **b** | _c_ ~~d~~ ``` "); import os  # snake_case\n# title'
    info = AdapterInfo(
        task="generation",
        method=evil,
        base=evil,
        base_fingerprint=evil,
        class_names=[evil] * 3,
        metrics={"before": {evil: "x", "b": 1.0}, "after": {evil: 2.0, "b": "3"}},
        protocol=evil,
        extra={
            "training": {evil: evil, "dataset": evil, "steps": [evil]},
            "blend": [{"weight": "x", "adapter": evil}, {"weight": 2, "adapter": evil}, {}],
        },
        versions={evil: evil},
        data=evil,
        license=evil,
    )
    text = card(info, {"peft_type": "ONELORA"}, 10, 100, ["a](b).png"])
    front, body = text.split("---", 2)[1:]
    fields = yaml.safe_load(front)
    assert "base_model" not in fields and (fields["license"], fields["license_name"]) == ("other", evil)
    prose = "".join(
        part
        for number, part in enumerate(body.split("```python"))
        for part in [part.split("\n```\n")[-1 if number else 0]]
    )
    lines = [line for line in prose.splitlines() if "base" not in line.split(":")[0]]
    assert not [line for line in lines if "<img" in line.replace("\\<", "") or "](http" in line.replace("\\]", "")]
    assert "\n# title" not in body and "snake_case" in body and "![a\\](b).png](a%5D%28b%29.png)" in body
    code = [part.split("\n```")[0] for part in body.split("```python\n")[1:]]
    for block in code:
        compile(block, "card", "exec")
        assert "import os  #" not in [line.strip() for line in block.splitlines()]


def test_plots_take_names_for_names(adapter, tmp_path, onelora):
    file = with_header(
        adapter, tmp_path / "x.safetensors", **{"onelora.base": json.dumps(r"$\frac{$"), "onelora.method": '"$x$$"'}
    )
    code, _, err = onelora("inspect", file, "--plot", tmp_path / "x.png")
    assert (code, err) == (0, "") and (tmp_path / "x.png").is_file() and read_adapter(file).info.base == r"$\frac{$"
