# A fresh clone needs Python 3.11 or newer and nothing else: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install demo test test-all lint constraints clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	-@git config core.hooksPath .githooks
	touch $@

# Trains a model on Python's own standard library, from nothing to a GGUF file that llama.cpp loads.
demo: install
	@name=demo-$$(date +%Y%m%d-%H%M%S); prompt='def read_lines(path):'; \
	$(BIN)/settle train --recipe recipes/demo.toml --name $$name && \
	echo && echo "The exported file, in llama.cpp, completes:  $$prompt" && \
	$(BIN)/settle chat $$name "$$prompt" --temperature 0.6 --max-tokens 100

test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Also the further cases of slow tests.
test-all: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m ""

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .githooks/subject.py --branch

# The versions of this environment, for people who want exactly what was tested.
constraints: install
	$(BIN)/python bench/constraints.py

clean:
	rm -rf $(VENV) build *.egg-info
