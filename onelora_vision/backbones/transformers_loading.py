"""How models of transformers are loaded: quietly, and with all of their weights or not at all."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from onelora_vision.backbones.base import quiet_transformers
from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import expect_hub

#: What transformers raises for files that are missing, damaged or of something else.
LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


def require_place(source: str, kind: str) -> None:
    """Refuse what is neither a model's folder nor a hub id.

    Raises:
        InputError: it is neither; ``kind`` says of what in the message.
    """
    if not Path(source).exists() and source.count("/") != 1:
        raise InputError(f"{source}: no such folder, and no hub id, which reads owner/name")
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise InputError(f"{source}: no config.json there; give the folder of a transformers {kind} model")
    expect_hub(source)


def load_transformers(
    model_class: Any,
    source: str,
    kind: str,
    *,
    unused: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> PreTrainedModel:
    """``model_class.from_pretrained``, without what the library says on the way.

    Args:
        kind: what people call such a model. unused: ends of names of weights that a file may leave out.

    Raises:
        InputError: it cannot be loaded, or weights are missing or of another shape.
    """
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except LOADING_ERRORS as error:
        reason = one_line(error, 300)
        raise InputError(f"{source}: cannot be loaded as {kind} ({type(error).__name__}: {reason})") from error
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(unused or ("\0",)))
    if missing or report["mismatched_keys"]:
        named = ", ".join([*missing, *(str(key) for key in report["mismatched_keys"])][:3])
        raise InputError(f"{source}: the weights do not fit the model: missing or of another shape are {named}, …")
    return model
