# The commands of this project; CI runs the same ones. `make run` and `make test` set up
# whatever they need in .venv and tests/clients/node_modules, and nothing outside this folder.

PYTHON ?= python3
BIN := .venv/bin
NODE := $(shell command -v npm 2>/dev/null)

.PHONY: run test test-slow lint fmt bench setup setup-system docs conformance lock clean

run: .venv/run.stamp
	@$(BIN)/python -m services

setup: .venv/dev.stamp tests/clients/node_modules/.stamp

test: setup
	$(BIN)/pytest -n 4 --dist loadfile -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate -q tests

fmt: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev.stamp
	$(BIN)/python -m bench all

docs: .venv/dev.stamp
	$(BIN)/python -m docs.generate

# docs/conformance.md, from the tests that have the number of a protocol's item in their names.
conformance: setup
	$(BIN)/python -m pytest -q -p tests.ingest.conformance -k "test_item_ or test_items_" tests

# Debian/Ubuntu packages that tests use beyond Python: a second Redis, Node.js, strace.
setup-system:
	@./tests/setup_system.sh

lock: .venv/dev.stamp
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --extra dev pyproject.toml -o requirements/dev.txt

clean:
	rm -rf .venv tests/clients/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed: set PYTHON=/path/to/it"; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "error: venv is missing: on Debian and Ubuntu, apt-get install python3-venv"; exit 2; }

.venv/run.stamp: requirements/run.txt | .venv/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	@touch $@

.venv/dev.stamp: requirements/dev.txt | .venv/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@ .venv/run.stamp

tests/clients/node_modules/.stamp: tests/clients/package-lock.json
ifeq ($(NODE),)
	@echo "npm is missing: the tests with tus-js-client are skipped (make setup-system)"
else
	cd tests/clients && npm ci --no-audit --no-fund --ignore-scripts
	@touch $@
endif
