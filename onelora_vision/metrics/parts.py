"""The features of an evaluation in parts, cached until it is complete, so an interrupted evaluation can resume."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onelora_vision.metrics.generative import FeatureSet
from onelora_vision.storage.cache import combined_hash, default_cache, dispensable
from onelora_vision.storage.files import atomic_file

#: Images per part.
SIZE = 1000


@dataclass(frozen=True)
class KeptParts:
    """One process's parts, in the user's cache.

    Attributes:
        key: everything that the features depend on; None disables caching. rank, processes: index and number of
            processes, each of which has its own share of every part.
    """

    key: str | None
    rank: int = 0
    processes: int = 1

    @property
    def folder(self) -> Path:
        """The folder of the cached parts; raises `OSError` if there is no place for them."""
        return default_cache() / "samples" / combined_hash([self.key])[:16]

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:07d}-{self.rank}-of-{self.processes}.safetensors"

    def shares(self, count: int) -> Iterator[list[int]]:
        """The indices of this process's images in each part, of ``count`` images in total."""
        for start in range(0, count, SIZE):
            yield [i for i in range(start, min(start + SIZE, count)) if i % self.processes == self.rank]

    def get(self, start: int, compute: Callable[[], FeatureSet]) -> FeatureSet:
        """The part that begins with image ``start``: cached by an earlier attempt, or else computed and cached."""
        if self.key is None:
            return compute()
        with dispensable((OSError, SafetensorError, TypeError)):
            if self._file(start).exists():
                return FeatureSet(**load_file(self._file(start)))
        found = compute()
        with dispensable(), atomic_file(self._file(start)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in found.tensors().items()}, temporary)
        return found

    def clear(self) -> None:
        """Delete this process's parts when the evaluation is complete."""
        if self.key is None:
            return
        with contextlib.suppress(OSError):
            for file in self.folder.glob(f"*-{self.rank}-of-{self.processes}.safetensors"):
                file.unlink()
            self.folder.rmdir()
