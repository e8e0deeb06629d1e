import pytest
from tiny_language import byte_tokenizer

from onelora_vision.data.stream import SampleRef, collate
from onelora_vision.data.text.dataset import IGNORED, TextDataset
from onelora_vision.data.text.prompts import METAMATH, find_template, prompt_of
from onelora_vision.data.text.rows import Row
from onelora_vision.errors import InputError, MissingSplit

ROWS = [Row("ab", "xyz", "line 1"), Row("c", "y", "line 2"), Row("d" * 30, "z" * 8, "line 3")]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_the_answer_alone_is_learnt_and_padding_is_masked(tokenizer):
    data = TextDataset.of(ROWS, tokenizer, "{query}:", 64)
    batch = collate(data.__getitems__([SampleRef(1, 7), SampleRef(0, 8)]))
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert ids.shape == labels.shape == mask.shape == (2, 1 + 3 + 3 + 1)
    assert mask.sum(1).tolist() == [1 + 2 + 1 + 1, 8] and (ids[mask == 0] == tokenizer.pad_token_id).all()
    assert tokenizer.decode(ids[1]) == "<s>ab:xyz</s>"
    learnt = [tokenizer.decode(row[row != IGNORED]) for row in labels]
    assert learnt == ["y</s>", "xyz</s>"]
    assert batch["prompt_length"].tolist() == [3, 4] and batch["path"] == ["line 2", "line 1"]
    assert batch["seed"].tolist() == [7, 8] and batch["index"].tolist() == [1, 0]


def test_a_prompt_in_training_is_the_prompt_that_is_completed(tokenizer):
    data = TextDataset.of(ROWS, tokenizer, METAMATH, 512)
    item = data[0]
    asked = tokenizer(prompt_of("ab", METAMATH))["input_ids"]
    assert item["input_ids"][: item["prompt_length"]].tolist() == asked


@pytest.mark.parametrize(("long_rows", "kept", "cut", "skipped"), [("cut", 3, 1, 0), ("skip", 2, 0, 1)])
def test_long_rows_are_cut_or_skipped_and_counted(long_rows, kept, cut, skipped, tokenizer):
    data = TextDataset.of(ROWS, tokenizer, "{query}", 36, long_rows)
    assert (len(data), data.cut, data.skipped) == (kept, cut, skipped)
    assert all(len(data[i]["input_ids"]) <= 36 for i in range(kept))


def test_a_prompt_that_leaves_no_answer_is_skipped_and_an_empty_split_refused(tokenizer):
    data = TextDataset.of(ROWS, tokenizer, "{query}", 31, "cut")
    assert (len(data), data.cut, data.skipped) == (2, 0, 1)
    with pytest.raises(MissingSplit, match="none of 3 rows has an answer within --max_length 2 tokens"):
        TextDataset.of(ROWS, tokenizer, "{query}", 2, "cut")


def test_the_identity_is_the_tokens(tokenizer):
    first = TextDataset.of(ROWS, tokenizer, "{query}", 64).identity()
    assert first == TextDataset.of(ROWS, tokenizer, "{query}", 64).identity()
    assert first != TextDataset.of(ROWS[::-1], tokenizer, "{query}", 64).identity()


def test_templates():
    assert find_template("metamath") == METAMATH and METAMATH.startswith("Below is an instruction that describes")
    assert prompt_of("{x} {query}", "Q: {query} A:") == "Q: {x} {query} A:"
    with pytest.raises(InputError, match="did you mean 'metamath'"):
        find_template("metamat")
