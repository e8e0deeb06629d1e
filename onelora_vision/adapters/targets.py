"""What an adapter can be exported to, by name."""

from onelora_vision.errors import InputError, nearest

TARGETS = ("peft-lora", "diffusers", "comfy", "merged")
DTYPES = ("fp32", "fp16", "bf16")


def check_target(to: str, dtype: str) -> None:
    """Raise an `InputError` that names the nearest, unless there are such a format and such a type."""
    if to not in TARGETS:
        raise InputError(f"--to {to}: no such format{nearest(to, TARGETS, 'format')}")
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: no such type{nearest(dtype, DTYPES, 'type')}")
