"""``python -m onelora_vision``: the ``onelora`` command without its script."""

import sys

from onelora_vision.cli.main import main

sys.exit(main())
