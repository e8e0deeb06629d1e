"""The order of training samples, a pure function of the seed, so runs resume exactly at any batch.

There is no state to save. Batch ``i`` of a run does not depend on interruptions or on the number of loader workers. It
is also the same for any number of processes whose batches add up to the same global batch.
"""

import itertools
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torch.utils.data._utils import signal_handling

from onelora_vision.errors import InputError
from onelora_vision.seeding import mix, seedable

_log = logging.getLogger(__name__)
Item = TypeVar("Item")


class SampleRef(NamedTuple):
    """An index into a dataset: the sample's number, and the seed for all its randomness."""

    index: int
    seed: int

    @classmethod
    def of(cls, ref: "SampleRef | int") -> "SampleRef":
        """Return ``ref`` itself; for a plain index (evaluation), the reference whose seed equals the index."""
        return ref if isinstance(ref, cls) else cls(int(ref), int(ref))


class SeededDataset(Dataset):
    """A dataset of `SampleRef`s whose ``_item(ref, seed)`` draws from the global generators after seeding them."""

    def __getitem__(self, ref: SampleRef | int) -> dict[str, Any]:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict[str, Any]]:
        """The items of a batch, which `DataLoader` requests together if a dataset supports it."""
        with seedable() as seed:
            return [self._item(SampleRef.of(ref), seed) for ref in refs]

    def _item(self, ref: SampleRef, seed: Callable[[int], None]) -> dict[str, Any]:
        raise NotImplementedError


def identity_of(dataset: Dataset) -> dict[str, str]:
    """The hash of the training dataset, which must be the same in a resumed run; empty for generated data."""
    identity = getattr(dataset, "identity", None)
    return {"files of the training data": identity() if identity else ""}


class BadItems:
    """Records and handles the unreadable items of a dataset.

    Args:
        size: number of items.
        on_bad_image: "error" raises the `InputError` of an unreadable item; "skip" logs it once and uses the next
            readable item instead.
        name: name of the dataset, for messages.
    """

    def __init__(self, size: int, on_bad_image: str, name: str):
        if on_bad_image not in ("error", "skip"):
            raise InputError(f"on_bad_image {on_bad_image!r}: must be error or skip")
        self.on_bad_image, self.name = on_bad_image, name
        # In shared memory: the main process and a loader's workers have one record, so each bad item is logged once.
        self._bad = torch.zeros(size, dtype=torch.bool).share_memory_()

    @property
    def count(self) -> int:
        """The number of unreadable items found so far, by this process and its loader's workers."""
        return int(self._bad.sum())

    def first_readable(self, index: int, read: Callable[[int], Item]) -> tuple[int, Item]:
        """The index and value of the first readable item from ``index`` on, wrapping around at the end.

        Raises:
            InputError: the item cannot be read or, with "skip", none can.
        """
        size = len(self._bad)
        candidates = itertools.chain(range(index, size), range(index)) if self.on_bad_image == "skip" else (index,)
        for candidate in candidates:
            if self._bad[candidate]:
                continue
            try:
                return candidate, read(candidate)
            except InputError as error:
                if self.on_bad_image == "error":
                    raise InputError(f"{error}; --on_bad_image skip leaves such images out") from None
                self._bad[candidate] = True
                _log.warning("skipped: %s", error)
        raise InputError(f"{self.name}: none of its {size} images can be read")


class TrainingBatchSampler(Sampler[list[SampleRef]]):
    """Batches of `SampleRef` for `torch.utils.data.DataLoader(batch_sampler=…)`.

    The samples of a run form one stream of epochs, each a permutation seeded by (seed, epoch). Batch ``i`` consists of
    the next ``batch_size * world_size`` samples, of which process ``rank`` takes the contiguous slice with that number.
    Batches may span epochs, so no sample is dropped, and a dataset may be smaller than a batch.

    Args:
        num_samples: size of the dataset.
        batch_size: samples per batch and process.
        num_batches: batches of the whole run, counted from its first start.
        seed: seed of the run.
        rank, world_size: number of this process, and number of processes.
        start_batch: the first batch to yield: 0, or where an interrupted run resumes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ):
        if num_samples < 1:
            raise InputError("the training dataset is empty: there is nothing to train on")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self._order: tuple[int, np.ndarray | None] = (-1, None)

    def batch(self, number: int) -> list[SampleRef]:
        """The samples of this process in batch ``number``."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return [self._sample(position) for position in range(first, first + self.batch_size)]

    def _sample(self, position: int) -> SampleRef:
        epoch, offset = divmod(position, self.num_samples)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._order = epoch, torch.randperm(self.num_samples, generator=generator).numpy()
        index = int(self._order[1][offset])
        return SampleRef(index, mix(self.seed, epoch, index))

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return (self.batch(number) for number in range(self.start_batch, self.num_batches))

    def __len__(self) -> int:
        return self.num_batches - self.start_batch


def collate(samples: list[dict]) -> dict:
    """Stack the samples' tensors and numbers (B, …). Strings, such as paths, become a list of length B."""
    return default_collate(samples)


def training_loader(dataset: Dataset, sampler: TrainingBatchSampler, num_workers: int = 0) -> DataLoader:
    """Make a loader of the sampler's batches. One pass over it is the whole run, so workers start only once.

    Do not pass it through ``accelerator.prepare``: the sampler already gives each process its own part.
    """
    _report_lost_workers_in_place()
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise, the loader would draw from the global one
    )


def evaluation_loader(dataset: Dataset, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Make a loader of every sample once, in order. For several processes, pass it through ``accelerator.prepare``.

    Batches are padded to be even across processes, so gather results with ``accelerator.gather_for_metrics``.
    """
    _report_lost_workers_in_place()
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
    )


def _report_lost_workers_in_place() -> None:
    # PyTorch's SIGCHLD handler raises in the main thread at any line, even while a checkpoint is being written. The
    # first loader with workers installs it, unless this flag claims that it is installed. Without it, a loader still
    # notices a lost worker within 5 s, when the next batch is requested.
    signal_handling._SIGCHLD_handler_set = True


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C and a batch system's SIGTERM reach the whole process group. The main process finishes its step and writes
    # a checkpoint, so the workers must stay alive until it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Ignore the first SIGTERM only: when a run fails, torch sends another one to end the workers, and waits for them.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
