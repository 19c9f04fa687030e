PYTHON ?= python

.PHONY: check test demo bench

check:  ## linter and formatter
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test:  ## the whole test suite, no network and no GPU needed
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest

demo:  ## reconstruct the bundled images
	$(PYTHON) -m softvq demo

bench:  ## the tables of benchmarks/README.md that need no GPU
	$(PYTHON) benchmarks/yardsticks.py
