"""Which folders of the checkout are in the wheel, and under which names; everything else is in pyproject.toml.

The training scripts and the app stay at the top of the checkout, where they are read and run. In the wheel they are
`onelora_vision.train_scripts` and `onelora_vision.app`, so that site-packages gets one name only.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

inside = {f"onelora_vision.{folder}": folder for folder in ("train_scripts", "app")}
packages = find_packages(include=["onelora_vision", "onelora_vision.*"])
for name, folder in inside.items():
    packages += [name, *(f"{name}.{package}" for package in find_packages(folder))]

# A package index shows the README far from the files that it links to: pictures are left out, links become their text.
readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", readme)
readme = re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", readme)

setup(
    packages=packages,
    package_dir=inside,
    long_description=readme,
    long_description_content_type="text/markdown",
)
