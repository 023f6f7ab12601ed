# make demo, make test, make check, make faults, make bench, make lint: each sets the project up by itself in .venv the first time.
PYTHON ?= python3
BIN := .venv/bin
# One thread a test process: small steps are many times slower when processes fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.PHONY: demo test lint check faults soak bench format
.DEFAULT_GOAL := demo

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed  ## train a small network with BAM and BoT on the embedded shapes
	$(BIN)/attneck train demo

test: .venv/installed  ## everything
	$(PYTEST)

lint: .venv/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## format, lint, types, fast tests
	$(PYTEST) -m 'not slow and not data'

faults: .venv/installed  ## every fault injected, in the long form: results/faults
	ATTNECK_FAULTS=long $(PYTEST) tests/faults

soak: .venv/installed  ## two hours of a run that is disturbed every few minutes
	$(BIN)/python tests/faults/soak.py

bench: .venv/installed  ## against the peers, about half an hour of an idle machine: results/bench
	benchmarks/run

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
