PYTHON ?= python
SOURCES = onelora_vision train_scripts app benchmarks tests docs/formulas.py

BENCHMARKS = step swap bank memory data scale profile

.PHONY: quality style test package docs adapters bench bench-quick test-oldest test-quantised host-internals rehearsal

quality:
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m ruff format --check $(SOURCES)

style:
	$(PYTHON) -m ruff check --fix $(SOURCES)
	$(PYTHON) -m ruff format $(SOURCES)

test:
	$(PYTHON) -m pytest

# The sdist and the wheel: built, checked, installed apart from the checkout, and used.
package:
	$(PYTHON) -m pytest -n 0 -m slow tests/test_wheel.py

# On the oldest releases that pyproject.toml allows, in an environment of their own (6 GB): Python 3.11 or 3.12.
OLDEST = .venv-oldest
test-oldest:
	test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable ".[test]" --constraint tests/oldest.txt
	$(OLDEST)/bin/python -m pytest

# On bases quantised by bitsandbytes and torchao. They are kept apart: PEFT, diffusers and transformers import them where
# they can, which costs every start a second and prints warnings.
QUANTISED = .quantised
test-quantised:
	test -d $(QUANTISED) || $(PYTHON) -m pip install --quiet --no-deps --target $(QUANTISED) bitsandbytes torchao
	PYTHONPATH=$(QUANTISED):$(PYTHONPATH) $(PYTHON) -m pytest -n 0 tests/tuners/test_quantised.py

# Which internals of PEFT, diffusers, timm, transformers and accelerate we rely on, and whether they still are there.
host-internals:
	$(PYTHON) tests/host_internals.py

# Every recipe and documented command on the published models at their true sizes with random weights, two steps each,
# offline. Needs 12 GB of memory (full fine-tuning: 32 GB), 40 GB of disk and some three hours; SMALL=1 takes tiny models.
rehearsal:
	$(PYTHON) tests/rehearsal/rehearse.py $(if $(SMALL),--small) $(if $(ONLY),--only '$(ONLY)')

# Into site/. Strictly: a dead link, or a page that is not in the navigation, is an error.
docs:
	$(PYTHON) -m zensical build --strict

# The adapters that ship with the package: what the three scripts make without arguments. Their pictures get 256 colours,
# which makes the package 0.8 MB smaller.
define SMALL_PICTURES
import pathlib, sys
from PIL import Image
for path in pathlib.Path(sys.argv[1]).rglob("*.png"):
    Image.open(path).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
endef
export SMALL_PICTURES

SHIPPED = onelora_vision/embedded/adapters
adapters: out/dit out/depth out/classification
	mkdir -p $(SHIPPED)
	rm -rf $(SHIPPED)/handwriting-dit $(SHIPPED)/streets-depth $(SHIPPED)/handwriting-vit
	cp -r out/dit/adapter $(SHIPPED)/handwriting-dit
	cp -r out/depth/adapter $(SHIPPED)/streets-depth
	cp -r out/classification/adapter $(SHIPPED)/handwriting-vit
	$(PYTHON) -c "$$SMALL_PICTURES" $(SHIPPED)

# The studio shows it next to the base, which is to be guided, too: the base guides both.
out/dit: FLAGS = --guidance_base --guidance_scale 4
out/%: FORCE
	$(PYTHON) train_scripts/train_$*.py --output_dir $@ $(FLAGS)

FORCE:

bench:
	@for name in $(BENCHMARKS); do echo; echo "## benchmarks.$$name"; $(PYTHON) -m benchmarks.$$name || exit 1; done

bench-quick:
	@for name in $(BENCHMARKS) dit_xl2 guidance; do echo; echo "## benchmarks.$$name"; $(PYTHON) -m benchmarks.$$name --quick || exit 1; done
