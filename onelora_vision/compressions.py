"""1LoRA's input compressions by name, without imports, so that commands can check them before loading a model."""

from typing import NamedTuple

COMPRESSIONS = ("sum", "random", "singular", "subspace")
#: Default and maximum number of directions of ``subspace``.
DEFAULT_RANK, MAX_RANK = 16, 256


class Compression(NamedTuple):
    """How a layer's input is compressed, independent of the layer.

    Attributes:
        name: one of `COMPRESSIONS`. seed: of ``random``. rank: of ``subspace``, the maximum number of directions that
            the outputs alternate between.
    """

    name: str = "sum"
    seed: int = 0
    rank: int = DEFAULT_RANK

    @property
    def key(self) -> str:
        """Identifies a compression: adapters with the same key share a layer's directions, and their b's add."""
        return {"random": f"random-{self.seed}", "subspace": f"subspace-{self.rank}"}.get(self.name, self.name)

    @property
    def reads_weight(self) -> bool:
        """Whether it is computed from the layer's frozen weight."""
        return self.name in ("singular", "subspace")
