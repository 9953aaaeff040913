# Two commands from a bare clone: `make demo` and `make test`. Each installs what it needs, once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
# Extras that the tests use.
EXTRAS ?= all
# On Linux without an NVIDIA driver, set this to a CPU index of PyTorch to save about 3 GB.
TORCH_CPU_INDEX ?=
# Byte code is written once at installation; without it every start imports PyTorch from source for 15 seconds.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -q

.PHONY: setup demo test test-slow check fix docs-check bench hooks clean help

help:
	@echo "make demo        federate a small model in minutes, compare with baselines"
	@echo "make test        the fast tests; make test-slow: real model, processes, documentation commands"
	@echo "make check       formatting, lint, types, import rules; make fix repairs what it can"
	@echo "make bench       measurements"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -c "import torch" 2>/dev/null || \
	  $(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_CPU_INDEX),--index-url $(TORCH_CPU_INDEX)) torch
	@$(BIN)/python -m pip install -q -c constraints.txt uv && \
	  $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[$(EXTRAS)]" --group dev || \
	  $(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]" \
	    $$($(BIN)/python -c "import tomllib; g=tomllib.load(open('pyproject.toml','rb'))['dependency-groups']; print(*('\"'+x.replace(' ','')+'\"' for x in g['test']+g['lint']))" | xargs)
	@touch $@

demo: setup
	@if [ -f runs/demo/run.json ] && [ ! -f runs/demo/summary.json ]; then \
	  $(BIN)/fedit resume runs/demo; \
	else \
	  $(BIN)/fedit run demo --compare local,centralised --compare_clients 2 --out runs/demo --replace; \
	fi

test: setup
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m docs.generate

docs-check: setup
	$(PYTEST) -m slow tests/docs

bench: setup
	$(BIN)/python -m benchmarks

hooks: setup
	$(BIN)/prek install

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
