# `make chat` talks to the default model, `make test` runs the tests; both set up what they need.
#
# The compiled llama.cpp is kept under $XDG_CACHE_HOME/liquid (~/.cache/liquid) and compiled anew when llamacpp/ changes.
# PYTHON and VENV choose another interpreter and folder, ARGS adds options to pytest, CMAKE_ARGS goes to llama.cpp.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# OpenMP's threads sleep rather than spin while they wait: on a busy machine two spinning ones block each other for seconds
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

TIERS := $(foreach tier,unit golden hostile native e2e,$(wildcard tests/$(tier)))
BACKEND := $(shell find llamacpp -type f ! -name '*.pyc' ! -name README.md)

.PHONY: setup test check native golden docs oracle chat
.NOTPARALLEL:

setup: $(VENV)/.dev

test: $(VENV)/.dev
	$(PYTEST) --numprocesses auto --dist loadfile $(TIERS) -m "not oracle" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy liquidcli
	$(BIN)/mypy llamacpp/liquidbuild

native: $(VENV)/.dev
	$(PYTEST) tests/native -m "not oracle" $(ARGS)

golden: $(VENV)/.dev
	$(PYTEST) tests/golden $(ARGS)

docs: $(VENV)/.dev
	$(PYTEST) tests/unit/test_repository.py $(ARGS)

oracle: $(VENV)/.dev
	dir=$$($(BIN)/python llamacpp/compile.py oracle) && LIQUID_ORACLE_DIR=$$dir $(PYTEST) $(TIERS) -m oracle $(ARGS)

# With something else than a terminal on stdin: one answer to what comes from there.
chat: $(VENV)/.run
	@if [ -t 0 ]; then $(BIN)/liquid chat; else $(BIN)/liquid run; fi

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.backend: $(BACKEND) | $(VENV)/.made
	wheel=$$($(BIN)/python llamacpp/compile.py wheel) && $(PIP) --no-deps --force-reinstall "$$wheel" </dev/null
	@touch $@

$(VENV)/.run: $(VENV)/.backend pyproject.toml constraints.txt
	$(PIP) --editable . </dev/null
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable '.[dev]' cmake ninja 'setuptools>=77' </dev/null
	@touch $@
