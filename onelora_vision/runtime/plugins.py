"""Plug-ins: modules of installed packages that are imported when looking for a base, a method or an adapter format."""

import functools
import importlib.metadata

from onelora_vision.errors import InputError, one_line

#: The entry point group in which packages name such modules.
GROUP = "onelora_vision.plugins"


@functools.cache
def import_plugins() -> None:
    """Import the modules of `GROUP`, once.

    Raises:
        InputError: one of them cannot be imported; the message names its package.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a plug-in's errors must not look like bugs of the command
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(
                f"the installed package {point.dist.name} names {point.value} in its entry points {GROUP}, but "
                f"it cannot be imported ({reason}); fix or uninstall it"
            ) from error
