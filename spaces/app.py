"""A Hugging Face Space: the studio with the adapters in the folder `adapters` next to this file."""

import sys
from pathlib import Path

from onelora_vision.cli import main

adapters = Path(__file__).parent / "adapters"
sys.exit(main(["app", "--host", "0.0.0.0", "--port", "7860", "--adapters", str(adapters)]))
