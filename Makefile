# make demo, test, test-slow, check, faults, bench, counts, tables, lint: each sets the project up by itself in .venv the first time.
PYTHON ?= python3
BIN := .venv/bin
# One thread a test process: small steps are many times slower when processes fight over the cores.
# A process that has done its share takes half of what the other has left.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: demo test test-slow test-oldest lint check faults soak bench counts tables format
.DEFAULT_GOAL := demo

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed  ## train a small network with BAM and BoT on the embedded shapes
	$(BIN)/attneck train demo

test: .venv/installed  ## every line of the tests: all but the long forms
	$(PYTEST) -m 'not slow'

test-slow: .venv/installed  ## the long forms; a short form of each is in `make test`
	$(PYTEST) -m slow

# In an environment of its own. What constraints.txt pins is not what is there, so the test of that stays out.
.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	grep -oE '"[A-Za-z_-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/' > .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/oldest.txt -e '.[dev]'
	touch $@

test-oldest: .venv-oldest/installed  ## the tests that need no data, with the oldest versions that pyproject.toml admits
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest -n 2 -m 'not slow and not data' --ignore tests/test_dependencies.py

lint: .venv/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## format, lint, types, the tests that need no data
	$(PYTEST) -m 'not slow and not data'

faults: .venv/installed  ## every fault injected, in the long form: results/faults
	ATTNECK_FAULTS=long $(PYTEST) tests/faults

soak: .venv/installed  ## two hours of a run that is disturbed every few minutes
	$(BIN)/python tests/faults/soak.py

bench: .venv/installed  ## against the peers, about half an hour of an idle machine: results/bench
	benchmarks/run

counts: .venv/installed  ## count every network that `attneck count` and `papers` answer at once
	$(BIN)/python -m attneck.commands.counted

tables: .venv/installed  ## The pages' tables and picture, from the files in results/
	$(BIN)/python docs/tables.py

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
