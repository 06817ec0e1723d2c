# `make demo` and `make test` are all that a fresh machine needs. PYTHON chooses the interpreter that .venv is made with.
PYTHON ?= python3
BIN := .venv/bin
# Where the browser backend and its tests look for onnxruntime-web.
export EDGECNN_WEB ?= $(CURDIR)/.venv/web
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint deploy/constraints.txt

.PHONY: demo test check bench docs
demo: .venv/.demo
	$(BIN)/edgecnn demo --out demo

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check edgecnn exporters tests
	$(BIN)/mypy
	$(BIN)/python -m edgecnn.cli.readme --check README.md

bench: .venv/.dev
	set -e; for file in tests/benchmarks/bench_*.py; do echo; echo "== $$file"; $(BIN)/python $$file; done

docs: .venv/.dev
	$(BIN)/python -m edgecnn.cli.readme README.md

.venv/.demo: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[cpu,train]'
	touch $@

.venv/.dev: .venv/.demo
	$(PIP) --editable '.[dev]'
	touch $@
