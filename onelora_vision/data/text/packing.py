"""Packing the rows of a batch into a few sequences with little padding, without mixing them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.text.dataset import IGNORED, TextDataset

_SIZES = 32  # number of sequence sizes that are tried


class Packing(NamedTuple):
    """Means over batches: rows and sequences per batch, and the fraction of padding tokens with and without packing."""

    rows: float
    sequences: float
    padding: float
    padding_unpacked: float


class PackedDataset(Dataset):
    """The rows of a `TextDataset`, with those of each batch packed into sequences with little padding (see `pack`).

    A batch holds the same rows as without packing, so its loss is the same. A sequence has ``input_ids``, ``labels``
    and ``position_ids`` (T,). Positions restart at 0 in each row and in the padding at the end; transformers uses this
    to separate the rows in attention. It does so only without an ``attention_mask``, so there is none.

    Attributes:
        length: maximum length of a sequence in tokens, at least that of the longest row.
    """

    def __init__(self, rows: TextDataset, length: int):
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ref: SampleRef | int) -> dict[str, Any]:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict[str, Any]]:
        """The rows of a batch, in sequences padded to the longest of them."""
        found = [SampleRef.of(ref) for ref in refs]
        lengths = [self.rows.length_of(ref.index) for ref in found]
        sequences = pack(lengths, self.length)
        longest = max(sum(lengths[place] for place in places) for places in sequences)
        return [self._sequence([found[place] for place in places], longest) for places in sequences]

    def _sequence(self, refs: list[SampleRef], length: int) -> dict[str, Any]:
        rows = [self.rows[ref] for ref in refs]
        positions = [torch.arange(len(row["input_ids"])) for row in rows]
        for row in rows:
            row["labels"][0] = IGNORED  # the previous row must not learn to predict it
        used = sum(map(len, positions))
        return {
            "input_ids": pad(_joined(rows, "input_ids"), (0, length - used), value=self.rows.pad),
            "labels": pad(_joined(rows, "labels"), (0, length - used), value=IGNORED),
            "position_ids": torch.cat([*positions, torch.arange(length - used)]),
            "seed": refs[0].seed,
            "path": ", ".join(row["path"] for row in rows),
        }

    def measure(self, batches: Iterable[Sequence[SampleRef]]) -> Packing:
        """Measure the effect of packing on some batches."""
        rows = sequences = used = packed = unpacked = count = 0
        for refs in batches:
            lengths = [self.rows.length_of(ref.index) for ref in refs]
            sums = [sum(lengths[place] for place in places) for places in pack(lengths, self.length)]
            count, rows, sequences, used = count + 1, rows + len(lengths), sequences + len(sums), used + sum(lengths)
            packed, unpacked = packed + len(sums) * max(sums), unpacked + len(lengths) * max(lengths)
        return Packing(rows / count, sequences / count, 1 - used / packed, 1 - used / unpacked)

    def identity(self) -> str:
        """The identity of the rows."""
        return self.rows.identity()


def _joined(rows: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([row[name] for row in rows])


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Pack ``lengths`` into sequences of at most ``room``, with little padding. Return the indices in each sequence.

    First-fit decreasing is tried with several sequence sizes, from the longest length to ``room``. The size with the
    least padding is used, and the smallest one in case of a tie. There is never more padding than without packing.
    Indices within a sequence are sorted, and so are sequences, by their first index.

    Raises:
        ValueError: a single length exceeds ``room``.
    """
    longest = max(lengths)
    if longest > room:
        raise ValueError(f"{longest} tokens do not fit into {room}")
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    sizes = range(longest, room + 1, max(1, (room - longest) // _SIZES))
    packed = (_first_fit(lengths, order, size) for size in sizes)
    best = min(packed, key=lambda found: len(found) * max(sum(lengths[place] for place in places) for places in found))
    return sorted(map(sorted, best))


def _first_fit(lengths: Sequence[int], order: Sequence[int], size: int) -> list[list[int]]:
    sequences: list[list[int]] = []
    left: list[int] = []
    for place in order:
        number = next((number for number, space in enumerate(left) if space >= lengths[place]), len(left))
        if number == len(left):
            sequences.append([])
            left.append(size)
        sequences[number].append(place)
        left[number] -= lengths[place]
    return sequences
