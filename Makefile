# make demo | test | check: each sets up what it needs; a second run starts within seconds.
SHELL := /bin/bash
PATH := $(CURDIR)/.venv/bin:$(PATH)
ifeq ($(shell id -u),0)
# Open MPI refuses root unless it is told twice.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
RANKS ?= 2
# Of pytest: one more than there are cores, since tests of the service wait for Slurm and for signals.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n + 1 : 4)))

.PHONY: help setup demo test test-slow bench check docs clean
.DEFAULT_GOAL := help

help:
	@echo "make setup      .venv with everything that running takes"
	@echo "make demo       train a LeNet on Fashion-MNIST, its spectrum at every checkpoint, a figure"
	@echo "make test       the test suite"
	@echo "make test-slow  what is too long for it"
	@echo "make bench      the figures of docs/performance.md, other packages beside us (hours)"
	@echo "make check      linters, type checker, documentation"
	@echo "make docs       the documentation, in docs/_build/html"

.venv/.ready: pyproject.toml .ci/setup
	@.ci/setup solve,xarray,report,language
	@touch $@

.venv/.ready-dev: .venv/.ready
	@.ci/setup dev
	@touch $@

setup: .venv/.ready

demo: .venv/.ready
	@hessdist train jobs/demo.toml
	@mpirun -n $(RANKS) hessdist spectrum jobs/demo.toml
	@hessdist show results/demo.h5
	@hessdist plot results/demo.h5

# File by file beside each other; then those that are themselves ranks, in one start for each number.
test: .venv/.ready-dev
	@python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not mpi"
	@python -m pytest -m "mpi and not slow"

test-slow: .venv/.ready-dev
	@python -m pytest -m slow --timeout 3600

# Hours on two cores; the parts can be run by themselves (docs/performance.md).
bench: .venv/.ready-dev
	@tests/benchmarks/peers/setup
	@python tests/benchmarks/all.py

check: .venv/.ready-dev
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports
	@$(MAKE) --no-print-directory docs

docs: .venv/.ready-dev
	@python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

clean:
	rm -rf .venv docs/_build .mypy_cache .ruff_cache .pytest_cache
