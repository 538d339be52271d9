# On a fresh machine: `make demo` shows everything once, `make test` proves it.
# Needs python3 (3.11 to 3.13) with venv and pip, and for the first run a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint lock clean default-model

help:
	@echo "make demo   draw synthetic X-rays, train, evaluate, explain; results in demo/"
	@echo "make test   style, types, import contracts, tests"
	@echo "make lint   style, types and import contracts alone"
	@echo "make default-model DATA=chest_xray   train the model that ships anew (models/README.md)"
	@echo "make lock   pin dependencies anew (requirements/lock.txt)"
	@echo "make clean  remove the virtual environment and all results"

demo: $(READY)
	$(BIN)/pneumoscope demo --out demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 1

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"found Python %d.%d, wanted 3.11 to 3.13: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# PyTorch is no part of the lock file: nothing but training needs it (benchmarks/RESULTS.md).
default-model: $(READY)
	@test -n "$(DATA)" || { echo "wanted: make default-model DATA=chest_xray" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.*'
	$(BIN)/python models/build_default.py "$(DATA)"

lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade \
		--extra train --extra quantise --extra export --extra dicom --extra serve --extra download \
		--extra fhir --extra notebook --extra dev \
		--no-emit-index-url --generate-hashes --no-header --quiet --output-file requirements/lock.txt

clean:
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
