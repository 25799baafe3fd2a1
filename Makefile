# Everything that is done with this project. `make help` lists it.

PYTHON ?= python3
PIPELINE ?= pipelines/quickstart.yaml
VENV := .venv
BIN := $(VENV)/bin
REAL := .venv-real

.DEFAULT_GOAL := help
.PHONY: help install feedback test test-real chaos bench bench-vllm bench-peers package lint format typecheck docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "aif needs Python 3.11 or later: make PYTHON=python3.12 install"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(VENV)/installed  ## make .venv with the aif command in it

feedback: $(VENV)/installed  ## run PIPELINE (the quickstart if none is given) and export its dataset
	@$(BIN)/aif run $(PIPELINE) $(ARGS); ran=$$?; \
	if [ $$ran -ne 0 ] && [ $$ran -ne 3 ]; then exit $$ran; fi; \
	$(BIN)/aif export $(PIPELINE) && exit $$ran

test: $(VENV)/installed  ## the fast suite
	$(BIN)/python -m pytest -q -n auto

test-real:  ## the suite with a real vLLM (CPU build) and TRL; Linux x86-64
	scripts/real-env.sh $(REAL)
	$(REAL)/bin/python -m pytest -q tests/real

chaos: $(VENV)/installed  ## test every promise at full length (TRIALS="2 12": some) and write docs/reliability.md; two hours
	AIF_REAL_PYTHON=$$(test -x $(REAL)/bin/python && echo $(CURDIR)/$(REAL)/bin/python) $(BIN)/python -m trials.reliability $(TRIALS)

# OpenAI's vocabularies lie in a wheel of another project, as its library keeps them.
build/vocabularies:
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build/wheels litellm
	$(BIN)/python -m zipfile --extract build/wheels/litellm-*.whl build/litellm
	mkdir -p $@ && cp build/litellm/litellm/litellm_core_utils/tokenizers/[0-9a-f]* $@/

bench: $(VENV)/installed build/vocabularies  ## measure what needs no other tool (TRIALS="1 2": some) and write docs/performance.md; an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check tiktoken
	TIKTOKEN_CACHE_DIR=$(CURDIR)/build/vocabularies $(BIN)/python -m trials.performance $(or $(TRIALS),1 2 4 5 6 7 8 9 10)

bench-vllm:  ## compare with a bare loop on a real vLLM (CPU build); Linux x86-64
	scripts/real-env.sh $(REAL)
	$(REAL)/bin/python -m trials.performance 3

bench-peers: $(VENV)/installed  ## compare with distilabel and curator, each in its own environment
	test -x .venv-distilabel/bin/python || { $(PYTHON) -m venv .venv-distilabel && .venv-distilabel/bin/pip install --quiet distilabel==1.5.3 openai requests; }
	test -x .venv-curator/bin/python || { $(PYTHON) -m venv .venv-curator && .venv-curator/bin/pip install --quiet bespokelabs-curator==0.1.31; }
	$(BIN)/python -m trials.performance 11

package: $(VENV)/installed  ## build wheel and sdist, and test each in an empty environment
	scripts/try-package.sh

lint: $(VENV)/installed  ## ruff, formatting and the rules of which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

format: $(VENV)/installed  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/installed  ## mypy, strict
	$(BIN)/mypy

docs: $(VENV)/installed  ## write the generated pages of docs/
	$(BIN)/python -m scripts.write_docs

clean:  ## remove everything installed or built (never runs/)
	rm -rf $(VENV) $(REAL) .venv-distilabel .venv-curator build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
