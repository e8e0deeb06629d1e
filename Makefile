PYTHON ?= python
SOURCES = onelora_vision train_scripts benchmarks tests

BENCHMARKS = step swap bank memory data

.PHONY: quality style test bench bench-quick

quality:
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m ruff format --check $(SOURCES)

style:
	$(PYTHON) -m ruff check --fix $(SOURCES)
	$(PYTHON) -m ruff format $(SOURCES)

test:
	$(PYTHON) -m pytest

bench:
	@for name in $(BENCHMARKS); do echo; echo "## benchmarks.$$name"; $(PYTHON) -m benchmarks.$$name || exit 1; done

bench-quick:
	@for name in $(BENCHMARKS) dit_xl2; do echo; echo "## benchmarks.$$name"; $(PYTHON) -m benchmarks.$$name --quick || exit 1; done
