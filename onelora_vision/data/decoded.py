"""Decoded images in memory shared by a loader's workers, so each image is decoded only once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch

from onelora_vision.errors import InputError
from onelora_vision.runtime.memory import available_shared_memory, processes_here
from onelora_vision.runtime.progress import progress_bar

#: Arrays (H, W, ...) of an item, given by type and last dimensions: a picture, or a picture with depth in metres.
PICTURE = ((np.uint8, (3,)),)
PICTURE_AND_DEPTH = ((np.float32, ()), (np.uint8, (3,)))
_PIECE = 1 << 30  # bytes of shared memory allocated at a time
_SAMPLED = 32  # items from which the memory for all is estimated
_THREADS, _BLOCK = 4, 8  # decoding releases the GIL; items decoded at a time, outside shared memory
_SHARE = 0.9  # fraction of the available memory; training needs some, too


class DecodedArrays(Sequence):
    """The arrays of each item, with individual heights and widths; None for an item that cannot be read.

    All items are stored in a few pieces of shared memory, which the workers of a `DataLoader` share, forked or not.

    Args:
        layout: `PICTURE` or `PICTURE_AND_DEPTH`. The first array has the widest type.
        count: number of items.
    """

    def __init__(self, layout: tuple, count: int):
        self.layout = layout
        self.pieces: list[torch.Tensor] = []
        self.places = np.full((count, 4), -1, np.int64)  # piece, offset in it, height, width
        self._free = self._piece_bytes = 0

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> list[np.ndarray] | None:
        piece, start, height, width = self.places[index].tolist()
        if piece < 0:
            return None
        found, memory = [], self.pieces[piece].numpy()
        for dtype, last in self.layout:
            shape = (height, width, *last)
            size = prod(shape) * np.dtype(dtype).itemsize
            found.append(memory[start : start + size].view(dtype).reshape(shape))
            start += size
        return found

    def put(self, index: int, arrays: Sequence[np.ndarray], room_for: Callable[[int], None], expected: int) -> None:
        """Copy an item's arrays.

        Args:
            room_for: function that raises an error if that many more bytes are not available.
            expected: expected size of all items in bytes.
        """
        size = -(-sum(array.nbytes for array in arrays) // 8) * 8  # aligns the next item for any type
        if size > self._free:
            self._piece_bytes = max(size, min(_PIECE, expected // 8 if self.pieces else expected))
            room_for(self._piece_bytes)
            self.pieces.append(torch.empty(self._piece_bytes, dtype=torch.uint8).share_memory_())
            self._free = self._piece_bytes
        self.places[index] = len(self.pieces) - 1, self._piece_bytes - self._free, *arrays[0].shape[:2]
        for kept, array in zip(self[index], arrays):
            kept[:] = array
        self._free -= size


def decode_all(
    read: Callable[[int], Sequence[np.ndarray]], count: int, layout: tuple, name: str, hidden: bool = False
) -> DecodedArrays:
    """Read all items into shared memory, in parallel.

    Args:
        read: function that returns the arrays of an item, as in ``layout``. An item for which it raises an `InputError`
            is left out.
        name: name of the dataset, for messages.
        hidden: show no progress bar.

    Raises:
        InputError: the items need more than `_SHARE` of the available memory, by an estimate or while reading them.
    """

    def readable(index: int) -> Sequence[np.ndarray] | None:
        try:
            return read(index)
        except InputError:
            return None

    sampled = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(int)).tolist()
    read_in_turn = (readable(index) for index in sampled)  # one at a time: they may be large
    sizes = [sum(array.nbytes for array in arrays) + 8 for arrays in read_in_turn if arrays is not None]
    expected = int(np.mean(sizes) * count) if sizes else 0

    def room_for(size: int, processes: int = 1) -> None:
        available = available_shared_memory()
        if size * processes > _SHARE * available:
            each = f" in each of {processes_here()} processes" if processes_here() > 1 else ""
            raise InputError(
                f"--cache_images: the {count:,} decoded images of {name} take about {expected / 1e9:.3g} GB{each}, and "
                f"{available / 1e9:.3g} GB of memory are free for them: use fewer or smaller images, or leave it out"
            )

    room_for(expected, processes_here())
    kept = DecodedArrays(layout, count)
    bar = progress_bar(count, desc="decoding images", unit="image", leave=False, hidden=hidden)
    with ThreadPoolExecutor(_THREADS) as pool, bar:
        for first in range(0, count, _BLOCK):
            block = range(first, min(first + _BLOCK, count))
            for index, arrays in zip(block, pool.map(readable, block)):
                if arrays is not None:
                    kept.put(index, arrays, room_for, expected)
            bar.update(len(block))
    return kept
