"""``onelora app``: the studio in the browser, for drawing with adapters, blending and comparing them."""

import runpy
import sys

from onelora_vision.runtime.extras import require


def main(argv: list[str]) -> int:
    """Serve the app like ``python -m app``, until it is stopped.

    Raises:
        InputError: gradio is not installed.
    """
    require("gradio", "app", "the app")
    sys.argv = ["onelora app", *argv]
    runpy.run_module("onelora_vision.app", run_name="__main__")
    return 0
