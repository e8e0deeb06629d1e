"""Loading transformers models quietly, and with all of their weights or not at all."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from onelora_vision.backbones.base import quiet_transformers
from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import expect_hub

#: Raised by transformers for files that are missing, damaged or of another kind.
LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


def require_place(source: str, kind: str) -> None:
    """Check that ``source`` is a model folder or a hub id.

    Raises:
        InputError: it is neither; the message calls the model ``kind``.
    """
    if not Path(source).exists() and source.count("/") != 1:
        raise InputError(f"{source}: no such folder, and not a hub id (owner/name)")
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
    """Call ``model_class.from_pretrained`` without the library's log messages.

    Args:
        kind: name for the kind of model in messages.
        unused: suffixes of the names of weights that a file may leave out.

    Raises:
        InputError: the model cannot be loaded, or weights are missing or have the wrong shape.
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
        raise InputError(f"{source}: the weights do not fit the model; missing or of another shape: {named}, …")
    return model
