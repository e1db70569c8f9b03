# make quickstart   install, train the tiny model, print the result and where the report is
# make test         install what the tests need, run them all
# make check        lint, format and types
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: quickstart test check clean

quickstart: $(BIN)/mmrl
	$(BIN)/mmrl train configs/quickstart.yaml $(ARGS)

# One thread: the tests' models are tiny, and two threads that share a busy core wait for each other at every operation.
test: $(BIN)/pytest
	OMP_NUM_THREADS=1 $(BIN)/pytest $(ARGS)

check: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/mmrl: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(BIN)/pytest: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
