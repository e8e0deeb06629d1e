"""The formats of other tools that an adapter is written in and read from, one row each.

Each row has a module of its name with ``write(job, folder)`` and, unless a base model is all that is left, ``read(source,
base)``. It is imported when it is used: the command line reads the table, and nothing here imports torch.
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
        name: as ``onelora export --to`` takes it.
        host: the library whose bases it is for; empty for all.
        is_model: the whole model with the adapter merged, which cannot be read back.
        peft_type: of a PEFT folder in this format; empty for a single file.
        key_prefix: what keys of a single file in this format start with.
        computes_itself: whether what is written is the computation, too, so that it need not be that of a host's class.
        tasks: of the adapters that it is for; empty for all. dtypes: that it can be written in.
        packages: that it needs, which the extra of its name installs.
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
    """Raise an `InputError`, unless there are such a format and such a type, the size is one, and nothing is missing."""
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
