# The two commands of the README, each of which makes its own environment: make demo, make test. `make test-cpus` runs the
# numerical tests as on other processors.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where torch comes from, for example TORCH_INDEX=https://download.pytorch.org/whl/cpu; empty: pip's default.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-cpus lint wheel clean

demo: $(VENV)/.installed
	$(BIN)/had demo --out runs/demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

test-cpus: $(VENV)/.installed-dev
	$(BIN)/python scripts/test_cpus.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e ".[dev,hf]"
	touch $@

clean:
	rm -rf $(VENV) build dist runs
