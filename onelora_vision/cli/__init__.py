"""The ``onelora`` command: one module per subcommand, imported only when it is called."""

from onelora_vision.cli.main import main

__all__ = ["main"]
