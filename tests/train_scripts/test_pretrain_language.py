from onelora_vision import embedded
from onelora_vision.backbones.language import LanguageBase
from onelora_vision.data.text.prompts import METAMATH, prompt_of
from train_scripts import pretrain_embedded
from train_scripts.pretrain_embedded import pretraining_problem, small_tokenizer


def test_a_few_steps_make_a_base_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain_embedded, "JUDGED", 2)
    pretrain_embedded.pretrain_language(tmp_path, 1, 0)
    base = LanguageBase.load(tmp_path / "language")
    assert (tmp_path / "language" / "model.safetensors").stat().st_size < 1e6
    assert "exact match of counted stories" in capsys.readouterr().out
    shipped = LanguageBase.load(embedded.LANGUAGE)
    assert base.tokenizer.get_vocab() == shipped.tokenizer.get_vocab() and base.model.config.hidden_size == 96


def test_the_prompt_is_two_tokens_and_any_text_comes_back():
    tokenizer = small_tokenizer(0)
    ids = tokenizer(prompt_of("12", METAMATH))["input_ids"]
    assert len(ids) == 5 and tokenizer.decode(ids, skip_special_tokens=True) == prompt_of("12", METAMATH)
    assert (
        tokenizer.decode(tokenizer("Grüße, 漢字 – 007!")["input_ids"], skip_special_tokens=True)
        == "Grüße, 漢字 – 007!"
    )


def test_no_story_that_has_to_be_counted_is_in_the_pretraining():
    problems = [pretraining_problem(seed) for seed in range(400)]
    assert not any(" now?" in problem.query for problem in problems)
    assert 50 < sum("at first" in problem.query or "does" in problem.query for problem in problems) < 150
