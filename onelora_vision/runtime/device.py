"""The device that a model runs on when no training framework chooses one."""

import torch

from onelora_vision.errors import InputError, one_line


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device called ``name`` (``cpu``, ``cuda``, ``cuda:1``, ``mps``, …); default: CUDA if available.

    Raises:
        InputError: the device is not available.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # fails for missing devices, and for meta, which has no values
    except Exception as error:
        raise InputError(
            f"--device {name}: cannot be used here ({one_line(_first_line(error))}); leave the flag out, or use cpu"
        ) from error
    return device


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
