# modelglue: everything that a newcomer or CI runs.  `make help` lists it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ZOO ?= zoo/quick
SEED ?= 0

.PHONY: help setup demo test test-slow lint format docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.installed ## make .venv with everything that demo and tests need

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## train a small zoo, glue it, and show that the result beats its best model
	$(BIN)/modelglue demo --zoo $(ZOO) --seed $(SEED)

test: lint ## lint, types, floors, and every test that is not marked slow
	$(BIN)/python -m pytest

test-slow: setup ## the tests that take minutes (30 kills, 200 damaged checkpoints in depth)
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## write docs/methods anew from what the methods declare
	$(BIN)/python -m modelglue.report.method_pages docs/methods

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
