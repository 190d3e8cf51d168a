# No other setup is needed: `make demo` and `make test` create .venv with pinned versions on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/runtime.stamp
DEV := $(VENV)/dev.stamp
GGUF := $(VENV)/gguf.stamp

.PHONY: help demo test check bench parity truth real clean

help:
	@echo "make demo    find a circuit of the bundled model, and print where its report is"
	@echo "make test    run the whole test suite"
	@echo "make check   lint, format, types, import rules"
	@echo "make bench   measure speed on a quiet machine, about 6 minutes; writes docs/performance.md"
	@echo "make parity  compare every quantity with an independent way to it; writes docs/parity.md"
	@echo "make truth   judge every scoring method on models with a known circuit; writes docs/known-circuits.md"
	@echo "make real    check every task on SmolLM2-135M and discover two circuits; writes docs/real-models.md"
	@echo "make clean   remove .venv and everything built"

demo: $(RUNTIME)
	$(BIN)/circuitlab discover gendered-pronouns --out runs/demo --force

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=25

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(RUNTIME)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks

parity: $(GGUF)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.parity

truth: $(RUNTIME)
	$(BIN)/python -m benchmarks.truth

real: $(GGUF)
	OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.real

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(RUNTIME): requirements/locked.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("circuitlab needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Installing circuitlab and its locked dependencies into $(VENV); this takes a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --requirement requirements/locked.txt
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	@$(PIP) install -qq --requirement requirements/dev.txt
	@touch $@

# The reader of GGUF files, which is needed to convert SmolLM2-135M; without network the rest runs all the same.
$(GGUF): requirements/dev.txt $(RUNTIME)
	@$(PIP) install -qq --constraint requirements/dev.txt gguf && touch $@ || echo "The package gguf cannot be installed."
