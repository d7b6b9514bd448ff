# Two commands for a fresh machine that has git, make and Python ≥ 3.11: `make demo` and `make test`.
# uv is fetched into .uv/ if it isn't installed; that works where the system's Python refuses installs, too.

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .uv/bin/uv
endif
RUN := $(UV) run --frozen --no-sync

# An environment that was made with CPU=1 stays one until `make clean`.
CPU ?= $(wildcard .venv/.cpu)
# Three test processes keep two cores busy, since most of them wait for servers. 0 runs the tests in one process.
WORKERS ?= 3
PYTEST := $(RUN) pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-slow test-nightly coverage lint check env env-dev clean help

help:
	@echo "make demo          start the real server with the embedded model and ask it about a picture (KEEP=1 leaves it running)"
	@echo "make test          run the tests that every commit must pass (ARGS=… for pytest, WORKERS=… test processes)"
	@echo "make test-slow     run the tests that take minutes each: several clusters, long loads, training"
	@echo "make test-nightly  run what takes longer still"
	@echo "make coverage      make test, measured: what share of each package's branches the tests run, and its floor"
	@echo "make lint          check formatting, lint, types, import rules"
	@echo "make check         lint and test"
	@echo "make env           install what serving needs into .venv; CPU=1 leaves CUDA's libraries out (with any target)"
	@echo "make env-dev       install the developers' tools, too"
	@echo "make clean         remove the environment"

demo: env
	@$(RUN) minigpt4 demo $(if $(KEEP),--keep)

test: env-dev
	@$(PYTEST) $(ARGS)

test-slow: env-dev
	@$(PYTEST) -m slow $(ARGS)

test-nightly: env-dev
	@$(PYTEST) -m nightly $(ARGS)

coverage: PYTEST += --cov --cov-report=
coverage: test
	@$(RUN) python -m tools.coverage_floors

lint: env-dev
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports

check: lint test

# Both environments are the same folder: env-dev holds all that env holds, and env takes nothing of it away.
# Installed only when the lock or the project file changed. Compiled at once: where PYTHONDONTWRITEBYTECODE is set, as in
# many containers, each process would compile torch anew.
env: .venv/.env
	@:
env-dev: .venv/.env-dev
	@:

ifeq ($(filter-out 0,$(CPU)),)

.venv/.env: uv.lock pyproject.toml | $(UV)
	@echo "Installing what serving needs into .venv (6.2 GB with CUDA's libraries; CPU=1 leaves them out) …"
	@$(UV) sync --frozen --inexact --no-dev --extra serve --extra web --compile-bytecode
	@touch $@

.venv/.env-dev: uv.lock pyproject.toml | $(UV)
	@echo "Installing the developers' environment into .venv (6.8 GB with CUDA's libraries; CPU=1 leaves them out) …"
	@$(UV) sync --frozen --compile-bytecode
	@touch .venv/.env $@

else

.venv/.env: .venv/.cpu
	@$(UV) pip install --python .venv --torch-backend=cpu --constraints $< --compile-bytecode --editable '.[serve,web]'
	@touch $@

.venv/.env-dev: .venv/.cpu
	@$(UV) pip install --python .venv --torch-backend=cpu --constraints $< --compile-bytecode --editable . --group dev
	@touch .venv/.env $@

# uv.lock as constraints, with its hashes; torch has none, since it is another build than the one that is locked.
.venv/.cpu: uv.lock pyproject.toml | $(UV)
	@test ! -e .venv || test -e $@ || { echo "This .venv holds CUDA's libraries. Run make clean first."; exit 1; }
	@test -e .venv || $(UV) venv
	@$(UV) export --quiet --frozen --all-extras --no-emit-project --no-emit-package torch --output-file $@
	@$(UV) export --quiet --frozen --all-extras --no-emit-project --no-hashes | grep '^torch==' >> $@

endif

.uv/bin/uv:
	@echo "uv is not installed: fetching it into .uv/ …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

clean:
	rm -rf .venv .uv
