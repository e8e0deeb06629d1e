import json

import pytest
from tiny_language import save_llama

from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.language import LanguageBase
from onelora_vision.cli import main
from onelora_vision.data.text.prompts import METAMATH, prompt_of
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = save_llama(tmp_path_factory.mktemp("base"))

    def adapter(**extra):
        base = LanguageBase.load(folder)
        info = AdapterInfo(
            "language", "onelora", str(folder), base.fingerprint(), extra={"max_new_tokens": 5, **extra}
        )
        model = apply_method(base.model, "onelora", base.adaptation())
        return save_adapter(model, tmp_path_factory.mktemp("adapter") / "adapter", info)

    adapter.base = folder
    return adapter


def predict(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, argv)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_the_prompt_is_that_of_the_training(make):
    base = LanguageBase.load(make.base)
    for template, prompt in ((None, prompt_of("2?", METAMATH)), ("none", "2?"), ("Q {query}\nA", "Q 2?\nA")):
        extra = {"prompt_template": template} if template else {}
        found = load_adapted(make(**extra)).answer(["2?", "3?"])
        assert found[0] == base.complete([prompt], max_new_tokens=5)[0] and len(found) == 2
    with pytest.raises(InputError, match="neither metamath nor none"):
        load_adapted(make(prompt_template="broken"))
    with pytest.raises(InputError, match="a list of questions"):
        load_adapted(make()).answer("2?")
    for question, message in (("", "question 2 is empty"), ("\ud83d", "question 2 is not Unicode")):
        with pytest.raises(InputError, match=message):
            load_adapted(make()).answer(["2?", question])


def test_questions_on_the_command_line_and_in_files(make, tmp_path, capsys):
    adapter = make(prompt_template="none")
    (tmp_path / "questions.txt").write_text("one?\n\n two? \n")
    code, out, _ = predict(capsys, "--adapter", adapter, "zero?", tmp_path / "questions.txt", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["prompt"] for row in rows] == ["zero?", "one?", "two?"]
    answers = load_adapted(adapter).answer(["zero?", "one?", "two?"])
    assert [row["completion"] for row in rows] == answers
    short = json.loads(predict(capsys, "--adapter", adapter, "zero?", "--max_new_tokens", 1, "--json")[1])
    assert answers[0].startswith(short[0]["completion"]) and short[0]["completion"] != answers[0]
    code, out, _ = predict(capsys, "--adapter", adapter, "zero?")
    assert code == 0 and out.startswith("zero?\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a?", "--top", "3"], "--top is for pictures"),
        (["a?", "--npy"], "--npy is for pictures"),
        (["a?", "--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["  "], "the question is empty"),
        (["\udce9t\udce9?"], "the question is not Unicode"),
        (["a" * 600], "knows 512 positions, but the longest prompt has "),
        (["missing.txt"], "missing.txt: cannot be read"),
        (["empty.txt"], "empty.txt: holds no questions"),
    ],
)
def test_bad_input_is_one_line(make, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    code, out, err = predict(capsys, "--adapter", make(), *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out
