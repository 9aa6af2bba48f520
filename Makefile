# Everything runs in .venv, made with the Python below; no root, no system packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run on all cores; benchmarks never beside anything else.
JOBS ?= 2

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[torch,report]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[hf,report,nncf,neural-compressor,pruning,search,docs,dev]'
	@touch $@ $(VENV)/.demo

.PHONY: demo
demo: $(VENV)/.demo ## Install, and optimize the shipped model on its real data
	$(BIN)/optimize examples/fashion/resnet.safetensors \
	  --arch examples/fashion/arch.py:resnet --data examples/fashion/data.npz \
	  --budget p99=20ms --budget size=400kB --floor drop=0.01 --threads 1

.PHONY: dev
dev: $(VENV)/.dev ## Install everything for development

.PHONY: check
check: $(VENV)/.dev ## Lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What pip does for an installed package: hundreds of short processes import this one. Links to
# folders are not followed by themselves.
.PHONY: compiled
compiled: $(VENV)/.dev
	$(BIN)/python -m compileall -q optimize $(wildcard optimize/*/)

.PHONY: test
test: compiled ## Install and run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -q

.PHONY: docs
docs: $(VENV)/.dev ## Build the site into build/docs; a broken link is an error
	$(BIN)/sphinx-build -n -W --keep-going -q docs build/docs

.PHONY: wheel
wheel: $(VENV)/.dev ## Build the wheel through the sdist, and check what it holds
	rm -rf dist
	$(BIN)/python -m build -q
	$(BIN)/check-wheel-contents --toplevel optimize --ignore W009 dist/*.whl

.PHONY: bench
bench: compiled ## Run the benchmarks (minutes; keep the machine quiet)
	$(BIN)/python -m benchmarks.verdict
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.decide
	$(BIN)/python -m benchmarks.noise
	$(BIN)/python -m benchmarks.aa
	$(BIN)/python -m benchmarks.gate_simulation --runs 100
	$(BIN)/python -m benchmarks.gate

.PHONY: clean
clean: ## Remove what was built
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
