# Each target works on a fresh machine with python 3.11 or newer and make; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

.PHONY: help setup train test check notebooks lock clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv with exactly what requirements.lock says

# uv where there is one, because it is faster; venv and pip otherwise
$(READY): requirements.lock pyproject.toml
	@if command -v uv >/dev/null; then \
		(test -d .venv || uv venv --quiet --python $(PYTHON) .venv) && \
		VIRTUAL_ENV=.venv uv pip sync --quiet --require-hashes requirements.lock && \
		VIRTUAL_ENV=.venv uv pip install --quiet --no-deps --no-build-isolation --editable . ; \
	else \
		(test -d .venv || $(PYTHON) -m venv .venv) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . ; \
	fi
	@touch $@

train: $(READY) ## train the default experiment on drawn shapes (ARGS="..." overrides anything)
	@$(BIN)/quadrat-train $(ARGS)

test: check ## style, layers, types, then the whole test suite
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## style, layers and types only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-logo 2>/dev/null >.venv/lint.log || (cat .venv/lint.log; false)
	@$(BIN)/pyright

proof: $(READY) ## kill and resume at every instant in every setting, not only at those CI tries (half an hour)
	@$(BIN)/python -m pytest -m "" tests/test_resume.py tests/test_ranks.py $(ARGS)

notebooks: $(READY) ## make notebooks/*.ipynb from their sources and open them in your editor of choice
	@$(BIN)/jupytext --quiet --to ipynb notebooks/*.py && ls notebooks/*.ipynb

lock: ## resolve the newest versions that pyproject.toml allows (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate --upgrade --quiet --output-file requirements.lock

clean: ## remove what can be made again; run folders stay
	rm -rf .venv .pytest_cache .ruff_cache build dist
