"""Rows of a batch packed into few sequences with little padding, each row apart from the others."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.text.dataset import IGNORED, TextDataset

_SIZES = 32  # of sequences, that are tried


class Packing(NamedTuple):
    """Means over batches: rows and sequences of a batch, and the share of padding in its tokens, packed and not packed."""

    rows: float
    sequences: float
    padding: float
    padding_unpacked: float


class PackedDataset(Dataset):
    """The rows of a `TextDataset`, those of each batch in sequences with little padding, see `pack`.

    A batch holds the same rows as without, so its loss is the same. A sequence is ``input_ids``, ``labels`` and
    ``position_ids`` (T,): positions begin at 0 in each row, and in the padding at the end, by which transformers
    knows the rows and lets each attend to itself alone. There is no ``attention_mask``, with which it would not look.

    Attributes:
        length: the most tokens of a sequence, at least those of the longest row.
    """

    def __init__(self, rows: TextDataset, length: int):
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ref: SampleRef | int) -> dict[str, Any]:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict[str, Any]]:
        """The rows of a batch, in sequences that are all as long as the longest of them."""
        found = [SampleRef.of(ref) for ref in refs]
        lengths = [self.rows.length_of(ref.index) for ref in found]
        sequences = pack(lengths, self.length)
        longest = max(sum(lengths[place] for place in places) for places in sequences)
        return [self._sequence([found[place] for place in places], longest) for places in sequences]

    def _sequence(self, refs: list[SampleRef], length: int) -> dict[str, Any]:
        rows = [self.rows[ref] for ref in refs]
        positions = [torch.arange(len(row["input_ids"])) for row in rows]
        for row in rows:
            row["labels"][0] = IGNORED  # the row before must not learn to foretell it
        used = sum(map(len, positions))
        return {
            "input_ids": pad(_joined(rows, "input_ids"), (0, length - used), value=self.rows.pad),
            "labels": pad(_joined(rows, "labels"), (0, length - used), value=IGNORED),
            "position_ids": torch.cat([*positions, torch.arange(length - used)]),
            "seed": refs[0].seed,
            "path": ", ".join(row["path"] for row in rows),
        }

    def measure(self, batches: Iterable[Sequence[SampleRef]]) -> Packing:
        """What packing makes of some batches."""
        rows = sequences = used = packed = unpacked = count = 0
        for refs in batches:
            lengths = [self.rows.length_of(ref.index) for ref in refs]
            sums = [sum(lengths[place] for place in places) for places in pack(lengths, self.length)]
            count, rows, sequences, used = count + 1, rows + len(lengths), sequences + len(sums), used + sum(lengths)
            packed, unpacked = packed + len(sums) * max(sums), unpacked + len(lengths) * max(lengths)
        return Packing(rows / count, sequences / count, 1 - used / packed, 1 - used / unpacked)

    def identity(self) -> str:
        """That of the rows."""
        return self.rows.identity()


def _joined(rows: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([row[name] for row in rows])


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Places of ``lengths`` by sequence, none longer in all than ``room``: what leaves the least padding, of several ways.

    Each way is first fit, the longest first, into sequences of another size, from the longest length to ``room``; the
    smallest of several that pad alike is taken. There is never more padding than without packing. Places within a
    sequence, and sequences by their first place, are in order.

    Raises:
        ValueError: one alone is longer than ``room``.
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
