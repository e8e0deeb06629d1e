"""What 1LoRA's b may multiply, by name; without imports, so that commands can ask before they load a model."""

from typing import NamedTuple

COMPRESSIONS = ("sum", "random", "singular", "subspace")
#: Directions of ``subspace``, unless the config says otherwise, and the most that it may have.
DEFAULT_RANK, MAX_RANK = 16, 256


class Compression(NamedTuple):
    """How a layer's input is compressed, apart from the layer itself.

    Attributes:
        name: one of `COMPRESSIONS`. seed: of ``random``. rank: of ``subspace``, the most directions that outputs take turns
            with.
    """

    name: str = "sum"
    seed: int = 0
    rank: int = DEFAULT_RANK

    @property
    def key(self) -> str:
        """What tells compressions apart: adapters of one key share a layer's directions, and their b's add."""
        return {"random": f"random-{self.seed}", "subspace": f"subspace-{self.rank}"}.get(self.name, self.name)

    @property
    def reads_weight(self) -> bool:
        """Whether it is made from the layer's frozen weight."""
        return self.name in ("singular", "subspace")
