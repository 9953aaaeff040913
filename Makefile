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
# The benchmark's peers have an environment of their own.
PEERS := benchmarks/.venv
PEERS_INSTALL = $(BIN)/uv pip install -q --compile-bytecode --python $(PEERS)/bin/python -c benchmarks/peers/constraints.txt
PYTEST := $(BIN)/python -m pytest -q

.PHONY: setup demo test test-slow test-deploy chaos check fix docs-check bench bench-quick bench-cuda bench-products bench-compression bench-peers hooks clean help

help:
	@echo "make demo        federate a small model in minutes, compare with baselines"
	@echo "make test        the fast tests; make test-slow: real model, processes, documentation commands"
	@echo "make test-deploy: deployments, a line a check; make chaos: twenty random kills, half an hour"
	@echo "make check       formatting, lint, types, import rules; make fix repairs what it can"
	@echo "make bench       measurements beside the peers, hours; make bench-quick: a quarter of an hour; bench-cuda: one GPU;"
	@echo "                 make bench-products: the server's half of each strategy, minutes"

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

# One process a core; whoever is done takes over tests of the others.
test: setup
	$(PYTEST) -n auto --dist worksteal

test-slow: setup
	$(PYTEST) -m slow

# The checks by which a deployment is accepted, a line each; a few minutes.
test-deploy: setup
	FEDIT_CHECKS=1 $(PYTEST) -m "not gpu" tests/flower

# Twenty kills at random moments of deployed runs, about half an hour; goes on where it was interrupted.
chaos: setup
	@$(BIN)/python tests/chaos.py

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

# The peers' libraries live apart from fedit's; needs about 2 GB once torch is there, and half a minute.
bench-peers: $(PEERS)/.setup-stamp

$(PEERS)/.setup-stamp: benchmarks/peers/requirements.in benchmarks/peers/constraints.txt | setup
	@echo "installing the peers into $(PEERS) …"
	@test -x $(PEERS)/bin/python || $(BIN)/uv venv -q --python $(BIN)/python $(PEERS)
	@$(PEERS)/bin/python -c "import torch" 2>/dev/null || \
	  $(BIN)/python -m pip --python $(PEERS)/bin/python install -q -c benchmarks/peers/constraints.txt \
	    $(if $(TORCH_CPU_INDEX),--index-url $(TORCH_CPU_INDEX)) torch
	@$(PEERS_INSTALL) -r $<
	@touch $@

bench: setup bench-peers
	$(BIN)/python -m benchmarks

bench-quick: setup bench-peers
	@$(BIN)/python -m benchmarks --quick

# On a machine with a CUDA device; everything it needs is in fedit's own environment.
bench-cuda: setup
	@$(BIN)/python -m benchmarks.cuda

# What the server's half of each strategy costs, a few minutes; --layers N for fewer than 32.
bench-products: setup
	@$(BIN)/python -m benchmarks.products

# What transforms take and lose on real updates; a minute.
bench-compression: setup
	@$(BIN)/python -m benchmarks.compression

hooks: setup
	$(BIN)/prek install

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
