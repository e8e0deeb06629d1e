"""Configuration of MoRA as a PEFT method."""

from dataclasses import dataclass, field

from onelora_vision.errors import InputError
from onelora_vision.tuners.config import TargetedConfig, check_choice
from onelora_vision.tuners.mora.functional import ROTATING, SHARING
from onelora_vision.tuners.registry import peft_type


@dataclass
class MoraConfig(TargetedConfig):
    """MoRA (arXiv 2405.12130): ``y = W0 x + f_expand(M f_compress(x))`` with a trained square M (r_hat, r_hat).

    Modules are named as in `TargetedConfig`.

    Args:
        mora_type: 1 shares rows and columns (eq. 6), 6 rotates (eq. 9).
        r_hat: size of M; default: round(sqrt(out_features)) of each layer, rounded down to an even number for type 6.
        init_weights: True starts as the identity (M = 0); False draws a small random M (for tests).

    Raises:
        InputError: (a ValueError) a value is invalid; the message names the field and the value.
    """

    mora_type: int = field(default=ROTATING, metadata={"help": "1: sharing (eq. 6). 6: rotating (eq. 9)."})
    r_hat: int | None = field(default=None, metadata={"help": "Size of the square matrix."})
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("mora")
        check_choice("mora_type", self.mora_type, (SHARING, ROTATING))
        check_choice("init_weights", self.init_weights, (True, False))
        if self.r_hat is not None and (
            isinstance(self.r_hat, bool) or not isinstance(self.r_hat, int) or self.r_hat < 1
        ):
            raise InputError(f"r_hat={self.r_hat!r} is not possible: give a whole number from 1")
        if self.mora_type == ROTATING and self.r_hat is not None and self.r_hat % 2:
            raise InputError(f"r_hat={self.r_hat} is not possible: mora_type=6 rotates pairs, so r_hat must be even")
