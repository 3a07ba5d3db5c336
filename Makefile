# Every chore is one verb. `make PYTHON=python3.13 demo` makes the virtual environment with another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements
# A chore is quiet until it fails; twice quiet, pip still prints errors.
PIP_OPTIONS := --disable-pip-version-check --quiet --quiet
PIP_INSTALL := -m pip $(PIP_OPTIONS) install --root-user-action ignore

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo up test chaos check format lock audit sbom clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/runtime $(VENV)/development $(VENV)/benchmark ## .venv with everything: runtime, tests, benchmarks

demo: $(VENV)/runtime ## the whole main job on this machine, in a home that is thrown away
	@$(BIN)/python examples/demo.py

up: $(VENV)/runtime ## start everything and stay; Ctrl-C stops it
	@exec $(BIN)/python -m app.cli up

test: $(VENV)/development ## the whole test suite, two files at a time
	@$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile

chaos: $(VENV)/development ## hurt the real service in every way and check its promises; 5 to 8 minutes
	@$(BIN)/python -m tests.chaos

check: $(VENV)/development ## linter, formatter, types, import contracts
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports) || { echo "$$report"; exit 1; }
	@$(BIN)/python -m tests.audit --pins

format: $(VENV)/development ## put the code into the house's format
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

# One stamp a set of packages: made again when its pins or our own metadata change.
$(VENV)/runtime $(VENV)/development $(VENV)/benchmark: $(VENV)/%: $(REQUIREMENTS)/%.txt pyproject.toml | $(BIN)/python
	@echo "Installing what is pinned in $< ..."
	@$(BIN)/python $(PIP_INSTALL) --requirement $<
	@$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "finetuned needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV)

# Which extras each set holds; pinned together first, so that the sets agree.
api_EXTRAS := --extra s3
gpu_EXTRAS := --extra gpu --extra s3
runtime_EXTRAS := --extra embedded --extra gpu
development_EXTRAS := $(runtime_EXTRAS) --extra telemetry --extra s3 --extra wandb --extra mlflow --extra test
benchmark_EXTRAS := $(runtime_EXTRAS) --extra benchmark
SETS := api gpu runtime development benchmark
AUDIT_TOOLS := pip-audit cyclonedx-bom
LOCK := build/lock
COMPILE := $(LOCK)/bin/python -m piptools compile --quiet --allow-unsafe --strip-extras \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options
# torch names its CUDA packages itself where it needs them; pinned here they would be fetched without a GPU too.
PORTABLE := sed -e 's/+cpu$$//' -e '/^\(nvidia-\|cuda-\|triton\)/d' -e '/^\#/d'

lock: ## pin the newest versions that pyproject.toml allows
	@$(PYTHON) -m venv $(LOCK)
	@$(LOCK)/bin/python $(PIP_INSTALL) pip-tools
	@$(COMPILE) --upgrade --all-extras --output-file $(LOCK)/all.txt pyproject.toml
	@$(foreach set,$(SETS),$(COMPILE) $($(set)_EXTRAS) --constraint $(LOCK)/all.txt \
	  --output-file $(LOCK)/$(set).txt pyproject.toml &&) true
	@$(foreach set,$(SETS),{ echo "# What '$(set)' needs, every version pinned. Made by 'make lock'."; \
	  $(PORTABLE) $(LOCK)/$(set).txt; } > $(REQUIREMENTS)/$(set).txt &&) true
	@printf '%s\n' $(AUDIT_TOOLS) | $(COMPILE) --upgrade --output-file $(LOCK)/audit.txt -
	@{ echo "# What 'make audit' and 'make sbom' run, in an environment of its own. Made by 'make lock'."; \
	  $(PORTABLE) $(LOCK)/audit.txt; } > $(REQUIREMENTS)/audit.txt

# The tools live apart: what audits the packages is none of them.
AUDIT := build/audit
$(AUDIT)/bin/pip-audit: requirements/audit.txt
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@

audit: $(VENV)/development $(AUDIT)/bin/pip-audit ## known flaws of everything pinned; no answer is not clean
	@$(BIN)/python -m tests.audit

sbom: $(AUDIT)/bin/pip-audit ## build/sbom.json: what the runtime consists of, as CycloneDX
	@$(AUDIT)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --output-file build/sbom.json requirements/runtime.txt

clean: ## remove what can be made again: .venv, caches, build output
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find app worker tests migrations examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
