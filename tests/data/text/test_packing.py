import itertools
import random

import pytest
import torch
from tiny_language import byte_tokenizer, tiny_llama

from onelora_vision.backbones.language import LanguageBase
from onelora_vision.data.stream import TrainingBatchSampler, collate, training_loader
from onelora_vision.data.text.dataset import IGNORED, TextDataset
from onelora_vision.data.text.packing import PackedDataset, pack
from onelora_vision.data.text.rows import Row
from onelora_vision.methods.apply import apply_method
from onelora_vision.tasks.language import LanguageTask, answer_logits, answer_losses

ROWS = [Row(f"{n} times {n}?", "y" * (3 * n % 14) + f"{n * n}", f"row {n}") for n in range(9)]


@pytest.fixture(scope="module")
def rows():
    return TextDataset.of(ROWS, byte_tokenizer(), "{query}", 32)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_sequence_and_none_is_too_long(seed):
    draw = random.Random(seed)
    room = draw.randint(5, 60)
    lengths = [draw.randint(1, room) for _ in range(draw.randint(1, 40))]
    sequences = pack(lengths, room)
    assert sorted(place for places in sequences for place in places) == list(range(len(lengths)))
    sums = [sum(lengths[place] for place in places) for places in sequences]
    assert max(sums) <= room and len(sums) * max(sums) <= len(lengths) * max(lengths)


def test_known_batches():
    assert pack([5, 2, 4, 3, 1], 5) == pack([5, 2, 4, 3, 1], 8) == [[0], [1, 3], [2, 4]]
    assert pack([5, 4, 3, 3], 8) == [[0, 2], [1, 3]]  # 16 tokens, 1 of them padding; 5 and 4 alone would leave 5
    assert pack([3, 3, 3], 9) == [[0], [1], [2]]  # no padding either way, and attention to 3 tokens costs less
    with pytest.raises(ValueError, match="9 tokens do not fit into 8"):
        pack([9], 8)


def test_a_sequence_is_its_rows_and_padding_apart_from_them(rows):
    items = PackedDataset(rows, 64).__getitems__([0, 3, 5, 7])
    whole = torch.cat([item["input_ids"] for item in items])
    assert len({len(item[name]) for item in items for name in ("input_ids", "labels", "position_ids")}) == 1
    found = [row for item in items for row in rows_of(item)]
    expected = [rows[index] for index in (0, 3, 5, 7)]
    assert len(whole) <= 2 * 64 and len(found) == len(expected)
    for row in expected:
        assert any(torch.equal(row["input_ids"], ids) and torch.equal(row["labels"], labels) for ids, labels in found)
    assert {path for item in items for path in item["path"].split(", ")} == {"row 0", "row 3", "row 5", "row 7"}


def rows_of(item):
    """The rows of a sequence, without the padding: all but the last where it is all ignored."""
    starts = [*(item["position_ids"] == 0).nonzero().flatten().tolist(), len(item["position_ids"])]
    parts = [(item["input_ids"][a:b], item["labels"][a:b]) for a, b in itertools.pairwise(starts)]
    return [(ids, labels) for ids, labels in parts if (labels != IGNORED).any()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_row_has_the_loss_and_each_batch_the_gradient_that_it_has_unpacked(rows, attention):
    base = LanguageBase(model=tiny_llama(), tokenizer=byte_tokenizer())
    torch.nn.init.normal_(base.model.model.embed_tokens.weight)  # so that rows that saw others would show it
    base.model.set_attn_implementation(attention)
    task = LanguageTask(apply_method(base.model, "onelora", base.adaptation()).train(), base)
    refs = [0, 4, 2, 8, 6, 1]
    plain, packed = (collate(data.__getitems__(refs)) for data in (rows, PackedDataset(rows, 64)))
    assert len(packed["input_ids"]) < len(refs) and packed["input_ids"].numel() < plain["input_ids"].numel()
    losses, counts = answer_losses(task.model, plain)
    expected, order = losses.sort()
    of_rows = sorted(packed_losses(task.model, packed))
    torch.testing.assert_close(torch.tensor([loss for loss, _ in of_rows]), expected.detach(), rtol=1e-5, atol=1e-5)
    assert [count for _, count in of_rows] == counts[order].tolist()
    assert task.weight(plain) == task.weight(packed) == int(counts.sum())
    found = []
    for batch in (plain, packed):
        output = task.forward(batch)
        gradients = torch.autograd.grad(output["loss"], [p for p in task.model.parameters() if p.requires_grad])
        found.append((output["loss"], output["accuracy"], torch.cat([gradient.flatten() for gradient in gradients])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def packed_losses(model, batch):
    """The summed loss of each row and its number of answer tokens."""
    logits, labels = answer_logits(model, batch)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    learnt = batch["labels"][:, 1:] != IGNORED
    first = (batch["position_ids"][:, 1:] == 0).flatten().cumsum(0)
    sequence = torch.arange(len(learnt)).repeat_interleave(learnt.shape[1])
    number = (first + 1000 * sequence)[learnt.flatten()]
    return [(float(each[number == row].sum()), int((number == row).sum())) for row in number.unique()]


def test_batches_come_from_the_same_stream(rows):
    def indices(data):
        loader = training_loader(data, TrainingBatchSampler(len(data), 4, 3, seed=1))
        return [sorted(" ".join(batch["path"]).replace(",", "").split()) for batch in loader]

    assert indices(PackedDataset(rows, 64)) == indices(rows)
    assert PackedDataset(rows, 64).identity() == rows.identity()


def test_what_packing_saves_is_measured(rows):
    packing = PackedDataset(rows, 64).measure(TrainingBatchSampler(len(rows), 6, 4, seed=0))
    assert packing.rows == 6 and 2 <= packing.sequences < 4 and packing.padding < packing.padding_unpacked < 0.5
