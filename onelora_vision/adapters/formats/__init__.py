"""The formats of other tools that adapters are exported to and imported from, one row each.

Each row has a module of the same name with ``write(job, folder)`` and, unless the format is a whole model,
``read(source, base)``. The module is imported when it is used: the command line reads this table, so nothing here
imports torch.
"""

import importlib
import re
from dataclasses import dataclass
from types import ModuleType

from onelora_vision.errors import InputError, nearest
from onelora_vision.runtime.extras import require

DTYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Format:
    """A format of another tool.

    Attributes:
        name: value of ``onelora export --to``.
        host: the library whose bases it supports; empty for all.
        is_model: whether it is the whole model with the adapter merged, which cannot be imported again.
        peft_type: the ``peft_type`` of a PEFT folder in this format; empty for a single file.
        key_prefix: prefix of the keys of a single file in this format.
        computes_itself: whether it contains the computation itself, which then need not match a host's class.
        tasks: supported tasks; empty for all.
        dtypes: data types that it can be written in.
        packages: required packages, installed by the extra of the same name.
    """

    name: str
    host: str = ""
    is_model: bool = False
    peft_type: str = ""
    key_prefix: str = ""
    computes_itself: bool = False
    tasks: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    packages: tuple[str, ...] = ()

    @property
    def module(self) -> ModuleType:
        """The module with ``write`` and ``read``."""
        return importlib.import_module(f"{__name__}.{self.name.replace('-', '_')}")


FORMATS = {
    format.name: format
    for format in (
        Format("peft-lora", peft_type="LORA"),
        Format("peft-miss", peft_type="MISS"),
        Format("diffusers", host="diffusers", key_prefix="transformer."),
        Format("comfy", host="diffusers", key_prefix="lora_unet_"),
        Format("merged", is_model=True),
        Format(
            "onnx",
            is_model=True,
            computes_itself=True,
            tasks=("classification", "depth", "generation"),
            dtypes=("fp32", "fp16"),
            packages=("onnx", "onnxscript", "onnxruntime"),
        ),
    )
}


def check_format(to: str, dtype: str, max_shard_size: str) -> None:
    """Raise an `InputError` if the format, data type or size is invalid, or a required package is missing."""
    if to not in FORMATS:
        raise InputError(f"--to {to}: no such format{nearest(to, FORMATS, 'format')}")
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: no such type{nearest(dtype, DTYPES, 'type')}")
    if dtype not in FORMATS[to].dtypes:
        raise InputError(f"--dtype {dtype}: --to {to} writes {' or '.join(FORMATS[to].dtypes)}")
    if not re.fullmatch(r"[1-9]\d*[KMG]i?B", max_shard_size):
        raise InputError(f"--max_shard_size is {max_shard_size!r}, but must be a size such as 500MB or 5GB")
    for package in FORMATS[to].packages:
        require(package, to, f"--to {to}")
