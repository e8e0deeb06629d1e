"""Write quickstart.ipynb from this text and run it, outputs included: ``python docs/notebooks/make_quickstart.py``."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
CELLS = [
    """# Quickstart

Fine-tune a small diffusion transformer with 1LoRA, look at what it learned, blend it, and export it for PEFT. It takes three
minutes on two CPU cores and needs `pip install "onelora_vision[all]"`.""",
    "> import tempfile, os\n> os.chdir(tempfile.mkdtemp())  # everything below is written here",
    """## Fine-tune

The model that ships with the package draws printed characters. 150 steps on handwriting change its style; the full job takes more
steps and measures the result. `onelora train dit --help` lists all flags.""",
    "> !onelora train dit --max_train_steps 150 --fid_features none --num_validation_images 4 --output_dir out 2>&1 | tail -n 12",
    "## Look\n\nThe base, the adapted model on the same noise, and real training images:",
    '> from IPython.display import Image\n>\n> Image("out/samples.png")',
    "The validation loss falls although the loss of single steps is mostly noise:",
    '> Image("out/loss.png")',
    "## What is in the file\n\nOne vector per layer, and the label table of the ten digits:",
    "> !onelora inspect out/adapter | head -n 12",
    """## Use it from Python

`load_adapted` finds the base that the file names. `adapted=False` draws what the base would.""",
    """> import torch
> from onelora_vision import load_adapted
> from torchvision.transforms.functional import to_pil_image
> from torchvision.utils import make_grid
>
> generator = load_adapted("out/adapter")
> digits = ["3", "8"] * 4
> images = generator.sample(digits, seeds=list(range(8)))
> to_pil_image(make_grid(images, nrow=8, padding=2)).resize((816, 104))""",
    """## Blend

Adapters of one base add up exactly, and a weighted sum is an adapter of the same size. Half of the change, with the same label table:""",
    "> !onelora blend out/adapter:0.5 -o half",
    """> half = load_adapted("half").sample(digits, seeds=list(range(8)))
> to_pil_image(make_grid(torch.cat([images, half]), nrow=8, padding=2)).resize((816, 208))""",
    """## Export

With one group, PEFT's MiSS is the same method. The export is reloaded in a process without this package and compared before the command
succeeds:""",
    "> !onelora export out/adapter --to peft-miss -o miss",
    "The card in `miss/README.md` has the code that loads it with PEFT alone.",
]


def notebook():
    """The notebook without outputs."""
    cells = []
    for number, text in enumerate(CELLS):
        is_code = text.startswith(">")
        source = "\n".join(line.removeprefix(">").removeprefix(" ") for line in text.splitlines()) if is_code else text
        cell = (new_code_cell if is_code else new_markdown_cell)(source)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(book):
    """Run the notebook in place, with this environment's commands; an error in a cell is raised."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    NotebookClient(book, timeout=900, kernel_name="python3").execute()
    for cell in book.cells:  # libraries' warnings name places of this machine
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return book


if __name__ == "__main__":
    nbformat.write(run(notebook()), NOTEBOOK)
