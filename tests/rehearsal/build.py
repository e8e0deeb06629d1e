"""Write models and datasets of a rehearsal: ``build.py FOLDER small|true NAME…``, in a process that ends with its memory."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from published_data import DATA
from published_models import MODELS

from onelora_vision.backbones.base import quiet_transformers


def main() -> None:
    folder, size, *names = sys.argv[1:]
    with quiet_transformers():
        for name in names:
            {**MODELS, **DATA}[name](Path(folder), size == "small")


if __name__ == "__main__":
    main()
