"""What installed packages add: their modules are imported when a base, a method or a kind of adapter is looked for."""

import functools
import importlib.metadata

from onelora_vision.errors import InputError, one_line

#: The entry points that a package names such modules by.
GROUP = "onelora_vision.plugins"


@functools.cache
def import_plugins() -> None:
    """Import the modules of `GROUP`, once.

    Raises:
        InputError: one of them cannot be imported; the line names its package.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # whatever a plug-in raises, it must not look like a fault of the command
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(
                f"the installed package {point.dist.name} names {point.value} in its entry points {GROUP}, but "
                f"it cannot be imported ({reason}); fix or uninstall it"
            ) from error
