"""What 1LoRA's b may multiply, by name; without imports, so that commands can ask before they load a model."""

COMPRESSIONS = ("sum", "random", "singular")


def compression_key(compression: str, seed: int) -> str:
    """What tells compressions apart: adapters of one key share a layer's vector, and their b's add."""
    return f"random-{seed}" if compression == "random" else compression
