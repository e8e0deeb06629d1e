import pytest
import torch
from accelerate import Accelerator
from tiny_language import byte_tokenizer, tiny_llama
from torch.nn.functional import cross_entropy

from onelora_vision.backbones.language import LanguageBase
from onelora_vision.data.stream import collate, evaluation_loader
from onelora_vision.data.text.dataset import TextDataset
from onelora_vision.data.text.rows import Row
from onelora_vision.methods.apply import apply_method
from onelora_vision.tasks.language import LanguageTask, answer_losses

ROWS = [Row(f"{n} + {n}?", f"{2 * n}") for n in range(5)]


@pytest.fixture(scope="module")
def base():
    return LanguageBase(model=tiny_llama(), tokenizer=byte_tokenizer())


@pytest.fixture
def task(base):
    found = base.view()
    model = apply_method(found.model, "onelora", found.adaptation()).eval()
    return LanguageTask(model, found, None, None, 3, 2, 4)


@pytest.fixture(scope="module")
def data(base):
    return TextDataset.of(ROWS, base.tokenizer, "{query}", 64)


@torch.no_grad()
def test_the_loss_is_of_the_answers_alone_whatever_the_padding(task, data):
    long = TextDataset.of([*ROWS, Row("a much longer question", "1234567")], task.base.tokenizer, "{query}", 64)
    alone, _ = answer_losses(task.model, collate(data.__getitems__([2])))
    padded, counts = answer_losses(task.model, collate(long.__getitems__([2, 5])))
    torch.testing.assert_close(padded[0], alone[0], rtol=1e-4, atol=1e-5)
    assert counts.tolist() == [2, 8]
    batch = collate(long.__getitems__([2, 5]))
    expected = cross_entropy(
        task.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
    )
    torch.testing.assert_close(task.forward(batch)["loss"], expected)


@torch.no_grad()
def test_rows_whose_answers_are_right_are_counted(task, data, monkeypatch):
    tokenizer, asked = task.base.tokenizer, []

    def write(prompts, most, model):
        asked.extend(tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts)
        answers = ["0" if tokenizer.decode(p, skip_special_tokens=True) == "0 + 0?" else "9" for p in prompts]
        return torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], 2, 0, 0] for text in answers])

    monkeypatch.setattr(task.base, "continue_tokens", write)
    metrics = task.evaluate(evaluation_loader(data, 2), Accelerator(cpu=True))
    assert asked == ["0 + 0?", "1 + 1?", "2 + 2?"] and metrics["exact_match"] == pytest.approx(1 / 3)
    assert [task.base.text_of(ids) for ids in task.details["completion"]] == ["0", "9"]


@torch.no_grad()
def test_batches_of_any_size_measure_the_same(task, data):
    found = [task.evaluate(evaluation_loader(data, size), Accelerator(cpu=True)) for size in (1, 3)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
