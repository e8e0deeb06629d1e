from itertools import chain

import pytest
import torch
from torch.utils.data import Dataset

from onelora_vision.data.stream import SampleRef, TrainingBatchSampler, collate, evaluation_loader, training_loader
from onelora_vision.errors import InputError
from onelora_vision.seeding import mix


class Refs(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, ref):
        ref = SampleRef.of(ref)
        return {
            "index": ref.index,
            "seed": ref.seed,
            "path": f"{ref.index}.png",
            "image": torch.full((1, 2), ref.index),
        }


def stream(num_samples, batch_size, num_batches, **options):
    return [ref for batch in TrainingBatchSampler(num_samples, batch_size, num_batches, 3, **options) for ref in batch]


def test_every_epoch_has_every_sample_once_in_another_order():
    refs = stream(7, 3, 7)
    epochs = [[ref.index for ref in refs[start : start + 7]] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_seeds_follow_from_seed_epoch_and_index():
    refs = stream(7, 3, 7)
    assert all(ref.seed == mix(3, position // 7, ref.index) for position, ref in enumerate(refs))
    assert len({ref.seed for ref in refs}) == len(refs)


def test_a_data_set_smaller_than_a_batch_fills_it_from_later_epochs():
    batch = TrainingBatchSampler(3, 8, 1, 0).batch(0)
    assert sorted(ref.index for ref in batch[:6]) == [0, 0, 1, 1, 2, 2]
    assert len({ref.seed for ref in batch}) == 8


def test_starting_later_gives_the_rest_of_the_stream():
    sampler = TrainingBatchSampler(7, 3, 7, 3, start_batch=4)
    assert list(sampler) == list(TrainingBatchSampler(7, 3, 7, 3))[4:]
    assert len(sampler) == 3
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_global_batches_of_one_process(world_size):
    alone = list(TrainingBatchSampler(7, 6, 5, 3))
    parts = [TrainingBatchSampler(7, 6 // world_size, 5, 3, rank=r, world_size=world_size) for r in range(world_size)]
    assert [list(chain(*batches)) for batches in zip(*parts)] == alone


def test_an_empty_data_set_is_refused():
    with pytest.raises(InputError, match="empty"):
        TrainingBatchSampler(0, 1, 1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_batches_with_any_number_of_workers(workers):
    sampler = TrainingBatchSampler(7, 3, 5, 3)
    state = torch.get_rng_state()
    batches = list(training_loader(Refs(), sampler, workers))
    assert [batch["seed"].tolist() for batch in batches] == [[ref.seed for ref in refs] for refs in sampler]
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_tensors_and_lists_of_strings():
    batch = collate([Refs()[SampleRef(2, 1 << 62)], Refs()[SampleRef(5, 9)]])
    assert batch["image"].shape == (2, 1, 2)
    assert batch["seed"].tolist() == [1 << 62, 9]
    assert batch["path"] == ["2.png", "5.png"]


def test_evaluation_sees_each_sample_once_in_order_with_its_index_as_seed():
    batches = list(evaluation_loader(Refs(), 3))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches[1]["seed"].tolist() == [3, 4, 5]
