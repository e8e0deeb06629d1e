PYTHON ?= python
SOURCES = onelora_vision train_scripts benchmarks tests

.PHONY: quality style test

quality:
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m ruff format --check $(SOURCES)

style:
	$(PYTHON) -m ruff check --fix $(SOURCES)
	$(PYTHON) -m ruff format $(SOURCES)

test:
	$(PYTHON) -m pytest
