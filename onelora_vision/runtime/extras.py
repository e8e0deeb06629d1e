"""Packages that only some features need, and the pip extras that install them."""

import importlib.util

from onelora_vision.errors import InputError


def require(module: str, extra: str, feature: str) -> None:
    """Refuse a feature if its package is not installed.

    Args:
        module: top-level import name of the package.
        extra: this project's extra that installs it.
        feature: what needs it, as the start of the message.

    Raises:
        InputError: with the pip command.
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{feature} needs the package {module}: pip install 'onelora_vision[{extra}]'")
