"""Configuration of 1LoRA as a PEFT method; saved as ``adapter_config.json``."""

from dataclasses import dataclass, field

from peft.utils.constants import DUMMY_TARGET_MODULES

from onelora_vision.compressions import COMPRESSIONS, DEFAULT_RANK, MAX_RANK, Compression
from onelora_vision.errors import InputError
from onelora_vision.tuners.config import TargetedConfig, check_choice
from onelora_vision.tuners.registry import peft_type


@dataclass
class OneLoraConfig(TargetedConfig):
    """1LoRA (arXiv 2503.08333): ``y = gamma * (W0 x + beta0 + beta) + b * sum_i x_i`` with W0, beta0 frozen.

    Modules are named as in `TargetedConfig`.

    Args:
        use_sum: train b (1LoRA). use_bias: train beta (BitFit). use_scale: train gamma (with use_bias: DiffFit).
        compression: how the input is compressed before b multiplies it: "sum" (ones); "random", a fixed vector of the
            same norm (the paper's ablation); "singular", the direction that the layer's frozen weight amplifies most,
            with the same norm; or "subspace", where the outputs alternate between several directions that the weight
            amplifies most. The vectors are not saved but rebuilt: from the seed and the width, or from the weight.
        compression_seed: seed of the random vector.
        compression_rank: number of directions of "subspace"; the largest divisor of the layer's outputs that does not
            exceed it is used, and is the rank of the layer's change.
        init_weights: True starts as the identity; False draws small random vectors (for tests).

    Raises:
        InputError: (a ValueError) a value is invalid; the message names the field and the value.
    """

    use_sum: bool = field(default=True, metadata={"help": "Train b, the coefficients of the summed input (1LoRA)."})
    use_bias: bool = field(default=False, metadata={"help": "Train beta, a shift of the bias (BitFit)."})
    use_scale: bool = field(default=False, metadata={"help": "Train gamma, a scale of the output (DiffFit)."})
    compression: str = field(
        default="sum", metadata={"help": "How the input is compressed: sum, random, singular or subspace."}
    )
    compression_seed: int = field(default=0, metadata={"help": "Seed of the random compression vector."})
    compression_rank: int = field(default=DEFAULT_RANK, metadata={"help": "Directions of the compression subspace."})
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("onelora")
        for name in ("use_sum", "use_bias", "use_scale", "init_weights"):
            check_choice(name, getattr(self, name), (True, False))
        check_choice("compression", self.compression, COMPRESSIONS)
        seed = self.compression_seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise InputError(f"compression_seed={seed!r} is not possible: give a whole number from 0, below 2^32")
        rank = self.compression_rank
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
            raise InputError(f"compression_rank={rank!r} is not possible: give a whole number from 1 to {MAX_RANK}")
        if not self.has_vectors:
            self._target_nothing()

    @property
    def has_vectors(self) -> bool:
        """Whether any layer is adapted; without vectors the adapter consists of its ``modules_to_save``."""
        return self.use_sum or self.use_bias or self.use_scale

    @property
    def compressed_by(self) -> Compression:
        """The three compression settings as one `Compression`."""
        return Compression(self.compression, self.compression_seed, self.compression_rank)

    @property
    def compression_key(self) -> str:
        """See `Compression.key`."""
        return self.compressed_by.key

    def _target_nothing(self) -> None:
        if not self.modules_to_save:
            raise InputError("use_sum=False, use_bias=False, use_scale=False train nothing without modules_to_save")
        if self.target_modules not in (None, DUMMY_TARGET_MODULES):
            raise InputError(f"target_modules={self.target_modules!r} needs use_sum, use_bias or use_scale")
        # PEFT's placeholder for an adapter that adapts no layers.
        self.target_modules = DUMMY_TARGET_MODULES
