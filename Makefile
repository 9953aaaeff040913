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

.PHONY: setup demo test test-slow test-long test-deploy chaos check fix docs docs-check pictures dist bench bench-quick bench-cuda bench-products bench-compression bench-deploy bench-peers hooks bench-dpsgd bench-secagg fuzz sbom audit clean help

help:
	@echo "make demo        federate a small model in minutes, compare with baselines"
	@echo "make test        the fast tests; make test-slow: real model, processes, documentation commands"
	@echo "make test-deploy: deployments, a line a check; make chaos: twenty random kills, half an hour"
	@echo "make check       formatting, lint, types, import rules; make fix repairs what it can"
	@echo "make docs        the documentation as a site in site/, without a network; make docs-check: runs all its commands"
	@echo "make fuzz        broken input for every parser; SECONDS=n a target; make sbom: the parts list of the"
	@echo "                 installation; make audit: known weaknesses of its packages"
	@echo "make dist        sdist and wheel into dist/"
	@echo "make bench       measurements beside the peers, hours; make bench-quick: a quarter of an hour; bench-cuda: one GPU;"
	@echo "                 make bench-products: the server's half of each strategy, minutes; bench-deploy: over Flower"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -c "import torch" 2>/dev/null || \
	  $(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_CPU_INDEX),--index-url $(TORCH_CPU_INDEX)) torch
	@$(BIN)/python -m pip install -q -c constraints.txt uv && \
	  $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[$(EXTRAS)]" --group dev || \
	  $(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]" \
	    $$($(BIN)/python -c "import tomllib; g=tomllib.load(open('pyproject.toml','rb'))['dependency-groups']; print(*('\"'+x.replace(' ','')+'\"' for x in g['test']+g['lint']+g['docs']))" | xargs)
	@touch $@
	@echo "done; put fedit on the path with: source $(BIN)/activate"

demo: setup
	@if [ -f runs/demo/run.json ] && [ ! -f runs/demo/summary.json ]; then \
	  $(BIN)/fedit resume runs/demo; \
	else \
	  $(BIN)/fedit run demo --compare local,centralised --compare_clients 2 --out runs/demo --replace; \
	fi

# One process a core; whoever is done takes over tests of the others.
test: setup
	$(PYTEST) -n auto --dist worksteal

# Two files at a time, and single documents: deployments wait more than they compute.
test-slow: setup
	$(PYTEST) -m "slow and not long" -n 2 --dist loadfile

# What takes minutes each beyond that.
test-long: setup
	$(PYTEST) -m long

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

# Pages in site/ that open without a network and read without JavaScript.
docs: setup
	@$(BIN)/python -m docs.build site && echo "site/index.html"

# Pictures of the demo's run and of its pages, for docs/pictures; needs Chromium and its driver.
pictures: setup demo
	@$(BIN)/python -m docs.screenshots runs/demo

docs-check: setup
	$(PYTEST) -m slow tests/docs

# sdist and wheel into dist/; nothing is fetched, the build's own needs are in the environment.
dist: setup
	@rm -rf dist
	$(BIN)/python -m build --no-isolation

# Broken input for every parser; exits with 1 where something breaks. TARGETS="rows_csv policy" for some of them.
SECONDS ?= 10
fuzz: setup
	@$(BIN)/python -m fuzz --seconds $(SECONDS) $(TARGETS)

# The parts list (CycloneDX) of the installed environment, by a tool in an environment of its own.
SBOM ?= sbom.json
sbom: setup
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml \
	  --output-format JSON --output-file $(SBOM) $(BIN)/python

# 0: nothing is known; 1: a package has a known weakness; 3: the advisory service could not be reached.
audit: setup
	@$(BIN)/python -m tools.audit

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

# A deployed round beside the plain Flower example; the machine should be calm.
bench-deploy: setup
	@$(BIN)/python -m benchmarks.deployment

# What transforms take and lose on real updates; a minute.
bench-compression: setup
	@$(BIN)/python -m benchmarks.compression

# DP-SGD on LoRA beside plain training and Opacus, which stands in the peers' environment; a quarter of an hour.
bench-dpsgd: setup $(PEERS)/.opacus-stamp
	@$(BIN)/python -m benchmarks.dpsgd

$(PEERS)/.opacus-stamp: | bench-peers
	@$(PEERS_INSTALL) scipy==1.17.1 opt-einsum==3.4.0
	@$(PEERS_INSTALL) --no-deps opacus==1.6.0
	@touch $@
# What a secure sum takes beside a plain one; a few minutes.
bench-secagg: setup
	@$(BIN)/python -m benchmarks.secagg

hooks: setup
	$(BIN)/prek install

clean:
	rm -rf site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
