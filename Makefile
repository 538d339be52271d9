# On a fresh machine: `make demo` shows everything once, `make test` checks it.
# Needs python3 (3.11 to 3.13) with venv and pip, and for the first run a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_VENV := .docs-venv
DOCS_READY := $(DOCS_VENV)/.ready
RELEASE := .release
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1

.PHONY: help demo test long engines lint docs lock release clean default-model

help:
	@echo "make demo      draw synthetic X-rays, train, evaluate, explain; results in demo/"
	@echo "make test      style, types, import contracts, tests and what of the code they reach"
	@echo "make long      the tests that take longest: kills, a whole pilot, notebooks, all backbones"
	@echo "make engines   the tests that need PyTorch, JAX and Ray; adds these to .venv"
	@echo "make lint      style, types and import contracts alone"
	@echo "make docs      build the documentation into site/ (offline once it is set up)"
	@echo "make release   build wheel and sdist, check them, try the wheel in a clean environment"
	@echo "make default-model DATA=chest_xray   train the model that ships again (models/README.md)"
	@echo "make lock      pin dependencies anew (requirements/)"
	@echo "make clean     remove the environments and all results"

demo: $(READY)
	$(BIN)/pneumoscope demo --out demo

test: lint
	$(BIN)/python $(PYTEST) -m 'not long' --cov --cov-report=
	@echo "The tests reach $$($(BIN)/coverage report --format=total --precision=1) % of lines and" \
		"branches; coverage report or coverage html in $(BIN) shows which."

long: $(READY)
	$(BIN)/python $(PYTEST) -m long

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Training runs on any of Keras' backends, and batches on Ray; the lock file has TensorFlow alone,
# because the others take a gigabyte. A skipped test is a failure here.
engines: $(READY)
	$(BIN)/python $(PIP) --no-build-isolation --editable '.[torch,jax,ray,teachers]'
	$(BIN)/python $(PYTEST) -m engines --no-skips

$(READY): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"found Python %d.%d, expected 3.11 to 3.13: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --require-hashes -r requirements/lock.txt
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# The site needs neither the package nor its dependencies: mkdocstrings reads the source.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "open site/index.html; with search: $(PYTHON) -m http.server --directory site"

$(DOCS_READY): requirements/docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python $(PIP) --require-hashes -r requirements/docs.txt
	@touch $@

# Everything that could go wrong for a user who installs the wheel: metadata, contents, missing
# files. Nothing is uploaded.
release:
	rm -rf dist $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python $(PIP) --require-hashes -r requirements/release.txt
	$(RELEASE)/tools/bin/hatchling build
	$(RELEASE)/tools/bin/twine check --strict dist/*
	$(PYTHON) requirements/check_wheel.py dist
	$(PYTHON) -m venv $(RELEASE)/clean
	$(RELEASE)/clean/bin/python $(PIP) dist/*.whl
	mkdir $(RELEASE)/trial
	cd $(RELEASE)/trial && ../clean/bin/pneumoscope data phantom --out phantoms --n 4 --quiet
	cd $(RELEASE)/trial && ../clean/bin/pneumoscope predict phantoms/train --no-input-check --out rows.csv
	$(PYTHON) requirements/check_wheel.py dist $(RELEASE)/trial/rows.csv

# PyTorch is not in the lock file: only training uses it (benchmarks/RESULTS.md).
default-model: $(READY)
	@test -n "$(DATA)" || { echo "expected: make default-model DATA=chest_xray" >&2; exit 2; }
	$(BIN)/python $(PIP) 'torch==2.13.*'
	$(BIN)/python models/build_default.py "$(DATA)"

COMPILE = $(VENV)/lock/bin/uv pip compile --universal --python-version 3.11 --upgrade \
	--no-emit-index-url --generate-hashes --no-header --quiet

lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python $(PIP) uv
	$(COMPILE) pyproject.toml --extra train --extra quantise --extra export --extra dicom \
		--extra serve --extra download --extra fhir --extra notebook --extra dev \
		--output-file requirements/lock.txt
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]\
	["optional-dependencies"]["docs"], sep="\n")' | $(COMPILE) - --output-file requirements/docs.txt
	$(COMPILE) requirements/release.in --output-file requirements/release.txt
	$(COMPILE) pyproject.toml requirements/images.in --extra dicom --extra serve --extra fhir \
		--constraint requirements/lock.txt --output-file requirements/images.txt

clean:
	rm -rf $(VENV) $(DOCS_VENV) $(RELEASE) site dist demo runs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*
