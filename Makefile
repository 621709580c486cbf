# Two commands for a fresh machine:   make demo   and   make test
# Both set up everything they need in .venv first; only Python 3.11+ and make must be present.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CPU=1 pins torch to the version that the tests run with and keeps CUDA packages out where the
# package index offers a CPU build.
ifdef CPU
export PIP_CONSTRAINT := $(CURDIR)/constraints-cpu.txt
endif
# Tests start Python hundreds of times; without bytecode each start would compile every library.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# Each file of tests stays in one process, so that what it trains is trained once.
PYTEST := $(BIN)/python -m pytest --dist loadfile

.PHONY: setup demo format lint types test test-slow fuzz check pages docs wheel bench clean

demo: $(VENV)/.demo
	$(BIN)/perceivers demo --overwrite

test: $(VENV)/.dev
	$(PYTEST) -m "not slow and not unhooked and not fuzz" -n auto

# Kills and whole runs; then what cannot run under the hook that checks shapes: compilation, export.
test-slow: $(VENV)/.dev
	$(PYTEST) -m "slow and not unhooked" -n auto
	$(PYTEST) -m unhooked --jaxtyping-packages= -n auto

# Bad input of every kind. FUZZ_CASES (500) and FUZZ_SEED (0) choose how much and which.
fuzz: $(VENV)/.dev
	$(PYTEST) -m fuzz -n auto tests/fuzz

$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "perceivers needs Python 3.11 or later; say which with: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "perceivers needs Python 3.11 or later; say which with: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.demo

setup: $(VENV)/.dev

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

check: lint types test

# What the documentation repeats of the code: option tables, public names.
pages: $(VENV)/.dev
	$(BIN)/python tools/pages.py

# The site in site/; a broken link or an unlisted page is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist

bench: $(VENV)/.dev
	$(BIN)/perceivers bench

clean:
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache
