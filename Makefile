# A fresh clone needs Python 3.11 or newer and nothing else: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Where `make link` puts a link to the command, for every terminal.
LINKS ?= $(HOME)/.local/bin

# A shell that keeps Python from storing compiled modules would make every process of the tests compile them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install link demo test test-all lint docs dist constraints clean

install: $(VENV)/.installed
	@here="$$(cd "$(BIN)" && pwd)"; echo "settle is installed: $$here/settle"; \
	echo "In this terminal, \`settle\` works after:   . '$$here/activate'"; \
	echo "In every terminal, after:   make link   (a link in $(LINKS))"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	-@git config core.hooksPath .githooks
	touch $@

# A link of ours, or one that leads nowhere, is made anew; anything else there is kept.
link: $(VENV)/.installed
	@here="$$(cd "$(BIN)" && pwd)/settle"; there="$(LINKS)/settle"; mkdir -p "$(LINKS)"; \
	if [ -e "$$there" ] && [ "$$(readlink "$$there")" != "$$here" ]; then \
	echo "$$there is another program: remove it, or choose another folder: make link LINKS=FOLDER" >&2; exit 1; fi; \
	ln -sfn "$$here" "$$there" && echo "$$there is a link to $$here; it works while this folder stays where it is"; \
	case ":$$PATH:" in *":$(LINKS):"*) ;; *) \
	echo "$(LINKS) is not on your PATH: add it, for example:   export PATH=\"$(LINKS):\$$PATH\"" ;; esac

# Trains a model on Python's own standard library, from nothing to a GGUF file that llama.cpp loads.
demo: $(VENV)/.installed
	@name=demo-$$(date +%H%M%S); prompt='def read(path):'; \
	$(BIN)/settle train --recipe recipes/demo.toml --name $$name && \
	echo "The exported file, in llama.cpp, completes:  $$prompt" && \
	$(BIN)/settle chat $$name "$$prompt" --temperature 0.6 --max-tokens 12 && \
	echo "Now, in this terminal:   . $(BIN)/activate"

# Three workers on two cores: a test waits for other processes in a quarter of its time.
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Also the further cases of slow tests.
test-all: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m ""

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .githooks/subject.py --branch

# The documentation as a site with a search, which opens from the file.
docs: $(VENV)/.docs
	$(BIN)/python bench/site/build.py

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --group docs
	touch $@

# The versions of this environment, for people who want exactly what was tested.
constraints: $(VENV)/.installed
	$(BIN)/python bench/constraints.py

# The wheel and the sdist, in dist/: built twice, compared and checked.
dist: $(VENV)/.installed
	$(BIN)/python bench/install.py --parts build --dist dist

clean:
	rm -rf $(VENV) build dist *.egg-info
