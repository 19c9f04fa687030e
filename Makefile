PYTHON ?= python
REFERENCE ?= .venv-reference
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest

.PHONY: check test test-reference test-oldest test-newest demo bench

check:  ## linter and formatter
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test:  ## the whole test suite on all cores, no network and no GPU needed
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n auto --dist loadfile

test-reference:  ## parity with the real timm, in an environment of its own (Python 3.10 or 3.11, which torchvision 0.16 needs)
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python -m pip install --quiet -c constraints.txt -e '.[test]' 'timm>=1.0.20,<1.1' lpips torch-fidelity requests
	$(REFERENCE)/bin/python -m pip install --quiet --no-deps torchvision==0.16.2  # which imports requests
	HF_HUB_OFFLINE=1 $(REFERENCE)/bin/python -W ignore -m pytest tests/reference -o addopts="-q --strict-markers"

test-oldest:  ## the suite with the oldest PyTorch, in an environment of its own
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -e '.[test]' 'torch==2.6.*'
	$(MAKE) test PYTHON=$(OLDEST)/bin/python

test-newest:  ## the suite with the newest of everything, in an environment of its own
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade -e '.[test]'
	$(MAKE) test PYTHON=$(NEWEST)/bin/python

demo:  ## reconstruct the bundled images
	$(PYTHON) -m softvq demo

bench:  ## the tables of benchmarks/README.md that need no GPU
	$(PYTHON) benchmarks/yardsticks.py
